"""All weights of a network trained on: from a frozen probe, or from scratch as what it has to be better than.

First the head alone learns, on the frozen encoder: that is the linear probe, solved exactly. Then everything does,
starting as that probe, slowly where the encoder begins and faster where it ends. A new head beside an encoder that
learns at once would throw away what the encoder knew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from headct import encoders
from headct.checkpoints import PretrainedEncoder
from headct.detection.linear import Linear
from headct.detection.method import Progress, Scans, Task, quiet
from headct.detection.training.augment import Augmentation, labels_seen, seen
from headct.detection.training.loop import (
    Examples,
    Given,
    Inputs,
    Schedule,
    Weights,
    decayed,
    prior_logits,
    taught,
    train,
)
from headct.detection.training.network import Network, ProbeHead, copied, inputs, logits, parts
from headct.embedding.machine import Machine
from headct.encoders import Encoder
from headct.encoders.settling import settling
from headct.failure import Misuse
from headct.pretraining.step import kept_random

INITIALS = ("pretrained", "random")
SETTLED_ON = 64
"""Training scans by which a new network learns how large its features are."""


@dataclass(frozen=True, kw_only=True)
class Full:
    """Fine-tuning of all weights; with `initial` "random" the same code from scratch, see `scratch`.

    A weight learns at `schedule.lr` times `encoder_share` times `first_share` ** (1 - depth), where depth is 0 at the
    first layer and 1 at the last; the head learns at `schedule.lr`. From pre-trained weights BatchNorms keep their
    statistics, for batches are small.
    """

    initial: str = "pretrained"
    architecture: str | None = None  # of a random start: another encoder than the task's, by name
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)  # what differs from those of its name
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=200, lr=1e-3))
    encoder_share: float = 0.1
    first_share: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.initial not in INITIALS:
            raise Misuse(f"initial must be one of {', '.join(INITIALS)}, got {self.initial!r}")
        if self.initial == "pretrained" and (self.architecture or self.encoder_settings):
            raise Misuse(
                f"{self.architecture or 'another encoder'} has no weights to start from",
                do='set initial to "random", or name a checkpoint of it as the model',
            )
        for name in ("encoder_share", "first_share"):
            if not 0 < getattr(self, name) <= 1:
                raise Misuse(f"{name} must lie above 0 and be at most 1, got {getattr(self, name)}")

    def fit(self, task: Task, progress: Progress = quiet) -> FittedFull:
        """Raises Misuse where a finding lacks a class, or the encoder is a graph."""
        network, begun = self._start(task)
        course = train(
            network,
            learning(network, self.encoder_share, self.first_share),
            examples_of(task, self.augmentation),
            given_of(task.encoder, task.scans, task.machine),
            task,
            self.schedule,
            progress,
            training_mode=self.initial == "random",
        )
        weights = sum(weight.numel() for weight in network.parameters())
        facts = {"start": begun, "encoder": network.encoder.architecture, "weights": weights, **course.facts()}
        return FittedFull(task.encoder, task.findings, network, self.initial, facts, task.machine)

    def _start(self, task: Task) -> tuple[Network, str]:
        """The network before the first step, and in words what it is."""
        device = task.machine.device
        if self.initial == "pretrained":
            encoder = copied(task.encoder)
            return Network(encoder, ProbeHead.of_probe(Linear().fit(task))).to(device), "the frozen linear probe"
        rows = taught(task)
        with kept_random(str(device)):
            torch.manual_seed(task.seed)
            encoder = self._new_encoder(task.encoder).to(device)
            vectors = _settled(encoder, given_of(task.encoder, task.scans, task.machine), rows, self.schedule.batch)
        head = ProbeHead.unlearned(vectors, prior_logits(task.labels[rows]))
        return Network(encoder, head).to(device), "random weights"

    def _new_encoder(self, like: PretrainedEncoder) -> Encoder:
        """The encoder of that name, or the task's own, with random weights."""
        if self.architecture is None:
            return encoders.build(like.architecture, **{**_plain(like.settings), **self.encoder_settings})
        return encoders.build(self.architecture, **{"channels": like.channels, **self.encoder_settings})


def scratch(architecture: str | None = None, *, steps: int = 600, lr: float = 1e-3, **settings: Any) -> Full:
    """A network from scratch, for a detector to be compared with: the task's own encoder, or one by its name.

    `conv-tiny` is a 3D network of convolutions, `slices-tiny` a model of slices with attention over the stack;
    `settings` are the encoder's. All layers learn at one rate; the validation scans say which number of steps is best.
    """
    return Full(
        initial="random",
        architecture=architecture,
        encoder_settings=settings,
        schedule=Schedule(steps=steps, lr=lr, looks=30, patience=15),
        encoder_share=1.0,
        first_share=1.0,
    )


@dataclass(frozen=True)
class FittedFull:
    """A network of its own."""

    encoder: PretrainedEncoder  # of whose windows the input is made
    findings: tuple[str, ...]
    network: Network
    initial: str
    facts: Mapping[str, Any]
    machine: Machine
    method: ClassVar[str] = "full"

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (len(rows), f)."""
        given = given_of(self.encoder, scans, self.machine)
        return logits(self.network, given, rows, self.machine, len(self.findings))

    def settings(self) -> dict[str, Any]:
        """How the start was made; for a random one also what encoder it is."""
        if self.initial == "pretrained":
            return {"initial": self.initial}
        encoder = self.network.encoder
        return {
            "initial": self.initial,
            "architecture": encoder.architecture,
            "encoder_settings": _plain(encoder.settings),
        }

    def tensors(self) -> dict[str, Tensor]:
        """All weights of the network, `encoder.` and `head.`."""
        return {name: one.detach().cpu().contiguous() for name, one in self.network.state_dict().items()}

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
        if settings["initial"] == "pretrained":
            inside = copied(encoder)
        else:
            with kept_random("cpu"):  # a random start is drawn, and then overwritten
                inside = encoders.build(settings["architecture"], **settings["encoder_settings"])
        network = Network(inside, ProbeHead(inside.scan_width, len(findings)))
        network.load_state_dict(dict(tensors))
        return cls(encoder, findings, network.to(machine.device).eval(), settings["initial"], facts, machine)


def given_of(encoder: PretrainedEncoder, scans: Scans, machine: Machine) -> Given:
    """The input of a network for rows, as they are."""
    return lambda rows: inputs(encoder, scans, rows, machine.device)


def examples_of(task: Task, augmentation: Augmentation) -> Examples:
    """The input of a network for training rows, varied, with the labels that are true of it."""

    def examples(rows: np.ndarray, rng: np.random.Generator) -> tuple[Inputs, np.ndarray]:
        x, spacing_mm, mirrored = seen(task.encoder, task.scans, rows, rng, augmentation, task.machine.device)
        return (x, spacing_mm), labels_seen(task.labels[rows], mirrored, task.mirrored)

    return examples


def learning(network: Network, encoder_share: float, first_share: float) -> list[Weights]:
    """The weights of a network in groups of one rate; biases, norms, tokens and the head do not decay."""
    decays = decayed(network.encoder)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for weight, depth in depths(network.encoder).items():
        groups.setdefault((round(depth, 1), weight in decays), []).append(weight)
    of_encoder = [
        Weights(weights, encoder_share * first_share ** (1 - depth), decays)
        for (depth, decays), weights in groups.items()
    ]
    return [Weights(list(network.head.parameters())), *of_encoder]


@torch.no_grad()
def depths(encoder: Encoder) -> dict[nn.Parameter, float]:
    """How deep each weight that learns lies, from 0 where the input comes in to 1, by when its part is used.

    The order is looked up on an example in evaluation mode, in which the encoder is left.
    """
    used: dict[str, None] = {}
    owners = {name: part for name, part in encoder.named_modules() if any(True for _ in part.parameters(recurse=False))}
    hooks = [
        part.register_forward_pre_hook(lambda part, given, name=name: used.setdefault(name))
        for name, part in owners.items()
    ]
    device = next(encoder.parameters()).device
    encoder.eval()(
        torch.zeros(1, encoder.channels, *encoder.example_shape, device=device), torch.ones(1, 3, device=device)
    )
    for hook in hooks:
        hook.remove()
    order = {name: place / max(1, len(used) - 1) for place, name in enumerate(used)}
    return {
        weight: order.get(name, 0.0)
        for name, part in owners.items()
        for weight in part.parameters(recurse=False)
        if weight.requires_grad
    }


@torch.no_grad()
def _settled(encoder: Encoder, given: Given, rows: np.ndarray, batch: int) -> np.ndarray:
    """Vectors (n, F) of some training scans, by which the BatchNorms of a new encoder learn what features look like.

    Without it the first looks, in evaluation mode, would see statistics of nothing.
    """
    several = [some for some in parts(rows[:SETTLED_ON], max(2, batch)) if len(some) > 1]  # one has no statistics
    with settling(encoder):
        vectors = [encoder(*given(some)).scan.float().cpu() for some in several]
    return torch.cat(vectors).numpy()


def _plain(settings: Any) -> dict[str, Any]:
    """Settings of an encoder as JSON gives them back."""
    return dict(json.loads(json.dumps(asdict(settings))))
