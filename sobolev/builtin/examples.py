"""Functions for recipes that show the target ``blackbox``; offered as entry points, as any package offers its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cantilever(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tip deflection in mm and largest stress in MPa of a cantilever beam, with their partials.

    Args:
        x: ``(4,)``: load in N, length in m, width in mm, height in mm (steel, 210 GPa).

    Returns:
        Value ``(2,)`` and partials ``(2, 4)``.
    """
    load, length, width, height = x
    deflection = 4e12 * load * length**3 / (210e3 * width * height**3) * 1e-3
    stress = 6e3 * load * length / (width * height**2)
    partials = np.array([
        [deflection / load, 3 * deflection / length, -deflection / width, -3 * deflection / height],
        [stress / load, stress / length, -stress / width, -2 * stress / height],
    ])  # fmt: skip
    return np.array([deflection, stress]), partials


def pendulum(x: NDArray[np.float64]) -> float:
    """Angle in radians of a damped pendulum after three seconds, by 300 steps of Runge and Kutta; no partials.

    Args:
        x: ``(3,)``: first angle in rad, length in m, damping in 1/s.
    """
    angle, length, damping = x
    step = 0.01

    def slope(state: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([state[1], -9.81 / length * np.sin(state[0]) - damping * state[1]])

    state = np.array([angle, 0.0])
    for _ in range(300):
        a = slope(state)
        b = slope(state + 0.5 * step * a)
        c = slope(state + 0.5 * step * b)
        d = slope(state + step * c)
        state = state + step / 6 * (a + 2 * b + 2 * c + d)
    return float(state[0])
