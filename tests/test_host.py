"""Finding, loading and tracing plugins; what is said when one of them is at fault."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from sobolev.errors import PluginError, RecipeError
from sobolev.hookspecs import hookspec
from sobolev.host import GROUP, Host, load_host
from sobolev.registry import KINDS, PLUGGABLE

GOOD = """
from sobolev import Register, Student, hookimpl


def tiny(*, width: int = 3) -> Student:
    '''A tiny student.'''
    raise NotImplementedError


@hookimpl
def register_student(register: Register) -> None:
    register("NAME", tiny)
"""


def plugin(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return folder


def package(site: Path, name: str, version: str, text: str, entries: str = "") -> None:
    """Lay out an installed package: a module and the metadata that name its entry point."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(text)
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + (entries or f"{name} = {module}") + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def state(host: Host, name: str) -> str | None:
    (found,) = [p for p in host.plugins if p.name == name]
    return found.error


def test_every_kind_has_one_hook() -> None:
    from sobolev import hookspecs

    hooks = [name for name, member in vars(hookspecs).items() if hasattr(member, "sobolev_spec")]
    assert hooks == [f"register_{kind}" for kind in PLUGGABLE]
    assert hookspec.project_name == "sobolev"


def test_built_in_components_come_through_the_same_hooks() -> None:
    host = load_host()
    version = importlib.metadata.version("sobolev")
    assert host.registry.entries["target"]["mccormick"].plugin == f"sobolev {version}"
    assert {kind for kind in KINDS if host.registry.entries[kind]} >= set(PLUGGABLE) - {"command"}


def test_a_single_file_is_a_plugin(tmp_path: Path) -> None:
    host = load_host(plugin(tmp_path / "p", "mine", GOOD.replace("NAME", "tiny")))
    entry = host.registry.entries["student"]["tiny"]
    assert entry.plugin.startswith("mine (")
    assert entry.summary == "A tiny student."
    assert state(host, "mine") is None


def test_a_missing_plugins_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"--plugins-dir .*absent: there is no such folder"):
        load_host(tmp_path / "absent")


def test_a_misspelt_hook_is_an_error_that_names_the_plugin_and_the_hook(tmp_path: Path) -> None:
    text = GOOD.replace("NAME", "a").replace("register_student", "register_studnet")
    with pytest.raises(PluginError, match=r"plugin mine \(.*'register_studnet', which does not exist.*'register_stu"):
        load_host(plugin(tmp_path / "p", "mine", text))


def test_an_unmarked_misspelt_hook_is_found_too(tmp_path: Path) -> None:
    text = "def register_targets(register):\n    pass\n"
    with pytest.raises(PluginError, match="'register_targets', which does not exist; did you mean 'register_target'"):
        load_host(plugin(tmp_path / "p", "mine", text))


def test_a_hook_without_its_mark_would_never_be_called(tmp_path: Path) -> None:
    text = GOOD.replace("NAME", "a").replace("@hookimpl\n", "")
    with pytest.raises(PluginError, match=r"register_student is not marked as a hook; write @sobolev\.hookimpl"):
        load_host(plugin(tmp_path / "p", "mine", text))


def test_a_hook_with_other_arguments_is_an_error(tmp_path: Path) -> None:
    text = "from sobolev import hookimpl\n\n\n@hookimpl\ndef register_target(registry):\n    pass\n"
    with pytest.raises(PluginError, match=r"plugin mine \(.*takes one argument, 'register'"):
        load_host(plugin(tmp_path / "p", "mine", text))


def test_a_clash_of_names_names_both_plugins_and_versions(site: Path) -> None:
    package(site, "first-one", "1.2.3", GOOD.replace("NAME", "tiny"))
    package(site, "second-one", "4.5", GOOD.replace("NAME", "tiny"))
    with pytest.raises(PluginError, match=r"'tiny': first-one 1\.2\.3 and second-one 4\.5"):
        load_host()


def test_a_clash_with_a_built_in_component_is_an_error(site: Path) -> None:
    package(site, "mine", "2", GOOD.replace("NAME", "mlp"))
    with pytest.raises(PluginError, match=r"the student 'mlp': sobolev \S+ and mine 2"):
        load_host()


def test_one_package_may_hold_several_plugins(site: Path) -> None:
    package(site, "twins", "1", GOOD.replace("NAME", "left"), "left = twins\nright = twins_right")
    (site / "twins_right.py").write_text(GOOD.replace("NAME", "right"))
    host = load_host()
    assert host.registry.entries["student"]["left"].plugin == "twins:left 1"
    assert host.registry.entries["student"]["right"].plugin == "twins:right 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import a_module_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("x = (\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        (GOOD.replace('register("NAME", tiny)', 'register("tiny", tiny)\n    raise KeyError("later")'), "KeyError"),
        (GOOD.replace('register("NAME", tiny)', 'register("tiny", tiny)\n    raise SystemExit'), "SystemExit"),
    ],
)  # fmt: skip
def test_a_broken_plugin_takes_no_other_one_down(tmp_path: Path, site: Path, text: str, said: str) -> None:
    package(site, "healthy", "1", GOOD.replace("NAME", "healthy"))
    host = load_host(plugin(tmp_path / "p", "broken", text))
    error = state(host, "broken")
    assert error is not None
    assert said in error
    assert "broken.py:" in error
    assert state(host, "healthy") is None
    assert "healthy" in host.registry.entries["student"]
    assert "tiny" not in host.registry.entries["student"], "what a broken plugin registered before it failed is gone"
    with pytest.raises(RecipeError, match=r"plugins that failed to load: broken; see `sobolev list`"):
        host.registry.get("student", "tiny")


def test_the_switch_traces_every_hook_call(tmp_path: Path) -> None:
    lines: list[str] = []
    load_host(plugin(tmp_path / "p", "mine", GOOD.replace("NAME", "tiny")), lines.append)
    mine = [line for line in lines if line.startswith("mine ")]
    assert [line.rpartition(": ")[2] for line in mine] == ["register_student called", "register_student -> tiny"]
    assert any(line.endswith("register_target -> mccormick") for line in lines)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ('register("a name", tiny)', "registers a student as 'a name'; a name consists of letters and digits"),
        ("register(None, tiny)", "registers a student as None"),
        ('register("tiny", 3)', "registers the student 'tiny' as 3; expected a callable"),
        ('register("tiny", "module.without.colon")', "or its address 'package.module:name'"),
    ],
)
def test_a_registration_that_cannot_be_used_is_an_error(tmp_path: Path, call: str, said: str) -> None:
    text = GOOD.replace('register("NAME", tiny)', call)
    with pytest.raises(PluginError, match=said.replace(".", r"\.")) as caught:
        load_host(plugin(tmp_path / "p", "mine", text))
    assert "mine" in str(caught.value)
