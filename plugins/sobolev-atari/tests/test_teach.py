"""Training of teachers: the environment that the learner sees, interruption, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sobolev_atari.commands import teach as teach_command
from sobolev_atari.environments import Environment
from sobolev_atari.sb3 import GamesForTraining
from sobolev_atari.settings import TeachSettings, read_teach_settings
from sobolev_atari.teach import teach
from sobolev_atari.teachers import load_teacher

from sobolev import RecipeError, SobolevError

TINY = TeachSettings(
    environment="CartPole-v1",
    architecture="mlp",
    steps=2048,
    environments=4,
    rollout=64,
    minibatch=64,
    learning_rate=3e-3,
    clip=0.2,
    clip_rewards=False,
    evaluate_episodes=0,
)


def weights(policy: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in policy.parameters()])


def test_training_improves_and_is_reproducible(tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"steps": 6144})
    policy = teach(settings, tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["steps"] == 6144 and rows[-1]["return_100"] > 40  # random play: about 22
    again = teach(settings, tmp_path / "b")
    torch.testing.assert_close(weights(again), weights(policy), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_an_interrupted_training_goes_on(tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sobolev_atari import teach as module

    settings = TINY.model_copy(update={"algorithm": algorithm, "checkpoint_seconds": 1e-9})
    steps = 0
    original = module._Record._on_step

    def interrupted(self: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 300:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(module._Record, "_on_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teach(settings, tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < saved["steps"] < settings.steps
    assert saved["optimizer"]["state"]  # moments, not only weights
    begun: list[tuple[int, float]] = []

    def noting(self: Any) -> bool:
        if not begun:
            begun.append((self.num_timesteps, self.model.policy.optimizer.param_groups[0]["lr"]))
            state = self.model.policy.optimizer.state_dict()["state"]
            for i, moments in saved["optimizer"]["state"].items():
                for name, moment in moments.items():
                    torch.testing.assert_close(state[i][name], moment)
        return original(self)

    monkeypatch.setattr(module._Record, "_on_step", noting)
    teach(settings, tmp_path)
    assert begun[0][0] == saved["steps"] + settings.environments
    assert begun[0][1] < settings.learning_rate  # the schedule goes on, too
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["steps"] == settings.steps


def test_other_settings_do_not_take_over_a_training(tmp_path: Path) -> None:
    teach(TINY.model_copy(update={"steps": 256}), tmp_path)
    with pytest.raises(SobolevError, match="other settings"):
        teach(TINY.model_copy(update={"steps": 256, "learning_rate": 1.0}), tmp_path)


def test_a_lost_life_ends_an_episode_but_not_the_game(breakout: Environment) -> None:
    games = GamesForTraining(breakout, 2, seed=0, sticky=0.0, clip_rewards=True, end_on_life_loss=True)
    whole = GamesForTraining(breakout, 2, seed=0, sticky=0.0, clip_rewards=True, end_on_life_loss=False)
    observed, observed_whole = games.reset(), whole.reset()
    rng = np.random.default_rng(0)
    ends = overs = 0
    for _ in range(400):
        np.testing.assert_array_equal(observed, observed_whole)  # the emulator does not notice
        actions = rng.integers(0, 4, 2)
        observed, reward, done, infos = games.step(actions)
        observed_whole, _, over, infos_whole = whole.step(actions)
        ends += done.sum()
        overs += over.sum()
        assert (done >= over).all() and set(np.unique(reward)) <= {-1.0, 0.0, 1.0}
        for i in np.flatnonzero(done):
            assert "terminal_observation" in infos[i]
            assert ("episode" in infos[i]) == bool(over[i]) == ("episode" in infos_whole[i])
    games.close()
    whole.close()
    assert overs >= 2 and ends >= 4 * overs  # five lives


def test_the_command_writes_a_teacher_that_loads(tmp_path: Path) -> None:
    recipe = tmp_path / "cartpole.yaml"
    settings = "\n".join(f"{k}: {json.dumps(v)}" for k, v in TINY.model_dump().items())
    recipe.write_text(settings)
    result = CliRunner().invoke(
        teach_command,
        [str(recipe), "--output", str(tmp_path / "out"), "--episodes", "4", "--half"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    teacher = load_teacher("out/teacher.safetensors", tmp_path)
    card = teacher.card
    assert card["steps"] == TINY.steps and card["return_episodes"] == 4 and card["weights"] == "float16"
    assert card["random_mean"] < 40 and card["settings"]["environment"] == "CartPole-v1"
    assert teacher.outputs == 2 and teacher.shape == (4,)


def test_settings_are_read_from_a_recipe_too(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: x\ntarget:\n  use: distillation\n  teacher: {environment: pong, steps: 5}\n")
    assert read_teach_settings(file) == TeachSettings(environment="pong", steps=5)


def test_wrong_settings_are_named_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("environment: pong\nstepps: 5\n")
    with pytest.raises(RecipeError, match=r"t\.yaml:2:1: unknown key 'stepps'; did you mean 'steps'"):
        read_teach_settings(file)
    file.write_text("name: x\ntarget: {use: distillation, teacher: pong}\n")
    with pytest.raises(RecipeError, match="does not train a teacher"):
        read_teach_settings(file)


def test_a_missing_package_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    file = tmp_path / "t.yaml"
    file.write_text("environment: pong\n")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "stable_baselines3" else found(name))
    with pytest.raises(SobolevError, match="pip install stable-baselines3"):
        CliRunner().invoke(teach_command, [str(file)], catch_exceptions=False)
