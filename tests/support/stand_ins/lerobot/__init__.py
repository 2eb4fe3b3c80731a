"""As much of LeRobot 0.6.1 as examples/lerobot_policy uses; the real one wants Python 3.12 and a training stack."""
