"""The target ``table``: formats, roles, missing entries, weights, splits, the cache, errors."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sobolev import HEADS, Batch, ComponentError, Context, Contraction, DataError, Probe, SobolevError
from sobolev.build import build
from sobolev.builtin.targets.table import store as stores
from sobolev.distributed import World
from sobolev.host import default_host
from sobolev.preflight import first_batch
from sobolev.recipe.plan import load_plans

COLUMNS = ("t", "x", "u", "v", "du/dt", "du/dx", "dv/dt", "dv/dx")
ROLES: dict[str, Any] = {"inputs": ["t", "x"], "values": ["u", "v"], "partials": "d{output}/d{input}"}


def numbers(rows: int = 40, seed: int = 0) -> np.ndarray:
    """u = sin(t) exp(x), v = t x^2, with their partials."""
    t, x = np.random.default_rng(seed).uniform(-1, 1, (2, rows))
    u = np.sin(t) * np.exp(x)
    return np.stack([t, x, u, t * x**2, np.cos(t) * np.exp(x), u, x**2, 2 * t * x], axis=1)


def write_csv(file: Path, rows: Any, head: Any = COLUMNS, separator: str = ",") -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow(head)
        writer.writerows([["" if c is None else repr(c) if isinstance(c, float) else c for c in row] for row in rows])
    return file


def write(folder: Path, kind: str, array: np.ndarray) -> Path:
    if kind == "parquet":
        table = pa.table({n: pa.array(c, mask=np.isnan(c)) for n, c in zip(COLUMNS, array.T, strict=True)})
        pq.write_table(table, folder / "data.parquet", row_group_size=16)
    elif kind == "npz":
        np.savez(folder / "data.npz", **dict(zip(COLUMNS, array.T, strict=True)))
    else:
        rows = [[None if np.isnan(c) else float(c) for c in row] for row in array]
        write_csv(folder / f"data.{kind}", rows, separator="\t" if kind == "tsv" else ",")
    return folder / f"data.{kind}"


def context(folder: Path, dtype: torch.dtype = torch.float64, seed: int = 0, said: list[str] | None = None) -> Context:
    device = torch.device("cpu")
    say = said.append if said is not None else lambda _: None
    return Context(device, dtype, World(device), seed, HEADS["identity"], folder, folder / "cache", say=say)


def target(folder: Path, file: Path | str, dtype: torch.dtype = torch.float64, seed: int = 0,
           said: list[str] | None = None, **options: Any):  # fmt: skip
    spec = {"use": "table", "file": str(file), **ROLES, "split": {"test": 0.0}, **options}
    checked, problems = default_host().registry.check("target", spec, ("target",))
    assert not problems, problems
    made = default_host().registry.build("target", checked)
    made.prepare(context(folder, dtype, seed, said))
    return made


def everything(made: Any, split: str = "train") -> tuple[torch.Tensor, Any, Any]:
    """Inputs, jet with full partials, and points of a split, in the order of the file."""
    ids = torch.from_numpy(np.argsort(made.rows(split)))
    points = made.points(Batch(split, ids, made.load(split, ids)), training=False)
    probe = Probe.full((("x",),) if points["table"].differentiate else ())
    return points["table"].inputs["x"], made.answer(points, {"table": probe}, None)["table"], points["table"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "npz"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_format_gives_the_same_jets(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    array = numbers()
    made = target(tmp_path, write(tmp_path, kind, array), dtype)
    x, jet, points = everything(made)
    expected = torch.from_numpy(array).to(dtype)
    assert torch.equal(x, expected[:, :2]) and torch.equal(jet.value, expected[:, 2:4])
    assert torch.equal(jet.derivatives["x",], expected[:, 4:].reshape(-1, 2, 2))
    assert not jet.known and points.weight is None and x.dtype == dtype
    site = made.sites()["table"]
    assert site.inputs == {"x": (2,)} and site.outputs == 2 and site.differentiate == ("x",) and not site.weights


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_missing_entries_are_masked_and_counted(tmp_path: Path, kind: str) -> None:
    array = numbers()
    array[3, 4] = array[5, 4] = array[5, 7] = array[9, 2] = np.nan
    array[7, 2:] = np.nan  # nothing known: of no use
    said: list[str] = []
    made = target(tmp_path, write(tmp_path, kind, array), said=said)
    _, jet, points = everything(made)
    kept = np.delete(array, 7, axis=0)
    mask = torch.from_numpy(~np.isnan(kept))
    assert torch.equal(jet.known[()], mask[:, 2:4]) and torch.equal(points.known[()], mask[:, 2:4])
    assert torch.equal(jet.known["x",], mask[:, 4:].reshape(-1, 2, 2)) and torch.equal(
        points.known["x",], jet.known["x",]
    )
    assert torch.equal(jet.derivatives["x",], torch.from_numpy(np.nan_to_num(kept[:, 4:])).reshape(-1, 2, 2))
    assert (
        "u 2, v 1, du/dt 3, du/dx 1, dv/dt 1, dv/dx 2" in said[0] and "without any value or partial: 1 row" in said[0]
    )


def test_projections_are_contractions_of_what_is_recorded(tmp_path: Path) -> None:
    array = numbers()
    array[0, 4] = np.nan  # du/dt
    made = target(tmp_path, write(tmp_path, "csv", array))
    ids = torch.from_numpy(np.argsort(made.rows("train")))
    points = made.points(Batch("train", ids, made.load("train", ids)), training=True)
    v = torch.randn(40, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.from_numpy(np.nan_to_num(array[:, 4:])).reshape(-1, 2, 2)
    for contraction, equation in ((Contraction(v, (None,)), "nkm,nmd->nkd"), (Contraction(None, (v,)), "nkd,nmd->nkm")):
        jet = made.answer(points, {"table": Probe({("x",): contraction})}, None)["table"]
        torch.testing.assert_close(jet.derivatives["x",], torch.einsum(equation, v, jacobian))
        assert not jet.known["x",][0, :, 0].any() and jet.known["x",][0, :, 1].all() and jet.known["x",][1:].all()


def test_partials_by_mapping_may_be_a_few(tmp_path: Path) -> None:
    made = target(tmp_path, write(tmp_path, "csv", numbers()), partials={"v": {"x": "dv/dx"}, "u": {"t": "du/dt"}})
    _, jet, _ = everything(made)
    array = torch.from_numpy(numbers())
    expected = torch.zeros(40, 2, 2, dtype=torch.float64)
    expected[:, 0, 0], expected[:, 1, 1] = array[:, 4], array[:, 7]
    assert torch.equal(jet.derivatives["x",], expected)
    assert jet.known["x",][0].tolist() == [[True, False], [False, True]]


def test_without_partials_there_is_nothing_to_differentiate(tmp_path: Path) -> None:
    made = target(tmp_path, write(tmp_path, "csv", numbers()), partials=None)
    assert made.sites()["table"].differentiate == ()
    _, jet, _ = everything(made)
    assert jet.derivatives == {}


def test_arrays_of_npz_are_columns(tmp_path: Path) -> None:
    array = numbers()
    np.savez(tmp_path / "a.npz", x=array[:, :2], y=array[:, 2:4], dydx=array[:, 4:].reshape(-1, 2, 2), note=np.array(1))
    made = target(tmp_path, "a.npz", inputs="x", values="y", partials="dydx")
    _, jet, _ = everything(made)
    assert torch.equal(jet.derivatives["x",], torch.from_numpy(array[:, 4:]).reshape(-1, 2, 2))
    assert made.axes("table").inputs == ["x[0]", "x[1]"] and made.columns.partials[1, 0] == "dydx[1,0]"
    with pytest.raises(DataError, match=r"'dydx' holds 4 numbers per sample, not 1 x 2 \(values x inputs\)"):
        target(tmp_path, "a.npz", inputs="x", values="y[0]", partials="dydx")
    np.savez(tmp_path / "a.npz", x=array[:, :3], y=array[:, 2:4], dydx=array[:, 2:].reshape(-1, 3, 2))
    with pytest.raises(DataError, match=r"'dydx' has the shape \(N, 3, 2\), expected \(N, 2, 3\): samples, values"):
        target(tmp_path, "a.npz", inputs="x", values="y", partials="dydx")


def test_a_part_of_the_values_and_inputs_may_be_used(tmp_path: Path) -> None:
    file = write(tmp_path, "csv", numbers())
    made = target(tmp_path, file, inputs=["x"], values="u", partials="d{output}/d{input}")
    assert made.columns.partials == {(0, 0): "du/dx"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"inputs": ["t", "t", "x"]}, "inputs: 't' is named twice"),
        ({"partials": {"u": {"t": "du/dt", "x": "du/dt"}}},
         "column 'du/dt' is the partial of 'u' by 't' and the partial of 'u' by 'x' at the same time"),
        ({"values": ["u", "v"], "partials": {"u": {"t": "v"}}},
         "column 'v' is the value 'v' and the partial of 'u' by 't' at the same time"),
    ],
)  # fmt: skip
def test_a_column_plays_one_part(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        target(tmp_path, write(tmp_path, "csv", numbers()), **options)


def test_inputs_that_float32_does_not_tell_apart(tmp_path: Path) -> None:
    seconds = np.linspace(0, 60, 30)
    rows = np.stack([1.7e9 + seconds, np.sin(seconds), np.cos(seconds)], 1).tolist()
    write_csv(tmp_path / "a.csv", rows, ["t", "u", "du/dt"])
    roles = {"inputs": "t", "values": "u", "partials": "d{output}/d{input}"}
    with pytest.raises(DataError, match=r"column 't' runs from .* float32 tells apart in 1 step: set 'dtype: "):
        target(tmp_path, "a.csv", dtype=torch.float32, **roles)
    assert target(tmp_path, "a.csv", dtype=torch.float64, **roles).size("train") == 30
    write_csv(tmp_path / "a.csv", [[2e5 + a - 1.7e9, b, c] for a, b, c in rows], ["t", "u", "du/dt"])
    said: list[str] = []
    target(tmp_path, "a.csv", dtype=torch.float32, said=said, **roles)
    assert "warning: " in said[0] and "column 't' runs from 200000 to 200060" in said[0]
    write_csv(tmp_path / "a.csv", [[1.7e9, b, c] for _, b, c in rows], ["t", "u", "du/dt"])
    said.clear()
    target(tmp_path, "a.csv", dtype=torch.float32, said=said, **roles)
    assert not any("warning" in line for line in said)  # a constant is one


def test_weights_that_are_all_zero(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [[float(i), 2.0 * i, 0.0] for i in range(5)], ["x", "u", "w"])
    with pytest.raises(DataError, match="column 'w': the weight of every sample is 0"):
        target(tmp_path, "a.csv", inputs="x", values="u", partials=None, weights={"samples": "w"})


def test_patterns_select_in_the_order_of_the_file(tmp_path: Path) -> None:
    head = ["y", "x10", "x2", "g_x2", "g_x10"]
    write_csv(tmp_path / "a.csv", [[float(i + j * j) for j in range(5)] for i in range(4)], head)
    made = target(tmp_path, "a.csv", inputs="x*", values=["y"], partials="g_{input}")
    assert made.columns.inputs == ("x10", "x2") and list(made.columns.partials.values()) == ["g_x10", "g_x2"]


def test_units_come_from_header_recipe_and_parquet(tmp_path: Path) -> None:
    head = ["t [s]", "x", "u [K]", "v", "du/dt [K/s]", "du/dx", "dv/dt", "dv/dx"]
    write_csv(tmp_path / "a.csv", numbers().tolist(), head)
    axes = target(tmp_path, "a.csv", units={"x": "m"}).axes("table")
    assert axes.inputs == ["t [s]", "x [m]"] and axes.outputs == ["u [K]", "v"]
    assert axes.low == pytest.approx(numbers()[:, :2].min(0)) and axes.high == pytest.approx(numbers()[:, :2].max(0))
    fields = [pa.field(n, pa.float64(), metadata={"unit": "bar"} if n == "u" else None) for n in COLUMNS]
    pq.write_table(pa.table(list(numbers().T), schema=pa.schema(fields)), tmp_path / "a.parquet")
    assert target(tmp_path, "a.parquet").axes("table").outputs == ["u [bar]", "v"]


# -- weights -----------------------------------------------------------------------------------------------------------


def weighted_loss(folder: Path, extra: str, target_lines: str, estimator: str = "exact") -> tuple[float, Any, Any]:
    """The loss of the first batch of a recipe, with its points and the student's jet."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "name: w\ntarget:\n  use: table\n  file: data.csv\n  inputs: [t, x]\n  values: [u, v]\n"
        f"  partials: 'd{{output}}/d{{input}}'\n  split: {{test: 0}}\n{target_lines}\n"
        f"student: {{use: mlp, hidden: [4], activation: tanh}}\nestimator: {estimator}\ndtype: float64\n"
        f"train: {{steps: 1, batch_size: all, compile: never}}\n{extra}\n"
    )
    (plan,) = load_plans(recipe, default_host().registry)
    experiment = build(plan, default_host().registry, World(torch.device("cpu")), cache=folder, say=lambda _: None)
    drawn, reference = first_batch(experiment)
    prediction = experiment.predict(drawn)
    terms = experiment.objective.terms("table", drawn.points["table"], drawn.probes["table"], prediction["table"],
                                       reference["table"])  # fmt: skip
    loss, _ = experiment.context.world.total(terms)
    return loss.detach().item(), (drawn.points["table"], reference["table"], prediction["table"].detach()), experiment


def test_weights_of_samples_values_and_partials_enter_the_loss(tmp_path: Path) -> None:
    array = numbers()
    w = np.linspace(0, 2, 40)
    array[1, 4] = np.nan
    rows = [[None if np.isnan(c) else float(c) for c in (*row, weight)] for row, weight in zip(array, w, strict=True)]
    write_csv(tmp_path / "data.csv", rows, [*COLUMNS, "w"])
    lines = "  weights: {samples: w, outputs: {u: 3.0}, partials: {v: {x: 0.25}, u: {t: 2.0}}}"
    loss, (points, reference, prediction), _ = weighted_loss(tmp_path, "", lines)
    sample = points.weight
    value = ((prediction.value - reference.value).square() * torch.tensor([3.0, 1.0])).sum(1)
    factors = torch.tensor([[6.0, 3.0], [1.0, 0.25]], dtype=torch.float64)
    known = reference.known["x",]
    error = ((prediction["x",] - reference["x",]).square() * factors * known).sum((1, 2))
    fraction = (factors * known).sum((1, 2)) / factors.sum()
    expected = (value * sample).sum() / sample.sum() + (error * sample).sum() / (fraction * sample).sum()
    assert loss == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("estimator", "lines", "fits"),
    [
        ("{use: projected, side: input}", "  weights: {outputs: {u: 3.0}}", True),
        ("{use: projected, side: output}", "  weights: {partials: {u: {x: 3.0}, v: {x: 3.0}}}", True),
        ("{use: projected, side: output}", "  weights: {outputs: {u: 3.0}}", False),
        ("{use: projected, side: input}", "  weights: {partials: {u: {x: 3.0}}}", False),
    ],
)
def test_weights_under_projections(tmp_path: Path, estimator: str, lines: str, fits: bool) -> None:
    write(tmp_path, "csv", numbers())
    if not fits:
        with pytest.raises(ComponentError, match="this probe mixes them"):
            weighted_loss(tmp_path, "", lines, estimator)
        return
    extra = "objective: {value: {loss: squared-l2, weight: 0}}"
    loss, (_, reference, prediction), _ = weighted_loss(tmp_path, extra, lines, estimator)
    factors = torch.tensor([3.0, 1.0]) if "input" in estimator else torch.tensor([1.0, 3.0])
    expected = ((prediction["x",] - reference["x",]).square() * factors).sum((1, 2)).mean()
    assert loss == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("loss", ["l1", "huber", "norm"])
def test_weight_0_takes_a_value_out_of_every_loss(tmp_path: Path, loss: str) -> None:
    write(tmp_path, "csv", numbers())
    extra = f"objective: {{value: {loss}, derivatives: [{loss}]}}"
    without, _, _ = weighted_loss(tmp_path, extra, "  weights: {outputs: {v: 0}}")
    spoilt = numbers()
    spoilt[:, 3] += 100.0
    spoilt[:, 6:] *= -50.0
    write(tmp_path, "csv", spoilt)
    again, _, _ = weighted_loss(tmp_path, extra, "  weights: {outputs: {v: 0}}")
    with_it, _, _ = weighted_loss(tmp_path, extra, "")
    assert without == pytest.approx(again, rel=1e-12) and with_it > 2 * without


# -- splits ------------------------------------------------------------------------------------------------------------


def test_fractions_are_exact_disjoint_and_independent_of_the_seed_of_a_run(tmp_path: Path) -> None:
    file = write(tmp_path, "csv", numbers())
    split = {"test": 0.25, "validation": 0.1}
    made, other = target(tmp_path, file, split=split), target(tmp_path, file, split=split, seed=7)
    rows = {name: made.rows(name) for name in ("train", "validation", "test")}
    assert [len(r) for r in rows.values()] == [26, 4, 10]
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(40))
    assert all(np.array_equal(r, other.rows(name)) for name, r in rows.items())
    assert not np.array_equal(made.rows("test"), target(tmp_path, file, split={**split, "seed": 1}).rows("test"))


def test_train_takes_some_rows_anew_for_every_seed(tmp_path: Path) -> None:
    file = write(tmp_path, "csv", numbers())
    first, second = (set(target(tmp_path, file, train=10, seed=s).rows("train").tolist()) for s in (0, 1))
    assert len(first) == len(second) == 10 and first != second
    with pytest.raises(DataError, match="train: 41 samples are wanted, there are 40"):
        target(tmp_path, file, train=41)


def test_split_by_a_column(tmp_path: Path) -> None:
    part = ["train", "val", "Test"]
    rows = [[*map(float, row), part[i % 3]] for i, row in enumerate(numbers())]
    write_csv(tmp_path / "a.csv", rows, [*COLUMNS, "part"])
    made = target(tmp_path, "a.csv", split={"column": "part"})
    assert [made.size(s) for s in ("train", "validation", "test")] == [14, 13, 13]
    assert set(made.rows("validation").tolist()) == set(range(1, 40, 3))
    labels = {"train": ["train"], "test": ["Test"]}
    with pytest.raises(DataError, match="'val': belongs to no split"):
        target(tmp_path, "a.csv", split={"column": "part", "labels": labels})
    labels = {"train": ["train"], "validation": ["val", "train"], "test": ["Test"]}
    with pytest.raises(DataError, match="'train' is named for train and for validation"):
        target(tmp_path, "a.csv", split={"column": "part", "labels": labels})


def test_groups_stay_whole_whatever_the_order_of_rows(tmp_path: Path) -> None:
    rows = [[*map(float, row), f"case {i % 8}"] for i, row in enumerate(numbers())]
    split = {"group": "case", "test": 0.25, "validation": 0.125}
    found = []
    for name, ordered in (("a.csv", rows), ("b.csv", rows[::-1])):
        write_csv(tmp_path / name, ordered, [*COLUMNS, "case"])
        made = target(tmp_path, name, split=split)
        found.append({s: {ordered[r][-1] for r in made.rows(s)} for s in ("train", "validation", "test")})
    assert found[0] == found[1]
    assert [len(cases) for cases in found[0].values()] == [5, 1, 2] and len(set.union(*found[0].values())) == 8
    said: list[str] = []
    target(tmp_path, "a.csv", said=said, split={**split, "validation": 0.05})
    assert said[0].endswith("split: validation: 0.05 of the 8 groups is none at all")


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_rows_without_a_group_are_refused(tmp_path: Path, kind: str) -> None:
    array, cases = numbers(), [f"case {i % 8}" for i in range(40)]
    array[30, 0] = np.nan  # left out: its group does not matter
    for row in (7, 12, 30):
        cases[row] = ""
    columns = dict(zip(COLUMNS, array.T, strict=True))
    if kind == "npz":
        np.savez(tmp_path / "data.npz", **columns, case=np.array(cases))  # type: ignore[arg-type]
    elif kind == "parquet":
        texts = pa.array([case or None for case in cases])
        pq.write_table(
            pa.table({**{n: c.tolist() for n, c in columns.items()}, "case": texts}), tmp_path / "data.parquet"
        )
    else:
        rows = [[None if c != c else c for c in map(float, row)] for row in array]
        write_csv(
            tmp_path / "data.csv", [[*row, case] for row, case in zip(rows, cases, strict=True)], [*COLUMNS, "case"]
        )
    options: dict[str, Any] = {"split": {"group": "case", "test": 0.25}, "missing_inputs": "drop"}
    place = "data.csv:9" if kind == "csv" else f"data.{kind}, row 8"
    says(tmp_path, f"data.{kind}", f"{place}: column 'case': the group is missing, there and in 1 other row; name",
         **options)  # fmt: skip


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_beyond_its_memory_is_mapped_and_equal(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers(300)
    array[17, 5] = np.nan
    rows = [[*map(float, row), f"g{i % 5}"] for i, row in enumerate(array)]
    file = tmp_path / f"data.{kind}"
    if kind == "csv":
        write_csv(file, [[None if c != c else c for c in row] for row in rows], [*COLUMNS, "g"])
    else:
        pq.write_table(pa.table({n: [row[j] for row in rows] for j, n in enumerate([*COLUMNS, "g"])}), file)
    split = {"group": "g", "test": 0.2}
    inside = target(tmp_path, file, split=split)
    monkeypatch.setattr("sobolev.builtin.targets.table.target.open_store", _bounded(stores.open_store))
    monkeypatch.setattr("sobolev.builtin.targets.table.files.CHUNK", 64)
    mapped = target(tmp_path, file, split=split)
    assert type(inside.store).__name__ == "_Memory" and type(mapped.store).__name__ == "_Mapped"
    for name in ("train", "test"):
        for (x, jet, _), (x2, jet2, _) in [(everything(inside, name), everything(mapped, name))]:
            assert torch.equal(x, x2) and torch.equal(jet.value, jet2.value)
            assert torch.equal(jet["x",], jet2["x",]) and torch.equal(jet.known["x",], jet2.known["x",])
    made = [f for f in (tmp_path / "cache/tables").iterdir() if f.is_dir()]
    assert len(made) == 1 and (made[0] / "rows.bin").stat().st_size == 300 * 8 * 8
    before = (made[0] / "rows.bin").stat().st_mtime_ns
    again = target(tmp_path, file, split=split)
    assert torch.equal(everything(again)[1].value, everything(inside)[1].value)
    assert (made[0] / "rows.bin").stat().st_mtime_ns == before  # found, not made again
    for other in rows:
        other[2] += 1.0
    if kind == "csv":
        write_csv(file, [[None if c != c else c for c in row] for row in rows], [*COLUMNS, "g"])
    else:
        pq.write_table(pa.table({n: [row[j] for row in rows] for j, n in enumerate([*COLUMNS, "g"])}), file)
    changed = everything(target(tmp_path, file, split=split))[1]
    assert torch.allclose(changed.value[:, 0], everything(inside)[1].value[:, 0] + 1.0, rtol=1e-12)


def test_columns_that_play_other_parts_are_not_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers(300)
    array[5, 2] = array[9, 6] = np.nan  # missing as a value, needed as an input or as a weight
    file = write(tmp_path, "csv", array)
    monkeypatch.setattr("sobolev.builtin.targets.table.target.open_store", _bounded(stores.open_store))
    made = target(tmp_path, file, inputs=["t", "x"], values=["u", "v", "dv/dt"], partials=None)
    assert type(made.store).__name__ == "_Mapped" and made.size("train") == 300
    others: list[tuple[int, dict[str, Any]]] = [
        (7, {"inputs": ["t", "x", "u"], "values": ["v", "dv/dt"]}),
        (11, {"inputs": ["t", "x"], "values": ["u", "v"], "weights": {"samples": "dv/dt"}}),
    ]
    for line, roles in others:
        says(tmp_path, "data.csv", f"data.csv:{line}: an input or the sample's weight", **roles, partials=None)
        assert target(tmp_path, file, **roles, partials=None, missing_inputs="drop").size("train") == 299


def _bounded(real: Any) -> Any:
    return lambda table, columns, dtype, memory, cache, faults: real(table, columns, dtype, 1000, cache, faults)


def test_a_conversion_that_was_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "parquet", numbers(300))
    monkeypatch.setattr("sobolev.builtin.targets.table.target.open_store", _bounded(stores.open_store))
    monkeypatch.setattr("sobolev.builtin.targets.table.files.CHUNK", 64)
    monkeypatch.setattr(stores.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="cannot be converted there: No space left on device"):
        target(tmp_path, file)
    tables = tmp_path / "cache/tables"
    assert not [f for f in tables.iterdir() if f.is_dir()]
    monkeypatch.undo()
    assert target(tmp_path, file).size("train") == 300
    for name, age in (("making-old", 3 * 86400), ("making-new", 60)):  # of processes that were killed, or are at work
        (tables / name).mkdir()
        os.utime(tables / name, (time.time() - age,) * 2)
    monkeypatch.setattr("sobolev.builtin.targets.table.target.open_store", _bounded(stores.open_store))
    target(tmp_path, file)
    assert not (tables / "making-old").exists() and (tables / "making-new").exists()


# -- bad data ----------------------------------------------------------------------------------------------------------


def says(folder: Path, file: str, *parts: str, **options: Any) -> str:
    """Every part stands in the message of the one error; it is returned."""
    with pytest.raises(DataError) as caught:
        target(folder, file, **options)
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in:\n{caught.value}"
    return str(caught.value)


def test_missing_column_is_named_with_a_guess(tmp_path: Path) -> None:
    write(tmp_path, "csv", numbers())
    message = says(
        tmp_path, "data.csv", "inputs: there is no column 'tt'; did you mean 't'?", "values: there is no column 'w'",
        "weights.samples: there is no column 'q'", "split: there is no column 'g'", "4 problems",
        inputs=["tt", "x"], values=["u", "v", "w"], partials=None, weights={"samples": "q"}, split={"group": "g"},
    )  # fmt: skip
    assert message.count("\n") == 4


def test_text_in_a_number_column_is_named_with_line_and_column(tmp_path: Path) -> None:
    rows: list[list[Any]] = [list(map(float, row)) for row in numbers()]
    rows[4][2], rows[9][5], rows[11][3] = "abc", "1,5", "#REF!"
    write_csv(tmp_path / "a.csv", rows, separator=";")
    says(
        tmp_path, "a.csv", "a.csv:6: column 'u': 'abc' is no number", "a.csv:11: column 'du/dx': '1,5' is no number",
        "decimal comma", "a.csv:13: column 'v': '#REF!'", "3 problems",
    )  # fmt: skip


def test_lines_are_counted_past_blank_ones(tmp_path: Path) -> None:
    rows: list[list[Any]] = [list(map(float, row)) for row in numbers(6)]
    rows[4][2] = "abc"
    file = write_csv(tmp_path / "a.csv", rows)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "", "", *lines[3:]]) + "\n")
    says(tmp_path, "a.csv", "a.csv:8: column 'u': 'abc'")


def test_lines_are_counted_past_blank_ones_also_of_a_table_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers(300)
    array[20, 0] = np.nan
    lines = write(tmp_path, "csv", array).read_text().splitlines()
    (tmp_path / "data.csv").write_text("\n".join([*lines[:3], "", "", *lines[3:]]) + "\n")
    monkeypatch.setattr("sobolev.builtin.targets.table.target.open_store", _bounded(stores.open_store))
    for _ in ("made", "found"):
        says(tmp_path, "data.csv", "data.csv:24: an input or the sample's weight is missing")


def test_a_header_may_run_over_several_lines(tmp_path: Path) -> None:
    rows: list[list[Any]] = [list(map(float, row)) for row in numbers(6)]
    write_csv(tmp_path / "a.csv", rows, ["t\n[s]", "x", "u;\n;;;;;;;;;", *COLUMNS[3:]])
    made = target(tmp_path, "a.csv", values=["u; ;;;;;;;;;", "v"], partials=None)
    assert made.axes("table").inputs == ["t [s]", "x"] and made.size("train") == 6
    rows[4][3] = "abc"
    write_csv(tmp_path / "a.csv", rows, ["t\n[s]", "x", "u;\n;;;;;;;;;", *COLUMNS[3:]])
    says(tmp_path, "a.csv", "a.csv:8: column 'v': 'abc'", values=["u; ;;;;;;;;;", "v"], partials=None)


def test_columns_may_be_called_like_places_in_an_array(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", numbers().tolist(), ["x[0]", "x[1] [m]", *COLUMNS[2:]])
    made = target(tmp_path, "a.csv", inputs=["x[0]", "x[1]"], partials=None)
    assert made.axes("table").inputs == ["x[0]", "x[1] [m]"]


def test_only_the_first_cells_of_a_column_are_shown(tmp_path: Path) -> None:
    rows: list[list[Any]] = [list(map(float, row)) for row in numbers()]
    for row in rows:
        row[3] = "?"
    write_csv(tmp_path / "a.csv", rows)
    message = says(tmp_path, "a.csv", "a.csv:2: column 'v'", "column 'v': 35 more", "40 problems")
    assert "no number at all" not in message


def test_mismatched_partials_are_told_both_ways(tmp_path: Path) -> None:
    head = ["t", "x", "u", "v", "du/dt", "du/dx", "dv/dt", "dv/dz"]
    write_csv(tmp_path / "a.csv", numbers().tolist(), head)
    says(
        tmp_path,
        "a.csv",
        "expects 'dv/dx', which is not there",
        "column 'dv/dz': 'z' is none of the inputs",
        "2 problems",
    )
    says(tmp_path, "a.csv", "'w' is none of the values", "'y' is no input", "there is no column 'dv/dx'",
         partials={"w": {"x": "du/dx"}, "u": {"y": "du/dx"}, "v": {"x": "dv/dx"}})  # fmt: skip
    says(tmp_path, "a.csv", "must hold {output} and {input}, not {in}", partials="d{output}/d{in}")


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_columns_without_a_number_and_infinities(tmp_path: Path, kind: str) -> None:
    array = numbers()
    array[:, 6] = np.nan
    array[2, 4] = np.inf
    write(tmp_path, kind, array)
    place = "data.csv:4" if kind == "csv" else f"data.{kind}, row 3"
    says(
        tmp_path,
        f"data.{kind}",
        "column 'dv/dt' holds no number at all; leave it out of the recipe; partials: {output: {input: column}} names "
        "those that are there",
        f"{place}: column 'du/dt': an infinite number",
    )


def test_numbers_too_large_for_float32(tmp_path: Path) -> None:
    array = numbers()
    array[2, 2] = 1e60
    write(tmp_path, "csv", array)
    with pytest.raises(DataError, match=r"data.csv:4: column 'u': an infinite number, or one too large"):
        target(tmp_path, "data.csv", torch.float32)


def test_rows_without_inputs(tmp_path: Path) -> None:
    array = numbers()
    array[3, 0] = array[8, 1] = np.nan
    write(tmp_path, "csv", array)
    says(tmp_path, "data.csv", "data.csv:5: an input or the sample's weight is missing, there and in 1 other row; fill")
    write(tmp_path, "csv", np.delete(array, 8, axis=0))
    says(tmp_path, "data.csv", "data.csv:5: an input or the sample's weight is missing; fill in what is missing")
    write(tmp_path, "csv", array)
    made = target(tmp_path, "data.csv", missing_inputs="drop")
    assert made.size("train") == 38 and not {3, 8} & set(made.rows("train").tolist())


def test_negative_weights_and_names_that_play_no_part(tmp_path: Path) -> None:
    rows = [[*map(float, row), -1.0] for row in numbers()]
    write_csv(tmp_path / "a.csv", rows, [*COLUMNS, "w"])
    says(tmp_path, "a.csv", "a.csv:2: column 'w': the weight -1 is negative", weights={"samples": "w"})
    says(tmp_path, "a.csv", "units: there is no column 'q'", "'z' is none of the values", "'u' is no input",
         units={"q": "m"}, weights={"outputs": {"z": 1.0}, "partials": {"u": {"u": 1.0}}})  # fmt: skip
    says(tmp_path, "a.csv", "'t': input and value at the same time", values=["u", "t"], partials=None)


FILES = {
    "empty.csv": (b"", "the file is empty"),
    "head.csv": (",".join(COLUMNS).encode() + b"\n", "there are no rows below the header"),
    "nohead.csv": (b"1,2,3\n4,5,6\n", "the first line holds numbers (1, ...); it must name the columns"),
    "twice.csv": (b"t,x,t\n1,2,3\n", "several columns are called 't'"),
    "comment.csv": (b"# made by hand\nt,x\n1,2\n", "the first line is the comment '# made by hand'"),
    "commas.csv": (",".join(COLUMNS).encode() + b"\n" + 8 * b"1,5,", "2: 17 cells, 8 columns in the header; decimal"),
    "binary.csv": (bytes(range(256)), "not text in UTF-8"),
    "ragged.csv": (",".join(COLUMNS).encode() + b"\n1,2,3\n", "ragged.csv:2: 3 cells, 8 columns in the header"),
    "fake.parquet": (b"t,x\n1,2\n", "not a Parquet file"),
    "fake.npz": (b"t,x\n1,2\n", "not an NPZ file"),
    "sheet.xlsx": (b"PK", "not .xlsx; export the sheet as CSV"),
    "data.txt": (b"t,x\n1,2\n", "a table is .csv, .tsv, .parquet, .pq or .npz, not .txt"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_tables(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    says(tmp_path, name, name, message)


def test_absent_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "csv", numbers(3))
    says(tmp_path, "dato.csv", "there is no such file; beside it: data.csv")


def test_npz_with_objects_or_uneven_arrays(tmp_path: Path) -> None:
    array = dict(zip(COLUMNS, numbers().T, strict=True))
    np.savez(tmp_path / "o.npz", **{**array, "u": np.array([object()] * 40)}, allow_pickle=True)  # type: ignore[arg-type]
    says(tmp_path, "o.npz", "array 'u' cannot be read")
    np.savez(tmp_path / "l.npz", **{**array, "u": array["u"][:5]})  # type: ignore[arg-type]
    says(tmp_path, "l.npz", "arrays of different lengths", "u 5")


def test_npz_with_dates_or_bytes(tmp_path: Path) -> None:
    array = dict(zip(COLUMNS, numbers().T, strict=True))
    for kind in ("datetime64[ns]", "timedelta64[s]"):
        np.savez(tmp_path / "d.npz", **{**array, "u": np.arange(40).astype(kind)})  # type: ignore[arg-type]
        says(tmp_path, "d.npz", f"d.npz: array 'u' holds {kind}, not numbers")
    days = np.arange(40).astype("datetime64[D]")
    days[20:] = days[0]
    np.savez(tmp_path / "g.npz", **{**array, "u": array["u"].astype("S25"), "day": days})  # type: ignore[arg-type]
    made = target(tmp_path, "g.npz", split={"group": "day", "test": 0.2})
    assert made.store.summary.labels[:2] == ["1970-01-01", "1970-01-02"] and len(made.store.summary.labels) == 20
    assert torch.equal(everything(target(tmp_path, "g.npz"))[1].value[:, 0], torch.from_numpy(array["u"]))


def test_an_underscore_makes_no_number(tmp_path: Path) -> None:
    rows: list[list[Any]] = [list(map(float, row)) for row in numbers(6)]
    rows[1][2] = "1_000"
    write_csv(tmp_path / "a.csv", rows)
    says(tmp_path, "a.csv", "a.csv:3: column 'u': '1_000' is no number")


def test_parquet_texts_in_a_dictionary_and_dates_as_groups(tmp_path: Path) -> None:
    array = dict(zip(COLUMNS, numbers().T.tolist(), strict=True))
    texts = pa.array([*map(repr, array["u"][:-1]), "n/a"]).dictionary_encode()
    days = pa.array([i % 4 for i in range(40)], pa.date32())
    pq.write_table(pa.table({**array, "u": texts, "day": days}), tmp_path / "t.parquet")
    made = target(tmp_path, "t.parquet", split={"group": "day", "test": 0.25})
    assert made.store.summary.missing == {"u": 1} and made.size("test") == 10
    assert made.store.summary.labels == ["1970-01-01", "1970-01-02", "1970-01-03", "1970-01-04"]
    says(tmp_path, "t.parquet", "column 'day' holds date32[day], not one number per row", inputs=["t", "day"],
         partials=None)  # fmt: skip
    moments = pa.array([i % 4 for i in range(40)], pa.timestamp("ns"))
    pq.write_table(pa.table({**array, "day": moments}), tmp_path / "t.parquet")
    made = target(tmp_path, "t.parquet", split={"group": "day", "test": 0.25})
    assert made.store.summary.labels[1] == "1970-01-01 00:00:00.000000001"
    pq.write_table(pa.table({**array, "day": [[1]] * 40}), tmp_path / "t.parquet")
    says(tmp_path, "t.parquet", "column 'day' holds list<element: int64>, not one text", split={"group": "day"})


def test_parquet_that_pyarrow_cannot_turn_into_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = dict(zip(COLUMNS, numbers().T.tolist(), strict=True))
    pq.write_table(pa.table({**array, "u": pa.array([b"12"] * 40, pa.binary(2))}), tmp_path / "b.parquet")
    says(tmp_path, "b.parquet", "column 'u' holds fixed_size_binary[2], not one number per row")
    monkeypatch.setattr("sobolev.builtin.targets.table.files._numeric", lambda held: True)
    says(tmp_path, "b.parquet", "b.parquet, after row 0: cannot be read: ")


def test_parquet_columns_that_are_no_numbers(tmp_path: Path) -> None:
    array = dict(zip(COLUMNS, numbers().T.tolist(), strict=True))
    pq.write_table(pa.table({**array, "u": [[1.0]] * 40}), tmp_path / "l.parquet")
    says(tmp_path, "l.parquet", "column 'u' holds list<element: double>, not one number per row")
    pq.write_table(pa.table({**array, "u": ["1.5"] * 39 + ["x"]}), tmp_path / "t.parquet")
    says(tmp_path, "t.parquet", "row 40: column 'u': 'x' is no number")


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_a_run_trains_and_its_student_needs_no_data(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sobolev.cli import cli

    array = numbers()
    array[::7, 5] = np.nan
    write_csv(tmp_path / "data.csv", [[None if c != c else c for c in map(float, r)] for r in array],
              ["t [s]", *COLUMNS[1:]])  # fmt: skip
    (tmp_path / "r.yaml").write_text(
        "name: r\ntarget: {use: table, file: data.csv, inputs: [t, x], values: [u, v],\n"
        "  partials: 'd{output}/d{input}', split: {test: 0.2}}\n"
        "student: {use: mlp, hidden: [8], activation: tanh}\n"
        "train: {steps: 5, batch_size: 8, compile: never}\nvariants:\n"
        "  sobolev: {}\n  projected: {estimator: {use: projected, side: input}}\n"
    )
    runner = CliRunner()
    runs = str(tmp_path / "runs")
    done = runner.invoke(cli, ["run", str(tmp_path / "r.yaml"), "--runs", runs, "--jobs", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "missing and masked: du/dx 6" in re.sub(r"\s+", " ", done.output)
    run = tmp_path / "runs/r/sobolev/seed-0"
    summary = json.loads((run / "status.json").read_text())["summary"]
    assert summary["test/table/value"] > 0 and summary["test/table/d/dx"] > 0
    (tmp_path / "data.csv").unlink()
    (tmp_path / "q.csv").write_text("x,t\n0.5,1\n")
    done = runner.invoke(cli, ["predict", str(run), str(tmp_path / "q.csv")])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert done.output.startswith("t [s],x,u,v,du/dt [1/s],du/dx,dv/dt [1/s],dv/dx\n1,0.5,")


def test_a_derivative_term_without_partials_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "csv", numbers())
    with pytest.raises(SobolevError, match="no derivatives to match"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("name: w\ntarget: {use: table, file: data.csv, inputs: [t, x], values: [u]}\nstudent: mlp\n")
        (plan,) = load_plans(recipe, default_host().registry)
        build(plan, default_host().registry, World(torch.device("cpu")), cache=tmp_path, say=lambda _: None)
