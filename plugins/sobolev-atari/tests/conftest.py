"""Small policies and datasets that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sobolev_atari.collect import collect, dataset_meta
from sobolev_atari.environments import Environment, find_environment
from sobolev_atari.networks import Policy, policy_network
from sobolev_atari.store import Store


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def breakout() -> Environment:
    return find_environment("breakout")


@pytest.fixture(scope="session")
def cartpole() -> Environment:
    return find_environment("CartPole-v1")


@pytest.fixture(scope="session")
def small_policy() -> Policy:
    torch.manual_seed(0)
    return policy_network("small", (4, 84, 84), 4).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def breakout_store(tmp_path_factory: pytest.TempPathFactory, breakout: Environment, small_policy: Policy) -> Store:
    """600 decisions of Breakout in three streams; random play, so that games end within them."""
    directory: Path = tmp_path_factory.mktemp("states") / "breakout"
    meta = dataset_meta(breakout, "digest", 1200, streams=3, sticky=0.0, seed=1)
    return collect(small_policy, breakout, directory, meta)
