"""The patients of this edition of the generator are those that it drew when it was raised, within 1 HU.

So that `EDITION` is raised whenever they change, and as the test of other machines. To raise it: change the number in
`headct.virtual.job`, then `python tests/virtual/test_edition.py` writes what is compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headct.virtual.job import EDITION, record_of
from headct.virtual.labels import FINDINGS
from headct.virtual.simulated import Simulated, Simulation
from headct.virtual.truth import CLASSES, class_map

KEPT = Path(__file__).with_name("edition.npz")
PREVALENCE = {"ivh": 0.5, "sah": 0.5, "sdh": 0.5, "edh": 0.5, "tumor": 0.5, "infarct": 0.5, "fracture": 0.5}
SPACING_MM = 9.0
"""Coarse, so that what is kept is small."""


def drawn() -> list[Simulated]:
    """A patient of each of three sites, with many findings, and a twin."""
    many = [
        Simulation(seed=9, site=site, prevalence=PREVALENCE, spacing_mm=SPACING_MM) for site in ("site-a", "site-b")
    ]
    twins = Simulation(seed=9, site="site-d", twin="edema", prevalence={"iph": 1.0}, spacing_mm=SPACING_MM)
    return [simulated for simulation in (*many, twins) for simulated in simulation.scans(0)]


def truth_of(simulated: Simulated) -> dict[str, np.ndarray]:
    """What is kept of a scan."""
    labels = simulated.labels.findings
    shape = simulated.scan.hu.shape
    return {
        "hu": simulated.scan.hu,
        "classes": class_map(simulated.taken.shares, shape),
        "labels": np.array([np.nan if labels[name] is None else labels[name] for name in FINDINGS]),
        "names": np.array([simulated.scan_id, simulated.series_id, str(record_of(simulated)["age"])]),
    }


def test_patients_are_those_of_the_edition() -> None:
    with np.load(KEPT) as kept:
        assert kept["edition"] == EDITION, "write what is compared anew"
        scans = drawn()
        findings = set().union(*(scan.taken.shares for scan in scans))
        assert len(findings & set(CLASSES)) > 6
        for number, scan in enumerate(scans):
            for name, now in truth_of(scan).items():
                then = kept[f"{name}-{number}"]
                if name == "hu":
                    assert np.abs(now.astype(int) - then).max() <= 1
                elif name == "classes":  # a share may lie on the threshold
                    assert (now != then).mean() < 1e-4
                else:
                    np.testing.assert_array_equal(now, then)


if __name__ == "__main__":
    arrays = {
        f"{name}-{number}": values for number, scan in enumerate(drawn()) for name, values in truth_of(scan).items()
    }
    np.savez_compressed(KEPT, edition=np.array(EDITION), **arrays)
