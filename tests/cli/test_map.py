"""`headct map` as it is typed."""

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
    """`cohort`, `labels.csv`, `model`, `other-recipe`, and an `empty` cohort and one of `one` scan."""
    folder = tmp_path_factory.mktemp("map")
    made.truth(made.make(folder / "cohort", 24)).to_csv(folder / "labels.csv", index=False)
    made.make(folder / "empty", 0)
    made.make(folder / "one", 1)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
    for name, recipe in (("model", "head"), ("other-recipe", "head-coarse")):
        torch.manual_seed(0)
        save(folder / name, encoders.build("vit-tiny", **shape), Card(recipe=recipes[recipe], windows=WINDOWS))
    return folder


def line(place: Path, out: Path, *more: str, cohort: str = "cohort", model: str = "model") -> list[str]:
    options = ["--model", str(place / model), "--out", str(out), "--precision", "fp32", "--device", "cpu"]
    return ["map", str(place / cohort), *options, *more]


def test_a_page_and_its_numbers(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.html"
    assert run(line(place, out, "--labels", str(place / "labels.csv"), "--place-scans", "8", "--json")) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [(row["what"], row["kind"]) for row in rows] == [("ich", "finding"), ("sdh", "finding")]
    assert rows[0]["AUROC low"] <= rows[0]["AUROC"] <= rows[0]["AUROC high"]
    assert "nothing can be said of site, manufacturer" in said.err
    html = out.read_text()
    assert "<li>Site cannot be told apart: it is the same for all" in html
    assert "Intracranial hemorrhage" in html
    assert "The map of places" in html
    assert len(html) < 1_000_000


def test_without_labels_and_places(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.html"
    assert run(line(place, out, "--place-scans", "0")) == 0
    html = out.read_text()
    assert "there is nothing to colour by" in html
    assert "The map of places" not in html
    assert run(line(place, out, "--place-scans", "0")) == 0  # a page of ours is replaced


@pytest.mark.parametrize(
    ("cohort", "model", "options", "says"),
    [
        ("empty", "model", [], "has no scans"),
        ("one", "model", [], "no map can be made of 1 vector"),
        ("cohort", "other-recipe", [], "uses recipe head"),
        ("cohort", "model", ["--method", "tsne"], "no map is called 'tsne'"),
        ("cohort", "model", ["--findings", "ich"], "--findings needs labels"),
        ("cohort", "model", ["--labels", "nobody.csv"], "matches no scan of the cohort"),
        ("nowhere", "model", [], "nowhere"),
    ],
)
def test_what_cannot_work_is_said_with_what_to_do(
    cohort: str,
    model: str,
    options: list[str],
    says: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nobody.csv").write_text("scan_id,ich\nx,1\ny,0\n")
    options = [str(tmp_path / word) if word.endswith(".csv") else word for word in options]
    assert run(line(place, tmp_path / "map.html", *options, cohort=cohort, model=model)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "do:" in said
    assert not (tmp_path / "map.html").exists()
