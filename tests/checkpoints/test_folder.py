"""Checkpoint folders: what was saved comes back bit for bit, and nothing else is ever loaded quietly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headct import encoders
from headct.checkpoints import Card, CheckpointFailure, PretrainedEncoder, load, registry, save
from headct.encoders import Encoder
from headct.failure import Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS

CARD = Card(
    recipe=recipes["head"],
    windows=dict(WINDOWS),
    objective={"name": "dino", "teacher_temperature": [0.04, 0.07], "steps": 3},
    data=[{"cohort": "night", "scans": 12}],
    licence="CC-BY-4.0",
)


def small(**settings: Any) -> Encoder:
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 32, "patch": (4, 6, 4), "grid": (2, 2, 2)}
    return encoders.build("vit-tiny", **{**shape, **settings}).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoint", small(), CARD)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"positions": "learned", "pooling": "class+mean"},
        {"registers": 0, "qkv_bias": False},
        {"positions": "rotary-mm", "layer_scale": 0.1, "drop_air": True},
    ],
)
def test_round_trip_gives_the_same_bits(tmp_path: Path, settings: dict[str, Any]) -> None:
    encoder = small(**settings)
    save(tmp_path / "c", encoder, CARD)
    loaded = load(tmp_path / "c")
    x, spacing_mm = torch.rand(2, 3, 8, 12, 8), torch.tensor([[1.0, 1, 5], [2, 2, 2]])
    with torch.no_grad():
        assert torch.equal(loaded(x, spacing_mm).scan, encoder(x, spacing_mm).scan)
        assert torch.equal(loaded(x, spacing_mm).tokens, encoder(x, spacing_mm).tokens)
    assert loaded.settings == encoder.settings
    assert loaded.card == CARD
    assert loaded.recipe == recipes["head"]
    assert not loaded.training


def test_a_convolutional_encoder_comes_back_too(tmp_path: Path) -> None:
    encoder = encoders.build("segresenc", init_filters=2, blocks_down=(1, 1)).eval()
    save(tmp_path / "c", encoder, Card(recipe=recipes["ct-fm-pretrain"], windows={}))
    loaded, x = load(tmp_path / "c"), torch.rand(1, 1, 5, 6, 7)
    assert loaded.settings == encoder.settings
    with torch.no_grad():
        assert torch.equal(loaded(x).tokens, encoder(x).tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_used_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """Oracle: the same weights put into a float32 network, whose table of positions was never rounded."""
    save(tmp_path / "c", small().to(dtype), CARD)
    model, expected = load(tmp_path / "c"), small()
    expected.load_state_dict(small().to(dtype).state_dict())
    hu = torch.randint(-1000, 2000, (1, 8, 12, 8), dtype=torch.int16)
    with torch.no_grad():
        features = expected(encoders.apply_windows(hu, list(WINDOWS.values())))
        assert torch.equal(model.see(hu).tokens, features.tokens)
    assert model.notes == (f"weights in {str(dtype)[6:]} were cast to float32",)


def test_what_decides_the_vectors_is_hashed_with_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    swapped = Card(recipe=CARD.recipe, windows=dict(reversed(WINDOWS.items())))
    finer = Card(recipe=recipes["head-fine"], windows=CARD.windows)
    renamed = Card(recipe=replace(CARD.recipe, name="ours"), windows=CARD.windows, licence="MIT")
    others = {"pooling": (small(pooling="mean"), CARD), "order": (small(), swapped), "recipe": (small(), finer)}
    for name, (encoder, card) in others.items():
        save(tmp_path / name, encoder, card)
        other = load(tmp_path / name)
        assert other.sha256 == model.sha256, name
        assert other.decisive_sha256 != model.decisive_sha256, name
    save(tmp_path / "same", small(), renamed)
    assert load(tmp_path / "same").decisive_sha256 == model.decisive_sha256
    assert PretrainedEncoder(model.encoder, model.card, "0" * 64).decisive_sha256 != model.decisive_sha256


def test_see_windows_prepared_arrays(checkpoint: Path) -> None:
    model = load(checkpoint)
    hu = torch.randint(-1000, 2000, (1, 8, 12, 8), dtype=torch.int16)
    with torch.no_grad():
        direct = model.encoder(encoders.apply_windows(hu, list(WINDOWS.values())))
        assert torch.equal(model.see(hu).scan, direct.scan)


def test_a_published_recipe_brings_its_own_channels(tmp_path: Path) -> None:
    card = Card(recipe=recipes["fm-hct"], windows={})
    save(tmp_path / "c", small(), card)
    scaled = torch.rand(1, 3, 8, 12, 8).to(torch.float16)
    model = load(tmp_path / "c")
    with torch.no_grad():
        assert torch.equal(model.see(scaled).scan, model.encoder(scaled.float()).scan)


def test_a_run_folder_stands_for_its_checkpoint(checkpoint: Path) -> None:
    assert load(checkpoint.parent).sha256 == load(checkpoint).sha256


def test_model_card_says_what_a_reader_must_know(checkpoint: Path) -> None:
    text = (checkpoint / "README.md").read_text()
    for fact in (CARD.recipe.id, "brain 40/80", "night", "CC-BY-4.0", "not a medical device", "0.04 to 0.07"):
        assert fact in text


# What must never load


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        for key, value in changes.items():
            inner, _, last = key.rpartition("__")
            place = config[inner] if inner else config
            place[last] = value
        (checkpoint / "config.json").write_text(json.dumps(config))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change tensors and record the new hash, as someone does who knows the format."""

    def edit(checkpoint: Path) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        change(weights)
        save_file(weights, checkpoint / "model.safetensors")
        sha256 = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
        edit_config(model_sha256=sha256)(checkpoint)

    return edit


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = change(weights[name]).contiguous()

    return edit


def cut(name: str) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: len(content) // 2])

    return edit


def put_folder(name: str) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        (checkpoint / name).unlink()
        (checkpoint / name).mkdir()

    return edit


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights[new] = weights.pop(old)

    return edit


OUT = "blocks.1.attention.out.weight"

DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda c: (c / "config.json").unlink(), "is not a checkpoint"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "lacks model.safetensors"),
    "no self-test": (lambda c: (c / "selftest.safetensors").unlink(), "lacks selftest.safetensors"),
    "config cut": (cut("config.json"), "config.json is damaged"),
    "config a list": (lambda c: (c / "config.json").write_text("[]"), "has the format None"),
    "weights cut": (cut("model.safetensors"), "is not the file that was saved"),
    "self-test cut": (cut("selftest.safetensors"), "selftest.safetensors is damaged"),
    "older format": (edit_config(format=1), "do:  write it again with this version"),
    "newer format": (edit_config(format=99), "do:  update headct"),
    "unknown architecture": (edit_config(architecture="vit-huge"), "no encoder is called 'vit-huge'"),
    "unknown setting": (edit_config(settings__rotary=True), "no setting 'rotary'"),
    "other pooling": (edit_config(settings__pooling="mean"), "fails its self-test"),
    "other depth": (edit_config(settings__depth=3), "blocks.2.attention.out.bias is missing"),
    "other epsilon": (edit_config(settings__last_norm_eps=0.1), "fails its self-test"),
    "changed recipe": (edit_config(recipe__as_read=True), "the recipe was changed"),
    "no recipe": (edit_config(recipe={}), "config.json is damaged"),
    "no licence": (lambda c: (c / "config.json").write_text(_without(c, "licence")), "config.json is damaged"),
    "no hash": (
        lambda c: (c / "config.json").write_text(_without(c, "model_sha256")),
        "is not the file that was saved",
    ),
    "weights a folder": (put_folder("model.safetensors"), "model.safetensors is damaged"),
    "a setting of another kind": (edit_config(settings__norm_eps="small"), "config.json or selftest.safetensors"),
    "a size beyond memory": (
        edit_config(settings__width=10_000_000),
        r"expected \(10000000,\)",
    ),
    "air treated otherwise": (edit_config(settings__drop_air=True), "fails its self-test"),
    "a window less": (edit_config(windows={"brain": [40, 80]}), "takes 3 channels, its card gives it 1"),
    "a window of no width": (edit_config(windows__brain=[40, 0]), "the window brain is 40/0"),
    "another window": (edit_config(windows__brain=[50, 90]), "is not what it was when the checkpoint was saved"),
    "windows in another order": (
        edit_config(windows=dict(reversed(CARD.to_config()["windows"].items()))),
        "is not what it was when the checkpoint was saved",
    ),
    "other hash": (edit_config(model_sha256="0" * 64), "is not the file that was saved"),
    "dropped": (edit_weights(lambda w: w.pop(OUT)), f"{OUT} is missing"),
    "extra": (edit_weights(lambda w: w.update(more=torch.ones(2))), "more is not expected"),
    "renamed": (edit_weights(rename(OUT, "blocks.1.attn.proj.weight")), "blocks.1.attn.proj.weight is not expected"),
    "transposed": (edit_weights(put(OUT, lambda w: w.T)), "fails its self-test"),
    "reshaped": (edit_weights(put(OUT, lambda w: w[:5])), r"is \(5, 24\), expected \(24, 24\)"),
    "mixed dtypes": (edit_weights(put(OUT, lambda w: w.half())), "must share one of"),
    "whole numbers": (edit_weights(lambda w: w.update({n: t.int() for n, t in w.items()})), "is torch.int32, expected"),
    "not a number": (edit_weights(put("norm.bias", lambda w: w * float("nan"))), "not finite"),
    "one infinite weight": (
        edit_weights(put(OUT, lambda w: w.index_put((torch.tensor(0),), torch.tensor(1e38)))),
        "fails",
    ),
    "slightly changed": (edit_weights(put(OUT, lambda w: w * 1.01)), "fails its self-test"),
}


def _without(checkpoint: Path, key: str) -> str:
    config = json.loads((checkpoint / "config.json").read_text())
    del config[key]
    return json.dumps(config)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_never_loads(checkpoint: Path, damage: str) -> None:
    edit, message = DAMAGES[damage]
    edit(checkpoint)
    with pytest.raises((CheckpointFailure, Misuse), match=message) as caught:
        load(checkpoint)
    assert caught.value.do, "an error without a remedy"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"no model '.*nowhere'"):
        load(tmp_path / "nowhere")


# What must never be saved


def test_an_existing_folder_is_not_replaced_unless_asked(checkpoint: Path) -> None:
    with pytest.raises(Misuse, match="exists already"):
        save(checkpoint, small(), CARD)
    save(checkpoint, small(depth=1), CARD, replace_existing=True)
    assert load(checkpoint).settings.depth == 1
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


class Killed(BaseException):
    """Ends the process here: nothing is cleaned up after it."""


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_while_replacing_leaves_the_old_or_the_new_checkpoint(checkpoint: Path, moment: int) -> None:
    """Killed before the rename of this number, or, with the last one, before the old one is removed."""
    renamed, rename = [], os.replace

    def replace_or_die(old: Path, new: Path) -> None:
        if len(renamed) == moment:
            raise Killed
        renamed.append(new)
        rename(old, new)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "replace", replace_or_die)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        if moment < 2:
            with pytest.raises(Killed):
                save(checkpoint, small(depth=1), CARD, replace_existing=True)
        else:
            save(checkpoint, small(depth=1), CARD, replace_existing=True)
    depth = 2 if moment < 2 else 1
    assert load(checkpoint).settings.depth == depth
    assert load(checkpoint.parent).settings.depth == depth
    assert registry.about(str(checkpoint))["settings"]["depth"] == depth
    with pytest.raises(Misuse, match="exists already"):
        save(checkpoint, small(depth=3), CARD)
    assert load(checkpoint).settings.depth == depth
    save(checkpoint, small(depth=3), CARD, replace_existing=True)
    assert load(checkpoint).settings.depth == 3
    assert not (checkpoint.parent / ".checkpoint.old").exists()


def test_what_was_written_is_on_the_disk_before_the_old_is_removed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename survives a power cut once the folder around it is flushed, and a file once it is itself."""
    done, names = [], {path.name for path in checkpoint.iterdir()}
    sync, rename, remove = os.fsync, os.replace, shutil.rmtree

    def told(what: str, call: Callable[..., Any], path_of: Callable[..., Path]) -> Callable[..., None]:
        def doing(*arguments: Any, **options: Any) -> None:
            done.append((what, path_of(*arguments).name))
            call(*arguments, **options)

        return doing

    monkeypatch.setattr(os, "fsync", told("flush", sync, lambda number: Path(f"/proc/self/fd/{number}").readlink()))
    monkeypatch.setattr(os, "replace", told("rename", rename, lambda old, new: new))
    monkeypatch.setattr(shutil, "rmtree", told("remove", remove, lambda path: path))
    save(checkpoint, small(depth=1), CARD, replace_existing=True)
    placed = done.index(("rename", "checkpoint"))
    assert {("flush", name) for name in (*names, "new")} <= set(done[:placed])
    assert done[placed + 1 : placed + 3] == [("flush", checkpoint.parent.name), ("remove", ".checkpoint.old")]


def test_channels_must_be_those_of_the_card(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="takes 1 channels, its card gives it 3"):
        save(tmp_path / "c", small(channels=1), CARD)
    with pytest.raises(Misuse, match="no architecture name"):
        save(tmp_path / "c", encoders.ViT3D(small().settings), CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "c", small(), CARD)
    assert list(tmp_path.iterdir()) == []
