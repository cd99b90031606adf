"""The encoders by name: one plain table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from headct.encoders.anatomy import AnatomyEncoder, AnatomySettings
from headct.encoders.conv import ConvEncoder, ConvSettings
from headct.encoders.features import Encoder
from headct.encoders.segres import SegResEncoder, SegResSettings
from headct.encoders.slices import SliceEncoder, SliceSettings
from headct.encoders.vit import Block, ViT3D, ViTSettings
from headct.failure import Misuse


@dataclass(frozen=True)
class Architecture:
    """A named encoder: what makes it, and from which settings."""

    make: Callable[[Any], Encoder]
    settings: Any


def _anatomy(settings: AnatomySettings) -> AnatomyEncoder:
    """The inner encoder by its name, then the rest around it."""
    if settings.inner.startswith("anatomy"):
        raise Misuse(f"{settings.inner} cannot be the inner encoder", do="name one that does not pool by anatomy")
    inner = {"channels": settings.channels, **settings.inner_settings}
    return AnatomyEncoder(build(settings.inner, **inner), _token_width(settings.inner, inner), settings)


def _token_width(name: str, settings: Mapping[str, Any]) -> int:
    """Features of a token of the encoder of this name, found out without arithmetic."""
    with torch.device("meta"):
        encoder = build(name, **settings)
        example = torch.empty(1, encoder.channels, *encoder.example_shape)
        return encoder(example, torch.ones(1, 3)).tokens.shape[2]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "vit-tiny": Architecture(ViT3D, ViTSettings(width=192, depth=12, heads=3, mlp_width=768)),
        "vit-small": Architecture(ViT3D, ViTSettings(width=384, depth=12, heads=6, mlp_width=1536)),
        "vit-base": Architecture(ViT3D, ViTSettings(width=768, depth=12, heads=12, mlp_width=3072)),
        "vit-large": Architecture(ViT3D, ViTSettings(width=1024, depth=24, heads=16, mlp_width=4096)),
        "segresenc": Architecture(SegResEncoder, SegResSettings()),
        "slices-tiny": Architecture(SliceEncoder, SliceSettings(widths=(32, 64, 128), blocks=(1, 1, 2))),
        "slices-small": Architecture(SliceEncoder, SliceSettings(widths=(48, 96, 256), blocks=(1, 2, 3))),
        "conv-tiny": Architecture(ConvEncoder, ConvSettings()),
        "anatomy-conv": Architecture(_anatomy, AnatomySettings(inner="conv-tiny")),
        "anatomy-vit": Architecture(_anatomy, AnatomySettings(inner="vit-tiny")),
    }
)


def build(name: str, **settings: Any) -> Encoder:
    """A new encoder with random weights; `settings` override those that its name stands for.

    Raises Misuse for an unknown name or setting, naming the nearest known one.
    """
    if name not in ARCHITECTURES:
        raise Misuse(f"no encoder is called {name!r}", do=_suggestion(name, ARCHITECTURES))
    architecture = ARCHITECTURES[name]
    known = [field.name for field in fields(architecture.settings)]
    for setting in settings:
        if setting not in known:
            raise Misuse(f"{name} has no setting {setting!r}", do=_suggestion(setting, known))
    encoder = architecture.make(replace(architecture.settings, **settings))
    encoder.architecture = name
    return encoder


COMPILED = (Block, ConvEncoder, SegResEncoder, SliceEncoder)


def compilable(module: nn.Module) -> list[nn.Module]:
    """The parts of an encoder, or of an objective around it, that `part.compile()` makes faster in place.

    A transformer is not always called as a whole (`ViT3D.sequence`), but its blocks are, and they share one graph.
    """
    return [part for part in module.modules() if isinstance(part, COMPILED)]


def _suggestion(name: str, known: Iterable[str]) -> str:
    nearest = get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"take one of {', '.join(known)}"
