"""The published networks as ours: the closed formulas that fill the weights and inputs of the published fixtures (their
manifest, "conventions"), and what each of our parameters is called there.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headct.encoders import ViT3D, ViTSettings

BLOCKS = {  # ours: published
    "attention_norm": "att_norm",
    "mlp_norm": "ffn_norm",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.linear1",
    "mlp.2": "mlp.linear2",
}
VIT = BLOCKS | {
    "class_token": "cls_token",
    "positions.table": "patch_embedding.position_embeddings",
    "embedding.linear": "patch_embedding.patch_embeddings",
}
MAE_DECODER = BLOCKS | {
    "class_position": "decoder_cls_token",
    "positions.table": "decoder_pos_embed",
    ".embed.": ".decoder_embed.",
    ".blocks.": ".decoder_blocks.",
    ".norm.": ".decoder_norm.",
    ".out.": ".decoder_pred.",
}
LINEAR_HEAD: dict[str, str] = {}
ATTENTIVE_HEAD = {"queries": "cls_token", "kv": "wkv"}
DINO_HEAD = {"prototypes.weight": "last_layer.weight_v"}
POSITIONS = {"sincos": "sincos", "learnable": "learned", "none": "none"}


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The fixture's u(name, n): numbers in [0, 1) from a closed formula."""
    index = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    wave = np.sin(12.9898 * index + 0.001 * (zlib.crc32(name.encode()) % 65536)) * 43758.5453
    return (wave - np.floor(wave)).reshape(shape)


def volume(name: str, shape: list[int]) -> torch.Tensor:
    """The fixture's inp(name, shape)."""
    return torch.from_numpy(uniform(name, tuple(shape)).astype(np.float32))


def signed(name: str, shape: list[int]) -> torch.Tensor:
    """The fixture's z(name, shape)."""
    return torch.from_numpy((2 * uniform(name, tuple(shape)) - 1).astype(np.float32))


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixture's rule(name, shape) for weights."""
    z = 2 * uniform(name, shape) - 1
    if name.endswith("weight") and len(shape) == 1:
        z = 1 + 0.1 * z
    elif name.endswith(("weight", "weight_v")):
        z = z * math.sqrt(3 / math.prod(shape[1:]))
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


def cases(fixtures: Path, file: str) -> dict[str, Any]:
    manifest = json.loads((fixtures / "manifest.json").read_text())
    return dict(manifest["files"][file]["meta"]["cases"])


def published_name(name: str, names: Mapping[str, str]) -> str:
    name = f".{name}"  # so that a name can say that it begins a part
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name.removeprefix(".")


def fill(module: nn.Module, names: Mapping[str, str]) -> None:
    """Fill parameters by the fixture's formula; a flattened kernel has the numbers of the kernel."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.numel():
                parameter.copy_(weight(published_name(name, names), tuple(parameter.shape)))


def vit(params: Mapping[str, Any], **settings: Any) -> ViT3D:
    """Our network with a fixture's settings, filled by the fixture's formula."""
    patch = params["patch_size"]
    size = params["img_size"] if isinstance(params["img_size"], list) else [params["img_size"]] * 3
    defaults = {
        "width": params["hidden_size"],
        "depth": params["num_layers"],
        "heads": params["num_heads"],
        "mlp_width": params["mlp_dim"],
        "channels": params["in_chans"],
        "input_mean": 0.0,
        "input_std": 1.0,
        "patch": (patch, patch, patch),
        "grid": tuple(edge // patch for edge in size),
        "registers": params.get("num_register_tokens", 0),
        "qkv_bias": params.get("qkv_bias", False),
        "positions": POSITIONS[params["pos_embed"]],
    }
    encoder = ViT3D(ViTSettings(**(defaults | settings))).eval()
    fill(encoder, VIT)
    return encoder
