"""Packages that a part of the project needs, and that may be missing or half installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sobolev.errors import SobolevError

_libraries: list[Any] = []  # torch forgets the operators of a library that is collected


def need(module: str, package: str, purpose: str) -> None:
    """Say how to install a package that is missing, before anything long starts.

    Args:
        module: as it is imported.
        package: as it is installed.
        purpose: what needs it, the beginning of the message.

    Raises:
        SobolevError: there is no such module.
    """
    if importlib.util.find_spec(module) is None:
        raise SobolevError(f"{purpose} needs the package {package}, which is not installed: pip install {package}")


def provide_torchvision_operators() -> None:
    """Let torchvision, which timm imports, be imported beside a torch that its compiled part was not made for.

    Such a torchvision fails while it describes its operators nms and qnms, which no network calls: their names do.
    Does nothing where torchvision is missing, or loads as it is.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for compiled in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
