"""Patients who do not exist: their truth against itself, physics, and ranges from the literature.

Sources of the ranges: ventricles by age, to 65 years, from normative MRI (Blatter et al., AJNR 1995;16:241-251), wider
by our own tolerance and gone on with above; cavity of the skull 1.0 to 1.9 litres, grey matter 35 to 40 HU, white 26 to
30.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headct.virtual.acquisition import Acquisition, take
from headct.virtual.anatomy import Anatomy
from headct.virtual.bending import COARSE, ended
from headct.virtual.findings.extraaxial import Epidural, Subdural
from headct.virtual.findings.mass import along_skull_mm
from headct.virtual.findings.mixture import COMPANIONS, KINDS, PREVALENCE, draw_findings, one_of
from headct.virtual.landmarks import BONE_MM, brain_landmarks, head_landmarks_mm
from headct.virtual.patient import Patient
from headct.virtual.sites import SITES
from headct.virtual.streams import stream
from headct.virtual.template import template
from headct.virtual.tissue import Skull, sutures
from headct.virtual.truth import truth_at

COARSE_MM = 3.0
"""Pixel of the scans in these tests: coarse enough to be quick."""


def patient_with(name: str, seed: int = 3) -> Patient:
    return Patient(seed, Anatomy.draw(seed), (one_of(name, seed),))


def lattice(step_mm: float) -> torch.Tensor:
    """Points (n, 3) all over the head."""
    axes = [torch.arange(low, high, step_mm) for low, high in ((-90, 91), (-112, 112), (-70, 96))]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def test_a_seed_is_a_patient() -> None:
    first, second, other = Patient.draw(7), Patient.draw(7), Patient.draw(8)
    points = lattice(9.0)
    assert first == second
    assert torch.equal(first.paint(points, 2.0).hu, second.paint(points, 2.0).hu)
    assert first.anatomy != other.anatomy


def test_every_stage_has_a_stream_of_its_own() -> None:
    everything = draw_findings(12, dict.fromkeys(KINDS, 1.0))
    alone = draw_findings(12, {"sdh": 1.0})
    assert [finding.name for finding in everything] == list(KINDS)
    assert alone == tuple(finding for finding in everything if finding.name == "sdh")
    assert Patient.draw(12).anatomy == Patient.draw(12, prevalence={"iph": 1.0}).anatomy


def test_a_given_age_changes_what_comes_with_age_alone() -> None:
    young, old = Anatomy.draw(5, age=25), Anatomy.draw(5, age=85)
    assert young.atrophy < old.atrophy
    assert young.ventricles_mm < old.ventricles_mm
    for name in ("scale", "shear", "skull_mm", "grey_hu", "shifts", "own_gyri"):
        assert getattr(young, name) == getattr(old, name)


def test_findings_are_drawn_as_often_as_asked() -> None:
    drawn = [{finding.name for finding in draw_findings(seed)} for seed in range(4000)]
    followers = {second for _first, second in COMPANIONS}
    for name in set(KINDS) - followers:
        share = np.mean([name in names for names in drawn])
        tolerance = 4 * np.sqrt(PREVALENCE[name] / 4000)
        assert share == pytest.approx(PREVALENCE[name], abs=tolerance)
    edh = [names for names in drawn if "edh" in names]
    with_fracture = np.mean(["fracture" in names for names in edh])
    expected = COMPANIONS["edh", "fracture"] + (1 - COMPANIONS["edh", "fracture"]) * PREVALENCE["fracture"]
    assert with_fracture == pytest.approx(expected, abs=4 * np.sqrt(0.25 / len(edh)))


@pytest.mark.parametrize("prevalence", [{"measles": 0.1}, {"iph": 1.5}])
def test_an_impossible_prevalence_is_refused(prevalence: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"measles|share"):
        draw_findings(1, prevalence)


@pytest.mark.parametrize("name", KINDS)
def test_a_twin_differs_within_the_findings_reach_alone(name: str) -> None:
    """Reach: where it pushes, where its smooth fields act, where it paints, and one coarse cell around.

    Hydrocephalus and diffuse oedema reach the whole cavity: of them this says that nothing outside it differs.
    """
    patient = patient_with(name)
    (finding,) = patient.findings
    points = lattice(4.0)
    ill, well = patient.paint(points, 1.0), patient.without(name).paint(points, 1.0)
    pushes = (ended(finding.push(patient.coarse)) != 0).any(dim=1)
    pushes |= finding.widens(patient.coarse) != 0
    fields = finding.fields(patient.coarse)
    for field, values in fields.items():
        pushes |= (values != 0) & (field != "swelling")
    within = ill.cavity_mm < 1.0  # what moves brain changes nothing outside the skull
    reach = _near_coarse(points, pushes) & within
    if "swelling" in fields:
        reach |= _near_coarse(points, fields["swelling"] != 0)
    for change in ill.changes.values():
        reach |= change.share > 0
    assert 0 < reach.float().mean() < 0.5
    assert torch.equal(ill.hu[~reach], well.hu[~reach])
    assert not torch.equal(ill.hu[reach], well.hu[reach])


@pytest.mark.parametrize("edge_mm", [1.0, 2.0])
def test_the_account_of_a_fracture_is_what_it_changed(edge_mm: float) -> None:
    """Where the brain is laid over bone too; oracle: the twin, within the skull, where no swelling of the scalp is."""
    patient = patient_with("fracture")
    points = lattice(2.0)
    ill, well = patient.paint(points, edge_mm), patient.without("fracture").paint(points, edge_mm)
    at = torch.nonzero(ill.cavity_mm < 2).squeeze(1)
    account = ill.changes["fracture"].hu[at]
    assert (account.abs() > 100).sum() > 20
    torch.testing.assert_close(account, (ill.hu - well.hu)[at], atol=0.5, rtol=0)


def _near_coarse(points: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
    grid = acts.reshape(COARSE.shape)
    low = torch.tensor([COARSE.x[0], COARSE.y[0], COARSE.z[0]])
    cell = ((points - low) / COARSE.step_mm).floor().long()
    result = torch.zeros(len(points), dtype=torch.bool)
    for corner in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3):
        at = cell + corner
        limits = torch.tensor(COARSE.shape[::-1]) - 1
        at = torch.minimum(at.clamp(min=0), limits)
        result |= grid[at[:, 2], at[:, 1], at[:, 0]]
    return result


def test_a_twin_has_the_same_head_and_it_is_worked_out_once() -> None:
    patient = Patient(6, Anatomy.draw(6), draw_findings(6, dict.fromkeys(KINDS, 1.0)))
    twin = patient.without("dementia", "sdh")
    assert twin.coarse is patient.coarse
    assert torch.equal(twin.coarse.template_mm, Patient(6, Anatomy.draw(6)).coarse.template_mm)


def test_the_head_ends_in_skin_all_around() -> None:
    """No head is so large that it is cut: on rays from its middle the outermost 2 mm hold skin, up from the ears."""
    ray = torch.arange(60.0, 126.0, 0.25)[:, None]
    for seed in (1, 3, 5, 13, 22):  # among the longest
        patient = Patient(seed, Anatomy.draw(seed))
        for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
            towards = torch.tensor([np.sin(angle), np.cos(angle), 0.04], dtype=torch.float32)
            hu = patient.paint(ray * towards, 0.5).hu
            last = int(torch.nonzero(hu > -500).max())
            assert hu[last - 8 : last + 1].max() > 30


def test_a_swollen_scalp_is_whole_and_as_thick_as_the_thickest_swelling() -> None:
    """Along rays from the head's middle, the outermost millimetres are skin, not fat or muscle that was cut off."""
    bruise = replace(one_of("bruise", 3), swelling_mm=10.0)
    ray = torch.arange(60.0, 126.0, 0.25)[:, None]
    for seed in range(6):
        outer = []
        centre = np.array([66.0, -12.0, 4.0]) if seed % 2 else np.array([40.0, -92.0, 10.0])
        for kind in (("bruise",), ("bruise", "edh", "fracture")):
            drawn = [
                bruise,
                replace(one_of("edh", 3), swelling_mm=9.0),
                replace(one_of("fracture", 3), swelling_mm=9.0),
            ]
            findings = tuple(replace(f, centre_mm=tuple(centre)) for f in drawn if f.name in kind)
            patient = Patient(seed, Anatomy.draw(seed), findings)
            for turn in (-0.2, 0.0, 0.2):
                towards = torch.tensor(centre + turn * np.array([-centre[1], centre[0], 20.0]), dtype=torch.float32)
                hu = patient.paint(ray * towards / torch.linalg.vector_norm(towards), 0.5).hu
                last = int(torch.nonzero(hu > -500).max())
                assert hu[last - 8 : last + 1].max() > 30  # skin of 55 HU within 2 mm
                outer.append(float(ray[last]))
        np.testing.assert_allclose(outer[3:], outer[:3], atol=0.3)  # the thickest counts, not their sum


@pytest.mark.parametrize("name", ["iph", "sdh", "edh", "tumor", "hydrocephalus"])
def test_no_mass_bends_bone(name: str) -> None:
    patient = patient_with(name)
    points = lattice(7.0)
    ill, _brain, _fields = patient.bend.sample(points)
    well, _brain, _fields = patient.without(name).bend.sample(points)
    assert torch.equal(ill, well)


def test_landmarks_of_bone_lie_in_bone_and_those_of_eyes_do_not() -> None:
    found = []
    for seed in range(6):
        patient = Patient(seed, Anatomy.draw(seed))
        places = head_landmarks_mm(patient)
        here = torch.tensor(np.array([places[name] for name in BONE_MM]), dtype=torch.float32)
        found.append(patient.paint(here, 1.0).hu.numpy())
    for name, hu in zip(BONE_MM, np.median(found, axis=0), strict=True):
        assert hu < 60 if "eye" in name else hu > 300, (name, hu)


def test_landmarks_come_back_to_the_template() -> None:
    patient = Patient.draw(21)
    names = brain_landmarks()
    assert len(names) + len(BONE_MM) >= 25
    places = head_landmarks_mm(patient)
    assert set(places) == {*names, *BONE_MM}
    there = torch.from_numpy(np.array([places[name] for name in names], dtype=np.float32))
    _head, back, _fields = patient.bend.sample(there)
    np.testing.assert_allclose(back.numpy(), np.array(list(names.values())), atol=1.0)
    assert places["right-thalamus"][0] > places["left-thalamus"][0]
    assert places["vertex"][2] > places["pons"][2]


def test_the_brain_map_keeps_its_orientation() -> None:
    """Jacobian of B above 0.1 in 99.9 % of the voxels of undiseased tissue; all but 1 % beside a mass."""
    for findings, share in (((), 0.001), ((one_of("iph", 2),), 0.01), ((one_of("sdh", 2),), 0.01)):
        folded = [_folded(Patient(seed, Anatomy.draw(seed), findings)) for seed in range(6)]
        assert np.mean(folded) <= share


@pytest.mark.parametrize("name", ["", "hydrocephalus", "dementia", "edema"])
def test_wide_ventricles_are_drawn_out_and_not_folded(name: str) -> None:
    """Jacobian of B above 0 in 99.7 % of all in and within 12 mm of the ventricles, every 2 mm; in old heads too."""
    axes = [torch.arange(low, high, 2.0) for low, high in ((-56, 57), (-84, 67), (-40, 61))]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    folded = []
    for seed in range(6):
        anatomy = Anatomy.draw(seed, age=88 if seed % 2 else None)
        patient = Patient(seed, anatomy, (one_of(name, seed + 20),) if name else ())
        by_head, by_brain, _fields = patient.bend.sample(points.reshape(-1, 3))
        grid = by_brain.reshape(points.shape).numpy()
        slopes = np.stack(np.gradient(grid, 2.0, axis=(0, 1, 2)), axis=-1)
        undiseased = template().slopes(by_head)
        near = (undiseased[:, 4] < 12 * anatomy.mean_scale) & (undiseased[:, 0] < -4)
        folded.append(float((np.linalg.det(slopes)[near.reshape(points.shape[:3]).numpy()] <= 0).mean()))
    assert np.mean(folded) < 0.003


def test_wide_ventricles_stay_wide_where_their_map_is_drawn_out() -> None:
    """In ml more than without; a shell of 9 mm around a ventricle of 20 ml and 130 cm2 holds far more than 15."""
    drawn = replace(one_of("hydrocephalus", 3), obstructive=False)
    for seed in (5, 6):
        healthy = Patient(seed, Anatomy.draw(seed, age=40))
        volumes = [healthy.fluid_ml().ventricles_ml]
        for wider_mm in (3.0, 6.0, 9.0):
            patient = replace(healthy, findings=(replace(drawn, wider_mm=wider_mm),))
            volumes.append(patient.fluid_ml().ventricles_ml)
        assert volumes == sorted(volumes)
        assert volumes[-1] - volumes[0] > 15


@pytest.mark.parametrize("name", ["", "hydrocephalus", "sdh"])
def test_a_calcification_is_round_wherever_brain_is_moved(name: str) -> None:
    """Oracle: the twin without calcifications. Each is a ball of 3 mm to within its grain, as long as it is wide."""
    found = 0
    for seed in range(8):
        anatomy = replace(Anatomy.draw(seed), plexus_hu=300.0, pineal_hu=0.0, pallidum_hu=0.0, falx_spots=0)
        findings = (one_of(name, seed + 20),) if name else ()
        patient = Patient(seed, anatomy, findings)
        bare = Patient(seed, replace(anatomy, plexus_hu=0.0), findings)
        for nodule in patient.nodules:
            (place,), _missed = patient.bend.head_of(np.array([nodule.centre_mm]), brain=False)
            axis = torch.arange(-10, 10.5, 0.5)
            cube = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
            points = cube + torch.tensor(place, dtype=torch.float32)
            share = (patient.paint(points, 0.5).hu - bare.paint(points, 0.5).hu) / 280
            ball = cube[share > 0.5]
            radii = torch.linalg.eigvalsh(torch.cov(ball.T)).sqrt() * 5**0.5  # of a ball: its radius along any axis
            assert radii.min() > 1.8
            assert radii.max() < 5
            found += 1
    assert found > 8


def test_sutures_show_as_thin_gaps_in_bone_and_fuse_with_age() -> None:
    """Across the coronal suture, half-way through bone: oracle the same head where no suture is."""
    dips = {}
    for age in (25, 85):
        patient = Patient(4, Anatomy.draw(4, age=age))
        axes = (torch.arange(-62, 63, 1.0), torch.arange(-2, 42, 0.5), torch.arange(10, 100, 1.0))
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        painted = patient.paint(points, 0.5)
        by_head, _brain, fields = patient.bend.sample(points)
        head = Skull(patient.anatomy, by_head, template().sample("head", by_head), fields, 0.5)
        middle = (head.cavity_mm - 0.5 * head.thickness_mm).abs() < 0.22 * head.thickness_mm
        coronal = sutures(by_head)["coronal"]
        near = middle & coronal.in_bone & (coronal.distance_mm.abs() < 6)
        beside = middle & coronal.in_bone & (coronal.distance_mm > 8) & (by_head[:, 0].abs() > 10)
        usual = float(painted.hu[beside].median())
        gap = (painted.hu[near] < usual - 300).float().mean()
        dips[age] = usual - float(painted.hu[near].quantile(0.03))
        assert 0.0 < float(gap) * 12 / patient.anatomy.mean_scale < 2.2  # mm wide
        assert (painted.hu[beside] < usual - 400).float().mean() < 0.01
    assert dips[25] > 450
    assert 250 < dips[85] < dips[25]


def _folded(patient: Patient) -> float:
    brain = patient.bend.values[..., 3:6].movedim(-1, 0)
    slopes = np.stack([np.stack(np.gradient(part, COARSE.step_mm)) for part in brain.numpy()])
    jacobian = np.linalg.det(np.moveaxis(slopes[:, ::-1], (0, 1), (-2, -1))) / np.prod(patient.anatomy.scale)
    channels = template().sample("brain", brain.reshape(3, -1).T.contiguous())
    tissue = (patient.coarse.depth_mm > 3) & (channels["ventricles_mm"] > 1)
    for change in patient.paint(patient.coarse.head_mm, 1.0).changes.values():
        tissue &= change.share < 0.1  # a mass is no tissue
    return float((jacobian[tissue.reshape(COARSE.shape).numpy()] < 0.1).mean())


@pytest.mark.parametrize(("age", "low", "high"), [(25, 12, 26), (50, 15, 34), (66, 20, 55), (85, 28, 85)])
def test_ventricles_follow_age(age: float, low: float, high: float) -> None:
    volumes = [Patient(seed, Anatomy.draw(seed, age=age)).fluid_ml() for seed in range(50, 60)]
    assert low < np.mean([volume.ventricles_ml for volume in volumes]) < high
    cavities = [volume.cavity_ml for volume in volumes]
    assert 1200 < np.median(cavities) < 1800
    assert all(volume.ventricles_ml < volume.fluid_ml < 0.35 * volume.cavity_ml for volume in volumes)


def test_volumes_leave_out_nothing_within_the_skull(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = [Patient.draw(seed) for seed in range(6)]
    quick = [patient.fluid_ml() for patient in patients]
    monkeypatch.setattr("headct.virtual.patient.WITHIN_REACH_MM", np.inf)
    assert [patient.fluid_ml() for patient in patients] == quick


def test_tissues_have_the_values_that_were_drawn() -> None:
    """Before a scanner takes them: ventricles within 0.7 HU of the drawn value, white matter within 1 HU."""
    patient = Patient(4, Anatomy.draw(4, age=30))
    points = lattice(2.0)
    painted = patient.paint(points, 1.0, tissues=True)
    template_mm = painted.template_mm.nan_to_num(999.0)
    channels = template().sample("brain", template_mm)
    ventricle = (painted.changes["ventricles"].share > 0.99) & (channels["ventricles_mm"] < -2.5)
    far = (channels["arteries_mm"] > 3) & (channels["sinuses_mm"] > 3)
    white = (channels["white"] > 0.97) & (painted.cavity_mm < -22) & far & (channels["stem_mm"] > 4)
    white &= painted.changes["brain"].share > 0.99
    assert painted.hu[ventricle].median() == pytest.approx(patient.anatomy.csf_hu, abs=0.7)
    assert painted.hu[white].mean() == pytest.approx(patient.anatomy.white_hu, abs=1.0)
    assert painted.hu[(painted.cavity_mm > 1.0) & (painted.cavity_mm < 2.5)].median() > 500
    assert painted.hu[painted.cavity_mm > 90].max() == -1000


def test_blood_lies_where_its_name_says() -> None:
    points, compared = lattice(3.0), 0
    for seed in range(6):
        ivh = patient_with("ivh", seed).paint(points, 1.0, tissues=True)
        assert (ivh.changes["ivh"].share <= ivh.changes["ventricles"].share + 1e-5).all()
        sdh = patient_with("sdh", seed)
        mask = sdh.paint(points, 1.0).changes["sdh"].share > 0.5
        (finding,) = sdh.findings
        assert isinstance(finding, Subdural)
        if len(finding.centres_mm) == 1 and not finding.parafalcine_mm and mask.any():
            compared += 1
            side = np.sign(finding.centres_mm[0][0])
            by_head, _brain, _fields = sdh.bend.sample(points[mask])
            assert (by_head[:, 0] * side > -1).all()
        iph = patient_with("iph", seed).paint(points, 1.0)
        blood = iph.changes["iph"].share > 0.5
        assert (iph.cavity_mm[blood] < 0).all()
    assert compared > 1


def epidurals(count: int) -> list[Epidural]:
    return [Epidural.draw(stream(seed, "edh")) for seed in range(count)]


def shell_and_lens(patient: Patient, finding: Epidural) -> tuple[torch.Tensor, torch.Tensor]:
    """Coarse points (n,) by the inner table, and how thick the lens would be there (n,) if nothing stopped it."""
    coarse = patient.coarse
    arc = along_skull_mm(coarse.template_mm, finding.centre_mm) / finding.radius_mm
    lens = finding.depth_mm * torch.clamp(1 - arc**2, min=0)
    return (coarse.cavity_mm.abs() < 5) & (coarse.template_mm[:, 2] > -62), lens


def test_an_epidural_haematoma_is_a_lens_that_stops_at_sutures() -> None:
    """Oracle: the plane of the coronal suture and the sphenoid ridge below it; the cone of the lambdoid, behind."""
    patient, stopped = Patient(3, Anatomy.draw(3)), dict.fromkeys(("coronal", "lambdoid"), 0)
    x, y, z = patient.coarse.template_mm.T
    for finding in epidurals(60):
        thickness = finding.fields(patient.coarse)["edh"]
        shell, lens = shell_and_lens(patient, finding)
        middle_x, middle_y, middle_z = finding.centre_mm
        ahead = y - 16 + 0.12 * x.abs()
        above = z - 58 + 1.2 * x.abs()
        beyond = {
            "coronal": ahead * (middle_y - 16 + 0.12 * abs(middle_x)) < 0,
            "lambdoid": (above * (middle_z - 58 + 1.2 * abs(middle_x)) < 0) & (y < -48) & (z > -20),
        }
        for name, there in beyond.items():
            assert thickness[there].sum() == 0
            stopped[name] += bool((lens[there & shell] > 0.5).any())
    assert min(stopped.values()) > 5


def test_an_epidural_haematoma_is_cut_off_nowhere_else() -> None:
    """Beneath the temporal bone it goes on below the end of the coronal suture; most of each lens is there."""
    patient = Patient(3, Anatomy.draw(3))
    kept, below = [], []
    for finding in epidurals(60):
        thickness = finding.fields(patient.coarse)["edh"]
        shell, lens = shell_and_lens(patient, finding)
        kept.append(float(thickness[shell].sum() / lens[shell].sum()))
        low = shell & (lens > 0.5) & (patient.coarse.template_mm[:, 2] < -8)
        if abs(finding.centre_mm[1] + 18) < 25 and finding.centre_mm[2] < 20 and low.any():
            below.append(float(thickness[low].sum() / lens[low].sum()))
    assert np.median(kept) > 0.9
    assert min(kept) > 0.4
    assert len(below) > 20
    assert np.median(below) > 0.85
    assert min(below) > 0.4


def test_a_rescan_shares_the_truth_and_nothing_of_the_scanner() -> None:
    patient = Patient.draw(31, prevalence={"iph": 1.0})
    first = Acquisition.draw(31, SITES["site-a"], 0)
    second = Acquisition.draw(31, SITES["site-b"], 1)
    assert first.turn_deg != second.turn_deg
    assert first.noise_seed != second.noise_seed
    volumes = []
    for visit in (first, second):
        taken = take(patient, visit.coarsened(COARSE_MM))
        row_mm, col_mm = taken.scan.pixel_mm
        voxel_ml = row_mm * col_mm * float(np.median(taken.scan.gaps_mm)) / 1000
        volumes.append(float(taken.shares["iph"].sum(dtype=np.float64)) * voxel_ml)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.08)


def test_noise_is_what_was_asked_for() -> None:
    """The standard deviation of the difference of two scans that differ in their noise alone, in the middle."""
    patient = Patient.draw(5, prevalence={})
    visit = Acquisition.draw(5, SITES["site-a"]).coarsened(COARSE_MM)
    visit = replace(visit, noise_hu=6.0, motion_mm=(0.0, 0.0), sharpening=0.0)
    one = take(patient, visit).scan.hu.astype(float)
    other = take(patient, replace(visit, noise_seed=visit.noise_seed + 1)).scan.hu.astype(float)
    middle = (slice(8, -8), slice(30, -30), slice(30, -30))
    asked = 6.0 * (1.085 / patient.anatomy.mean_scale) ** 3
    assert np.std(one[middle] - other[middle]) / np.sqrt(2) == pytest.approx(asked * 1.1, rel=0.15)


def test_a_tilted_visit_has_sheared_positions() -> None:
    visit = Acquisition.draw(9, SITES["site-b"]).coarsened(4.0)
    scan = take(Patient.draw(9, prevalence={}), visit).scan
    assert abs(scan.tilt_deg) == pytest.approx(abs(visit.tilt_deg), abs=1e-3)


def test_the_correspondence_is_known_everywhere() -> None:
    patient = Patient.draw(14, prevalence={})
    visit = Acquisition.draw(14, SITES["site-a"])
    places = np.array([visit.to_scanner(place) for place in head_landmarks_mm(patient).values()])
    _classes, template_mm = truth_at(patient, visit, places)
    known = brain_landmarks()
    expected = np.array([known.get(name, (np.nan,) * 3) for name in head_landmarks_mm(patient)])
    within = np.isfinite(expected[:, 0])
    assert within.sum() > 15
    assert np.linalg.norm(template_mm[within] - expected[within], axis=1).max() < 0.02  # mm
