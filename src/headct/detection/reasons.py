"""Why a prediction may be doubted, in words: what about a scan the detector has not met, or what is nearly even."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import pandas as pd

from headct.detection.ood import DOUBT
from headct.evaluation.operating import FALLBACK, is_close
from headct.scan import FLAGS

RARE = 0.05
"""A flag, or a maker, that fewer training scans have is one that the detector has hardly met."""
TELLING = frozenset(
    {
        *("uneven", "gap-filled", "skipped-tissue", "mixed-thickness", "mixed-settings", "file-dropped"),
        *("hu-unverified", "inverted", "not-a-number", "clipped", "lossy", "metal", "guessed-orientation"),
    }
)
"""Flags that may change what a network sees."""
WHOLE = 0.9
"""Share of the brain below which the part that is missing is worth a word."""
VIRTUAL = "the detector was learned from virtual patients alone: what it says of real ones has not been measured"
"""Stands in the card of such a detector, and with what it says of a scan that may be a person's."""


@dataclass(frozen=True)
class Met:
    """What the training scans were like. None, or nothing, where the cohort does not say."""

    thickness_mm: float | None  # the thickest
    manufacturers: tuple[str, ...]
    contrast: bool
    flags: tuple[str, ...]
    coverage: float | None  # the least

    @classmethod
    def of(cls, scans: pd.DataFrame) -> Self:
        """From rows of `scans.parquet`."""
        flags = pd.Series([str(flag) for flags in scans["flags"] if flags is not None for flag in flags], dtype=object)
        makers = scans["manufacturer"].fillna("").astype(str).str.upper()
        return cls(
            thickness_mm=_number(scans["thickness_mm"].max()),
            manufacturers=tuple(sorted({str(maker) for maker in _common(makers, len(scans)) if maker})),
            contrast=bool(scans["contrast"].eq(True).mean() >= RARE),
            flags=tuple(sorted(map(str, _common(flags, len(scans))))),
            coverage=_number(scans["coverage"].min()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `to_dict()`."""
        plain: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        return cls(**plain)

    def doubts(self, traits: Mapping[str, Any]) -> list[str]:
        """Of a scan with these traits (`headct.embedding.inputs.Ready`)."""
        found = []
        thickness_mm, coverage = _number(traits.get("thickness_mm")), _number(traits.get("coverage"))
        if thickness_mm and self.thickness_mm and thickness_mm > 1.05 * self.thickness_mm:
            found.append(f"slices of {thickness_mm:.3g} mm; training had up to {self.thickness_mm:.3g} mm")
        if coverage is not None and coverage < min(WHOLE, self.coverage or WHOLE):
            found.append(f"about {100 * coverage:.0f} % of the brain was scanned")
        maker = str(traits.get("manufacturer") or "")
        if maker and self.manufacturers and maker.upper() not in self.manufacturers:
            found.append(f"scanner of {maker}, which training hardly had")
        if traits.get("contrast") is True and not self.contrast:
            found.append("contrast agent, which training hardly had")
        flags = traits.get("flags")  # a cohort's table gives an array, whose truth is not asked for
        unmet = [flag for flag in (() if flags is None else flags) if flag in TELLING and flag not in self.flags]
        return found + [f"{flag}: {FLAGS[flag]}" for flag in unmet]


def unfamiliar(share: float, others: int) -> list[str]:
    """Whether a scan lies further away than `share` of the validation scans, of whom there are `others`."""
    if share < DOUBT:
        return []
    of_all = "all" if share >= 1 else f"{100 * share:.1f} %"
    return [f"unlike the training scans: further from them than {of_all} of {others} validation scans"]


def undecided(low: float, high: float, point: float | None) -> list[str]:
    """Whether the answer to one finding might as well be the other; None is a point that validation did not give."""
    if point is None:
        return [f"no operating point: validation lacks a class, so {FALLBACK:g} is taken"]
    if not is_close(low, high, point):
        return []
    return [f"the answer might be the other: the interval holds the operating point {point:.2f}"]


def _common(values: pd.Series, scans: int) -> list[Any]:
    counts = values.value_counts()
    return list(counts[counts >= RARE * scans].index)


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
