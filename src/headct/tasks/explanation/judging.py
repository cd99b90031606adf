"""A detector that is asked again and again about variants of one scan, and the network inside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from headct.checkpoints import PretrainedEncoder
from headct.detection import Detector
from headct.detection.knn import FittedKnn
from headct.detection.linear import FittedLinear
from headct.detection.methods import entry, fitted
from headct.detection.scans import Held
from headct.detection.training.attentive import LARGEST, FindingQueries, FittedAttentive
from headct.detection.training.finetune import FittedFull
from headct.detection.training.lora import FittedLora
from headct.detection.training.network import Network, ProbeHead, inner
from headct.embedding.machine import Machine
from headct.encoders import Encoder
from headct.failure import Failure, Misuse


class Unfit(Misuse):
    """A method that a detector does not allow, and why not."""


def can_look(detector: Detector) -> bool:
    """Whether its arrays are HU (X, Y, Z) in RAS, as our own recipes make them, so that slices can be shown."""
    return detector.encoder.recipe.in_hu


def vectors_of(
    detector: Detector, arrays: Sequence[np.ndarray], spacing_mm: Sequence[float], machine: Machine
) -> np.ndarray:
    """Vectors (B, F) of B arrays of one shape and spacing, by the encoder that the detector was given."""
    stacked = torch.from_numpy(np.stack(arrays)).to(machine.device)
    spacings = torch.tensor(spacing_mm, dtype=torch.float32, device=machine.device).expand(len(stacked), 3)
    encoder = detector.encoder.eval().to(machine.device)
    with torch.inference_mode(), machine.arithmetic():
        return np.asarray(encoder.see(stacked, spacings).scan.float().cpu().numpy())


def judged(
    detector: Detector, arrays: Sequence[np.ndarray], spacing_mm: Sequence[float], machine: Machine
) -> np.ndarray:
    """Logits (B, f) of B arrays of one shape and spacing, as `headct predict` would give them."""
    vectors = np.empty((len(arrays), 0), np.float32)  # which methods that look for themselves do not ask for
    if entry(detector.fitted.method).frozen:
        vectors = vectors_of(detector, arrays, spacing_mm, machine)
    spacings = np.tile(np.asarray(spacing_mm, dtype=np.float32), (len(arrays), 1))
    return detector.fitted.scores(Held(vectors, np.stack(arrays), spacings), np.arange(len(arrays)))


class Judge:
    """A detector that is `on(machine)` and judges arrays (X, Y, Z) in HU of one spacing, a batch at a time.

    `looked` is told how many were in each batch.
    """

    def __init__(
        self,
        detector: Detector,
        spacing_mm: Sequence[float],
        machine: Machine,
        batch_size: int = 8,
        looked: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.detector, self.machine, self.batch_size, self.looked = detector, machine, batch_size, looked
        self.spacing_mm = tuple(float(mm) for mm in spacing_mm)

    def __call__(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Logits (n, f). Raises Failure where one is not finite."""
        found = []
        for batch in self._batches(arrays):
            found.append(judged(self.detector, batch, self.spacing_mm, self.machine))
            self.looked(len(batch))
        logits = np.concatenate(found) if found else np.zeros((0, len(self.detector.findings)))
        if not np.isfinite(logits).all():
            raise Failure(
                "the detector gives scores that are not finite",
                why="its weights, or the values of the scan, are no numbers",
                do="look at the scan, or make the detector again",
            )
        return logits

    def _batches(self, arrays: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        given = iter(arrays)
        while batch := list(islice(given, self.batch_size)):
            yield batch


def looking(detector: Detector) -> Encoder:
    """The network that looks at scans: trained on where the method has done so. Raises Unfit for an exported graph."""
    if isinstance(detector.fitted, FittedLora | FittedFull):
        return detector.fitted.network.encoder
    if detector.encoder.runtime is not None:
        raise Unfit("the encoder is an exported graph, into which nothing can look")
    return inner(detector.encoder)


def differentiable(detector: Detector) -> nn.Module:
    """Channels (B, C, X, Y, Z) and voxel sizes (B, 3) to logits (B, f): the function of the detector's scores.

    Raises Unfit where that function has no gradient.
    """
    made = detector.fitted
    if isinstance(made, FittedKnn):
        raise Unfit("a vote of neighbours has no gradient")
    encoder = looking(detector)
    if isinstance(made, FittedLora | FittedFull):
        return made.network
    if isinstance(made, FittedLinear):
        return Network(encoder, ProbeHead.of_probe(made))
    return _Attending(encoder, cast(FittedAttentive, made).head)


class _Attending(nn.Module):
    """A frozen encoder and queries that look at its tokens."""

    def __init__(self, encoder: Encoder, head: FindingQueries) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor, spacing_mm: Tensor) -> Tensor:
        return self.head(self.encoder(x, spacing_mm).tokens.clamp(-LARGEST, LARGEST))


def randomised(detector: Detector, seed: int, machine: Machine) -> Detector:
    """The same detector with every weight of encoder and head at a random place of its own tensor.

    So weights stay as large as they were and all that was learned is gone (Adebayo et al., arXiv 1810.03292). The
    votes of neighbours, which have no weights, are by labels in random order. Raises Unfit for an exported graph.
    """
    if detector.encoder.runtime is not None:
        raise Unfit("the weights of an exported graph cannot be exchanged")
    generator = torch.Generator().manual_seed(seed)
    before = detector.encoder
    encoder = PretrainedEncoder(copy.deepcopy(before.encoder), before.card, before.sha256, source=before.source)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.copy_(_mixed(tensor, generator))
    stored = detector.fitted.tensors()
    if isinstance(detector.fitted, FittedKnn):
        labels = stored["labels"]
        stored["labels"] = labels[torch.randperm(len(labels), generator=generator)]
    else:
        stored = {name: _mixed(tensor, generator) for name, tensor in stored.items()}
    made = fitted(detector.fitted.method).restore(
        encoder.eval(), detector.findings, detector.fitted.settings(), stored, detector.fitted.facts, machine
    )
    return Detector(encoder, made, detector.calibrations, detector.points, detector.familiar, detector.met)


def _mixed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape).contiguous()
