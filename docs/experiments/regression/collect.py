"""Turns run directories into small result files: one JSON per recipe, and a table for the page.

    python docs/experiments/regression/collect.py runs/figure2-fast

Writes ``<recipe>.json`` and ``<recipe>.md`` beside this file; ``docs/generate.py`` puts the table into the page.
Results that are there already stay where their runs are gone. Errors are mean squared errors on the test points; a run
counts as converged if its validation error fell by less than 1 % over the last fifth of its steps.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sobolev.components import RunRecord
from sobolev.labels import split_label
from sobolev.rundir import find_runs, read_metrics

HERE = Path(__file__).parent
LEAST = 0.01
COMMIT = ""  # of runs made outside a checkout


def result(run: RunRecord) -> dict[str, Any]:
    """Return what is kept of a run: errors over training, at the end and at the best validation point."""
    records = list(read_metrics(run.directory / "metrics.jsonl"))
    environment = json.loads((run.directory / "env.json").read_text())
    (site,) = {name.split("/")[1] for name in run.summary if name.startswith("validation/")}
    evaluated = [r for r in records if f"validation/{site}/value" in r]
    curve = {
        "step": [int(r["step"]) for r in evaluated],
        "value": [_short(r[f"validation/{site}/value"]) for r in evaluated],
        "d/dx": [_short(r[f"validation/{site}/d/dx"]) for r in evaluated],
    }
    training = [r["train/loss"] for r in records if "train/loss" in r]
    errors = {}
    for what in ("value", "d/dx"):
        name = f"test/{site}/{what}"
        errors[what] = {
            "end": _short(run.summary.get(f"last/{name}", run.summary[name])),
            "best": _short(run.summary[name]) if "best/step" in run.summary else None,
        }
    return {
        "variant": run.variant,
        "seed": run.seed,
        "test": errors,
        "best step": run.summary.get("best/step"),
        "validation": curve,
        "train loss": _short(training[-1]),
        "improvement over the last fifth": improvement(curve["step"], curve["value"]),
        "seconds": records[-1]["seconds"],
        "commit": environment["commit"] or COMMIT,
    }


def _command(run: RunRecord) -> str:
    (engine,) = json.loads((run.directory / "status.json").read_text())["engines"].values()
    together = any("together" in text for text in engine.values())
    program = "python docs/experiments/regression/together.py" if together else "sobolev run"
    return f"{program} {run.config['name']}.yaml"


def improvement(steps: Sequence[int], values: Sequence[float]) -> float | None:
    """Return by which share the error fell from the evaluation at four fifths of the steps to the last one."""
    earlier = [value for step, value in zip(steps, values, strict=True) if step <= 0.8 * steps[-1]]
    if not earlier:
        return None
    return round(1 - values[-1] / earlier[-1], 4)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row per cell of the matrix, log10 of errors per arm, ratios to the first arm."""
    arms = list(dict.fromkeys(split_label(r["variant"])[0] for r in results))
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for r in results:
        arm, cells = split_label(r["variant"])
        rows.setdefault(" ".join(cells.values()), {}).setdefault(arm, []).append(r)
    best = any(r["test"]["value"]["best"] is not None for r in results)
    wanted = [("value", "end"), *([("value", "best")] if best else []), ("d/dx", "end")]
    names = {("value", "end"): "value", ("value", "best"): "value, best", ("d/dx", "end"): "gradient"}
    head = ["function", "seeds", *(f"{names[w]}: {arm}" for w in wanted for arm in arms)]
    compared = wanted if len(arms) < 3 else []  # otherwise the table would not fit a page
    head += [f"ratio {names[w]}: {arm}" for w in compared for arm in arms[1:]]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for label, members in rows.items():
        cells = [label, "/".join(str(len(members.get(arm, []))) for arm in arms)]
        for what, when in wanted:
            cells += [_cell(members.get(arm, []), what, when) for arm in arms]
        for what, when in compared:
            cells += [_ratio(members.get(arms[0], []), members.get(arm, []), what, when) for arm in arms[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: Sequence[Mapping[str, Any]], what: str, when: str) -> str:
    if not runs:
        return "-"
    logs = [math.log10(r["test"][what][when]) for r in runs]
    text = f"{statistics.median(logs):.2f}"
    if len(logs) > 1:
        text += f" ({min(logs):.2f} to {max(logs):.2f})"
    moving = sum(1 for r in runs if (r["improvement over the last fifth"] or 0) > LEAST)
    return text + (" *" if what == "value" and when == "end" and moving else "")


def _ratio(first: Sequence[Mapping[str, Any]], this: Sequence[Mapping[str, Any]], what: str, when: str) -> str:
    """Return the median over seeds of the ratio of errors: above 1 where this arm is better than the first."""
    mine = {r["seed"]: r["test"][what][when] for r in this}
    shared = [r["test"][what][when] / mine[r["seed"]] for r in first if r["seed"] in mine]
    return f"{statistics.median(shared):.3g}x" if shared else "-"


def main(folders: Iterable[Path]) -> None:
    """Write the files of every folder."""
    for folder in folders:
        runs = [run for run in find_runs(folder) if run.status == "finished"]
        results = [result(run) for run in runs]
        name = runs[0].config["name"]
        results = sorted(
            results + _kept(HERE / f"{name}.json", results), key=lambda r: (_order(r["variant"]), r["seed"])
        )
        train = runs[0].config["train"]
        described = {
            "recipe": name,
            "command": _command(runs[0]),
            "steps": train["steps"],
            "batch size": train["batch_size"],
            "optimizer": train["optimizer"],
        }
        lines = [json.dumps(r) for r in results]
        content = json.dumps(described, indent=1)[:-2] + ',\n "runs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
        (HERE / f"{name}.json").write_text(content)
        (HERE / f"{name}.md").write_text(table(results) + "\n")
        print(table(results))


def _kept(file: Path, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of a file whose runs are not among those that were read."""
    made = {(r["variant"], r["seed"]) for r in results}
    before = json.loads(file.read_text())["runs"] if file.exists() else []
    return [r for r in before if (r["variant"], r["seed"]) not in made]


def _order(variant: str) -> tuple[Any, ...]:
    """Sizes in order, functions by name; arms as they were made."""
    _, cells = split_label(variant)
    return tuple((0, float(v), "") if v.replace(".", "").isdigit() else (1, 0.0, v) for v in list(cells.values())[::-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Collect results of run directories.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--commit", default="", help="of runs made outside a checkout")
    given = parser.parse_args()
    COMMIT = given.commit
    main(given.folders)
