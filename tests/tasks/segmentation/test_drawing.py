"""Masks in the scanner's own geometry: beside formulas, beside the scan's own bone, and beside readers not ours.

The network here calls bone what is denser than 300 HU, so what must come out is known on any grid.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from tasks.segmentation import drawn

from headct.embedding.inputs import IDS, Reading
from headct.embedding.machine import choose
from headct.failure import Misuse
from headct.preparing import prepare, recipes
from headct.reading import Criteria
from headct.scan import Scan
from headct.tasks.segmentation import Segmenter, Sliding, draw_into
from headct.tasks.segmentation.network import Plan, SegmentationNetwork
from headct.tasks.segmentation.predicting import on_both_grids, slice_voxels_ml, volumes_ml
from headct.tasks.segmentation.subjects import Job, Subject
from headct.tasks.segmentation.windows import Probabilities
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom, write_nifti

MACHINE = choose("fp32", "cpu")
BONE_HU = 300
UNEVEN_MM = [*np.arange(-70, 0, 7.0), *np.arange(0, 84, 4.0)]
DCIODVFY = shutil.which("dciodvfy") or shutil.which("dciodvfy", path=str(Path(sys.executable).parent))
READING = Reading(recipe=recipes["head-coarse"], criteria=Criteria(check_head=False), keep_ids=True)


class Bone(SegmentationNetwork):
    """Logits of bone from one channel that is 0.5 at `BONE_HU`."""

    decoder, divisor = "light", 1

    @property
    def encoder_part(self) -> torch.nn.Module:
        return self

    def forward(self, x: torch.Tensor, spacing_mm: torch.Tensor) -> Any:
        return torch.cat([0.5 - x, x - 0.5], dim=1) * 20


@pytest.fixture(scope="module")
def bone() -> Segmenter:
    plan = Plan(architecture="vit-tiny", encoder_settings={"channels": 1}, decoder="light", outputs=2)
    windows = {"bone": (float(BONE_HU), 2.0 * BONE_HU)}
    return Segmenter(
        Bone(), plan, ("skull",), "skull", recipes["head-coarse"], windows, Sliding(window=(48, 56, 48)), {}, "bone"
    )


def head(**settings: Any) -> Scan:
    return Phantom(0).scan(**{"slices": 36, "gap_mm": 4.0, "rows": 80, "cols": 76, "pixel_mm": 2.6, **settings})


def in_slabs(probabilities: torch.Tensor, planes: int) -> Probabilities:
    x, y, z = probabilities.shape[1:]
    return Probabilities((x, y, z), lambda along: iter(probabilities.split(planes, dim=1 + along)))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize(
    "settings",
    [{}, {"tilt_deg": 20.0}, {"tilt_deg": -12.0}, {"positions_mm": UNEVEN_MM}, {"plane": "coronal"}, {"slices": 1}],
)
def test_what_lies_where_is_the_same_on_either_grid(settings: dict[str, Any]) -> None:
    """Oracle: an ellipsoid off the middle, drawn by its formula on the prepared grid and on the scanner's."""
    scan = head(**settings)
    prepared = prepare(scan, recipes["head"], check_head=False)
    middle_mm = scan.origins_mm.mean(axis=0) + 36 * scan.row_step_mm + 44 * scan.col_step_mm
    radii_mm = np.array([34.0, 26.0, 21.0])

    def depth(points_mm: np.ndarray) -> np.ndarray:
        return 1 - np.linalg.norm((points_mm - middle_mm) / radii_mm, axis=-1)

    places = np.stack(np.meshgrid(*map(np.arange, prepared.array.shape), indexing="ij"), axis=-1)
    there = torch.from_numpy(depth(places @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]) * 10)
    probabilities = torch.softmax(torch.stack([-there, there]), dim=0).float()
    rows, cols = np.arange(scan.hu.shape[1])[:, None, None], np.arange(scan.hu.shape[2])[:, None]
    points = scan.origins_mm[:, None, None] + rows * scan.row_step_mm + cols * scan.col_step_mm
    true = depth(points) > 0
    found, _ = on_both_grids(scan, in_slabs(probabilities, 5), prepared.affine)
    whole, numbers = on_both_grids(scan, in_slabs(probabilities, 500), prepared.affine)
    assert (found != whole).mean() < 1e-4  # ties, which the last bits decide
    np.testing.assert_array_equal(numbers, probabilities.argmax(dim=0))
    assert found.dtype == np.uint8
    assert found.shape == scan.hu.shape
    assert overlap(found == 1, true) > 0.985
    nothing = torch.stack([torch.ones_like(probabilities[0]), torch.zeros_like(probabilities[0])])
    assert not on_both_grids(scan, in_slabs(nothing, 7), prepared.affine)[0].any()


def test_no_slab_is_there_beside_the_next_one() -> None:
    """Oracle: the arrays whose memory the slabs are, which live as long as any view of a slab does."""
    scan = head()
    prepared = prepare(scan, recipes["head-coarse"], check_head=False)
    shape = prepared.array.shape
    made: list[weakref.ref[np.ndarray]] = []
    there: list[int] = []

    def slab() -> torch.Tensor:
        array = np.zeros((2, *shape[:2], 4), np.float32)
        array[1] = 1
        made.append(weakref.ref(array))
        return torch.from_numpy(array)

    def slabs(along: int) -> Iterator[torch.Tensor]:
        assert along == 2
        for _ in range(0, shape[2], 4):
            there.append(sum(one() is not None for one in made))
            yield slab()

    assert on_both_grids(scan, Probabilities(shape, slabs), prepared.affine)[0].any()
    assert there == [0] * (shape[2] // 4)


def test_volumes_count_the_space_of_each_slice() -> None:
    scan = head(positions_mm=[0.0, 5.0, 10.0, 11.0])
    row_mm, col_mm = scan.pixel_mm
    np.testing.assert_allclose(slice_voxels_ml(scan), np.array([5, 5, 3, 1]) * row_mm * col_mm / 1000)
    numbers = np.zeros(scan.hu.shape, np.uint8)
    numbers[1, :2, :3], numbers[3, 0, 0] = 1, 2
    told = volumes_ml(numbers, slice_voxels_ml(scan), ("a", "b", "c"))
    assert told == pytest.approx({"a": 6 * 5 * 2.6**2 / 1000, "b": 2.6**2 / 1000, "c": 0.0})
    tilted = head(tilt_deg=25.0)
    np.testing.assert_allclose(slice_voxels_ml(tilted), tilted.gaps_mm[0] * 2.6**2 / 1000)


@pytest.mark.parametrize(
    ("kind", "settings"), [("tilted", {"tilt_deg": 18.0}), ("uneven", {"positions_mm": UNEVEN_MM})]
)
def test_dicom_series(kind: str, settings: dict[str, Any], bone: Segmenter, tmp_path: Path) -> None:
    """The mask lies on the bone of the scan itself: in NIfTI, and frame by frame in the DICOM segmentation."""
    scan = head(**settings)
    files = write_dicom(scan, tmp_path / "ct")
    found = draw_into(tmp_path / "out", [tmp_path / "ct"], bone, READING, MACHINE)
    (row,) = found.rows
    true = scan.hu > BONE_HU
    image = nibabel.load(tmp_path / "out" / row["nifti"])
    if kind == "tilted":
        assert row["grid"] == "scanner"
        np.testing.assert_allclose(image.affine, scan.affine()[:, [2, 1, 0, 3]], atol=1e-3)
        assert overlap(np.asarray(image.dataobj).transpose(2, 1, 0) == 1, true) > 0.8
    else:
        assert row["grid"] == "recipe"
        assert "unevenly spaced" in row["notes"]
        assert image.shape == (48, 56, 48)
    read = highdicom.seg.segread(tmp_path / "out" / row["segmentation"])
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    pixels = read.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)[..., 0] == 1
    assert overlap(pixels, true) > 0.8
    assert read.get_segment_description(1).segment_label == "skull"
    assert read.get_segment_description(1).segmented_property_type.meaning == "Skull"
    assert row["skull_ml"] == pytest.approx((pixels.sum(axis=(1, 2)) * slice_voxels_ml(scan)).sum(), rel=1e-3)
    report = highdicom.sr.srread(tmp_path / "out" / row["report"])
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (measured,) = group.get_measurements()
    assert measured.value == pytest.approx(row["skull_ml"], abs=1e-3)
    assert measured.unit.value == "ml"
    assert measured.name.meaning == "Volume"
    assert group.referenced_segment.referenced_sop_instance_uid == read.SOPInstanceUID
    assert np.ravel(group.referenced_segment.referenced_segment_numbers).tolist() == [1]


@pytest.mark.skipif(DCIODVFY is None, reason="needs dciodvfy")
@pytest.mark.parametrize("settings", [{"tilt_deg": 18.0}, {"positions_mm": UNEVEN_MM}])
def test_the_standard_finds_no_error(settings: dict[str, Any], bone: Segmenter, tmp_path: Path) -> None:
    write_dicom(head(**settings), tmp_path / "ct")
    (row,) = draw_into(tmp_path / "out", [tmp_path / "ct"], bone, READING, MACHINE).rows
    for name in ("segmentation", "report"):
        path = tmp_path / "out" / row[name]
        said = subprocess.run([str(DCIODVFY), path], capture_output=True, text=True, check=False).stderr
        assert {"segmentation": "Segmentation", "report": "Comprehensive3DSR"}[name] in said
        assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_the_same_scan_gives_the_same_bytes_and_a_kill_costs_no_more_than_one(
    bone: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        write_dicom(
            Phantom(number).scan(slices=24, gap_mm=6.0, rows=48, cols=48, pixel_mm=4.0), tmp_path / f"ct/{number}"
        )
    draw_into(tmp_path / "once", [tmp_path / "ct"], bone, READING, MACHINE)
    calls: list[int] = []
    probabilities = Segmenter.probabilities

    def dies(self: Segmenter, *given: Any) -> Probabilities:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return probabilities(self, *given)

    monkeypatch.setattr(Segmenter, "probabilities", dies)
    with pytest.raises(KeyboardInterrupt):
        draw_into(tmp_path / "twice", [tmp_path / "ct"], bone, READING, MACHINE)
    found = draw_into(tmp_path / "twice", [tmp_path / "ct"], bone, READING, MACHINE)
    assert len(found.rows) == 2
    assert len(calls) == 3
    names = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*.*") if path.is_file())
    assert len([name for name in names if name.suffix == ".dcm"]) == 4
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name


def test_files_of_other_kinds_and_cohorts(bone: Segmenter, tmp_path: Path) -> None:
    scan = head(tilt_deg=10.0)
    write_nifti(scan, tmp_path / "in" / "tilted.nii.gz")
    (tmp_path / "in" / "letter.txt").write_text("dear colleague")
    cohort = drawn.make(tmp_path / "cohort", 1)
    inputs = [tmp_path / "in", tmp_path / "cohort", tmp_path / "in"]
    found = draw_into(tmp_path / "out", inputs, bone, READING, MACHINE)
    assert [row["grid"] for row in found.rows] == ["scanner", "recipe"]
    assert found.rejected == {"unknown-format": 1}
    first = nibabel.load(tmp_path / "out" / found.rows[0]["nifti"])
    np.testing.assert_allclose(first.affine, scan.affine()[:, [2, 1, 0, 3]], atol=1e-3)
    table = pd.read_csv(tmp_path / "out" / "volumes.csv", keep_default_na=False)
    assert table["scan_id"][1] == next(iter(cohort))
    assert table["segmentation"].tolist() == ["", ""]
    assert (tmp_path / "out" / "masks" / "classes.csv").read_text() == "value,name,parts\n1,skull,skull\n"
    with pytest.raises(Misuse, match="holds other things"):
        draw_into(tmp_path / "in", inputs, bone, READING, MACHINE)
    other = drawn.make(tmp_path / "other", 1, recipe=recipes["head"])
    with pytest.raises(Misuse, match=r"uses recipe head \("):
        draw_into(tmp_path / "more", [other.path], bone, READING, MACHINE)


def test_a_folder_holds_what_one_line_has_drawn(
    bone: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"slices": 24, "gap_mm": 6.0, "rows": 48, "cols": 48, "pixel_mm": 4.0}
    write_dicom(head(**small), tmp_path / "a")
    write_nifti(head(**small, tilt_deg=9.0), tmp_path / "b.nii.gz")
    out = tmp_path / "out"
    draw_into(out, [tmp_path / "a", tmp_path / "b.nii.gz"], bone, READING, MACHINE)
    assert len(list((out / "masks").glob("*.nii.gz"))) == 2
    (row,) = draw_into(out, [tmp_path / "b.nii.gz"], bone, READING, MACHINE).rows
    assert [path.name for path in (out / "masks").glob("*.nii.gz")] == [Path(row["nifti"]).name]
    assert not list((out / "dicom").iterdir())

    def dies(self: Segmenter, *given: Any) -> Probabilities:
        raise KeyboardInterrupt

    monkeypatch.setattr(Segmenter, "probabilities", dies)
    with pytest.raises(KeyboardInterrupt):
        draw_into(out, [tmp_path / "b.nii.gz"], bone, READING, MACHINE)
    with pytest.raises(Misuse, match=r"begun otherwise \(dicom, inputs\)"):
        draw_into(out, [tmp_path / "a"], bone, READING, MACHINE, dicom=False)


def test_a_scan_that_comes_up_twice_keeps_its_first_files(
    bone: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file and from a cohort that was made of it, whose mask would lie on another grid."""
    scan = head()
    prepared = prepare(scan, recipes["head-coarse"], check_head=False)
    ids = dict.fromkeys(IDS, "a")
    of_file, of_cohort = (Subject(ids, prepared.array, prepared.affine, one) for one in (scan, None))
    found = [Job("file", lambda: [of_file]), Job("cohort", lambda: [of_cohort])]
    monkeypatch.setattr("headct.tasks.segmentation.drawing.jobs", lambda inputs, reading: found)
    (row,) = draw_into(tmp_path / "out", [tmp_path], bone, READING, MACHINE).rows
    assert row["grid"] == "scanner"
    assert nibabel.load(tmp_path / "out" / row["nifti"]).shape == (76, 80, 36)


def test_another_body_part_is_rejected_and_said(bone: Segmenter, tmp_path: Path) -> None:
    hu = np.full((20, 40, 40), -1000, np.int16)
    hu[:, 8:32, 5:35] = 40
    block = Scan(
        hu=hu,
        origins_mm=np.stack([np.zeros(20), np.zeros(20), np.arange(20) * 6.0], axis=1),
        row_step_mm=np.array([0.0, -4, 0]),
        col_step_mm=np.array([-4.0, 0, 0]),
        thickness_mm=6.0,
    )
    write_nifti(block, tmp_path / "abdomen.nii.gz")
    reading = Reading(recipe=recipes["head-coarse"], criteria=Criteria(), keep_ids=True)
    found = draw_into(tmp_path / "out", [tmp_path / "abdomen.nii.gz"], bone, reading, MACHINE)
    assert not found.rows
    assert found.rejected == {"no-head": 1}
    assert "abdomen.nii.gz" in (tmp_path / "out" / "rejections.csv").read_text()


def test_headers_that_allow_no_segmentation_are_told(bone: Segmenter, tmp_path: Path) -> None:
    for file in write_dicom(head(), tmp_path / "ct"):
        image = pydicom.dcmread(file)
        del image.FrameOfReferenceUID
        image.save_as(file)
    (row,) = draw_into(tmp_path / "out", [tmp_path / "ct"], bone, READING, MACHINE).rows
    assert "no DICOM segmentation" in row["notes"]
    assert (row["segmentation"], row["report"]) == ("", "")
    assert (tmp_path / "out" / row["nifti"]).is_file()
    assert json.dumps(row)
