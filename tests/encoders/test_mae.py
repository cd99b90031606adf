"""Masked autoencoding. Oracles: the published FM-HCT code (`mae.npz`; tolerances of its manifest) and loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders.published import MAE_DECODER, POSITIONS, VIT, cases, fill, published_name, uniform, vit, volume
from numpy.testing import assert_allclose

from headct.encoders import Grid, ViT3D
from headct.encoders.mae import Hiding, MaskedDecoder, hide, hide_tissue, rebuilding_loss
from headct.encoders.vit import cut
from headct.failure import Misuse

CASES = ["base", "norm_pix", "nobias_ratio05", "learnable_dec36"]


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


def channel_last(rows: torch.Tensor, patch: int) -> torch.Tensor:
    """Numbers of a patch (P, ...) in the published order, x y z channel, from ours, channel x y z."""
    by_channel = rows.unflatten(0, (-1, patch**3))
    return by_channel.transpose(0, 1).flatten(0, 1)


def channel_first(rows: torch.Tensor, patch: int) -> torch.Tensor:
    """The inverse of `channel_last`."""
    return rows.unflatten(0, (patch**3, -1)).transpose(0, 1).flatten(0, 1)


def published(params: dict[str, Any]) -> tuple[ViT3D, MaskedDecoder]:
    """Encoder and decoder with a fixture's settings, filled by the fixture's formula."""
    layout = {
        "img_size": params["input_size"],
        "patch_size": params["patch_size"],
        "in_chans": params["in_chans"],
        "hidden_size": params["encoder_embed_dim"],
        "mlp_dim": params["encoder_mlp_dim"],
        "num_layers": params["encoder_depth"],
        "num_heads": params["encoder_num_heads"],
        "pos_embed": params["pos_embed"],
        "qkv_bias": params["use_bias"],
    }
    encoder = vit(layout, last_norm_eps=1e-5)
    decoder = MaskedDecoder(
        params["encoder_embed_dim"],
        params["in_chans"] * params["patch_size"] ** 3,
        encoder.settings.grid,
        width=params["decoder_embed_dim"],
        depth=params["decoder_depth"],
        heads=params["decoder_num_heads"],
        mlp_width=params["decoder_mlp_dim"],
        bias=params["use_bias"],
        positions=POSITIONS[params["pos_embed"]],
    )
    fill(decoder, MAE_DECODER)
    with torch.no_grad():
        for parameter in decoder.out.parameters():
            parameter.copy_(channel_first(parameter, params["patch_size"]))
    return encoder, decoder


def rebuild(
    encoder: ViT3D, decoder: MaskedDecoder, x: torch.Tensor, hiding: Hiding
) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    tokens, grid = encoder.sequence(x, keep=hiding.keep)
    return tokens, decoder(encoder.without_registers(tokens), hiding, grid), grid


@pytest.mark.parametrize("case", CASES)
def test_everything_equals_the_published_code(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "mae.npz")[case], np.load(fixtures / "mae.npz")
    params, patch = about["params"], about["params"]["patch_size"]
    encoder, decoder = published(params)
    x = volume("input", about["inputs"]["volume"]["shape"])
    hiding = hide(torch.from_numpy(uniform("noise", tuple(about["inputs"]["noise"]["shape"]))), params["mask_ratio"])
    assert_allclose(hiding.hidden.numpy(), stored[f"{case}/mask"])
    assert_allclose(hiding.restore.numpy(), stored[f"{case}/ids_restore"])
    assert_allclose(hiding.keep.numpy(), stored[f"{case}/ids_keep"])
    latent, rebuilt, _ = rebuild(encoder, decoder, x, hiding)
    loss = rebuilding_loss(
        rebuilt, cut(x, (patch,) * 3)[0], hiding.hidden, standardise=params.get("norm_pix_loss", False)
    )
    theirs = channel_last(rebuilt.detach()[:, [0, 5, 63]].permute(2, 0, 1), patch).permute(1, 2, 0)
    assert_allclose(latent.detach().numpy(), stored[f"{case}/latent"], atol=3e-5, rtol=1e-4)
    assert_allclose(theirs.numpy(), stored[f"{case}/pred_sample_tokens_0_5_63"], atol=3e-5, rtol=1e-4)
    assert loss.item() == pytest.approx(float(stored[f"{case}/loss"]), rel=1e-5)
    loss.backward()
    check_gradients(encoder, VIT, about["grad_l2"])
    check_gradients(decoder, MAE_DECODER, about["grad_l2"])


def check_gradients(network: torch.nn.Module, names: dict[str, str], lengths: dict[str, float]) -> None:
    for name, parameter in network.named_parameters():
        theirs = published_name(name, names)
        if parameter.numel() and theirs != "decoder_pos_embed":  # frozen there even where it is random
            assert parameter.grad.norm().item() == pytest.approx(lengths[theirs], rel=1e-3, abs=1e-6), name


def test_patches_equal_the_published_ones_but_for_the_place_of_the_channel(fixtures: Path) -> None:
    stored = np.load(fixtures / "mae.npz")
    patches, _ = cut(torch.arange(3 * 24**3).reshape(1, 3, 24, 24, 24), (6, 6, 6))
    for token in (0, 1, 4, 16):
        theirs = channel_last(patches[0, token], 6)
        assert theirs[:24].tolist() == stored[f"patchify/token{token}_first24"].tolist()


def test_hiding_keeps_the_patches_of_least_noise_in_their_order() -> None:
    hiding = hide(torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7]]), 0.6)
    assert hiding.keep.tolist() == [[1, 3]]
    assert hiding.hidden.tolist() == [[True, False, True, False, True]]
    assert hiding.restore.tolist() == [[4, 0, 2, 1, 3]]


@pytest.mark.parametrize(("patches", "share", "kept"), [(250, 0.9, 25), (10, 0.9, 1), (64, 0.75, 16), (1000, 0.7, 300)])
def test_as_many_are_kept_as_the_share_says(patches: int, share: float, kept: int) -> None:
    """In floating point 250 * (1 - 0.9) is a little less than 25."""
    assert hide(torch.rand(2, patches), share).keep.shape == (2, kept)


@pytest.mark.parametrize("share", [0.0, 0.99, 1.0])
def test_hiding_all_or_nothing_is_refused(share: float) -> None:
    with pytest.raises(Misuse, match="of 8 patches"):
        hide(torch.rand(2, 8), share)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_the_share_is_hidden_among_tissue_however_much_there_is(share: float) -> None:
    """Oracle: a loop over one scan at a time."""
    generator = torch.Generator().manual_seed(0)
    tissue = torch.rand(30, 40, generator=generator) < torch.linspace(0, 1, 30)[:, None]
    tissue[0], tissue[1], tissue[-1] = False, torch.arange(40) == 7, True
    noise = torch.rand(30, 40, generator=generator)
    hiding = hide_tissue(noise, share, tissue)
    assert hiding.keep.shape == (30, round(40 * (1 - share)))
    for scan in range(30):
        of_tissue = sorted(tissue[scan].nonzero()[:, 0].tolist(), key=lambda patch: noise[scan, patch].item())
        air = sorted((~tissue[scan]).nonzero()[:, 0].tolist(), key=lambda patch: noise[scan, patch].item())
        kept = min(max(1, round((1 - share) * len(of_tissue))), len(of_tissue))
        expected = of_tissue[:kept] + air[: hiding.keep.shape[1] - kept]
        assert hiding.keep[scan].tolist() == expected
        assert set(hiding.hidden[scan].nonzero()[:, 0].tolist()) == set(of_tissue[kept:])


def test_where_all_is_tissue_the_patches_are_those_of_hide() -> None:
    noise = torch.rand(4, 50)
    ours, theirs = hide_tissue(noise, 0.7, torch.ones(4, 50, dtype=torch.bool)), hide(noise, 0.7)
    assert torch.equal(ours.keep, theirs.keep)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert torch.equal(ours.restore.argsort(dim=1)[:, :15], ours.keep)


def test_the_loss_is_the_loop_over_hidden_patches() -> None:
    rebuilt, patches = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    hidden = torch.tensor([[True, False, True, False], [False, True, False, False], [False] * 4])
    errors: list[list[torch.Tensor]] = [[], [], []]
    for scan, patch in ((0, 0), (0, 2), (1, 1)):
        truth = patches[scan, patch]
        deviation = (truth.var() + 1e-6).sqrt()  # unbiased
        errors[scan].append(((rebuilt[scan, patch] - (truth - truth.mean()) / deviation) ** 2).mean())
    loss = rebuilding_loss(rebuilt, patches, hidden, standardise=True)
    of_scans = [sum(some).item() / len(some) if some else 0.0 for some in errors]
    assert loss.item() == pytest.approx(sum(of_scans) / 3, rel=1e-5)


def test_seen_patches_and_hidden_voxels_do_not_leak() -> None:
    encoder, decoder = small()
    x = torch.rand(1, 1, 8, 8, 8)
    hiding = hide(torch.rand(1, 8), 0.5)
    other = x.clone()
    number = int(hiding.hidden[0].nonzero()[0])
    i, j, k = number // 4, number // 2 % 2, number % 2
    other[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4] += 1
    assert torch.equal(rebuild(encoder, decoder, x, hiding)[1], rebuild(encoder, decoder, other, hiding)[1])
    patches = cut(x, (4, 4, 4))[0]
    rebuilt = torch.rand_like(patches, requires_grad=True)
    rebuilding_loss(rebuilt, patches, hiding.hidden).backward()
    assert torch.equal(rebuilt.grad.abs().amax(dim=2) > 0, hiding.hidden)


def small() -> tuple[ViT3D, MaskedDecoder]:
    encoder = vit(
        {
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "hidden_size": 12,
            "mlp_dim": 24,
            "num_layers": 1,
            "num_heads": 2,
            "num_register_tokens": 2,
            "pos_embed": "sincos",
        }
    )
    return encoder, MaskedDecoder(12, 64, (2, 2, 2), width=12, depth=1, heads=2, mlp_width=24).eval()


def test_the_decoder_takes_another_grid_than_its_table_was_made_for() -> None:
    encoder, decoder = small()
    hiding = hide(torch.rand(2, 18), 0.5)
    _, rebuilt, grid = rebuild(encoder, decoder, torch.rand(2, 1, 8, 12, 12), hiding)
    assert grid == (2, 3, 3)
    assert rebuilt.shape == (2, 18, 64)


def test_a_decoder_without_positions_is_refused() -> None:
    with pytest.raises(Misuse, match="positions must be one of sincos, learned, got 'none'"):
        MaskedDecoder(12, 64, (2, 2, 2), positions="none")
