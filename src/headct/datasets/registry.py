"""The public sets that can be named."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from headct.datasets.bhsd import BHSD
from headct.datasets.cq500 import CQ500
from headct.datasets.ct_ich import CT_ICH
from headct.datasets.instance import INSTANCE
from headct.datasets.publicset import PublicSet
from headct.datasets.rsna import RSNA
from headct.datasets.sinoct import SINOCT
from headct.failure import Misuse

SETS: Mapping[str, PublicSet] = MappingProxyType(
    {one.name: one for one in (CQ500, RSNA, CT_ICH, BHSD, INSTANCE, SINOCT)}
)

NAMES = tuple(SETS)


def named(name: str) -> PublicSet:
    """The set of this name. Raises Misuse where there is none."""
    if name in SETS:
        return SETS[name]
    near = get_close_matches(name.lower(), NAMES, n=1)
    raise Misuse(f"no data set {name!r}", do=f"did you mean {near[0]}?" if near else f"take one of {', '.join(NAMES)}")
