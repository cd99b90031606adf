"""From a patient to a `Scan`: pose, partial volume, beam hardening, kernel, noise, motion, as one scanner takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from headct.scan import Header, Scan
from headct.virtual.metal import lay_metal, metal_of, spots_in
from headct.virtual.noise import UNSHARP_MM, Kernel, correlated, noise_of, overlap_per_mm
from headct.virtual.patient import Painted, Patient
from headct.virtual.places import by_axis, one_thread, some, turned, where
from headct.virtual.sites import Protocol, Site
from headct.virtual.solids import Vector, vector
from headct.virtual.strap import WIDTH_MM, lay_strap
from headct.virtual.streams import stream
from headct.virtual.table import lay_table
from headct.virtual.template import ICBM_PER_HEAD
from headct.virtual.texture import tiled_noise

SAMPLES_EVERY_MM = 1.7
"""Planes within a slice's thickness lie at most so far apart, or 1.25 pixels; their mean is the partial volume."""

POINTS_AT_ONCE = 1 << 18
"""How many points a processor paints together: more would not fit into its caches, and fewer would take time, as every
operation has to be begun."""

POINTS_ON_A_GPU = 1 << 23
"""How many any other device does, to begin few operations: heads of 2 mm as a whole. Each takes some 300 bytes."""

LOWEST_HU, HIGHEST_HU = -1024, 3071

MATRIX = 512
"""Pixels along each edge of a scanner's image: the field of view decides how large they are."""

TISSUES = ("brain", "ventricles", "skull")
"""What `take` keeps the shares of beside the findings', if asked."""

AIR_BLUR_MM = 1.0
"""Over so much (sigma) noise changes from that of the body to that of air."""

MINERAL_HU = 110.0
"""What is denser holds calcium, whose density depends on the tube voltage; the freshest blood is not."""

MISSED_MM = (16.0, 40.0)
"""How much more of the head than others a truncated scan leaves out at its lower end; at the vertex half as much."""


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """One visit to one scanner. Another draw of the same patient is a re-scan: pose, noise and hardening differ."""

    protocol: Protocol
    site: str
    turn_deg: Vector  # nod, roll, yaw
    shift_mm: Vector
    field_mm: float
    pixel_mm: float
    tilt_deg: float
    blur_mm: float
    sharpening: float
    noise_hu: float
    offset_hu: float
    cupping_hu: float
    petrous_hu: float
    motion_mm: tuple[float, float]  # in-plane; zero if the patient lay still
    head_rest: bool
    below_mm: float
    above_mm: float
    noise_seed: int
    noise_blur_mm: float
    petrous_streaks_hu: float
    strap_mm: float | None  # the middle of a band over the forehead, along the table from the head's origin

    @classmethod
    def draw(cls, seed: int, site: Site, visit: int = 0) -> Acquisition:
        """The `visit`-th scan of a patient at a site, from a stream of its own."""
        rng = stream(seed, f"acquisition/{site.name}/{visit}")
        protocol = site.protocol(rng)
        uniform = rng.uniform
        wide = uniform() < 0.25
        turn = (uniform(-16, 10), rng.normal(0, 3.5), rng.normal(0, 9 if wide else 4))
        moved = uniform() < protocol.motion
        shift = rng.normal(0, protocol.off_centre_mm, 3)
        field = float(uniform(*protocol.field_mm))
        whole = cls(
            protocol=protocol,
            site=site.name,
            turn_deg=vector(turn),
            shift_mm=vector(shift),
            field_mm=field,
            pixel_mm=field / MATRIX,
            tilt_deg=float(uniform(*protocol.tilt_deg)),
            blur_mm=float(uniform(*protocol.blur_mm)),
            sharpening=float(uniform(*protocol.sharpening)),
            noise_hu=float(uniform(*protocol.noise_hu)),
            offset_hu=float(uniform(*protocol.offset_hu)),
            cupping_hu=float(uniform(*protocol.cupping_hu)),
            petrous_hu=float(uniform(2, 16)),
            motion_mm=(float(uniform(0.6, 2.4)), float(uniform(-1, 1))) if moved else (0.0, 0.0),
            head_rest=bool(uniform() < protocol.head_rest),
            below_mm=float(uniform(*protocol.below_mm)),
            above_mm=float(uniform(*protocol.above_mm)),
            noise_seed=int(rng.integers(2**31)),
            noise_blur_mm=float(uniform(*protocol.noise_blur_mm)),
            petrous_streaks_hu=float(uniform(0, 7)),
            strap_mm=None,
        )
        height, strap, truncated = float(uniform(14, 46)), uniform(), uniform()
        held = replace(whole, strap_mm=height) if strap < protocol.strap else whole
        return held._truncated(rng) if truncated < protocol.truncated else held

    def _truncated(self, rng: np.random.Generator) -> Acquisition:
        """The same visit begun above the base of the skull or, more rarely, ended below the vertex."""
        missed = float(rng.uniform(*MISSED_MM))
        if rng.uniform() < 0.7:
            return replace(self, below_mm=self.below_mm - missed)
        return replace(self, above_mm=self.above_mm - missed / 2)

    @property
    def kernel(self) -> Kernel:
        """What reconstruction does to the image and to its noise."""
        return Kernel(
            blur_mm=self.blur_mm,
            sharpening=self.sharpening,
            noise_blur_mm=self.noise_blur_mm,
            limit_per_mm=self.protocol.limit_per_mm,
        )

    def coarsened(self, spacing_mm: float) -> Acquisition:
        """The same visit with pixels and slices no finer than `spacing_mm`, for arrays that are prepared at once.

        Thin slices become slices of that thickness; noise falls as averaging would make it.
        """
        protocol, wings = self.protocol, self.protocol.wings_mm
        if min(self.pixel_mm, protocol.thickness_mm, protocol.gap_mm) >= spacing_mm:
            return self  # nothing would change, and to work that out takes time
        thickness, gap = max(protocol.thickness_mm, spacing_mm), max(protocol.gap_mm, spacing_mm)
        thicker = overlap_per_mm(thickness, 0.0, wings) / overlap_per_mm(protocol.thickness_mm, 0.0, wings)
        pixel = max(self.pixel_mm, spacing_mm)
        averaged = self.kernel.spread(pixel) / self.kernel.spread(self.pixel_mm)
        coarse = replace(protocol, thickness_mm=thickness, gap_mm=gap)
        return replace(self, protocol=coarse, pixel_mm=pixel, noise_hu=float(self.noise_hu * thicker**0.5 * averaged))

    @cached_property
    def _rotation(self) -> np.ndarray:
        return Rotation.from_euler("xyz", self.turn_deg, degrees=True).as_matrix()

    def to_scanner(self, head_mm: np.ndarray) -> np.ndarray:
        """Patient coordinates (n, 3) RAS mm, as the scanner has them, of places in head millimetres."""
        return np.asarray(head_mm) @ self._rotation.T + np.array(self.shift_mm)

    def to_head(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Head millimetres (n, 3) of scanner coordinates."""
        rotation = points_mm.new_tensor(self._rotation.astype(np.float32))
        return turned(by_axis(points_mm) - points_mm.new_tensor(self.shift_mm), rotation)

    @cached_property
    def slices_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the slices along the table and the thickness of each, (slices,) mm, from below."""
        protocol = self.protocol
        if protocol.second_stack is None:
            positions = np.arange(-self.below_mm, self.above_mm, protocol.gap_mm)
            return positions, np.full(len(positions), protocol.thickness_mm)
        thick, gap = protocol.second_stack
        low = np.arange(-self.below_mm, -12.0, protocol.gap_mm)
        start = low[-1] + (protocol.thickness_mm + thick) / 2 if len(low) else -self.below_mm
        high = np.arange(start, self.above_mm, gap)
        return np.concatenate([low, high]), np.repeat([protocol.thickness_mm, thick], [len(low), len(high)])


@dataclass(frozen=True)
class Taken:
    """A scan with its truth on the scan's own grid.

    Attributes:
        scan: As the scanner would give it.
        shares: For each finding, how much of each voxel it fills: float16 (slices, rows, cols).
        changed_hu: For each finding, by how much it changed each voxel before noise: float16.
        tissues: The same of `TISSUES`, if asked for.
    """

    scan: Scan
    shares: Mapping[str, np.ndarray]
    changed_hu: Mapping[str, np.ndarray]
    tissues: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Voxels:
    """Where a scan's voxels lie in the scanner, and how thick each slice is."""

    origins_mm: np.ndarray  # (slices, 3)
    row_step_mm: np.ndarray  # (3,)
    col_step_mm: np.ndarray  # (3,)
    rows: int  # and as many columns
    thickness_mm: np.ndarray  # (slices,)

    @classmethod
    def of(cls, visit: Acquisition) -> _Voxels:
        positions, thickness = visit.slices_mm
        rows = round(visit.field_mm / visit.pixel_mm / 2) * 2
        lean = Rotation.from_rotvec([np.radians(visit.tilt_deg), 0, 0])
        row_step = lean.apply((0.0, -1.0, 0.0)) * visit.pixel_mm
        col_step = np.array((-1.0, 0.0, 0.0)) * visit.pixel_mm
        middle = np.array((0.0, -8.0, 0.0))
        origins = middle - (row_step + col_step) * (rows - 1) / 2 + positions[:, None] * np.array((0.0, 0.0, 1.0))
        return cls(origins, row_step, col_step, rows, thickness)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the scan: slices, rows, columns."""
        return len(self.origins_mm), self.rows, self.rows

    def in_plane_mm(self) -> np.ndarray:
        """From a slice's first pixel to each of them, float32 (3, rows * cols)."""
        steps = np.arange(self.rows, dtype=np.float32)
        down, across = self.row_step_mm.astype(np.float32), self.col_step_mm.astype(np.float32)
        return (steps[:, None] * down[:, None, None] + steps * across[:, None, None]).reshape(3, -1)


@one_thread()
def take(patient: Patient, visit: Acquisition, *, tissues: bool = False, device: str | torch.device = "cpu") -> Taken:
    """Scan a patient; `tissues` keeps the shares of `TISSUES` too. The same arguments give the same bytes.

    The patient is painted and imaged on the device; another one is meant to give the same within 1 HU, but for single
    voxels where a condition decides. What is random, metal and straps are the processor's work.
    """
    voxels = _Voxels.of(visit)
    averaged = _partial_volumes(patient, visit, voxels, torch.device(device), tissues)
    _lay_fixtures(averaged.hu, visit, patient, voxels)
    together = max(1, _at_once(averaged.hu.device) // voxels.rows**2)
    scan = Scan(
        hu=_imaged(averaged.hu, visit, patient, voxels.thickness_mm, together).cpu().numpy(),
        origins_mm=voxels.origins_mm,
        row_step_mm=voxels.row_step_mm,
        col_step_mm=voxels.col_step_mm,
        thickness_mm=float(np.median(voxels.thickness_mm)),
        header=_header(patient, visit),
    )
    return Taken(scan, averaged.shares, averaged.changed_hu, averaged.tissues)


@dataclass
class _Averaged:
    hu: torch.Tensor  # on the device; the others are not
    shares: dict[str, np.ndarray]
    changed_hu: dict[str, np.ndarray]
    tissues: dict[str, np.ndarray]


def _partial_volumes(
    patient: Patient, visit: Acquisition, voxels: _Voxels, device: torch.device, tissues: bool
) -> _Averaged:
    """Every slice as the mean over planes within its thickness."""
    result = _Averaged(torch.empty(voxels.shape, device=device), {}, {}, {})
    normal = np.cross(voxels.col_step_mm, voxels.row_step_mm)
    normal /= np.linalg.norm(normal)
    flat = torch.from_numpy(voxels.in_plane_mm()).to(device)
    planes = np.maximum(1, np.ceil(voxels.thickness_mm / max(SAMPLES_EVERY_MM, 1.25 * visit.pixel_mm))).astype(int)
    at_once = _at_once(device)
    for slices in _together(planes * voxels.rows**2, at_once):
        corners = np.concatenate(
            [
                origin + ((np.arange(count) + 0.5) / count - 0.5)[:, None] * thickness * normal
                for origin, count, thickness in zip(
                    voxels.origins_mm[slices], planes[slices], voxels.thickness_mm[slices], strict=True
                )
            ]
        )
        points = flat[:, None] + torch.from_numpy(corners.astype(np.float32).T.copy()).to(device)[:, :, None]
        parts = [
            _seen_at(patient.paint(head_mm, visit.pixel_mm, tissues=tissues), visit, patient, head_mm)
            for head_mm in map(visit.to_head, torch.split(points.reshape(3, -1).T, at_once))
        ]
        _keep(result, slices, parts, planes[slices])
        origins = torch.from_numpy(voxels.origins_mm[slices].astype(np.float32).T.copy()).to(device)
        middle = (flat[:, None] + origins[:, :, None]).reshape(3, -1).T
        lay_table(result.hu[slices].view(-1), middle, visit.shift_mm, head_rest=visit.head_rest)
    return result


def _at_once(device: torch.device) -> int:
    return POINTS_AT_ONCE if device.type == "cpu" else POINTS_ON_A_GPU


def _together(points: np.ndarray, at_once: int) -> Iterator[slice]:
    """Slices one after another, which have `points` each: as many together as make `at_once` at most, or one."""
    first = 0
    for last in range(1, len(points) + 1):
        if last == len(points) or points[first : last + 1].sum() > at_once:
            yield slice(first, last)
            first = last


def _keep(result: _Averaged, slices: slice, parts: list[Painted], planes: np.ndarray) -> None:
    """Average the planes of some slices into the result."""
    shape = result.hu.shape[1:]

    def means(values: list[torch.Tensor]) -> torch.Tensor:
        all_planes = (torch.cat(values) if len(values) > 1 else values[0]).reshape(-1, *shape)
        if planes.min() == planes.max():
            return all_planes.reshape(len(planes), planes[0], *shape).mean(dim=1)
        return torch.stack([each.mean(dim=0) for each in torch.split(all_planes, planes.tolist())])

    result.hu[slices] = means([part.hu for part in parts])
    for name in dict.fromkeys(name for part in parts for name in part.changes):
        stores = ((result.shares, "share"), (result.changed_hu, "hu"))
        for store, attribute in ((result.tissues, "share"),) if name in TISSUES else stores:
            known = store.setdefault(name, np.zeros(result.hu.shape, dtype=np.float16))
            changes = [part.changes.get(name) for part in parts]
            values = [
                torch.zeros_like(part.hu) if change is None else getattr(change, attribute)
                for part, change in zip(parts, changes, strict=True)
            ]
            for plane, averaged in zip(known[slices], means(values).cpu().numpy(), strict=True):
                if averaged.any():  # memory that is never written is never taken
                    plane[:] = averaged


def _seen_at(painted: Painted, visit: Acquisition, patient: Patient, head_mm: torch.Tensor) -> Painted:
    """What the beam makes of tissue, in place."""
    added = mineral_factor(visit.protocol.kvp) - 1
    if added:
        mineral = _mineral(painted.hu)
        for name, change in painted.changes.items():
            more = mineral - _mineral(painted.hu - change.hu)
            painted.changes[name] = replace(change, hu=change.hu + added * more)
        painted.hu.add_(mineral, alpha=added)
    return _hardened(painted, visit, patient, head_mm)


def _mineral(hu: torch.Tensor) -> torch.Tensor:
    return torch.clamp(hu - MINERAL_HU, min=0)


def mineral_factor(kvp: float) -> float:
    """How much denser bone and calcifications look than at 120 kV.

    Calcium is 1.47 times as dense at 80 as at 140 kV (Eur Radiol Exp 2019, 10.1186/s41747-019-0125-2, table 1); a power
    of the voltage between.
    """
    return float((120 / kvp) ** (np.log(1.47) / np.log(140 / 80)))


def _hardened(painted: Painted, visit: Acquisition, patient: Patient, head_mm: torch.Tensor) -> Painted:
    """Beam hardening: bright under the skull, dark and streaky between the petrous bones; in place.

    The bones lie where the head's size puts them, so that nothing within the brain moves what they do.
    """
    hu, depth = painted.hu, -painted.cavity_mm
    inside = where(depth > 0)
    if len(inside):
        at = some(head_mm, inside) * head_mm.new_tensor(patient.anatomy.scale)
        x, y, z = at.T
        cup = visit.cupping_hu * torch.exp(-some(depth, inside) / 6) - 0.25 * visit.cupping_hu
        bar = torch.exp(-(((z + 34) / 9) ** 2) - ((y + 24) / 9) ** 2) * (torch.abs(x) < 45)
        hu.index_add_(0, inside, cup - visit.petrous_hu * bar)
        _lay_petrous_streaks(hu, inside, at, visit)
    return painted


def _lay_petrous_streaks(hu: torch.Tensor, inside: torch.Tensor, at: torch.Tensor, visit: Acquisition) -> None:
    """Fine lines from one petrous bone to the other at points `inside` that lie `at` template mm, in place."""
    x, y, z = at.T
    strength = torch.exp(-(((z + 36) / 10) ** 2) - ((y + 30) / 20) ** 2 - (x / 40) ** 4)
    near = where(strength > 0.02)
    if len(near):
        stretched = some(at, near) * at.new_tensor((0.06, 1.0, 1.0))
        place = vector(np.random.default_rng([visit.noise_seed, 4]).uniform(size=3))
        streaks = visit.petrous_streaks_hu * some(strength, near) * tiled_noise(stretched, 7.0, place)
        hu.index_add_(0, some(inside, near), streaks)


def _lay_fixtures(hu: torch.Tensor, visit: Acquisition, patient: Patient, voxels: _Voxels) -> None:
    """What is not of the body: metal with its streaks, and the band over the forehead; in place."""
    pieces = metal_of(patient.seed)
    targets = np.array([piece.place_mm for piece in pieces]).reshape(-1, 3)
    places = visit.to_scanner(patient.bend.head_of(targets, brain=False)[0]) if pieces else targets
    rng = np.random.default_rng([visit.noise_seed, 3])
    origins, steps_mm = voxels.origins_mm, (voxels.row_step_mm, voxels.col_step_mm)
    y = origins[:, 1, None] + np.arange(hu.shape[1]) * voxels.row_step_mm[1]  # (slices, rows)
    for index, plane in enumerate(hu):
        spots = spots_in(pieces, places, origins[index], steps_mm, voxels.thickness_mm[index])
        above = origins[index, 2] - visit.shift_mm[2]
        strapped = visit.strap_mm is not None and abs(above - visit.strap_mm) < WIDTH_MM / 2
        if not (spots or strapped):
            continue
        drawn = plane.cpu().numpy()
        lay_metal(drawn, spots, visit.pixel_mm, rng)
        if strapped:
            lay_strap(drawn, y[index, :, None] - visit.shift_mm[1], visit.pixel_mm)
        plane.copy_(torch.from_numpy(drawn))


def _imaged(
    hu: torch.Tensor, visit: Acquisition, patient: Patient, thickness: np.ndarray, together: int
) -> torch.Tensor:
    """Kernel, offset, noise, motion and rounding, as int16 (slices, rows, cols), so many slices `together`.

    `hu` is used up.
    """
    body = hu > -500
    for planes in torch.split(hu, together):
        planes.copy_(_through_kernel(planes, visit))
    if visit.motion_mm[0]:
        hu = _moved(hu, visit)
    hu.add_(body, alpha=visit.offset_hu)
    noise = _noise(hu, visit, patient, thickness, together)
    return noise.add_(hu).round_().clamp_(LOWEST_HU, HIGHEST_HU).to(torch.int16)


def _through_kernel(planes: torch.Tensor, visit: Acquisition) -> torch.Tensor:
    """Slices (n, rows, cols) as reconstruction passes them."""
    if (sigma := visit.blur_mm / visit.pixel_mm) > 0.2:
        planes = blurred(planes, sigma)
    if visit.sharpening:
        planes = planes + visit.sharpening * (planes - blurred(planes, UNSHARP_MM / visit.pixel_mm))
    return planes


def blurred(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Slices (n, rows, cols) through a Gaussian of so many pixels, cut at four sigma; their edges go on.

    As `scipy.ndimage.gaussian_filter` does, on any device; a convolution there may be set to fewer digits.
    """
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis, margins in ((1, (0, 0, reach, reach)), (2, (reach, reach, 0, 0))):
        around, size = F.pad(planes, margins, mode="replicate"), planes.shape[axis]
        planes = planes * weights[0]
        for away, weight in enumerate(weights[1:].tolist(), start=1):
            both = around.narrow(axis, reach - away, size) + around.narrow(axis, reach + away, size)
            planes.add_(both, alpha=weight)
    return planes


def _moved(hu: torch.Tensor, visit: Acquisition) -> torch.Tensor:
    """The mean with a copy that is displaced in some slices: the patient moved while they were taken."""
    rng = np.random.default_rng([visit.noise_seed, 2])
    first = int(rng.integers(0, len(hu)))
    moved = slice(first, first + int(rng.integers(2, max(3, len(hu) // 3))))
    across, down = np.array(visit.motion_mm) / visit.pixel_mm
    result = hu.clone()
    result[moved] = 0.6 * hu[moved] + 0.4 * _displaced(_displaced(hu[moved], 1, down), 2, across)
    return result


def _displaced(planes: torch.Tensor, axis: int, by: float) -> torch.Tensor:
    """Slices (n, rows, cols) moved by so many pixels along an axis, linearly interpolated; their edges go on."""
    place = (torch.arange(planes.shape[axis], device=planes.device) - by).clamp_(0, planes.shape[axis] - 1)
    before = place.floor().clamp_(max=planes.shape[axis] - 2).long()
    share = (place - before).reshape((-1, 1) if axis == 1 else (-1,))
    return torch.lerp(planes.index_select(axis, before), planes.index_select(axis, before + 1), share)


def _noise(
    hu: torch.Tensor, visit: Acquisition, patient: Patient, thickness: np.ndarray, together: int = 1
) -> torch.Tensor:
    """Noise of the kernel's colour: more in thin slices, large heads, and the middle of the head; little in air."""
    rng, protocol = np.random.default_rng([visit.noise_seed, 1]), visit.protocol
    slices, rows, cols = hu.shape
    noise = noise_of(rng, (slices + 2, rows, cols), visit.kernel, visit.pixel_mm, together=together, device=hu.device)
    shared, own = (overlap_per_mm(protocol.thickness_mm, apart, protocol.wings_mm) for apart in (protocol.gap_mm, 0.0))
    noise = correlated(noise, shared / own)
    size = (ICBM_PER_HEAD / patient.anatomy.mean_scale) ** 3  # volume of this head to that of an average one
    strength = visit.noise_hu * size * np.sqrt(protocol.thickness_mm / thickness)
    axis = torch.linspace(-1, 1, rows, device=hu.device)
    middle = 0.8 + 0.4 * torch.exp(-(axis[:, None] ** 2 + axis**2) / 0.35)
    thin = torch.from_numpy(strength.astype(np.float32)).to(hu.device)[:, None, None]
    sigma = AIR_BLUR_MM / visit.pixel_mm
    for planes, by, seen in zip(*(torch.split(each, together) for each in (noise, thin, hu)), strict=True):
        body = blurred(torch.clamp(seen, max=-150), sigma)  # the same for all that is denser than fat
        in_air = torch.sigmoid((body + 500) * 0.01).mul_(0.65).add_(0.35)
        planes.mul_(by).mul_(middle).mul_(in_air)
    return noise


def _header(patient: Patient, visit: Acquisition) -> Header:
    """Without identifiers, which are the archive's to give."""
    return Header(
        source="dicom",
        manufacturer=visit.protocol.manufacturer,
        model=visit.protocol.model,
        kernel=visit.protocol.kernel,
        kvp=visit.protocol.kvp,
        contrast=False,
        age=float(int(patient.anatomy.age)),
        sex=patient.anatomy.sex,
    )
