"""What an encoder is worth to a segmenter with few labels, and what drawing on a large scan takes.

    .venv/bin/python benchmarks/segment.py curve MODEL --train COHORT --test COHORT [--shots 2 4 8 16 32 64] [--draws 1]
    .venv/bin/python benchmarks/segment.py memory SEGMENTER [--slices 200]

`curve`: for each number of patients, drawn by a seed and nested, the same decoder on the model's encoder, on its
frozen encoder, on the same architecture from scratch, and on its random frozen features (validation patients, a share
of the cohort, come on top and choose the step, the same ones for every number of patients); with --beside, CT-FM's
architecture from scratch too. Dice is the mean over classes of their means over scans that have them, misses 0, on
patients that nobody learned from, with intervals over draws of patients; differences are paired. Cohorts hold masks/.
`memory`: a virtual head of 512 x 512 is drawn on, and the largest memory of the process and its seconds are told.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from headct import checkpoints, encoders
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.embedding.machine import choose
from headct.evaluation.intervals import Estimate
from headct.failure import Misuse
from headct.preparing import prepare
from headct.tasks.segmentation import (
    Agreement,
    Masks,
    Schedule,
    Segmenter,
    TrainSettings,
    fit,
    gathered,
    judge_segmenter,
)
from headct.tasks.segmentation.predicting import on_both_grids
from headct.tasks.segmentation.windows import Probabilities

CLASSES = "brain,ventricles,skull,edema,tumor,iph,ivh,sah,sdh,edh"


def ways(
    encoder: PretrainedEncoder, beside: bool, folder: Path
) -> Mapping[str, tuple[PretrainedEncoder, dict[str, object]]]:
    """Encoder and settings by name; what the first is compared with follows it."""
    found: dict[str, tuple[PretrainedEncoder, dict[str, object]]] = {
        "pre-trained": (encoder, {}),
        "pre-trained, frozen": (encoder, {"frozen": True}),
        "from scratch": (encoder, {"initial": "random"}),
        "random, frozen": (encoder, {"initial": "random", "frozen": True}),
    }
    if beside:
        torch.manual_seed(0)
        ct_fm = encoders.build("segresenc", channels=encoder.channels, init_filters=8)
        checkpoints.save(folder / "segresenc", ct_fm, encoder.card)
        found["CT-FM's, from scratch"] = (checkpoints.load(folder / "segresenc"), {"initial": "random"})
    return found


def told(name: str, one: Estimate) -> str:
    return f"{name} {one.written()}"


def curve(options: argparse.Namespace) -> None:
    machine = choose("fp32", options.device)
    encoder = checkpoints.load(options.model)
    train: list[Masks] = gathered([Cohort(options.train)], [], options.classes)
    test: list[Masks] = gathered([Cohort(options.test)], [], options.classes)
    plain = TrainSettings(
        validation=options.validation, schedule=Schedule(steps=options.steps, batch=options.batch, lr=options.lr)
    )
    print(f"{len(test[0].scan_ids)} test scans, {options.steps} steps, {machine}")
    with TemporaryDirectory() as folder:
        kinds = ways(encoder, options.beside, Path(folder))
        if unknown := sorted(set(options.only or ()) - kinds.keys()):
            raise Misuse(f"there is no way {unknown[0]!r}", do=f"name some of {', '.join(kinds)}")
        kinds = {name: kinds[name] for name in options.only or kinds}
        for draw in range(options.draws):
            for shots in options.shots:
                first: Agreement | None = None
                for name, (model, settings) in kinds.items():
                    begun_s = time.monotonic()
                    how = dataclasses.replace(plain, shots=shots, seed=draw, **settings)
                    fitted = fit(train, model, machine, how)
                    if options.out:
                        fitted.save(options.out / f"{draw}-{shots}-{name.replace(' ', '-')}")
                    found = judge_segmenter(test, fitted.segmenter, machine).agreement
                    all_ = found.estimates()["all"]["dice"]
                    line = f"draw {draw}, {shots:3d} patients, {told(f'{name:24s} Dice', all_)}"
                    if first is None:
                        first = found
                    else:
                        line += f", {told('the first less it', first.differences(found)['all'])}"
                    print(f"{line}, {time.monotonic() - begun_s:.0f} s", flush=True)
                    if options.each:
                        for of, some in found.estimates().items():
                            print(f"    {told(of, some['dice'])}, n = {some['dice'].n}")


def timed(probabilities: Probabilities, seconds: dict[str, float]) -> Probabilities:
    """The same, and the seconds that the making of its slabs takes, which are made as they are gone through."""
    seconds["network"] = 0.0

    def slabs(along: int) -> Iterator[torch.Tensor]:
        making = probabilities.slabs(along)
        while True:
            begun_s = time.monotonic()
            slab = next(making, None)
            seconds["network"] += time.monotonic() - begun_s
            if slab is None:
                return
            yield slab
            del slab  # so that it is not there beside the next one

    return Probabilities(probabilities.shape, slabs)


def memory(options: argparse.Namespace) -> None:
    from headct.virtual.phantom import Phantom

    segmenter, machine = Segmenter.load(options.segmenter), choose("fp32", options.device)
    slices = options.slices
    scan = Phantom(0).scan(slices=slices, gap_mm=160 / slices, rows=512, cols=512, pixel_mm=0.45, tilt_deg=12.0)
    before_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begun_s = time.monotonic()
    prepared = prepare(scan, segmenter.recipe, check_head=False)
    seconds = {"prepare": time.monotonic() - begun_s}
    probabilities = segmenter.on(machine).probabilities(prepared.array, prepared.affine, machine)
    begun_s = time.monotonic()
    numbers = on_both_grids(scan, timed(probabilities, seconds), prepared.affine)[0]
    seconds["to the scanner's grid"] = time.monotonic() - begun_s - seconds["network"]
    most_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{scan.hu.shape}, {len(segmenter.classes)} classes, recipe {segmenter.recipe.name}, {np.unique(numbers)}")
    print(f"largest memory {most_gb:.2f} GiB, of which {before_gb:.2f} with the scan and the network alone")
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device")
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("curve")
    part.add_argument("model")
    part.add_argument("--train", type=Path, required=True)
    part.add_argument("--test", type=Path, required=True)
    part.add_argument("--classes", default=CLASSES)
    part.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    part.add_argument("--draws", type=int, default=1)
    part.add_argument("--steps", type=int, default=600)
    part.add_argument("--batch", type=int, default=2)
    part.add_argument("--lr", type=float, default=1e-3)
    part.add_argument("--validation", type=float, default=0.1)
    part.add_argument("--beside", action="store_true")
    part.add_argument("--each", action="store_true")
    part.add_argument("--only", nargs="+", metavar="WAY", help="some of the ways by their names, for longer trainings")
    part.add_argument("--out", type=Path, help="keep the segmenters in this folder")
    part.set_defaults(do=curve)
    part = parts.add_parser("memory")
    part.add_argument("segmenter")
    part.add_argument("--slices", type=int, default=200)
    part.set_defaults(do=memory)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
