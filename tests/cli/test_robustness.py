"""`headct robustness` as it is typed: both ways of seeing a head twice, JSON, wrong words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, save
from headct.cli.app import run
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    made.make(folder / "once", 4)
    made.make(folder / "empty", 0)
    made.make(folder / "fine", 4, recipe=recipes["head-fine"])
    made.make(folder / "twice", 4, scans_each=2, noise_hu=3.0)
    torch.manual_seed(0)
    save(folder / "model", encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    return folder


def line(place: Path, cohort: str, out: Path, *more: str) -> list[str]:
    return ["robustness", str(place / cohort), "--out", str(out), "--device", "cpu", *more]


def test_scans_are_changed_by_what_is_asked_for(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(place / "model")]
    assert run(line(place, "once", tmp_path / "out", *model, "--change", "noise=10", "--change", "turn=5")) == 0
    said = capsys.readouterr()
    assert "noise 10 HU" in said.out
    assert "turn 5 °" in said.out
    assert "nan" not in said.out
    assert "4 heads changed by known amounts" in said.err
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "metrics.json", "page.html", "pairs.csv", "robustness.csv",
    }  # fmt: skip


def test_patients_who_were_scanned_twice(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(place, "twice", tmp_path / "out", "--model", str(place / "model"), "--json")) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["all"]["cosine"]["n"] == 4
    assert "4 heads scanned twice" in said.err


@pytest.mark.parametrize(
    ("cohort", "more", "says"),
    [
        ("once", [], "nothing to judge"),
        ("empty", ["--model", "MODEL"], "holds scans of 0 patients"),
        ("fine", ["--model", "MODEL"], "uses recipe head-fine"),
        ("once", ["--model", "MODEL", "--rescans"], "two scans of"),
        ("once", ["--model", "MODEL", "--change", "noise"], "is not KIND=SIZE"),
        ("once", ["--model", "MODEL", "--change", "magic=3"], "no change 'magic'"),
        ("once", ["--model", "MODEL", "--change", "noise=-3"], "above 0"),
        ("twice", ["--model", "MODEL", "--rescans", "--change", "noise=3"], "--change is for scans that are changed"),
    ],
)
def test_wrong_words_end_with_2(
    place: Path, tmp_path: Path, cohort: str, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(place / "model") if one == "MODEL" else one for one in more]
    assert run(line(place, cohort, tmp_path / "out", *words)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
