"""The parts that plugins provide: what each must do, and what it may rely on.

A component's options are its constructor's typed keyword arguments. Every class here has defaults for all that is
optional, so that a part is as small as what it has to say. Imports torch for types only: a plugin module that holds
factories stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from sobolev.distributed import World
    from sobolev.heads import Head
    from sobolev.noise import Noise
    from sobolev.vocabulary import Batch, Jet, Key, Mean, Points, Probe, Site, Term


@dataclass(frozen=True)
class Context:
    """What a run offers to its parts.

    Attributes:
        device: where tensors live.
        dtype: of the student and of the measured quantities.
        world: the processes of this run.
        seed: the run's seed; `generator` derives named streams from it.
        head: the function whose jet is compared, declared by the objective; applied by the target to its own output.
        directory: folder that relative paths in the recipe start from.
        cache: folder for results worth keeping between runs; shared, addressed by content.
        output: this run's own directory, or None where nothing may be written (checks).
        saved: directory of a finished run whose student is loaded, or None: the data need not be there any more.
        say: shows one line to the user.
    """

    device: torch.device
    dtype: torch.dtype
    world: World
    seed: int
    head: Head
    directory: Path
    cache: Path
    output: Path | None = None
    saved: Path | None = None
    say: Callable[[str], None] = print

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU generator for the stream ``name``; the same on every rank."""
        from sobolev.noise import generator

        return generator(self.seed, name)


class Learner:
    """The student as a target sees it (``advance``, ``finish``); the core provides it.

    Attributes:
        module: the student, a ``ModuleDict`` with one entry per site.
    """

    module: nn.ModuleDict

    def value(self, site: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the student's value ``(B, m)`` (after the head), without graph."""
        raise NotImplementedError

    def measure(self, points: Mapping[str, Points]) -> dict[str, Jet]:
        """Measure value and full first derivatives with the student's present weights, without graph."""
        raise NotImplementedError


@dataclass(frozen=True)
class Axes:
    """How the inputs and outputs of a target are named and bounded, for figures and tables.

    Attributes:
        inputs: a label per component of the differentiated input.
        outputs: a label per component of the value.
        low, high: the box of the inputs, or None where there is none.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


class Target:
    """What is imitated: where it is measured, and its value and derivatives there.

    Exactly one of `answer` and `value` is overridden. With `value` the derivatives come from the recipe's estimator.

    Attributes:
        version: part of the content key of every cache; change it when the answers change.
        needs: subset of {"gradient", "prediction"}: what `answer` (prediction) or `advance` (prediction,
            gradient) reads of the student even where no term trains it.
        fixed_points: whether a sample id always means the same point (then caches may be keyed by id).
        derivative_cache: bytes that whole first derivatives of the training set may take where autograd supplies them;
            they are then computed once and contracted in every step. Needs fixed points and a function that stays.
        heads: names of the heads that the target can answer for.
        max_order: highest derivative order that it can answer, or None for any.
    """

    version: str = "1"
    needs: frozenset[str] = frozenset()
    fixed_points: bool = False
    derivative_cache: int = 0
    heads: tuple[str, ...] = ("identity",)
    max_order: int | None = None

    def prepare(self, context: Context) -> None:
        """Read data, start workers, build networks. Called once, before everything else."""

    def sites(self) -> Mapping[str, Site]:
        """Return the sites by name; one is usual."""
        raise NotImplementedError

    def size(self, split: str) -> int:
        """Return the number of samples of ``train``, ``validation`` or ``test``; 0 where there is no such split."""
        raise NotImplementedError

    def load(self, split: str, ids: Tensor) -> Any:
        """Read the samples ``ids`` ``(B,)``; stateless, may run ahead in another thread."""
        return None

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return where each site is measured."""
        raise NotImplementedError

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return the target's jet per site, detached, contracted as the probes ask.

        ``prediction`` is the student's detached jet where ``needs`` holds "prediction", else None.
        """
        raise NotImplementedError

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return the value ``(B, m)``, after the context's head; differentiable by autograd where it can be.

        ``inputs`` may hold more rows than ``points`` (finite differences repeat the points in order).
        """
        raise NotImplementedError

    def advance(
        self,
        points: Mapping[str, Points],
        reference: Mapping[str, Jet],
        prediction: Mapping[str, Jet],
        learner: Learner,
    ) -> Mapping[str, Mean]:
        """Let the target itself learn, after the student's update; returns metrics.

        ``prediction`` was measured before the update, is detached and, where ``needs`` holds "gradient", holds
        the full first derivatives. The target owns its optimizer and sums its gradients through the world.
        """
        return {}

    def metrics(
        self, points: Mapping[str, Points], reference: Mapping[str, Jet], prediction: Mapping[str, Jet]
    ) -> Mapping[str, Mean]:
        """Return further metrics of a batch, in training and in evaluation."""
        return {}

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Return scores that are taken once, at the end of a run."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption: nested dicts of tensors and plain JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def axes(self, site: str) -> Axes | None:
        """Return names and box of a site's input for figures, or None."""
        return None

    def close(self) -> None:
        """Release what `prepare` acquired."""


class Estimator:
    """Which derivatives are compared (`probe`), and how a target without its own is differentiated.

    Attributes:
        memory: bound in bytes for what one measurement of the student's derivatives keeps, or None.
    """

    memory: int | None = None

    def prepare(self, target: Target, context: Context) -> None:
        """Look at the target before the first step; may read its dataset."""

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        """Return what to measure at ``points``: one contraction for every key.

        Args:
            points: where; ``points.index`` makes the draw a function of the sample.
            outputs: ``m``, the size of the value.
            keys: the derivatives that are wanted.
            noise: random numbers that depend on seed, split, step, site, key and sample id, not on the rank.

        Raises:
            ComponentError: a key or a side that makes no sense here.
        """
        raise NotImplementedError

    def differentiate(self, value: Callable[[Mapping[str, Tensor]], Tensor], points: Points, probe: Probe) -> Jet:
        """Return the jet of ``value`` (inputs -> ``(B, m)``), detached; by autograd unless overridden.

        Raises:
            ComponentError: a value that does not depend on a differentiated input through autograd.
        """
        from sobolev.differentiate.autograd import differentiate_target

        return differentiate_target(value, points, probe)

    def metrics(self) -> Mapping[str, float]:
        """Return counters worth recording, such as evaluations of the target; processes are summed."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption, such as those counters: nested dicts of tensors and JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Student:
    """A family of networks; `build` is called once per site.

    Attributes:
        needs: subset of {"statistics"}: whether `build` reads ``site.statistics``.
    """

    needs: frozenset[str] = frozenset()

    def build(self, site: Site) -> nn.Module:
        """Return a module whose ``forward`` takes inputs by name and returns ``z`` of shape ``(B, site.outputs)``."""
        raise NotImplementedError


class Objective:
    """How two jets are compared.

    Attributes:
        head: the function of the student's output whose jet is compared.
        needs: subset of {"statistics"}: whether `prepare` reads the statistics of the sites.
    """

    head: Head
    needs: frozenset[str] = frozenset()

    def prepare(self, sites: Mapping[str, Site]) -> None:
        """Look at the sites before the first step, with their statistics where ``needs`` asks for them."""

    def keys(self, site: Site) -> tuple[Key, ...]:
        """Return the derivatives that carry weight; only these are measured."""
        raise NotImplementedError

    def terms(self, site: str, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> list[Term]:
        """Return per term a sum with graph and a count."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told about a run.

    Attributes:
        recipe: name of the recipe.
        variant: name of the variant, with the matrix cell if there is one.
        seed: the run's seed.
        directory: the run directory.
        config: the resolved recipe.
        steps: how many steps the run will take.
        tags: from the recipe.
    """

    recipe: str
    variant: str
    seed: int
    directory: Path
    config: Mapping[str, Any]
    steps: int
    tags: Sequence[str] = ()


class Tracker:
    """Where numbers and pictures of a run go. Its failures cost a warning, never a run.

    Attributes:
        say: shows one line to the user; the core sets it.
    """

    say: Callable[[str], None] = staticmethod(print)

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        """Begin, or go on after step ``resumed_at``."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of a step."""

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        """End a run; ``status`` is ``finished``, ``interrupted`` or ``failed``."""

    def compare(self, recipe: str, table: str, figures: Sequence[Path], directory: Path) -> None:
        """Record the comparison of all runs of a recipe."""


Answers = tuple["np.ndarray", dict[str, "np.ndarray"]]
"""Value ``(B, m)``, and first derivatives ``(B, m, *x)`` by input."""


@dataclass(frozen=True)
class Trained:
    """A finished run as a report may look at it, in numbers.

    An ensemble is one site under its own name, and its student is the mean of the members.

    Attributes:
        sites: by name.
        axes: of each site, where the target names them.
        student: (site, inputs ``{name: (B, *shape)}``) -> value ``(B, m)``, and full first derivatives by input.
        target: the same for the target, or None where it cannot be asked anywhere.
        samples: (split, limit) -> the inputs of that split at each site, at most ``limit`` of them.
        compared: (split, limit) -> at each site, the target's and the student's value and derivatives at the same
            samples; numbers that the target does not know are NaN.
        spread: like student: the standard deviation of an ensemble's members, or None where there is a single student.
    """

    sites: Mapping[str, Site]
    axes: Mapping[str, Axes | None]
    student: Callable[[str, Mapping[str, np.ndarray]], tuple[np.ndarray, dict[str, np.ndarray]]]
    target: Callable[[str, Mapping[str, np.ndarray]], tuple[np.ndarray, dict[str, np.ndarray]]] | None
    samples: Callable[[str, int], dict[str, dict[str, np.ndarray]]]
    compared: Callable[[str, int], dict[str, tuple[Answers, Answers]]]
    spread: Callable[[str, Mapping[str, np.ndarray]], Answers | None] = lambda site, inputs: None


@dataclass(frozen=True)
class RunRecord:
    """One run directory, read.

    Attributes:
        variant, seed, directory: which run.
        config: the resolved recipe.
        status: ``finished``, ``interrupted``, ``failed`` or ``running``.
        summary: final metrics.
    """

    variant: str
    seed: int
    directory: Path
    config: Mapping[str, Any]
    status: str
    summary: Mapping[str, float] = field(default_factory=dict)


class Report:
    """A figure or table: numbers are recorded at the end of each run, drawn when all runs are there."""

    name: ClassVar[str] = ""

    def record(self, trained: Trained) -> Mapping[str, np.ndarray] | None:
        """Return arrays to keep in the run directory as ``records/<name>.npz``, or None."""
        return None

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw into ``directory`` from run directories alone; return the files made."""
        raise NotImplementedError
