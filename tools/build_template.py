"""Build `src/headct/virtual/template.npz`, the average head from which virtual patients are made.

The brain comes from the ICBM-152 2009a symmetric maps (T1, grey and white matter at 1 mm) that the nilearn package
carries; their copyright notice is in NOTICE. Skull, base, face and everything else around the brain is the geometry
of `headct.virtual.head`. Needs `pip install nilearn`; takes a minute:

    python tools/build_template.py
"""

from __future__ import annotations

from importlib.resources import files

import nibabel as nib
import numpy as np
from scipy import ndimage

from headct.virtual import head, template
from headct.virtual.head import EDGE_MM
from headct.virtual.solids import Points, capsule, ellipsoid, paint, shared, united
from headct.virtual.template import (
    BRAIN_BOX,
    HEAD_BOX,
    ICBM_PER_HEAD,
    coded,
)

MAPS = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"

# Boxes (x, y, z from and to, ICBM mm) in which dark tissue is ventricle, and those in which it is not.
VENTRICLE_BOXES = (
    ((-30, 30), (-30, 45), (8, 40)),  # bodies and frontal horns
    ((-40, -6), (-78, -28), (-8, 32)),  # left atrium and occipital horn
    ((6, 40), (-78, -28), (-8, 32)),
    ((-5, 5), (-34, 22), (-14, 14)),  # third
    ((-9, 9), (-60, -34), (-52, -15)),  # fourth
    ((-44, -24), (-44, 2), (-28, 2)),  # temporal horns
    ((24, 44), (-44, 2), (-28, 2)),
)
CISTERN_BOXES = (
    ((-13.5, 13.5), (-200, -28), (-14, 6)),  # quadrigeminal cistern
    ((-4, 4), (8, 200), (22, 200)),  # fissure above and before the callosum
    ((-20, 20), (31, 200), (8, 200)),
    ((-4, 4), (-200, 200), (28, 200)),
)

ARTERIES = (
    # start, end (ICBM mm, right side), radii mm
    ((13, 2, -30), (12, 6, -18), 2.0, 1.8),  # carotid
    ((12, 6, -18), (26, 6, -17), 1.5, 1.3),  # M1
    ((26, 6, -17), (40, 4, -14), 1.3, 1.2),
    ((40, 4, -14), (42, -12, 4), 1.1, 0.8),  # M2 in the Sylvian fissure
    ((40, 4, -14), (44, 14, 2), 1.0, 0.8),
    ((12, 6, -18), (2.5, 14, -15), 1.2, 1.1),  # A1
    ((2.5, 14, -15), (2.0, 30, 0), 1.1, 1.0),  # A2
    ((2.0, 30, 0), (2.0, 38, 16), 1.0, 0.8),
    ((0, -14, -34), (0, -12, -17), 1.7, 1.6),  # basilar
    ((0, -12, -17), (14, -16, -14), 1.2, 1.0),  # P1
    ((14, -16, -14), (20, -34, -8), 1.0, 0.8),
    ((4, -24, -58), (0, -14, -34), 1.5, 1.7),  # vertebral
)


def main() -> None:
    """Write the template."""
    maps = {name: _icbm(name) for name in ("t1", "gm", "wm")}
    hull_mm, brain = _hull(maps["t1"])
    channels = {**_brain(maps, hull_mm, brain), **_head(hull_mm)}
    halves = {name: coded(name, _right_half(values)) for name, values in channels.items()}
    np.savez_compressed(template.TEMPLATE_FILE, **halves)


def _icbm(name: str) -> np.ndarray:
    """A map (z, y, x) on `BRAIN_BOX`, 0 to 1, its halves averaged so that it is exactly symmetric."""
    image = nib.load(str(files("nilearn.datasets") / "data" / MAPS.format(name)))
    values = np.asarray(image.dataobj, dtype=np.float32) / 255
    inverse = np.linalg.inv(image.affine)
    at = np.stack([axis.ravel() for axis in BRAIN_BOX.grid()])
    index = inverse[:3, :3] @ at + inverse[:3, 3:]
    resampled = ndimage.map_coordinates(values, index, order=1, mode="constant").reshape(BRAIN_BOX.shape)
    return (resampled + resampled[..., ::-1]) / 2


def _ball(radius: float) -> np.ndarray:
    reach = int(radius)
    z, y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    return x * x + y * y + z * z <= radius * radius


def _signed(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels to the edge of a mask, negative inside."""
    return np.where(
        mask, 0.5 - ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask) - 0.5
    ).astype(np.float32)


def _closed(mask: np.ndarray, radius_mm: float) -> np.ndarray:
    """Closing by a ball, through distances: quicker than a large element."""
    grown = ndimage.distance_transform_edt(~mask) <= radius_mm
    return ndimage.distance_transform_edt(grown) > radius_mm


def _hull(t1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to the cavity of the skull, and the brain's mask, both on `BRAIN_BOX`."""
    mask = ndimage.binary_fill_holes(t1 > 0.15 * t1.max())
    labels, count = ndimage.label(mask)
    brain = labels == 1 + np.argmax(ndimage.sum_labels(mask, labels, range(1, count + 1)))
    x, y, z = BRAIN_BOX.grid()
    padded = np.pad(brain, 32)
    inner = (slice(32, -32),) * 3
    hull = _closed(padded, 5)[inner]
    hull |= _closed(padded, 14)[inner] & (z > -4)
    hull |= _closed(padded, 30)[inner] & (z > 48)
    at = Points(x, y, z)
    for centre, radii in (((0, -4, -14), (15, 13, 10)), ((0, -14, -24), (12, 8, 14)), ((0, -38, -60), (15, 13, 24))):
        hull |= ellipsoid(at, centre, radii) < 0
    smooth = ndimage.gaussian_filter(_signed(hull), 1.5)
    return smooth, brain


def _inside(at: tuple[np.ndarray, ...], box: tuple[tuple[float, float], ...]) -> np.ndarray:
    within = np.ones(at[0].shape, dtype=bool)
    for axis, (low, high) in zip(at, box, strict=True):
        within &= (axis > low) & (axis < high)
    return within


def _ventricles(maps: dict[str, np.ndarray], hull_mm: np.ndarray) -> np.ndarray:
    """Signed distance to the ventricles."""
    grid = BRAIN_BOX.grid()
    allowed = np.logical_or.reduce([_inside(grid, box) for box in VENTRICLE_BOXES])
    for box in CISTERN_BOXES:
        allowed &= ~_inside(grid, box)
    dark = (maps["t1"] < 0.52) & (maps["gm"] + maps["wm"] < 0.75) & (hull_mm < -14) & allowed
    labels, count = ndimage.label(dark)
    sizes = ndimage.sum_labels(dark, labels, range(1, count + 1))
    kept = np.isin(labels, 1 + np.flatnonzero(sizes > 1500))
    x, y, z = grid
    pair = Points(np.abs(x), y, z)
    horn = capsule(pair, (31, -40, -4), (34, -14, -20), 2.2, 1.6)  # averaged away in the maps
    aqueduct = capsule(Points(x, y, z), (0, -26, -4), (0, -38, -20), 1.2)
    return np.minimum(ndimage.gaussian_filter(_signed(kept), 0.7), np.minimum(horn, aqueduct)).astype(np.float32)


def _roof(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """About how high the tentorium lies."""
    return 2 - 0.0075 * x * x - 0.36 * np.maximum(0, -42 - y)


def _parts(maps: dict[str, np.ndarray], brain: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distances to cerebellum, brain stem and cerebrum, by watershed from markers on the tissue's gaps."""
    x, y, z = BRAIN_BOX.grid()
    at = Points(x, y, z)
    stem = united(capsule(at, (0, -28, -14), (0, -26, -34), 8, 9), capsule(at, (0, -34, -44), (0, -42, -62), 5, 4), 4)
    markers = np.zeros(brain.shape, dtype=np.int16)
    roof = _roof(x, y)
    markers[((z > roof + 5) | (y > -16)) & (z > -14) & brain] = 1
    markers[(z > roof + 5) & (y < -30) & brain] = 1
    markers[(np.abs(x) > 20) & (y > -16) & brain] = 1
    markers[(ellipsoid(at, (0, 46, -12), (30, 30, 20)) < 0) & brain] = 1
    cerebellum = np.minimum(
        ellipsoid(Points(np.abs(x), y, z), (24, -64, -42), (20, 18, 13)), ellipsoid(at, (0, -64, -30), (6, 12, 14))
    )
    markers[(cerebellum < 0) & (z < roof - 5)] = 2
    markers[stem < 0] = 3
    markers[~brain] = 4
    gaps = np.clip((1 - maps["gm"] - maps["wm"]) * 200, 0, 255).astype(np.uint8)
    regions = ndimage.watershed_ift(gaps, markers, structure=np.ones((3, 3, 3)))
    names = {1: "cerebrum", 2: "cerebellum", 3: "stem"}
    closed = {name: _closed(regions == number, 2) for number, name in names.items()}  # across the folia's clefts
    return {name: ndimage.gaussian_filter(_signed(mask), 0.8) for name, mask in closed.items()}


def _brain(maps: dict[str, np.ndarray], hull_mm: np.ndarray, brain: np.ndarray) -> dict[str, np.ndarray]:
    parts = _parts(maps, brain)
    fluid = np.clip(1 - maps["gm"] - maps["wm"], 0, 1) * (hull_mm < 0)
    ventricle_mm = _ventricles(maps, hull_mm)
    sulcal = ndimage.gaussian_filter(np.where(ventricle_mm < 3, 0, fluid), 0.5)
    ridge = ndimage.gaussian_filter(ndimage.maximum_filter(sulcal, size=11), 4)
    prominence = np.clip(sulcal / np.maximum(ridge, 0.08), 0, 1)
    x, y, z = BRAIN_BOX.grid()
    pair = Points(np.abs(x), y, z)
    arteries = np.min([capsule(pair, *tube) for tube in ARTERIES], axis=0)
    tent_mm = np.clip(parts["cerebellum"] - parts["cerebrum"], -30, 30)
    sheet = (np.abs(parts["cerebellum"]) < 4) & (np.abs(parts["cerebrum"]) < 4) & (y < -24) & (z > -52)
    sheet &= ((np.abs(x) > 4) | (y < -44)) & (np.abs(z - _roof(x, y)) < 11) & (parts["stem"] > 5)
    at_skull = np.abs(hull_mm + 2)
    sagittal = ellipsoid(Points(x, hull_mm + 3.5, 0 * z), (0, 0, 0), (4.0, 3.2, 1e6))
    sagittal = np.maximum(sagittal, -ellipsoid(Points(x, y, z), (0, 20, -40), (60, 80, 60)))
    sagittal = np.maximum(sagittal, -14 - z)
    transverse = np.where((np.abs(tent_mm) < 12) & (y < -34), np.maximum(np.abs(tent_mm) / 2 - 2.4, at_skull - 2.2), 9)
    transverse = np.maximum(transverse, np.maximum(-46 - z, y + 38))
    straight = capsule(Points(x, y, z), (0, -40, 2), (0, -88, -8), 1.6, 2.2)
    sinuses = np.minimum(np.minimum(sagittal, ndimage.gaussian_filter(transverse, 1.0)), straight)
    return {
        "grey": maps["gm"],
        "white": maps["wm"],
        "sulci": prominence,
        "arteries_mm": arteries,
        "sinuses_mm": sinuses,
        "ventricles_mm": ventricle_mm,
        "tent_mm": np.where(
            ndimage.gaussian_filter(sheet.astype(np.float32), 1) > 0.35, tent_mm, np.sign(tent_mm) * 30
        ),
        "cerebellum_mm": parts["cerebellum"],
        "stem_mm": parts["stem"],
    }


def _head(hull_mm: np.ndarray) -> dict[str, np.ndarray]:
    """What lies around the brain, on `HEAD_BOX`: distances in ICBM mm."""
    x, y, z = HEAD_BOX.grid()
    cavity = _cavity(hull_mm)
    s = ICBM_PER_HEAD
    at = Points(*(axis / s for axis in (x, y, z)))
    pair = at.folded()
    thickness = head.skull_thickness(at, head.Shape()) / head.Shape().skull_mm
    outer = np.maximum(cavity / s - 7.0 * thickness, -64 - at.z)
    skin = head.outline(at, np.full_like(outer, 60), head.Shape()) * s
    face_bone, marrow = _bones(at, pair)
    # the cavity's wall closes the base; above it the vault is laid from `cavity_mm` for each patient
    return {
        "cavity_mm": cavity,
        "thickness": thickness,
        "face_mm": skin,
        "bone_mm": face_bone * s,
        "marrow_mm": marrow * s,
        "air_mm": _air(at, pair) * s,
        "soft_hu": _soft(at, outer),
    }


def _cavity(hull_mm: np.ndarray) -> np.ndarray:
    """The hull's distance on `HEAD_BOX`, prolonged by the spinal canal."""
    z, y, x = (np.ravel(axis) for axis in HEAD_BOX.axes()[::-1])
    at = np.stack(np.meshgrid(z, y, x, indexing="ij")).reshape(3, -1)
    index = (at - np.array([[low] for low in (BRAIN_BOX.z[0], BRAIN_BOX.y[0], BRAIN_BOX.x[0])])) / BRAIN_BOX.step_mm
    inside = ndimage.map_coordinates(hull_mm, index, order=1, mode="nearest")
    beyond = np.linalg.norm(index - np.clip(index, 0, np.array(hull_mm.shape)[:, None] - 1), axis=0)
    hull = (inside + beyond * BRAIN_BOX.step_mm).reshape(HEAD_BOX.shape).astype(np.float32)
    gx, gy, gz = HEAD_BOX.grid()
    canal = capsule(Points(gx, gy, gz), (0, -40, -60), (0, -46, -220), 15, 10)
    return united(hull, canal, 6)


def _bones(at: Points, pair: Points) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the bones of base, face and neck, and to their marrow, head mm."""
    maxilla = united(ellipsoid(pair, (27, 52, -55), (17, 20, 21)), ellipsoid(at, (0, 52, -76), (27, 27, 7)), 6)
    bone = maxilla
    for part in (
        capsule(pair, (44, 62, -48), (66, 16, -44), 5.5, 3),
        capsule(pair, (66, 16, -44), (66, -10, -40), 3, 4),
        capsule(at, (0, 78, -22), (0, 90, -36), 4.5, 3),
    ):
        bone = united(bone, part, 4)
    jaw = united(capsule(pair, (54, 8, -52), (46, 22, -98), 5, 7), capsule(pair, (46, 22, -98), (8, 78, -112), 7, 8), 6)
    petrous = capsule(pair, (56, -34, -34), (16, -14, -36), 11, 6)
    base = petrous
    for part, round_mm in (
        (capsule(at, (0, -9, -36), (0, -24, -56), 6, 6), 5),  # clivus
        (ellipsoid(at, (0, 16, -38), (18, 17, 11)), 5),  # sphenoid body
        (ellipsoid(pair, (57, -36, -46), (13, 15, 22)), 6),  # mastoid
        (capsule(at, (-4, -6, -28), (4, -6, -28), 1.3), 2),  # dorsum sellae
        (capsule(pair, (8, 20, -23), (42, 16, -15), 2.0, 1.5), 3),  # lesser wing
        (capsule(pair, (46, 34, -34), (52, 18, -20), 5, 4), 4),  # greater wing
    ):
        base = united(base, part, round_mm)
    ethmoid = ellipsoid(at, (0, 50, -28), (12, 26, 14))
    cone = united(ellipsoid(pair, (31, 58, -28), (19, 20, 17)), ellipsoid(pair, (24, 38, -27), (11, 22, 10)), 6)
    rim = np.maximum(np.maximum(cone - 1.8, -cone), at.y - 62)
    teeth = np.maximum(
        np.maximum(np.abs(ellipsoid(at, (0, 48, -88), (23, 27, 30))) - 3.2, np.abs(at.z + 90) - 9), 40 - at.y
    )
    neck = _neck(at)
    whole = np.minimum.reduce([bone, jaw, base, ethmoid, rim, teeth, neck])
    marrow = np.minimum.reduce([jaw + 3.2, neck + 3, maxilla + 3.5, base + 4.5])
    return np.maximum(whole, -np.maximum(cone, at.y - 70) - 0.2), marrow


def _neck(at: Points) -> np.ndarray:
    """Cervical vertebrae with discs between, from the atlas downwards."""
    body = ellipsoid(at, (0, -22, -150), (13, 9, 400))
    lateral = ellipsoid(at.folded(), (20, -32, -150), (10, 10, 400))
    arch = np.maximum(np.abs(ellipsoid(at, (0, -42, -150), (16, 20, 600))) - 3, at.y + 40)
    process = ellipsoid(at, (0, -70, -150), (4, 14, 400))
    bone = united(united(body, lateral, 5), united(arch, process, 3), 3)
    disc = np.abs(np.mod(at.z + 76, 19) - 9.5) - 7.6
    return np.maximum(np.maximum(bone, disc), at.z + 70)


def _air(at: Points, pair: Points) -> np.ndarray:
    """Distance to air within the head: sinuses, nose, throat, mastoid cells, ear canals."""
    waves = head._waves
    walls = 1.2 - 2 * np.abs(waves(at, 15, (0.5, 0.0, 1.0)))
    ethmoid = np.maximum(ellipsoid(at, (0, 50, -28), (10, 24, 12)), walls)
    cells = np.maximum(ellipsoid(pair, (58, -36, -48), (9, 11, 17)), 2.2 * waves(at, 6.5, (1.0, 0.2, 0.7)))
    nose = np.maximum(
        ellipsoid(at, (0, 50, -56), (12, 34, 17)),
        -np.minimum(np.abs(at.x) - 1.2, ellipsoid(pair, (7, 48, -60), (3, 22, 4))),
    )
    throat = united(capsule(at, (0, 14, -60), (0, 4, -80), 9, 8), capsule(at, (0, 4, -80), (0, 6, -260), 8, 9), 6)
    frontal = np.maximum(ellipsoid(pair, (13, 75, -8), (12, 5.5, 11)), 1.0 - pair.x)
    return np.minimum.reduce([
        ellipsoid(pair, (27, 50, -55), (14, 16, 17)),  # maxillary
        np.maximum(ellipsoid(at, (0, 19, -39), (13, 12, 8)), 0.8 - np.abs(at.x - 2)),  # sphenoid
        ethmoid, cells, nose, throat, frontal,
        capsule(pair, (84, -22, -38), (54, -24, -38), 3.2),
    ])  # fmt: skip


def _soft(at: Points, outer_mm: np.ndarray) -> np.ndarray:
    """Hounsfield values of soft tissue between bone and skin: fat, muscles, eyes; the skin comes per patient."""
    pair = at.folded()
    hu = np.full_like(at.x, head.SCALP_FAT_HU)
    skin = head.outline(at, outer_mm, head.Shape())
    depth = -skin
    low = np.maximum(8 - depth, at.z + 26)
    temporal = shared(ellipsoid(pair, (66, 10, -12), (13, 34, 40)), -outer_mm - 0.5, 2)
    masseter = ellipsoid(pair, (58, 22, -76), (9, 17, 28))
    pterygoid = ellipsoid(pair, (40, 14, -62), (9, 14, 17))
    tongue = ellipsoid(at, (0, 42, -96), (21, 30, 16))
    nape = ellipsoid(pair, (22, -74, -92), (22, 26, 40))
    sternomastoid = capsule(pair, (56, -38, -60), (34, 0, -160), 9, 10)
    longus = ellipsoid(pair, (9, -8, -90), (8, 5, 40))
    planes = 1.1 - 5 * _fascia(at.x.shape)  # fat between the muscles
    deep = np.maximum(np.maximum(low, planes), 4 - depth)
    for solid in (deep, temporal, masseter, pterygoid, tongue, nape, sternomastoid, longus):
        paint(hu, solid, head.MUSCLE_HU, 3)
    galea = np.abs(outer_mm - 1.0) - 0.9
    paint(hu, galea, 20.0, EDGE_MM)
    cartilage = united(capsule(at, (0, 86, -30), (0, 96, -58), 3, 5), ellipsoid(pair, (80, -26, -34), (9, 16, 27)), 2)
    paint(hu, cartilage, head.CARTILAGE_HU, EDGE_MM)
    cone = united(ellipsoid(pair, (31, 58, -28), (19, 20, 17)), ellipsoid(pair, (24, 38, -27), (11, 22, 10)), 6)
    paint(hu, np.maximum(cone, at.y - 70), head.ORBIT_FAT_HU, EDGE_MM)
    lids = np.maximum(np.abs(at.y - 77) - 3, ellipsoid(pair, (31, 70, -28), (20, 20, 14)))
    paint(hu, lids, 40.0, EDGE_MM)
    for start, end in head.EYE_MUSCLES_MM:
        paint(hu, capsule(pair, start, end, 2.1), head.MUSCLE_HU, EDGE_MM)
    paint(hu, capsule(pair, (18, 26, -25), (30, 54, -28), 2.2), head.NERVE_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (31, 65, -28), (12.2,) * 3), 45, EDGE_MM)
    paint(hu, ellipsoid(pair, (31, 65, -28), (10.8,) * 3), head.EYE_HU, EDGE_MM)
    paint(hu, ellipsoid(pair, (31, 73, -28), (4.6, 2.2, 4.6)), head.LENS_HU, EDGE_MM)
    return hu


def _fascia(shape: tuple[int, ...]) -> np.ndarray:
    """How far from an irregular surface: where smooth noise changes its sign."""
    noise = np.random.default_rng(11).standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise + noise[..., ::-1], (7, 4, 4))
    return np.abs(smooth / smooth.std())


def _right_half(values: np.ndarray) -> np.ndarray:
    """The half with x >= 0: the template is symmetric, patients are not."""
    return values[..., values.shape[-1] // 2 :]


if __name__ == "__main__":
    main()
