"""Names of components, and the checks of their options.

Options are the factory's typed keyword arguments; a pydantic model made from the signature checks them, so that
validation, ``sobolev show`` and the documentation have one source.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model
from pydantic_core import PydanticUndefined

from sobolev.errors import PluginError, RecipeError

Path = tuple[str | int, ...]
PLUGGABLE = ("target", "estimator", "student", "objective", "tracker", "report", "command")
KINDS = (*PLUGGABLE, "optimizer", "schedule")


@dataclass(frozen=True)
class Kind:
    """Marks an option that is itself a component: ``of: Annotated[Estimator, Kind("estimator")]``."""

    name: str


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place of a recipe.

    Attributes:
        path: keys and indices from the top.
        message: what is wrong and what is allowed.
        key: whether the key itself is wrong (else its value).
    """

    path: Path
    message: str
    key: bool = False


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return a sentence with the nearest of the allowed names, or all of them."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "allowed: " + (", ".join(allowed) if allowed else "nothing")


@dataclass(frozen=True)
class Entry:
    """A registered component."""

    kind: str
    name: str
    source: Callable[..., Any] | str
    plugin: str
    given_summary: str = ""

    @cached_property
    def factory(self) -> Callable[..., Any]:
        """The callable; imports it where it was registered by address."""
        if not isinstance(self.source, str):
            return self.source
        module, _, attribute = self.source.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of plugin {self.plugin} cannot be loaded from {self.source!r}: {error}"
            ) from error
        return typing.cast(Callable[..., Any], found)

    @property
    def summary(self) -> str:
        """One line; of a component registered by address only what it was registered with."""
        if self.given_summary or isinstance(self.source, str):
            return self.given_summary
        return (inspect.getdoc(self.source) or "").partition("\n")[0]

    @cached_property
    def nested(self) -> dict[str, Kind]:
        """Options that are components themselves."""
        found = {}
        for name, annotation in _annotations(self.factory).items():
            kind = _kind_of(annotation)
            if kind is not None:
                found[name] = kind
        return found

    @cached_property
    def options(self) -> type[BaseModel]:
        """The model of the options."""
        return _options_model(self)


def _callable_annotations(factory: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    function = factory.__init__ if inspect.isclass(factory) else factory
    if not hasattr(function, "__globals__"):
        return {}, {}
    return dict(function.__annotations__), function.__globals__


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    annotations, names = _callable_annotations(factory)
    annotations.pop("return", None)  # may name a type that is imported for type checkers only
    holder = type("Holder", (), {"__annotations__": annotations})
    return typing.get_type_hints(holder, globalns=names, include_extras=True)


def _kind_of(annotation: Any) -> Kind | None:
    """Return the Kind in an annotation, also inside ``list[...]``, ``X | None``."""
    for marker in getattr(annotation, "__metadata__", ()):
        if isinstance(marker, Kind):
            return marker
    for argument in typing.get_args(annotation):
        if isinstance(argument, str | int | float):
            continue
        kind = _kind_of(argument)
        if kind is not None:
            return kind
    return None


def normalize(spec: Any) -> Any:
    """Return ``{"use": name}`` for a component given by its name alone."""
    return {"use": spec} if isinstance(spec, str) else spec


def _replace_kind(annotation: Any) -> Any:
    """Return the annotation with every component type replaced by its specification, a mapping."""
    spec = Annotated[dict[str, Any], BeforeValidator(normalize)]
    if any(isinstance(marker, Kind) for marker in getattr(annotation, "__metadata__", ())):
        return spec
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _kind_of(annotation) is None:
        return annotation
    replaced = tuple(_replace_kind(argument) for argument in arguments)
    if origin in (typing.Union, __import__("types").UnionType):
        return typing.Union[replaced]  # noqa: UP007
    return origin[replaced]


def _options_model(entry: Entry) -> type[BaseModel]:
    where = f"{entry.kind} {entry.name!r} of plugin {entry.plugin}"
    hints = _annotations(entry.factory)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry.factory).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise PluginError(f"{where}: options must be named one by one, not *{name}")
        if name not in hints:
            raise PluginError(f"{where}: option {name!r} has no type")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (_replace_kind(hints[name]), default)
    config = ConfigDict(extra="forbid", validate_default=False, protected_namespaces=())
    return create_model(f"{entry.kind}_{entry.name}", __config__=config, **fields)


@dataclass
class Registry:
    """All components by kind and name."""

    entries: dict[str, dict[str, Entry]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    broken: dict[str, str] = field(default_factory=dict)

    def register(self, kind: str, name: str, source: Callable[..., Any] | str, plugin: str, summary: str = "") -> None:
        """Add a component.

        Raises:
            PluginError: the name is taken; names both plugins.
        """
        taken = self.entries[kind].get(name)
        if taken is not None:
            raise PluginError(
                f"two plugins register the {kind} {name!r}: {taken.plugin} and {plugin}. Uninstall one of them."
            )
        self.entries[kind][name] = Entry(kind, name, source, plugin, summary)

    def get(self, kind: str, name: str) -> Entry:
        """Return a component by name.

        Raises:
            RecipeError: there is none; suggests the nearest name, and mentions plugins that failed to load.
        """
        try:
            return self.entries[kind][name]
        except KeyError:
            raise RecipeError(self._unknown(kind, name)) from None

    def _unknown(self, kind: str, name: object) -> str:
        text = f"there is no {kind} {name!r}; {did_you_mean(name, self.entries[kind])}"
        if self.broken:
            text += f" (plugins that failed to load: {', '.join(self.broken)}; see `sobolev list`)"
        return text

    def check(self, kind: str, spec: Any, path: Path) -> tuple[dict[str, Any], list[Problem]]:
        """Check ``{"use": name, **options}`` and all components inside; returns it with defaults filled in."""
        spec = normalize(spec)
        if not isinstance(spec, Mapping) or not isinstance(spec.get("use"), str):
            return {}, [Problem(path, f"expected the name of one {kind}, or a mapping with 'use: <name>'")]
        name = spec["use"]
        if name not in self.entries[kind]:
            return {}, [Problem((*path, "use"), self._unknown(kind, name))]
        entry = self.entries[kind][name]
        try:
            model = entry.options
        except PluginError as error:
            return {}, [Problem((*path, "use"), str(error))]
        options = {key: value for key, value in spec.items() if key != "use"}
        problems: list[Problem] = []
        checked: dict[str, Any] = {"use": name}
        try:
            checked |= _plain(model(**{str(key): value for key, value in options.items()}))
        except ValidationError as error:
            allowed = [*model.model_fields, "use"]
            problems += problems_of(error, path, {(): allowed})
        for option, inner in entry.nested.items():
            if option in options and option not in {p.path[len(path)] for p in problems if len(p.path) > len(path)}:
                value = options[option]
                if isinstance(value, list):
                    parts = [self.check(inner.name, v, (*path, option, i)) for i, v in enumerate(value)]
                    checked[option] = [part for part, _ in parts]
                    problems += [problem for _, found in parts for problem in found]
                elif value is not None:
                    checked[option], found = self.check(inner.name, value, (*path, option))
                    problems += found
        return checked, problems

    def build(self, kind: str, spec: Mapping[str, Any] | str) -> Any:
        """Make a component from a checked specification."""
        spec = {"use": spec} if isinstance(spec, str) else spec
        entry = self.get(kind, spec["use"])
        options = {key: value for key, value in spec.items() if key != "use"}
        validated = entry.options(**options)
        arguments = {name: getattr(validated, name) for name in entry.options.model_fields}
        for option, inner in entry.nested.items():
            value = arguments[option]
            if isinstance(value, list):
                arguments[option] = [self.build(inner.name, part) for part in value]
            elif isinstance(value, Mapping):
                arguments[option] = self.build(inner.name, value)
        return entry.factory(**arguments)


def _plain(model: BaseModel) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(mode="json", warnings=False)
    return dumped


def problems_of(error: ValidationError, path: Path, allowed: Mapping[Path, Iterable[str]]) -> list[Problem]:
    """Turn pydantic's errors into problems; ``allowed`` gives the keys known at a (relative) place."""
    problems = []
    for item in error.errors():
        location = tuple(part for part in item["loc"] if not _is_branch(part))
        if item["type"] == "extra_forbidden":
            known = allowed.get(location[:-1])
            hint = did_you_mean(location[-1], known) if known is not None else "remove it"
            problems.append(Problem((*path, *location), f"unknown key {location[-1]!r}; {hint}", key=True))
        elif item["type"] == "missing":
            problems.append(Problem((*path, *location), f"{location[-1]!r} is missing"))
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = item["input"]
            shown = "" if isinstance(given, dict | list) and len(str(given)) > 60 else f", not {given!r}"
            problems.append(Problem((*path, *location), f"{location[-1] if location else ''}: {message}{shown}"))
    return problems


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a key."""
    return isinstance(part, str) and ("[" in part or part in {"int", "float", "str", "bool", "Options"})


def default_of(model: type[BaseModel], name: str) -> Any:
    """Return the default of an option, or PydanticUndefined where it is required."""
    info = model.model_fields[name]
    return PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True)
