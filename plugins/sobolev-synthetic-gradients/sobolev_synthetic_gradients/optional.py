"""Packages that only a part of this plugin needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from sobolev import SobolevError


def need(module: str, package: str, purpose: str) -> None:
    """Raise `SobolevError` where a package is missing, before anything long starts."""
    if importlib.util.find_spec(module) is None:
        raise SobolevError(f"{purpose} needs the package {package}, which is not installed: pip install {package}")


_libraries: list[Any] = []  # torch forgets the operators of a library that is collected


def import_timm(purpose: str) -> Any:
    """Return timm, also where the compiled part of torchvision, which it imports, does not fit this torch."""
    need("timm", "timm", purpose)
    _provide_torchvision_operators()
    import timm

    return timm


def _provide_torchvision_operators() -> None:
    # torchvision looks for the operators `nms` and `qnms` of its compiled part when it is imported. Where that part
    # cannot be loaded their names are enough, as nothing here calls them.
    if _libraries or hasattr(torch.ops.torchvision, "nms"):
        return
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    for binary in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(binary))
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
