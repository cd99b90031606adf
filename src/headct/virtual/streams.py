"""Chance in named streams: what one stage draws never changes what another draws, so that twins exist."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(seed: int, stage: str) -> np.random.Generator:
    """The generator of one stage of one patient, such as `anatomy`, `iph` or `acquisition/site-a`."""
    return np.random.default_rng([seed, crc32(stage.encode())])
