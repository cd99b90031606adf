"""Small copies of the public sets, in the layout and with the header habits of the downloads, made of phantoms."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from headct.datasets.cq500 import COLUMNS, READERS
from headct.scan import Scan
from headct.writing.dicom import images_of
from headct.writing.nifti import write_nifti
from inputs.series import head, tagged

SLICES = 24


@cache
def patient(number: int) -> Scan:
    """A head in 24 slices of 6 mm; another number, other noise."""
    scan = head(slices=SLICES, gap_mm=6.0, noise_hu=0.0)
    noise_hu = np.random.default_rng(number).integers(-3, 4, scan.hu.shape, dtype=np.int16)
    hu = np.clip(scan.hu + noise_hu, -1024, 3071).astype(np.int16)
    return replace(scan, hu=hu, header=replace(scan.header, patient_id=f"p{number}"))


def save(image: Dataset, path: Path) -> None:
    """As anonymisers write: identifiers need not be valid UIDs, and the meta header alone may state the SOP class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.file_meta = FileMetaDataset()
    with config.disable_value_validation():
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        dcmwrite(path, image, enforce_file_format=True)


def tag(image: Dataset, **header: Any) -> Dataset:
    with config.disable_value_validation():
        return tagged(image, **header)


# CQ500


def cq500_series(
    folder: Path, number: int, description: str, *, name: str = "", slices: int = SLICES, seed: int = 0
) -> Path:
    """A series as its makers' export lays it out: the folder is "CT" and the description without its signs."""
    patient_id = f"CQ500-CT-{number}"
    where = folder / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / f"CT {name or description}"
    scan = patient(seed or number + 1)
    header = {"PatientID": patient_id, "StudyInstanceUID": f"1.2.500.{number}", "SeriesDescription": description}
    images = images_of(scan, description=f"{patient_id} {description}")
    for index, image in enumerate(images[:slices]):
        save(tag(image, **header, PatientSex=None), where / f"CT{index:06d}.dcm")
    return where


def reads_csv(rows: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """`{"CQ500-CT-0": {"ICH": "110"}}`: votes of three readers by column; 0 where none are given, "-" for no vote."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "Category", *(f"{reader}:{column}" for reader in READERS for column in COLUMNS)])
    for name, said in rows.items():
        votes = [said.get(column, "000")[number] for number in range(3) for column in COLUMNS]
        table.writerow([name, "B1", *("" if vote == "-" else vote for vote in votes)])
    return text.getvalue()


def cq500(folder: Path) -> Path:
    cq500_series(folder, 0, "Thin Plain")
    cq500_series(folder, 0, "PRE CONTRAST 5MM STD", seed=21)
    cq500_series(folder, 0, "POST CONTRAST", seed=22)
    cq500_series(folder, 0, "4cc/sec 150cc D3D on", name="4cc sec 150cc D3D on", seed=23)
    cq500_series(folder, 2, "C-", name="C")
    cq500_series(folder, 2, "C", name="C-2", seed=24)
    cq500_series(folder, 4, "Plain", slices=2)
    cq500_series(folder, 9, "Plain")
    packed = cq500_series(folder / "packing", 1, "Plain").parents[1]
    shutil.make_archive(str(folder / "CQ500-CT-1"), "zip", packed.parent, packed.name)
    shutil.rmtree(folder / "packing")
    rows = {
        "CQ500-CT-0": {"ICH": "110", "SDH": "100", "BleedLocation-Left": "111", "MidlineShift": "001"},
        "CQ500-CT-1": {"Fracture": "0-0"},
        "CQ500-CT-2": {"ICH": "1-0"},
        "CQ500-CT-3": {"ICH": "111"},
        "CQ500-CT-4": {},
    }
    (folder / "reads.csv").write_text(reads_csv(rows))
    return folder


# RSNA 2019

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


STRIPPED = (
    *("SOPClassUID", "ImageType", "SliceThickness", "GantryDetectorTilt", "KVP", "ConvolutionKernel", "SeriesNumber"),
    *("Manufacturer", "ManufacturerModelName", "InstanceNumber", "AcquisitionNumber", "FrameOfReferenceUID"),
    *("RescaleType", "PatientSex", "StudyDate", "StudyTime", "PatientPosition"),
)


def rsna_images(number: int, patient_id: str) -> list[tuple[str, Dataset]]:
    """Names and images of a series in the order of their positions; the names say nothing about it."""
    stripped = dict.fromkeys(STRIPPED)
    named = []
    for index, image in enumerate(images_of(patient(number))):
        name = f"ID_{(number * 1000 + index * 7919) % 100003:09x}"
        header = {
            "SOPInstanceUID": name,
            "PatientID": patient_id,
            "StudyInstanceUID": f"ID_{number:010x}",
            "SeriesInstanceUID": f"ID_{number + 4096:010x}",
        }
        named.append((name, tag(image, **stripped, **header)))
    return named


def rsna(folder: Path) -> Path:
    """Series 1 and 2 are of one patient, 3 of another; 3 has a file that ends early and a slice without labels."""
    images = folder / "stage_2_train"
    positive = {(1, 4): ("subdural",), (1, 9): ("subdural", "epidural"), (3, 2): ("intraventricular",)}
    rows: list[tuple[str, int]] = []
    for number, patient_id in ((1, "ID_0b10cbee"), (2, "ID_0b10cbee"), (3, "ID_f0e1d2c3")):
        for index, (name, image) in enumerate(rsna_images(number, patient_id)):
            save(image, images / f"{name}.dcm")
            found = positive.get((number, index), ())
            values = [int(one in found or (one == "any" and bool(found))) for one in SUBTYPES]
            if (number, index) == (3, 5):
                path = images / f"{name}.dcm"
                path.write_bytes(path.read_bytes()[:-3000])
            if (number, index) == (3, 7):
                continue
            rows += [(f"{name}_{one}", value) for one, value in zip(SUBTYPES, values, strict=True)]
    rows += rows[:6]  # the same image once more
    rows += [(f"ID_00000dead_{one}", 0) for one in SUBTYPES]  # an image that was not downloaded
    (folder / "stage_2_train.csv").write_text("ID,Label\n" + "".join(f"{name},{value}\n" for name, value in rows))
    return folder


# Sets of NIfTI files with masks


def nifti(number: int, path: Path) -> Path:
    return write_nifti(patient(number), path)


def mask(image: Path, path: Path, boxes: Mapping[int, tuple[int, ...]], *, stored: Iterable[float] = ()) -> Path:
    """A mask on the grid of an image: `{value: (first column, voxels along it)}`, in the middle of the brain.

    `stored` (slope, intercept) stores a mask of 0 and 255 as int16 extremes, as the files of CT-ICH do.
    """
    on: Any = nibabel.load(image)
    values = np.zeros(on.shape, np.uint8)
    for value, (column, voxels) in boxes.items():
        values[column, 30 : 30 + voxels, 8] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    if scaling := tuple(stored):
        packed: Any = nibabel.Nifti1Image(np.where(values > 0, 32767, -32768).astype(np.int16), on.affine)
        packed.header.set_slope_inter(*scaling)
        nibabel.save(packed, path)
        raw: Any = nibabel.load(path)
        assert np.abs(np.asanyarray(raw.dataobj) - 255 * (values > 0)).max() < 0.01
    else:
        nibabel.save(nibabel.Nifti1Image(values, on.affine), path)
    return path


def ct_ich(folder: Path) -> Path:
    """Patient 49 bleeds, 50 does not, 51 bleeds by the table alone; 59 is in the table without a scan."""
    root = folder / "ct-ich-1.3.1"
    lines = ["PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,"]
    lines[0] += "No_Hemorrhage,Fracture_Yes_No"
    bleeding = {(49, 8): "0,0,0,1,1,0,1", (51, 3): "1,0,0,0,0,0,0", (59, 1): "0,1,0,0,0,0,0"}
    for number in (49, 50, 51, 59):
        if number != 59:
            image = nifti(number, root / "ct_scans" / f"{number:03d}.nii")
            boxes = {1: (30, 9)} if number == 49 else {}
            mask(image, root / "masks" / f"{number:03d}.nii", boxes, stored=(255 / 65535, 127.504))
        lines += [f"{number},{one},{bleeding.get((number, one), '0,0,0,0,0,1,0')}" for one in range(1, SLICES + 1)]
    (root / "hemorrhage_diagnosis_raw_ct.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


BHSD_NAMES = tuple(
    f"ID_{patient_id}_ID_{study:010x}"
    for patient_id, study in (("0b10cbee", 1), ("0b10cbee", 2), ("f0e1d2c3", 3), ("aaaa0001", 4), ("aaaa0002", 5))
)


def bhsd(folder: Path) -> Path:
    """The first is sound, the second has a speck, the others' masks are shifted, of another size, of other values."""
    images, outlines = folder / "label_192" / "images", folder / "label_192" / "ground truths"
    sizes: dict[int, tuple[int, ...]] = {1: (20, 9), 5: (24, 4)}
    for number, name in enumerate(BHSD_NAMES, start=60):
        image = nifti(number, images / f"{name}.nii.gz")
        mask(image, outlines / f"{name}.nii.gz", {4: (22, 1)} if number == 61 else sizes)
    shifted: Any = nibabel.load(outlines / f"{BHSD_NAMES[2]}.nii.gz")
    affine = shifted.affine.copy()
    affine[2, 3] += 9.0
    nibabel.save(nibabel.Nifti1Image(np.asarray(shifted.dataobj), affine), outlines / f"{BHSD_NAMES[2]}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((72, 72, 4), np.uint8), affine), outlines / f"{BHSD_NAMES[3]}.nii.gz")
    mask(images / f"{BHSD_NAMES[4]}.nii.gz", outlines / f"{BHSD_NAMES[4]}.nii.gz", {9: (20, 5)})
    return folder


def instance(folder: Path) -> Path:
    for number in (70, 71):
        image = nifti(number, folder / "train_2" / "data" / f"{number:03d}.nii.gz")
        mask(image, folder / "train_2" / "label" / f"{number:03d}.nii.gz", {1: (20, 10 * (number - 69))})
    return folder


# SinoCT


def sinoct(folder: Path) -> Path:
    """Series 1 to 3 have images, 4 was not downloaded; the label of 3 cannot be read."""
    for number in (1, 2, 3):
        where = folder / "head_ct_dataset_anon" / f"batch_{number // 3}" / f"series_{number}"
        header = {"PatientID": f"anon{number % 2}", "StudyInstanceUID": f"1.2.77.{number}"}
        for index, image in enumerate(images_of(patient(80 + number))):
            save(tag(image, **header), where / "reconstructed_image" / f"image_{index}.dcm")
        (where / "sinogram").mkdir()
        (where / "sinogram" / "sinogram_0.bin").write_bytes(bytes(64))
    rows = ['series_1,"0,1"', 'series_2,"1,0"', 'series_3,"1,1"', 'series_4,"0,1"']
    (folder / "labels.csv").write_text("patient_id,label\n" + "\n".join(rows) + "\n")
    return folder
