"""The target ``blackbox``: sampled in a box, evaluated in parallel, every result kept."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sobolev.builtin.sampling import sample
from sobolev.builtin.targets.blackbox.pool import GROUP, Pool, Task, described, find
from sobolev.builtin.targets.blackbox.results import Point, Results
from sobolev.components import Axes, Context, Learner, Target
from sobolev.differentiate.contract import contract
from sobolev.errors import ComponentError
from sobolev.noise import stream
from sobolev.vocabulary import Batch, Jet, Points, Probe, Site

SITE = "function"
_LEAST_PATIENCE = 8


class Blackbox(Target):
    """A function of ``d`` numbers in a box; subclasses say where derivatives come from.

    Results are cached by the function (its package's version and its source), and the point. Test and validation points
    are the same for all seeds of a run; training points depend on the seed. Nothing is evaluated before it is needed.

    Raises:
        ComponentError: an empty range of an input.
    """

    fixed_points = True
    returned = False

    def __init__(
        self,
        function: str,
        inputs: Mapping[str, tuple[float, float]],
        outputs: Sequence[str],
        units: Mapping[str, str],
        sampling: str,
        sizes: Mapping[str, int],
        workers: int | None,
        timeout: float,
        version: str | None,
    ) -> None:
        for name, (low, high) in inputs.items():
            if not low < high:
                raise ComponentError(f"blackbox: the range of input {name!r} is empty: {low:g} to {high:g}")
        self.function = function
        self.ranges = dict(inputs)
        self.outputs = tuple(outputs)
        self.units = dict(units)
        self.sampling = sampling
        self.sizes = dict(sizes)
        self.workers = workers or _cores()
        self.timeout = timeout
        self._given_version = version
        self._pool: Pool | None = None
        self._ready: set[str] = set()
        self.computed = 0
        self._split = "train"
        self._asked: dict[str, set[Point]] = {}

    def prepare(self, context: Context) -> None:
        """Draw the points of every split."""
        self.context = context
        self._low, self._high = (
            torch.tensor(edge, dtype=torch.float64) for edge in zip(*self.ranges.values(), strict=True)
        )
        self._x = {}
        for split, count in self.sizes.items():
            training = split == "train"
            seed = stream(self.function, context.seed, split) if training else stream(self.function, split)
            x = sample(self.sampling, count, self._low, self._high, seed)
            self._x[split] = x.to(context.dtype)
        if context.saved is None:
            self._open()

    def _open(self) -> None:
        """Find the function and what is known of it already."""
        self.version = _version(self.function, self._given_version)
        names = "\x1f".join((*self.ranges, "", *self.outputs, str(self.returned)))
        digest = hashlib.blake2b(f"{self.version}\x1e{names}".encode(), digest_size=8).hexdigest()
        folder = self.context.cache / "functions" / f"{re.sub(r'[^A-Za-z0-9_-]', '-', self.function)}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        self._task = Task(self.function, tuple(self.ranges), self.outputs, self.returned, folder / "results.jsonl")
        self._results = Results(self._task.file, len(self.ranges), len(self.outputs))

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``function``, with the input ``x`` ``(d,)``."""
        ranges = {"x": (self._low.tolist(), self._high.tolist())}
        return {SITE: Site({"x": (len(self.ranges),)}, len(self.outputs), ("x",), ranges)}

    def size(self, split: str) -> int:
        """Return the number of points of a split."""
        return self.sizes[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the sampled points; the first request for a split evaluates all of it, with all workers."""
        self._split = batch.split
        if batch.split not in self._ready:
            self.evaluate(self._x[batch.split], f"{batch.split}: ")
            self._ready.add(batch.split)
        x = self._x[batch.split][batch.ids].to(self.context.device)
        return {SITE: Points({"x": x}, ("x",), batch.ids)}

    def evaluate(self, x: Tensor, what: str = "") -> tuple[Tensor, Tensor | None]:
        """Return values ``(n, m)`` and partials ``(n, m, d)`` or None, from the cache or computed.

        Raises:
            ComponentError: the function hangs, crashes, raises, or returns what was not promised; with the points.
            KeyboardInterrupt: a signal asked to stop.
        """
        rows: list[Point] = [tuple(row) for row in x.detach().to("cpu", torch.float64).tolist()]
        self._asked.setdefault(self._split, set()).update(rows)
        if any(self._results.get(row) is None for row in rows):
            with _alone(self._task.file.with_suffix(".lock")):  # others may be computing these very points
                self._compute(rows, what)
        found = [self._results.get(row) for row in rows]
        values = torch.tensor([r.value for r in found if r], dtype=torch.float64).reshape(len(rows), len(self.outputs))
        partials = None
        if self.returned:
            partials = torch.tensor([r.partials for r in found if r], dtype=torch.float64)
            partials = partials.reshape(len(rows), len(self.outputs), len(self.ranges)).to(x.device, x.dtype)
        return values.to(x.device, x.dtype), partials

    def _compute(self, rows: Sequence[Point], what: str) -> None:
        self._results.mend()
        self._results.refresh()
        missing = list(dict.fromkeys(row for row in rows if self._results.get(row) is None))
        if not missing:
            return
        if self._pool is None:
            self._pool = Pool(self._task, self.workers, self.timeout, max(_LEAST_PATIENCE, 2 * self.workers))
        if what:
            known = len(set(rows)) - len(missing)
            self.context.say(f"{self.function}, {what}{len(missing):,} points to compute, {known:,} known already")
        before = len(self._results)
        try:
            failures = self._pool.evaluate(missing)
        finally:
            self._results.refresh()
            self.computed += len(self._results) - before
        if failures:
            raise ComponentError(described(self._task, failures, len(self._results), {"file": self._task.file}))

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Return how many evaluations this run made, and at how many different points it asked for values, by split."""
        asked = {f"evaluations/{split}": float(len(points)) for split, points in self._asked.items()}
        return {"evaluations/computed": float(self.computed), **asked}

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted: evaluations, and the points ``(n, d)`` that were asked for, by split."""
        asked = {split: torch.tensor(sorted(points), dtype=torch.float64) for split, points in self._asked.items()}
        return {"computed": self.computed, "asked": asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where a checkpoint was written."""
        self.computed += state["computed"]
        for split, points in state["asked"].items():
            self._asked.setdefault(split, set()).update(map(tuple, points.tolist()))

    def axes(self, site: str) -> Axes:
        """Return names with units, and the box."""
        return Axes(
            [self._label(name) for name in self.ranges],
            [self._label(name) for name in self.outputs],
            self._low.tolist(),
            self._high.tolist(),
        )

    def _label(self, name: str) -> str:
        return f"{name} [{self.units[name]}]" if self.units.get(name) else name

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()


class ValueBlackbox(Blackbox):
    """A function that returns its value; derivatives come from the recipe's estimator, by finite differences."""

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return f(x) ``(B, m)``, without graph.

        Raises:
            ComponentError: an estimator other than finite differences.
        """
        x = inputs["x"]
        if x.requires_grad or x.is_complex():
            raise ComponentError(
                f"blackbox: the function {self.function!r} cannot be differentiated by autograd or complex steps; use\n"
                "  estimator: {use: finite-difference, of: {use: exact}}\n"
                "or let it return (value, partials) and set 'partials: returned'"
            )
        return self.evaluate(x)[0]


class JetBlackbox(Blackbox):
    """A function that returns its value and its partials."""

    returned = True
    max_order = 1

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return values, and partials contracted as the probe asks."""
        values, partials = self.evaluate(points[SITE].inputs["x"])
        assert partials is not None
        derivatives = {key: contract(partials, c)[0] for key, c in probes[SITE].contractions.items()}
        return {SITE: Jet(values, derivatives)}


def _version(function: str, given: str | None) -> str:
    """Return what makes results of a function outdated: what the recipe says, or package version and source."""
    entry = find(function)
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
    if given is not None:
        return f"{GROUP}:{function} {given}"
    try:
        spec = importlib.util.find_spec(entry.module)
        source = Path(spec.origin).read_bytes() if spec is not None and spec.origin else b""
    except (ImportError, OSError, ValueError):  # the workers say what is wrong with it
        source = b""
    return f"{package} {entry.value} {hashlib.blake2b(source, digest_size=16).hexdigest()}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process at a time compute; the lock goes with its process."""
    with file.open("w") as stream:
        try:
            import fcntl
        except ImportError:  # no such locks there: the same point may be computed twice
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
