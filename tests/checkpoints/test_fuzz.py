"""Files that were changed at random never load quietly: they are refused, or hold every weight they should.

Oracle: the weights before the change. What loads must have exactly those.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import ctfm_formula
from safetensors.torch import load_file, save_file

from headct import encoders
from headct.checkpoints import Card, load, save
from headct.checkpoints.strict import sha256_of
from headct.encoders import Encoder, SegResEncoder, SegResSettings
from headct.failure import Failure
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS

Table = dict[str, torch.Tensor]
ROUNDS = 40


def dropped(weights: Table, luck: random.Random) -> None:
    del weights[luck.choice(sorted(weights))]


def renamed(weights: Table, luck: random.Random) -> None:
    name = luck.choice(sorted(weights))
    at = luck.randrange(len(name))
    weights[name[:at] + "x" + name[at:]] = weights.pop(name)


def transposed(weights: Table, luck: random.Random) -> None:
    name = luck.choice(sorted(name for name, one in weights.items() if one.ndim > 1 and one.shape[0] != one.shape[1]))
    weights[name] = weights[name].transpose(0, 1).contiguous()


def of_another_kind(weights: Table, luck: random.Random) -> None:
    name = luck.choice(sorted(name for name, one in weights.items() if one.is_floating_point()))
    weights[name] = weights[name].to(luck.choice([torch.int32, torch.bool, torch.uint8]))


def not_a_number(weights: Table, luck: random.Random) -> None:
    name = luck.choice(sorted(name for name, one in weights.items() if one.is_floating_point() and one.numel()))
    weights[name] = weights[name].clone()
    weights[name].view(-1)[luck.randrange(weights[name].numel())] = luck.choice([float("nan"), float("inf")])


def one_more(weights: Table, luck: random.Random) -> None:
    name = luck.choice(sorted(weights))
    weights[f"{name}.{luck.randrange(10)}"] = weights[name].clone()


CHANGES: list[Callable[[Table, random.Random], None]] = [
    dropped,
    renamed,
    transposed,
    of_another_kind,
    not_a_number,
    one_more,
]


def own(place: Path) -> Path:
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 12, "heads": 2, "mlp_width": 8, "patch": (4, 6, 4), "grid": (2, 2, 2)}
    save(place / "model", encoders.build("vit-tiny", **shape), Card(recipe=recipes["head"], windows=WINDOWS))
    return place / "model"


def ct_fm(place: Path) -> Path:
    settings = SegResSettings(init_filters=2, blocks_down=(1, 1))
    (place / "model").mkdir()
    save_file(ctfm_formula.weights(SegResEncoder(settings).network.state_dict()), place / "model" / "model.safetensors")
    config = {"spatial_dims": 3, "in_channels": 1, "init_filters": 2, "blocks_down": [1, 1]}
    (place / "model" / "config.json").write_text(json.dumps(config))
    return place / "model"


def fm_hct(place: Path) -> Path:
    """A loose file; as a folder it would be none of the published layouts."""
    from headct.checkpoints.published.fm_hct import NAMES

    shape = {"depth": 1, "width": 64, "heads": 1, "mlp_width": 8, "patch": (12, 12, 12), "grid": (2, 2, 2)}
    encoder = encoders.build("vit-tiny", **shape, registers=0, qkv_bias=False, positions="learned")
    weights = {name: one for name, one in encoder.state_dict().items() if one.numel()}
    for ours, theirs in NAMES.items():
        weights = {name.replace(ours, theirs): one for name, one in weights.items()}
    kernel = "patch_embedding.patch_embeddings.weight"
    weights[kernel] = weights[kernel].reshape(64, 3, 12, 12, 12)
    save_file(weights, place / "model.safetensors")
    return place / "model.safetensors"


FAMILIES: dict[str, Callable[[Path], Path]] = {"own": own, "ct-fm": ct_fm, "fm-hct": fm_hct}


def weights_file(model: Path) -> Path:
    return model if model.is_file() else model / "model.safetensors"


def rehash(model: Path) -> None:
    """So that it is not the checksum alone that protects our own folder."""
    config = model / "config.json"
    if model.is_dir() and "model_sha256" in (about := json.loads(config.read_text())):
        config.write_text(json.dumps(about | {"model_sha256": sha256_of(weights_file(model))}))


def state(encoder: Any) -> Table:
    inner: Encoder = encoder.encoder
    return dict(inner.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights(family: str, change: Callable[[Table, random.Random], None], tmp_path: Path) -> None:
    model = FAMILIES[family](tmp_path)
    whole, good = load_file(weights_file(model)), state(load(model))
    luck = random.Random(f"{family} {change.__name__}")
    for _ in range(ROUNDS // len(CHANGES)):
        weights = dict(whole)
        change(weights, luck)
        save_file(weights, weights_file(model))
        rehash(model)
        with pytest.raises(Failure) as refused:
            load(model)
        assert refused.value.do, "an error says what to do"
    save_file(whole, weights_file(model))
    rehash(model)
    assert all(torch.equal(one, good[name]) for name, one in state(load(model)).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_or_scrambled_bytes(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family](tmp_path)
    good, data = state(load(model)), weights_file(model).read_bytes()
    luck = random.Random(family)
    for number in range(ROUNDS):
        if number % 2:
            changed = data[: luck.randrange(len(data))]
        else:
            head = bytearray(data)
            for _ in range(luck.randrange(1, 4)):
                head[luck.randrange(min(len(head), 600))] = luck.randrange(256)  # lengths, names, kinds, offsets
            changed = bytes(head)
        weights_file(model).write_bytes(changed)
        if (found := loaded_or_refused(model)) is not None:
            assert all(torch.equal(one, good[name]) for name, one in found.items())


def loaded_or_refused(model: Path) -> Table | None:
    try:
        return state(load(model))
    except Failure:  # anything else fails the test
        return None
