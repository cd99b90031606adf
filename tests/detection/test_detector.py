"""The folder of a detector: the same after loading, and refused where anything in it is not what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from detection import made
from safetensors.torch import load_file, save_file

import headct
from headct import checkpoints, encoders
from headct.checkpoints import Card, CheckpointFailure, PretrainedEncoder
from headct.cohort import Cohort
from headct.detection import Adapted, AdaptSettings, Detector, adapt
from headct.detection.card import write_up
from headct.detection.detector import SCORES
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS


@pytest.fixture
def copy(folder: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """A detector to change, where its encoder is found."""
    copied = tmp_path / "detector"
    shutil.copytree(folder, copied)
    return copied


def test_a_loaded_detector_predicts_the_same(folder: Path, adapted: Adapted, cohort: Cohort) -> None:
    loaded = headct.Detector.load(folder)
    pd.testing.assert_frame_equal(loaded.predict([cohort]), adapted.detector.predict(cohort))
    assert loaded.findings == ("ich", "sdh")
    assert loaded.sha256
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "head.safetensors", "selftest.safetensors", "splits.csv",
    ]  # fmt: skip


def test_the_card_says_what_it_is_and_is_not(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for words in ("not a medical device", "Detector of ich, sdh", "labels.csv", "| ich | 36 / 36 | 12 / 12 |"):
        assert words in text


def test_the_card_of_a_baseline_does_not_credit_the_encoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert "Method `linear` on the encoder vit-tiny" in write_up(config, "1")
    text = write_up(config | {"settings": {"initial": "random", "architecture": "conv-tiny"}}, "1")
    assert "A baseline: the network conv-tiny, all of it learned from these labels." in text


def test_a_detector_that_tells_less_of_its_training_has_a_card_too(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["record"]["findings"] = [{"finding": "ich", "train": "4 / 4"}]
    assert "| ich |  |  |  |" in write_up(config, "1")


def test_predictions_are_in_the_order_of_the_input_and_have_its_columns(folder: Path, cohort: Cohort) -> None:
    table = Detector.load(folder).predict(cohort, batch_size=5)
    ids = ["patient_id", "study_id", "series_id"]
    assert table.columns.tolist() == [*SCORES.names, *ids, "files"]
    for name in ("scan_id", *ids):
        assert table[name].tolist() == np.repeat(cohort.scans[name].to_numpy(), 2).tolist()
    assert table[["probability", "low", "high", "ood"]].to_numpy().min() >= 0
    assert table[["probability", "low", "high", "ood"]].to_numpy().max() <= 1


def test_an_answer_is_yes_from_the_threshold_on(folder: Path, cohort: Cohort) -> None:
    detector = Detector.load(folder)
    table = detector.predict(cohort, batch_size=5)
    assert table["threshold"].tolist() == table["finding"].map(detector.thresholds).tolist()
    assert table["answer"].tolist() == np.where(table["probability"] >= table["threshold"], "yes", "no").tolist()
    assert set(table["answer"]) == {"yes", "no"}
    for row in table.to_dict("records"):
        close = any(reason.startswith("the answer might be the other") for reason in row["reasons"])
        assert close == (row["low"] < row["threshold"] <= row["high"])


def test_a_scan_unlike_those_of_training_is_doubted(folder: Path, tmp_path: Path) -> None:
    strange = made.make(tmp_path / "strange", 2, seed=3, thickness_mm=12, manufacturer="Other", noise_hu=150)
    table = Detector.load(folder).predict(strange)
    assert (table["ood"] == 1).all()
    for reasons in table["reasons"]:
        assert any("unlike the training scans" in reason for reason in reasons)
        assert "slices of 12 mm; training had up to 5 mm" in reasons


def test_inputs_that_come_to_nothing_are_told(folder: Path, cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear colleague")
    detector = Detector.load(folder)
    with pytest.raises(Failure, match="nothing could be looked at"):
        detector.predict([tmp_path / "letter.txt"])
    with pytest.warns(UserWarning, match="1 inputs were rejected"):
        table = detector.predict([cohort, tmp_path / "letter.txt", cohort])
    assert len(table) == 2 * len(cohort)
    assert table.attrs["rejections"][0]["code"] == "unknown-format"


def test_the_encoder_may_move_with_the_detector_or_be_named(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    moved = tmp_path / "much" / "further" / "away"
    shutil.copytree(folder, moved)
    with pytest.raises(Misuse, match=r"the encoder of .* is not found"):
        Detector.load(moved)
    assert Detector.load(moved, model=checkpoint).findings == ("ich", "sdh")
    source = json.loads((moved / "config.json").read_text())["encoder"]["source"]
    assert not Path(source).is_absolute()
    shutil.copytree(checkpoint, (moved / source).resolve())
    assert Detector.load(moved).findings == ("ich", "sdh")


def test_another_encoder_is_refused(copy: Path, tmp_path: Path) -> None:
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
    other = encoders.build("vit-tiny", **shape, pooling="class+mean")
    checkpoints.save(tmp_path / "other", other, Card(recipe=recipes["head"], windows=WINDOWS))
    with pytest.raises(Misuse, match=r"is not the encoder that .* was made with"):
        Detector.load(copy, model=tmp_path / "other")


def test_a_changed_configuration_is_refused(copy: Path, checkpoint: Path) -> None:
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"sdh"', '"edh"'))
    with pytest.raises(CheckpointFailure, match="is not what it was when the detector was saved"):
        Detector.load(copy, model=checkpoint)


@pytest.mark.parametrize("name", ["head.safetensors", "selftest.safetensors"])
def test_changed_tensors_are_refused(name: str, copy: Path, checkpoint: Path) -> None:
    tensors = load_file(copy / name)
    key = "head.weights" if name.startswith("head") else "scores"
    tensors[key] = tensors[key] + 0.1
    header = (copy / name).read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length]).get("__metadata__")
    save_file(tensors, copy / name, metadata)
    with pytest.raises(CheckpointFailure, match=r"is not the file that was saved|fails its self-test"):
        Detector.load(copy, model=checkpoint)


@pytest.mark.parametrize("name", ["head.safetensors", "selftest.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(name: str, copy: Path, checkpoint: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointFailure, match=f"lacks {name}"):
        Detector.load(copy, model=checkpoint)


def test_what_is_no_detector_is_said(checkpoint: Path, tmp_path: Path) -> None:
    for place, says in ((tmp_path, "is not a detector"), (tmp_path / "none", "does not exist")):
        with pytest.raises(Misuse, match=says):
            Detector.load(place)


def test_a_model_is_no_detector_and_how_to_make_one_is_said(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(checkpoint)
    for model in (str(checkpoint), str(tmp_path / "run"), "ct-fm"):
        says = f"{model} is not a detector\n  why: it is a model\n  do:  make a detector from it: `headct adapt` with"
        with pytest.raises(Misuse, match=says):
            Detector.load(model)


def test_a_detector_is_not_written_over_another(adapted: Adapted, folder: Path) -> None:
    with pytest.raises(Misuse, match="exists already"):
        adapted.save(folder)


@pytest.mark.parametrize("method", ["knn", "lora", "full", "attentive"])
def test_every_method_is_stored_and_loaded(
    method: str, encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it learned in very few steps."""
    from headct.cohort.labels import read_labels
    from headct.detection import adapting

    cohort = made.make(tmp_path / "cohort", 12)
    made.truth(cohort).to_csv(tmp_path / "l.csv", index=False)
    labels = read_labels(tmp_path / "l.csv", [cohort])
    monkeypatch.setattr(adapting, "method", few_steps)
    settings = AdaptSettings(method=method, validation=0.34)
    found = adapt([cohort], labels, encoder, choose("fp32", "cpu"), tmp_path / "cache", settings)
    found.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector", model=encoder.source)
    pd.testing.assert_frame_equal(loaded.predict(cohort), found.detector.predict(cohort), rtol=1e-5)


def few_steps(name: str) -> object:
    """A method's settings, cut short where it trains."""
    from dataclasses import fields, replace

    from headct.detection.methods import method

    settings = method(name)
    for one in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, one.name)
        if hasattr(value, "steps"):
            return replace(settings, **{one.name: replace(value, steps=4)})  # type: ignore[type-var]
    return settings
