"""Built-in trackers besides ``metrics.jsonl``, which every run has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sobolev.hookspecs import Register

if TYPE_CHECKING:
    from sobolev.components import Tracker


def console(
    *,
    every: Annotated[int, Field(ge=1, description="records between lines")] = 10,
) -> Tracker:
    """Lines of numbers on the terminal, for logs that are read later."""
    from sobolev.builtin.trackers.console import Console

    return Console(every)


# Bound here: importing a module of this package replaces the package's attribute of the same name.
_TRACKERS = {"console": console}


def trackers(register: Register) -> None:
    """Register the built-in trackers."""
    for name, factory in _TRACKERS.items():
        register(name, factory)
