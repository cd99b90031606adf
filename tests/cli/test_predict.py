"""`headct predict` as it is typed: the table, the JSON, what was rejected, exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, load, save
from headct.cli.app import run
from headct.cohort.labels import read_labels
from headct.detection import AdaptSettings, Detector, adapt
from headct.detection.detector import PREDICTIONS
from headct.detection.reasons import VIRTUAL
from headct.embedding.machine import choose
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cohort`, and a detector of its findings in `detector`, whose encoder takes scans as they are prepared."""
    folder = tmp_path_factory.mktemp("predict")
    cohort = made.make(folder / "cohort", 24)
    made.truth(cohort).to_csv(folder / "labels.csv", index=False)
    torch.manual_seed(0)
    save(folder / "model", encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    encoder = load(folder / "model")
    labels = read_labels(folder / "labels.csv", [cohort])
    settings = AdaptSettings(method="linear")
    adapt([cohort], labels, encoder, choose("fp32", "cpu"), folder / "cache", settings).save(folder / "detector")
    return folder


def line(place: Path, out: Path, *inputs: Path) -> list[str]:
    options = ["--detector", str(place / "detector"), "--out", str(out), "--precision", "fp32", "--device", "cpu"]
    return ["predict", *map(str, inputs or [place / "cohort"]), *options]


def test_a_cohort_becomes_a_table(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.parquet"
    assert run(line(place, out)) == 0
    said = capsys.readouterr()
    assert "probability" in said.out
    assert "24 scans, 48 rows" in said.err
    assert "and 28 more rows" in said.err
    assert re.search(r"\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\) +0\.\d+ +(yes|no)(, close)? ", said.out)
    assert "not a medical device" in said.err
    assert len(pd.read_parquet(out)) == 48


def test_a_reason_is_told_once_with_how_many_scans_have_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.make(tmp_path / "thick", 3, thickness_mm=12)
    assert run(line(place, tmp_path / "p.parquet", tmp_path / "thick")) == 0
    told = capsys.readouterr().out
    assert re.findall(r"slices of 12 mm; training had up to 5 mm +(\d+)", told) == ["3"]
    assert "the answer might be the other" not in told  # which `close` says


def test_files_and_json(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scan through the front door: its header says what training did not have, and a letter is rejected."""
    scan = Phantom(1).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4)
    scan = replace(scan, header=replace(scan.header, patient_id="0042"))
    write_dicom(scan, tmp_path / "in" / "patient")
    (tmp_path / "in" / "letter.txt").write_text("dear colleague")
    assert run([*line(place, tmp_path / "p.parquet", tmp_path / "in"), "--keep-ids", "--json"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [row["finding"] for row in rows] == ["ich", "sdh"]
    assert list(rows[0]) == PREDICTIONS.names
    assert rows[0]["patient_id"] == "0042"
    assert {Path(file).parent for file in rows[0]["files"]} == {Path("in/patient")}  # from where the input lies
    assert len(rows[0]["files"]) == 26
    assert "slices of 7 mm; training had up to 5 mm" in rows[0]["reasons"]
    assert "unknown-format" in said.err
    assert f"what was seen in the others: {tmp_path / 'p.rejections.parquet'}" in said.err


def test_nothing_to_look_at_ends_with_1(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear colleague")
    assert run(line(place, tmp_path / "p.parquet", tmp_path / "letter.txt")) == 1
    assert "nothing could be looked at\n  why: unknown-format (1)" in capsys.readouterr().err


def test_what_cannot_work_is_said_before_the_detector_is_loaded(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (
        (line(place, tmp_path / "p.csv"), "name "),
        (line(place, tmp_path / "p.parquet", tmp_path / "typo"), "there is no"),
        (
            [*line(place, tmp_path / "p.parquet")[:2], "--detector", str(tmp_path / "none"), "--out", "p.parquet"],
            "none",
        ),
    ):
        assert run(words) == 2
        said = capsys.readouterr().err
        assert says in said
        assert "\n  do:  " in said
    assert list(tmp_path.iterdir()) == []


def test_a_cohort_of_another_recipe_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = next(recipe for name, recipe in recipes.items() if name != "head")
    made.make(tmp_path / "other", 2, recipe=other)
    assert run(line(place, tmp_path / "p.parquet", tmp_path / "other")) == 2
    assert "the model uses head" in capsys.readouterr().err


def test_a_page_for_one_scan_and_an_index_for_several(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.make(tmp_path / "few", 3)
    words = line(place, tmp_path / "p.parquet", tmp_path / "few")
    assert run([*words, "--page", str(tmp_path / "pages.html"), "--quiet"]) == 0
    table = pd.read_parquet(tmp_path / "p.parquet")
    index = (tmp_path / "pages.html").read_text()
    links = re.findall(r'href="(pages/\d+\.html)">(\w+)</a>', index)
    assert {scan_id for _, scan_id in links} == set(table["scan_id"])
    for link, scan_id in links:
        page = (tmp_path / link).read_text()
        assert f"Findings on {scan_id}" in page
        for row in table[table["scan_id"] == scan_id].to_dict("records"):
            assert f"{row['probability']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in page
    assert any("weight 0." in (tmp_path / link).read_text() for link, _ in links)
    made.make(tmp_path / "two", 2)
    assert run([*line(place, tmp_path / "q.parquet", tmp_path / "two"), "--page", str(tmp_path / "pages.html")]) == 0
    assert len(list((tmp_path / "pages").iterdir())) == 2  # and none of the third scan
    capsys.readouterr()
    write_dicom(Phantom(1).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4), tmp_path / "one")
    assert run([*line(place, tmp_path / "one.parquet", tmp_path / "one"), "--page", str(tmp_path / "one.html")]) == 0
    assert "1 page: " in capsys.readouterr().err
    only = (tmp_path / "one.html").read_text()
    assert "Slices of 7 mm; training had up to 5 mm." in only


def test_a_detector_of_virtual_patients_says_so(place: Path, tmp_path: Path) -> None:
    """In its card, and of scans that may be of people in tables and on pages; not where a patient is virtual anyway."""
    cohort = made.make(tmp_path / "cohort", 24, virtual=True)
    made.truth(cohort).to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", [cohort])
    settings, machine = AdaptSettings(method="linear"), choose("fp32", "cpu")
    encoder = load(place / "model")
    adapt([cohort], labels, encoder, machine, tmp_path / "cache", settings).save(tmp_path / "detector")
    assert VIRTUAL in (tmp_path / "detector" / "README.md").read_text()
    assert VIRTUAL not in (place / "detector" / "README.md").read_text()
    others = {
        "people": made.make(tmp_path / "people", 3, seed=3),
        "person": made.make(tmp_path / "person", 1, seed=4),
        "virtual": made.make(tmp_path / "virtual", 3, seed=5, virtual=True),
    }
    told, pages = {}, {}
    for names in (["people"], ["person"], ["virtual"], ["people", "virtual"]):
        name = "-".join(names)
        words = line(tmp_path, tmp_path / f"{name}.parquet", *(others[one].path for one in names))
        assert run([*words, "--page", str(tmp_path / f"{name}.html"), "--quiet"]) == 0
        table = pd.read_parquet(tmp_path / f"{name}.parquet")
        told[name] = {row["scan_id"]: VIRTUAL in row["reasons"] for row in table.to_dict("records")}
        pages[name] = (tmp_path / f"{name}.html").read_text()
    assert all([*told["people"].values(), *told["person"].values()])
    assert not any(told["virtual"].values())
    assert told["people-virtual"] == {**told["people"], **told["virtual"]}
    said = "what it says of real ones has not been measured"
    assert {name: said in page for name, page in pages.items()} == {name: name != "virtual" for name in pages}
    assert ["Reason to doubt all of it" in pages[name] for name in ("people", "people-virtual")] == [True, False]
    detector = Detector.load(tmp_path / "detector")
    assert all(VIRTUAL in reasons for reasons in detector.predict(others["people"], device="cpu")["reasons"])


def test_a_page_that_is_not_ours_is_kept(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    for page, says in (("mine.html", "headct did not write it"), ("page.txt", "is not called so")):
        assert run([*line(place, tmp_path / "p.parquet"), "--page", str(tmp_path / page)]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "p.parquet").exists()
