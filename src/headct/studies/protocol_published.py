"""Numbers that others have published on public sets: FM-HCT's, and those of its rivals as FM-HCT's authors ran them.

They were read from charts, as no table of them could be had: give or take `READ`, and `OVERLAID` where lines cover each
other. No number here is comparable with one of ours; a `Protocol` holds the sentence why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FM_HCT = "FM-HCT (arXiv 2502.02779)"
FINE_TUNED = ("FM-HCT", "CT-FM", "Merlin", "a 3D ResNet-50 from scratch", "the transformer of FM-HCT from scratch")
FROZEN = ("FM-HCT", "Google CT Foundation", "CT-FM", "Merlin")
"""Whose numbers stand in the tables below, in order."""
READ = {"CQ500": 0.02, "RSNA 2019": 0.01}
READ_FROZEN, OVERLAID = 0.02, 0.05
CASES = {"CQ500": "236 series", "RSNA 2019": "1,058 studies"}

# By finding: positive among these cases; AUROC of `FINE_TUNED`, of `FROZEN`; ~ where lines cover each other.
CQ500 = {
    "ich": (116, "0.90 0.86 0.71 0.64 0.69", "0.87 0.83 0.58 0.59"),
    "iph": (78, "0.92 0.82 0.73 0.65 0.67", "0.86 0.83 0.61 0.62"),
    "ivh": (16, "0.95 0.61 0.68 0.58 0.80", "0.96 0.89 0.62 0.50~"),
    "sdh": (14, "0.65 0.51 0.65 0.58 0.59~", "0.65 0.53 0.53 0.55"),
    "edh": (6, "0.72 0.58 0.83 0.66 0.42", "0.65 0.60 0.59 0.68"),
    "sah": (50, "0.84 0.85 0.64 0.74 0.54~", "0.81 0.75 0.58 0.50~"),
    "ich_left": (70, "0.79 0.73 0.61 0.64 0.58", "0.71 0.68 0.52 0.48"),
    "ich_right": (63, "0.84 0.60 0.64 0.58 0.65", "0.82 0.80 0.61 0.55"),
    "midline_shift": (46, "0.90 0.74 0.65 0.80 0.59", "0.76 0.90 0.61 0.51"),
    "mass_effect": (82, "0.95 0.83 0.64 0.55 0.58", "0.91 0.78 0.55 0.52"),
}
RSNA = {
    "ich": (342, "0.94 0.93 0.91 0.90 0.87", "0.93 0.89 0.78 0.75"),
    "iph": (220, "0.92 0.90 0.89 0.84 0.84", "0.91 0.88 0.77 0.75"),
    "ivh": (153, "0.94 0.93 0.94 0.92 0.89", "0.96 0.93 0.84 0.79"),
    "sah": (152, "0.91 0.85 0.88 0.83 0.75", "0.90 0.84 0.75 0.73"),
    "sdh": (131, "0.90 0.87 0.88 0.77 0.77", "0.88 0.81 0.68 0.66"),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published number that has a source: `theirs` as it is written or read there."""

    finding: str
    method: str  # ours that comes closest: linear or full
    theirs: str
    cases: str
    source: str


def fm_hct(place: str, table: Mapping[str, tuple[int, str, str]]) -> tuple[Known, ...]:
    """Each finding of FM-HCT's charts of a set, fine-tuned and frozen, the authors' own model first."""
    return tuple(_read(place, table))


def _read(place: str, table: Mapping[str, tuple[int, str, str]]) -> Iterator[Known]:
    for finding, (positives, full, linear) in table.items():
        ways = (
            ("full", "fine-tuned", FINE_TUNED, full, READ[place]),
            ("linear", "frozen", FROZEN, linear, READ_FROZEN),
        )
        for method, way, systems, row, exact in ways:
            for system, value in zip(systems, row.split(), strict=True):
                of = FM_HCT if system == "FM-HCT" else f"{system}, as run by {FM_HCT}"
                off = OVERLAID if value.endswith("~") else exact
                yield Known(
                    finding=finding,
                    method=method,
                    theirs=value.rstrip("~"),
                    cases=f"{CASES[place]}, {positives} positive",
                    source=f"{of}, {way}, read from a chart (± {off:g})",
                )
