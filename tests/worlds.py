"""What several processes must agree on: ``python worlds.py FOLDER`` in each of them, started by test_distributed.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from families import HOST, Records, experiment
from safetensors.torch import save_file
from torch import Tensor

from sobolev import NonFiniteError
from sobolev.distributed import World, connect
from sobolev.recording import Recorder
from sobolev.sampler import Sampler
from sobolev.train import Trainer

TABLE = "target={use: tabulated}"
PROJECTED = "estimator={use: projected, probes: 2}"
CASES: dict[str, tuple[str, ...]] = {
    "masks and weights": (TABLE, PROJECTED),
    "uneven shards": (TABLE, "train.batch_size=7"),
    "a rank without samples": (TABLE, "train.batch_size=1", "evaluate.points=1"),
    "terms without samples": (TABLE, "train.batch_size=2", "objective.derivatives.0.loss=norm"),
    "accumulated": ("train.accumulate=2", "train.batch_size=5", "estimator={use: projected, side: input}"),
    "learning target": ("target={use: online}", "train.batch_size=7"),
    "differences": ("estimator={use: finite-difference, of: {use: projected, side: input}}", "train.batch_size=5"),
    "order 2": ("objective.derivatives=[{order: 1}, {order: 2, weight: 0.1}]", "train.batch_size=5"),
    "clipped, averaged": ("train.clip=0.1", "train.ema=0.5", "train.batch_size=3"),
    "closure": (TABLE, "train.optimizer={use: lbfgs, max_iter: 3}", "train.batch_size=7"),
    "no student": ("target={use: online}", "student={use: 'null'}"),
}
SGD = ("train.optimizer={use: sgd, lr: 0.01, momentum: 0.9}", "train.steps=3")


def trained(folder: Path, world: World, changes: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients of the last step, weights and records after three steps."""
    records = Records()
    made = experiment(folder, *SGD, *changes, world=world)
    Trainer(made, HOST.registry, recorder=Recorder([("records", records)])).run()
    found = {f"weight {name}": tensor for name, tensor in made.module.state_dict().items()}
    found |= {f"gradient {n}": p.grad for n, p in made.module.named_parameters() if p.grad is not None}
    for step, row in records.rows:
        found |= {f"record {step} {name}": torch.tensor(value, dtype=torch.float64) for name, value in row.items()}
    if "online" in str(changes):
        found |= {f"layer {i}": layer for i, layer in enumerate(made.target.layers)}  # type: ignore[attr-defined]
    return found


def broken(folder: Path, world: World) -> str:
    """What is said where one sample, which the second process has, is not finite."""
    sample = Sampler(40, 8, 0).ids(2)[-1].item()
    made = experiment(folder, f"target={{use: sines, bad: value, sample: {sample}}}", world=world)
    try:
        Trainer(made, HOST.registry).run()
    except NonFiniteError as error:
        assert f"target's value of site sines (samples {sample})" in str(error), str(error)
        return str(error)
    raise AssertionError("nothing was noticed")


def stopped(folder: Path, world: World) -> int:
    """After which step all stop where a signal reaches the second process alone."""
    trainer = Trainer(experiment(folder, "train.steps=50", world=world), HOST.registry)
    trainer.stop = lambda: world.rank == world.size - 1 and trainer._step == 3
    outcome = trainer.run()
    assert outcome.status == "interrupted"
    return outcome.step


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = connect("cpu")
    mine = folder / str(world.rank)
    mine.mkdir(parents=True)
    for name, changes in CASES.items():
        found = trained(mine, world, changes)
        save_file({key: tensor.contiguous().clone() for key, tensor in found.items()}, mine / f"{name}.safetensors")
    (mine / "broken").write_text(broken(mine, world))
    (mine / "stopped").write_text(str(stopped(mine, world)))
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
