"""Training and the saved folder: what is learned, what is refused, and what a damaged folder says."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from detection import made
from tasks.segmentation import drawn
from tasks.segmentation.drawn import QUICK

from headct import checkpoints, encoders
from headct.checkpoints import Card, CheckpointFailure
from headct.cohort import Cohort
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.tasks.segmentation import Schedule, Segmenter, fit, fitting, gathered
from headct.tasks.segmentation.fitting import start
from headct.tasks.segmentation.segmenter import hash_of

MACHINE = choose("fp32", "cpu")
ONE_STEP = dataclasses.replace(QUICK, schedule=Schedule(steps=1, looks=1))


def test_it_learns_and_is_the_same_after_saving(place: Path) -> None:
    segmenter = Segmenter.load(place / "segmenter")
    history = segmenter.record["course"]["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert max(row["validation_dice"] for row in history) > 0.3  # blocks that differ by 25 HU
    assert segmenter.record["course"]["best_step"] in (16, 32)
    other = Cohort(place / "other")
    scan_id = list(other)[3]
    first, again = (
        torch.cat(list(one.probabilities(other.array(scan_id), other.affine(scan_id), MACHINE).slabs(0)), dim=1)
        for one in (segmenter, Segmenter.load(place / "segmenter"))
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first.sum(dim=0), torch.ones(made.SHAPE), atol=1e-5, rtol=0)
    splits = pd.read_csv(place / "segmenter.splits.csv")
    assert set(splits["split"]) == {"train", "validation"}
    assert segmenter.record["seen_patients_sha256"] == sorted(map(hash_of, splits["patient_id"]))
    text = (place / "segmenter" / "README.md").read_text()
    assert "not a medical device" in text
    assert "scans of 6 patients for train" in text


def test_what_may_be_shipped_names_no_patient_and_no_scan(place: Path) -> None:
    splits = pd.read_csv(place / "segmenter.splits.csv", dtype=str)
    named = {name.encode() for name in splits[["scan_id", "patient_id"]].to_numpy().ravel()}
    assert b"p000" in named
    for path in (place / "segmenter").iterdir():
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]  # numbers may hold any bytes
        assert [name for name in named if name in content] == [], path


class Killed(Exception):
    """Stands for a kill: nothing of the loop is run after it."""


def killed(last: int) -> Callable[[int, int | None], None]:
    """Progress that ends a training after so many steps."""

    def progress(done: int, total: int | None) -> None:
        if done == last:
            raise Killed

    return progress


def test_after_a_kill_the_same_line_goes_on_and_gives_the_same_bits(
    place: Path, cohort: Cohort, tmp_path: Path
) -> None:
    masks, encoder = gathered([cohort], [], ""), checkpoints.load(place / "model")
    settings = dataclasses.replace(QUICK, schedule=Schedule(steps=6, looks=3, apart=1))

    said: list[str] = []
    whole = fit(masks, encoder, MACHINE, settings, out=tmp_path / "whole")
    for last in (1, 3, 5):  # before the first state, and after states of steps 2 and 4
        with pytest.raises(Killed):
            fit(masks, encoder, MACHINE, settings, progress=killed(last), say=said.append, out=tmp_path / "killed")
        assert not (tmp_path / "killed").exists()
    other = dataclasses.replace(settings, schedule=Schedule(steps=6, looks=3, apart=1, lr=1e-4))
    with pytest.raises(Misuse, match=r"begun otherwise \(lr\)"):
        fit(masks, encoder, MACHINE, other, out=tmp_path / "killed")
    newest = max((tmp_path / ".killed.training" / "states").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-50])  # by a disk that fails: the state before it stands
    again = fit(masks, encoder, MACHINE, settings, say=said.append, out=tmp_path / "killed")
    assert [line for line in said if "goes on" in line] == ["goes on after step 2 of 6"] * 2
    assert again.course.history == whole.course.history
    assert again.course.best_step == whole.course.best_step
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert models[0] == models[1]
    assert (tmp_path / "killed.splits.csv").read_bytes() == (tmp_path / "whole.splits.csv").read_bytes()
    assert not (tmp_path / ".killed.training").exists()


def test_states_are_forgotten_with_the_terms_they_were_made_on(place: Path, cohort: Cohort, tmp_path: Path) -> None:
    """A disk has torn the record of the terms, and the next line is another one."""
    masks, encoder, out = gathered([cohort], [], ""), checkpoints.load(place / "model"), tmp_path / "s"
    settings = dataclasses.replace(QUICK, validation=0.0, schedule=Schedule(steps=2, looks=2, apart=1))
    with pytest.raises(Killed):
        fit(masks, encoder, MACHINE, settings, progress=killed(1), out=out)
    home = tmp_path / ".s.training"
    assert list((home / "states").glob("*.pt"))
    (terms,) = (path for path in (home / "journal" / "terms").rglob("*") if path.is_file())
    terms.write_bytes(terms.read_bytes()[:9])
    other = dataclasses.replace(settings, schedule=Schedule(steps=2, looks=2, apart=1, lr=1e-4))
    said: list[str] = []
    steps: list[int] = []
    fit(masks, encoder, MACHINE, other, say=said.append, progress=lambda done, total: steps.append(done), out=out)
    assert (steps, said) == ([1, 2], [])


def test_splits_that_are_there_are_not_overwritten(place: Path, cohort: Cohort, tmp_path: Path) -> None:
    masks, encoder, out = gathered([cohort], [], ""), checkpoints.load(place / "model"), tmp_path / "s"
    table = tmp_path / "s.splits.csv"
    shutil.copy(place / "segmenter.splits.csv", table)
    content, before = table.read_bytes(), table.stat()
    with pytest.raises(Misuse, match=r"s\.splits\.csv exists already"):
        fit(masks, encoder, MACHINE, ONE_STEP, out=out)
    table.write_bytes(content + b"\n")
    with pytest.raises(Misuse, match="would become another table") as refused:
        fit(masks, encoder, MACHINE, ONE_STEP, split_file=table, out=out)
    assert "move it to another name" in refused.value.do
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.splits.csv"]
    table.write_bytes(content)
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    fitted = fit(masks, encoder, MACHINE, ONE_STEP, split_file=table, out=out)
    assert (table.read_bytes(), table.stat().st_mtime_ns) == (content, before.st_mtime_ns)
    (tmp_path / "t.splits.csv").write_text("mine")
    with pytest.raises(Misuse, match="would become another table"):
        fitted.save(tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_kill_at_the_very_end_is_told_and_can_be_finished(
    place: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, encoder, out = gathered([cohort], [], ""), checkpoints.load(place / "model"), tmp_path / "s"

    def dies(*given: object) -> None:
        raise Killed

    for name, do in (
        ("write_atomically", f"remove {out} and call the same line again"),  # between the segmenter and its splits
        ("shutil", f"remove {tmp_path / '.s.training'}, or name another folder"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(fitting, name, SimpleNamespace(rmtree=dies) if name == "shutil" else dies)
            with pytest.raises(Killed):
                fit(masks, encoder, MACHINE, ONE_STEP, out=out)
        with pytest.raises(Misuse, match=r"s exists already, and .*\.s\.training") as refused:
            fit(masks, encoder, MACHINE, ONE_STEP, out=out)
        assert refused.value.do.startswith(do)
        Segmenter.load(out)
        shutil.rmtree(out)
    with pytest.raises(Misuse, match="ct-fm is not a segmenter\n  why: it is a model"):
        Segmenter.load("ct-fm")
    (tmp_path / "s.splits.csv").unlink()
    said: list[str] = []
    fit(masks, encoder, MACHINE, ONE_STEP, say=said.append, out=out)
    assert said == ["goes on after step 1 of 1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.splits.csv"]


def test_what_is_refused_and_what_diverges_leaves_nothing(
    place: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice to take a lower lr can be followed."""
    masks, encoder, out = gathered([cohort], [], ""), checkpoints.load(place / "model"), tmp_path / "s"
    for wrong in ({"shots": 7}, {"window": (10, 10, 10)}):
        with pytest.raises(Misuse):
            fit(masks, encoder, MACHINE, dataclasses.replace(ONE_STEP, **wrong), out=out)
    with pytest.raises(Misuse, match="the model uses head"):
        fit(masks, drawn.model(tmp_path / "model", recipe="head"), MACHINE, ONE_STEP, out=out)
    with monkeypatch.context() as patched:
        patched.setattr(
            "headct.tasks.segmentation.training.deeply_supervised", lambda levels, labels: levels[0].sum() * np.nan
        )
        with pytest.raises(Failure, match="diverged at step 1") as diverged:
            fit(masks, encoder, MACHINE, ONE_STEP, out=out)
    assert "take a lower lr than 0.001" in diverged.value.do
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    fit(masks, encoder, MACHINE, dataclasses.replace(ONE_STEP, schedule=Schedule(steps=1, looks=1, lr=1e-4)), out=out)


def test_a_request_to_stop_is_taken_between_two_steps(place: Path, cohort: Cohort, tmp_path: Path) -> None:
    masks, encoder = gathered([cohort], [], ""), checkpoints.load(place / "model")
    settings = dataclasses.replace(QUICK, schedule=Schedule(steps=5, looks=1, apart=5))
    with pytest.raises(KeyboardInterrupt):
        fit(
            masks, encoder, MACHINE, settings, out=tmp_path / "s",
            progress=lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None,
        )  # fmt: skip
    said: list[str] = []
    fit(masks, encoder, MACHINE, settings, say=said.append, out=tmp_path / "s")
    assert said == ["goes on after step 3 of 5"]


def test_looks_are_some_steps_apart() -> None:
    assert [Schedule(steps=steps).look_every for steps in (10, 100, 1000)] == [25, 25, 125]


def test_the_same_seed_gives_the_same_weights(place: Path, cohort: Cohort) -> None:
    masks, encoder = gathered([cohort], [], ""), checkpoints.load(place / "model")
    before = {name: one.clone() for name, one in encoder.state_dict().items()}
    settings = dataclasses.replace(QUICK, schedule=Schedule(steps=2, looks=1), validation=0.0)
    one, same, other = (
        fit(masks, encoder, MACHINE, dataclasses.replace(settings, seed=seed)).segmenter.network.state_dict()
        for seed in (0, 0, 1)
    )
    for name in one:
        torch.testing.assert_close(one[name], same[name], rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, tensor in encoder.state_dict().items():  # a copy was trained
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_few_shots_are_nested_patients(place: Path, cohort: Cohort) -> None:
    masks, encoder = gathered([cohort], [], "blood=ich"), checkpoints.load(place / "model")
    chosen = []
    for shots in (2, 4):
        fitted = fit(masks, encoder, MACHINE, dataclasses.replace(ONE_STEP, shots=shots))
        chosen.append(set(fitted.splits.loc[fitted.splits["split"] == "train", "patient_id"]))
        assert len(chosen[-1]) == shots
        assert fitted.segmenter.classes == ("blood",)
    assert chosen[0] < chosen[1]
    with pytest.raises(Misuse, match="7 patients are asked for, and 6 are there"):
        fit(masks, encoder, MACHINE, dataclasses.replace(ONE_STEP, shots=7))


def test_one_scan_is_enough_to_learn_from_and_says_what_is_missing(place: Path, tmp_path: Path) -> None:
    cohort = drawn.make(tmp_path / "one", 2)
    masks = gathered([cohort], [], "")
    (tmp_path / "splits.csv").write_text("patient_id,split\np001,train\np000,test\n")
    fitted = fit(masks, checkpoints.load(place / "model"), MACHINE, ONE_STEP, split_file=tmp_path / "splits.csv")
    assert fitted.course.chosen_by == "the last step"
    assert "in no training scan, so never drawn: sdh" in fitted.notes
    assert any("no patient is kept for validation" in note for note in fitted.notes)  # --validation 0 was not asked
    asked = dataclasses.replace(ONE_STEP, validation=0.0)
    fitted = fit(masks, checkpoints.load(place / "model"), MACHINE, asked, split_file=tmp_path / "splits.csv")
    assert any("no patient is kept for validation" in note for note in fitted.started)
    assert fitted.notes == ("in no training scan, so never drawn: sdh",)
    (tmp_path / "splits.csv").write_text("patient_id,split\np000,train\n")  # with empty masks alone
    with pytest.raises(Misuse, match="nothing is drawn in the masks"):
        fit(masks, checkpoints.load(place / "model"), MACHINE, ONE_STEP, split_file=tmp_path / "splits.csv")


def test_starts(place: Path) -> None:
    encoder = checkpoints.load(place / "model")
    weights = encoder.encoder.state_dict()
    for initial, frozen in (("pretrained", False), ("pretrained", True), ("random", False), ("random", True)):
        settings = dataclasses.replace(QUICK, initial=initial, frozen=frozen, seed=5)  # the model's own was 0
        network, _, _ = start(encoder, settings, 3)
        name = "blocks.0.attention.qkv.weight"
        same = torch.equal(network.encoder_part.state_dict()[name], weights[name])
        assert same == (initial == "pretrained")
        assert network.held == (initial == "pretrained" or frozen)
        assert all(weight.requires_grad != frozen for weight in network.encoder_part.parameters())
    with pytest.raises(Misuse, match="initial must be one of"):
        dataclasses.replace(QUICK, initial="scratch")


def test_ct_fms_network_and_its_published_decoder(tmp_path: Path) -> None:
    """A folder in the Hub's layout, as CT-FM's segmentation model is published, with random weights."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    settings = encoders.SegResSettings(init_filters=4)
    published = encoders.segmentation_network(settings, outputs=2)
    (tmp_path / "hub").mkdir()
    save_file(published.state_dict(), tmp_path / "hub" / "model.safetensors")
    config = {"spatial_dims": 3, "in_channels": 1, "init_filters": 4, "blocks_down": [1, 2, 2, 4, 4]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    encoder = checkpoints.load(tmp_path / "hub")
    network, plan, notes = start(encoder, QUICK, 5)
    assert plan.decoder == "segresnet"
    assert any("the decoder starts with" in note for note in notes)
    own, theirs = network.network.state_dict(), published.state_dict()  # type: ignore[union-attr]
    for name in ("encoder.conv_init.weight", "up_layers.3.blocks.0.conv1.weight"):
        torch.testing.assert_close(own[name], theirs[name], rtol=0, atol=0)
    assert own["up_layers.3.head.weight"].shape[0] == 5
    plain, _, _ = start(encoder, dataclasses.replace(QUICK, initial="random"), 5)
    assert not torch.equal(
        plain.network.state_dict()["up_layers.3.blocks.0.conv1.weight"], theirs["up_layers.3.blocks.0.conv1.weight"]
    )


def test_wrong_input_is_refused_before_training(place: Path, cohort: Cohort, tmp_path: Path) -> None:
    masks, encoder = gathered([cohort], [], ""), checkpoints.load(place / "model")
    with pytest.raises(Misuse, match=r"the model uses head \("):
        fit(masks, drawn.model(tmp_path / "finer", recipe="head"), MACHINE, ONE_STEP)
    with pytest.raises(Misuse, match="does not fit the network"):
        fit(masks, encoder, MACHINE, dataclasses.replace(ONE_STEP, window=(10, 10, 10)))
    stacked = encoders.build("segresenc", **drawn.SEGRES)
    checkpoints.save(tmp_path / "stacked", stacked, Card(recipe=recipes["ct-fm-head"], windows={}))
    (other,) = gathered([drawn.make(tmp_path / "c", 2, recipe=recipes["ct-fm-head"])], [], "")
    with pytest.raises(Misuse, match="several copies of the head"):
        fit([other], checkpoints.load(tmp_path / "stacked"), MACHINE, ONE_STEP)


def test_arrays_and_losses_that_are_no_numbers(place: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, encoder = gathered([cohort], [], ""), checkpoints.load(place / "model")
    array = Cohort.array
    monkeypatch.setattr(Cohort, "array", lambda self, scan_id: array(self, scan_id) * np.float32(np.nan))
    with pytest.raises(Misuse, match="holds values that are no numbers"):
        fit(masks, encoder, MACHINE, ONE_STEP)
    segmenter = Segmenter.load(place / "segmenter")
    with pytest.raises(Failure, match="no numbers"):
        segmenter.probabilities(np.full(made.SHAPE, np.nan, np.float32), np.eye(4), MACHINE)
    monkeypatch.undo()
    monkeypatch.setattr(
        "headct.tasks.segmentation.training.deeply_supervised", lambda levels, labels: levels[0].sum() * float("nan")
    )
    with pytest.raises(Failure, match="training diverged at step 1"):
        fit(masks, encoder, MACHINE, ONE_STEP)


def test_a_folder_that_was_changed_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="does not exist"):
        Segmenter.load(tmp_path / "none")
    with pytest.raises(Misuse, match="is not a segmenter"):
        Segmenter.load(place / "model")
    for name, change, says in (
        ("config.json", lambda text: text.replace(b'"ich"', b'"iph"'), "is not what it was"),
        ("model.safetensors", lambda text: text[:-4] + b"\0\0\0\1", "is not the file that was saved"),
        ("selftest.safetensors", lambda text: text[:-4] + b"\0\0\xff\x7e", "fails its self-test"),
    ):
        folder = tmp_path / name
        shutil.copytree(place / "segmenter", folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        with pytest.raises(CheckpointFailure, match=says):
            Segmenter.load(folder)
    with pytest.raises(Misuse, match="exists already"):
        Segmenter.load(place / "segmenter").save(place / "segmenter")
