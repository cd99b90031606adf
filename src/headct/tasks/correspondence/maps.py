"""What an encoder sees at each place of a head, and where in the patient that place is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.embedding.inputs import Reading, Ready, one_scan, stream
from headct.embedding.machine import Machine
from headct.encoders import Lattice, as_input
from headct.encoders.anatomy import AnatomyEncoder
from headct.failure import Failure, Misuse
from headct.pretraining.views import TISSUE_HU
from headct.reading import Criteria
from headct.scan import AIR_HU
from headct.tasks.correspondence import windows

LEAST_TISSUE = 0.02
"""Share of tissue in a cell of the map below which nothing is looked for there."""
Compared = Literal["template", "tokens"]
"""What is compared: the template point that an encoder names for each cell, or its tokens."""


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """At which places an encoder is asked.

    With `patch_mm` 0 one look gives the whole map: the template points of an anatomy encoder, which names some whether
    it was taught them or not, and of any other its tokens; `compared` decides otherwise. With `patch_mm` above 0
    patches with that edge are cut out and their scan vectors compared: slower by the number of patches, and finer by
    `overlap`.
    """

    patch_mm: float = 0.0
    compared: Compared | None = None
    overlap: float = 0.625  # share of the edge that neighbouring patches have in common; CT-FM's
    batch_size: int = 16  # patches that are seen together
    centred: bool = True  # what the whole head has in common is taken away before places are compared

    def __post_init__(self) -> None:
        if not (np.isfinite(self.patch_mm) and self.patch_mm >= 0):
            raise Misuse(f"patches must have an edge of 0 mm or more, got {self.patch_mm:g}")
        if self.compared is not None and self.compared not in get_args(Compared):
            raise Misuse(f"nothing is called {self.compared!r}", do=f"take {' or '.join(get_args(Compared))}")
        if self.patch_mm and self.compared is not None:
            raise Misuse(
                f"patches are compared by their vectors, not by {self.compared}", do="leave out one of the two"
            )
        if not 0 <= self.overlap < 1:
            raise Misuse(f"the overlap must be a share from 0 to below 1, got {self.overlap:g}")
        if self.batch_size < 1:
            raise Misuse(f"batch_size must be at least 1, got {self.batch_size}")

    def of(self, encoder: PretrainedEncoder) -> Compared | Literal["patches"]:
        """What is compared with this encoder. Raises Misuse where it names no template points and these are asked for.

        Whether it was *taught* them stands in its card; every encoder of that kind names some.
        """
        if self.patch_mm:
            return "patches"
        names_points = isinstance(encoder.encoder, AnatomyEncoder)
        if self.compared == "template" and not names_points:
            raise Misuse(
                f"{encoder.architecture} names no template points",
                do="compare tokens, or train an anatomy encoder by the objective dense",
            )
        return self.compared or ("template" if names_points else "tokens")


@dataclass(frozen=True)
class FeatureMap:
    """Features on a lattice: cell (i, j, k) is centred at `affine` @ (i, j, k, 1), in RAS mm of its own patient.

    Between the centres features are interpolated linearly; beyond the outermost ones they stay the same, so that half
    a cell at the border cannot be told apart. `wanted` is False where there is nothing to be found.
    """

    features: np.ndarray  # (nx, ny, nz, F) float32
    affine: np.ndarray  # (4, 4)
    wanted: np.ndarray  # (nx, ny, nz) bool

    @property
    def grid(self) -> tuple[int, int, int]:
        """(nx, ny, nz)."""
        nx, ny, nz = self.features.shape[:3]
        return nx, ny, nz

    @property
    def resolution_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring centres along the axes of the lattice."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @cached_property
    def inverse(self) -> np.ndarray:
        """(4, 4), RAS mm to the lattice."""
        return np.linalg.inv(self.affine)

    def places_of(self, points_mm: np.ndarray) -> np.ndarray:
        """Lattice coordinates (n, 3) of points (n, 3)."""
        return points_mm @ self.inverse[:3, :3].T + self.inverse[:3, 3]

    def mm_of(self, places: np.ndarray) -> np.ndarray:
        """Points (n, 3) in RAS mm of lattice coordinates (n, 3)."""
        return places @ self.affine[:3, :3].T + self.affine[:3, 3]

    def holds(self, points_mm: np.ndarray) -> np.ndarray:
        """Whether each point (n, 3) lies in a cell."""
        places = self.places_of(points_mm)
        return np.all((places >= -0.5) & (places <= np.array(self.grid) - 0.5), axis=1)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Features (n, F), float64, at lattice coordinates (n, 3), interpolated linearly."""
        last = np.array(self.grid) - 1
        inside = np.clip(places, 0, last)
        low = np.minimum(np.floor(inside).astype(int), np.maximum(last - 1, 0))
        share = inside - low
        found = np.zeros((len(places), self.features.shape[-1]))
        for corner in np.ndindex(2, 2, 2):
            at = np.minimum(low + corner, last)
            weight = np.prod(np.where(np.array(corner) == 1, share, 1 - share), axis=1)
            found += weight[:, None] * self.features[at[:, 0], at[:, 1], at[:, 2]]
        return found


@dataclass(frozen=True)
class Head:
    """A prepared head and its map."""

    ids: dict[str, str]  # scan_id, patient_id, study_id, series_id
    array: np.ndarray  # as the recipe makes it
    affine: np.ndarray  # (4, 4), voxel to RAS mm
    is_hu: bool  # whether the array is in HU, (X, Y, Z), RAS
    map: FeatureMap

    @property
    def scan_id(self) -> str:
        """Its name in every table."""
        return self.ids["scan_id"]

    def voxel_of(self, point_mm: np.ndarray) -> tuple[int, int, int]:
        """The voxel nearest to a point (3,), on the border if that lies outside."""
        inverse = np.linalg.inv(self.affine)
        place = np.rint(inverse[:3, :3] @ point_mm + inverse[:3, 3])
        x, y, z = np.clip(place, 0, np.array(self.array.shape[-3:]) - 1).astype(int).tolist()
        return x, y, z

    def expect_inside(self, points_mm: np.ndarray) -> None:
        """Raises Misuse where a point (n, 3) is no number, lies outside what was prepared, or outside the head."""
        for point in points_mm:
            said = ",".join(f"{value:g}" for value in point)
            if not np.isfinite(point).all():
                raise Misuse(f"the point {said} is not three numbers", do="give R,A,S in mm, such as 12,-30,45")
            if not self.map.holds(point[None])[0] or not self._near_tissue(point):
                low, high = self._extent_mm()
                raise Misuse(
                    f"the point {said} mm lies outside the head of scan {self.scan_id}",
                    why=f"the head lies in R {low[0]:.0f} to {high[0]:.0f}, A {low[1]:.0f} to {high[1]:.0f}, "
                    f"S {low[2]:.0f} to {high[2]:.0f} mm of this scan's own space",
                    do="give R,A,S in mm of the original file; DICOM's x and y have the other sign",
                )

    def _near_tissue(self, point_mm: np.ndarray) -> bool:
        """Whether tissue lies within two voxels of the point; True where the array does not say."""
        if not self.is_hu:
            return True
        around = tuple(slice(max(0, index - 2), index + 3) for index in self.voxel_of(point_mm))
        return bool((self.array[around] > TISSUE_HU).any())

    def _extent_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest coordinate (3,) of cells in which something can be found."""
        cells = np.argwhere(self.map.wanted) if self.map.wanted.any() else np.argwhere(np.ones(self.map.grid, bool))
        places_mm = self.map.mm_of(cells.astype(float))
        return places_mm.min(axis=0), places_mm.max(axis=0)


def heads_of(
    cohort: Cohort, encoder: PretrainedEncoder, machine: Machine, settings: MapSettings | None = None, workers: int = 1
) -> Iterator[Head]:
    """The heads of a cohort with their maps, one after another.

    Raises Misuse where the cohort has another recipe than the encoder, or holds no scans.
    """
    cohort.expect(encoder.recipe)
    if not len(cohort):
        raise Misuse(f"cohort {cohort.path} holds no scans", do="see its rejections, or name another cohort")
    reading = Reading(recipe=encoder.recipe, criteria=Criteria(), keep_ids=True)
    for _, items in stream(cohort, reading, workers=workers):
        for item in items or ():
            assert isinstance(item, Ready), "a cohort gives no rejections"
            yield head_of(item, encoder, machine, settings)


def one_head(
    scan: str | os.PathLike[str],
    encoder: PretrainedEncoder,
    machine: Machine,
    settings: MapSettings | None = None,
    *,
    reading: Reading | None = None,
    cohort: Cohort | None = None,
) -> Head:
    """The head in a file, a folder or an archive that holds one scan, or of a scan id of `cohort`.

    Raises Misuse where there is no such thing, or it holds several scans, Failure where it holds none that can be used.
    """
    reading = reading or Reading(recipe=encoder.recipe, criteria=Criteria())
    return head_of(one_scan(scan, reading, cohort), encoder, machine, settings)


def head_of(ready: Ready, encoder: PretrainedEncoder, machine: Machine, settings: MapSettings | None = None) -> Head:
    """A prepared scan with its map. Raises Failure where the features are not finite."""
    settings = settings or MapSettings()
    is_hu = encoder.recipe.in_hu
    encoder = encoder.eval().to(machine.device)
    compared = settings.of(encoder)
    if compared == "patches":
        features, lattice = _patches(ready, encoder, machine, settings, AIR_HU if is_hu else 0.0)
    elif compared == "template":
        features, lattice = _template_points(ready, encoder, machine)
    else:
        features, lattice = _tokens(ready, encoder, machine)
    if not np.isfinite(features).all():
        raise Failure(
            f"the features of scan {ready.ids['scan_id']} are not finite",
            why="the array holds values that are no numbers, or the model's weights do",
            do="look at the scan, or name another model",
        )
    wanted = _tissue(ready.array, lattice, features.shape[:3]) if is_hu else np.ones(features.shape[:3], bool)
    if settings.centred and compared != "template":
        features = features - features[wanted if wanted.any() else np.ones_like(wanted)].mean(axis=0)
    affine = ready.affine @ _matrix(lattice)
    return Head(dict(ready.ids), ready.array, ready.affine, is_hu, FeatureMap(features, affine, wanted))


def _matrix(lattice: Lattice) -> np.ndarray:
    """The (4, 4) matrix from a cell of the lattice to voxels."""
    matrix = np.diag([*lattice.step, 1.0])
    matrix[:3, 3] = lattice.first
    return matrix


def _tokens(ready: Ready, encoder: PretrainedEncoder, machine: Machine) -> tuple[np.ndarray, Lattice]:
    """Tokens (nx, ny, nz, F) and where they lie."""
    with torch.inference_mode(), machine.arithmetic():
        seen = encoder.see(_sent(ready.array[None], machine), _spacing(ready, machine))
    x, y, z = ready.array.shape[-3:]
    tokens = seen.tokens[0].float().cpu().numpy()
    return tokens.reshape(*seen.grid, -1), encoder.lattice((x, y, z))


def _template_points(ready: Ready, encoder: PretrainedEncoder, machine: Machine) -> tuple[np.ndarray, Lattice]:
    """The template point of each cell, on the sphere, (nx, ny, nz, 4), and where the cells lie."""
    network = encoder.encoder
    assert isinstance(network, AnatomyEncoder)
    with torch.inference_mode(), machine.arithmetic():
        windowed = as_input(_sent(ready.array[None], machine), list(encoder.card.windows.values()))
        _, maps = network.look(windowed, _spacing(ready, machine))
    x, y, z = ready.array.shape[-3:]
    return on_sphere(maps.places[0].float().cpu().numpy().transpose(1, 2, 3, 0)), network.cells((x, y, z))


def on_sphere(points: np.ndarray) -> np.ndarray:
    """Points p (..., 3) as unit vectors (..., 4), so that cosines tell how near points are: 1 where they are the same.

    By the inverse of the stereographic projection, (2 p, |p|^2 - 1) / (|p|^2 + 1): the cosine of the vectors of p and q
    is 1 - 2 |p - q|^2 / ((1 + |p|^2) (1 + |q|^2)). Of two points about as near to p the one farther from the origin
    counts as the nearer; in units of 100 mm a centimetre outward is worth a tenth of the distance squared at most.
    """
    squared = (points**2).sum(axis=-1, keepdims=True)
    return np.concatenate([2 * points, squared - 1], axis=-1) / (squared + 1)


def _patches(
    ready: Ready, encoder: PretrainedEncoder, machine: Machine, settings: MapSettings, fill: float
) -> tuple[np.ndarray, Lattice]:
    """Scan vectors (nx, ny, nz, F) of patches and where their middles lie."""
    edges = [max(1, round(settings.patch_mm / float(mm))) for mm in ready.spacing_mm]
    shape = ready.array.shape[-3:]
    begins = windows.starts(shape, edges, settings.overlap)
    vectors = patch_vectors(ready, encoder, machine, begins, edges, fill, settings.batch_size)
    first = tuple((edge - 1) / 2 for edge in edges)
    step = tuple(float(windows.step(edge, settings.overlap)) for edge in edges)
    lattice = Lattice(first=(first[0], first[1], first[2]), step=(step[0], step[1], step[2]))
    return vectors.reshape(*windows.counts(shape, edges, settings.overlap), -1), lattice


def patch_vectors(
    ready: Ready,
    encoder: PretrainedEncoder,
    machine: Machine,
    begins: np.ndarray,
    edges: list[int],
    fill: float,
    batch_size: int,
) -> np.ndarray:
    """Scan vectors (n, F) of the patches of a prepared array that begin at `begins` (n, 3); `fill` lies outside."""
    found = []
    for at in range(0, len(begins), batch_size):
        some = begins[at : at + batch_size]
        batch = np.stack([windows.cut_out(ready.array, begin, edges, fill) for begin in some.tolist()])
        with torch.inference_mode(), machine.arithmetic():
            seen = encoder.see(_sent(batch, machine), _spacing(ready, machine).expand(len(batch), 3))
        found.append(seen.scan.float().cpu().numpy())
    return np.concatenate(found)


def _sent(arrays: np.ndarray, machine: Machine) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(arrays)).to(machine.device)


def _spacing(ready: Ready, machine: Machine) -> torch.Tensor:
    return torch.from_numpy(ready.spacing_mm[None]).to(machine.device, torch.float32)


def _tissue(array: np.ndarray, lattice: Lattice, grid: tuple[int, ...]) -> np.ndarray:
    """Which cells of the lattice, (nx, ny, nz), hold tissue; all where none does."""
    share = uniform_filter(
        (array > TISSUE_HU).astype(np.float32), [max(1, round(one)) for one in lattice.step], mode="constant"
    )
    axes = [
        np.clip(np.rint(first + step * np.arange(n)).astype(int), 0, size - 1)
        for first, step, n, size in zip(lattice.first, lattice.step, grid, array.shape, strict=True)
    ]
    found = share[np.ix_(*axes)] >= LEAST_TISSUE
    return found if found.any() else np.ones_like(found)
