"""Changes of density that are put into a scan must be found: a pretext that needs neither labels nor truth.

Their shapes, places and strengths are random; they resemble what bleeds, swells or dies. They are put in before slices,
kernel and noise of another scanner, so that no edge of theirs is sharper than the picture's.

B scans, L changes of a scan, K channels (`headct.encoders.anatomy.CHANGES`), x y z voxels of the crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.encoders import AnatomyEncoder, Encoder
from headct.encoders.anatomy import CHANGES, Maps, over_cells
from headct.encoders.features import Features
from headct.encoders.mae import mean_over
from headct.failure import Misuse
from headct.pretraining.cavity import cavity, depth, level_hu
from headct.pretraining.objectives.objective import Batch, Objective, Sight, Watched
from headct.pretraining.views import Crops, View, as_seen, crop, draw, sent_together

FLUID_HU = -8.0
"""Fluid is less dense than the brain of the same scan by more than this."""

RIM_MM = 6.0
"""Layers along the skull are centred no deeper."""

WARP_MM = 16.0
"""Between the knots of the noise by which ellipsoids are deformed."""

MOST_DEPTH_MM = 20.0
"""Depths are told apart up to here."""


@dataclass(frozen=True)
class Kind:
    """A kind of change: which channel finds it and what it may be like. Ranges are uniform, but radii log-uniform.

    Attributes:
        channel: One of `CHANGES`.
        region: Where its centre and all of it may lie: "inside" the cavity, its centre at the "rim", or in "fluid".
        radii_mm: Of the ellipsoid.
        hu: Ranges, of which one is drawn.
        above: What HU are counted from: the scan's "brain", or "there", the voxel as it was.
        edge_mm: Width of the ramp at its surface; a voxel where that is wider.
        thickness_mm: How deep a layer reaches below its middle; (0, 0) for what is no layer.
    """

    channel: str
    region: str
    radii_mm: tuple[float, float]
    hu: tuple[tuple[float, float], ...]
    above: str = "brain"
    edge_mm: float = 0.0
    thickness_mm: tuple[float, float] = (0.0, 0.0)


KINDS: Mapping[str, Kind] = {
    "bright": Kind("bright", "inside", (5, 22), ((13, 48),)),
    "dark": Kind("dark", "inside", (5, 22), ((-20, -6),), above="there"),
    "skull": Kind("skull", "rim", (14, 50), ((-18, -8), (10, 48), (10, 48), (10, 48)), thickness_mm=(4, 16)),
    "fluid": Kind("fluid", "fluid", (14, 40), ((10, 50),)),
    "swelling": Kind("dark", "inside", (14, 40), ((-8, 0),), edge_mm=12.0),
}
"""By name. A swelling presses out the fluid in the folds and is hardly darker than brain."""

REGIONS = ("inside", "rim", "fluid")


@dataclass(frozen=True, kw_only=True)
class InsertSettings:
    """Settings of the objective; the defaults are for crops of whole heads in voxels of 4 mm."""

    weight: float = 1.0  # beside other objectives
    crops: Crops = field(
        default_factory=lambda: Crops(views=1, shape=(48, 56, 48), edge_mm=(192.0, 200.0), overhang=0.0)
    )
    changes: tuple[int, int] = (0, 5)  # of a scan
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"bright": 0.3, "dark": 0.15, "skull": 0.25, "fluid": 0.2, "swelling": 0.1}
    )
    warp: float = 0.3  # by how much of a radius surfaces are deformed, up to
    texture_hu: float = 4.0  # standard deviation of the noise within, up to
    bce: float = 2.0  # weights in the loss: of cross-entropy
    dice: float = 1.5  # of overlap
    presence: float = 0.3  # of whether a scan has a change of each kind
    positives: float = 9.0  # weight of a cell that is all change
    guard: float = 0.15  # weight of a cell without a change that is taken for one: the scan may have one of its own

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shares) - set(KINDS))
        if unknown:
            raise Misuse(f"there is no change {unknown[0]!r}", do=f"name some of {', '.join(KINDS)}")
        if min(self.shares.values(), default=0) < 0 or sum(self.shares.values()) <= 0:
            raise Misuse(f"shares must not be negative, nor all of them zero, got {dict(self.shares)}")
        if not 0 <= self.changes[0] <= self.changes[1]:
            raise Misuse(f"changes must be a rising range from 0, got {self.changes}")


@dataclass(frozen=True)
class Change:
    """The numbers of one change."""

    kind: str  # of `KINDS`
    place: float  # 0..1: its centre is the voxel of this rank in its region
    radii_mm: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], ...]  # unit vectors, one for each radius
    warp: float
    hu: float
    texture_hu: float
    thickness_mm: float


@dataclass(frozen=True)
class InsertDraw:
    """The view of one scan and what is put into it; `seed` is that of the noise that deforms and textures."""

    view: View
    changes: Sequence[Change]
    seed: int


def draw_change(rng: np.random.Generator, settings: InsertSettings) -> Change:
    """One change; its place is a rank, since only the device sees where the brain is."""
    shares = np.array([settings.shares.get(name, 0.0) for name in KINDS])
    name = str(rng.choice(list(KINDS), p=shares / shares.sum()))
    kind = KINDS[name]
    size = rng.uniform(*np.log(kind.radii_mm))
    radii = np.exp(size + rng.uniform(-0.35, 0.35, 3))
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Change(
        kind=name,
        place=float(rng.uniform()),
        radii_mm=tuple(radii.tolist()),
        axes=tuple(tuple(axis) for axis in axes.tolist()),
        warp=float(rng.uniform(0, settings.warp)),
        hu=float(rng.uniform(*kind.hu[rng.integers(len(kind.hu))])),
        texture_hu=float(rng.uniform(0, settings.texture_hu)),
        thickness_mm=float(rng.uniform(*kind.thickness_mm)),
    )


def draw_changes(rng: np.random.Generator, settings: InsertSettings, view: View) -> InsertDraw:
    """As many as the settings allow."""
    low, high = settings.changes
    changes = [draw_change(rng, settings) for _ in range(int(rng.integers(low, high + 1)))]
    return InsertDraw(view, changes, int(rng.integers(2**62)))


@dataclass(frozen=True)
class Ground:
    """What changes are put into, found out once for all of them."""

    inside: Tensor  # (B, x, y, z) bool, the cavity
    fluid: Tensor  # (B, x, y, z) bool, fluid in it
    ranks: Tensor  # (3, B, x * y * z), for each of `REGIONS` how many of its voxels have come, this one with them
    deep_mm: Tensor  # (B, x, y, z), the middle of a voxel at the rim lies half a voxel deep
    level_hu: Tensor  # (B,) of brain
    warp: Tensor  # (B, x, y, z) smooth noise of about unit variance
    texture: Tensor  # (B, x, y, z) white noise of unit variance
    voxel_mm: Tensor  # (B,)


def ground(hu: Tensor, inside: Tensor, draws: Sequence[InsertDraw], finest_mm: float) -> Ground:
    """The ground of HU (B, x, y, z) with their cavity; voxels are `finest_mm` or a little larger."""
    level = level_hu(hu, inside)
    (voxel_mm,) = sent_together([np.array([one.view.voxel_mm for one in draws])], hu.device)
    deep = depth(inside, max(1, round(MOST_DEPTH_MM / finest_mm)))
    rim = inside & (deep <= max(1, round(RIM_MM / finest_mm)))
    fluid = inside & (hu < (level + FLUID_HU)[:, None, None, None])
    regions = torch.stack([inside, rim, fluid]).flatten(2)
    noise = [_noise(one.seed, hu, finest_mm) for one in draws]
    return Ground(
        inside=inside,
        fluid=fluid,
        ranks=regions.cumsum(2, dtype=torch.int32),
        deep_mm=(deep - 0.5) * voxel_mm[:, None, None, None],
        level_hu=level,
        warp=torch.stack([smooth for smooth, _ in noise]),
        texture=torch.stack([white for _, white in noise]),
        voxel_mm=voxel_mm,
    )


def _noise(seed: int, like: Tensor, voxel_mm: float) -> tuple[Tensor, Tensor]:
    """Smooth and white noise (x, y, z) of one scan, from its own seed."""
    generator = torch.Generator(like.device).manual_seed(seed)
    knots = [max(2, round(n * voxel_mm / WARP_MM)) for n in like.shape[1:]]
    coarse = torch.randn((1, 1, *knots), generator=generator, device=like.device)
    smooth = F.interpolate(coarse, size=like.shape[1:], mode="trilinear", align_corners=True)[0, 0]
    return smooth, torch.randn(like.shape[1:], generator=generator, device=like.device)


def inserted(hu: Tensor, inside: Tensor, draws: Sequence[InsertDraw], finest_mm: float) -> tuple[Tensor, Tensor]:
    """HU (B, x, y, z) with the changes, and for each channel how much of a voxel they fill, (B, K, x, y, z).

    `inside` is the cavity; voxels are `finest_mm` or a little larger. Changes are put in one after the other; those of
    a scan without any cavity, or without a place for them, are left out.
    """
    on = ground(hu, inside, draws, finest_mm)
    shares = hu.new_zeros((len(hu), len(CHANGES), *hu.shape[1:]))
    most = max((len(one.changes) for one in draws), default=0)
    turns = [[row for row, one in enumerate(draws) if number < len(one.changes)] for number in range(most)]
    changes = [[draws[row].changes[number] for row in rows] for number, rows in enumerate(turns)]
    for rows, of_turn, numbers in zip(turns, changes, _numbers(turns, changes, hu.device), strict=True):
        some, before = _of_rows(on, numbers.rows), hu[numbers.rows]
        share = _share(numbers, some)
        hu = hu.index_copy(0, numbers.rows, before + share * (_wanted(numbers, before, some) - before))
        for row, change, one in zip(rows, of_turn, share, strict=True):
            channel = CHANGES.index(KINDS[change.kind].channel)
            shares[row, channel] = torch.maximum(shares[row, channel], one)
    return hu, shares


@dataclass(frozen=True)
class _Numbers:
    """Those of one change of each of N scans, on the device."""

    rows: Tensor  # (N,) of the scans in the batch
    region: Tensor  # (N,) of `REGIONS`
    above_there: Tensor  # (N,) bool: HU are counted from the voxel as it was
    place: Tensor  # (N,)
    radii_mm: Tensor  # (N, 3)
    radius_mm: Tensor  # (N,) the mean of the three
    axes: Tensor  # (N, 3, 3)
    edge_mm: Tensor  # (N,)
    thickness_mm: Tensor  # (N,)
    warp: Tensor  # (N,)
    hu: Tensor  # (N,)
    texture_hu: Tensor  # (N,)


def _numbers(
    turns: Sequence[Sequence[int]], changes: Sequence[Sequence[Change]], device: torch.device
) -> list[_Numbers]:
    """The changes of each turn, of scans of these rows, in one copy."""
    table = [
        (
            *(row, REGIONS.index(kind.region), kind.above == "there", change.place, *change.radii_mm),
            *(np.mean(change.radii_mm), *np.ravel(change.axes), kind.edge_mm, change.thickness_mm),
            *(change.warp, change.hu, change.texture_hu),
        )
        for rows, of_turn in zip(turns, changes, strict=True)
        for row, change in zip(rows, of_turn, strict=True)
        for kind in [KINDS[change.kind]]
    ]
    if not table:
        return []
    (whole,) = sent_together([np.array(table, dtype=np.float64)], device)
    numbers = []
    for part in torch.split(whole, [len(rows) for rows in turns]):
        row, region, there, place, radii, radius, axes, edge, thickness, warp, hu, texture = torch.split(
            part, [1, 1, 1, 1, 3, 1, 9, 1, 1, 1, 1, 1], dim=1
        )
        numbers.append(
            _Numbers(
                rows=row[:, 0].long(),
                region=region[:, 0].long(),
                above_there=there[:, 0] > 0,
                place=place[:, 0],
                radii_mm=radii,
                radius_mm=radius[:, 0],
                axes=axes.reshape(-1, 3, 3),
                edge_mm=edge[:, 0],
                thickness_mm=thickness[:, 0],
                warp=warp[:, 0],
                hu=hu[:, 0],
                texture_hu=texture[:, 0],
            )
        )
    return numbers


def _of_rows(on: Ground, rows: Tensor) -> Ground:
    """The ground of some of the scans."""
    return Ground(
        on.inside[rows],
        on.fluid[rows],
        on.ranks[:, rows],
        on.deep_mm[rows],
        on.level_hu[rows],
        on.warp[rows],
        on.texture[rows],
        on.voxel_mm[rows],
    )


def _share(numbers: _Numbers, on: Ground) -> Tensor:
    """How much of each voxel (B, x, y, z) one change of each scan fills."""
    centres, there = _centres(numbers, on)
    distance = _distance(numbers, centres, on)  # 1 at the surface
    edge_mm = torch.maximum(numbers.edge_mm, on.voxel_mm)
    solid = (1 - distance) * _each(numbers.radius_mm / edge_mm) + 0.5
    thickness_mm = _each(numbers.thickness_mm)
    bottom_mm = thickness_mm * (1 - distance.square()).clamp(min=0).sqrt()  # a lens: thickest in the middle
    layer = (bottom_mm - on.deep_mm) / _each(on.voxel_mm) + 0.5
    share = torch.where(thickness_mm > 0, torch.minimum(solid, layer), solid).clamp(0, 1)
    filled = _each(numbers.region == REGIONS.index("fluid"))
    return share * torch.where(filled, on.fluid, on.inside) * _each(there)


def _centres(numbers: _Numbers, on: Ground) -> tuple[Tensor, Tensor]:
    """The centre of each change in voxels, (B, 3), and whether its region has any, (B,)."""
    ranks = on.ranks[numbers.region, torch.arange(len(numbers.region), device=on.ranks.device)]
    total = ranks[:, -1:]
    rank = torch.minimum((numbers.place[:, None] * total).to(torch.int32), total - 1)
    index = torch.searchsorted(ranks, rank + 1)[:, 0].clamp(max=ranks.shape[1] - 1)
    _, ny, nz = on.inside.shape[1:]
    return torch.stack([index // (ny * nz), index // nz % ny, index % nz], dim=1), total[:, 0] > 0


def _distance(numbers: _Numbers, centres: Tensor, on: Ground) -> Tensor:
    """Distance (B, x, y, z) of each voxel from each centre in deformed radii."""
    turn = numbers.axes / numbers.radii_mm[:, :, None] * on.voxel_mm[:, None, None]  # (B, 3, 3), voxels to radii
    squared = torch.zeros_like(on.deep_mm)
    for row in turn.unbind(1):
        along = [
            row[:, axis, None] * (torch.arange(n, device=row.device) - centres[:, axis, None])
            for axis, n in enumerate(squared.shape[1:])
        ]
        squared += (along[0][:, :, None, None] + along[1][:, None, :, None] + along[2][:, None, None]).square()
    return squared.sqrt() * (1 + _each(numbers.warp) * on.warp).clamp(min=0.3)


def _wanted(numbers: _Numbers, hu: Tensor, on: Ground) -> Tensor:
    """The HU (B, x, y, z) of what each change is made of."""
    above_there = _each(numbers.above_there)
    base = torch.where(above_there, hu, _each(on.level_hu))
    # what is counted from the voxel as it was has its texture already
    texture = torch.where(above_there, 0.0, _each(numbers.texture_hu) * on.texture)
    return base + _each(numbers.hu) + texture


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def anatomical(encoder: Encoder, objective: str) -> AnatomyEncoder:
    """The encoder, if it says what lies where. Raises Misuse for any other."""
    if not isinstance(encoder, AnatomyEncoder):
        raise Misuse(
            f"the objective {objective} cannot train {encoder.architecture or type(encoder).__name__}",
            why="it trains what an encoder says of every place, which only anatomy encoders do",
            do="pre-train with --encoder anatomy-conv or anatomy-vit",
        )
    return encoder


def finest_mm(crops: Crops) -> float:
    """The smallest voxels that crops may have."""
    return crops.edge_mm[0] / crops.shape[0]


def found_loss(
    logits: Tensor, shares: Tensor, *, positives: float, guard: float = 1.0, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice losses of logits (B, K, M) against how much of each cell is changed (B, K, M).

    With p the probability, s the share, k what is known (1 if not given) and w = k (1 + (positives - 1) s), but
    w = k guard where s is 0 and p above a half:

        bce = mean over b, k, m of  -w (s log(p) + (1 - s) log(1 - p))
        dice = mean over b of the mean over its k with sum(s) > 0 of  1 - (2 sum(k p s) + 1) / (sum(k p) + sum(s) + 1)

    A scan without changes has no Dice loss.
    """
    known = torch.ones_like(shares) if known is None else known
    chance = logits.sigmoid()
    fooled = (shares == 0) & (chance.detach() > 0.5)
    weight = torch.where(fooled, guard, 1 + (positives - 1) * shares) * known
    bce = (weight * F.binary_cross_entropy_with_logits(logits, shares, reduction="none")).mean()
    chance, shares = chance * known, shares * known
    overlap = (2 * (chance * shares).sum(dim=2) + 1) / (chance.sum(dim=2) + shares.sum(dim=2) + 1)
    return bce, mean_over(1 - overlap, shares.sum(dim=2) > 0)


class Insert(Objective):
    """An anatomy encoder, whose maps of changes are trained, and a linear map that says which kinds a scan holds."""

    def __init__(self, encoder: Encoder, settings: InsertSettings, sight: Sight) -> None:
        super().__init__()
        self.settings, self.sight = settings, sight
        self.trained = anatomical(encoder, "insert")
        self.presence = nn.Linear(self.trained.inner.scan_width, len(CHANGES))

    @property
    def encoder(self) -> Encoder:
        return self.trained

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> InsertDraw:
        view = draw(rng, self.sight.views, self.settings.crops, boxes_mm["scan"])
        return draw_changes(rng, self.settings, view)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        views, finest = [one.view for one in batch.draws], finest_mm(self.settings.crops)
        with torch.no_grad():
            hu = crop(batch.scans, views, self.settings.crops, batch.spacing_mm)
            hu, shares = inserted(hu, cavity(hu, finest), batch.draws, finest)
            seen = as_seen(hu, views, self.sight.windows, batch.normals_of())
        features, maps = self.trained.look(seen.image, seen.spacing_mm)
        loss, watched = self.compared(features, maps, shares)
        return loss, {**watched, "air": seen.air}

    def compared(self, features: Features, maps: Maps, shares: Tensor) -> tuple[Tensor, Watched]:
        """The loss, from what the encoder says of crops, and the shares of changes in them (B, K, x, y, z).

        `changed` is the share of crops that hold a change: near zero, no skull encloses them and nothing is learned.
        """
        settings, (x, y, z) = self.settings, self.settings.crops.shape
        grid = maps.changes.shape[2], maps.changes.shape[3], maps.changes.shape[4]
        wanted = over_cells(shares, self.trained.cells((x, y, z)), grid).flatten(2)
        bce, dice = found_loss(maps.changes.flatten(2), wanted, positives=settings.positives, guard=settings.guard)
        there = (wanted.sum(dim=2) > 0).float()
        presence = F.binary_cross_entropy_with_logits(self.presence(features.scan).float(), there)
        loss = settings.bce * bce + settings.dice * dice + settings.presence * presence
        watched = {"bce": bce, "dice": dice, "presence": presence, "changed": there.amax(dim=1).mean()}
        return loss, {name: value.detach() for name, value in watched.items()}
