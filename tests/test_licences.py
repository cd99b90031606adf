"""No dependency brings the (L)GPL: a hospital must be able to build on this.

Walks what is required, transitively, and reads each package's own statement. An extra that only developers install may
be under the MPL, which asks nothing of those who merely use it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]

PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|0BSD|BSD|BSD-[234]-Clause|Apache|Apache-2\.0|ISC|PSF|PSF-2\.0|Python-2\.0|"
    r"Python Software Foundation|HPND|MIT-CMU|Zlib|CC0-1\.0|Unlicense|BSL-1\.0|NCSA|Historical Permission Notice)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|GNU|EUPL|CC-BY-NC|CC-BY-SA|SSPL|Proprietary)", re.IGNORECASE)
MOZILLA = re.compile(r"\b(MPL|Mozilla)\b", re.IGNORECASE)

READ_IN_THE_PACKAGE = {"dcm2niix": "BSD-2-Clause AND MIT"}
"""Licences of packages whose metadata do not say; each was read in the package's own licence file."""

MOZILLA_IN_CORE = {"certifi", "tqdm"}
"""Used as they are, which the MPL leaves free: root certificates, and the progress bars of huggingface_hub."""

RUNTIME_OF_TORCH = re.compile(r"^(nvidia-|cuda-|triton)")
"""PyTorch's own CUDA build brings these; we require none of them."""


def required(lines: Iterable[str]) -> Iterator[metadata.Distribution]:
    """Installed distributions that these requirements need, each once."""
    todo, done = [Requirement(line) for line in lines], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if RUNTIME_OF_TORCH.match(name) or (name, *sorted(requirement.extras)) in done:
            continue
        distribution = metadata.distribution(name)
        if name not in {first for first, *_ in done}:
            yield distribution
        done.add((name, *sorted(requirement.extras)))
        for line in distribution.requires or []:
            further = Requirement(line)
            if further.marker is None or any(
                further.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                todo.append(further)


def licence(distribution: metadata.Distribution) -> str:
    """What the package says of itself: the SPDX expression, else its classifiers, else the first line of the text."""
    name = canonicalize_name(distribution.metadata["Name"])
    if name in READ_IN_THE_PACKAGE:
        return READ_IN_THE_PACKAGE[name]
    if expression := distribution.metadata.get("License-Expression"):
        return str(expression)
    classifiers = distribution.metadata.get_all("Classifier") or []
    stated = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    stated = [line for line in stated if line not in ("OSI Approved", "DFSG approved")]
    return ", ".join(stated) or str(distribution.metadata.get("License") or "").partition("\n")[0]


def may_be_used(text: str, *, mozilla: bool) -> bool:
    """Of alternatives ("A OR B") one permissive suffices; of what applies together ("A AND B") all must be."""
    alternatives = re.split(r"\bOR\b", text)
    return any(
        all(
            not COPYLEFT.search(part) and bool(PERMISSIVE.search(part) or (mozilla and MOZILLA.search(part)))
            for part in re.split(r"\bAND\b|,", alternative)
        )
        for alternative in alternatives
    )


EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("part", ["core", *EXTRAS])
def test_every_licence_is_known_and_permissive(part):
    lines = PROJECT["dependencies"] if part == "core" else EXTRAS[part]
    found = {canonicalize_name(package.metadata["Name"]): licence(package) for package in required(lines)}
    assert len(found) > len(lines) // 2
    allowed = set(found) if part in ("dev", "docs") else MOZILLA_IN_CORE
    assert {name: text for name, text in found.items() if not may_be_used(text, mozilla=name in allowed)} == {}


@pytest.mark.parametrize(
    ("text", "core", "dev"),
    [
        ("BSD-3-Clause AND MIT AND Zlib", True, True),
        ("GNU General Public License v3 or later (GPLv3+)", False, False),
        ("LGPL-3.0-or-later", False, False),
        ("MIT OR GPL-2.0", True, True),
        ("MIT AND LGPL-2.1", False, False),
        ("MPL-2.0", False, True),
        ("", False, False),
        ("see the file", False, False),
    ],
)
def test_the_judge_itself(text, core, dev):
    assert may_be_used(text, mozilla=False) is core
    assert may_be_used(text, mozilla=True) is dev


def test_the_gpl_codec_stays_out():
    """pylibjpeg-libjpeg decodes what python-gdcm decodes, under the GPL; pylibjpeg's extra would bring it."""
    everything = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    names = {canonicalize_name(distribution.metadata["Name"]) for distribution in required(everything)}
    assert "pylibjpeg" in names
    assert "pylibjpeg-libjpeg" not in names
