"""What counts as seen and how findings are drawn: 1 for what a reader could see, empty for what is there unseen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from headct.scan import Header, Scan
from headct.virtual.acquisition import Acquisition, Taken, take
from headct.virtual.anatomy import Anatomy
from headct.virtual.findings.bleeding import SAH_GRADES, Intraparenchymal, Subarachnoid
from headct.virtual.findings.bone import Bruise, Fracture
from headct.virtual.findings.extraaxial import Epidural, Subdural
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.fluid import Hydrocephalus
from headct.virtual.findings.lesions import Edema, Infarct, Tumor
from headct.virtual.findings.mixture import KINDS, draw_findings, one_of
from headct.virtual.labels import DEMENTIA_ML, HYDROCEPHALUS_ML, judge
from headct.virtual.patient import Patient
from headct.virtual.simulated import Simulated
from headct.virtual.sites import SITES
from headct.virtual.streams import stream
from headct.virtual.template import ICBM_PER_HEAD, template
from headct.virtual.tissue import SEEPAGE, TUMOR_OEDEMA, Brain, share_of_line
from headct.virtual.truth import CLASSES, truth_at

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
    return Taken(scan, shares, {name: change.astype(np.float16) for name, change in changes.items()}, {})


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
    assert judge(patient, taken, 10.0).findings["infarct"] is None


def test_a_large_head_is_noisier_as_it_is_in_the_scan() -> None:
    """Noise of 6 HU hides 5.5 HU by its 0.8 in a head half as large again as the average one, and not in that."""
    finding, taken = one_of("infarct", 3), taken_of({"infarct": block_of(-5.5, 14)})
    labels = []
    for volume in (1.0, 1.5):
        anatomy = replace(Anatomy.draw(3, age=40), scale=(ICBM_PER_HEAD / volume ** (1 / 3),) * 3)
        labels.append(judge(Patient(3, anatomy, (finding,)), taken, 6.0).findings["infarct"])
    assert labels == [1, None]


def test_noise_is_judged_as_a_reader_averages_it_whatever_the_format() -> None:
    """Thin slices of a fine kernel, as files and as a cohort of 2 mm has them: one truth, one label."""
    patient, taken = patient_of(one_of("infarct", 3)), taken_of({"infarct": block_of(-4.5, 14)})
    visits = [Acquisition.draw(seed, SITES["site-c"]) for seed in range(20)]
    noisy = max(visits, key=lambda visit: visit.noise_hu)
    assert judge(patient, taken, noisy.noise_hu).findings["infarct"] is None
    for visit in (noisy, noisy.coarsened(1.0), noisy.coarsened(2.0)):
        simulated = Simulated(patient, visit, "one", "1")
        vars(simulated)["taken"] = taken
        assert simulated.labels.findings["infarct"] == 1


@pytest.mark.parametrize(("own_hu", "label"), [(-10, 1), (-2, None), (0, None)], ids=["own", "own, but faint", "other"])
def test_a_tumour_as_grey_as_brain_is_seen_by_its_own_oedema(own_hu: float, label: int | None) -> None:
    """Not by that of another finding, which is seen in all three."""
    others = np.roll(block_of(-10, 14), 20, axis=2)
    changes = {"tumor": block_of(1, 8), "edema": others}
    if own_hu:
        changes[TUMOR_OEDEMA] = np.roll(block_of(own_hu, 14), 20, axis=2)
    labels = judge(patient_of(one_of("tumor", 3), one_of("edema", 3)), taken_of(changes), 2.0).findings
    assert labels["edema"] == 1
    assert labels["tumor"] == label


def test_the_middle_of_brain_is_taken_within_the_bone() -> None:
    """Muscle around the skull is denser: with it in the middle, blood of 46 HU would not stand out from brain."""
    taken = taken_of({"sah": block_of(46 - FLUID_HU, 10)}, FLUID_HU)
    hu = np.pad(taken.scan.hu, ((0, 0), (10, 10), (10, 10)), constant_values=55)
    wide = {name: np.pad(values, ((0, 0), (10, 10), (10, 10))) for name, values in taken.changed_hu.items()}
    hu[:, 6:8, 6:54] = hu[:, 52:54, 6:54] = hu[:, 6:54, 6:8] = hu[:, 6:54, 52:54] = 900
    hu[:, 8:52, 8:52][hu[:, 8:52, 8:52] == 55] = BRAIN_HU
    taken = replace(taken, scan=replace(taken.scan, hu=hu), shares=wide, changed_hu=wide)
    assert np.median(hu[(hu > 10) & (hu < 60)]) < 46  # more brain than muscle here: tip the scales
    hu = np.pad(hu, ((0, 0), (20, 20), (20, 20)), constant_values=55)
    wide = {name: np.pad(values, ((0, 0), (20, 20), (20, 20))) for name, values in wide.items()}
    taken = replace(taken, scan=replace(taken.scan, hu=hu), shares=wide, changed_hu=wide)
    assert np.median(hu[(hu > 10) & (hu < 60)]) == 55
    assert judge(patient_of(one_of("sah", 3)), taken, 2.0).findings["sah"] == 1


def of_volume(ml: float, strength: float) -> Intraparenchymal:
    drawn = Intraparenchymal.draw(stream(3, "iph"))
    radius = (ml * 3000 / (4 * np.pi)) ** (1 / 3)
    return replace(drawn, centre_mm=(26.0, 0.0, 6.0), radius_mm=radius, strength=strength, shift_mm=0.0)


NOTHING = taken_of({})


@pytest.mark.parametrize(("ml", "label"), [(6, (0, None)), (90, (1,))])
def test_mass_effect_is_what_moves_outside_the_mass(ml: float, label: tuple[int | None, ...]) -> None:
    """Oracle: a shell at the ball's border was nearer by R (1 - (1 - k exp(-1 / 4.5^2))^(1/3))."""
    finding = of_volume(ml, 0.5)
    at_border = finding.radius_mm * (1 - (1 - 0.5 * np.exp(-1 / 4.5**2)) ** (1 / 3))
    patient = patient_of(finding)
    outside = ~finding.fills(patient.coarse)
    moved = float(torch.linalg.vector_norm(patient.displaced_mm[outside], dim=1).max())
    assert 0.6 * at_border < moved <= at_border
    labels = judge(patient, NOTHING, 2.0)
    assert labels.findings["mass_effect"] in label
    assert labels.mass_effect_mm == pytest.approx(moved)


@pytest.mark.parametrize(("name", "least_ml"), [("hydrocephalus", HYDROCEPHALUS_ML), ("dementia", DEMENTIA_ML)])
def test_severity_of_fluid_is_what_the_finding_added(name: str, least_ml: float) -> None:
    for seed in range(3, 9):
        patient = Patient(3, Anatomy.draw(3, age=70), (one_of(name, seed),))
        labels, fluid, before = judge(patient, NOTHING, 2.0), patient.fluid_ml(), patient.without(name).fluid_ml()
        told = {"hydrocephalus": labels.hydrocephalus_ml, "dementia": labels.dementia_ml}
        added = (
            fluid.ventricles_ml - before.ventricles_ml if name == "hydrocephalus" else fluid.fluid_ml - before.fluid_ml
        )
        assert told.pop(name) == pytest.approx(added)
        assert added > 0
        assert set(told.values()) == {0.0}
        assert labels.findings[name] == (1 if added >= least_ml else None)


def effaced(name: str, age: float, /, **drawn: object) -> int | None:
    patient = Patient(5, Anatomy.draw(5, age=age), (replace(one_of(name, 3), **drawn),))
    return judge(patient, NOTHING, 2.0).findings["mass_effect"]


def test_sulci_pressed_shut_are_mass_effect_without_a_mass() -> None:
    whole = {"diffuse": True, "centres_mm": (), "reach_mm": ()}
    for age in (25, 75):
        assert effaced("edema", age, **whole, tightness=0.8) == 1
        assert effaced("edema", age, **whole, tightness=0.35) != 0
    territory = {"territory": "mca", "centre_mm": (44.0, -12.0, 18.0), "radii_mm": (26.0, 46.0, 34.0), "age": "acute"}
    assert effaced("infarct", 80, **territory, closing=0.95) == 1
    assert effaced("infarct", 50, **territory, closing=0.95) != 0
    assert effaced("infarct", 80, **territory, closing=0.0) == 0
    assert effaced("edema", 50, diffuse=False, tightness=0.0, centres_mm=((30.0, -40.0, 20.0),), reach_mm=(20.0,)) == 0


@pytest.mark.parametrize("kind", [Tumor, Intraparenchymal, Epidural])
def test_what_lies_below_the_tentorium_or_in_the_midline_does_not_shift_the_septum(kind: type[Finding]) -> None:
    drawn = [kind.draw(stream(seed, kind.name)) for seed in range(500)]
    still = [f for f in drawn if f.centre_mm[2] < -20 or abs(f.centre_mm[0]) < 6]
    assert len(still) > 10
    assert all(finding.shift_mm == 0 for finding in still)
    assert np.mean([finding.shift_mm > 0 for finding in drawn if finding not in still]) > 0.6


@pytest.mark.parametrize("edge_mm", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("width_mm", [0.5, 1.0, 2.5])
def test_a_line_is_as_wide_as_it_was_drawn_whatever_the_pixel(width_mm: float, edge_mm: float) -> None:
    across = torch.arange(-8, 8, 0.01)
    assert float(share_of_line(across, width_mm, edge_mm).sum()) * 0.01 == pytest.approx(width_mm, rel=0.01)


def test_accounts_add_up_to_all_that_was_painted() -> None:
    """Also where findings cover or shift one another; oracle: the values before any of them."""
    for seed in (1, 4, 6):
        findings = draw_findings(seed, dict.fromkeys(KINDS, 1.0))
        findings = tuple(replace(f, seepage_hu=8.0) if isinstance(f, Hydrocephalus) else f for f in findings)
        patient = Patient(seed, Anatomy.draw(seed), findings)
        points = patient.coarse.head_mm[patient.coarse.cavity_mm < -1]
        by_head, by_brain, fields = patient.bend.sample(points)
        cavity_mm = template().sample("head", by_head)["cavity_mm"] / patient.anatomy.mean_scale
        channels = template().sample("brain", by_brain)
        brain = Brain(patient.anatomy, by_head, channels, fields, 1.0, by_brain, cavity_mm)
        before = brain.hu.clone()
        for finding in findings:
            finding.paint(brain)
        accounts = [change.hu for name, change in brain.changes.items() if name != TUMOR_OEDEMA]
        torch.testing.assert_close(sum(accounts), brain.hu - before, atol=0.02, rtol=0)
        assert brain.changes[SEEPAGE].hu.min() < -3


def test_what_is_covered_has_no_account_left() -> None:
    patient = patient_of()
    _head, by_brain, fields = patient.bend.sample(torch.zeros(2, 3))
    channels = template().sample("brain", by_brain)
    brain = Brain(patient.anatomy, by_brain, channels, fields, 1.0, by_brain, torch.full((2,), -30.0))
    before = brain.hu.clone()
    brain.change("iph", torch.ones(2), 60.0)
    brain.change("sdh", torch.tensor([1.0, 0.25]), 70.0)
    torch.testing.assert_close(brain.changes["iph"].hu, torch.tensor([0.0, 0.75]) * (60 - before))
    torch.testing.assert_close(brain.changes["iph"].share, torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(brain.changes["sdh"].hu, torch.tensor([1.0, 0.25]) * (70 - before))


def first(kind: type[Finding], **asked: object) -> Finding:
    drawn = (kind.draw(stream(seed, kind.name)) for seed in range(500))
    return next(f for f in drawn if all(getattr(f, name) == value for name, value in asked.items()))


@pytest.mark.parametrize("over", ["infarct", "edema", "tumor"])
@pytest.mark.parametrize("blood", ["iph", "sdh"])
def test_what_darkens_brain_leaves_the_blood_in_it_as_dense_as_it_is(over: str, blood: str) -> None:
    """Oracle: the patient with blood alone."""
    place = {"territory": "mca", "centre_mm": (44.0, -12.0, 18.0), "radii_mm": (30.0, 50.0, 40.0)}
    darkens = {
        "infarct": replace(first(Infarct, age="old"), **place),
        "edema": replace(first(Edema, diffuse=True), tightness=0.9, depth_hu=13.0),
        "tumor": replace(first(Tumor, extraaxial=False), centre_mm=(50.0, 40.0, 10.0), oedema_mm=26.0, oedema_hu=14.0),
    }[over]
    bleed = {
        "iph": replace(of_volume(12, 0.3), centre_mm=(42.0, -12.0, 20.0)),
        "sdh": replace(first(Subdural, stage="acute"), centres_mm=((60.0, 0.0, 25.0),), thickness_mm=(12.0,)),
    }[blood]
    both, alone = patient_of(bleed, darkens), patient_of(bleed)
    axes = [np.arange(low, high, 2.0) for low, high in ((10, 76), (-60, 60), (-10, 60))]
    points = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).astype(np.float32))
    painted, only = both.paint(points, 2.0), alone.paint(points, 2.0)
    full = painted.changes[blood].share > 0.98
    assert full.sum() > 50
    if over != "tumor":  # a mass moves the layer beneath which it lies
        assert painted.hu[full].mean() == pytest.approx(
            float(only.hu[only.changes[blood].share > 0.98].mean()), abs=1.5
        )
    told = "edema" if over == "tumor" else over
    assert painted.changes[told].share[full].max() < 0.03
    assert painted.changes[told].hu[full].abs().max() < 1
    assert (painted.changes[told].hu < -5).sum() > 50


def test_the_volume_of_diffuse_oedema_tells_how_tight_it_is() -> None:
    """The same brain with more and more of it: what it changed and its ml rise together, in proportion to tightness."""
    whole = replace(first(Edema, diffuse=True), depth_hu=10.0)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-55, 55, (4000, 3)).astype(np.float32))
    told = []
    for tightness in (0.4, 0.6, 0.8, 1.0):
        change = patient_of(replace(whole, tightness=tightness)).paint(points, 2.0).changes["edema"]
        told.append((float(change.share.sum()) / tightness, float(change.share.max()) / tightness))
        assert (change.hu <= 0).all()
    amounts, most = np.array(told).T
    np.testing.assert_allclose(most, 1.0, atol=1e-5)
    np.testing.assert_allclose(
        amounts / amounts[0], 1.0, atol=0.15
    )  # fluid is pressed out, so that there is more brain


def test_faint_oedema_of_the_whole_brain_is_in_its_mask() -> None:
    """Else a scan with the label would have no voxel of it."""
    patient = patient_of(replace(first(Edema, diffuse=True), tightness=0.4, depth_hu=10.0))
    visit = Acquisition.draw(1, SITES["site-a"]).coarsened(4.0)
    assert Simulated(patient, visit, "p", "1").masks["edema"].sum() > 1000


@pytest.mark.parametrize("seed", [11, 87])
def test_little_blood_in_the_ventricles_is_in_its_mask(seed: int) -> None:
    """Diluted, or as thin as a voxel: it fills none by half."""
    patient = Patient(seed, Anatomy.draw(seed), (one_of("ivh", seed),))
    simulated = Simulated(patient, Acquisition.draw(seed, SITES["site-a"]).coarsened(4.0), "p", "1")
    assert simulated.labels.findings["ivh"] == 1
    assert simulated.masks["ivh"].any()
    assert not (simulated.taken.shares["ivh"] >= 0.5).any()


def test_a_fracture_that_tore_an_artery_lies_over_the_blood() -> None:
    both = [(seed, found) for seed in range(800) if {"edh", "fracture"} <= (found := named(draw_findings(seed))).keys()]
    away = np.array([np.linalg.norm(np.subtract(at["fracture"].centre_mm, at["edh"].centre_mm)) for _, at in both])
    assert len(away) > 10
    assert (away < 25).mean() > 0.8  # the others have one for another reason
    assert all(at["fracture"].kind != "base" for (_, at), mm in zip(both, away, strict=True) if mm < 25)
    alone = {name: 0.0 for name in KINDS if name not in ("edh", "fracture")}
    seed, found = both[0]
    assert named(draw_findings(seed, {**alone, "edh": 1.0, "fracture": 0.01}))["edh"] == found["edh"]


def named(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_no_more_of_a_finding_shows_than_there_is() -> None:
    """A layer that fills a third of each voxel: whole voxels decide on the label, their filled part is what shows."""
    taken = taken_of({"sdh": block_of(14, 9)})  # 5.8 ml of voxels
    taken = replace(taken, shares={"sdh": (taken.shares["sdh"] / 3).astype(np.float16)})
    labels = judge(patient_of(one_of("sdh", 3)), taken, 2.0)
    assert labels.findings["sdh"] == 1
    assert labels.volumes_ml["sdh"] == pytest.approx(5.832 / 3, rel=1e-3)
    assert labels.visible_ml["sdh"] == pytest.approx(5.832 / 3, rel=1e-3)


def test_dementia_has_no_mask_and_hydrocephalus_has_the_ventricles() -> None:
    points = torch.from_numpy(np.random.default_rng(0).uniform(-55, 55, (2000, 3)).astype(np.float32))
    painted = patient_of(one_of("hydrocephalus", 3), one_of("dementia", 3)).paint(points, 1.0, tissues=True)
    assert "dementia" not in painted.changes
    torch.testing.assert_close(painted.changes["hydrocephalus"].share, painted.changes["ventricles"].share)


def test_accounts_that_are_no_findings_are_no_masks() -> None:
    simulated = Simulated(patient_of(), Acquisition.draw(3, SITES["site-a"]), "one", "1")
    vars(simulated)["taken"] = taken_of(
        {"tumor": block_of(1, 8), TUMOR_OEDEMA: block_of(-9, 9), SEEPAGE: block_of(-9, 9)}
    )
    assert set(simulated.masks) == {"tumor"}


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


def test_a_swollen_scalp_is_mostly_one_over_sound_bone() -> None:
    """It comes more often with epidural blood, as in life, but is as thick elsewhere, and far more often alone."""
    swellings = {kind: [kind.draw(stream(s, kind.name)).swelling_mm for s in range(600)] for kind in (Bruise, Epidural)}
    over_blood = [value for value in swellings[Epidural] if value]
    assert np.mean(over_blood) == pytest.approx(np.mean(swellings[Bruise]), abs=0.5)
    people = [draw_findings(seed) for seed in range(3000)]
    swollen = [any(getattr(f, "swelling_mm", 0) > 0 for f in findings) for findings in people]
    epidural = np.array([any(f.name == "edh" for f in findings) for findings in people])
    with_blood, without = (np.mean(np.array(swollen)[chosen]) for chosen in (epidural, ~epidural))
    assert with_blood - without < 0.33
    assert np.mean(epidural[swollen]) < 0.15
