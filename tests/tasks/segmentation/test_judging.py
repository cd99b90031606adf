"""Judging a segmenter, or folders of masks: who is left out, which grids are compared, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from detection import made
from tasks.segmentation import drawn

from headct.cohort import Cohort
from headct.embedding.machine import choose
from headct.failure import Misuse
from headct.preparing import recipes
from headct.reporting.segmentation import outlined
from headct.tasks.segmentation import Segmenter, gathered, judge_folders, judge_segmenter
from headct.tasks.segmentation.classes import as_learned, read_classes, write_table
from headct.tasks.segmentation.judging import UNKNOWN_DRAWER, classes_of_both, write

MACHINE = choose("fp32", "cpu")


def test_a_segmenter_on_patients_it_has_not_seen(place: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(place / "segmenter")
    splits = pd.read_csv(place / "segmenter.splits.csv")
    cohort = drawn.make(tmp_path / "more", 10, seed=5)  # p000 to p007 were learned from
    judged = judge_segmenter(gathered([cohort], [], ""), segmenter, MACHINE)
    rows = judged.agreement.rows
    assert set(rows["patient_id"]) == {"p008", "p009"}
    assert not set(rows["patient_id"]) & set(splits["patient_id"])
    assert judged.notes == ("8 scans of patients that the segmenter has learned from are left out",)
    scan_id = rows["scan_id"].iloc[-1]
    numbers = segmenter.probabilities(cohort.array(scan_id), cohort.affine(scan_id), MACHINE).numbers()
    assert rows["found_ml"].iloc[-2] == pytest.approx((numbers == 1).sum() * 0.064)
    metrics = write(judged, tmp_path / "out", settings={"cohort": "more"}, hashes={"segmenter": segmenter.sha256})
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["ich"]["dice"].keys() == {"value", "low", "high", "n", "positives", "method"}
    html = (tmp_path / "out" / "report.html").read_text()
    assert "in 2 scans of 2 patients; a class that is there and was not drawn counts as 0" in html
    assert html.count("data:image/webp") == 2
    assert ">nan" not in html
    assert len(pd.read_csv(tmp_path / "out" / "segments.csv")) == 4
    with pytest.raises(Misuse, match="every patient who could judge it"):
        judge_segmenter(gathered([Cohort(place / "cohort")], [], ""), segmenter, MACHINE)
    other = gathered([drawn.make(tmp_path / "h", 9, recipe=recipes["head"])], [], "")
    with pytest.raises(Misuse, match=r"uses recipe head \("):
        judge_segmenter(other, segmenter, MACHINE)
    with pytest.raises(Misuse, match="the classes are sdh; ich, sdh are drawn"):
        judge_segmenter(gathered([cohort], [], "sdh"), segmenter, MACHINE)


def test_patients_whose_ids_were_made_by_another_key_are_said(place: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(place / "segmenter")
    assert segmenter.record["pseudonyms"] == ["none"]
    drawn.make(tmp_path / "more", 10, seed=5)
    about = json.loads((tmp_path / "more" / "cohort.json").read_text())

    def notes(**changed: object) -> tuple[str, ...]:
        (tmp_path / "more" / "cohort.json").write_text(json.dumps(about | changed))
        masks = gathered([Cohort(tmp_path / "more")], [], "")
        return judge_segmenter(masks, segmenter, MACHINE).notes[1:]  # the first is on whom was left out

    assert notes(pseudonyms="none") == notes(pseudonyms="ab12", simulated={}) == ()
    assert notes(pseudonyms="ab12") == (
        "the segmenter and more call patients by ids and pseudonyms of ab12: a patient of both is not known as one, "
        "and is not left out; ingest both with one key (--key)",
    )
    del segmenter.record["pseudonyms"]  # as one of before was written
    assert notes(pseudonyms="ab12") == ()


def folders(tmp_path: Path, affine: np.ndarray) -> tuple[Path, Path]:
    """Three true masks; one drawn the same, one moved by a voxel, one not at all."""
    numbers = np.zeros((16, 18, 12), np.uint8)
    numbers[4:10, 5:12, 3:9] = 1
    for index in range(3):
        drawn.write_mask(tmp_path / "true" / f"s{index}.nii.gz", numbers, affine)
    drawn.write_mask(tmp_path / "drawn" / "s0.nii.gz", numbers, affine)
    drawn.write_mask(tmp_path / "drawn" / "s1.nii.gz", np.roll(numbers, 1, axis=0), affine)
    for name in ("true", "drawn"):
        (tmp_path / name / "classes.csv").write_text("value,name\n1,iph\n2,sdh\n")
    return tmp_path / "drawn", tmp_path / "true"


def test_folders_of_masks(tmp_path: Path) -> None:
    found, true = folders(tmp_path, np.diag([1.0, 1.0, 2.0, 1.0]))
    judged = judge_folders(found, true, *classes_of_both(found, true, ""))
    rows = judged.agreement.rows
    iph = rows[rows["class"] == "iph"]
    assert iph["dice"].tolist() == pytest.approx([1, 5 / 6, 0])
    assert iph["hausdorff_95_mm"].tolist() == pytest.approx([0, 1, np.inf])
    assert iph["patient_id"].tolist() == ["s0", "s1", "s2"]
    assert judged.notes == (
        UNKNOWN_DRAWER,
        "without a cohort each mask counts as a patient of its own",
        "1 true masks have nothing beside them in drawn, and count as missed",
    )
    metrics = judged.agreement.metrics()
    assert metrics["iph"]["hausdorff_95_mm"]["value"] == pytest.approx(1)
    assert metrics["iph"]["missed"]["value"] == pytest.approx(1 / 3)
    drawn.write_mask(found / "s0.nii.gz", np.zeros((16, 18, 13), np.uint8), np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(Misuse, match="does not lie on the grid of"):
        judge_folders(found, true, *classes_of_both(found, true, ""))


def test_a_sheared_grid_is_measured_upright(tmp_path: Path) -> None:
    """A mask moved along the slices of a tilted series by one: two mm along z, and the shear beside."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = -1.0
    found, true = folders(tmp_path, affine)
    judged = judge_folders(found, true, *classes_of_both(found, true, "iph"))
    same, moved, missed = judged.agreement.rows["dice"]
    assert same == 1
    assert moved == pytest.approx(5 / 6, abs=0.04)
    assert missed == 0
    volume_ml = judged.agreement.rows["true_ml"]
    assert volume_ml.iloc[0] == pytest.approx(6 * 7 * 6 * 2 / 1000, rel=0.05)


def test_a_sheared_grid_half_way_between_the_axes_of_the_patient(tmp_path: Path) -> None:
    """Turned by 45 degrees about the table, each row runs as much to the right as to the front."""
    turn = np.eye(4)
    turn[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    shear = np.diag([1.0, 1.5, 2.0, 1.0])
    shear[1, 2] = -1.0
    found, true = folders(tmp_path, turn @ shear)
    rows = judge_folders(found, true, *classes_of_both(found, true, "iph")).agreement.rows
    assert rows["dice"].iloc[0] == 1
    assert rows["true_ml"].iloc[0] == pytest.approx(6 * 7 * 6 * 1.5 * 2 / 1000, rel=0.1)


def test_classes_are_joined_as_they_were_learned(tmp_path: Path) -> None:
    """The true masks of a class that joins two have the two, under other values, or have it joined too."""
    found, true = folders(tmp_path, np.eye(4))
    (found / "classes.csv").write_bytes(write_table(("ich", "sdh"), "ich=iph+ivh,sdh"))
    (true / "classes.csv").write_text("value,name\n4,sdh\n1,iph\n3,ivh\n")
    of_truth, of_drawn = classes_of_both(found, true, "")
    assert (of_truth.names, of_truth.values) == (("ich", "sdh"), ((1, 3), (4,)))
    assert (of_drawn.names, of_drawn.values) == (("ich", "sdh"), ((1,), (2,)))
    (true / "classes.csv").write_text("value,name\n4,sdh\n1,ich\n")
    assert classes_of_both(found, true, "")[0].values == ((1,), (4,))
    (true / "classes.csv").write_text("value,name\n4,sdh\n1,bleed\n")
    with pytest.raises(Misuse, match="'iph' is no class of the masks in") as refused:
        classes_of_both(found, true, "")
    assert refused.value.do == "say by --classes what it joins, of sdh, bleed: NAME=PART+PART"


def test_a_segmenter_knows_what_its_classes_joined(place: Path, tmp_path: Path) -> None:
    learned = gathered([Cohort(place / "cohort")], [], "lesion=1+2")
    assert learned[0].classes.definition == "lesion=ich+sdh"  # by names: the values of other masks may differ
    cohort = drawn.make(tmp_path / "c", 2)
    (cohort.path / "masks" / "classes.csv").write_text("value,name\n2,ich\n1,sdh\n7,brain\n")
    (again,) = gathered([cohort], [], "", learned="lesion=ich+sdh")
    assert (again.classes.names, again.classes.values) == (("lesion",), ((1, 2),))
    (cohort.path / "masks" / "classes.csv").write_text("value,name\n2,lesion\n1,brain\n")
    assert gathered([cohort], [], "", learned="lesion=ich+sdh")[0].classes.values == ((2,),)


def test_a_value_without_a_name_is_not_looked_up_where_values_have_names(tmp_path: Path) -> None:
    """`bleed=1` was learned without a table; 1 may be anything in a folder that has one."""
    table = tmp_path / "classes.csv"
    assert as_learned(tmp_path, "bleed=1,rest=2+3") == "bleed=1,rest=2+3"
    table.write_text("value,name\n1,brain\n2,bleed\n")
    assert read_classes([tmp_path], as_learned(tmp_path, "bleed=1")).values == ((2,),)
    assert as_learned(tmp_path, "bleed=brain+4") == "bleed"
    table.write_text("value,name\n1,brain\n")
    with pytest.raises(Misuse, match="'bleed' is no class of the masks in"):
        read_classes([tmp_path], as_learned(tmp_path, "bleed=1"))


def test_classes_that_do_not_match(tmp_path: Path) -> None:
    found, true = folders(tmp_path, np.eye(4))
    (true / "classes.csv").write_text("value,name\n1,iph\n2,ivh\n3,sdh\n")
    of_truth, of_drawn = classes_of_both(found, true, "")
    assert (of_truth.values, of_drawn.values) == (((1,), (3,)), ((1,), (2,)))
    with pytest.raises(Misuse, match="'ivh' is no class"):
        classes_of_both(found, true, "ich=iph+ivh")
    (found / "classes.csv").unlink()
    of_truth, of_drawn = classes_of_both(found, true, "ich=iph+ivh")
    assert of_drawn.values == ((1, 2),)
    with pytest.raises(Misuse, match=r"no mask in .* is called as one in"):
        judge_folders(made_empty(tmp_path), true, of_truth, of_drawn)
    with pytest.raises(Misuse, match="there is no folder"):
        judge_folders(tmp_path / "gone", true, of_truth, of_drawn)


def made_empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_patients_of_a_cohort(tmp_path: Path) -> None:
    cohort = drawn.make(tmp_path / "c", 4, scans_each=2)
    masks = tmp_path / "c" / "masks"
    judged = judge_folders(masks, masks, *classes_of_both(masks, masks, ""), cohort=cohort)
    assert judged.agreement.rows["patient_id"].nunique() == 4
    assert judged.agreement.metrics()["ich"]["dice"]["value"] == 1
    assert judged.notes == (UNKNOWN_DRAWER,)
    drawn.write_mask(tmp_path / "more" / "stranger.nii.gz", np.zeros((4, 4, 4), np.uint8), np.eye(4))
    for path in masks.iterdir():
        (tmp_path / "more" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "more" / f"{next(iter(cohort))}.nii.gz").unlink()
    more = tmp_path / "more"
    assert judge_folders(masks, more, *classes_of_both(masks, more, ""), cohort=cohort).notes == (
        UNKNOWN_DRAWER,
        "1 masks in masks have no true mask beside them, and are left out",
        "1 true masks are of no scan of the cohort, and are left out",
    )
    other = made.make(tmp_path / "o", 2, seed=9)
    with pytest.raises(Misuse, match="is of a scan of the cohort"):
        judge_folders(masks, masks, *classes_of_both(masks, masks, ""), cohort=other)


def test_outlines_lie_on_the_border() -> None:
    numbers = np.zeros((8, 9), np.uint8)
    numbers[2:6, 3:7] = 1
    seen = outlined(np.full((8, 9), 100, np.uint8), numbers)
    coloured = (seen != 100).any(axis=2)
    inner = np.zeros_like(coloured)
    inner[3:5, 4:6] = True
    np.testing.assert_array_equal(coloured, (numbers == 1) & ~inner)
