"""How small is nothing."""

from __future__ import annotations

PARTIAL = 1e-6
"""Partials of this root mean square, where values and inputs have deviation 1, are 0 but for rounding: values do not
show them, and whatever is divided by their size is noise."""
