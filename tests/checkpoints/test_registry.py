"""The list of models, and what `models show` knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headct import encoders
from headct.checkpoints import Card, registry, save
from headct.failure import Misuse
from headct.preparing import recipes


def test_every_encoder_is_listed_with_its_size() -> None:
    rows = {row["name"]: row for row in registry.listed()}
    assert list(rows) == list(encoders.ARCHITECTURES)
    assert rows["vit-tiny"]["parameters"] == sum(w.numel() for w in encoders.build("vit-tiny").parameters())


def test_a_checkpoint_is_described_without_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = encoders.build("vit-tiny", depth=1, channels=1, patch=(4, 4, 4))
    save(tmp_path / "c", encoder, Card(recipe=recipes["head"], windows={"brain": (40, 80)}, licence="ours"))
    (tmp_path / "c" / "model.safetensors").unlink()
    lines = registry.flat(registry.about(str(tmp_path / "c")))
    assert lines["recipe.name"] == "head"
    assert lines["settings.patch"] == "[4, 4, 4]"
    assert lines["licence"] == "ours"


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(Misuse, match=r"no model 'vit-giant'\n  do:  take one of vit-tiny"):
        registry.about("vit-giant")
