"""The anatomy of a head as closed formulas: what Hounsfield value lies at a point of it.

Head coordinates are millimetres, x to the right, y to anterior, z to superior, with the origin near the anterior
commissure. Solids are laid over each other from the outside inwards, each with an edge of `EDGE_MM`, which stands for
the width of the scanner's own blur and keeps the head band-limited: two grids that sample it agree after resampling.
Values are those of the literature: white matter 28, grey 38, cerebrospinal fluid 8, tables of the skull 1100.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from headct.virtual.solids import Points, Vector, capsule, ellipsoid, inside, paint, shared, united, vector

EDGE_MM = 1.2

SKIN_HU, SCALP_FAT_HU, MUSCLE_HU, CARTILAGE_HU = 42.0, -80.0, 52.0, 20.0
TABLE_HU, DIPLOE_HU, BASE_HU, TOOTH_HU, CORTEX_HU = 1150.0, 520.0, 780.0, 1900.0, 950.0
SINUS_HU, AIRWAY_HU, EYE_HU, LENS_HU, ORBIT_FAT_HU, NERVE_HU = -920.0, -980.0, 9.0, 78.0, -88.0, 35.0
DURA_HU, BLOOD_HU, OEDEMA_HU, CALCIFICATION_HU, PLEXUS_HU, PINEAL_HU = 48.0, 66.0, 20.0, 900.0, 95.0, 130.0

CALCIFICATION_MM: Vector = (40.0, -6.0, 34.0)
"""Centre of a dense nodule in the right frontal lobe; there is none on the left. It tells right from left."""
CALCIFICATION_RADIUS_MM = 4.5
NOSE_TIP_MM: Vector = (0.0, 103.0, -56.0)
VERTEX_MM: Vector = (0.0, -18.0, 85.0)
RIGHT_EAR_MM: Vector = (82.0, -20.0, -34.0)
FORAMEN_MAGNUM_MM: Vector = (0.0, -38.0, -60.0)

EYE_MUSCLES_MM: tuple[tuple[Vector, Vector], ...] = (
    ((20, 30, -26), (22, 62, -28)),
    ((26, 28, -26), (43, 62, -28)),
    ((22, 30, -22), (31, 60, -17)),
    ((22, 30, -31), (31, 60, -39)),
)
LATERAL_VENTRICLE_MM: tuple[tuple[Vector, Vector, float, float], ...] = (
    ((6.5, 28, 4), (8, 8, 16), 4.2, 4.2),  # frontal horn
    ((8, 8, 16), (13, -26, 19), 4.2, 5.0),  # body
    ((13, -26, 19), (25, -46, 8), 5.0, 6.2),  # atrium
    ((25, -46, 8), (24, -70, 3), 6.0, 2.6),  # occipital horn
    ((26, -44, 4), (32, -12, -17), 3.4, 2.0),  # temporal horn
)
"""Right side, from place to place with the radius at both ends."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What differs from head to head."""

    size: Vector = (1.0, 1.0, 1.0)  # head millimetres to patient millimetres, per axis
    turn_deg: Vector = (0.0, 0.0, 0.0)  # nod, roll and yaw: about x, y and z
    shift_mm: Vector = (0.0, 0.0, 0.0)
    skull_mm: float = 7.0  # thickness of the vault
    scalp_mm: float = 6.0
    subarachnoid_mm: float = 1.8  # fluid between skull and brain
    ventricles_mm: float = 0.0  # how much wider than the average
    sulci: float = 1.0  # how wide, 1 for the average
    grey_hu: float = 38.0
    white_hu: float = 28.0
    csf_hu: float = 8.0
    folding: Vector = (0.0, 0.0, 0.0)  # phases of the gyral pattern, radians
    pineal: bool = True  # calcified

    @classmethod
    def draw(cls, seed: int) -> Shape:
        """The shape that belongs to a seed; seed 0 is the average head, upright and centred."""
        if seed == 0:
            return cls()
        rng = np.random.default_rng([seed, 1])
        age = rng.uniform()
        return cls(
            size=vector(rng.normal(1.0, 0.025) * rng.normal(1.0, 0.02, 3)),
            turn_deg=vector(rng.normal(0.0, (5.0, 2.5, 4.0))),
            shift_mm=vector(rng.normal(0.0, (3.0, 5.0, 4.0))),
            skull_mm=float(rng.uniform(5.5, 8.5)),
            scalp_mm=float(rng.uniform(4.5, 7.5)),
            subarachnoid_mm=float(1.2 + 2.0 * age),
            ventricles_mm=float(rng.normal(3.0 * age - 1.0, 0.5)),
            sulci=float(0.6 + 0.9 * age),
            grey_hu=float(rng.uniform(36.5, 39.5)),
            white_hu=float(rng.uniform(26.5, 29.5)),
            csf_hu=float(rng.uniform(5.0, 10.0)),
            folding=vector(rng.uniform(0.0, 2 * np.pi, 3)),
            pineal=bool(rng.uniform() < 0.6),
        )


@dataclass(frozen=True, kw_only=True)
class Bleed:
    """Blood in or around the brain: `iph` within it, `sdh` between brain and skull."""

    kind: str
    side: int  # +1 right, -1 left
    centre_mm: Vector
    size_mm: float  # radius of an iph, thickness of an sdh
    phase: Vector

    @classmethod
    def draw(cls, kind: str, seed: int) -> Bleed:
        """The bleed of a seed, from its own stream: the same head exists without it."""
        if kind not in ("iph", "sdh"):
            raise ValueError(f'a bleed is "iph" or "sdh", got {kind!r}')
        rng = np.random.default_rng([seed, 2])
        side = 1 if rng.uniform() < 0.5 else -1
        centre = (side * rng.uniform(24, 34), rng.uniform(-20, 10), rng.uniform(4, 26))
        size = rng.uniform(14, 22) if kind == "iph" else rng.uniform(8, 16)
        phase = vector(rng.uniform(0, 2 * np.pi, 3))
        return cls(kind=kind, side=side, centre_mm=vector(centre), size_mm=float(size), phase=phase)


def cavity(at: Points) -> np.ndarray:
    """Distance (n,) to the inside of the skull: vault, middle and posterior fossae, canal at the foramen magnum."""
    vault = ellipsoid(at, (0, -16, 10), (65, 82, 63))
    vault = shared(vault, -17 - at.z + 0.06 * at.y, 14)
    middle = ellipsoid(at.folded(), (37, 2, -18), (25.5, 30, 23))
    posterior = ellipsoid(at, (0, -55, -24), (51, 40, 36))
    whole = united(united(vault, middle, 10), posterior, 8)
    return united(whole, capsule(at, (0, -36, -50), (0, -42, -200), 15, 9.5), 8)


def skull_thickness(at: Points, shape: Shape) -> np.ndarray:
    """Thickness of the bone (n,) in mm: thin at the temples, thick at forehead, occiput and base."""
    temple = inside(ellipsoid(at.folded(), (70, 0, -8), (26, 42, 34)), 20)
    occiput = inside(ellipsoid(at, (0, -100, -22), (24, 16, 16)), 16)
    forehead = inside(ellipsoid(at, (0, 75, 5), (26, 16, 30)), 16)
    base = inside(at.z + 42, 24)
    return shape.skull_mm * (1 - 0.45 * temple + 0.6 * occiput + 0.3 * forehead + 0.2 * base)


def outline(at: Points, vault_outer: np.ndarray, shape: Shape) -> np.ndarray:
    """Distance (n,) to the skin; `vault_outer` is the distance to the outside of the skull."""
    face = ellipsoid(at, (0, 28, -52), (66, 62, 62))
    jaw = ellipsoid(at, (0, 44, -104), (46, 44, 36))
    chin = ellipsoid(at, (0, 74, -118), (22, 14, 16))
    nose = capsule(at, (0, 86, -30), (0, 96, -58), 7, 11)
    neck = ellipsoid(at, (0, -26, -150), (60, 62, 170))
    skin = vault_outer - shape.scalp_mm
    for part, round_mm in ((face, 16), (jaw, 20), (chin, 12), (nose, 10), (neck, 22)):
        skin = united(skin, part, round_mm)
    pair = at.folded()
    ear = shared(ellipsoid(pair, (80, -26, -34), (11, 18, 30)), -ellipsoid(pair, (88, -14, -34), (8, 9, 17)), 3)
    return united(skin, ear, 4)


def _waves(at: Points, length_mm: float, phase: Vector) -> np.ndarray:
    """A gyroid (n,) of the given wave length: a smooth labyrinth between -1.5 and 1.5."""
    k = 2 * np.pi / length_mm
    x, y, z = (values * k + offset for values, offset in zip(at, phase, strict=True))
    return np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)


def soft_tissue(at: Points, depth_mm: np.ndarray) -> np.ndarray:
    """Skin, fat and muscle (n,) by depth below the skin."""
    hu = np.full_like(depth_mm, SCALP_FAT_HU)
    below = at.z < 10
    if below.any():
        low = at.at(below)
        muscle = 8 - depth_mm[below] - 3 * _waves(low, 34, (0.4, 1.1, 2.0))
        muscle = np.maximum(muscle, low.z + 26)
        temporal = ellipsoid(low.folded(), (69, 10, -12), (9, 32, 34))
        part = hu[below]
        paint(part, np.minimum(muscle, temporal), MUSCLE_HU, 4)
        hu[below] = part
    paint(hu, depth_mm - 2.4, SKIN_HU, EDGE_MM)
    return hu


def face(hu: np.ndarray, at: Points) -> None:
    """Bones, teeth, sinuses and airway below the vault, laid over soft tissue in place."""
    pair = at.folded()
    bone = united(ellipsoid(pair, (27, 52, -55), (17, 20, 21)), ellipsoid(at, (0, 52, -76), (27, 27, 7)), 6)
    zygoma = capsule(pair, (44, 62, -48), (66, 16, -44), 5.5, 3)
    arch = capsule(pair, (66, 16, -44), (66, -10, -40), 3, 4)
    ramus = capsule(pair, (54, 8, -52), (46, 22, -98), 5, 7)
    mandible = capsule(pair, (46, 22, -98), (8, 78, -112), 7, 8)
    nasal = capsule(at, (0, 78, -22), (0, 90, -36), 4.5, 3)
    for part in (zygoma, arch, nasal):
        bone = united(bone, part, 4)
    paint(hu, bone, CORTEX_HU, EDGE_MM)
    paint(hu, united(ramus, mandible, 6), CORTEX_HU, EDGE_MM)
    paint(hu, united(ramus, mandible, 6) + 3.2, 320, EDGE_MM)
    row = np.abs(ellipsoid(at, (0, 48, -88), (23, 27, 30)))
    teeth = np.maximum(np.maximum(row - 3.2, np.abs(at.z + 90) - 9), 40 - at.y)
    paint(hu, teeth, TOOTH_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (27, 50, -55), (14, 16, 17)), SINUS_HU, EDGE_MM)
    cavity_of_nose = ellipsoid(at, (0, 50, -56), (12, 34, 17))
    septum = np.abs(at.x) - 1.2
    turbinate = ellipsoid(pair, (7, 48, -60), (3, 22, 4))
    paint(hu, np.maximum(cavity_of_nose, -np.minimum(septum, turbinate)), AIRWAY_HU, EDGE_MM)
    pharynx = united(capsule(at, (0, 14, -60), (0, 4, -80), 9, 8), capsule(at, (0, 4, -80), (0, 6, -260), 8, 9), 6)
    paint(hu, pharynx, AIRWAY_HU, EDGE_MM)


def spine(hu: np.ndarray, at: Points) -> None:
    """Cervical vertebrae around the canal, with discs between them, in place."""
    body = ellipsoid(at, (0, -22, -150), (13, 9, 400))
    lateral = ellipsoid(at.folded(), (20, -32, -150), (10, 10, 400))
    arch = np.maximum(np.abs(ellipsoid(at, (0, -42, -150), (16, 20, 600))) - 3, at.y + 40)
    process = ellipsoid(at, (0, -70, -150), (4, 14, 400))
    bone = united(united(body, lateral, 5), united(arch, process, 3), 3)
    disc = np.abs(np.mod(at.z + 76, 19) - 9.5) - 7.6  # 19 mm from one to the next
    bone = np.maximum(np.maximum(bone, disc), at.z + 70)
    paint(hu, bone, CORTEX_HU, EDGE_MM)
    paint(hu, bone + 3, 280, EDGE_MM)


def vault(hu: np.ndarray, at: Points, cavity_mm: np.ndarray, thickness_mm: np.ndarray) -> None:
    """The skull around the cavity: two tables with diploe between, a denser base, in place."""
    depth = cavity_mm / thickness_mm  # 0 at the inner table, 1 at the outer
    base = inside(at.z + 30, 16)
    middle = np.abs(depth - 0.5) * thickness_mm
    marrow = DIPLOE_HU + 45 * _waves(at, 7, (0.0, 1.0, 2.0))
    bone = np.full_like(cavity_mm, TABLE_HU)
    paint(bone, middle - thickness_mm * 0.2, marrow, EDGE_MM)
    bone += base * (BASE_HU - bone)
    shell = np.maximum(-cavity_mm, cavity_mm - thickness_mm)
    canal = at.z + 72  # below it the canal lies between vertebrae
    paint(hu, np.maximum(shell, -canal), bone, EDGE_MM)


def inner_table(hu: np.ndarray, at: Points, cavity_mm: np.ndarray) -> None:
    """The innermost bone, which closes the cavity everywhere, in place."""
    paint(hu, np.maximum(-cavity_mm, cavity_mm - 2.5), TABLE_HU + inside(at.z + 30, 16) * (BASE_HU - TABLE_HU), EDGE_MM)


def base(hu: np.ndarray, at: Points) -> None:
    """Petrous bones, clivus, sphenoid and mastoids with their air, in place."""
    pair = at.folded()
    petrous = capsule(pair, (56, -34, -34), (14, -14, -36), 12, 7)
    clivus = capsule(at, (0, -6, -28), (0, -24, -56), 8, 6)
    sphenoid = ellipsoid(at, (0, 14, -30), (21, 20, 14))
    mastoid = ellipsoid(pair, (57, -36, -46), (13, 15, 22))
    dorsum = capsule(at, (-7, -6, -20), (7, -6, -20), 2.5)
    bone = petrous
    for part, round_mm in ((clivus, 6), (sphenoid, 6), (mastoid, 6), (dorsum, 3)):
        bone = united(bone, part, round_mm)
    paint(hu, bone, BASE_HU, EDGE_MM)
    paint(hu, ellipsoid(at, (0, 18, -33), (14, 13, 9)), SINUS_HU, EDGE_MM)
    cells = np.maximum(ellipsoid(pair, (58, -36, -48), (9, 11, 17)), 2.2 * _waves(at, 6.5, (1.0, 0.2, 0.7)))
    paint(hu, cells, -700, EDGE_MM)
    canal = capsule(pair, (84, -22, -38), (54, -24, -38), 3.2)
    paint(hu, canal, SINUS_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (36, -24, -36), (5, 3, 4)), 1700, EDGE_MM)  # the labyrinth, densest bone of the body
    paint(hu, ellipsoid(at, (0, 50, -28), (12, 26, 14)), BASE_HU, EDGE_MM)
    walls = 1.2 - 2 * np.abs(_waves(at, 15, (0.5, 0.0, 1.0)))
    paint(hu, np.maximum(ellipsoid(at, (0, 50, -28), (10, 24, 12)), walls), SINUS_HU, EDGE_MM)


def orbits(hu: np.ndarray, at: Points) -> None:
    """Two orbits with eye, lens, nerve and muscles, in place."""
    pair = at.folded()
    cone = united(ellipsoid(pair, (31, 58, -28), (19, 20, 17)), ellipsoid(pair, (24, 38, -27), (11, 22, 10)), 6)
    opening = at.y - 66
    rim = np.maximum(cone - 3, opening)
    paint(hu, rim, CORTEX_HU, EDGE_MM)
    paint(hu, np.maximum(cone, opening - 4), ORBIT_FAT_HU, EDGE_MM)
    for start, end in EYE_MUSCLES_MM:
        paint(hu, capsule(pair, start, end, 2.1), MUSCLE_HU, EDGE_MM)
    paint(hu, capsule(pair, (18, 26, -25), (30, 54, -28), 2.2), NERVE_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (31, 65, -28), (12.2, 12.2, 12.2)), 45, EDGE_MM)
    paint(hu, ellipsoid(pair, (31, 65, -28), (10.8, 10.8, 10.8)), EYE_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (31, 73, -28), (4.6, 2.2, 4.6)), LENS_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (14, 74, -6), (13, 4.5, 8)), SINUS_HU, EDGE_MM)  # frontal sinus


def ventricles(at: Points, wider_mm: float) -> np.ndarray:
    """Distance (n,) to the ventricles."""
    pair = at.folded()
    lateral = capsule(pair, *LATERAL_VENTRICLE_MM[0])
    for part in LATERAL_VENTRICLE_MM[1:]:
        lateral = united(lateral, capsule(pair, *part), 4)
    septum = 1.2 - pair.x
    lateral = shared(lateral, septum, 2) - wider_mm
    third = ellipsoid(at, (0, -11, -2), (2.2, 15, 12)) - 0.4 * wider_mm
    fourth = ellipsoid(at, (0, -47, -32), (8, 5, 10)) - 0.4 * wider_mm
    return np.minimum(np.minimum(lateral, third), fourth)


def cisterns(at: Points) -> np.ndarray:
    """Distance (n,) to the wide spaces around the brain stem and to the Sylvian fissures."""
    pair = at.folded()
    spaces = ellipsoid(at, (0, 4, -15), (13, 10, 7))
    for part in (
        ellipsoid(at, (0, -13, -32), (14, 5, 15)),
        ellipsoid(at, (0, -43, -5), (13, 4, 6)),
        ellipsoid(at, (0, -80, -50), (10, 9, 8)),
        capsule(pair, (14, 4, -13), (40, 8, -10), 2.4, 2.0),
        capsule(pair, (40, 18, -6), (44, -30, 12), 2.6, 1.6),
        capsule(pair, (44, 4, 2), (64, -2, -2), 1.8, 2.4),
    ):
        spaces = np.minimum(spaces, part)
    return spaces


def _deep_grey(at: Points) -> np.ndarray:
    pair = at.folded()
    nuclei = ellipsoid(pair, (11, -19, 6), (8, 14, 9))
    for centre, radii in (((13, 17, 5), (5, 10, 8)), ((14, 2, 20), (3, 16, 3)), ((25, 2, 1), (6, 17, 10))):
        nuclei = np.minimum(nuclei, ellipsoid(pair, centre, radii))
    return nuclei


def cerebrum(at: Points, depth_mm: np.ndarray, shape: Shape) -> np.ndarray:
    """Cortex, white matter, nuclei and fluid of the sulci (n,), by depth below the surface of the brain."""
    bent = Points(at.x + 3 * np.sin(at.y * 0.11), at.y, at.z + 3 * np.sin(at.x * 0.09))
    folds = np.abs(_waves(bent, 31, shape.folding)) * 6.5  # about mm from the middle of a sulcus
    deep = np.clip(depth_mm * (1 / 22), 0, 1)
    sulcus = folds - 1.25 * shape.sulci * (1 - 1.6 * deep)
    ribbon = np.minimum(depth_mm - 3, folds - 4.0 + 13 * np.maximum(deep - 0.62, 0))
    hu = np.full_like(depth_mm, shape.white_hu)
    paint(hu, ribbon, shape.grey_hu, 2)
    paint(hu, _deep_grey(at), shape.grey_hu - 1, 2)
    aside = np.abs(at.x)
    paint(hu, aside - 4.5 + 4 * np.maximum(0, 26 - at.z), shape.grey_hu, 2)
    fissure = np.maximum(aside - 1.6 * shape.sulci, 20 - at.z - 0.004 * (at.y + 10) ** 2)
    paint(hu, np.minimum(sulcus, fissure), shape.csf_hu, 2)
    return hu


def cerebellum(hu: np.ndarray, at: Points, shape: Shape) -> None:
    """Cerebellum with folia and brain stem below the tentorium, in place."""
    tent = -4 - 0.012 * at.x**2 - 0.25 * np.abs(at.y + 46)
    below = at.z - tent
    behind = at.y + 26 - 0.3 * np.abs(at.x)
    fossa = np.maximum(below, behind)
    leaves = np.sin((at.z - 0.35 * at.y) * (2 * np.pi / 5.5)) * 1.5
    matter = np.full_like(hu, shape.grey_hu)
    core = ellipsoid(at.folded(), (20, -56, -32), (17, 15, 9)) + leaves
    paint(matter, core, shape.white_hu, 2)
    paint(matter, 1.15 - leaves, shape.grey_hu - 7, 1.5)
    paint(hu, fossa, matter, EDGE_MM)
    paint(hu, np.maximum(np.abs(below) - 1.0, behind), DURA_HU, EDGE_MM)
    stem = united(ellipsoid(at, (0, -27, -30), (15, 12, 16)), capsule(at, (0, -30, -6), (0, -38, -62), 11, 7.5), 6)
    paint(hu, stem - 1.6, shape.csf_hu, EDGE_MM)
    paint(hu, stem, shape.white_hu + 2, EDGE_MM)


def _pushed(at: Points, bleed: Bleed) -> Points:
    """Where the brain at each point lies without the bleed: the midline gives way by a third of the bleed's size."""
    near = np.exp(-((at.x / 42) ** 2) - ((at.y + 10) / 48) ** 2 - ((at.z - 10) / 40) ** 2)
    return Points(at.x + (bleed.side * bleed.size_mm / 3) * near, at.y, at.z)


def _crescent(at: Points, bleed: Bleed) -> np.ndarray:
    """How much of an sdh's full thickness (n,) lies under the skull here, 0 to 1."""
    near = np.exp(-(((at.y + 8) / 52) ** 2) - ((at.z - 24) / 36) ** 2)
    return near * np.clip((bleed.side * at.x - 8) * (1 / 18), 0, 1)


def _haematoma(hu: np.ndarray, at: Points, bleed: Bleed) -> None:
    """Blood within the brain, with oedema around it, in place."""
    r = bleed.size_mm
    lobes = (0.14 * r) * _waves(at, 2.2 * r, bleed.phase)
    distance = ellipsoid(at, bleed.centre_mm, (0.9 * r, 1.25 * r, r)) + lobes
    paint(hu, distance - 4, OEDEMA_HU, 4)
    paint(hu, distance, BLOOD_HU, EDGE_MM)


def _midline(hu: np.ndarray, at: Points, shape: Shape) -> None:
    """Cisterns, ventricles, falx, plexus and pineal gland, in place."""
    paint(hu, cisterns(at), shape.csf_hu, EDGE_MM)
    paint(hu, ventricles(at, shape.ventricles_mm), shape.csf_hu, EDGE_MM)
    sickle = np.maximum(np.abs(at.x) - 0.9, 24 - at.z - 0.005 * (at.y + 10) ** 2)
    paint(hu, np.maximum(sickle, -at.z - 2), DURA_HU, EDGE_MM)
    paint(hu, ellipsoid(at.folded(), (22, -42, 9), (2.6, 3.6, 2.6)), PLEXUS_HU, EDGE_MM)
    if shape.pineal:
        paint(hu, ellipsoid(at, (0, -32, 1), (2.6, 3.0, 2.6)), PINEAL_HU, EDGE_MM)


def _cord(hu: np.ndarray, at: Points, shape: Shape) -> None:
    """Spinal cord in its fluid, in place."""
    cord = capsule(at, (0, -38, -58), (0, -42, -200), 7.5, 5.5)
    paint(hu, np.maximum(cord - 3, at.z + 58), shape.csf_hu, EDGE_MM)
    paint(hu, np.maximum(cord, at.z + 56), shape.white_hu, EDGE_MM)


def brain(at: Points, cavity_mm: np.ndarray, shape: Shape, bleed: Bleed | None) -> np.ndarray:
    """Everything inside the skull (n,)."""
    depth, tissue = -cavity_mm - shape.subarachnoid_mm, at
    if bleed is not None:
        tissue = _pushed(at, bleed)
    if bleed is not None and bleed.kind == "sdh":
        crescent = _crescent(at, bleed)
        depth = depth - bleed.size_mm * crescent
    hu = cerebrum(tissue, depth, shape)
    _lay(hu, tissue, at.z < 4, partial(cerebellum, shape=shape))
    paint(hu, depth, shape.csf_hu, EDGE_MM)
    _lay(hu, tissue, np.abs(at.x) < 60, partial(_midline, shape=shape))
    _lay(hu, at, at.z < -54, partial(_cord, shape=shape))
    if bleed is not None and bleed.kind == "iph":
        _haematoma(hu, at, bleed)
    if bleed is not None and bleed.kind == "sdh":
        paint(hu, -cavity_mm - bleed.size_mm * crescent + 3 * (1 - crescent), BLOOD_HU, EDGE_MM)
    paint(hu, ellipsoid(at, CALCIFICATION_MM, (CALCIFICATION_RADIUS_MM,) * 3), CALCIFICATION_HU, EDGE_MM)
    return hu


def _lay(hu: np.ndarray, at: Points, where: np.ndarray, solid: Callable[[np.ndarray, Points], None]) -> None:
    """Lay a solid over the points that a mask chooses, in place."""
    if where.any():
        part = hu[where]
        solid(part, at.at(where))
        hu[where] = part


def lay_head(hu: np.ndarray, at: Points, shape: Shape, bleed: Bleed | None) -> None:
    """Lay a head over what surrounds it, in place."""
    cavity_mm = cavity(at)
    thickness = skull_thickness(at, shape)
    vault_outer = np.maximum(cavity_mm - thickness, -64 - at.z)
    skin = outline(at, vault_outer, shape)
    near = skin < EDGE_MM
    if not near.any():
        return
    part, at, cavity_mm, thickness, skin = hu[near], at.at(near), cavity_mm[near], thickness[near], skin[near]
    paint(part, skin, soft_tissue(at, -skin), EDGE_MM)
    _lay(part, at, at.z < -6, face)
    _lay(part, at, at.z < -66, spine)
    bony = (cavity_mm < thickness + EDGE_MM) & (cavity_mm > -EDGE_MM)
    _lay(part, at, bony, partial(vault, cavity_mm=cavity_mm[bony], thickness_mm=thickness[bony]))
    _lay(part, at, at.z < 0, base)
    _lay(part, at, (at.z < 8) & (at.y > 8), orbits)
    closed = bony & (at.z > FORAMEN_MAGNUM_MM[2])  # no sinus or orbit opens into the cavity
    _lay(part, at, closed, partial(inner_table, cavity_mm=cavity_mm[closed]))
    within = cavity_mm < EDGE_MM
    if within.any():
        matter = brain(at.at(within), cavity_mm[within], shape, bleed)
        inner = part[within]
        paint(inner, cavity_mm[within], matter, EDGE_MM)
        part[within] = inner
    hu[near] = part
