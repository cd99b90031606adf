"""`headct explain` as it is typed: a scan of a cohort, a mask, JSON, wrong input of every kind."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, load, save
from headct.cli.app import run
from headct.cohort import Cohort
from headct.cohort.labels import read_labels
from headct.detection import AdaptSettings, adapt
from headct.embedding.inputs import Ready, one_scan
from headct.embedding.machine import choose
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.scan import Scan
from headct.writing import write_nifti


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    cohort = made.make(folder / "cohort", 16)
    made.make(folder / "one", 1)
    made.make(folder / "other", 1, recipe=recipes["head-fine"])
    made.truth(cohort).to_csv(folder / "labels.csv", index=False)
    torch.manual_seed(0)
    model = encoders.build("conv-tiny", widths=(4, 8, 12), blocks=(1, 1, 1))
    save(folder / "model", model, Card(recipe=recipes["head"], windows=WINDOWS))
    labels = read_labels(folder / "labels.csv", [cohort])
    settings = AdaptSettings(method="linear")
    machine = choose("fp32", "cpu")
    adapt([cohort], labels, load(folder / "model"), machine, folder / "cache", settings).save(folder / "detector")
    mask = np.zeros(made.SHAPE, np.uint8)
    mask[8:28, 8:28, 8:28] = 1
    write_nifti(mask, folder / "mask.nii.gz", cohort.affine(next(iter(cohort))))
    write_nifti(mask[:, :, 0], folder / "flat.nii.gz", np.eye(4))
    write_nifti(np.where(mask > 0, np.nan, 0).astype(np.float32), folder / "nan.nii.gz", np.eye(4))
    return folder


def line(place: Path, scan: str, out: Path, *more: str) -> list[str]:
    quick = ["--box", "80", "--batch", "16", "--device", "cpu"]
    return ["explain", scan, "--detector", str(place / "detector"), "--out", str(out), *quick, *more]


def second(place: Path) -> str:
    """A scan with the bright block."""
    return list(Cohort(place / "cohort"))[1]


def test_a_scan_of_a_cohort_with_its_mask(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--in", str(place / "cohort"), "--finding", "ich", "--mask", str(place / "mask.nii.gz")]
    more += ["--method", "occlusion", "--method", "rollout"]
    assert run(line(place, second(place), tmp_path / "out", *more)) == 0
    said = capsys.readouterr()
    assert "occlusion" in said.out
    assert "left out: rollout, for conv-tiny has no attention" in said.err
    assert "1 map," in said.err
    assert "research software, not a medical device" in said.err
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "curves.csv", "explained.csv", "maps", "metrics.json", "overlays", "page.html", "scan.nii.gz",
    }  # fmt: skip


def test_a_cohort_of_one_scan_as_json(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headct.cli.progress.LINE_EVERY_S", 0.0)
    assert run(line(place, str(place / "one"), tmp_path / "out", "--method", "occlusion", "--json")) == 0
    said = capsys.readouterr()
    assert re.search(r"^looks: [\d,]+ of [\d,]+, .* per second, \d+ min left$", said.err, re.MULTILINE)
    told = json.loads(said.out)
    assert set(told) == {"ich", "sdh"}
    assert set(told["ich"]) == {"occlusion"}


def test_arrays_that_are_not_in_hu_are_refused_before_they_are_looked_at(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of FM-HCT's and CT-FM's recipe: windows in channels, so that a mask has another shape."""

    def windowed(*given: Any) -> Ready:
        ready = one_scan(*given)
        return replace(ready, array=np.stack([ready.array] * 3).astype(np.float32))

    monkeypatch.setattr("headct.embedding.inputs.one_scan", windowed)
    monkeypatch.setattr("headct.tasks.explanation.job.can_look", lambda _: False)
    more = ["--in", str(place / "cohort"), "--finding", "ich", "--mask", str(place / "mask.nii.gz")]
    assert run(line(place, second(place), tmp_path / "out", *more)) == 2
    assert "gives arrays that are not in HU" in capsys.readouterr().err


def test_a_mask_called_after_another_scan_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(one for one in Cohort(place / "cohort") if one != second(place))
    mask = shutil.copy(place / "mask.nii.gz", tmp_path / f"{other}.nii.gz")
    more = ["--in", str(place / "cohort"), "--finding", "ich", "--mask", str(mask)]
    assert run(line(place, second(place), tmp_path / "out", *more)) == 2
    assert "is called after another scan of the cohort" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scan", "more", "says"),
    [
        ("SECOND", ["--in", "other"], "uses recipe head-fine"),
        ("unknown", ["--in", "cohort"], "no scan of that id"),
        ("nowhere.nii.gz", [], "there is no file or folder nowhere.nii.gz"),
        ("PLACE/cohort", [], "is a cohort of several scans"),
        ("SECOND", ["--in", "cohort", "--mask", "mask.nii.gz"], "of which finding"),
        ("SECOND", ["--in", "cohort", "--finding", "ich", "--mask", "flat.nii.gz"], "give one 3D label map a scan"),
        ("SECOND", ["--in", "cohort", "--finding", "ich", "--mask", "nan.nii.gz"], "NaN"),
        ("SECOND", ["--in", "cohort", "--mask", "mask.nii.gz", "--truth", "ich"], "is not FINDING=N,N"),
        ("SECOND", ["--in", "cohort", "--mask", "mask.nii.gz", "--truth", "iph=1"], "which is not explained"),
        ("nowhere.nii.gz", ["--truth", "ich=1"], "there is none"),
        ("SECOND", ["--in", "cohort", "--method", "magic"], "no method 'magic'"),
        ("SECOND", ["--in", "cohort", "--orders", "3"], "too few"),
    ],
)
def test_wrong_words_end_with_2(
    place: Path, tmp_path: Path, scan: str, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"SECOND": second(place), "PLACE/cohort": str(place / "cohort")}
    words = [str(place / one) if (place / one).exists() else one for one in more]
    assert run(line(place, named.get(scan, scan), tmp_path / "out", *words)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_part_of_the_body_ends_with_1(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A leg, as far as anyone can tell: bone inside soft tissue, and no braincase."""
    hu = np.full((40, 64, 64), -1000, np.int16)
    rows, cols = np.ogrid[:64, :64]
    away = np.hypot(rows - 32, cols - 32)
    hu[:, away < 26], hu[:, away < 6] = 40, 900
    origins = np.zeros((40, 3))
    origins[:, 2] = 5.0 * np.arange(40)
    leg = Scan(
        hu=hu,
        origins_mm=origins,
        row_step_mm=np.array([0, 3.0, 0]),
        col_step_mm=np.array([3.0, 0, 0]),
        thickness_mm=5.0,
    )
    write_nifti(leg, tmp_path / "leg.nii.gz")
    assert run(line(place, str(tmp_path / "leg.nii.gz"), tmp_path / "out")) == 1
    assert "no skull with a brain in it was found" in capsys.readouterr().err
