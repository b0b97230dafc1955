"""The host: finds plugins, loads each on its own, and lets them register their components."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pluggy

from sobolev import hookspecs
from sobolev.errors import PluginError
from sobolev.registry import PLUGGABLE, Registry, did_you_mean

GROUP = "sobolev"


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found; ``error`` says why it is broken."""

    name: str
    version: str
    origin: str
    error: str | None = None


@dataclass
class Host:
    """Loaded plugins and the registry of what they offer."""

    plugins: list[Plugin] = field(default_factory=list)
    registry: Registry = field(default_factory=Registry)


def load_host(plugins_dir: Path | None = None, trace: Callable[[str], None] | None = None) -> Host:
    """Load built-ins, installed packages (entry-point group ``sobolev``) and single files of a folder.

    A plugin that fails to import is kept as broken and takes no other one down.

    Args:
        plugins_dir: folder with ``*.py`` files, each a plugin.
        trace: receives one line per hook call.

    Raises:
        PluginError: a hook that does not exist, or one name claimed twice; names both plugins.
    """
    manager = pluggy.PluginManager("sobolev")
    manager.add_hookspecs(hookspecs)
    host = Host()
    _load(host, manager, "sobolev", _version("sobolev"), "built in", lambda: importlib.import_module("sobolev.builtin"))
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        name = entry.dist.name if entry.dist else entry.name
        version = entry.dist.version if entry.dist else "?"
        _load(host, manager, name, version, entry.value, entry.load)
    for file in sorted(plugins_dir.glob("*.py")) if plugins_dir else []:
        _load(host, manager, file.stem, "file", str(file), lambda file=file: _import_file(file))  # type: ignore[misc]
    if plugins_dir and not plugins_dir.is_dir():
        raise PluginError(f"--plugins-dir {plugins_dir}: there is no such folder")
    _register_all(host, manager, trace)
    _register_torch_parts(host.registry)
    return host


@cache
def default_host() -> Host:
    """Return the host with built-ins and installed plugins."""
    return load_host()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _import_file(file: Path) -> Any:
    name = f"sobolev_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load(
    host: Host, manager: pluggy.PluginManager, name: str, version: str, origin: str, load: Callable[[], Any]
) -> None:
    try:
        module = load()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        host.plugins.append(Plugin(name, version, origin, reason))
        host.registry.broken[name] = reason
        return
    label = f"{name} {version}"
    _check_hooks(module, label)
    if manager.has_plugin(label):
        raise PluginError(f"two plugins are called {label}: the second is {origin}. Rename or remove one.")
    manager.register(module, name=label)
    host.plugins.append(Plugin(name, version, origin))


def _check_hooks(module: Any, label: str) -> None:
    known = [f"register_{kind}" for kind in PLUGGABLE]
    for name, member in inspect.getmembers(module):
        marked = getattr(member, "sobolev_impl", None) is not None
        if name not in known and (marked or (name.startswith("register_") and inspect.isfunction(member))):
            raise PluginError(
                f"plugin {label} implements the hook {name!r}, which does not exist; {did_you_mean(name, known)}"
            )


def _register_all(host: Host, manager: pluggy.PluginManager, trace: Callable[[str], None] | None) -> None:
    for kind in PLUGGABLE:
        for implementation in getattr(manager.hook, f"register_{kind}").get_hookimpls():
            plugin = implementation.plugin_name

            def register(
                name: str, source: Callable[..., Any] | str, summary: str = "", *, _k: str = kind, _p: str = plugin
            ) -> None:
                host.registry.register(_k, name, source, _p, summary)
                if trace:
                    trace(f"{_p}: register_{_k} -> {name}")

            if trace:
                trace(f"{plugin}: register_{kind} called")
            implementation.function(register)


def _register_torch_parts(registry: Registry) -> None:
    """Optimizers and schedules are torch's own: named and checked like components, but not open to plugins."""
    from sobolev.builtin import optimizers

    for kind, table in (("optimizer", optimizers.OPTIMIZERS), ("schedule", optimizers.SCHEDULES)):
        for name, factory in table.items():
            registry.register(kind, name, factory, "torch")
