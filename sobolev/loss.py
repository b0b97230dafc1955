"""`SobolevLoss`: the loss alone, for those who have their own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sobolev.components import Estimator, Objective
from sobolev.differentiate.contract import contract, restrict
from sobolev.differentiate.exact import Exact
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.errors import ComponentError, RecipeError
from sobolev.host import default_host
from sobolev.noise import Noise
from sobolev.registry import Path
from sobolev.vocabulary import VALUE, Jet, Key, Points, Probe, Site

Teacher = Callable[[Tensor], Tensor]


class SobolevLoss(nn.Module):
    """Distance between a module's jet and a target's: a mean over samples, ready for ``backward``.

    ::

        loss = SobolevLoss()
        for x, y, dydx in batches:
            optimizer.zero_grad()
            loss(module, x, y, dydx).backward()
            optimizer.step()

    Under data parallel training pass the module itself, not its wrapper: ``loss(ddp.module, ...)``, and sum the
    gradients after ``backward``.

    Args:
        value: loss of the value, by name (``squared-l2``, ``l1``, ``norm``, ``huber``, or a KL divergence), or a
            mapping with ``loss``, ``weight``, ...; as ``value`` of the objective ``sobolev`` in a recipe.
        derivatives: one loss per order likewise; the first derivative with weight 1 by default.
        head: function of the module's output that is compared: ``identity`` or ``log-softmax``.
        estimator: which derivatives: ``exact``, or ``{"use": "projected", ...}`` for random projections.
        seed: of random projections.

    Raises:
        RecipeError: an unknown name or option, a value that is not allowed.
        ComponentError: parts that do not fit together.
    """

    def __init__(
        self,
        value: str | Mapping[str, Any] = "squared-l2",
        derivatives: list[str | Mapping[str, Any]] | None = None,
        head: str = "identity",
        estimator: str | Mapping[str, Any] = "exact",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if head == "log-loss":
            raise ComponentError("SobolevLoss: the head 'log-loss' needs labels as a second input; use a recipe")
        objective = {
            "use": "sobolev",
            "head": head,
            "value": value,
            "derivatives": ["squared-l2"] if derivatives is None else derivatives,
        }
        self.objective: Objective = _built("objective", objective, ())
        self.estimator: Estimator = _built("estimator", estimator, ("estimator",))
        self._given = (value, derivatives, head, estimator, seed)
        self.seed = seed
        self.calls = 0
        self._last: Measurer | None = None

    def forward(
        self,
        module: nn.Module,
        x: Tensor,
        y: Tensor | Teacher,
        dydx: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar with graph.

        Args:
            module: ``(B, *x)`` -> ``(B, n)``; may be another one, or have other layers, in every call.
            x: ``(B, *x)``.
            y: values after the head ``(B, m)``, or ``(B,)`` for one, NaN where one is missing; or a teacher: a function
                or frozen module from ``(B, *x)`` to outputs ``(B, n)`` before the head, which is then differentiated.
            dydx: recorded partials ``(B, m, *x)``, or ``(B, *x)`` for one value; NaN where one is missing.
            weight: of every sample, ``(B,)`` or ``(B, 1)``, none negative; or None for ones.

        Raises:
            ComponentError: shapes that do not fit, partials that are missing altogether, a negative or infinite weight.
        """
        for name, given in (("x", x), ("y", y), ("dydx", dydx), ("weight", weight)):
            if given is not None and not isinstance(given, Tensor) and not (name == "y" and callable(given)):
                kinds = "a tensor, or a function of x" if name == "y" else "a tensor"
                raise ComponentError(f"SobolevLoss: {name} is of type {type(given).__name__}, expected {kinds}")
        if weight is not None:
            weight = _weight(weight, x)
        self.calls += 1
        last = self._last
        try:
            return self._loss(module, x, y, dydx, weight)
        except Exception:
            self._last = None  # what it took for the number of outputs may have been the mistake
            if last is None or isinstance(y, Tensor):
                raise
        return self._loss(module, x, y, dydx, weight)  # a teacher is asked for its outputs once; they may be others now

    def _loss(
        self, module: nn.Module, x: Tensor, y: Tensor | Teacher, dydx: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        measurer = self._measurer(module, x, y)
        site = measurer.site
        keys = self.objective.keys(site)
        outputs = self.objective.head.outputs(site.outputs)
        index = torch.arange(len(x)) + (_rank() << 32)  # processes draw directions of their own
        points = Points({"x": x.detach()}, ("x",), index, weight)
        recorded: Jet | None = None
        if isinstance(y, Tensor):
            recorded = _recorded(x, y, dydx, keys, outputs)
            points = Points({"x": x.detach()}, ("x",), points.index, weight, recorded.known)
        elif dydx is not None:
            raise ComponentError("SobolevLoss: a teacher is differentiated by itself; give no dydx beside it")
        noise = Noise(self.seed, "train", self.calls, "loss")
        probe = restrict(self.estimator.probe(points, outputs, keys, noise), points)
        reference = _asked(recorded, probe) if recorded is not None else self._taught(y, points, probe)
        prediction = measurer.measure(points, probe)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for term in self.objective.terms("loss", points, probe, prediction, reference):
            if term.weight and float(term.count):
                total = total + term.weight * term.sum / term.count
        return total

    def _taught(self, teacher: Any, points: Points, probe: Probe) -> Jet:
        head = self.objective.head
        return self.estimator.differentiate(lambda inputs: head(teacher(inputs["x"]), inputs), points, probe)

    def _measurer(self, module: nn.Module, x: Tensor, y: Tensor | Teacher) -> Measurer:
        shape = tuple(x.shape[1:])
        last = self._last
        known = last if last is not None and last.module is module and last.site.inputs["x"] == shape else None
        if isinstance(y, Tensor):
            outputs = 1 if y.ndim == 1 else y.shape[-1]
            if known is not None and known.site.outputs == outputs:
                return known
        elif known is not None:
            return known
        else:  # asked of the teacher: a pass of the module itself could change it (running statistics)
            with torch.no_grad():
                answer = y(x[:1])
            if not isinstance(answer, Tensor) or answer.ndim != 2:
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise ComponentError(f"SobolevLoss: the teacher returns {shape} for one sample, expected (1, n)")
            outputs = answer.shape[-1]
        site = Site({"x": shape}, outputs, ("x",))
        self._last = Measurer(module, self.objective.head, site, Policy(steps=0, compile="never"))
        return self._last

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not isinstance(self.estimator, Exact):  # a loop that goes on from a checkpoint draws no direction again
            destination[f"{prefix}calls"] = torch.tensor(self.calls)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        self.calls = int(state_dict.pop(f"{prefix}calls", self.calls))
        super()._load_from_state_dict(state_dict, prefix, *more)

    def __reduce__(self) -> tuple[Any, ...]:
        # Heads are functions, which pickle does not take; what the constructor was given makes them again.
        return SobolevLoss, self._given, {"calls": self.calls, "training": self.training}


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _built(kind: str, spec: Any, path: Path) -> Any:
    """Return the component, or say of every option what is wrong with it."""
    registry = default_host().registry
    checked, problems = registry.check(kind, spec, path)
    if problems:
        said = [": ".join(filter(None, (".".join(map(str, p.path)), p.message))) for p in problems]
        raise RecipeError("SobolevLoss: " + "\n".join(said))
    return registry.build(kind, checked)


def _weight(weight: Tensor, x: Tensor) -> Tensor:
    """Return sample weights as ``(B,)``."""
    if tuple(weight.shape) not in ((len(x),), (len(x), 1)):
        raise ComponentError(
            f"SobolevLoss: weight has the shape {tuple(weight.shape)}, expected {(len(x),)} (B,): one number per sample"
        )
    fit = (weight >= 0) & weight.isfinite()
    if not bool(fit.all()):
        raise ComponentError(
            f"SobolevLoss: a sample's weight is {weight[~fit][0].item():g}, expected a number of at least 0; "
            "a sample of weight 0 does not count"
        )
    return weight.reshape(-1)


def _recorded(x: Tensor, y: Tensor, dydx: Tensor | None, keys: tuple[Key, ...], outputs: int) -> Jet:
    """Return recorded values and partials as a jet with masks, in the full shapes."""
    value = y.reshape(-1, 1) if y.ndim == 1 else y
    if value.shape != (len(x), outputs):
        raise ComponentError(
            f"SobolevLoss: y has the shape {tuple(y.shape)}, expected {(len(x), outputs)} (B, m)"
            + (" or (B,)" if outputs == 1 else "")
        )
    masks: dict[Key, Tensor] = {}
    value = _without_nan(value, VALUE, masks)
    if not keys:
        return Jet(value, {}, masks)
    if any(key != ("x",) for key in keys):
        raise ComponentError("SobolevLoss: recorded partials have order 1; give a teacher for higher orders")
    if dydx is None:
        raise ComponentError(
            "SobolevLoss: no dydx, though the derivative term has weight; 'derivatives=[]' trains on values alone"
        )
    shape = (len(x), outputs, *x.shape[1:])
    if tuple(dydx.shape) != shape and not (outputs == 1 and dydx.shape == x.shape):
        raise ComponentError(f"SobolevLoss: dydx has the shape {tuple(dydx.shape)}, expected {shape} (B, m, *x)")
    return Jet(value, {keys[0]: _without_nan(dydx.reshape(shape), keys[0], masks)}, masks)


def _without_nan(numbers: Tensor, key: Key, masks: dict[Key, Tensor]) -> Tensor:
    """Return recorded numbers with 0 where one is missing, which ``masks`` then tells."""
    known = ~numbers.isnan()
    if bool(known.all()):
        return numbers
    masks[key] = known
    return torch.where(known, numbers, torch.zeros_like(numbers))


def _asked(recorded: Jet, probe: Probe) -> Jet:
    """Return recorded derivatives contracted as a probe asks."""
    derivatives = {}
    masks = {VALUE: recorded.known[VALUE]} if VALUE in recorded.known else {}
    for key, contraction in probe.contractions.items():
        derivatives[key], known = contract(recorded.derivatives[key], contraction, recorded.known.get(key))
        if known is not None:
            masks[key] = known
    return Jet(recorded.value, derivatives, masks)
