"""`Scan` to canonical array by a frozen `Recipe`, or a `Rejection` where there is no head. Touches no disk."""

from __future__ import annotations

from headct.preparing.prepared import Prepared, prepare
from headct.preparing.recipe import Recipe, recipes

__all__ = ["Prepared", "Recipe", "prepare", "recipes"]
