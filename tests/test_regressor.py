"""SobolevRegressor: scikit-learn's own checks, and values and partials in the user's units."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from sobolev import SobolevRegressor, regressor
from sobolev.arrays import Samples
from sobolev.builtin.targets.functions import FUNCTIONS
from sobolev.statistics import SAMPLES

QUICK: dict[str, Any] = {"hidden": (16,), "activation": "tanh", "members": 2, "adam_steps": 60, "polish_iterations": 20}


def few_steps() -> SobolevRegressor:
    return SobolevRegressor(
        hidden=(8,), members=1, adam_steps=40, polish_iterations=20, learning_rate=0.02, random_state=0
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([few_steps()])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def data(rows: int = 30, outputs: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).uniform(0, 1, (rows, 2)) * [1, 1000]
    a, b = x[:, 0], x[:, 1] / 1000
    y = np.stack([50 * a * b, np.sin(2 * a) - b], 1)
    dydx = np.stack([np.stack([50 * b, 50 * a / 1000], 1), np.stack([2 * np.cos(2 * a), -np.ones(rows) / 1000], 1)], 1)
    return x, y[:, :outputs], dydx[:, :outputs]


def test_values_and_partials_come_in_the_users_units() -> None:
    x, y, dydx = data()
    at, values, slopes = data(50, seed=1)
    model = SobolevRegressor(**{**QUICK, "polish_iterations": 100}, random_state=0).fit(x, y, dydx)
    assert model.predict(at).shape == (50, 2)
    assert model.predict_partials(at).shape == (50, 2, 2)
    assert model.score(at, values) > 0.99
    assert np.abs(model.predict_partials(at) - slopes).max(axis=(0,)) / np.abs(slopes).max(axis=0) == pytest.approx(
        np.zeros((2, 2)), abs=0.15
    )
    # Partials are the derivatives of the values, whatever they were trained on.
    step = np.array([1e-5, 0.0])
    difference = (model.predict(at + step) - model.predict(at - step)) / 2e-5
    assert np.allclose(model.predict_partials(at)[:, :, 0], difference, rtol=1e-5, atol=1e-5)


def test_partials_help_where_points_are_few() -> None:
    x, y, dydx = data(6, 1)
    options = {**QUICK, "polish_iterations": 100}
    at, values, _ = data(50, 1, seed=1)
    errors = [
        np.mean((SobolevRegressor(**options, random_state=0).fit(x, y[:, 0], d).predict(at) - values[:, 0]) ** 2)
        for d in (None, dydx)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_one_output_keeps_its_shape() -> None:
    x, y, dydx = data(outputs=1)
    model = SobolevRegressor(**QUICK, random_state=0).fit(x, y[:, 0], dydx[:, 0])
    mean, spread = model.predict(x, return_std=True)
    assert mean.shape == spread.shape == (30,)
    assert (spread > 0).all()
    slopes, around = model.predict_partials(x, return_std=True)
    assert slopes.shape == around.shape == (30, 2)
    assert SobolevRegressor(**QUICK, random_state=0).fit(x, y, dydx).predict(x).shape == (30, 1)


def test_missing_partials_are_left_out() -> None:
    x, y, dydx = data(outputs=1)
    holed = dydx.copy()
    holed[::2, 0, 1] = np.nan
    model = SobolevRegressor(**QUICK, random_state=0).fit(x, y[:, 0], holed[:, 0])
    assert np.isfinite(model.predict(x)).all()
    without = SobolevRegressor(**QUICK, random_state=0).fit(x, y[:, 0], np.full((30, 2), np.nan)).predict(x)
    assert np.array_equal(without, SobolevRegressor(**QUICK, random_state=0).fit(x, y[:, 0]).predict(x))


def test_the_seed_decides() -> None:
    x, y, dydx = data(outputs=1)
    made = [SobolevRegressor(**QUICK, random_state=seed).fit(x, y, dydx).predict(x) for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_pickled_and_cloned() -> None:
    x, y, dydx = data(outputs=1)
    model = SobolevRegressor(**QUICK, random_state=0).fit(x, y, dydx)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_partials(x), model.predict_partials(x))
    assert clone(model).get_params() == model.get_params()


def test_early_stopping_keeps_the_best_networks() -> None:
    x, y, dydx = data()
    options = {**QUICK, "adam_steps": 300, "learning_rate": 0.3, "polish_iterations": 0}
    model = SobolevRegressor(**options, validation_fraction=0.2, patience=5, random_state=0).fit(x, y, dydx)
    assert model.history_["best/step"] < 300
    assert model.history_["validation/data/value"] <= model.history_["last/validation/data/value"]
    with pytest.raises(ValueError, match="holds out 0"):
        SobolevRegressor(**options, validation_fraction=0.01).fit(x, y, dydx)


def of_function(name: str, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = torch.from_numpy(np.random.default_rng(seed).uniform(-4, 4, (rows, 2))).requires_grad_()
    y = FUNCTIONS[name].value(x)
    (dydx,) = torch.autograd.grad(y.sum(), x)
    return x.detach().numpy(), y.detach().numpy(), dydx.numpy()


def test_samples_say_whether_they_resolve_the_function() -> None:
    options: dict[str, Any] = {"members": 1, "adam_steps": 200, "polish_iterations": 60, "random_state": 0}
    smooth = SobolevRegressor(**options).fit(*of_function("booth", 20))
    assert (smooth.regime_, smooth.activation_) == ("exact", "silu")
    assert smooth.scores_["exact, silu"] < smooth.scores_["trend, silu"] - 1
    assert smooth.scores_["exact, silu"] < smooth.scores_["exact, tanh"]
    # 64 waves of Ackley's function: what 20 points can tell is the hill beneath.
    rough = SobolevRegressor(**options).fit(*of_function("ackley", 20))
    assert rough.regime_ == "trend"
    assert rough.steps_ == 200
    x, y, _ = of_function("ackley", 200, seed=1)
    errors = {
        regime: np.std(SobolevRegressor(**options, regime=regime).fit(*of_function("ackley", 20)).predict(x) - y)
        for regime in ("exact", "trend")
    }
    assert errors["trend"] < 0.5 * np.std(y)
    assert errors["trend"] < errors["exact"]
    assert np.std(rough.predict(x) - y) == errors["trend"]


def test_samples_say_how_rough_the_function_is() -> None:
    x = np.random.default_rng(0).uniform(-4, 4, (120, 2))
    y, dydx = np.sin(3 * x[:, 0]), np.stack([3 * np.cos(3 * x[:, 0]), 0 * x[:, 0]], axis=1)
    options: dict[str, Any] = {"members": 1, "hidden": (24, 24), "polish_iterations": 100, "random_state": 0}
    waves = SobolevRegressor(**options).fit(x, y, dydx)
    assert (waves.regime_, waves.activation_) == ("exact", "tanh")
    assert set(waves.scores_) == {"exact, silu", "exact, tanh", "trend, silu"}
    named = SobolevRegressor(**options, activation="silu").fit(x, y, dydx)
    assert named.activation_ == "silu"
    assert named.scores_ == {key: waves.scores_[key] for key in ("exact, silu", "trend, silu")}
    many = np.random.default_rng(0).random((12, 6))
    short = {**options, "adam_steps": 5, "polish_iterations": 20}
    assert set(SobolevRegressor(**short).fit(many, many[:, 0]).scores_) == {"exact, silu", "trend, silu"}


@pytest.mark.parametrize(
    ("rows", "columns", "activation", "adam"),
    [(60, 5, "silu", (30, "all")), (20, 6, "silu", (50, 8)), (331, 2, "tanh", (50, 8)), (330, 2, "tanh", (30, "all"))],
)
def test_batches_are_small_where_full_ones_end_on_plateaus(
    rows: int, columns: int, activation: str, adam: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regressor, "FULL_BATCH", (30, "all"))
    monkeypatch.setattr(regressor, "SMALL_BATCHES", (50, 8))
    x = np.random.default_rng(0).random((rows, columns))
    y = np.sin(x.sum(1))
    options: dict[str, Any] = {"members": 1, "hidden": (4,), "activation": activation, "polish_iterations": 0}

    def predicted(**more: Any) -> np.ndarray:
        model = SobolevRegressor(**options, regime="exact", random_state=0, **more).fit(x, y)
        return np.asarray(model.predict(x))

    assert np.array_equal(predicted(), predicted(adam_steps=adam[0], batch_size=adam[1]))
    # Whoever names the size of batches gets as many steps as full ones have.
    assert np.array_equal(predicted(batch_size=16), predicted(adam_steps=30, batch_size=16))


def test_in_a_pipeline_with_partials() -> None:
    x, y, dydx = data(outputs=1)
    pipeline = make_pipeline(FunctionTransformer(), SobolevRegressor(**QUICK, random_state=0))
    pipeline.fit(x, y, sobolevregressor__dydx=dydx)
    direct = SobolevRegressor(**QUICK, random_state=0).fit(x, y, dydx)
    assert np.array_equal(pipeline.predict(x), direct.predict(x))


def test_mistakes_are_explained() -> None:
    x, y, dydx = data()
    model = SobolevRegressor(**QUICK)
    with pytest.raises(ValueError, match=r"dydx has the shape \(30, 2\), expected \(30, 2, 2\)"):
        model.fit(x, y, dydx[:, 0])
    infinite = dydx.copy()
    infinite[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="a missing partial is NaN"):
        model.fit(x, y, infinite)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        model.fit(x, y, sample_weight=-np.ones(30))
    with pytest.raises(ValueError, match="expected 'auto', 'exact' or 'trend'"):
        SobolevRegressor(regime="trnd").fit(x, y, dydx)  # type: ignore[arg-type]


def test_scikit_learn_is_optional() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import sobolev\n"
        "assert 'torch' not in sys.modules\n"
        "try: sobolev.SobolevRegressor\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'sobolev[learn]'" in done.stdout, done.stderr


def test_the_default_recipe_is_the_default_regressor() -> None:
    from sobolev.host import default_host
    from sobolev.recipe.plan import load_plans

    file = Path(__file__).parents[1] / "recipes" / "surrogates" / "default.yaml"
    (plan,) = load_plans(file, default_host().registry)
    default = SobolevRegressor()
    ours = default._recipe(Samples(torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1, 2)), ("exact", "silu"))
    for part in ("student", "objective", "dtype"):
        given, filled = getattr(ours, part), getattr(plan.recipe, part)
        if part == "objective":  # a checked recipe has every default filled in
            filled = {**filled, "derivatives": [{k: t[k] for k in ("weight", "loss")} for t in filled["derivatives"]]}
        assert (given if part == "dtype" else {k: filled[k] for k in given}) == given
    assert plan.recipe.target["members"] == default.members
    assert [(p.steps, p.optimizer["use"]) for p in ours.train.phases] == [
        (p.steps, p.optimizer["use"]) for p in plan.recipe.train.phases
    ]
    for given, filled in zip(ours.train.phases, plan.recipe.train.phases, strict=True):
        assert {k: filled.optimizer[k] for k in given.optimizer} == given.optimizer


def test_partials_of_a_data_frame_are_taken_by_name_and_masks_count() -> None:
    pandas = pytest.importorskip("pandas")
    x, y, dydx = data(outputs=1)
    options: dict[str, Any] = {**QUICK, "random_state": 0, "regime": "exact"}
    names = ["a", "b"]
    frame, flat = pandas.DataFrame(x, columns=names), dydx.reshape(len(x), 2)
    partials = pandas.DataFrame(flat, columns=names)
    expected = SobolevRegressor(**options).fit(x, y, flat).predict(x)
    turned = SobolevRegressor(**options).fit(frame, y, partials[["b", "a"]])
    assert np.array_equal(turned.predict(frame), expected)
    other = SobolevRegressor(**options).fit(frame, y, partials.set_axis(["dy/da", "dy/db"], axis=1))
    assert np.array_equal(other.predict(frame), expected)
    numbered = pandas.DataFrame(x, columns=[0, 1]), pandas.DataFrame(flat[:, ::-1], columns=[1, 0])
    assert np.array_equal(SobolevRegressor(**options).fit(numbered[0], y, numbered[1]).predict(x), expected)

    holed = flat.copy()
    holed[:5, 0] = np.nan
    expected = SobolevRegressor(**options).fit(x, y, holed).predict(x)
    masked = np.ma.masked_array(np.where(np.isnan(holed), 999.0, holed), np.isnan(holed))
    assert np.array_equal(SobolevRegressor(**options).fit(x, y, masked).predict(x), expected)
    missing = partials.astype(object).where(~np.isnan(holed), pandas.NA)
    assert np.array_equal(SobolevRegressor(**options).fit(x, y, missing).predict(x), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 0}, "members=0: expected a whole"),
        ({"hidden": 16}, r"such as \(16,\)"),
        ({"adam_steps": 0, "regime": "trend"}, "nothing to train"),
        ({"adam_steps": 0, "polish_iterations": 0}, "nothing to train"),
    ],
)
def test_options_that_leave_nothing_to_train(options: dict[str, Any], said: str) -> None:
    x, y, dydx = data()
    with pytest.raises(ValueError, match=said):
        SobolevRegressor(**{**QUICK, **options}).fit(x, y, dydx)


def test_without_adam_there_is_no_trend_to_choose() -> None:
    x, y, dydx = data(outputs=1)
    model = SobolevRegressor(**{**QUICK, "adam_steps": 0}, random_state=0).fit(x, y, dydx)
    assert set(model.scores_) == {"exact, tanh"}


@pytest.mark.parametrize("options", [{"validation_fraction": 0.3}, {"activation": "tanh", "hidden": None}, {}])
def test_samples_without_weight_make_no_difference(options: dict[str, Any]) -> None:
    x, y, dydx = data(45, outputs=1)  # with them it is more than a small network gets
    more = np.concatenate([x, data(20, outputs=1, seed=1)[0]])
    filled = np.concatenate([y, np.full((20, 1), 1e6)]), np.concatenate([dydx, np.zeros((20, 1, 2))])
    given = {"members": 1, "adam_steps": 40, "polish_iterations": 40, "random_state": 0, **options}
    model = SobolevRegressor(**given).fit(x, y, dydx, sample_weight=np.ones(45))
    weight = np.repeat([1.0, 0.0], [45, 20])
    other = SobolevRegressor(**given).fit(more, *filled, sample_weight=weight)
    np.testing.assert_array_equal(other.predict(x), model.predict(x))


def test_many_rows_are_predicted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, dydx = data()
    model = SobolevRegressor(**QUICK, regime="exact", random_state=0).fit(x, y, dydx)
    whole = [*model.predict(x, return_std=True), *model.predict_partials(x, return_std=True)]
    monkeypatch.setattr(regressor, "_ROWS", 7)
    parts = [*model.predict(x, return_std=True), *model.predict_partials(x, return_std=True)]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_steps_say_how_long_it_was_trained() -> None:
    x, y, dydx = data(outputs=1)
    given = {"members": 1, "adam_steps": 30, "random_state": 0, "regime": "exact"}
    assert SobolevRegressor(**given, polish_iterations=50).fit(x, y, dydx).steps_ == 33
    recipe = SobolevRegressor(**given, polish_iterations=50)._recipe(
        Samples(*map(torch.tensor, (x, y, dydx)), None), ("exact", "silu")
    )
    assert recipe.train.phases[1].optimizer["max_iter"] == 16  # three times: at most 50
    stopped = SobolevRegressor(**given, polish_iterations=20, validation_fraction=0.3, patience=2, learning_rate=0.3)
    assert stopped.fit(x, y, dydx).steps_ < 31


def test_polishing_follows_when_adam_is_stopped_early() -> None:
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (60, 2))
    y, dydx = np.sin(3 * x[:, 0]) * x[:, 1], np.stack([3 * np.cos(3 * x[:, 0]) * x[:, 1], np.sin(3 * x[:, 0])], 1)
    at = random.uniform(-1, 1, (500, 2))
    given = {"members": 1, "regime": "exact", "random_state": 0, "validation_fraction": 0.2, "batch_size": 16}
    model = SobolevRegressor(**given).fit(x, y, dydx)
    assert model.steps_ < 500  # Adam alone would have taken as many
    assert np.mean((model.predict(at) - np.sin(3 * at[:, 0]) * at[:, 1]) ** 2) < 2e-5


def test_without_balance_the_units_decide() -> None:
    x, y, dydx = data(12, outputs=1)
    given = {"hidden": (8,), "members": 1, "adam_steps": 10, "polish_iterations": 20, "random_state": 0}
    balanced = [SobolevRegressor(**given).fit(x, c * y, c * dydx).scores_ for c in (1.0, 1000.0)]
    raw = [SobolevRegressor(**given, balance="none").fit(x, c * y, c * dydx).scores_ for c in (1.0, 1000.0)]
    assert balanced[0] == pytest.approx(balanced[1], rel=1e-6)
    differences = [raw[1][way] - raw[0][way] for way in raw[0]]
    assert all(abs(difference) > 1 for difference in differences)


def test_one_process_of_many_fits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    x, y, dydx = data(outputs=1)
    assert SobolevRegressor(**QUICK, regime="exact").fit(x, y, dydx).n_outputs_ == 1


def test_a_fit_that_fails_leaves_nothing_to_predict_with() -> None:
    x, y, dydx = data(outputs=1)
    model = SobolevRegressor(**QUICK, random_state=0).fit(x, y, dydx)
    with pytest.raises(ValueError, match="dydx has the shape"):
        model.fit(x[:, :1], y, dydx)
    with pytest.raises(NotFittedError):
        model.predict(x)


def test_sorted_samples_are_scaled_as_shuffled_ones() -> None:
    x = np.linspace(0, 1, SAMPLES + 2000)[:, None]
    y = np.where(x[:, 0] < 0.7, 0.0, 3000 * (x[:, 0] - 0.7))
    options: dict[str, Any] = {"members": 1, "hidden": (4,), "adam_steps": 1, "polish_iterations": 0}
    model = SobolevRegressor(**options, regime="exact", random_state=0).fit(x, y)
    scale = [tensor for name, tensor in model.student_.state_dict().items() if tensor.numel() == 1]
    assert any(abs(float(number) - y.mean()) < 0.02 * y.mean() for number in scale)
    assert any(abs(float(number) - y.std()) < 0.02 * y.std() for number in scale)


def test_export_is_compared_where_the_samples_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = np.stack([random.random(30), 1e6 + 1e4 * random.random(30)], axis=1)
    y = np.sin(3 * x[:, 0]) + (x[:, 1] - 1e6) / 1e4
    model = SobolevRegressor(**QUICK, dtype="float32", random_state=0).fit(x, y)
    *_, described = model.export(tmp_path, formats=["torch"])
    errors = json.loads(described.read_text())["relative_error"]["student.pt2"]
    assert max(errors.values()) < 1e-5
    pd = pytest.importorskip("pandas")
    named = SobolevRegressor(**QUICK, random_state=0).fit(pd.DataFrame(x, columns=["temp", "pres"]), y)
    *_, described = named.export(tmp_path, formats=["torch"])
    assert json.loads(described.read_text())["components"]["x"] == ["temp", "pres"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"members": 2.0}, "members=2.0: expected a whole number of at least 1"),
        ({"members": 0}, "members=0: expected a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
        ({"polish_iterations": -1}, "polish_iterations=-1: expected a whole number of at least 0"),
        ({"adam_steps": -1}, "adam_steps=-1: expected a whole number of at least 0"),
        ({"patience": 0}, "patience=0: expected a whole number of at least 1"),
        ({"learning_rate": 0}, "learning_rate=0: expected a number above 0"),
        ({"derivative_weight": -1.0}, "derivative_weight=-1.0: expected a number of at least 0"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], told: str) -> None:
    x, y, dydx = data(outputs=1)
    with pytest.raises(ValueError, match=told):
        SobolevRegressor(**options).fit(x, y, dydx)
