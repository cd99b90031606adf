"""What the contrastive objectives share: a weighted NT-Xent, and vectors of patients that are compared with each other.

B scans, K kinds of vectors that each scan has (itself, its positive, its twin), P processes, N anchors, M candidates,
F features, E features of the space in which vectors are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders import Encoder
from headct.encoders.heads import ProjectionMLP
from headct.failure import Misuse
from headct.pretraining.objectives.objective import Batch
from headct.pretraining.views import Seen, sent


@dataclass(frozen=True)
class Contrast:
    """Anchors beside candidates, of which one is the positive; leading axes (...) hold separate problems.

    A weight says how much a candidate counts as a negative: 1 in full, 0 not at all. That of the positive is not read.
    """

    cosines: Tensor  # (..., N, M)
    positives: Tensor  # (N,), the number of each anchor's positive among the candidates
    weights: Tensor  # (..., N, M)

    def losses(self, temperature: float) -> Tensor:
        """NT-Xent (SimCLR, arXiv 2002.05709, equation 1) of each anchor, (..., N), with weighted negatives.

        With s = cosines / temperature and p = positives:

            negatives[n] = sum(w[n, m] * exp(s[n, m]) for m in range(M) if m != p[n])
            loss[n] = -log(exp(s[n, p[n]]) / (exp(s[n, p[n]]) + negatives[n]))
        """
        column = self._column()
        weights = self.weights.scatter(-1, column, 1.0)
        scores = self.cosines / temperature + weights.to(self.cosines.dtype).log()
        return -scores.log_softmax(dim=-1).gather(-1, column)[..., 0]

    @torch.no_grad()
    def matched(self) -> Tensor:
        """The share of the anchors whose positive is nearer than every negative; equal vectors match none."""
        column = self._column()
        nothing = (self.weights == 0).scatter(-1, column, True)
        nearest = self.cosines.masked_fill(nothing, -torch.inf).amax(dim=-1, keepdim=True)
        return (self.cosines.gather(-1, column) > nearest).float().mean()

    def _column(self) -> Tensor:
        return self.positives.expand(self.cosines.shape[:-1])[..., None]


def cosines(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Cosines (..., N, M) of anchors (..., N, E) with candidates (..., M, E)."""
    # a temperature of 0.1 would enlarge the rounding of half precision
    with torch.autocast(anchors.device.type, enabled=False):
        return F.normalize(anchors, dim=-1) @ F.normalize(candidates, dim=-1).transpose(-1, -2)


def between_patients(vectors: Tensor, patients: Tensor, known: Tensor | None = None) -> Contrast:
    """Scans and their positives, each the other's positive, among the vectors of all patients of all processes.

    `vectors` (K, B, E) are scans, positives, and more candidates if any; what is not `known` (K, B) is left out.
    `patients` (B,) are of `patients_of`. The 2 B anchors are [scans, positives] of this process, the P K B candidates
    are in the order process, kind, scan; see `own`. Vectors of an anchor's own patient are no negatives, so
    of one scan alone the loss is 0.
    """
    kinds, scans = vectors.shape[:2]
    flat = vectors.flatten(0, 1)
    anchors = torch.arange(2 * scans, device=flat.device)
    all_patients = gathered(patients.repeat(kinds))
    weights = (patients.repeat(2)[:, None] != all_patients).to(flat.dtype)
    if known is not None:
        weights = weights * gathered(known.flatten()[:, None].to(flat.dtype)).T
    return Contrast(
        cosines=cosines(flat[: 2 * scans], gathered(flat)),
        positives=own(kinds * scans) + (anchors + scans) % (2 * scans),
        weights=weights,
    )


def patients_of(batch: Batch) -> Tensor:
    """A number (B,) that stands for whose each scan is: it follows from the patient id, in every process alike.

    Raises Misuse where there is nobody to compare with: the loss of one scan alone is 0, whatever is learned.
    """
    if len(batch.patients) * ranks() < 2:
        raise Misuse(
            "one scan at a time cannot be compared with other patients",
            do="take a larger batch, or fewer parts a step (accumulate), or form = 'distill'",
        )
    return sent(np.array([_number(patient) for patient in batch.patients], np.int64), batch.hu.device)


def partner_rows(batch: Batch, kind: str) -> np.ndarray:
    """The row (B,) of each scan's partner, or of the scan itself where it has none."""
    return np.array([_or(row, scan) for scan, row in enumerate(batch.partners[kind])])


def _or(row: int, scan: int) -> int:
    return row if row >= 0 else scan


def _number(patient: str) -> int:
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest(), "big", signed=True)


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own(rows: int) -> int:
    """The first of this process's `rows` among those that were `gathered`."""
    return dist.get_rank() * rows if ranks() > 1 else 0


def gathered(rows: Tensor) -> Tensor:
    """The rows (N, ...) of every process, (P N, ...) in the order of ranks; gradients go back to their process."""
    return _Gathered.apply(rows) if ranks() > 1 else rows  # type: ignore[no-untyped-call]


class _Gathered(torch.autograd.Function):
    """What each process's loss says of a row is summed in the process that the row is from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        everywhere = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks())]
        dist.all_gather(everywhere, rows.contiguous())
        return torch.cat(everywhere)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[own(ctx.rows) :][: ctx.rows]


class Projector(nn.Module):
    """An encoder with its head: windowed views to scan vectors and to the space in which they are compared."""

    def __init__(self, encoder: Encoder, head: ProjectionMLP) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, views: Sequence[Seen]) -> tuple[Tensor, Tensor]:
        """Scan vectors (N, F) and projections (N, E) in float32, of all views, which share a shape.

        One forward pass for all: were positives and negatives normalised by different batches, a BatchNorm would tell
        them apart without looking at the head.
        """
        image, spacing_mm = torch.cat([view.image for view in views]), torch.cat([view.spacing_mm for view in views])
        scans = self.encoder(image, spacing_mm).scan
        return scans.float(), self.head(scans).float()
