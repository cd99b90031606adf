"""A whole report and a predicted scan from numbers that are made up, for the tests of the pages."""

from __future__ import annotations

import numpy as np

from headct.reporting.flow import Loss, Stage
from headct.reporting.measured import Measured
from headct.reporting.page import Provenance
from headct.reporting.result_comparisons import Compared, Subgroup
from headct.reporting.result_curves import Bin, Curve, Learner, OperatingPoint, Shot
from headct.reporting.result_flow import Confusion, Evaluated
from headct.reporting.result_pictures import Example, Shown
from headct.reporting.result_scan import Familiarity, Found, PredictedScan
from headct.reporting.result_tables import ComparedRow, MetricRow, Published
from headct.reporting.results import Beside, Calibration, Check, FewShot, Flow, Forest, Ranking, Report

FINDINGS = {"sdh": (0.93, 61), "sah": (0.81, 44), "mass_effect": (0.88, 52), "fracture": (0.74, 23)}
SCANS = 420


def measured(value: float, spread: float, n: int = SCANS, positives: int | None = None) -> Measured:
    return Measured(value=value, low=value - spread, high=min(value + 0.8 * spread, 1), n=n, positives=positives)


def head() -> np.ndarray:
    """An ellipsoid of brain in a skull, with a bright crescent on its right, int16 (X, Y, Z)."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in (90, 110, 24)), indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 1.2) ** 2)
    hu = np.full(radius.shape, -1000, dtype=np.int16)
    hu[radius < 1] = 1100
    hu[radius < 0.92] = 32 + (6 * np.sin(9 * x[radius < 0.92])).astype(np.int16)
    hu[(radius < 0.92) & (radius > 0.8) & (x > 0.2)] = 72
    return hu


def ranking(auroc: float, positives: int) -> Ranking:
    power = auroc / (1 - auroc)  # the area under x ** (1 / power) is power / (power + 1)
    x = np.linspace(0, 1, 101)
    y = x ** (1 / power)
    prevalence = positives / SCANS
    recall = np.linspace(0, 1, 101)
    fall_out = recall**power
    precision = recall[1:] * prevalence / (recall[1:] * prevalence + fall_out[1:] * (1 - prevalence))
    precision = np.append(precision[:1], precision)
    operating = OperatingPoint(
        threshold=0.31,
        sensitivity=measured(float(0.12 ** (1 / power)), 0.09, positives),
        specificity=measured(0.88, 0.03, SCANS - positives),
        ppv=measured(float(np.interp(0.12 ** (1 / power), recall, precision)), 0.08, 90),
    )
    return Ranking(
        auroc=measured(auroc, 0.04, positives=positives),
        average_precision=measured(float(precision.mean()), 0.07, positives=positives),
        prevalence=prevalence,
        roc=Curve(
            x=x, y=y, low=np.clip(y - 0.25 * y * (1 - y) - 0.02, 0, 1), high=np.clip(y + 0.3 * y * (1 - y), 0, 1)
        ),
        precision_recall=Curve(
            x=recall, y=precision, low=np.clip(precision - 0.08, 0, 1), high=np.clip(precision + 0.07, 0, 1)
        ),
        operating=operating,
    )


def calibration(positives: int) -> Calibration:
    predicted = (0.05, 0.15, 0.27, 0.44, 0.62, 0.81, 0.94)
    counts = (190, 84, 51, 37, 25, 18, 15)
    bins = [
        Bin(
            predicted=p,
            observed=p + 0.04 * np.sin(9 * p),
            low=max(p - 0.5 / n**0.5, 0),
            high=min(p + 0.6 / n**0.5, 1),
            n=n,
        )
        for p, n in zip(predicted, counts, strict=True)
    ]
    coverage = np.linspace(0.1, 1, 40)
    risk = 0.02 + 0.1 * coverage**2
    return Calibration(
        ece=measured(0.031, 0.012, positives=positives),
        bins=bins,
        coverage=Curve(x=coverage, y=risk, low=risk * 0.7, high=risk * 1.4),
        overall_risk=measured(0.12, 0.02),
    )


def learner(name: str, start: float, end: float, ours: bool = False) -> Learner:
    ks = (8, 16, 32, 64, 128, 256)
    values = np.linspace(start, end, len(ks))
    shots = [
        Shot(k=k, value=float(v), low=float(v - 0.12 / k**0.25), high=float(v + 0.1 / k**0.25), draws=10)
        for k, v in zip(ks, values, strict=True)
    ]
    return Learner(name=name, shots=shots, ours=ours)


def forest(auroc: float, positives: int) -> Forest:
    def group(label: str, difference: float, n: int) -> Subgroup:
        part = max(3, positives * n // SCANS)
        return Subgroup(
            label=label,
            value=measured(auroc + difference, 1.2 / n**0.5, n, part),
            difference=Measured(value=difference, low=difference - 0.06, high=difference + 0.06, n=n, positives=part),
        )

    groups = {
        "Site": [group("site-a", 0.03, 210), group("site-b", -0.02, 120), group("site-c", -0.05, 90)],
        "Slice thickness": [group("below 2.5 mm", 0.01, 250), group("2.5 mm and more", -0.02, 170)],
        "Age": [group("below 60 years", 0.02, 150), group("60 years and more", -0.01, 270)],
    }
    return Forest(overall=measured(auroc, 0.04, positives=positives), groups=groups)


def flow() -> Flow:
    stages = [
        Stage("series found", 1200),
        Stage("readable", 1188, (Loss("unreadable", 9), Loss("damaged", 3))),
        Stage("head CT", 1100, (Loss("not-ct", 60), Loss("no-head", 28))),
        Stage("accepted", 1060, (Loss("thickness", 31), Loss("cropped", 9))),
        Stage("labelled", 1040, (Loss("no row in the table of labels", 20),)),
    ]
    findings = []
    for finding, (_, positives) in FINDINGS.items():
        unknown = 12 if finding == "fracture" else 0
        negatives = SCANS - positives - unknown
        hits, alarms = round(0.8 * positives), round(0.12 * negatives)
        said = Confusion(
            true_positive=hits, false_negative=positives - hits, false_positive=alarms, true_negative=negatives - alarms
        )
        findings.append(Evaluated(finding=finding, positive=positives, negative=negatives, unknown=unknown, said=said))
    return Flow(
        stages=stages, splits={"train": 480, "validation": 140, "test": SCANS}, tested="test", findings=findings
    )


def example(probability: float, truth: bool, finding: str = "sdh") -> Example:
    return Example(
        scan_id=f"virtual-{int(100 * probability):04d}",
        array=head(),
        spacing_mm=(2.0, 2.0, 5.0),
        finding=finding,
        probability=probability,
        threshold=0.31,
        truth=truth,
        slices=[Shown(index=8), Shown(index=12), Shown(index=16)],
    )


def metric_rows() -> list[MetricRow]:
    return [
        MetricRow(
            finding=finding,
            n=SCANS,
            positives=positives,
            prevalence=positives / SCANS,
            metrics={
                "AUROC": measured(auroc, 0.04, positives=positives),
                "Average precision": measured(auroc - 0.25, 0.07, positives=positives),
                "Sensitivity": measured(0.80, 0.1, positives=positives),
                "Specificity": measured(0.88, 0.03, positives=positives),
                "Brier": measured(0.09, 0.01, positives=positives),
            },
        )
        for finding, (auroc, positives) in FINDINGS.items()
    ]


def report() -> Report:
    """A report in which every section has something to show."""
    sites = ("site-a", "site-b", "site-c")
    transfer = {
        (a, b): measured(0.92 - 0.06 * abs(i - j) - 0.12 * (i == 2), 0.05, 140, 20)
        for i, a in enumerate(sites)
        for j, b in enumerate(sites)
    }
    models = {
        finding: [
            Compared(model="pre-trained", value=measured(auroc, 0.04, positives=positives), ours=True),
            Compared(model="from scratch", value=measured(auroc - 0.12, 0.05, positives=positives)),
            Compared(model="regional histogram", value=measured(auroc - 0.18, 0.05, positives=positives)),
            Compared(model="random encoder", value=measured(0.53, 0.05, positives=positives)),
        ]
        for finding, (auroc, positives) in FINDINGS.items()
    }
    learners = [
        learner("pre-trained", 0.74, 0.90, ours=True),
        learner("from scratch", 0.52, 0.86),
        learner("regional histogram", 0.60, 0.75),
        learner("random encoder", 0.51, 0.62),
    ]
    return Report(
        title="Ten findings on head CT, four sites",
        answer=[
            "The detector ranks subdural hematoma well (AUROC 0.930, 0.890 to 0.962; 420 scans, 61 positive) and "
            "fracture poorly (0.740).",
            "It gains over the same network from scratch on every finding; outside its site it loses 0.06.",
        ],
        metrics=metric_rows(),
        models=models,
        comparisons=[
            ComparedRow(
                finding="sdh",
                ours="pre-trained",
                theirs="from scratch",
                difference=measured(0.12, 0.04, positives=61),
                p=0.0002,
                p_corrected=0.0008,
            )
        ],
        rankings={finding: ranking(*values) for finding, values in FINDINGS.items()},
        few_shots=[
            FewShot(title="Macro average, internal", learners=learners, n=SCANS),
            FewShot(title="Subdural hematoma, internal", learners=learners, n=SCANS, positives=61),
        ],
        calibrations={finding: calibration(positives) for finding, (_, positives) in FINDINGS.items()},
        subgroups={finding: forest(*FINDINGS[finding]) for finding in ("sdh", "sah")},
        transfer={"sdh": transfer},
        examples=[example(0.12, True), example(0.77, False), example(0.93, True), example(0.55, True, "fracture")],
        flow=flow(),
        checks=[
            Check(name="Shuffled labels", expected="AUROC 0.50 ± 0.03", seen="0.507", passed=True),
            Check(name="Patients in one split only", expected="none in two", seen="none in two", passed=True),
        ],
        published=[
            Beside(
                rows=[
                    Published(
                        finding="sdh",
                        measure="AUROC",
                        ours=measured(0.93, 0.04, positives=61),
                        theirs="0.95 (0.93 to 0.96)",
                        their_cases="196 of 491",
                        source="A study of another hospital, 2018",
                    )
                ],
                why_not_comparable="other scans, labels by three readers, and a share of positives four times as high.",
            )
        ],
        record={
            "data_sources": "Four virtual sites.",
            "disjoint": "Splits are disjoint by patient; no patient stands in two.",
            "metrics": "AUROC, average precision, sensitivity, specificity, Brier score.",
            "uncertainty": "Intervals by bootstrap over patients.",
        },
        provenance=Provenance(settings={"draws": 1000, "seed": 0}, hashes={"labels": "a1b2"}, versions={"headct": "1"}),
        to_do=["Look at the misses of fracture before trusting its numbers."],
        virtual=True,
    )


def predicted_scan() -> PredictedScan:
    """A scan with two positive answers, one of them close."""
    shown = [Shown(index=9, weight=0.22), Shown(index=12, weight=0.41), Shown(index=15, weight=0.18)]
    return PredictedScan(
        scan_id="virtual-0001",
        array=head(),
        spacing_mm=(2.0, 2.0, 5.0),
        findings=[
            Found(finding="sdh", probability=0.91, low=0.84, high=0.96, threshold=0.31, slices=shown),
            Found(finding="mass_effect", probability=0.41, low=0.28, high=0.55, threshold=0.35, slices=shown),
            Found(finding="sah", probability=0.08, low=0.03, high=0.15, threshold=0.22),
            Found(finding="fracture", probability=0.02, low=0.0, high=0.06, threshold=0.18),
        ],
        familiarity=Familiarity(distance=3.1, nearer=0.995, usual=2.4, share=0.99),
        reasons=["the kernel is sharper than any seen in training"],
    )
