"""A patient who does not exist: a seed, an anatomy, and findings, from which any grid can be painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from headct.scan import AIR_HU
from headct.virtual import bending
from headct.virtual.anatomy import Anatomy
from headct.virtual.bending import Bend, Coarse
from headct.virtual.findings.finding import Finding
from headct.virtual.template import Template, template
from headct.virtual.tissue import Brain, Change, Skull, inside, lay, outside_hu

POINTS_AT_ONCE = 1 << 20
"""How many points are painted together; bounds the memory at about 400 MB."""


@dataclass(frozen=True)
class Painted:
    """Values at points (n,): Hounsfield values, and for each finding what it changed."""

    hu: torch.Tensor
    changes: dict[str, Change]


@dataclass(frozen=True)
class Patient:
    """One virtual patient. The same seed without a finding is that patient's twin."""

    seed: int
    anatomy: Anatomy
    findings: tuple[Finding, ...] = field(default=())

    def without(self, *names: str) -> Patient:
        """The twin who lacks some findings; all else is equal."""
        return replace(self, findings=tuple(item for item in self.findings if item.name not in names))

    @cached_property
    def template(self) -> Template:
        """The average head."""
        return template()

    @cached_property
    def coarse(self) -> Coarse:
        """This head without disease, on the coarse grid."""
        return bending.undiseased(self.anatomy, self.template)

    @cached_property
    def bend(self) -> Bend:
        """The maps from this head to the template, with what the findings push aside."""
        pushes = [finding.push(self.coarse) for finding in self.findings]
        fields = [finding.fields(self.coarse) for finding in self.findings]
        return bending.bent(self.anatomy, self.coarse, pushes, fields)

    def landmarks_mm(self, template_mm: np.ndarray) -> np.ndarray:
        """Where template points (n, 3) of the brain lie in this head, (n, 3) head millimetres."""
        return self.bend.head_of(template_mm)

    def paint(self, head_mm: torch.Tensor, edge_mm: float) -> Painted:
        """Values at points (n, 3) in head millimetres; edges are ramps of `edge_mm`, about the size of a pixel."""
        by_head, by_brain, fields = self.bend.sample(head_mm)
        near = self._near(by_head)
        hu = torch.full((len(head_mm),), AIR_HU, dtype=torch.float32)
        if not len(near):
            return Painted(hu, {})
        by_head, fields = by_head[near], {name: values[near] for name, values in fields.items()}
        skull = Skull(self.anatomy, by_head, self.template.sample("head", by_head), fields, edge_mm)
        for finding in self.findings:
            finding.paint_bone(skull)
        painted = {name: _spread(change, near, len(hu)) for name, change in skull.changes.items()}
        within = torch.nonzero(skull.cavity_mm < edge_mm).squeeze(1)
        if len(within):
            for name, change in self._paint_brain(skull, within, by_brain[near[within]]).items():
                spread = _spread(change, near[within], len(hu))
                painted[name] = spread.joined(painted[name]) if name in painted else spread
        hu[near] = skull.hu
        return Painted(hu, painted)

    def _near(self, by_head: torch.Tensor) -> torch.Tensor:
        """Indices of the points that may lie within the head."""
        x, y, z = by_head.T
        oval = (x / 106) ** 2 + ((y - 4) / 128) ** 2 < 1
        cap = (x / 96) ** 2 + ((y + 14) / 116) ** 2 + (torch.clamp(z, min=0) / 106) ** 2 < 1
        return torch.nonzero(oval & (cap | (z < 4))).squeeze(1)

    def _paint_brain(self, skull: Skull, within: torch.Tensor, at: torch.Tensor) -> dict[str, Change]:
        """Lay the brain with its findings into the skull's values, in place; gives what the findings changed there."""
        brain = Brain(
            self.anatomy,
            skull.template_mm[within],
            self.template.sample("brain", at),
            {name: values[within] for name, values in skull.fields.items()},
            skull.edge_mm,
            at,
            skull.cavity_mm[within],
        )
        for finding in self.findings:
            finding.paint(brain)
        share = inside(brain.cavity_mm, skull.edge_mm)
        values = skull.hu[within]
        lay(values, share, brain.hu)
        skull.hu[within] = values
        return {name: Change(change.share * share, change.hu * share) for name, change in brain.changes.items()}


def _spread(change: Change, where: torch.Tensor, count: int) -> Change:
    """A change at some points, as one at all points."""
    spread = [torch.zeros(count).index_copy_(0, where, part) for part in (change.share, change.hu)]
    return Change(*spread)


def named(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The names of findings, each once, in order."""
    return tuple(dict.fromkeys(finding.name for finding in findings))
