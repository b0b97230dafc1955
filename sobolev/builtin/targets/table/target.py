"""The target ``table``: recorded samples, values and partials; probes are answered by contraction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev.builtin.targets.data import Split, Weights
from sobolev.builtin.targets.table.columns import Columns, Partials, assign
from sobolev.builtin.targets.table.files import Faults, open_table
from sobolev.builtin.targets.table.splits import Rows, by_fraction, by_group, by_label
from sobolev.builtin.targets.table.store import open_store
from sobolev.components import Axes, Context, Learner, Target
from sobolev.differentiate.contract import contract
from sobolev.errors import DataError
from sobolev.noise import stream
from sobolev.registry import did_you_mean
from sobolev.vocabulary import VALUE, Batch, Jet, Key, Points, Probe, Site
from sobolev.wording import plural

SITE = "table"
_KEY: Key = ("x",)
SPLITS = ("train", "validation", "test")
_CARD = "table.json"
_COARSE, _TOO_COARSE = 10_000, 200  # different numbers over the range of an input, about which something is said


class Table(Target):
    """Samples of a file.

    Rows are read by id, from memory or from a memory-mapped copy; `load` may run ahead. What is missing (NaN, an
    empty cell) is masked and counted; a row without inputs cannot be used.

    Raises:
        DataError: the file, or its columns, are not as the recipe says; every problem at once, with row and column.
    """

    fixed_points = True
    max_order = 1

    def __init__(
        self,
        file: str,
        inputs: str | Sequence[str],
        values: str | Sequence[str],
        partials: Partials,
        units: Mapping[str, str],
        weights: Weights,
        split: Split,
        train: int | None,
        missing_inputs: str,
        memory: int,
    ) -> None:
        self.file = file
        self._roles = (inputs, values, partials)
        self._given_units = dict(units)
        self.weights = weights
        self.split = split
        self.train = train
        self.missing_inputs = missing_inputs
        self.memory = memory

    def prepare(self, context: Context) -> None:
        """Read the file, or find it in the cache, and split its rows."""
        self.context = context
        path = Path(self.file).expanduser()
        path = path if path.is_absolute() else context.directory / path
        card = context.saved / _CARD if context.saved is not None else None
        if card is not None and card.is_file():  # a student without its data: names and sizes are enough
            self._from_card(json.loads(card.read_text()))
            return
        table, faults = open_table(path), Faults()
        self.columns = assign(table, *self._roles, self.weights.samples, self.split.by, faults)
        self._check_names(faults, table.names)
        faults.raise_any()
        self.units = {**table.units, **self._given_units}
        self.store = open_store(table, self.columns, context.dtype, self.memory, context.cache, faults)
        self.version = self.store.digest
        self._complete = not self.store.summary.missing
        self._weigh()
        self._rows = self._split(path)
        self._box()
        self._check_numbers(path)
        if context.world.first:
            self._tell(path)

    def _check_names(self, faults: Faults, names: Sequence[str]) -> None:
        """Check that units and weights name columns that play the part."""
        inputs, outputs = self.columns.inputs, self.columns.outputs
        for name in self._given_units:
            if name not in names:
                faults.add(f"{self.file}: units: there is no column {name!r}; {did_you_mean(name, names)}")
        for output in {*self.weights.outputs, *self.weights.partials} - set(outputs):
            faults.add(f"{self.file}: weights: {output!r} is none of the values; {did_you_mean(output, outputs)}")
        for by_input in self.weights.partials.values():
            for name in set(by_input) - set(inputs):
                faults.add(f"{self.file}: weights: {name!r} is no input; {did_you_mean(name, inputs)}")

    def _weigh(self) -> None:
        """Make the weights of components, where they are not all 1."""
        inputs, outputs = self.columns.inputs, self.columns.outputs
        value = torch.tensor([self.weights.outputs.get(o, 1.0) for o in outputs], dtype=torch.float64)
        partials = value[:, None] * torch.tensor(
            [[self.weights.partials.get(o, {}).get(i, 1.0) for i in inputs] for o in outputs], dtype=torch.float64
        )
        self._component_weights = {}
        if (value != 1).any():
            self._component_weights[VALUE] = value
        if (partials != 1).any():
            self._component_weights[_KEY] = partials

    def _split(self, path: Path) -> Rows:
        summary, split = self.store.summary, self.split
        if summary.incomplete and self.missing_inputs == "error":
            row, count = summary.incomplete[0], len(summary.incomplete)
            raise DataError(
                f"{open_table(path).place(row)}: an input or the sample's weight is missing"
                + (f", there and in {plural(count - 1, 'other row')}" if count > 1 else "")
                + "; fill in what is missing, or leave such rows out with 'missing_inputs: drop'"
            )
        usable = np.setdiff1d(
            np.arange(summary.rows), np.array([*summary.incomplete, *summary.empty], dtype=np.int64)
        )  # sorted
        if self.store.codes is None:
            rows = by_fraction(usable, split.validation, split.test, split.seed)
        elif split.column is not None:
            rows = by_label(
                usable,
                self.store.codes,
                summary,
                {str(k): v for k, v in split.labels.items()},
                f"{path}: split.column {split.column!r}",
            )
        else:
            rows = by_group(
                usable, self.store.codes, summary, split.validation, split.test, split.seed,
                str(split.group), lambda row: open_table(path).place(row),
            )  # fmt: skip
        for name, share in (("validation", split.validation), ("test", split.test)):
            if share > 0 and not len(rows[name]) and split.column is None and self.context.world.first:
                self.context.say(f"warning: {path}: split: {name}: {share:g} of the {self._counted()} is none at all")
        # In random order, so that the first samples stand for all.
        rows["train"] = np.random.default_rng(split.seed).permutation(rows["train"])
        if self.train is not None:
            if self.train > len(rows["train"]):
                raise DataError(f"{path}: train: {self.train} samples are wanted, there are {len(rows['train'])}")
            chosen = np.random.default_rng(stream("table", self.context.seed, "train"))
            rows["train"] = chosen.permutation(rows["train"])[: self.train]
        if not len(rows["train"]):
            raise DataError(f"{path}: no row is left to train on; {len(usable)} usable rows, see 'split'")
        return rows

    def _box(self) -> None:
        d, summary = len(self.columns.inputs), self.store.summary
        self._low, self._high = summary.low[:d], summary.high[:d]

    def _counted(self) -> str:
        if self.split.group is not None:
            return plural(len(self.store.summary.labels), "group")
        return plural(self.store.summary.rows, "row")

    def _check_numbers(self, path: Path) -> None:
        """Look for inputs that a precision does not tell apart, and for samples that do not count.

        Raises:
            DataError: an input that has hardly any different numbers left; weights that are all 0.
        """
        step = torch.finfo(self.context.dtype).eps * np.maximum(np.abs(self._low), np.abs(self._high))
        doubtful = np.flatnonzero(np.subtract(self._high, self._low) < _COARSE * step)
        if len(doubtful):  # what is equal now may not have been in the file
            names = [self.columns.inputs[i] for i in doubtful]
            exact = next(iter(open_table(path).chunks(names, (), np.dtype(np.float64), Faults()))).numbers
            for name, column, width in zip(names, exact.T, step[doubtful], strict=True):
                low, high = float(np.nanmin(column)), float(np.nanmax(column))
                if low < high < low + _COARSE * width:
                    self._say_coarse(path, name, low, high, (high - low) / width)
        if self.columns.weight is not None and self.store.summary.high[-1] == 0:
            raise DataError(f"{path}: column {self.columns.weight!r}: the weight of every sample is 0")

    def _say_coarse(self, path: Path, name: str, low: float, high: float, steps: float) -> None:
        text = (
            f"{path}: column {name!r} runs from {low:.10g} to {high:.10g}, which "
            f"{str(self.context.dtype).removeprefix('torch.')} tells apart in {plural(max(1, round(steps)), 'step')}: "
            "set 'dtype: float64', or subtract an offset"
        )
        if steps < _TOO_COARSE:
            raise DataError(text)
        if self.context.world.first:
            self.context.say(f"warning: {text}")

    def _tell(self, path: Path) -> None:
        """Say what was found, and what is missing."""
        summary, columns = self.store.summary, self.columns
        sizes = ", ".join(f"{split} {len(self._rows[split]):,}" for split in SPLITS if len(self._rows[split]))
        parts = [
            f"{path.name}: {plural(summary.rows, 'row')} ({sizes}), {plural(len(columns.inputs), 'input')}, "
            f"{plural(len(columns.outputs), 'value')}, {len(columns.partials)} of "
            f"{plural(len(columns.inputs) * len(columns.outputs), 'partial')}"
        ]
        answers = (*columns.outputs, *columns.partials.values())
        missing = {name: summary.missing[name] for name in answers if name in summary.missing}
        if missing:
            shown = ", ".join(f"{name} {count:,}" for name, count in list(missing.items())[:6])
            parts.append(f"missing and masked: {shown}" + (f", {len(missing) - 6} more" if len(missing) > 6 else ""))
        if summary.incomplete:
            parts.append(f"left out, without an input: {plural(len(summary.incomplete), 'row')}")
        if summary.empty:
            parts.append(f"left out, without any value or partial: {plural(len(summary.empty), 'row')}")
        self.context.say("; ".join(parts))

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``table``, with the input ``x`` ``(d,)``; differentiated where there are partials."""
        differentiate = ("x",) if self.columns.partials else ()
        return {
            SITE: Site(
                {"x": (len(self.columns.inputs),)}, len(self.columns.outputs), differentiate,
                {"x": (self._low, self._high)}, weights=self._component_weights,
            )
        }  # fmt: skip

    def size(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self._rows[split])

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split, from 0, in the order of sample ids."""
        return self._rows[split]

    def load(self, split: str, ids: Tensor) -> Tensor:
        """Read rows ``(B, columns)``; NaN where nothing is recorded."""
        return self.store.take(self._rows[split][ids.numpy()])

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return inputs, sample weights and masks of a batch; its values are the context of the points."""
        numbers: Tensor = batch.data.to(self.context.device)
        d, m = len(self.columns.inputs), len(self.columns.outputs)
        value, partials = numbers[:, d : d + m], self._partials(numbers)
        known: dict[Key, Tensor] = {}
        if not self._complete:
            known[VALUE] = ~torch.isnan(value)
            value = torch.where(known[VALUE], value, 0.0)
        if partials is not None and (not self._complete or len(self.columns.partials) < d * m):
            known[_KEY] = ~torch.isnan(partials)
            partials = torch.where(known[_KEY], partials, 0.0)
        weight = numbers[:, -1] if self.columns.weight is not None else None
        differentiate = () if partials is None else ("x",)
        points = Points({"x": numbers[:, :d]}, differentiate, batch.ids, weight, known, (value, partials))
        return {SITE: points}

    def _partials(self, numbers: Tensor) -> Tensor | None:
        """Return partials ``(B, m, d)``, NaN where they are not recorded."""
        d, m, count = len(self.columns.inputs), len(self.columns.outputs), len(self.columns.partials)
        if not count:
            return None
        recorded = numbers[:, d + m : d + m + count]
        if count == m * d:  # they stand in the order of (output, input)
            return recorded.reshape(-1, m, d)
        partials = numbers.new_full((len(numbers), m * d), torch.nan)
        partials[:, [i * d + j for i, j in self.columns.partials]] = recorded
        return partials.reshape(-1, m, d)

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return recorded values, and recorded partials contracted as the probe asks."""
        where = points[SITE]
        value, partials = where.context
        known = {VALUE: where.known[VALUE]} if VALUE in where.known else {}
        derivatives = {}
        for key, contraction in probes[SITE].contractions.items():
            derivatives[key], mask = contract(partials, contraction, where.known.get(key))
            if mask is not None:
                known[key] = mask
        return {SITE: Jet(value, derivatives, known)}

    def axes(self, site: str) -> Axes:
        """Return the columns' names with their units, and the box of the inputs."""
        return Axes(
            [self.label(name) for name in self.columns.inputs],
            [self.label(name) for name in self.columns.outputs],
            self._low,
            self._high,
        )

    def label(self, name: str) -> str:
        """Return a column's name with its unit: ``x [m]``."""
        return f"{name} [{self.units[name]}]" if self.units.get(name) else name

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Leave names and sizes in the run directory, so that the student can be used where the data are not."""
        if self.context.output is not None and self.context.world.first:
            card: dict[str, Any] = {
                "inputs": self.columns.inputs, "outputs": self.columns.outputs,
                "partials": [[i, j, name] for (i, j), name in self.columns.partials.items()],
                "units": self.units, "low": self._low, "high": self._high, "digest": self.store.digest,
            }  # fmt: skip
            (self.context.output / _CARD).write_text(json.dumps(card, indent=1) + "\n")
        return {}

    def _from_card(self, card: Mapping[str, Any]) -> None:
        partials = {(i, j): name for i, j, name in card["partials"]}
        self.columns = Columns(tuple(card["inputs"]), tuple(card["outputs"]), partials)
        self.units, self._low, self._high = card["units"], card["low"], card["high"]
        self._rows = {split: np.empty(0, dtype=np.int64) for split in SPLITS}
        self._component_weights = {}
