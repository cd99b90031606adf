"""From several findings to one that covers them. From several readers to one: `headct.evaluation.cells.combined`."""

from __future__ import annotations

import numpy as np
import pandas as pd


def any_column(labels: pd.DataFrame) -> np.ndarray:
    """Labels (n,): 1 where any of the columns is 1, 0 where all are 0, else NaN, for what is unknown may be there."""
    found = labels.to_numpy(float)
    return np.select([(found == 1).any(axis=1), (found == 0).all(axis=1)], [1.0, 0.0], np.nan)
