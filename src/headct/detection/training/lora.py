"""Small adapters in a frozen encoder: low-rank changes of its weights (LoRA, arXiv 2106.09685).

A layer with the weights W then computes with W + scale * B A. B starts at zero, so that the network starts as the
frozen linear probe; A and B are all that is learned and stored, beside the head. Of a convolution, W is its kernel
flattened to outputs times everything that is summed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from headct.checkpoints import PretrainedEncoder
from headct.detection.linear import Linear
from headct.detection.method import Progress, Scans, Task, quiet
from headct.detection.training.augment import Augmentation
from headct.detection.training.finetune import examples_of, given_of
from headct.detection.training.loop import Schedule, Weights, train
from headct.detection.training.network import Network, ProbeHead, copied, logits
from headct.embedding.machine import Machine
from headct.encoders import Encoder
from headct.encoders.slices import StackAttention
from headct.encoders.vit import Attention
from headct.failure import Misuse
from headct.pretraining.step import kept_random

LAYERS = ("attention", "all")


class LowRank(nn.Module):
    """What is added to the weights of one layer: scale * B A, of a rank no layer is too narrow for."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        outputs, summed = weight.flatten(1).shape
        rank = min(rank, outputs, summed)
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rank, summed, device=weight.device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).reshape(weight.shape)


def adapt(encoder: Encoder, *, rank: int, scale: float, layers: str = "all") -> dict[str, LowRank]:
    """Put adapters into an encoder and freeze everything else; they are returned by the names of their layers.

    `layers` are the linear ones of attention, or all linear ones and convolutions. Raises Misuse where there are none.
    """
    named = adaptable(encoder, layers)
    if not named:
        raise Misuse(
            f"{encoder.architecture or type(encoder).__name__} has no layers of attention to adapt",
            why="it is made of convolutions",
            do='set layers to "all"',
        )
    encoder.requires_grad_(False)
    adapters = {}
    for name, layer in named.items():
        adapters[name] = LowRank(cast(Tensor, layer.weight), rank, scale)
        parametrize.register_parametrization(layer, "weight", adapters[name])
    return adapters


def adaptable(encoder: Encoder, layers: str) -> dict[str, nn.Module]:
    """The layers of an encoder that adapters go into, by name."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
    if layers == "all":
        return {name: part for name, part in encoder.named_modules() if isinstance(part, kinds)}
    return {
        f"{outer}.{name}": part
        for outer, attention in encoder.named_modules()
        if isinstance(attention, Attention | StackAttention)
        for name, part in attention.named_modules()
        if isinstance(part, kinds)
    }


def merge(encoder: Encoder) -> None:
    """Write what the adapters add into the weights, and take the adapters out: the same function, as fast as before."""
    _taken_out(encoder, keep=True)


def remove(encoder: Encoder) -> None:
    """Take the adapters out and leave the weights as they were before these were put in, to the bit."""
    _taken_out(encoder, keep=False)


def _taken_out(encoder: Encoder, *, keep: bool) -> None:
    for part in list(encoder.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=keep)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of low rank, trained together with the head, which starts as the frozen linear probe."""

    rank: int = 4
    scale: float = 2.0  # alpha / rank in the paper's words
    layers: str = "all"  # or attention
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=200, lr=5e-4))
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise Misuse(f"layers must be one of {', '.join(LAYERS)}, got {self.layers!r}")
        for name in ("rank", "scale"):
            if getattr(self, name) <= 0:
                raise Misuse(f"{name} must be above zero, got {getattr(self, name)}")

    def fit(self, task: Task, progress: Progress = quiet) -> FittedLora:
        """Raises Misuse where a finding lacks a class, or the encoder has no such layers or is a graph."""
        encoder = copied(task.encoder).to(task.machine.device)
        with kept_random(str(task.machine.device)):
            torch.manual_seed(task.seed)
            adapters = adapt(encoder, rank=self.rank, scale=self.scale, layers=self.layers)
        head = ProbeHead.of_probe(Linear().fit(task)).to(task.machine.device)
        network = Network(encoder, head)
        learned = [weight for adapter in adapters.values() for weight in adapter.parameters()]
        course = train(
            network,
            [Weights(list(head.parameters())), Weights(learned, decays=True)],
            examples_of(task, self.augmentation),
            given_of(task.encoder, task.scans, task.machine),
            task,
            self.schedule,
            progress,
        )
        weights = sum(weight.numel() for weight in (*learned, *head.parameters()))
        facts = {"start": "the frozen linear probe", "layers": len(adapters), "weights": weights, **course.facts()}
        stored = {
            f"adapters.{name}.{part}": weight.detach().cpu().contiguous()
            for name, adapter in adapters.items()
            for part, weight in adapter.named_parameters()
        }
        merge(encoder)
        how = {"rank": self.rank, "scale": self.scale, "layers": self.layers}
        return FittedLora(task.encoder, task.findings, network, stored, how, facts, task.machine)


@dataclass(frozen=True)
class FittedLora:
    """A frozen encoder, adapters and a head; the network has the adapters merged."""

    encoder: PretrainedEncoder
    findings: tuple[str, ...]
    network: Network
    adapters: Mapping[str, Tensor]
    how: Mapping[str, Any]
    facts: Mapping[str, Any]
    machine: Machine
    method: ClassVar[str] = "lora"

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (len(rows), f)."""
        given = given_of(self.encoder, scans, self.machine)
        return logits(self.network, given, rows, self.machine, len(self.findings))

    def settings(self) -> dict[str, Any]:
        """How the adapters were put in."""
        return dict(self.how)

    def tensors(self) -> dict[str, Tensor]:
        """Adapters and head; the encoder's own weights are those of its checkpoint."""
        head = self.network.head.state_dict()
        return {**self.adapters, **{f"head.{name}": one.detach().cpu().contiguous() for name, one in head.items()}}

    @classmethod
    def restore(
        cls,
        encoder: PretrainedEncoder,
        findings: tuple[str, ...],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        machine: Machine,
    ) -> Self:
        inside = copied(encoder)
        with kept_random("cpu"):  # a random start is drawn, and then overwritten
            adapters = adapt(inside, rank=settings["rank"], scale=settings["scale"], layers=settings["layers"])
        stored = {name: one for name, one in tensors.items() if name.startswith("adapters.")}
        whole = nn.ModuleDict({name.replace(".", "/"): adapter for name, adapter in adapters.items()})
        whole.load_state_dict({_as_path(name): one for name, one in stored.items()})
        head = ProbeHead(inside.scan_width, len(findings))
        rest = {name: one for name, one in tensors.items() if name not in stored}
        head.load_state_dict({name.removeprefix("head."): one for name, one in rest.items()})
        merge(inside)
        network = Network(inside, head).to(machine.device).eval()
        return cls(encoder, findings, network, stored, dict(settings), facts, machine)


def _as_path(name: str) -> str:
    """`adapters.blocks.0.mlp.2.a` as `blocks/0/mlp/2.a`, since names of parts may not have dots."""
    layer, part = name.removeprefix("adapters.").rsplit(".", 1)
    return f"{layer.replace('.', '/')}.{part}"
