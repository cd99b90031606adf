"""`headct search` as it is typed: table, JSON, files, a scan from a file, wrong words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, save
from headct.cli.app import run
from headct.cohort import Cohort
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.reading.pseudonyms import user_key
from headct.virtual.phantom import Phantom
from headct.writing import write_nifti


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    made.make(folder / "cohort", 3)
    torch.manual_seed(0)
    save(folder / "model", encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    return folder


def line(place: Path, *more: str, scan: str = "") -> list[str]:
    scan = scan or next(iter(Cohort(place / "cohort")))
    where = ["--in", str(place / "cohort"), "--model", str(place / "model")]
    return ["search", "--from", scan, *where, "--precision", "fp32", "--device", "cpu", *more]


def test_a_point_becomes_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(place, "--point", "60,100,80")) == 0
    said = capsys.readouterr()
    assert "forward_backward_mm" in said.out
    assert "2 scans, cells of 16 x 16 x 16 mm" in said.err
    assert "not a medical device" in said.err


def test_a_file_and_json_and_a_point_left_of_the_middle(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head through the front door; its point starts with a minus."""
    scan = Phantom(1).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4)
    write_nifti(scan, tmp_path / "head.nii.gz")
    words = line(
        place, "--point", "-10,-20,30", "--json", "--out", str(tmp_path / "out"), scan=str(tmp_path / "head.nii.gz")
    )
    assert run(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    assert rows[0].keys() == {"scan_id", "r_mm", "a_mm", "s_mm", "similarity", "forward_backward_mm"}
    assert len(pd.read_csv(tmp_path / "out" / "found.csv")) == 3
    assert (tmp_path / "out" / "page.html").is_file()


def test_the_query_of_a_cohort_of_another_key_is_left_out_by_that_key(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own scan agrees best of all, at no distance, and would be the first row."""
    for seed in (1, 2):
        write_nifti(
            Phantom(seed).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4), tmp_path / f"{seed}.nii.gz"
        )
    scans = [str(tmp_path / f"{seed}.nii.gz") for seed in (1, 2)]

    def rows(*ids: str) -> int:
        words = ["search", "--from", scans[0], "--in", str(tmp_path / "c"), "--model", str(place / "model"), "--json"]
        assert run([*words, "--point", "-10,-20,30", "--precision", "fp32", "--device", "cpu", *ids]) == 0
        return len(json.loads(capsys.readouterr().out))

    for ids in (["--key", str(tmp_path / "key")], ["--keep-ids"]):
        assert run(["ingest", *scans, "--recipe", "head", "--out", str(tmp_path / "c"), "--workers", "1", *ids]) == 0
        capsys.readouterr()
        assert rows(*ids) == 1
        if (
            ids[0] == "--key"
        ):  # of NIfTI files, whose ids are those of their voxels, other ids are told by the key alone
            user_key(tmp_path / "other")
            assert rows("--key", str(tmp_path / "other")) == 2
        shutil.rmtree(tmp_path / "c")


def test_a_box_and_maps_of_cosines(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(place, "--box", "40,60,40,80,120,90", "--heat", "--out", str(tmp_path / "out"))) == 0
    assert "r_low_mm" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "similarity").iterdir())) == 2
    assert run(line(place, "--box", "40,60,40,80,120,90", "--out", str(tmp_path / "out"))) == 0
    assert not list((tmp_path / "out" / "similarity").iterdir())  # they were of another search


def test_a_key_that_is_not_there_knows_nobody(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(place, "--point", "60,100,80", "--key", str(tmp_path / "no.key"))) == 2
    assert "there is no key" in capsys.readouterr().err
    assert not (tmp_path / "no.key").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--point", "1,2"], "--point 1,2 is not 3 numbers"),
        (["--point", "a,b,c"], "is not 3 numbers"),
        (["--box", "1,2,3"], "is not 6 numbers"),
        (["--box", "5,5,5,1,1,1"], "holds nothing"),
        ([], "one point or one box"),
        (["--point", "1,2,3", "--box", "1,2,3,4,5,6"], "one point or one box"),
        (["--point", "9999,2,3"], "outside the head"),
        (["--point", "nan,2,3"], "not three numbers"),
        (["--point", "60,100,80", "--heat"], "--heat writes files"),
        (["--point", "60,100,80", "--patch", "-3"], "edge of 0 mm or more"),
    ],
)
def test_wrong_words_end_with_2_and_say_what_to_do(
    place: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line(place, *more)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "\n  do:  " in said or "edge of" in said
