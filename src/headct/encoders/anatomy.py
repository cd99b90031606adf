"""An encoder that says where in the head its tokens lie and what is odd there, and pools by what it says.

B scans, N tokens of W features on a grid (nx, ny, nz); T tissues, K changes, M = mx * my * mz cells, which are finer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headct.encoders.conv import checked_triple
from headct.encoders.features import Encoder, Features, Grid, Lattice
from headct.failure import Misuse

TISSUES = ("air", "outside", "skull", "fluid", "ventricles", "brain")
"""What a cell holds: `outside` is all soft tissue outside the skull, `fluid` that around the brain and in its folds."""

CHANGES = ("bright", "dark", "skull", "fluid")
"""What may be odd: denser or less dense than brain, a layer along the skull, a filling of fluid spaces."""

POOLINGS = ("inner", "anatomy", "tissues", "anatomy+tissues")
"""How tokens become the scan vector: as the inner encoder does it, by `anatomy_vector`, by `tissue_maxima`, by both."""

TOP_CELLS = (4, 24, 120)
"""Over how many of its highest cells the logit of a change is averaged."""

UNLIKELY = -4.0
"""First logit of a change: few cells hold one, and from an even start most of a short training goes into saying so."""

LEAST_CELLS = 1e-2
"""Added before a logarithm, so that nothing at all is a number."""


@dataclass(frozen=True, kw_only=True)
class AnatomySettings:
    """The shape of an `AnatomyEncoder`. Raises Misuse where the numbers do not fit each other."""

    inner: str  # the encoder whose tokens are read, by name
    inner_settings: Mapping[str, Any] = field(default_factory=dict)  # what differs from those of its name
    channels: int = 3
    finer: Grid = (2, 2, 2)  # cells along each side of a token
    pooling: str = "anatomy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "finer", checked_triple("finer", self.finer))
        if self.pooling not in POOLINGS:
            raise Misuse(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if "channels" in self.inner_settings:
            raise Misuse("inner_settings must not set channels", do="set channels beside them")


@dataclass(frozen=True)
class Maps:
    """What is said of every cell."""

    tissues: Tensor  # (B, T, mx, my, mz) logits, of which one is right
    places: Tensor  # (B, 3, mx, my, mz) the template point there, in units of 100 mm
    changes: Tensor  # (B, K, mx, my, mz) logits, each for itself


class AnatomyEncoder(Encoder):
    """An inner encoder with one linear map on its tokens, which says of every cell tissue, template point and changes.

    Tokens, their grid and lattice are the inner encoder's. Before the maps have been trained only the pooling "inner"
    means anything.
    """

    settings: AnatomySettings

    def __init__(self, inner: Encoder, token_width: int, settings: AnatomySettings) -> None:
        super().__init__()
        self.settings = settings
        self.inner = inner
        self.token_width = token_width
        fx, fy, fz = settings.finer
        self.head = nn.Linear(token_width, (len(TISSUES) + 3 + len(CHANGES)) * fx * fy * fz)
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.bias[-len(CHANGES) * fx * fy * fz :] = UNLIKELY

    @property
    def channels(self) -> int:
        return self.settings.channels

    @property
    def scan_width(self) -> int:
        tissues, changes = len(TISSUES), len(CHANGES)
        anatomy = changes * tissues + 3 * changes + len(TOP_CELLS) * changes + tissues
        by_tissue = tissues * self.token_width
        widths = {"inner": self.inner.scan_width, "anatomy": anatomy, "tissues": by_tissue}
        return sum(widths[part] for part in self.settings.pooling.split("+"))

    @property
    def example_shape(self) -> Grid:
        return self.inner.example_shape

    def lattice(self, shape: Grid) -> Lattice:
        return self.inner.lattice(shape)

    def cells(self, shape: Grid) -> Lattice:
        """Where the cells of `Maps` lie in an input of (X, Y, Z) voxels: they share out the tokens' space evenly."""
        tokens = self.inner.lattice(shape)
        steps = [step / finer for step, finer in zip(tokens.step, self.settings.finer, strict=True)]
        firsts = [first - (wide - step) / 2 for first, wide, step in zip(tokens.first, tokens.step, steps, strict=True)]
        return Lattice(first=(firsts[0], firsts[1], firsts[2]), step=(steps[0], steps[1], steps[2]))

    def look(self, x: Tensor, spacing_mm: Tensor | None = None) -> tuple[Features, Maps]:
        """The inner encoder's features of x (B, C, X, Y, Z), and the maps."""
        features = self.inner(x, spacing_mm)
        values = shuffled(self.head(features.tokens), features.grid, self.settings.finer).float()
        tissues, changes = values[:, : len(TISSUES)], values[:, -len(CHANGES) :]
        return features, Maps(tissues, values[:, len(TISSUES) : -len(CHANGES)], changes)

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        features, maps = self.look(x, spacing_mm)
        return Features(self._pooled(features, maps), features.tokens, features.grid)

    def _pooled(self, features: Features, maps: Maps) -> Tensor:
        parts = {
            "inner": lambda: features.scan,
            "anatomy": lambda: anatomy_vector(maps),
            "tissues": lambda: tissue_maxima(features, maps.tissues, self.settings.finer),
        }
        vectors = [parts[part]() for part in self.settings.pooling.split("+")]
        return torch.cat([vector.to(features.tokens.dtype) for vector in vectors], dim=1)


def shuffled(values: Tensor, grid: Grid, finer: Grid) -> Tensor:
    """Values (B, N, O * fx * fy * fz) of tokens as maps (B, O, nx * fx, ny * fy, nz * fz): a pixel shuffle in 3D.

    maps[b, o, i * fx + u, j * fy + v, k * fz + w] = values[b, (i * ny + j) * nz + k,
                                                            ((o * fx + u) * fy + v) * fz + w]
    """
    (nx, ny, nz), (fx, fy, fz) = grid, finer
    apart = values.reshape(len(values), nx, ny, nz, -1, fx, fy, fz)
    return apart.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(values), -1, nx * fx, ny * fy, nz * fz)


def over_cells(values: Tensor, cells: Lattice, grid: Grid) -> Tensor:
    """Means (B, D, mx, my, mz) of values (B, D, X, Y, Z) over the cells of a lattice; around the input lie zeros.

    Cells that are not made of whole voxels, as where a token is centred on one, are moved by half a voxel.
    """
    sizes = [max(1, round(step)) for step in cells.step]
    starts = [round(first - (step - 1) / 2) for first, step in zip(cells.first, cells.step, strict=True)]
    padding: list[int] = []
    for n, start, size, count in reversed(list(zip(values.shape[2:], starts, sizes, grid, strict=True))):
        padding += [-start, start + size * count - n]  # below zero they cut off
    return nn.functional.avg_pool3d(nn.functional.pad(values, padding), sizes)


def anatomy_vector(maps: Maps) -> Tensor:
    """How much of each change there is in each tissue, where, how clearly, and how much of each tissue, (B, F).

    With c the probability of a change, t that of a tissue and p the template point of a cell, sums over cells:

        log(sum c t)                    for each change and each tissue in it
        sum c |x|, c y, c z / sum c     for each change and these three
        mean of the 4, 24, 120 highest  for each change: these three of its logits
        log(sum t)                      for each tissue
    """
    tissues = maps.tissues.flatten(2).softmax(dim=1)
    logits, places = maps.changes.flatten(2), maps.places.flatten(2)
    changes = logits.sigmoid()
    folded = torch.cat([places[:, :1].abs(), places[:, 1:]], dim=1)  # left and right are one to a finding
    where = torch.einsum("bkm,bdm->bkd", changes, folded) / (changes.sum(dim=2, keepdim=True) + LEAST_CELLS)
    highest = logits.topk(min(max(TOP_CELLS), logits.shape[2]), dim=2).values
    top = torch.stack([highest[:, :, :count].mean(dim=2) for count in TOP_CELLS], dim=2)
    amounts = (torch.einsum("bkm,btm->bkt", changes, tissues) + LEAST_CELLS).log()
    volumes = (tissues.sum(dim=2) + LEAST_CELLS).log()
    return torch.cat([amounts.flatten(1), where.flatten(1), top.flatten(1), volumes], dim=1)


def tissue_maxima(features: Features, tissues: Tensor, finer: Grid) -> Tensor:
    """The highest value of each feature among the tokens of each tissue, (B, T * W), from logits of cells.

    A token counts as its tissue by the logarithm of its share of it: max over n of tokens[n] + log(share[n]).
    """
    shares = nn.functional.avg_pool3d(tissues.softmax(dim=1), finer).flatten(2)  # (B, T, N)
    less = (shares + LEAST_CELLS).log()
    tokens = features.tokens.float()
    highest = [(tokens + less[:, tissue, :, None]).amax(dim=1) for tissue in range(less.shape[1])]
    return torch.cat(highest, dim=1)
