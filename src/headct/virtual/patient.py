"""A patient who does not exist: a seed, an anatomy, and findings, from which any grid can be painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch

from headct.scan import AIR_HU
from headct.virtual import bending
from headct.virtual.anatomy import Anatomy
from headct.virtual.bending import Bend, Coarse, ended
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.mixture import PREVALENCE, draw_findings
from headct.virtual.solids import vector
from headct.virtual.template import HEAD_BOX, template
from headct.virtual.tissue import Brain, Change, Nodule, Skull, inside, nodules_of


@dataclass(frozen=True)
class Painted:
    """What lies at points (n,).

    Attributes:
        hu: (n,) Hounsfield values.
        changes: What each finding changed, by name.
        template_mm: (n, 3) the template point that lies here: by the brain map within the cavity, else by the head's;
            no number far outside the head.
        cavity_mm: (n,) patient mm from the skull's inner surface, negative inside; 99 far outside the head.
    """

    hu: torch.Tensor
    changes: dict[str, Change]
    template_mm: torch.Tensor
    cavity_mm: torch.Tensor


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
        within = torch.nonzero((cavity_mm < 0) & (by_head[:, 2] > -66)).squeeze(1)
        brain = self._brain(by_head[within], by_brain[within], _at(fields, within), cavity_mm[within], VOLUME_STEP_MM)
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
        hu = head_mm.new_full((len(head_mm),), AIR_HU)
        painted = Painted(hu, {}, torch.full_like(head_mm, torch.nan), torch.full_like(hu, 99.0))
        near = self._near(head_mm)
        if not len(near):
            return painted
        by_head, by_brain, fields = self.bend.sample(head_mm[near])
        channels = _head_channels(by_head)
        cavity_mm = channels["cavity_mm"] / self.anatomy.mean_scale
        painted.cavity_mm[near], painted.template_mm[near] = cavity_mm, by_head
        outer = torch.nonzero(cavity_mm > -SEAM_MM - edge_mm).squeeze(1)
        skull = Skull(self.anatomy, by_head[outer], _at(channels, outer), _at(fields, outer), edge_mm)
        for finding in self.findings:
            finding.paint_bone(skull)
        if tissues:
            skull.changes["skull"] = Change(skull.bone_shell(), torch.zeros_like(skull.hu))
        hu[near[outer]] = skull.hu
        _add(painted.changes, skull.changes, near[outer], len(hu))
        inner = torch.nonzero(cavity_mm < edge_mm).squeeze(1)
        if len(inner):
            brain = self._brain(
                by_head[inner], by_brain[inner], _at(fields, inner), cavity_mm[inner], edge_mm, self.nodules
            )
            for finding in self.findings:
                finding.paint(brain)
            if tissues:
                brain.changes["ventricles"] = Change(brain.ventricle, torch.zeros_like(brain.hu))
                brain.changes["brain"] = Change(1 - brain.fluid, torch.zeros_like(brain.hu))
            where = near[inner]
            painted.template_mm[where] = by_brain[inner]
            share = inside(brain.cavity_mm, edge_mm)
            hu[where] = torch.lerp(hu[where], brain.hu, share)  # exactly the brain's where it covers all
            for change in painted.changes.values():  # of the skull, which the brain is laid over
                change.share[where] *= 1 - share
                change.hu[where] *= 1 - share
            changes = {name: Change(change.share * share, change.hu * share) for name, change in brain.changes.items()}
            _add(painted.changes, changes, where, len(hu))
        return painted

    def _brain(
        self,
        by_head: torch.Tensor,
        by_brain: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        cavity_mm: torch.Tensor,
        edge_mm: float,
        nodules: Sequence[Nodule] = (),
    ) -> Brain:
        """Points within the cavity, without what findings do there."""
        channels = template().sample("brain", by_brain)
        return Brain(self.anatomy, by_head, channels, fields, edge_mm, by_brain, cavity_mm, nodules)

    @cached_property
    def _swelling_mm(self) -> float:
        """Of the scalp where it is thickest."""
        return float(self.bend.values[..., 6 + self.bend.names.index("swelling")].max())

    def _near(self, head_mm: torch.Tensor) -> torch.Tensor:
        """Indices of the points that may lie within the head: a generous oval with a dome, ears and nose inside.

        It is wider by the thickest swelling of the scalp.
        """
        x, y, z = (head_mm * head_mm.new_tensor(self.anatomy.scale)).T
        more = self._swelling_mm * max(self.anatomy.scale)
        oval = (x / (110 + more)) ** 2 + ((y + 6) / (132 + more)) ** 2 < 1
        dome = (x / (104 + more)) ** 2 + ((y + 14) / (124 + more)) ** 2
        dome = dome + (torch.clamp(z, min=0) / (112 + more)) ** 2 < 1
        return torch.nonzero(oval & (dome | (z < 4))).squeeze(1)


def _head_channels(template_mm: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the template's head at points (n, 3). Distances grow on beyond its box, but for the neck, which goes on."""
    channels = template().sample("head", template_mm)
    low = template_mm.new_tensor((HEAD_BOX.x[0], HEAD_BOX.y[0], -torch.inf))
    high = template_mm.new_tensor((HEAD_BOX.x[1], HEAD_BOX.y[1], HEAD_BOX.z[1]))
    beyond = torch.nonzero(((template_mm < low) | (template_mm > high)).any(dim=1)).squeeze(1)
    if len(beyond):
        outside = template_mm[beyond]
        away_mm = torch.linalg.vector_norm(outside - torch.clamp(outside, low, high), dim=1)
        for name in ("cavity_mm", "face_mm"):
            channels[name][beyond] += away_mm
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


def _at(values: Mapping[str, torch.Tensor], where: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values at some of their points."""
    return {name: value[where] for name, value in values.items()}


def _add(changes: dict[str, Change], more: Mapping[str, Change], where: torch.Tensor, count: int) -> None:
    """Join changes at some of `count` points to those at all of them, in place."""
    for name, change in more.items():
        known = changes.setdefault(name, Change(change.hu.new_zeros(count), change.hu.new_zeros(count)))
        known.share[where] = torch.maximum(known.share[where], change.share)
        known.hu[where] += change.hu
