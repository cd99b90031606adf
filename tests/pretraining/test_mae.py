"""The MAE objective.

Oracles: the published FM-HCT code (`mae.npz`, tolerances of its manifest), sums by hand, and central differences in
float64, of which a step of 1e-6 leaves an error near 1e-9.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.published import MAE_DECODER, VIT, cases, fill, uniform, vit, volume
from encoders.test_mae import CASES, channel_first, channel_last
from encoders.test_mae import check_gradients as check_published
from pretraining import masked
from pretraining.masked import CUBE, SIGHT, check_gradients, row, some_rows, tiny
from pretraining.memory_cohort import heads

from headct import checkpoints, encoders
from headct.encoders.mae import hide, hide_tissue
from headct.encoders.vit import cut
from headct.failure import Misuse
from headct.pretraining.objectives import Batch
from headct.pretraining.objectives.mae import DecoderSettings, Mae, MaeSettings, is_tissue, watch
from headct.pretraining.views import Crops, Seen

SMALL = MaeSettings(crops=CUBE, share=0.7, decoder=DecoderSettings(width=12, depth=1, heads=2, mlp_width=16))


def objective(**settings: object) -> Mae:
    return Mae(tiny(), replace(SMALL, **settings), SIGHT).train()


def noise_of(rows: int) -> torch.Tensor:
    return torch.from_numpy(uniform("noise", (rows, 27)).astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_published_code(shared: Path, case: str) -> None:
    fixtures = shared / "fixtures" / "fm-hct"
    about, stored = cases(fixtures, "mae.npz")[case], np.load(fixtures / "mae.npz")
    params, patch = about["params"], about["params"]["patch_size"]
    layout = {
        "img_size": params["input_size"],
        "patch_size": patch,
        "in_chans": params["in_chans"],
        "hidden_size": params["encoder_embed_dim"],
        "mlp_dim": params["encoder_mlp_dim"],
        "num_layers": params["encoder_depth"],
        "num_heads": params["encoder_num_heads"],
        "pos_embed": params["pos_embed"],
        "qkv_bias": params["use_bias"],
    }
    settings = MaeSettings(
        crops=Crops(views=1, shape=(params["input_size"],) * 3, edge_mm=(24.0, 24.0), overhang=0.0),
        share=params["mask_ratio"],
        air=True,
        standardise=params.get("norm_pix_loss", False),
        decoder=DecoderSettings(
            width=params["decoder_embed_dim"],
            depth=params["decoder_depth"],
            heads=params["decoder_num_heads"],
            mlp_width=params["decoder_mlp_dim"],
        ),
    )
    mae = Mae(vit(layout, last_norm_eps=1e-5), settings, SIGHT)
    assert type(mae.decoder.positions) is type(mae.vit.positions)
    fill(mae.decoder, MAE_DECODER)
    with torch.no_grad():
        for parameter in mae.decoder.out.parameters():
            parameter.copy_(channel_first(parameter, patch))
    rebuilt = []
    mae.decoder.register_forward_hook(lambda _, inputs, output: rebuilt.append(output))
    x = volume("input", about["inputs"]["volume"]["shape"])
    noise = torch.from_numpy(uniform("noise", tuple(about["inputs"]["noise"]["shape"])))
    loss, _ = mae.rebuilt(Seen(x, torch.ones(len(x), 3), torch.zeros(())), noise)
    theirs = channel_last(rebuilt[0].detach()[:, [0, 5, 63]].permute(2, 0, 1), patch).permute(1, 2, 0)
    np.testing.assert_allclose(theirs.numpy(), stored[f"{case}/pred_sample_tokens_0_5_63"], atol=3e-5, rtol=1e-4)
    assert loss.item() == pytest.approx(float(stored[f"{case}/loss"]), rel=1e-5)
    loss.backward()
    check_published(mae.vit, VIT, about["grad_l2"])
    check_published(mae.decoder, MAE_DECODER, about["grad_l2"])


@pytest.mark.parametrize("standardise", [False, True])
def test_gradients_equal_differences(standardise: bool) -> None:
    mae, seen = objective(standardise=standardise).double(), some_rows()
    seen = replace(seen, image=seen.image.double())
    check_gradients(mae, lambda: mae.rebuilt(seen, noise_of(3))[0])


def test_a_decoder_that_says_nothing_is_as_far_off_as_the_voxels_are_from_zero() -> None:
    """By hand: row 0 has 18 patches of tissue, and round(0.3 * 18) = 5 of them are kept."""
    mae, seen, noise = objective(), some_rows(), noise_of(3)
    with torch.no_grad():
        mae.decoder.out.weight.zero_()
        loss, watched = mae.rebuilt(row(seen, 0), noise[:1])
    kept = sorted(range(9, 27), key=lambda number: noise[0, number].item())[:5]
    hidden = [number for number in range(9, 27) if number not in kept]
    patches = cut(seen.image, (4, 4, 4))[0][0, hidden].double()
    assert loss.item() == pytest.approx(patches.square().mean().item(), rel=1e-5)
    explained = 1 - patches.square().mean() / patches.var(unbiased=False)
    assert watched["explained"].item() == pytest.approx(explained.item(), rel=1e-4)
    assert watched["hidden"].item() == pytest.approx(13 / 27)


def test_air_is_never_scored_and_its_place_is_never_asked_for() -> None:
    mae, seen = objective(), some_rows()
    rebuilt = []
    mae.decoder.register_forward_hook(lambda _, inputs, output: (output.retain_grad(), rebuilt.append(output))[0])
    mae.rebuilt(seen, noise_of(3))[0].backward()
    scored = rebuilt[0].grad.abs().amax(dim=2) > 0
    tissue = is_tissue(cut(seen.image, (4, 4, 4))[0])
    assert not (scored & ~tissue).any()
    assert scored.sum(dim=1).tolist() == [13, 13, 13]
    mae = objective(air=True)
    rebuilt.clear()
    mae.decoder.register_forward_hook(lambda _, inputs, output: (output.retain_grad(), rebuilt.append(output))[0])
    mae.rebuilt(seen, noise_of(3))[0].backward()
    assert (rebuilt[0].grad.abs().amax(dim=2) > 0).sum(dim=1).tolist() == [19, 19, 19]


@pytest.mark.parametrize("air", [0, 15, 26, 27])
def test_scans_with_any_amount_of_tissue_have_a_loss(air: int) -> None:
    mae = objective()
    loss, watched = mae.rebuilt(some_rows(air=air), noise_of(3))
    loss.backward()
    assert all(torch.isfinite(value) for value in (loss, *watched.values()))
    assert (loss.item() == 0) == (air >= 26)


def test_what_is_hidden_does_not_reach_the_decoder() -> None:
    mae, seen, noise = objective(), some_rows(), noise_of(3)
    given = []
    mae.decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    hiding = hide_tissue(noise, 0.7, is_tissue(cut(seen.image, (4, 4, 4))[0]))
    other = replace(seen, image=seen.image.clone())
    for scan, number in hiding.hidden.nonzero().tolist():
        masked.fill(other.image[scan], number, 0.7)
    with torch.no_grad():
        before, after = mae.rebuilt(seen, noise)[0], mae.rebuilt(other, noise)[0]
    assert torch.equal(given[0], given[1])
    assert before != after


def test_the_loss_of_a_batch_is_the_mean_of_its_scans_in_any_order() -> None:
    mae, noise = objective(), noise_of(4)
    many, few = some_rows(4, air=3), some_rows(4, air=20)
    seen = replace(many, image=torch.cat([many.image[:2], few.image[2:]]))  # scans with much and with little tissue
    with torch.no_grad():
        alone = [mae.rebuilt(row(seen, scan), noise[[scan]])[0] for scan in range(4)]
        together, _ = mae.rebuilt(seen, noise)
        shuffled, _ = mae.rebuilt(row(seen, 2, 0, 3, 1), noise[[2, 0, 3, 1]])
    torch.testing.assert_close(together, torch.stack(alone).mean())
    torch.testing.assert_close(shuffled, together)


def test_every_view_of_a_scan_has_noise_of_its_own() -> None:
    mae = objective(crops=replace(CUBE, views=2))
    boxes_mm = {"scan": np.array([[0.0, 0, 0], [46.0, 54, 46]])}
    one, again = (mae.draw(np.random.default_rng(3), boxes_mm) for _ in range(2))
    assert one.noise.shape == (2, 27)
    assert not np.array_equal(one.noise[0], one.noise[1])
    assert np.array_equal(one.noise, again.noise)
    assert one.views == again.views
    hu = torch.from_numpy(np.stack(heads(2)))
    draws = [one, mae.draw(np.random.default_rng(4), boxes_mm)]
    given = []
    mae.rebuilt = lambda seen, noise: given.append((seen, noise))  # type: ignore[method-assign]
    mae(Batch(("a", "b"), hu, (2.0, 2.0, 2.0), {}, None, None, draws), 0, 10)
    seen, noise = given[0]
    assert seen.image.shape == (4, 2, 12, 12, 12)
    expected = np.stack([draws[0].noise[0], draws[1].noise[0], draws[0].noise[1], draws[1].noise[1]])
    np.testing.assert_array_equal(noise.numpy(), expected)
    mm = [draws[scan].views[view].voxel_mm for view in range(2) for scan in range(2)]
    np.testing.assert_allclose(seen.spacing_mm[:, 0].numpy(), mm, rtol=1e-6)


def test_explained_is_zero_for_one_value_and_one_for_the_truth() -> None:
    targets = torch.rand(2, 10, 8)
    hiding = hide(torch.rand(2, 10), 0.5)
    errors = torch.stack([(t[h] - t[h].mean()).square().mean() for t, h in zip(targets, hiding.hidden, strict=True)])
    assert watch(errors.mean(), targets, hiding)["explained"].item() == pytest.approx(0, abs=1e-6)
    assert watch(torch.zeros(()), targets, hiding)["explained"].item() == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hiding_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(Misuse, match="must hide a share of the patches between 0 and 1"):
        replace(SMALL, share=share)


def test_an_encoder_without_patches_is_refused() -> None:
    with pytest.raises(Misuse, match=r"mae cannot train the encoder slices-tiny\n  why: .*\n  do:  take vit-tiny"):
        Mae(encoders.build("slices-tiny"), SMALL, SIGHT)


def test_a_step_never_waits_for_the_device() -> None:
    mae = objective()
    masked.never_waits(lambda: mae.rebuilt(some_rows(), torch.rand(3, 27)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_to_rebuild_and_leaves_a_checkpoint(tmp_path: Path, precision: str) -> None:
    run = masked.run(tmp_path, "mae", SMALL, precision=precision)
    assert run.history["loss"][-5:].mean() < 0.5 * run.history["loss"][:3].mean()
    assert run.history["explained"].iloc[-1] > run.history["explained"].iloc[0]
    model = checkpoints.load(run.checkpoint)
    assert model.card.objective["mae"]["share"] == 0.7
