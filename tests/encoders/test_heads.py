"""The DINO head. Oracle: the published FM-HCT head (`heads.npz`; tolerance 2e-5 from its manifest)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.published import uniform, weight
from numpy.testing import assert_allclose

from headct.encoders.heads import DinoHead


@pytest.mark.parametrize("case", ["dinohead_3l", "dinohead_1l", "dinohead_bn"])
def test_scores_equal_the_published_head(shared: Path, case: str) -> None:
    fixtures = shared / "fixtures" / "fm-hct"
    params = json.loads((fixtures / "manifest.json").read_text())["files"]["heads.npz"]["meta"]["cases"][case]["params"]
    head = DinoHead(
        params["in_dim"],
        prototypes=params["out_dim"],
        hidden=params["hidden_dim"],
        layers=params["nlayers"],
        bottleneck=params["bottleneck_dim"],
        batch_norm=params.get("use_bn", False),
    ).train()
    with torch.no_grad():
        for name, tensor in head.named_parameters():
            theirs = name.replace("prototypes.weight", "last_layer.weight_v")
            if params["nlayers"] == 1:
                theirs = theirs.replace("mlp.0", "mlp")
            tensor.copy_(weight(theirs, tuple(tensor.shape)))
        scores = head(torch.from_numpy((2 * uniform("feat", (8, params["in_dim"])) - 1).astype(np.float32)))
    assert_allclose(scores.numpy(), np.load(fixtures / "heads.npz")[f"{case}/out"], atol=2e-5, rtol=1e-4)


def test_scores_are_cosines() -> None:
    scores = DinoHead(8, prototypes=16, hidden=8, bottleneck=4)(100 * torch.randn(32, 8))
    assert scores.abs().max() <= 1 + 1e-6
