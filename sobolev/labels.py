"""Labels of variants: an arm, and its cell of the matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping


def split_label(variant: str) -> tuple[str, dict[str, str]]:
    """Return the arm of a variant and its cell of the matrix: ``sobolev,train=20`` is (sobolev, {train: 20})."""
    parts = variant.split(",")
    cells = dict(part.split("=", 1) for part in parts if "=" in part)
    return ",".join(part for part in parts if "=" not in part), cells


def cell_name(cells: Mapping[str, str]) -> str:
    """Return a cell of the matrix for a title: ``booth, train 20``."""
    return ", ".join(value if not re.match(r"[-+.\d]", value) else f"{name} {value}" for name, value in cells.items())
