"""From a recipe file to a plan: every run, resolved and checked whole before anything starts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from pydantic import ValidationError

from sobolev.errors import RecipeError
from sobolev.recipe.model import Recipe
from sobolev.recipe.source import Document, Mark, flatten, parse_value, read
from sobolev.registry import Path, Problem, Registry, normalize, problems_of

_COMPONENTS = {"target": "target", "student": "student", "estimator": "estimator", "objective": "objective"}
_DEFAULTS: dict[str | int, str] = {"estimator": "exact", "objective": "sobolev"}
_LISTS = {"track": "tracker", "figures": "report"}
_PLAN_ONLY = ("variants", "matrix", "seeds", "smoke", "extends")


@dataclass(frozen=True)
class RunPlan:
    """One run.

    Attributes:
        recipe: checked and resolved; without variants, matrix, smoke.
        variant: name, with the matrix cell.
        seed: the seed.
        file: where the recipe was read.
    """

    recipe: Recipe
    variant: str
    seed: int
    file: File

    @property
    def directory(self) -> File:
        """The run directory, relative to the root of all runs."""
        return File(self.recipe.name) / self.variant / f"seed-{self.seed}"

    def resolved(self) -> dict[str, Any]:
        """Return what is saved with the run."""
        data = self.recipe.model_dump(mode="json", exclude=set(_PLAN_ONLY))
        return data | {"variant": self.variant, "seed": self.seed}


def load_plans(file: File, registry: Registry, overrides: Sequence[str] = (), smoke: bool = False) -> list[RunPlan]:
    """Read a recipe and return its runs, variant by variant, seed by seed.

    Args:
        file: the recipe.
        registry: the components.
        overrides: ``a.b.c=value``, applied to every run.
        smoke: apply the recipe's own ``smoke`` changes, into a recipe name of its own.

    Raises:
        RecipeError: every problem of every run, each once, with its place.
    """
    document = _extended(file, ())
    given = [_override(text) for text in overrides]
    if smoke:
        for dotted, value in _mapping(document, "smoke").items():
            document.set(dotted, value, document.mark(("smoke", dotted)))
        if isinstance(document.data.get("name"), str):
            document.data["name"] += ".smoke"
    for dotted, value in given:
        document.set(dotted, value, Mark(f"--set {dotted}"))
    problems: dict[str, None] = {}
    plans: list[RunPlan] = []
    for variant, run in _runs(document):
        plan, found = _check(run, registry, variant, file)
        problems |= dict.fromkeys(_say(run, problem) for problem in found)
        if plan is not None:
            plans += plan
    if problems:
        count = len(problems)
        raise RecipeError("\n".join(problems) + (f"\n{count} problems" if count > 1 else ""))
    return plans


def _extended(file: File, seen: tuple[File, ...]) -> Document:
    document = read(file)
    parent = document.data.pop("extends", None)
    if parent is None:
        return document
    mark = document.mark(("extends",))
    if not isinstance(parent, str):
        raise RecipeError(f"{mark}: 'extends' names one recipe file, not {parent!r}")
    base_file = (file.parent / parent).resolve()
    if base_file in seen or base_file == file.resolve():
        raise RecipeError(f"{mark}: {parent} extends itself")
    if not base_file.is_file():
        raise RecipeError(f"{mark}: there is no recipe {parent} beside {file.name}")
    base = _extended(base_file, (*seen, file.resolve()))
    for key in [k for k in document.data if "." in k]:  # dotted keys change single fields of the parent
        base.set(key, document.data.pop(key), document.mark((key,)))
    for name in (*_COMPONENTS, "train"):
        _drop_replaced_component(base, document, name)
    base.merge(document.data, document, ())
    base.top = document.top
    return base


def _drop_replaced_component(base: Document, child: Document, name: str) -> None:
    """Options of another component do not carry over when the child names a different one."""
    mine, theirs = normalize(child.data.get(name)), normalize(base.data.get(name))
    if isinstance(mine, dict):
        child.data[name] = mine
    if isinstance(theirs, dict):
        base.data[name] = theirs
    if isinstance(mine, dict) and isinstance(theirs, dict) and mine.get("use", theirs.get("use")) != theirs.get("use"):
        del base.data[name]


def _override(text: str) -> tuple[str, Any]:
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"--set {text}: expected a.b.c=value")
    return dotted.strip(), parse_value(value)


def _mapping(document: Document, key: str) -> dict[str, Any]:
    value = document.data.get(key) or {}
    if not isinstance(value, dict):
        raise RecipeError(f"{document.mark((key,))}: {key!r} is a mapping, not {value!r}")
    return value


def _runs(document: Document) -> Iterator[tuple[str, Document]]:
    variants = _mapping(document, "variants") or {"default": {}}
    matrix = _mapping(document, "matrix")
    for name, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise RecipeError(f"{document.mark(('matrix', name))}: expected a list of values, not {values!r}")
    for variant, changes in variants.items():
        changes = changes or {}
        if not isinstance(changes, dict):
            raise RecipeError(f"{document.mark(('variants', variant))}: expected 'field.name: value' pairs")
        for cell in itertools.product(*matrix.values()):
            run = document.copy()
            for dotted, value in zip(matrix, cell, strict=True):
                run.set(dotted, value, document.mark(("matrix", dotted)))
            for dotted, value in changes.items():
                run.set(dotted, value, document.mark(("variants", variant, dotted)))
            label = [variant] if variant != "default" or not matrix else []
            label += [_cell(dotted, value) for dotted, value in zip(matrix, cell, strict=True)]
            yield ",".join(label), run


def _cell(dotted: str, value: Any) -> str:
    # The shortest telling name: the last part of the field that is not "use" or a number.
    field = [part for part in dotted.split(".") if part != "use" and not part.isdigit()][-1]
    shown = value.get("use", "map") if isinstance(value, dict) else value
    return f"{field}={re.sub(r'[^A-Za-z0-9.+-]+', '-', str(shown))}"


def _check(run: Document, registry: Registry, variant: str, file: File) -> tuple[list[RunPlan] | None, list[Problem]]:
    data = {key: value for key, value in run.data.items() if key not in ("variants", "matrix", "smoke")}
    problems: list[Problem] = []
    missing = [p for p in data.get("plugins") or [] if isinstance(p, str) and _broken_or_absent(p, registry)]
    for name in missing:
        problems.append(Problem(("plugins",), _broken_or_absent(name, registry)))
    try:
        recipe = Recipe(**data)
    except ValidationError as error:
        problems += problems_of(error, (), _allowed())
        recipe = None
    checked: dict[str, Any] = {}
    for path, kind in _component_places(data):
        spec = _at(data, path)
        resolved, found = registry.check(kind, spec, path)
        checked[".".join(map(str, path))] = resolved
        problems += found
    if recipe is None or problems:
        return None, [p for i, p in enumerate(problems) if p not in problems[:i]]
    for dotted, spec in checked.items():
        _assign(recipe, dotted, spec)
    seeds = range(recipe.seeds) if isinstance(recipe.seeds, int) else recipe.seeds
    return [RunPlan(recipe, variant, seed, file) for seed in seeds], []


def _broken_or_absent(name: str, registry: Registry) -> str:
    import importlib.metadata

    if name in registry.broken:
        return f"the plugin {name!r} is broken: {registry.broken[name]}"
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"the plugin {name!r} is not installed; pip install it"
    return ""


def _component_places(data: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for key, kind in _COMPONENTS.items():
        if key in data or key in _DEFAULTS:
            yield (key,), kind
    for key, kind in _LISTS.items():
        items = data.get(key)
        for i in range(len(items) if isinstance(items, list) else 0):
            yield (key, i), kind
    train = data.get("train")
    if isinstance(train, Mapping):
        yield from _train_places(train, ("train",))
        phases = train.get("phases")
        for i, phase in enumerate(phases if isinstance(phases, list) else []):
            if isinstance(phase, Mapping):
                yield from _train_places(phase, ("train", "phases", i))


def _train_places(node: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, str]]:
    for key in ("optimizer", "schedule"):
        if node.get(key) is not None:
            yield (*path, key), key


def _at(data: Any, path: Path) -> Any:
    """Return a component as it is written; estimator and objective have a default that need not be named."""
    for part in path:
        if isinstance(data, Mapping) and part not in data:
            return _DEFAULTS.get(part)
        data = data[part]
    if len(path) == 1 and path[0] in _DEFAULTS and isinstance(data, Mapping):
        return {"use": _DEFAULTS[path[0]], **data}
    return data


def _assign(recipe: Recipe, dotted: str, spec: Any) -> None:
    node: Any = recipe
    *parents, last = dotted.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    if isinstance(node, list):
        node[int(last)] = spec
    else:
        setattr(node, last, spec)


def _allowed() -> dict[Path, list[str]]:
    from sobolev.recipe import model

    return {
        (): [*model.Recipe.model_fields, "extends"],
        ("train",): list(model.Train.model_fields),
        ("evaluate",): list(model.Evaluate.model_fields),
        ("train", "stop"): list(model.EarlyStop.model_fields),
        ("train", "checkpoint"): list(model.Checkpoints.model_fields),
    }


def _say(run: Document, problem: Problem) -> str:
    where = ".".join(map(str, problem.path))
    return f"{run.mark(problem.path, problem.key)}: {where}: {problem.message}"


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line per field in which two resolved recipes differ."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}")
    return lines
