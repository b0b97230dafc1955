"""YAML with places: plain data, and for every key and value the file, line and column that it stands in."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from sobolev.errors import RecipeError
from sobolev.registry import Path, did_you_mean

if (
    TYPE_CHECKING
):  # the parser is loaded when something is parsed: plugins import this module, `sobolev --help` does not
    from ruamel.yaml import YAML

_MOST_BYTES = 1_000_000
_MOST_NODES = 100_000  # an alias is expanded where it is used: a small file must not become a large tree
_MOST_BRACKETS = 200  # open at once, also those in texts: the parser's time grows with the square of their number
_BRACKETS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


@dataclass(frozen=True)
class Mark:
    """A place: file (or ``--set``), line and column, both from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    @property
    def order(self) -> tuple[str, int, int]:
        """What places are sorted by."""
        return self.file, self.line or 0, self.column or 0

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass
class Document:
    """Plain data with the places of its keys and values."""

    data: dict[str, Any]
    key_marks: dict[Path, Mark] = field(default_factory=dict)
    value_marks: dict[Path, Mark] = field(default_factory=dict)
    top: Mark = field(default_factory=lambda: Mark("recipe"))

    def mark(self, path: Path, key: bool = False) -> Mark:
        """Return the place of a path, or of the nearest thing above it that has one."""
        first, second = (self.key_marks, self.value_marks) if key else (self.value_marks, self.key_marks)
        for end in range(len(path), 0, -1):
            found = first.get(path[:end]) or second.get(path[:end])
            if found:
                return found
        return self.top

    def copy(self) -> Document:
        """Return an independent copy."""
        return Document(copy.deepcopy(self.data), dict(self.key_marks), dict(self.value_marks), self.top)

    def set(self, dotted: str, value: Any, mark: Mark) -> None:
        """Set ``a.b.0.c`` to a value.

        Raises:
            RecipeError: the path leads through something that is no mapping or list, past the end of a list, or into
                a list that is not written in the recipe.
        """
        node: Any = self.data
        path: tuple[str | int, ...] = ()
        parts = dotted.split(".")
        _refuse_absent_list(self.data, parts, mark)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            step = _step(node, part, path, mark)
            path = (*path, step)
            if last:
                node[step] = copy.deepcopy(value)
            elif isinstance(node, list):
                node = node[int(step)]
            else:
                if isinstance(node.get(step), str):  # a component by name alone; its options are set now
                    node[step] = {"use": node[step]}
                node = node.setdefault(step, {})
        for marks in (self.key_marks, self.value_marks):
            for old in [p for p in marks if p[: len(path)] == path]:
                del marks[old]
            marks[path] = mark

    def merge(self, data: Mapping[str, Any], other: Document, at: Path, below: Path = ()) -> None:
        """Merge a mapping over this one, key by key; lists, scalars and components of another name replace."""
        node: Any = self.data
        for part in below:
            node = node[part]
        for key, value in data.items():
            source, target = (*at, key), (*below, key)
            if isinstance(value, Mapping) and isinstance(node.get(key), Mapping) and not _replaces(value, node[key]):
                self.merge(value, other, source, target)
                continue
            node[key] = copy.deepcopy(value)
            for mine, theirs in ((self.key_marks, other.key_marks), (self.value_marks, other.value_marks)):
                for old in [p for p in mine if p[: len(target)] == target]:
                    del mine[old]
                mine |= {(*target, *p[len(source) :]): m for p, m in theirs.items() if p[: len(source)] == source}


def _replaces(value: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Return whether another component is named, to which options of the one before do not carry over."""
    return "use" in value and "use" in before and value["use"] != before["use"]


def _refuse_absent_list(node: Any, parts: Sequence[str], mark: Mark) -> None:
    """Say what to write where a path leads to an item of a list that is not in the recipe."""
    there = 0
    while there < len(parts):
        if isinstance(node, list) and parts[there].isdigit() and int(parts[there]) < len(node):
            node = node[int(parts[there])]
        elif isinstance(node, Mapping) and parts[there] in node:
            node = node[parts[there]]
        else:
            break
        there += 1
    at = next((i for i in range(there + 1, len(parts)) if parts[i].isdigit()), None)
    if at is None or not isinstance(node, Mapping | str):  # a list that is too short, or a number, is another mistake
        return
    item = _nested(parts[at + 1 :], "...")
    written = _nested(parts[1:at], f"[{', '.join(['...'] * int(parts[at]) + [item])}]")
    raise RecipeError(
        f"{mark}: {'.'.join(parts)} changes item {parts[at]} of {'.'.join(parts[:at])}, and the recipe has no such "
        f"list (a default cannot be changed item by item); write it out, as in '{parts[0]}: {written}'"
    )


def _nested(parts: Sequence[str], inner: str) -> str:
    for part in reversed(parts):
        inner = f"{{{part}: {inner}}}"
    return inner


def _step(node: Any, part: str, path: Path, mark: Mark) -> str | int:
    where = ".".join(map(str, path)) or "the recipe"
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            allowed = f"0 to {len(node) - 1}" if node else "none, the list is empty"
            raise RecipeError(f"{mark}: {where} is a list; {part!r} is none of its indices ({allowed})")
        return int(part)
    if not isinstance(node, dict):
        way_out = "; write it out as a mapping first" if isinstance(node, str) else ""
        raise RecipeError(f"{mark}: {where} is {node!r}, not a mapping; {part!r} cannot be set inside it{way_out}")
    return part


def parse_value(text: str) -> Any:
    """Return the value of ``--set a=text``, read as YAML."""
    from ruamel.yaml.error import YAMLError

    try:
        return _plain(_yaml().load(text), (), "--set", None)
    except YAMLError:
        return text


def read(file: File) -> Document:
    """Read a recipe file.

    Raises:
        RecipeError: unreadable, not YAML, tags, duplicate keys, too large; with its place.
    """
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        content = file.read_bytes()
    except OSError as error:
        near = did_you_mean(file.name, [f.name for f in file.parent.glob("*.y*ml")]) if file.parent.is_dir() else ""
        raise RecipeError(f"{file}: cannot be read ({error.strerror}); {near}".removesuffix("; ")) from None
    if len(content) > _MOST_BYTES:
        raise RecipeError(f"{file}: {len(content)} bytes; a recipe has at most {_MOST_BYTES}")
    if max(itertools.accumulate(_BRACKETS.get(byte, 0) for byte in content), default=0) > _MOST_BRACKETS:
        raise RecipeError(f"{file}: nested too deeply for a recipe")
    try:
        loaded = _yaml().load(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 (byte {error.start})") from None
    except DuplicateKeyError as error:
        mark = error.problem_mark
        raise RecipeError(f"{file}:{mark.line + 1}:{mark.column + 1}: {error.problem}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise RecipeError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise RecipeError(f"{file}: nested too deeply for a recipe") from None
    except (YAMLError, ValueError) as error:
        raise RecipeError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, CommentedMap):
        raise RecipeError(f"{file}:1:1: a recipe is a mapping such as 'name: ...', not {_shape(loaded)}")
    document = Document({}, top=Mark(str(file), 1, 1))
    document.data = _plain(loaded, (), str(file), document)
    return document


def _shape(loaded: Any) -> str:
    if loaded is None:
        return "empty"
    from ruamel.yaml.comments import CommentedSeq

    return "a list" if isinstance(loaded, CommentedSeq) else f"the single value {loaded!r}"


def write(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML."""
    import io

    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def _yaml() -> YAML:
    from ruamel.yaml import YAML

    return YAML(typ="rt", pure=True)


def _plain(node: Any, path: Path, file: str, document: Document | None, count: list[int] | None = None) -> Any:
    """Turn ruamel's nodes into plain data, and note places."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar

    count = count if count is not None else [0]
    count[0] += 1
    if count[0] > _MOST_NODES or len(path) > 50:
        raise RecipeError(f"{file}: too many nodes or levels; aliases may repeat each other")
    if isinstance(node, TaggedScalar) or (
        isinstance(node, CommentedMap | CommentedSeq) and getattr(node.tag, "value", None)
    ):
        raise RecipeError(
            f"{_place(path, file, document)}: tags such as {node.tag.value!r} are not allowed in a recipe"
        )
    if isinstance(node, CommentedMap):
        result = {}
        for key, value in node.items():
            if not isinstance(key, str):
                line, column = node.lc.key(key)
                raise RecipeError(f"{file}:{line + 1}:{column + 1}: the key {key!r} is not a text")
            here = (*path, str(key))
            if document is not None and key in (node.lc.data or {}):
                document.key_marks[here] = Mark(file, *(n + 1 for n in node.lc.key(key)))
                document.value_marks[here] = Mark(file, *(n + 1 for n in node.lc.value(key)))
            result[str(key)] = _plain(value, here, file, document, count)
        return result
    if isinstance(node, CommentedSeq):
        items = []
        for i, value in enumerate(node):
            here = (*path, i)
            if document is not None and i in (node.lc.data or {}):
                document.value_marks[here] = Mark(file, *(n + 1 for n in node.lc.item(i)))
            items.append(_plain(value, here, file, document, count))
        return items
    if node is None or isinstance(node, bool):
        return node
    for base in (int, float, str):
        if isinstance(node, base):
            return base(node)
    raise RecipeError(
        f"{_place(path, file, document)}: {'.'.join(map(str, path))}: {node!s} is neither number, text, truth value "
        "nor null; put it into quotes to make it a text"
    )


def _place(path: Path, file: str, document: Document | None) -> str:
    return str(document.mark(path)) if document is not None else file


def flatten(data: Any, path: Path = ()) -> dict[str, Any]:
    """Return the leaves of nested data by dotted path."""
    if isinstance(data, Mapping) and data:
        return {k: v for key, value in data.items() for k, v in flatten(value, (*path, key)).items()}
    if isinstance(data, Sequence) and not isinstance(data, str) and data:
        return {k: v for i, value in enumerate(data) for k, v in flatten(value, (*path, i)).items()}
    return {".".join(map(str, path)): data}
