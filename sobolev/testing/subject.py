"""A component under test: found by name or given as a class, checked, and made as often as a check wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sobolev.errors import ComponentError
from sobolev.host import default_host
from sobolev.registry import Registry

Component = str | Mapping[str, Any] | Callable[..., Any]
"""As in a recipe (a name, or ``{"use": name, ...options}``), or a class or factory that no plugin registers yet."""


class Subject:
    """A component of one kind.

    Args:
        kind: of the component.
        component: see `Component`.
        registry: where names are looked up; that of the installed plugins by default.

    Raises:
        ComponentError: there is no such component, or its options are wrong.
    """

    def __init__(self, kind: str, component: Component, registry: Registry | None = None) -> None:
        known = registry or default_host().registry
        self.kind = kind
        self.registry = Registry({k: dict(entries) for k, entries in known.entries.items()}, dict(known.broken))
        if callable(component):
            name = "under-test"
            self.registry.register(kind, name, component, "the test")
            component = name
        spec = {"use": component} if isinstance(component, str) else dict(component)
        self.spec, problems = self.registry.check(kind, spec, ())
        if problems:
            lines = [": ".join([*[".".join(map(str, p.path))] * bool(p.path), p.message]) for p in problems]
            raise ComponentError(f"the {kind} cannot be made from its options: {'; '.join(lines)}")

    @property
    def name(self) -> str:
        """The registered name."""
        return str(self.spec["use"])

    def make(self) -> Any:
        """Return a new component."""
        return self.registry.build(self.kind, self.spec)

    def check_options(self) -> None:
        """Options have types and descriptions, and the component a summary.

        Raises:
            ComponentError: something that `sobolev show` would have nothing to say about.
        """
        entry = self.registry.entries[self.kind][self.name]
        if entry.plugin == "the test":
            return
        if not entry.summary:
            raise ComponentError(
                "It has no summary: give its factory a docstring, or pass summary= where it is registered; "
                "`sobolev list` shows the first line."
            )
        silent = [name for name, info in entry.options.model_fields.items() if not info.description]
        if silent:
            raise ComponentError(
                f"The options {', '.join(silent)} say nothing of themselves: annotate them as "
                "Annotated[type, Field(description='...')]; `sobolev show` prints it."
            )
