"""The target `distillation`: a frozen network whose outputs and derivatives a student imitates (paper, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev import Axes, Batch, Context, Jet, Learner, Mean, Points, Probe, Site, Target
from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.contract import contract
from sobolev_atari.teachers import Teacher

SITE = "policy"
_CHUNK = 100  # states whose Jacobian is computed at once
SPLITS = ("train", "validation", "test")


class Source(Protocol):
    """Where states come from, which teacher sees them, and how a student is scored."""

    teacher: Teacher
    shape: tuple[int, ...]
    scale: float
    bounded: bool
    rows: dict[str, NDArray[np.int64]]

    def prepare(self, context: Context) -> None:
        """Read or make the teacher and the states."""

    def states(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Observations `(B, *shape)` as stored; divided by `scale` they are x."""

    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The teacher's recorded outputs `(B, m)`, or None where none are recorded."""

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """True classes `(B,)`, where there are any."""

    def finish(self, student: Any, context: Context) -> dict[str, float]:
        """Scores of the student, a function of x `(B, *shape)` to log-probabilities `(B, m)`."""

    def close(self) -> None:
        """Release files."""


@dataclass(frozen=True)
class _Seen:
    """The context of a batch's points."""

    split: str
    ids: Tensor
    logits: Tensor | None
    labels: Tensor | None


class Distillation(Target):
    """Imitate log-softmax(teacher(x) / temperature), and its derivatives by x, on states that were gathered before.

    The teacher is frozen. Its values are those recorded with the states. Its derivatives come from a Jacobian that is
    computed once per split where `N * m * d` numbers fit into `memory` bytes (all splits together, training first), and
    otherwise from one forward and backward pass per projection, made afresh for every batch.
    """

    heads = ("log-softmax", "identity")
    fixed_points = True

    def __init__(self, source: Source, *, temperature: float, memory: int) -> None:
        self.source = source
        self.temperature = temperature
        self.memory = memory
        self._cached: dict[str, Tensor] = {}
        self._fits: dict[str, bool] = {}

    def prepare(self, context: Context) -> None:
        """Make teacher and states, and decide how derivatives will be found."""
        self.context = context
        self.source.prepare(context)
        teacher = self.source.teacher
        self.version = f"{teacher.digest} T={self.temperature!r}"
        self.network = teacher.network.to(device=context.device, dtype=context.dtype)
        if len(self.source.shape) == 3:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._decide()

    def _decide(self) -> None:
        numbers = self.source.teacher.outputs * math.prod(self.source.shape)
        left = self.memory
        for split in SPLITS:
            needed = len(self.source.rows[split]) * numbers * self.context.dtype.itemsize
            self._fits[split] = 0 < needed <= left
            left -= needed if self._fits[split] else 0
        cached = [split for split in SPLITS if self._fits[split]]
        self.context.say(
            f"teacher derivatives: Jacobian kept for {', '.join(cached) or 'no split'} "
            f"({(self.memory - left) / 2**20:.0f} of {self.memory / 2**20:.0f} MiB), fresh passes elsewhere"
        )

    def sites(self) -> Mapping[str, Site]:
        """One site, `policy`, with the input x."""
        ranges = {"x": (0.0, 1.0)} if self.source.bounded else {}
        return {SITE: Site({"x": self.source.shape}, self.source.teacher.outputs, ("x",), ranges)}

    def size(self, split: str) -> int:
        """Number of states of a split."""
        return len(self.source.rows[split])

    def load(self, split: str, ids: Tensor) -> Any:
        """Read states, logits and labels."""
        rows = self.source.rows[split][ids.numpy()]
        logits, labels = self.source.logits(rows), self.source.labels(rows)
        return (
            torch.from_numpy(self.source.states(rows)),
            None if logits is None else torch.from_numpy(logits),
            None if labels is None else torch.from_numpy(labels),
        )

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """The states as x, on the device."""
        device, dtype = self.context.device, self.context.dtype
        states, logits, labels = batch.data if batch.data is not None else self.load(batch.split, batch.ids)
        x = states.to(device)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(dtype)
        x = x.div_(self.source.scale) if self.source.scale != 1 else x
        seen = _Seen(
            batch.split,
            batch.ids,
            None if logits is None else logits.to(device, dtype),
            None if labels is None else labels.to(device),
        )
        return {SITE: Points({"x": x}, ("x",), batch.ids.to(device), context=seen)}

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """The teacher's jet, detached."""
        where, probe = points[SITE], probes[SITE]
        seen: _Seen = where.context
        with torch.inference_mode(False):
            if all(key == ("x",) for key in probe.keys) and (not probe.keys or self._fits[seen.split]):
                value = self._value(where)
                if not probe.keys:
                    return {SITE: Jet(value)}
                jacobian = self._jacobian(seen.split)[seen.ids].to(value.device)
                return {SITE: Jet(value, {key: contract(jacobian, c)[0] for key, c in probe.contractions.items()})}
            return {SITE: differentiate(self._function, where, probe, create_graph=False).detach()}

    def _function(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.context.head(self.network(inputs["x"]) / self.temperature, inputs)

    def _value(self, points: Points) -> Tensor:
        seen: _Seen = points.context
        if seen.logits is not None:
            return self.context.head(seen.logits / self.temperature, points.inputs)
        with torch.no_grad():
            return self._function(points.inputs)

    def _jacobian(self, split: str) -> Tensor:
        """The Jacobian of all states of a split, `(N, m, *shape)`, computed when it is first asked for."""
        if split not in self._cached:
            count, probe = self.size(split), Probe.full((("x",),))
            held = torch.empty((count, self.source.teacher.outputs, *self.source.shape), dtype=self.context.dtype)
            for ids in torch.arange(count).split(_CHUNK):
                where = self.points(Batch(split, ids), training=False)[SITE]
                jet = differentiate(self._function, where, probe, create_graph=False).detach()
                held[ids] = jet.derivatives[("x",)].cpu()
            self._cached[split] = held
        return self._cached[split]

    def metrics(
        self, points: Mapping[str, Points], reference: Mapping[str, Jet], prediction: Mapping[str, Jet]
    ) -> Mapping[str, Mean]:
        """Error of the most probable action (or class) against the teacher, and both KL divergences, in nats."""
        student = prediction[SITE].value.detach().log_softmax(1)
        teacher = reference[SITE].value.log_softmax(1)
        difference = student - teacher
        found = {
            "action-error": Mean.of((student.argmax(1) != teacher.argmax(1)).to(student.dtype)),
            "kl-student-teacher": Mean.of((student.exp() * difference).sum(1)),
            "kl-teacher-student": Mean.of((teacher.exp() * -difference).sum(1)),
        }
        labels = points[SITE].context.labels
        if labels is not None:
            found["class-error"] = Mean.of((student.argmax(1) != labels).to(student.dtype))
            found["teacher-class-error"] = Mean.of((teacher.argmax(1) != labels).to(student.dtype))
        return found

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Scores of the trained student, and of which splits the teacher's Jacobian was kept (1 or 0)."""

        def student(x: Tensor) -> Tensor:
            x = x.to(self.context.device, self.context.dtype)
            return learner.value(SITE, {"x": x}).log_softmax(1) * self.temperature

        kept = {f"jacobian-kept/{split}": float(self._fits[split]) for split in SPLITS if self.size(split)}
        return {**self.source.finish(student, self.context), **kept}

    def axes(self, site: str) -> Axes | None:
        """None: states are images, or have no names."""
        return None

    def close(self) -> None:
        """Release files and the cached Jacobian."""
        self._cached.clear()
        self.source.close()
