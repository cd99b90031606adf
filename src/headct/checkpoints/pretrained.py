"""An encoder together with its card."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor

from headct.checkpoints import layout
from headct.checkpoints.card import Card
from headct.encoders import Encoder, Features, Lattice, as_input
from headct.preparing import Recipe

if TYPE_CHECKING:
    from headct.checkpoints.exported import Runtime


class PretrainedEncoder(Encoder):
    """What `load` gives: an `Encoder` that knows its recipe, its windows and where it comes from.

    `source` is the folder, the file or `hub:owner/name@commit` that the weights were read from, `sha256` that of the
    weights file, `decisive_sha256` of all that decides its vectors, and `notes` are sentences about what the loader
    found and did.
    """

    def __init__(
        self, encoder: Encoder, card: Card, sha256: str, *, source: str = "", notes: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.encoder, self.card, self.sha256 = encoder, card, sha256
        self.source, self.notes = source, notes
        self.architecture, self.settings = encoder.architecture, encoder.settings

    @property
    def decisive_sha256(self) -> str:
        """Of the weights and of what they do not say: architecture, settings, recipe, windows in order, graph.

        Two encoders with the same one give the same vectors; the same weights with another pooling have another.
        """
        runtime = None if self.runtime is None else asdict(self.runtime)
        decisive = layout.decisive(layout.configuration(self, self.card, runtime))
        return hashlib.sha256(f"{self.sha256} {decisive}".encode()).hexdigest()

    @property
    def recipe(self) -> Recipe:
        """How scans must be prepared for this encoder."""
        return self.card.recipe

    @property
    def channels(self) -> int:
        return self.encoder.channels

    @property
    def scan_width(self) -> int:
        return self.encoder.scan_width

    @property
    def example_shape(self) -> tuple[int, int, int]:
        return self.encoder.example_shape

    @property
    def runtime(self) -> Runtime | None:
        """What graph it is, if it was exported; None for one that PyTorch computes."""
        return getattr(self.encoder, "runtime", None)

    def lattice(self, shape: tuple[int, int, int]) -> Lattice:
        return self.encoder.lattice(shape)

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        return self.encoder(x, spacing_mm)

    def see(self, arrays: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of a batch of arrays as the recipe gives them, windowed here if they are HU."""
        return self.encoder(as_input(arrays, list(self.card.windows.values())), spacing_mm)
