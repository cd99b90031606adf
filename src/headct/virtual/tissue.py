"""From template channels to Hounsfield values: bone, scalp and face by the head map, brain and fluid by the brain map.

Everything here works on flat tensors of points (n,) and is closed in form; thickness and depth are patient
millimetres. Shares run from 0 to 1, and what is laid later covers what was laid before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from headct.scan import AIR_HU
from headct.virtual.anatomy import Anatomy
from headct.virtual.places import length, some, spread, where
from headct.virtual.solids import Vector
from headct.virtual.texture import tiled_noise

SINUS_HU, LABYRINTH_HU = -900.0, 1700.0
BASE_BELOW_MM = -69.0
"""Below this template height the cavity's wall is spine and ligament, not skull."""

MIDDLE_MM = (0.0, -18.0, 8.0)
"""The middle of the brain, from which its own sulci radiate, in template mm."""

SELLA_MM, SELLA_RADII_MM, GLAND_MM = (0.0, 1.2, -25.0), (26.0, 6.4, 6.0), 7.0
"""The pituitary fossa with the cavernous sinuses beside it, open above, and half the gland's breadth, template mm."""

SUTURE_MM, SUTURE_TEETH_MM, SUTURE_HU = 1.4, 7.0, 60.0
"""How wide a suture is, how large its teeth are, and the HU of the fibrous tissue in it."""

BREGMA_Y_MM, LAMBDA_MM = 16.0, (-88.0, 58.0)
"""Where the sutures meet, in template y, and in template (y, z)."""


def inside(distance_mm: torch.Tensor, edge_mm: float) -> torch.Tensor:
    """Share of a solid at each point: 1 inside, 0 outside, a smooth ramp of width `edge_mm` between."""
    share = (distance_mm * (1 / edge_mm)).neg_().add_(0.5).clamp_(0, 1)
    return (share * -2).add_(3).mul_(share * share)


def lay(hu: torch.Tensor, share: torch.Tensor, value_hu: float | torch.Tensor) -> None:
    """Cover `hu` (n,) with a material by its share, in place."""
    hu += share * (value_hu - hu)


def _lay_at(hu: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor, value_hu: float | torch.Tensor) -> None:
    """As `lay`, at the chosen points alone: `share`, and `value_hu` where it is no number, are theirs."""
    part = some(hu, chosen)
    lay(part, share, value_hu)
    hu.index_copy_(0, chosen, part)


def share_of_line(aside_mm: torch.Tensor, width_mm: float, edge_mm: float) -> torch.Tensor:
    """Share of a line at points (n,) beside its middle: one finer than a pixel takes a part of a pixel's width.

    Its integral across is the line's width, whatever the pixel.
    """
    wide = max(width_mm, edge_mm)
    return inside(torch.abs(aside_mm) - wide / 2, 0.6 * edge_mm) * (width_mm / wide)


@dataclass(frozen=True)
class Suture:
    """Of some points: where they lie to the surface in which a suture runs, and whether it runs there.

    Attributes:
        distance_mm: (n,) template mm to the surface, which goes on without end; its sign tells one bone from the other.
        in_bone: (n,) bool: here bone is parted along it.
        binds: (n,) 0 to 1: by how much dura is bound to bone along it. Below the pterion the sphenoid ridge goes on
            from the coronal suture and binds too.
    """

    distance_mm: torch.Tensor
    in_bone: torch.Tensor
    binds: torch.Tensor


def sutures(template_mm: torch.Tensor) -> Mapping[str, Suture]:
    """The sutures of the vault as points (n, 3) in template mm have them."""
    x, y, z = template_mm.T
    aside = torch.abs(x)
    high = z > -4
    behind = torch.clamp((-40 - y) / 8, 0, 1) * torch.clamp((z + 28) / 8, 0, 1)
    return {
        "coronal": Suture(y - BREGMA_Y_MM + 0.12 * aside, high, torch.ones_like(y)),
        "sagittal": Suture(x, high & (y < BREGMA_Y_MM) & (z > LAMBDA_MM[1]), torch.zeros_like(x)),
        "lambdoid": Suture((z - LAMBDA_MM[1] + 1.2 * aside) * 0.64, (y < -40) & (z > -28), behind),
    }


TUMOR_OEDEMA = "tumor-oedema"
"""Account of the oedema around a tumour, which is booked under `edema` as well."""

SEEPAGE = "seepage"
"""Account of fluid that hydrocephalus presses into white matter; it is no column, class or mask."""


@dataclass
class Change:
    """What a finding did to the points: how much of each it fills, and by how much it changed the value."""

    share: torch.Tensor
    hu: torch.Tensor

    def spread(self, chosen: torch.Tensor, count: int) -> Change:
        """The same at `count` points, of which these are some; nothing changed at the others."""
        return Change(spread(self.share, chosen, count, 0.0), spread(self.hu, chosen, count, 0.0))


@dataclass
class Canvas:
    """Points that are painted: findings cover `hu` through `change` and shift it through `alter`; both keep account.

    All accounts but `TUMOR_OEDEMA` add up to what became of the undiseased `hu`.
    """

    anatomy: Anatomy
    template_mm: torch.Tensor  # (n, 3) by the head map
    channels: Mapping[str, torch.Tensor]
    fields: Mapping[str, torch.Tensor]
    edge_mm: float
    changes: dict[str, Change] = field(init=False, default_factory=dict)
    covered: torch.Tensor | None = field(init=False, default=None)  # share (n,) of what `change` has laid, all together

    @cached_property
    def hu(self) -> torch.Tensor:
        """Hounsfield values (n,), undiseased when first asked for, from then on as painted."""
        raise NotImplementedError

    @cached_property
    def scale(self) -> float:
        """Template millimetres to a patient millimetre."""
        return self.anatomy.mean_scale

    def distance_mm(self, centre_mm: Sequence[float]) -> torch.Tensor:
        """Patient millimetres (n,) from a place given in template millimetres, in the undiseased head."""
        away = self.template_mm - self.template_mm.new_tensor(tuple(centre_mm))
        return length(away) / self.scale

    def change(self, name: str, share: torch.Tensor, value_hu: float) -> None:
        """Cover what is there with a finding's material by its share (n,), and keep account under `name`.

        What other findings did is gone where it is covered.
        """
        at = where(share > 0)
        self.change_at(name, at, some(share, at), value_hu)

    def change_at(self, name: str, at: torch.Tensor, share: torch.Tensor, value_hu: float | torch.Tensor) -> None:
        """As `change`, at the points of indices `at` (m,) alone: `share` (m,), and values that differ (m,), are theirs.

        Most findings fill few of the points, and what they look like is worked out for these.
        """
        account, before = self._account(name), some(self.hu, at)
        difference = share * (value_hu - before)
        self.hu.index_copy_(0, at, before + difference)
        account.share.index_copy_(0, at, torch.maximum(some(account.share, at), share))
        changed = some(account.hu, at) + difference
        self.covered = torch.zeros_like(self.hu) if self.covered is None else self.covered
        bare = some(self.covered, at)
        self.covered.index_copy_(0, at, bare + share * (1 - bare))
        for other, covered in self.changes.items():
            if other != name:
                lost = some(covered.hu, at)
                if other != TUMOR_OEDEMA:
                    changed += share * lost
                covered.hu.index_copy_(0, at, lost * (1 - share))
                covered.share.index_copy_(0, at, some(covered.share, at) * (1 - share))
        account.hu.index_copy_(0, at, changed)

    def alter(self, name: str, share: torch.Tensor, by_hu: float | torch.Tensor, *, also: str = "") -> None:
        """Shift the values of the head's own tissue by a share (n,) of `by_hu`; account under `name`, and `also`.

        What a finding's material covers keeps its value: blood in an infarct is as dense as elsewhere.
        """
        if self.covered is not None:
            share = share * (1 - self.covered)
        difference = share * by_hu
        self.hu += difference
        for told in (name, also) if also else (name,):
            account = self._account(told)
            account.share = torch.maximum(account.share, share)
            account.hu += difference

    def _account(self, name: str) -> Change:
        if name not in self.changes:
            self.changes[name] = Change(torch.zeros_like(self.hu), torch.zeros_like(self.hu))
        return self.changes[name]


@dataclass
class Skull(Canvas):
    """Points of the head outside the brain, and those near the inner table."""

    @cached_property
    def hu(self) -> torch.Tensor:
        return outside_hu(self)

    @cached_property
    def cavity_mm(self) -> torch.Tensor:
        """From the skull's inner surface, negative inside."""
        return self.channels["cavity_mm"] / self.anatomy.mean_scale

    @cached_property
    def thickness_mm(self) -> torch.Tensor:
        """Of the bone that closes the cavity here."""
        uneven = 1 + 0.09 * self.fields["thickness"]
        return self.anatomy.skull_mm * self.channels["thickness"] * uneven

    @cached_property
    def over_bone_mm(self) -> torch.Tensor:
        """From the outer surface of the vault, positive in the scalp; the neck has no vault."""
        below = (BASE_BELOW_MM - self.template_mm[:, 2]) / self.anatomy.mean_scale
        return torch.maximum(self.cavity_mm - self.thickness_mm, below)

    @cached_property
    def skin_mm(self) -> torch.Tensor:
        """From the skin, negative inside the head."""
        temple = torch.exp(-(((self.template_mm[:, 1] - 8) / 34) ** 2) - ((self.template_mm[:, 2] + 6) / 34) ** 2)
        temple *= torch.clamp((torch.abs(self.template_mm[:, 0]) - 45) / 12, 0, 1)
        scalp = self.anatomy.scalp_mm * (1 + 0.16 * self.fields["scalp"]) + self.anatomy.temporalis_mm * temple
        scalp = scalp + self.fields["swelling"]
        return _united(self.over_bone_mm - scalp, self.channels["face_mm"] / self.anatomy.mean_scale, 10.0)

    def bone_shell(self) -> torch.Tensor:
        """Share of the vault's bone."""
        inner = self.anatomy.inner_table_mm * 0.25
        shell = torch.maximum(-self.cavity_mm - inner, self.cavity_mm - self.thickness_mm)
        spine = (BASE_BELOW_MM - self.template_mm[:, 2]) / self.anatomy.mean_scale
        return inside(torch.maximum(shell, spine), self.edge_mm) * (1 - self.sella)

    @cached_property
    def sella(self) -> torch.Tensor:
        """Share of what lies in the middle of the base and is no bone; the dorsum stands behind it."""
        near = where(torch.abs(self.template_mm[:, 2] - SELLA_MM[2]) < SELLA_RADII_MM[2] + 2 * self.edge_mm)
        at = some(self.template_mm, near)
        distance_mm = (length((at - at.new_tensor(SELLA_MM)) / at.new_tensor(SELLA_RADII_MM)) - 1) * min(SELLA_RADII_MM)
        return spread(inside(distance_mm / self.anatomy.mean_scale, self.edge_mm), near, len(self.template_mm), 0.0)


def outside_hu(skull: Skull) -> torch.Tensor:
    """Hounsfield values (n,) of skin, fat, muscle, face, bone and air cells, over air."""
    anatomy, channels, edge = skull.anatomy, skull.channels, skull.edge_mm
    depth = -skull.skin_mm
    slope = (anatomy.muscle_hu - anatomy.fat_hu) / 132  # the template has fat at -80 and muscle at 52
    hu = torch.where(channels["soft_hu"] < 53, anatomy.fat_hu + (channels["soft_hu"] + 80) * slope, channels["soft_hu"])
    lay(hu, inside(depth - anatomy.skin_mm, max(edge, 1.2)), 55.0)
    _lay_vault(hu, skull)
    bone_mm = channels["bone_mm"] / anatomy.mean_scale
    lay(hu, inside(bone_mm, edge), anatomy.base_hu + 160 * torch.clamp(skull.fields["thickness"], -1.5, 1.5))
    lay(hu, inside(channels["marrow_mm"] / anatomy.mean_scale, 2.0), 0.45 * anatomy.base_hu)
    _lay_sella(hu, skull)
    _lay_labyrinths(hu, skull)
    air_mm = channels["air_mm"] / anatomy.mean_scale - anatomy.pneumatization_mm * (skull.template_mm[:, 1] > -10)
    lay(hu, inside(torch.maximum(air_mm, 1.2 - skull.cavity_mm), edge), SINUS_HU)
    _close_cavity(hu, skull)
    lay(hu, 1 - inside(skull.skin_mm, edge), AIR_HU)
    return hu


def _lay_sella(hu: torch.Tensor, skull: Skull) -> None:
    """The gland between the cavernous sinuses, in place."""
    anatomy, near = skull.anatomy, where(skull.sella > 0)
    gland = inside((torch.abs(some(skull.template_mm, near)[:, 0]) - GLAND_MM) / anatomy.mean_scale, 1.5)
    tissue = anatomy.blood_hu + gland * (anatomy.grey_hu + 4 - anatomy.blood_hu)
    _lay_at(hu, near, some(skull.sella, near), tissue)


def _lay_labyrinths(hu: torch.Tensor, skull: Skull) -> None:
    """The densest bone of the body, on either side, in place."""
    near = where(torch.abs(skull.template_mm[:, 2] + 39) < 4 * (1 + skull.edge_mm / 3))
    x, y, z = some(skull.template_mm, near).T
    ear = torch.sqrt(((torch.abs(x) - 39) / 5) ** 2 + ((y + 26) / 3) ** 2 + ((z + 39) / 4) ** 2)
    _lay_at(hu, near, inside((ear - 1) * 3, skull.edge_mm), LABYRINTH_HU)


def _lay_vault(hu: torch.Tensor, skull: Skull) -> None:
    """Two tables with diploe between, interrupted by sutures, in place; worked out only where bone is."""
    anatomy = skull.anatomy
    share = skull.bone_shell()
    bony = where(share > 0)
    at, thickness_mm = some(skull.template_mm, bony), some(skull.thickness_mm, bony)
    marrow = tiled_noise(at, 5.0, anatomy.shifts[0])
    bone = torch.full_like(marrow, anatomy.table_hu)
    from_middle = torch.abs(some(skull.cavity_mm, bony) - 0.5 * thickness_mm)
    lay(bone, inside(from_middle - 0.22 * thickness_mm, 1.2), anatomy.diploe_hu + 90 * marrow)
    base = torch.clamp((-26 - at[:, 2]) / 16, 0, 1)
    lay(bone, base, anatomy.base_hu)
    _lay_sutures(bone, at, skull)
    _lay_at(hu, bony, some(share, bony), bone)


def _lay_sutures(bone: torch.Tensor, at: torch.Tensor, skull: Skull) -> None:
    """Jagged lines of fibrous tissue through bone at points `at` (n, 3) in template mm, in place.

    They fuse with age: in old heads half of the seam is bone.
    """
    anatomy = skull.anatomy
    open_ = 1 - 0.5 * min(1.0, anatomy.age / 90)
    for suture in sutures(at).values():
        near = where(suture.in_bone & (torch.abs(suture.distance_mm) < 12))
        jagged = 2.0 * tiled_noise(some(at, near), SUTURE_TEETH_MM, anatomy.shifts[1], tile=1)
        aside_mm = (some(suture.distance_mm, near) + jagged) / anatomy.mean_scale
        _lay_at(bone, near, share_of_line(aside_mm, SUTURE_MM, skull.edge_mm) * open_, SUTURE_HU)


def _close_cavity(hu: torch.Tensor, skull: Skull) -> None:
    """The innermost bone, so that no sinus or orbit opens into the cavity, in place."""
    above = (BASE_BELOW_MM - skull.template_mm[:, 2]) / skull.anatomy.mean_scale
    sheet = torch.maximum(torch.maximum(-skull.cavity_mm, skull.cavity_mm - 1.6), above)
    lay(hu, inside(sheet, skull.edge_mm) * 0.9 * (1 - skull.sella), skull.anatomy.base_hu)


def _united(first: torch.Tensor, second: torch.Tensor, round_mm: float) -> torch.Tensor:
    """Distance to both solids together, the crease between them rounded over `round_mm`."""
    blend = torch.clamp(0.5 + (second - first) * (0.5 / round_mm), 0, 1)
    return second + (first - second) * blend - round_mm * blend * (1 - blend)


@dataclass
class Brain(Canvas):
    """Points within the cavity, and what lies there."""

    at: torch.Tensor  # (n, 3) template mm by the brain map
    cavity_mm: torch.Tensor  # (n,) patient mm, negative inside
    nodules: Sequence[Nodule] = ()  # with their places by the head map

    @cached_property
    def hu(self) -> torch.Tensor:
        return _brain_hu(self)

    @cached_property
    def depth_mm(self) -> torch.Tensor:
        """Below the skull's inner surface."""
        return -self.cavity_mm

    @cached_property
    def ventricle(self) -> torch.Tensor:
        """Share of ventricular fluid."""
        return inside(self.channels["ventricles_mm"] / self.scale, max(self.edge_mm, 1.2))

    @cached_property
    def own_sulci(self) -> torch.Tensor:
        """About how far in mm each point lies from the middle of a sulcus that this brain alone has.

        Sulci run inwards from the surface: the noise is that of the point's place on a sphere, bent a little.
        """
        from_middle = self.at - self.at.new_tensor(MIDDLE_MM)
        direction = from_middle / torch.clamp(length(from_middle), min=1)[:, None]
        noise = tiled_noise(direction * 68.0 + 0.12 * from_middle, 19.0, self.anatomy.shifts[2])
        return torch.abs(noise) * 6.5 + 8 * (1 - self.owned)

    @cached_property
    def owned(self) -> torch.Tensor:
        """Where the cortex follows this brain's own folds rather than the template's."""
        threshold = 1.2 - 2.4 * self.anatomy.own_gyri
        share = torch.clamp((self.fields["gyri"] - threshold) / 0.5 + 0.5, 0, 1)
        cortex = length(self.at - self.at.new_tensor(MIDDLE_MM)) > 44  # not the brain stem
        return share * cortex * (self.channels["cerebellum_mm"] > 2)

    @cached_property
    def sulcus(self) -> torch.Tensor:
        """Share of fluid in sulci, fissures and cisterns."""
        anatomy = self.anatomy
        uneven = 0.16 * self.fields["sulcal"]
        threshold = anatomy.sulcal_threshold + uneven + 0.35 * self.owned * (self.depth_mm < 22)
        threshold = torch.clamp(threshold, min=0.3)  # below it white matter would count as fluid
        average = torch.clamp((self.channels["sulci"] - threshold) / 0.3, 0, 1) * anatomy.sulcal_strength
        width = 0.35 + 1.5 * anatomy.atrophy
        shallow = torch.clamp((20 - self.depth_mm) / 8, 0, 1)
        own = inside(self.own_sulci - width, max(self.edge_mm, 1.6)) * shallow
        open_ = torch.clamp(1 - self.fields["closed"], 0, 1)
        return torch.maximum(average, own) * open_

    @cached_property
    def surface(self) -> torch.Tensor:
        """Share of the fluid between skull and brain."""
        gap_mm = (0.6 + self.anatomy.gap_mm * 0.55) * torch.clamp(1 - self.fields["closed"], 0.15, 1)
        return inside(self.depth_mm - gap_mm, max(self.edge_mm, 1.2))

    @cached_property
    def fluid(self) -> torch.Tensor:
        """Share of fluid of any kind."""
        return torch.maximum(torch.maximum(self.ventricle, self.sulcus), self.surface)

    @cached_property
    def grey(self) -> torch.Tensor:
        """Grey matter's part of the tissue, 0 (white) to 1."""
        grey, white = self.channels["grey"], self.channels["white"]
        share = (grey + 0.04) / (grey + white + 0.08)
        share = torch.clamp(0.5 + self.anatomy.contrast * (share - 0.5), 0, 1)
        ribbon = inside(self.own_sulci - 3.4, 2.0) * torch.clamp((24 - self.depth_mm) / 8, 0, 1)
        return torch.maximum(share, ribbon)


def _brain_hu(brain: Brain) -> torch.Tensor:
    """Hounsfield values (n,) of the undiseased brain, its fluid, vessels and membranes."""
    anatomy, channels, scale = brain.anatomy, brain.channels, brain.scale
    gap = anatomy.grey_hu - anatomy.white_hu
    hu = anatomy.white_hu + gap * brain.grey + 0.45 * brain.fields["texture"]
    hu += 0.6 * tiled_noise(brain.at, 6.0, anatomy.shifts[3])
    near = torch.exp(-torch.clamp(channels["ventricles_mm"], min=0) / (anatomy.leukoaraiosis_mm * scale))
    hu += anatomy.leukoaraiosis_hu * near * (1 - brain.grey)
    stem = inside(channels["stem_mm"] / scale, 2.0)
    lay(hu, 0.6 * stem, 0.5 * (anatomy.grey_hu + anatomy.white_hu))
    lay(hu, brain.fluid, anatomy.csf_hu)
    _lay_membranes(hu, brain)
    lay(hu, inside(channels["arteries_mm"] / scale, brain.edge_mm), anatomy.blood_hu)
    lay(hu, inside(channels["sinuses_mm"] / scale, brain.edge_mm), anatomy.blood_hu + 4)
    _lay_nodules(hu, brain)
    _lay_siphons(hu, brain)
    return hu


def _lay_membranes(hu: torch.Tensor, brain: Brain) -> None:
    """Dura on the inner table, falx and tentorium, in place."""
    x, y, z = brain.at.T
    edge = brain.edge_mm
    dura = brain.anatomy.dura_hu
    lay(hu, inside(brain.depth_mm - 0.5, edge) * 0.8, dura)
    rim = 26 - z - 0.0046 * (y + 11) ** 2  # free edge of the falx, above the callosum
    falx = torch.maximum(torch.abs(x) / brain.scale - 0.6, torch.maximum(rim, -6 - z))
    lay(hu, inside(falx, edge) * 0.85, dura)
    lay(hu, inside(torch.abs(brain.channels["tent_mm"]) / 2 - 0.6, edge) * 0.8, dura)


class Nodule(NamedTuple):
    """A calcified ball: its middle in template mm, its radius in mm of the patient, its HU."""

    centre_mm: Vector
    radius_mm: float
    hu: float


def nodules_of(anatomy: Anatomy) -> list[Nodule]:
    """What is calcified in the pineal gland, choroid plexus, pallidum and falx of this patient, by the brain map."""
    nodules = []
    if anatomy.pineal_hu:
        nodules.append(Nodule((0.0, -30.0, 2.0), 2.6, anatomy.pineal_hu))
    for side in (1, -1):
        if anatomy.plexus_hu:
            nodules.append(Nodule((side * 25.0, -44.0, 8.0), 3.0, anatomy.plexus_hu))
        if anatomy.pallidum_hu:
            nodules.append(Nodule((side * 19.0, -4.0, -1.0), 3.6, anatomy.pallidum_hu))
    for spot in range(anatomy.falx_spots):
        nodules.append(Nodule((0.0, 40.0 - 34.0 * spot, 58.0 - 3.0 * spot), 2.4, 320.0))
    return nodules


def _lay_nodules(hu: torch.Tensor, brain: Brain) -> None:
    """The brain's nodules, in place: as round in a brain that is pushed aside as in any other."""
    for nodule in brain.nodules:
        reach_mm = (nodule.radius_mm + brain.edge_mm / 2 + 3) * brain.scale  # 3: its grain, to four sigma
        near = where(torch.abs(brain.template_mm[:, 2] - nodule.centre_mm[2]) < reach_mm)
        for axis in (0, 1):  # one by one, as each leaves few for the next
            aside_mm = torch.abs(some(brain.template_mm[:, axis], near) - nodule.centre_mm[axis])
            near = some(near, where(aside_mm < reach_mm))
        at = some(brain.template_mm, near)
        distance = length(at - at.new_tensor(nodule.centre_mm)) / brain.scale - nodule.radius_mm
        grain = tiled_noise(at, 3.0, brain.anatomy.shifts[4])
        _lay_at(hu, near, inside(distance + 0.7 * grain, brain.edge_mm), nodule.hu)


def _lay_siphons(hu: torch.Tensor, brain: Brain) -> None:
    """Calcified walls of the carotid siphons, in place."""
    anatomy = brain.anatomy
    if anatomy.artery_calcium:
        x, y, z = brain.at.T
        wall = torch.abs(brain.channels["arteries_mm"]) - 0.5
        siphon = (z < -14) & (torch.abs(x) > 8) & (torch.abs(x) < 18) & (y > -4)
        near = where((wall < 2) & siphon)
        grain = tiled_noise(some(brain.at, near), 3.0, anatomy.shifts[4], tile=1)
        _lay_at(hu, near, inside(some(wall, near), brain.edge_mm) * (grain > 1 - anatomy.artery_calcium), 400.0)
