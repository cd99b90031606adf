"""Scans as rows for scikit-learn: `make_pipeline(HeadCTEncoder("..."), LogisticRegression())` works on paths."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from headct import checkpoints
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.embedding.embeddings import Embeddings
from headct.embedding.inputs import Reading
from headct.embedding.machine import choose
from headct.embedding.vectors import gathered, look
from headct.reading import Criteria
from headct.scan import Scan

Row = str | os.PathLike[str] | Scan


class HeadCTEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A scikit-learn transformer: n paths, or scans, to their vectors (n, F) float32.

    Each row of the input is one path (a file, a folder of DICOM slices, an archive) that holds exactly one scan, or one
    `Scan`; a table must have one column. There is always one vector for a row, never a row of zeros. Fitting learns
    nothing from the scans. Parameters are those of `headct.load` and `headct.embed`, which moves a `model` that was
    loaded before to the device and leaves it in evaluation mode.
    """

    def __init__(
        self,
        model: PretrainedEncoder | str | os.PathLike[str] = "ct-fm",
        *,
        batch_size: int = 8,
        workers: int = 1,
        precision: str | None = None,
        device: str | None = None,
        criteria: Criteria | None = None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.workers = workers
        self.precision = precision
        self.device = device
        self.criteria = criteria

    def fit(self, X: Any, y: Any = None) -> HeadCTEncoder:
        """Load the model. Raises what `headct.load` raises."""
        _rows(X)
        self.encoder_ = self.model if isinstance(self.model, PretrainedEncoder) else checkpoints.load(self.model)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Vectors (n, F) float32, in the order of the rows.

        Raises ValueError, naming each row and its reason, where a row is not exactly one scan that can be embedded.
        """
        check_is_fitted(self)
        rows = _rows(X)
        machine = choose(self.precision, self.device, graph=self.encoder_.runtime)
        reading = Reading(recipe=self.encoder_.recipe, criteria=self.criteria or Criteria(), one_for_one=True)
        batches = look(self.encoder_, rows, reading, machine, batch_size=self.batch_size, workers=self.workers)
        found = gathered(self.encoder_, machine, batches)
        scans = np.bincount(found.table["input"], minlength=len(rows))
        if wrong := [
            f"row {row}: {_fault(found, row, int(scans[row]))}" for row in np.flatnonzero(scans != 1).tolist()
        ]:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError("each row must be one scan that can be embedded: " + "; ".join(wrong[:5]) + more)
        return found.vectors

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the F columns."""
        check_is_fitted(self)
        return np.array([f"headct{index}" for index in range(self.encoder_.scan_width)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = True
        return tags


def _rows(X: Any) -> list[Row]:
    if isinstance(X, Cohort):
        raise ValueError("X must be a sequence of paths or scans, got a cohort: headct.embed(cohort, model).vectors")
    if isinstance(X, str | os.PathLike | Scan):
        raise ValueError("X must be a sequence of paths or scans, got one")
    shape: tuple[int, ...] = getattr(X, "shape", (0,))  # a list has none
    if len(shape) == 2 and shape[1] == 1:
        X = np.asarray(X, dtype=object)[:, 0]
    elif len(shape) != 1:
        raise ValueError(f"X must be one column of paths or scans, got the shape {shape}")
    rows = list(X)
    strange = next((row for row in rows if not isinstance(row, str | os.PathLike | Scan)), None)
    if strange is not None:
        hint = "; a cohort is embedded by headct.embed" if isinstance(strange, Cohort) else ""
        raise ValueError(f"each row of X must be a path or a Scan, got {type(strange).__name__}{hint}")
    if not rows:
        raise ValueError("X has no rows")
    return rows


def _fault(found: Embeddings, row: int, scans: int) -> str:
    if scans:
        return f"it holds {scans} scans"
    sentences = found.rejections.loc[found.rejections["input"] == row, "sentence"]
    return str(sentences.iloc[0]) if len(sentences) else "nothing was found there"
