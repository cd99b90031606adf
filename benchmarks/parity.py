"""Our networks and our pre-training beside the numbers that the published code gives, case by case.

    python benchmarks/parity.py ../shared/fixtures

The fixtures are not part of this repository. Weights and inputs come from closed formulas, which each manifest states;
every layout of FM-HCT's checkpoints is written with such weights and read again by `headct.checkpoints.published`.
Ends with 1 where a difference is larger than the tolerance that the manifest states.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from encoders import ctfm_formula, published  # the formulas, which the tests use too
from pretraining import ct_fm as ct_fm_contrast
from pretraining import fm_hct

from headct.checkpoints.published import read, read_head
from headct.encoders import SegResEncoder, SegResSettings, ViT3D, build, segmentation_network
from headct.encoders.heads import DinoHead, ProjectionMLP
from headct.encoders.mae import MaskedDecoder, hide, rebuilding_loss
from headct.encoders.positions import sincos
from headct.encoders.vit import cut
from headct.pretraining.objectives import Sight
from headct.pretraining.objectives.dino import dino_loss
from headct.pretraining.objectives.mae import Mae, MaeSettings
from headct.pretraining.objectives.objective import Centre
from headct.pretraining.published import (
    SCAN,
    area,
    bent,
    published_lr,
    published_momentum,
    published_temperature,
    smoothing,
)
from headct.pretraining.schedules import cosine, ramp
from headct.pretraining.step import descend
from headct.pretraining.views import Crops, Seen, ViewSettings

POSITIONS = "patch_embedding.position_embeddings"
NO_ENCODERS = ("g_", "h_", "j_")  # two classifiers, one with LoRA
OF_CASE = {"i_rmsnorm": {"norm": "rms", "norm_eps": 1e-6}}
"""What the fixture's parameters do not say in our words."""
PREFIXES = ("module.", "_orig_mod.", "backbone.")


@dataclass(frozen=True)
class Line:
    """One comparison."""

    case: str
    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixtures", type=Path)
    fixtures = parser.parse_args().fixtures
    torch.set_grad_enabled(False)
    lines: list[Line] = []
    print(f"{'case':44} {'compared':34} {'difference':>10} {'tolerance':>10}")
    for line in comparisons(fixtures / "fm-hct", fixtures / "ct-fm"):
        lines.append(line)
        verdict = "" if line.holds else "  NOT MET"
        print(f"{line.case:44} {line.what:34} {line.difference:10.2e} {line.tolerance:10.0e}{verdict}", flush=True)
    sys.exit(0 if all(line.holds for line in lines) else 1)


def comparisons(fm_hct: Path, ct_fm: Path) -> Iterator[Line]:
    """All of them, the quick ones first."""
    yield from layouts(fm_hct)
    yield from vits(fm_hct, "vit_tiny.npz", 2e-5)
    yield from heads(fm_hct)
    yield from masked_autoencoding(fm_hct)
    yield from ct_fm_networks(ct_fm)
    yield from dino_losses(fm_hct)
    yield from dino_training(fm_hct)
    yield from schedules(fm_hct)
    yield from views(fm_hct)
    yield from contrast(ct_fm)
    yield from vit_base(fm_hct)
    yield from ct_fm_full_size(ct_fm)


def gap(ours: Tensor | np.ndarray, theirs: np.ndarray, *, relative_to: float | None = None) -> float:
    """The largest difference; infinite where shapes differ, or where one of both alone has a number.

    With `relative_to` it is a share of theirs, or of that value where theirs is smaller.
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape or not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return float("inf")
    size = 1.0 if relative_to is None else np.maximum(np.abs(theirs), relative_to)
    return float(np.nanmax(np.abs(ours - theirs) / size))


# FM-HCT


def layouts(fixtures: Path) -> Iterator[Line]:
    """Every published checkpoint layout through our loader, against the tokens of the same network."""
    known = json.loads((fixtures / "layouts.json").read_text())["layouts"]
    expected = {"dino_pretrain": "c_sincos_bias_reg4", "downstream_backbone": "b_sincos_bias"}
    arrays = np.load(fixtures / "vit_tiny.npz")
    cases = published.cases(fixtures, "vit_tiny.npz")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in expected.items():
            path = Path(folder) / f"{name}.pt"
            weights = filled(known[name]["state_dict"])
            torch.save({"state_dict": weights, "momentum_model_state_dict": weights}, path)
            encoder = read(path, heads=4).encoder
            tokens = encoder.sequence(published.volume(**cases[case]["input"]))[0]
            yield Line(f"layout {name}", f"tokens of {case}", gap(tokens, arrays[f"{case}/out"]), 2e-5)
        path = Path(folder) / "mae.pt"
        torch.save({"state_dict": filled(known["mae_pretrain"]["state_dict"])}, path)
        encoder = read(path, heads=4).encoder
        same = published.vit(cases["b_sincos_bias"]["params"], last_norm_eps=1e-5)
        x = published.volume(**cases["b_sincos_bias"]["input"])
        difference = gap(encoder.sequence(x)[0], same.sequence(x)[0].numpy())
        yield Line("layout mae_pretrain", "tokens of the same encoder", difference, 2e-5)
        path = Path(folder) / "bare.pt"
        torch.save(filled(known["notebook_bare"]["state_dict_full_size"]), path)
        case = published.cases(fixtures, "vit_base.npz")["base_nobias"]
        found = read(path).encoder(published.volume(**case["input"])).scan
        theirs = np.load(fixtures / "vit_base.npz")["base_nobias/cls"]
        yield Line("layout notebook_bare", "class token of base_nobias", gap(found, theirs), 5e-5)


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of these names, by the formula under their bare names, positions by sines and cosines."""
    weights = {}
    for name, shape in shapes.items():
        bare = name
        while start := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), ""):
            bare = bare.removeprefix(start)
        if name.endswith(POSITIONS):
            weights[name] = sincos((round(shape[1] ** (1 / 3)),) * 3, shape[2])
        elif name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            weights[name] = torch.ones(shape)
        else:
            weights[name] = published.weight(bare, tuple(shape))
    return weights


def vits(fixtures: Path, file: str, tolerance: float) -> Iterator[Line]:
    """Every option set of the small transformer that is a plain encoder: not classifiers (`heads`), not LoRA."""
    arrays = np.load(fixtures / file)
    for name, case in published.cases(fixtures, file).items():
        if "pos_embed" not in case.get("params", {}) or name[:2] in NO_ENCODERS:
            continue
        encoder = published.vit(case["params"], **OF_CASE.get(name, {}))
        what = "tokens"
        if name == "n_noncubic":
            encoder.positions.table.copy_(torch.from_numpy(arrays[f"{name}/pos"]))
            what = "tokens, published table put in"
        tokens = encoder.sequence(published.volume(**case["input"]))[0]
        yield Line(f"ViT {name}", what, gap(tokens, arrays[f"{name}/out"]), tolerance)


def vit_base(fixtures: Path) -> Iterator[Line]:
    """The published size, with and without qkv bias and registers."""
    arrays = np.load(fixtures / "vit_base.npz")
    for name, case in published.cases(fixtures, "vit_base.npz").items():
        encoder = published.vit(case["params"])
        features = encoder(published.volume(**case["input"]))
        yield Line(f"ViT-B {name}", "class token", gap(features.scan, arrays[f"{name}/cls"]), 5e-5)
        some = features.tokens[:, [0, 73, 511]]
        yield Line(f"ViT-B {name}", "patch tokens", gap(some, arrays[f"{name}/patch_tokens_0_73_511"]), 5e-5)
        yield Line(f"ViT-B {name}", "mean token", gap(features.tokens.mean(1), arrays[f"{name}/patch_mean"]), 5e-5)


def heads(fixtures: Path) -> Iterator[Line]:
    """Published classifiers through our loader, and DINO's heads."""
    stored = np.load(fixtures / "heads.npz")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in published.cases(fixtures, "heads.npz").items():
            x = published.signed(case["input"]["name"], case["input"]["shape"])
            if name.startswith("dinohead"):
                head = dino_head(case)
                yield Line(f"head {name}", "scores", gap(head(x), stored[f"{name}/out"]), 2e-5)
                continue
            path = Path(folder) / f"{name}.pt"
            torch.save(filled(case["state_dict_keys"]), path)
            head = read_head(path, heads=case["params"].get("num_heads"))
            linear = name == "linear"
            statistics = {"norm": "running_{}_after2", "token_norm": "bn1_{}", "found_norm": "bn2_{}"}
            for part, module in head.named_modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    module.running_mean = torch.from_numpy(stored[f"{name}/{statistics[part].format('mean')}"])
                    module.running_var = torch.from_numpy(stored[f"{name}/{statistics[part].format('var')}"])
            logits = stored[f"{name}/eval_logits" + ("_first4rows" if linear else "")]
            yield Line(f"head {name}", "logits", gap(head(x)[: len(logits)], logits), 2e-5)


def masked_autoencoding(fixtures: Path) -> Iterator[Line]:
    """What is hidden, what the encoder sees, what the decoder makes of it, and the loss."""
    stored = np.load(fixtures / "mae.npz")
    for name, case in published.cases(fixtures, "mae.npz").items():
        if "mask_ratio" not in case.get("params", {}):
            continue
        params, patch = case["params"], case["params"]["patch_size"]
        encoder, decoder = mae_networks(params)
        x = published.volume("input", case["inputs"]["volume"]["shape"])
        noise = torch.from_numpy(published.uniform("noise", tuple(case["inputs"]["noise"]["shape"])))
        hiding = hide(noise, params["mask_ratio"])
        tokens, grid = encoder.sequence(x, keep=hiding.keep)
        rebuilt = decoder(tokens, hiding, grid)
        loss = rebuilding_loss(
            rebuilt, cut(x, (patch,) * 3)[0], hiding.hidden, standardise=params.get("norm_pix_loss", False)
        )
        sample = rebuilt[:, [0, 5, 63]].unflatten(2, (-1, patch**3)).transpose(2, 3).flatten(2)  # channel fastest
        yield Line(f"MAE {name}", "order of patches", gap(hiding.restore.float(), stored[f"{name}/ids_restore"]), 0)
        yield Line(f"MAE {name}", "tokens", gap(tokens, stored[f"{name}/latent"]), 3e-5)
        yield Line(f"MAE {name}", "rebuilt", gap(sample, stored[f"{name}/pred_sample_tokens_0_5_63"]), 3e-5)
        theirs = float(stored[f"{name}/loss"])
        yield Line(f"MAE {name}", "loss, relative", abs(loss.item() - theirs) / theirs, 1e-5)
        yield Line(f"MAE {name}", "norms of gradients, relative", masked_gradients(case), 1e-3)


@torch.enable_grad()
def masked_gradients(case: dict[str, Any]) -> float:
    """The largest relative difference of the norm of any weight's gradient, by the objective that a run uses."""
    params, inputs = case["params"], case["inputs"]
    encoder, decoder = mae_networks(params)
    settings = MaeSettings(
        crops=Crops(views=1, shape=(params["input_size"],) * 3, edge_mm=(24.0, 24.0), overhang=0.0),
        share=params["mask_ratio"],
        air=True,
        standardise=params.get("norm_pix_loss", False),
    )
    mae = Mae(encoder, settings, Sight(ViewSettings(), [(40.0, 80.0)]))
    mae.decoder = decoder
    x = published.volume("input", inputs["volume"]["shape"])
    noise = torch.from_numpy(published.uniform("noise", tuple(inputs["noise"]["shape"])))
    mae.rebuilt(Seen(x, torch.ones(len(x), 3), torch.zeros(())), noise)[0].backward()
    worst = 0.0
    for network, names in ((encoder, published.VIT), (decoder, published.MAE_DECODER)):
        for ours, parameter in network.named_parameters():
            theirs = published.published_name(ours, names)
            if parameter.numel() and theirs != "decoder_pos_embed":  # frozen there even where it is random
                length = case["grad_l2"][theirs]
                worst = max(worst, abs(parameter.grad.norm().item() - length) / max(length, 1e-3))
    return worst


def mae_networks(params: dict[str, Any]) -> tuple[ViT3D, MaskedDecoder]:
    """Encoder and decoder of a fixture's shape, filled by its formula; channels of our patches follow one another."""
    patch, channels = params["patch_size"], params["in_chans"]
    names = {"img_size": "input_size", "hidden_size": "encoder_embed_dim", "mlp_dim": "encoder_mlp_dim"}
    names |= {"num_layers": "encoder_depth", "num_heads": "encoder_num_heads", "qkv_bias": "use_bias"}
    encoder = published.vit(params | {ours: params[theirs] for ours, theirs in names.items()}, last_norm_eps=1e-5)
    decoder = MaskedDecoder(
        params["encoder_embed_dim"],
        channels * patch**3,
        encoder.settings.grid,
        width=params["decoder_embed_dim"],
        depth=params["decoder_depth"],
        heads=params["decoder_num_heads"],
        mlp_width=params["decoder_mlp_dim"],
        bias=params["use_bias"],
        positions=published.POSITIONS[params["pos_embed"]],
    )
    published.fill(decoder, published.MAE_DECODER)
    for parameter in decoder.out.parameters():
        parameter.data.copy_(parameter.data.unflatten(0, (patch**3, channels)).transpose(0, 1).flatten(0, 1).clone())
    return encoder, decoder


def dino_head(case: dict[str, Any]) -> DinoHead:
    """A DINO head of a fixture's shape, filled by its formula."""
    params = case["params"]
    head = DinoHead(
        params["in_dim"],
        prototypes=params["out_dim"],
        hidden=params["hidden_dim"],
        bottleneck=params["bottleneck_dim"],
        layers=params["nlayers"],
        batch_norm=params.get("use_bn", False),
        free_gain=not params.get("norm_last_layer", True),
    )
    names = dict(published.DINO_HEAD)
    if params["nlayers"] == 1:
        names["mlp.0"] = "mlp"
    for name, parameter in head.named_parameters():
        if name != "gain":
            parameter.copy_(published.weight(published.published_name(name, names), tuple(parameter.shape)))
    return head.train()  # the one with BatchNorm was recorded so


@torch.enable_grad()
def dino_losses(fixtures: Path) -> Iterator[Line]:
    """Five steps of the loss alone, each with the centre that the last one left."""
    stored, centre = np.load(fixtures / "dino_loss.npz"), Centre(16, 0.9)
    losses, centres, gradients, temperatures = [], [], [], []
    for step in range(5):
        student, teacher = (
            torch.from_numpy((0.5 * (2 * published.uniform(f"{name}{step}", (views * 3, 16)) - 1)).astype(np.float32))
            for name, views in (("s", 4), ("t", 2))
        )
        scores = student.requires_grad_().reshape(4, 3, 16), teacher.reshape(2, 3, 16)
        temperatures.append(ramp(step, 3, 0.04, 0.07))
        loss = dino_loss(*scores, centre.value, student_t=0.1, teacher_t=temperatures[-1])
        loss.backward()
        centre.note(scores[1].flatten(0, 1))
        centre.move()
        losses.append(loss.item())
        centres.append(centre.value.numpy().copy())
        gradients.append(student.grad.numpy())
    temperature = gap(np.array(temperatures), stored["loss/temp_schedule"][:5], relative_to=1e-3)
    yield Line("DINO loss, 5 steps", "temperature, relative", temperature, 1e-12)
    yield Line(
        "DINO loss, 5 steps", "loss, relative", gap(np.array(losses), stored["loss/values"], relative_to=1), 1e-5
    )
    yield Line("DINO loss, 5 steps", "centre", gap(np.stack(centres), stored["loss/centers"][:, 0]), 1e-6)
    yield Line("DINO loss, 5 steps", "gradients", gap(np.stack(gradients), stored["loss/student_grads"]), 1e-5)


@torch.enable_grad()
def dino_training(fixtures: Path) -> Iterator[Line]:
    """Whole steps: views through both networks, gradients, clipping, AdamW, schedules, teacher and centre."""
    stored = np.load(fixtures / "dino_train.npz")
    for name, case in published.cases(fixtures, "dino_train.npz").items():
        if "steps_per_epoch" not in case:
            continue
        worst: dict[str, float] = {}
        for step, found in enumerate(fm_hct.steps_of(fm_hct.published_dino(case), case)):
            for key, ours, theirs in fm_hct.pairs(found, stored, name, step, case):
                tolerance = fm_hct.TOLERANCES.get(key, {"atol": 5e-5})
                share = tolerance["atol"] / tolerance["rtol"] if "rtol" in tolerance else None
                worst[key] = max(worst.get(key, 0.0), gap(ours, theirs, relative_to=share))
        for key, difference in worst.items():
            tolerance = fm_hct.TOLERANCES.get(key, {"atol": 5e-5})
            words = key.replace("_", " ").removesuffix(" used") + (", relative" if "rtol" in tolerance else "")
            yield Line(f"DINO training {name}", words, difference, tolerance.get("rtol", tolerance["atol"]))


def schedules(fixtures: Path) -> Iterator[Line]:
    """Rate, weight decay, momentum and temperature of a small run and of the published one."""
    stored = np.load(fixtures / "schedules.npz")
    full, rates = stored["full_idx"].tolist(), stored["full_lr_idx"].tolist()
    ours = {
        "small_lr_cosine_w3_t20_base1e-3_end1e-6": [published_lr(s, 20, 3, 1e-3, 1e-6, "cosine") for s in range(26)],
        "small_lr_poly_w3_t20_base1e-3_end1e-6": [published_lr(s, 20, 3, 1e-3, 1e-6, "poly") for s in range(26)],
        "small_lr_const_w3": [published_lr(s, 20, 3, 1e-3, 1e-6, "constant") for s in range(26)],
        "full_lr_cosine_base5e-4": [published_lr(s, 282600, 28260, 5e-4, 5e-7, "cosine") for s in rates],
        "full_lr_poly2_base5e-4": [published_lr(s, 282600, 28260, 5e-4, 5e-7, "poly") for s in rates],
        "full_momentum_994": [published_momentum(i, 200, 1413, 0.994) for i in full],
        "full_momentum_999": [published_momentum(i, 200, 1413, 0.999) for i in full],
        "momentum_small_994_1_e5_n7": [published_momentum(i, 5, 7, 0.994) for i in range(35)],
        "momentum_small_warm1": [ramp(s, 7, 0.9, 0.994) for s in range(7)]
        + [cosine(s, 28, 0.994, 1) for s in range(28)],
        "teacher_temp_0.04_0.07_w30_n200": [published_temperature(epoch, 0.04, 0.07) for epoch in range(200)],
        "teacher_temp_0.04_0.04_w30_n200": [published_temperature(epoch, 0.04, 0.04) for epoch in range(200)],
        "wd_small_e5_n7": [cosine(s, 35, 0.04, 0.4) for s in range(35)],
        "full_wd": [cosine(s, 282600, 0.04, 0.4) for s in full],
    }
    for name, values in ours.items():
        yield Line("schedule", f"{name[:24]}, relative", gap(np.array(values), stored[name], relative_to=1e-3), 1e-9)


def views(fixtures: Path) -> Iterator[Line]:
    """Every recorded view, and the operators that views are made of."""
    stored = np.load(fixtures / "augment.npz")
    image = published.volume("aug", [3, SCAN, SCAN, SCAN]).half()
    for name, case in published.cases(fixtures, "augment.npz").items():
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            seen = fm_hct.filled(image.to(dtype), fm_hct.recorded(name, case), (16, 16, 16)).float()
            yield Line(f"view {name}", str(dtype).removeprefix("torch."), gap(seen, stored[name]), tolerance)
    image = published.volume("op", [2, 9, 10, 11]).double()
    for shape in ((6, 6, 6), (12, 13, 5)):
        by_axis = [torch.from_numpy(area(n, m)) for n, m in zip(image.shape[1:], shape, strict=True)]
        name = "area_9_10_11_to_{}_{}_{}".format(*shape)
        yield Line("view, operator", name, gap(along(by_axis, image), stored[f"op/{name}"]), 1e-5)
    bells = [torch.from_numpy(smoothing(s, n)) for s, n in zip((0.5, 0.8, 1.0), image.shape[1:], strict=True)]
    yield Line("view, operator", "gauss_0.5_0.8_1.0", gap(along(bells, image), stored["op/gauss_0.5_0.8_1.0"]), 1e-5)
    yield Line("view, operator", "gamma_0.4", gap(bent(image, 0.4), stored["op/gamma_0.4"]), 1e-5)


def along(by_axis: list[Tensor], image: Tensor) -> Tensor:
    """An image (N, X, Y, Z) with a matrix applied along each of its last three axes."""
    return torch.einsum("ia,jb,kc,nabc->nijk", *by_axis, image)


# CT-FM


@torch.enable_grad()
def contrast(fixtures: Path) -> Iterator[Line]:
    """Losses within a scan and their gradients, CT-FM's schedules, and five steps of its AdamW."""
    stored = np.load(fixtures / "losses_and_schedules.npz")
    about = json.loads((fixtures / "manifest.json").read_text())["files"]["losses_and_schedules.npz"]["info"]
    for case in ct_fm_contrast.PUBLISHED:
        vectors, loss = ct_fm_contrast.published_loss(case, stored)
        difference = abs(loss.item() - about[f"intrasample_ntxent/{case}"]["value"])
        yield Line(f"NT-Xent {case}", "loss", difference, 1e-5)
        if f"intrasample_ntxent/{case}/grad0" in stored:
            theirs = stored[f"intrasample_ntxent/{case}/grad0"]
            yield Line(f"NT-Xent {case}", "gradients", gap(vectors.grad, theirs), 1e-5)
    ours = {
        "pretrain_500": [published_lr(epoch, 500, 10, 1e-4, 0.0) for epoch in range(500)],
        "triage_40": [max(cosine(epoch, 40, 1e-4, 0.0), 1e-6) for epoch in range(40)],
        "ablation_cosine_25": [cosine(epoch, 25, 1e-4, 1e-6) for epoch in range(25)],
    }
    for name, rates in ours.items():
        yield Line("CT-FM's schedule", name, gap(np.array(rates), stored[f"schedule/{name}"]), 1e-9)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = torch.optim.AdamW([{"params": [weight], "decays": True}], fused=True)
    trace = []
    for step in range(5):
        weight.grad = (step + 1) * torch.tensor([1.0, 1.0, -1.0])
        descend(optimizer, lr=1e-4, decay=1e-6, clip=float("inf"))
        trace.append(weight.detach().numpy().copy())
    yield Line("CT-FM's AdamW", "weights of 5 steps", gap(np.stack(trace), stored["adamw_trace"]), 1e-6)


def ct_fm_networks(fixtures: Path) -> Iterator[Line]:
    """The encoder, the segmentation network and the projection head, four features wide."""
    stored, settings = np.load(fixtures / "network.npz"), SegResSettings(init_filters=4)
    encoder = ctfm_formula.fill(SegResEncoder(settings)).eval()
    x = torch.from_numpy(stored["tiny_encoder/input"])
    for index, level in enumerate(encoder.levels(x)):
        every = 4 if index < 2 else 1
        theirs = stored[f"tiny_encoder/eval_level{index}"]
        yield Line("SegResEncoder", f"map {index}", gap(level[:, :, ::every, ::every, ::every], theirs), 2e-4)
    yield Line("SegResEncoder", "vector", gap(encoder(x).scan, stored["tiny_encoder/eval_pooled"]), 2e-4)
    odd = encoder(ctfm_formula.volume((1, 1, 24, 33, 50), 1002)).scan
    yield Line("SegResEncoder, odd size", "vector", gap(odd, stored["tiny_encoder_odd/pooled"]), 2e-4)
    train = encoder.train()(x).scan
    yield Line("SegResEncoder, training", "vector", gap(train, stored["tiny_encoder/train_pooled"]), 2e-4)
    network = ctfm_formula.fill(segmentation_network(settings, outputs=3, depths=4))
    x = torch.from_numpy(stored["tiny_segresnetds/input"])
    yield Line("SegResNetDS", "logits", gap(network.eval()(x), stored["tiny_segresnetds/eval_logits"]), 2e-4)
    for index, level in enumerate(network.train()(x)):
        every = 2 if index == 0 else 1
        theirs = stored[f"tiny_segresnetds/train_logits{index}"]
        yield Line(
            "SegResNetDS, training", f"logits {index}", gap(level[:, :, ::every, ::every, ::every], theirs), 2e-4
        )
    head = ctfm_formula.fill(ProjectionMLP((512, 256, 128)))
    projected = head(torch.from_numpy(stored["simclr_head/input"]))
    yield Line("projection head", "vectors", gap(projected, stored["simclr_head/output"]), 2e-4)


def ct_fm_full_size(fixtures: Path) -> Iterator[Line]:
    """The published sizes."""
    stored = np.load(fixtures / "network.npz")
    encoder = ctfm_formula.fill(build("segresenc")).eval()
    for case, shape, seed in (("a", (1, 1, 32, 48, 48), 2001), ("b", (1, 1, 24, 128, 128), 2002)):
        x = ctfm_formula.volume(shape, seed)
        name, levels = f"SegResEncoder, full size, {case}", encoder.levels(x)
        means = [stored[f"full_encoder/{case}/level{index}_channel_mean"] for index in range(len(levels))]
        worst = max(gap(level.mean((2, 3, 4)), mean) for level, mean in zip(levels, means, strict=True))
        yield Line(name, "means of all maps", worst, 1e-3)
        yield Line(name, "vector", gap(encoder(x).scan, stored[f"full_encoder/{case}/pooled"]), 1e-3)
    network = ctfm_formula.fill(segmentation_network(SegResSettings(), outputs=2)).eval()
    logits = network(ctfm_formula.volume((1, 1, 32, 64, 64), 2003))[:, :, ::4, ::4, ::4]
    yield Line("SegResNetDS, full size", "logits", gap(logits, stored["full_segresnetds/logits_stride4"]), 1e-3)


if __name__ == "__main__":
    main()
