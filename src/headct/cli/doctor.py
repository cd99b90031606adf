"""`headct doctor`: every part of this machine that a job needs is tried, not looked up."""

from __future__ import annotations

import base64
import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from headct.cli.options import Json
from headct.cli.talk import Talk

GB = 1e9
WORKER_GB = 2.0  # memory limit of one reading process
COHORT_GB = 1.0  # 1,400 scans of the default recipe


@dataclass(frozen=True)
class Finding:
    """One thing that was tried. What is not `needed` may be missing; `do` says how to get it."""

    what: str
    works: bool
    found: str
    do: str = ""
    needed: bool = True


def doctor(talk: Talk, *, as_json: Json = False) -> None:
    """Try what this machine has, and say what to install for the rest.

    Ends with 1 if something that every job needs does not work.

    Examples:
        headct doctor
        headct doctor --json
    """
    findings = list(examine())
    columns = ("what", "works", "found", "do", *(["needed"] if as_json else []))
    talk.table([{name: asdict(finding)[name] for name in columns} for finding in findings], as_json=as_json)
    if any(finding.needed and not finding.works for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Every finding, from the ground up; a check that fails is a finding too."""
    checks: tuple[Callable[[], Iterator[Finding]], ...]
    checks = (_python, _machine, _disk, _libraries, _codecs, _torch, _cluster, _key)
    for check in checks:
        yield from check()


def _python() -> Iterator[Finding]:
    yield Finding("headct", True, metadata.version("headct"))
    yield Finding("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _machine() -> Iterator[Finding]:
    cores = usable_cores()
    yield Finding("cores", True, str(cores))
    total, free = memory_bytes()
    enough = free > WORKER_GB * GB
    yield Finding(
        "memory",
        enough,
        f"{total / GB:.1f} GB, {free / GB:.1f} free",
        "" if free > cores * WORKER_GB * GB else f"use --workers {max(1, int(free / GB / WORKER_GB))}: 2 GB for each",
        needed=False,
    )


def usable_cores() -> int:
    """Cores that this process may run on, which a container or a batch system can restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> tuple[int, int]:
    """All memory and what is free of it, as far as this process may use it (Linux control groups included)."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts the file cache, which the system gives back, as available
        values = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(values["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total, used = min(total, int(text)), int(limit.with_name("memory.current").read_text())
        free = min(free, total - used)
    return total, free


def _disk() -> Iterator[Finding]:
    for what, place in (("disk here", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        enough = free > COHORT_GB * GB
        advice = "" if enough else "free some space: a thousand scans of the default recipe take 0.7 GB"
        yield Finding(what, enough, f"{free / GB:.1f} GB free in {place}", advice, needed=False)


def _libraries() -> Iterator[Finding]:
    """Compiled libraries, each really imported: a broken wheel fails here and not in the middle of a job."""
    for module, package in (
        ("numpy", "numpy"),
        ("scipy", "scipy"),
        ("pandas", "pandas"),
        ("pyarrow", "pyarrow"),
        ("pydicom", "pydicom"),
        ("nibabel", "nibabel"),
        ("nrrd", "pynrrd"),
        ("deflate", "deflate"),
        ("isal", "isal"),
        ("blosc2", "blosc2"),
        ("safetensors", "safetensors"),
        ("PIL", "pillow"),
    ):
        yield _imported(module, package)


def _imported(module: str, package: str) -> Finding:
    try:
        importlib.import_module(module)
        return Finding(package, True, metadata.version(package))
    except (ImportError, OSError) as error:  # OSError: a shared library that the wheel needs is missing
        return Finding(package, False, str(error), f"pip install --force-reinstall {package}")


def _codecs() -> Iterator[Finding]:
    from headct.cli.samples import SAMPLES
    from headct.reading.pixels import CODECS

    for syntax in SAMPLES:
        plugin = decodes(syntax)
        yield Finding(
            CODECS[syntax].name,
            bool(plugin),
            f"decoded by {plugin}" if plugin else f"no decoder for {syntax}",
            "" if plugin else "decompress such files first (dcmdjpeg of DCMTK, gdcmconv)",
            needed=False,
        )


def decodes(syntax: str) -> str:
    """The plug-in that reads the sample of this transfer syntax right, the preferred one first; or nothing."""
    import numpy as np
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    from headct.cli.samples import SAMPLES, SIDE
    from headct.reading.pixels import available_plugins

    sample = SAMPLES[syntax]
    buffer = encapsulate([base64.b64decode(sample.codestream)])
    options: dict[str, Any] = {
        "rows": SIDE,
        "columns": SIDE,
        "bits_allocated": 8 if sample.bits == 8 else 16,
        "bits_stored": sample.bits,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": 0,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    for plugin in available_plugins(syntax):
        try:
            decoded, _ = get_decoder(syntax).as_array(buffer, decoding_plugin=plugin, **options)
        except Exception:  # noqa: BLE001  (a decoder that fails in whatever way is one that does not work)
            continue
        if np.abs(decoded.astype(int) - sample.ramp).max() <= sample.tolerance:
            return plugin
    return ""


def _torch() -> Iterator[Finding]:
    finding = _imported("torch", "torch")
    yield finding
    if not finding.works:
        return
    import torch

    yield Finding("torch threads", True, str(torch.get_num_threads()))
    device = ""
    if torch.cuda.is_available():
        device = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    elif torch.backends.mps.is_available():
        device = "Apple GPU (MPS)"
    yield Finding(
        "GPU",
        bool(device),
        device or "none that this PyTorch can use",
        "" if device else "nothing, if the machine has none; else install the PyTorch build for it (pytorch.org)",
        needed=False,
    )


def _cluster() -> Iterator[Finding]:
    try:
        importlib.import_module("distributed")
        yield Finding("--cluster", True, f"dask {metadata.version('distributed')}", needed=False)
    except ImportError:
        yield Finding("--cluster", False, "dask is not installed", "pip install 'dask[distributed]'", needed=False)


def _key() -> Iterator[Finding]:
    """Where the secret behind pseudonyms lies; looked at, never made here."""
    import platformdirs

    path = platformdirs.user_config_path("headct") / "pseudonym-key"  # as in headct.reading.pseudonyms.user_key
    if os.path.exists(path):  # False, and no error, where the way to it is closed
        readable = os.access(path, os.R_OK)
        yield Finding("pseudonyms", readable, f"key {path}", "" if readable else f"chmod u+r {path}")
        return
    place = next(folder for folder in path.parents if os.path.exists(folder))
    writable = place.is_dir() and os.access(place, os.W_OK)
    yield Finding(
        "pseudonyms",
        writable,
        f"no key yet; the first ingest makes {path}" if writable else f"{path} cannot be made: {place} is not writable",
        "" if writable else "name a key of your own: headct ingest --key FILE",
        needed=False,
    )
