"""How counts, measurements and names are written in sentences and tables."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from markupsafe import Markup

NOT_STATED = "–"
"""What stands in a table where a value is missing."""

INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a reader cannot see: controls, direction overrides, lone surrogates, line separators."""


def visible(name: str) -> str:
    """A file name with each character that cannot be seen, or that reorders text, written as its escape."""
    return "".join(_escaped(letter) if unicodedata.category(letter) in INVISIBLE else letter for letter in name)


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 scan`, `2 scans`, `1,200 scans`; nouns that do not take an s bring their plural."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def is_missing(value: object) -> bool:
    """True for None, NaN, pandas' NA and the empty string."""
    if isinstance(value, str):
        return not value
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def number(value: object, decimals: int = 0) -> str:
    """A number with a fixed count of decimals and a plain hyphen for minus, so that a copied table is still numbers."""
    if is_missing(value):
        return NOT_STATED
    written = f"{float(value):.{decimals}f}"  # type: ignore[arg-type]
    return written.lstrip("-") if float(written) == 0 else written


def tick_number(value: float) -> str:
    """A number without trailing zeros, for axes: `0.5`, `20`, `1e-05`."""
    return f"{value:.6g}" if value else "0"


def short_number(value: float) -> str:
    """A number with at most four digits that count, for sentences: `0.4884`, `30`, `12,345`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def joined(parts: Sequence[str | Markup]) -> Markup:
    """`a`, `a and b`, `a, b and c`; what is not Markup is escaped."""
    *first, last = parts
    return Markup("{} and {}").format(Markup(", ").join(first), last) if first else Markup("{}").format(last)


def sentence_case(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]
