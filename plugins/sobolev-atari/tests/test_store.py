import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sobolev_atari.collect import collect, dataset_meta
from sobolev_atari.environments import Environment, make_environment
from sobolev_atari.networks import Policy
from sobolev_atari.store import Store, open_store

from sobolev.errors import DataError


def test_stacks_are_those_of_the_emulator_over_episode_starts(breakout: Environment, breakout_store: Store) -> None:
    """Replay the recorded actions and compare every state that the emulator gives with the one read back."""
    meta = breakout_store.meta
    games = make_environment(breakout, meta.streams)
    observation, _ = games.reset(seed=meta.seed)
    for step in range(meta.steps):
        rows = np.arange(meta.streams) * meta.steps + step
        np.testing.assert_array_equal(breakout_store.states(rows), observation)
        observation, *_ = games.step(breakout_store.arrays["actions"][:, step].astype(np.int64))
    games.close()
    assert len(np.unique(breakout_store.episode_ids())) > meta.streams  # episodes ended in between


def test_frames_before_an_episode_are_zero(breakout_store: Store) -> None:
    start = int(np.flatnonzero((breakout_store.flat("ages") == 0) & (np.arange(breakout_store.meta.size) > 0))[0])
    stacks = breakout_store.states(np.array([start, start + 1, start + 3])).reshape(3, 4, -1).any(axis=2)
    np.testing.assert_array_equal(stacks, [[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])


def test_recorded_logits_are_those_of_the_teacher(breakout_store: Store, small_policy: Policy) -> None:
    rows = np.arange(5, 1200, 97)
    x = torch.from_numpy(breakout_store.states(rows)).float() / 255
    np.testing.assert_allclose(small_policy(x).numpy(), breakout_store.flat("logits")[rows], atol=1e-6)


def test_frames_are_kept_once(breakout_store: Store) -> None:
    per_decision = sum(f.stat().st_size for f in breakout_store.directory.iterdir()) / breakout_store.meta.size
    assert per_decision < 84 * 84 * 1.02


def test_an_interrupted_collection_goes_on(breakout: Environment, small_policy: Policy, tmp_path: Path) -> None:
    meta = dataset_meta(breakout, "digest", 40, streams=2, sticky=0.0, seed=5)
    calls = 0

    def interrupted(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return small_policy(x)

    with pytest.raises(KeyboardInterrupt):
        collect(interrupted, breakout, tmp_path / "d", meta)
    with pytest.raises(DataError, match="only 8 of 20 steps"):
        open_store(tmp_path / "d")
    before = np.load(tmp_path / "d" / "frames.npy")[:, :8].copy()
    collect(small_policy, breakout, tmp_path / "d", meta)
    store = open_store(tmp_path / "d")
    np.testing.assert_array_equal(store.arrays["frames"][:, :8], before)
    assert store.interruptions == [8]
    np.testing.assert_array_equal(store.arrays["ages"][:, 8], 0)  # games were cut: new episodes
    assert (store.arrays["episodes"][:, 8] == store.arrays["episodes"][:, 7] + 1).all()


def test_a_finished_collection_is_not_played_again(breakout: Environment, breakout_store: Store) -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    assert collect(never, breakout, breakout_store.directory, breakout_store.meta).complete


def test_another_dataset_is_not_overwritten(breakout: Environment, breakout_store: Store, small_policy: Policy) -> None:
    meta = dataset_meta(breakout, "another", 1200, streams=3, sticky=0.0, seed=1)
    with pytest.raises(DataError, match="differs in teacher"):
        collect(small_policy, breakout, breakout_store.directory, meta)


@pytest.fixture
def copied(breakout: Environment, small_policy: Policy, tmp_path: Path) -> Path:
    collect(small_policy, breakout, tmp_path / "d", dataset_meta(breakout, "digest", 6, streams=2, sticky=0.0, seed=5))
    return tmp_path / "d"


def test_a_truncated_file_is_named(copied: Path) -> None:
    file = copied / "frames.npy"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"frames.npy is missing or truncated"):
        open_store(copied)


def test_a_damaged_file_is_named(copied: Path) -> None:
    file = copied / "logits.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"logits.npy is damaged"):
        open_store(copied)


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset"):
        open_store(tmp_path)


def test_a_dataset_of_a_later_format_is_refused(copied: Path) -> None:
    content = json.loads((copied / "meta.json").read_text())
    (copied / "meta.json").write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(DataError, match="format 9"):
        open_store(copied)
