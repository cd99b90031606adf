"""What every finding can do: push the brain aside, add smooth fields, paint tissue, paint bone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch

from headct.virtual.bending import Coarse
from headct.virtual.tissue import Brain, Skull


class Finding(ABC):
    """One finding of one patient: a frozen value, drawn from a stream of its own. By itself it changes nothing."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """One such finding, its size and place left to chance, down to what can hardly be seen."""

    def without_oedema(self) -> Self:
        """The same without the swelling that it brings about around itself."""
        return self

    def push(self, coarse: Coarse) -> torch.Tensor:
        """How far the brain map moves (n, 3) in template mm at the coarse points."""
        return torch.zeros_like(coarse.template_mm)

    def widens(self, coarse: Coarse) -> torch.Tensor:
        """How far tissue gives way (n,) to wider ventricles, patient mm; negative where they are pressed shut."""
        return torch.zeros_like(coarse.cavity_mm)

    def fills(self, coarse: Coarse) -> torch.Tensor:
        """Coarse points (n,), bool, that its own material takes up: what lies there has not been moved."""
        return torch.zeros_like(coarse.cavity_mm, dtype=torch.bool)

    def fields(self, coarse: Coarse) -> Mapping[str, torch.Tensor]:
        """Smooth fields (n,) by name, which are summed over findings; of `swelling` the greatest counts."""
        return {}

    def paint(self, brain: Brain) -> None:  # noqa: B027  # most findings change one of the two
        """Change the brain's values."""

    def paint_bone(self, skull: Skull) -> None:  # noqa: B027
        """Change the values of skull and scalp."""
