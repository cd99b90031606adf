"""From what was found, and how it was judged, to the pages that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headct.cohort import Cohort
from headct.reporting import retrieval as pages
from headct.reporting.measured import measured
from headct.reporting.page import Page, Provenance, software_versions
from headct.reporting.retrieval import Answered, Seen
from headct.reporting.words import count
from headct.tasks.retrieval.asking import Query, seen_in_cohort
from headct.tasks.retrieval.filters import Condition
from headct.tasks.retrieval.index import Found, Index
from headct.tasks.retrieval.judging import Judged, Judging


def page_of(
    queries: Sequence[Query],
    found: Sequence[Found],
    doubles: Sequence[str],
    index: Index,
    cohort: Cohort | None,
    conditions: Sequence[Condition],
    note: str = "",
) -> Page:
    """The page of some queries and what each found; `note` is what a reader must know of all of them."""
    answers = [
        Answered(
            query=one.seen or Seen(scan_id=one.name, patient_id=one.patient_id),
            found=[
                seen_in_cohort(index, row, cohort, similarity)
                for row, similarity in zip(what.rows.tolist(), what.similarities.tolist(), strict=True)
            ],
            barred=what.barred,
            warning=f"{twin} is most likely the query itself, under another id" if twin else "",
        )
        for one, what, twin in zip(queries, found, doubles, strict=True)
    ]
    return pages.page(
        answers,
        metric=index.metric,
        searched=_searched(index, exact=all(what.exact for what in found)),
        conditions=[condition.text for condition in conditions],
        note=note,
        virtual=index.about["virtual"] and all(one.virtual for one in queries),
        provenance=_provenance(index, {"conditions": ", ".join(one.text for one in conditions) or "none"}),
    )


def _searched(index: Index, *, exact: bool) -> str:
    among = f"searched {count(len(index), 'scan')} of {count(index.about['patients'], 'patient')}"
    if exact:
        return f"{among} exactly: none that is more alike was missed"
    how = index.about["search"]
    return (
        f"{among} approximately: of the ten nearest {how['recall_at_10']:.1%} are found on average, "
        f"measured on {how['measured_on']} scans when the index was built"
    )


def _provenance(index: Index, settings: Mapping[str, object]) -> Provenance:
    model = index.about["model"]
    return Provenance(
        settings={
            "metric": index.metric,
            "search": index.about["search"]["kind"],
            "encoder": model["architecture"],
            "recipe": model["recipe"],
            "precision": model["precision"],
            **settings,
        },
        hashes={"encoder (SHA-256)": model["sha256"]},
        versions=software_versions("headct", "numpy"),
    )


def report_of(
    index: Index,
    judged: Mapping[str, Judged],
    left_out: Mapping[str, str],
    settings: Judging,
    understood: Sequence[str],
) -> Page:
    """The page of a judgement."""
    rows = [
        pages.JudgedRow(
            finding=name,
            queries=one.queries,
            gallery=one.gallery,
            alone=one.alone,
            against_chance=one.against_chance,
            unknown=one.unknown,
            values={metric: measured(estimate, counted=False) for metric, estimate in one.estimates.items()},
            gains={metric: measured(estimate, counted=False) for metric, estimate in one.gain.items()},
            chance=one.chance,
            as_published=one.as_published,
        )
        for name, one in judged.items()
    ]
    return pages.report(
        rows,
        ks=settings.ks,
        relevance=settings.relevance,
        left_out=left_out,
        understood=understood,
        virtual=index.about["virtual"],
        provenance=_provenance(index, {"relevance": settings.relevance, "ks": ", ".join(map(str, settings.ks))}),
    )
