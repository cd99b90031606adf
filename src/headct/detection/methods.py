"""Every way to learn findings by name: plain settings and what they give, imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType
from typing import cast

from headct.detection.method import Fitted, Method
from headct.failure import Misuse


@dataclass(frozen=True)
class Entry:
    """One way: where its settings and what they give live, and whether the encoder stays as it is."""

    module: str
    settings: str  # a frozen dataclass whose fields all have defaults: a `Method`
    fitted: str
    frozen: bool  # needs nothing but vectors
    summary: str


METHODS: Mapping[str, Entry] = MappingProxyType(
    {
        "knn": Entry("headct.detection.knn", "Knn", "FittedKnn", True, "labels of the nearest scans"),
        "linear": Entry("headct.detection.linear", "Linear", "FittedLinear", True, "logistic regression on vectors"),
        "attentive": Entry(
            "headct.detection.training.attentive", "Attentive", "FittedAttentive", False, "attention over frozen tokens"
        ),
        "lora": Entry("headct.detection.training.lora", "Lora", "FittedLora", False, "small adapters in the encoder"),
        "full": Entry("headct.detection.training.finetune", "Full", "FittedFull", False, "all weights trained on"),
    }
)

SCRATCH: Mapping[str, str | None] = MappingProxyType(
    {"scratch": None, "scratch-conv": "conv-tiny", "scratch-slices": "slices-tiny"}
)
"""What a detector is to be better than: networks that know the labelled scans alone. None: the model's architecture."""


def entry(name: str) -> Entry:
    """Of a name in `METHODS` or `SCRATCH`. Raises Misuse for a name that is none."""
    if name in SCRATCH:
        return METHODS["full"]
    if name not in METHODS:
        near = get_close_matches(name, [*METHODS, *SCRATCH], n=1)
        hint = f"did you mean {near[0]}?" if near else f"take one of auto, {', '.join([*METHODS, *SCRATCH])}"
        raise Misuse(f"no method is called {name!r}", do=hint)
    return METHODS[name]


def method(name: str) -> Method:
    """Its default settings."""
    found = entry(name)
    if name in SCRATCH:
        return cast(Method, import_module(found.module).scratch(SCRATCH[name]))
    return cast(Method, getattr(import_module(found.module), found.settings)())


def fitted(name: str) -> type[Fitted]:
    """The class that restores what it has learned."""
    found = entry(name)
    return cast(type[Fitted], getattr(import_module(found.module), found.fitted))
