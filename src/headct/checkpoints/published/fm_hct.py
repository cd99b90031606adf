"""FM-HCT's files (arXiv 2502.02779), in all their layouts, to our `ViT3D`.

pre-training, DINO    state_dict (student) and momentum_model_state_dict (teacher): module.backbone.*, module.head.*
pre-training, MAE     state_dict: module.*, with decoder_* and mask_token
downstream, backbone  state_dict: _orig_mod.*
downstream, head      state_dict: _orig_mod.{bn,linear,wkv,...}, which is `read_head`'s
on request            the tensors themselves, with module. or backbone. or neither
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headct import encoders
from headct.checkpoints.published.tensors import Stripped, Weights, content, part, strip
from headct.checkpoints.strict import CheckpointFailure, counted, differences, full_precision, some
from headct.encoders import Encoder
from headct.encoders.heads import AttentiveHead, LinearHead
from headct.encoders.positions import sincos
from headct.failure import Misuse

PREFIXES = ("module.", "_orig_mod.", "backbone.")
STUDENT, TEACHER = "state_dict", "momentum_model_state_dict"
UNUSED = re.compile(r"head\.|decoder_|mask_token$")
"""What objectives add to the encoder: DINO's head, and the decoder of masked autoencoding."""
DINO_HEAD, MASKED = "head.", "mask_token"
"""Names that tell by which objective a file was trained."""

NAMES = {
    "class_token": "cls_token",
    "positions.table": "patch_embedding.position_embeddings",
    "embedding.linear": "patch_embedding.patch_embeddings",
    "attention_norm": "att_norm",
    "mlp_norm": "ffn_norm",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.linear1",
    "mlp.2": "mlp.linear2",
}
"""Our names, or parts of them, and the published ones."""
KERNEL, MLP = "patch_embedding.patch_embeddings.weight", "blocks.0.mlp.linear1.weight"
TABLE, REGISTERS = "patch_embedding.position_embeddings", "register_tokens"
"""Tensors whose shapes say what network it is."""

HEAD_NAMES = {"token_norm.": "bn1.", "found_norm.": "bn2.", "norm.": "bn.", "kv.": "wkv.", "queries": "cls_token"}

HEAD_WIDTH = 64
"""Features of an attention head in the published sizes; the files do not say it."""
MAKE_A_CHECKPOINT = (
    "name the number once, in Python, and load the checkpoint that it makes: "
    "found = headct.checkpoints.published.read(path, heads=...); "
    "headct.checkpoints.save(folder, found.encoder, found.card)"
)
TABLE_TOLERANCE = 1e-6
PUBLISHED_SIZE = (768, 12)
"""Width and depth."""


def choose(container: Any, weights: str, path: Path) -> tuple[Stripped, tuple[str, ...]]:
    """The weights of the student or the teacher of a container, or a bare table's, and sentences about the choice."""
    if STUDENT not in container:
        return _backbone(part(container, "", path), path), ()
    if container.get(TEACHER) is None:
        found = _backbone(part(container, STUDENT, path), path)
        alone = any(name.startswith(DINO_HEAD) for name in found.weights)
        return found, ("it holds no teacher; these are the student's weights",) if alone else ()
    chosen = TEACHER if weights == "teacher" else STUDENT
    return _backbone(part(container, chosen, path), path), (
        f"of teacher and student the {weights} was taken; the published code takes the student",
    )


def _backbone(weights: Weights, path: Path) -> Stripped:
    """A pre-training file has backbone.* beside head.*, so that the prefix is not shared by all."""
    found = strip(weights, PREFIXES)
    inner = strip({name: one for name, one in found.weights.items() if name.startswith("backbone.")}, PREFIXES)
    if not inner.weights:
        return found
    others = {name: one for name, one in found.weights.items() if not name.startswith("backbone.")}
    if strange := sorted(name for name in others if not UNUSED.match(name)):
        raise _not_an_encoder(path, f"beside backbone.* it has {some(strange)}")
    return Stripped(inner.weights | others, found.prefixes + inner.prefixes)


def read(found: Stripped, path: Path, *, heads: int | None = None) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder of stripped weights, in evaluation mode, and sentences about what was done.

    Architecture and settings are those of the tensors' shapes; `heads`, which no shape tells, is a 64th of the width
    unless given. Raises CheckpointFailure where a name is left over or missing, or a value is not finite.
    """
    weights = {name: one for name, one in found.weights.items() if not UNUSED.match(name)}
    unused = sorted({name.partition(".")[0] for name in found.weights.keys() - weights.keys()})
    left_out = (f"not needed by the encoder, and left out: {', '.join(unused)}",) if unused else ()
    weights, cast = full_precision(weights)
    settings = _settings(weights, heads, masked=MASKED in found.weights, path=path)
    settings["positions"], positions = _positions(weights[TABLE], settings)
    if settings["positions"] == "sincos":
        del weights[TABLE]
    weights.setdefault(REGISTERS, torch.empty(1, 0, settings["width"]))  # ours has none of them, too
    if wrong := differences(_expected(settings), weights):
        raise CheckpointFailure(
            f"the weights in {path} are not those of an FM-HCT encoder",
            why=some(wrong),
            do="name a file of one of the published layouts; adapted ones (LoRA, a classification head) are not read",
        )
    encoder = encoders.build("vit-base", **settings).eval()
    ours = encoder.state_dict()
    encoder.load_state_dict({name: weights[_published(name, NAMES)].reshape(ours[name].shape) for name in ours})
    return encoder, (*found.note, *left_out, *cast, positions, *_said(settings, heads))


def _settings(weights: Weights, heads: int | None, *, masked: bool, path: Path) -> dict[str, Any]:
    """The settings of `ViT3D` that these shapes tell; learned positions until the table is known."""
    try:
        width, channels, *patch = weights[KERNEL].shape
        _, _, _ = patch
        depth = counted(weights, "blocks.")
        mlp_width, _ = weights[MLP].shape
        _, places, _ = weights[TABLE].shape
        _, registers, _ = weights[REGISTERS].shape if REGISTERS in weights else (1, 0, width)
    except KeyError as error:
        raise _not_an_encoder(path, f"{error.args[0]} is missing") from error
    except ValueError as error:  # of a tensor with fewer or more dimensions
        shapes = [
            f"{name} is {tuple(weights[name].shape)}" for name in (KERNEL, MLP, TABLE, REGISTERS) if name in weights
        ]
        raise _not_an_encoder(path, "; ".join(shapes)) from error
    edge = round(places ** (1 / 3))
    if edge**3 != places:
        raise _not_an_encoder(path, f"it has {places} positions, which is no cube")
    return {
        "width": width,
        "depth": depth,
        "heads": _heads(width, heads, path, do=MAKE_A_CHECKPOINT),
        "mlp_width": mlp_width,
        "channels": channels,
        "input_mean": 0.0,
        "input_std": 1.0,
        "patch": tuple(patch),
        "grid": (edge, edge, edge),
        "registers": registers,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "positions": "learned",
        **({} if "norm.bias" in weights else {"norm": "rms", "norm_eps": 1e-6}),
        **({"last_norm_eps": 1e-5} if masked else {}),
    }


def _heads(width: int, heads: int | None, path: Path, *, do: str) -> int:
    if heads is None and width % HEAD_WIDTH:
        raise Misuse(
            f"{path} does not say how many attention heads it has",
            why=f"published are such of {HEAD_WIDTH} features, which do not divide its width of {width}",
            do=do,
        )
    return width // HEAD_WIDTH if heads is None else heads


def _positions(table: Tensor, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The kind of positions and a sentence: a table that the formula gives is computed, as ours are; others stay."""
    if table.shape != (1, math.prod(settings["grid"]), settings["width"]):
        return "learned", ""  # and found to differ with the others
    gap = float((table - sincos(settings["grid"], settings["width"])).abs().max())
    if gap <= TABLE_TOLERANCE:
        return "sincos", "its table of positions is the sine and cosine one, which is computed"
    return (
        "learned",
        f"its table of positions differs from the sine and cosine one by up to {gap:.2g}, and is kept as learned",
    )


def _expected(settings: dict[str, Any]) -> Weights:
    """Names and shapes of a file with these settings, on the device "meta": compared before it takes memory."""
    with torch.device("meta"):
        network = encoders.build("vit-base", **settings)
    expected = {_published(name, NAMES): tensor for name, tensor in network.state_dict().items()}
    return expected | {KERNEL: expected[KERNEL].unflatten(1, (settings["channels"], *settings["patch"]))}


def _said(settings: Mapping[str, Any], heads: int | None) -> list[str]:
    """Sentences about what network the shapes were taken for."""
    width, depth = settings["width"], settings["depth"]
    norm = "RMSNorm" if "norm" in settings else "LayerNorm"
    bias = "a bias" if settings["qkv_bias"] else "no bias"
    said = [f"read as {depth} blocks of width {width} with {norm}, {settings['registers']} registers, {bias} on qkv"]
    if (width, depth) != PUBLISHED_SIZE:
        said.append("that is not the published size: {1} blocks of width {0}".format(*PUBLISHED_SIZE))
    if heads is None:
        said.append(
            f"{settings['heads']} attention heads of {HEAD_WIDTH} features: the file does not say, published are such"
        )
    if "last_norm_eps" in settings:
        said.append("its last norm has the epsilon it was trained with, 1e-5; the published code goes on with 1e-6")
    return said


def _not_an_encoder(path: Path, why: str) -> CheckpointFailure:
    return CheckpointFailure(
        f"{path} is not an FM-HCT encoder", why=why, do="name a file of one of the published layouts"
    )


def _published(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def read_head(path: Path, *, heads: int | None = None) -> nn.Module:
    """A published classifier (`*_classifier.pt`), a `LinearHead` or an `AttentiveHead`, in evaluation mode.

    `heads` of an attentive one is a 64th of its width unless given. Raises CheckpointFailure where it is neither.
    """
    container = content(path)
    named = STUDENT if isinstance(container, Mapping) and STUDENT in container else ""
    weights, _ = full_precision(strip(part(container, named, path), PREFIXES).weights)
    head = _head(weights, heads, path)
    ours = head.state_dict()
    theirs = {name: _published(name, HEAD_NAMES) for name in ours}
    if wrong := differences({theirs[name]: tensor for name, tensor in ours.items()}, weights):
        raise CheckpointFailure(
            f"the weights in {path} are not those of a head", why=some(wrong), do="name another file"
        )
    head.load_state_dict({name: weights[theirs[name]] for name in ours})
    return head.eval()


def _head(weights: Weights, heads: int | None, path: Path) -> nn.Module:
    """A head of the shape of these weights, with random ones."""
    try:
        outputs, width = weights["linear.weight"].shape
        if "cls_token" not in weights:
            return LinearHead(width, outputs)
        _, queries, _ = weights["cls_token"].shape
    except (KeyError, ValueError) as error:
        raise CheckpointFailure(
            f"{path} is no FM-HCT classifier", why="it has no linear.weight, or one of another shape", do="name another"
        ) from error
    return AttentiveHead(
        width,
        outputs,
        heads=_heads(width, heads, path, do="name the number: read_head(path, heads=...)"),
        queries=queries,
        kv_bias="wkv.bias" in weights,
        published_scaling=True,
    )
