"""How findings are called on a page, and in which windows radiologists look for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from headct.reporting.pictures import Window
from headct.reporting.words import visible

BRAIN, SUBDURAL, BONE = Window("brain", 40, 80), Window("subdural", 80, 200), Window("bone", 600, 2800)

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "ich": "intracranial hemorrhage",
        "iph": "intraparenchymal hemorrhage",
        "ivh": "intraventricular hemorrhage",
        "sah": "subarachnoid hemorrhage",
        "sdh": "subdural hematoma",
        "edh": "epidural hematoma",
        "mass_effect": "mass effect",
        "midline_shift": "midline shift",
    }
)
"""Names for people; a finding that is not listed is called as it is."""

BLOOD = frozenset({"ich", "iph", "ivh", "sah", "sdh", "edh"})
"""Findings that are looked for in the subdural window too: blood along the skull is hidden in the brain window."""


def called(finding: str) -> str:
    """The name of a finding for people."""
    return NAMES.get(finding, visible(finding))


def windows(finding: str) -> tuple[Window, ...]:
    """The windows in which a finding is shown."""
    if finding == "fracture":
        return (BONE,)
    return (BRAIN, SUBDURAL) if finding in BLOOD else (BRAIN,)
