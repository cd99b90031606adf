"""The flow of scans of an evaluation, in the manner of a STARD diagram: from what was found to what was tested.

found → readable → head CT → accepted → labelled, then the splits beside each other, then each finding: the scans with
it and without, what is unknown, and what the detector said of them. Counts that do not add up raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from headct.reporting.flow import Stage, flow
from headct.reporting.tables import Column, table
from headct.reporting.words import count


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """What the detector said at its operating point, against the reference standard."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The scans of the test split for one finding, by reference standard; `said` is what the detector made of them."""

    finding: str
    positive: int
    negative: int
    unknown: int
    said: Confusion | None = None


def study_flow(
    stages: Sequence[Stage],
    splits: Mapping[str, int],
    findings: Sequence[Evaluated],
    *,
    tested: str,
    noun: str = "scan",
) -> Markup:
    """The whole flow; `stages` end at the labelled scans, `splits` divide those, `tested` names the split evaluated.

    Raises ValueError where a stage is not the one before less its losses, where the splits are not the labelled
    scans, or where a finding does not account for every scan of the tested split.
    """
    drawn, labelled = flow(stages, noun), stages[-1]
    if sum(splits.values()) != labelled.count:
        raise ValueError(f"{sum(splits.values())} in splits are not {labelled.count} {labelled.name}")
    if tested not in splits:
        raise ValueError(f"the split {tested} that was evaluated is not among {', '.join(splits)}")
    for one in findings:
        _check(one, splits[tested], tested)
    boxes = Markup("").join(_split(name, number, name == tested) for name, number in splits.items())
    divided = f"The {count(labelled.count, 'labelled ' + noun)} were divided by patient:"
    return Markup('{}<p class="divided">{}</p><ul class="splits">{}</ul>{}').format(
        drawn, divided, boxes, _findings(findings, splits[tested], tested, noun)
    )


def _check(one: Evaluated, number: int, tested: str) -> None:
    accounted = one.positive + one.negative + one.unknown
    if accounted != number:
        raise ValueError(f"{one.finding}: {accounted} with, without or unknown are not {number} in {tested}")
    if one.said is None:
        return
    said = one.said
    if said.true_positive + said.false_negative != one.positive:
        raise ValueError(f"{one.finding}: hits and misses are not the {one.positive} with the finding")
    if said.false_positive + said.true_negative != one.negative:
        raise ValueError(f"{one.finding}: false alarms and the rest are not the {one.negative} without the finding")


def _split(name: str, number: int, is_tested: bool) -> Markup:
    kind, note = (" tested", " – evaluated here") if is_tested else ("", "")
    return Markup('<li class="stage{}"><b>{}</b> {}{}</li>').format(kind, f"{number:,}", name, note)


def _findings(findings: Sequence[Evaluated], number: int, tested: str, noun: str) -> Markup:
    rows = [
        {
            "finding": one.finding,
            "positive": one.positive,
            "negative": one.negative,
            "unknown": one.unknown,
            "tp": None if one.said is None else one.said.true_positive,
            "fn": None if one.said is None else one.said.false_negative,
            "fp": None if one.said is None else one.said.false_positive,
            "tn": None if one.said is None else one.said.true_negative,
        }
        for one in findings
    ]
    columns = [
        Column(key="finding", header="Finding"),
        Column(key="positive", header="With", decimals=0),
        Column(key="negative", header="Without", decimals=0),
        Column(key="unknown", header="Unknown", decimals=0),
        Column(key="tp", header="Found", decimals=0),
        Column(key="fn", header="Missed", decimals=0),
        Column(key="fp", header="False alarms", decimals=0),
        Column(key="tn", header="Cleared", decimals=0),
    ]
    words = f"The {count(number, noun)} of the part {tested}, by finding: with it, without it, and unknown, left out"
    if all(one.said is None for one in findings):
        columns = columns[:4]
    else:
        words += ". Found and missed are those with it, false alarms and cleared those without"
    frame = pd.DataFrame(rows, columns=["finding", "positive", "negative", "unknown", "tp", "fn", "fp", "tn"])
    return table(frame.astype(object), columns, words)
