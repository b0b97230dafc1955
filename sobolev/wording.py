"""Numbers in sentences that are shown to people."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 value``, ``2 values``, ``12,000 values``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def short(number: float, digits: int) -> str:
    """Return a number to so many digits, without an exponent where it is no longer than that: ``690``, ``1.5e+07``.

    A whole number below a million is written out.
    """
    text = f"{number:.{digits}g}"
    if not abs(number) < 1e6 or "e-" in text:
        return text
    return f"{number:.0f}" if number == int(number) else f"{float(text):.0f}" if "e" in text else text
