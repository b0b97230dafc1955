"""The target ``module``: values of a frozen network; derivatives by autograd, through the recipe's estimator."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sobolev.builtin.sampling import sample
from sobolev.builtin.targets.data import Split
from sobolev.builtin.targets.module.teachers import digest, freeze, from_program, from_student, from_timm
from sobolev.builtin.targets.table.files import Faults, open_table
from sobolev.builtin.targets.table.splits import by_fraction
from sobolev.components import Axes, Context, Learner, Student, Target
from sobolev.errors import ComponentError, DataError
from sobolev.noise import stream
from sobolev.vocabulary import Batch, Points, Site
from sobolev.wording import plural

SITE = "teacher"
_CARD = "teacher.json"


class Module(Target):
    """A teacher network, measured on points of a box or of a file.

    Raises:
        ComponentError: not exactly one teacher, or options that do not belong together.
    """

    fixed_points = True
    derivative_cache = 2**28
    heads = ("identity", "log-softmax")

    def __init__(
        self,
        network: Student | None,
        program: str | None,
        timm: str | None,
        weights: str | None,
        shape: Sequence[int],
        outputs: int | None,
        low: float | Sequence[float],
        high: float | Sequence[float],
        sampling: str,
        sizes: Mapping[str, int],
        file: str | None,
        inputs: str | Sequence[str] | None,
        split: Split,
    ) -> None:
        given = [
            name for name, part in (("network", network), ("program", program), ("timm", timm)) if part is not None
        ]
        if len(given) != 1:
            raise ComponentError(
                f"module: a teacher is one of network, program and timm, not {' and '.join(given) or 'none'}"
            )
        if (weights is None) == (program is None):
            raise ComponentError(
                "module: a program holds its weights; leave 'weights' out" if program else
                f"module: {given[0]} needs 'weights', a .safetensors file; nothing is downloaded"
            )  # fmt: skip
        if network is not None and outputs is None:
            raise ComponentError("module: say by 'outputs' how many numbers the network returns")
        if (file is None) != (inputs is None):
            raise ComponentError("module: points from a file need both 'file' and 'inputs' (its columns or array)")
        self.network, self.program, self.timm, self.weights = network, program, timm, weights
        self.shape = tuple(shape)
        self.outputs = outputs or 0
        self.sampling, self.sizes = sampling, dict(sizes)
        self.low, self.high = (self._edge(edge) for edge in (low, high))
        if not (self.low < self.high).all():
            raise ComponentError("module: 'low' must be below 'high' in every component")
        self.file, self.inputs, self.split = file, inputs, split

    def _edge(self, edge: float | Sequence[float]) -> Tensor:
        made = torch.as_tensor(edge, dtype=torch.float64).flatten()
        count = math.prod(self.shape)
        if len(made) not in (1, count):
            raise ComponentError(f"module: a box has one edge, or {count} (one per component), not {len(made)}")
        return made.expand(count).clone()

    def prepare(self, context: Context) -> None:
        """Read the teacher and draw or read the points."""
        self.context = context
        card = context.saved / _CARD if context.saved is not None else None
        if card is not None and card.is_file():  # a student without its teacher
            known = json.loads(card.read_text())
            self.outputs, self._x = known["outputs"], {}
            return
        self._x = self._from_file() if self.file is not None else self._from_box()
        self.module = freeze(self._teacher(), context.device, context.dtype)
        example = next(x for x in self._x.values() if len(x))[:2].to(context.device)
        with torch.no_grad():
            z = self.module(example)
        if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(example):
            shown = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            several = isinstance(z, tuple | list)
            raise ComponentError(
                f"module: the teacher returns {f'a {shown} of {len(z)}' if several else shown} for {len(example)} "
                "inputs, not (B, outputs)"
                + ("; of 'sobolev export' give one made with --values-only" if several and self.program else "")
            )
        if self.outputs and z.shape[1] != self.outputs:
            raise ComponentError(f"module: the teacher returns {z.shape[1]} numbers, 'outputs' says {self.outputs}")
        self.outputs = int(z.shape[1])

    def _path(self, name: str) -> Path:
        path = Path(name).expanduser()
        return path if path.is_absolute() else self.context.directory / path

    def _teacher(self) -> nn.Module:
        if self.program is not None:
            file = self._path(self.program)
            module = from_program(file, self.shape, self.context.dtype)
        else:
            assert self.weights is not None
            file = self._path(self.weights)
            if self.network is not None:
                module = from_student(self.network, file, self.shape, self.outputs)
            else:
                assert self.timm is not None
                module = from_timm(self.timm, file, self.outputs or None)
        self.version = digest(file, type(self.network).__name__, self.timm, self.shape, self.outputs)
        return module

    def _from_box(self) -> dict[str, Tensor]:
        made = {}
        for split, count in self.sizes.items():
            training = split == "train"
            seed = stream("module", self.context.seed, split) if training else stream("module", split)
            x = sample(self.sampling, count, self.low, self.high, seed)
            made[split] = x.reshape(-1, *self.shape).to(self.context.dtype)
        return made

    def _from_file(self) -> dict[str, Tensor]:
        """Read the inputs of a table: its columns, in C order, are the components of x."""
        assert self.file is not None and self.inputs is not None
        table, faults = open_table(self._path(self.file)), Faults()
        names: list[str] = []
        for name in [self.inputs] if isinstance(self.inputs, str) else self.inputs:
            if name not in table.names and name not in table.arrays:
                faults.add(
                    f"{table.file}: inputs: there is no column or array {name!r}; there are "
                    f"{', '.join(table.names[:20])}"
                )
            names += table.arrays.get(name, [name])
        if not faults.messages and len(names) != math.prod(self.shape):
            faults.add(
                f"{table.file}: inputs: {len(names)} numbers per sample, {math.prod(self.shape)} in shape {self.shape}"
            )
        faults.raise_any()
        kind = np.dtype(np.float64 if self.context.dtype == torch.float64 else np.float32)
        parts = [chunk.numbers for chunk in table.chunks(names, (), kind, faults)]
        faults.raise_any()
        x = np.concatenate(parts) if parts else np.empty((0, len(names)), dtype=kind)
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise DataError(
                f"{table.place(int(bad[0]))}: an input is missing or infinite"
                + (f", there and in {plural(len(bad) - 1, 'other row')}" if len(bad) > 1 else "")
            )
        if self.split.by is not None:
            raise ComponentError("module: points of a file are split by fractions of rows alone")
        rows = by_fraction(np.arange(len(x)), self.split.validation, self.split.test, self.split.seed)
        if not len(rows["train"]):
            raise DataError(f"{table.file}: no row is left to train on")
        return {split: torch.from_numpy(x[index]).reshape(-1, *self.shape) for split, index in rows.items()}

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``teacher``, with the input ``x``."""
        box = (self.low.reshape(self.shape).tolist(), self.high.reshape(self.shape).tolist())
        return {SITE: Site({"x": self.shape}, self.outputs, ("x",), {} if self.file is not None else {"x": box})}

    def size(self, split: str) -> int:
        """Return the number of points of a split."""
        return len(self._x.get(split, ()))

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the points of a batch."""
        x = self._x[batch.split][batch.ids].to(self.context.device)
        return {SITE: Points({"x": x}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return head(teacher(x)) ``(B, m)``, with graph to x where x wants one."""
        z: Tensor = self.module(inputs["x"])
        return self.context.head(z, inputs)

    def axes(self, site: str) -> Axes | None:
        """Return names and box of a vector of inputs; None for images and the like."""
        if len(self.shape) != 1:
            return None
        names = ["x", "y"] if self.shape == (2,) else [f"x{i + 1}" for i in range(self.shape[0])]
        outputs = [f"z{i + 1}" for i in range(self.outputs)] if self.outputs > 1 else ["z"]
        box = (None, None) if self.file is not None else (self.low.tolist(), self.high.tolist())
        return Axes(names, outputs, *box)

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Leave the teacher's sizes in the run directory, so that the student can be used where the teacher is not."""
        if self.context.output is not None and self.context.world.first:
            card: dict[str, Any] = {"outputs": self.outputs, "shape": self.shape, "digest": self.version}
            (self.context.output / _CARD).write_text(json.dumps(card, indent=1) + "\n")
        return {}
