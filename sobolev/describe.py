"""Options of components and fields of recipes in words: for ``sobolev show`` and for the documentation."""

from __future__ import annotations

import inspect
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sobolev.registry import Entry, default_of

_BOUNDS = {
    "ge": ">= {}",
    "gt": "> {}",
    "le": "<= {}",
    "lt": "< {}",
    "min_length": "with at least {}",
    "max_length": None,
}
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "anything"}


@dataclass(frozen=True)
class Option:
    """An option or field.

    Attributes:
        name: as in a recipe.
        type: what is allowed, in words.
        default: as in a recipe, or None where it is required.
        description: one line.
    """

    name: str
    type: str
    default: str | None
    description: str


def options_of(entry: Entry) -> list[Option]:
    """Return the options of a component."""
    return fields_of(entry.options, {name: _article(kind.name) for name, kind in entry.nested.items()})


def fields_of(model: type[BaseModel], components: dict[str, str] | None = None) -> list[Option]:
    """Return the fields of a model; ``components`` says which of them are components, in words."""
    made = []
    for name, info in model.model_fields.items():
        default = default_of(model, name)
        words = (components or {}).get(name)
        if words and any(t is list for t in _origins(info.annotation)):
            words = f"list of {words.partition(' ')[2]}s"
        shown = None if default is PydanticUndefined else value_text(default)
        made.append(Option(name, words or _field_type(info), shown, info.description or ""))
    return made


def groups_of(model: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Return the groups of fields inside a model, by the name of the field that holds them."""
    found: dict[str, list[type[BaseModel]]] = {}
    for name, info in model.model_fields.items():
        groups = [part for part in _leaves(info.annotation) if inspect.isclass(part) and issubclass(part, BaseModel)]
        if groups:
            found[name] = groups
    return found


def value_text(value: Any) -> str:
    """Return a default as it would stand in a recipe."""
    if isinstance(value, BaseModel):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
        changed = ", ".join(f"{k}: {value_text(v)}" for k, v in inner.items() if not isinstance(v, BaseModel))
        return "{" + changed + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {value_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(v) for v in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _field_type(info: FieldInfo) -> str:
    return _bounded(type_text(info.annotation), _bounds(info.metadata))


def _bounded(text: str, bounds: str) -> str:
    if not bounds:
        return text
    return f"{text.removesuffix(' or null')} {bounds} or null" if text.endswith(" or null") else f"{text} {bounds}"


def type_text(annotation: Any) -> str:
    """Return an annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _bounded(type_text(arguments[0]), _bounds(arguments[1:]))
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        parts = ["null" if part is type(None) else type_text(part) for part in arguments]
        return " or ".join(dict.fromkeys(parts))
    if origin is list or origin is tuple:
        return f"list of {type_text(arguments[0])}" if arguments else "list"
    if origin is dict:
        return "mapping"
    if annotation in _WORDS:
        return _WORDS[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping"
    return getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: Any) -> str:
    found = []
    for marker in metadata:
        for part in getattr(marker, "metadata", [marker]) if isinstance(marker, FieldInfo) else [marker]:
            for name, words in _BOUNDS.items():
                value = getattr(part, name, None)
                if words and value is not None:
                    found.append(words.format(value))
    return ", ".join(found)


def _origins(annotation: Any) -> list[Any]:
    arguments = [a for a in typing.get_args(annotation) if not isinstance(a, str | int | float)]
    return [typing.get_origin(annotation), *(o for a in arguments for o in _origins(a))]


def _leaves(annotation: Any) -> list[Any]:
    arguments = [a for a in typing.get_args(annotation) if not isinstance(a, str | int | float)]
    return [leaf for a in arguments for leaf in _leaves(a)] if arguments else [annotation]
