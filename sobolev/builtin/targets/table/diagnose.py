"""Do supplied partials agree with what neighbouring values say? Before anything is trained.

Between two near samples i and j the trapezoid rule holds to third order in their distance,

    f(x_j) - f(x_i) = sum_c  1/2 (g_c(x_i) + g_c(x_j)) (x_jc - x_ic),

so a regression of differences of values on the d terms of the sum must give d coefficients of 1. A coefficient of -1
is a wrong sign, 1000 a wrong unit, the inverse range of every input partials by scaled inputs; a column whose
coefficient fits in the place of another is swapped with it. Noise in the values spoils the residual, not the
coefficients. Samples too far apart for the function say nothing, and then nothing is claimed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sobolev import rounding
from sobolev.wording import plural

Array = NDArray[np.float64]

_POOL = 50_000  # samples among which neighbours are looked for
_ASKED = 1500  # samples whose neighbours are looked at
_FACTOR = 1.4  # a coefficient nearer to 1 may be the curvature of the function
_LARGE = 10.0  # a factor that is told whatever the samples are
_ROUGH = 1.5  # times their size by which partials differ between neighbours, with which smaller ones are not told
_SURE = 6.0  # standard errors
_VAGUE = 0.5  # standard error of a coefficient that says nothing
_CIRCLE = 5  # columns of which all orders are tried
_SIDES = 6  # inputs along which halves of the samples are compared
_FEW = 40  # samples, with which a column is not called unrelated
_KNOWN_FACTORS = {
    1e3: "a factor of 1000 (kilo or milli)", 1e6: "a factor of 10^6 (mega or micro)", 1e2: "a factor of 100 (percent)",
    180 / np.pi: "180/pi (degrees for radians)", 3.6: "3.6 (hours or km/h)", 60.0: "60 (minutes)", 10.0: "10",
    3600.0: "3600 (hours for seconds)", 2 * np.pi: "2 pi (turns for radians)", 1.8: "1.8 (Fahrenheit)",
    25.4: "25.4 (inches)", 2.54: "2.54 (inches)", 0.3048: "0.3048 (feet)",
}  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """What is looked at.

    Attributes:
        x: inputs ``(N, d)``.
        y: values ``(N, m)``, NaN where missing.
        partials: ``(N, m, d)``, NaN where missing.
        inputs: d names.
        outputs: m names.
        columns: (output, input) as positions -> name of the column of a partial; absent where none is recorded.
        place: number of a sample -> where it stands, for people.
        incomplete: where rows stand that are not among them, because an input is missing.
        total: how many there are, if more than these.
    """

    x: Array
    y: Array
    partials: Array
    inputs: Sequence[str]
    outputs: Sequence[str]
    columns: Mapping[tuple[int, int], str]
    place: Callable[[int], str]
    incomplete: Sequence[str] = ()
    total: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        kind: ``sign``, ``swapped``, ``factor``, ``scaled-inputs``, ``scaled-values``, ``unrelated``, ``constant``,
            ``missing``, ``duplicates``; ``undecided``, ``repeated``, ``rounding`` and ``incomplete`` are notes.
        column: the column that it is about, or several.
        message: for people.
        note: whether it is no problem.
    """

    kind: str
    column: str
    message: str
    note: bool = False


@dataclass
class Agreement:
    """How far a column agrees with its neighbours.

    Attributes:
        column: name.
        coefficient: of the regression; 1 where all is well.
        error: its standard error.
        verdict: ``agrees``, ``undecided`` or the kind of a finding.
    """

    column: str
    coefficient: float
    error: float
    verdict: str = "agrees"


@dataclass
class Diagnosis:
    """All that was found.

    Attributes:
        findings: problems and notes.
        agreements: of every column of partials.
        share: by output, the share of the differences between neighbours that the partials explain as they are.
    """

    findings: list[Finding] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    share: dict[str, float] = field(default_factory=dict)

    @property
    def problems(self) -> list[Finding]:
        """Findings that are no notes."""
        return [finding for finding in self.findings if not finding.note]


def diagnose(samples: Samples, seed: int = 0) -> Diagnosis:
    """Compare partials with the differences of neighbouring values."""
    found = Diagnosis()
    _incomplete(samples, found)
    _constants(samples, found)
    pairs = _pairs(samples.x, seed)
    noise = {}
    slots = [_slot(samples, o, pairs) for o in range(len(samples.outputs))]
    crossed = _crossed(samples, slots, pairs)
    for o in range(len(slots)):
        noise[o] = _examine(samples, o, pairs, slots, crossed.get(o, {}), found)
    _duplicates(samples, noise, found)
    _merge_swaps(found)
    return found


# -- single columns ----------------------------------------------------------------------------------------------------


def _incomplete(samples: Samples, found: Diagnosis) -> None:
    """Say which rows were not looked at; training refuses them too, until it is told to drop them."""
    if not samples.incomplete:
        return
    count, shown = len(samples.incomplete), ", ".join(samples.incomplete[:3])
    text = (
        f"{plural(count, 'row')} without some input ({shown}{', ...' if count > 3 else ''}): not looked at, and "
        "training refuses such rows unless the recipe's table says 'missing_inputs: drop'"
    )
    found.findings.append(Finding("incomplete", ", ".join(samples.inputs), text, note=True))


def _constants(samples: Samples, found: Diagnosis) -> None:
    for name, column in [
        *zip(samples.inputs, samples.x.T, strict=True),
        *zip(samples.outputs, samples.y.T, strict=True),
    ]:
        known = column[~np.isnan(column)]
        if len(known) > 1 and np.ptp(known) == 0:
            found.findings.append(Finding("constant", name, f"column {name!r} is {known[0]:g} in every row"))
    for (o, i), name in samples.columns.items():
        missing = float(np.isnan(samples.partials[:, o, i]).mean())
        if missing > 0:
            text = f"column {name!r}: {100 * missing:.3g} % of the partials are missing; they are masked"
            found.findings.append(Finding("missing", name, text, note=missing < 0.95))


def _duplicates(samples: Samples, noise: Mapping[int, float], found: Diagnosis) -> None:
    """Name rows with equal inputs whose values or partials differ, by more than the noise of the values."""
    _, inverse, counts = np.unique(samples.x, axis=0, return_inverse=True, return_counts=True)
    groups = np.flatnonzero(counts > 1)
    if not len(groups):
        return
    order = np.argsort(inverse.ravel(), kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns = [(name, samples.y[:, o], noise.get(o, 0.0)) for o, name in enumerate(samples.outputs)]
    columns += [(name, samples.partials[:, o, i], 0.0) for (o, i), name in samples.columns.items()]
    for name, numbers, expected in columns:
        scale = np.nanmax(np.abs(numbers)) if np.isfinite(numbers).any() else 0.0
        worst, where, several = 0.0, (0, 0), 0
        for group in groups:
            rows = order[starts[group] : starts[group + 1]]
            rows = rows[~np.isnan(numbers[rows])]
            if len(rows) < 2:
                continue
            low, high = rows[np.argmin(numbers[rows])], rows[np.argmax(numbers[rows])]
            spread = float(numbers[high] - numbers[low])
            several += spread > 1e-6 * scale
            if spread > worst:
                worst, where = spread, (int(min(low, high)), int(max(low, high)))
        if worst <= 1e-6 * scale:
            continue
        first, second = where
        text = (
            f"column {name!r}: {plural(several, 'set')} of equal inputs with different numbers, at most "
            f"{numbers[first]:g} "
            f"({samples.place(first)}) and {numbers[second]:g} ({samples.place(second)})"
        )
        if worst <= 6 * expected:
            found.findings.append(
                Finding("repeated", name, f"{text}: repeated measurements, within the noise", note=True)
            )
        else:
            found.findings.append(Finding("duplicates", name, text))


# -- pairs of neighbours -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    step: Array
    middle: Array
    distance: Array


def _pairs(x: Array, seed: int) -> _Pairs:
    """Return pairs of near samples: for up to `_ASKED` samples their nearest neighbours, inputs standardised."""
    random = np.random.default_rng(seed)
    rows = np.arange(len(x)) if len(x) <= _POOL else np.sort(random.choice(len(x), _POOL, replace=False))
    spread = x[rows].std(axis=0)
    unit = (x[rows] - x[rows].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    asked = np.arange(len(rows)) if len(rows) <= _ASKED else random.choice(len(rows), _ASKED, replace=False)
    count = min(len(rows), 2 * x.shape[1] + 4)
    distance, near = cKDTree(unit).query(unit[asked], k=max(2, count)) if len(rows) > 1 else (np.zeros((1, 1)),) * 2
    first = np.repeat(asked, near.shape[1])
    second, distance = near.ravel().astype(np.int64), distance.ravel()
    keep = (distance > 1e-9) & (second < len(rows))
    first, second, distance = first[keep], second[keep], distance[keep]
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, unique = np.unique(low * len(rows) + high, return_index=True)
    first, second = rows[first[unique]], rows[second[unique]]
    return _Pairs(first, second, x[second] - x[first], 0.5 * (x[first] + x[second]), distance[unique])


def _slot(samples: Samples, o: int, pairs: _Pairs) -> Array:
    """Return the mean partials ``(P, d)`` of an output over every pair, NaN where one of the two is missing."""
    mean: Array = 0.5 * (samples.partials[pairs.first, o] + samples.partials[pairs.second, o])
    return mean


# -- regression --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    coefficients: Array
    errors: Array
    residual: float


def _fit(features: Array, target: Array, weight: Array, cluster: NDArray[np.int64]) -> _Fit:
    """Weighted least squares, twice: the second time without the pairs that fit worst; errors by clusters."""
    root = np.sqrt(weight)
    scale = np.sqrt(np.mean((features * root[:, None]) ** 2, axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    a, b = features / scale * root[:, None], target * root
    keep = np.ones(len(b), dtype=bool)
    for _ in range(2):
        solution, *_rest = np.linalg.lstsq(a[keep], b[keep], rcond=1e-10)
        residual = b - a @ solution
        keep = np.abs(residual) <= np.quantile(np.abs(residual), 0.98)
    inverse = np.linalg.pinv(a[keep].T @ a[keep], rcond=1e-10, hermitian=True)
    scores = a[keep] * (b[keep] - a[keep] @ solution)[:, None]
    order = np.argsort(cluster[keep], kind="stable")
    _, starts = np.unique(cluster[keep][order], return_index=True)
    sums = np.add.reduceat(scores[order], starts, axis=0)
    covariance = inverse @ (sums.T @ sums) @ inverse
    kept = b[keep] - a[keep] @ solution
    return _Fit(solution / scale, np.sqrt(np.maximum(np.diag(covariance), 0)) / scale, float(kept @ kept))


@dataclass
class _Problem:
    """Everything about one output between neighbours.

    Attributes:
        inputs: positions of the inputs whose partials are compared.
        names: their columns.
        terms: ``(P, c)`` of these columns.
        nuisance: ``(P, n)`` for the other inputs: slopes that are linear in x.
        change: ``(P,)`` differences of values.
        weight: ``(P,)`` of pairs; near ones count more.
        cluster: ``(P,)`` the sample that a pair was found from.
        distance: ``(P,)`` in units of its median.
        step: ``(P, d)`` differences of inputs.
        middle: ``(P, d)`` the points between.
        jumps: ``(P, c)`` by how much a partial differs between the two, times the step.
        keep: ``(all pairs,)`` which pairs these are.
    """

    inputs: list[int]
    names: list[str]
    terms: Array
    nuisance: Array
    change: Array
    weight: Array
    cluster: NDArray[np.int64]
    distance: Array
    step: Array
    middle: Array
    jumps: Array
    keep: NDArray[np.bool_]

    def part(self, pairs: NDArray[np.bool_]) -> _Problem:
        """Return the same for some of the pairs."""
        arrays = ("terms", "nuisance", "change", "weight", "cluster", "distance", "step", "middle", "jumps")
        return replace(self, **{name: getattr(self, name)[pairs] for name in arrays})

    def fit(self, terms: Array | None = None, curved: bool = False, change: Array | None = None) -> _Fit:
        """Fit coefficients of terms and nuisances; ``curved`` allows the rule's error, which grows with distance^2."""
        terms = self.terms if terms is None else terms
        parts = [terms, self.nuisance]
        if curved:
            parts.append(terms * (self.distance**2)[:, None])
        return _fit(np.concatenate(parts, axis=1), self.change if change is None else change, self.weight, self.cluster)


def _slopes(step: Array, middle: Array) -> Array:
    """Return features of an unknown slope along one input: linear in x and, with many pairs, squares: ``(P, n)``."""
    centred = middle - middle.mean(axis=0)
    parts = [np.ones((len(step), 1)), centred]
    if len(step) > 20 * middle.shape[1] ** 2:
        parts.append(centred**2)
    slopes: Array = step[:, None] * np.concatenate(parts, axis=1)
    return slopes


def _problem(samples: Samples, o: int, slot: Array, pairs: _Pairs, flat: Sequence[int]) -> _Problem | str:
    """Gather what is known of one output, or say why nothing can be told; ``flat`` are inputs of constant partials."""
    recorded = [i for i in range(len(samples.inputs)) if (o, i) in samples.columns]
    inputs = [i for i in recorded if i not in flat]
    change = samples.y[pairs.second, o] - samples.y[pairs.first, o]
    keep = ~np.isnan(change) & ~np.isnan(slot[:, recorded]).any(axis=1)
    absent = [i for i in range(len(samples.inputs)) if i not in inputs]
    needed = 4 * len(inputs) + 2 * len(absent) * (1 + len(samples.inputs)) + 4
    if keep.sum() < needed:
        return f"there are {int(keep.sum())} pairs of neighbours with all numbers known, {needed} are needed"
    step, middle, distance = pairs.step[keep], pairs.middle[keep], pairs.distance[keep]
    nuisance = [_slopes(step[:, i], middle) for i in absent]
    return _Problem(
        inputs,
        [samples.columns[o, i] for i in inputs],
        slot[keep][:, inputs] * step[:, inputs],
        np.concatenate(nuisance, axis=1) if nuisance else np.empty((int(keep.sum()), 0)),
        change[keep],
        _weights(change[keep], distance, pairs.first[keep]),
        pairs.first[keep],
        distance / np.median(distance),
        step,
        middle,
        (samples.partials[pairs.second, o] - samples.partials[pairs.first, o])[keep][:, inputs] * step[:, inputs],
        keep,
    )


def _weights(change: Array, distance: Array, cluster: NDArray[np.int64]) -> Array:
    """Return weights of pairs: near ones count more, and steep regions no more than flat ones."""
    _, of_pair = np.unique(cluster, return_inverse=True)
    slope = np.sqrt(np.bincount(of_pair, (change / distance) ** 2) / np.bincount(of_pair))
    local = slope[of_pair] ** 2 + (0.3 * np.median(slope)) ** 2 + 1e-300
    weights: Array = 1.0 / (distance**2 + np.quantile(distance, 0.2) ** 2) / local
    return weights


def _examine(
    samples: Samples, o: int, pairs: _Pairs, slots: Sequence[Array], crossed: Mapping[int, str], found: Diagnosis
) -> float:
    """Judge the columns of one output; returns the noise of its values, as far as neighbours show it."""
    recorded = [i for i in range(len(samples.inputs)) if (o, i) in samples.columns]
    if not recorded:
        return 0.0
    flat = [i for i in recorded if np.ptp(known := _known(samples.partials[:, o, i])) == 0 and len(known) > 1]
    problem = _problem(samples, o, slots[o], pairs, flat)
    names = [samples.columns[o, i] for i in recorded]
    if isinstance(problem, str):
        found.agreements += [Agreement(name, np.nan, np.nan, "undecided") for name in names]
        text = f"partials of {samples.outputs[o]!r} cannot be judged: {problem}"
        found.findings.append(Finding("undecided", ", ".join(names), text, note=True))
        return 0.0
    total = float(problem.weight @ problem.change**2)
    if total == 0:
        found.agreements += [Agreement(name, np.nan, np.nan, "undecided") for name in names]
        return 0.0
    free = problem.fit()
    judged = [Agreement(n, float(b), float(e)) for n, b, e in zip(problem.names, free.coefficients, free.errors)]
    for c in _suspects(problem, free):
        judged[c].verdict = "suspect"
    before = len(found.findings)
    _explain(samples, o, problem, slots, free, crossed, judged, found)
    for agreement in judged:
        b, e = agreement.coefficient, agreement.error
        off = not 1 / _FACTOR < b < _FACTOR and abs(b - 1) > 3 * e
        if agreement.verdict == "agrees" and (off or e > _VAGUE):
            agreement.verdict = "undecided"
    let_off = [c for c, agreement in enumerate(judged) if agreement.verdict in ("agrees", "undecided")]
    rounded = [c for c in let_off if _rounded(samples, o, problem.inputs[c])]
    for c in rounded:  # a coefficient of rounding errors says nothing
        judged[c] = _flat(samples, o, problem.inputs[c], problem, pairs, slots[o], found)
    for i in flat:
        judged.append(_flat(samples, o, i, problem, pairs, slots[o], found))
    found.agreements += judged
    plain = problem.change - problem.terms.sum(axis=1)
    if problem.nuisance.shape[1]:
        fitted = _fit(problem.nuisance, plain, problem.weight, problem.cluster).coefficients
        plain = plain - problem.nuisance @ fitted
    share = 1 - float(problem.weight @ plain**2) / total
    found.share[samples.outputs[o]] = share
    if share < 0.5 and len(found.findings) == before:
        text = (
            f"partials of {samples.outputs[o]!r} explain {100 * max(0.0, share):.0f} % of the differences between "
            "neighbours: the samples are too far apart for this function, or its numbers too noisy, to tell more"
        )
        found.findings.append(Finding("undecided", ", ".join(names), text, note=True))
        for agreement in judged:
            agreement.verdict = "undecided"
    for c in rounded:
        if judged[c].verdict != "constant":
            text = f"column {judged[c].column!r} is zero up to rounding"
            found.findings.append(Finding("rounding", judged[c].column, text, note=True))
    return float(1.4826 * np.median(np.abs(plain))) if share > 0.5 else 0.0


def _known(numbers: Array) -> Array:
    known: Array = numbers[~np.isnan(numbers)]
    return known if len(known) else np.zeros(1)


def _rounded(samples: Samples, o: int, i: int) -> bool:
    """Return whether the partials of an output by an input are so small that values do not show them."""
    size = float(np.sqrt(np.mean(_known(samples.partials[:, o, i]) ** 2)))
    return size * float(samples.x[:, i].std()) < rounding.PARTIAL * float(_known(samples.y[:, o]).std())


def _partial_r2(problem: _Problem, c: int, free: _Fit) -> float:
    """Return which share of what the other terms leave is explained by term ``c``."""
    without = problem.fit(np.delete(problem.terms, c, axis=1))
    return 1 - free.residual / without.residual if without.residual > 0 else 1.0


def _left_by_slopes(problem: _Problem, c: int, free: _Fit) -> float:
    """Return the share of the residual that is left if a smooth slope stands in the place of term ``c``."""
    slopes = _slopes(problem.step[:, problem.inputs[c]], problem.middle)
    terms = np.concatenate([np.delete(problem.terms, c, axis=1), slopes], axis=1)
    return problem.fit(terms).residual / free.residual if free.residual > 0 else 1.0


def _suspects(problem: _Problem, free: _Fit) -> list[int]:
    """Return the terms whose coefficient is surely not 1, also with an allowance for curvature."""
    curved = problem.fit(curved=True)
    few = 1 + 20 / len(np.unique(problem.cluster))  # of few samples the errors are underestimated
    found = []
    for c in range(len(problem.inputs)):
        off = []
        for fit in (free, curved):
            b, e = float(fit.coefficients[c]), float(fit.errors[c])
            off.append((b <= 0 or max(b, 1 / b) > _FACTOR) and abs(b - 1) > _SURE * few * e)
        idle = abs(free.coefficients[c]) <= 3 * free.errors[c]
        if off[0] and idle and _left_by_slopes(problem, c, free) < 0.25:
            found.append(c)
        elif all(off) and (free.coefficients[c] - 1) * (curved.coefficients[c] - 1) > 0:
            found.append(c)
    return found


# -- what is wrong -----------------------------------------------------------------------------------------------------


def _explain(
    samples: Samples,
    o: int,
    problem: _Problem,
    slots: Sequence[Array],
    free: _Fit,
    crossed: Mapping[int, str],
    judged: list[Agreement],
    found: Diagnosis,
) -> None:
    """Say what is wrong with the suspects of one output; those that cannot be explained are let off."""
    suspects = [c for c, agreement in enumerate(judged) if agreement.verdict == "suspect"]
    foreign = _foreign(samples, o, problem, slots, suspects, free)
    foreign |= {c: crossed[i] for c, i in enumerate(problem.inputs) if i in crossed}
    for c, column in {**foreign, **_permuted(problem, slots[o], suspects, free)}.items():
        judged[c].verdict = "swapped"
        text = f"{judged[c].column!r} does not fit the values in its place, {column!r} does"
        found.findings.append(Finding("swapped", f"{judged[c].column}, {column}", text))
    if any(agreement.verdict == "swapped" for agreement in judged):
        for c in suspects:  # what is left over may be no more than the trace of the swap
            if judged[c].verdict == "suspect":
                judged[c].verdict = "undecided"
        return
    tests = (_certain, _steady, _resolved)
    sure = [c for c in suspects if all(test(problem, c, free) for test in tests)]
    for c in suspects:
        judged[c].verdict = "undecided" if c not in sure else judged[c].verdict
    scaled = _scaled(samples, o, problem, free, sure)
    if scaled is not None:
        found.findings.append(scaled)
        for c in sure:
            judged[c].verdict = scaled.kind
        return
    for c in sure:
        b, e = float(free.coefficients[c]), float(free.errors[c])
        column, name = judged[c].column, samples.inputs[problem.inputs[c]]
        if abs(b) <= 3 * e:
            kind, text = "unrelated", f"column {column!r} has nothing to do with how the values change along {name!r}"
        elif b < 0:
            kind, text = (
                "sign",
                f"column {column!r} has the wrong sign: values fall along {name!r} where it says they rise",
            )
            if not 1 / _FACTOR < -b < _FACTOR:
                text += f"; besides, it is {_times(-b)}"
        else:
            kind, text = "factor", f"column {column!r} is {_times(b)}"
        judged[c].verdict = kind
        found.findings.append(Finding(kind, column, text))


def _times(b: float) -> str:
    factor = 1 / b
    size = factor if factor > 1 else b
    hint = next((f"; {text}?" for known, text in _KNOWN_FACTORS.items() if abs(size / known - 1) < 0.03), "")
    if factor > 1:
        return f"{factor:.4g} times as large as the values say{hint}"
    return f"{1 / factor:.4g} times smaller than the values say{hint}"


def _certain(problem: _Problem, c: int, free: _Fit) -> bool:
    """Return whether a coefficient other than 1 cannot come from noise in the partials or from curvature.

    Noise in a column pulls its coefficient b from 1 towards 0, but then the column explains at most a share b of what
    the others leave. A column that is merely scaled explains nearly all of it.
    """
    b, share = float(free.coefficients[c]), _partial_r2(problem, c, free)
    if abs(b) <= 3 * free.errors[c]:  # then some other slope, smooth in x, must do what the column does not
        if len(np.unique(problem.cluster)) < _FEW:
            return False
        return _left_by_slopes(problem, c, free) < 0.5
    if b < 0:
        return share > 0.3
    return share > (max(0.5, min(0.9, b + 0.25)) if b < 1 else 0.5)


def _steady(problem: _Problem, c: int, free: _Fit) -> bool:
    """Return whether a coefficient is off everywhere: among near pairs and far ones, where it is steep and where not.

    A wrong factor is. Where the samples are too far apart for the function the coefficients are any number, and
    another one in every part of the samples.
    """
    b = float(free.coefficients[c])
    steep = np.abs(problem.terms[:, c]) / np.maximum(np.abs(problem.step[:, problem.inputs[c]]), 1e-300)
    sides = [problem.distance, steep, *problem.middle.T[:_SIDES]]
    for side in sides:
        upper = side > np.median(side)
        for half in (upper, ~upper):
            part = problem.part(half)
            if len(part.change) < 4 * (part.terms.shape[1] + part.nuisance.shape[1]):
                continue
            fit = part.fit()
            here, error = float(fit.coefficients[c]), float(fit.errors[c])
            if error > 0.25 * abs(here):
                continue
            if here * b <= 0 or (b > 0 and np.log(here) / np.log(b) < 0.5):
                return False
    return True


def _resolved(problem: _Problem, c: int, free: _Fit) -> bool:
    """Return whether a factor can be told.

    Where partials change by more than their size between neighbours it must be a large one, and a sign the only fault.
    """
    b = float(free.coefficients[c])
    jump, size = (float(problem.weight @ parts[:, c] ** 2) for parts in (problem.jumps, problem.terms))
    if jump < _ROUGH**2 * size:
        return True
    return max(b, 1 / b) > _LARGE if b > 0 else 1 / 3 < -b < 3


def _permuted(problem: _Problem, slot: Array, suspects: Sequence[int], free: _Fit) -> dict[int, str]:
    """Return suspects in whose place another column of the same output fits: swaps of two, then of more."""
    own = slot[problem.keep][:, problem.inputs]
    step = problem.step[:, problem.inputs]
    count = len(problem.inputs)

    def fits(order: Sequence[int]) -> float:
        moved = [c for c in range(count) if order[c] != c]
        fit = problem.fit(own[:, list(order)] * step)
        good = all(abs(fit.coefficients[c] - 1) < max(0.25, 3 * fit.errors[c]) for c in moved)
        return fit.residual if good else np.inf

    def plain(order: Sequence[int]) -> float:  # with all coefficients at 1
        terms = own[:, list(order)] * step
        fit = problem.fit(np.empty((len(step), 0)), change=problem.change - terms.sum(axis=1))
        return fit.residual

    best, chosen = 0.5 * free.residual, None
    given = 0.5 * plain(range(count))
    for a, b in itertools.combinations(range(count), 2):
        order = list(range(count))
        order[a], order[b] = b, a
        # Sure without a look at coefficients: swapped, the columns leave less than half of what they leave as they are.
        better = plain(order) < given
        residual = fits(order) if better or a in suspects or b in suspects else np.inf
        if residual < best or (better and residual < free.residual and chosen is None):
            best, chosen = residual, order
    moving = range(count) if count <= _CIRCLE else suspects if len(suspects) <= _CIRCLE else []
    for cycle in itertools.permutations(moving):
        order = list(range(count))
        for place, column in zip(moving, cycle, strict=True):
            order[place] = column
        if sum(order[c] != c for c in range(count)) >= 3 and plain(order) < 0.5 * given:
            residual = fits(order)
            if residual < 0.5 * best:
                best, chosen = residual, order
    if chosen is None:
        return {}
    return {c: problem.names[chosen[c]] for c in range(count) if chosen[c] != c}


@dataclass(frozen=True)
class _Near:
    """Steps ``(P, d)``; by output changes of values ``(P,)``, mean partials ``(P, d)``, weights ``(P,)``."""

    step: Array
    change: Mapping[int, Array]
    slopes: Mapping[int, Array]
    weight: Mapping[int, Array]

    def left(self, o: int, by: int, swapped: Sequence[int]) -> float:
        """Return what columns of another output leave, as a share of what those of this one leave, or of all."""
        change, weight = self.change[o], self.weight[o]
        taken = self.slopes[o].copy()
        taken[:, swapped] = self.slopes[by][:, swapped]
        given, instead = (change - (slopes * self.step).sum(axis=1) for slopes in (self.slopes[o], taken))
        before = min(weight @ given**2, weight @ change**2)
        return float(weight @ instead**2 / before) if before > 0 else 1.0


def _crossed(samples: Samples, slots: Sequence[Array], pairs: _Pairs) -> dict[int, dict[int, str]]:
    """Return columns that are swapped between two values, by output and input: those that fit in their places.

    Sure without a look at coefficients: swapped, they leave less than half of what they leave as they are, for both
    values. Values of which every partial is recorded are compared.
    """
    inputs = range(len(samples.inputs))
    found: dict[int, dict[int, str]] = {}
    whole = [o for o in range(len(samples.outputs)) if all((o, i) in samples.columns for i in inputs)]
    for one, other in itertools.combinations(whole, 2):
        change = samples.y[pairs.second] - samples.y[pairs.first]
        known = ~np.isnan(np.stack([*slots[one].T, *slots[other].T, change[:, one], change[:, other]])).any(axis=0)
        if known.sum() < 8 * len(inputs) + 4:
            continue
        both = {o: change[known, o] for o in (one, other)}
        weights = {o: _weights(c, pairs.distance[known], pairs.first[known]) for o, c in both.items()}
        near = _Near(pairs.step[known], both, {o: slots[o][known] for o in both}, weights)
        sizes = range(1, len(inputs) + 1) if len(inputs) <= _CIRCLE else (1, len(inputs))
        ways = [[*way] for size in sizes for way in itertools.combinations(inputs, size)]
        left, swapped = min((max(near.left(one, other, way), near.left(other, one, way)), way) for way in ways)
        for i in swapped if left < 0.5 else []:
            found.setdefault(one, {})[i] = samples.columns[other, i]
            found.setdefault(other, {})[i] = samples.columns[one, i]
    return found


def _foreign(
    samples: Samples, o: int, problem: _Problem, slots: Sequence[Array], suspects: Sequence[int], free: _Fit
) -> dict[int, str]:
    """Return suspects in whose place a column of another output fits."""
    found = {}
    for c in suspects:
        best = 0.5 * free.residual
        for (other, i), name in samples.columns.items():
            if other == o:
                continue
            column = slots[other][problem.keep, i]
            if np.isnan(column).any():
                continue
            terms = problem.terms.copy()
            terms[:, c] = column * problem.step[:, problem.inputs[c]]
            fit = problem.fit(terms)
            if fit.residual < best and abs(fit.coefficients[c] - 1) < max(0.1, 3 * fit.errors[c]):
                best, found[c] = fit.residual, name
    return found


def _scaled(samples: Samples, o: int, problem: _Problem, free: _Fit, sure: Sequence[int]) -> Finding | None:
    """Return what one scaling of inputs, values or both explains in all columns of an output together."""
    coefficients = free.coefficients[: len(problem.inputs)]
    if len(sure) < 2 or (coefficients <= 0).any():
        return None
    x, y = samples.x[:, problem.inputs], _known(samples.y[:, o])
    of_inputs = {
        "scaled to [0, 1]": np.ptp(x, axis=0),
        "scaled to [-1, 1]": np.ptp(x, axis=0) / 2,
        "standardised": x.std(axis=0),
    }
    of_values = {"scaled to [0, 1]": np.ptp(y), "scaled to [-1, 1]": np.ptp(y) / 2, "standardised": y.std()}
    explanations: list[tuple[str, str, Array]] = []
    for how, widths in of_inputs.items():
        explanations.append(("scaled-inputs", f"by inputs that are {how}", 1 / widths))
    for how, width in of_values.items():
        explanations.append(("scaled-values", f"of values that are {how}", np.full(len(x.T), width)))
        if how in of_inputs:
            both = width / of_inputs[how]
            explanations.append(("scaled-inputs", f"of values by inputs that are both {how}", both))
    columns = ", ".join(problem.names)
    off = [(float(np.abs(np.log(coefficients / e)).max()), kind, text) for kind, text, e in explanations]
    distance, kind, text = min(off)
    errors = free.errors[: len(problem.inputs)]
    if distance < min(0.35, 0.12 + 2 * float((errors / coefficients).max())):
        return Finding(kind, columns, f"the partials of {samples.outputs[o]!r} ({columns}) are derivatives {text}")
    if np.ptp(np.log(coefficients)) < 0.12:
        factor = float(np.exp(np.log(coefficients).mean()))
        text = f"all partials of {samples.outputs[o]!r} ({columns}) are {_times(factor)}"
        return Finding("factor", columns, f"{text}; or its values are in another unit")
    return None


def _flat(
    samples: Samples, o: int, i: int, problem: _Problem, pairs: _Pairs, slot: Array, found: Diagnosis
) -> Agreement:
    """Judge a column that is constant: right for a function that is linear along its input, else a mistake.

    A column among those that were compared is taken for zero.
    """
    name, compared = samples.columns[o, i], i in problem.inputs
    number = 0.0 if compared else float(_known(samples.partials[:, o, i])[0])
    shown = "zero up to rounding" if compared else f"{number:g}"
    slopes = _slopes(problem.step[:, i], problem.middle)
    others = [j for j in range(len(samples.inputs)) if j not in problem.inputs and j != i]
    rest = [_slopes(problem.step[:, j], problem.middle) for j in others]
    terms = problem.terms[:, [j != i for j in problem.inputs]]
    base = np.concatenate([terms, *rest], axis=1)
    change = problem.change - number * problem.step[:, i]
    without = _fit(base, change, problem.weight, problem.cluster) if base.shape[1] else None
    with_it = _fit(np.concatenate([base, slopes], axis=1), change, problem.weight, problem.cluster)
    before = without.residual if without is not None else float(problem.weight @ change**2)
    count = len(np.unique(problem.cluster))
    sure = before - with_it.residual > 2 * _SURE**2 * slopes.shape[1] * with_it.residual / count
    # What is left of numbers that agree is their rounding, and that may look like anything.
    term, whole = number * problem.step[:, i], problem.change
    rounded = 1e-4 * float(problem.weight @ term**2) + 1e-8 * float(problem.weight @ whole**2)
    enough = count >= 4 * slopes.shape[1]
    if before > 1.5 * with_it.residual and sure and enough and before > rounded:
        text = f"column {name!r} is {shown} in every row, but the values change along {samples.inputs[i]!r} otherwise"
        found.findings.append(Finding("constant", name, text))
        return Agreement(name, np.nan, np.nan, "constant")
    return Agreement(name, np.nan, np.nan, "agrees")


def _merge_swaps(found: Diagnosis) -> None:
    """Turn two findings that mirror each other into one."""
    swaps = {tuple(f.column.split(", ")): f for f in found.findings if f.kind == "swapped"}
    for pair, finding in swaps.items():
        mirror = swaps.get(pair[::-1])
        if mirror is not None and finding in found.findings and mirror in found.findings and finding is not mirror:
            found.findings.remove(mirror)
            text = f"columns {pair[0]!r} and {pair[1]!r} are swapped"
            found.findings[found.findings.index(finding)] = Finding("swapped", finding.column, text)
