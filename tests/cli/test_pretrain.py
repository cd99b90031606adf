"""The names that help gives are those that there are: it cannot wait for PyTorch to ask."""

from __future__ import annotations

import re

from headct.cli.pretrain import ENCODERS, OBJECTIVES
from headct.encoders import ARCHITECTURES
from headct.pretraining import objectives


def names(text: str) -> list[str]:
    return sorted(re.split(r", | or ", text))


def test_help_names_every_objective_and_every_encoder() -> None:
    assert names(OBJECTIVES) == sorted(objectives.OBJECTIVES)
    assert names(ENCODERS) == sorted(ARCHITECTURES)
