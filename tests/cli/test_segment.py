"""`headct segment` as it is typed: the three commands in a row, exit codes and words for what cannot work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tasks.segmentation import drawn

from headct.cli.app import run
from headct.cohort import Cohort
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom

COLD = ["--device", "cpu"]
QUICK = ["--steps", "2", "--window", "48,56,48", "--batch", "1", *COLD]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cohort`, `other` (of other patients too), `model`, `other-recipe`, `empty`, and `segmenter`."""
    folder = tmp_path_factory.mktemp("segment")
    drawn.make(folder / "cohort", 4)
    drawn.make(folder / "other", 7, seed=2)
    drawn.model(folder / "model")
    drawn.model(folder / "other-recipe", recipe="head")
    (folder / "empty").mkdir()
    line = ["segment", "train", str(folder / "cohort"), "--model", str(folder / "model")]
    assert run([*line, "--out", str(folder / "segmenter"), *QUICK]) == 0
    return folder


def test_draw_and_judge(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dicom(
        Phantom(1).scan(slices=26, gap_mm=7.0, rows=64, cols=64, pixel_mm=3.2, tilt_deg=12.0), tmp_path / "in/a"
    )
    (tmp_path / "in" / "letter.txt").write_text("dear colleague")
    line = ["segment", "predict", str(tmp_path / "in"), str(place / "other"), "--segmenter", str(place / "segmenter")]
    assert run([*line, "--out", str(tmp_path / "drawn"), "--keep-ids", "--json", *COLD]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [row["grid"] for row in rows] == ["scanner", *["recipe"] * 7]
    assert {"ich_ml", "sdh_ml", "nifti", "segmentation"} <= rows[0].keys()
    assert "unknown-format" in said.err
    line = ["segment", "evaluate", str(place / "other"), "--segmenter", str(place / "segmenter")]
    assert run([*line, "--out", str(tmp_path / "judged"), "--json", *COLD]) == 0
    said = capsys.readouterr()
    assert "4 scans of patients that the segmenter has learned from are left out" in said.err
    tree = json.loads(said.out)
    assert tree["ich"]["dice"]["n"] == 1
    masks = ["--drawn", str(tmp_path / "drawn" / "masks"), "--masks", str(place / "other" / "masks")]
    assert run(["segment", "evaluate", str(place / "other"), *masks, "--out", str(tmp_path / "j2"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["ich"]["dice"]["n"] == 3  # files do not say who was learned from
    assert {path.name for path in (tmp_path / "j2").iterdir()} == {"segments.csv", "metrics.json", "report.html"}


def test_joined_classes_are_judged_as_they_were_learned(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["segment", "train", str(place / "cohort"), "--model", str(place / "model"), "--classes", "lesion=ich+sdh"]
    assert run([*line, "--out", str(tmp_path / "s"), *QUICK]) == 0
    assert "warning" not in capsys.readouterr().err
    other, segmenter = str(place / "other"), ["--segmenter", str(tmp_path / "s")]
    assert run(["segment", "evaluate", other, *segmenter, "--out", str(tmp_path / "j"), "--json", *COLD]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"lesion"}
    assert run(["segment", "predict", other, *segmenter, "--out", str(tmp_path / "d"), *COLD]) == 0
    capsys.readouterr()
    masks = ["--drawn", str(tmp_path / "d" / "masks"), "--masks", str(place / "other" / "masks")]
    assert run(["segment", "evaluate", *masks, "--out", str(tmp_path / "j2"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"lesion"}


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on(place: Path, tmp_path: Path) -> None:
    """By the real signal, after the first look was saved; then the same line gives the same weights as one in a go."""
    line = ["segment", "train", str(place / "cohort"), "--model", str(place / "model"), *COLD]
    line += ["--window", "24,28,24", "--batch", "1", "--steps", "26"]
    process = subprocess.Popen([sys.executable, "-m", "headct", *line, "--out", str(tmp_path / "killed")])
    until = time.monotonic() + 300
    while not list((tmp_path / ".killed.training").glob("states/*.pt")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    models = []
    for name in ("killed", "whole"):
        subprocess.run([sys.executable, "-m", "headct", *line, "--out", str(tmp_path / name)], check=True)
        models.append((tmp_path / name / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_nothing_to_draw_on_ends_with_1(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear colleague")
    line = ["segment", "predict", str(tmp_path / "letter.txt"), "--segmenter", str(place / "segmenter")]
    assert run([*line, "--out", str(tmp_path / "out"), *COLD]) == 1
    assert "nothing could be drawn on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["segment"], "segment is train, predict or evaluate"),
        (["segment", "train", "{cohort}", "--model", "{other-recipe}", "--out", "{tmp}/s"], "the model uses head"),
        (["segment", "train", "{empty}", "--model", "{model}", "--out", "{tmp}/s"], "cohort"),
        (["segment", "train", "{cohort}", "{cohort}", "--model", "{model}", "--out", "{tmp}/s"], "is named twice"),
        (["segment", "train", "{cohort}", "--model", "{model}", "--out", "{segmenter}"], "exists already"),
        (["segment", "train", "{cohort}", "--model", "{model}", "--out", "{tmp}/s", "--shots", "9"], "9 patients"),
        (["segment", "train", "{cohort}", "--model", "{model}", "--out", "{tmp}/s", "--window", "9"], "three whole"),
        (["segment", "train", "{cohort}", "--model", "{model}", "--out", "{tmp}/s", "--classes", "iph"], "no class"),
        (["segment", "train", "{cohort}", "--model", "{model}", "--out", "{tmp}/s", "--masks", "{empty}"], "not known"),
        (
            ["segment", "train", "{cohort}", "--model", "{model}", "--out", "{tmp}/s", "--decoder", "segresnet"],
            "does not fit vit-tiny",
        ),
        (["segment", "predict", "{cohort}", "--segmenter", "{model}", "--out", "{tmp}/o"], "is not a segmenter"),
        (["segment", "predict", "{cohort}", "--segmenter", "{segmenter}", "--out", "{cohort}"], "holds other things"),
        (["segment", "evaluate", "{other}", "--out", "{tmp}/j"], "give --segmenter or --drawn"),
        (["segment", "evaluate", "--segmenter", "{segmenter}", "--out", "{tmp}/j"], "the scans of a cohort"),
        (["segment", "evaluate", "{cohort}", "--segmenter", "{segmenter}", "--out", "{tmp}/j"], "has learned from"),
        (["segment", "evaluate", "--drawn", "{empty}", "--out", "{tmp}/j"], "give --masks DIR once"),
    ],
)
def test_what_cannot_work_is_said_with_what_to_do(
    words: list[str], says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {name: str(place / name) for name in ("cohort", "other", "model", "other-recipe", "empty", "segmenter")}
    line = words
    for name, value in (known | {"tmp": str(tmp_path)}).items():
        line = [word.replace(f"{{{name}}}", value) for word in line]
    code = run([*line, *COLD] if len(line) > 1 else line)
    assert code in (1, 2)
    assert code == 2 or "{empty}" in words
    assert says in capsys.readouterr().err


def test_a_mask_of_another_shape_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan_id = next(iter(Cohort(place / "cohort")))
    drawn.write_mask(tmp_path / "masks" / f"{scan_id}.nii.gz", np.zeros((5, 5, 5), np.uint8), np.eye(4))
    line = ["segment", "train", str(place / "cohort"), "--masks", str(tmp_path / "masks"), "--classes", "ich=1"]
    assert run([*line, "--model", str(place / "model"), "--out", str(tmp_path / "s"), *QUICK]) == 2
    said = capsys.readouterr().err
    assert f"{scan_id}.nii.gz has the shape 5 x 5 x 5" in said
    assert not (tmp_path / "s").exists()
