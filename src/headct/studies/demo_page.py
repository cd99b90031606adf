"""The page of the demo: what few labels found inside and outside, beside what it must beat, and how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup

from headct import evaluation, pretraining
from headct.cohort import Cohort
from headct.encoders import AnatomyEncoder, as_input
from headct.evaluation import Evaluation
from headct.evaluation.evaluation import Finding, Outcome
from headct.reporting.charts import curves
from headct.reporting.findings import called
from headct.reporting.flow import Loss, Stage
from headct.reporting.measured import Measured, measured
from headct.reporting.page import Page, Provenance, Section, software_versions
from headct.reporting.result_comparisons import Compared, by_finding, transfer_matrix
from headct.reporting.result_curves import Learner, Shot, few_shot
from headct.reporting.result_flow import Evaluated, study_flow
from headct.reporting.result_pictures import Example, Shown, hits_and_misses
from headct.reporting.results_of_evaluation import evaluated
from headct.reporting.tables import Column, table
from headct.reporting.words import count, joined
from headct.studies.cohort_sections import of_files, of_scans, spacing_mm
from headct.studies.demo import HEIGHT, LONGER, PRETRAINED, REGIONAL, SCRATCH, Walked

EXAMPLES: Mapping[Outcome, int] = {"miss": 3, "false alarm": 2, "hit": 3, "cleared": 1}
SLICES, APART = 3, 4
"""Slices of an example, and how far from each other they lie at least."""
LIKELIEST = 3


def page_of(walked: Walked) -> Page:
    """The whole page."""
    told = _evaluated(walked)
    return Page(
        title="From head CT files to findings, with few labels",
        kind="demo",
        answer=list(_answer(walked)),
        sections=[
            _few_labels(walked),
            _by_finding(walked),
            _sites(walked),
            _hits_and_misses(walked, told),
            _flow(walked, told),
            _what_was_learned(walked),
            _front_door(walked),
            *of_files(walked.files),
            *of_scans(walked.files),
            _what_it_is_not(),
        ],
        provenance=_provenance(walked),
        virtual=True,
    )


# The answer


def _best_k(walked: Walked) -> int:
    """The largest K at which the first site was tested."""
    return _ks(walked, PRETRAINED, walked.study.home)[-1]


def _answer(walked: Walked) -> Iterator[str]:
    results, home, k = walked.results, walked.study.home, _best_k(walked)
    short, longer = (_macro(walked, name, home, k) for name in (PRETRAINED, LONGER))
    yield (
        f"With {k} examples of each finding, and as many without it, an encoder that was pre-trained for longer "
        f"({walked.longer}) reaches a mean AUROC of {longer.written(2)} on {count(longer.n, 'held-out scan')} of the "
        f"same site; that of this demo's short run, {_length(walked)}, {short.written(2)}."
    )
    gains = [
        f"from {words} by {' and '.join(_gain(walked, ours, other, home, k) for ours in (LONGER, PRETRAINED))}"
        for other, words in ((SCRATCH, "training from scratch"), (REGIONAL, "a histogram of 27 regions"))
        if (home, k) in results.areas[other]
    ]
    yield (
        f"They differ {joined(gains)}; intervals are over patients and over draws of examples, those against training "
        "from scratch, which was done for one draw, over patients alone."
    )
    away = [
        f"{_macro(walked, LONGER, site, k).written(2)} at {site} "
        f"(the short run {_macro(walked, PRETRAINED, site, k).value:.2f})"
        for site in walked.sites
        if site != home and (site, k) in results.areas[PRETRAINED]
    ]
    if away:
        yield f"On scanners that no label came from the first reaches {joined(away)}."
    yield (
        "The pre-training was told which tissue the virtual patients have where, and put changes of its own into them; "
        "it was told no label and no mask of any finding."
    )


def _length(walked: Walked) -> str:
    steps = len(walked.run.history)
    return f"{count(steps, 'step')} on {count(len(walked.unlabelled), 'scan')}"


def _macro(walked: Walked, name: str, site: str, k: int) -> Measured:
    found = walked.results.macro(name, site, k)
    assert found is not None
    return replace(measured(found), positives=None)  # a scan is positive for one finding and negative for another


def _gain(walked: Walked, ours: str, other: str, site: str, k: int) -> str:
    found = walked.results.difference(ours, other, site, k)
    assert found is not None
    return measured(found.estimate).written(2, signed=True)


# Few labels


def _few_labels(walked: Walked) -> Section:
    drawn = [_few_shot(walked, site) for site in walked.sites if _ks(walked, PRETRAINED, site)]
    body = Markup('<div class="plots level">{}</div>{}').format(Markup("").join(drawn), _table(walked))
    lead = (
        "The mean over findings as the number of examples grows, at the site that the labels come from and at the "
        "others. Ours is blue, baselines are grey; all learned from the same scans."
    )
    return Section(title="What few labels find", lead=lead, body=body)


def _ks(walked: Walked, name: str, site: str) -> list[int]:
    return sorted(int(k) for at, k in walked.results.areas[name] if at == site)


def _few_shot(walked: Walked, site: str) -> Markup:
    learners = [
        Learner(
            name=name,
            shots=[_shot(walked, name, site, k) for k in _ks(walked, name, site)],
            ours=name == PRETRAINED,
        )
        for name in _drawn(walked)
        if _ks(walked, name, site)
    ]
    where = "held-out patients" if site == walked.study.home else "no label from here"
    tested = int((walked.study.sites[walked.study.tested] == site).sum())
    return few_shot(f"{site}: {where}", learners, measure="mean AUROC", n=tested)


def _drawn(walked: Walked) -> list[str]:
    """The contestants of the figures; the height, which is at chance, stands in the table alone."""
    return [name for name in walked.results.areas if name != HEIGHT]


def _shot(walked: Walked, name: str, site: str, k: int) -> Shot:
    found = _macro(walked, name, site, k)
    return Shot(k=k, value=found.value, low=found.low, high=found.high, draws=walked.results.draws(name, site, k))


def _table(walked: Walked) -> Markup:
    rows = walked.results.table(PRETRAINED).sort_values(["site", "k"], kind="stable")
    frame = pd.DataFrame(
        [
            {
                "site": row["site"],
                "k": row["k"],
                "name": row["contestant"],
                "findings": row["findings"],
                "draws": row["draws"],
                "auroc": _written(row, "auroc", "low", "high"),
                "difference": _written(row, "difference", "difference_low", "difference_high", signed=True),
            }
            for row in rows.to_dict("records")
        ]
    )
    columns = [
        Column(key="site", header="Tested at"),
        Column(key="k", header="K", unit="positives", decimals=0),
        Column(key="name", header="Contestant"),
        Column(key="findings", header="Findings", decimals=0),
        Column(key="draws", header="Draws", decimals=0),
        Column(key="auroc", header="Mean AUROC", unit="value (low to high)"),
        Column(key="difference", header="Pre-trained less this", unit="paired, value (low to high)"),
    ]
    listed = table(frame, columns, "Mean AUROC over findings and draws, and paired differences")
    return Markup(
        "<details><summary><h3>All numbers</h3><p>{}: each contestant at each site and K, with intervals and paired "
        "differences.</p></summary>{}</details>"
    ).format(count(len(frame), "row"), listed)


def _written(row: dict[Any, Any], value: str, low: str, high: str, *, signed: bool = False) -> str:
    ends = [float(row[name]) if row.get(name) is not None else np.nan for name in (value, low, high)]
    return Measured(value=ends[0], low=ends[1], high=ends[2], n=0).written(signed=signed)


def _by_finding(walked: Walked) -> Section:
    home, k = walked.study.home, _best_k(walked)
    shown = _drawn(walked)
    findings = {}
    for finding in walked.study.testable(home):
        models = [
            Compared(model=name, value=measured(found), ours=name == PRETRAINED)
            for name in shown
            if (found := walked.results.finding(name, home, k, finding)) is not None
        ]
        if models:
            findings[called(finding)] = models
    title = f"AUROC by finding, K = {k}, {home}"
    lead = (
        "The mean hides that findings differ: in voxels of 4 mm those that are thin or of low contrast, such as "
        "subarachnoid blood, infarct and tumor, are hard to see for anything."
    )
    return Section(
        title="Finding by finding",
        lead=lead,
        body=Markup('<div class="plots">{}</div>').format(by_finding(title, findings)),
    )


def _sites(walked: Walked) -> Section:
    home, k = walked.study.home, _best_k(walked)
    values = {
        (home, site): _macro(walked, PRETRAINED, site, k)
        for site in walked.sites
        if (site, k) in walked.results.areas[PRETRAINED]
    }
    findings = {}
    for finding in walked.study.settings.findings:
        models = [
            Compared(model=site, value=measured(found), ours=site == home)
            for site in walked.sites
            if (found := walked.results.finding(PRETRAINED, site, k, finding)) is not None
        ]
        if models:
            findings[called(finding)] = models
    body = transfer_matrix(f"Mean over findings, K = {k}", values) + Markup('<div class="plots">{}</div>').format(
        by_finding(
            f"AUROC by finding and site, K = {k}", findings, caption="filled: the site of the labels; open: the others"
        )
    )
    lead = (
        f"Learned at {home}, tested there and elsewhere: other scanners, slices, tilts and noise, other patients. "
        "A finding is left out at a site where fewer than five patients have it; so means are over other findings."
        + "".join(f" At {site} no finding has enough." for site in walked.sites if not walked.study.testable(site))
    )
    return Section(title="Transfer to other sites", lead=lead, body=body)


# One detector


def _evaluated(walked: Walked) -> Evaluation:
    """The detector on the first site, its thresholds chosen on validation patients."""
    return evaluation.evaluate(walked.said, evaluation.read_labels(walked.labels))


def _hits_and_misses(walked: Walked, told: Evaluation) -> Section:
    home = walked.sites[walked.study.home]
    examples = [_example(walked, home, finding, row) for finding, row in _chosen(told)]
    lead = (
        f"A detector from all {int((walked.study.parts == 'train').sum())} labelled patients of "
        f"{walked.study.home}, on the encoder that was pre-trained for longer, looks at held-out ones; errors first, "
        "the surest of each kind. Shown are the slices in which the encoder saw most that is odd, in the 4 mm voxels "
        "that it was given."
    )
    return Section(title="Hits and misses", lead=lead, body=hits_and_misses(examples))


def _chosen(told: Evaluation) -> list[tuple[Finding, int]]:
    """The surest example of each outcome in turn of the findings, as many as `EXAMPLES` say."""
    chosen: list[tuple[Finding, int]] = []
    for outcome, number in EXAMPLES.items():
        found = [(one, row) for one in told.findings.values() if (row := one.surest(outcome)) is not None]
        chosen += sorted(found, key=lambda entry: (-entry[0].margins[entry[1]], entry[0].name))[:number]
    return chosen


def _example(walked: Walked, home: Cohort, one: Finding, row: int) -> Example:
    scan_id = one.scan_ids[row]
    array = home.array(scan_id)
    return Example(
        scan_id=scan_id,
        array=array,
        spacing_mm=spacing_mm(home, scan_id),
        finding=one.name,
        probability=float(one.probabilities[row]),
        threshold=one.operating_point.threshold,
        truth=bool(one.labels[row] == 1),
        slices=[Shown(index=index) for index in _oddest(walked, array)],
    )


@torch.inference_mode()
def _oddest(walked: Walked, array: np.ndarray) -> list[int]:
    """The slices with the highest logit of a change, from top to bottom, `APART` from each other at least."""
    seen_by = next(
        one for one in (walked.detector.encoder, walked.encoder) if isinstance(one.encoder, AnatomyEncoder)
    )  # a checkpoint of the user's may look for no changes
    encoder = seen_by.encoder
    assert isinstance(encoder, AnatomyEncoder)
    x = as_input(torch.from_numpy(array)[None], list(seen_by.card.windows.values()))
    _, maps = encoder.eval().look(x)
    highest = maps.changes[0].amax(dim=(0, 1, 2)).numpy()
    cells = encoder.cells((x.shape[2], x.shape[3], x.shape[4]))
    found: list[int] = []
    for cell in np.argsort(-highest):
        index = int(np.clip(round(cells.first[2] + cell * cells.step[2]), 0, array.shape[2] - 1))
        if all(abs(index - other) >= APART for other in found):
            found.append(index)
    return sorted(found[:SLICES], reverse=True)


def _flow(walked: Walked, told: Evaluation) -> Section:
    study, cohort = walked.study, walked.sites[walked.study.home]
    made = len(cohort) + len(cohort.rejections)
    home = study.sites == study.home
    labelled = int(home.sum())
    stages = [
        Stage(f"virtual patients of {study.home}", made),
        Stage("prepared", len(cohort)),
        Stage("labelled", labelled),
    ]
    parts = {part: int((study.parts[home] == part).sum()) for part in ("train", "validation", "test")}
    words = {"train": "to draw examples from", "validation": "validation", "test": "the test"}
    findings = [_accounted(walked, told, finding) for finding in study.settings.findings]
    body = study_flow(
        _with_losses(stages),
        {words[part]: number for part, number in parts.items()},
        findings,
        tested=words["test"],
    )
    others = {site: len(one) for site, one in walked.sites.items() if site != study.home}
    elsewhere = joined([f"{count(number, 'scan')} of {site}" for site, number in others.items()])
    lead = (
        f"Of {study.home}, patient by patient. {count(len(walked.unlabelled), 'other scan')} of it have no labels and "
        f"were pre-trained on; {elsewhere} were tested only."
    )
    return Section(title="Flow of scans", lead=lead, body=body)


def _with_losses(stages: Sequence[Stage]) -> list[Stage]:
    """Each stage after the first with what it lost."""
    reasons = {"prepared": "no whole head within the scan", "labelled": "no finding could be judged"}
    return [stages[0]] + [
        replace(after, losses=(Loss(reasons[after.name], before.count - after.count),))
        if before.count > after.count
        else after
        for before, after in pairwise(stages)
    ]


def _accounted(walked: Walked, told: Evaluation, finding: str) -> Evaluated:
    """The held-out scans of the first site by one finding, and what the detector said of those whose label is known."""
    study = walked.study
    rows = study.tested[study.sites[study.tested] == study.home]
    values = study.labels[finding].to_numpy(dtype=float)[rows]
    positive, negative = int((values == 1).sum()), int((values == 0).sum())
    said = evaluated(told.findings[finding]).said if finding in told.findings else None
    return Evaluated(
        finding=called(finding),
        positive=positive,
        negative=negative,
        unknown=len(rows) - positive - negative,
        said=said,
    )


# What was made on the way


def _what_was_learned(walked: Walked) -> Section:
    history = walked.run.history
    steps = history["step"].to_numpy()
    shown = (
        ("tissue", "Tissues", "cross-entropy", "which tissue lies in each cell"),
        ("places_mm", "Places", "mm", "how far off the template coordinate of a cell is, in the mean"),
        ("dice", "Changes", "loss", "1 - overlap of what was put in with what was found, small lesions included"),
    )
    drawn = [
        curves(
            {"this run": (steps, _smooth(history[key].to_numpy()))},
            title=title,
            x_label="step",
            y_label=unit,
            caption=f"{caption}; running mean",
        )
        for key, title, unit, caption in shown
        if key in history
    ]
    lead = (
        f"In {_length(walked)}: of every cell of a head, which tissue it is, where in a template head it lies, and "
        "whether a change was put there. The truth of the first two is known of virtual patients only."
    )
    return Section(
        title="What was learned without labels",
        lead=lead,
        body=Markup('<div class="plots">{}</div>').format(Markup("").join(drawn)),
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running mean over a twentieth of the steps."""
    return pd.Series(values).rolling(max(1, len(values) // 20), min_periods=1).mean().to_numpy()


def _front_door(walked: Walked) -> Section:
    said = walked.at_the_door
    scans = walked.files.scans
    scanner_of = dict(zip(scans["scan_id"], scans["manufacturer"] + " " + scans["model"], strict=True))
    rows = []
    for scan_id, of_scan in said.groupby("scan_id", sort=False):
        likeliest = of_scan.sort_values("probability", ascending=False).head(LIKELIEST)
        rows.append(
            {
                "scan": scan_id,
                "scanner": scanner_of[str(scan_id)],
                "likeliest": ", ".join(
                    f"{called(finding)} {p:.2f}"
                    for finding, p in zip(likeliest["finding"], likeliest["probability"], strict=True)
                ),
                "ood": float(of_scan["ood"].iloc[0]),
            }
        )
    columns = [
        Column(key="scan", header="Scan"),
        Column(key="scanner", header="Scanner"),
        Column(key="likeliest", header="Likeliest findings", unit="probability", wide=True),
        Column(key="ood", header="Less familiar than", unit="share of validation scans", decimals=2),
    ]
    body = table(pd.DataFrame(rows), columns, "What the detector says of the scans that came as DICOM")
    lead = (
        "The same detector on patients who came as DICOM files of three sites, read as a hospital's would be. Their "
        "labels are not known here, so nothing is scored."
    )
    return Section(title="Through the front door", lead=lead, body=body)


def _what_it_is_not() -> Section:
    body = Markup(
        "<ul><li>Nothing about real patients: every head, lesion and scanner was made by formulas. What is put into "
        "scans in pre-training resembles what the generator calls a finding, so the gain on real scans will be "
        "smaller.</li>"
        "<li>No measure of full-size models: a network of one million weights, 4 mm voxels and minutes.</li>"
        "<li>No epidemiology: findings are drawn more often than in any hospital, so that few patients suffice.</li>"
        "<li>No medical device: research software, for no decision about anybody.</li></ul>"
    )
    lead = "What these numbers do not say."
    return Section(title="What this is not", lead=lead, body=body)


def _provenance(walked: Walked) -> Provenance:
    cohorts = {"cohort": walked.files, "unlabelled": walked.unlabelled, **walked.sites}
    hashes = {
        f"{name}/scans.parquet": cohort.about["tables"]["scans"]["sha256"] for name, cohort in cohorts.items()
    } | {"encoder": walked.encoder.decisive_sha256, "detector": walked.detector.sha256}
    study = walked.study.settings
    return Provenance(
        settings={
            "recipe": walked.files.recipe.name,
            "recipe id": walked.files.recipe.id,
            "K": ", ".join(map(str, study.ks)),
            "draws": study.draws,
            "seed of the split and the draws": study.seed,
            "probe": "logistic regression, C = 10, vectors standardised on the drawn scans",
            "from scratch": f"{walked.length.steps} steps of 8 at most, the best by validation patients, one draw",
            "longer run": walked.longer,
            **pretraining.to_pairs(walked.run.settings),
        },
        hashes=hashes,
        versions=software_versions("headct", "torch", "numpy", "scikit-learn", "pydicom", "blosc2"),
    )
