"""Surrogates of values and partials: `SobolevRegressor` against JENN, SMT's GENN and GEKPLS, and plain kriging.

    python benchmarks/surrogates.py tune                 every configuration on the development seed
    python benchmarks/surrogates.py run                  defaults and the best configurations on fresh seeds
    python benchmarks/surrogates.py table                the tables of docs/surrogates.md from the results
    python benchmarks/surrogates.py --quick              two functions, 20 points, one seed: under a minute

Every method gets the same points with the same partials and is measured on the same test set. Results are appended
to ``benchmarks/results/surrogates.jsonl`` one by one; what is there is not run again. A fit that outlasts its limit
of time or memory is recorded as unfinished. All runs on one core; ``--json FILE`` writes what was asked for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before NumPy is there: its BLAS starts as many threads as there are cores, which would wait for each other on one.
for _library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from _common import machine, shown, write  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "surrogates.jsonl"
FUNCTIONS = ("ackley", "beale", "booth", "bukin", "mccormick", "rosenbrock", "styblinski-tang")
HIGH = ("styblinski-tang", "rosenbrock", "ackley")
TEST_POINTS = 2000
DEVELOPMENT = 1000  # the seed that configurations were chosen with
SEEDS = (0, 1, 2, 3, 4)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # x (n, d), y (n,), dydx (n, d)
Fitted = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # x -> values (n,), partials (n, d)


@dataclass(frozen=True)
class Case:
    """A function from ``points`` samples in ``dimension`` variables."""

    function: str
    dimension: int
    points: int


def sampled(case: Case, split: str, count: int, seed: int) -> Arrays:
    """Return uniform points of a function's box with exact values and partials."""
    import torch

    from sobolev.builtin.targets.functions import FUNCTIONS as FORMULAS
    from sobolev.noise import stream

    formula = FORMULAS[case.function]
    low, high = (
        np.array((*edge, *[edge[-1]] * case.dimension)[: case.dimension]) for edge in (formula.low, formula.high)
    )
    random = np.random.default_rng(stream("surrogates", case.function, case.dimension, split, seed))
    x = low + (high - low) * random.random((count, case.dimension))
    inputs = torch.from_numpy(x).requires_grad_()
    y = formula.value(inputs)
    (partials,) = torch.autograd.grad(y.sum(), inputs)
    return x, y.detach().numpy(), partials.numpy()


# -- methods: the first configuration of each is its documented default -------------------------------------------


def fit_sobolev(data: Arrays, seed: int, **options: Any) -> Fitted:
    from sobolev import SobolevRegressor

    x, y, partials = data
    model = SobolevRegressor(random_state=seed, **options).fit(x, y, partials)
    return lambda at: (model.predict(at), model.predict_partials(at))


def fit_jenn(data: Arrays, seed: int, hidden: tuple[int, ...] = (12, 12), **options: Any) -> Fitted:
    import jenn

    x, y, partials = data
    model = jenn.NeuralNet([x.shape[1], *hidden, 1])
    model.fit(x.T, y[None], partials.T[None], random_state=seed, **options)
    return lambda at: (model.predict(at.T)[0], model.predict_partials(at.T)[0].T)


def _smt(model: Any, data: Arrays, partials: bool, step: float | None = None) -> Fitted:
    """Train a model of SMT; with a step, in ranges of the inputs, partials are central differences of its values."""
    x, y, dydx = data
    model.set_training_values(x, y[:, None])
    if partials:
        for i in range(x.shape[1]):
            model.set_training_derivatives(x, dydx[:, [i]], i)
    model.train()

    def partial(at: np.ndarray, i: int) -> np.ndarray:
        if step is None:
            return np.asarray(model.predict_derivatives(at, i)[:, 0])
        aside = np.zeros(x.shape[1])
        aside[i] = step * (x[:, i].max() - x[:, i].min())
        difference = model.predict_values(at + aside) - model.predict_values(at - aside)
        return np.asarray(difference[:, 0] / (2 * aside[i]))

    return lambda at: (
        model.predict_values(at)[:, 0],
        np.stack([partial(at, i) for i in range(x.shape[1])], axis=1),
    )


def fit_genn(data: Arrays, seed: int, **options: Any) -> Fitted:
    from smt.surrogate_models import GENN

    return _smt(GENN(print_global=False, seed=seed, **options), data, partials=True)


def fit_gekpls(data: Arrays, seed: int, **options: Any) -> Fitted:
    from smt.surrogate_models import GEKPLS

    x = data[0]
    low, high = x.min(0), x.max(0)
    options = {"theta0": [0.01] * min(2, x.shape[1]), "xlimits": np.stack([low, high], axis=1), **options}
    # Its own partials take twenty minutes in 20 dimensions, and agree with these to 2e-7 of the largest.
    step = 1e-4 if x.shape[1] > 2 else None
    return _smt(GEKPLS(print_global=False, seed=seed, **options), data, partials=True, step=step)


def fit_kriging(data: Arrays, seed: int, **options: Any) -> Fitted:
    from smt.surrogate_models import KRG

    return _smt(KRG(print_global=False, seed=seed, **options), data, partials=False)


FIRST, CONFIGURATIONS = 30, 60
"""Of each peer, at first and in all: as many as `SobolevRegressor` was tried with by hand, on development seeds."""


def _configurations(
    first: list[dict[str, Any]], fixed: dict[str, Any], wider: dict[str, tuple[Any, ...]], **choices: tuple[Any, ...]
) -> Any:
    """Return the first ones, then other combinations of the choices, then wider ones: `CONFIGURATIONS` in all.

    Of every choice the first value is the default, which is not spelled out: no configuration appears twice. Results
    are stored by place: what is added goes to the end.
    """
    found = list(first)
    for values in itertools.product(*choices.values()):
        named = zip(choices, values, strict=True)
        options = {**fixed, **{name: value for name, value in named if value != choices[name][0]}}
        if options not in found:
            found.append(options)
    for values in itertools.product(*wider.values()):
        found.append({**fixed, **dict(zip(wider, values, strict=True))})
    return found[:CONFIGURATIONS]


LONGER_JENN: dict[str, tuple[Any, ...]] = {
    "hidden": ((12, 12), (32, 32), (32, 32, 32)),
    "max_iter": (10000, 20000),
    "alpha": (0.005, 0.002, 0.001, 0.0005),
}
LONGER_GENN: dict[str, tuple[Any, ...]] = {
    "hidden_layer_sizes": ([12, 12], [32, 32], [32, 32, 32]),
    "num_iterations": (10000, 20000),
    "alpha": (0.005, 0.002, 0.001, 0.0005),
}


METHODS: dict[str, tuple[Callable[..., Fitted], list[dict[str, Any]]]] = {
    "sobolev": (
        fit_sobolev,
        [{}, {"balance": "joint"}, {"activation": "tanh"}, {"regime": "exact"}],
    ),
    "jenn": (
        fit_jenn,
        _configurations(
            [
                {},
                {"is_normalize": True},
                {"is_normalize": True, "max_iter": 5000},
                {"is_normalize": True, "max_iter": 5000, "hidden": (64, 64), "alpha": 0.01},
            ],
            {"is_normalize": True},
            LONGER_JENN,
            lambd=(0.0, 0.01),
            max_iter=(1000, 5000),
            hidden=((12, 12), (32, 32), (64, 64)),
            alpha=(0.05, 0.01, 0.002),
        ),
    ),
    "genn": (
        fit_genn,
        _configurations(
            [
                {},
                {"lambd": 0.0},
                {"lambd": 0.0, "num_iterations": 5000},
                {"lambd": 0.0, "num_iterations": 5000, "hidden_layer_sizes": [64, 64], "alpha": 0.01},
            ],
            {},
            LONGER_GENN,
            lambd=(0.01, 0.0),
            num_iterations=(1000, 5000),
            hidden_layer_sizes=([12, 12], [32, 32], [64, 64]),
            alpha=(0.05, 0.01, 0.002),
        ),
    ),
    "gekpls": (
        fit_gekpls,
        _configurations(
            [{}, {"extra_points": 1}, {"extra_points": 2}, {"extra_points": 2, "delta_x": 1e-2}],
            {},
            {
                "poly": ("constant", "linear"),
                "delta_x": (3e-3, 1e-2),
                "extra_points": (1, 2),
                "hyper_opt": ("Cobyla", "TNC"),
                "n_start": (20, 40),
            },
            delta_x=(1e-4, 1e-3),
            poly=("constant", "linear"),  # SMT has no partials of the quadratic one
            corr=("squar_exp", "abs_exp", "pow_exp"),
            extra_points=(0, 1, 2),
        ),
    ),
    "kriging": (
        fit_kriging,
        _configurations(
            [{}, {"poly": "linear"}, {"corr": "matern52"}, {"corr": "abs_exp"}],
            {},
            {
                "corr": ("squar_exp", "matern52"),
                "poly": ("constant", "linear"),
                "hyper_opt": ("TNC", "Cobyla"),
                "theta_bounds": ([1e-6, 20.0], [1e-6, 200.0]),
                "n_start": (20, 40),
            },
            nugget=(2.220446049250313e-14, 1e-10, 1e-6),
            poly=("constant", "linear"),
            corr=("squar_exp", "matern52", "matern32", "abs_exp", "pow_exp"),
        ),
    ),
}


# -- one fit -------------------------------------------------------------------------------------------------------


def measure(
    case: Case, method: str, config: int, seed: int, fitted_in: Callable[[float], None] = lambda seconds: None
) -> dict[str, Any]:
    """Fit one method and return root mean squared errors of values and partials, and times of the fit.

    ``fitted_in`` is called between the fit, whose time is limited, and the predictions, whose time is not.
    """
    data = sampled(case, "train", case.points, seed)
    x, y, partials = sampled(case, "test", TEST_POINTS, 0)
    fit, configs = METHODS[method]
    warnings.simplefilter("ignore")
    began, used = time.monotonic(), time.process_time()
    fitted = fit(data, seed, **configs[config])
    seconds, processor = time.monotonic() - began, time.process_time() - used
    fitted_in(seconds)
    values, slopes = fitted(x)
    return {
        "status": "finished",
        "value": math.sqrt(np.mean((values - y) ** 2)),
        "partials": math.sqrt(np.mean((slopes - partials) ** 2)),
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor, 3),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _child(connection: Any, gigabytes: int, *what: Any) -> None:
    limit = gigabytes * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        connection.send(measure(*what, fitted_in=connection.send))
    except Exception as error:
        connection.send({"status": f"failed: {type(error).__name__}: {error}"[:300]})


def limited(case: Case, method: str, config: int, seed: int, minutes: float, gigabytes: int) -> dict[str, Any]:
    """Return `measure` in a process of its own, or why the fit did not end within the limits."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, gigabytes, case, method, config, seed))
    began = time.monotonic()
    process.start()
    theirs.close()
    try:
        result: Any = mine.recv() if mine.poll(60 * minutes) else {"status": f"over {minutes:g} minutes"}
        if isinstance(result, float):  # the fit is done
            result = mine.recv()
    except EOFError:
        result = {"status": "its process died"}
    if process.is_alive() and result["status"] != "finished":
        process.kill()
    process.join()
    return {"wall_limit_minutes": minutes, "total_seconds": round(time.monotonic() - began, 2), **result}


# -- many ----------------------------------------------------------------------------------------------------------

Unit = tuple[Case, str, int, int]


def key_of(row: dict[str, Any]) -> Unit:
    """Return which fit a stored row belongs to."""
    return Case(row["function"], row["dimension"], row["points"]), row["method"], row["config"], row["seed"]


def stored(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a results file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_all(units: Iterable[Unit], file: Path, minutes: float, gigabytes: int) -> None:
    """Measure what is not there yet, in order."""
    for module in ("torch", "sobolev.regressor", "jenn", "smt.surrogate_models"):
        __import__(module)  # here once, not in every process
    import torch

    torch.set_num_threads(1)
    done = {key_of(row) for row in stored(file)}
    file.parent.mkdir(parents=True, exist_ok=True)
    for case, method, config, seed in units:
        if (case, method, config, seed) in done:
            continue
        result = limited(case, method, config, seed, minutes, gigabytes)
        row = {**vars(case), "method": method, "config": config, "seed": seed, **result}
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        found = f"value {row['value']:.3g}  partials {row['partials']:.3g}" if "value" in row else row["status"]
        print(f"{case.function} d={case.dimension} n={case.points} {method}[{config}] seed {seed}: {found}", flush=True)


def scores(rows: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Return the mean log error of values and partials by configuration, of those that finished in all cases."""
    rows = list(rows)
    cases = {key_of(row)[0] for row in rows}
    found = {}
    for config in sorted({row["config"] for row in rows}):
        of_config = {key_of(row)[0]: row for row in rows if row["config"] == config and "value" in row}
        if of_config.keys() == cases:
            logs = [math.log10(row["value"]) + math.log10(row["partials"]) for row in of_config.values()]
            found[config] = statistics.mean(logs)
    return found


def developed(file: Path, method: str) -> list[dict[str, Any]]:
    """Return what was found of a method on the development seed."""
    return [row for row in stored(file) if row["seed"] >= DEVELOPMENT and row["method"] == method]


def chosen(file: Path, among: int = CONFIGURATIONS) -> dict[str, int]:
    """Return each method's best configuration: smallest mean log error of values and partials while developing.

    Of the first so many.

    A configuration that did not finish somewhere is out; where none was tried, the default stands.
    """
    found = {m: {c: s for c, s in scores(developed(file, m)).items() if c < among} for m in METHODS}
    return {method: min(of, key=of.__getitem__) if of else 0 for method, of in found.items()}


def development(size: int, smallest: int, methods: Iterable[str], functions: Iterable[str], file: Path) -> list[Unit]:
    """Return configurations of functions in two dimensions.

    At the smallest size every one; at others the first ones, and of those that were added (they take up to eight times
    as long) the half that was better at the smallest size.
    """
    units = []
    for method in methods:
        configs = list(range(len(METHODS[method][1])))
        if size != smallest:
            of = scores(row for row in developed(file, method) if row["points"] == smallest)
            added = sorted((c for c in configs[FIRST:] if c in of), key=of.__getitem__)
            configs = sorted([*configs[:FIRST], *added[: (len(configs) - FIRST + 1) // 2]])
        units += [(Case(function, 2, size), method, c, DEVELOPMENT) for c in configs for function in functions]
    return units


def fresh(
    cases: Iterable[Case], seeds: Iterable[int], methods: Iterable[str], file: Path, among: int = CONFIGURATIONS
) -> list[Unit]:
    """Return the default and the chosen configuration of every method."""
    best = chosen(file, among)
    return [
        (case, method, config, seed)
        for seed in seeds
        for case in cases
        for method in methods
        for config in dict.fromkeys((0, best[method]))
    ]


def table(file: Path, quantity: str, dimension: int) -> str:
    """Return a Markdown table of medians over seeds: a row per function and size, a column per method.

    A cell with fewer seeds than the row's last column says how many.
    """
    rows = [row for row in stored(file) if row["seed"] < DEVELOPMENT and row["dimension"] == dimension]
    early, best = chosen(file, FIRST), chosen(file)
    columns = [(m, c, label) for m in METHODS for c, label in _columns(m, early[m], best[m])]
    lines = ["| function | points | " + " | ".join(label for *_, label in columns) + " | seeds |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for function, points in sorted({(row["function"], row["points"]) for row in rows}, key=lambda p: (p[1], p[0])):
        here = [row for row in rows if (row["function"], row["points"]) == (function, points)]
        cells = [[row for row in here if (row["method"], row["config"]) == (m, c)] for m, c, _ in columns]
        most = max(len(cell) for cell in cells)
        medians = [_median(cell, quantity) for cell in cells]
        smallest = min((m for m in medians if m is not None), default=None)
        marked = []
        for cell, median in zip(cells, medians, strict=True):
            text = "unfinished" if median is None else f"**{median:.2g}**" if median == smallest else f"{median:.2g}"
            marked.append(f"{text} ({len(cell)})" if 0 < len(cell) < most else text if cell else "-")
        lines.append(f"| {function} | {points} | " + " | ".join(marked) + f" | {most} |")
    return "\n".join(lines)


def _median(fits: list[dict[str, Any]], quantity: str) -> float | None:
    numbers = [row[quantity] for row in fits if quantity in row]
    return statistics.median(numbers) if numbers and len(numbers) == len(fits) else None


def _columns(method: str, early: int, best: int) -> list[tuple[int, str]]:
    if early == best:
        return [(0, method)] if best == 0 else [(0, f"{method} default"), (best, f"{method} chosen")]
    among = [(early, f"{method} of {FIRST}"), (best, f"{method} of {CONFIGURATIONS}")]
    return [(0, f"{method} default"), *among]


def parsed() -> argparse.Namespace:
    """Parse the command line and bind this process to one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "run", "table"), nargs="?", default="run")
    parser.add_argument("--points", type=int, nargs="+", help="20 100 1000; to tune 20 100")
    parser.add_argument("--dimension", type=int, default=2, choices=(2, 10, 20))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS)
    parser.add_argument("--among", type=int, default=CONFIGURATIONS, help="choose among the first so many")
    parser.add_argument("--minutes", type=float, default=30, help="limit of one fit")
    parser.add_argument("--gigabytes", type=int, default=16, help="limit of one fit's address space")
    parser.add_argument("--results", type=Path, default=None, help=f"file of results ({RESULTS.name})")
    parser.add_argument("--core", type=int, default=0, help="the core that all methods use")
    parser.add_argument("--quick", action="store_true", help="two functions, 20 points, one seed, measured anew")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    options.points = options.points or ([20, 100] if options.command == "tune" else [20, 100, 1000])
    options.functions = options.functions or (FUNCTIONS if options.dimension == 2 else HIGH)
    if options.quick:
        options.command, options.dimension = "run", 2
        options.functions, options.points, options.seeds = ("booth", "mccormick"), [20], [0]
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        file: Path = options.results or (Path(folder) / "quick.jsonl" if options.quick else RESULTS)
        units: list[Unit] = []
        if options.command == "tune":
            for size in sorted(options.points):
                more = development(size, min(options.points), options.methods, options.functions, file)
                run_all(more, file, options.minutes, options.gigabytes)
                units += more
        else:
            cases = [Case(name, options.dimension, points) for points in options.points for name in options.functions]
            units = fresh(cases, options.seeds, options.methods, file, options.among)
        if options.command == "run":
            run_all(units, file, options.minutes, options.gigabytes)
        if options.command == "tune":
            print(chosen(file))
        else:
            for quantity in ("value", "partials", "processor_seconds"):
                print(f"\n{quantity}\n{table(file, quantity, options.dimension)}")
        options.clock, options.rounds, options.device = "cpu", len(options.seeds), "cpu"
        found = machine(options)
        print(f"\non {shown(found)}")
        wanted = set(units)
        rows = [row for row in stored(file) if key_of(row) in wanted]
        write(options, {"machine": found, "chosen": chosen(file), "fits": rows})


if __name__ == "__main__":
    main()
