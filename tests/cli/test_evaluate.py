"""`headct evaluate` as it is typed: what it writes, what it says, exit codes."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, save
from headct.cli.app import run
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS


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
    assert "warning: sah is left out: of 80 scans of known label, 1 patients with the finding" in said.err
    assert f"ich: shuffled test labels give {tree['findings']['ich']['shuffled_labels']['mean']:.3f}" in said.err
    assert "80 scans of 40 patients" in said.err
    assert "l.csv: 80 of 80 rows of labels match by scan_id" in said.err
    assert f"l.csv: ich by their labels: {area['positives']} with it" in said.err
    assert tree["notes"][0] == "l.csv: 80 of 80 rows of labels match by scan_id"
    assert tree["settings"]["groups"] == ["site"]
    assert tree["comparison"]["ich"]["auroc"]["p"] == 1
    html = (files["out"] / "report.html").read_text()
    assert f"AUROC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f}) for intracranial hemorrhage" in html
    assert "Subarachnoid hemorrhage is left out" in html
    assert "80</b> in the labels" in html


def test_nothing_is_replaced_but_an_evaluation(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = files["out"]
    out.mkdir()
    (out / "report.html").write_text("mine")
    assert run(line(files)) == 2
    assert f"{out / 'report.html'} is of no evaluation, and would be replaced" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["report.html"]
    (out / "report.html").unlink()
    (out / "cohort.json").write_text("{}")
    assert run(line(files)) == 2
    assert f"{out} is a cohort" in capsys.readouterr().err
    (out / "cohort.json").unlink()
    (out / "labels.csv").write_text("mine")  # which the numbers of two tables do not replace
    assert run(line(files)) == 0
    assert run(line(files)) == 0  # one of its own is
    assert (out / "labels.csv").read_text() == "mine"


def test_the_other_model_has_its_numbers_too(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(files["predictions"])
    table.assign(probability=1 - table["probability"]).to_csv(files["out"].parent / "q.csv", index=False)
    assert run(line(files, "--against", str(files["out"].parent / "q.csv"))) == 0
    said = capsys.readouterr().err
    tree = json.loads((files["out"] / "metrics.json").read_text())
    ours, theirs = (one["findings"]["ich"]["auroc"]["value"] for one in (tree, tree["others"]["q"]))
    assert ours + theirs == pytest.approx(1)
    assert f"{theirs:.3f} (" in said
    assert "less that of" in said
    assert f"{theirs:.3f}" in (files["out"] / "report.html").read_text()
    assert run(line(files, "--against", str(files["predictions"]))) == 0
    assert "ich: both models say the same of every scan, as if they were one" in capsys.readouterr().err


def test_json_is_the_tree(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(files, "--json", "--quiet", "--draws", "100")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((files["out"] / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--rule", "best"], 2, "no rule for thresholds is called best\n  do:  choose one of sensitivity"),
        (["--rule", "Youdens"], 2, "no rule for thresholds is called Youdens\n  do:  did you mean youden?"),
        (["--target", "1"], 2, "target is 1"),
        (
            ["--group", "kernel"],
            2,
            "the labels have no column kernel\n  why: they have ich, sah, site\n  do:  name one",
        ),
        (["--group", "Sites"], 2, "do:  did you mean site?"),
        (["--curve", "shots"], 2, "--curve learns from a cohort"),
        (["--detector", "d"], 2, "--predictions stand instead of --detector and --cohort"),
        (["--model", "m"], 2, "--model is for detectors, and tables are judged as they are"),
        (["--labels", "second.csv"], 2, "with --predictions there is one table of labels"),
        (["--measured", "none.csv"], 2, "there is no table none.csv"),
    ],
)
def test_what_cannot_work_ends_with_2(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], code: int, says: str
) -> None:
    assert run(line(files, *more)) == code
    assert says in capsys.readouterr().err
    assert not files["out"].exists()


def test_labels_of_series_are_matched_as_predictions_tell_them(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As `headct simulate --format dicom` writes labels, which know no scan_id."""
    truth, told = pd.read_csv(files["labels"]), pd.read_csv(files["predictions"])
    of_scan = truth.assign(series_id="1.2." + truth.index.astype(str))
    told.merge(of_scan[["scan_id", "series_id", "patient_id"]]).to_csv(files["predictions"], index=False)
    assert run(line(files, "--draws", "100", "--quiet")) == 0
    by_scan = json.loads((files["out"] / "metrics.json").read_text())
    of_scan.drop(columns=["scan_id", "patient_id"]).to_csv(files["labels"], index=False)
    assert run(line(files, "--draws", "100")) == 0
    assert "l.csv: 80 of 80 rows of labels match by series_id" in capsys.readouterr().err
    by_series = json.loads((files["out"] / "metrics.json").read_text())
    assert by_series["findings"] == by_scan["findings"]
    assert by_series["notes"][:2] == [
        "l.csv: 80 of 80 rows of labels match by series_id",
        "l.csv: patients are those of the predictions: 40 of 80 scans",
    ]


@pytest.mark.parametrize("option", ["--labels", "--predictions"])
def test_folders_and_swapped_tables_are_said(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(line({**files, option.removeprefix("--"): files["labels"].parent})) == 2
    assert "is a folder, and no table" in capsys.readouterr().err
    swapped = {"labels": files["predictions"], "predictions": files["labels"], "out": files["out"]}
    assert run(line(swapped)) == 2
    assert "holds labels, and no predictions" in capsys.readouterr().err


def test_nothing_to_judge_ends_with_1(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = files["labels"].read_text().splitlines()
    files["labels"].write_text(
        "\n".join([text[0], *(",".join([*row.split(",")[:2], "", "", "a"]) for row in text[1:])])
    )
    assert run(line(files)) == 1
    said = capsys.readouterr().err
    assert "no finding can be evaluated" in said
    assert "every label is unknown" in said


def test_without_detector_or_predictions_it_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["--labels", str(tmp_path / "l.csv"), "--out", str(tmp_path / "out")]
    for words, says in (
        (["evaluate", *labels], "evaluate needs --detector and --cohort, or --predictions"),
        (["evaluate", "--cohort", "c", *labels], "evaluate needs --detector and --cohort, or --predictions"),
        (["evaluate", "--detector", "d", "--cohort", "c", "--against", "a", *labels], "--against goes with"),
    ):
        assert run(words) == 2
        assert says in capsys.readouterr().err


def test_thresholds_of_validation_scans_and_the_flow_by_split(files: dict[str, Path]) -> None:
    rows = files["predictions"].read_text().splitlines()
    split = [
        "split" if number == 0 else ("test", "val")[int(row[1 : row.index(",")]) // 2 % 2]
        for number, row in enumerate(rows)
    ]
    files["predictions"].write_text("\n".join(f"{row},{part}" for row, part in zip(rows, split, strict=True)))
    assert run(line(files, "--draws", "100", "--quiet")) == 0
    tree = json.loads((files["out"] / "metrics.json").read_text())
    assert tree["findings"]["ich"]["operating_point"]["origin"] == "youden on 40 validation scans"
    html = (files["out"] / "report.html").read_text()
    assert "<b>40</b> test – evaluated here" in html
    assert "<b>40</b> validated on" in html


def test_measurements_are_compared_with_the_truth(files: dict[str, Path], tmp_path: Path) -> None:
    truth = files["labels"].read_text().splitlines()
    shifts = [f"{number % 7:.1f}" for number in range(len(truth) - 1)]
    files["labels"].write_text(
        "\n".join([f"{truth[0]},midline_shift_mm", *map(",".join, zip(truth[1:], shifts, strict=True))])
    )
    told = ["scan_id,midline_shift_mm", *(f"s{number},{float(shift) + 1}" for number, shift in enumerate(shifts[:60]))]
    (tmp_path / "m.csv").write_text("\n".join(told))
    assert run(line(files, "--draws", "100", "--quiet", "--measured", str(tmp_path / "m.csv"))) == 0
    found = json.loads((files["out"] / "metrics.json").read_text())["measurements"]["errors"]["midline_shift_mm"]
    assert found["bias"]["value"] == pytest.approx(1)
    assert found["bias"]["n"] == 60
    assert "Measurements against the truth" in (files["out"] / "report.html").read_text()


def test_measurements_are_judged_where_nothing_was_learned(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, truth = (files[name].read_text().splitlines() for name in ("predictions", "labels"))
    scans = [int(row.partition(",")[0][1:]) for row in rows[1:]]
    parts = ["split", *("train" if scan < 20 else "validation" if scan < 40 else "test" for scan in scans)]
    named = [f"{row},{part}" for row, part in zip(rows, parts, strict=True) if not row.startswith("s1,")]
    files["predictions"].write_text("\n".join(named))  # s1 is of the patient of s0, from whom it has learned
    shift = ["midline_shift_mm", *(f"{number % 7}" for number in range(80))]
    files["labels"].write_text("\n".join(map(",".join, zip(truth, shift, strict=True))))
    told = ["scan_id,midline_shift_mm", *(f"s{number},{number % 7 + 1}" for number in range(80))]
    (tmp_path / "m.csv").write_text("\n".join(told))
    assert run(line(files, "--draws", "100", "--quiet", "--measured", str(tmp_path / "m.csv"))) == 0
    found = json.loads((files["out"] / "metrics.json").read_text())["measurements"]["errors"]["midline_shift_mm"]
    assert found["bias"]["n"] == 40
    (tmp_path / "m.csv").write_text("\n".join(told[:20]))
    assert run(line(files, "--draws", "100", "--quiet", "--measured", str(tmp_path / "m.csv"))) == 2
    assert "are of patients whom the model has learned from" in capsys.readouterr().err


def test_two_tables_of_one_name_have_two_hashes(files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "theirs" / files["predictions"].name
    other.parent.mkdir()
    other.write_text(files["predictions"].read_text() + "\n")
    assert run(line(files, "--draws", "100", "--quiet", "--against", str(other))) == 0
    html = (files["out"] / "report.html").read_text()
    assert all(sha256(path.read_bytes()).hexdigest() in html for path in (files["predictions"], other))


def test_detectors_on_a_cohort_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = made.make(tmp_path / "night", 48)
    made.truth(cohort).assign(ward=["east", "west"] * 24).to_csv(tmp_path / "l.csv", index=False)
    torch.manual_seed(0)
    save(tmp_path / "model", encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    machine = ["--precision", "fp32", "--device", "cpu"]
    labels = ["--labels", str(tmp_path / "l.csv")]
    learn = ["--model", str(tmp_path / "model"), "--method", "linear", "--test", "0.4", *machine]
    assert run(["adapt", str(tmp_path / "night"), *labels, *learn, "--out", str(tmp_path / "d")]) == 0
    judge = ["evaluate", "--detector", str(tmp_path / "d"), "--cohort", str(tmp_path / "night"), *labels, *machine]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "labels.csv").write_text("mine")
    assert run([*judge, "--out", str(tmp_path / "mine")]) == 2
    assert "labels.csv is of no evaluation, and would be replaced" in capsys.readouterr().err
    assert run([*judge, "--out", str(tmp_path / "none"), "--curve", "labels"]) == 2
    assert "there is no curve over 'labels'" in capsys.readouterr().err
    assert run([*judge, "--out", str(tmp_path / "none"), "--rule", "sensitivity", "--target", "0.8"]) == 2
    assert "the detector d keeps no threshold of sensitivity 0.8" in capsys.readouterr().err
    assert run([*judge, "--out", str(tmp_path / "none"), "--group", "wards"]) == 2
    assert "the labels have no column wards" in capsys.readouterr().err
    (tmp_path / "m.csv").write_text(f"scan_id,shift_mm\n{next(iter(cohort))},1\n")
    assert run([*judge, "--out", str(tmp_path / "none"), "--measured", str(tmp_path / "m.csv")]) == 2
    assert "no measurement is in both tables" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    more = ["--draws", "100", "--curve", "shares", "--group", "ward", "--json"]
    assert run([*judge, "--out", str(tmp_path / "out"), *more]) == 0
    said = capsys.readouterr()
    tree = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert json.loads(said.out[said.out.index('{\n  "format"') :]) == tree
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curves",
        "labels.csv",
        "metrics.json",
        "predictions",
        "report.html",
    ]
    assert tree["parts"]["test"] == tree["counts"]["scans"]
    assert "less that of" in said.err
    assert set(tree["findings"]["sdh"]["subgroups"]["ward"]) == {"east", "west"}
    assert tree["few_labels"]["shares"]["method"] == "linear"
    shares = tree["few_labels"]["shares"]["learners"]["frozen encoder"]["night"]
    area = shares["1"]["macro"]["auroc"]
    assert f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})" in said.err
    assert re.search(r"100 % +night", said.err)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "labelled patients" in html
    assert "mean over findings, on night: linear probes" in html.lower()
    assert "shuffled test labels give" in said.err
    assert f"a probe of shuffled training labels gives {tree['shuffled_training']['mean']:.3f}" in said.err
    own = ["--out", str(tmp_path / "own"), "--draws", "100", "--rule", "sensitivity", "--no-baselines"]
    assert run([*judge, *own]) == 0
    found = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert found["settings"]["target"] == 0.95
    assert (
        run(["adapt", str(tmp_path / "night"), *labels, *learn, "--method", "knn", "--out", str(tmp_path / "k")]) == 0
    )
    capsys.readouterr()
    two = ["--detector", str(tmp_path / "k"), "--out", str(tmp_path / "two"), "--draws", "100", "--no-baselines"]
    assert run([*judge, *two]) == 0
    told = capsys.readouterr().err
    assert re.search(r"^ *d +ich ", told, re.MULTILINE)  # the numbers of each detector
    assert re.search(r"^ *k +sdh ", told, re.MULTILINE)
    assert re.search(r"^ *k +night +mean +[01]\.\d{3} \(", told, re.MULTILINE)  # and each on each cohort
    assert "(sensitivity 0.95), chosen by d" in found["findings"]["ich"]["operating_point"]["origin"]
    capsys.readouterr()
    here = ["evaluate", "--detector", str(tmp_path / "d"), "--cohort", str(tmp_path / "night"), *machine]
    assert run([*here, "--labels", str(tmp_path / "out" / "labels.csv"), "--out", str(tmp_path / "out")]) == 2
    assert "would be replaced" in capsys.readouterr().err
    again = ["evaluate", "--predictions", str(tmp_path / "out" / "predictions" / "d.parquet"), "--draws", "100"]
    again += ["--labels", str(tmp_path / "out" / "labels.csv"), "--out", str(tmp_path / "again")]
    assert run(again) == 0
    tables = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert tables["findings"]["ich"]["auroc"] == tree["findings"]["ich"]["auroc"]


def test_one_series_of_each_study_is_learned_from_and_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = made.make(tmp_path / "night", 40, scans_each=2)
    made.truth(cohort).to_csv(tmp_path / "l.csv", index=False)
    torch.manual_seed(0)
    save(tmp_path / "model", encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    both = ["--labels", str(tmp_path / "l.csv"), "--precision", "fp32", "--device", "cpu", "--preferred"]
    learn = ["--model", str(tmp_path / "model"), "--method", "linear", "--test", "0.4", "--out", str(tmp_path / "d")]
    assert run(["adapt", str(tmp_path / "night"), *both, *learn]) == 0
    said = "of each study its preferred series alone; left out: 40 labelled scans"
    assert said in capsys.readouterr().err
    splits = pd.read_csv(tmp_path / "d" / "splits.csv")
    assert len(splits) == splits["patient_id"].nunique() == 40
    judge = ["--detector", str(tmp_path / "d"), "--cohort", str(tmp_path / "night"), "--draws", "100", "--no-baselines"]
    assert run(["evaluate", *judge, *both, "--out", str(tmp_path / "out")]) == 0
    assert said in capsys.readouterr().err
    counts = json.loads((tmp_path / "out" / "metrics.json").read_text())["counts"]
    assert counts["scans"] == counts["patients"] == (splits["split"] == "test").sum()
    assert run(["evaluate", "--predictions", "p.parquet", *both, "--out", str(tmp_path / "none")]) == 2
    assert "--preferred chooses series of a cohort" in capsys.readouterr().err
