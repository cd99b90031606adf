"""From several readers to one label."""

from __future__ import annotations

import numpy as np
import pandas as pd


def majority(votes: np.ndarray) -> np.ndarray:
    """Labels (n,) from votes (n, readers) of 1, 0 and NaN: what more than half of the readers say, else NaN.

    A reader who did not vote counts among them, so that one vote of three is no majority.
    """
    half = votes.shape[1] / 2
    return np.select([np.nansum(votes == 1, axis=1) > half, np.nansum(votes == 0, axis=1) > half], [1.0, 0.0], np.nan)


def any_reader(votes: np.ndarray) -> np.ndarray:
    """Labels (n,) from votes (n, readers): 1 where one reader says so, 0 where all say 0, else NaN."""
    return np.select([(votes == 1).any(axis=1), (votes == 0).all(axis=1)], [1.0, 0.0], np.nan)


def any_column(labels: pd.DataFrame) -> np.ndarray:
    """Labels (n,): 1 where any of the columns is 1, 0 where all are 0, else NaN."""
    return any_reader(labels.to_numpy(float))
