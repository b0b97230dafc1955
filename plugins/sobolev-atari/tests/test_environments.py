import numpy as np
import pytest
import torch
from sobolev_atari.environments import Environment, evaluate, find_environment, make_environment

from sobolev.errors import SobolevError


@pytest.mark.parametrize(
    "name", ["space_invaders", "ALE/SpaceInvaders-v5", "SpaceInvadersNoFrameskip-v4", "Space Invaders"]
)
def test_a_game_has_many_spellings(name: str) -> None:
    found = find_environment(name)
    assert (found.name, found.shape, found.scale, len(found.actions)) == ("space_invaders", (4, 84, 84), 255.0, 6)


def test_the_emulator_gives_six_outputs_for_pong_and_four_for_breakout(breakout: Environment) -> None:
    pong = find_environment("pong").actions
    assert pong == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert breakout.actions == ("NOOP", "FIRE", "RIGHT", "LEFT")


def test_an_unknown_game_is_named_with_its_neighbours() -> None:
    with pytest.raises(SobolevError, match=r"did you mean.*space_invaders"):
        find_environment("space_invader")


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(SobolevError, match="discrete actions"):
        find_environment("Pendulum-v1")


def test_sticky_actions_belong_to_the_emulator(cartpole: Environment) -> None:
    with pytest.raises(SobolevError, match="sticky"):
        make_environment(cartpole, 1, sticky=0.25)


def test_sticky_actions_change_the_game(breakout: Environment) -> None:
    def frames(sticky: float) -> np.ndarray:
        games = make_environment(breakout, 1, sticky=sticky)
        games.reset(seed=3)
        seen = [games.step(np.array([(1, 2, 3, 2)[t % 4]]))[0] for t in range(60)]
        games.close()
        return np.stack(seen)

    assert (frames(0.0) == frames(0.0)).all()
    assert (frames(0.0) != frames(0.5)).any()


def test_evaluation_plays_whole_games_and_each_environment_its_share(cartpole: Environment) -> None:
    score = evaluate(lambda x: torch.zeros(len(x), 2), cartpole, episodes=5, parallel=2, seed=1)
    assert len(score.returns) == len(score.lengths) == 5
    assert score.returns == tuple(float(n) for n in score.lengths)  # one point per step
    assert score.mean == pytest.approx(np.mean(score.returns))
    assert score.spread == pytest.approx(np.std(score.returns, ddof=1))


def test_evaluation_follows_the_policy(cartpole: Environment) -> None:
    # Pushing towards the side that the pole falls to balances for long; always one side falls within a dozen steps.
    wise = evaluate(
        lambda x: torch.stack([-x[:, 2] - x[:, 3], x[:, 2] + x[:, 3]], 1), cartpole, episodes=3, greedy=True
    )
    foolish = evaluate(lambda x: torch.tensor([[50.0, 0.0]]).repeat(len(x), 1), cartpole, episodes=3)
    assert wise.mean > 100 and foolish.mean < 15


def test_breakout_games_are_whole_and_not_clipped(breakout: Environment) -> None:
    score = evaluate(lambda x: torch.zeros(len(x), 4), breakout, episodes=4, parallel=4, seed=0)
    assert min(score.lengths) > 100  # five lives, not one
