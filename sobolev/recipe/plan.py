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
from sobolev.recipe.model import NAME, Recipe
from sobolev.recipe.source import Document, Mark, flatten, parse_value, read
from sobolev.registry import Path, Problem, Registry, did_you_mean, normalize, problems_of

_COMPONENTS = {"target": "target", "student": "student", "estimator": "estimator", "objective": "objective"}
_DEFAULTS: dict[Path, str] = {("estimator",): "exact", ("objective",): "sobolev", ("train", "optimizer"): "adam"}
_LISTS = {"track": "tracker", "figures": "report"}
_PLAN_ONLY = ("variants", "matrix", "seeds", "smoke", "extends")
_SHARED = ("name", "description", "plugins", "variants", "matrix", "smoke", "extends", "track", "figures")

Problems = dict[str, Mark]
"""What is wrong, as people read it, and where."""


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
    problems: Problems = {}
    if smoke:
        for dotted, value in _mapping(document, "smoke", problems).items():
            mark = document.mark(("smoke", dotted))
            if mark.file == document.top.file or _is_option(document, dotted, registry):
                _set(document, dotted, value, mark, problems)
        if isinstance(document.data.get("name"), str):
            document.data["name"] += ".smoke"
    for text in overrides:
        dotted, value = _override(text)
        _set(document, dotted, value, Mark(f"--set {dotted}"), problems)
    plans: list[RunPlan] = []
    for variant, run in _runs(document, problems):
        plan, found = _check(run, registry, variant, file)
        for problem in found:
            mark = run.mark(problem.path, problem.key)
            problems[f"{mark}: {'.'.join(map(str, problem.path))}: {problem.message}"] = mark
        if plan is not None:
            plans += plan
    if problems:
        texts = sorted(problems, key=lambda text: problems[text].order)
        raise RecipeError("\n".join(texts) + (f"\n{len(texts)} problems" if len(texts) > 1 else ""))
    return plans


def _is_option(document: Document, dotted: str, registry: Registry) -> bool:
    """Whether what a parent's ``smoke`` changes is there in the component that the child may have put in its place."""
    kind, *path = dotted.split(".")
    known = registry.entries.get(kind, {}) if kind in _COMPONENTS else {}
    spec = normalize(document.data.get(kind))
    while path and isinstance(spec, Mapping) and spec.get("use") in known:
        option, *path = path
        if option not in ("use", *registry.get(kind, spec["use"]).options.model_fields):
            return False
        spec = normalize(spec.get(option))
    return True


def _vary(run: Document, dotted: str, value: Any, mark: Mark, problems: Problems) -> None:
    """Set a field of one run; refuse fields that all runs share."""
    if dotted.partition(".")[0] in _SHARED:
        problems[f"{mark}: {dotted}: belongs to the recipe as a whole and cannot differ between its runs"] = mark
    else:
        _set(run, dotted, value, mark, problems)


def load_options(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the options of a component that ``a.b=value`` texts give."""
    document = Document({})
    for text in overrides:
        dotted, value = _override(text)
        document.set(dotted, value, Mark(f"--set {dotted}"))
    return document.data


def _set(document: Document, dotted: str, value: Any, mark: Mark, problems: Problems) -> None:
    """Set a field; note what is wrong with its path."""
    try:
        document.set(dotted, value, mark)
    except RecipeError as error:
        problems[str(error)] = mark


def _extended(file: File, seen: tuple[File, ...]) -> Document:
    document = read(file)
    parent = document.data.pop("extends", None)
    if parent is None:
        return document
    mark = document.mark(("extends",))
    if not isinstance(parent, str):
        raise RecipeError(f"{mark}: 'extends' names one recipe file, not {parent!r}")
    base_file = file.parent / parent
    chain = (*seen, file.resolve())
    if base_file.resolve() in chain:
        raise RecipeError(
            f"{mark}: {file.name} extends {parent}, which leads back to it; a recipe cannot be its own ancestor"
        )
    if not base_file.is_file():
        near = did_you_mean(base_file.name, [f.name for f in base_file.parent.glob("*.y*ml") if f != file])
        raise RecipeError(f"{mark}: there is no recipe {parent} beside {file.name}; {near}")
    base = _extended(base_file, chain)
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
    if not equals or not dotted.strip():
        raise RecipeError(f"--set {text}: expected a.b.c=value")
    return dotted.strip(), parse_value(value)


def _mapping(document: Document, key: str, problems: Problems) -> dict[str, Any]:
    value = document.data.get(key) or {}
    if not isinstance(value, dict):
        mark = document.mark((key,))
        problems[f"{mark}: {key}: expected a mapping, not {value!r}"] = mark
        return {}
    return value


def _runs(document: Document, problems: Problems) -> Iterator[tuple[str, Document]]:
    """Yield every variant and matrix cell by name, with its fields set; note what is wrong with their paths."""
    variants = _mapping(document, "variants", problems) or {"default": {}}
    matrix = dict(_mapping(document, "matrix", problems))
    for name, values in list(matrix.items()):
        if not isinstance(values, list) or not values:
            mark = document.mark(("matrix", name))
            problems[f"{mark}: matrix.{name}: expected a list of values, not {values!r}"] = mark
            del matrix[name]
    names: set[str] = set()
    for variant, changes in variants.items():
        mark = document.mark(("variants", variant), key=True)
        changes = changes or {}
        if not re.fullmatch(NAME, variant):
            problems[f"{mark}: variants: {variant!r} names a folder: letters, digits, '-', '_' and '.' alone"] = mark
        if not isinstance(changes, dict):
            problems[f"{mark}: variants.{variant}: expected 'field.name: value' pairs, not {changes!r}"] = mark
            changes = {}
        for cell in itertools.product(*matrix.values()):
            run = document.copy()
            for dotted, value in zip(matrix, cell, strict=True):
                _vary(run, dotted, value, document.mark(("matrix", dotted), key=True), problems)
            for dotted, value in changes.items():
                _vary(run, dotted, value, document.mark(("variants", variant, dotted)), problems)
            label = [variant] if variant != "default" or not matrix else []
            label += [_cell(dotted, value) for dotted, value in zip(matrix, cell, strict=True)]
            name = ",".join(label)
            if name in names:
                mark = document.mark(("matrix",), key=True)
                problems[f"{mark}: matrix: two runs would be called {name!r}; their values must differ"] = mark
            names.add(name)
            yield name, run


def _cell(dotted: str, value: Any) -> str:
    # The shortest telling name: the last part of the field that is not "use" or a number.
    field = [part for part in dotted.split(".") if part != "use" and not part.isdigit()][-1]
    shown = value.get("use", "map") if isinstance(value, dict) else value
    return f"{field}={re.sub(r'[^A-Za-z0-9.+-]+', '-', str(shown))}"


def _check(run: Document, registry: Registry, variant: str, file: File) -> tuple[list[RunPlan] | None, list[Problem]]:
    data = {key: value for key, value in run.data.items() if key not in ("variants", "matrix", "smoke")}
    problems: list[Problem] = []
    wanted = data.get("plugins")
    for i, name in enumerate(wanted if isinstance(wanted, list) else []):
        if isinstance(name, str) and (why := _broken_or_absent(name, registry)):
            problems.append(Problem(("plugins", i), why))
    try:
        recipe = Recipe(**data)
    except ValidationError as error:
        problems += problems_of(error, (), _allowed(), data)
        recipe = None
    checked: dict[str, Any] = {}
    for path, kind in _component_places(data):
        spec = _at(data, path)
        resolved, found = registry.check(kind, spec, path)
        checked[".".join(map(str, path))] = resolved
        # The registry knows more than the model of what is wrong at its place.
        problems = [p for p in problems if not found or p.path != path] + found
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
        if key in data or (key,) in _DEFAULTS:
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
    """Return a component as it is written; where there is a default, its name may be left out."""
    default = _DEFAULTS.get(path)
    for part in path:
        if isinstance(data, Mapping) and part not in data:
            return default
        data = data[part]
    if default is not None and isinstance(data, Mapping):
        return {"use": default, **data}
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
        ("train", "phases"): list(model.Phase.model_fields),
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line per field in which two resolved recipes differ."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}")
    return lines
