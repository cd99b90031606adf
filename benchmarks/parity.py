"""Our networks beside the numbers that the published code gives, case by case.

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

from headct.checkpoints.published import read, read_head
from headct.encoders import SegResEncoder, SegResSettings, ViT3D, build, segmentation_network
from headct.encoders.heads import DinoHead, ProjectionMLP
from headct.encoders.mae import MaskedDecoder, hide, rebuilding_loss
from headct.encoders.positions import sincos
from headct.encoders.vit import cut

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
    yield from vit_base(fm_hct)
    yield from ct_fm_full_size(ct_fm)


def gap(ours: Tensor, theirs: np.ndarray) -> float:
    """The largest difference; infinite where shapes differ."""
    if tuple(ours.shape) != theirs.shape:
        return float("inf")
    return float(np.abs(ours.numpy().astype(np.float64) - theirs).max())


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
        parameter.copy_(parameter.unflatten(0, (patch**3, channels)).transpose(0, 1).flatten(0, 1).clone())
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


# CT-FM


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
