"""Frozen networks from files. Nothing is downloaded, and safetensors files are never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sobolev.components import Student
from sobolev.errors import ComponentError, DataError
from sobolev.optional import provide_torchvision_operators
from sobolev.statistics import neutral
from sobolev.vocabulary import Site


def from_student(network: Student, weights: Path, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a registered network with the weights of a file, such as a run's ``student.safetensors``.

    Raises:
        DataError: no such file, or no safetensors.
        ComponentError: weights of another network.
    """
    site = Site({"x": shape}, outputs, ("x",))
    if "statistics" in network.needs:  # its scaling is among the weights
        site = Site(
            {"x": shape}, outputs, ("x",), statistics=neutral({"teacher": site}, {"teacher": outputs})["teacher"]
        )
    module = network.build(site)
    _fill(module, weights)
    return module


class Program(nn.Module):
    """An exported program as a function of one tensor to one tensor.

    Args:
        module: returns a tensor, or a tuple of one.
        precision: of its inputs, where it has to stay in its own; None where it computes in that of the run.
    """

    def __init__(self, module: nn.Module, precision: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.precision = precision

    def forward(self, x: Tensor) -> Any:
        """Return what the program returns; anything but one tensor as it is."""
        z = self.module(x if self.precision is None else x.to(self.precision))
        if isinstance(z, tuple | list) and len(z) == 1:
            (z,) = z
        return z.to(x.dtype) if self.precision is not None and isinstance(z, Tensor) else z


def from_program(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    """Return the module of a ``torch.export`` program.

    Args:
        file: ``.pt2``.
        shape: of an input; batches of two lengths are tried.
        dtype: of the run. The program is converted to it like any teacher, unless it is written for its own alone.

    Raises:
        DataError: no such file, or no program.
        ComponentError: a program that takes one size of batch alone, or something other than one tensor of real
            numbers.
    """
    _there(file)
    try:
        program = torch.export.load(file)
        module = program.module()
    except Exception as error:
        raise DataError(f"{file}: not a torch.export program: {_first(error)}") from None
    own = _precision(file, program)
    batch = torch.zeros(3, *shape, dtype=own)
    problems = []
    for rows in (3, 2):
        try:
            with torch.no_grad():
                module(batch[:rows])
        except Exception as error:
            problems.append(_first(error))
    if problems:
        raise ComponentError(
            f"{file}: the program does not take batches of 3 and of 2 inputs of shape {shape}: "
            f"{problems[0]}. Export it with a batch of any size: torch.export.export(net, (x,), "
            "dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )
    if own == dtype:
        return Program(module, None)
    converted = Program(torch.export.load(file).module().to(dtype), None)
    try:
        with torch.no_grad():
            z = converted(batch.to(dtype))
        fits = not isinstance(z, Tensor) or z.dtype == dtype
    except Exception:  # types that are written into the program itself stay what they are
        fits = False
    return converted if fits else Program(module, own)


def _precision(file: Path, program: torch.export.ExportedProgram) -> torch.dtype:
    """Return the type of a program's only input."""
    names = program.graph_signature.user_inputs
    given = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise ComponentError(f"{file}: the program takes {len(given)} inputs, expected one tensor (B, *shape)")
    if not given[0].dtype.is_floating_point:
        raise ComponentError(
            f"{file}: the program takes inputs of {given[0].dtype}, expected real numbers: a teacher is differentiated "
            "by its input. Export it with an input of torch.float32 or torch.float64"
        )
    return given[0].dtype


def from_timm(name: str, weights: Path, outputs: int | None) -> nn.Module:
    """Return a network of timm with the weights of a file.

    Raises:
        ComponentError: timm is not installed, has no such network, or the weights are of another one.
        DataError: no such file, or no safetensors.
    """
    provide_torchvision_operators()
    try:
        import timm
        from timm.layers.config import set_fused_attn
    except (ImportError, RuntimeError) as error:
        raise ComponentError(
            f"module: timm cannot be imported ({_first(error)}); pip install 'sobolev[vision]', with a torchvision "
            "that belongs to this torch"
        ) from None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        raise ComponentError(f"module: timm has no network {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    set_fused_attn(False)  # fused attention has no second derivative on a CPU
    options: dict[str, Any] = {} if outputs is None else {"num_classes": outputs}
    module: nn.Module = timm.create_model(name, pretrained=False, **options)
    _fill(module, weights)
    return module


def freeze(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return the module in evaluation mode, without gradients of its parameters, on a device."""
    stays = isinstance(module, Program) and module.precision is not None
    module = module.to(device=device, dtype=None if stays else dtype)
    try:
        module.eval()
    except NotImplementedError:  # an exported program is in the mode in which it was exported
        pass
    return module.requires_grad_(False)


def digest(file: Path, *parts: object) -> str:
    """Return a hash of a file and of how it is used."""
    with file.open("rb") as stream:
        made = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
    made.update(json.dumps([str(part) for part in parts]).encode())
    return made.hexdigest()


def _there(file: Path) -> None:
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")


def _first(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _fill(module: nn.Module, file: Path) -> None:
    _there(file)
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: not a safetensors file: {_first(error)}") from None
    own = module.state_dict()
    found = _without_prefix(found, own)
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    other = [
        f"{name} {tuple(found[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & found.keys()
        if own[name].shape != found[name].shape
    ]
    if missing or extra or other:
        parts = [f"missing: {', '.join(missing[:5])}"] if missing else []
        parts += [f"not in the network: {', '.join(extra[:5])}"] if extra else []
        parts += [f"of another shape: {', '.join(sorted(other)[:5])}"] if other else []
        raise ComponentError(
            f"{file}: the weights are of another network than {type(module).__name__}; {'; '.join(parts)}"
        )
    module.load_state_dict(found)


def _without_prefix(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away the name of the site that a run's student has before every weight."""
    prefixes = {name.partition(".")[0] for name in found}
    if len(prefixes) == 1 and not found.keys() & own.keys():
        return {name.partition(".")[2]: tensor for name, tensor in found.items()}
    return dict(found)
