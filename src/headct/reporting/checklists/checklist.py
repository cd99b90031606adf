"""Reporting checklists as data, and as tables that say what a run answers and what only its author can say.

A data file holds, for each item, its number in the publication, its section, our own short wording of what it asks,
and the key of a run's record that answers it: empty where nothing in a run can. The same record fills all checklists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from markupsafe import Markup

from headct.reporting.words import count, joined

CHECKLISTS = ("claim_2024", "tripod_ai", "stard_ai")

RECORD: Mapping[str, str] = MappingProxyType(
    {
        "data_sources": "cohorts and sites that the scans come from",
        "sites": "number and names of sites",
        "eligibility": "criteria of ingestion, and what they rejected",
        "flow": "how many scans were found, accepted, labelled, tested",
        "counts": "scans and positives of each analysis",
        "characteristics": "age, sex, scanner by split",
        "differences": "how test and training scans differ",
        "subsets": "which series of a study, which scans of a cohort were used",
        "deidentification": "how identifiers were replaced",
        "missing": "unknown labels, unreadable scans",
        "acquisition": "manufacturers, kernels, slice thickness, kVp",
        "preprocessing": "the recipe",
        "predictors": "what the detector is given: the scan and nothing else",
        "readers": "agreement of readers, where the labels have several",
        "partitions": "how scans were dealt to splits",
        "disjoint": "at what level splits are disjoint, and that it was checked",
        "model": "encoder, head, checkpoint hash",
        "software": "versions",
        "initialization": "the checkpoint that training started from",
        "training": "method, steps, augmentation, stopping",
        "selection": "how method and settings were chosen",
        "ensembling": "how models were combined, or that they were not",
        "imbalance": "how rare findings were weighted",
        "calibration": "method of calibration, on which scans, before and after",
        "operating_point": "thresholds, and on which scans they were chosen",
        "blinding": "that labels of test scans were not seen by the detector",
        "abstention": "which scans the detector declines",
        "metrics": "measures and plots",
        "uncertainty": "intervals, resampling, tests, correction",
        "performance": "main results with intervals",
        "estimates": "AUROC, sensitivity, specificity with intervals",
        "cross_table": "answers against labels, counted",
        "internal": "results on the training sites",
        "external": "results on other sites",
        "transfer": "results site by site",
        "subgroups": "results by subgroup",
        "fairness": "differences by age and sex",
        "robustness": "what a change of scanner or noise does",
        "failures": "examples of misses and false alarms",
        "explanation": "which slices drove the answers, and how that was checked",
        "severity": "how large the lesions are in the positives",
        "alternatives": "other findings in the negatives",
        "doubts": "what happens with unfamiliar or damaged scans",
        "code": "where the code is",
        "technical_detail": "settings and hashes",
        "audit": "where predictions and records are stored",
    }
)
"""What a run can record, and what belongs under each key."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item: its number and section in the publication, what it asks, and the key of `RECORD` that answers it."""

    number: str
    section: str
    asks: str
    record: str = ""


@dataclass(frozen=True, kw_only=True)
class Checklist:
    """A checklist with its source; `checked` says against what its items were compared."""

    name: str
    title: str
    citation: str
    licence: str
    checked: str
    items: tuple[Item, ...]

    def answered(self, record: Mapping[str, str | Markup]) -> tuple[Item, ...]:
        """The items that the record answers."""
        return tuple(item for item in self.items if record.get(item.record))

    def unrecorded(self, record: Mapping[str, str | Markup]) -> tuple[Item, ...]:
        """The items that a run could answer and this one does not."""
        return tuple(item for item in self.items if item.record and not record.get(item.record))

    @property
    def for_the_author(self) -> tuple[Item, ...]:
        """The items that no run can answer."""
        return tuple(item for item in self.items if not item.record)


@cache
def load(name: str) -> Checklist:
    """A checklist of `CHECKLISTS`. Raises ValueError where an item names a key that no run records."""
    content = json.loads(resources.files("headct.reporting.checklists").joinpath(f"{name}.json").read_text("utf-8"))
    items = tuple(Item(**item) for item in content.pop("items"))
    unknown = {item.record for item in items} - {"", *RECORD}
    if unknown:
        raise ValueError(f"{name} names {sorted(unknown)}, which no run records")
    return Checklist(**content, items=items)


def check_record(record: Mapping[str, str | Markup]) -> None:
    """Raises ValueError for keys that no checklist asks for, so that no answer is lost to a slip of the pen."""
    unknown = set(record) - set(RECORD)
    if unknown:
        raise ValueError(f"the record holds {sorted(unknown)}, which no checklist asks for")


def filled(record: Mapping[str, str | Markup], names: Sequence[str] = CHECKLISTS) -> Markup:
    """Each checklist as a part that opens: source, what is answered, what is left open, and the table of all items.

    `record` maps keys of `RECORD` to a sentence each. Raises ValueError for other keys.
    """
    check_record(record)
    return Markup("").join(_filled(load(name), record) for name in names)


def summary(record: Mapping[str, str | Markup], names: Sequence[str] = CHECKLISTS) -> Markup:
    """How much of each checklist the run answers, in a sentence."""
    counted = []
    for name in names:
        listed = load(name)
        counted.append(f"{len(listed.answered(record))} of {len(listed.items)} of {listed.name}")
    return Markup("This run answers {}; the rest is left open by name.").format(joined(counted))


def _filled(listed: Checklist, record: Mapping[str, str | Markup]) -> Markup:
    answered, silent, author = listed.answered(record), listed.unrecorded(record), listed.for_the_author
    counts = (
        f"{len(answered)} of {count(len(listed.items), 'item')} answered from this run, "
        f"{len(author)} left to the author, {len(silent)} not recorded"
    )
    opened = Markup("").join([_named("Only the author can say", author), _named("This run did not record", silent)])
    rows = Markup("").join(_row(item, record) for item in listed.items)
    return Markup(
        '<details class="checklist"><summary><h3>{}</h3><p>{}</p></summary>'
        "<p>{}. {} {} {}</p>{}"
        '<div class="table" role="region" tabindex="0" aria-label="{}"><table><caption>{}: what each item asks, in '
        'our words</caption><thead><tr><th scope="col">Item</th><th scope="col">Section</th><th scope="col">Asks</th>'
        '<th scope="col">Answer</th></tr></thead><tbody>{}</tbody></table></div></details>'
    ).format(
        listed.name,
        counts,
        listed.title,
        listed.citation,
        listed.licence,
        listed.checked,
        opened,
        f"{listed.name}, item by item",
        listed.name,
        rows,
    )


def _named(words: str, items: Sequence[Item]) -> Markup:
    """Items by number and question, or nothing where there are none."""
    if not items:
        return Markup("")
    listed = "; ".join(f"{item.number}: {item.asks}" for item in items)
    return Markup("<p><b>{}:</b> {}.</p>").format(words, listed)


def _row(item: Item, record: Mapping[str, str | Markup]) -> Markup:
    answer = record.get(item.record)
    if answer:
        cell = Markup('<td class="wide">{}</td>').format(answer)
    else:
        why = "not recorded by this run" if item.record else "only the author can say"
        cell = Markup('<td class="wide open">open: {}</td>').format(why)
    return Markup('<tr><th scope="row">{}</th><td>{}</td><td class="wide">{}</td>{}</tr>').format(
        item.number, item.section, item.asks, cell
    )
