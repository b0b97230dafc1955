"""Which layer it is that cannot be differentiated, or not twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def first_cut(module: nn.Module, names: Sequence[str], inputs: Mapping[str, Tensor], differentiated: str) -> str | None:
    """Return the innermost layer whose output no longer depends on an input through autograd, or None.

    Args:
        module: called with the inputs in the order of ``names``.
        names: of its arguments.
        inputs: tensors by name.
        differentiated: the input that is followed.
    """
    ends: list[str] = []

    def after(name: str, layer: nn.Module, given: Any, output: Any) -> None:
        if not ends and _follows(given) and not _follows(output):
            ends.append(f"{name or 'the module itself'} ({type(layer).__name__})")

    with _frozen(module), _hooked(module, after):
        leaf = inputs[differentiated].detach().clone().requires_grad_()
        with torch.enable_grad():
            output = module(*(leaf.clone() if name == differentiated else inputs[name].detach() for name in names))
    if _follows(output):
        return None
    return ends[0] if ends else type(module).__name__


def without_double_backward(module: nn.Module, compute: Callable[[], Any]) -> list[str]:
    """Return the layers without children whose gradient cannot be differentiated, each tried on what it receives.

    Args:
        module: holds the layers.
        compute: calls the module.
    """
    received: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}

    def after(name: str, layer: nn.Module, given: Any, output: Any) -> None:
        if not list(layer.children()):
            received.setdefault(name, (layer, given))

    with _hooked(module, after):
        compute()
    return [
        f"{name or 'the module itself'} ({type(layer).__name__})"
        for name, (layer, given) in received.items()
        if not _twice(layer, given)
    ]


def _twice(layer: nn.Module, given: tuple[Any, ...]) -> bool:
    given = tuple(
        g.detach().clone().requires_grad_() if isinstance(g, Tensor) and g.is_floating_point() else g for g in given
    )
    leaves = [g for g in given if isinstance(g, Tensor) and g.requires_grad]
    kept = [(p, p.grad) for p in layer.parameters()]
    try:
        with torch.enable_grad():
            output = layer(*(g.clone() if isinstance(g, Tensor) else g for g in given))
            gradients = torch.autograd.grad(output.square().sum(), leaves, create_graph=True, materialize_grads=True)
            total = sum((g.square().sum() for g in gradients), output.new_zeros(()))
            total.backward()  # unlike grad(), it meets operations that refuse on every path
    except (RuntimeError, NotImplementedError):
        return False
    finally:
        for p, gradient in kept:
            p.grad = gradient
    return True


def _follows(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, list | tuple):
        return any(_follows(part) for part in value)
    return False


@contextmanager
def _hooked(module: nn.Module, after: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    handles = [
        layer.register_forward_hook(lambda layer, given, output, name=name: after(name, layer, given, output))
        for name, layer in module.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters need no gradient, buffers and random streams are put back: as if the module had not been called."""
    trained = [p for p in module.parameters() if p.requires_grad]
    buffers = [(b, b.clone()) for b in module.buffers()]
    devices = sorted({p.device.index for p in trained if p.is_cuda})
    try:
        for p in trained:
            p.requires_grad_(False)
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for p in trained:
            p.requires_grad_()
        for buffer, before in buffers:
            buffer.data.copy_(before)
