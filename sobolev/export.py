"""Trained students as graphs that run without this package: values and partials in one, in the user's units.

Exporters do not differentiate, so the Jacobian is written out: layer by layer backwards through a recognised network,
from plain matrix products and element-wise functions. What is written is compared with the student before it is kept.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sobolev.build import Experiment
from sobolev.devices import without_default
from sobolev.differentiate import operations as ops
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.differentiate.program import Program, Unrecognised, recognise
from sobolev.elementary import ELEMENTARY, silu_slope
from sobolev.errors import ComponentError
from sobolev.heads import Head
from sobolev.loading import load
from sobolev.sampler import some
from sobolev.vocabulary import Batch, Jet, Points, Probe, Site

FORMATS = ("torch", "onnx")
_COMPARED = 64  # samples at which a graph is compared with the student
TOLERANCE = 1e-5
HEADS = ("identity", "log-softmax")
_KNOWN = (ops.Linear, ops.Scale, ops.Elementwise, ops.Flatten, ops.Identity)


class WrittenOut(nn.Module):
    """A recognised network with its Jacobian: ``(B, *x)`` -> value ``(B, m)``, partials ``(B, m, *x)``.

    Raises:
        ComponentError: a layer whose derivative is not written out here, another head than `HEADS`.
    """

    def __init__(self, module: nn.Module, head: Head) -> None:
        super().__init__()
        self.head = _checked(head).name
        try:
            self._program: Program = recognise(module.eval())
        except Unrecognised as reason:
            raise ComponentError(
                f"the student's partials cannot be written out: {reason}; give --values-only"
            ) from None
        for node in self._program.nodes:
            if node.operation is not None and not isinstance(node.operation, _KNOWN):
                raise ComponentError(
                    f"the student's partials cannot be written out: {type(node.operation).__name__} is not among "
                    "fully connected layers, scaling, activations and sums of branches; give --values-only"
                )
        for i, tensor in enumerate(self._program.tensors):
            self.register_buffer(f"tensor{i}", tensor.detach().clone())

    def _own(self, operation: ops.Operation) -> list[Tensor]:
        return [getattr(self, f"tensor{i}") for i in operation.tensors]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and partials."""
        nodes = self._program.nodes
        present = [x]
        for node in nodes:
            read = [present[i] for i in node.sources]
            if node.operation is None:
                present.append(read[0] + read[1])
            else:
                present.append(node.operation.value(read[0], self._own(node.operation))[0])
        value, adjoint = self._headed(present[-1])
        found: list[Tensor | None] = [None] * len(present)
        found[-1] = adjoint
        for number in range(len(nodes) - 1, -1, -1):
            node, here = nodes[number], found[number + 1]
            assert here is not None
            before = present[node.sources[0]]
            pulled = here if node.operation is None else self._pull(node.operation, here, before, present[number + 1])
            for source in node.sources:
                already = found[source]
                found[source] = pulled if already is None else already + pulled
        partials = found[0]
        assert partials is not None
        return value, partials

    def _headed(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value and its derivative by z, ``(B, m, n)``."""
        unit = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).unsqueeze(0)
        if self.head == "identity":
            return z, unit + 0 * z.unsqueeze(2)
        return torch.log_softmax(z, dim=1), unit - torch.softmax(z, dim=1).unsqueeze(1)

    def _pull(self, operation: ops.Operation, adjoint: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return the adjoint ``(B, m, ...)`` at an operation's input."""
        if isinstance(operation, ops.Elementwise):
            # (B, 1, ...): one slope for the rows of all outputs.
            one, activation = torch.ones_like(after), operation.activation
            # torch.export keeps silu's own backward whole whatever decomposition it is given, and ONNX has none.
            silu = activation.value is nn.functional.silu
            slope = silu_slope(one, before) if silu else activation.slope(one, before, after)
            return adjoint * slope.unsqueeze(1)
        if isinstance(operation, ops.Flatten):
            unflattened: Tensor = adjoint.unflatten(2, before.shape[1:])
            return unflattened
        pulled: Tensor = operation.pull(adjoint, None, self._own(operation))
        return pulled


class Plain(nn.Module):
    """The value alone: ``(B, *x)`` -> ``(B, m)``."""

    def __init__(self, module: nn.Module, head: Head) -> None:
        super().__init__()
        self.module = module.eval()
        self.head = _checked(head).name

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the value."""
        z = self.module(x)
        return (z if self.head == "identity" else torch.log_softmax(z, dim=1),)


class Together(nn.Module):
    """The mean over the members of an ensemble, and the spread of their values ``(B, m)``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return value, partials where members give them, spread."""
        found = [member(x) for member in self.members]
        stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
        centred = stacked[0] - stacked[0].mean(0)
        return (*(s.mean(0) for s in stacked), centred.square().mean(0).sqrt())


def _checked(head: Head) -> Head:
    if head.name not in HEADS:
        raise ComponentError(
            f"the head {head.name!r} cannot be exported: it reads {', '.join(head.inputs) or 'more'} besides the "
            f"student's output; exported are {' and '.join(HEADS)}"
        )
    return head


@without_default
def export_modules(
    modules: Sequence[nn.Module],
    head: Head,
    site: Site,
    samples: Tensor,
    directory: Path,
    formats: Sequence[str] = FORMATS,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    partials: bool = True,
) -> list[Path]:
    """Write one student, or the members of an ensemble, as graphs; returns the files.

    The graphs take ``x`` ``(B, *x)`` for any B and return ``value`` ``(B, m)``, ``partials`` ``(B, m, *x)`` and, of an
    ensemble, ``spread`` ``(B, m)``. Beside them ``student.json`` names inputs and outputs and says how far each graph
    was from the student.

    Args:
        modules: students of one site.
        head: of the values.
        site: with one input.
        samples: ``(B, *x)``, B of at least 2: points where graph and student are compared.
        directory: made if it is not there.
        formats: of `FORMATS`.
        inputs: names of the components of ``x``, for ``student.json``.
        outputs: names of the components of the value.
        partials: whether partials are wanted; without them any student that torch can export will do.

    Raises:
        ComponentError: a student that cannot be exported, or a graph that is further than `TOLERANCE` from it.
    """
    if isinstance(formats, str) or not set(formats) <= set(FORMATS):
        raise ComponentError(f"formats={formats!r}: expected a list of {' and '.join(map(repr, FORMATS))}")
    if len(site.inputs) != 1:
        raise ComponentError(f"the student reads {sorted(site.inputs)}; students of one input are exported")
    made: list[nn.Module] = [WrittenOut(m, head) if partials else Plain(m, head) for m in modules]
    graph = (made[0] if len(made) == 1 else Together(made)).eval()
    names = ["value", *(["partials"] if partials else []), *(["spread"] if len(made) > 1 else [])]
    expected = _expected(modules, head, site, samples, partials)
    scales = _scales(names, samples, expected)
    directory.mkdir(parents=True, exist_ok=True)
    files, errors = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about versions of operators and of themselves
        for kind in formats:
            file, run = (_torch if kind == "torch" else _onnx)(graph, samples, directory, names)
            files.append(file)
            errors[file.name] = _compare(file, names, run(samples), expected, scales)
            _compare(file, names, run(samples[:1]), [part[:1] for part in expected], scales)  # any B was promised
    described = {
        "input": {"name": "x", "shape": ["B", *samples.shape[1:]], "dtype": str(samples.dtype).removeprefix("torch.")},
        "outputs": names,
        "components": {"x": list(inputs), "value": list(outputs)},
        "members": len(made),
        "relative_error": errors,
    }
    described_in = directory / "student.json"
    described_in.write_text(json.dumps(described, indent=1) + "\n")
    return [*files, described_in]


def _expected(modules: Sequence[nn.Module], head: Head, site: Site, samples: Tensor, partials: bool) -> list[Tensor]:
    """Return what the students themselves give, in the order of the graph's outputs."""
    (name,) = site.inputs
    points = Points({name: samples}, (name,), torch.arange(len(samples)))
    probe = Probe.full(((name,),) if partials else ())
    policy = Policy(steps=0, compile="never")
    jets: list[Jet] = [Measurer(m, head, site, policy).measure(points, probe, create_graph=False) for m in modules]
    values = torch.stack([jet.value for jet in jets])
    found = [values.mean(0)]
    if partials:
        found.append(torch.stack([jet.derivatives[(name,)] for jet in jets]).mean(0))
    if len(jets) > 1:
        found.append(values.std(0, correction=0))
    return found


Run = Callable[[Tensor], list[Tensor]]


def _traced(graph: nn.Module, samples: Tensor) -> Any:
    try:
        with torch.no_grad():
            return torch.export.export(
                graph, (samples,), dynamic_shapes={"x": {0: torch.export.Dim("B", min=1)}}, strict=False
            )
    except Exception as error:  # whatever a student's forward does that export refuses
        first = str(error).partition("\n")[0]
        raise ComponentError(f"torch.export cannot take the student: {type(error).__name__}: {first}") from error


def _torch(graph: nn.Module, samples: Tensor, directory: Path, names: Sequence[str]) -> tuple[Path, Run]:
    file = directory / "student.pt2"
    torch.export.save(_traced(graph, samples), file)
    loaded = torch.export.load(file).module()
    return file, lambda x: list(loaded(x))


def _onnx(graph: nn.Module, samples: Tensor, directory: Path, names: Sequence[str]) -> tuple[Path, Run]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ComponentError(
            f"export to ONNX needs {error.name}, which is not installed: pip install 'sobolev[export]', or "
            "choose '--format torch'"
        ) from error
    file = directory / "student.onnx"
    traced = _traced(graph, samples).run_decompositions(ELEMENTARY)
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        made = torch.onnx.export(
            traced, input_names=["x"], output_names=list(names), dynamo=True, verbose=False, external_data=False
        )
        assert made is not None
        made.save(str(file), external_data=False)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise ComponentError(f"ONNX cannot take the student: {type(error).__name__}: {first}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:
        file.unlink()
        first = str(error).partition("\n")[0]
        raise ComponentError(f"onnxruntime cannot run the student's graph: {first}") from error
    return file, lambda x: [torch.from_numpy(found) for found in session.run(list(names), {"x": x.numpy()})]


def _scales(names: Sequence[str], samples: Tensor, expected: Sequence[Tensor]) -> list[Tensor]:
    """Return what is large for each component of each output; components may have different units.

    The largest number over the samples, but not less than rounding makes of it: of a partial the range of the value
    over that of the input, of a value a millionth of the largest one, of a spread the values that it is a difference
    of.
    """
    value = expected[0].abs().amax(0)
    value = value.clamp_min(1e-6 * float(value.max()) or 1.0)
    ranges = samples.amax(0) - samples.amin(0)
    ranges = torch.where(ranges > 0, ranges, float(ranges.max()) or 1.0)
    spans = (expected[0].amax(0) - expected[0].amin(0)).reshape(-1, *[1] * ranges.ndim)
    least = {"value": value, "spread": value, "partials": spans / ranges}
    return [
        torch.maximum(of.abs().amax(0), least[name]).clamp_min(1e-30) for name, of in zip(names, expected, strict=True)
    ]


def _compare(
    file: Path, names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor], scales: Sequence[Tensor]
) -> dict[str, float]:
    """Return the largest difference of each output in parts of its scale; a bad file is removed."""
    errors = {}
    for name, ours, theirs, scale in zip(names, found, expected, scales, strict=True):
        errors[name] = float(((ours - theirs).abs() / scale).max())
        if not errors[name] <= TOLERANCE:
            file.unlink()
            raise ComponentError(
                f"{file.name}: {name} of the graph is {errors[name]:.2g} (relative) from the student's; allowed is "
                f"{TOLERANCE:g}. The file was removed"
            )
    return errors


def _samples(experiment: Experiment, site: str, name: str) -> Tensor:
    """Return inputs ``(B, *x)`` that a graph is compared at: in the box, so that a run's data need not be there."""
    where, axes = experiment.sites[site], experiment.target.axes(site)
    box = where.ranges.get(name)
    if box is None and axes is not None and axes.low is not None and axes.high is not None:
        box = axes.low, axes.high
    random = torch.Generator().manual_seed(0)
    shape = (_COMPARED, *where.inputs[name])
    split = next((s for s in ("test", "validation", "train") if experiment.target.size(s)), None)
    if box is not None:
        low, high = (torch.as_tensor(e, dtype=torch.float64).broadcast_to(shape[1:]) for e in box)
        samples = low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)
    elif split is not None:
        ids = some(experiment.target.size(split), _COMPARED)
        batch = Batch(split, ids, experiment.target.load(split, ids))
        samples = experiment.target.points(batch, training=False)[site].inputs[name]
    else:
        samples = torch.randn(shape, generator=random, dtype=torch.float64)
    # A graph that was traced with one row could be one for one row alone.
    samples = torch.cat([samples, samples]) if len(samples) < 2 else samples
    return samples.to(experiment.context.device, experiment.context.dtype)


@without_default
def export_run(
    run: Path | str,
    directory: Path,
    formats: Sequence[str] = FORMATS,
    site: str | None = None,
    partials: bool = True,
) -> list[Path]:
    """Write the student of a run directory as graphs; returns the files.

    Args:
        run: the run directory.
        directory: for the files.
        formats: of `FORMATS`.
        site: a site or an ensemble; the first by default.
        partials: whether partials are wanted.

    Raises:
        RecipeError: no finished run, no such site.
        ComponentError: a student that cannot be exported.
    """
    student = load(run)
    experiment = student.experiment
    names = student.members(site)
    where = experiment.sites[names[0]]
    if len(where.inputs) != 1:
        raise ComponentError(f"the student reads {sorted(where.inputs)}; students of one input are exported")
    if partials and not where.differentiate:
        raise ComponentError("the run's target has no derivatives, and so no partials; give --values-only")
    (name,) = where.inputs
    axes = experiment.target.axes(site or names[0])
    try:
        samples = _samples(experiment, names[0], name)
        return export_modules(
            [student.module[member] for member in names],
            experiment.objective.head,
            where,
            samples,
            directory,
            formats,
            list(axes.inputs) if axes else (),
            list(axes.outputs) if axes else (),
            partials,
        )
    finally:
        experiment.target.close()
