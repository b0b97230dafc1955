"""Networks and images of timm, which only a part of this plugin needs."""

from __future__ import annotations

from typing import Any

from sobolev.optional import need, provide_torchvision_operators


def import_timm(purpose: str) -> Any:
    """Return timm, also where the compiled part of torchvision, which it imports, does not fit this torch.

    Raises:
        SobolevError: timm is not installed; the message begins with ``purpose``.
    """
    need("timm", "timm", purpose)
    provide_torchvision_operators()
    import timm

    return timm
