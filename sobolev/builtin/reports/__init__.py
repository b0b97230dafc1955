"""Built-in reports, as light factories: numbers are recorded by each run, drawn when all runs are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sobolev.hookspecs import Register

if TYPE_CHECKING:
    from sobolev.components import Report


_OUTPUT = "which output; by default all, up to four, a figure each"


def surface(
    *,
    grid: Annotated[int, Field(ge=5, description="points along each axis")] = 61,
    seed: Annotated[int | None, Field(description="which seed is drawn; the first by default")] = None,
) -> Report:
    """Surface and gradient field of the target and of every variant (the paper's Figure 3).

    For values with one component, of an input with two, whose box the target names; a table has the box of its rows.
    """
    from sobolev.builtin.reports.surface import Surface

    return Surface(grid, seed)


def bars(
    *,
    metrics: Annotated[list[str], Field(description="which; all held-out errors by default")] = [],  # noqa: B006
) -> Report:
    """Held-out errors of every variant, one point per seed, on a logarithmic axis (the paper's Figure 2)."""
    from sobolev.builtin.reports.bars import Bars

    return Bars(metrics)


def curves(
    *,
    metrics: Annotated[list[str], Field(description="which; training loss and evaluated errors by default")] = [],  # noqa: B006
) -> Report:
    """Learning curves: median over seeds with a band from the least to the greatest."""
    from sobolev.builtin.reports.curves import Curves

    return Curves(metrics)


def parity(
    *,
    samples: Annotated[int, Field(ge=1, description="held-out samples that are shown")] = 1000,
    output: Annotated[int | None, Field(ge=0, description=_OUTPUT)] = None,
    seed: Annotated[int | None, Field(description="which seed is drawn; the first by default")] = None,
) -> Report:
    """Student against target at held-out samples, value and each partial.

    At samples of the test split, or of validation, or of training, whichever is there first. Up to eight panels.
    """
    from sobolev.builtin.reports.parity import Parity

    return Parity(samples, output, seed)


def errors(
    *,
    samples: Annotated[int, Field(ge=1, description="held-out samples of every run")] = 2000,
    output: Annotated[int | None, Field(ge=0, description=_OUTPUT)] = None,
) -> Report:
    """Histograms of held-out errors, of the value and of each partial."""
    from sobolev.builtin.reports.errors import Errors

    return Errors(samples, output)


def profiles(
    *,
    grid: Annotated[int, Field(ge=5, description="points along each line")] = 101,
    output: Annotated[int | None, Field(ge=0, description=_OUTPUT)] = None,
) -> Report:
    """Sensitivity profiles: value and partial along each input, the other inputs held at the middle."""
    from sobolev.builtin.reports.profiles import Profiles

    return Profiles(grid, output)


# Bound here: importing a module of this package replaces the package's attribute of the same name.
_REPORTS = {
    "surface": surface,
    "bars": bars,
    "curves": curves,
    "parity": parity,
    "errors": errors,
    "profiles": profiles,
}


def reports(register: Register) -> None:
    """Register the built-in reports."""
    for name, factory in _REPORTS.items():
        register(name, factory)
