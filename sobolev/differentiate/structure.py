"""What a recognition or a trace of a module takes for constant, so that a change of it is noticed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_EVERYWHERE = [
    getattr(torch_module, f"_global_{kind}hooks")
    for kind in ("forward_", "forward_pre_", "backward_", "backward_pre_")
    if hasattr(torch_module, f"_global_{kind}hooks")
]
_TENSORS = ("_parameters", "_buffers")
_CONTAINERS = (dict, OrderedDict, list, set)


class Structure:
    """Layers, their types, modes, attributes and hooks (those of all modules, too), and their parameters and buffers.

    Tensors are left out: recognised layers may have others at any time. Seen are attributes that are replaced, and
    containers that are changed in place; not what lies deeper in an object.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = list(module.modules())
        self._everywhere = hooks_everywhere()
        self._layers = [(layer, type(layer), tuple(layer._modules), _attributes(layer)) for layer in layers]
        held = [getattr(layer, kind) for layer in layers for kind in _TENSORS]
        self._counts = [(tensors, len(tensors)) for tensors in held]
        self._absent = [(tensors, name, tensor is None) for tensors in held for name, tensor in tensors.items()]

    def current(self, modes: bool = True) -> bool:
        """Return whether nothing of it has changed; without ``modes`` layers may have switched to another mode."""
        if hooks_everywhere() != self._everywhere:
            return False
        try:
            # Every layer's children are among its attributes: where all are as before, so is the list of layers.
            for layer, kind, children, attributes in self._layers:
                now = vars(layer)
                if now != attributes and (modes or {**now, "training": attributes["training"]} != attributes):
                    return False
                if type(layer) is not kind or tuple(layer._modules) != children:
                    return False
            for tensors, count in self._counts:
                if len(tensors) != count:
                    return False
            for tensors, name, absent in self._absent:
                if (tensors[name] is None) is not absent:
                    return False
        except Exception:  # a name is gone, or a tensor is an attribute and was replaced: such have no single answer
            return False
        return True


def hooks_everywhere() -> list[int]:
    """Return the numbers of the hooks on all modules (``register_module_forward_hook`` and its like)."""
    return [number for hooks in _EVERYWHERE for number in hooks]


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """Return a layer's attributes; containers are copied, so that they differ once they are changed in place."""
    return {
        name: copy.copy(value) if type(value) in _CONTAINERS and name not in _TENSORS else value
        for name, value in vars(layer).items()
    }
