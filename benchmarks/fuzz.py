"""Feed the reader mutated files and see that each ends as a scan or a rejection.

    .venv/bin/python benchmarks/fuzz.py --inputs 20000 [--seeds FOLDER] [--keep FOLDER] [--seed 0]

Seeds are small phantoms in every format and transfer syntax that can be written, and every small file of the folder
that you name. Each mutant is read in a worker process with the limits below. The table says how many ended with
which code, how many took a worker with them (the job survives that; the decoder did not), and the slowest. Ends with 1
if reading raised, a worker crashed, or a limit was reached.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import importlib
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from headct.reading import read
from headct.reading.isolation import Cell, CellDied
from headct.scan import Rejection, Scan
from headct.virtual.phantom import Phantom
from headct.writing import TRANSFER_SYNTAXES, write_dicom, write_nifti

LIMIT_S = 10.0
LIMIT_BYTES = 2 << 30
SEED_BYTES = 1 << 20  # larger seeds make slow mutants and find nothing more

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

DICOM_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x20\x00", b"\x28\x00", b"\xfe\xff", b"\xe0\x7f", b"\x00\x52")
"""Groups whose elements decide how a file is read: meta, identity, geometry, pixel description, items, pixel data."""

WRONG = ("DIED", "RAISED", "NOTHING")
"""How the outcomes begin that must not be."""

Mutation = Callable[[bytearray, np.random.Generator], bytearray]


def flip_bytes(data: bytearray, random: np.random.Generator) -> bytearray:
    """Replace a few bytes, mostly in the header."""
    reach = len(data) if random.random() < 0.3 else min(len(data), 2048)
    for place in random.integers(0, reach, size=random.integers(1, 16)):
        data[place] = random.integers(256)
    return data


def cut(data: bytearray, random: np.random.Generator) -> bytearray:
    """Keep only the beginning."""
    return data[: random.integers(0, len(data))]


def drop(data: bytearray, random: np.random.Generator) -> bytearray:
    """Take a piece out, so that everything after it has moved."""
    start = int(random.integers(0, len(data)))
    del data[start : start + int(random.integers(1, 512))]
    return data


def repeat(data: bytearray, random: np.random.Generator) -> bytearray:
    """Put a piece in a second time."""
    start = int(random.integers(0, len(data)))
    piece = data[start : start + int(random.integers(1, 512))]
    place = int(random.integers(0, len(data)))
    return data[:place] + piece + data[place:]


def put_extreme(data: bytearray, random: np.random.Generator) -> bytearray:
    """Write a number that lies on an edge, at an even offset of the header."""
    width = int(random.choice([2, 4]))
    place = 2 * int(random.integers(0, max(1, min(len(data), 4096) // 2 - 2)))
    value = int(random.choice(EXTREMES)) & (2 ** (8 * width) - 1)
    data[place : place + width] = value.to_bytes(width, str(random.choice(["little", "big"])))  # type: ignore[arg-type]
    return data


def break_element(data: bytearray, random: np.random.Generator) -> bytearray:
    """Find a DICOM element of a group that matters and break its VR, its length or its value."""
    group = DICOM_GROUPS[random.integers(len(DICOM_GROUPS))]
    places = _occurrences(data, group)
    if not places:
        return put_extreme(data, random)
    place = places[random.integers(len(places))]
    value = int(random.choice(EXTREMES))
    what = random.integers(4)
    if what == 0:
        data[place + 4 : place + 6] = bytes(random.choice(list(b"UILOSQOBOWDSISUSFDUN"), size=2).tolist())
    elif what == 1:
        data[place + 6 : place + 8] = (value & 0xFFFF).to_bytes(2, "little")
    elif what == 2:
        data[place + 8 : place + 12] = value.to_bytes(4, "little")
    else:
        data[place + 8 : place + 10] = (value & 0xFFFF).to_bytes(2, "little")
    return data


def _occurrences(data: bytearray, group: bytes) -> list[int]:
    found, place = [], data.find(group)
    while place >= 0 and len(found) < 64:
        if place % 2 == 0:
            found.append(place)
        place = data.find(group, place + 1)
    return found


MUTATIONS: tuple[Mutation, ...] = (flip_bytes, cut, drop, repeat, put_extreme, break_element, break_element)


def mutate(seed: Path, random: np.random.Generator) -> bytes:
    """One mutant of a seed; what is inside gzip is mutated half of the time and compressed again."""
    data = bytearray(seed.read_bytes())
    inside = data[:2] == b"\x1f\x8b" and random.random() < 0.5
    if inside:
        data = bytearray(gzip.decompress(data))
    for _ in range(random.integers(1, 4)):
        data = MUTATIONS[random.integers(len(MUTATIONS))](data, random) or bytearray(b"\0")
    return gzip.compress(bytes(data), 1) if inside else bytes(data)


def plant_seeds(folder: Path, more: Path | None) -> list[Path]:
    """Small phantoms in every format, and the small files of `more`."""
    scan = Phantom(0).scan(slices=3, rows=32, cols=32, pixel_mm=7.0, noise_hu=3)
    for syntax in TRANSFER_SYNTAXES:
        write_dicom(scan, folder / syntax, transfer_syntax=syntax)
    for name in ("volume.nii", "volume.nii.gz"):
        write_nifti(scan, folder / name)
    with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / next(iter(TRANSFER_SYNTAXES))).iterdir()):
            archive.write(file, file.name)
    shutil.make_archive(str(folder / "series"), "gztar", folder / next(iter(TRANSFER_SYNTAXES)))
    seeds = [path for root in filter(None, (folder, more)) for path in sorted(root.rglob("*")) if path.is_file()]
    return [path for path in seeds if 0 < path.stat().st_size <= SEED_BYTES]


def outcomes(path: str) -> list[str]:
    """What reading one mutant gives: "scan" or a rejection's code for each thing in it."""
    return [_outcome(item) for item in read([path], isolated=False)]


def _outcome(item: Scan | Rejection) -> str:
    return item.code if isinstance(item, Rejection) else "scan"


def fuzz(seeds: list[Path], inputs: int, seed: int, keep: Path | None) -> Iterator[tuple[str, float]]:
    """The outcome and the seconds of each mutant in turn."""
    cell = Cell(memory_bytes=LIMIT_BYTES, time_s=LIMIT_S)
    read_there = importlib.import_module(Path(__file__).stem).outcomes  # a cell cannot import from __main__
    with tempfile.TemporaryDirectory() as folder:
        for number in range(inputs):
            random = np.random.default_rng((seed, number))
            origin = seeds[random.integers(len(seeds))]
            mutant = Path(folder) / f"{number}{''.join(origin.suffixes[-2:])}"
            mutant.write_bytes(mutate(origin, random))
            start = time.perf_counter()
            try:
                codes = cell.run(read_there, str(mutant)) or ["NOTHING SAID"]
            except CellDied as death:
                codes = [f"DIED {death.reason}"]
            except Exception as error:  # noqa: BLE001 - what reading raises is what this looks for
                codes = [f"RAISED {type(error).__name__}: {error}"]
            took_s = time.perf_counter() - start
            for code in codes:
                yield code, took_s
            if keep and codes[0].startswith(WRONG):
                shutil.copy(mutant, keep / f"{number}-{origin.name}")
            mutant.unlink()
    cell.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seeds", type=Path, help="more files to mutate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to copy the mutants that went wrong")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    counts: collections.Counter[str] = collections.Counter()
    slowest_s = 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        seeds = plant_seeds(Path(folder), options.seeds)
        print(f"{options.inputs} mutants of {len(seeds)} seeds", file=sys.stderr)
        for done, (outcome, took_s) in enumerate(fuzz(seeds, options.inputs, options.seed, options.keep)):
            counts[outcome] += 1
            slowest_s = max(slowest_s, took_s)
            if done % 1000 == 999:
                print(f"{done + 1} outcomes, {(done + 1) / (time.perf_counter() - start):.0f}/s", file=sys.stderr)
    for outcome, count in counts.most_common():
        print(f"{count:8d}  {outcome}")
    wrong = sum(count for outcome, count in counts.items() if outcome.startswith(WRONG))
    print(f"{options.inputs} inputs, slowest {slowest_s:.2f} s, gone wrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
