"""RSNA 2019: series out of one flat folder, and labels of slices on them. The oracle: a loop over the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from inputs import downloads

from headct.datasets import named
from headct.datasets.rsna import SUBTYPES
from headct.failure import Failure

SET = named("rsna-2019")


def table(rows: dict[str, object], folder: Path) -> Path:
    (folder / "stage_2_train").mkdir()
    lines = [f"{name},{value}" for name, value in rows.items()]
    (folder / "stage_2_train.csv").write_text("\n".join(["ID,Label", *lines]) + "\n")
    return folder


def test_series_are_put_together_from_stripped_headers(prepared):
    """In the order of their positions, whatever the files are called."""
    cohort = prepared("rsna-2019").cohort
    assert cohort.scans["slices"].tolist() == [downloads.SLICES, downloads.SLICES, downloads.SLICES - 1]
    assert set(cohort.scans["gap_median_mm"].round(3)) == {6.0}
    names = [path.rpartition("/")[2] for path in cohort.files["path"]]
    by_position = [f"{name}.dcm" for name, _ in downloads.rsna_images(1, "x")]
    assert [name for name in names if name in by_position] != by_position


def test_a_series_has_a_finding_if_any_slice_has(prepared):
    labels = prepared("rsna-2019").table("labels").set_index("name")
    assert labels.loc["ID_0000001001"].drop(["scan_id", "patient_id"]).to_dict() == {
        "ich": 1,
        "edh": 1,
        "iph": 0,
        "ivh": 0,
        "sah": 0,
        "sdh": 1,
    }
    assert labels.loc["ID_0000001002", list(SUBTYPES.values())].tolist() == [0] * 6


def test_a_slice_without_labels_leaves_what_is_not_seen_unknown(prepared):
    third = prepared("rsna-2019").table("labels").set_index("name").loc["ID_0000001003"]
    assert third[["ich", "ivh"]].tolist() == [1, 1]
    assert third[["edh", "iph", "sah", "sdh"]].isna().all()


def test_patients_are_those_of_the_headers_and_stay_together(prepared):
    labels, parts = prepared("rsna-2019").table("labels"), prepared("rsna-2019").table("splits")
    assert labels["patient_id"].tolist() == ["ID_0b10cbee", "ID_0b10cbee", "ID_f0e1d2c3"]
    assert parts["split"].tolist()[:2] == ["train", "train"]


def test_a_broken_file_and_an_image_that_is_not_there_are_named(prepared):
    missing = prepared("rsna-2019").remarks("label without a scan")
    broken = downloads.rsna_images(3, "x")[5][0]
    assert missing == {broken: "rejected: damaged", "ID_00000dead": "no file of it"}


def test_counts(prepared):
    came = prepared("rsna-2019")
    assert came.found("rows of labels") == 6 * (3 * downloads.SLICES - 1) + 6 + 6
    assert came.found("labelled slices") == 3 * downloads.SLICES
    assert [came.found(f"rows with {one}") for one in ("ich", "sdh", "edh", "ivh", "iph")] == [3, 2, 1, 1, 0]
    assert (came.found("scans"), came.found("patients with scans")) == (3, 2)


def test_the_table_is_what_a_loop_over_its_rows_gives(tmp_path):
    rng = np.random.default_rng(0)
    rows = {f"ID_{image:09x}_{one}": int(rng.integers(0, 2)) for image in range(40) for one in SUBTYPES}
    found = SET.read(table(rows, tmp_path))
    expected: dict[str, dict[str, int]] = {}
    for name, value in rows.items():
        image, _, one = name.rpartition("_")
        expected.setdefault(image, {})[SUBTYPES[one]] = value
    assert found.labels.to_dict("index") == expected
    disagree = [i for i, v in expected.items() if v["ich"] != max(v[one] for one in v if one != "ich")]
    assert sorted(remark.subject for remark in found.remarks) == sorted(disagree)


def test_rows_that_contradict_each_other_are_named_and_taken_as_positive(tmp_path):
    data = table({f"ID_000000001_{one}": 0 for one in SUBTYPES}, tmp_path)
    with (data / "stage_2_train.csv").open("a") as file:
        file.write("ID_000000001_any,1\nID_000000001_subdural,1\n")
    found = SET.read(data)
    assert found.labels.loc["ID_000000001", ["ich", "sdh", "edh"]].tolist() == [1, 1, 0]
    assert [(one.subject, one.reason) for one in found.remarks] == [("ID_000000001", "its rows differ; 1 was taken")]


def test_a_value_that_is_none_is_unknown(tmp_path):
    rows: dict[str, object] = {f"ID_000000001_{one}": 0 for one in SUBTYPES}
    found = SET.read(table({**rows, "ID_000000001_subdural": "0.37"}, tmp_path))
    assert pd.isna(found.labels.loc["ID_000000001", "sdh"])


def test_rows_of_another_kind_are_named(tmp_path):
    with pytest.raises(Failure, match="row 3 is 'ID_000000001_fracture'"):
        SET.read(table({"ID_000000001_any": 0, "ID_000000001_fracture": 1}, tmp_path))


def test_a_download_that_is_not_unpacked_is_recognised(tmp_path):
    (tmp_path / "rsna-intracranial-hemorrhage-detection.zip").write_bytes(b"PK")
    with pytest.raises(Failure) as told:
        SET.read(tmp_path)
    assert "rsna-intracranial-hemorrhage-detection.zip that may hold it" in told.value.why
    assert told.value.do.startswith("unpack; ")
