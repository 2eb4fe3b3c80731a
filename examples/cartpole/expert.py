"""The teacher: a linear-quadratic regulator that reads the CartPole's true state, which the policy never sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

# gymnasium's CartPole-v1 (classic_control/cartpole.py).
GRAVITY = 9.8
CART_KG = 1.0
POLE_KG = 0.1
HALF_POLE_M = 0.5
PERIOD_S = 0.02

# What the regulator minimises each period: squared position, velocity, angle and rate, and squared force in newtons.
STATE_COST = np.diag([1.0, 0.1, 10.0, 0.1])
FORCE_COST = np.array([[0.01]])


def upright_dynamics() -> tuple[Vector, Vector]:
    """A, B of s' = A s + B force for s = (position, velocity, angle, rate), one Euler step around the upright pole."""
    total_kg = CART_KG + POLE_KG
    inertia = HALF_POLE_M * (4.0 / 3.0 - POLE_KG / total_kg)
    coupling = POLE_KG * HALF_POLE_M / total_kg
    rate_of = np.zeros((4, 4))
    rate_of[0, 1] = rate_of[2, 3] = 1.0
    rate_of[3, 2] = GRAVITY / inertia
    rate_of[1, 2] = -coupling * rate_of[3, 2]
    push = np.zeros((4, 1))
    push[3, 0] = -1.0 / total_kg / inertia
    push[1, 0] = 1.0 / total_kg - coupling * push[3, 0]
    return np.eye(4) + PERIOD_S * rate_of, PERIOD_S * push


def regulator_gain() -> Vector:
    """float64[4]: the force to apply is `-gain @ state`; the Riccati equation, iterated until it stands still."""
    a, b = upright_dynamics()
    cost = STATE_COST.copy()
    while True:
        gain = np.linalg.solve(FORCE_COST + b.T @ cost @ b, b.T @ cost @ a)
        following = STATE_COST + a.T @ cost @ (a - b @ gain)
        if np.allclose(following, cost, rtol=1e-10, atol=0.0):
            result: Vector = gain[0]
            return result
        cost = following
