"""Whether fractures are seen where the skull is unfolded: its vault as one picture, read by a network told where.

    headct simulate --patients 700 --seed 77 --prevalence fracture=0.5 --masks --out often
    headct simulate --patients 330 --seed 78 --twin fracture --out twins
    python benchmarks/fractures.py often twins [--also COHORT] [--picture FILE.png]

In voxels of 2 mm a fracture is some hundred voxels in an array of a million, and a network of volumes learns it slowly
or not at all (`soundness.py`, `twins.py`). Seen from the middle of the head each direction meets the vault once: rays
are laid out on a disc of equal area (Lambert's azimuthal projection, the vertex in its middle), and what lies beneath
the outer table at `DEPTHS_MM` is the picture. Nothing above the bone is in it, so no swollen scalp. Of the base it
holds the rim: by kind, the share of fractures of which any pixel is in it is told.

A quarter of the patients of `often` is held out; whose label is empty is in neither part. Told are the AUROC on those
held out, on twins as in `twins.py` and by kind, and on cohorts of `--also`, by two scores: the mean of the `HIGHEST`
most suspicious pixels, and the area that the network draws. Intervals are 95 % by bootstrap over patients. `--picture`
shows the largest to the smallest fractures of the twins that count as seen, and below each the same head without it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from PIL import Image
from scipy import ndimage
from soundness import LEVELS_HU, Patients, check, descend, measured, simulation_of  # which lie beside this file
from threadpoolctl import threadpool_limits
from torch import nn
from twins import load, show_pairs

from headct import Cohort
from headct.virtual.findings.bone import Fracture
from headct.virtual.labels import FINDINGS
from headct.virtual.simulated import Simulation
from headct.virtual.truth import CLASSES

FINDING = "fracture"
VOXEL_MM, PIXELS, REACH = 2.0, 160, np.deg2rad(112)
"""Of the arrays; of the picture's edge; and how far from the vertex it looks down."""
DEPTHS_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 11.0)
RADII_MM, THROUGH_MM = np.arange(40.0, 130.0), np.arange(-2.0, 20.0)
"""Where the outer table is looked for, and how deep beneath it a mask."""
BONE_HU, DENSE_HU, BELOW_VERTEX_MM = 350.0, 450.0, 80.0
"""Of any bone; of what is no thin edge of it; and of the point from which the vault is looked at."""
SMOOTHED = 7
"""Pairs of pixels over which the outer table is taken as even, so that a gap in it is not its shape."""
FILLED = 0.3
"""Of a voxel, as in the masks of the cohort."""
MOVED = 4
"""Pixels by which pictures are moved in training; the disc ends so far from the edge."""
HELD, PICTURES, HIGHEST, SHOWN = 4, 10, 30, 6
"""One of so many patients is held out; pictures in a step; pixels of a score, 100 mm2; heads in the picture."""


def directions() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (PIXELS, PIXELS, 3) of the disc, and which pixels lie in it."""
    edge = (np.arange(PIXELS) + 0.5) / PIXELS * 2 - 1
    x, y = np.meshgrid(edge, edge, indexing="ij")
    chord = np.hypot(x, y) * 2 * np.sin(REACH / 2)
    down, around = 2 * np.arcsin(np.clip(chord / 2, 0, 1)), np.arctan2(y, x)
    rays = np.stack([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)], axis=-1)
    return rays, np.hypot(x, y) <= 1 - 2 * MOVED / PIXELS


RAYS, DISC = directions()


def middle_of(hu: np.ndarray) -> np.ndarray:
    """From where the vault is looked at, in voxels: `BELOW_VERTEX_MM`, between the temples, forehead and occiput."""
    parts, count = ndimage.label(hu[::2, ::2, ::2] > BONE_HU)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    skull = np.argwhere(parts == sizes.argmax()) * 2.0
    top = skull[:, 2].max()
    vault = skull[skull[:, 2] > top - BELOW_VERTEX_MM / VOXEL_MM]
    x, y, _ = (vault.min(axis=0) + vault.max(axis=0)) / 2
    return np.array([x, y, top - BELOW_VERTEX_MM / VOXEL_MM])


def sampled(volume: np.ndarray, middle: np.ndarray, rays: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    """Values (nx, ny, n) at n radii of each ray (nx, ny, 3); outside of the array is air."""
    places = middle[:, None, None, None] + np.moveaxis(rays, -1, 0)[..., None] * radii_mm / VOXEL_MM
    found: np.ndarray = ndimage.map_coordinates(volume, places, order=1, cval=-1000.0)
    return found


def outer_table_mm(hu: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Its radius (PIXELS, PIXELS), smooth, from every second ray each way."""
    dense = sampled(hu, middle, RAYS[::2, ::2], RADII_MM) > DENSE_HU
    last = np.where(dense.any(axis=-1), RADII_MM[len(RADII_MM) - 1 - dense[..., ::-1].argmax(axis=-1)], np.nan)
    last = np.where(np.isnan(last), np.nanmedian(last), last)
    doubled = ndimage.median_filter(last, SMOOTHED).repeat(2, axis=0).repeat(2, axis=1)
    smooth: np.ndarray = ndimage.gaussian_filter(doubled, 1.5)
    return smooth


def unfolded(hu: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The picture (depths, PIXELS, PIXELS) in HU, 0 outside of the disc, and where a mask lies in it."""
    hu = hu.astype(np.float32)
    middle = middle_of(hu)
    table_mm = outer_table_mm(hu, middle)[..., None]
    picture = np.moveaxis(sampled(hu, middle, RAYS, table_mm - np.array(DEPTHS_MM)), -1, 0) * DISC
    if mask is None:
        return picture, np.zeros((PIXELS, PIXELS), dtype=bool)
    through = sampled(mask.astype(np.float32), middle, RAYS, table_mm - THROUGH_MM)
    return picture, (through.max(axis=-1) > FILLED) & DISC


def pictures_of(patients: Patients, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, depths, PIXELS, PIXELS) in thousands of HU, and masks (n, PIXELS, PIXELS)."""
    value, hu = CLASSES.index(FINDING) + 1, LEVELS_HU.astype(np.float32)
    pictures, masks = [], []
    for row, codes in enumerate(patients.codes):
        picture, mask = unfolded(hu[codes.numpy()], patients.classes(row) == value if masked else None)
        pictures.append(torch.from_numpy(picture.clip(-200, 2000) / 1000).half())
        masks.append(torch.from_numpy(mask))
    return torch.stack(pictures), torch.stack(masks)


def kinds_of(path: Path, patients: Patients) -> np.ndarray:
    """Of each scan (n,) the kind of fracture that was drawn for its patient, or nothing."""
    simulation, kinds = simulation_of(Cohort(path)), []
    for name in patients.groups:
        drawn = next(simulation.scans(Simulation.index_of(name))).patient.findings
        kinds.append(next((one.kind for one in drawn if isinstance(one, Fracture)), ""))
    return np.array(kinds)


def known_of(patients: Patients, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose label is known: of patients who are held out, and of the others."""
    people = np.random.default_rng(seed).permutation(np.unique(patients.groups))
    known = np.isfinite(patients.labels[:, FINDINGS.index(FINDING)])
    held = np.isin(patients.groups, people[: len(people) // HELD])
    return np.flatnonzero(known & held), np.flatnonzero(known & ~held)


def train_on(
    pictures: torch.Tensor, masks: torch.Tensor, labels: np.ndarray, rows: np.ndarray, steps: int, seed: int
) -> nn.Module:
    """From masks: half of each step are pictures with a fracture."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = BasicUNet(2, len(DEPTHS_MM), 1, features=(12, 24, 48, 64, 64, 12))
    loss_of = DiceCELoss(sigmoid=True, batch=True)
    sick, well = (rows[labels[rows] == wanted] for wanted in (1, 0))
    print(f"learned from {len(sick)} scans with a fracture that counts as seen and {len(well)} without")

    def losses() -> Iterator[torch.Tensor]:
        for _ in range(steps):
            drawn = np.concatenate([rng.choice(sick, PICTURES // 2), rng.choice(well, PICTURES // 2)])
            picture, mask = pictures[drawn].float(), masks[drawn].float()[:, None]
            if rng.uniform() < 0.5:
                picture, mask = picture.flip(2), mask.flip(2)  # x: left and right
            by = tuple(int(v) for v in rng.integers(-MOVED, MOVED + 1, 2))
            picture, mask = picture.roll(by, (2, 3)), mask.roll(by, (2, 3))
            denser, brighter = torch.from_numpy(rng.normal(0, 1, (2, len(drawn), 1, 1, 1))).float()
            yield loss_of(net(picture * (1 + 0.1 * denser) + 0.03 * brighter), mask)

    descend(net, losses(), steps, 4e-3)
    return net


@torch.no_grad()
def scores_of(net: nn.Module, pictures: torch.Tensor) -> dict[str, np.ndarray]:
    """Two scores (n,): of the most suspicious pixels, and the logarithm of the area that is drawn."""
    inside = torch.from_numpy(DISC).flatten()
    logits = torch.cat([net(some.float()).flatten(1)[:, inside] for some in pictures.split(16)])
    return {
        f"{HIGHEST} highest pixels": logits.topk(HIGHEST, dim=1).values.mean(dim=1).numpy(),
        "area": logits.sigmoid().sum(dim=1).log().numpy(),
    }


def show_scores(title: str, scores: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """AUROC by each score."""
    for name, score in scores.items():
        print(
            f"{title}, by {name}: AUROC {measured(score, labels)}, {np.nansum(labels):.0f} of "
            f"{np.isfinite(labels).sum()} have it",
            flush=True,
        )


def show_picture(twins: Patients, pictures: torch.Tensor, out: Path) -> None:
    """Fractures that can be seen, from the largest to the smallest, above the same heads without them."""
    table = twins.table.assign(row=np.arange(len(twins.table)))
    sick = table[table[FINDING] == 1].sort_values(f"{FINDING}_visible_ml", ascending=False)
    sick = sick.iloc[np.linspace(0, len(sick) - 1, SHOWN).round().astype(int)]
    well = table[table[FINDING] == 0].set_index("patient_id")["row"]
    columns = []
    for patient, row in zip(sick["patient_id"], sick["row"], strict=True):
        pair = pictures[[row, well[patient]]][:, 1:4].float().mean(dim=1)  # 2 to 6 mm: the diploe and what cuts it
        shown = (pair / 1.5).clamp(0, 1).mul(255).byte().numpy()
        columns.append(np.vstack([one.T[::-1] for one in shown]))  # from above, forehead up
    Image.fromarray(np.hstack(columns)).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("often", type=Path, help="a cohort with masks to learn from, in which fractures are common")
    parser.add_argument("twins", type=Path, help="a cohort of `headct simulate --twin fracture`")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="cohorts of other patients")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of who is held out and of the training")
    parser.add_argument("--picture", type=Path, help="a PNG of unfolded twins")
    parser.add_argument("--threads", type=int, default=1, help="of a processor")
    options = parser.parse_args()
    for path in (options.often, options.twins, *options.also):
        check(path, masks=path == options.often)
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    column = FINDINGS.index(FINDING)
    twins = load(options.twins, FINDING)
    of_twins, _ = pictures_of(twins, masked=False)
    if options.picture:
        show_picture(twins, of_twins, options.picture)
    often = load(options.often, FINDING)
    labels, (pictures, masks) = often.labels[:, column], pictures_of(often, masked=True)
    kinds, some = kinds_of(options.often, often), masks.flatten(1).any(dim=1).numpy()
    for kind in np.unique(kinds[labels == 1]):
        print(
            f"{kind}: {some[(kinds == kind) & (labels == 1)].mean():.0%} of those that count as seen are in the picture"
        )
    held, rows = known_of(often, options.seed)
    net = train_on(pictures, masks, labels, rows, options.steps, options.seed)
    show_scores("held out", scores_of(net, pictures[held]), labels[held])
    for name, scores in scores_of(net, of_twins).items():
        show_pairs(twins, scores, f"{FINDING}, by {name}", FINDING, kinds_of(options.twins, twins))
    for path in options.also:
        others = load(path, FINDING)
        show_scores(path.name, scores_of(net, pictures_of(others, masked=False)[0]), others.labels[:, column])
    print(f"{time.process_time():.0f} s of the processor")


if __name__ == "__main__":
    main()
