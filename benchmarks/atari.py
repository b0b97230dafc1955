"""What policy distillation costs against the sum of its parts: collecting, a training step, memory.

    python benchmarks/atari.py [--quick] [--json FILE] [--only collect|step|memory]

collect: decisions per second of `sobolev collect` (Pong, the paper's agent, 16 games) against 1 / (1 / r_env +
1 / r_forward), r_env the bare vector environment under random actions, r_forward the bare forward pass of the
teacher on batches of 16 observations. Aim: at least 80 %.

step: a training step of the recipe (batch 200, fresh v) against one graph-free pass of the teacher (forward and one
backward) plus the student's plain double backward with its optimizer, both written by hand. Aim: at most 1.05. The same
step with the teacher's Jacobian kept in memory is shown.

memory: the greatest resident memory of a process that trains on 100,000 stored frames (random ones, as many as the
paper has). Aim: below 2 GB.

Arms take turns on one core; medians over rounds.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import arguments, clock, interleaved, machine, median_ratio, shown, write

ROUNDS = 30
STREAMS = 16
BATCH = 200
CACHED = 400  # states whose Jacobian is kept; enough for a step
RECIPE = """
name: cost
plugins: [sobolev-atari]
target: {{use: distillation, teacher: pong, data: "{data}", train_percent: {percent}, test_states: 4, episodes: 0,
  memory: {memory}}}
student: {{use: atari, size: small}}
estimator: {{use: projected, side: output}}
objective:
  head: log-softmax
  value: {{loss: kl-student-teacher}}
  derivatives: [{{order: 1, loss: norm, weight: 0.01}}]
train: {{steps: {steps}, batch_size: {batch}, compile: never, preflight: false, log_every: {steps}}}
evaluate: {{splits: [test], points: 4}}
"""
AIMS = {"collect": 0.8, "step": 1.05, "memory": 2e9}


def collect(folder: Path, steps: int, rounds: int, now: Callable[[], int]) -> dict[str, Any]:
    """Measure collecting and its two parts, in turns of ``steps`` steps of all games."""
    import numpy as np
    import torch
    from sobolev_atari.collect import collect as gather
    from sobolev_atari.collect import dataset_meta
    from sobolev_atari.environments import find_environment, make_environment
    from sobolev_atari.teachers import load_teacher

    pong = find_environment("pong")
    teacher = load_teacher("pong", folder)
    network = teacher.network.to(memory_format=torch.channels_last)
    generator = np.random.default_rng(0)
    observed = torch.from_numpy(generator.integers(0, 256, (STREAMS, *pong.shape)).astype(np.uint8))
    decisions = steps * STREAMS

    def environment() -> int:
        games = make_environment(pong, STREAMS)
        games.reset(seed=0)
        actions = generator.integers(0, len(pong.actions), (steps, STREAMS))
        start = now()
        for action in actions:
            games.step(action)
        taken = now() - start
        games.close()
        return taken

    def forward() -> int:
        start = now()
        with torch.no_grad():
            for _ in range(steps):
                network(observed.float().div_(pong.scale))
        return now() - start

    def whole() -> int:
        nonlocal count
        count += 1
        meta = dataset_meta(pong, teacher.digest, decisions, streams=STREAMS, sticky=0.0, seed=count)
        began: list[int] = []

        def policy(x: torch.Tensor) -> torch.Tensor:
            if not began:  # games are made and reset: as in the arm of the bare environment, that does not count
                began.append(now())
            return network(x)

        gather(policy, pong, folder / f"states-{count}", meta)
        return now() - began[0]

    count = 0
    arms = {"environment": environment, "forward": forward, "collect": whole}
    forward()
    taken: dict[str, list[int]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            taken[name].append(arm())
    rate = {name: decisions / (statistics.median(times) / 1e9) for name, times in taken.items()}
    shares = [(e + f) / c for e, f, c in zip(taken["environment"], taken["forward"], taken["collect"], strict=True)]
    return {"decisions/s": rate, "share": statistics.median(shares)}


def experiment(folder: Path, data: str, memory: int, percent: float, steps: int) -> Any:
    """Build a run of the recipe on a dataset."""
    import torch

    from sobolev.build import build
    from sobolev.distributed import World
    from sobolev.host import load_host
    from sobolev.recipe.plan import load_plans

    file = folder / f"cost-{memory}.yaml"
    file.write_text(RECIPE.format(data=data, memory=memory, percent=percent, steps=steps, batch=BATCH))
    registry = load_host().registry
    (plan,) = load_plans(file, registry)
    world = World(torch.device("cpu"))
    return build(plan, registry, world, cache=folder / "cache", say=lambda line: None), registry


def step(folder: Path, data: str, percent: float, rounds: int, now: Callable[[], int]) -> dict[str, Any]:
    """Measure training steps of the package and the same arithmetic by hand, on the same states."""
    import torch

    from sobolev.distributed import World
    from sobolev.noise import Noise
    from sobolev.vocabulary import Batch

    def by_package(memory: int) -> Callable[[], object]:
        made, registry = experiment(folder, data, memory, percent, 10**6)
        optimizer = registry.build("optimizer", made.plan.recipe.train.optimizer)(made.trainable)
        world = World(torch.device("cpu"))
        ids = torch.arange(BATCH)
        taken = 0

        def one() -> None:
            nonlocal taken
            taken += 1
            drawn = made.draw(Batch("train", ids, made.target.load("train", ids)), taken, training=True)
            for parameter in made.trainable:
                parameter.grad = None
            prediction = made.predict(drawn)
            terms = [
                term
                for site, where in drawn.points.items()
                for term in made.objective.terms(
                    site, where, drawn.probes[site], prediction[site], drawn.reference[site]
                )
            ]
            loss, _ = world.total(terms)
            loss.backward()
            optimizer.step()

        one.experiment = made  # type: ignore[attr-defined]
        return one

    fresh = by_package(0)
    made: Any = fresh.experiment  # type: ignore[attr-defined]
    target, student = made.target, made.module["policy"]
    teacher = target.network
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True)
    ids = torch.arange(BATCH)

    def by_hand() -> None:
        points = target.points(Batch("train", ids, target.load("train", ids)), training=True)["policy"]
        x = points.inputs["x"]
        v = Noise(0, "train", 0, "policy").sphere(points.index, 1, (3,), "v", dtype=x.dtype)[:, 0]
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            wanted = teacher(leaf).log_softmax(1)
            (direction,) = torch.autograd.grad((wanted * v).sum(), leaf)
        wanted = wanted.detach()
        optimizer.zero_grad()
        leaf = x.detach().requires_grad_()
        found = student(leaf).log_softmax(1)
        (gradient,) = torch.autograd.grad((found * v).sum(), leaf, create_graph=True)
        distance = (gradient - direction).flatten(1).norm(dim=1).mean()
        ((found.exp() * (found - wanted)).sum(1).mean() + 0.01 * distance).backward()
        optimizer.step()

    arms = {"by hand": by_hand, "fresh v": fresh, "kept Jacobian": by_package(2**40)}
    taken = interleaved(arms, rounds, now)
    result: dict[str, Any] = {f"{name}, ms": statistics.median(times) / 1e3 for name, times in taken.items()}
    result["fresh / by hand"] = median_ratio(taken, "fresh v", "by hand")
    result["kept / by hand"] = median_ratio(taken, "kept Jacobian", "by hand")
    result["engine"] = made.measurers["policy"].describe()
    return result


def memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure a run on 100,000 frames in a process of its own, by its greatest resident memory."""
    command = [sys.executable, __file__, "--memory-run", str(folder), "1" if quick else "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"peak bytes": int(done.stdout.split()[-1])}


def memory_run(folder: Path, quick: bool) -> None:
    """Make 100,000 random frames, train a few steps with the default bound for kept Jacobians; print the peak."""
    import numpy as np
    import torch
    from sobolev_atari.collect import dataset_meta
    from sobolev_atari.environments import find_environment
    from sobolev_atari.store import create_store
    from sobolev_atari.teachers import load_teacher

    from sobolev.train import Trainer

    torch.set_num_threads(1)
    pong = find_environment("pong")
    teacher = load_teacher("pong", folder)
    meta = dataset_meta(pong, teacher.digest, 100_000, streams=STREAMS, sticky=0.0, seed=0)
    store = create_store(folder / "frames", meta)
    generator = np.random.default_rng(0)
    for stream in range(meta.streams):
        store.arrays["frames"][stream] = generator.integers(0, 256, (1, 84, 84), dtype=np.uint8)
        store.arrays["logits"][stream] = generator.normal(size=(meta.steps, meta.outputs))
        store.arrays["episodes"][stream] = np.arange(meta.steps) // 1000
        store.arrays["ages"][stream] = np.arange(meta.steps) % 1000
    store.done = meta.steps
    store.save_progress()
    del store
    made, registry = experiment(folder, str(folder / "frames"), 2**30, 1.0, 3 if quick else 20)
    Trainer(made, registry).run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Measure what was asked for and say what was met."""
    options = arguments(__doc__, ROUNDS)
    now = clock(options)
    result: dict[str, Any] = {"machine": machine(options), "aims": AIMS}
    print(shown(result["machine"]))
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in ("", "collect"):
            steps, rounds = (40, 3) if options.quick else (125, 7)
            result["collect"] = found = collect(folder, steps, rounds, now)
            for part, rate in found["decisions/s"].items():
                print(f"  {part:<12} {rate:>8.0f} decisions/s")
            _say("collect / ideal", found["share"], found["share"] >= AIMS["collect"], ">= 0.8")
        if options.only in ("", "step"):
            data = _states(folder)
            result["step"] = found = step(folder, data, 50.0, options.rounds, now)
            for part in ("by hand, ms", "fresh v, ms", "kept Jacobian, ms"):
                print(f"  {part:<18} {found[part]:>8.1f}")
            _say("fresh / by hand", found["fresh / by hand"], found["fresh / by hand"] <= AIMS["step"], "<= 1.05")
            print(f"  kept / by hand: {found['kept / by hand']:.2f}")
        if options.only in ("", "memory"):
            result["memory"] = found = memory(folder, options.quick)
            peak = found["peak bytes"] / 1e9
            _say("peak memory of a run on 100,000 frames, GB", peak, peak * 1e9 <= AIMS["memory"], "< 2")
    result["seconds"] = round(time.monotonic() - began, 1)
    write(options, result)


def _states(folder: Path) -> str:
    """Collect a few states by the teacher."""
    import torch
    from sobolev_atari.collect import collect as gather
    from sobolev_atari.collect import dataset_meta
    from sobolev_atari.environments import find_environment
    from sobolev_atari.teachers import load_teacher

    pong, teacher = find_environment("pong"), load_teacher("pong", folder)
    meta = dataset_meta(pong, teacher.digest, 2 * CACHED, streams=4, sticky=0.0, seed=0)
    with torch.no_grad():
        gather(teacher.network, pong, folder / "states", meta)
    return str(folder / "states")


def _say(what: str, value: float, met: bool, aim: str) -> None:
    print(f"  {what}: {value:.2f} (aim {aim}{'' if met else ', MISSED'})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory-run"]:
        memory_run(Path(sys.argv[2]), sys.argv[3] == "1")
    else:
        main()
