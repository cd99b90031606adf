"""What counts as seen and how findings are drawn: 1 for what a reader could see, empty for what is there unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headct.scan import Header, Scan
from headct.virtual.acquisition import Acquisition, Taken, take
from headct.virtual.anatomy import Anatomy
from headct.virtual.findings.bleeding import SAH_GRADES, Subarachnoid
from headct.virtual.findings.bone import Bruise, Fracture
from headct.virtual.findings.extraaxial import Epidural, Subdural
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.lesions import Tumor
from headct.virtual.findings.mixture import draw_findings, one_of
from headct.virtual.job import CLASSES, truth_at
from headct.virtual.labels import VISIBLE, judge
from headct.virtual.patient import Patient
from headct.virtual.sites import SITES
from headct.virtual.streams import stream

BRAIN_HU, FLUID_HU = 33, 6


def patient_of(*findings: Finding) -> Patient:
    return Patient(3, Anatomy.draw(3, age=40), findings)


def taken_of(changes: dict[str, np.ndarray], before_hu: float = BRAIN_HU) -> Taken:
    """A block of brain of 2 mm voxels without noise, as changed by findings that fill what they change."""
    hu = np.full((20, 40, 40), float(BRAIN_HU))
    for change in changes.values():
        hu = np.where(change != 0, before_hu + change, hu)
    scan = Scan(
        hu=hu.astype(np.int16),
        origins_mm=np.array([(0.0, 0.0, 2.0 * index) for index in range(len(hu))]),
        row_step_mm=np.array([0.0, -2.0, 0.0]),
        col_step_mm=np.array([-2.0, 0.0, 0.0]),
        thickness_mm=2.0,
        header=Header(),
    )
    shares = {name: (change != 0).astype(np.float16) for name, change in changes.items()}
    return Taken(scan, shares, {name: change.astype(np.float16) for name, change in changes.items()}, None)


def block_of(change_hu: float, edge: int) -> np.ndarray:
    """Cubes of `edge` voxels of 2 mm hold 0.008 ml times its third power."""
    change = np.zeros((20, 40, 40))
    change[2 : 2 + edge, 10 : 10 + edge, 10 : 10 + edge] = change_hu
    return change


@pytest.mark.parametrize(
    ("blood_hu", "label"),
    [(34, None), (40, None), (60, 1)],
    ids=["as grey as brain", "little denser", "dense"],
)
def test_blood_in_sulci_is_seen_where_it_is_denser_than_brain(blood_hu: float, label: int | None) -> None:
    taken = taken_of({"sah": block_of(blood_hu - FLUID_HU, 10)}, FLUID_HU)
    assert judge(patient_of(one_of("sah", 3)), taken, 2.0).findings["sah"] == label


def test_blood_in_voxels_of_bone_is_not_seen() -> None:
    taken = taken_of({"sah": block_of(50, 10)}, 300)
    assert judge(patient_of(one_of("sah", 3)), taken, 2.0).findings["sah"] is None


@pytest.mark.parametrize(("edge", "change_hu", "label"), [(6, -6, None), (6, -20, 1), (14, -6, 1), (14, -2, None)])
def test_a_small_infarct_needs_more_contrast_than_a_large_one(edge: int, change_hu: float, label: int | None) -> None:
    taken = taken_of({"infarct": block_of(change_hu, edge)})
    assert judge(patient_of(one_of("infarct", 3)), taken, 2.0).findings["infarct"] == label


def test_noise_hides_what_a_quiet_scan_shows() -> None:
    taken = taken_of({"infarct": block_of(-6, 14)})
    patient = patient_of(one_of("infarct", 3))
    assert judge(patient, taken, 2.0).findings["infarct"] == 1
    assert judge(patient, taken, 9.0).findings["infarct"] is None


@pytest.mark.parametrize(("oedema_mm", "label"), [(15.0, 1), (0.0, None)])
def test_a_tumour_as_grey_as_brain_is_seen_by_its_oedema(oedema_mm: float, label: int | None) -> None:
    tumor = replace(Tumor.draw(stream(3, "tumor")), oedema_mm=oedema_mm)
    changes = {"tumor": block_of(1, 8), "edema": np.roll(block_of(-10, 14), 20, axis=2)}
    assert judge(patient_of(tumor), taken_of(changes), 2.0).findings["tumor"] == label


def judged(finding: Finding, patient: Patient | None = None) -> tuple[Patient, Acquisition, int | None]:
    patient = patient or patient_of(finding)
    visit = Acquisition.draw(3, SITES["site-a"]).coarsened(2.0)
    return patient, visit, judge(patient, take(patient, visit), visit.noise_hu).findings[finding.name]


def test_thick_clots_in_the_cisterns_are_seen_and_marked_and_a_veil_is_not() -> None:
    drawn = next(f for seed in range(99) if (f := Subarachnoid.draw(stream(seed, "sah"))).region == "cisterns")
    thick = replace(drawn, grade="thick", strength=1.0, distension=2.2, clot_mm=3.0, blood=replace(drawn.blood, hu=68))
    patient, visit, label = judged(thick)
    assert label == 1
    points = visit.to_scanner(np.stack(np.meshgrid(*[np.arange(-30, 31, 2.0)] * 3, indexing="ij"), -1).reshape(-1, 3))
    classes, _template = truth_at(patient, visit, points)
    assert (classes == CLASSES.index("sah") + 1).sum() * 0.008 > 4  # ml
    assert judged(replace(thick, strength=0.4, distension=1.0, clot_mm=0.0))[2] is None


def test_a_wide_fracture_is_seen_and_a_hairline_is_not() -> None:
    drawn = next(f for seed in range(99) if (f := Fracture.draw(stream(seed, "fracture"))).kind == "linear")
    upright = replace(drawn, across=(0.0, 1.0, 0.0), centre_mm=(66.0, -10.0, 20.0), reach_mm=45.0)
    assert judged(replace(upright, width_mm=2.5))[2] == 1
    assert judged(replace(upright, width_mm=0.3))[2] is None


def test_blood_in_sulci_is_drawn_from_clots_to_a_veil() -> None:
    drawn = [Subarachnoid.draw(stream(seed, "sah")) for seed in range(600)]
    for grade, (share, strength, _distension, _clot) in SAH_GRADES.items():
        of_grade = [finding for finding in drawn if finding.grade == grade]
        assert len(of_grade) / len(drawn) == pytest.approx(share, abs=0.08)
        assert all(strength[0] <= finding.strength <= strength[1] for finding in of_grade)
    assert all(finding.clot_mm == 0 for finding in drawn if finding.region == "convexity")


def test_a_thick_layer_shifts_the_midline_by_about_as_much_and_a_thin_one_does_not() -> None:
    drawn = [Subdural.draw(stream(seed, "sdh")) for seed in range(800)]
    one_sided = [(f.thickness_mm[0], f.shift_mm) for f in drawn if len(f.thickness_mm) == 1]
    assert all(shift == 0 for thickness, shift in one_sided if thickness < 3.5)
    thick = [thickness / shift for thickness, shift in one_sided if thickness > 8]
    assert 1.0 < np.median(thick) < 2.0
    assert all(finding.shift_mm == 0 for finding in drawn if len(finding.thickness_mm) == 2)


def test_a_swollen_scalp_does_not_tell_epidural_blood() -> None:
    """It is as thick over sound bone, and not rare there."""
    swellings = {kind: [kind.draw(stream(s, kind.name)).swelling_mm for s in range(600)] for kind in (Bruise, Epidural)}
    over_blood = [value for value in swellings[Epidural] if value]
    assert np.mean(over_blood) == pytest.approx(np.mean(swellings[Bruise]), abs=0.5)
    people = [draw_findings(seed) for seed in range(3000)]
    swollen = [any(getattr(f, "swelling_mm", 0) > 0 for f in findings) for findings in people]
    epidural = np.array([any(f.name == "edh" for f in findings) for findings in people])
    with_blood, without = (np.mean(np.array(swollen)[chosen]) for chosen in (epidural, ~epidural))
    assert with_blood - without < 0.4


def test_every_rule_names_a_volume_and_a_contrast() -> None:
    assert all(rule.ml > 0 and rule.hu > 0 and rule.evidence >= 0 for rule in VISIBLE.values())
