"""What a student must do."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sobolev.components import Student
from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.differentiate.preflight import check_gradient
from sobolev.errors import ComponentError, DerivativeError, SobolevError
from sobolev.heads import HEADS
from sobolev.statistics import neutral
from sobolev.testing.findings import Checks, NotApplicable, difference, shape_of
from sobolev.testing.subject import Component, Subject
from sobolev.vocabulary import VALUE, Points, Probe, Site

_ROWS = 5
SITES: tuple[Site, ...] = (
    Site({"x": (3,)}, 2, ("x",)),
    Site({"x": (2,)}, 1, ("x",)),
    Site({"x": (1,)}, 1, ("x",)),
    Site({"x": (3,)}, 1, ("x",)),
    Site({"x": (2, 4)}, 2, ("x",)),
    Site({"x": (3, 8, 8)}, 3, ("x",)),
    Site({"h": (2, 4, 4), "y": (3,)}, 3, ("h",)),
    Site({"h": (2, 4, 4), "y": (3,)}, 32, ()),
    Site({"x": (4, 84, 84)}, 3, ("x",)),
    Site({"x": (3, 32, 32)}, 10, ("x",)),
)
"""Sites that students are tried on; a family may refuse those that it is not made for."""


class StudentCase:
    """A student under test, with networks for the sites that it accepts.

    Args:
        component: the student.
        registry: where names are looked up.
        sites: what to build it for, instead of the first of `SITES` that it accepts.
    """

    def __init__(self, component: Component, registry: object = None, sites: Sequence[Site] = ()) -> None:
        self.subject = Subject("student", component, registry)  # type: ignore[arg-type]
        self.student: Student = self.subject.make()
        self.sites = [self._complete(site) for site in sites] or self._accepted()

    def _complete(self, site: Site) -> Site:
        statistics = neutral({"site": site}, {"site": site.outputs})["site"]
        return replace(site, statistics=statistics)

    def _accepted(self) -> list[Site]:
        """Return the first site that is accepted; else the first at which it failed without saying why."""
        failed: list[Site] = []
        for site in map(self._complete, SITES):
            try:
                module = self.student.build(site)
            except SobolevError:
                continue
            except Exception:
                failed.append(site)
                continue
            if isinstance(module, nn.Module) and not _runs(module, site):
                failed.append(site)
                continue
            return [site]
        return failed[:1]

    def build(self, site: Site, seed: int = 0) -> nn.Module:
        """Return a network in float64 and evaluation mode, the same for a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: nn.Module = self.student.build(site)
        if not isinstance(module, nn.Module):
            raise ComponentError(f"build() returns a {type(module).__name__}, not a torch.nn.Module.")
        return module.double().eval()

    def close(self) -> None:
        """Nothing to release."""


def _runs(module: nn.Module, site: Site) -> bool:
    try:
        with torch.no_grad():
            measurer(module.double().eval(), site).value(inputs(site))
    except SobolevError:
        return True  # a wrong shape, which the checks name
    except Exception:
        return False
    return True


def inputs(site: Site, rows: int = _ROWS) -> dict[str, Tensor]:
    """Return inputs ``(B, *shape)`` in float64; a label is one-hot."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, shape in site.inputs.items():
        made[name] = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
        if name == "y":
            made[name] = torch.eye(shape[0], dtype=torch.float64)[torch.arange(rows) % shape[0]]
    return made


def measurer(module: nn.Module, site: Site) -> Measurer:
    """Return what measures a network in a run."""
    return Measurer(module, HEADS["identity"], site, Policy(steps=1, compile="never"))


def _points(site: Site, rows: int = _ROWS) -> Points:
    return Points(inputs(site, rows), site.differentiate, torch.arange(rows))


def _each(case: StudentCase) -> list[tuple[Site, nn.Module]]:
    if not case.sites:
        raise NotApplicable("it refuses every site that it was tried on; say by 'sites' what it is made for")
    return [(site, case.build(site)) for site in case.sites]


def check_options(case: StudentCase) -> None:
    """Its options have descriptions."""
    if not isinstance(case.student, Student):
        raise ComponentError(f"The factory returns a {type(case.student).__name__}, not a sobolev.Student.")
    case.subject.check_options()


def check_accepts(case: StudentCase) -> None:
    """There is a site that it can be built for."""
    if not case.sites:
        raise ComponentError(
            "build() refuses every site that it was tried on (vectors, matrices, images, images with labels); name the "
            "site that it is made for."
        )


def check_inputs(case: StudentCase) -> None:
    """Its forward names the inputs that it reads; their order in the site does not matter."""
    for site, module in _each(case):
        named = [
            name for name, p in inspect.signature(module.forward).parameters.items()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty
        ]  # fmt: skip
        unknown = [name for name in named if name not in site.inputs]
        if len(site.inputs) > 1 and (unknown or not named):
            raise ComponentError(
                f"forward() takes {named or 'unnamed arguments'}; the site has the inputs {sorted(site.inputs)}. Name "
                "the parameters like the inputs: each receives the one of its name, in whatever order."
            )
        if len(site.inputs) == 1 and len(named) > 1:
            raise ComponentError(f"forward() takes {named}; the site has the one input {[*site.inputs]}.")
        turned = replace(site, inputs={name: site.inputs[name] for name in reversed([*site.inputs])})
        other = case.build(turned)
        other.load_state_dict(module.state_dict())
        with torch.no_grad():
            a = measurer(module, site).value(inputs(site))
            b = measurer(other, turned).value(dict(reversed(inputs(site).items())))
        wrong = difference(b, a, 1e-10)
        if wrong:
            raise ComponentError(f"The output changes with the order in which the site lists its inputs: {wrong}.")


def check_shapes(case: StudentCase) -> None:
    """It returns one row per sample and as many columns as the site has outputs."""
    for site, module in _each(case):
        for rows in (1, _ROWS):
            given = inputs(site, rows)
            z = module(*(given[name] for name in measurer(module, site).names))
            if not isinstance(z, Tensor) or tuple(z.shape) != (rows, site.outputs):
                raise ComponentError(
                    f"For {rows} samples forward() returns {shape_of(z)}; expected {(rows, site.outputs)}: (B, "
                    "site.outputs)."
                )


def check_float64(case: StudentCase) -> None:
    """It computes in float64 after .double(): checks of its derivatives need that."""
    for site, module in _each(case):
        with torch.no_grad():
            z = measurer(module, site).value(inputs(site))
        if z.dtype != torch.float64:
            raise ComponentError(
                f"After .double() forward() returns {z.dtype}: something in it has a fixed dtype. Make constants "
                "buffers, or of the input's dtype."
            )
        if not bool(torch.isfinite(z).all()):
            raise ComponentError("forward() returns NaN or infinities for standard normal inputs.")


def check_repeatable(case: StudentCase) -> None:
    """The same seed builds the same network, and a network answers the same twice."""
    for site, module in _each(case):
        other = case.build(site)
        mine, theirs = module.state_dict(), other.state_dict()
        for name, tensor in mine.items():
            if not torch.equal(tensor, theirs[name]):
                raise ComponentError(
                    f"Two networks built with the same torch seed differ in {name!r}: initialise from torch's "
                    "generator, which the core seeds, not from another."
                )
        with torch.no_grad():
            values = [measurer(module, site).value(inputs(site)) for _ in range(2)]
        if not torch.equal(*values):
            raise ComponentError("In evaluation mode forward() gave two answers for the same inputs.")


def check_independent(case: StudentCase) -> None:
    """In evaluation mode samples do not influence each other: derivatives are taken per sample."""
    for site, module in _each(case):
        given = inputs(site)
        with torch.no_grad():
            whole = measurer(module, site).value(given)
            alone = torch.cat(
                [measurer(module, site).value({n: t[i : i + 1] for n, t in given.items()}) for i in range(_ROWS)]
            )
        wrong = difference(alone, whole, 1e-9, 1e-12)
        if wrong:
            raise ComponentError(
                f"The output for a sample depends on the others in its batch: {wrong} when it is alone."
            )


def check_state(case: StudentCase) -> None:
    """Its state_dict holds all that it answers with."""
    for site, module in _each(case):
        other = case.build(site, seed=1)
        try:
            other.load_state_dict(module.state_dict())
        except RuntimeError as error:
            raise ComponentError(
                f"A second network does not take the first one's state_dict: {' '.join(str(error).split())}"
            ) from None
        with torch.no_grad():
            a, b = (measurer(m, site).value(inputs(site)) for m in (module, other))
        wrong = difference(b, a, 1e-10)
        if wrong:
            raise ComponentError(
                f"A second network with the first one's state_dict answers otherwise: {wrong}. A tensor that is "
                "neither a parameter nor a buffer would be lost with every checkpoint."
            )


def check_derivative(case: StudentCase) -> None:
    """Its derivative by the input is that of its output, by central differences in float64."""
    checked = False
    for site, module in _each(case):
        points = _points(site)
        for name in site.differentiate:
            checked = True
            _check_slope(site, module, points, name)
    if not checked:
        raise NotApplicable("the site differentiates nothing")


def _check_slope(site: Site, module: nn.Module, points: Points, name: str) -> None:
    measure = measurer(module, site)
    jet = differentiate(measure.value, points, Probe.full(((name,),)), create_graph=False)
    if not any(p.requires_grad for p in module.parameters()) and not jet.value.requires_grad:
        return
    generator = torch.Generator().manual_seed(0)
    x = points.inputs[name]
    agreed = torch.zeros(len(x), dtype=torch.int64)
    sample = ""
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
        with torch.no_grad():
            ahead, behind = (measure.value({**points.inputs, name: x + s * 1e-6 * direction}) for s in (1.0, -1.0))
        slope = (ahead - behind) / 2e-6
        expected = (jet[(name,)] * direction[:, None]).flatten(2).sum(dim=2)
        scale = slope.abs().amax(dim=1) + expected.abs().amax(dim=1) + 1e-4 * float(ahead.abs().max()) + 1e-12
        error = (slope - expected).abs().amax(dim=1) / scale
        agreed += error <= 1e-4
        if not sample and bool((error > 1e-4).any()):
            i = int(error.argmax())
            sample = f"sample {i}: {expected[i].tolist()} along a direction, {slope[i].tolist()} by differences"
    if int((agreed >= 2).sum()) * 2 < len(x) + 1:
        raise ComponentError(
            f"The derivative by {name!r} is not that of the output ({sample}): the input is detached, rounded or "
            "handled outside torch somewhere in forward()."
        )


def check_parameter_gradient(case: StudentCase) -> None:
    """The parameter gradient of a loss on value and derivative agrees with finite differences in float64."""
    checked = False
    for site, module in _each(case):
        trained = copy.deepcopy(module)
        if not any(p.requires_grad for p in trained.parameters()):
            continue
        checked = True
        _leave_kinks(trained)
        points, keys = _points(site, 2), tuple((name,) for name in site.differentiate)
        measure = measurer(trained, site)

        def loss(
            measure: Measurer = measure, points: Points = points, keys: tuple[tuple[str, ...], ...] = keys
        ) -> Tensor:
            jet = differentiate(measure.value, points, Probe.full(keys), create_graph=True)
            return torch.stack([0.5 * (jet[key] - 0.3).square().mean() for key in (VALUE, *keys)]).sum()

        try:
            check_gradient(loss, trained)
        except DerivativeError as error:
            raise ComponentError(f"Training on derivatives would go wrong: {error}") from None
    if not checked:
        raise NotApplicable("it has no parameters")


def _leave_kinks(module: nn.Module) -> None:
    """Move parameters a little: initial zeros put whole layers of ReLUs exactly onto their kinks."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


CHECKS: Checks[StudentCase] = {
    "options": check_options,
    "accepts": check_accepts,
    "inputs": check_inputs,
    "shapes": check_shapes,
    "float64": check_float64,
    "repeatable": check_repeatable,
    "independent": check_independent,
    "state": check_state,
    "derivative": check_derivative,
    "parameter-gradient": check_parameter_gradient,
}
