"""Targets made of what users bring (a table, a function, a network), as light factories."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sobolev.builtin.sampling import Sampling
from sobolev.components import Student, Target
from sobolev.hookspecs import Register
from sobolev.registry import Kind

Fraction = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
SplitName = Literal["train", "validation", "test"]
_LABELS: dict[SplitName, list[str]] = {
    "train": ["train", "training"],
    "validation": ["validation", "valid", "val"],
    "test": ["test", "testing"],
}


class Split(BaseModel):
    """Which rows train, validate and test."""

    model_config = ConfigDict(extra="forbid")

    validation: Fraction = Field(0.0, description="fraction of the rows, or of the groups")
    test: Fraction = Field(0.2, description="fraction of the rows, or of the groups")
    seed: int = Field(0, description="of the split; the same for all seeds of a recipe")
    column: str | None = Field(None, description="column that says the split of every row")
    group: str | None = Field(None, description="column of groups that are not torn apart")
    labels: dict[SplitName, list[str]] = Field(default=_LABELS, description="what stands in 'column' for each split")

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if self.column is not None and self.group is not None:
            raise ValueError("a split goes by 'column' or by 'group', not by both")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave nothing to train on")
        return self

    @property
    def by(self) -> str | None:
        """The column that decides, or None for fractions of rows."""
        return self.column or self.group


class Weights(BaseModel):
    """How much samples, values and partials count."""

    model_config = ConfigDict(extra="forbid")

    samples: str | None = Field(None, description="column with the weight of every sample")
    outputs: dict[str, Weight] = Field(default={}, description="value -> factor of its errors and its partials'")
    partials: dict[str, dict[str, Weight]] = Field(default={}, description="value -> input -> factor of its errors")


def table(
    *,
    file: Annotated[str, Field(description=".csv, .tsv, .parquet, .pq or .npz, beside the recipe")],
    inputs: Annotated[str | list[str], Field(description="columns x: names, patterns such as 'x*', NPZ arrays")],
    values: Annotated[str | list[str], Field(description="columns y, likewise")],
    partials: Annotated[
        str | dict[str, dict[str, str]] | None,
        Field(description="pattern 'd{output}/d{input}', {output: {input: column}}, or an NPZ array (N, m, d)"),
    ] = None,
    units: Annotated[dict[str, str], Field(description="column -> unit, for figures; or 'x [m]' in the header")] = {},  # noqa: B006
    weights: Annotated[Weights, Field(description="of samples, values and partials")] = Weights(),  # noqa: B008
    split: Annotated[Split, Field(description="which rows train, validate and test")] = Split(),  # noqa: B008
    train: Annotated[
        int | None, Field(ge=1, description="use only so many training rows, drawn anew for every seed")
    ] = None,
    missing_inputs: Annotated[
        Literal["error", "drop"], Field(description="what to do with a row whose input is missing")
    ] = "error",
    memory: Annotated[
        int, Field(ge=1, description="MiB that rows may take; a larger table is memory-mapped from a cache")
    ] = 64,
) -> Target:
    """Samples with values and partials from a file; partials may be missing, one by one.

    An empty cell (also NaN, null, NA) is missing: it is masked and counted. `sobolev check-data` compares the partials
    with the values before anything is trained.

    Args:
        file: relative to the recipe.
        inputs: d columns.
        values: m columns.
        partials: none by default; the derivative term must then have weight 0.
        units: carried to figures and tables.
        weights: factors of errors.
        split: by fractions of rows (20 % test by default), by a column, or by whole groups.
        train: for learning curves over the number of samples.
        missing_inputs: `drop` leaves such rows out and says how many.
        memory: bound of the resident part of a table, whatever its size.
    """
    from sobolev.builtin.targets.table.target import Table

    return Table(file, inputs, values, partials, units, weights, split, train, missing_inputs, memory * 2**20)


def blackbox(
    *,
    function: Annotated[str, Field(description="name of an entry point of the group sobolev.functions")],
    inputs: Annotated[
        dict[str, tuple[float, float]], Field(min_length=1, description="name -> [low, high], in the function's order")
    ],
    outputs: Annotated[list[str], Field(min_length=1, description="names of the values")],
    partials: Annotated[
        Literal["finite-difference", "returned"],
        Field(description="differences of the value (estimator: finite-difference), or returned by the function"),
    ] = "finite-difference",
    units: Annotated[dict[str, str], Field(description="input or output -> unit, for figures")] = {},  # noqa: B006
    sampling: Annotated[Sampling, Field(description="design of the points")] = "latin-hypercube",
    train: Annotated[int, Field(ge=1, description="training points, drawn anew for every seed")] = 50,
    test: Annotated[int, Field(ge=0, description="test points, the same for all runs")] = 100,
    validation: Annotated[int, Field(ge=0, description="validation points, the same for all runs")] = 0,
    workers: Annotated[int | None, Field(ge=1, description="processes; by default one per core")] = None,
    timeout: Annotated[float, Field(gt=0, description="seconds that one evaluation may take")] = 300.0,
    version: Annotated[
        str | None, Field(description="of the function, for the cache; by default its package's version and its source")
    ] = None,
) -> Target:
    """A Python function of an installed package, evaluated in parallel; every result is kept on disk as it comes.

    The function takes one array `(d,)` and returns a number or m numbers, or `(value, partials (m, d))`. Points that
    were computed once, in any run, are not computed again. A point where it hangs, crashes or raises is named.

    Args:
        function: offered by a package: [project.entry-points."sobolev.functions"] name = "package.module:function".
        inputs: the box.
        outputs: m names.
        partials: where derivatives come from.
        units: carried to figures and tables.
        sampling: of every split.
        train: each seed has its own.
        test: few by default, as each costs an evaluation.
        validation: likewise.
        workers: at the same time.
        timeout: after it, the worker is stopped and the point is named.
        version: change it to compute anew.
    """
    from sobolev.builtin.targets.blackbox.target import JetBlackbox, ValueBlackbox

    made = JetBlackbox if partials == "returned" else ValueBlackbox
    sizes = {"train": train, "validation": validation, "test": test}
    return made(function, inputs, outputs, units, sampling, sizes, workers, timeout, version)


def module(
    *,
    network: Annotated[
        Annotated[Student, Kind("student")] | None, Field(description="a registered network; its 'weights' are a file")
    ] = None,
    program: Annotated[str | None, Field(description="a torch.export program, .pt2")] = None,
    timm: Annotated[str | None, Field(description="name of a network of timm; its 'weights' are a file")] = None,
    weights: Annotated[str | None, Field(description=".safetensors file, such as a run's student.safetensors")] = None,
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, description="of one input")],
    outputs: Annotated[int | None, Field(ge=1, description="how many numbers a network returns; timm: classes")] = None,
    low: Annotated[
        float | list[float], Field(description="of the box of inputs; one number or one per component")
    ] = -1.0,
    high: Annotated[float | list[float], Field(description="of the box of inputs")] = 1.0,
    sampling: Annotated[Sampling, Field(description="design of the points")] = "uniform",
    train: Annotated[int, Field(ge=1, description="training points, drawn anew for every seed")] = 1000,
    test: Annotated[int, Field(ge=0, description="test points, the same for all runs")] = 1000,
    validation: Annotated[int, Field(ge=0, description="validation points, the same for all runs")] = 0,
    file: Annotated[str | None, Field(description="table with inputs to use instead of a box")] = None,
    inputs: Annotated[str | list[str] | None, Field(description="its columns, or an NPZ array")] = None,
    split: Annotated[Split, Field(description="of the rows of the file")] = Split(),  # noqa: B008
) -> Target:
    """A torch network as teacher: frozen, in evaluation mode, differentiated by autograd.

    Nothing is downloaded. Weights are safetensors files; a torch.export program is read by torch's own loader, so take
    it from people you trust.

    Args:
        network: with the options that it was trained with.
        program: exported with a dynamic batch dimension.
        timm: such as resnet18.
        weights: of network or timm.
        shape: such as [3, 32, 32].
        outputs: checked against what the teacher returns.
        low: of the box.
        high: of the box.
        sampling: of every split of the box.
        train: of the box.
        test: of the box.
        validation: of the box.
        file: CSV, Parquet or NPZ.
        inputs: in C order of the shape.
        split: by fractions.
    """
    from sobolev.builtin.targets.module.target import Module

    sizes = {"train": train, "validation": validation, "test": test}
    return Module(network, program, timm, weights, shape, outputs, low, high, sampling, sizes, file, inputs, split)


# Bound here: importing a module of this package replaces the package's attribute of the same name.
_TARGETS = {"table": table, "blackbox": blackbox, "module": module}


def targets(register: Register) -> None:
    """Register the targets of users' data."""
    for name, factory in _TARGETS.items():
        register(name, factory)
