"""Names, options, and what is said of options that are wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from sobolev import Estimator, Kind
from sobolev.errors import PluginError, RecipeError
from sobolev.registry import Registry, default_of, did_you_mean


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 3
    label: str


def part(*, weight: Annotated[float, Field(gt=0, description="its weight")] = 1.0) -> dict[str, Any]:
    """A part."""
    return {"weight": weight}


def whole(
    *,
    count: Annotated[int, Field(ge=1, description="how many")],
    mode: Literal["slow", "fast"] = "slow",
    of: Annotated[Estimator, Kind("estimator")] | None = None,
    parts: list[Annotated[Any, Kind("estimator")]] = [],  # noqa: B006
    source: str | Group | None = None,
) -> dict[str, Any]:
    """A whole.

    More words.
    """
    return {"count": count, "mode": mode, "of": of, "parts": parts, "source": source}


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.register("estimator", "part", part, "test 1")
    made.register("target", "whole", whole, "test 1")
    return made


def said(registry: Registry, spec: Any) -> dict[str, str]:
    """Return what is wrong by dotted place."""
    _, problems = registry.check("target", spec, ("target",))
    return {".".join(map(str, p.path[1:])): p.message for p in problems}


def test_options_are_the_keyword_arguments_with_their_types_bounds_and_defaults(registry: Registry) -> None:
    options = registry.get("target", "whole").options
    assert list(options.model_fields) == ["count", "mode", "of", "parts", "source"]
    assert options.model_fields["count"].description == "how many"
    assert default_of(options, "mode") == "slow"
    assert registry.get("target", "whole").summary == "A whole."


def test_defaults_are_filled_in(registry: Registry) -> None:
    checked, problems = registry.check("target", {"use": "whole", "count": 2}, ())
    assert not problems
    assert checked == {"use": "whole", "count": 2, "mode": "slow", "of": None, "parts": [], "source": None}


def test_components_inside_components_are_checked_and_built(registry: Registry) -> None:
    spec = {"use": "whole", "count": 1, "of": "part", "parts": ["part", {"use": "part", "weight": 2}]}
    checked, problems = registry.check("target", spec, ())
    assert not problems
    assert checked["of"] == {"use": "part", "weight": 1.0}
    built = registry.build("target", checked)
    assert built["of"] == {"weight": 1.0}
    assert [p["weight"] for p in built["parts"]] == [1.0, 2.0]


def test_every_problem_is_found_at_its_place(registry: Registry) -> None:
    spec = {
        "use": "whole", "count": 0, "mode": "fats", "colour": 1, "of": {"use": "prat"},
        "parts": ["part", {"use": "part", "weight": -1, "wieght": 2}],
    }  # fmt: skip
    assert said(registry, spec) == {
        "count": "expected a number greater than or equal to 1, not 0",
        "mode": "expected 'slow' or 'fast', not 'fats'; did you mean 'fast'?",
        "colour": "unknown key 'colour'; allowed: count, mode, of, parts, source, use",
        "of.use": "there is no estimator 'prat'; did you mean 'part'?",
        "parts.1.weight": "expected a number greater than 0, not -1",
        "parts.1.wieght": "unknown key 'wieght'; did you mean 'weight'?",
    }


def test_a_required_option_that_is_missing_is_named(registry: Registry) -> None:
    assert said(registry, "whole") == {"count": "'count' is missing"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"label": "x", "sise": 4}, {"source.sise": "unknown key 'sise'; did you mean 'size'?"}),
        ({"size": 4}, {"source.label": "'label' is missing"}),
        ({"label": "x", "size": "big"}, {"source.size": "expected a whole number, not 'big'"}),
        (3, {"source": "expected a text or a mapping, not 3"}),
    ],
)
def test_groups_of_options_are_checked_at_their_own_places(
    registry: Registry, value: Any, expected: dict[str, str]
) -> None:
    assert said(registry, {"use": "whole", "count": 1, "source": value}) == expected


@pytest.mark.parametrize("spec", [3, None, [], {}, {"use": 3}, {"use": ["whole"]}, {"count": 3}])
def test_a_component_is_a_name_or_a_mapping_with_use(registry: Registry, spec: Any) -> None:
    assert list(said(registry, spec).values()) == ["expected the name of one target, or a mapping with 'use: <name>'"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("temp", "did you mean 'temperature'?"),
        ("temperature of the inlet", "did you mean 'temperature'?"),
        ("te", "allowed: speed, temperature, valve at the inlet, valve at the outlet"),
        ("valve", "allowed: speed, temperature, valve at the inlet, valve at the outlet"),
    ],
)
def test_the_only_name_that_begins_alike_is_suggested(name: str, said: str) -> None:
    names = ["speed", "temperature", "valve at the inlet", "valve at the outlet"]
    assert did_you_mean(name, names) == said


def test_an_unknown_name_suggests_the_nearest_and_mentions_broken_plugins(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="there is no target 'whoel'; did you mean 'whole'"):
        registry.get("target", "whoel")
    with pytest.raises(RecipeError, match=r"there is no target 'zzz'; allowed: whole$"):
        registry.get("target", "zzz")
    registry.broken["other-plugin"] = "ImportError"
    with pytest.raises(RecipeError, match="failed to load: other-plugin"):
        registry.get("target", "zzz")


def test_a_recipe_cannot_name_an_import_path(registry: Registry) -> None:
    assert "there is no target 'os:system'" in said(registry, "os:system")["use"]


def test_names_are_unique_per_kind(registry: Registry) -> None:
    registry.register("student", "whole", part, "other 2")
    with pytest.raises(PluginError, match="the target 'whole': test 1 and other 2"):
        registry.register("target", "whole", part, "other 2")


def _untyped(*, size=3):  # type: ignore[no-untyped-def]
    return size


def _open(**options: Any) -> None: ...


def _unknown_type(*, size: "NotThere" = 3) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    ...


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (_untyped, "target 'bad' of plugin mine 3: option 'size' has no type"),
        (_open, "options must be named one by one, not \\*options"),
        (_unknown_type, "the types of its options cannot be read: name 'NotThere' is not defined"),
    ],
)
def test_a_factory_whose_options_cannot_be_checked_is_the_plugins_fault(factory: Callable[..., Any], text: str) -> None:
    registry = Registry()
    registry.register("target", "bad", factory, "mine 3")
    with pytest.raises(PluginError, match=text):
        _ = registry.get("target", "bad").options
    _, problems = registry.check("target", "bad", ("target",))
    assert "bad" in problems[0].message


def test_a_component_by_address_is_imported_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_module.py").write_text(
        "class Thing:\n    def __init__(self, *, size: int = 3) -> None:\n        self.size = size\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry()
    registry.register("student", "thing", "late_module:Thing", "mine 1", "One line.")
    assert registry.entries["student"]["thing"].summary == "One line."
    assert "late_module" not in sys.modules
    assert registry.build("student", {"use": "thing", "size": 5}).size == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "module 'early_module' has no attribute 'Thing'"),
        ("import not_there_at_all\n", "No module named 'not_there_at_all'"),
        ("raise SystemExit(1)\n", "SystemExit: 1"),
    ],
)
def test_an_address_that_leads_nowhere_is_the_plugins_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "early_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "early_module", raising=False)
    registry = Registry()
    registry.register("student", "thing", "early_module:Thing", "mine 1")
    with pytest.raises(PluginError, match=f"student 'thing' of plugin mine 1 cannot be loaded.*{said}"):
        registry.build("student", "thing")
    monkeypatch.delitem(sys.modules, "early_module", raising=False)
