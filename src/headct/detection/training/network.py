"""An encoder with a probe on its scan vectors as one network, and what it is given. B scans, F features, f findings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from headct.checkpoints import PretrainedEncoder
from headct.detection.linear import FittedLinear
from headct.detection.method import Scans
from headct.detection.scaling import CLIP_SD, Scaling
from headct.embedding.machine import Machine
from headct.encoders import Encoder, as_input
from headct.failure import Misuse

SCORED_TOGETHER = 8
"""Scans that are scored at a time."""


class ProbeHead(nn.Module):
    """Logits from scan vectors: each feature standardised, held within bounds, then one linear map.

    logits[b, i] = bias[i] + sum over j of weight[i, j] * clamp((scans[b, j] - mean[j]) * scale[j], -bound, bound)

    Mean and scale are kept as they are; only the map learns.
    """

    mean: Tensor
    scale: Tensor  # 0 of a feature that says nothing
    bound: Tensor

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("bound", torch.tensor(torch.inf))
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def of_probe(cls, probe: FittedLinear) -> Self:
        """The same function as a frozen probe."""
        head = cls._scaled(probe.scaling, len(probe.findings), CLIP_SD)
        with torch.no_grad():
            head.linear.weight.copy_(torch.from_numpy(probe.weights / np.sqrt(probe.weights.shape[1])))
            head.linear.bias.copy_(torch.from_numpy(probe.biases))
        return head

    @classmethod
    def unlearned(cls, vectors: np.ndarray, prior: np.ndarray) -> Self:
        """Gives every scan the logits `prior`, (f,); its scale is that of vectors (n, F), which may change later."""
        head = cls._scaled(Scaling.of(vectors), len(prior), np.inf)
        with torch.no_grad():
            head.linear.bias.copy_(torch.from_numpy(prior))
        return head

    @classmethod
    def _scaled(cls, scaling: Scaling, outputs: int, bound: float) -> Self:
        head = cls(len(scaling.mean), outputs)
        sd = torch.from_numpy(scaling.sd)
        head.mean.copy_(torch.from_numpy(scaling.mean))
        head.scale.copy_(torch.where(sd > 0, 1 / sd, 0.0))
        head.bound.fill_(bound)
        return head

    def forward(self, scans: Tensor) -> Tensor:
        """Logits (B, f) of scan vectors (B, F)."""
        return self.linear(((scans - self.mean) * self.scale).clamp(-self.bound, self.bound))


class Network(nn.Module):
    """An encoder and a head on its scan vectors."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor, spacing_mm: Tensor) -> Tensor:
        """Logits (B, f) of x (B, C, X, Y, Z) with voxels (B, 3); the head computes in float32."""
        scans = self.encoder(x, spacing_mm).scan
        with torch.autocast(scans.device.type, enabled=False):
            return self.head(scans.float())


def inner(encoder: PretrainedEncoder) -> Encoder:
    """The network of a checkpoint, itself and no copy. Raises Misuse for an exported graph, which nothing can train."""
    if encoder.runtime is not None:
        raise Misuse(
            f"{encoder.source or encoder.architecture} is an exported graph, which cannot be trained",
            why="a graph is computed as it stands; its weights get no gradients",
            do="name the checkpoint that it was made from, or take a method that learns from vectors: knn, linear",
        )
    return encoder.encoder


def copied(encoder: PretrainedEncoder) -> Encoder:
    """A copy of the network of a checkpoint, free to be changed, in evaluation mode. Raises Misuse as `inner` does."""
    return copy.deepcopy(inner(encoder)).eval().requires_grad_(True)


def inputs(encoder: PretrainedEncoder, scans: Scans, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """What an encoder with the windows of this one is given: channels (B, C, X, Y, Z) and voxel sizes (B, 3)."""
    arrays = torch.from_numpy(np.ascontiguousarray(scans.arrays(rows))).to(device)
    return as_input(arrays, list(encoder.card.windows.values())), spacing_of(scans, rows, device)


def spacing_of(scans: Scans, rows: np.ndarray, device: torch.device) -> Tensor:
    """Voxel sizes (B, 3) float32 in mm."""
    return torch.from_numpy(np.asarray(scans.spacing_mm(rows), dtype=np.float32)).to(device)


@torch.no_grad()
def token_width(encoder: Encoder) -> int:
    """Features of a token, found out on an example in evaluation mode, in which the encoder is left."""
    device = next(encoder.parameters()).device
    example = torch.zeros(1, encoder.channels, *encoder.example_shape, device=device)
    return encoder.eval()(example, torch.ones(1, 3, device=device)).tokens.shape[2]


def parts(rows: np.ndarray, size: int = SCORED_TOGETHER) -> Iterator[np.ndarray]:
    """The rows, some at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@torch.inference_mode()
def logits(
    network: nn.Module, given: Callable[[np.ndarray], tuple[Tensor, ...]], rows: np.ndarray, machine: Machine, f: int
) -> np.ndarray:
    """Logits (len(rows), f) float64 of a network in evaluation mode, in which it is left.

    `given` makes the network's input of some rows.
    """
    network.eval()
    found = np.empty((len(rows), f))
    place = 0
    for some in parts(rows):
        with machine.arithmetic():
            out = network(*given(some))
        found[place : place + len(some)] = out.double().cpu().numpy()
        place += len(some)
    return found
