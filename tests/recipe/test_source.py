"""Reading YAML: places of everything, and files that were not meant well."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sobolev.errors import RecipeError
from sobolev.recipe.source import Document, Mark, flatten, parse_value, read, write


def recipe(folder: Path, text: str | bytes) -> Path:
    file = folder / "r.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refused(folder: Path, text: str | bytes) -> str:
    """Return what is said of a file, without its folder."""
    with pytest.raises(RecipeError) as caught:
        read(recipe(folder, text))
    return str(caught.value).replace(f"{folder}/", "")


def test_places_of_keys_and_values(tmp_path: Path) -> None:
    document = read(recipe(tmp_path, "name: a\ntrain:\n  steps: 3\n  at: [1, {x: 2}]\n"))
    assert document.data == {"name": "a", "train": {"steps": 3, "at": [1, {"x": 2}]}}
    file = str(tmp_path / "r.yaml")
    assert str(document.mark(("train", "steps"))) == f"{file}:3:10"
    assert str(document.mark(("train", "steps"), key=True)) == f"{file}:3:3"
    assert str(document.mark(("train", "at", 1, "x"))) == f"{file}:4:15"
    assert str(document.mark(("train", "at", 1, "absent"))) == f"{file}:4:11", "the nearest thing above"
    assert str(document.mark(("absent",))) == f"{file}:1:1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {b: 1, b: 2}\n", 'r.yaml:1:11: found duplicate key "b"'),
        ("a:\n\tb: 1\n", "r.yaml:2:1: not valid YAML: found character '\\t'"),
        (b"name: \xff\xfe\n", "r.yaml: not UTF-8 (byte 6)"),
        ("a: !!python/object/apply:os.system [id]\n", "r.yaml:1:4: tags such as"),
        ("a: !!python/name:os.system\n", "r.yaml:1:4: tags such as"),
        ("a:\n  - !call {b: 1}\n", "r.yaml:2:5: tags such as '!call'"),
        ("a: !x 3\n", "r.yaml:1:4: tags such as '!x'"),
        ("a: [1\nb: 2\n", "r.yaml:2:2: not valid YAML"),
        ("a: *absent\n", "r.yaml:1:4: not valid YAML: found undefined alias 'absent'"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: not valid YAML: but found another document"),
        ("- 1\n", "r.yaml:1:1: a recipe is a mapping such as 'name: ...', not a list"),
        ("", "not empty"),
        ("# only a comment\n", "not empty"),
        ("just words\n", "not the single value 'just words'"),
        ("a: 2001-01-01\n", "r.yaml:1:4: a: 2001-01-01 is neither number, text, truth value nor null"),
        ("a:\n  1: x\n", "r.yaml:2:3: the key 1 is not a text"),
        ("null: x\n", "the key None is not a text"),
        ("? [a, b]\n: x\n", "is not a text"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("".join("  " * i + "a:\n" for i in range(400)), "nested too deeply"),
        ("a: \x00\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    message = refused(tmp_path, text)
    assert said in message
    assert "\n" not in message


def test_a_bomb_of_anchors_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    started = time.process_time()
    assert "aliases may repeat each other" in refused(tmp_path, "\n".join(lines))
    assert time.process_time() - started < 5.0
    merged = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: *a{i - 1}}}"
                                   for i in range(1, 30)]  # fmt: skip
    assert "too many nodes or levels" in refused(tmp_path, "\n".join(merged))


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    assert "a recipe has at most 1000000" in refused(tmp_path, "a: " + "x" * 1_000_001)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    recipe(tmp_path, "name: a\n")
    with pytest.raises(
        RecipeError, match=r"s.yaml: cannot be read \(No such file or directory\); did you mean 'r.yaml'"
    ):
        read(tmp_path / "s.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path)


def test_an_alias_may_be_used_as_yaml_means_it(tmp_path: Path) -> None:
    document = read(recipe(tmp_path, "a: &same {x: 1}\nb: *same\nc: {<<: *same, y: 2}\n"))
    assert document.data == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    document.set("b.x", 5, Mark("--set b.x"))
    assert document.data["a"] == {"x": 1}, "what an alias repeats is a copy"


def test_setting_a_field(tmp_path: Path) -> None:
    document = read(recipe(tmp_path, "student: mlp\nlist: [{a: 1}, 2]\n"))
    mark = Mark("--set")
    document.set("student.hidden", [3], mark)
    document.set("list.0.a", 7, mark)
    document.set("new.deep.field", True, mark)
    assert document.data == {
        "student": {"use": "mlp", "hidden": [3]}, "list": [{"a": 7}, 2], "new": {"deep": {"field": True}},
    }  # fmt: skip
    assert str(document.mark(("list", 0, "a"))) == "--set"


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("list.2", r"--set: list is a list; '2' is none of its indices \(0 to 1\)"),
        ("list.first", "'first' is none of its indices"),
        ("list.-1", "'-1' is none of its indices"),
        ("list.1.x", "list.1 is 2, not a mapping; 'x' cannot be set inside it"),
        ("empty.0", r"none, the list is empty"),
        ("words.0.loss", "words.0 is 'l1', not a mapping; 'loss' cannot be set inside it; write it out as a mapping"),
        ("new.2.a.b", r"new.2.a.b changes item 2 of new, (.*); write it out, as in 'new: \[..., ..., {a: {b: ...}}\]'"),
        ("list.1.0", "list.1 is 2, not a mapping"),
    ],
)
def test_a_path_that_leads_nowhere(dotted: str, said: str) -> None:
    document = Document({"list": [1, 2], "empty": [], "words": ["l1"]})
    with pytest.raises(RecipeError, match=said):
        document.set(dotted, 1, Mark("--set"))
    assert document.data == {"list": [1, 2], "empty": [], "words": ["l1"]}


def test_numbers_are_keys_of_a_mapping_that_is_there() -> None:
    document = Document({"labels": {}})
    document.set("labels.0", "train", Mark("--set"))
    assert document.data == {"labels": {"0": "train"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("1.0e-3", 1e-3), ("true", True), ("null", None), ("abc", "abc"), ("[1, 2]", [1, 2]),
     ("{use: mlp}", {"use": "mlp"}), ("", None), ("'3'", "3"), ("a: [", "a: [")],
)  # fmt: skip
def test_values_of_set_are_yaml(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_tags_are_refused_in_set_too() -> None:
    with pytest.raises(RecipeError, match="tags such as"):
        parse_value("!!python/object/apply:os.system [id]")


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    data = {"name": "a", "train": {"lr": 1e-3, "ema": None}, "list": [{"x": [1, 2]}, "yes", "1", True], "empty": {}}
    assert read(recipe(tmp_path, write(data))).data == data
    assert list(read(recipe(tmp_path, write(data))).data) == list(data)


def test_flatten() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}]}, "e": [], "f": {}}) == {"a.b.0": 1, "a.b.1.c": 2, "e": [], "f": {}}
