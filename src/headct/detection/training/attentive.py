"""Attention over the tokens of a frozen encoder: each finding looks where it is to be seen.

Every finding has a query of its own. Subdural blood lies along the skull and that of ventricles in the middle, so one
query for all would have to look everywhere; and so no finding's unknown labels move what another one looks at, except
through the keys and values that they share. B scans, N tokens of W features, f findings, H heads of D features each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.checkpoints import PretrainedEncoder
from headct.detection.method import Progress, Scans, Task, quiet
from headct.detection.training.loop import Inputs, Schedule, Weights, prior_logits, taught, train
from headct.detection.training.network import logits, parts, spacing_of
from headct.embedding.machine import Machine
from headct.failure import Misuse
from headct.pretraining.step import kept_random

LARGEST = 65504.0  # of float16, in which tokens are kept


class FindingQueries(nn.Module):
    """Logits from tokens, by queries that are learned, one of each head for each finding.

    With t the standardised tokens, K and V the keys and values of head h, for each finding i

        looked[b, i, h] = softmax over n of (q[i, h] . K(t[b, n]) / sqrt(D))
        logits[b, i] = bias[i] + sum over h of weight[i, h] . sum over n of looked[b, i, h, n] * V(t[b, n])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, findings: int, *, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.queries = nn.Parameter(torch.empty(findings, heads * features))
        self.keys = nn.Linear(width, heads * features, bias=False)
        self.values = nn.Linear(width, heads * features, bias=False)
        self.weight = nn.Parameter(torch.zeros(findings, heads * features))
        self.bias = nn.Parameter(torch.zeros(findings))
        nn.init.normal_(self.queries)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, f) of tokens (B, N, W)."""
        standard = (tokens.float() - self.mean) * self.scale
        k, v = (self._by_head(one(standard)) for one in (self.keys, self.values))  # (B, H, N, D)
        q = self._by_head(self.queries[None].to(k.dtype)).expand(len(tokens), -1, -1, -1)  # (B, H, f, D)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, f, H * D)
        return (found * self.weight).sum(dim=2) + self.bias

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), rows.shape[1], self.heads, -1).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """Learned attention over frozen tokens, which are computed once and kept in memory as float16."""

    heads: int = 4
    features: int = 16  # of each head
    hidden: float = 0.25  # share of the tokens that are hidden at each step, so that none is relied on alone
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=400, batch=32, lr=2e-3))
    cache_gb: float = 16.0  # of tokens, at most

    def __post_init__(self) -> None:
        for name in ("heads", "features", "cache_gb"):
            if getattr(self, name) <= 0:
                raise Misuse(f"{name} must be above zero, got {getattr(self, name)}")
        if not 0 <= self.hidden < 1:
            raise Misuse(f"hidden must be at least 0 and below 1, got {self.hidden}")

    def fit(self, task: Task, progress: Progress = quiet) -> FittedAttentive:
        """Raises Misuse where a finding lacks a class, or tokens would take more memory than `cache_gb`."""
        rows = taught(task)
        kept = np.concatenate([rows, task.known(task.validation)])
        device = task.machine.device
        tokens = tokens_of(task.encoder, task.scans, kept, task.machine, self.cache_gb)
        place = {row: index for index, row in enumerate(kept.tolist())}

        def given(some: np.ndarray) -> Inputs:
            return (tokens[[place[row] for row in some.tolist()]].to(device),)

        def examples(some: np.ndarray, rng: np.random.Generator) -> tuple[Inputs, np.ndarray]:
            (whole,) = given(some)
            left = max(1, round(whole.shape[1] * (1 - self.hidden)))
            seen = np.sort(rng.permutation(whole.shape[1])[:left])
            return (whole[:, torch.from_numpy(seen).to(device)],), task.labels[some]

        with kept_random("cpu"):
            torch.manual_seed(task.seed)
            head = FindingQueries(tokens.shape[2], len(task.findings), heads=self.heads, features=self.features)
        _standardise(head, tokens[: len(rows)])
        with torch.no_grad():
            head.bias.copy_(torch.from_numpy(prior_logits(task.labels[rows])))
        head.to(device)
        free = [head.queries, head.bias]
        weights = [
            Weights(free),
            Weights([one for one in head.parameters() if not any(one is other for other in free)], decays=True),
        ]
        course = train(head, weights, examples, given, task, self.schedule, progress)
        facts = {"tokens": tokens.shape[1], "weights": sum(one.numel() for one in head.parameters()), **course.facts()}
        return FittedAttentive(task.encoder, task.findings, head, facts, task.machine)


@dataclass(frozen=True)
class FittedAttentive:
    """A frozen encoder and what looks at its tokens."""

    encoder: PretrainedEncoder
    findings: tuple[str, ...]
    head: FindingQueries
    facts: Mapping[str, Any]
    machine: Machine
    method: ClassVar[str] = "attentive"

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (len(rows), f)."""
        given = _looked(self.encoder, scans, self.machine)
        return logits(self.head, lambda some: (given(some),), rows, self.machine, len(self.findings))

    def settings(self) -> dict[str, Any]:
        """The shape of the head."""
        findings, features = self.head.queries.shape
        assert findings == len(self.findings)
        return {
            "width": len(self.head.mean),
            "heads": self.head.heads,
            "features": features // self.head.heads,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The head."""
        return {name: one.detach().cpu().contiguous() for name, one in self.head.state_dict().items()}

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
        with kept_random("cpu"):  # a random start is drawn, and then overwritten
            head = FindingQueries(
                settings["width"], len(findings), heads=settings["heads"], features=settings["features"]
            )
        head.load_state_dict(dict(tensors))
        return cls(encoder, findings, head.to(machine.device).eval(), facts, machine)


def tokens_of(encoder: PretrainedEncoder, scans: Scans, rows: np.ndarray, machine: Machine, cache_gb: float) -> Tensor:
    """Tokens (len(rows), N, W) float16 of the frozen encoder, on the CPU. Raises Misuse where they do not fit."""
    look = _looked(encoder, scans, machine)
    held: Tensor | None = None
    place = 0
    with torch.no_grad():
        for some in parts(rows):
            tokens = look(some).cpu()
            if held is None:
                held = _room(len(rows), tokens, cache_gb)
            held[place : place + len(some)] = tokens
            place += len(some)
    assert held is not None, "there are training scans"
    return held


def _room(scans: int, tokens: Tensor, cache_gb: float) -> Tensor:
    _, places, width = tokens.shape
    needed_gb = scans * places * width * 2 / 1e9
    if needed_gb > cache_gb:
        raise Misuse(
            f"the tokens of {scans} scans take {needed_gb:.1f} GB, more than the {cache_gb:g} allowed",
            why=f"each scan has {places} tokens of {width} features",
            do="raise cache_gb, learn from fewer scans, or take the method linear",
        )
    return torch.empty(scans, places, width, dtype=torch.float16)


def _looked(encoder: PretrainedEncoder, scans: Scans, machine: Machine) -> Callable[[np.ndarray], Tensor]:
    """Tokens (B, N, W) float16 of rows, as they are kept, so that what is scored is what was learned from."""
    encoder.to(machine.device).eval()

    def look(rows: np.ndarray) -> Tensor:
        arrays = torch.from_numpy(np.ascontiguousarray(scans.arrays(rows))).to(machine.device)
        with torch.no_grad(), machine.arithmetic():
            tokens = encoder.see(arrays, spacing_of(scans, rows, machine.device)).tokens
        return tokens.clamp(-LARGEST, LARGEST).half()

    return look


def _standardise(head: FindingQueries, tokens: Tensor) -> None:
    """Take mean and spread of each feature over all tokens of training scans; scan by scan, for they may be many."""
    total = torch.zeros(2, tokens.shape[2], dtype=torch.float64)
    for scan in tokens:
        wide = scan.double()
        total += torch.stack([wide.sum(dim=0), wide.square().sum(dim=0)])
    mean, square = total / (tokens.shape[0] * tokens.shape[1])
    sd = (square - mean.square()).clamp(min=0).sqrt()
    head.mean.copy_(mean)
    head.scale.copy_(torch.where(sd > 1e-6 * mean.abs().clamp(min=1.0), 1 / sd, 0.0))
