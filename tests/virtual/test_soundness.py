"""What `benchmarks/` asks of virtual patients is what it says: lesions are filled and blanked, noise has no anatomy."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from headct import Cohort, prepare
from headct.preparing.recipe import recipes
from headct.virtual.job import Job, run
from headct.virtual.labels import FINDINGS
from headct.virtual.simulated import Simulation
from headct.virtual.truth import CLASSES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIMULATION = Simulation(seed=3, prevalence={"iph": 1.0, "fracture": 1.0})


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """The scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def soundness() -> ModuleType:
    return importlib.import_module("soundness")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with a haemorrhage and a fracture each."""
    folder = tmp_path_factory.mktemp("soundness") / "cohort"
    run(Job(simulation=SIMULATION, patients=2, masks=True), folder, workers=1, progress=lambda *_: None)
    return folder


def test_scans_are_read_with_what_is_told_of_them(soundness: ModuleType, place: Path) -> None:
    patients = soundness.load([place], 1)
    assert patients.labels[:, FINDINGS.index("iph")].tolist() == [1, 1]
    hu = np.stack([Cohort(place).array(scan_id) for scan_id in Cohort(place)])
    soft = (hu > -30) & (hu < 170)
    assert np.abs(soundness.LEVELS_HU[patients.codes.numpy()] - hu)[soft].max() <= 0.5
    noise = patients.features["noise"]
    assert np.isfinite(noise).all(axis=1).tolist() == [True, False]  # one was taken again
    brain = hu[0][soundness.CENTRE]
    assert 0.5 < noise[0, 0] < brain[(brain > 10) & (brain < 60)].std()
    for row, place_of in enumerate(patients.lesions):
        classes = patients.classes(row).ravel()
        assert np.isin(np.flatnonzero(classes >= soundness.FIRST_LESION), place_of).all()


def test_patients_are_held_out_or_are_those_of_other_cohorts(
    soundness: ModuleType, place: Path, tmp_path: Path
) -> None:
    run(Job(simulation=Simulation(seed=4), patients=3, masks=True), tmp_path, workers=1, progress=lambda *_: None)
    patients = soundness.load([place, tmp_path], 0)
    seen, test = soundness.parted(patients, [], np.random.default_rng(0))
    assert (len(seen), len(test)) == (4, 1)
    assert sorted([*seen, *test]) == list(range(5))
    seen, test = soundness.parted(patients, [tmp_path], np.random.default_rng(0))
    assert (seen.tolist(), test.tolist()) == ([0, 1], [2, 3, 4])


def test_what_cannot_be_read_is_told_at_once(soundness: ModuleType, place: Path, tmp_path: Path) -> None:
    soundness.check(place, masks=True)
    run(Job(simulation=SIMULATION, patients=1), tmp_path / "head", workers=1, progress=lambda *_: None)
    coarse = Job(simulation=SIMULATION, patients=1, recipe="head-coarse", masks=True)
    run(coarse, tmp_path / "coarse", workers=1, progress=lambda *_: None)
    for name, said in (("none", "no folder"), ("head", "--masks"), ("coarse", "--recipe head")):
        with pytest.raises(SystemExit, match=said):
            soundness.check(tmp_path / name, masks=True)
    soundness.check(tmp_path / "head", masks=False)


def test_lesions_are_filled_and_blanked_and_nothing_else(soundness: ModuleType, place: Path) -> None:
    patients = soundness.load([place], 0)
    mask = torch.from_numpy(patients.classes(0) == CLASSES.index("iph") + 1)
    filled, before = soundness.filled(patients, 0, "iph", 0), patients.codes[0]
    assert torch.equal(filled[~mask], before[~mask])
    blood, brain = (soundness.LEVELS_HU[codes[mask].numpy()] for codes in (before, filled))
    assert np.median(blood) > 45 > np.median(brain) > 15
    blanked = soundness.blanked(patients, 0, 1)
    assert set(soundness.LEVELS_HU[blanked[mask].numpy()].round(-1)) == {soundness.BLANK_HU}
    assert (blanked != before).float().mean() < 0.2


def test_patients_of_another_edition_are_not_drawn_again(soundness: ModuleType, place: Path) -> None:
    cohort = Cohort(place)
    assert soundness.simulation_of(cohort) == SIMULATION
    cohort.about["simulated"] = json.loads(json.dumps(cohort.about["simulated"])) | {"edition": 1}
    with pytest.raises(SystemExit, match="of edition 1 of the generator"):
        soundness.simulation_of(cohort)


def test_a_fracture_of_the_vault_lies_in_the_unfolded_picture(soundness: ModuleType, place: Path) -> None:
    pytest.importorskip("monai")
    fractures = importlib.import_module("fractures")
    cohort = Cohort(place)
    drawn = {one.patient_id: one.patient.findings for number in range(2) for one in SIMULATION.scans(number)}
    for scan_id, patient_id in zip(cohort, cohort.scans["patient_id"], strict=True):
        (fracture,) = (finding for finding in drawn[patient_id] if finding.name == "fracture")
        mask = soundness.classes_of(place, scan_id) == CLASSES.index("fracture") + 1
        picture, marked = fractures.unfolded(cohort.array(scan_id), mask)
        assert picture.shape == (len(fractures.DEPTHS_MM), fractures.PIXELS, fractures.PIXELS)
        assert np.median(picture[2][fractures.DISC]) > 300  # bone all over
        assert marked.any() == (fracture.kind != "base" and mask.any())


def test_twins_are_scored_by_the_same_network(soundness: ModuleType, tmp_path: Path) -> None:
    severity = importlib.import_module("severity")
    net = soundness.Told().eval()
    torch.save(net.state_dict(), tmp_path / "network.pt")
    rows = severity.pair(tmp_path / "network.pt", ("sdh", 3, 0))
    assert [(row["study"], row["sdh"]) for row in rows] == [("with", 1), ("without", 0)]
    assert rows[0]["sdh_score"] != rows[1]["sdh_score"]
    again = next(Simulation(seed=3, twin="sdh").prepared_by(recipes["head"]).scans(0))
    hu = prepare(again.scan, "head").array
    with torch.no_grad():
        expected = net(soundness.cropped(soundness.codes_of(hu))[None])[0, FINDINGS.index("sdh")]
    assert rows[0]["sdh_score"] == pytest.approx(float(expected), abs=1e-4)


def twins_of(soundness: ModuleType, **columns: object) -> pd.DataFrame:
    """Sixty patients with and without, whose columns are given; of all other findings there is nothing."""
    nothing = [f"{soundness.SEVERITY[name]}{which}" for name in soundness.SEVERITY for which in ("", "_without")]
    labels = [f"{name}{which}" for name in soundness.SEVERITY for which in ("", "_without")]
    usual = dict.fromkeys([*nothing, *labels], 0.0) | {"twin": "iph", "oedema": "around others"}
    return pd.DataFrame(usual | columns, index=range(60))


@pytest.mark.parametrize("sign", [1, -1])
def test_more_of_a_finding_that_is_seen_better_correlates(soundness: ModuleType, sign: int) -> None:
    severity = importlib.import_module("severity")
    ml = np.linspace(0, 30, 60)
    head = np.random.default_rng(0).normal(0, 8, 60)  # what differs from patient to patient is the same in both twins
    twins = twins_of(soundness, iph=1, iph_visible_ml=ml, iph_score=head + sign * ml, iph_score_without=head)
    row = severity.row_of(*next(case for case in severity.cases(twins) if case[0] == "iph"))
    assert row["rho"].startswith(f"{sign:.3f}")
    least, most = (float(row[f"AUROC, {name}"].split()[0]) for name in ("least", "most"))
    assert (most - least) * sign > 0.1


def test_thirds_keep_those_together_of_whom_nothing_is_seen(soundness: ModuleType) -> None:
    severity = importlib.import_module("severity")
    ml = np.repeat([0.0, 10.0, 20.0], [30, 15, 15])
    scores = np.where(ml > 0, 1.0, np.tile([0.0, 2.0], 30))  # the halves of those of whom nothing is seen differ
    twins = twins_of(soundness, sdh=1, sdh_visible_ml=ml, sdh_score=scores, sdh_score_without=0.5, twin="sdh")
    row = severity.row_of(*next(case for case in severity.cases(twins) if case[0] == "sdh"))
    assert row["none of it to be seen"] == 30
    assert [row[f"AUROC, {name}"].split()[0] for name in severity.THIRDS] == ["0.500", "1.000", "1.000"]
    few = twins.iloc[: severity.FEWEST - 1]
    assert "rho" not in severity.row_of("sdh", "", few)


def test_what_masses_bring_is_asked_of_those_without_another_mass(soundness: ModuleType) -> None:
    severity = importlib.import_module("severity")
    other = np.arange(60) < 20
    moved = {"midline_shift_mm": 8.0, "midline_shift_mm_without": np.where(other, 3.0, 0.0)}
    of = {name: pairs for name, _, pairs in severity.cases(twins_of(soundness, **moved))}
    assert len(of["midline_shift"]) == 40
    assert not (of["midline_shift"]["midline_shift_mm_without"] > 0).any()
    twins = twins_of(soundness, twin="edema", oedema=np.where(other, "diffuse", "patches"))
    kinds = {kind: len(pairs) for name, kind, pairs in severity.cases(twins) if name == "edema"}
    assert kinds == {"patches": 40, "diffuse": 20, "around others": 0}


def test_scans_of_a_patient_stand_side_by_side() -> None:
    severity = importlib.import_module("severity")
    scans = [{"twin": t, "patient_id": p, "study": s, "iph": s} for t, p, s in product("ab", "12", ("without", "with"))]
    paired = severity.paired(pd.DataFrame(scans[::-1]))
    assert paired[["twin", "patient_id", "iph", "iph_without"]].to_numpy().tolist() == [
        [t, p, "with", "without"] for t, p in product("ab", "12")
    ]


def test_too_few_patients_for_folds_are_told_before_anything_is_read(
    soundness: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "load", None)
    for more, few in (((), "of 2 patients"), (("--no-nuisances", "--fresh", "8"), "of 8 patients")):
        monkeypatch.setattr("sys.argv", ["soundness.py", str(place), "--epochs", "0", *more])
        with pytest.raises(SystemExit, match=f"{few} fewer than 5 have, or lack: .*edh"):
            soundness.main()


def test_findings_that_were_drawn_are_told_by_nothing_else(
    soundness: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by what gives them away, if something does."""
    told = soundness.drawn_of

    def leaking(simulation: Simulation, patients: range) -> dict[str, np.ndarray]:
        edh = [any(found.name == "edh" for found in simulation.patient(index).findings) for index in patients]
        features = told(simulation, patients)
        return features | {"visit": np.column_stack([features["visit"], edh])}

    monkeypatch.setattr(soundness, "drawn_of", leaking)
    soundness.show_drawn(400)
    rows = {line.split()[0]: line.split()[3] for line in capsys.readouterr().out.splitlines()[3:]}
    assert float(rows["edh"]) > 0.95
    assert float(rows["iph"]) < 0.75


def test_what_is_planted_among_nuisances_is_found_and_nothing_else(place: Path) -> None:
    nuisances = importlib.import_module("nuisances")
    features, truth = nuisances.nuisances_of(Cohort(place), 0), nuisances.truth_of(Cohort(place))
    assert set(features) == {"table", "air", "visit", "patient", "all"}
    assert all(len(values) == 2 for values in (*features.values(), *truth.values()))
    assert truth["fracture", "drawn"].tolist() == [1, 1]
    assert nuisances.asked(nuisances.boosted, features["all"], truth["iph", "label"], np.array([True, False])) is None
    rng = np.random.default_rng(0)
    label, x = rng.integers(0, 2, 600).astype(float), rng.normal(size=(600, 5))
    label[:20], tested = np.nan, np.arange(600) % 2 == 0
    _auroc, p = nuisances.asked(nuisances.linear, x, label, tested)
    assert p > 0.01
    x[:, 2] += 0.8 * np.nan_to_num(label)
    auroc, p = nuisances.asked(nuisances.linear, x, label, tested)
    assert p < 1e-3
    assert float(auroc.split()[0]) > 0.55
