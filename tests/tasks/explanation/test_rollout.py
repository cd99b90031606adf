"""Oracles: PyTorch's fused attention, and closed forms of its product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose
from tasks.explanation import painted

from headct.detection.training.attentive import FindingQueries, FittedAttentive
from headct.encoders.vit import Attention
from headct.tasks.explanation.judging import Unfit
from headct.tasks.explanation.rollout import attention, flowed, rollout


def test_attention_is_what_the_fused_kernel_uses() -> None:
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3, True), torch.randn(2, 7, 12)
    attended = torch.ones(2, 7, dtype=torch.bool)
    attended[:, 5:] = False
    with torch.no_grad():
        looked = attention(layer, tokens, None, attended)
        values = layer.qkv(tokens).reshape(2, 7, 3, 3, -1)[:, :, 2].transpose(1, 2)
        ours = layer.out((looked @ values).transpose(1, 2).flatten(2))
        assert_allclose(ours, layer(tokens, None, attended), atol=1e-6)
    assert_allclose(looked.sum(dim=3), 1, rtol=1e-6)
    assert (looked[..., 5:] == 0).all()


def test_uniform_attention_flows_as_its_closed_form() -> None:
    """U U = U, so L layers of (I + U) / 2 are 2^-L I + (1 - 2^-L) U."""
    uniform = torch.full((5, 5), 0.2, dtype=torch.float64)
    product = flowed([uniform] * 3)
    assert product is not None
    assert_allclose(product, torch.eye(5) / 8 + 7 / 8 * uniform)


def test_layers_are_multiplied_first_to_last() -> None:
    first, last = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    product = flowed([first, last])
    assert product is not None
    mixed = [(one + torch.eye(2)) / 2 for one in (first, last)]
    assert_allclose(product, mixed[1] @ mixed[0])


def test_shares_lie_on_patches_and_add_up(tmp_path: Path) -> None:
    encoder = painted.encoder_of(tmp_path / "vit", "vit-tiny", **painted.TINY_VIT, pooling="class+mean")
    with torch.no_grad():
        for block in encoder.encoder.blocks:
            block.attention.qkv.weight.zero_()
            block.attention.qkv.bias.zero_()  # every token looks at all alike
    (found,) = rollout(
        painted.linear_detector(encoder), painted.head(0, bleeding=True), painted.SPACING_MM, painted.MACHINE
    )
    tokens, length = 64, 64 + 1 + 4
    of_class = 0.75 / length  # two layers: three quarters spread evenly
    of_mean = 0.75 / length + 0.25 / tokens  # and a quarter is what a patch was
    assert_allclose(found, (of_class + of_mean) / 2, rtol=1e-4)


def test_queries_of_findings_make_a_map_of_each(tmp_path: Path) -> None:
    """A head whose queries are zeros looks at all alike; keys that stand out are looked at."""
    encoder = painted.encoder_of(tmp_path / "conv")
    detector = painted.linear_detector(encoder)
    hu = painted.head(0, bleeding=True)
    with torch.no_grad():
        tokens = encoder.see(torch.from_numpy(hu[None]), torch.full((1, 3), 4.0)).tokens
        head = FindingQueries(tokens.shape[2], 2, heads=1, features=4)
        head.queries[0] = 0
        detector = replace(detector, fitted=FittedAttentive(encoder, ("iph", "sdh"), head, {}, painted.MACHINE))
        found = rollout(detector, hu, painted.SPACING_MM, painted.MACHINE)
        keys, query = head.keys(tokens[0]), head.queries[1]
    assert_allclose(found[0], 1 / tokens.shape[1], rtol=1e-5)
    looked = (keys @ query / 2).softmax(dim=0).detach().numpy()
    assert found[1].max() == pytest.approx(looked.max(), rel=0.2)  # between middles values are interpolated


def test_an_encoder_without_attention_between_patches_is_unfit(tmp_path: Path) -> None:
    detector = painted.linear_detector(painted.encoder_of(tmp_path / "conv"))
    with pytest.raises(Unfit, match="conv-tiny has no attention between patches"):
        rollout(detector, painted.head(0, bleeding=True), painted.SPACING_MM, painted.MACHINE)
