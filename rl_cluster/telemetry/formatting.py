"""Figures as people read them, the same on the terminal and in the report.

Invariant: a value that is not known is shown as a dash, never as zero.
"""

from __future__ import annotations

UNKNOWN = "–"


def count(value: float | None) -> str:
    """Return whole things: `12,345`, `1.23 M`."""
    if value is None:
        return UNKNOWN
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    return _scaled(value, ("", " k", " M", " G", " T"))


def short_count(value: float) -> str:
    """Return whole things where there is little room: `500 k`, `1.2 M`."""
    return _scaled(value, ("", " k", " M", " G", " T"))


def data_size(value: float | None) -> str:
    """Return bytes in decimal units: `7.06 GB`."""
    if value is None:
        return UNKNOWN
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many significant digits: `0.0123`, `-20.4`, `1,234`."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def score(value: float | None) -> str:
    """Return a return of games: one decimal where it can matter."""
    if value is None:
        return UNKNOWN
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Return a share as per cent: `43 %`."""
    if value is None:
        return UNKNOWN
    return f"{100 * value:.1f} %" if 0 < abs(value) < 0.1 else f"{100 * value:,.0f} %"


def duration(seconds: float | None) -> str:
    """Return a time span in its two largest units: `3 min 20 s`, `2 d 4 h`."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, length in units:
        amount, whole = divmod(whole, length)
        if amount or parts:
            parts.append(f"{amount} {name}")
    return " ".join(parts[:2]) or "0 s"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= 999.5 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.3g}{units[index]}"
