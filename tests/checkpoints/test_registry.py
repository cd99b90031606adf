"""The list of models, what `models show` knows, and weights that are compared with what is recorded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import headct
from headct import encoders
from headct.checkpoints import Card, CheckpointFailure, registry, save
from headct.checkpoints.hub import Address
from headct.cli import app
from headct.failure import Misuse
from headct.preparing import recipes


def test_every_architecture_and_every_published_model_is_listed_once() -> None:
    names = [row["name"] for row in registry.listed()]
    assert names == list(registry.MODELS)
    assert set(names) == {
        *encoders.ARCHITECTURES,
        *("virtual-coarse", "ct-fm", "ct-fm-segresnet", "ct-fm-whole-body", "fm-hct"),
    }
    assert not set(encoders.ARCHITECTURES) & {entry.name for entry in registry.PUBLISHED}


@pytest.mark.parametrize("entry", registry.PUBLISHED, ids=lambda entry: entry.name)
def test_a_published_model_says_what_it_takes_and_where_it_is(entry: registry.Entry) -> None:
    assert entry.recipe in recipes
    assert entry.where
    assert entry.reference
    assert entry.downloads is not entry.gated
    if entry.downloads:
        assert str(Address.parse(entry.where)) == entry.where
    else:
        assert entry.where.startswith("https://")
    assert entry.sha256 is None or len(entry.sha256) == 64


@pytest.mark.parametrize("entry", registry.OURS, ids=lambda entry: entry.name)
def test_what_comes_with_the_package_is_what_is_recorded(entry: registry.Entry) -> None:
    found = headct.load(entry.name)
    weights = registry.SHIPPED / entry.name / "model.safetensors"
    assert (found.architecture, found.recipe.name) == (entry.architecture, entry.recipe)
    assert (found.sha256, weights.stat().st_size) == (entry.sha256, entry.size_bytes)
    assert found.card.licence.lower() == (entry.licence or "").lower()
    assert found.notes == ()
    assert [data["virtual"] for data in found.card.data] == [True]
    assert not found.card.objective["uses_findings"]


def test_programs_get_null_and_people_a_word_for_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fm-hct"] == asdict(registry.MODELS["fm-hct"])
    assert rows["fm-hct"]["sha256"] is None
    assert rows["vit-base"]["trained_on"] == "nothing: random until trained"

    assert app.run(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "on request: https://github.com/NYUMedML/headCT_foundation" in lines["fm-hct"]
    assert "not recorded" in lines["fm-hct"]
    assert "not recorded" not in lines["vit-base"]
    assert " 349 MB " in lines["ct-fm-whole-body"]


def test_show_tells_facts_of_a_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["models", "show", "ct-fm"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "hub:project-lighter/ct_fm_feature_extractor" in lines["where"]
    assert "not recorded" in lines["licence"]
    assert "parameters" not in lines, "those are of our settings, which published weights need not have"


@pytest.mark.parametrize("name", ["vit-tiny", "vit-large"])
def test_show_counts_the_weights_of_an_architecture(name: str) -> None:
    with torch.device("meta"):
        expected = sum(weight.numel() for weight in encoders.build(name).parameters())
    about = registry.about(name)
    assert about["parameters"] == expected
    assert about["settings"]["patch"] == encoders.ARCHITECTURES[name].settings.patch
    assert "licence" not in about


def test_a_checkpoint_is_described_without_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = encoders.build("vit-tiny", depth=1, channels=1, patch=(4, 4, 4))
    save(tmp_path / "c", encoder, Card(recipe=recipes["head"], windows={"brain": (40, 80)}, licence="ours"))
    (tmp_path / "c" / "model.safetensors").unlink()
    lines = registry.flat(registry.about(str(tmp_path / "c")))
    assert lines["recipe.name"] == "head"
    assert lines["settings.patch"] == "[4, 4, 4]"
    assert lines["licence"] == "ours"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit-bsae", r"no model 'vit-bsae'\n.*\n  do:  did you mean vit-base\?"),
        ("xyzzy", r"no model 'xyzzy'\n.*\n  do:  take one of virtual-coarse, .*, fm-hct, or name its path"),
        ("hub:someone/encoder", "hub:someone/encoder is not on this machine"),
    ],
)
def test_an_unknown_model_is_named(model: str, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        registry.about(model)


# Weights and what is recorded about them


def entry(**facts: Any) -> registry.Entry:
    return replace(registry.MODELS["ct-fm"], **facts)


def test_a_file_is_compared_with_the_recorded_hash(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    registry.check(entry(sha256=hashlib.sha256(b"weights").hexdigest()), weights)
    registry.check(entry(sha256=None), weights)
    with pytest.raises(CheckpointFailure, match="is not the file that is registered as ct-fm") as caught:
        registry.check(entry(sha256="0" * 64), weights)
    assert hashlib.sha256(b"weights").hexdigest()[:12] in caught.value.why


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("ct-fm", "ct-fm"),
        ("ct_fm_feature_extractor", "ct-fm"),
        ("models/whole_body_segmentation", "ct-fm-whole-body"),
        ("fm-hct", "fm-hct"),
        ("my-encoder", None),
        ("vit-base", None),
    ],
)
def test_a_copy_is_known_by_its_name(tmp_path: Path, place: str, name: str | None) -> None:
    (tmp_path / place).mkdir(parents=True)
    found = registry.of_copy(tmp_path / place)
    assert (found and found.name) == name


def test_a_file_is_known_by_its_name_without_the_ending(tmp_path: Path) -> None:
    (tmp_path / "fm-hct.pth").write_bytes(b"")
    assert registry.of_copy(tmp_path / "fm-hct.pth") is registry.MODELS["fm-hct"]


def test_a_repository_is_known() -> None:
    assert registry.of_repository("project-lighter/ct_fm_segresnet") is registry.MODELS["ct-fm-segresnet"]
    assert registry.of_repository("someone/encoder") is None
