"""The page for one scan: what was found and how sure that is, the reasons to doubt, the slices that drove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.evaluation.operating import is_close
from headct.reporting.drawing import LETTER, WIDTH, across_axis, dot, drawing, figure, line, shortened, text
from headct.reporting.findings import called
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.result_pictures import Shown, in_windows
from headct.reporting.scales import Axis
from headct.reporting.tables import Column, table
from headct.reporting.words import count, joined, sentence_case, visible


@dataclass(frozen=True, kw_only=True)
class Found:
    """One finding on the scan: calibrated probability with its interval, operating point, the slices that drove it."""

    finding: str
    probability: float
    low: float
    high: float
    threshold: float
    slices: Sequence[Shown] = ()

    @property
    def said(self) -> bool:
        """Yes at or above the operating point."""
        return self.probability >= self.threshold

    @property
    def is_close(self) -> bool:
        """Whether the interval holds the operating point, so that the answer might as well be the other."""
        return is_close(self.low, self.high, self.threshold)

    @property
    def answer(self) -> str:
        """Yes or no, and whether that is close."""
        return ("yes" if self.said else "no") + (", close" if self.is_close else "")


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """How far the scan lies from those the detector was trained on, and what share of validation scans is `nearer`.

    `share` of these lie within `usual`.
    """

    distance: float
    nearer: float
    usual: float
    share: float

    @property
    def is_unfamiliar(self) -> bool:
        """Whether the scan lies farther out than nearly all validation scans."""
        return self.distance > self.usual


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """A scan with its predictions: canonical array (X, Y, Z) in HU, RAS; `reasons` are those to doubt, in words.

    `patient_id` and `files` say whose it is and what it was read from, as far as that is known.
    """

    scan_id: str
    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    findings: Sequence[Found]
    familiarity: Familiarity
    reasons: Sequence[str] = field(default_factory=tuple)
    patient_id: str = ""
    files: Sequence[str] = ()


def scan_page(scan: PredictedScan, provenance: Provenance, *, virtual: bool = False) -> Page:
    """The whole page for one scan."""
    return Page(
        title=f"Findings on {visible(scan.scan_id)}",
        kind="prediction",
        answer=_answer(scan),
        sections=[_probabilities(scan), _driving(scan), _doubts(scan)],
        provenance=provenance,
        virtual=virtual,
    )


def _answer(scan: PredictedScan) -> list[str | Markup]:
    yes = sorted((one for one in scan.findings if one.said), key=lambda one: -one.probability)
    total = count(len(scan.findings), "finding")
    if yes:
        named = joined([f"{called(one.finding)} ({one.probability:.2f})" for one in yes])
        first: str | Markup = Markup("The detector says yes to {} of {}: {}.").format(len(yes), total, named)
    else:
        first = f"The detector says no to {'all ' if len(scan.findings) > 1 else ''}{total}."
    return [first, *_close(scan), *_doubtful(scan), *_whose(scan)]


def _whose(scan: PredictedScan) -> list[str]:
    """By ids alone nobody finds a scan again. Files that name no patient lend theirs, which is said once."""
    known = scan.patient_id and scan.patient_id not in scan.files
    patient = f"Patient {visible(scan.patient_id)}. " if known else ""
    words = patient + (f"Read from {read_from(scan.files)}." if scan.files else "")
    return [words.strip()] if words else []


def read_from(files: Sequence[str]) -> str:
    """The first of the files that a scan was read from, and how many more there are."""
    more = f" and {count(len(files) - 1, 'more file')}" if len(files) > 1 else ""
    return visible(files[0]) + more if files else ""


def _close(scan: PredictedScan) -> list[Markup]:
    close = [called(one.finding) for one in scan.findings if one.is_close]
    words = Markup("Close to the operating point, so that the answer might be the other: {}.")
    return [words.format(joined(close))] if close else []


def _doubtful(scan: PredictedScan) -> list[Markup]:
    if not scan.reasons and not scan.familiarity.is_unfamiliar:
        return [Markup("Nothing about this scan speaks against the detector being used on it.")]
    unlike = "It is unlike the scans the detector was trained on" if scan.familiarity.is_unfamiliar else ""
    listed = "; ".join(part for part in (unlike, *scan.reasons) if part)
    return [Markup("<b>Reasons to doubt:</b> {}.").format(listed)]


def _probabilities(scan: PredictedScan) -> Section:
    frame = pd.DataFrame(
        [
            {
                "finding": called(one.finding),
                "probability": f"{one.probability:.3f} ({one.low:.3f} to {one.high:.3f})",
                "threshold": one.threshold,
                "answer": one.answer,
            }
            for one in scan.findings
        ],
        columns=["finding", "probability", "threshold", "answer"],
    )
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="probability", header="Probability", unit="(low to high)", decimals=3, write=str),
        Column(key="threshold", header="Operating point", decimals=3),
        Column(key="answer", header="Answer"),
    ]
    listed = table(frame, columns, "Calibrated probability of each finding")
    lead = (
        "Each probability is calibrated; the answer is yes where it reaches the operating point chosen on other scans."
    )
    return Section(title="Probabilities", lead=lead, body=probabilities(scan.findings) + listed)


def probabilities(findings: Sequence[Found]) -> Markup:
    """A dot with its interval for each finding on an axis from 0 to 1, the operating point as a bar. A figure.

    Names stand above their dots, for the longest would leave these no room beside them.
    """
    left, right, pitch, head, top = 12.0, WIDTH - 12.0, 46.0, 18.0, 4.0
    bottom = top + pitch * len(findings)
    axis = Axis(0, 1, left, right, (0, 0.25, 0.5, 0.75, 1))
    parts = []
    for row, one in enumerate(findings):
        above = top + pitch * row
        y, kind = above + head + 12, "mark" if one.said else "rest"
        room = int((WIDTH - 4) / LETTER) - len(one.answer) - 2
        parts += [line(axis.at(tick), y - 10, axis.at(tick), y + 10, "grid") for tick in axis.ticks]
        parts += [
            text(2, above + 14, shortened(called(one.finding), room), kind="strong" if one.said else ""),
            text(WIDTH - 2, above + 14, one.answer, "end", "strong" if one.said else "tick"),
            line(axis.at(one.low), y, axis.at(one.high), y, f"curve {kind}"),
            line(axis.at(one.threshold), y - 8, axis.at(one.threshold), y + 8, "whisker"),
            dot(axis.at(one.probability), y, kind),
        ]
    parts.append(across_axis(axis, bottom, "probability"))
    said = "; ".join(
        f"{called(one.finding)} {one.probability:.2f} ({one.low:.2f} to {one.high:.2f}), {one.answer}"
        for one in findings
    )
    caption = "dots with intervals; upright bars: operating points"
    return figure(drawing(WIDTH, bottom + 38, "Probabilities", said, *parts), "All findings", caption)


def _driving(scan: PredictedScan) -> Section:
    shown = [one for one in scan.findings if one.said and one.slices]
    body = Markup("").join(_strips(scan, one) for one in shown)
    if not shown:
        body = Markup("<p>No finding with a positive answer names its slices.</p>")
    lead = (
        "Part by part, about a centimetre of the scan was evened out (soft tissue to its median, bone to that of the "
        "slices around), and judged again. A weight is the share of that part in all that the score lost. It says what "
        "the answer rests on and is no proof: a finding that shows in many slices loses little in each, and a scan "
        "with a part evened out is like none that was learned from."
    )
    return Section(title="Slices behind the answers", lead=lead, body=body)


def _strips(scan: PredictedScan, one: Found) -> Markup:
    name = called(one.finding)
    subject = f"{visible(scan.scan_id)}, {name}"
    strips = in_windows(one.finding, scan.array, scan.spacing_mm, one.slices, subject=subject)
    return Markup("<h3>{}, {}</h3>{}").format(sentence_case(name), f"{one.probability:.2f}", strips)


def _doubts(scan: PredictedScan) -> Section:
    known = scan.familiarity
    distance = (
        f"{known.distance:.3g} from the middle of the training scans; {100 * known.nearer:.0f} % of validation scans "
        f"lie nearer, and {100 * known.share:.3g} % within {known.usual:.3g}"
    )
    words = "farther than usual" if known.is_unfamiliar else "no farther than usual"
    reasons = [f"{sentence_case(words)}: {distance}.", *(f"{sentence_case(reason)}." for reason in scan.reasons)]
    items = Markup("").join(Markup("<li>{}</li>").format(reason) for reason in reasons)
    lead = "What may make the numbers above wrong for this scan."
    return Section(title="Reasons to doubt", lead=lead, body=Markup('<ul class="plain">{}</ul>').format(items))
