"""Whether maps can be believed, by method and finding, on virtual patients whose lesions are known.

    headct simulate --patients 60 --masks --recipe RECIPE --out COHORT
    python benchmarks/explain.py DETECTOR COHORT [--scans 6] [--box 32] [--findings iph,sdh]

For each finding of the detector: in how many scans of the cohort that have it (one of each patient) the score falls
when the whole head is evened out, so that there is something to explain, and maps of the first of those. By method: how
much sooner than at random the score falls (deletion) and returns (insertion), as a share of what there is to lose; the
pointing game and the overlap beside what a map without sense would have; likeness to maps of random weights; and how
many maps pass. Intervals are 95 %, Student's, Wilson's for shares, over patients. A look takes what an embedding takes;
a scan takes about 1,000 of them.

Deletion and insertion decide on whether a map is faithful to its detector, pointing and overlap on whether the detector
looks at the lesion: the two are not the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from headct.cohort import Cohort
from headct.detection import Detector
from headct.embedding.inputs import Reading, Ready, one_scan
from headct.embedding.machine import Machine, choose
from headct.evaluation.intervals import Estimate, Share, mean_of
from headct.reading import Criteria
from headct.tasks.explanation import Explained, Settings, explain, read_mask
from headct.tasks.explanation.evening import evened_head
from headct.tasks.explanation.job import LEAST_FALL
from headct.tasks.explanation.judging import judged
from headct.virtual.truth import CLASSES


def positives(cohort: Cohort, finding: str) -> Iterator[tuple[str, np.ndarray]]:
    """Scans, one of each patient, with the finding, and where it is."""
    labels = pd.read_csv(cohort.path / "labels.csv")
    for scan_id in labels[labels[finding] == 1].drop_duplicates("patient_id")["scan_id"]:
        x, y, z = cohort.array(scan_id).shape
        value = {finding: (CLASSES.index(finding) + 1,)}
        place = cohort.path / "masks" / f"{scan_id}.nii.gz"
        mask = read_mask(place, cohort.affine(scan_id), (x, y, z), value)[finding]
        if mask.any():
            yield scan_id, mask


def falls(ready: Ready, detector: Detector, finding: str, machine: Machine) -> bool:
    """Whether the score of a scan falls when its head is evened out, for which two looks are enough."""
    spacing_mm = ready.spacing_mm.tolist()
    heads = [ready.array, evened_head(ready.array, spacing_mm)]
    whole, even = judged(detector, heads, spacing_mm, machine)[:, detector.findings.index(finding)]
    return bool(whole - even > LEAST_FALL)


def sooner(one: Explained) -> tuple[float, float]:
    """How much less of the score is left than at random, and how much more has returned, as shares of the fall."""
    faith = one.faith
    return (
        float((faith.random_deletion.mean() - faith.deletion) / faith.fall),
        float((faith.insertion - faith.random_insertion.mean()) / faith.fall),
    )


def told(name: str, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{name} {estimate.value:.2f}"
    return f"{name} {estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def share(hits: Sequence[bool]) -> Estimate:
    return Share.of(hits, np.ones(len(hits))).estimate(positives=sum(hits))


def show(finding: str, method: str, asked: Sequence[Explained]) -> None:
    """A line for a method and a finding, of scans in which there is something to explain."""
    print(f"{finding:14s}{method:11s}maps of n = {len(asked)}", flush=True)
    deletion, insertion = zip(*map(sooner, asked), strict=True)
    n = len(asked)
    alike = [one.alike for one in asked if one.alike is not None]
    places = [one.place for one in asked if one.place is not None]
    lines = [
        (
            told("deletion gains", mean_of(deletion, positives=n)),
            told("insertion gains", mean_of(insertion, positives=n)),
            *(told("like random weights", mean_of(alike, positives=len(alike))) for _ in range(bool(alike))),
        ),
        (
            told("peak in lesion", share([place.hit for place in places])),
            f"chance {np.mean([place.hit_by_chance for place in places]):.3f}",
            told("overlap", mean_of([place.overlap for place in places], positives=n)),
            f"chance {np.mean([place.overlap_by_chance for place in places]):.3f}",
        ),
        (told("passes", share([one.verdict == "passes" for one in asked])),),
    ]
    for parts in lines:
        print(f"{'':25s}{'   '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--scans", type=int, default=6, help="of each finding of which maps are drawn")
    parser.add_argument("--box", type=float, default=Settings.box_mm)
    parser.add_argument("--findings", default="")
    options = parser.parse_args()
    detector, cohort, machine = Detector.load(options.detector), Cohort(options.cohort), choose("fp32", "cpu")
    reading = Reading(recipe=detector.encoder.recipe, criteria=Criteria())
    named = options.findings.split(",") if options.findings else detector.findings
    print(f"{detector!r}, {options.box:g} mm boxes, virtual patients of {cohort.path.name}")
    for finding in (name for name in named if name in CLASSES):
        settings = Settings(box_mm=options.box, findings=(finding,))
        maps: dict[str, list[Explained]] = {}
        left_out: dict[str, str] = {}
        asked: list[bool] = []
        for scan_id, mask in positives(cohort, finding):
            ready = one_scan(scan_id, reading, cohort)
            asked.append(falls(ready, detector, finding, machine))
            if not asked[-1] or sum(asked) > options.scans:
                continue
            found = explain(ready, detector, machine, settings, {finding: mask})
            left_out |= found.left_out
            for one in found.explained:
                maps.setdefault(one.map.method, []).append(one)
        if not asked:
            print(f"{finding:14s}no patient has it", flush=True)
            continue
        print(f"{finding:14s}{told('something to explain', share(asked))}, in {sum(asked)} of {len(asked)}", flush=True)
        for method, ones in maps.items():
            show(finding, method, ones)
        for method, reason in left_out.items():
            print(f"{finding:14s}{method:11s}left out: {reason}")


if __name__ == "__main__":
    main()
