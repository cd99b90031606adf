"""What pre-training costs.

    .venv/bin/python benchmarks/pretrain.py [views] [--rounds 15] [--batch 8]

`views`: the CPU time of making the two global and two local views of one scan as FM-HCT did, by MONAI's transforms
(pad to 224 voxels a side, crop, area resize, flips, offset, smoothing or gamma), and by ours, with the same numbers
drawn for both and the outputs compared. One thread; the ways take turns, so that what else the machine does meets all
of them. Needs MONAI.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headct.encoders.windowing import apply_windows
from headct.preparing.windows import WINDOWS
from headct.pretraining.published import (
    LOCAL_PADDED,
    PADDED,
    PublishedView,
    along_axes,
    draw_global,
    draw_local,
    fill,
    see_published,
)

SHAPE = (96, 96, 96)


@dataclass(frozen=True)
class Way:
    """One way to do the same thing, and how many scans it does it for at once."""

    run: Callable[[int], object]  # given the number of the round
    scans: int = 1


def cpu_seconds(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """CPU seconds a scan of each way, round by round; in each round all of them take their turn."""
    for way in ways.values():
        way.run(0)  # the first time pays for allocations
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            way.run(number)
            taken[name].append((time.process_time() - begun) / way.scans)
    return taken


def report(title: str, taken: Mapping[str, Sequence[float]], targets: Mapping[str, float]) -> None:
    """A table with medians, quartiles and ratios to the first row, worked out round by round."""
    print(f"\n{title}\n\n| way | ms a scan | quartiles | times less | target |\n| --- | --- | --- | --- | --- |")
    first = next(iter(taken.values()))
    for name, seconds in taken.items():
        low, middle, high = (1000 * q for q in statistics.quantiles(seconds, n=4))
        ratio = statistics.median(theirs / ours for theirs, ours in zip(first, seconds, strict=True))
        target = f"{targets[name]:g}" if name in targets else ""
        print(f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} | {ratio:.1f} | {target} |")


# ---------------------------------------------------------------------------------------------------------------- views


def some_scans(count: int, rng: np.random.Generator) -> Tensor:
    """HU (count, 96, 96, 96) int16 of eggs with skull, brain and noise, in air."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    made = []
    for _ in range(count):
        distance = np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(axes, rng.uniform(0.7, 1, 3), strict=True)))
        hu = np.where(distance < 0.9, 35, np.where(distance < 1, 1000, -1000)) + rng.normal(0, 5, SHAPE)
        made.append(hu.astype(np.int16))
    return torch.from_numpy(np.stack(made))


def draws(rng: np.random.Generator) -> list[PublishedView]:
    """Two global and two local views."""
    return [draw_global(rng, 0), draw_global(rng, 1), draw_local(rng), draw_local(rng)]


def by_monai(scan: Tensor, view: PublishedView, *, local: bool) -> Tensor:
    """A view (C, 96, 96, 96) of a cached scan (C, 96, 96, 96) float16, step by step as published."""
    from monai import transforms

    image = transforms.SpatialPad([PADDED] * 3)(transforms.CastToType(torch.float32)(scan))
    start = view.start
    if local:
        image = transforms.CenterSpatialCrop([LOCAL_PADDED] * 3)(image)
        start = tuple(first - (PADDED - LOCAL_PADDED) // 2 for first in start)
    image = transforms.SpatialCrop(roi_start=start, roi_end=np.add(start, view.edges))(image)
    image = transforms.Resize(SHAPE, mode="area")(image)
    for axis in range(3):
        if view.flipped[axis]:
            image = transforms.Flip(axis)(image)
    if view.offset:
        image = transforms.ShiftIntensity(view.offset)(image)
    if view.sigma is not None:
        image = transforms.GaussianSmooth(view.sigma)(image)
    if view.gamma is not None:
        image = transforms.AdjustContrast(view.gamma)(image)
    return image


def all_by_monai(scan: Tensor, views: Sequence[PublishedView]) -> list[Tensor]:
    """Global 1, global 2, local 1, local 2."""
    return [by_monai(scan, view, local=number > 1) for number, view in enumerate(views)]


def all_by_ours(scans: Tensor, draws_: Sequence[Sequence[PublishedView]], dtype: torch.dtype) -> list[Tensor]:
    """The same, each (B, C, 96, 96, 96), of cached scans (B, C, 96, 96, 96) float16; the draws are [scan][view]."""
    seen = [torch.empty(scans.shape, dtype=dtype) for _ in draws_[0]]
    for b, views in enumerate(draws_):
        image, matrices = scans[b].to(dtype), along_axes(views, SHAPE, SHAPE)
        for number, view in enumerate(views):
            fill(seen[number][b], image, view, [matrix[number] for matrix in matrices])
    return seen


def all_from_hu(hu: Tensor, draws_: Sequence[Sequence[PublishedView]], dtype: torch.dtype) -> list[Tensor]:
    """The same from HU (B, 96, 96, 96), windows included, as the DINO objective does it in a step."""
    return [seen.image for seen in see_published(hu, draws_, SHAPE, (1, 1, 1), list(WINDOWS.values()), dtype)]


def compare_views(rounds: int, batch: int) -> None:
    """Part a: views."""
    rng = np.random.default_rng(0)
    hu = some_scans(batch, rng)
    cached = apply_windows(hu, list(WINDOWS.values())).half()
    drawn = [[draws(rng) for _ in range(batch)] for _ in range(rounds)]
    worst = {torch.float32: 0.0, torch.bfloat16: 0.0}
    for views in drawn[0]:
        theirs = all_by_monai(cached[0], views)
        for dtype in worst:
            ours = all_by_ours(cached[:1], [views], dtype)
            differences = [(a - b[0].float()).abs().max().item() for a, b in zip(theirs, ours, strict=True)]
            worst[dtype] = max(worst[dtype], *differences)
    exact, fast = torch.float32, torch.bfloat16
    ways = {
        "published, MONAI": Way(lambda number: all_by_monai(cached[0], drawn[number][0])),
        "fp32, one scan": Way(lambda number: all_by_ours(cached[:1], drawn[number][:1], exact)),
        f"fp32, batch of {batch}": Way(lambda number: all_by_ours(cached, drawn[number], exact), batch),
        f"bf16, batch of {batch}": Way(lambda number: all_by_ours(cached, drawn[number], fast), batch),
        f"bf16, batch of {batch}, from HU": Way(lambda number: all_from_hu(hu, drawn[number], fast), batch),
    }
    targets = dict(zip(ways, [1.0, 3.5, 3.5, 7.0, 7.0], strict=True))
    report("2 + 2 views of one scan, CPU time on one thread", cpu_seconds(ways, rounds), targets)
    print(f"\nLargest difference to MONAI's: {worst[exact]:.1e} in fp32, {worst[fast]:.1e} in bf16.")


# ---------------------------------------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[int, int], None]] = {"views": compare_views}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part is called {unknown[0]!r}; take {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in given.parts or PARTS:
        PARTS[part](given.rounds, given.batch)


if __name__ == "__main__":
    main()
