"""Teachers from files: what they compute, and that nothing in a file is executed."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import save_file
from sobolev_atari.environments import Environment, find_environment
from sobolev_atari.networks import Policy, policy_network
from sobolev_atari.teachers import (
    TeacherError,
    check_fit,
    frozen,
    load_teacher,
    merged,
    read_safetensors,
    read_zip,
    shipped_teachers,
    write_teacher,
)
from torch import nn

from sobolev.components import Student
from sobolev.vocabulary import Site


class Frames(gymnasium.Env[np.ndarray, int]):
    """An environment that has only the spaces of Atari."""

    observation_space = Box(0, 255, (4, 84, 84), np.uint8)
    action_space = Discrete(6)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(scope="module")
def atari_zip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from stable_baselines3 import A2C

    model = A2C("CnnPolicy", Frames(), device="cpu", seed=0)
    with torch.no_grad():  # the fresh output layer is almost 0
        model.policy.action_net.weight.normal_()
    path = tmp_path_factory.mktemp("zip") / "pong.zip"
    model.save(path)
    return path, model


def test_a_zip_of_stable_baselines3_gives_its_policy(atari_zip: tuple[Path, Any]) -> None:
    path, model = atari_zip
    teacher = read_zip(path)
    frames = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    expected = model.policy.get_distribution(frames).distribution.logits.detach()
    # x is the float stack in [0, 1]; Stable-Baselines3 divides by 255 itself.
    found = teacher.network(frames.float() / 255).log_softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (teacher.outputs, teacher.shape) == (6, (4, 84, 84))


def test_the_derivative_is_by_frames_in_0_to_1(atari_zip: tuple[Path, Any]) -> None:
    """Directional derivative by x against finite differences of Stable-Baselines3's own policy on frames in 0..255."""
    path, model = atari_zip
    network = read_zip(path).network.double()
    policy = model.policy.double()
    torch.manual_seed(1)
    frames = torch.rand(2, 4, 84, 84, dtype=torch.float64) * 255
    direction = torch.randn_like(frames)
    step = 1e-7  # short, for the kinks of ReLU

    def logits(observed: torch.Tensor) -> torch.Tensor:
        features = policy.features_extractor(observed / 255)
        return policy.action_net(features).detach()

    expected = (logits(frames + 255 * step * direction) - logits(frames - 255 * step * direction)) / (2 * step)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x).sum(0), frames / 255)
    found = torch.einsum("mbchw,bchw->bm", jacobian, direction)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    model.policy.float()


def test_an_mlp_policy_of_stable_baselines3(tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    for name, options in (("tanh", {}), ("relu", {"activation_fn": nn.ReLU, "net_arch": [8, 16, 4]})):
        model = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, policy_kwargs=options, n_steps=8, batch_size=8)
        with torch.no_grad():
            model.policy.action_net.weight.normal_()
        path = tmp_path / f"{name}.zip"
        model.save(path)
        teacher = read_zip(path)
        x = torch.randn(7, 4)
        expected = model.policy.get_distribution(x).distribution.logits.detach()
        torch.testing.assert_close(teacher.network(x).log_softmax(1), expected)
        assert (teacher.outputs, teacher.shape) == (2, (4,))


class Payload:
    """Unpickling an instance creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def _replace(source: Path, target: Path, member: str, content: bytes) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name == member else old.read(name))


def test_a_malicious_zip_runs_nothing(atari_zip: tuple[Path, Any], tmp_path: Path) -> None:
    import base64
    import json

    touched = tmp_path / "touched"
    payload = pickle.dumps(Payload(touched))
    entry = {":type:": "<class 'x'>", ":serialized:": base64.b64encode(payload).decode()}
    in_data = tmp_path / "data.zip"
    _replace(atari_zip[0], in_data, "data", json.dumps({"policy_class": entry, "policy_kwargs": entry}).encode())
    assert read_zip(in_data).outputs == 6  # `data` is never unpickled
    buffer = io.BytesIO()
    torch.save({"action_net.weight": Payload(touched)}, buffer)
    for content in (payload, buffer.getvalue()):
        in_policy = tmp_path / "policy.zip"
        _replace(atari_zip[0], in_policy, "policy.pth", content)
        with pytest.raises(TeacherError, match="cannot be read safely"):
            read_zip(in_policy)
    assert not touched.exists()
    pickle.loads(payload)
    assert touched.exists()  # the payload does what it should


def test_zips_that_are_no_policy(atari_zip: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(TeacherError, match="cannot be read safely"):
        read_zip(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(TeacherError, match=r"no policy\.pth"):
        read_zip(tmp_path / "empty.zip")
    buffer = io.BytesIO()
    torch.save({"q_net.q_net.0.weight": torch.zeros(2, 2)}, buffer)
    _replace(atari_zip[0], tmp_path / "dqn.zip", "policy.pth", buffer.getvalue())
    with pytest.raises(TeacherError, match="DQN"):
        read_zip(tmp_path / "dqn.zip")
    truncated = tmp_path / "cut.zip"
    truncated.write_bytes(atari_zip[0].read_bytes()[:5000])
    with pytest.raises(TeacherError, match="cannot be read safely"):
        read_zip(truncated)


def test_a_zip_with_an_unknown_network(tmp_path: Path, atari_zip: tuple[Path, Any]) -> None:
    buffer = io.BytesIO()
    tensors = {
        "features_extractor.cnn.0.weight": torch.zeros(5, 4, 3, 3),
        "features_extractor.cnn.0.bias": torch.zeros(5),
    }
    heads = {"action_net.weight": torch.zeros(6, 5), "action_net.bias": torch.zeros(6)}
    torch.save(tensors | heads, buffer)
    _replace(atari_zip[0], tmp_path / "odd.zip", "policy.pth", buffer.getvalue())
    with pytest.raises(TeacherError, match="none that is known here"):
        read_zip(tmp_path / "odd.zip")


CARD = {"architecture": "small", "shape": [4, 84, 84], "outputs": 4, "environment": "breakout"}


def test_our_own_teachers_survive_writing_and_reading(small_policy: Policy, tmp_path: Path) -> None:
    for half in (False, True):
        write_teacher(small_policy, tmp_path / "t.safetensors", CARD, half=half)
        teacher = load_teacher("t.safetensors", tmp_path)
        x = torch.rand(3, 4, 84, 84)
        torch.testing.assert_close(teacher.network(x), small_policy(x), atol=2e-3 if half else 0, rtol=0)
        assert teacher.card["environment"] == "breakout"
        assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())


def test_weights_of_another_architecture_are_named(small_policy: Policy, tmp_path: Path) -> None:
    write_teacher(small_policy, tmp_path / "t.safetensors", {**CARD, "architecture": "paper"}, half=False)
    with pytest.raises(
        TeacherError, match=r"another architecture.*'0.bias': in the file \(16,\), in the network \(32,\)"
    ):
        read_safetensors(tmp_path / "t.safetensors")


class _Linear(Student):
    def build(self, site: Site) -> nn.Module:
        return nn.Linear(site.inputs["x"][0], site.outputs)


def test_a_registered_student_reads_its_run(tmp_path: Path) -> None:
    layer = nn.Linear(4, 2)
    save_file({f"policy.{k}": v.detach() for k, v in layer.state_dict().items()}, tmp_path / "student.safetensors")
    with pytest.raises(TeacherError, match="no card"):
        read_safetensors(tmp_path / "student.safetensors")
    with pytest.raises(TeacherError, match="must say 'shape' and 'outputs'"):
        read_safetensors(tmp_path / "student.safetensors", _Linear())
    (tmp_path / "student.json").write_text('{"shape": [4], "outputs": 2}')
    teacher = read_safetensors(tmp_path / "student.safetensors", _Linear())
    x = torch.randn(3, 4)
    torch.testing.assert_close(teacher.network(x), layer(x))


def test_unknown_teachers_are_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="there is no teacher 'nobody'"):
        load_teacher("nobody", tmp_path)
    with pytest.raises(TeacherError, match="there is no file"):
        load_teacher("nobody.zip", tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(TeacherError, match="not a readable safetensors"):
        load_teacher("bad.safetensors", tmp_path)


def test_a_teacher_must_fit_its_environment(small_policy: Policy, breakout: Environment, cartpole: Environment) -> None:
    check_fit(frozen(small_policy, 4, (4, 84, 84)), breakout, "t")
    with pytest.raises(TeacherError, match="6 outputs, breakout has 4 actions"):
        check_fit(frozen(policy_network("small", (4, 84, 84), 6), 6, (4, 84, 84)), breakout, "t")
    with pytest.raises(TeacherError, match=r"observations of shape \(4, 84, 84\), CartPole-v1 gives \(4,\)"):
        check_fit(frozen(small_policy, 2, (4, 84, 84)), cartpole, "t")


def test_merged_actions_sum_probabilities(small_policy: Policy) -> None:
    teacher = frozen(small_policy, 4, (4, 84, 84))
    together = merged(teacher, ((0, 3), (1, 2)))
    x = torch.rand(3, 4, 84, 84)
    p = teacher.network(x).softmax(1)
    torch.testing.assert_close(together.network(x).softmax(1), torch.stack([p[:, 0] + p[:, 3], p[:, 1] + p[:, 2]], 1))
    assert together.outputs == 2 and together.digest != teacher.digest


def test_the_digest_follows_weights_and_use(small_policy: Policy) -> None:
    one = frozen(policy_network("mlp", (4,), 2), 2, (4,)).digest
    assert one != frozen(policy_network("mlp", (4,), 2), 2, (4,)).digest
    assert frozen(small_policy, 4, None).digest == frozen(small_policy, 4, None).digest


@pytest.mark.parametrize("name", sorted(shipped_teachers()))
def test_shipped_teachers_fit_their_games_and_the_readme_says_what_their_cards_say(name: str, tmp_path: Path) -> None:
    teacher = load_teacher(name, tmp_path)
    card = teacher.card
    environment = find_environment(card["environment"])
    check_fit(teacher, environment, name)
    assert teacher.network(torch.rand(2, 4, 84, 84)).shape == (2, len(environment.actions))
    assert card["return_mean"] > card["random_mean"] and card["return_episodes"] == 30
    assert {"human", "random"} <= card["published"].keys() and card["weights"] == "float16"
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}` |")]
    for number in ("return_mean", "return_spread", "random_mean"):
        assert f"{card[number]:.1f}" in row
    assert f"{card['steps']:,}" in row
