"""Built-in reports, as light factories."""

from __future__ import annotations

from sobolev.hookspecs import Register


def reports(register: Register) -> None:
    """Register the built-in reports."""
