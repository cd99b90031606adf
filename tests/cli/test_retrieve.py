"""`headct retrieve` as it is typed: the three commands in a row, exit codes and words for what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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
from headct.tasks.retrieval import Index
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom

COLD = ["--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cohort` (two scans a patient), `labels.csv`, `model`, `other-model`, and `index`."""
    folder = tmp_path_factory.mktemp("retrieve")
    made.truth(made.make(folder / "cohort", 16, scans_each=2)).to_csv(folder / "labels.csv", index=False)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8)}
    for name, recipe, seed, grid in (
        ("model", "head", 0, (6, 7, 6)),
        ("other-model", "head", 1, (6, 7, 6)),
        ("other-recipe", "head-coarse", 0, (6, 7, 6)),
    ):
        torch.manual_seed(seed)
        encoder = encoders.build("vit-tiny", **shape, grid=grid)
        save(folder / name, encoder, Card(recipe=recipes[recipe], windows=WINDOWS))
    line = ["build", str(folder / "cohort"), "--model", str(folder / "model"), "--out", str(folder / "index"), *COLD]
    assert run(["retrieve", *line]) == 0
    return folder


def test_a_scan_of_the_index(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan_id = Cohort(place / "cohort").scans["scan_id"][5]
    out = tmp_path / "page.html"
    assert (
        run(["retrieve", "query", str(place / "index"), "--scan-id", scan_id, "-k", "4", "--out", str(out), "--json"])
        == 0
    )
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert "p002" not in {row["patient_id"] for row in rows}
    assert {row["manufacturer"] for row in rows} == {"ACME"}
    html = out.read_text()
    assert html.count("<img") == 3 * 5
    assert "One other scan of the query" in html
    assert "brain 40/80" in html
    assert "none that is more alike was missed" in html
    assert (
        run(["retrieve", "query", str(place / "index"), "--scan-id", scan_id, "--own-patient", "-k", "31", "--json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 31
    assert [row["patient_id"] for row in rows].count("p002") == 1
    assert scan_id not in {row["scan_id"] for row in rows}


def test_a_vector_and_a_scan_from_a_cohort(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = Index(place / "index")
    assert index.pseudonyms == "none"
    np.save(tmp_path / "own.npy", index.vectors[3])
    assert run(["retrieve", "query", str(place / "index"), "--vector", str(tmp_path / "own.npy"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["scan_id"] == index.scans["scan_id"][3]
    assert "is most likely the scan own.npy, row 1 itself" in said.err
    one = made.make(tmp_path / "one", 1, seed=9)
    line = ["retrieve", "query", str(place / "index"), str(tmp_path / "one"), *COLD, "--out", str(tmp_path / "p.html")]
    assert run([*line, "--where", "thickness<=5"]) == 0
    said = capsys.readouterr()
    assert next(iter(one)) in said.out
    assert "p000" not in said.out.replace("query", "")  # by its id it is of the same patient
    assert "Only scans with thickness&lt;=5 were looked at" in (tmp_path / "p.html").read_text()


def test_a_scan_in_files_and_what_is_none(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = Phantom(1).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4, noise_hu=2.0)
    write_dicom(head, tmp_path / "scan")
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (12, 14, 12), "grid": (8, 8, 8)}
    save(tmp_path / "m", encoders.build("vit-tiny", **shape), Card(recipe=recipes["head"], windows=WINDOWS))
    ids = ["--keep-ids", "--out", str(tmp_path / "v.parquet"), *COLD]
    assert run(["embed", str(tmp_path / "scan"), "--model", str(tmp_path / "m"), *ids]) == 0
    assert run(["retrieve", "build", str(tmp_path / "v.parquet"), "--out", str(tmp_path / "i")]) == 0
    assert "without --cohort the index knows no scanner" in capsys.readouterr().err
    line = ["retrieve", "query", str(tmp_path / "i"), "--model", str(tmp_path / "m"), "--keep-ids", *COLD]
    assert run([*line, str(tmp_path / "scan")]) == 2
    assert "nothing is left to find but the query itself" in capsys.readouterr().err
    otherwise = [word for word in line if word != "--keep-ids"]
    user_key(tmp_path / "key")
    otherwise += ["--key", str(tmp_path / "key"), str(tmp_path / "scan")]
    assert run([*otherwise, "--out", str(tmp_path / "p.html")]) == 0
    said = capsys.readouterr().err
    assert "the query and the index i call patients by pseudonyms of " in said
    assert "and by ids: scans of the query's own patient, and the query itself, are not known as such" in said
    assert "is most likely the scan" in said
    assert "call patients by pseudonyms of" in (tmp_path / "p.html").read_text()
    assert run([*otherwise, "--own-patient"]) == 0
    assert "call patients by" not in capsys.readouterr().err
    (tmp_path / "letter.txt").write_text("dear colleague")
    assert run([*line, str(tmp_path / "letter.txt")]) == 1
    assert "no scan to look for" in capsys.readouterr().err
    assert run(["retrieve", "query", str(tmp_path / "i"), str(tmp_path / "scan")]) == 2
    assert "does not say which model made it" in capsys.readouterr().err


def test_judged(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "judged"
    line = ["retrieve", "evaluate", str(place / "index"), "--labels", str(place / "labels.csv"), "--out", str(out)]
    assert run([*line, "--ks", "1,3", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree) == {"ich", "sdh"}
    leaf = tree["ich"]["precision_at_3"]
    assert set(leaf) == {"value", "low", "high", "n", "positives", "method", "chance", "gain"}
    assert leaf["n"] == 16
    assert leaf["chance"] == pytest.approx(14 / 30)
    assert tree["ich"]["precision_at_1"]["value"] > 0.8  # the block is painted in
    assert json.loads((out / "metrics.json").read_text())["findings"] == tree
    html = (out / "report.html").read_text()
    assert "Neighbours share intracranial hemorrhage (16 queries)" in html
    assert " more often than by chance." in html
    assert run([*line, "--relevance", "same", "--findings", "sdh"]) == 0
    assert "mAP against chance" in capsys.readouterr().out


def test_labels_without_the_cohort(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((place / "index" / "index.json").read_text())
    moved = tmp_path / "index"
    moved.mkdir()
    for file in (place / "index").iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "index.json").write_text(json.dumps(about | {"cohort": "/gone"}))
    line = ["retrieve", "evaluate", str(moved), "--out", str(tmp_path / "j"), "--json", "--labels"]
    assert run([*line, str(place / "labels.csv")]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"ich", "sdh"}
    (tmp_path / "other.csv").write_text("scan_id,patient_id,ich\na,b,1\nc,d,0\n")
    assert run([*line, str(tmp_path / "other.csv")]) == 2
    assert "labels no scan of the index" in capsys.readouterr().err
    page = tmp_path / "q.html"
    scan_id = Index(moved).scans["scan_id"][0]
    assert run(["retrieve", "query", str(moved), "--scan-id", scan_id, "--out", str(page)]) == 0
    assert "without pictures" in capsys.readouterr().err
    assert "No pictures" in page.read_text()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["retrieve"], 2, "retrieve is build, query or evaluate"),
        (["retrieve", "build", "{cohort}", "--out", "{tmp}/i"], 2, "a cohort needs an encoder"),
        (["retrieve", "build", "{cohort}", "--out", "{tmp}/i", "--model", "{other-recipe}"], 2, "uses recipe head"),
        (["retrieve", "build", "{empty}", "--out", "{tmp}/i", "--model", "{model}"], 2, "has no scans"),
        (["retrieve", "build", "{cohort}", "--out", "{tmp}/i", "--metric", "dot"], 2, "no metric is called 'dot'"),
        (["retrieve", "build", "{cohort}", "--out", "{cohort}", "--model", "{model}"], 2, "and is no index"),
        (["retrieve", "query", "{index}"], 2, "a query is scans, --scan-id or --vector"),
        (["retrieve", "query", "{cohort}", "--scan-id", "x"], 2, "is no index"),
        (["retrieve", "query", "{index}", "--scan-id", "x"], 2, "no scan 'x' in the index"),
        (["retrieve", "query", "{index}", "{cohort}", "--model", "{other-model}"], 2, "the index was made by vit-tiny"),
        (["retrieve", "query", "{index}", "{cohort}", "--model", "{other-recipe}"], 2, "the index uses recipe"),
        (["retrieve", "query", "{index}", "--vector", "{short}"], 2, "has vectors of 24 numbers, the query has 3"),
        (["retrieve", "query", "{index}", "--vector", "{nan}"], 2, "vectors are not finite: nan.npy, row 1"),
        (["retrieve", "query", "{index}", "--vector", "{labels}.npy"], 2, "there is no file"),
        (["retrieve", "query", "{index}", "--vector", "{short}", "--out", "{tmp}/p.pdf"], 2, "a page is an HTML file"),
        (["retrieve", "query", "{index}", "--scan-id", "{scan}", "--where", "sex=F"], 2, "no scan meets 'sex=F'"),
        (
            ["retrieve", "query", "{index}", "--scan-id", "{scan}", "--where", "thicknes=5"],
            2,
            "did you mean thickness?",
        ),
        (["retrieve", "evaluate", "{index}", "--labels", "{nobody}", "--out", "{tmp}/j"], 2, "matches no scan"),
        (
            ["retrieve", "evaluate", "{index}", "--labels", "{one}", "--out", "{tmp}/j"],
            2,
            "no finding can be judged by",
        ),
        (["retrieve", "evaluate", "{index}", "--labels", "{labels}", "--out", "{tmp}/j", "--ks", "x"], 2, "no numbers"),
    ],
)
def test_what_cannot_work_is_said_with_what_to_do(
    words: list[str], code: int, says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "short.npy", np.zeros(3))
    np.save(tmp_path / "nan.npy", np.full(24, np.nan))
    (tmp_path / "nobody.csv").write_text("scan_id,ich\nx,1\ny,0\n")
    (tmp_path / "one.csv").write_text("patient_id,ich\np000,1\np001,0\n")
    if "{empty}" in words:
        made.make(tmp_path / "empty", 0)
    known = {name: str(place / name) for name in ("cohort", "index", "model", "other-model", "other-recipe")}
    known |= {"labels": str(place / "labels.csv"), "tmp": str(tmp_path), "empty": str(tmp_path / "empty")}
    known |= {"short": str(tmp_path / "short.npy"), "nan": str(tmp_path / "nan.npy")}
    known |= {"nobody": str(tmp_path / "nobody.csv"), "one": str(tmp_path / "one.csv")}
    known |= {"scan": "0" * 16}
    line = words
    for name, value in known.items():
        line = [word.replace(f"{{{name}}}", value) for word in line]
    if "query" in line or "build" in line:
        line = [*line, *COLD]
    assert run(line) == code
    said = capsys.readouterr().err
    assert says in said
    assert "do:" in said
