"""Detectors on cohorts of painted blocks. Oracles: scikit-learn on the tables that are written, and their splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from detection import made
from sklearn.metrics import confusion_matrix, roc_auc_score

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.cohort import Cohort
from headct.cohort.labels import read_labels
from headct.detection import AdaptSettings, Detector, adapt
from headct.detection.detector import Known
from headct.detection.method import Scans
from headct.detection.reasons import VIRTUAL
from headct.embedding.machine import Machine, choose
from headct.evaluation import EvaluationSettings, evaluate
from headct.evaluation.measurements import SIDES, Measurements, SideConfusion
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.studies import evaluation_predictions
from headct.studies.evaluation import Study, _measurements, evaluate_detectors, points_of, sides
from headct.studies.evaluation_report import mean_of_first, report_of_study
from headct.studies.evaluation_scans import Labelled, labelled_scans, open_detectors

MACHINE = choose("fp32", "cpu")


def on_machine(_: PretrainedEncoder) -> Machine:
    return MACHINE


SETTINGS = EvaluationSettings(draws=100)
LEAF = {"value", "low", "high", "n", "positives", "method"}


@dataclass(frozen=True)
class Place:
    """A folder with cohorts, their labels and detectors that were learned from the first cohort."""

    folder: Path
    encoder: PretrainedEncoder

    def cohort(self, name: str) -> Cohort:
        return Cohort(self.folder / name)

    def labelled(self, detectors: list[str], cohorts: list[str], tables: list[str]) -> Labelled:
        return labelled_scans(
            open_detectors([self.folder / one for one in detectors]),
            [self.cohort(one) for one in cohorts],
            [self.folder / one for one in tables],
        )

    def study(self, out: Path, detectors: list[str], cohorts: list[str], tables: list[str], **more: Any) -> Study:
        return evaluate_detectors(
            open_detectors([self.folder / one for one in detectors]),
            [self.cohort(one) for one in cohorts],
            self.labelled(detectors, cohorts, tables),
            out,
            self.folder / "cache",
            on_machine,
            SETTINGS,
            **more,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`night`, of which a third is kept for a test, and `day` of other patients; detectors `linear` and `knn`."""
    folder = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
    save(
        folder / "model",
        encoders.build("vit-tiny", **shape, pooling="class+mean"),
        Card(recipe=recipes["head"], windows=WINDOWS),
    )
    encoder = load(folder / "model")
    night = made.make(folder / "night", 48, seed=1, noise_hu=20)
    made.truth(night).to_csv(folder / "night.csv", index=False)
    day = made.make(folder / "day", 24, seed=2, noise_hu=40, key=bytes(32), manufacturer="OTHER")
    truth = day.scans[["scan_id", "patient_id"]].copy()
    found = pd.DataFrame([made.labels_of(number) for number in range(24)], index=truth.index)
    truth[["ich", "sdh"]] = found.astype(str)
    truth["sdh_ml"] = np.where(found["sdh"] == 1, np.linspace(0.5, 80, 24), 0).round(2)
    truth.loc[truth.index[:3], "ich"] = ""
    truth.to_csv(folder / "day.csv", index=False)
    labels = read_labels(folder / "night.csv", [night])
    for method in ("linear", "knn"):
        settings = AdaptSettings(method=method, test=0.4)
        adapt([night], labels, encoder, MACHINE, folder / "cache", settings).save(folder / method)
    return Place(folder, encoder)


@pytest.fixture(scope="module")
def two_by_two(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    out = tmp_path_factory.mktemp("out")
    return place.study(out, ["linear", "knn"], ["night", "day"], ["night.csv", "day.csv"]), out


def leaves(tree: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(tree, dict) and tree.keys() >= LEAF:
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value)


def test_numbers_are_those_of_scikit_learn_on_the_tables_beside_them(two_by_two: tuple[Study, Path]) -> None:
    study, out = two_by_two
    told = pd.read_parquet(out / "predictions" / "linear.parquet")
    told = told[(told["finding"] == "ich") & (told["split"] == "test")]
    both = told.merge(pd.read_csv(out / "labels.csv"), on="scan_id").dropna(subset=["ich"])
    finding = study.first.findings["ich"]
    assert finding.estimates["auroc"].value == pytest.approx(roc_auc_score(both["ich"], both["probability"]))
    point = finding.operating_point.threshold
    (tn, fp), (fn, tp) = confusion_matrix(both["ich"], both["probability"] >= point)
    assert finding.estimates["sensitivity"].value == pytest.approx(tp / (tp + fn))
    assert finding.estimates["specificity"].value == pytest.approx(tn / (tn + fp))


def test_thresholds_are_those_of_the_detector(place: Place, two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    detector = Detector.load(place.folder / "linear")
    for name, points in zip(detector.findings, detector.points, strict=True):
        point = study.first.findings[name].operating_point
        assert point.threshold == points["balanced"]
        assert point.origin == "balanced, chosen by linear on its own validation scans"
    with pytest.raises(Misuse, match="no threshold by the rule f1"):
        points_of(study.entries[0], EvaluationSettings(rule="f1"))


def test_patients_that_a_detector_has_seen_are_not_tested(place: Place, two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    splits = pd.read_csv(place.folder / "linear" / "splits.csv")
    seen = set(splits["patient_id"][splits["split"].isin(["train", "validation"])])
    tested = study.labelled.tested
    assert not seen & set(tested["patient_id"])
    assert set(splits["scan_id"][splits["split"] == "test"]) == set(tested["scan_id"][tested["cohort"] == "night"])
    assert (tested["cohort"] == "day").sum() == 24


def test_a_known_patient_in_another_cohort_is_named_and_left_out(place: Place, tmp_path: Path) -> None:
    other = made.make(tmp_path / "other", 48, seed=9)  # patients p000, ... again, other scans
    made.truth(other).to_csv(tmp_path / "other.csv", index=False)
    found = labelled_scans(open_detectors([place.folder / "linear"]), [other], [tmp_path / "other.csv"])
    splits = pd.read_csv(place.folder / "linear" / "splits.csv")
    seen = set(splits["patient_id"][splits["split"] != "test"])
    assert not seen & set(found.tested["patient_id"])
    (note,) = found.notes
    first = min(seen)
    assert note.startswith(f"left out, as linear knows their patients from other scans: {len(seen)} scans, {first} (")


def test_a_patient_that_only_tables_of_labels_name_is_known_again(place: Place, tmp_path: Path) -> None:
    """Files name nobody: one table gives its scans to `old` and `seen`, another gives other files to `seen`, `new`."""
    key = bytes(32)
    home = made.make(tmp_path / "home", 48, noise_hu=20, key=key)
    other = made.make(tmp_path / "other", 96, seed=9, key=key)  # of whom the last 48 have no scan in the first

    def labelled(cohort: Cohort, called: Sequence[str], name: str) -> pd.DataFrame:
        last = len(cohort) - 48
        found = pd.DataFrame([made.labels_of(last + number) for number in range(48)])
        table = found.assign(scan_id=cohort.scans["scan_id"].to_numpy()[last:], patient_id=list(called))
        table.to_csv(tmp_path / name, index=False)
        return table

    of = [f"{'old' if number % 2 else 'seen'}-{number}" for number in range(48)]
    labelled(home, of, "learned.csv")
    labels = read_labels(tmp_path / "learned.csv", [home], key=key)
    settings = AdaptSettings(method="linear", test=0.2)
    adapt([home], labels, place.encoder, MACHINE, tmp_path / "cache", settings).save(tmp_path / "told")
    splits = pd.read_csv(tmp_path / "told" / "splits.csv")
    assert not any(name in splits.to_csv() for name in of)  # pseudonyms alone
    seen = [name for name, part in zip(of, splits["split"], strict=True) if part != "test" and name[:4] == "seen"]
    tested = labelled(other, [*seen, *(f"new-{number}" for number in range(48 - len(seen)))], "tested.csv")
    detectors = open_detectors([tmp_path / "told"])
    found = labelled_scans(detectors, [other], [tmp_path / "tested.csv"], key=key)
    assert 0 < len(seen) < 48
    assert set(found.tested["scan_id"]) == set(tested["scan_id"][len(seen) :])
    half = tested.assign(patient_id=["new-a"] * 24 + ["new-b"] * 24)
    half[::2].to_csv(tmp_path / "even.csv", index=False)
    half[1::2].to_csv(tmp_path / "odd.csv", index=False)
    both = labelled_scans(detectors, [other], [tmp_path / "even.csv", tmp_path / "odd.csv"], key=key)
    assert both.table["patient_id"].nunique() == 2


@pytest.mark.parametrize("hidden", ["detector", "cohort"])
def test_a_patient_is_known_again_where_only_one_side_hides_ids(place: Place, tmp_path: Path, hidden: str) -> None:
    key = bytes(32)
    home = made.make(tmp_path / "home", 48, noise_hu=20, key=key if hidden == "detector" else None)
    other = made.make(tmp_path / "other", 48, seed=9, key=key if hidden == "cohort" else None)
    for cohort, name in ((home, "learned.csv"), (other, "tested.csv")):
        found = pd.DataFrame([made.labels_of(number) for number in range(48)])
        found.assign(scan_id=cohort.scans["scan_id"].to_numpy()).to_csv(tmp_path / name, index=False)
    labels = read_labels(tmp_path / "learned.csv", [home])
    settings = AdaptSettings(method="linear", test=0.4)
    adapt([home], labels, place.encoder, MACHINE, tmp_path / "cache", settings).save(tmp_path / "told")
    detectors = open_detectors([tmp_path / "told"])
    seen = pd.read_csv(tmp_path / "told" / "splits.csv")["split"].to_numpy() != "test"
    with_key = labelled_scans(detectors, [other], [tmp_path / "tested.csv"], key=key)
    assert ((with_key.parts != "test") == seen).all()  # patient i of either cohort is the same
    assert with_key.notes[0].startswith("left out, as told knows their patients from other scans")
    without = labelled_scans(detectors, [other], [tmp_path / "tested.csv"])
    assert (without.parts == "test").all()
    assert "a patient of both is not known, and may be tested" in without.notes[0]
    (strange,) = labelled_scans(detectors, [other], [tmp_path / "tested.csv"], key=b"another").notes
    assert strange == without.notes[0]


def test_nothing_left_to_test_is_said(place: Place, tmp_path: Path) -> None:
    splits = pd.read_csv(place.folder / "linear" / "splits.csv")
    table = pd.read_csv(place.folder / "night.csv")
    table[table["scan_id"].isin(splits["scan_id"][splits["split"] == "train"])].to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(Failure, match=r"no labelled scan is left to test: all .* linear learned from"):
        labelled_scans(open_detectors([place.folder / "linear"]), [place.cohort("night")], [tmp_path / "l.csv"])


def test_a_patient_whose_name_looks_like_nothing_is_known(place: Place, tmp_path: Path) -> None:
    """`NA` is an id, and no empty cell."""
    for name in ("linear", "model"):
        shutil.copytree(place.folder / name, tmp_path / name)
    path = tmp_path / "linear" / "splits.csv"
    splits = pd.read_csv(path)
    learned = splits["split"] == "train"
    called = splits["patient_id"][learned].iloc[0]
    splits.assign(scan_id="other", patient_id=splits["patient_id"].replace(called, "NA")).to_csv(path, index=False)
    (entry,) = open_detectors([tmp_path / "linear"])
    assert entry.splits is not None
    assert "NA" in set(entry.splits["patient_id"])


def test_a_detector_without_splits_fails_a_check(place: Place, tmp_path: Path) -> None:
    study = place.study(tmp_path / "a", ["linear"], ["day"], ["day.csv"], beside=False)
    assert all(check.passed for check in report_of_study(study, files={}, examples=False).checks)
    shutil.copytree(place.folder / "linear", tmp_path / "bare")
    (tmp_path / "bare" / "splits.csv").unlink()
    shutil.copytree(place.folder / "model", tmp_path / "model")
    entries = open_detectors([tmp_path / "bare"], str(tmp_path / "model"))
    found = labelled_scans(entries, [place.cohort("day")], [place.folder / "day.csv"])
    assert "bare has no splits.csv beside it" in found.notes[0]


def test_scans_that_a_detector_learned_from_are_known_whatever_their_patients_are_called_now(place: Place) -> None:
    """The labels that it learned from may have joined scans under another name: by that alone all would be tested."""
    (entry,) = open_detectors([place.folder / "linear"])
    assert entry.splits is not None
    renamed = replace(entry, splits=entry.splits.assign(patient_id="z" + entry.splits["patient_id"]))
    of_two = [labelled_scans([one], [place.cohort("night")], [place.folder / "night.csv"]) for one in (entry, renamed)]
    assert set(of_two[0].parts) == {"train", "validation", "test"}
    assert of_two[1].parts.tolist() == of_two[0].parts.tolist()


def test_the_same_scan_of_two_patients_ends_it(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array_of = made.array_of
    monkeypatch.setattr(made, "array_of", lambda number, *rest: array_of(0 if number == 4 else number, *rest))
    copied = made.make(tmp_path / "copied", 24, seed=5, key=bytes(32))
    truth = copied.scans[["scan_id"]].assign(ich=[number % 2 for number in range(24)])
    truth.to_csv(tmp_path / "l.csv", index=False)
    entries = open_detectors([place.folder / "linear"])
    labelled = labelled_scans(entries, [copied], [tmp_path / "l.csv"])
    with pytest.raises(
        Failure, match=r"1 pairs of scans of different patients have the same vector: 0{7}50{8} and 0{7}50{7}4"
    ):
        evaluate_detectors(entries, [copied], labelled, tmp_path, tmp_path / "cache", on_machine, SETTINGS)


def test_labels_of_another_cohort_are_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("patient_id,ich\nq1,1\nq2,0\n")
    with pytest.raises(Misuse, match=r"other\.csv matches no scan of the cohort"):
        labelled_scans(open_detectors([place.folder / "linear"]), [place.cohort("day")], [tmp_path / "other.csv"])
    with pytest.raises(Misuse, match=r"several tables label the same scans: .*\n  why: they are in .*day\.csv, "):
        place.labelled(["linear"], ["day"], ["day.csv", "day.csv"])


def test_tables_of_one_name_are_told_apart_by_their_paths(place: Place, tmp_path: Path) -> None:
    truth = pd.read_csv(place.folder / "day.csv")
    tables = [tmp_path / folder / "labels.csv" for folder in ("a", "b")]
    for rows, table in enumerate(tables):
        table.parent.mkdir()
        truth[rows::2].to_csv(table, index=False)
    entries, cohorts = open_detectors([place.folder / "linear"]), [place.cohort("day")]
    assert [one.table for one in labelled_scans(entries, cohorts, tables).accounts] == list(map(str, tables))
    tables[1].rename(tmp_path / "b.csv")
    found = labelled_scans(entries, cohorts, [tables[0], tmp_path / "b.csv"]).accounts
    assert [one.table for one in found] == ["labels.csv", "b.csv"]


def test_findings_that_are_called_otherwise_are_refused(place: Place, tmp_path: Path) -> None:
    table = pd.read_csv(place.folder / "day.csv").rename(columns={"ich": "bleed", "sdh": "subdural"})
    table.to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(Misuse, match="none of the findings that linear detects: ich, sdh"):
        labelled_scans(open_detectors([place.folder / "linear"]), [place.cohort("day")], [tmp_path / "l.csv"])


def test_a_detector_of_which_nothing_is_labelled_is_named(place: Place, tmp_path: Path) -> None:
    night = place.cohort("night")
    pd.read_csv(place.folder / "night.csv").rename(columns={"sdh": "tumor"}).to_csv(tmp_path / "t.csv", index=False)
    labels = read_labels(tmp_path / "t.csv", [night], findings=["tumor"])
    settings = AdaptSettings(method="linear", test=0.4)
    adapt([night], labels, place.encoder, MACHINE, place.folder / "cache", settings).save(tmp_path / "other")
    entries = open_detectors([place.folder / "linear", tmp_path / "other"], str(place.folder / "model"))
    pd.read_csv(place.folder / "day.csv")[["scan_id", "ich"]].to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(Misuse, match="none of the findings that other detects: tumor") as caught:
        labelled_scans(entries, [place.cohort("day")], [tmp_path / "l.csv"])
    assert caught.value.why == "they have ich"


def test_scans_are_grouped_by_what_tables_of_labels_say(place: Place, tmp_path: Path) -> None:
    """A column of theirs alone, and ages that the cohort does not know."""
    table = pd.read_csv(place.folder / "day.csv", dtype=str)
    half = ["east"] * 12 + ["west"] * 12
    table.assign(ward=half, age=["", *["50"] * 11, *["70"] * 12]).to_csv(tmp_path / "l.csv", index=False)
    entries, day = open_detectors([place.folder / "linear"]), place.cohort("day")
    found = labelled_scans(entries, [day], [tmp_path / "l.csv"], groups=["ward", "age"])
    assert day.scans["age"].isna().all()
    assert "age of 23 scans is from the labels, as no cohort says it" in found.notes
    settings = replace(SETTINGS, groups=("ward", "age"))
    study = evaluate_detectors(
        entries, [day], found, tmp_path / "out", place.folder / "cache", on_machine, settings, beside=False
    )
    of = {(one.column, one.group): one.scans for one in study.first.findings["sdh"].subgroups}
    assert of["ward", "east"] == of["ward", "west"] == of["age", "65 to < 80"] == 12
    assert of["age", "40 to < 65"] == 11
    assert pd.read_csv(tmp_path / "out" / "labels.csv")["ward"].tolist() == half


def test_labels_may_measure_what_cohorts_say_too(place: Place, tmp_path: Path) -> None:
    """`thickness_mm` is a column of the cohort and looks like a measurement; `cohort` is the name of the folder."""
    table = pd.read_csv(place.folder / "day.csv", dtype=str)
    table.assign(thickness_mm=9.0, cohort="other").to_csv(tmp_path / "l.csv", index=False)
    entries, day = open_detectors([place.folder / "linear"]), place.cohort("day")
    found = labelled_scans(entries, [day], [tmp_path / "l.csv"], groups=["cohort"])
    assert found.table["thickness_mm"].tolist() == day.scans["thickness_mm"].tolist()
    assert set(found.table["cohort"]) == {"day"}
    assert "cohort is the name of the folder; the column of the labels is not used" in found.notes
    study = evaluate_detectors(
        entries, [day], found, tmp_path / "out", place.folder / "cache", on_machine, SETTINGS, beside=False
    )
    assert report_of_study(study, files={}).page().html()


def test_virtual_patients_learned_from_beside_others_are_mistaken_for_nobody(place: Place, tmp_path: Path) -> None:
    key = bytes(32)
    home = made.make(tmp_path / "home", 24, seed=7, noise_hu=20, key=key)
    virtual = made.make(tmp_path / "virtual", 24, seed=8, noise_hu=20, virtual=True)
    scans = pd.concat([one.scans["scan_id"] for one in (home, virtual)], ignore_index=True)
    found = pd.DataFrame([made.labels_of(number) for number in range(48)])
    found.assign(scan_id=scans).to_csv(tmp_path / "learned.csv", index=False)
    labels = read_labels(tmp_path / "learned.csv", [home, virtual], key=key)
    settings = AdaptSettings(method="linear", test=0.2)
    adapt([home, virtual], labels, place.encoder, MACHINE, tmp_path / "cache", settings).save(tmp_path / "both")
    detectors = open_detectors([tmp_path / "both"])
    assert detectors[0].pseudonyms == (home.about["pseudonyms"],)
    tested = labelled_scans(detectors, [place.cohort("day")], [place.folder / "day.csv"], key=key)
    assert not any("may be tested" in note for note in tested.notes)


def test_predictions_of_a_detector_of_virtual_patients_say_so(place: Place, tmp_path: Path) -> None:
    (entry,) = open_detectors([place.folder / "linear"])
    record = {**entry.detector.record, "virtual": True}
    entry = replace(entry, detector=replace(entry.detector, record=record))
    says = []
    for virtual in (False, True):
        cohort = made.make(tmp_path / f"{virtual}", 24, seed=6, virtual=virtual)
        made.truth(cohort).to_csv(tmp_path / "l.csv", index=False)
        labelled = labelled_scans([entry], [cohort], [tmp_path / "l.csv"])
        vectors = evaluation_predictions.Vectors([cohort], labelled.scan_ids, tmp_path / "cache")
        out = tmp_path / f"{virtual}.parquet"
        table = evaluation_predictions.predicted(entry, labelled, vectors, MACHINE, out)
        says.append({VIRTUAL in reasons for reasons in table["reasons"]})
    assert says == [{True}, {False}]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (slice(0, 3), "sdh: of 3 scans of known label, 1 patients with the finding, 2 without"),
        (slice(0, 24, 4), "ich: of 6 scans of known label, all 6 known labels are 0"),
    ],
)
def test_too_few_patients_or_a_single_class_end_it(place: Place, tmp_path: Path, rows: slice, why: str) -> None:
    table = pd.read_csv(place.folder / "day.csv", dtype=str).iloc[rows]
    table["ich"] = table["ich"].fillna("0")
    table.to_csv(tmp_path / "l.csv", index=False)
    entries = open_detectors([place.folder / "linear"])
    labelled = labelled_scans(entries, [place.cohort("day")], [tmp_path / "l.csv"])
    with pytest.raises(Failure, match="no finding can be evaluated") as caught:
        evaluate_detectors(
            entries, [place.cohort("day")], labelled, tmp_path, place.folder / "cache", on_machine, SETTINGS
        )
    assert why in caught.value.why


def test_labels_that_are_all_unknown_end_it(place: Place, tmp_path: Path) -> None:
    table = pd.read_csv(place.folder / "day.csv", dtype=str)
    table[["ich", "sdh"]], table["other"] = "", "1"
    table.to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises((Failure, Misuse), match="ich"):
        labelled_scans(open_detectors([place.folder / "linear"]), [place.cohort("day")], [tmp_path / "l.csv"])


def test_baselines_stand_beside_and_all_are_compared(two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    assert set(study.baselines) == {"histogram probe", "random encoder"}
    pairs = {(pair.first, pair.second) for pair in study.pairs}
    assert pairs == {("linear", "knn"), ("linear", "histogram probe"), ("linear", "random encoder")}
    assert len(study.pairs) == 6
    assert all(pair.auroc.corrected >= pair.auroc.p for pair in study.pairs)


def test_without_the_scans_it_learned_from_there_are_no_baselines_and_it_is_said(place: Place, tmp_path: Path) -> None:
    study = place.study(tmp_path, ["linear"], ["day"], ["day.csv"])
    assert study.baselines == {}
    assert any(
        note.startswith("no baselines beside linear: the scans that linear learned from") for note in study.first.notes
    )


def test_transfer_is_by_detector_and_cohort(two_by_two: tuple[Study, Path]) -> None:
    study, out = two_by_two
    matrix = {one.finding: one for one in study.transfer}["sdh"]
    assert set(matrix.cells) == {(a, b) for a in ("linear", "knn") for b in ("night", "day")}
    told = pd.read_parquet(out / "predictions" / "knn.parquet")
    told = told[(told["finding"] == "sdh") & (told["split"] == "test")]
    both = told.merge(pd.read_csv(out / "labels.csv"), on="scan_id")
    both = both[both["cohort"] == "day"]
    wanted = roc_auc_score(both["sdh"], both["probability"])
    assert matrix.cells["knn", "day"].area.value == pytest.approx(wanted)


def test_one_detector_is_called_by_its_home(place: Place, tmp_path: Path) -> None:
    study = place.study(tmp_path, ["linear"], ["night", "day"], ["night.csv", "day.csv"], beside=False)
    assert study.rows == {"linear": "night"}
    assert study.transfer[0].cells["night", "day"].drop is not None


def test_a_detector_that_is_called_like_a_cohort_has_a_row_of_its_own(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "knn", tmp_path / "day")
    shutil.copytree(place.folder / "model", tmp_path / "model")
    detectors = [str(place.folder / "linear"), str(tmp_path / "day")]
    study = place.study(tmp_path / "out", detectors, ["night", "day"], ["night.csv", "day.csv"], beside=False)
    assert study.rows == {"linear": "linear", "day": "detector day"}
    assert set(study.transfer[0].cells) == {(a, b) for a in ("linear", "detector day") for b in ("night", "day")}


def test_a_row_of_the_first_detector_is_over_what_it_can_test_itself(two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    less = [replace(study.transfer[0], cells={k: c for k, c in study.transfer[0].cells.items() if k[0] != "knn"})]
    fewer = replace(study, transfer=[*less, *study.transfer[1:]])
    assert fewer.mean_transfer.findings == study.mean_transfer.findings[1:]
    assert mean_of_first(fewer).findings == study.mean_transfer.findings


def test_few_that_were_learned_from_leave_baselines_no_disadvantage(place: Place) -> None:
    (entry,) = open_detectors([place.folder / "linear"])
    drawn = pd.DataFrame({"scan_id": ["a", "b", "b"], "finding": ["ich", "ich", "sdh"]})
    few = replace(entry, shots=drawn)
    assert evaluation_predictions._disadvantage(few, 2) == ""
    assert "learned from 1 of the 2 scans" in evaluation_predictions._disadvantage(few, 1)
    assert evaluation_predictions._disadvantage(entry, 2) != ""


def test_every_number_of_the_tree_is_whole_and_on_the_page(two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    tree = json.loads(json.dumps(study.tree(), allow_nan=False))
    found = list(leaves(tree))
    assert len(found) > 100
    assert all(leaf["method"] for leaf in found)
    assert all(leaf["n"] > 0 and leaf["positives"] >= 0 for leaf in found)
    assert {"auroc", "average_precision", "sensitivity", "specificity", "f1", "balanced_accuracy", "ppv", "npv",
            "brier", "ece"} <= set(tree["findings"]["ich"])  # fmt: skip
    html = report_of_study(study, files={"night.csv": study.cohorts[0].path.parent / "night.csv"}).page().html()
    for finding in tree["findings"].values():
        for key in ("auroc", "sensitivity", "brier"):
            leaf = finding[key]
            assert f"{leaf['value']:.3f} ({leaf['low']:.3f} to {leaf['high']:.3f})" in html
    assert tree["transfer"]["ich"].keys() == {"linear", "knn"}
    for words in ("Cohort by cohort", "Flow of scans", "kept out:", "random encoder",
                  "volume (ml)", "Hits and misses", "manufacturer"):  # fmt: skip
        assert words in html
    assert "Every patient on this page is virtual" not in html
    row = study.rows[study.entries[0].name]
    found = mean_of_first(study)
    assert found is not None
    for (_, place), mean in found.areas.items():
        cells = [matrix.cells[row, place].area.value for matrix in study.transfer if (row, place) in matrix.cells]
        assert mean.value == pytest.approx(np.mean(cells))
        assert mean.low < mean.value or mean.value == 1
        assert f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}) on {place}" in html


def test_a_page_claims_no_more_than_is_known_of_its_detectors(two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    record = report_of_study(study, files={}, examples=False).record
    assert record["disjoint"].startswith("By patient, checked by identifier; among the scans of these cohorts")
    assert record["internal"].endswith("of night, which scans of training or validation came from too.")
    assert record["external"].endswith("whether that is another site, the author knows.")
    silent = replace(study, entries=[replace(study.entries[0], splits=None), *study.entries[1:]])
    for key in ("disjoint", "partitions"):
        assert (
            "as far as is known (no splits.csv beside linear)"
            in report_of_study(silent, files={}, examples=False).record[key]
        )


def test_the_flow_adds_up(two_by_two: tuple[Study, Path]) -> None:
    study, _ = two_by_two
    flow = report_of_study(study, files={}, examples=False).flow
    assert sum(flow.splits.values()) == flow.stages[-1].count == 72
    for one in flow.findings:
        assert one.positive + one.negative + one.unknown == flow.splits["test"]


def test_what_was_predicted_is_taken_again(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.study(tmp_path, ["linear"], ["day"], ["day.csv"], beside=False)

    def never(*_: object) -> None:
        raise AssertionError("predicted again")

    monkeypatch.setattr(evaluation_predictions, "_write", never)
    second = place.study(tmp_path, ["linear"], ["day"], ["day.csv"], beside=False)
    assert json.dumps(first.tree()) == json.dumps(second.tree())


def test_a_killed_evaluation_predicts_the_rest(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained network looks at every scan again, which takes as long as all before."""
    monkeypatch.setattr(evaluation_predictions, "KEPT_SCANS", 10)
    (entry,), day = open_detectors([place.folder / "linear"]), place.cohort("day")
    labelled = place.labelled(["linear"], ["day"], ["day.csv"])
    vectors = evaluation_predictions.Vectors([day], labelled.scan_ids, place.folder / "cache")
    whole = evaluation_predictions.predicted(entry, labelled, vectors, MACHINE, tmp_path / "whole.parquet")
    seen: list[int] = []
    rows = Detector.rows

    def killed_after(most: int) -> None:
        def cut(self: Detector, scans: Scans, known: list[Known]) -> list[list[dict[str, Any]]]:
            if len(seen) == most:
                raise KeyboardInterrupt
            seen.append(len(scans))
            return rows(self, scans, known)

        monkeypatch.setattr(Detector, "rows", cut)

    killed_after(2)
    with pytest.raises(KeyboardInterrupt):
        evaluation_predictions.predicted(entry, labelled, vectors, MACHINE, tmp_path / "p.parquet")
    seen.clear()
    killed_after(99)
    again = evaluation_predictions.predicted(entry, labelled, vectors, MACHINE, tmp_path / "p.parquet")
    assert sum(seen) == len(day) - 20
    pd.testing.assert_frame_equal(again, whole)
    (tmp_path / "p.parquet").unlink()
    seen.clear()
    killed_after(1)
    with pytest.raises(KeyboardInterrupt):
        evaluation_predictions.predicted(entry, labelled, vectors, MACHINE, tmp_path / "p.parquet")
    other = replace(labelled, parts=np.full(len(labelled.parts), "train", dtype=object))
    killed_after(99)
    told = evaluation_predictions.predicted(entry, other, vectors, MACHINE, tmp_path / "p.parquet")
    assert set(told["split"]) == {"train"}  # begun anew: what was kept was of other labels
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "whole.parquet"]


def test_a_cohort_that_no_label_names_is_not_said_to_be_tested(place: Place, tmp_path: Path) -> None:
    study = place.study(tmp_path, ["linear"], ["night", "day"], ["night.csv"], beside=False)
    assert "no scan of day is tested: no label names one, or all are of patients that a detector knows" in study.notes
    assert report_of_study(study, files={}, examples=False).title == "linear on night"


def test_a_detector_beside_its_own_copy_is_told(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "linear", tmp_path / "copy")
    entries = open_detectors([place.folder / "linear", tmp_path / "copy"], str(place.folder / "model"))
    day = place.cohort("day")
    found = labelled_scans(entries, [day], [place.folder / "day.csv"])
    study = evaluate_detectors(
        entries, [day], found, tmp_path / "out", place.folder / "cache", on_machine, SETTINGS, beside=False
    )
    assert "linear and copy say the same of every scan, as if they were one detector" in study.notes


def test_each_detector_runs_where_its_encoder_can(place: Place, tmp_path: Path) -> None:
    entries, day = open_detectors([place.folder / "linear", place.folder / "knn"]), place.cohort("day")
    found = labelled_scans(entries, [day], [place.folder / "day.csv"])
    machines = iter([MACHINE, replace(MACHINE, why="as a graph does")])
    study = evaluate_detectors(
        entries, [day], found, tmp_path, place.folder / "cache", lambda _: next(machines), SETTINGS, beside=False
    )
    assert [one.why for one in study.machines.values()] == [MACHINE.why, "as a graph does"]
    assert study.machine is study.machines["linear"]


def test_what_was_predicted_of_other_arrays_under_the_same_names_is_not_taken(place: Place, tmp_path: Path) -> None:
    """A cohort that was ingested again holds other arrays under the ids it had."""
    says = []
    for number, noise_hu in enumerate((40, 0)):
        cohort = made.make(tmp_path / f"{number}" / "day", 24, seed=2, noise_hu=noise_hu)
        made.truth(cohort).to_csv(tmp_path / "day.csv", index=False)
        entries = open_detectors([place.folder / "linear"])
        labelled = labelled_scans(entries, [cohort], [tmp_path / "day.csv"])
        vectors = evaluation_predictions.Vectors([cohort], labelled.scan_ids, tmp_path / f"{number}" / "cache")
        says.append(evaluation_predictions.predicted(entries[0], labelled, vectors, MACHINE, tmp_path / "p.parquet"))
    assert says[0]["scan_id"].tolist() == says[1]["scan_id"].tolist()
    assert (says[0]["probability"] != says[1]["probability"]).any()


def test_predictions_are_those_of_the_detector(place: Place, two_by_two: tuple[Study, Path]) -> None:
    _, out = two_by_two
    table = pd.read_parquet(out / "predictions" / "linear.parquet").set_index(["scan_id", "finding"])
    wanted = Detector.load(place.folder / "linear").predict([place.folder / "day"]).set_index(["scan_id", "finding"])
    both = table.join(wanted.add_suffix(" wanted"), how="inner")
    assert len(both) == 48
    for name in ("probability", "low", "high", "ood"):
        np.testing.assert_allclose(both[name], both[f"{name} wanted"], atol=1e-4)
    assert both["reasons"].map(list).tolist() == both["reasons wanted"].map(list).tolist()
    assert any("scanner of OTHER" in reason for reasons in both["reasons"] for reason in reasons)


def test_sides_are_told_from_findings_on_either_side() -> None:
    rng = np.random.default_rng(0)
    number = 60
    labels = pd.DataFrame({"scan_id": [f"s{n}" for n in range(number)], "patient_id": [f"p{n}" for n in range(number)]})
    labels["sdh_left"], labels["sdh_right"] = np.arange(number) % 2, (np.arange(number) // 2) % 2
    told = pd.concat(
        [
            labels[["scan_id"]].assign(
                finding=name, probability=np.clip(labels[name] + rng.normal(0, 0.1, number), 0, 1)
            )
            for name in ("sdh_left", "sdh_right")
        ]
    )
    evaluation = evaluate(told, labels, SETTINGS)
    said, truth = sides(evaluation)
    assert said["sdh_side"].tolist() == truth["sdh_side"].tolist()
    assert truth["sdh_side"].tolist()[:4] == ["none", "left", "right", "both"]
    own = SideConfusion(SIDES, np.zeros((4, 4)), evaluation.findings["sdh_left"].estimates["auroc"], None)
    kept = _measurements(evaluation, labels, Measurements({}, {"sdh_side": own}))
    assert kept.sides["sdh_side"] is own
    assert kept.notes == ("sdh_side is as it was measured, not as the detector told it",)
    assert _measurements(evaluation, labels, None).sides["sdh_side"].right.value == 1
