"""`headct adapt` as it is typed: what it says, what it makes, exit codes and words for what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, save
from headct.cli.app import run
from headct.detection import Detector
from headct.failure import Failure
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cohort`, `labels.csv`, and `model`, a checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("adapt")
    made.truth(made.make(folder / "cohort", 24)).to_csv(folder / "labels.csv", index=False)
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
    save(folder / "model", encoders.build("vit-tiny", **shape), Card(recipe=recipes["head"], windows=WINDOWS))
    return folder


def line(place: Path, out: Path, *more: str, labels: str = "labels.csv") -> list[str]:
    options = ["--labels", str(place / labels), "--model", str(place / "model"), "--out", str(out)]
    return ["adapt", str(place / "cohort"), *options, "--precision", "fp32", "--device", "cpu", *more]


def test_a_detector_and_what_was_learned_from(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "detector"
    assert run(line(place, out, "--method", "linear")) == 0
    said = capsys.readouterr()
    assert "column 'scan_id' is the scan id; 24 of 24 rows match" in said.err
    assert f"the detector (linear) is in {out}" in said.err
    assert "validation AUROC" in said.out
    assert "train with / without" in said.out
    assert "auto: " not in said.err
    assert Detector.load(out).findings == ("ich", "sdh")


def test_json_and_a_choice_of_findings(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", "knn", "--findings", "sdh", "--shots", "4", "--json", "--quiet"]
    assert run(line(place, tmp_path / "d", *options)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["finding"] for row in rows] == ["sdh"]
    assert (rows[0]["train_with"], rows[0]["train_without"]) == (4, 4)
    assert (tmp_path / "d" / "shots.csv").is_file()
    assert (tmp_path / ".headct-vectors").is_dir()


def test_auto_says_beforehand_what_it_will_do_and_what_is_quicker_on_a_cpu(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Failure("stopped where it would begin")

    monkeypatch.setattr("headct.detection.adapt", stop)
    assert run(line(place, tmp_path / "d")) == 1
    said = capsys.readouterr().err
    assert "auto: linear, then lora, then full; what is best on validation is taken" in said
    assert "--method linear is the first alone" in said
    assert run(line(place, tmp_path / "d", "--quiet")) == 1
    assert "auto:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "code", "says"),
    [
        ("scan_id,ich\nx,1\ny,0\n", [], 2, "own.csv matches no scan of the cohort"),
        ("patient_id,ich\np000,1\np001,1\n", [], 2, "2 labelled patients are too few"),
        ("patient_id,ich\n" + "".join(f"p{row:03d},1\n" for row in range(24)), [], 2, "ich has a single class"),
        ("patient_id,ich\np000,\np001,\n", [], 2, "own.csv has no finding"),
        ("patient_id,ich\np000,1\np000,0\n", [], 2, "own.csv contradict each other: rows 2, 3"),
        ("patient_id,ich\np000,1\n", ["--method", "magic"], 2, "no method is called 'magic'"),
        ("patient_id,ich\np000,1\n", ["--readers", "all"], 2, "no rule over readers is called 'all'"),
        ("patient_id,ich\np000,1\n", ["--findings", "sdh"], 2, "own.csv has no finding 'sdh'"),
    ],
)
def test_what_cannot_work_is_said_with_what_to_do(
    content: str,
    options: list[str],
    code: int,
    says: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own.csv").write_text(content)
    assert run(line(place, tmp_path / "d", *options, labels=str(tmp_path / "own.csv"))) == code
    said = capsys.readouterr().err
    assert says in said
    assert "\n  do:  " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.csv"]


def test_a_detector_that_is_there_is_kept(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d").mkdir()
    assert run(line(place, tmp_path / "d")) == 2
    assert f"{tmp_path / 'd'} exists already" in capsys.readouterr().err


def test_a_cohort_of_another_recipe_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = next(recipe for name, recipe in recipes.items() if name != "head")
    made.truth(made.make(tmp_path / "cohort", 8, recipe=other)).to_csv(tmp_path / "labels.csv", index=False)
    options = ["--labels", str(tmp_path / "labels.csv"), "--model", str(place / "model"), "--out", str(tmp_path / "d")]
    assert run(["adapt", str(tmp_path / "cohort"), *options]) == 2
    assert "the model uses head" in capsys.readouterr().err
