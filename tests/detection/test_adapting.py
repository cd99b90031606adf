"""From labels to a detector: what comes out, who is learned from, and what cannot be done, said in clear words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from detection import made
from sklearn.metrics import roc_auc_score

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.labels import Labels, read_labels
from headct.detection import Adapted, AdaptSettings, adapt
from headct.detection.scans import scans_of
from headct.embedding import embed
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes

MACHINE = choose("fp32", "cpu")


def labels_from(table: pd.DataFrame, cohort: Cohort, folder: Path) -> Labels:
    table.to_csv(folder / "own.csv", index=False)
    return read_labels(folder / "own.csv", [cohort])


def test_findings_that_are_there_are_found_on_new_patients(
    adapted: Adapted, encoder: PretrainedEncoder, tmp_path: Path
) -> None:
    other = made.make(tmp_path / "other", 24, seed=7)
    predicted = adapted.detector.predict(other)
    truth = made.truth(other).set_index("scan_id")
    for finding, rows in predicted.groupby("finding"):
        assert roc_auc_score(truth.loc[rows["scan_id"], finding], rows["probability"]) > 0.95
        assert ((rows["low"] <= rows["probability"]) & (rows["probability"] <= rows["high"])).all()
    assert [row["finding"] for row in adapted.rows] == ["ich", "sdh"]


def test_the_record_tells_the_whole_way(adapted: Adapted, cohort: Cohort) -> None:
    record = adapted.detector.record
    assert record["labels"]["column"] == "scan_id"
    assert record["splits"] == {"train": 72, "validation": 24, "test": 0}
    assert record["findings"][0] == adapted.rows[0]
    splits = adapted.tables["splits"].merge(cohort.scans[["scan_id", "patient_id"]])
    assert len(splits) == len(cohort)
    assert (splits.groupby("patient_id")["split"].nunique() == 1).all()


def test_vectors_are_those_of_embedding_and_computed_once(
    cohort: Cohort, encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = cohort.scans["scan_id"].tolist()[5:1:-1]
    first = scans_of([cohort], ids, encoder, MACHINE, tmp_path / "cache")
    rows = np.arange(4)
    wanted = embed(cohort, encoder, device="cpu")
    of = {scan_id: row for row, scan_id in enumerate(wanted.table["scan_id"])}
    np.testing.assert_allclose(first.vectors(rows), wanted.vectors[[of[one] for one in ids]], atol=1e-5)
    np.testing.assert_array_equal(first.arrays(rows[:1])[0], cohort.array(ids[0]))
    np.testing.assert_allclose(first.spacing_mm(rows), 4.0)

    def never(*args: object, **options: object) -> None:
        raise AssertionError("a scan was embedded again")

    monkeypatch.setattr(PretrainedEncoder, "see", never)
    again = scans_of([cohort], ids, encoder, MACHINE, tmp_path / "cache")
    np.testing.assert_array_equal(again.vectors(rows), first.vectors(rows))


def test_shots_leave_few_labels_in_training_and_are_written(
    cohort: Cohort, labels: Labels, encoder: PretrainedEncoder, cache: Path
) -> None:
    found = adapt([cohort], labels, encoder, MACHINE, cache, AdaptSettings(method="linear", shots=4))
    assert [(row["train_with"], row["train_without"]) for row in found.rows] == [(4, 4), (4, 4)]
    assert [(row["validation_with"], row["validation_without"]) for row in found.rows] == [(12, 12), (12, 12)]
    ids = labels.values.index.tolist()
    drawn = scans_of([cohort], ids, encoder, MACHINE, cache).vectors(
        np.flatnonzero(np.isin(ids, found.tables["shots"]["scan_id"]))
    )
    np.testing.assert_allclose(found.detector.familiar.scaling.mean, drawn.mean(axis=0), rtol=1e-5, atol=1e-6)
    shots = found.tables["shots"]
    assert len(shots) == 2 * 8
    part = found.tables["splits"].set_index("scan_id")["split"]
    assert set(part.loc[shots["scan_id"]]) == {"train"}
    with pytest.raises(Misuse, match="40 shots cannot be drawn: ich: K = 40 not drawn, of 18 patients with it"):
        adapt([cohort], labels, encoder, MACHINE, cache, AdaptSettings(method="linear", shots=40))


def test_a_finding_of_too_few_for_the_shots_is_left_out_and_said_unless_it_was_asked_for(
    cohort: Cohort, encoder: PretrainedEncoder, cache: Path, tmp_path: Path
) -> None:
    table = made.truth(cohort).assign(edh=0)
    table.loc[:15, "edh"] = 1  # eight patients, of whom at most six are for training
    labels, settings = labels_from(table, cohort, tmp_path), AdaptSettings(method="linear", shots=8)
    found = adapt([cohort], labels, encoder, MACHINE, cache, settings)
    assert found.detector.findings == ("ich", "sdh")
    assert [(row["train_with"], row["train_without"]) for row in found.rows] == [(8, 8), (8, 8)]
    assert set(found.tables["shots"]["finding"]) == {"ich", "sdh"}
    assert found.notes == ["edh is left out: K = 8 not drawn, of 6 patients with it and 30 without"]
    assert found.notes[0] in found.detector.record["sentences"]
    with pytest.raises(Misuse, match="8 shots cannot be drawn: edh: K = 8 not drawn"):
        adapt([cohort], labels, encoder, MACHINE, cache, settings, required=["edh"])


def test_too_few_patients_to_say_much_are_told_after_the_test_is_taken_away(
    cohort: Cohort, encoder: PretrainedEncoder, cache: Path, tmp_path: Path
) -> None:
    table = made.truth(cohort).assign(edh=0)
    table.loc[:15, "edh"] = 1  # eight patients
    labels, settings = labels_from(table, cohort, tmp_path), AdaptSettings(method="linear", test=0.4)
    found = adapt([cohort], labels, encoder, MACHINE, cache, settings)
    (training, validation) = found.notes
    assert training.startswith("edh: training has 3 patients with the finding, ")
    assert validation.startswith("edh: validation has 2 patients with the finding, ")
    row = next(row for row in found.rows if row["finding"] == "edh")
    assert row["validation_auroc_high"] - row["validation_auroc_low"] > 0.3
    assert row["validation_auroc_low"] <= row["validation_auroc"] <= row["validation_auroc_high"]


def test_splits_of_the_user_are_kept(
    cohort: Cohort, labels: Labels, encoder: PretrainedEncoder, cache: Path, tmp_path: Path
) -> None:
    patients = sorted(set(cohort.scans["patient_id"]))
    parts = ["train"] * 30 + ["validation"] * 10 + ["test"] * 4
    pd.DataFrame({"patient_id": patients[:44], "split": parts}).to_csv(tmp_path / "s.csv", index=False)
    settings = AdaptSettings(method="linear")
    found = adapt([cohort], labels, encoder, MACHINE, cache, settings, splits=tmp_path / "s.csv")
    assert found.detector.record["splits"] == {"train": 60, "validation": 20, "test": 8}
    assert "left out, for they are in no split: 8 labelled scans" in found.detector.record["sentences"]
    for more in ({"test": 0.2}, {"validation": 0.3}):
        with pytest.raises(Misuse, match=r"s\.csv says who is in which part"):
            adapt([cohort], labels, encoder, MACHINE, cache, replace(settings, **more), splits=tmp_path / "s.csv")
    rows = cohort.scans[["scan_id"]].assign(split=["train", "validation"] * 48)
    rows.to_csv(tmp_path / "torn.csv", index=False)
    with pytest.raises(Misuse, match="has patients in several splits: p000 \\(train, validation\\)"):
        adapt([cohort], labels, encoder, MACHINE, cache, settings, splits=tmp_path / "torn.csv")


def test_one_scan_of_two_patients_ends_it_unless_the_labels_make_them_one(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned from and validated on under two names, it would make the numbers too good; `headct evaluate` ends too."""
    array_of = made.array_of
    monkeypatch.setattr(made, "array_of", lambda number, *rest: array_of(0 if number == 4 else number, *rest))
    cohort = made.make(tmp_path / "copied", 24)
    truth, settings = made.truth(cohort), AdaptSettings(method="linear")
    alike = rf"1 pairs of scans of different patients have the same vector: {truth['scan_id'][0]} and"
    with pytest.raises(Failure, match=alike) as failure:
        adapt([cohort], labels_from(truth, cohort, tmp_path), encoder, MACHINE, tmp_path / "cache", settings)
    assert truth["scan_id"][4] in str(failure.value)
    assert "give both the same patient_id" in str(failure.value)
    one = truth.assign(patient_id=truth["patient_id"].replace("p004", "p000"))
    found = adapt([cohort], labels_from(one, cohort, tmp_path), encoder, MACHINE, tmp_path / "cache", settings)
    part = found.tables["splits"].set_index("scan_id")["split"]
    assert part[truth["scan_id"][0]] == part[truth["scan_id"][4]]


def test_unknown_labels_teach_nothing(cohort: Cohort, encoder: PretrainedEncoder, cache: Path, tmp_path: Path) -> None:
    table = made.truth(cohort)
    table.loc[::3, "ich"] = np.nan
    found = adapt(
        [cohort], labels_from(table, cohort, tmp_path), encoder, MACHINE, cache, AdaptSettings(method="linear")
    )
    known = sum(found.rows[0][f"{part}_{kind}"] for part in ("train", "validation") for kind in ("with", "without"))
    assert known == table["ich"].notna().sum()


def test_what_stands_in_the_users_table_is_not_given_away_with_the_detector(
    cohort: Cohort, encoder: PretrainedEncoder, cache: Path, tmp_path: Path
) -> None:
    table = made.truth(cohort).assign(name="Doe (Jane): 1960")
    table.loc[len(table)] = {"scan_id": "MRN-4711 (old): 3", "ich": 1, "sdh": 0, "name": "Roe"}
    labels = labels_from(table, cohort, tmp_path)
    assert "MRN-4711" in " ".join(labels.account.sentences())  # the user is told
    found = adapt([cohort], labels, encoder, MACHINE, cache, AdaptSettings(method="linear"))
    sentences = found.detector.record["sentences"]
    assert "1 row without a match: row 98: no such scan_id in the cohort" in sentences
    assert "no finding (row 2 holds no label): name" in sentences
    for file in found.save(tmp_path / "detector").iterdir():
        assert not any(word in file.read_bytes() for word in (b"4711", b"Doe", b"Roe")), file.name


def test_a_finding_that_cannot_be_learned_is_left_out_and_said_unless_it_was_asked_for(
    cohort: Cohort, encoder: PretrainedEncoder, cache: Path, tmp_path: Path
) -> None:
    table = made.truth(cohort).assign(edh=0)
    table.loc[:3, "edh"] = 1  # two patients
    labels = labels_from(table, cohort, tmp_path)
    settings = AdaptSettings(method="linear")
    found = adapt([cohort], labels, encoder, MACHINE, cache, settings)
    assert found.detector.findings == ("ich", "sdh")
    assert found.notes == ["edh is left out: 2 patients with it, 46 without"]
    with pytest.raises(Misuse, match="edh has too few patients: 2 patients with it, 46 without"):
        adapt([cohort], labels, encoder, MACHINE, cache, settings, required=["edh"])


def test_a_single_class_is_an_error(cohort: Cohort, encoder: PretrainedEncoder, cache: Path, tmp_path: Path) -> None:
    table = made.truth(cohort)[["scan_id"]].assign(ich=1)
    with pytest.raises(Misuse, match="ich has a single class: 48 patients with it, 0 without"):
        adapt([cohort], labels_from(table, cohort, tmp_path), encoder, MACHINE, cache, AdaptSettings())


def test_three_patients_are_too_few(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    cohort = made.make(tmp_path / "three", 3)
    labels = labels_from(made.truth(cohort), cohort, tmp_path)
    with pytest.raises(Misuse, match="3 labelled patients are too few to learn from and to validate on"):
        adapt([cohort], labels, encoder, MACHINE, tmp_path / "cache", AdaptSettings())
    assert not (tmp_path / "cache").exists()


def test_a_cohort_of_another_recipe_is_refused_before_anything_is_made(
    encoder: PretrainedEncoder, tmp_path: Path
) -> None:
    other = next(recipe for name, recipe in recipes.items() if name != "head")
    cohort = made.make(tmp_path / "other", 8, recipe=other)
    labels = labels_from(made.truth(cohort), cohort, tmp_path)
    with pytest.raises(Misuse, match=r"uses recipe .* the model uses head"):
        adapt([cohort], labels, encoder, MACHINE, tmp_path / "cache", AdaptSettings())
    assert not (tmp_path / "cache").exists()


def test_an_empty_cohort_is_an_error(tmp_path: Path) -> None:
    cohort = made.make(tmp_path / "empty", 0)
    (tmp_path / "l.csv").write_text("scan_id,ich\na,1\n")
    with pytest.raises(Misuse, match=r"the cohort .*empty has no scans"):
        read_labels(tmp_path / "l.csv", [cohort])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "liner"}, "no method is called"),
        ({"validation": 0.0}, "are shares of patients"),
        ({"validation": 0.6, "test": 0.5}, "are shares of patients"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"seed": 2**32}, "the seed must lie in"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        AdaptSettings(**options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_detector(
    adapted: Adapted, cohort: Cohort, labels: Labels, encoder: PretrainedEncoder, cache: Path
) -> None:
    again = adapt([cohort], labels, encoder, MACHINE, cache, AdaptSettings(method="linear"))
    for name, tensor in again.detector._tensors().items():
        np.testing.assert_array_equal(tensor.numpy(), adapted.detector._tensors()[name].numpy(), err_msg=name)
    other = adapt([cohort], labels, encoder, MACHINE, cache, AdaptSettings(method="linear", seed=1))
    assert not other.tables["splits"].equals(adapted.tables["splits"])
