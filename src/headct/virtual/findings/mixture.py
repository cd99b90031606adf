"""Who has what: findings are drawn independently of age, sex and scanner, and co-occur as they do in patients.

The prevalences make a teaching mixture, in the range of public labelled sets, not an epidemiology: CQ500 (Chilamkurthy
et al., Lancet 2018;392:2388-2396) holds 42 % bleeding of any kind, 27 % in the brain, 6 % intraventricular, 11 %
subdural, 3 % epidural, 12 % subarachnoid, 8 % fractures, 26 % mass effect and 13 % midline shift in 491 scans.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from headct.virtual.findings.bleeding import Intraparenchymal, Intraventricular, Subarachnoid
from headct.virtual.findings.bone import Bruise, Fracture, Surgery
from headct.virtual.findings.extraaxial import Epidural, Subdural
from headct.virtual.findings.finding import Finding
from headct.virtual.findings.fluid import Dementia, Hydrocephalus
from headct.virtual.findings.lesions import Edema, Infarct, Tumor
from headct.virtual.streams import stream

KINDS: Mapping[str, type[Finding]] = MappingProxyType(
    {
        "iph": Intraparenchymal,
        "ivh": Intraventricular,
        "sah": Subarachnoid,
        "sdh": Subdural,
        "edh": Epidural,
        "tumor": Tumor,
        "edema": Edema,
        "infarct": Infarct,
        "hydrocephalus": Hydrocephalus,
        "dementia": Dementia,
        "fracture": Fracture,
        "surgery": Surgery,
        "bruise": Bruise,
    }
)
"""Every finding and trap that can be drawn, by name, in the order in which they are painted."""

PREVALENCE: Mapping[str, float] = MappingProxyType(
    {
        "iph": 0.17,
        "ivh": 0.05,
        "sah": 0.12,
        "sdh": 0.14,
        "edh": 0.06,
        "tumor": 0.11,
        "edema": 0.07,
        "infarct": 0.17,
        "hydrocephalus": 0.12,
        "dementia": 0.13,
        "fracture": 0.06,
        "surgery": 0.07,
        "bruise": 0.3,
    }
)
"""How often each is drawn on its own; see `COMPANIONS` for what comes with it."""

COMPANIONS: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        ("iph", "ivh"): 0.35,
        ("sah", "ivh"): 0.15,
        ("edh", "fracture"): 0.6,
        ("sdh", "sah"): 0.15,
        ("sdh", "fracture"): 0.12,
        ("ivh", "hydrocephalus"): 0.2,
    }
)
"""How often the second follows from the first; a fracture that follows from epidural blood lies over it."""


def draw_findings(seed: int, prevalence: Mapping[str, float] = PREVALENCE) -> tuple[Finding, ...]:
    """The findings of a patient. Each is drawn from its own stream, whether or not the others are there.

    Raises ValueError for a prevalence of something unknown or outside 0..1.
    """
    unknown = sorted(set(prevalence) - set(KINDS))
    if unknown:
        raise ValueError(f"no such finding: {', '.join(unknown)}; known are {', '.join(KINDS)}")
    if not all(0 <= share <= 1 for share in prevalence.values()):
        raise ValueError("a prevalence is a share from 0 to 1")
    chance = dict(zip(KINDS, stream(seed, "presence").uniform(0, 1, len(KINDS)), strict=True))
    present = {name for name in KINDS if chance[name] < prevalence.get(name, 0.0)}
    chances = stream(seed, "companions").uniform(0, 1, len(COMPANIONS))
    followed = set()
    for ((first, second), share), drawn in zip(COMPANIONS.items(), chances, strict=True):
        if first in present and drawn < share and prevalence.get(second, 0.0) > 0:
            present.add(second)
            followed.add((first, second))
    findings = {name: kind.draw(stream(seed, name)) for name, kind in KINDS.items() if name in present}
    if ("edh", "fracture") in followed and isinstance(lens := findings["edh"], Epidural):
        findings["fracture"] = Fracture.draw(stream(seed, "fracture"), over_mm=lens.centre_mm)
    return tuple(findings.values())


def one_of(name: str, seed: int) -> Finding:
    """The finding that a seed would have if it had it; raises ValueError for an unknown name."""
    if name not in KINDS:
        raise ValueError(f"no such finding: {name}; known are {', '.join(KINDS)}")
    return KINDS[name].draw(stream(seed, name))
