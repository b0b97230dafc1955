"""Classifiers as a source for distillation: compression of networks on scikit-learn's digits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sobolev import ComponentError, Context, DataError
from sobolev.optional import need, provide_torchvision_operators
from sobolev.registry import did_you_mean
from sobolev_atari.locks import alone
from sobolev_atari.networks import Policy
from sobolev_atari.teachers import Teacher, frozen

CLASSES = 10
_SIDE = 8


@dataclass
class DigitsSource:
    """See `sobolev_atari.plugin.classifier` for the options."""

    teacher_name: str
    size: int
    teacher_steps: int
    teacher_seed: int
    teacher_count: int
    train_count: int
    validation_count: int
    scale: float = field(default=1.0, init=False)
    bounded: bool = field(default=True, init=False)

    shape: tuple[int, ...] = field(default=(), init=False)

    def prepare(self, context: Context) -> None:
        """Read the digits, split them at random but always alike, train the teacher on the training part."""
        need("sklearn", "scikit-learn", "the digits")
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        if self.size != _SIDE:
            images = nn.functional.interpolate(images, size=(self.size, self.size), mode="bilinear").clamp(0, 1)
        self._images, self._labels = images.numpy(), digits.target.astype(np.int64)
        self.shape = (1, self.size, self.size)
        order = np.random.default_rng(0).permutation(len(self._labels))
        held = self.train_count + self.validation_count
        seen = max(held, self.teacher_count)
        if seen >= len(order):
            raise DataError(f"{seen} digits train teacher or student, there are {len(order)}: none is left to test")
        self._teacher_rows = order[: self.teacher_count]
        self.rows = {
            "train": order[: self.train_count],
            "validation": order[self.train_count : held],
            "test": order[seen:],
        }
        self.teacher = self._teacher(context)

    def _teacher(self, context: Context) -> Teacher:
        network = self._network()
        told = [self.teacher_name, self.size, self.teacher_steps, self.teacher_seed, self.teacher_count]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        directory = context.cache / "teachers" / f"digits-{key}"
        with alone(directory):
            file = directory / "teacher.safetensors"
            if file.exists():
                from safetensors.torch import load_file

                network.load_state_dict(load_file(file))
            else:
                context.say(f"training a teacher for the digits: {self.teacher_name}, {self.teacher_steps} steps")
                self._train(network)
                _save(network, file)
        teacher = frozen(network, CLASSES, self.shape, {"environment": "digits"})
        rows = self.rows["test"]
        wrong = teacher.network(torch.from_numpy(self._images[rows])).argmax(1).numpy() != self._labels[rows]
        context.say(f"teacher {self.teacher_name}: {wrong.mean():.2%} of the test digits wrong")
        return teacher

    def _network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.teacher_seed)
            kind, _, name = self.teacher_name.partition("/")
            if kind == "timm" and name:
                return timm_network(name, channels=1, outputs=CLASSES, size=self.size)
            if self.teacher_name == "mlp":
                inputs = self.size**2
                hidden = (nn.Linear(inputs, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
                return Policy(nn.Flatten(), *hidden, nn.Linear(512, CLASSES))
        raise ComponentError(
            f"classifier teacher {self.teacher_name!r}: 'mlp', or 'timm/NAME' with a model such as timm/resnet10t"
        )

    def _train(self, network: nn.Module) -> None:
        """Adam with a learning rate that falls to 0, batches of 64."""
        generator = torch.Generator().manual_seed(self.teacher_seed)
        images, labels = torch.from_numpy(self._images), torch.from_numpy(self._labels)
        rows = torch.from_numpy(self._teacher_rows)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.teacher_steps)
        network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.teacher_seed)
            for _ in range(self.teacher_steps):
                batch = rows[torch.randint(len(rows), (64,), generator=generator)]
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
        network.eval()

    def states(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Images `(B, 1, size, size)` in [0, 1]."""
        return self._images[rows]

    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """None: the teacher is asked."""
        return None

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The digits."""
        labels: NDArray[np.int64] = self._labels[rows]
        return labels

    def finish(self, student: Any, context: Context) -> dict[str, float]:
        """Accuracy on all test digits, of student and teacher."""
        rows = self.rows["test"]
        images, labels = torch.from_numpy(self._images[rows]), torch.from_numpy(self._labels[rows])
        x = images.to(next(self.teacher.network.parameters()))
        with torch.no_grad():
            return {
                "accuracy": float((student(x).argmax(1).cpu() == labels).float().mean()),
                "teacher-accuracy": float((self.teacher.network(x).argmax(1).cpu() == labels).float().mean()),
            }

    def close(self) -> None:
        """Nothing is open."""


def timm_network(name: str, *, channels: int, outputs: int, size: int) -> nn.Module:
    """An untrained model of timm, with attention that can be differentiated twice."""
    need("timm", "timm", f"the network timm/{name}")
    provide_torchvision_operators()
    import timm
    from timm.layers.config import set_fused_attn

    set_fused_attn(False)  # the fused kernel has no second derivative on CPUs
    if name not in timm.list_models():
        raise ComponentError(f"timm has no model {name!r}; {did_you_mean(name, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(name, num_classes=outputs, in_chans=channels, img_size=size)
    except TypeError:  # convolutional models take any size and refuse the option
        model = timm.create_model(name, num_classes=outputs, in_chans=channels)
    return model


def _save(network: nn.Module, file: Path) -> None:
    from safetensors.torch import save_file

    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, partial)
    partial.replace(file)
