"""Hits and misses: slices of scans in the windows of their finding, with what the detector said and what is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from headct.reporting.findings import called, windows
from headct.reporting.pictures import Window, slice_picture
from headct.reporting.words import count, sentence_case, visible

MM_PER_PIXEL = 1.0
"""One scale for all, so that pictures can be compared."""
BYTES_PER_SLICE = 9_000

OUTCOMES = {
    "miss": ("Misses", "the finding is present, and the detector said no"),
    "false alarm": ("False alarms", "the finding is absent, and the detector said yes"),
    "hit": ("Hits", "the finding is present, and the detector said yes"),
    "cleared": ("Cleared", "the finding is absent, and the detector said no"),
}
"""Outcomes with their heading and meaning; errors first, for they teach more."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A slice to be shown: its index along z, and its weight for the finding where one is known."""

    index: int
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A scan of the test split: canonical array (X, Y, Z) in HU, RAS, its spacing, and one finding on it."""

    scan_id: str
    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    finding: str
    probability: float
    threshold: float
    truth: bool
    slices: Sequence[Shown]
    note: str = ""

    @property
    def outcome(self) -> str:
        """A key of `OUTCOMES`; yes is said at or above the threshold."""
        if self.probability >= self.threshold:
            return "hit" if self.truth else "false alarm"
        return "miss" if self.truth else "cleared"


def hits_and_misses(examples: Sequence[Example]) -> Markup:
    """Examples by outcome, errors first, each with its slices, probability and truth."""
    groups = [(kind, [one for one in examples if one.outcome == kind]) for kind in OUTCOMES]
    return Markup("").join(_group(kind, members) for kind, members in groups if members)


def _group(kind: str, members: Sequence[Example]) -> Markup:
    heading, meaning = OUTCOMES[kind]
    items = Markup("").join(_example(one) for one in members)
    return Markup('<h3>{}</h3><p>{}: {}.</p><ul class="cases">{}</ul>').format(
        heading, count(len(members), "example"), meaning, items
    )


def _example(one: Example) -> Markup:
    said = "yes" if one.probability >= one.threshold else "no"
    truth = "present" if one.truth else "absent"
    words = f"probability {one.probability:.2f}, said {said} at {one.threshold:.2f}; truth: {truth}"
    note = Markup(" {}").format(one.note) if one.note else Markup("")
    subject = f"{visible(one.scan_id)} ({one.outcome})"
    strips = in_windows(one.finding, one.array, one.spacing_mm, one.slices, subject=subject)
    return Markup(
        '<li class="case"><h4>{} <span class="tag">{}</span></h4><p>{}.{} <span class="id">{}</span></p>{}</li>'
    ).format(sentence_case(called(one.finding)), one.outcome, words, note, visible(one.scan_id), strips)


def in_windows(
    finding: str, array: np.ndarray, spacing_mm: Sequence[float], shown: Sequence[Shown], *, subject: str
) -> Markup:
    """The slices in each window of the finding, all at one scale."""
    strips = [slices(array, spacing_mm, shown, window, subject=subject) for window in windows(finding)]
    return Markup('<div class="strips">{}</div>').format(Markup("").join(strips))


def slices(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    shown: Sequence[Shown],
    window: Window,
    *,
    subject: str,
    mm_per_pixel: float = MM_PER_PIXEL,
) -> Markup:
    """Axial slices beside each other in one window and at one scale, each with its place and weight.

    Raises IndexError for a slice that the array does not have.
    """
    number = array.shape[2]
    for one in shown:
        if not 0 <= one.index < number:
            raise IndexError(f"slice {one.index} of {subject} does not exist: there are {number}")
    items = Markup("").join(_slice(array, spacing_mm, one, window, subject, mm_per_pixel) for one in shown)
    return Markup('<ol class="slices">{}</ol>').format(items)


def _slice(
    array: np.ndarray, spacing_mm: Sequence[float], one: Shown, window: Window, subject: str, mm_per_pixel: float
) -> Markup:
    place = f"slice {one.index + 1} of {array.shape[2]}"
    picture = slice_picture(
        array,
        spacing_mm,
        window,
        subject=f"{subject}, {place}",
        index=one.index,
        mm_per_pixel=mm_per_pixel,
        limit_bytes=BYTES_PER_SLICE,
    )
    weight = "" if one.weight is None else f", weight {one.weight:.2f}"
    return Markup("<li>{}<p>{}{}</p></li>").format(picture, place, weight)
