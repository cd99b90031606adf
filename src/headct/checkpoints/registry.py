"""The models that can be named, and what is known about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headct import encoders
from headct.checkpoints.folder import describe, find
from headct.failure import Misuse

UNTRAINED = "none: random until trained"


def listed() -> list[dict[str, Any]]:
    """A row per name: name, weights, parameters, patch, width, depth."""
    return [
        {
            "name": name,
            "weights": UNTRAINED,
            "parameters": _parameters(name),
            "width": architecture.settings.width,
            "depth": architecture.settings.depth,
            "patch": " x ".join(map(str, architecture.settings.patch)),
        }
        for name, architecture in encoders.ARCHITECTURES.items()
    ]


def about(model: str) -> dict[str, Any]:
    """What is known about a name of the list or a checkpoint folder. Raises Misuse where it is neither."""
    if model in encoders.ARCHITECTURES:
        settings = asdict(encoders.ARCHITECTURES[model].settings)
        return {"name": model, "weights": UNTRAINED, "parameters": _parameters(model), "settings": settings}
    if not Path(model).exists():
        names = ", ".join(encoders.ARCHITECTURES)
        raise Misuse(f"no model {model!r}", do=f"take one of {names}, or a checkpoint folder")
    folder = find(model)
    return {"name": str(model), "weights": str(folder), **describe(folder)}


def flat(about: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as lines: settings.width, recipe.name."""
    lines: dict[str, str] = {}
    for key, value in about.items():
        if isinstance(value, Mapping):
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = str(value)
    return lines


def _parameters(name: str) -> int:
    with torch.device("meta"):  # counted without taking their memory
        return sum(weight.numel() for weight in encoders.build(name).parameters())
