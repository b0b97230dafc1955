"""Packages that only a part of this plugin needs."""

from __future__ import annotations

import importlib.util

from sobolev import SobolevError


def need(module: str, package: str, purpose: str) -> None:
    """Raise `SobolevError` where a package is missing, before anything long starts."""
    if importlib.util.find_spec(module) is None:
        raise SobolevError(f"{purpose} needs the package {package}, which is not installed: pip install {package}")
