"""Numbers in sentences that are shown to people."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 value``, ``2 values``, ``12,000 values``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
