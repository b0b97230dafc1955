"""From a recipe's options to states, splits, a trained teacher and a score."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sobolev_atari.distillation import SITE, Distillation
from sobolev_atari.environments import find_environment
from sobolev_atari.networks import Policy, policy_network
from sobolev_atari.plugin import distillation
from sobolev_atari.settings import TeachSettings
from sobolev_atari.store import Store
from sobolev_atari.teachers import frozen, write_teacher

from sobolev import HEADS, Batch, Context, DataError, SobolevError
from sobolev.distributed import World

CARTPOLE = TeachSettings(
    environment="CartPole-v1",
    architecture="mlp",
    steps=512,
    environments=4,
    rollout=32,
    minibatch=64,
    clip_rewards=False,
)


def context(tmp_path: Path, output: Path | None = None) -> Context:
    return Context(
        device=torch.device("cpu"),
        dtype=torch.float32,
        world=World(torch.device("cpu")),
        seed=0,
        head=HEADS["log-softmax"],
        directory=tmp_path,
        cache=tmp_path / "cache",
        output=output,
        say=lambda line: None,
    )


def prepared(tmp_path: Path, output: Path | None = None, **options: Any) -> Distillation:
    target = distillation(**options)
    assert isinstance(target, Distillation)
    target.prepare(context(tmp_path, output))
    return target


class Uniform:
    """A student that does not care."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def value(self, site: str, inputs: Any) -> torch.Tensor:
        return torch.zeros(len(inputs["x"]), self.outputs).log_softmax(1)


@pytest.fixture(scope="module")
def pong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random policy for Pong; states are collected there once for all tests."""
    tmp_path = tmp_path_factory.mktemp("pong")
    torch.manual_seed(0)
    card = {"architecture": "small", "shape": [4, 84, 84], "outputs": 6, "environment": "pong", "return_mean": -20.0}
    write_teacher(policy_network("small", (4, 84, 84), 6), tmp_path / "t.safetensors", card, half=False)
    return tmp_path


GAME: dict[str, Any] = {"teacher": "t.safetensors", "states": 2400, "streams": 2, "train_percent": 5.0}


def test_a_teacher_is_trained_and_states_are_collected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"teacher": CARTPOLE, "states": 600, "streams": 2, "train_percent": 20.0, "episodes": 2}
    target = prepared(tmp_path, **options)
    site = target.sites()[SITE]
    assert site.inputs == {"x": (4,)} and site.outputs == 2 and not site.ranges
    assert target.size("train") == 120 and target.size("test") > 400
    from sobolev_atari import policies, teach

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(teach, "teach", never)
    monkeypatch.setattr(policies, "collect", lambda *_: None)
    again = prepared(tmp_path, **options)
    assert again.version == target.version
    ids = torch.arange(7)
    x = target.points(Batch("test", ids, target.load("test", ids)), training=False)[SITE].inputs["x"]
    torch.testing.assert_close(x, again.points(Batch("test", ids), training=False)[SITE].inputs["x"])


def test_frames_become_numbers_from_0_to_1(pong: Path) -> None:
    target = prepared(pong, **GAME)
    points = target.points(Batch("train", torch.arange(4), None), training=True)[SITE]
    x = points.inputs["x"]
    assert x.shape == (4, 4, 84, 84) and x.dtype == torch.float32 and 0.3 < float(x.max()) <= 1
    assert target.sites()[SITE].ranges == {"x": (0.0, 1.0)}


def test_pong_has_the_papers_three_outputs_or_the_emulators_six(pong: Path) -> None:
    three, six = prepared(pong, **GAME), prepared(pong, **GAME, actions="emulator")
    assert (three.sites()[SITE].outputs, six.sites()[SITE].outputs) == (3, 6)
    batch = Batch("test", torch.arange(5), None)
    with torch.no_grad():
        for target in (three, six):
            points = target.points(batch, training=False)[SITE]
            # what was recorded is what the teacher says, merged or not
            torch.testing.assert_close(points.context.logits, target.network(points.inputs["x"]), atol=1e-5, rtol=1e-5)
    p = six.points(batch, training=False)[SITE].context.logits.softmax(1)
    merged = three.points(batch, training=False)[SITE].context.logits.softmax(1)
    torch.testing.assert_close(merged, torch.stack([p[:, :2].sum(1), p[:, [2, 4]].sum(1), p[:, [3, 5]].sum(1)], 1))
    assert three.version != six.version


def test_the_student_plays_whole_games_and_is_filmed(pong: Path, tmp_path: Path) -> None:
    target = prepared(pong, output=tmp_path / "run", **GAME, episodes=2)
    found = target.finish(Uniform(3))  # type: ignore[arg-type]
    assert -21 <= found["score"] <= -17 and found["teacher-score"] == -20.0 and found["score-episodes"] == 2
    with Image.open(tmp_path / "run" / "figures" / "play.gif") as film:
        assert film.n_frames > 100 and film.size == (252, 252)  # type: ignore[attr-defined]


def test_a_dataset_from_collect_is_used(tmp_path: Path, breakout_store: Store, small_policy: Policy) -> None:
    card = {"architecture": "small", "shape": [4, 84, 84], "outputs": 4, "environment": "breakout"}
    write_teacher(small_policy, tmp_path / "t.safetensors", card, half=False)
    with pytest.raises(DataError, match="another teacher"):  # that dataset names no real teacher
        prepared(tmp_path, teacher="t.safetensors", data=str(breakout_store.directory))
    from sobolev_atari.collect import collect, dataset_meta

    breakout = find_environment("breakout")
    digest = frozen(small_policy, 4, (4, 84, 84)).digest
    collect(small_policy, breakout, tmp_path / "d", dataset_meta(breakout, digest, 1200, streams=3, sticky=0.0, seed=1))
    target = prepared(tmp_path, teacher="t.safetensors", data="d", train_percent=10.0)
    x = target.points(Batch("train", torch.tensor([3]), None), training=True)[SITE].inputs["x"]
    np.testing.assert_allclose(x.numpy() * 255, breakout_store.states(np.array([3])), atol=1e-4)


def test_what_does_not_fit_is_said_before_anything_long(pong: Path, tmp_path: Path) -> None:
    shutil.copy(pong / "t.safetensors", tmp_path)
    shutil.copy(pong / "t.json", tmp_path)
    with pytest.raises(SobolevError, match="6 outputs, breakout has 4 actions"):
        prepared(tmp_path, teacher="t.safetensors", environment="breakout")
    with pytest.raises(SobolevError, match=r"unknown environment 'bong'; did you mean boxing, pong"):
        prepared(tmp_path, teacher=CARTPOLE.model_copy(update={"environment": "bong"}))
    with pytest.raises(DataError, match="no dataset"):
        prepared(tmp_path, teacher="t.safetensors", data="nowhere")
    assert not list((tmp_path / "cache").rglob("*.npy"))
