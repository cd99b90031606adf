"""How virtual patients differ from published ranges, and from real head CT where folders with some are given.

    python benchmarks/realism.py [REAL_FOLDER ...] [--scans 5] [--patients 300] [--cohort COHORT]

Virtual scans are of heads without findings, at full resolution, from all four sites. Real and virtual scans go through
the same measurements, in the slices from 20 to 90 mm below the top of the braincase; none needs a mask, so that they
err alike on both, and their error against the truth of the virtual ones is printed. Lesions are those of `--patients`
new patients, or of the labels of a cohort that was simulated.

The distance is the AUROC of classifiers that tell real from virtual patches of brain, 32 mm wide: 0.5 is no distance.
Any single head can be told from others, so the same is done with one virtual head against the rest. Folds are by
patient; where there are fewer than five real ones, the real side is cut by height instead, which flatters the
classifier. Published ranges stand beside what was measured, their sources below each table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.random import default_rng
from scipy import ndimage
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from headct import Rejection, prepare, read
from headct.scan import Scan
from headct.virtual.acquisition import take
from headct.virtual.findings.extraaxial import Subdural
from headct.virtual.job import VOLUMES, record_of
from headct.virtual.simulated import Simulated, Simulation
from headct.virtual.sites import SITES

BAND = slice(21, 39)
"""Slices of 4 mm of the recipe `head-axial`: above the base of the skull, below the vertex."""
RINGS_PER_MM = (0.03, 0.13, 0.23, 0.33, 0.43, 0.55, 0.75, 1.0)
TILE_MM, PATCH, IN_PLANE = 16.0, 32, np.ones((3, 3, 1), dtype=bool)
LEAST_CM2 = 70.0
"""Of the brain in a slice that is measured at its own pixels."""

PUBLISHED_HU = {
    "brain median": "24-35 [a]",
    "grey-white gap": "4-9 [a]",
    "fluid": "3-10, and the offset [b]",
    "table of the skull, q95": "1000-1600 unblurred [b]",
    "high-pass sd": "0.7-3.5 at 1.5 mm [a]",
    "share below 14 HU": "0-0.16 [a]",
}
VENTRICLES_ML = {(18, 40): "12-22", (40, 60): "15-32", (60, 78): "22-55", (78, 96): "30-80"}
SHARES = {"iph": "27%", "ivh": "6%", "sah": "12%", "sdh": "11%", "edh": "3%", "fracture": "8%"}
SKULL_MM = {
    "frontal": ((20, 70, 30), "8.0 ± 2.0"),
    "parietal": ((45, -40, 55), "7.0 ± 1.4"),
    "temporal": ((66, -10, 10), "4.7 ± 1.3"),
    "occipital": ((20, -95, 10), "8.0 ± 2.5"),
}
"""Template mm of where bone is measured on the right, and what 100 people of 15 to 50 years have in axial CT."""
MEAN_ML = {"iph": "12.7 (sd 11.6), 14.2 (14.5)"}


@dataclass(frozen=True)
class Head:
    """One scan, as it is and prepared."""

    name: str
    group: str
    scan: Scan
    array: np.ndarray  # (X, Y, Z) HU, 1 x 1 x 4 mm, the band alone
    cavity: np.ndarray  # bool, inside the skull
    virtual: Simulated | None

    @classmethod
    def of(cls, name: str, group: str, scan: Scan, virtual: Simulated | None = None) -> list[Head]:
        """None of it where the recipe rejects the scan, which is said."""
        prepared = prepare(scan, "head-axial")
        if isinstance(prepared, Rejection):
            print(f"left out: {name}, {prepared.code}")
            return []
        array = prepared.array[..., BAND].astype(np.float32)
        return [cls(name, group, scan, array, cavity_of(array, 1.0), virtual)]


def cavity_of(hu: np.ndarray, pixel_mm: float) -> np.ndarray:
    """What bone encloses, slice by slice along the last axis."""
    cavity = np.zeros(hu.shape, dtype=bool)
    close, shrink = max(1, round(3 / pixel_mm)), max(1, round(1.5 / pixel_mm))
    for z in range(hu.shape[2]):
        bone = ndimage.binary_closing(np.pad(hu[..., z] > 250, close), iterations=close)[close:-close, close:-close]
        hole = ndimage.binary_erosion(ndimage.binary_fill_holes(bone) & ~bone, iterations=shrink)
        parts, count = ndimage.label(hole)
        if count:
            cavity[..., z] = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return cavity


def real_heads(folders: Iterable[Path]) -> list[Head]:
    heads: list[Head] = []
    for folder in folders:
        for item in read(folder):
            if isinstance(item, Rejection):
                print(f"left out: {item.code}, {len(item.files)} files of {folder.name}")
            else:
                heads += Head.of(f"real {len(heads) + 1}", folder.name, item)
    for head in heads:
        print(f"{head.name}: {head.group}, {head.scan.header.model or 'unknown scanner'}, {head.scan.hu.shape} voxels")
    return heads


def virtual_heads(each: int) -> list[Head]:
    """Healthy ones, as many from each site, at full resolution."""
    visits = [next(Simulation(seed=1, site=site, prevalence={}).scans(n)) for site in SITES for n in range(each)]
    return [head for visit in visits for head in Head.of(visit.visit.site, visit.patient_id, visit.scan, visit)]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean, sd and range."""
    some = np.array([value for value in values if np.isfinite(value)])
    if not len(some):
        return "-"
    low, high = some.min(), some.max()
    return f"{some.mean():.{digits}f} ± {some.std():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def show(title: str, rows: Sequence[dict[str, Any]], *notes: str) -> None:
    """A table with what must be said beside it."""
    print(f"\n{title}\n{pd.DataFrame(rows).fillna('-').to_string(index=False)}", *notes, sep="\n", flush=True)


def tissue_of(head: Head) -> dict[str, float]:
    """HU of what needs no mask to be found, in the band."""
    smooth = ndimage.median_filter(head.array, size=(3, 3, 1))
    deep = ndimage.binary_erosion(head.cavity, IN_PLANE, iterations=4)
    median = float(np.median(smooth[deep]))
    brain = smooth[deep & (np.abs(smooth - median) < 12)]
    some = default_rng(0).choice(brain, min(20000, len(brain)), replace=False)[:, None]
    two = GaussianMixture(2, means_init=[[median - 4], [median + 4]], random_state=0).fit(some)
    fluid = ndimage.binary_erosion(deep & (smooth < median - 14) & (smooth > -10), IN_PLANE)
    residue = head.array - ndimage.uniform_filter(head.array, size=(5, 5, 1))
    values = (
        median,
        np.ptp(two.means_),
        np.median(smooth[fluid]) if fluid.sum() > 20 else np.nan,
        np.quantile(head.array[head.array > 300], 0.95),
        1.48 * np.median(np.abs(residue[deep])),
        (smooth[head.cavity] < 14).mean(),
    )
    return {name: float(value) for name, value in zip(PUBLISHED_HU, values, strict=True)}


def show_tissues(real: Sequence[Head], virtual: Sequence[Head]) -> None:
    ours, theirs = [tissue_of(head) for head in virtual], {head.name: tissue_of(head) for head in real}
    visits = [head.virtual for head in virtual if head.virtual]
    gaps = [visit.patient.anatomy.grey_hu - visit.patient.anatomy.white_hu for visit in visits]
    fluids = [visit.patient.anatomy.csf_hu + visit.visit.offset_hu for visit in visits]
    missed = {
        name: spread(found[name] - truth for found, truth in zip(ours, truths, strict=True))
        for name, truths in {"grey-white gap": gaps, "fluid": fluids}.items()
    }
    rows = [
        {"HU": name, "virtual": spread(found[name] for found in ours), "less truth": missed.get(name)}
        | {"published": published}
        | {head: f"{found[name]:.2f}" for head, found in theirs.items()}
        for name, published in PUBLISHED_HU.items()
    ]
    show(f"tissues at 1 x 1 x 4 mm: n = {len(ours)} virtual patients, mean ± sd (range); {len(real)} real scans", rows,
         "[a] tolerances, [b] tissue values of the study of the virtual cohort")  # fmt: skip


def tiles(scan: Scan, most: int = 40) -> list[tuple[int, slice, slice]]:
    """The most uniform squares of 16 mm deep in the brain: slice, rows, columns."""
    pixel_mm = scan.pixel_mm[0]
    width, found = round(TILE_MM / pixel_mm), []
    for index, plane in enumerate(scan.hu.astype(np.float32)):
        cavity = cavity_of(plane[..., None], pixel_mm)[..., 0]
        if cavity.sum() * pixel_mm**2 < LEAST_CM2 * 100:
            continue
        smooth = ndimage.gaussian_filter(plane, 1.5 / pixel_mm)
        inner = ndimage.binary_erosion(cavity, iterations=round(6 / pixel_mm)).astype(float)
        deep, mean, square = (ndimage.uniform_filter(values, width) for values in (inner, smooth, smooth**2))
        for row, col in np.argwhere(deep[:: width // 2, :: width // 2] > 0.999) * (width // 2):
            corner = row - width // 2, col - width // 2
            found.append((square[row, col] - mean[row, col] ** 2, index, *(slice(c, c + width) for c in corner)))
    return [(index, rows, cols) for _, index, rows, cols in sorted(found, key=lambda entry: entry[0])[:most]]


def spectrum(hu: np.ndarray, where: Sequence[tuple[int, slice, slice]], pixel_mm: float) -> np.ndarray:
    """Of squares less a quadratic fit: standard deviation, frequencies per mm, share of the variance in each ring.

    The frequencies are the mean one, and that at which the power of noise is densest.
    """
    size = round(TILE_MM / pixel_mm)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].reshape(2, -1)
    base = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)
    flat = np.stack([hu[place].ravel() for place in where], axis=1).astype(float)
    rest = (flat - base @ np.linalg.lstsq(base, flat, rcond=None)[0]).T.reshape(-1, size, size)
    power = (np.abs(np.fft.fft2(rest)) ** 2).mean(0) / size**4
    along = np.fft.fftfreq(size, pixel_mm)
    per_mm = np.hypot(along, along[:, None])
    rings = np.histogram(per_mm, RINGS_PER_MM, weights=power)[0]
    narrow = np.arange(0.5 / TILE_MM, RINGS_PER_MM[-1], 1 / TILE_MM)
    density = np.histogram(per_mm, narrow, weights=power)[0] / np.histogram(per_mm, narrow)[0]
    densest = narrow[density.argmax()] + 0.5 / TILE_MM
    return np.array([np.sqrt(power.sum()), (power * per_mm).sum() / power.sum(), densest, *(rings / power.sum())])


def show_spectra(real: Sequence[Head], virtual: Sequence[Head]) -> None:
    """From uniform tiles; for one patient of each site also from two scans that differ in their noise alone."""
    rings = [f"{low}-{high}" for low, high in pairwise(RINGS_PER_MM)]
    rows: list[dict[str, Any]] = []

    def add(name: str, stacks: Sequence[tuple[np.ndarray, Scan]]) -> None:
        places = [tiles(scan) for _, scan in stacks]
        found = [spectrum(hu, p, s.pixel_mm[0]) for (hu, s), p in zip(stacks, places, strict=True) if p]
        mean = dict(zip(["sd HU", "mean /mm", "peak /mm", *rings], np.mean(found, axis=0).round(3), strict=True))
        rows.append({"": name, "scans": len(found), "tiles": sum(map(len, places))} | mean)

    for name in dict.fromkeys(head.name for head in (*real, *virtual)):
        heads = [head for head in (*real, *virtual) if head.name == name]
        add(name, [(head.scan.hu, head.scan) for head in heads])
        if first := heads[0].virtual:
            visit = replace(first.visit, below_mm=-10.0, above_mm=60.0, motion_mm=(0.0, 0.0))
            pair = [take(first.patient, replace(visit, noise_seed=seed)).scan for seed in (1, 2)]
            add(f"{name}, noise alone", [((pair[0].hu - pair[1].hu) / np.sqrt(2), pair[0])])
    show("noise in tiles of 16 mm less a quadratic fit: sd, and share of the variance by frequency per mm", rows)


def edges_of(scan: Scan) -> dict[str, float]:
    """Median 10-90 % widths in mm along rays from the middle of each slice, the back and its head rest left out."""
    widths: dict[str, list[float]] = {"skin to air": [], "brain to bone": []}
    step, pixel_mm = 0.1, scan.pixel_mm[0]
    for plane in scan.hu[len(scan.hu) // 2 : -max(4, len(scan.hu) // 5)].astype(np.float32):
        cavity = cavity_of(plane[..., None], pixel_mm)[..., 0]
        if cavity.sum() * pixel_mm**2 < LEAST_CM2 * 100:
            continue
        middle = np.array(ndimage.center_of_mass(cavity))
        for angle in np.radians(np.arange(-130, 131, 5)):  # 0 is the front: rows grow backwards
            along = np.arange(30, 125, step)[:, None] * np.array([-np.cos(angle), np.sin(angle)]) / pixel_mm + middle
            ray = ndimage.map_coordinates(plane, along.T, order=1, cval=-1000)
            bone, air = np.flatnonzero(ray > 500), np.flatnonzero(ray < -500)
            if not len(bone) or not len(air[air > bone[-1]]):
                continue
            falls = np.flatnonzero(np.diff(ray[bone[0] : bone[0] + 80]) < 0)
            top = bone[0] + int(falls[0] if len(falls) else 80)  # of the inner table
            out = air[air > bone[-1]][0]
            widths["brain to bone"].append(rise(ray[max(0, bone[0] - 80) : top + 1], step))
            widths["skin to air"].append(rise(ray[out - 20 : out + 40][::-1], step))
    return {name: float(np.nanmedian(values)) if values else np.nan for name, values in widths.items()}


def rise(profile: np.ndarray, step_mm: float) -> float:
    """Length over which a profile rises from 10 % to 90 % of the way from its beginning to its highest value."""
    low, high = np.median(profile[:20]), profile.max()
    share = (profile - low) / max(1.0, high - low)
    above = int(np.argmax(share >= 0.9))
    below = np.flatnonzero(share[:above] <= 0.1)
    return (above - below[-1]) * step_mm if len(below) else np.nan


def show_edges(real: Sequence[Head], virtual: Sequence[Head]) -> None:
    rows = []
    for name in dict.fromkeys(head.name for head in (*real, *virtual)):
        found = [edges_of(head.scan) for head in (*real, *virtual) if head.name == name]
        rows.append({"": name, "scans": len(found)} | {key: spread(edge[key] for edge in found) for key in found[0]})
    show("10-90 % width of edges in mm: median over the rays of a scan, mean ± sd (range) over scans", rows)


def show_fluid(count: int) -> None:
    """Anatomy alone."""
    patients = [Simulation(seed=2, prevalence={}).patient(index) for index in range(count)]
    volumes, rows = [(patient.anatomy.age, patient.fluid_ml()) for patient in patients], []
    for (low, high), published in VENTRICLES_ML.items():
        some = [volume for age, volume in volumes if low <= age < high]
        rows.append({"years": f"{low}-{high - 1}", "n": len(some)}
                    | {"ventricles": spread((v.ventricles_ml for v in some), 1), "published [a]": published}
                    | {"all fluid": spread((v.fluid_ml for v in some), 1)}
                    | {"cavity (1200-1800)": spread((v.cavity_ml for v in some), 0)})  # fmt: skip
    stones = ("pineal", "plexus", "pallidum")
    shares = [np.mean([getattr(patient.anatomy, f"{name}_hu") > 0 for patient in patients]) for name in stones]
    said = ", ".join(f"{name} {share:.0%}" for name, share in zip(stones, shares, strict=True))
    show("volumes in ml of patients without findings", rows,
         "[a] about 25, 50, 70 and 85 years: Blatter et al., AJNR 1995;16:241-251, MRI to 65 years; all ages 17.4",
         f"calcified: {said}; published 71 %, 66 %, 0.8 % of 1,569 adults (PMID 17594669)")  # fmt: skip


def show_skull(count: int) -> None:
    """Along a ray from the middle of the head through each place, in the anatomy, before any scanner."""
    along_mm = torch.arange(30.0, 130.0, 0.25)
    thickness: dict[str, list[float]] = {name: [] for name in SKULL_MM}
    for index in range(count):
        patient = Simulation(seed=2, prevalence={}).patient(index)
        targets = np.array([(0.0, -18.0, 14.0), *(place for place, _ in SKULL_MM.values())])
        places, _missed_mm = patient.bend.head_of(targets, brain=False)
        middle, *outer = torch.tensor(places, dtype=torch.float32)
        for name, place in zip(SKULL_MM, outer, strict=True):
            towards = (place - middle) / torch.linalg.vector_norm(place - middle)
            painted = patient.paint(middle + along_mm[:, None] * towards, 0.25, tissues=True)
            thickness[name].append(float((painted.changes["skull"].share > 0.5).sum()) * 0.25)
    rows = [{"bone": name, "n": count, "mm": spread(mm, 1), "published": SKULL_MM[name][1]}
            for name, mm in thickness.items()]  # fmt: skip
    source = "Morphometric measurement of cranial vault thickness: a tertiary hospital based study"
    show("thickness of the skull, mean ± sd (range)", rows, f"published: CT of 100 people of 15 to 50 years ({source})")


def show_lesions(table: pd.DataFrame) -> None:
    quantiles, rows = (0.05, 0.25, 0.5, 0.75, 0.95), []
    for name in VOLUMES:
        ml = table.loc[table[name] == 1, f"{name}_ml"].to_numpy(dtype=float)
        ranks = {f"q{q:.0%}": f"{np.quantile(ml, q):.2f}" if len(ml) else "-" for q in quantiles}
        rows.append({"finding": name, "n": len(ml), "share": f"{len(ml) / len(table):.0%}", "CQ500": SHARES.get(name)}
                    | {"mean ± sd (range)": spread(ml)} | ranks | {"published mean": MEAN_ML.get(name)})  # fmt: skip
    rng = default_rng(0)
    drawn = [Subdural.draw(rng) for _ in range(4000)]
    ratios = [one.thickness_mm[0] / one.shift_mm for one in drawn if one.thickness_mm[0] >= 10 and one.shift_mm > 2]
    low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
    show(f"volumes in ml where the label is 1, {len(table)} patients", rows,
         "shares of 491 scans: Lancet 2018;392:2388-2396; iph: Lancet Neurol 2008;7:391-399; - where none is certain",
         f"thickness to shift of sdh from 10 mm with shift, n = {len(ratios)} draws: mean {np.mean(ratios):.2f}, "
         f"median {middle:.2f} (5-95 % {low:.2f}-{high:.2f}); published 0.93 (0.69-1.8), 67 operated "
         "(Neurosurg Rev 2018;41:483-488)")  # fmt: skip


@dataclass
class Patches:
    """Squares of brain alone."""

    hu: np.ndarray  # (n, PATCH, PATCH)
    group: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, heads: Sequence[Head], most: int) -> Patches:
        """At most so many of each head."""
        half, rng, found = PATCH // 2, default_rng(0), []
        for head in heads:
            brain = ndimage.binary_erosion(head.cavity, IN_PLANE, iterations=3)
            places = np.argwhere(ndimage.minimum_filter(brain, size=(PATCH + 1, PATCH + 1, 1)))
            for x, y, z in places[rng.permutation(len(places))[:most]]:
                found.append((head.array[x - half : x + half, y - half : y + half, z], head.group, z))
        hu, group, height = (np.array(column) for column in zip(*found, strict=True))
        return cls(hu.clip(-20, 90), group, height)


def simple(hu: np.ndarray) -> np.ndarray:
    """Level, spread, edges and grain of patches: (n, 15)."""
    levels = np.quantile(hu.reshape(len(hu), -1), (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
    rest = np.clip(hu - ndimage.median_filter(hu, size=(1, 5, 5)), -12, 12)
    grain = [(rest * np.roll(rest, shift, axis)).mean((1, 2)) for axis in (1, 2) for shift in (1, 2, 3)]
    slope = np.abs(np.diff(ndimage.uniform_filter(hu, size=(0, 3, 3)), axis=1)).mean((1, 2))
    return np.stack([*levels, hu.std((1, 2)), slope, rest.std((1, 2)), np.abs(rest).mean((1, 2)), *grain], axis=1)


def by_features(x: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500, class_weight="balanced"))
    scores: np.ndarray = model.fit(simple(x), y).decision_function(simple(unseen))
    return scores


def by_network(x: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Three convolutions and a mean, 12 passes, both classes alike often."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 12), (12, 24), (24, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    images, labels = torch.from_numpy(x[:, None] / 20), torch.from_numpy(y.astype(np.float32))
    weights = 1 / torch.bincount(labels.long()).float()[labels.long()]
    for _ in range(12):
        drawn = torch.multinomial(weights, len(images), replacement=True)
        for rows in torch.split(drawn, 64):
            flips = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
            loss = nn.functional.binary_cross_entropy_with_logits(net(images[rows].flip(flips)), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        scores: np.ndarray = net.eval()(torch.from_numpy(unseen[:, None] / 20)).numpy()
    return scores


Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def told_apart(one: Patches, others: Patches, classify: Classifier, level: bool) -> tuple[float, float, float]:
    """AUROC in five folds, with its interval by bootstrap over patients or heights.

    Without `level` the median of every patch is taken off.
    """
    hu = np.concatenate([one.hu, others.hu])
    hu = hu if level else hu - np.median(hu, axis=(1, 2), keepdims=True)
    truth = np.repeat([True, False], [len(one.hu), len(others.hu)])
    height = np.concatenate([one.height, np.full(len(others.hu), -99)])
    left, right = (np.unique(some.group, return_inverse=True)[1] for some in (one, others))
    if few := int(left.max()) < 4:
        left = np.searchsorted(np.quantile(one.height, (0.2, 0.4, 0.6, 0.8)), one.height)
    units = np.concatenate([left, 1000 + right])
    fold, score = units % 5, np.zeros(len(hu))
    for number in range(5):
        unseen = fold == number
        beside = np.isin(height, np.unique(height[unseen & truth]) + np.array([[-1], [0], [1]])) if few else unseen
        seen = ~unseen & ~beside
        score[unseen] = classify(hu[seen], truth[seen], hu[unseen])

    def within_folds(rows: np.ndarray) -> float:
        parts = [rows[fold[rows] == number] for number in range(5)]  # levels differ from fold to fold
        values = [value for part in parts if np.isfinite(value := auroc(score[part], truth[part]))]
        return float(np.mean(values)) if values else np.nan

    rng, rows_of, drawn = default_rng(0), {unit: np.flatnonzero(units == unit) for unit in np.unique(units)}, []
    for _ in range(400):
        some = [rng.choice(np.unique(units[side]), len(np.unique(units[side]))) for side in (truth, ~truth)]
        drawn.append(within_folds(np.concatenate([rows_of[unit] for unit in np.concatenate(some)])))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return within_folds(np.arange(len(hu))), float(low), float(high)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs of a positive and a negative that are in order; ties count half."""
    n = int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def show_distance(real: Sequence[Head], virtual: Sequence[Head]) -> None:
    """Each real head, or all of five patients or more, against virtual ones; then one virtual head against the rest."""
    sides = {f"{head.name}": [head] for head in real}
    sides = {"all real": list(real)} if len({head.group for head in real}) >= 5 else sides
    pairs = [(name, "all sites", side, list(virtual)) for name, side in sides.items()]
    pairs += [
        (name, site, side, [h for h in virtual if h.name == site]) for name, side in sides.items() for site in SITES
    ]
    pairs += [(f"one of {h.name}", "the rest", [h], [o for o in virtual if o is not h]) for h in virtual[::3]]
    rows, controls = [], []
    for name, against, side, others in pairs:
        one, rest = Patches.of(side, 400 if len(side) == 1 else 80), Patches.of(others, 80)
        row: dict[str, Any] = {"": name, "against": against, "heads": f"{len(side)}, {len(others)}"}
        row["patches"] = f"{len(one.hu)}, {len(rest.hu)}"
        values = []
        for (how, classify), level in [(c, level) for c in CLASSIFIERS.items() for level in (True, False)]:
            value, low, high = told_apart(one, rest, classify, level)
            row[how if level else f"{how}, no level"] = f"{value:.3f} ({low:.3f}-{high:.3f})"
            values.append(value)
        rows.append(row)
        controls += [values] if against == "the rest" else []
    middle = ", ".join(f"{value:.3f}" for value in np.median(controls, axis=0))
    show(
        "patches of brain told apart, AUROC in five folds",
        rows,
        f"median of one virtual head against the rest: {middle}",
    )


CLASSIFIERS: dict[str, Classifier] = {"features": by_features, "network": by_network}


def main() -> None:
    """Print one table after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, nargs="*", metavar="REAL_FOLDER")
    parser.add_argument("--scans", type=int, default=5, help="virtual ones from each site, at least 5 for the folds")
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--cohort", type=Path, help="take lesions from its labels.csv rather than from new patients")
    options = parser.parse_args()
    if options.scans < 5:
        parser.error("--scans must be 5 or more, for as many folds")
    torch.set_num_threads(1)
    real, virtual = real_heads(options.real), virtual_heads(options.scans)
    show_tissues(real, virtual)
    show_spectra(real, virtual)
    show_edges(real, virtual)
    show_fluid(options.patients)
    show_skull(min(options.patients, 60))
    if options.cohort:
        show_lesions(pd.read_csv(options.cohort / "labels.csv"))
    else:
        simulation = Simulation(seed=3, spacing_mm=3.0)
        show_lesions(pd.DataFrame([record_of(next(simulation.scans(n))) for n in range(options.patients)]))
    show_distance(real, virtual)


if __name__ == "__main__":
    main()
