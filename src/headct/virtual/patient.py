"""A patient who does not exist: a seed, an anatomy, and findings, from which any grid can be painted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch

from headct.scan import AIR_HU
from headct.virtual import bending
from headct.virtual.anatomy import Anatomy
from headct.virtual.bending import COARSE, Bend, Coarse, ended
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.mixture import PREVALENCE, draw_findings
from headct.virtual.interpolation import Grid
from headct.virtual.places import by_axis, length, some, spread, where
from headct.virtual.solids import vector
from headct.virtual.template import HEAD_BOX, template
from headct.virtual.tissue import Brain, Change, Nodule, Skull, inside, nodules_of


@dataclass(frozen=True)
class Painted:
    """What lies at points (n,).

    Attributes:
        hu: (n,) Hounsfield values.
        changes: What each finding changed, by name.
        cavity_mm: (n,) patient mm from the skull's inner surface, negative inside; 99 well outside the head.
        near: (m,) which of the points lie in the head or near to it.
        inner: Which of these lie within the cavity.
        by_head: (m, 3) their place in the template by the head map.
        by_brain: (m, 3) by the brain map.
    """

    hu: torch.Tensor
    changes: dict[str, Change]
    cavity_mm: torch.Tensor
    near: torch.Tensor
    inner: torch.Tensor
    by_head: torch.Tensor
    by_brain: torch.Tensor

    @property
    def template_mm(self) -> torch.Tensor:
        """The template point (n, 3) that lies here: by the brain map within the cavity, else by the head's.

        No number outside the head.
        """
        here = self.by_head.clone()
        here[self.inner] = self.by_brain[self.inner]
        everywhere = here.new_full((len(self.hu), 3), torch.nan)
        everywhere[self.near] = here
        return everywhere


@dataclass(frozen=True)
class FluidVolumes:
    """Volumes in ml within the skull."""

    ventricles_ml: float
    fluid_ml: float
    cavity_ml: float


SEAM_MM = 3.0
"""How far into the cavity the skull is painted, beneath the brain that is laid over it."""

VOLUME_STEP_MM, WITHIN_REACH_MM = 4.0, 12.0
"""How fine volumes are sampled; a point is left out if the nearest coarse one is farther outside than so."""

AROUND = replace(COARSE, x=(-133, 133), y=(-154, 154), z=(-126, 133))
"""The coarse grid, and more around it: where a head may be looked for."""

OUTLINE_MM = 5.0
"""What lies farther outside of a head's outline on the coarse grid is air; skin was found to reach 1.4 mm beyond it."""

UNREACHED_MM = 3.0
"""A calcification whose place is missed by so much has none in this brain."""

MASSES = frozenset({"iph", "sdh", "edh", "tumor"})
"""What takes room and pushes the brain aside."""


@dataclass(frozen=True)
class Patient:
    """One virtual patient. The same seed without a finding is that patient's twin."""

    seed: int
    anatomy: Anatomy
    findings: tuple[Finding, ...] = field(default=())

    def without(self, *names: str) -> Patient:
        """The twin who lacks some findings, all else equal; `edema` is also that of other findings."""
        kept = [item for item in self.findings if item.name not in names]
        if "edema" in names:
            kept = [item.without_oedema() for item in kept]
        twin = replace(self, findings=tuple(kept))
        vars(twin)["coarse"] = self.coarse  # worked out once for both: no finding changes it
        return twin

    @classmethod
    def draw(cls, seed: int, *, prevalence: Mapping[str, float] = PREVALENCE) -> Patient:
        """The patient of a seed; see `headct.virtual.findings.mixture` for how findings are drawn."""
        return cls(seed, Anatomy.draw(seed), draw_findings(seed, prevalence))

    @cached_property
    def coarse(self) -> Coarse:
        """This head without disease, on the coarse grid."""
        return bending.undiseased(self.anatomy, template())

    @cached_property
    def bend(self) -> Bend:
        """The maps from this head to the template, with what the findings push aside."""
        pushes = [finding.push(self.coarse) for finding in self.findings]
        wider = [finding.widens(self.coarse) for finding in self.findings]
        fields = [finding.fields(self.coarse) for finding in self.findings]
        return bending.bent(self.anatomy, self.coarse, pushes, wider, fields)

    @cached_property
    def nodules(self) -> tuple[Nodule, ...]:
        """What is calcified in this brain, each where the brain map puts it, but in template mm by the head map.

        None where a mass or a ventricle has taken the place of what was calcified.
        """
        drawn = nodules_of(self.anatomy)
        if not drawn:
            return ()
        places, missed_mm = self.bend.head_of(np.array([nodule.centre_mm for nodule in drawn]))
        by_head, _by_brain, _fields = self.bend.sample(torch.from_numpy(places.astype(np.float32)))
        return tuple(
            nodule._replace(centre_mm=vector(place))
            for nodule, place, miss in zip(drawn, by_head.tolist(), missed_mm, strict=True)
            if miss < UNREACHED_MM
        )

    @cached_property
    def displaced_mm(self) -> torch.Tensor:
        """How far masses have moved the brain at each coarse point (n, 3), patient mm, right, anterior, superior."""
        pushes = [ended(finding.push(self.coarse)) for finding in self.findings if finding.name in MASSES]
        total = torch.stack(pushes).sum(dim=0) if pushes else torch.zeros_like(self.coarse.template_mm)
        return -total / self.coarse.scale  # tissue moves against the map

    def fluid_ml(self) -> FluidVolumes:
        """Ventricles and all fluid around the brain in this head, sampled every 4 mm."""
        points, nearest = _volume_points()
        points = points[self.coarse.cavity_mm[nearest] < WITHIN_REACH_MM]
        by_head, by_brain, fields = self.bend.sample(points)
        channels = template().sample("head", by_head)
        cavity_mm = channels["cavity_mm"] / self.anatomy.mean_scale
        within = where((cavity_mm < 0) & (by_head[:, 2] > -66))
        brain = self._brain(by_head, by_brain, fields, cavity_mm, within, VOLUME_STEP_MM)
        voxel_ml = VOLUME_STEP_MM**3 / 1000
        return FluidVolumes(
            ventricles_ml=float(brain.ventricle.sum()) * voxel_ml,
            fluid_ml=float(brain.fluid.sum()) * voxel_ml,
            cavity_ml=len(within) * voxel_ml,
        )

    def paint(self, head_mm: torch.Tensor, edge_mm: float, *, tissues: bool = False) -> Painted:
        """Values at points (n, 3) in head millimetres; edges are ramps of `edge_mm`, about the size of a pixel.

        With `tissues`, the shares of `brain`, `ventricles` and `skull` are among the changes, which change nothing.
        """
        head_mm, count = by_axis(head_mm), len(head_mm)
        near = self._near(head_mm, edge_mm)
        by_head, by_brain, fields = self.bend.sample(some(head_mm, near))
        channels = _head_channels(by_head)
        cavity_mm = channels["cavity_mm"] / self.anatomy.mean_scale
        outer = where(cavity_mm > -SEAM_MM - edge_mm)
        skull = Skull(self.anatomy, some(by_head, outer), _At(channels, outer), _At(fields, outer), edge_mm)
        for finding in self.findings:
            finding.paint_bone(skull)
        if tissues:
            skull.changes["skull"] = Change(skull.bone_shell(), torch.zeros_like(skull.hu))
        hu = spread(skull.hu, outer, len(near), AIR_HU)
        changes = {name: change.spread(some(near, outer), count) for name, change in skull.changes.items()}
        inner = where(cavity_mm < edge_mm)
        if len(inner):
            brain = self._brain(by_head, by_brain, fields, cavity_mm, inner, edge_mm, self.nodules)
            for finding in self.findings:
                finding.paint(brain)
            if tissues:
                brain.changes["ventricles"] = Change(brain.ventricle, torch.zeros_like(brain.hu))
                brain.changes["brain"] = Change(1 - brain.fluid, torch.zeros_like(brain.hu))
            share = inside(brain.cavity_mm, edge_mm)
            hu.index_copy_(0, inner, torch.lerp(some(hu, inner), brain.hu, share))  # where it covers all, exactly its
            _lay_over(changes, brain.changes, share, some(near, inner), count)
        return Painted(
            hu=spread(hu, near, count, AIR_HU),
            changes=changes,
            cavity_mm=spread(cavity_mm, near, count, 99.0),
            near=near,
            inner=inner,
            by_head=by_head,
            by_brain=by_brain,
        )

    def _brain(
        self,
        by_head: torch.Tensor,
        by_brain: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        cavity_mm: torch.Tensor,
        within: torch.Tensor,
        edge_mm: float,
        nodules: Sequence[Nodule] = (),
    ) -> Brain:
        """Of some points those that lie `within` the cavity, without what findings do there."""
        at = some(by_brain, within)
        return Brain(
            self.anatomy,
            some(by_head, within),
            template().sample("brain", at),
            _At(fields, within),
            edge_mm,
            at,
            some(cavity_mm, within),
            nodules,
        )

    @cached_property
    def _outline(self) -> Grid:
        """About the patient mm to the skin, on a coarse grid: what is finer than the grid, as ears are, is widened."""
        coarse, fields = self.coarse, dict(zip(self.bend.names, self.bend.values[..., 6:].movedim(-1, 0), strict=True))
        channels = _head_channels(coarse.template_mm) | {"face_mm": template().near_face_mm(coarse.template_mm)}
        flat = {name: values.reshape(-1) for name, values in fields.items()}
        skin_mm = Skull(self.anatomy, coarse.template_mm, channels, flat, 0.0).skin_mm
        within = Grid(skin_mm.reshape(*COARSE.shape, 1).numpy(), *COARSE.corners)
        around = bending.points_of(AROUND)
        further_mm = within.sample(around)[0]
        at, beyond_mm = COARSE.beyond_mm(around)
        further_mm.index_add_(0, at, length(beyond_mm))
        return Grid(further_mm.reshape(*AROUND.shape, 1).numpy(), *AROUND.corners)

    def _near(self, head_mm: torch.Tensor, edge_mm: float) -> torch.Tensor:
        """Indices of the points that may lie within the head: all that do, and some around it."""
        return where(self._outline.sample(head_mm)[0] < OUTLINE_MM + edge_mm / 2)


def _head_channels(template_mm: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the template's head at points (n, 3). Distances grow on beyond its box, but for the neck, which goes on."""
    channels = template().sample("head", template_mm)
    at, beyond_mm = HEAD_BOX.beyond_mm(template_mm)
    for name in ("cavity_mm", "face_mm"):
        channels[name].index_add_(0, at, length(beyond_mm))
    return channels


@cache
def _volume_points() -> tuple[torch.Tensor, torch.Tensor]:
    """Head millimetres (n, 3) every `VOLUME_STEP_MM`, and the index (n,) of the coarse point nearest to each."""
    coarse = bending.COARSE
    fine = replace(coarse, step_mm=VOLUME_STEP_MM)
    points = torch.from_numpy(np.stack([axis.ravel() for axis in fine.grid()], axis=1))
    low = points.new_tensor((coarse.x[0], coarse.y[0], coarse.z[0]))
    last = points.new_tensor(coarse.shape[::-1]) - 1
    x, y, z = torch.minimum(torch.round((points - low) / coarse.step_mm), last).long().T
    return points, (z * coarse.shape[1] + y) * coarse.shape[2] + x


class _At(Mapping[str, torch.Tensor]):
    """The same values at some of their points; each is chosen when it is asked for."""

    def __init__(self, values: Mapping[str, torch.Tensor], chosen: torch.Tensor) -> None:
        self._values, self._chosen, self._known = values, chosen, dict[str, torch.Tensor]()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._known:
            self._known[name] = some(self._values[name], self._chosen)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _lay_over(
    changes: dict[str, Change], brain: Mapping[str, Change], share: torch.Tensor, inner: torch.Tensor, count: int
) -> None:
    """Lay what changed in the brain, at the `inner` of `count` points, by its share over what changed in the skull."""
    if changes:
        bare = spread(1 - share, inner, count, 1.0)
        for change in changes.values():
            change.share *= bare
            change.hu *= bare
    for name, change in brain.items():
        laid = Change(change.share * share, change.hu * share).spread(inner, count)
        if name in changes:
            laid = Change(torch.maximum(changes[name].share, laid.share), changes[name].hu + laid.hu)
        changes[name] = laid
