"""The host: finds plugins, loads each on its own, and lets them register their components."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
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

    @property
    def label(self) -> str:
        """Name and version, as messages show them."""
        return f"{self.name} {self.version}"


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
    if plugins_dir and not plugins_dir.is_dir():
        raise PluginError(f"--plugins-dir {plugins_dir}: there is no such folder")
    manager = pluggy.PluginManager("sobolev")
    manager.add_hookspecs(hookspecs)
    host = Host()
    for plugin, load in _found(plugins_dir):
        _load(host, manager, plugin, load)
    for kind in PLUGGABLE:
        for implementation in getattr(manager.hook, f"register_{kind}").get_hookimpls():
            _register(host, kind, implementation, trace)
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


def _found(plugins_dir: Path | None) -> Iterator[tuple[Plugin, Callable[[], Any]]]:
    """Yield every plugin with the function that imports it."""
    yield Plugin("sobolev", _version("sobolev"), "built in"), lambda: importlib.import_module("sobolev.builtin")
    entries = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name)
    counts = Counter(entry.dist.name for entry in entries if entry.dist)
    for entry in entries:
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.name, "?")
        if counts[name] > 1:  # a package may hold several plugins
            name = f"{name}:{entry.name}"
        yield Plugin(name, version, entry.value), entry.load
    for file in sorted(plugins_dir.glob("*.py")) if plugins_dir else []:
        yield Plugin(file.stem, f"({file})", "single file"), partial(_import_file, file)


def _import_file(file: Path) -> Any:
    name = f"sobolev_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load(host: Host, manager: pluggy.PluginManager, plugin: Plugin, load: Callable[[], Any]) -> None:
    try:
        module = load()
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        _break(host, plugin, error)
        return
    _check_hooks(module, plugin.label)
    if manager.has_plugin(plugin.label):
        raise PluginError(
            f"two plugins are called {plugin.label}; the second comes from {plugin.origin}. Rename or remove one."
        )
    try:
        manager.register(module, name=plugin.label)
    except (pluggy.PluginValidationError, ValueError) as error:
        why = " ".join(str(error).split())
        raise PluginError(
            f"plugin {plugin.label}: {why}. Every hook takes one argument, 'register', and no module is two plugins"
        ) from None
    host.plugins.append(plugin)


def _break(host: Host, plugin: Plugin, error: BaseException) -> None:
    """Keep a plugin as broken: what it raised, and where in its own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    said = str(error).partition("\n")[0]
    reason = f"{type(error).__name__}: {said}{place}"
    host.plugins = [known for known in host.plugins if known.label != plugin.label]
    host.plugins.append(replace(plugin, error=reason))
    host.registry.broken[plugin.name.partition(":")[0]] = reason
    host.registry.forget(plugin.label)


def _check_hooks(module: Any, label: str) -> None:
    known = [f"register_{kind}" for kind in PLUGGABLE]
    for name, member in inspect.getmembers(module):
        marked = getattr(member, "sobolev_impl", None) is not None
        if name not in known and (marked or (name.startswith("register_") and inspect.isfunction(member))):
            raise PluginError(
                f"plugin {label} implements the hook {name!r}, which does not exist; {did_you_mean(name, known)}"
            )
        if name in known and not marked:
            raise PluginError(f"plugin {label}: {name} is not marked as a hook; write @sobolev.hookimpl above it")


def _register(host: Host, kind: str, implementation: Any, trace: Callable[[str], None] | None) -> None:
    """Call one hook of one plugin; a plugin that fails there is broken like one that fails to import."""
    label = implementation.plugin_name
    plugin = next(plugin for plugin in host.plugins if plugin.label == label)
    if plugin.error is not None:
        return

    def register(name: str, source: Callable[..., Any] | str, summary: str = "") -> None:
        host.registry.register(kind, name, source, label, summary)
        if trace:
            trace(f"{label}: register_{kind} -> {name}")

    if trace:
        trace(f"{label}: register_{kind} called")
    try:
        implementation.function(register)
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        _break(host, plugin, error)


def _register_torch_parts(registry: Registry) -> None:
    """Optimizers and schedules are torch's own: named and checked like components, but not open to plugins."""
    from sobolev.builtin import optimizers

    for kind, table in (("optimizer", optimizers.OPTIMIZERS), ("schedule", optimizers.SCHEDULES)):
        for name, factory in table.items():
            registry.register(kind, name, factory, "torch")
