"""The page of an evaluation: every piece of a result in its place, from the answer to the checklists.

`Report` holds what the statistics made, as plain numbers; a part that was not done is left empty and its section left
out, except where its absence must be said. The order is that of a reader who doubts: what was found, on how many
scans, against what, whether the probabilities can be believed, where it fails, what is left open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from headct.reporting.checklists.checklist import filled, summary
from headct.reporting.findings import called
from headct.reporting.flow import Stage
from headct.reporting.intake import Intake, rejections_by_reason
from headct.reporting.measured import Measured
from headct.reporting.page import Page, Provenance, Section
from headct.reporting.result_comparisons import Compared, Subgroup, by_finding, forest, transfer_matrix
from headct.reporting.result_curves import (
    SHOTS,
    Bin,
    Curve,
    Learner,
    OperatingPoint,
    coverage_risk,
    few_shot,
    precision_recall,
    reliability,
    roc,
    small_multiples,
)
from headct.reporting.result_flow import Evaluated, study_flow
from headct.reporting.result_pictures import Example, hits_and_misses
from headct.reporting.result_tables import (
    ComparedRow,
    MeasurementRow,
    MetricRow,
    MovedRow,
    PointRow,
    Published,
    SideRow,
    beside_published,
    comparison_table,
    measurements_table,
    metrics_table,
    moved_table,
    points_table,
    sides_table,
)
from headct.reporting.words import count, sentence_case


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How well scans are ranked for one finding: both curves, their areas, the operating point if there is one."""

    auroc: Measured
    average_precision: Measured
    prevalence: float
    roc: Curve
    precision_recall: Curve
    operating: OperatingPoint | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far the probabilities of one finding can be believed."""

    ece: Measured
    bins: Sequence[Bin]
    coverage: Curve | None = None
    coverage_by_ood: Curve | None = None  # the scans least like the training scans declined first
    overall_risk: Measured | None = None
    risk: str = "error rate"


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """The few-shot curves of one finding, or of the macro average, on one set of test scans.

    `across` says what was few, as `result_curves.few_shot` writes it under its axis.
    """

    title: str
    learners: Sequence[Learner]
    n: int
    positives: int | None = None
    across: str = SHOTS


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Subgroups of one finding by what divides them; `note` says which are not drawn."""

    overall: Measured
    groups: Mapping[str, Sequence[Subgroup]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Stages to the labelled scans, the splits that divide those, which of them was tested, and each finding in it."""

    stages: Sequence[Stage]
    splits: Mapping[str, int]
    tested: str
    findings: Sequence[Evaluated]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check that the evaluation made of itself: what was expected, what came out, whether it passed."""

    name: str
    expected: str
    seen: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Published numbers, and the sentence why ours are not comparable with them."""

    rows: Sequence[Published]
    why_not_comparable: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report of an evaluation shows. Mappings are by finding, or by title where there is none.

    `answer` says in words what was found, `notes` what the reader should know besides. `record` maps keys of
    `checklists.checklist.RECORD` to sentences.
    """

    title: str
    answer: Sequence[str | Markup]
    metrics: Sequence[MetricRow]
    models: Mapping[str, Sequence[Compared]] = field(default_factory=dict)
    comparisons: Sequence[ComparedRow] = ()
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    few_shots: Sequence[FewShot] = ()
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    subgroups: Mapping[str, Forest] = field(default_factory=dict)
    transfer: Mapping[str, Mapping[tuple[str, str], Measured]] = field(default_factory=dict)
    moved: Mapping[str, Sequence[MovedRow]] = field(default_factory=dict)  # stands under `transfer`
    points: Sequence[PointRow] = ()
    measurements: Sequence[MeasurementRow] = ()
    sides: Sequence[SideRow] = ()
    examples: Sequence[Example] = ()
    flow: Flow | None = None
    intake: Intake | None = None  # whose rejections are listed, with the reasons that the flow links to
    checks: Sequence[Check] = ()
    notes: Sequence[str] = ()
    published: Sequence[Beside] = ()
    record: Mapping[str, str | Markup] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    to_do: Sequence[str | Markup] = ()
    virtual: bool = False

    def page(self) -> Page:
        """The page with every section that has something to show."""
        return Page(
            title=self.title,
            kind="evaluation",
            answer=self.answer,
            sections=sections(self),
            provenance=self.provenance,
            to_do=self.to_do,
            virtual=self.virtual,
        )


def sections(report: Report) -> list[Section]:
    """The sections of a report in their order."""
    made = [
        _performance(report),
        _rankings(report),
        _few_shots(report),
        _calibration(report),
        _subgroups(report),
        _transfer(report),
        _measurements(report),
        _examples(report),
        _flow(report),
        _rejections(report),
        _checks(report),
        _published(report),
        _checklists(report),
    ]
    return [section for section in made if section is not None]


def _performance(report: Report) -> Section:
    parts = []
    if report.models:
        named = {called(finding): models for finding, models in report.models.items()}
        parts.append(by_finding("AUROC by finding and model", named))
    parts.append(metrics_table(report.metrics, "Metrics by finding: value (low to high)"))
    if report.comparisons:
        parts.append(comparison_table(report.comparisons, "Differences between models, on the same scans"))
    lead = "Each number stands with its interval, the scans under it, and the share of them that has the finding."
    return Section(title="Performance", lead=lead, body=Markup("").join(parts))


def _rankings(report: Report) -> Section | None:
    if not report.rankings:
        return None
    rocs = [roc(called(name), one.roc, one.auroc, operating=one.operating) for name, one in report.rankings.items()]
    recalls = [
        precision_recall(
            called(name),
            one.precision_recall,
            one.average_precision,
            prevalence=one.prevalence,
            operating=one.operating,
        )
        for name, one in report.rankings.items()
    ]
    body = Markup("<h3>ROC curves</h3>{}<h3>Precision-recall curves</h3>{}").format(
        small_multiples(rocs), small_multiples(recalls)
    )
    if report.points:
        body += Markup("<h3>Operating points</h3>{}").format(points_table(report.points))
    lead = "What every threshold would give; bands are intervals, the open dot is the operating point with its own."
    return Section(title="ROC and precision-recall", lead=lead, body=body)


def _few_shots(report: Report) -> Section | None:
    if not report.few_shots:
        return None
    figures = [
        few_shot(one.title, one.learners, n=one.n, positives=one.positives, across=one.across)
        for one in report.few_shots
    ]
    body = Markup('<div class="plots level">{}</div>').format(Markup("").join(figures))
    lead = "How much is learned from few examples: drawn by patient without replacement, several draws at each size."
    return Section(title="Few examples", lead=lead, body=body)


def _calibration(report: Report) -> Section | None:
    if not report.calibrations:
        return None
    diagrams = [reliability(called(name), one.bins, ece=one.ece) for name, one in report.calibrations.items()]
    body = small_multiples(diagrams)
    declined = [
        coverage_risk(called(name), one.coverage, overall=one.overall_risk, risk=one.risk)
        for name, one in report.calibrations.items()
        if one.coverage is not None and one.overall_risk is not None
    ]
    if declined:
        words = "What is gained when the detector may leave the scans nearest to its operating point to a reader."
        body += Markup("<h3>Abstention</h3><p>{}</p>{}").format(words, small_multiples(declined))
    unlike = [
        coverage_risk(called(name), one.coverage_by_ood, overall=one.overall_risk, risk=one.risk)
        for name, one in report.calibrations.items()
        if one.coverage_by_ood is not None and one.overall_risk is not None
    ]
    if unlike:
        words = (
            "The same, the scans least like the training scans first: a line that falls to the left says that this "
            "distance knows where errors are."
        )
        body += Markup("<h3>Abstention by distance</h3><p>{}</p>{}").format(words, small_multiples(unlike))
    lead = "Of the scans that are given a probability, that share should have the finding; columns count the scans."
    return Section(title="Calibration", lead=lead, body=body)


def _subgroups(report: Report) -> Section | None:
    if not report.subgroups:
        return None
    figures = [
        forest(called(name), one.overall, one.groups, caption=one.note) for name, one in report.subgroups.items()
    ]
    body = Markup('<div class="plots">{}</div>').format(Markup("").join(figures))
    lead = "Where performance differs: each subgroup beside the value of all scans, and its difference from the others."
    return Section(title="Subgroups", lead=lead, body=body)


def _transfer(report: Report) -> Section | None:
    if not report.transfer:
        return None
    parts = []
    for name, values in report.transfer.items():
        parts.append(transfer_matrix(called(name), values))
        if report.moved.get(name):
            parts.append(moved_table(report.moved[name], f"Lost and gained, {called(name)}"))
    body = Markup("").join(parts)
    lead = "What a detector made at one site reaches at another."
    return Section(title="Transfer between sites", lead=lead, body=body)


def _measurements(report: Report) -> Section | None:
    if not report.measurements and not report.sides:
        return None
    parts = [measurements_table(report.measurements)] if report.measurements else []
    parts += [sides_table(row) for row in report.sides]
    lead = "What was measured, or told as a side, against the truth; a mean error near zero may hide large ones."
    return Section(title="Measurements", lead=lead, body=Markup("").join(parts))


def _rejections(report: Report) -> Section | None:
    if report.intake is None or report.intake.rejections.empty:
        return None
    lead = "Why scans never came to be tested, most frequent first; each line opens to all of its rejections."
    return Section(title="What was rejected and why", lead=lead, body=rejections_by_reason(report.intake))


def _examples(report: Report) -> Section | None:
    if not report.examples:
        return None
    lead = (
        "Some tested scans with what was said and what is true; errors come first. A weight is the share of a slice's "
        "part of the scan in all that the score loses when one part after the other is evened out."
    )
    return Section(title="Hits and misses", lead=lead, body=hits_and_misses(report.examples))


def _flow(report: Report) -> Section | None:
    if report.flow is None:
        return None
    shown = report.flow
    findings = [
        Evaluated(
            finding=called(one.finding),
            positive=one.positive,
            negative=one.negative,
            unknown=one.unknown,
            said=one.said,
        )
        for one in shown.findings
    ]
    body = study_flow(shown.stages, shown.splits, findings, tested=shown.tested)
    lead = "Every scan from what was found to what was tested; each step says how many it lost, and why."
    return Section(title="Flow of scans", lead=lead, body=body)


def _checks(report: Report) -> Section | None:
    notes = _noted(report.notes)
    if not report.checks:
        return None if not notes else Section(title="Checks", lead="What the reader should know.", body=notes)
    failed = [check for check in report.checks if not check.passed]
    rows = Markup("").join(_check(check) for check in report.checks)
    body = Markup(
        '<div class="table" role="region" tabindex="0" aria-label="Checks, one by one"><table>'
        '<caption>Checks that this evaluation made of itself</caption><thead><tr><th scope="col">Check</th>'
        '<th scope="col">Expected</th><th scope="col">Seen</th><th scope="col">Outcome</th></tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(rows)
    lead = f"{count(len(failed), 'check')} of {len(report.checks)} failed." if failed else "All checks passed."
    return Section(title="Checks", lead=lead, body=body + notes)


def _noted(notes: Sequence[str]) -> Markup:
    """What the reader should know, as a list under its own heading, or nothing."""
    if not notes:
        return Markup("")
    items = Markup("").join(Markup("<li>{}.</li>").format(sentence_case(note)) for note in notes)
    return Markup('<h3>To be known</h3><ul class="plain">{}</ul>').format(items)


def _check(check: Check) -> Markup:
    outcome = Markup("passed") if check.passed else Markup("<b>failed</b>")
    return Markup('<tr><th scope="row">{}</th><td class="wide">{}</td><td class="wide">{}</td><td>{}</td></tr>').format(
        check.name, check.expected, check.seen, outcome
    )


def _published(report: Report) -> Section | None:
    if not report.published:
        return None
    body = Markup("").join(
        beside_published(one.rows, one.why_not_comparable, "Published numbers beside ours") for one in report.published
    )
    lead = "What others reported, for orientation: other scans, other labels, other splits."
    return Section(title="Published numbers", lead=lead, body=body)


def _checklists(report: Report) -> Section:
    return Section(title="Reporting checklists", lead=summary(report.record), body=filled(report.record))
