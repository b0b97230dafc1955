"""What a report must do."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sobolev.components import Axes, Report, RunRecord, Trained
from sobolev.errors import ComponentError
from sobolev.rundir import read_run
from sobolev.testing.findings import Checks, NotApplicable
from sobolev.testing.subject import Component, Subject
from sobolev.vocabulary import Site

Arrays = tuple[np.ndarray, dict[str, np.ndarray]]
_METRICS = ("test/function/value", "test/function/d/dx")


class ReportCase:
    """A report under test, with run directories made by hand: nothing there that a model could be read from."""

    def __init__(self, component: Component, registry: object = None) -> None:
        self.subject = Subject("report", component, registry)  # type: ignore[arg-type]
        self.report: Report = self.subject.make()
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0

    def folder(self) -> Path:
        """Return a new empty folder."""
        self._count += 1
        made = Path(self._folder.name) / str(self._count)
        made.mkdir()
        return made

    def runs(
        self, variants: Sequence[str] = ("regular", "sobolev"), seeds: int = 2, bad: bool = False
    ) -> list[RunRecord]:
        """Return finished runs, with the report's own records; ``bad``: one failed, numbers that are not finite."""
        root = self.folder()
        made = []
        for v, variant in enumerate(variants):
            for seed in range(seeds):
                directory = root / variant / f"seed-{seed}"
                (directory / "records").mkdir(parents=True)
                config = {"name": "recipe", "variant": variant, "seed": seed}
                (directory / "recipe.yaml").write_text(json.dumps(config))
                error = 1.0 / (1 + v) + 0.1 * seed
                summary: dict[str, float | str] = {"train/loss": error, **dict.fromkeys(_METRICS, error)}
                if bad and seed == 0:
                    summary[_METRICS[0]] = "nan"
                status = "failed" if bad and v == 0 and seed == 1 else "finished"
                (directory / "status.json").write_text(json.dumps({"status": status, "summary": summary}))
                lines = [
                    {"step": 10 * (i + 1), "train/loss": error / (i + 1), **{n: error / (i + 1) for n in _METRICS}}
                    for i in range(3)
                ]
                (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                arrays = self.report.record(trained(0.1 * v + 0.01 * seed))
                if arrays:
                    np.savez_compressed(directory / "records" / f"{self.subject.name}.npz", **dict(arrays))  # type: ignore[arg-type]
                made.append(read_run(directory))
        return made

    def close(self) -> None:
        """Remove the directories."""
        self._folder.cleanup()


def trained(error: float) -> Trained:
    """Return a run as a report may look at it: a bowl, and a student that is off by a little."""

    def bowl(site: str, inputs: Mapping[str, np.ndarray], off: float = 0.0) -> Arrays:
        x = inputs["x"]
        return (np.square(x).sum(axis=1, keepdims=True) + off), {"x": (2 + off) * x[:, None, :]}

    def samples(split: str, limit: int) -> dict[str, dict[str, np.ndarray]]:
        return {"function": {"x": np.linspace(-0.9, 0.9, 2 * min(limit, 8)).reshape(-1, 2)}}

    def compared(split: str, limit: int) -> dict[str, tuple[Arrays, Arrays]]:
        at = samples(split, limit)["function"]
        return {"function": (bowl("function", at), bowl("function", at, error))}

    return Trained(
        sites={"function": Site({"x": (2,)}, 1, ("x",), {"x": (-1.0, 1.0)})},
        axes={"function": Axes(("x", "y"), ("f",), (-1.0, -1.0), (1.0, 1.0))},
        student=lambda site, inputs: bowl(site, inputs, error),
        target=bowl,
        samples=samples,
        compared=compared,
    )


def check_options(case: ReportCase) -> None:
    """Its options have descriptions."""
    if not isinstance(case.report, Report):
        raise ComponentError(f"The factory returns a {type(case.report).__name__}, not a sobolev.Report.")
    case.subject.check_options()


def check_name(case: ReportCase) -> None:
    """If it records arrays, it reads them under the name that it is registered by."""
    if type(case.report).record is Report.record:
        raise NotApplicable("it records nothing of its own")
    registered = case.subject.registry.entries["report"][case.subject.name].plugin != "the test"
    if registered and case.report.name != case.subject.name:
        raise ComponentError(
            f"Its 'name' is {case.report.name!r}; recipes call it {case.subject.name!r}, and the core keeps its arrays "
            f"as records/{case.subject.name}.npz."
        )


def check_record(case: ReportCase) -> None:
    """What it records is arrays of plain numbers or texts."""
    arrays = case.report.record(trained(0.1))
    if arrays is None:
        raise NotApplicable("it records nothing of a function of two variables")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype == object:
            what = "objects" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise ComponentError(f"record() returns {name!r} as {what}; expected a numpy array of numbers or texts.")


def check_record_refuses(case: ReportCase) -> None:
    """A target that cannot be asked, or has no box, is left out, not an error."""
    base = trained(0.1)
    nowhere = replace(base, axes={"function": None}, target=None, samples=lambda *_: {}, compared=lambda *_: {})
    case.report.record(nowhere)
    case.report.record(replace(base, axes={"function": Axes(("x", "y"), ("f",))}))


def check_draw(case: ReportCase) -> None:
    """It draws from records alone: run directories without student or checkpoints."""
    _draw(case, case.runs())


def _draw(case: ReportCase, runs: Sequence[RunRecord]) -> list[Path]:
    directory = case.folder() / "figures"
    files = case.report.draw(runs, directory)
    for file in files:
        if not isinstance(file, Path) or not file.is_file() or not file.stat().st_size:
            raise ComponentError(f"draw() returns {file}, which it did not write.")
        if not file.resolve().is_relative_to(directory.resolve()):
            raise ComponentError(f"draw() writes {file}, outside of the folder that it was given.")
    written = [file for file in directory.rglob("*") if file.is_file()] if directory.is_dir() else []
    forgotten = {file.resolve() for file in written} - {file.resolve() for file in files}
    if forgotten:
        raise ComponentError(f"draw() writes {min(forgotten).name} and does not return it.")
    return files


def check_few(case: ReportCase) -> None:
    """It draws what there is: one variant, one seed."""
    _draw(case, case.runs(("only",), seeds=1))


def check_none(case: ReportCase) -> None:
    """Without runs it draws nothing, and raises nothing."""
    if _draw(case, []):
        raise ComponentError("draw() makes files although there are no runs.")


def check_missing(case: ReportCase) -> None:
    """A run without its records is left out: it may have been trained before the report was named."""
    runs = case.runs()
    for file in runs[0].directory.glob("records/*"):
        file.unlink()
    (runs[0].directory / "metrics.jsonl").unlink()
    _draw(case, runs)


def check_bad_numbers(case: ReportCase) -> None:
    """It survives a failed run and numbers that are not finite."""
    runs = case.runs(bad=True)
    assert any(math.isnan(run.summary[_METRICS[0]]) for run in runs)
    _draw(case, runs)


def check_again(case: ReportCase) -> None:
    """Drawn again it makes the same files, and leaves no figure open."""
    runs = case.runs()
    first, second = _draw(case, runs), _draw(case, runs)
    if [file.name for file in first] != [file.name for file in second]:
        raise ComponentError(f"Drawn twice it makes {[f.name for f in first]}, then {[f.name for f in second]}.")
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and pyplot.get_fignums():
        raise ComponentError("A figure of matplotlib.pyplot stays open; use matplotlib.figure.Figure, or close it.")


CHECKS: Checks[ReportCase] = {
    "options": check_options,
    "name": check_name,
    "record": check_record,
    "record-refuses": check_record_refuses,
    "draw": check_draw,
    "few": check_few,
    "none": check_none,
    "missing": check_missing,
    "bad-numbers": check_bad_numbers,
    "again": check_again,
}
