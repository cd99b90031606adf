"""Whether fractures are seen where the skull is unfolded: its vault as one picture, read by a network told where.

    headct simulate --patients 800 --seed 77 --prevalence fracture=0.5 --masks --out often
    headct simulate --patients 120 --seed 78 --twin fracture --out twins
    python benchmarks/fractures.py often twins [--also COHORT] [--picture FILE.png]

In voxels of 2 mm a fracture is a line of some dozen voxels in a head of a million, and a network of volumes learns it
slowly or not at all (`soundness.py`, `twins.py`). Seen from the middle of the head each direction meets the vault once:
rays are laid out on a disc of equal area (Lambert's azimuthal projection, the vertex in its middle), and what lies
beneath the outer table at `DEPTHS_MM` is the picture. Nothing above the bone is in it, so no swollen scalp; and nothing
of the base, so no fracture of it: the share of masks that the picture holds is told.

A quarter of the patients of `often` is held out. Told are the AUROC on them, on twins as in `twins.py`, and on cohorts
of `--also`, by two scores: the mean of the `HIGHEST` most suspicious pixels, and the area that the network draws. All
intervals are 95 % by bootstrap over patients. `--picture` shows the largest to the smallest fractures of the twins that
can be seen, and below each the same head without it.
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
from soundness import LEVELS_HU, Patients, descend, measured  # which lie beside this file
from threadpoolctl import threadpool_limits
from torch import nn
from twins import load, show_pairs

from headct.virtual.job import CLASSES
from headct.virtual.labels import FINDINGS

FINDING = "fracture"
VOXEL_MM, PIXELS, REACH = 2.0, 160, np.deg2rad(112)
"""Of the arrays; of the picture's edge; and how far from the vertex it looks down."""
DEPTHS_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 11.0)
RADII_MM = np.arange(40.0, 130.0)
BONE_HU, DENSE_HU, BELOW_VERTEX_MM = 350.0, 450.0, 80.0
SMOOTHED = 13
"""Pixels over which the outer table is taken as even, so that a gap in it is not its shape."""
HELD, PICTURES, HIGHEST, SHOWN = 4, 10, 30, 6
"""One of so many patients is held out; pictures in a step; pixels of a score, 100 mm2; heads in the picture."""


def directions() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (PIXELS, PIXELS, 3) of the disc, and which pixels lie in it."""
    edge = (np.arange(PIXELS) + 0.5) / PIXELS * 2 - 1
    x, y = np.meshgrid(edge, edge, indexing="ij")
    chord = np.hypot(x, y) * 2 * np.sin(REACH / 2)
    down, around = 2 * np.arcsin(np.clip(chord / 2, 0, 1)), np.arctan2(y, x)
    rays = np.stack([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)], axis=-1)
    return rays, np.hypot(x, y) <= 1


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


def sampled(volume: np.ndarray, middle: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    """Values (PIXELS, PIXELS, n) at so many radii of each ray; outside of the array is air."""
    places = middle[:, None, None, None] + np.moveaxis(RAYS, -1, 0)[..., None] * radii_mm / VOXEL_MM
    found: np.ndarray = ndimage.map_coordinates(volume, places, order=1, cval=-1000.0)
    return found


def outer_table_mm(hu: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Its radius (PIXELS, PIXELS), smooth."""
    dense = sampled(hu, middle, RADII_MM) > DENSE_HU
    last = np.where(dense.any(axis=-1), RADII_MM[len(RADII_MM) - 1 - dense[..., ::-1].argmax(axis=-1)], np.nan)
    last = np.where(np.isnan(last), np.nanmedian(last), last)
    smooth: np.ndarray = ndimage.gaussian_filter(ndimage.median_filter(last, SMOOTHED), 1.0)
    return smooth


def unfolded(hu: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The picture (depths, PIXELS, PIXELS) in HU, and where a mask lies in it."""
    hu = hu.astype(np.float32)
    middle = middle_of(hu)
    table_mm = outer_table_mm(hu, middle)[..., None]
    picture = np.moveaxis(sampled(hu, middle, table_mm - np.array(DEPTHS_MM)), -1, 0)
    if mask is None:
        return picture, np.zeros((PIXELS, PIXELS), dtype=bool)
    through = table_mm - np.arange(-2.0, 20.0)
    return picture, (sampled(mask.astype(np.float32), middle, through).max(axis=-1) > 0.3) & DISC


def pictures_of(patients: Patients, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, depths, PIXELS, PIXELS) in thousands of HU, and masks (n, PIXELS, PIXELS)."""
    value, hu = CLASSES.index(FINDING) + 1, LEVELS_HU.astype(np.float32)
    pictures, masks = [], []
    for row, codes in enumerate(patients.codes):
        picture, mask = unfolded(hu[codes.numpy()], patients.classes(row) == value if masked else None)
        pictures.append(torch.from_numpy(picture.clip(-200, 2000) / 1000).half())
        masks.append(torch.from_numpy(mask))
    return torch.stack(pictures), torch.stack(masks)


def train(
    pictures: torch.Tensor, masks: torch.Tensor, labels: np.ndarray, rows: np.ndarray, steps: int, seed: int
) -> nn.Module:
    """From masks: half of each step are pictures with a fracture."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = BasicUNet(2, len(DEPTHS_MM), 1, features=(12, 24, 48, 64, 64, 12))
    loss_of = DiceCELoss(sigmoid=True, batch=True)
    sick, well = (rows[labels[rows] == wanted] for wanted in (1, 0))
    print(f"learned from {len(sick)} patients with the mask of one and {len(well)} without")

    def losses() -> Iterator[torch.Tensor]:
        for _ in range(steps):
            drawn = np.concatenate([rng.choice(sick, PICTURES // 2), rng.choice(well, PICTURES // 2)])
            picture, mask = pictures[drawn].float(), masks[drawn].float()[:, None]
            if rng.uniform() < 0.5:
                picture, mask = picture.flip(2), mask.flip(2)  # x: left and right
            by = tuple(int(v) for v in rng.integers(-4, 5, 2))
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


def show_picture(twins: Patients, pictures: torch.Tensor, out: Path) -> None:
    """Fractures that can be seen, from the largest to the smallest, above the same heads without them."""
    table = twins.table.assign(row=np.arange(len(twins.table)))
    sick = table[table[FINDING] == 1].sort_values(f"{FINDING}_visible_ml", ascending=False)
    sick = sick.iloc[np.linspace(0, len(sick) - 1, SHOWN).round().astype(int)]
    well = table[table[FINDING] == 0].set_index("patient_id")["row"]
    columns = []
    for patient, row in zip(sick["patient_id"], sick["row"], strict=True):
        pair = pictures[[row, well[patient]]][:, 1:4].float().mean(dim=1)  # 2 to 6 mm: the diploe and what cuts it
        shown = (pair / 1.5).clamp(0, 1).mul(255).byte().numpy() * DISC
        columns.append(np.vstack([one.T[::-1] for one in shown]))  # from above, forehead up
    Image.fromarray(np.hstack(columns)).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("often", type=Path)
    parser.add_argument("twins", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="cohorts of other patients")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0, help="of who is held out and of the training")
    parser.add_argument("--picture", type=Path, help="a PNG of unfolded twins")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    column = FINDINGS.index(FINDING)
    twins = load(options.twins, FINDING)
    seen_twins, _ = pictures_of(twins, masked=False)
    if options.picture:
        show_picture(twins, seen_twins, options.picture)
    often = load(options.often, FINDING)
    labels, (pictures, masks) = often.labels[:, column], pictures_of(often, masked=True)
    known = np.random.default_rng(options.seed).permutation(np.flatnonzero(np.isfinite(labels)))
    held, rows = np.split(known, [len(known) // HELD])
    print(f"the picture holds some of {masks[labels == 1].flatten(1).any(dim=1).float().mean():.0%} of the fractures")
    net = train(pictures, masks, labels, rows, options.steps, options.seed).eval()
    for name, scores in scores_of(net, pictures[held]).items():
        print(f"held out, by {name}: AUROC {measured(scores, labels[held])}, {int(labels[held].sum())} have it")
    for name, scores in scores_of(net, seen_twins).items():
        show_pairs(twins, scores, f"{FINDING}, by {name}", FINDING)
    for path in options.also:
        others = load(path, FINDING)
        told = int(np.nansum(others.labels[:, column]))
        for name, scores in scores_of(net, pictures_of(others, masked=False)[0]).items():
            print(f"{path.name}, by {name}: AUROC {measured(scores, others.labels[:, column])}, {told} have it")
    print(f"{time.process_time():.0f} s of the processor")


if __name__ == "__main__":
    main()
