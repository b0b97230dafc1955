"""The target `synthetic-gradients`: the loss of a network that learns from the student's derivative (paper, 4.3)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sobolev import (
    HEADS,
    Batch,
    ComponentError,
    Context,
    Jet,
    Key,
    Learner,
    Mean,
    Points,
    Probe,
    Site,
    Student,
    Target,
)
from sobolev.differentiate.contract import contract
from sobolev.noise import stream
from sobolev_synthetic_gradients.data import Images, open_images
from sobolev_synthetic_gradients.metrics import agreement, classification
from sobolev_synthetic_gradients.network import CutNetwork, Pass
from sobolev_synthetic_gradients.settings import DataSettings

Reference = Literal["loss", "gradient"]
Gradient = Literal["derivative", "output", "none", "backprop"]
_H: Key = ("h",)
_Y: Key = ("y",)


@dataclass
class _Step:
    """What one batch leaves for later: the pass, its losses ``(B, 1)``, and gradients once they are known.

    Attributes:
        gradients: by site, that of the sum of all losses by h, ``(B, *h)``: true, or bootstrapped.
        by_label: the same by y, ``(B, classes)``.
        top: gradients of the sum of all losses by the last part's parameters.
    """

    training: bool
    made: Pass
    y: Tensor
    labels: Tensor
    losses: Tensor
    started: float
    gradients: list[Tensor] = field(default_factory=list)
    by_label: Tensor | None = None
    top: Sequence[Tensor] | None = None


class SyntheticGradients(Target):
    """A classifier, cut into parts; the loss as a function of each cut's activation is imitated by one student per cut.

    The student's derivative by the activation (or its output, in the direct form) takes the place of the gradient that
    back-propagation would bring to the part below. The network runs once per step, and BatchNorm moves once.

    Values and derivatives are per sample: L_i and d(sum_j L_j)/dh_i. `advance` divides by the number of samples of the
    whole step, over all processes.
    """

    max_order = 1

    def __init__(
        self,
        data: DataSettings,
        network: Student,
        split: Sequence[str],
        *,
        reference: Reference,
        gradient: Gradient,
        supervision: Literal["backprop", "bootstrapped"],
        module: Literal["before-update", "after-update"],
        label_derivative: bool,
        optimizer: Any,
        drops: Sequence[int],
        drop_factor: float,
    ) -> None:
        self.data = data
        self.family = network
        self.split = list(split)
        self.reference = reference
        self.gradient = gradient
        self.bootstrapped = supervision == "bootstrapped"
        self.after_update = module == "after-update"
        self.label_derivative = label_derivative
        self.make_optimizer = optimizer
        self.drops = sorted(drops)
        self.drop_factor = drop_factor
        self.heads = ("log-loss",) if reference == "loss" else ("identity",)
        needs = {"gradient"} if gradient == "derivative" or (self.bootstrapped and reference == "loss") else set()
        self.needs = frozenset(needs | ({"prediction"} if self.bootstrapped else set()))
        self.differentiate: tuple[str, ...] = ()
        if reference == "loss":
            self.differentiate = ("h", "y") if label_derivative else ("h",)
        self._steps = 0
        self._taken, self._seconds = 0, 0.0
        self._pending: list[Tensor] | None = None
        wrong = {("loss", "output"), ("gradient", "derivative")}
        if (reference, gradient) in wrong:
            raise ComponentError(
                f"target: with 'reference: {reference}' the student's {gradient} is no gradient of the loss; set "
                f"'gradient: {'derivative' if reference == 'loss' else 'output'}'"
            )
        if reference == "gradient" and label_derivative:
            raise ComponentError(
                "target.label_derivative needs 'reference: loss'; a gradient has no label derivative here"
            )

    # -- what there is ---------------------------------------------------------------------------------------------

    def prepare(self, context: Context) -> None:
        """Read the images, build the network and cut it."""
        self.context = context
        self.images: Images = open_images(self.data, context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(context.seed, "main network"))
            network = self.family.build(Site({"x": self.images.shape}, self.images.classes, ()))
        network.to(device=context.device, dtype=context.dtype)
        context.world.broadcast(network)
        self.network = CutNetwork(network, self.split, self.images.shape, self.images.classes)
        names = [layer.replace(".", "-") for layer in self.network.layers]
        if len(set(names)) != len(names):
            raise ComponentError(f"target.split: {list(self.network.layers)} cannot be told apart as sites")
        self.names = names
        if self.gradient == "none":  # left out of the optimizer, or L2 would shrink them
            for part in self.network.parts[:-1]:
                for parameter in part:
                    parameter.requires_grad_(False)
        trained = self.network.parts[-1:] if self.gradient == "none" else self.network.parts
        self.parameters: list[nn.Parameter] = list(dict.fromkeys(p for part in trained for p in part))
        self.optimizer: torch.optim.Optimizer = self.make_optimizer(self.parameters)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise ComponentError("target.optimizer: lbfgs needs the loss more than once per step; use another one")
        self._rate = self.optimizer.param_groups[0]["lr"]

    def sites(self) -> Mapping[str, Site]:
        """One per cut: h and the label y, one-hot."""
        classes = self.images.classes
        return {
            name: Site(
                {"h": shape, "y": (classes,)},
                classes if self.reference == "loss" else math.prod(shape),
                self.differentiate,
            )
            for name, shape in zip(self.names, self.network.shapes, strict=True)
        }

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return self.images.size(split)

    def load(self, split: str, ids: Tensor) -> Any:
        """Read images and labels."""
        return self.images.load(split, ids)

    # -- one step --------------------------------------------------------------------------------------------------

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Run the network once; its activations are where the students are measured."""
        started = time.monotonic()
        images, labels = batch.data if batch.data is not None else self.load(batch.split, batch.ids)
        x = images.to(self.context.device, self.context.dtype)
        labels = labels.to(self.context.device)
        y = nn.functional.one_hot(labels, self.images.classes).to(self.context.dtype)
        if training:
            # A batch that was only looked at (before the first step) must not move BatchNorm's statistics.
            if self._pending is not None:
                self.network.restore(self._pending)
            self._pending = [buffer.clone() for buffer in self.network.statistics]
        made = self.network(x, training and len(x) > 0)
        with torch.enable_grad():
            y_leaf = y.detach().requires_grad_(self.label_derivative)
            losses = HEADS["log-loss"](made.logits, {"y": y_leaf})
        step = _Step(training, made, y_leaf, labels, losses, started)
        index = batch.ids.to(self.context.device)
        return {
            name: Points({"h": start.detach(), "y": y}, self.differentiate, index, context=step)
            for name, start in zip(self.names, made.starts, strict=True)
        }

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """The loss of each sample and its derivatives, or the gradient as a value; true, or bootstrapped."""
        step: _Step = points[self.names[0]].context
        if self.reference == "gradient" or any(probe.keys for probe in probes.values()):
            self._supervise(step, prediction)
        losses = step.losses.detach()
        jets = {}
        for i, name in enumerate(self.names):
            if self.reference == "gradient":
                jets[name] = Jet(step.gradients[i].flatten(1))
                continue
            full = {_H: step.gradients[i], _Y: step.by_label} if step.gradients else {}
            derivatives = {
                key: contract(full[key][:, None], asked)[0]  # type: ignore[index]
                for key, asked in probes[name].contractions.items()
            }
            value = losses
            if self.bootstrapped and step.training and i + 1 < len(self.names):
                assert prediction is not None
                value = prediction[self.names[i + 1]].value
            jets[name] = Jet(value, derivatives)
        return jets

    def _supervise(self, step: _Step, prediction: Mapping[str, Jet] | None) -> None:
        """Find the gradient by every h, from the last part down; once per batch."""
        if step.gradients:
            return
        made, count = step.made, len(self.names)
        found: list[Tensor] = [torch.empty(0)] * count
        parameters = self.network.parts[-1] if step.training else []
        by = [made.starts[-1], *([step.y] if self.label_derivative else [])]
        gradients = torch.autograd.grad(step.losses.sum(), [*by, *parameters], retain_graph=True)
        found[-1] = gradients[0]
        if self.label_derivative:
            step.by_label = gradients[1]
        step.top = gradients[len(by) :] if step.training else None
        for i in range(count - 1, 0, -1):
            arriving = found[i]
            if self.bootstrapped and step.training:
                assert prediction is not None
                arriving = self._synthetic(i, prediction, made.ends[i])
            (found[i - 1],) = torch.autograd.grad(made.ends[i], made.starts[i - 1], arriving, retain_graph=True)
        step.gradients = found

    def _synthetic(self, i: int, prediction: Mapping[str, Jet], like: Tensor) -> Tensor:
        """Return the student's gradient at a cut, in the shape of h."""
        jet = prediction[self.names[i]]
        gradient = jet.value if self.reference == "gradient" else jet.derivatives[_H]
        if gradient.numel() != like.numel():
            raise ComponentError(
                "target.supervision: bootstrapped needs the whole derivative of the student; set 'estimator: exact'"
            )
        return gradient.detach().reshape(like.shape)

    # -- learning --------------------------------------------------------------------------------------------------

    def advance(
        self,
        points: Mapping[str, Points],
        reference: Mapping[str, Jet],
        prediction: Mapping[str, Jet],
        learner: Learner,
    ) -> Mapping[str, Mean]:
        """Update the network: the last part by its loss, the others by what the students say."""
        step: _Step = points[self.names[0]].context
        world = self.context.world
        if self.after_update and self.gradient in ("derivative", "output"):
            prediction = learner.measure(points)
        for parameter in self.parameters:
            parameter.grad = None
        samples = world.sum(torch.tensor(float(len(step.labels)), device=self.context.device))
        self._backward(step, prediction, 1.0 / float(samples))
        world.sum_gradients(self.parameters)
        self.optimizer.param_groups[0]["lr"] = rate = self._rate * self.drop_factor ** sum(
            self._steps >= drop for drop in self.drops
        )
        self.optimizer.step()
        self._pending = None
        self._average_statistics()
        self._steps += 1
        self._taken += 1
        self._seconds += time.monotonic() - step.started
        return {"main-lr": Mean(torch.tensor(rate), torch.tensor(1.0))}

    def _backward(self, step: _Step, prediction: Mapping[str, Jet], share: float) -> None:
        """Leave in every parameter the gradient of the mean loss, true or synthetic."""
        made, parts = step.made, self.network.parts
        known = step.gradients if not self.bootstrapped else []
        if self.gradient == "backprop" and not known:
            self._backpropagate(step, share)
            return
        ends: list[Tensor] = []
        arriving: list[Tensor] = []
        if step.top is not None:
            for parameter, gradient in zip(parts[-1], step.top, strict=True):
                parameter.grad = gradient * share
        else:
            ends.append(step.losses)
            arriving.append(torch.full_like(step.losses, share))
        if self.gradient != "none":
            for i, end in enumerate(made.ends):
                if end.requires_grad:
                    gradient = known[i] if self.gradient == "backprop" else self._synthetic(i, prediction, end)
                    ends.append(end)
                    arriving.append(gradient * share)
        if ends:
            torch.autograd.backward(ends, arriving, inputs=self.parameters)

    def _backpropagate(self, step: _Step, share: float) -> None:
        """Ordinary back-propagation, part by part."""
        made = step.made
        end, arriving = step.losses, torch.full_like(step.losses, share)
        for i in range(len(self.names), -1, -1):
            part = self.network.parts[i]
            starts = [made.starts[i - 1]] if i else []
            gradients = torch.autograd.grad(end, [*part, *starts], arriving)
            for parameter, gradient in zip(part, gradients, strict=False):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            if i:
                end, arriving = made.ends[i - 1], gradients[-1]

    def _average_statistics(self) -> None:
        """Let all processes evaluate one network: means over processes of what BatchNorm remembers."""
        world = self.context.world
        buffers = [buffer for buffer in self.network.statistics if buffer.is_floating_point()]
        if world.size == 1 or not buffers:
            return
        flat = world.sum(torch.cat([buffer.flatten() for buffer in buffers])) / world.size
        with torch.no_grad():
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    # -- numbers ---------------------------------------------------------------------------------------------------

    def metrics(
        self, points: Mapping[str, Points], reference: Mapping[str, Jet], prediction: Mapping[str, Jet]
    ) -> Mapping[str, Mean]:
        """Accuracy and loss of the network; per module the error of its loss and the agreement of its gradient."""
        step: _Step = points[self.names[0]].context
        found = classification(step.made.logits, step.labels, step.losses.detach())
        for name in self.names:
            predicted, true = prediction[name], reference[name]
            pair = (predicted.value, true.value)
            if self.reference == "loss":
                found[f"{name}/loss-error"] = Mean.of((predicted.value - true.value).abs().flatten())
                if _H not in true or _H not in predicted or true[_H].numel() != points[name].inputs["h"].numel():
                    continue
                pair = (predicted[_H], true[_H])
            found |= {f"{name}/{key}": mean for key, mean in agreement(*pair).items()}
        return found

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Keep the trained network, and say how fast steps were."""
        if self.context.output is not None and self.context.world.first:
            from safetensors.torch import save_file

            file = self.context.output / "network.safetensors"
            partial = file.with_suffix(".partial")
            save_file({k: v.contiguous() for k, v in self.network.network.state_dict().items()}, partial)
            partial.replace(file)
        return {"steps-per-second": self._taken / self._seconds} if self._taken else {}

    # -- interruption ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return network, optimizer and number of steps."""
        return {
            "network": dict(self.network.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.network.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._steps = state["steps"]

    def close(self) -> None:
        """Release the images."""
        self.images.close()
