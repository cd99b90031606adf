"""What pre-training costs.

    .venv/bin/python benchmarks/pretrain.py [views] [data] [step] [device] [--rounds 15] [--batch 8]

`views`: the CPU time of making the two global and two local views of one scan as FM-HCT did, by MONAI's transforms
(pad to 224 voxels a side, crop, area resize, flips, offset, smoothing or gamma), and by ours, with the same numbers
drawn for both and the outputs compared. One thread; the ways take turns, so that what else the machine does meets all
of them. Needs MONAI.

`data`: how long a step waits for its scans, where the device is a timed sleep. `step`: a step as published, eager, and
ours, of the same model on the same views. `device`: a whole run from the store, on a GPU where there is one: scans a
second end to end, the share of a step that waits for data, operations a second and their share of the peak, memory,
and what the time goes to. DINO with 2 + 2 views of 96 voxels a side, ViT-B on a GPU with batches eight times as
large, vit-tiny on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headct.encoders import Encoder, build
from headct.encoders.positions import Turns
from headct.encoders.vit import Attention
from headct.encoders.windowing import apply_windows
from headct.preparing.windows import WINDOWS
from headct.pretraining import PretrainSettings, pretrain
from headct.pretraining.feed import Order, batches
from headct.pretraining.loop import LOOK_EVERY, plan_of
from headct.pretraining.objectives import Batch, Objective, Sight, Watched
from headct.pretraining.objectives.dino import Dino, DinoSettings
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
from headct.pretraining.scans import Scans
from headct.pretraining.step import descend, new_optimizer
from headct.pretraining.views import Crops, Seen, ViewSettings, draw_views
from headct.virtual.job import Job
from headct.virtual.job import run as simulate
from headct.virtual.simulated import Simulation

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

# ----------------------------------------------------------------------------------------------------------------- data

RATES = (50, 100, 200, 300, 400, 600, 800)
"""Scans a second that a pretended device would take."""


class NoViews(Objective):
    """Draws the views of DINO, and leaves them to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.dino = DinoSettings()

    @property
    def encoder(self) -> Encoder:
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> object:
        crops = (self.dino.global_crops, self.dino.local_crops)
        return [draw_views(rng, ViewSettings(), one, boxes_mm["scan"]) for one in crops]

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        raise NotImplementedError


def compare_data(rounds: int, batch: int) -> None:
    """How long a step waits for its scans, for devices of several speeds."""
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        simulate(Job(simulation=Simulation(seed=1), patients=12), cohort, progress=lambda *_: None)
        scans, size = Scans([cohort]), 8 * batch
        rows = []
        for rate in RATES:
            feed = batches(scans, NoViews(), Order(0, size, (1.0,)), range(rounds + 3), workers=2, device="cpu")
            for _ in range(3):  # the first ones are read while nothing else is
                next(feed)
            begun_s, waited_s = time.perf_counter(), 0.0
            for _ in range(rounds):
                asked_s = time.perf_counter()
                next(feed)
                waited_s += time.perf_counter() - asked_s
                time.sleep(size / rate)
            taken_s = time.perf_counter() - begun_s
            rows.append((rate, size * rounds / taken_s, waited_s / taken_s))
    print(f"\ndata: batches of {size}, {rounds} each\n\n| device takes, scans/s | got | waiting |\n| --- | --- | --- |")
    for rate, got, share in rows:
        print(f"| {rate} | {got:.0f} | {share:.1%} |")
    sustained = [rate for rate, _, share in rows if share < 0.02]
    print(f"\nhighest rate sustained with less than 2 % waiting: {max(sustained, default=0)} scans/s")


# ----------------------------------------------------------------------------------------------------------------- step


class WrittenOut(Attention):
    """Attention as the published code has it: scores, softmax and sum, one after the other."""

    def forward(self, tokens: Tensor, by: Turns | None = None, attended: Tensor | None = None) -> Tensor:
        rows, length, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def small_dino() -> Dino:
    """FM-HCT's DINO on a ViT of a tenth of its width and a third of its depth."""
    torch.manual_seed(0)
    shape = {"width": 192, "depth": 4, "heads": 3, "mlp_width": 768, "patch": (12, 12, 12), "grid": (8, 8, 8)}
    encoder = build("vit-tiny", **shape)
    settings = replace(DinoSettings.published(), prototypes=4096, published_views=False)
    return Dino(encoder, settings, Sight(ViewSettings(), list(WINDOWS.values())))


def compare_steps(rounds: int, batch: int) -> None:
    """One step of either, on the same views."""
    rng = torch.Generator().manual_seed(0)
    seen = [Seen(torch.rand(batch, 3, *SHAPE, generator=rng), torch.full((batch, 3), 2.0), torch.zeros(()))] * 4
    published, ours = small_dino(), small_dino()
    for module in published.modules():
        if isinstance(module, Attention):
            module.__class__ = WrittenOut
    trained = [weight for weight in published.student.parameters() if weight.requires_grad]
    slow, fast = torch.optim.AdamW(trained, lr=1e-4, foreach=False), new_optimizer(ours)

    def as_published(number: int) -> None:
        loss, _ = published.compared(seen[:2], seen[2:], 500, 1000)
        loss.backward()
        for weight in trained:
            if weight.grad is not None and (ratio := 3.0 / (float(weight.grad.norm()) + 1e-6)) < 1:
                weight.grad.mul_(ratio)
        slow.step()
        slow.zero_grad()
        with torch.no_grad():
            for teacher, student in zip(published.teacher.parameters(), published.student.parameters(), strict=True):
                teacher.mul_(0.994).add_(0.006 * student)

    def as_ours(number: int, precision: torch.dtype | None = None) -> None:
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            loss, _ = ours.compared(seen[:2], seen[2:], 500, 1000)
        loss.backward()
        descend(fast, lr=1e-4, decay=0.04, clip=3.0)
        ours.follow(500, 1000)

    ways = {
        "published, eager, fp32": Way(as_published, batch),
        "ours, fp32": Way(as_ours, batch),
        "ours, bf16": Way(lambda number: as_ours(number, torch.bfloat16), batch),
    }
    report(f"step: 4 views of 96³, batch {batch}, one thread", cpu_seconds(ways, rounds), {})


# --------------------------------------------------------------------------------------------------------------- device


def on_a_device(rounds: int, batch: int) -> None:
    """A whole run, and a profile of a short one."""
    gpu = torch.cuda.is_available()
    warm = LOOK_EVERY if gpu else 3  # steps that pay for allocations and compilation; a GPU's rates are of whole looks
    rounds = LOOK_EVERY * -(-rounds // LOOK_EVERY) if gpu else rounds
    edges = {"shape": SHAPE, "overhang": 0.0}
    crops = DinoSettings(
        global_crops=Crops(views=2, edge_mm=(158.0, 170.0), **edges),
        local_crops=Crops(views=2, edge_mm=(80.0, 100.0), **edges),
    )
    settings = PretrainSettings(
        objectives={"dino": crops},
        encoder="vit-base" if gpu else "vit-tiny",
        steps=warm + rounds,
        batch=8 * batch if gpu else batch,
        precision="bf16" if gpu else "fp32",
        workers=4,
        compile=gpu,
        save_every=10**9,
    )
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        simulate(Job(simulation=Simulation(seed=1), patients=2 * batch), cohort, progress=lambda *_: None)
        flops = plan_of([cohort], settings).flops
        history = pretrain([cohort], Path(folder) / "run", settings).history.iloc[warm:]
        with torch.profiler.profile() as profile:
            pretrain([cohort], Path(folder) / "profiled", replace(settings, steps=warm))
    step_s = flops / 1e12 / history["tflop_s"].mean()  # by the clock of the rates, which waits for the device
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"\ndevice: {name}, {settings.encoder} in {settings.precision}, batches of {settings.batch}\n")
    print(
        "| scans/s | step | waiting for data | TFLOP/s | of the peak | memory |\n| --- | --- | --- | --- | --- | --- |"
    )
    share = f"{history['mfu'].mean():.0%}" if "mfu" in history else "not known"
    print(
        f"| {settings.batch / step_s:.1f} | {step_s:.3f} s | {history['data_s'].mean() / step_s:.1%} "
        f"| {history['tflop_s'].mean():.2f} | {share} | {history['memory_gb'].max():.1f} GB |\n"
    )
    spent = "self_device_time_total" if gpu else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=spent, row_limit=12, max_name_column_width=50))


PARTS: Mapping[str, Callable[[int, int], None]] = {
    "views": compare_views,
    "data": compare_data,
    "step": compare_steps,
    "device": on_a_device,
}


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
