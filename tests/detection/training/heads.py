"""Small virtual heads with labels that can be seen in them, held in memory, and tasks of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder
from headct.detection.method import Task
from headct.embedding.machine import Machine
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS

CPU = Machine(torch.device("cpu"), "fp32", "for tests")
SMALL: dict[str, dict[str, Any]] = {
    "vit-tiny": {
        "width": 24,
        "depth": 2,
        "heads": 2,
        "mlp_width": 48,
        "patch": (8, 8, 8),
        "grid": (2, 2, 2),
        "registers": 1,
        "pooling": "class+mean",
    },
    "slices-tiny": {"widths": (8, 16), "blocks": (1, 1), "heads": 2},
    "conv-tiny": {"widths": (4, 8, 12), "blocks": (1, 1, 1), "whole": (16, 16, 16)},
}
FINDINGS = ("ich", "bleed_left")


@dataclass
class InMemory:
    """`Scans` of arrays hu (n, X, Y, Z), as an encoder sees them."""

    encoder: PretrainedEncoder
    hu: np.ndarray
    voxel_mm: tuple[float, float, float] = (8.0, 8.0, 8.0)
    asked: list[int] = field(default_factory=list)  # rows whose arrays were read

    def __len__(self) -> int:
        return len(self.hu)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(self.hu[rows])
            seen = self.encoder.eval().see(x, torch.from_numpy(self.spacing_mm(rows)))
        return seen.scan.float().numpy()

    def arrays(self, rows: np.ndarray) -> np.ndarray:
        self.asked += rows.tolist()
        return self.hu[rows]

    def spacing_mm(self, rows: np.ndarray) -> np.ndarray:
        return np.tile(np.array(self.voxel_mm, dtype=np.float32), (len(rows), 1))


def heads(n: int, side: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Balls of brain (n, X, Y, Z) in air, and labels (n, 2): blood anywhere, and blood on the left (X low)."""
    rng = np.random.default_rng(seed)
    axis = np.arange(side) - (side - 1) / 2
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    hu = np.full((n, side, side, side), -1000.0)
    labels = np.zeros((n, 2))
    for i in range(n):
        brain = x**2 + y**2 + z**2 < (0.45 * side) ** 2
        hu[i][brain] = 30 + rng.normal(0, 3, brain.sum())
        labels[i] = [(1, 1), (1, 0), (0, 0), (0, 0)][i % 4]
        if labels[i, 0]:
            centre = np.array([-1 if labels[i, 1] else 1, *rng.uniform(-0.6, 0.6, 2)]) * 0.22 * side
            ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < (0.16 * side) ** 2
            hu[i][ball] = 75
    return hu.astype(np.int16), labels


def encoder_of(architecture: str, seed: int = 0) -> PretrainedEncoder:
    torch.manual_seed(seed)
    card = Card(recipe=recipes["head"], windows=WINDOWS)
    return PretrainedEncoder(encoders.build(architecture, **SMALL[architecture]).eval(), card, "0" * 64)


def task_of(
    n: int,
    *,
    architecture: str = "vit-tiny",
    labels: np.ndarray | None = None,
    findings: tuple[str, ...] = FINDINGS,
    validation: int = 4,
    seed: int = 0,
) -> Task:
    """The last `validation` of n scans validate, the others are learned from."""
    encoder = encoder_of(architecture)
    hu, truth = heads(n)
    return Task(
        encoder=encoder,
        scans=InMemory(encoder, hu),
        findings=findings,
        labels=truth if labels is None else labels,
        patients=np.array([f"p{i}" for i in range(n)]),
        train=np.arange(n - validation),
        validation=np.arange(n - validation, n),
        seed=seed,
        machine=CPU,
    )
