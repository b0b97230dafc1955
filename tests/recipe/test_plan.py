"""From a recipe to its runs, and every problem on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sobolev.errors import RecipeError
from sobolev.host import default_host
from sobolev.recipe.plan import RunPlan, difference, load_plans

BASE = """\
name: base
target: {use: mccormick, train: 20}
student: {use: mlp, hidden: [8]}
"""


def plans(folder: Path, text: str, *overrides: str, smoke: bool = False, name: str = "r.yaml") -> list[RunPlan]:
    file = folder / name
    file.write_text(text)
    return load_plans(file, default_host().registry, overrides, smoke)


def problems(folder: Path, text: str, *overrides: str, smoke: bool = False) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plans(folder, text, *overrides, smoke=smoke)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def labels(found: list[RunPlan]) -> list[str]:
    return [f"{plan.variant}/{plan.seed}" for plan in found]


def test_a_small_recipe_is_resolved_with_all_defaults(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, BASE)
    resolved = plan.resolved()
    assert resolved["target"] == {
        "use": "mccormick", "train": 20, "test": 10000, "validation": 0, "dimension": 2, "sampling": "uniform",
    }  # fmt: skip
    assert resolved["estimator"]["use"] == "exact"
    assert resolved["train"]["optimizer"]["use"] == "adam"
    assert (resolved["variant"], resolved["seed"]) == ("default", 0)
    assert not {"variants", "matrix", "seeds", "smoke", "extends"} & set(resolved)
    assert plan.directory == Path("base/default/seed-0")


def test_every_problem_is_reported_at_once_sorted_by_place(tmp_path: Path) -> None:
    text = """\
name: "a name"
target: {use: mccormik, train: 20}
student: {use: mlp, hidden: 256, activation: rleu}
estimator: {use: exact, ordr: 1, memory: lots}
objective:
  valeu: {loss: squared-l2}
  derivatives:
    - {order: 0, loss: squared-l3, weight: -1.0, wieght: 1}
train:
  stpes: 100
  batch_size: none
  optimizer: {use: adma, lr: 1.0e-3}
  stop: {metric: test, patience: x}
  phases:
    - {steps: 0, optimizer: {use: sgd, lrr: 3}, stpes: 1}
seeds: [0, a]
variants:
  regular: {objective.derivatives.3.weight: 0}
  other: {student.hiden: [3]}
  a/b: {train.steps: 3}
track: [wnadb]
figures: surface
evaluate: {splits: [tset]}
"""
    letters = "letters, digits, '-', '_' and '.'"
    assert problems(tmp_path, text) == [
        f"r.yaml:1:7: name: expected {letters}, beginning with a letter or a digit, not 'a name'",
        "r.yaml:2:15: target.use: there is no target 'mccormik'; did you mean 'mccormick'?",
        "r.yaml:3:29: student.hidden: expected a list, not 256",
        "r.yaml:3:46: student.activation: expected 'relu', 'leaky-relu', 'elu', 'tanh', 'sigmoid', 'softplus', 'silu' "
        "or 'gelu', not 'rleu'; did you mean 'relu'?",
        "r.yaml:4:25: estimator.ordr: unknown key 'ordr'; allowed: memory, use",
        "r.yaml:4:42: estimator.memory: expected a whole number, not 'lots'",
        "r.yaml:6:3: objective.valeu: unknown key 'valeu'; did you mean 'value'?",
        "r.yaml:8:15: objective.derivatives.0.order: expected a number greater than or equal to 1, not 0",
        "r.yaml:8:24: objective.derivatives.0.loss: expected 'squared-l2', 'l1', 'norm' or 'huber', not 'squared-l3'; "
        "did you mean 'squared-l2'?",
        "r.yaml:8:44: objective.derivatives.0.weight: expected a number greater than or equal to 0, not -1.0",
        "r.yaml:8:50: objective.derivatives.0.wieght: unknown key 'wieght'; did you mean 'weight'?",
        "r.yaml:10:3: train.stpes: unknown key 'stpes'; did you mean 'steps'?",
        "r.yaml:11:15: train.batch_size: expected a whole number or 'all', not 'none'",
        "r.yaml:12:20: train.optimizer.use: there is no optimizer 'adma'; did you mean 'adam'?",
        "r.yaml:13:34: train.stop.patience: expected a whole number, not 'x'",
        "r.yaml:15:15: train.phases.0.steps: expected a number greater than or equal to 1, not 0",
        "r.yaml:15:40: train.phases.0.optimizer.lrr: unknown key 'lrr'; did you mean 'lr'?",
        "r.yaml:15:49: train.phases.0.stpes: unknown key 'stpes'; did you mean 'steps'?",
        "r.yaml:16:12: seeds.1: expected a whole number, not 'a'",
        "r.yaml:18:45: objective.derivatives is a list; '3' is none of its indices (0 to 0)",
        "r.yaml:19:26: student.hiden: unknown key 'hiden'; did you mean 'hidden'?",
        "r.yaml:20:3: variants: 'a/b' names a folder: letters, digits, '-', '_' and '.' alone",
        "r.yaml:21:9: track.0.use: there is no tracker 'wnadb'; did you mean 'wandb'?",
        "r.yaml:22:10: figures: expected a list, not 'surface'",
        "r.yaml:23:21: evaluate.splits.0: expected 'train', 'validation' or 'test', not 'tset'; did you mean 'test'?",
        "25 problems",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seeds: 0", "seeds: expected a number greater than or equal to 1 or a list, not 0"),
        ("seeds: [1, 1]", "seeds that differ, as each is one run, not [1, 1]"),
        ("seeds: []", "seeds: expected"),
        ("seeds: [-1]", "seeds.0: expected a number greater than or equal to 0, not -1"),
        ("train: 3", "train: expected a mapping, not 3"),
        ("train: {steps: .nan}", "train.steps: expected a finite number, not nan"),
        ("variants: [a]", "variants: expected a mapping, not ['a']"),
        ("variants: {a: 3}", "variants.a: expected 'field.name: value' pairs, not 3"),
        ("matrix: {train.steps: 3}", "matrix.train.steps: expected a list of values, not 3"),
        ("matrix: {train.steps: []}", "matrix.train.steps: expected a list of values, not []"),
        ("matrix: {train.steps: [1, 1]}", "matrix: two runs would be called 'steps=1'; their values must differ"),
        ("variants: {a: {name: b}}", "name: belongs to the recipe as a whole"),
        ("matrix: {track: [[wandb]]}", "track: belongs to the recipe as a whole"),
        ("plugins: [sobolev-absent]", "plugins.0: the plugin 'sobolev-absent' is not installed; pip install it"),
        ("plugins: sobolev-absent", "plugins: expected a list, not 'sobolev-absent'"),
        ("nmae: x", "nmae: unknown key 'nmae'; did you mean 'name'?"),
        ("extends: 3", "'extends' names one recipe file, not 3"),
        ("smoke: 3", None),
    ],
)  # fmt: skip
def test_a_mistake_of_the_whole(tmp_path: Path, line: str, said: str | None) -> None:
    if said is None:
        (only,) = problems(tmp_path, BASE + line + "\n", smoke=True)
        assert "smoke: expected a mapping, not 3" in only
        return
    (only,) = problems(tmp_path, BASE + line + "\n")
    assert only.startswith("r.yaml:4:")
    assert said in only


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: a\n") == [
        "r.yaml:1:1: target: 'target' is missing", "r.yaml:1:1: student: 'student' is missing", "2 problems",
    ]  # fmt: skip


def test_variants_and_seeds(tmp_path: Path) -> None:
    found = plans(tmp_path, BASE + "seeds: [3, 5]\nvariants:\n  a: {train.steps: 7, student.hidden: [2]}\n  b: {}\n")
    assert labels(found) == ["a/3", "a/5", "b/3", "b/5"]
    assert [plan.recipe.train.steps for plan in found] == [7, 7, 1000, 1000]
    assert found[0].recipe.student["hidden"] == [2]
    assert len(plans(tmp_path, BASE + "seeds: 4\n")) == 4


def test_a_variant_may_change_the_component(tmp_path: Path) -> None:
    found = plans(tmp_path, BASE + "variants:\n  a: {student: 'null'}\n  b: {estimator: projected, seeds: 2}\n")
    assert labels(found) == ["a/0", "b/0", "b/1"]
    assert found[0].recipe.student == {"use": "null"}
    assert found[1].recipe.estimator["use"] == "projected"


def test_matrix_of_any_fields(tmp_path: Path) -> None:
    text = BASE + "matrix:\n  train.optimizer.lr: [1.0e-3, 3.0e-4]\n  target: [booth, {use: ackley, dimension: 3}]\n"
    found = plans(tmp_path, text)
    assert labels(found) == [
        "lr=0.001,target=booth/0", "lr=0.001,target=ackley/0", "lr=0.0003,target=booth/0", "lr=0.0003,target=ackley/0",
    ]  # fmt: skip
    assert found[1].recipe.target["dimension"] == 3
    assert found[2].recipe.train.optimizer == {**found[0].recipe.train.optimizer, "lr": 3e-4}
    crossed = plans(tmp_path, text + "variants: {a: {}, b: {train.steps: 1}}\n")
    assert len(crossed) == 8
    assert crossed[-1].variant == "b,lr=0.0003,target=ackley"


def test_variants_win_over_the_matrix_and_set_over_the_file(tmp_path: Path) -> None:
    text = BASE + "matrix: {train.steps: [1, 2]}\nvariants: {a: {train.clip: 3}}\n"
    found = plans(tmp_path, text, "train.ema=0.9", "seeds=2", "variants.b={train.clip: 5}")
    assert [(p.recipe.train.steps, p.recipe.train.clip, p.recipe.train.ema) for p in found[::2]] == [
        (1, 3, 0.9), (2, 3, 0.9), (1, 5, 0.9), (2, 5, 0.9),
    ]  # fmt: skip


@pytest.mark.parametrize("objective", ["", "objective: sobolev\n", "objective: {value: l1}\n"])
def test_a_variant_of_a_term_that_the_recipe_does_not_write_out(tmp_path: Path, objective: str) -> None:
    variants = "variants: {regular: {objective.derivatives.0.weight: 0}}"
    text = f"name: r\ntarget: booth\nstudent: mlp\n{objective}{variants}\n"
    place = f"{text.count(chr(10))}:{variants.index('0}}') + 1}"
    assert problems(tmp_path, text) == [
        f"r.yaml:{place}: objective.derivatives.0.weight changes item 0 of objective.derivatives, and the recipe has "
        "no such list (a default cannot be changed item by item); write it out, as in 'objective: {derivatives: "
        "[{weight: ...}]}'"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.stpes=3", "--set train.stpes: train.stpes: unknown key 'stpes'; did you mean 'steps'?"),
        ("target=mccormik", "--set target: target.use: there is no target 'mccormik'; did you mean 'mccormick'?"),
        ("name.x=3", "name: expected a text, not {'use': 'base', 'x': 3}"),
        ("seeds.x=3", "--set seeds.x: seeds is 2, not a mapping; 'x' cannot be set inside it"),
        ("train", "--set train: expected a.b.c=value"),
        ("=3", "--set =3: expected a.b.c=value"),
        ("student.hidden.7=3", "--set student.hidden.7: student.hidden is a list; '7' is none of its indices"),
    ],
)
def test_a_mistake_in_set_is_reported_as_such(tmp_path: Path, override: str, said: str) -> None:
    found = problems(tmp_path, BASE + "seeds: 2\n", override)
    assert said in "\n".join(found)


def test_options_of_a_component_that_has_a_default_name(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, BASE, "train.optimizer.lr=0.5", "estimator.memory=3", "objective.value.weight=2")
    assert plan.recipe.train.optimizer["use"] == "adam"
    assert plan.recipe.train.optimizer["lr"] == 0.5
    assert plan.recipe.estimator == {"use": "exact", "memory": 3}
    assert plan.recipe.objective["value"]["weight"] == 2


def test_smoke_has_a_name_of_its_own(tmp_path: Path) -> None:
    text = BASE + "seeds: 3\nsmoke: {train.steps: 2, seeds: 1}\n"
    (plan,) = plans(tmp_path, text, smoke=True)
    assert (plan.recipe.name, plan.recipe.train.steps) == ("base.smoke", 2)
    assert len(plans(tmp_path, text)) == 3


def test_a_child_changes_single_fields_of_its_one_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(BASE + "train: {steps: 5, clip: 1.0}\nvariants: {a: {}, b: {}}\n")
    child = "extends: parent.yaml\nname: child\ntrain: {steps: 6}\ntrain.ema: 0.5\ntarget: {train: 30}\n"
    found = plans(tmp_path, child + "variants: {b: {seeds: 2}}\n")
    assert labels(found) == ["a/0", "b/0", "b/1"]
    train = found[0].recipe.train
    assert (found[0].recipe.name, train.steps, train.clip, train.ema) == ("child", 6, 1.0, 0.5)
    assert found[0].recipe.target["train"] == 30
    assert found[0].recipe.target["use"] == "mccormick"


def test_options_of_another_component_do_not_carry_over(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(BASE)
    (plan,) = plans(tmp_path, "extends: parent.yaml\nname: child\ntarget: booth\nstudent: {use: 'null'}\n")
    assert plan.recipe.target["train"] == 100
    assert plan.recipe.student == {"use": "null"}


def test_options_of_another_component_inside_a_component_do_not_carry_over(tmp_path: Path) -> None:
    parent = "name: base\nstudent: mlp\ntarget: {use: ensemble, members: 4, of: {use: mccormick, train: 7, test: 9}}\n"
    (tmp_path / "parent.yaml").write_text(parent + "smoke: {target.of.test: 3}\n")
    child = "extends: parent.yaml\nname: child\ntarget: {of: {use: booth, test: 8}}\n"
    (plan,) = plans(tmp_path, child)
    assert (plan.recipe.target["members"], plan.recipe.target["of"]["train"]) == (4, 100)
    assert (plan.recipe.target["of"]["use"], plan.recipe.target["of"]["test"]) == ("booth", 8)
    (same,) = plans(tmp_path, "extends: parent.yaml\nname: child\ntarget: {of: {use: mccormick, test: 8}}\n")
    assert (same.recipe.target["of"]["train"], same.recipe.target["of"]["test"]) == (7, 8)
    (short,) = plans(tmp_path, child, smoke=True)
    assert short.recipe.target["of"]["test"] == 3
    (forgotten,) = plans(tmp_path, child + "smoke: null\n", smoke=True)
    assert forgotten.recipe.target["of"]["test"] == 8


def test_what_smoke_changes_in_a_component_that_the_child_replaces_is_left_out(tmp_path: Path) -> None:
    smoke = "smoke: {target.test: 3, target.dimension: 3, target.no: 1, train.steps: 2}\n"
    (tmp_path / "parent.yaml").write_text(BASE + smoke)
    (plan,) = plans(tmp_path, "extends: parent.yaml\nname: child\ntarget: booth\n", smoke=True)
    assert (plan.recipe.target["test"], plan.recipe.train.steps) == (3, 2)
    finite = "extends: parent.yaml\nname: child\ntarget: {use: finite-set, points: 9}\n"
    (plan,) = plans(tmp_path, finite, smoke=True)
    assert (plan.recipe.target["dimension"], plan.recipe.target["test"], plan.recipe.train.steps) == (3, 3, 2)
    (found,) = problems(tmp_path, finite + "smoke: {target.no: 1}\n", smoke=True)
    assert "unknown key 'no'" in found
    (found,) = problems(tmp_path, BASE + smoke, smoke=True)  # in the recipe itself all of it counts
    assert "unknown key 'no'" in found


def test_a_problem_of_the_parent_is_shown_in_the_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(BASE + "train: {stpes: 5}\n")
    (only,) = problems(tmp_path, "extends: parent.yaml\nname: child\n")
    assert only == "parent.yaml:4:9: train.stpes: unknown key 'stpes'; did you mean 'steps'?"


def test_a_grandchild(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "parent.yaml").write_text(BASE + "train: {steps: 5}\n")
    (tmp_path / "child.yaml").write_text("extends: a/parent.yaml\nname: child\ntrain.clip: 2\n")
    (plan,) = plans(tmp_path, "extends: child.yaml\nname: grandchild\n")
    assert (plan.recipe.name, plan.recipe.train.steps, plan.recipe.train.clip) == ("grandchild", 5, 2)


@pytest.mark.parametrize("parent", ["r.yaml", "child.yaml"])
def test_a_recipe_cannot_be_its_own_ancestor(tmp_path: Path, parent: str) -> None:
    (tmp_path / "child.yaml").write_text("extends: r.yaml\nname: child\n")
    (only,) = problems(tmp_path, f"extends: {parent}\nname: a\n")
    assert only.endswith("which leads back to it; a recipe cannot be its own ancestor")
    assert only.split(":")[0] in ("r.yaml", "child.yaml")


def test_a_parent_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(BASE)
    (only,) = problems(tmp_path, "extends: parnet.yaml\nname: a\n")
    assert only == "r.yaml:1:10: there is no recipe parnet.yaml beside r.yaml; did you mean 'parent.yaml'?"


def test_difference_names_the_fields() -> None:
    old: dict[str, Any] = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert difference(old, {"a": {"b": 2, "c": [1]}, "d": 3}) == ["a.b: 1 -> 2", "a.c.1: 2 -> '(absent)'"]
    assert difference(old, old) == []
