"""Runs the examples of README.md and docs/ as tests, each page in a folder of its own that holds a user's scans.

In a page, ```python blocks share their names, and each ```bash block is run line by line. An example that installs
something or takes minutes is told to be skipped by a comment in the page, with the reason.
"""

from __future__ import annotations

import os
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

REPOSITORY = Path(__file__).resolve().parent


def run_shell(example: Example) -> None:
    """Run a block's `headct` lines in the folder of the page, in this process, which has PyTorch loaded already.

    With the warnings of a user, and one worker, since tests run on the other cores.
    """
    from headct.cli.app import run

    lines = str(example.parsed).replace("\\\n", " ").splitlines()
    for line in (line for line in lines if line.strip() and not line.startswith("#")):
        words = shlex.split(line, comments=True)
        assert words[0] == "headct", f"only headct is run in examples, not {line!r}"
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.resetwarnings()
            patch.setattr("headct.cohort.executors.usable_cores", lambda: 1)
            assert run(words[1:]) == 0, line


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scans/` with two heads (one tilted) and a text that is no scan."""
    from headct.virtual.phantom import Phantom
    from headct.writing import write_dicom

    folder = tmp_path_factory.mktemp("user")
    for number, tilt_deg in enumerate((0.0, 12.0)):
        scan = Phantom(seed=number).scan(slices=30, rows=128, cols=128, pixel_mm=1.8, tilt_deg=tilt_deg, noise_hu=4)
        write_dicom(scan, folder / "scans" / f"patient-{number}")
    (folder / "scans" / "notes.txt").write_text("not a scan\n")
    return folder


@pytest.fixture(scope="module")
def page_folder(prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy for one page, entered while its examples run, so that pages do not depend on each other's order."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(prepared_folder, folder, dirs_exist_ok=True)
    left = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(left)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pages and files with slow tests come first, so that no core waits for the last of them at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.path.suffix == ".md"}
    items.sort(key=lambda item: item.path not in long)


pytest_collect_file = Sybil(
    parsers=[SkipParser(), PythonCodeBlockParser(), CodeBlockParser("bash", run_shell)],
    patterns=["README.md", "docs/**/*.md"],
    fixtures=["page_folder"],
).pytest()
