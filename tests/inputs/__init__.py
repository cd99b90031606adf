"""Inputs good and bad, made on demand: what hospitals, archives and attackers put into a folder.

`KINDS` names each one with a function that builds it under a folder, what it is in a sentence, and what must come of
it. They are small (72 x 72 pixels, 30 slices) and made from the digital phantom, so that the head is known.
"""

from inputs import archives, damage, geometry, headers, objects, syntaxes, values, volumes  # noqa: F401  fill the table
from inputs.kinds import KINDS, Expected, Kind

__all__ = ["KINDS", "Expected", "Kind"]
