"""`SobolevRegressor`: values and partials with the interface of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sobolev.arrays import ArrayTarget, Samples
from sobolev.build import DTYPES, Experiment, build
from sobolev.builtin.targets.ensemble import ensemble_of
from sobolev.components import Target
from sobolev.devices import without_default
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.distributed import World
from sobolev.heads import HEADS
from sobolev.host import default_host
from sobolev.noise import generator
from sobolev.recipe.model import Recipe
from sobolev.recipe.plan import RunPlan
from sobolev.recording import Recorder
from sobolev.registry import Registry
from sobolev.selection import LEAST, MANY, Candidate, best, in_unit_scale
from sobolev.train import Outcome, Trainer
from sobolev.vocabulary import Points, Probe, Site

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "SobolevRegressor needs scikit-learn, which is not installed: pip install 'sobolev[learn]'"
    ) from error


Regime = Literal["exact", "trend"]
BatchSize = int | Literal["all"]
_Way = tuple[Regime, str]  # regime and activation

SMOOTH, ROUGH = "silu", "tanh"
"""What is tried where no activation is named."""

MANY_INPUTS = 5
"""Up to as many inputs two layers are used, beyond one wide layer, which needs more polishing and `SMOOTH` alone:
samples that resolve waves in many directions are never there."""

FEW_SAMPLES = 50
"""Up to as many samples a network with `ROUGH` is small: a larger one bends more between them than they can tell."""

TREND_STEPS = 200

_ROWS = 8192
"""Rows that are predicted at once: activations take more memory than answers."""

_PER_STEP = 20
"""Iterations of L-BFGS that are one step at most."""

FULL_BATCH: tuple[int, BatchSize] = 500, "all"
SMALL_BATCHES: tuple[int, BatchSize] = 3000, 32
"""Steps of Adam and samples of each. In many dimensions, and among waves and kinks, the noise of small batches leads to
places from where polishing goes on, while full batches end on plateaus; elsewhere it gains nothing."""


class SobolevRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Neural surrogate of values and partials: networks trained on both, averaged.

    Inputs and values are standardised inside the networks, so that everything that goes in and comes out is in the
    user's units. Training is Adam, then L-BFGS with all samples. Errors of partials count linearly beyond their own
    root mean square (Huber loss), lest a few samples beside a kink or a pole decide everything.

    Whether the samples resolve the function is for them to say: where its partials change faster than from one sample
    to the next, a network that meets them all is far off between. And how rough it is: waves and kinks are met better
    by ``tanh``, what is smooth by ``silu``. With ``regime="auto"`` some samples are held out (each third in turn, up
    to 100 of them; 33 or a tenth of more), one network is trained in every way, and whatever predicts values and
    partials of those held out best, by the mean log error, is trained on everything.

    Args:
        hidden: units of each hidden layer, or None for (64, 64), (128,) where X has more than five columns, and
            (16, 16) for ``tanh`` on up to 50 samples.
        activation: a smooth one (``silu``, ``tanh``, ``softplus``, ``gelu``) for smooth partials; or None for
            ``silu`` or, where X has up to five columns and held-out samples say so, ``tanh``.
        members: networks, which differ by their first weights; predictions are their mean.
        regime: ``exact`` trains on values and partials to the end; ``trend`` on values alone by 200 steps of Adam, for
            a function that is not resolved; ``auto`` takes the better one on held-out samples, and ends polishing
            where they get worse. With ``validation_fraction``, or fewer than ten samples, ``auto`` is ``exact``.
        derivative_weight: factor of the partials' term in the loss; 0 leaves them out.
        balance: how values and partials are weighed, see the objective ``sobolev``.
        adam_steps: steps of Adam, with a learning rate that falls along half a cosine; or None for 500, and 3,000 where
            ``batch_size`` is None and batches are small.
        learning_rate: of Adam, at the beginning.
        polish_iterations: iterations of L-BFGS after it at most, or None for 500, and 2,000 where X has more than
            five columns.
        batch_size: samples per step of Adam, or ``"all"``; or None for all, and 32 where X has more than five columns
            or ``tanh`` is trained on more than 330 samples. L-BFGS always sees all.
        validation_fraction: share of the samples that is held out to stop early and to keep the best networks, or
            None to train on all to the end.
        patience: evaluations (a hundred in all) without improvement before training stops.
        dtype: ``float64`` or ``float32``.
        random_state: seed of the first weights and of the split; an int, a ``RandomState`` or None.

    Attributes:
        student_: the networks, a ``ModuleDict``.
        history_: the final numbers of the training.
        regime_: ``exact`` or ``trend``.
        activation_: of the networks.
        steps_: steps after which training ended; one of L-BFGS has up to 20 iterations.
        scores_: mean log squared error on held-out samples by regime and activation, in standardised units; empty
            where nothing was chosen.
        n_features_in_, n_outputs_: d and m.
    """

    def __init__(
        self,
        hidden: Sequence[int] | None = None,
        activation: str | None = None,
        members: int = 3,
        regime: Literal["auto", "exact", "trend"] = "auto",
        derivative_weight: float = 1.0,
        balance: Literal["none", "rms", "joint"] = "rms",
        adam_steps: int | None = None,
        learning_rate: float = 5e-3,
        polish_iterations: int | None = None,
        batch_size: BatchSize | None = None,
        validation_fraction: float | None = None,
        patience: int = 20,
        dtype: Literal["float32", "float64"] = "float64",
        random_state: Any = None,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.members = members
        self.regime = regime
        self.derivative_weight = derivative_weight
        self.balance = balance
        self.adam_steps = adam_steps
        self.learning_rate = learning_rate
        self.polish_iterations = polish_iterations
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.dtype = dtype
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @without_default
    def fit(self, X: Any, y: Any, dydx: Any = None, sample_weight: Any = None) -> SobolevRegressor:
        """Train on values and, where they are given, partials.

        Args:
            X: ``(n, d)``.
            y: ``(n,)`` or ``(n, m)``.
            dydx: partials ``(n, d)``, or ``(n, m, d)`` for several outputs; NaN (or masked) where one is missing; or
                None. The columns of a data frame that are named as those of X are taken by their names.
            sample_weight: ``(n,)``, not negative.

        Returns:
            The regressor itself.

        Raises:
            ValueError: arrays whose shapes or numbers do not fit, or nothing to train.
            NonFiniteError: a loss or a weight that became infinite or NaN.
        """
        self._forget()
        columns = getattr(X, "columns", None)
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        y = np.asarray(y, dtype=np.float64)
        self._single = y.ndim == 1
        y = y.reshape(len(y), -1)
        partials = _partials(dydx, X, y, columns)
        self._check_options()
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        samples = _counting(Samples(_tensor(X), _tensor(y), _tensor(partials), _tensor(weight)))
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        way, steps, self.scores_ = self._chosen(samples, random, seed)
        self.regime_, self.activation_ = way
        recipe = self._recipe(samples, way, steps)
        experiment, outcome = _trained(recipe, self._target(samples, random), seed)
        self.n_outputs_ = y.shape[1]
        self._box = X.min(0), X.max(0)
        self.student_ = experiment.module
        self.history_, self.steps_ = outcome.summary, outcome.step
        self._measurers = self._measure_by()
        return self

    def _chosen(
        self, samples: Samples, random: np.random.RandomState, seed: int
    ) -> tuple[_Way, int | None, dict[str, float]]:
        """Return regime and activation, after how many steps training ends (None: all), and the scores."""
        if self.regime not in ("auto", "exact", "trend"):
            raise ValueError(f"regime={self.regime!r}: expected 'auto', 'exact' or 'trend'")
        activation = SMOOTH if self.activation is None else self.activation
        if self.regime != "auto":
            return (self.regime, activation), None, {}
        if self.validation_fraction is not None or len(samples.x) < LEAST:
            return ("exact", activation), None, {}

        order = _shuffled(samples, random)

        def candidate(way: _Way) -> Candidate:
            recipe = self._recipe(samples, way)
            last = sum(phase.steps for phase in recipe.train.phases)
            exact = way[0] == "exact"
            first = min(self._adam(samples, way)[0], last) if exact else last
            recipe.evaluate.every = 5 if exact else max(1, last)
            recipe.evaluate.splits = ["validation"]
            return Candidate(partial(_followed, recipe, seed), first)

        ways: list[_Way] = [("exact", activation)]
        if self.adam_steps != 0:
            ways.append(("trend", activation))
        if self.activation is None and samples.x.shape[1] <= MANY_INPUTS:
            ways.insert(1, ("exact", ROUGH))
        named = {f"{regime}, {function}": (regime, function) for regime, function in ways}
        # Without balance the units decide how values and partials are weighed: they are held out as they are.
        compared = samples if self.balance == "none" else in_unit_scale(samples)
        name, steps, scores = best(compared, {name: candidate(way) for name, way in named.items()}, order)
        return named[name], steps, scores

    def _target(self, samples: Samples, random: np.random.RandomState) -> Target:
        train, held = samples, None
        if self.validation_fraction is not None:
            order = _shuffled(samples, random)
            count = round(self.validation_fraction * len(order))
            if not 0 < count < len(order):
                raise ValueError(
                    f"validation_fraction={self.validation_fraction!r} of {len(order)} samples holds out {count}; "
                    "at least one must be held out and one left to train on"
                )
            held, train = samples.take(order[:count]), samples.take(order[count:])
        target = ArrayTarget(train, held)
        return ensemble_of(target, self.members) if self.members > 1 else target

    def _check_options(self) -> None:
        """Refuse options that leave nothing to train.

        Raises:
            ValueError: says which.
        """
        whole = {"members": 1, "patience": 1, "adam_steps": 0, "polish_iterations": 0, "batch_size": 1}
        for name, least in whole.items():
            given = getattr(self, name)
            may = (given is None and name not in ("members", "patience")) or (given == "all" and name == "batch_size")
            number = isinstance(given, Integral) and not isinstance(given, bool)
            if not may and not (number and given >= least):
                raise ValueError(f"{name}={given!r}: expected a whole number of at least {least}")
        if not isinstance(self.derivative_weight, Real) or not 0 <= float(self.derivative_weight) < np.inf:
            raise ValueError(f"derivative_weight={self.derivative_weight!r}: expected a number of at least 0")
        if not isinstance(self.learning_rate, Real) or not 0 < float(self.learning_rate) < np.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r}: expected a number above 0")
        if isinstance(self.hidden, int):
            raise ValueError(f"hidden={self.hidden!r}: expected the units of every layer, such as ({self.hidden},)")
        if self.regime == "trend" and self.adam_steps == 0:
            raise ValueError("adam_steps=0 leaves nothing to train: regime='trend' is trained by Adam alone")
        if self.adam_steps == 0 and self.polish_iterations == 0:
            raise ValueError("adam_steps=0 and polish_iterations=0 leave nothing to train")

    def _forget(self) -> None:
        """Drop an earlier fit: what a failed one leaves behind must not answer for new data."""
        for name in ("student_", "history_", "regime_", "activation_", "steps_", "scores_", "n_outputs_", "_measurers"):
            self.__dict__.pop(name, None)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "student_")

    def _adam(self, samples: Samples, way: _Way) -> tuple[int, BatchSize]:
        """Return the steps of Adam and the samples of each."""
        regime, activation = way
        n, inputs = samples.x.shape
        hard = inputs > MANY_INPUTS or (activation == ROUGH and n > MANY)
        small = regime == "exact" and hard and self.batch_size is None
        steps, batch_size = SMALL_BATCHES if small else FULL_BATCH
        if self.adam_steps is not None:
            steps = self.adam_steps
        return min(steps, TREND_STEPS) if regime == "trend" else steps, self.batch_size or batch_size

    def _phases(self, samples: Samples, way: _Way, steps: int | None) -> list[dict[str, Any]]:
        """Return the phases of training, with the last steps left out where fewer are wanted."""
        adam, batch_size = self._adam(samples, way)
        polish = self.polish_iterations
        if polish is None:
            polish = 500 if samples.x.shape[1] <= MANY_INPUTS else 2000
        polishing = 0 if way[0] == "trend" else -(-polish // _PER_STEP)
        per_step = polish // max(1, polishing)
        if steps is not None:
            polishing = min(polishing, steps - adam)
        phases: list[dict[str, Any]] = []
        if adam:
            phases.append({
                "steps": adam,
                "batch_size": batch_size,
                "optimizer": {"use": "adam", "lr": self.learning_rate},
                "schedule": {"use": "cosine"},
            })  # fmt: skip
        if polishing:
            lbfgs = {"use": "lbfgs", "max_iter": per_step, "history_size": 30}
            phases.append({"steps": polishing, "optimizer": lbfgs, "batch_size": "all"})
        return phases

    def _recipe(self, samples: Samples, way: _Way, steps: int | None = None) -> Recipe:
        regime, activation = way
        inputs = samples.x.shape[1]
        hidden = self.hidden
        if hidden is None:
            small = activation == ROUGH and len(samples.x) <= FEW_SAMPLES
            hidden = (128,) if inputs > MANY_INPUTS else (16, 16) if small else (64, 64)
        phases = self._phases(samples, way, steps)
        weight = 0.0 if samples.dydx is None or regime == "trend" else float(self.derivative_weight)
        recipe: dict[str, Any] = {
            "name": "regressor",
            "target": "arrays",
            "student": {
                "use": "mlp",
                "hidden": [int(width) for width in hidden],
                "activation": activation,
                "scale": "standard",
            },
            "objective": {
                "use": "sobolev",
                "balance": self.balance,
                "derivatives": [{"weight": weight, "loss": "huber"}] if weight else [],
            },
            "train": {
                "steps": 0,
                "batch_size": "all",
                "phases": phases,
                "preflight": False,
                "compile": "auto",
                "log_every": 10**9,
            },
            "dtype": self.dtype,
        }
        if self.validation_fraction is not None:
            metric = "validation/data/value"
            every = max(1, sum(phase["steps"] for phase in phases) // 100)
            recipe["evaluate"] = {"every": every, "splits": ["validation"], "best": metric}
            recipe["train"]["stop"] = {"metric": metric, "patience": self.patience}
        return Recipe(**recipe)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return values ``(n,)``, or ``(n, m)`` where ``fit`` saw two dimensions; on request with their spread.

        Args:
            X: ``(n, d)``.
            return_std: whether to return the standard deviation over the members too, of the same shape.
        """
        values = self._measure(X, partials=False)
        mean = self._shaped(values.mean(0))
        return (mean, self._shaped(values.std(0))) if return_std else mean

    def predict_partials(self, X: Any, return_std: bool = False) -> Any:
        """Return partials ``(n, d)``, or ``(n, m, d)`` where ``fit`` saw y of two dimensions; on request their spread.

        Args:
            X: ``(n, d)``.
            return_std: whether to return the standard deviation over the members too, of the same shape.
        """
        partials = self._measure(X, partials=True)
        mean = self._shaped(partials.mean(0))
        return (mean, self._shaped(partials.std(0))) if return_std else mean

    @without_default
    def export(self, directory: Path | str, formats: Sequence[str] = ("torch", "onnx")) -> list[Path]:
        """Write the networks as graphs that give values and partials; see `sobolev.export`.

        Args:
            directory: folder for the files.
            formats: of ``torch`` (``torch.export``) and ``onnx``.
        """
        from sobolev.export import export_modules

        check_is_fitted(self)
        site = self._site()
        low, high = (_tensor(edge) for edge in self._box)
        places = torch.rand(8, self.n_features_in_, dtype=torch.float64, generator=generator(0, "export"))
        points = torch.lerp(low, high, places).to(DTYPES[self.dtype])
        names = [str(n) for n in getattr(self, "feature_names_in_", [f"x{i}" for i in range(self.n_features_in_)])]
        outputs = [f"y{i}" for i in range(self.n_outputs_)] if self.n_outputs_ > 1 else ["y"]
        return export_modules(
            list(self.student_.values()), HEADS["identity"], site, points, Path(directory), formats, names, outputs
        )

    def _site(self) -> Site:
        return Site({"x": (self.n_features_in_,)}, self.n_outputs_, ("x",))

    def _measure_by(self) -> list[Measurer]:
        policy = Policy(steps=0, compile="never")
        return [Measurer(module.eval(), HEADS["identity"], self._site(), policy) for module in self.student_.values()]

    @without_default
    def _measure(self, X: Any, partials: bool) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        x = _tensor(X).to(DTYPES[self.dtype])
        probe = Probe.full((("x",),) if partials else ())
        found = []
        for part in x.split(_ROWS):
            points = Points({"x": part}, ("x",), torch.arange(len(part)))
            jets = [measurer.measure(points, probe, create_graph=False) for measurer in self._measurers]
            found.append(torch.stack([jet.derivatives[("x",)] if partials else jet.value for jet in jets]))
        members: np.ndarray = torch.cat(found, dim=1).numpy()
        return members

    def _shaped(self, array: np.ndarray) -> np.ndarray:
        return array[:, 0] if self._single else array

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_measurers", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "student_" in state:
            self._measurers = self._measure_by()


def _tensor(array: Any) -> Any:
    return None if array is None else torch.tensor(np.ascontiguousarray(array))


def _counting(samples: Samples) -> Samples:
    """Return the samples whose weight is not 0: what the others are, and how many, makes no difference."""
    return samples if samples.weight is None else samples.take(torch.nonzero(samples.weight > 0)[:, 0])


def _shuffled(samples: Samples, random: np.random.RandomState) -> torch.Tensor:
    return torch.from_numpy(random.permutation(len(samples.x)))


def _partials(dydx: Any, X: np.ndarray, y: np.ndarray, names: Any) -> np.ndarray | None:
    """Return partials as ``(n, m, d)``, or None where none is known.

    Args:
        dydx: as `SobolevRegressor.fit` takes them.
        X: ``(n, d)``.
        y: ``(n, m)``.
        names: of X's columns, or None.

    Raises:
        ValueError: another shape, text, infinities.
    """
    if dydx is None:
        return None
    if hasattr(dydx, "columns") and names is not None and set(dydx.columns) == set(names):
        dydx = dydx[list(names)]
    if isinstance(dydx, np.ma.MaskedArray):
        dydx = np.ma.filled(dydx.astype(np.float64), np.nan)
    elif hasattr(dydx, "isna"):  # pandas, whose own mark of what is missing is no number
        dydx = dydx.astype(object).where(dydx.notna(), np.nan)
    partials = np.asarray(dydx, dtype=np.float64)
    n, d, m = len(X), X.shape[1], y.shape[1]
    allowed = [(n, m, d)] + ([(n, d)] if m == 1 else [])
    if partials.shape not in allowed:
        shown = " or ".join(map(str, allowed))
        raise ValueError(
            f"dydx has the shape {partials.shape}, expected {shown}: (n, m, d), the partials by X's columns"
        )
    if np.isinf(partials).any():
        raise ValueError("dydx holds infinities; a missing partial is NaN")
    return None if np.isnan(partials).all() else partials.reshape(n, m, d)


def _followed(recipe: Recipe, seed: int, target: ArrayTarget, recorder: Recorder) -> None:
    _trained(recipe, target, seed, recorder)


def _trained(recipe: Recipe, target: Target, seed: int, recorder: Recorder | None = None) -> tuple[Experiment, Outcome]:
    registry = Registry()
    for kind, entries in default_host().registry.entries.items():
        registry.entries[kind] = dict(entries)
    registry.register("target", "arrays", lambda: target, "sobolev")
    plan = RunPlan(recipe, "default", seed, Path("regressor"))
    experiment = build(plan, registry, World(torch.device("cpu")), say=lambda _: None)
    outcome = Trainer(experiment, registry, recorder=recorder or Recorder([], say=_warn)).run()
    experiment.module.eval()
    return experiment, outcome


def _warn(text: str) -> None:
    warnings.warn(text.removeprefix("warning: "), stacklevel=2)
