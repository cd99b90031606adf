"""SinoCT: normal or abnormal, one series a folder, sinograms beside the images."""

from __future__ import annotations

import pandas as pd
import pytest
from inputs import downloads

from headct.datasets import named
from headct.datasets.sinoct import unit_of
from headct.failure import Failure


def test_labels_are_the_second_of_two(prepared):
    labels = prepared("sinoct").table("labels").set_index("name")["abnormal"]
    assert labels["series_1"] == 1
    assert labels["series_2"] == 0
    assert pd.isna(labels["series_3"])


def test_what_is_odd_is_named(prepared):
    came = prepared("sinoct")
    assert came.remarks("doubtful label") == {"series_3": "its label is '1,1', neither normal nor abnormal"}
    assert came.remarks("label without a scan") == {"series_4": "no file of it"}
    assert came.report.ingest.rejected == {"unknown-format": 3}  # the sinograms


def test_counts(prepared):
    came = prepared("sinoct")
    assert came.found("labelled series") == 4
    assert (came.found("series abnormal"), came.found("series normal")) == (2, 1)
    assert (came.found("series with images"), came.found("scans")) == (3, 3)


def test_patients_are_those_of_the_headers(prepared):
    """Two series of one patient are not put into two parts."""
    assert prepared("sinoct").table("labels")["patient_id"].tolist() == ["anon1", "anon0", "anon1"]


@pytest.mark.parametrize(("text", "value"), [('"[0, 1]"', 1), ('"(1,0)"', 0), ("1", 1), ("0", 0)])
def test_other_spellings_of_a_label(text, value, tmp_path):
    data = downloads.sinoct(tmp_path)
    (data / "labels.csv").write_text(f"patient_id,label\nseries_1,{text}\n")
    assert named("sinoct").read(data).labels["abnormal"].tolist() == [value]


def test_a_series_that_is_there_twice_is_named(tmp_path):
    data = downloads.sinoct(tmp_path)
    (data / "labels.csv").write_text('patient_id,label\nseries_1,"0,1"\nseries_1,"1,0"\n')
    with pytest.raises(Failure, match="names series_1 twice"):
        named("sinoct").read(data)


def test_the_series_of_a_path():
    assert unit_of("head_ct_dataset_anon/batch_0/series_12/reconstructed_image/image_0.dcm") == "series_12"
    assert unit_of("head_ct_dataset_anon/readme.txt") == ""


def test_the_folder_of_batches_may_be_named_itself_where_the_table_lies_in_it(tmp_path):
    data = downloads.sinoct(tmp_path)
    (data / "labels.csv").rename(data / "head_ct_dataset_anon" / "labels.csv")
    found = named("sinoct").read(data / "head_ct_dataset_anon")
    assert found.counts["series with images"] == 3
