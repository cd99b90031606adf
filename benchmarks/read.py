"""How fast files are decoded: gzip, and each transfer syntax by each codec that offers it.

    python benchmarks/read.py [--rounds 5]

A drawn head with noise: 512 x 512 x 100 slices of 1.6 mm, int16, as .nii.gz, and 16 of its slices in every transfer
syntax that can be written. One thread, from the page cache, the best of several rounds; ratios are of times of this
run. Decoded values are compared with what was written.
"""

from __future__ import annotations

import argparse
import gzip as standard_gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import SimpleITK
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, HTJ2KLossless

from headct.reading import gzip, read
from headct.reading.files import Source, find
from headct.reading.instances import Instance, read_header
from headct.reading.pixels import CODECS, Frames, available_plugins
from headct.scan import Scan
from headct.virtual.phantom import Phantom
from headct.writing import TRANSFER_SYNTAXES, write_dicom, write_nifti

SLICES, DECODED = 100, 16
LIMIT_BYTES = 1 << 31


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    scan = Phantom(0).scan(slices=SLICES, rows=512, cols=512, pixel_mm=0.45, gap_mm=1.6, noise_hu=6.0)
    with tempfile.TemporaryDirectory() as folder:
        time_gzip(scan, Path(folder), rounds)
        time_codecs(scan, Path(folder), rounds)


def time_gzip(scan: Scan, folder: Path, rounds: int) -> None:
    """A .nii.gz to bytes and to voxels; the rate is of what comes out."""
    path = write_nifti(scan, folder / "scan.nii.gz")
    data = path.read_bytes()
    size_mb = scan.hu.nbytes / 1e6
    print(f"{f'.nii.gz, {len(data) / 1e6:.0f} MB to {size_mb:.0f} MB':46} {'MB/s':>7} {'ratio':>7}")
    ways: dict[str, Callable[[], Any]] = {
        "nibabel, get_fdata()": lambda: nibabel.load(path).get_fdata(),
        "nibabel, dataobj as stored": lambda: np.asarray(nibabel.load(path).dataobj),
        "Python's gzip, to bytes": lambda: standard_gzip.decompress(data),
        "ours (libdeflate), to bytes": lambda: gzip.decompress(data, LIMIT_BYTES),
        "ours, to a Scan": lambda: next(iter(read([path], isolated=False))),
    }
    stored = np.asarray(nibabel.load(path).dataobj)
    assert np.array_equal(next(iter(read([path], isolated=False))).hu.T, stored), "other voxels"
    baseline_s = 0.0
    for name, way in ways.items():
        seconds = best(way, rounds)
        baseline_s = seconds if name.startswith("nibabel, dataobj") else baseline_s
        ratio = f"{baseline_s / seconds:6.1f}x" if baseline_s else "      -"
        print(f"{name:46} {size_mb / seconds:7.0f} {ratio}", flush=True)


def time_codecs(scan: Scan, folder: Path, rounds: int) -> None:
    """Files to slices. «*» is what reading takes; ratios are to it."""
    few = replace(scan, hu=scan.hu[40 : 40 + DECODED], origins_mm=scan.origins_mm[40 : 40 + DECODED])
    print(f"\n{'transfer syntax':26} {'kB':>5}  {'decoder':22} {'ms/slice':>9} {'slices/s':>9} {'ratio':>7}")
    for name, paths in written(few, folder):
        syntax = pydicom.dcmread(paths[0], stop_before_pixels=True).file_meta.TransferSyntaxUID
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        stored = [pydicom.dcmread(path).pixel_array for path in paths]
        ours_ms = 0.0
        for decoder, decode in decoders(paths, syntax):
            for got, wanted in zip(decode(), stored, strict=True):
                assert np.array_equal(np.squeeze(got), wanted) or decoder == "SimpleITK", (name, decoder)
            ms = best(decode, rounds) * 1e3 / len(paths)
            ours_ms = ours_ms or ms
            print(
                f"{name:26} {kilobytes:5.0f}  {decoder:22} {ms:9.2f} {1e3 / ms:9.0f} {ms / ours_ms:6.2f}x", flush=True
            )


def written(scan: Scan, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """One series in each transfer syntax that an encoder at hand can write."""
    for name in TRANSFER_SYNTAXES:
        yield name, write_dicom(scan, folder / name, transfer_syntax=name)
    paths = write_dicom(scan, folder / "htj2k")
    for path in paths:
        image = pydicom.dcmread(path)
        image.PixelData = encapsulate([imagecodecs.htj2k_encode(image.pixel_array, reversible=True)])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = HTJ2KLossless
        image.save_as(path)
    yield "htj2k", paths


def decoders(paths: list[Path], syntax: UID) -> Iterator[tuple[str, Callable[[], list[np.ndarray]]]]:
    """Ours first, then every other way to the same values that is installed."""
    headers = [header for path in paths for header in read_header(one_source(path)) if isinstance(header, Instance)]

    def ours() -> list[np.ndarray]:
        with Frames() as frames:
            return [frames.decode(header).stored for header in headers]

    plugins = available_plugins(syntax)
    yield f"* {plugins[0] if plugins else 'numpy'}", ours
    if not CODECS[syntax].plugins:
        yield "pydicom", lambda: [pydicom.dcmread(path).pixel_array for path in paths]
    else:
        for plugin in sorted(set(get_decoder(syntax).available_plugins) - set(plugins[:1])):
            yield plugin, partial(by_plugin, paths, syntax, plugin)
    if syntax != HTJ2KLossless:  # its reader does not know it
        yield "SimpleITK", lambda: [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)) for path in paths]


def by_plugin(paths: list[Path], syntax: UID, plugin: str) -> list[np.ndarray]:
    decoder = get_decoder(syntax)
    return [decoder.as_array(pydicom.dcmread(path), index=0, raw=True, decoding_plugin=plugin)[0] for path in paths]


def one_source(path: Path) -> Source:
    (source,) = find([path])
    assert isinstance(source, Source), source
    return source


def best(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the best round."""
    best_s = float("inf")
    for _ in range(rounds):
        started_s = time.perf_counter()
        run()
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s


if __name__ == "__main__":
    main()
