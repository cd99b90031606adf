"""A finished cohort: a folder of tables and shards, read lazily."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator
from difflib import get_close_matches
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.cohort import publish
from headct.cohort.shards import Shards
from headct.cohort.tables import read_table
from headct.failure import Failure, Misuse
from headct.preparing.recipe import Recipe
from headct.reporting.words import count


class Cohort:
    """The prepared scans in a folder that `headct ingest` has written.

    Opening reads `cohort.json` only; tables and shards follow when asked for. A pickled cohort is its path, so it
    travels cheaply to workers; several threads may read from one. Raises Failure where the folder is no finished
    cohort, is damaged, or has a newer format.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        self.about = publish.read_about(self.path)
        self._shards = Shards(self.path / "volumes")

    def __reduce__(self) -> tuple[Any, ...]:
        return Cohort, (self.path.absolute(),)

    def __repr__(self) -> str:
        return f"Cohort({str(self.path)!r}, {count(len(self), 'scan')}, recipe {self.about['recipe']['id']})"

    def __len__(self) -> int:
        return int(self.about["counts"]["scans"])

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe by which every array was prepared."""
        return Recipe.from_json(json.dumps(self.about["recipe"]["content"]))

    @cached_property
    def scans(self) -> pd.DataFrame:
        """A row per scan, in the order in which they were found; columns as in `headct.cohort.tables.SCANS`."""
        return self._table("scans")

    @cached_property
    def rejections(self) -> pd.DataFrame:
        """A row per rejected series or file: code, sentence, remedy, files."""
        return self._table("rejections")

    @cached_property
    def files(self) -> pd.DataFrame:
        """A row per input file: path, bytes, outcome (a scan id or a rejection code)."""
        return self._table("files")

    def array(self, scan_id: str) -> np.ndarray:
        """The prepared array of a scan, as its recipe makes it; our own recipes give int16 HU (X, Y, Z), RAS.

        A new array at each call. Raises Misuse for an unknown id, Failure where the shard is missing or damaged.
        """
        row = self._row(scan_id)
        return self._shards.array(row["shard"], row["index"], row["crc32"])

    def affine(self, scan_id: str) -> np.ndarray:
        """The (4, 4) matrix from voxel (i, j, k) of the array to RAS mm. Raises Misuse for an unknown id."""
        return np.array(self._row(scan_id)["affine"]).reshape(4, 4)

    def expect(self, recipe: Recipe) -> None:
        """Raises Misuse, naming both, where the arrays were prepared by another recipe than a model's."""
        if self.recipe.id != recipe.id:
            raise Misuse(
                f"cohort {self.path.name} uses recipe {self.recipe.name} ({self.recipe.id}), "
                f"the model uses {recipe.name} ({recipe.id})",
                why="features of differently prepared scans cannot be compared",
                do=f"make the cohort again with --recipe {recipe.name}, or choose another model",
            )

    def __iter__(self) -> Iterator[str]:
        """The ids of the scans, in the order of the table."""
        return iter(self._rows)

    def __contains__(self, scan_id: object) -> bool:
        return scan_id in self._rows

    def _row(self, scan_id: str) -> dict[Hashable, Any]:
        try:
            return self._rows[scan_id]
        except KeyError:
            near = get_close_matches(str(scan_id), self._rows, n=1)
            hint = f"did you mean {near[0]}?" if near else "its ids are in the column scan_id of .scans"
            raise Misuse(f"no scan {scan_id!r} in cohort {self.path}", do=hint) from None

    @cached_property
    def _rows(self) -> dict[str, dict[Hashable, Any]]:
        columns = self.scans[["scan_id", "shard", "index", "crc32", "affine"]]
        return dict(zip(columns["scan_id"], columns.to_dict("records"), strict=True))

    def _table(self, name: str) -> pd.DataFrame:
        if publish.read_about(self.path) != self.about:
            raise Failure(f"the cohort {self.path} was added to since it was opened", do="open it again")
        return read_table(self.path / f"{name}.parquet", self.about["tables"][name]["sha256"]).to_pandas()
