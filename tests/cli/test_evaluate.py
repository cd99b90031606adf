"""`headct evaluate` as it is typed: what it writes, what it says, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headct.cli.app import run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    labels, predictions = ["scan_id,patient_id,ich,sah,site"], ["scan_id,finding,probability"]
    for scan in range(80):
        truth = int(rng.random() < 0.4)
        labels.append(f"s{scan},p{scan // 2},{truth},{int(scan == 0)},{'ab'[scan % 2]}")
        told = min(1.0, max(0.0, 0.3 + 0.3 * truth + 0.2 * rng.normal()))
        predictions += [f"s{scan},ich,{told:.3f}", f"s{scan},sah,{told:.3f}"]
    paths = {"labels": tmp_path / "l.csv", "predictions": tmp_path / "p.csv", "out": tmp_path / "out"}
    paths["labels"].write_text("\n".join(labels))
    paths["predictions"].write_text("\n".join(predictions))
    return paths


def line(files: dict[str, Path], *more: str) -> list[str]:
    return ["evaluate", *(part for name, path in files.items() for part in (f"--{name}", str(path))), *more]


def test_metrics_are_written_and_told(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(files, "--group", "site", "--draws", "100", "--against", str(files["predictions"]))) == 0
    tree = json.loads((files["out"] / "metrics.json").read_text())
    said = capsys.readouterr()
    assert said.out == ""
    area = tree["findings"]["ich"]["auroc"]
    assert f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})" in said.err
    assert "warning: sah is left out: sah in 80 scans of known label: 1 patients with the finding" in said.err
    assert f"ich: shuffled labels give {tree['findings']['ich']['shuffled_labels']['mean']:.3f}" in said.err
    assert "80 scans of 40 patients" in said.err
    assert tree["settings"]["groups"] == ["site"]
    assert tree["comparison"]["ich"]["auroc"]["p"] == 1


def test_json_is_the_tree(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(files, "--json", "--quiet", "--draws", "100")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((files["out"] / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--rule", "best"], 2, "no rule for thresholds is called best"),
        (["--target", "1"], 2, "target is 1"),
        (["--group", "kernel"], 2, "the labels have no column kernel"),
    ],
)
def test_what_cannot_work_ends_with_2(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], code: int, says: str
) -> None:
    assert run(line(files, *more)) == code
    assert says in capsys.readouterr().err
    assert not files["out"].exists()


def test_nothing_to_judge_ends_with_1(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = files["labels"].read_text().splitlines()
    files["labels"].write_text(
        "\n".join([text[0], *(",".join([*row.split(",")[:2], "", "", "a"]) for row in text[1:])])
    )
    assert run(line(files)) == 1
    said = capsys.readouterr().err
    assert "no finding can be evaluated" in said
    assert "every label is unknown" in said
