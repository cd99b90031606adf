"""FM-HCT's files (arXiv 2502.02779), in all their layouts, to our `ViT3D`.

pre-training, DINO    state_dict (student) and momentum_model_state_dict (teacher): module.backbone.*, module.head.*
pre-training, MAE     state_dict: module.*, with decoder_* and mask_token
downstream, backbone  state_dict: _orig_mod.*
downstream, head      state_dict: _orig_mod.{bn,linear,wkv,...}, which is `read_head`'s
on request            the tensors themselves, with module. or backbone. or neither
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headct import encoders
from headct.checkpoints.published.tensors import Stripped, Weights, content, full_precision, part, strip
from headct.checkpoints.strict import CheckpointFailure, differences, some
from headct.encoders import Encoder
from headct.encoders.heads import AttentiveHead, LinearHead
from headct.encoders.positions import sincos
from headct.failure import Misuse

PREFIXES = ("module.", "_orig_mod.", "backbone.")
STUDENT, TEACHER = "state_dict", "momentum_model_state_dict"
UNUSED = re.compile(r"head\.|decoder_|mask_token$")
"""What objectives add to the encoder: DINO's head, and the decoder of masked autoencoding."""
MASKED = "mask_token"

NAMES = {
    "cls_token": "class_token",
    "patch_embedding.position_embeddings": "positions.table",
    "patch_embedding.patch_embeddings": "embedding.linear",
    "att_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.linear1": "mlp.0",
    "mlp.linear2": "mlp.2",
}
"""Published names, or parts of them, and ours."""

HEAD_NAMES = {"bn1.": "token_norm.", "bn2.": "found_norm.", "bn.": "norm.", "wkv.": "kv.", "cls_token": "queries"}

HEAD_WIDTH = 64
"""Features of an attention head in the published sizes; the files do not say it."""
TABLE_TOLERANCE = 1e-6


def choose(container: Any, weights: str, path: Path) -> tuple[Stripped, tuple[str, ...]]:
    """The weights of the student or the teacher of a container, or a bare table's, and sentences about the choice."""
    if weights not in ("teacher", "student"):
        raise Misuse(f"weights must be teacher or student, got {weights!r}")
    if STUDENT not in container:
        return _backbone(strip(part(container, "", path), PREFIXES)), ()
    if container.get(TEACHER) is None:
        return _backbone(strip(part(container, STUDENT, path), PREFIXES)), ()
    chosen = TEACHER if weights == "teacher" else STUDENT
    return _backbone(strip(part(container, chosen, path), PREFIXES)), (
        f"of teacher and student the {weights} was taken; the published code takes the student",
    )


def _backbone(found: Stripped) -> Stripped:
    """A pre-training file has backbone.* beside head.*, so that the prefix is not shared by all."""
    inner = strip({name: one for name, one in found.weights.items() if name.startswith("backbone.")}, PREFIXES)
    others = {name: one for name, one in found.weights.items() if not name.startswith("backbone.")}
    return Stripped(inner.weights | others, found.prefixes + inner.prefixes)


def read(found: Stripped, path: Path, *, heads: int | None = None) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder of stripped weights, in evaluation mode, and sentences about what was done.

    Architecture and settings are those of the tensors' shapes; `heads`, which no shape tells, is a 64th of the width
    unless given. Raises CheckpointFailure where a name is left over or missing, or a value is not finite.
    """
    weights = {name: one for name, one in found.weights.items() if not UNUSED.match(name)}
    notes = list(found.note)
    if unused := sorted({name.partition(".")[0] for name in found.weights.keys() - weights.keys()}):
        notes.append(f"not needed by the encoder, and left out: {', '.join(unused)}")
    weights, cast = full_precision(weights)
    settings = _settings(weights, heads, masked=MASKED in found.weights, path=path)
    renamed = {_renamed(name): one for name, one in weights.items()}
    kernel = renamed["embedding.linear.weight"]
    renamed["embedding.linear.weight"] = kernel.flatten(1)
    renamed.setdefault("register_tokens", torch.empty(1, 0, settings["width"]))  # ours has none of them, too
    notes += [*cast, *_positions(renamed, settings)]
    if heads is None:
        notes.append(
            f"{settings['heads']} attention heads of {HEAD_WIDTH} features: the file does not say, published are such"
        )
    encoder = encoders.build("vit-base", **settings).eval()
    if wrong := differences(encoder, renamed):
        raise CheckpointFailure(
            f"the weights in {path} are not those of an FM-HCT encoder",
            why=some(wrong),
            do="name a file of one of the published layouts; adapted ones (LoRA, a classification head) are not read",
        )
    encoder.load_state_dict(renamed)
    return encoder, tuple(notes)


def _settings(weights: Weights, heads: int | None, *, masked: bool, path: Path) -> dict[str, Any]:
    """The settings of `ViT3D` that these shapes tell."""
    try:
        kernel = weights["patch_embedding.patch_embeddings.weight"]
        width, channels, *patch = kernel.shape
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        mlp_width = len(weights["blocks.0.mlp.linear1.weight"])
        places = weights["patch_embedding.position_embeddings"].shape[1]
        edge = round(places ** (1 / 3))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointFailure(
            f"{path} is not an FM-HCT encoder", why=f"{error} is missing or has no such shape", do="name another file"
        ) from error
    if edge**3 != places:
        raise CheckpointFailure(f"{path} has {places} positions", why="which is no cube", do="name another file")
    if heads is None and width % HEAD_WIDTH:
        raise Misuse(
            f"{path} does not say how many attention heads it has", do="name the number: read(path, heads=...)"
        )
    registers = weights.get("register_tokens")
    return {
        "width": width,
        "depth": depth,
        "heads": heads or width // HEAD_WIDTH,
        "mlp_width": mlp_width,
        "channels": channels,
        "input_mean": 0.0,
        "input_std": 1.0,
        "patch": tuple(patch),
        "grid": (edge, edge, edge),
        "registers": 0 if registers is None else registers.shape[1],
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "positions": "learned",
        **({} if "norm.bias" in weights else {"norm": "rms", "norm_eps": 1e-6}),
        **({"last_norm_eps": 1e-5} if masked else {}),
    }


def _positions(renamed: Weights, settings: dict[str, Any]) -> list[str]:
    """Where the table is the one that the formula gives, it is computed, as ours are; else it is kept as it is."""
    table = renamed["positions.table"]
    computed = sincos(settings["grid"], settings["width"]) if settings["width"] >= 6 else torch.empty(0)
    if table.shape == computed.shape and float((table - computed).abs().max()) <= TABLE_TOLERANCE:
        settings["positions"] = "sincos"
        del renamed["positions.table"]
        return ["its table of positions is the sine and cosine one, which is computed"]
    return ["its table of positions was trained, and is kept as learned ones"]


def _renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def read_head(path: Path, *, heads: int | None = None) -> nn.Module:
    """A published classifier (`*_classifier.pt`), a `LinearHead` or an `AttentiveHead`, in evaluation mode.

    `heads` of an attentive one is a 64th of its width unless given. Raises CheckpointFailure where it is neither.
    """
    container = content(Path(path))
    named = STUDENT if isinstance(container, Mapping) and STUDENT in container else ""
    weights, _ = full_precision(strip(part(container, named, path), PREFIXES).weights)
    if "linear.weight" not in weights:
        raise CheckpointFailure(
            f"{path} is no FM-HCT classifier", why="it has no linear.weight", do="name another file"
        )
    outputs, width = weights["linear.weight"].shape
    renamed = {}
    for name, one in weights.items():
        start = next((theirs for theirs in HEAD_NAMES if name.startswith(theirs)), "")
        renamed[HEAD_NAMES.get(start, "") + name.removeprefix(start)] = one
    head: nn.Module
    if "queries" in renamed:
        if heads is None and width % HEAD_WIDTH:
            raise Misuse(f"{path} does not say how many attention heads it has", do="name the number: heads=...")
        queries, bias = renamed["queries"].shape[1], "kv.bias" in renamed
        count = heads or width // HEAD_WIDTH
        head = AttentiveHead(width, outputs, heads=count, queries=queries, kv_bias=bias, published_scaling=True)
    else:
        head = LinearHead(width, outputs)
    if wrong := differences(head, renamed):
        raise CheckpointFailure(
            f"the weights in {path} are not those of a head", why=some(wrong), do="name another file"
        )
    head.load_state_dict(renamed)
    return head.eval()
