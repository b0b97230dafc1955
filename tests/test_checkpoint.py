"""Checkpoints: a run that is taken up is the run that was never interrupted, bit for bit; damage is survived."""

from __future__ import annotations

import errno
import math
import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import HOST, Records, experiment
from torch import Tensor

from sobolev import checkpoint
from sobolev.errors import CheckpointError
from sobolev.recording import Recorder
from sobolev.rundir import RunDirectory
from sobolev.train import Trainer

EVERY_STEP = ("train.steps=20", "train.checkpoint={every: 1, keep: 100}")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_flush", lambda path: None)  # real ones are in the tests that kill


def same(one: Any, other: Any) -> bool:
    """Nested data, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one.cpu(), other.cpu()) and one.dtype == other.dtype
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


class Case:
    """A run of 20 steps that can be taken up anywhere."""

    def __init__(self, folder: Path, *changes: str) -> None:
        self.folder, self.changes = folder, (*EVERY_STEP, *changes)

    def trainer(self, directory: RunDirectory | None = None, **options: Any) -> tuple[Trainer, Records]:
        records = Records()
        recorder = Recorder([("records", records)], lambda _: None)
        made = experiment(self.folder, *self.changes)
        return Trainer(made, HOST.registry, directory, recorder, **options), records

    def whole(self) -> tuple[dict[str, Any], Records]:
        trainer, records = self.trainer(RunDirectory(self.folder))
        return state(trainer, trainer.run().summary), records

    def loaded(self, step: int) -> checkpoint.Loaded:
        return checkpoint._read(self.folder / "checkpoints" / f"step-{step:08d}")


def state(trainer: Trainer, summary: Mapping[str, float]) -> dict[str, Any]:
    """All that training leaves behind."""
    return {
        "student": trainer.experiment.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict() if trainer.optimizer else {},
        "schedule": trainer.schedule.state_dict() if trainer.schedule else {},
        "target": trainer.experiment.target.state_dict(),
        "averaged": trainer.averaged.state_dict() if trainer.averaged else {},
        "best": vars(trainer.best),
        "best student": trainer.best_student,
        "summary": dict(summary),
    }


PROJECTED = "estimator={use: projected}"
CASES = {
    "exact": ("evaluate.every=6",),
    "float32, dropout, weight decay": ("dtype=float32", "student={use: dropping}", "train.optimizer={use: adamw}"),
    "table, projected, norm": (
        "target={use: tabulated}", PROJECTED, "objective.derivatives.0.loss=norm", "train.batch_size=7",
    ),
    "table, input side, l1, accumulated": (
        "target={use: tabulated}", "estimator={use: projected, side: input, probes: 2}",
        "objective.derivatives.0.loss=l1", "train.accumulate=3",
    ),
    "differences, huber, schedule": (
        "estimator={use: finite-difference, of: {use: projected, side: input}}", "objective.derivatives.0.loss=huber",
        "train.optimizer={use: sgd, momentum: 0.9}", "train.schedule={use: cosine, warmup: 4}",
    ),
    "order 2, average": (
        "objective.derivatives=[{order: 1}, {order: 2, weight: 0.1}]", PROJECTED, "train.ema=0.8", "train.clip=1",
    ),
    "learning target": ("target={use: online}", "estimator={use: projected, side: input}", "evaluate.every=5"),
    "no student": ("target={use: online}", "student={use: 'null'}"),
    "phases, best student": (
        "train.phases=[{steps: 12, optimizer: {use: adam}}, {steps: 8, optimizer: {use: lbfgs, max_iter: 3}}]",
        "evaluate.every=1", "evaluate.best=test/sines/value",
    ),
    "early stop": (
        "evaluate.every=3", "train.stop={metric: test/sines/value, patience: 2, min_improvement: 0.5}",
    ),
    "a phase stops early": (
        "train.phases=[{steps: 15, optimizer: {use: sgd, lr: 0.5}}, {steps: 6, optimizer: {use: lbfgs, max_iter: 3}}]",
        "evaluate.every=1", "evaluate.best=test/sines/value", "train.ema=0.5",
        "train.stop={metric: test/sines/value, patience: 6}",
    ),
    "members that polish, drops": (
        "target={use: ensemble, members: 2, of: tabulated}", "train.accumulate=2", "train.batch_size=5",
        "train.phases=[{steps: 9, optimizer: {use: adam}, schedule: {use: drops, at: [4]}}, "
        "{steps: 11, optimizer: {use: lbfgs, max_iter: 3}, schedule: {use: cosine}}]",
    ),
}  # fmt: skip
STEPS = {"early stop": 9, "a phase stops early": 13}  # otherwise 20


@pytest.mark.parametrize("name", CASES)
def test_a_run_taken_up_after_any_step_is_the_same_run(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path, *CASES[name])
    expected, records = case.whole()
    steps = len(list((tmp_path / "checkpoints").iterdir()))
    assert steps == STEPS.get(name, 19)
    for step in range(1, steps + 1):
        trainer, tail = case.trainer()
        summary = trainer.run(case.loaded(step)).summary
        found = state(trainer, summary)
        if trainer.optimizer is None:  # nothing was left to train
            assert name == "no student" or step == steps == 9
            found["optimizer"] = expected["optimizer"]
        assert same(found, expected), f"taken up after step {step}"
        assert same(tail.rows, [row for row in records.rows if row[0] > step]), f"taken up after step {step}"


def test_the_comparison_above_notices_one_step_too_few(tmp_path: Path) -> None:
    case = Case(tmp_path)
    expected, _ = case.whole()
    loaded = case.loaded(9)
    trainer, _ = case.trainer()
    skipped = checkpoint.Loaded(10, loaded.student, loaded.state, loaded.path)
    assert not same(state(trainer, trainer.run(skipped).summary), expected)


@pytest.mark.parametrize("changes", [(), ("train.ema=0.5", "evaluate.best=test/sines/value")])
@pytest.mark.parametrize("when", [4, 8, 20])
def test_an_evaluation_that_is_interrupted_is_taken_up(tmp_path: Path, when: int, changes: tuple[str, ...]) -> None:
    case = Case(tmp_path, "evaluate.every=4", "evaluate.batch_size=2", "train.checkpoint.every=null", *changes)
    trainer, records = case.trainer()
    expected = state(trainer, trainer.run().summary)

    trainer, before = case.trainer(RunDirectory(tmp_path))
    looked = 0

    def stop() -> bool:
        nonlocal looked
        looked += trainer._step == when and not trainer.experiment.module.training
        return looked == 2  # in the middle of the split

    trainer.stop = stop
    outcome = trainer.run()
    assert (outcome.status, outcome.step) == ("interrupted", when) and looked == 2
    loaded = checkpoint.load_newest(tmp_path / "checkpoints", pytest.fail)
    assert loaded is not None and loaded.step == when
    again, after = case.trainer()
    found = state(again, again.run(loaded).summary)
    if when == 20:  # nothing was left to train
        found["optimizer"] = expected["optimizer"]
    assert same(found, expected)
    assert same(before.rows + after.rows, records.rows)


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    trainer, _ = Case(tmp_path).trainer(RunDirectory(tmp_path), stop=lambda: True)
    assert trainer.run().status == "interrupted"
    assert not (tmp_path / "checkpoints").exists()


# -- damage ------------------------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FILES = ("student.safetensors", "state.safetensors", "state.json", "manifest.json")
DAMAGE: dict[str, Callable[[Path], None]] = {
    "half": truncate, "flipped": flip, "empty": lambda f: f.write_bytes(b"") and None, "gone": Path.unlink,
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, file: str, damage: str) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"w": torch.full((40,), float(step))}, {"a": torch.ones(3), "step": step})
    newest = tmp_path / "step-00000003" / file
    before = newest.read_bytes()
    DAMAGE[damage](newest)
    if file == "manifest.json" and damage == "flipped":  # a digit, a name: whatever it says, it is not believed
        assert newest.read_bytes() != before
    said: list[str] = []
    loaded = checkpoint.load_newest(tmp_path, said.append)
    assert loaded is not None and loaded.step == loaded.state["step"] == 2
    assert float(loaded.student["w"][0]) == 2.0
    (line,) = said
    assert line.startswith("warning: checkpoint") and "step-00000003" in line and "\n" not in line
    assert (tmp_path / "step-00000003").is_dir()

    checkpoint.save(tmp_path, 3, {"w": torch.zeros(1)}, {})  # the run comes here again, and replaces it
    again = checkpoint.load_newest(tmp_path, pytest.fail)
    assert again is not None and again.step == 3


def test_if_all_are_damaged_nothing_is_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        truncate(checkpoint.save(tmp_path, step, {"w": torch.ones(4)}, {}) / "student.safetensors")
    before = sorted(tmp_path.rglob("*"))
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"all 3 checkpoints .* are damaged; start over with --force"):
        checkpoint.load_newest(tmp_path, said.append)
    assert len(said) == 3 and sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_write_leaves_is_removed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"w": torch.ones(1)}, {})
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002.tmp-77")
    loaded = checkpoint.load_newest(tmp_path, pytest.fail)
    assert loaded is not None and loaded.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load_newest(tmp_path / "none", pytest.fail) is None


def test_a_full_disk_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, "train.steps=8")
    expected, _ = case.whole()
    shutil.rmtree(tmp_path / "checkpoints")
    real, writes = checkpoint.save_file, 0

    def save_file(*arguments: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    said: list[str] = []
    trainer, _ = case.trainer(RunDirectory(tmp_path))
    trainer.recorder = Recorder([], said.append)
    assert same(state(trainer, trainer.run().summary), expected)
    assert len(said) == 4 and all("No space left on device" in line for line in said)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-0000000{i}" for i in (1, 2, 3)]


def test_a_file_that_may_not_grow_costs_a_warning_too(tmp_path: Path) -> None:
    """Safetensors itself is refused by the system, not a function in its place."""
    case = Case(tmp_path, "train.steps=3", "student={use: mlp, hidden: [2000]}")
    said: list[str] = []
    trainer, _ = case.trainer(RunDirectory(tmp_path))
    trainer.recorder = Recorder([], said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert trainer.run().status == "finished"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said) == 2 and all("no checkpoint could be written ([Errno 27] File too large" in line for line in said)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_steps_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, step, {"w": torch.ones(1)}, {}, keep=1)
    loaded = checkpoint.load_newest(tmp_path, pytest.fail)
    assert loaded is not None and loaded.step == 100_000_000


# -- what can be kept --------------------------------------------------------------------------------------------------


def test_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    kept = {
        "numbers": [1, 2.5, math.inf, -math.inf, math.nan, True, None, "text"],
        "by number": {0: {"momentum": torch.ones(2)}, 1: {"momentum": torch.zeros(2, dtype=torch.int64)}},
        "pair": (1, (torch.tensor(2.0), "x")),
        "tied": {"a": shared, "b": shared, "view": shared.T},
        "empty": {"dict": {}, "list": [], "tuple": (), "tensor": torch.zeros(0, 3)},
        "$odd": {"$tensor": "not one"},
        "like names": {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "n": {1: torch.ones(2), "1": torch.zeros(2)}},
        "0d": torch.tensor(True),
    }
    checkpoint.save(tmp_path, 5, {"w": shared, "same": shared}, kept)
    loaded = checkpoint.load_newest(tmp_path, pytest.fail)
    assert loaded is not None
    assert same(loaded.state, kept) and isinstance(loaded.state["pair"], tuple)
    assert same(loaded.student, {"w": shared, "same": shared})


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.target\.rng\.1: a checkpoint holds tensors, .* not object"):
        checkpoint.save(tmp_path, 1, {}, {"target": {"rng": [1, object()]}})
    assert not list(tmp_path.iterdir())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 9, 100):
        checkpoint.save(tmp_path, step, {"w": torch.ones(1)}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "step-00000100"]
