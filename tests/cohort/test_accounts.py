"""Whatever lies in a folder, every file of it has one outcome, and the sums are right.

Trees are drawn at random from real pieces: slices, copies, fragments, letters, links, archives, folders in folders.
"""

from __future__ import annotations

import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from cohort.folders import assert_adds_up, outcomes

from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.reading.criteria import Criteria


@pytest.fixture(scope="module")
def slices(demo: Path) -> list[Path]:
    """Files of several series."""
    return [path for folder in ("patient-02", "patient-03") for path in sorted((demo / folder / "head").iterdir())]


class Tree:
    """A random tree, and the names that a table of its files must have."""

    def __init__(self, folder: Path, seed: int, slices: list[Path]) -> None:
        self.folder, self.names = folder, set[str]()
        self._random = random.Random(seed)
        self._slices = slices
        self._grow(folder, depth=0)

    def _grow(self, folder: Path, depth: int) -> None:
        folder.mkdir(parents=True)
        for number in range(self._random.randint(1, 6)):
            kind = self._random.choice([self._series, self._fragment, self._letter, self._link, self._archive, None])
            place = folder / f"{number} é{kind.__name__ if kind else ''}"
            if kind is not None:
                kind(place)
            elif depth < 2:
                self._grow(place, depth + 1)

    def _found(self, path: Path, inside: str = "") -> None:
        self.names.add(str(path.relative_to(self.folder.parent)) + inside)

    def _series(self, place: Path) -> None:
        place.mkdir()
        some = sorted(self._random.sample(self._slices, self._random.randint(1, 30)))
        for number, path in enumerate(some):
            shutil.copy(path, place / f"IM{number}")
            self._found(place / f"IM{number}")

    def _fragment(self, place: Path) -> None:
        whole = self._random.choice(self._slices).read_bytes()
        place.write_bytes(whole[: self._random.randint(0, len(whole))])
        self._found(place)

    def _letter(self, place: Path) -> None:
        place.write_bytes(self._random.randbytes(self._random.choice([0, 1, 200, 5000])))
        self._found(place)

    def _link(self, place: Path) -> None:
        place.symlink_to(self._random.choice([self.folder / "nowhere", self.folder, place]))
        self._found(place)

    def _archive(self, place: Path) -> None:
        some = self._random.sample(self._slices, 4)
        if self._random.random() < 0.5:
            with zipfile.ZipFile(place, "w") as archive:
                for number, path in enumerate(some):
                    archive.write(path, f"d/{number}")
        else:
            with tarfile.open(place, "w:gz") as archive:
                for number, path in enumerate(some):
                    archive.add(path, f"d/{number}")
        for number in range(len(some)):
            self._found(place, f"/d/{number}")


@pytest.mark.parametrize("seed", range(6))
def test_a_random_tree(seed: int, slices: list[Path], key: Path, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "in", seed, slices)
    criteria = Criteria(check_head=False, min_slices=1)
    summary = ingest([tree.folder], tmp_path / "cohort", criteria=criteria, workers=2, key=key)
    cohort = Cohort(tmp_path / "cohort")
    assert_adds_up(cohort, tree.names)
    assert summary.files_read + summary.files_rejected == summary.files_found == len(tree.names)
    assert sum(summary.rejected_files.values()) == summary.files_rejected
    assert sum(outcome in set(cohort) for outcome in outcomes(cohort).values()) == summary.files_read
    for scan_id in cohort:
        assert cohort.array(scan_id).shape == (96, 112, 96)
