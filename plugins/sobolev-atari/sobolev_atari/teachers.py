"""Teachers: a frozen network from states to logits, wherever its weights come from.

Nothing here executes what a file contains: weights are read from safetensors, or from the `policy.pth` of a
Stable-Baselines3 zip with torch's restricted loader; architectures come from our own names or from the shapes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sobolev import Site, SobolevError, Student
from sobolev.registry import did_you_mean
from sobolev_atari.environments import SIDE, Environment
from sobolev_atari.networks import Policy, policy_network, trunk
from sobolev_atari.settings import Architecture

SHIPPED = Path(__file__).parent / "teachers"
_MOST_BYTES = 2**30  # of one member of a zip


class TeacherError(SobolevError):
    """A teacher that cannot be read, or that does not fit its environment."""


@dataclass(frozen=True)
class Teacher:
    """A frozen policy.

    Attributes:
        network: x `(B, *shape)`, observations divided by the environment's scale, to logits `(B, outputs)`; evaluation
            mode, no parameter requires a gradient.
        outputs: number of actions.
        shape: of one observation, where the weights tell it.
        card: what is known of it; `environment` names what it plays.
        digest: hash of the weights and of how they are used; part of the key of every cache.
    """

    network: nn.Module
    outputs: int
    shape: tuple[int, ...] | None
    card: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


def load_teacher(name: str, directory: Path, student: Student | None = None) -> Teacher:
    """Read a teacher by the name of a shipped one, or from a file (`.safetensors`, or a Stable-Baselines3 `.zip`).

    Args:
        name: what to read.
        directory: where relative paths start.
        student: the network of a safetensors file that has no card of ours beside it.

    Raises:
        TeacherError: unknown name (with the nearest), unreadable file, weights of another architecture.
    """
    if not name.endswith((".zip", ".safetensors")):
        shipped = shipped_teachers()
        if name not in shipped:
            raise TeacherError(
                f"there is no teacher {name!r}; {did_you_mean(name, shipped)} "
                "Or give a .safetensors file, a Stable-Baselines3 .zip, or the settings to train one"
            )
        return read_safetensors(shipped[name], student)
    path = directory / name
    if not path.is_file():
        raise TeacherError(f"there is no file {path}")
    return read_zip(path) if path.suffix == ".zip" else read_safetensors(path, student)


def shipped_teachers() -> dict[str, Path]:
    """The teachers that come with the plugin, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def check_fit(teacher: Teacher, environment: Environment, origin: str) -> None:
    """Raise `TeacherError` where the teacher's outputs or observations are not those of the environment."""
    if teacher.outputs != len(environment.actions):
        raise TeacherError(
            f"teacher {origin} has {teacher.outputs} outputs, {environment.name} has "
            f"{len(environment.actions)} actions "
            f"({', '.join(environment.actions)}): it was trained on something else"
        )
    if teacher.shape is not None and teacher.shape != environment.shape:
        raise TeacherError(
            f"teacher {origin} reads observations of shape {teacher.shape}, "
            f"{environment.name} gives {environment.shape}"
        )


def frozen(
    network: nn.Module, outputs: int, shape: tuple[int, ...] | None, card: dict[str, Any] | None = None
) -> Teacher:
    """Make a teacher of a network: float32, evaluation mode, parameters that require no gradient."""
    network = network.float().eval().requires_grad_(False)
    return Teacher(network, outputs, shape, card or {}, _digest(network))


def merged(teacher: Teacher, groups: tuple[tuple[int, ...], ...]) -> Teacher:
    """The same policy over groups of actions: probabilities of a group's members are summed."""
    network = _Merged(teacher.network, groups)
    digest = hashlib.sha256(f"{teacher.digest} merged {groups}".encode()).hexdigest()
    return replace(teacher, network=network.eval(), outputs=len(groups), digest=digest)


class _Merged(nn.Module):
    def __init__(self, network: nn.Module, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.network, self.groups = network, [list(group) for group in groups]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return torch.stack([logits[:, group].logsumexp(1) for group in self.groups], 1)


def write_teacher(policy: Policy, path: Path, card: dict[str, Any], *, half: bool) -> None:
    """Write weights to `path` (.safetensors) and the card beside it (.json); `half` stores float16."""
    weights = {
        k: v.detach().to(torch.float16 if half else torch.float32).contiguous() for k, v in policy.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def read_safetensors(path: Path, student: Student | None = None) -> Teacher:
    """Read our own teacher (weights and card), or the weights of any registered student.

    The names of a run's `student.safetensors` may begin with its site's name.
    """
    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"{path} is not a readable safetensors file: {error}") from error
    card_path = path.with_suffix(".json")
    card: dict[str, Any] = {}
    if card_path.is_file():
        try:
            card = json.loads(card_path.read_text())
        except ValueError as error:
            raise TeacherError(f"{card_path} is not readable: {error}") from error
    if student is None and not {"architecture", "shape", "outputs"} <= set(card):
        raise TeacherError(
            f"{path}: no card {card_path.name} beside it that says 'architecture', 'shape' and 'outputs'; "
            "name its network by the option 'network'"
        )
    names = {name.split(".", 1)[0] for name in weights}
    if len(names) == 1 and not next(iter(names)).isdigit():
        weights = {name.split(".", 1)[1]: tensor for name, tensor in weights.items()}
    if student is None:
        shape, outputs = tuple(card["shape"]), int(card["outputs"])
        network: nn.Module = policy_network(card["architecture"], shape, outputs)
    else:
        shape, outputs = _sizes(card, path)
        network = student.build(Site({"x": shape}, outputs, ("x",)))
    _load_weights(network, weights, path)
    return frozen(network, outputs, shape, card)


def _sizes(card: dict[str, Any], path: Path) -> tuple[tuple[int, ...], int]:
    try:
        return tuple(card["shape"]), int(card["outputs"])
    except KeyError as error:
        raise TeacherError(f"{path}: its card must say 'shape' and 'outputs' (JSON, beside it)") from error


def _load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted == given:
        network.load_state_dict(weights)
        return
    differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    first = differing[0]
    raise TeacherError(
        f"{path} holds weights of another architecture: {len(differing)} tensors differ, first {first!r}: "
        f"in the file {given.get(first, 'absent')}, in the network {wanted.get(first, 'absent')}"
    )


def read_zip(path: Path) -> Teacher:
    """Read the actor of an A2C or PPO zip of Stable-Baselines3, from its tensors alone.

    Understands `CnnPolicy` (NatureCNN, the paper's agent), `MlpPolicy` (tanh, or the activation that the zip's
    readable text names), and policies trained by this plugin.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("policy.pth")
            if member.file_size > _MOST_BYTES:
                raise TeacherError(f"{path}: policy.pth claims {member.file_size} bytes; the limit is {_MOST_BYTES}")
            content = archive.read(member)
            text = archive.read("data").decode("utf-8", "replace") if "data" in archive.namelist() else ""
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except KeyError as error:
        raise TeacherError(f"{path} is no Stable-Baselines3 model: it has no policy.pth") from error
    except TeacherError:
        raise
    except Exception as error:  # torch raises many kinds; whatever it is, the file is not to be trusted
        raise TeacherError(
            f"{path} cannot be read safely ({type(error).__name__}): {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(tensors, dict) or "action_net.weight" not in tensors:
        kind = "a value-based agent (DQN)" if any("q_net" in str(k) for k in tensors) else "not an actor-critic"
        raise TeacherError(f"{path}: its policy is {kind}; a policy to distil comes from A2C or PPO")
    return _actor(tensors, text, path)


def _actor(tensors: dict[str, Tensor], text: str, path: Path) -> Teacher:
    body = {
        k.removeprefix("features_extractor."): v.float()
        for k, v in tensors.items()
        if k.startswith("features_extractor.")
    }
    head = {"weight": tensors["action_net.weight"].float(), "bias": tensors["action_net.bias"].float()}
    outputs = int(head["bias"].shape[0])
    if not body:
        body = {
            k.removeprefix("mlp_extractor.policy_net."): v.float()
            for k, v in tensors.items()
            if k.startswith("mlp_extractor.policy_net.")
        }
        network, shape = _mlp(body, nn.ReLU if "ReLU" in text else nn.Tanh, path)
    elif any(k.startswith("mlp_extractor.policy_net.") for k in tensors):
        raise TeacherError(f"{path}: its policy has layers after the features extractor; that is not known here")
    else:
        body = {k.removeprefix("cnn.").removeprefix("layers."): v for k, v in body.items()}
        if "linear.0.weight" in body:  # NatureCNN: three convolutions, flatten, then a linear layer of its own
            body = {**{k: v for k, v in body.items() if not k.startswith("linear")}, **{
                "7.weight": body["linear.0.weight"], "7.bias": body["linear.0.bias"]}}  # fmt: skip
        network, shape = _known(body, path)
    state = {k: v for k, v in body.items()} | {f"{len(network)}.{k}": v for k, v in head.items()}
    policy = Policy(*network, nn.Linear(head["weight"].shape[1], outputs))
    _load_weights(policy, state, path)
    return frozen(policy, outputs, shape, {"origin": path.name})


def _mlp(
    body: dict[str, Tensor], activation: type[nn.Module], path: Path
) -> tuple[list[nn.Module], tuple[int, ...] | None]:
    if not body:
        raise TeacherError(f"{path}: no network between observations and actions was found")
    layers: list[nn.Module] = []
    sizes = [tuple(body[f"{i}.weight"].shape) for i in range(0, len(body), 2)]
    for width, inputs in sizes:
        layers += [nn.Linear(inputs, width), activation()]
    return layers, (sizes[0][1],)


def _known(body: dict[str, Tensor], path: Path) -> tuple[list[nn.Module], tuple[int, ...] | None]:
    """Match the shapes with one of our architectures, on 84x84 frames or vectors."""
    shapes = {k: tuple(v.shape) for k, v in body.items()}
    candidates: list[tuple[Architecture, tuple[int, ...]]] = []
    first = next(iter(shapes.values()))
    if len(first) == 4:
        candidates = [("paper", (first[1], SIDE, SIDE)), ("small", (first[1], SIDE, SIDE))]
    elif len(first) == 2:
        candidates = [("mlp", (first[1],))]
    for architecture, shape in candidates:
        layers, _ = trunk(architecture, shape)
        if shapes == {k: tuple(v.shape) for k, v in layers.state_dict().items()}:
            return list(layers), shape
    found = ", ".join(f"{k} {s}" for k, s in shapes.items() if k.endswith("weight"))
    raise TeacherError(
        f"{path}: its network is none that is known here (NatureCNN, supplement 3's two, two tanh layers): {found}"
    )


def _digest(network: nn.Module) -> str:
    hashed = hashlib.sha256(type(network).__name__.encode())
    hashed.update(str(network).encode())
    for name, tensor in sorted(network.state_dict().items()):
        hashed.update(f"{name} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()
