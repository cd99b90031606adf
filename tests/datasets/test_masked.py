"""CT-ICH, BHSD and INSTANCE: labels from masks. The oracle for volumes: SimpleITK's label statistics."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from inputs import downloads

from headct.datasets import named
from headct.datasets.bhsd import CLASSES, patient_of
from headct.datasets.masks import MIN_ML, measure
from headct.failure import Failure


def volumes_ml(path: Path) -> dict[int, float]:
    statistics = SimpleITK.LabelShapeStatisticsImageFilter()
    statistics.Execute(SimpleITK.ReadImage(str(path), SimpleITK.sitkUInt8))
    return {value: statistics.GetPhysicalSize(value) / 1000 for value in statistics.GetLabels()}


# CT-ICH


def test_a_patient_of_ct_ich_has_what_any_slice_has(prepared):
    labels = prepared("ct-ich").table("labels").set_index("name")
    assert labels.loc["049"].drop(["scan_id", "patient_id"]).to_dict() == {
        "ich": 1,
        "ivh": 0,
        "iph": 0,
        "sah": 0,
        "edh": 1,
        "sdh": 1,
        "fracture": 1,
    }
    assert labels.loc["050", ["ich", "edh", "fracture"]].tolist() == [0, 0, 0]
    assert labels.loc["051", ["ich", "ivh"]].tolist() == [1, 1]


def test_masks_of_ct_ich_are_read_through_their_scaling(prepared):
    """Stored -32768 and 32767 mean 0 and 255: a threshold on what is stored would find blood everywhere."""
    came = prepared("ct-ich")
    measured = came.table("masks").set_index("name")
    assert measured["ich_ml"].round(6).to_dict() == {"049": round(9 * 3.2**2 * 6 / 1000, 6), "050": 0, "051": 0}
    assert (came.data / measured.loc["049", "mask"]).is_file()


def test_a_table_and_a_mask_that_disagree_are_named(prepared):
    assert prepared("ct-ich").remarks("doubtful label") == {"051": "bleeding in the table, none in its mask"}
    assert prepared("ct-ich").remarks("label without a scan") == {"059": "no file of it"}


def test_counts_of_ct_ich(prepared):
    came = prepared("ct-ich")
    assert (came.found("rows of slices"), came.found("scan files")) == (4 * downloads.SLICES, 3)
    assert [came.found(f"slices with {one}") for one in ("edh", "sdh", "ivh", "iph", "sah")] == [1, 1, 1, 1, 0]


def test_a_slice_without_a_verdict_makes_the_patient_unknown(tmp_path):
    data = downloads.ct_ich(tmp_path)
    path = data / "ct-ich-1.3.1" / "hemorrhage_diagnosis_raw_ct.csv"
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    lines[downloads.SLICES + 1] = "50,1,,0,0,0,0,1,0"
    path.write_text("\n".join(lines))
    labels = named("ct-ich").read(data).labels
    assert pd.isna(labels.loc["050", "ivh"])
    assert pd.isna(labels.loc["050", "ich"])
    assert labels.loc["050", "iph"] == 0


# BHSD


def test_volumes_of_bhsd_are_those_of_another_library(prepared):
    came = prepared("bhsd")
    first = came.table("masks").iloc[0]
    expected = volumes_ml(came.data / first["mask"])
    assert set(expected) == {1, 5}
    for value, finding in CLASSES.items():
        assert first[f"{finding}_ml"] == pytest.approx(expected.get(value, 0), rel=1e-5)
    assert first["ich_ml"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_masks_that_do_not_lie_on_their_image_are_not_used(prepared):
    doubtful = prepared("bhsd").remarks("doubtful label")
    assert doubtful == {
        downloads.BHSD_NAMES[2]: "its mask is not used: it lies up to 9.0 mm beside its image",
        downloads.BHSD_NAMES[3]: f"its mask is not used: its shape is 72 x 72 x 4, that of its image 72 x 72 x "
        f"{downloads.SLICES}",
        downloads.BHSD_NAMES[4]: "its mask is not used: it holds values that are no class (9)",
    }
    assert len(prepared("bhsd").remarks("scan without a label")) == 3
    assert len(prepared("bhsd").cohort) == 5


def test_patients_of_bhsd_are_those_of_rsna_2019(prepared):
    assert prepared("bhsd").table("labels")["patient_id"].tolist() == ["ID_0b10cbee", "ID_0b10cbee"]
    assert patient_of("volume-7") == "volume-7"


# INSTANCE


def test_instance_knows_bleeding_and_its_volume(prepared):
    came = prepared("instance-2022")
    assert came.table("labels")["ich"].tolist() == [1, 1]
    ml = came.table("masks").set_index("name")["ich_ml"]
    assert ml["071"] == pytest.approx(volumes_ml(came.data / "train_2" / "label" / "071.nii.gz")[1], rel=1e-5)
    assert ml["071"] == pytest.approx(2 * ml["070"])
    assert set(came.table("labels")["patient_id"]) == {"instance-2022-070", "instance-2022-071"}


# Masks by themselves


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    path = tmp_path_factory.mktemp("image") / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 5), np.int16), affine), path)
    return path


def voxels(count: int, image: Path, path: Path, *, dtype: type = np.uint8, value: float = 1) -> Path:
    values = np.zeros((20, 20, 5), dtype)
    values.reshape(-1)[:count] = value
    nibabel.save(nibabel.Nifti1Image(values, nibabel.load(image).affine), path)
    return path


def test_a_speck_is_neither_there_nor_not(tmp_path):
    """6 voxels of 1.25 mm³ are below the minimum, 8 are not."""
    folder = tmp_path / "train_2"
    for number, count in enumerate((0, 6, 8)):
        on = folder / "data" / f"{number}.nii.gz"
        on.parent.mkdir(parents=True, exist_ok=True)
        (folder / "label").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 5), np.int16), np.diag([0.5, 0.5, 5.0, 1.0])), on)
        voxels(count, on, folder / "label" / f"{number}.nii.gz")
    found = named("instance-2022").read(tmp_path)
    assert 6 * 1.25 / 1000 < MIN_ML <= 8 * 1.25 / 1000
    np.testing.assert_equal(found.labels["ich"].tolist(), [0.0, np.nan, 1.0])
    assert [(one.subject, one.reason) for one in found.remarks] == [("1", "ich of 0.0075 ml: unknown")]


def test_a_mask_of_nearly_whole_values_is_read_and_one_of_fractions_is_not(image, tmp_path):
    near = voxels(8, image, tmp_path / "near.nii.gz", dtype=np.float32, value=1.9999)
    assert measure(image, near, {2: "iph"}).volumes_ml == {"iph": pytest.approx(0.01)}
    half = voxels(8, image, tmp_path / "half.nii.gz", dtype=np.float32, value=1.4)
    assert "fractions" in measure(image, half, {1: "iph"}).fault


def test_a_broken_mask_is_said_to_be_broken(image, tmp_path):
    path = voxels(8, image, tmp_path / "mask.nii.gz")
    path.write_bytes(path.read_bytes()[:-20])
    assert "it cannot be read" in measure(image, path, "ich").fault


def test_images_and_masks_without_a_partner_are_named(tmp_path):
    data = downloads.instance(tmp_path)
    (data / "train_2" / "label" / "070.nii.gz").rename(data / "train_2" / "label" / "099.nii.gz")
    remarks = {one.subject: one.reason for one in named("instance-2022").read(data).remarks}
    assert remarks == {"070": "label has no mask for this image", "099": "data has no image for this mask"}


@pytest.mark.parametrize(
    ("name", "tree", "gone", "says"),
    [
        ("ct-ich", downloads.ct_ich, "ct-ich-1.3.1/masks", "lacks the masks"),
        ("ct-ich", downloads.ct_ich, "ct-ich-1.3.1/hemorrhage_diagnosis_raw_ct.csv", "lacks the table of slices"),
        ("bhsd", downloads.bhsd, "label_192/ground truths", "lacks the masks"),
        ("bhsd", downloads.bhsd, "label_192", "lacks the volumes with masks"),
        ("instance-2022", downloads.instance, "train_2/data", "lacks the images"),
    ],
)
def test_a_part_that_is_not_there_is_named(name, tree, gone, says, tmp_path):
    data = tree(tmp_path / "download")
    (data / gone).rename(data / "elsewhere")
    with pytest.raises(Failure, match=says):
        named(name).read(data)
