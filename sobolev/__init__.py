"""Sobolev Training: match a target's values and its derivatives (Czarnecki et al., 2017).

Plugin authors import everything they need from here; the names that need torch are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sobolev.components import (
    Axes,
    Context,
    Estimator,
    Learner,
    Objective,
    Report,
    RunInfo,
    RunRecord,
    Student,
    Target,
    Tracker,
    Trained,
)
from sobolev.errors import (
    ComponentError,
    DataError,
    DerivativeError,
    NonFiniteError,
    PluginError,
    RecipeError,
    RunError,
    SobolevError,
)
from sobolev.hookspecs import Register, hookimpl
from sobolev.registry import Kind

if TYPE_CHECKING:
    from sobolev.heads import HEADS, Head
    from sobolev.loading import load
    from sobolev.loss import SobolevLoss
    from sobolev.noise import Noise
    from sobolev.regressor import SobolevRegressor
    from sobolev.vocabulary import (
        VALUE,
        Batch,
        Contraction,
        Jet,
        Key,
        Mean,
        Moments,
        Points,
        Probe,
        Site,
        Statistics,
        Term,
        full,
        key_name,
    )

__version__ = "0.1.0"

_LAZY = {
    **dict.fromkeys(
        (
            "VALUE",
            "Batch",
            "Contraction",
            "Jet",
            "Key",
            "Mean",
            "Moments",
            "Points",
            "Probe",
            "Site",
            "Statistics",
            "Term",
            "full",
            "key_name",
        ),
        "sobolev.vocabulary",
    ),
    "HEADS": "sobolev.heads",
    "Head": "sobolev.heads",
    "Noise": "sobolev.noise",
    "load": "sobolev.loading",
    "SobolevLoss": "sobolev.loss",
    "SobolevRegressor": "sobolev.regressor",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sobolev' has no attribute {name!r}")


__all__ = [
    "HEADS",
    "VALUE",
    "Axes",
    "Batch",
    "ComponentError",
    "Context",
    "Contraction",
    "DataError",
    "DerivativeError",
    "Estimator",
    "Head",
    "Jet",
    "Key",
    "Kind",
    "Learner",
    "Mean",
    "Moments",
    "Noise",
    "NonFiniteError",
    "Objective",
    "PluginError",
    "Points",
    "Probe",
    "RecipeError",
    "Register",
    "Report",
    "RunError",
    "RunInfo",
    "RunRecord",
    "Site",
    "SobolevError",
    "SobolevLoss",
    "SobolevRegressor",
    "Statistics",
    "Student",
    "Target",
    "Term",
    "Tracker",
    "Trained",
    "full",
    "hookimpl",
    "key_name",
    "load",
]
