import numpy as np
import pytest
from sobolev_atari.splits import split_rows

from sobolev.errors import DataError

# 100 decisions, episodes of 8.
EPISODES = np.arange(100) // 8
OPTIONS = {"train_percent": 10.0, "validation_percent": 0.0, "test_percent": 20.0, "most_test": None}


def test_no_episode_both_trains_and_tests() -> None:
    for percent in (1, 7, 10, 33, 50):
        rows = split_rows(EPISODES, split="time", **{**OPTIONS, "train_percent": percent, "validation_percent": 30.0})
        seen = np.concatenate([rows["train"], rows["validation"]])
        np.testing.assert_array_equal(np.sort(seen), np.arange(percent))
        assert not np.isin(EPISODES[rows["test"]], EPISODES[seen]).any()
        assert rows["test"].min() >= percent


def test_all_other_episodes_test() -> None:
    rows = split_rows(EPISODES, split="time", **OPTIONS)
    np.testing.assert_array_equal(np.sort(rows["test"]), np.arange(16, 100))  # 10..15 belong to a training episode


def test_a_fixed_test_part_does_not_depend_on_what_trains() -> None:
    few = split_rows(EPISODES, split="fixed-test", **{**OPTIONS, "train_percent": 5.0})["test"]
    many = split_rows(EPISODES, split="fixed-test", **{**OPTIONS, "train_percent": 60.0})["test"]
    np.testing.assert_array_equal(few, many)


def test_validation_is_the_last_part_of_what_trains() -> None:
    rows = split_rows(EPISODES, split="time", **{**OPTIONS, "validation_percent": 20.0})
    np.testing.assert_array_equal(rows["train"], np.arange(8))
    np.testing.assert_array_equal(rows["validation"], [8, 9])


def test_a_sample_of_the_test_part() -> None:
    whole = split_rows(EPISODES, split="time", **OPTIONS)["test"]
    some = split_rows(EPISODES, split="time", **{**OPTIONS, "most_test": 7})["test"]
    np.testing.assert_array_equal(some, whole[:7])
    assert len(np.unique(some // 30)) > 1  # not only the first games


def test_one_long_episode_cannot_be_split() -> None:
    with pytest.raises(DataError, match="0 test"):
        split_rows(np.zeros(100, dtype=np.int64), split="time", **OPTIONS)


def test_parts_that_meet_are_refused() -> None:
    with pytest.raises(DataError, match="more than all"):
        split_rows(EPISODES, split="fixed-test", **{**OPTIONS, "train_percent": 90.0})
