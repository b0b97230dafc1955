"""The top level of a recipe; components and their options are checked by the registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sobolev.registry import normalize

Spec = Annotated[dict[str, Any], BeforeValidator(normalize)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
Name = Annotated[str, Field(pattern=NAME, max_length=100)]


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("seeds that differ, as each is one run")
    return seeds


Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[int, Field(ge=1)] | Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EarlyStop(_Strict):
    """Stop a phase, and with the last one the run, when a validation metric no longer improves.

    The next phase begins with the best student, where ``evaluate.best`` keeps one.
    """

    metric: str = Field(description="such as validation/function/value; smaller is better")
    patience: int = Field(10, ge=1, description="evaluations without improvement before the phase ends")
    min_improvement: float = Field(0.0, ge=0, description="relative improvement that counts")


class Checkpoints(_Strict):
    """How often an interrupted run can be taken up."""

    every: int | None = Field(None, ge=1, description="steps; by default by time alone")
    seconds: float = Field(60.0, gt=0, description="at least this often")
    keep: int = Field(2, ge=1, description="newest ones that are kept")


class Phase(_Strict):
    """A part of training with its own optimizer (Adam, then L-BFGS)."""

    steps: int = Field(ge=1, description="optimizer steps")
    optimizer: Spec = Field(description="torch optimizer by name, with its options")
    schedule: Spec | None = Field(None, description="learning-rate schedule over this phase")
    batch_size: int | Literal["all"] | None = Field(None, description="replaces train.batch_size")


class Train(_Strict):
    """The loop."""

    steps: int = Field(1000, ge=0, description="optimizer steps")
    batch_size: int | Literal["all"] = Field(32, description="samples per step, over all devices")
    optimizer: Spec = Field(default={"use": "adam"}, description="torch optimizer by name, with its options")
    schedule: Spec | None = Field(None, description="learning-rate schedule")
    phases: list[Phase] = Field(default=[], description="instead of steps, optimizer and schedule")
    clip: float | None = Field(None, gt=0, description="bound of the gradient norm over the whole student")
    accumulate: int = Field(1, ge=1, description="micro-batches per step")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights, used in evaluation")
    update: Literal["sync", "hogwild"] = Field("sync", description="processes sum gradients, or share parameters")
    compile: Literal["auto", "never"] = Field("auto", description="compile derivative engines where the rule says so")
    log_every: int | None = Field(None, ge=1, description="steps between records; by default 200 per run")
    stop: EarlyStop | None = Field(None, description="early stopping")
    checkpoint: Checkpoints = Field(Checkpoints(), description="checkpoints")
    on_nonfinite: Literal["raise", "skip"] = Field("raise", description="what to do when the loss is NaN or infinite")
    preflight: bool = Field(True, description="check the parameter gradient against finite differences before step 1")

    def in_phases(self) -> list[Phase]:
        """Return the phases, or the whole training as one; empty where there are no steps."""
        whole = [Phase(steps=self.steps, optimizer=self.optimizer, schedule=self.schedule)] if self.steps else []
        return self.phases or whole


class Evaluate(_Strict):
    """Held-out measurement: value error and derivative error, whatever was trained."""

    every: int | None = Field(None, ge=1, description="steps; by default only at the end")
    splits: list[Literal["train", "validation", "test"]] = Field(
        default=["validation", "test"], description="splits that are measured, where they exist"
    )
    points: int | None = Field(None, ge=1, description="at most this many samples of a split")
    batch_size: int = Field(2048, ge=1, description="samples at once")
    memory: int = Field(512 * 2**20, ge=1, description="bytes; larger Jacobians are measured by fixed projections")
    best: str | None = Field(None, description="metric by which the best student is kept; the last one by default")


class Recipe(_Strict):
    """A checked recipe."""

    name: Name = Field(description="names the directory below runs/")
    description: str = Field("", description="one line for people")
    plugins: list[str] = Field(default=[], description="packages that must be installed")
    target: Spec = Field(description="what is imitated")
    student: Spec = Field(description="the network that is trained")
    estimator: Spec = Field(default={"use": "exact"}, description="which derivatives are compared")
    objective: Spec = Field(default={"use": "sobolev"}, description="how they are compared")
    train: Train = Field(Train(), description="the loop")
    evaluate: Evaluate = Field(Evaluate(), description="held-out measurement")
    dtype: Literal["float32", "float64"] = Field("float32", description="of student and derivatives")
    precision: Literal["full", "bfloat16", "bfloat16-derivatives"] = Field(
        "full", description="of matrix products: bfloat16 where a step measures values alone, or with derivatives too"
    )
    seeds: Seeds = Field(1, description="how many, from 0, or which")
    variants: dict[Name, dict[str, Any]] = Field(default={}, description="dotted fields that a variant changes")
    matrix: dict[str, list[Any]] = Field(default={}, description="dotted field -> values; all combinations are run")
    track: list[Spec] = Field(default=[], description="trackers besides the console and metrics.jsonl")
    tags: list[str] = Field(default=[], description="for trackers")
    figures: list[Spec] = Field(default=[], description="reports that are drawn at the end")
    smoke: dict[str, Any] = Field(default={}, description="dotted fields that `--smoke` changes: seconds on a CPU")
