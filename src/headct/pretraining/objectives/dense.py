"""What lies at each place, learned from the truth of virtual patients: tissue and template coordinate.

What is ill in them is not told: where a finding lies, nothing is asked of the tissue, unless `findings` says otherwise.

B scans, T tissues, K changes (`headct.encoders.anatomy`), x y z voxels of the crop, M cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from headct.encoders import AnatomyEncoder, Encoder
from headct.encoders.anatomy import CHANGES, TISSUES, Maps, over_cells
from headct.encoders.mae import mean_over
from headct.pretraining.cavity import cavity
from headct.pretraining.objectives.insert import (
    Insert,
    InsertDraw,
    InsertSettings,
    anatomical,
    finest_mm,
    found_loss,
    inserted,
)
from headct.pretraining.objectives.objective import TEMPLATE_BLOCK, UNKNOWN_CLASS, Batch, Objective, Sight, Watched
from headct.pretraining.views import TISSUE_HU, Crops, View, as_seen, crop, draw, sent
from headct.virtual.truth import CLASSES

TISSUE_OF_CLASS: Mapping[str, str] = {"brain": "brain", "ventricles": "ventricles", "skull": "skull"}
"""Classes that say which tissue is there. All others are findings, of whose tissue nothing is asked."""

CHANGE_OF_CLASS: Mapping[str, str] = {
    "iph": "bright",
    "edema": "dark",
    "infarct": "dark",
    "sdh": "skull",
    "edh": "skull",
    "ivh": "fluid",
    "sah": "fluid",
}
"""Which change a finding is, for runs that may know. Tumours and fractures are of no one kind and left out."""

UNIT_MM = 100.0
"""Of the template coordinates that are learned."""


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """Settings of the objective."""

    weight: float = 1.0  # beside other objectives
    crops: Crops = field(
        default_factory=lambda: Crops(views=1, shape=(48, 56, 48), edge_mm=(192.0, 200.0), overhang=0.0)
    )
    tissue: float = 0.3  # weights in the loss: of tissues
    ventricles: float = 3.0  # weight of their cells among those of other tissues, for they are few
    places: float = 1.5  # of places in the template
    findings: bool = False  # learn the masks of findings; then nothing learned from few labels may be claimed
    bce: float = 2.0  # of findings, by cross-entropy
    dice: float = 1.5  # of findings, by overlap


@dataclass(frozen=True)
class Truth:
    """What is true of crops."""

    tissues: Tensor  # (B, T, x, y, z), 1 where a voxel is of this tissue, 0 for all where it is not known
    places_mm: Tensor  # (B, 3, x, y, z) template points of the crop as it is, 0 where they are not known
    placed: Tensor  # (B, 1, x, y, z), 1 where they are known
    changes: Tensor | None  # (B, K, x, y, z), 1 where a finding of this kind lies; None where it is not to be told
    known: Tensor | None  # (B, 1, x, y, z), 1 where it is known whether one does


def true_tissues(classes: Tensor, hu: Tensor, inside: Tensor) -> Tensor:
    """Which tissue each voxel is (B, T, x, y, z), one-hot and float32, from classes (B, x, y, z).

    Class 0 is everything without a class of its own: air and soft tissue outside, fluid within the cavity `inside`.
    """
    nothing = classes == 0
    air = hu < TISSUE_HU
    masks = {
        "air": nothing & air,
        "outside": nothing & ~air & ~inside,
        "fluid": nothing & inside,
        **{tissue: classes == _value(name) for name, tissue in TISSUE_OF_CLASS.items()},
    }
    return torch.stack([masks[tissue] for tissue in TISSUES], dim=1).float()


def _value(name: str) -> int:
    """Of a class in a map of classes."""
    return CLASSES.index(name) + 1


def true_changes(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Findings as changes (B, K, x, y, z), and where it is known whether there is one (B, 1, x, y, z), as 0 or 1."""
    masks = []
    for change in CHANGES:
        values = [_value(name) for name, kind in CHANGE_OF_CLASS.items() if kind == change]
        masks.append(torch.stack([classes == value for value in values]).any(dim=0))
    of_no_kind = [_value(name) for name in CLASSES if name not in CHANGE_OF_CLASS and name not in TISSUE_OF_CLASS]
    unknown = torch.stack([classes == value for value in (UNKNOWN_CLASS, *of_no_kind)]).any(dim=0)
    return torch.stack(masks, dim=1).float(), (~unknown)[:, None].float()


def true_places(
    template_mm: Tensor, views: Sequence[View], crops: Crops, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Template points (B, 3, x, y, z) of crops and where they are known (B, 1, x, y, z), from blocks (B, X, Y, Z, 3).

    They change so slowly that one for each 2 x 2 x 2 voxels says all, where edges are even. A mirrored head has the
    points of the other side.
    """
    times = 1 if any(n % 2 for n in crops.shape) else 2
    start_mm = (TEMPLATE_BLOCK - 1) / 2 * np.asarray(spacing_mm)  # of the first block's centre from the first voxel's
    moved = [
        replace(view, centre_mm=tuple((view.centre_mm - start_mm).tolist()), voxel_mm=times * view.voxel_mm)
        for view in views
    ]
    x, y, z = (n // times for n in crops.shape)
    coarse = replace(crops, shape=(x, y, z))
    block_mm = [TEMPLATE_BLOCK * mm for mm in spacing_mm]
    known = ~template_mm.isnan().any(dim=4)
    channels = [known.float(), *torch.where(known[..., None], template_mm, 0.0).unbind(4)]
    cropped = [crop(channel, moved, coarse, block_mm, outside=0.0) for channel in channels]
    placed = cropped[0] > 0.999  # between known points, and not beside an unknown one
    sides = np.array([-1.0 if view.mirrored else 1.0 for view in views], np.float32)
    side = sent(sides, template_mm.device)[:, None, None, None]
    places_mm = torch.stack([cropped[1] * side, cropped[2], cropped[3]], dim=1)
    whole = torch.cat([places_mm * placed[:, None], placed[:, None].float()], dim=1)
    for axis in (2, 3, 4):
        whole = whole.repeat_interleave(times, axis)
    return whole[:, :3], whole[:, 3:]


def tissue_loss(logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of logits (B, T, M) against the shares (B, T, M) of each cell that tissues fill.

        of_scan[b] = -sum(w[t] * shares[b, t, m] * log_softmax(logits)[b, t, m]) / sum(w[t] * shares[b, t, m])
        loss = mean(of_scan[b] for b in range(B))

    What is not known of a cell is missing from its shares; a scan of which nothing is known costs nothing.
    """
    weighted = weights[:, None] * shares
    of_scans = -(weighted * logits.log_softmax(dim=1)).sum(dim=(1, 2))
    return (of_scans / weighted.sum(dim=(1, 2)).clamp(min=1e-6)).mean()


def place_loss(places: Tensor, wanted_mm: Tensor, placed: Tensor) -> Tensor:
    """The mean over scans of their mean absolute error in units of 100 mm over known cells; 0 where there are none.

    From predictions (B, 3, M), template points (B, 3, M) and which of them are known, (B, 1, M) of 0 or 1.
    """
    errors = (places - wanted_mm / UNIT_MM).abs().mean(dim=1)
    return mean_over(errors, placed[:, 0])


class Dense(Objective):
    """An anatomy encoder whose maps of tissues and places are trained."""

    truth = ("classes", "template_mm")

    def __init__(self, encoder: Encoder, settings: DenseSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        self.uses_findings = settings.findings
        self.trained = anatomical(encoder, "dense")

    @property
    def encoder(self) -> Encoder:
        return self.trained

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> View:
        return draw(rng, self.sight.views, self.settings.crops, boxes_mm["scan"])

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        views = batch.draws
        with torch.no_grad():
            hu = crop(batch.scans, views, self.settings.crops, batch.spacing_mm)
            truth = self.truth_of(batch, views, hu, cavity(hu, finest_mm(self.settings.crops)))
            seen = as_seen(hu, views, self.sight.windows, batch.normals_of())
        _, maps = self.trained.look(seen.image, seen.spacing_mm)
        loss, watched = self.compared(maps, truth)
        return loss, {**watched, "air": seen.air}

    def truth_of(self, batch: Batch, views: Sequence[View], hu: Tensor, inside: Tensor) -> Truth:
        """The truth of the crops `hu` (B, x, y, z), whose cavity is `inside`."""
        assert batch.classes is not None, "classes were asked for"
        assert batch.template_mm is not None, "template_mm was asked for"
        settings, scans = self.settings, len(views)
        classes = crop(
            batch.classes[:scans], views, settings.crops, batch.spacing_mm, outside=UNKNOWN_CLASS, mode="nearest"
        ).round()
        places_mm, placed = true_places(batch.template_mm[:scans], views, settings.crops, batch.spacing_mm)
        changes, known = true_changes(classes) if settings.findings else (None, None)
        return Truth(true_tissues(classes, hu, inside), places_mm, placed, changes, known)

    def compared(self, maps: Maps, truth: Truth) -> tuple[Tensor, Watched]:
        """The loss, from what the encoder says of crops and what is true of them."""
        settings = self.settings
        weights = maps.tissues.new_ones(len(TISSUES))
        weights[TISSUES.index("ventricles")] = settings.ventricles
        tissue = tissue_loss(maps.tissues.flatten(2), self._over_cells(truth.tissues, maps), weights)
        placed = self._over_cells(truth.placed, maps)
        middle_mm = self._over_cells(truth.places_mm, maps) / placed.clamp(min=1e-6)  # of what is known of a cell
        places = place_loss(maps.places.flatten(2), middle_mm, (placed > 0.5).float())
        loss = settings.tissue * tissue + settings.places * places
        watched = {"tissue": tissue.detach(), "places_mm": places.detach() * UNIT_MM}
        if truth.changes is not None and truth.known is not None:
            shares, known = self._over_cells(truth.changes, maps), self._over_cells(truth.known, maps)
            bce, dice = found_loss(maps.changes.flatten(2), shares, positives=9.0, known=known)
            loss = loss + settings.bce * bce + settings.dice * dice
            watched |= {"findings_bce": bce.detach(), "findings_dice": dice.detach()}
        return loss, watched

    def _over_cells(self, values: Tensor, maps: Maps) -> Tensor:
        """Means (B, D, M) of values (B, D, x, y, z) over the cells."""
        grid = maps.places.shape[2], maps.places.shape[3], maps.places.shape[4]
        x, y, z = self.settings.crops.shape
        return over_cells(values, self.trained.cells((x, y, z)), grid).flatten(2)


@dataclass(frozen=True, kw_only=True)
class DenseInsertSettings:
    """Settings of both in one pass; the crops are those of `insert`."""

    weight: float = 1.0  # beside other objectives
    dense: DenseSettings = field(default_factory=DenseSettings)
    insert: InsertSettings = field(default_factory=InsertSettings)


class DenseInsert(Objective):
    """`dense` and `insert` on the same crop: half the work of the two side by side, and each helps the other.

    The truth is that of the scan before anything was put in.
    """

    truth = Dense.truth

    def __init__(self, encoder: Encoder, settings: DenseInsertSettings, sight: Sight) -> None:
        super().__init__()
        self.sight = sight
        self.weights = settings.dense.weight, settings.insert.weight
        self.dense = Dense(encoder, replace(settings.dense, crops=settings.insert.crops), sight)
        self.insert = Insert(encoder, settings.insert, sight)
        self.uses_findings = self.dense.uses_findings

    @property
    def encoder(self) -> Encoder:
        return self.trained

    @property
    def trained(self) -> AnatomyEncoder:
        """The encoder that both share."""
        return self.insert.trained

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> InsertDraw:
        return self.insert.draw(rng, boxes_mm)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        views, crops = [one.view for one in batch.draws], self.insert.settings.crops
        with torch.no_grad():
            hu = crop(batch.scans, views, crops, batch.spacing_mm)
            inside = cavity(hu, finest_mm(crops))
            truth = self.dense.truth_of(batch, views, hu, inside)
            hu, shares = inserted(hu, inside, batch.draws, finest_mm(crops))
            seen = as_seen(hu, views, self.sight.windows, batch.normals_of())
        features, maps = self.trained.look(seen.image, seen.spacing_mm)
        of_dense, watched = self.dense.compared(maps, truth)
        of_insert, watched_too = self.insert.compared(features, maps, shares)
        watched = {**watched, **watched_too, "air": seen.air}
        return self.weights[0] * of_dense + self.weights[1] * of_insert, watched
