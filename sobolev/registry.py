"""Names of components, and the checks of their options.

Options are the factory's typed keyword arguments; a pydantic model made from the signature checks them, so that
validation, ``sobolev show`` and the documentation have one source.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
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
    """Return a sentence with the nearest of the allowed names, or the only one that begins like it, or all of them."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.6)
    if not near and len(str(name)) > 2:
        begun = [other for other in allowed if other.startswith(str(name)) or str(name).startswith(other)]
        near = begun if len(begun) == 1 and len(begun[0]) > 2 else []
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
        except (Exception, SystemExit) as error:  # whatever a module does when it is imported
            raise PluginError(
                f"{self.kind} {self.name!r} of plugin {self.plugin} cannot be loaded from {self.source!r}: "
                f"{type(error).__name__}: {error}"
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
    markers = getattr(annotation, "__metadata__", ())
    if any(isinstance(marker, Kind) for marker in markers):
        others = tuple(marker for marker in markers if not isinstance(marker, Kind))
        return Annotated[(spec, *others)] if others else spec
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _kind_of(annotation) is None:
        return annotation
    replaced = tuple(_replace_kind(argument) for argument in arguments)
    if origin in (typing.Union, __import__("types").UnionType):
        return typing.Union[replaced]  # noqa: UP007
    return origin[replaced]


def _options_model(entry: Entry) -> type[BaseModel]:
    where = f"{entry.kind} {entry.name!r} of plugin {entry.plugin}"
    try:
        hints = _annotations(entry.factory)
        parameters = inspect.signature(entry.factory).parameters
    except (NameError, TypeError, ValueError, AttributeError) as error:
        raise PluginError(f"{where}: the types of its options cannot be read: {error}") from error
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
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

    def forget(self, plugin: str) -> None:
        """Remove all that a plugin has registered."""
        for kind, entries in self.entries.items():
            self.entries[kind] = {name: entry for name, entry in entries.items() if entry.plugin != plugin}

    def register(self, kind: str, name: str, source: Callable[..., Any] | str, plugin: str, summary: str = "") -> None:
        """Add a component.

        Raises:
            PluginError: the name is taken (names both plugins), or name or source cannot be used.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", name):
            raise PluginError(
                f"plugin {plugin} registers a {kind} as {name!r}; a name consists of letters and digits, with single "
                "'-', '_' or '.' between them"
            )
        address = isinstance(source, str) and re.fullmatch(r"[\w.]+:\w+", source)
        if not address and not callable(source):
            raise PluginError(
                f"plugin {plugin} registers the {kind} {name!r} as {source!r}; expected a callable with typed keyword "
                "arguments, or its address 'package.module:name'"
            )
        taken = self.entries[kind].get(name)
        if taken is not None:
            raise PluginError(
                f"two plugins register the {kind} {name!r}: {taken.plugin} and {plugin}; uninstall one of them, or "
                "rename it there"
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
            problems += problems_of(error, path, _allowed_keys(model), options)
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

    def options(self, kind: str, spec: Mapping[str, Any]) -> BaseModel:
        """Return the options of a checked specification, defaults filled in."""
        return self.get(kind, spec["use"]).options(**{key: value for key, value in spec.items() if key != "use"})

    def build(self, kind: str, spec: Mapping[str, Any] | str) -> Any:
        """Make a component from a checked specification."""
        spec = {"use": spec} if isinstance(spec, str) else spec
        entry = self.get(kind, spec["use"])
        validated = self.options(kind, spec)
        arguments = {name: getattr(validated, name) for name in entry.options.model_fields}
        for option, inner in entry.nested.items():
            value = arguments[option]
            if isinstance(value, list):
                arguments[option] = [self.build(inner.name, part) for part in value]
            elif isinstance(value, Mapping):
                arguments[option] = self.build(inner.name, value)
        return entry.factory(**arguments)


def _allowed_keys(model: type[BaseModel]) -> dict[Path, list[str]]:
    """Return the keys of a component and of the groups of options inside it."""
    allowed: dict[Path, list[str]] = {(): [*model.model_fields, "use"]}
    for name, info in model.model_fields.items():
        groups = [t for t in _types(info.annotation) if inspect.isclass(t) and issubclass(t, BaseModel)]
        if groups:
            allowed[(name,)] = [field for group in groups for field in group.model_fields]
    return allowed


def _types(annotation: Any) -> list[Any]:
    """Return the types that an annotation is made of."""
    arguments = [a for a in typing.get_args(annotation) if not isinstance(a, str | int | float)]
    return [t for a in arguments for t in _types(a)] if arguments else [annotation]


def _plain(model: BaseModel) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(mode="json", warnings=False)
    return dumped


def problems_of(
    error: ValidationError, path: Path, allowed: Mapping[Path, Iterable[str]], given: Any = None
) -> list[Problem]:
    """Turn pydantic's errors into problems.

    Args:
        error: what pydantic found.
        path: where the checked data stand in the recipe.
        allowed: the keys known at a (relative) place; indices of lists are left out of it.
        given: the data that were checked; tells keys from pydantic's names of the branches of a union.
    """
    found: dict[Path, list[tuple[str, bool]]] = {}
    for item in error.errors():
        location = _location(item, given)
        if item["type"] == "extra_forbidden":
            known = allowed.get(tuple(part for part in location[:-1] if isinstance(part, str)))
            hint = did_you_mean(location[-1], known) if known is not None else "remove it"
            said = (f"unknown key {location[-1]!r}; {hint}", True)
        elif item["type"] == "missing":
            said = (f"{location[-1]!r} is missing", False)
        else:
            said = (_message(item), False)
        found.setdefault(location, []).append(said)
    problems = []
    for location, messages in found.items():
        if any(other != location and other[: len(location)] == location for other in found):
            continue  # another branch of a union says it closer to the place
        texts = list(dict.fromkeys(text for text, _ in messages))
        problems.append(Problem((*path, *location), _either(texts), key=messages[0][1]))
    return problems


def _location(item: Any, given: Any) -> Path:
    """Return pydantic's location without the names of branches of unions."""
    node, location = given, []
    for i, part in enumerate(item["loc"]):
        last = i == len(item["loc"]) - 1
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif given is None:
            if _is_branch(part):
                continue
        elif not (last and item["type"] in ("missing", "extra_forbidden")):
            continue
        location.append(part)
    return tuple(location)


_WORDS = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false", "string_type": "a text",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "string_pattern_mismatch": "letters, digits, '-', '_' and '.', beginning with a letter or a digit",
}  # fmt: skip


def _message(item: Any) -> str:
    """Return ``expected ..., not ...`` for one of pydantic's errors."""
    wanted = _WORDS.get(item["type"])
    if wanted is None:
        wanted = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        if item["type"].startswith(("greater_than", "less_than")):
            wanted = f"a number {wanted}"
    value = item["input"]
    text = f"expected {wanted}"
    if not (isinstance(value, dict | list) and len(str(value)) > 60):
        text += f", not {value!r}"
    if item["type"] == "literal_error":
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", item["ctx"]["expected"]), n=1)
        text += f"; did you mean {near[0]!r}?" if near else ""
    return text


def _either(texts: list[str]) -> str:
    """Join what the branches of a union say of one value, of which the last words ", not ..." are the same."""
    if len(texts) == 1:
        return texts[0]
    ends = {text.rpartition(", not ")[2] for text in texts}
    if len(ends) > 1:
        return "; or: ".join(texts)
    wanted = [text.rpartition(", not ")[0].removeprefix("expected ") for text in texts]
    return f"expected {' or '.join(wanted)}, not {ends.pop()}"


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a key."""
    return isinstance(part, str) and ("[" in part or part in {"int", "float", "str", "bool", "Options"})


def default_of(model: type[BaseModel], name: str) -> Any:
    """Return the default of an option, or PydanticUndefined where it is required."""
    info = model.model_fields[name]
    return PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True)
