"""The main network, cut at named layers into parts that backward passes do not cross."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sobolev import ComponentError


@dataclass
class Pass:
    """One forward pass of a cut network.

    Attributes:
        ends: by cut, the output ``(B, *shape)`` of the part that ends there, with that part's graph.
        starts: by cut, the same numbers as a leaf, where the next part's graph begins: the activation h.
        logits: ``(B, classes)``, with the last part's graph.
    """

    ends: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class CutNetwork:
    """Runs a network in one forward pass whose graph is cut after each of some layers.

    A hook replaces the output of the named layer by a leaf with the same numbers, so any module can be cut, whatever
    its ``forward`` does, as long as everything that the later parts read passes through the layer.

    Args:
        network: takes ``(B, *shape)``, returns ``(B, classes)``. Its operations are made out of place.
        layers: names as in ``network.named_modules()``, in any order.
        shape: of one input.
        classes: number of logits.

    Attributes:
        layers: the names in the order of the forward pass.
        shapes: of one sample of h at each cut.
        parts: parameters of each part, one part more than cuts.

    Raises:
        ComponentError: a layer that does not exist (offers the nearest names), that runs more than once, that returns
            something else than one tensor, or around which the input finds a way.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], shape: tuple[int, ...], classes: int) -> None:
        self.network = network
        modules = dict(network.named_modules())
        for name in layers:
            if name not in modules or not name:
                near = difflib.get_close_matches(name, list(modules)[1:], n=3, cutoff=0.3)
                names = ", ".join(repr(n) for n in near or list(modules)[1:9])
                raise ComponentError(
                    f"target.split: the network {type(network).__name__} has no layer {name!r}; the nearest names are "
                    f"{names}"
                )
        if len(set(layers)) != len(layers) or not layers:
            raise ComponentError(f"target.split: name one or more different layers, not {list(layers)}")
        for module in modules.values():
            if getattr(module, "inplace", False):
                module.inplace = False  # a leaf must keep its numbers
        self._order: list[str] = []
        self._pass = Pass()
        for name in layers:
            modules[name].register_forward_hook(self._hook(name))
        self._learn(shape, classes, layers)

    def _hook(self, name: str) -> Any:
        def cut(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise ComponentError(
                    f"target.split: the layer {name!r} returns {type(output).__name__}, not one tensor"
                )
            self._order.append(name)
            self._pass.ends.append(output)
            self._pass.starts.append(output.detach().requires_grad_())
            return self._pass.starts[-1]

        return cut

    def __call__(self, x: Tensor, training: bool) -> Pass:
        """Run the network once, in training or evaluation mode, with graph."""
        self._order, self._pass = [], Pass()
        self.network.train(training)
        with torch.enable_grad():
            self._pass.logits = self.network(x)
        return self._pass

    def _learn(self, shape: tuple[int, ...], classes: int, layers: Sequence[str]) -> None:
        """Find order, shapes and parameters of the parts by one pass over two samples, and check the cuts."""
        parameter = next(self.network.parameters(), torch.empty(0))
        x = torch.zeros((2, *shape), dtype=parameter.dtype, device=parameter.device, requires_grad=True)
        with torch.random.fork_rng(devices=[]):
            made = self(x, training=False)
        if made.logits.shape != (2, classes):
            raise ComponentError(
                f"target.network: it returns the shape {tuple(made.logits.shape)} for two images, the data have "
                f"{classes} classes: expected (2, {classes})"
            )
        for name in layers:
            times = self._order.count(name)
            if times != 1:
                raise ComponentError(
                    f"target.split: the layer {name!r} runs {times} times in a pass; name one that runs once"
                )
        self.layers = tuple(self._order)
        self.shapes = [tuple(start.shape[1:]) for start in made.starts]
        parameters = list(self.network.parameters())
        self.parts: list[list[nn.Parameter]] = []
        before: list[Tensor] = []
        for i, end in enumerate([*made.ends, made.logits]):
            start = made.starts[i - 1] if i else x
            found = torch.autograd.grad(end.sum(), [*before, start, *parameters], retain_graph=True, allow_unused=True)
            if any(gradient is not None for gradient in found[: len(before)]):
                raise ComponentError(
                    f"target.split: the layers {', '.join(self.layers)} do not cut the network: something passes "
                    f"around {self.layers[i - 1]!r}; name a layer that everything passes through, such as a whole block"
                )
            self.parts.append([p for p, g in zip(parameters, found[len(before) + 1 :], strict=True) if g is not None])
            before.append(start)

    @property
    def statistics(self) -> list[Tensor]:
        """Buffers that a forward pass in training mode may change."""
        return list(self.network.buffers())

    def restore(self, kept: Sequence[Tensor]) -> None:
        """Set the statistics."""
        with torch.no_grad():
            for buffer, old in zip(self.statistics, kept, strict=True):
                buffer.copy_(old)
