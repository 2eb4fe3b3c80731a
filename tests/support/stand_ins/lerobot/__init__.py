"""As much of LeRobot 0.6 as the format lerobot calls, with its signatures; tests/lerobot/ runs with the real one."""
