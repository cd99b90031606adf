"""Heads. Oracles: the published FM-HCT heads (`heads.npz`; tolerance 2e-5 from its manifest), loops, and invariants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.published import ATTENTIVE_HEAD, DINO_HEAD, LINEAR_HEAD, cases, fill, signed
from numpy.testing import assert_allclose

from headct.encoders.heads import AttentiveHead, DinoHead, LinearHead, Predictor, ProjectionMLP
from headct.encoders.positions import cells
from headct.failure import Misuse

NEAR = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


@pytest.mark.parametrize("case", ["dinohead_3l", "dinohead_1l", "dinohead_bn", "dinohead_free_g"])
def test_scores_equal_the_published_head(fixtures: Path, case: str) -> None:
    about = cases(fixtures, "heads.npz")[case]
    params = about["params"]
    free_gain = not params.get("norm_last_layer", True)
    head = DinoHead(
        params["in_dim"],
        prototypes=params["out_dim"],
        hidden=params["hidden_dim"],
        layers=params["nlayers"],
        bottleneck=params["bottleneck_dim"],
        batch_norm=params.get("use_bn", False),
        free_gain=free_gain,
    ).train()
    fill(head, DINO_HEAD | ({"mlp.0": "mlp"} if params["nlayers"] == 1 else {}))
    with torch.no_grad():
        if free_gain:
            head.gain.fill_(1)  # as the fixture leaves it
        scores = head(signed("feat", about["input"]["shape"]))
    assert_allclose(scores.numpy(), np.load(fixtures / "heads.npz")[f"{case}/out"], **NEAR)
    learned = {name: p.requires_grad for name, p in head.named_parameters()}
    assert learned.get("gain", False) == about["requires_grad"]["last_layer.weight_g"]


def test_linear_head_equals_the_published_one_call_by_call(fixtures: Path) -> None:
    about, stored = cases(fixtures, "heads.npz")["linear"], np.load(fixtures / "heads.npz")
    head = LinearHead(about["params"]["dim"], about["params"]["num_classes"])
    fill(head, LINEAR_HEAD)
    scans = signed("feat", about["input"]["shape"])
    with torch.no_grad():
        for call, (rows, logits) in enumerate([(8, "call1"), (4, "call2_first4rows")], start=1):
            assert_allclose(head(scans[:rows]).numpy(), stored[f"linear/train_logits_{logits}"], **NEAR)
            assert_allclose(head.norm.running_mean.numpy(), stored[f"linear/running_mean_after{call}"], **NEAR)
            assert_allclose(head.norm.running_var.numpy(), stored[f"linear/running_var_after{call}"], **NEAR)
        assert_allclose(head.eval()(scans[:4]).numpy(), stored["linear/eval_logits_first4rows"], **NEAR)


@pytest.mark.parametrize("case", ["attn_q1", "attn_q1_bias", "attn_q3"])
def test_attentive_head_equals_the_published_one(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "heads.npz")[case], np.load(fixtures / "heads.npz")
    params = about["params"]
    head = AttentiveHead(
        params["dim"],
        params["num_classes"],
        heads=params["num_heads"],
        queries=params["num_queries"],
        kv_bias=params.get("qkv_bias", False),
        published_scaling=True,
    )
    fill(head, ATTENTIVE_HEAD)
    tokens = signed("tokens", about["input"]["shape"])
    with torch.no_grad():
        assert_allclose(head(tokens).numpy(), stored[f"{case}/train_logits"], **NEAR)
        for theirs, norm in (("bn1", head.token_norm), ("bn2", head.found_norm)):
            assert_allclose(norm.running_mean.numpy(), stored[f"{case}/{theirs}_mean"], **NEAR)
            assert_allclose(norm.running_var.numpy(), stored[f"{case}/{theirs}_var"], **NEAR)
        assert_allclose(head.eval()(tokens).numpy(), stored[f"{case}/eval_logits"], **NEAR)


def test_attention_of_several_queries_is_the_loop_over_heads_and_queries() -> None:
    head, tokens = AttentiveHead(12, 2, heads=3, queries=2).eval(), torch.randn(1, 7, 12)
    with torch.no_grad():
        k, v = head.kv(tokens[0] / (1 + 1e-6) ** 0.5).split(12, dim=1)  # a new norm divides by the root of 1 + eps
        found = torch.zeros(2, 12)
        for query in range(2):
            for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
                weights = torch.softmax(k[:, part] @ head.queries[0, query, part] / 4**0.5, dim=0)
                found[query, part] = weights @ v[:, part]
        expected = head.linear(found.mean(0) / (1 + 1e-6) ** 0.5)
        torch.testing.assert_close(head(tokens)[0], expected)


def test_published_scaling_is_a_smaller_query() -> None:
    published, ours = (AttentiveHead(12, 2, heads=3, published_scaling=flag).eval() for flag in (True, False))
    ours.load_state_dict(published.state_dict())
    tokens = torch.randn(3, 5, 12)
    with torch.no_grad():
        ours.queries.mul_(4**-0.5)
        torch.testing.assert_close(ours(tokens), published(tokens))


@pytest.mark.parametrize("head", [LinearHead(12, 2), AttentiveHead(12, 2, heads=3, queries=2)])
def test_a_prediction_does_not_depend_on_its_batch(head: torch.nn.Module) -> None:
    scans = torch.randn(6, 12) if isinstance(head, LinearHead) else torch.randn(6, 5, 12)
    head.train()(scans)
    head.eval()
    with torch.no_grad():
        together, alone = head(scans), torch.cat([head(scans[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(together, alone)


def test_attentive_head_takes_tokens_in_any_order() -> None:
    head, tokens = AttentiveHead(12, 2, heads=3).eval(), torch.randn(2, 5, 12)
    torch.testing.assert_close(head(tokens.flip(1)), head(tokens))


def test_scores_are_cosines() -> None:
    scores = DinoHead(8, prototypes=16, hidden=8, bottleneck=4)(100 * torch.randn(32, 8))
    assert scores.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("batch_norm", [False, True])
def test_scores_of_tokens_are_those_of_each_token_alone(batch_norm: bool) -> None:
    head = DinoHead(8, prototypes=16, hidden=8, bottleneck=4, batch_norm=batch_norm).eval()
    tokens = torch.randn(3, 5, 8)
    scores = head(tokens)
    assert scores.shape == (3, 5, 16)
    torch.testing.assert_close(scores[1], head(tokens[1]))


def test_gains_multiply_the_scores() -> None:
    head, scans = DinoHead(8, prototypes=4, hidden=8, bottleneck=4, free_gain=True), torch.randn(3, 8)
    before = head(scans)
    with torch.no_grad():
        head.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(head(scans), before * torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_projection_is_linears_with_a_rectifier_between() -> None:
    head, scans = ProjectionMLP([6, 4, 3]), torch.randn(5, 6)
    weights = {name: tensor.detach() for name, tensor in head.named_parameters()}
    assert set(weights) == {f"layers.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    hidden = (scans @ weights["layers.0.weight"].T + weights["layers.0.bias"]).clamp(min=0)
    torch.testing.assert_close(head(scans), hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"])


def test_projection_with_batch_norm_standardises_each_hidden_layer() -> None:
    head = ProjectionMLP([6, 4, 4, 3], batch_norm=True)
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    # a shift of the whole batch is taken out by the first norm; float32 sums of numbers of size 10
    scans = torch.randn(8, 6)
    torch.testing.assert_close(head(scans + 10), head(scans), atol=1e-4, rtol=0)


def test_predictions_follow_their_places_and_ignore_the_order_of_what_was_seen() -> None:
    predictor = Predictor(8, inner=24, depth=2, heads=2).eval()
    places, tokens = cells((2, 3, 2)).expand(2, -1, -1), torch.randn(2, 12, 8)
    seen, hidden = slice(0, 7), slice(7, 12)
    with torch.no_grad():
        predicted = predictor(tokens[:, seen], places[:, seen], places[:, hidden])
        reordered = predictor(tokens[:, seen].flip(1), places[:, seen].flip(1), places[:, hidden].flip(1))
        misplaced = predictor(tokens[:, seen], places[:, seen].flip(1), places[:, hidden])
    assert predicted.shape == (2, 5, 8)
    torch.testing.assert_close(reordered.flip(1), predicted, atol=1e-5, rtol=0)
    assert (misplaced - predicted).abs().max() > 1e-4
    assert torch.pdist(predicted[0]).min() > 1e-4


def test_a_predictor_is_given_tokens_without_a_place_before_the_others() -> None:
    predictor, added_to = Predictor(8, inner=24, depth=1, heads=2).eval(), []
    predictor.blocks[0].register_forward_pre_hook(lambda _, inputs: added_to.append(inputs[0]))
    places, tokens = cells((2, 2, 2))[None], torch.randn(1, 6, 8)
    with torch.no_grad():
        predicted = predictor(tokens, places[:, :5], places[:, 5:])
        predictor(tokens[:, 1:], places[:, :5], places[:, 5:])
        embedded = predictor.embed(tokens[:, :1])
    assert predicted.shape == (1, 3, 8)
    torch.testing.assert_close(added_to[0][:, :1], embedded)
    torch.testing.assert_close(added_to[0][:, 1:], added_to[1])


def test_a_predictor_keeps_places_in_float32_where_products_are_in_half_precision() -> None:
    predictor, added_to = Predictor(8, inner=24, depth=1, heads=2).eval(), []
    predictor.blocks[0].register_forward_pre_hook(lambda _, inputs: added_to.append(inputs[0].dtype))
    places = cells((2, 2, 2))[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictor(torch.randn(1, 5, 8), places[:, :5], places[:, 5:])
    assert added_to == [torch.float32]


def test_a_predictor_learns_what_a_place_holds() -> None:
    torch.manual_seed(0)
    predictor = Predictor(4, inner=24, depth=1, heads=2, outputs=3)
    places, truth = cells((2, 2, 2)).expand(4, -1, -1), cells((2, 2, 2)).expand(4, -1, -1)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = (predictor(torch.randn(4, 3, 4), places[:, :3], places[:, 3:]) - truth[:, 3:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_widths_that_heads_do_not_divide_are_named() -> None:
    with pytest.raises(Misuse, match="width must be a multiple of heads, got 12 and 5"):
        AttentiveHead(12, 2, heads=5)
    with pytest.raises(Misuse, match="inner must be a multiple of heads, got 24 and 5"):
        Predictor(8, inner=24, heads=5)
