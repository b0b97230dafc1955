"""What the loop costs besides the step: recording, progress, checks, trackers, against the same step written bare.

    python benchmarks/loop.py [--quick] [--json FILE] [--device cuda]

The bare arm draws a batch, asks the same parts, and updates the student with torch's optimizer. The other arms train
the same recipe with `sobolev.train.Trainer` as ``sobolev run`` does: records every 50 steps into ``metrics.jsonl``, a
bar on a terminal, checkpoints by time, signals looked at in every step; the last one with Weights & Biases offline too.
Arms take turns of 200 steps; a turn of the loop includes beginning and finishing. The bar is drawn four times a second,
so that on a machine that others keep busy it costs more processor time per step.
"""

from __future__ import annotations

import importlib.util
import io
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import arguments, clock, machine, median_ratio, shown, write

ROUNDS = 25
STEPS = 200
AIM = 1.10
RECIPE = """
name: loop
target: {{use: mccormick, train: 10000, test: 0}}
student: {{use: mlp, hidden: [256, 256], activation: relu}}
objective: {{derivatives: [{{order: 1, weight: {weight}}}]}}
train: {{steps: {steps}, batch_size: {batch}, log_every: 50, compile: never}}
"""
CASES = [(256, 1), (256, 0), (20, 1)]  # batch size, weight of the derivative; the aim holds at 256


def arms(folder: Path, batch: int, weight: int, device: str) -> dict[str, Callable[[], None]]:
    """Return one turn of every arm, over fresh parts of the same recipe."""
    import torch

    from sobolev.build import build
    from sobolev.distributed import World
    from sobolev.host import default_host
    from sobolev.recipe.plan import load_plans

    registry = default_host().registry
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(batch=batch, weight=weight, steps=STEPS))
    (plan,) = load_plans(file, registry)
    world = World(torch.device(device))

    def experiment() -> Any:
        return build(plan, registry, world, cache=folder / "cache", say=lambda _: None)

    trackers = {"loop": []} | ({"loop, W&B": ["wandb"]} if importlib.util.find_spec("sobolev_wandb") else {})
    made: dict[str, Callable[[], None]] = {"bare": _bare(experiment(), batch)}
    for name, extra in trackers.items():
        made[name] = _loop(experiment(), registry, folder / name, extra)
    return made


def _bare(experiment: Any, batch: int) -> Callable[[], None]:
    import torch

    from sobolev.sampler import Sampler
    from sobolev.vocabulary import Batch

    sampler = Sampler(experiment.target.size("train"), batch, 0)
    parameters = experiment.trainable
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def turn() -> None:
        for step in range(STEPS):
            drawn = experiment.draw(Batch("train", sampler.ids(step)), step, training=True)
            prediction = experiment.predict(drawn)
            loss = torch.zeros((), device=experiment.context.device)
            for site, where in drawn.points.items():
                for term in experiment.objective.terms(
                    site, where, drawn.probes[site], prediction[site], drawn.reference[site]
                ):
                    loss = loss + term.sum * (term.weight / term.count)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return turn


def _loop(experiment: Any, registry: Any, folder: Path, extra: list[str]) -> Callable[[], None]:
    from rich.console import Console

    from sobolev.cli.display import RichDisplay
    from sobolev.components import RunInfo
    from sobolev.jobs import limited
    from sobolev.recording import MetricsFile, Recorder
    from sobolev.rundir import RunDirectory
    from sobolev.signals import StopFlag
    from sobolev.train import Trainer

    folder.mkdir()
    info = RunInfo("loop", "default", 0, folder, experiment.plan.resolved(), STEPS)
    trackers = [("metrics.jsonl", MetricsFile()), *((name, registry.build("tracker", name)) for name in extra)]
    recorder = Recorder(trackers, lambda line: print(line))
    recorder.start(info, None)
    # A terminal that nobody looks at; the bars are drawn all the same.
    display = RichDisplay([experiment.plan], Console(file=io.StringIO(), force_terminal=True, width=100))
    flag = StopFlag()

    def turn() -> None:
        with flag, display:
            display.started(0)
            progress = limited(lambda *numbers: display.progress(0, *numbers))
            trainer = Trainer(
                experiment, registry, RunDirectory(folder), recorder, progress, lambda: flag.requested
            )  # fmt: skip
            trainer.run()
            display.bars.remove_task(display.tasks.pop(0))

    return turn


def main() -> None:
    """Run all cases and print the overhead of each."""
    options = arguments(__doc__, ROUNDS, ("cpu", "cuda"))
    os.environ.setdefault("WANDB_MODE", "offline")
    now = clock(options)
    results = []
    for batch, weight in CASES[:1] if options.quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            turns = arms(Path(folder), batch, weight, options.device)
            taken: dict[str, list[float]] = {name: [] for name in turns}
            for turn in turns.values():
                turn()
            names = list(turns)
            for i in range(options.rounds):
                for name in names[i % len(names) :] + names[: i % len(names)]:
                    start = now()
                    turns[name]()
                    taken[name].append((now() - start) / STEPS / 1e3)
        print(f"\nbatch {batch}, {'value and gradient' if weight else 'value alone'}")
        case: dict[str, Any] = {"batch": batch, "weight": weight, "microseconds": {}, "ratio": {}}
        for name, values in taken.items():
            case["microseconds"][name] = statistics.median(values)
            ratio = case["ratio"][name] = median_ratio(taken, name, "bare")
            missed = " MISSED" if batch == 256 and ratio > AIM else ""
            print(f"  {name:<12} {statistics.median(values):>8.0f} us   {ratio:.3f} x bare{missed}")
        results.append(case)
    found = machine(options)
    print(f"\naim at batch 256: below {AIM} x bare; on {shown(found)}")
    write(options, {"machine": found, "aim": AIM, "cases": results})


if __name__ == "__main__":
    main()
