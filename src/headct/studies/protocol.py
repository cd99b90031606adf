"""The protocols for public sets by name: which findings are learned from which labels, and what others have published.

A protocol is fixed: everyone who names it and has the same download learns from, chooses by and is tested on the same
patients, with the same draws. What is asked for beside it (method, device) is recorded with its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from headct.failure import Misuse
from headct.studies.protocol_published import CQ500, RSNA, Known, fm_hct

ALL = "all"
SHOTS = (8, 16, 32, 64, 128, 256)
DRAWS = 10
"""Those of `headct.detection.shots`, which comes with PyTorch: a list of protocols need not wait for that."""


TOLD = ("title", "published", "not_comparable")
"""What a protocol says of itself and of others; everything else decides what is learned and tested."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way from a public set to a table.

    Attributes:
        name: As it is typed.
        title: What it is, for a list.
        dataset: A name of `headct.datasets`, whose splits are used.
        findings: Columns of its labels, in order.
        labels: Which of its tables of labels.
        methods: What is learned from all labels, by their names in `headct.detection.methods`.
        few: What is learned from few labels too, and from how many draws.
        shots: So many positives, and as many negatives, of each finding.
        fractions: Such shares of the training patients.
        seed: Of draws, of random weights, and of training; each draw is learned from with one made from it.
        published: Numbers of others, for orientation.
        not_comparable: Why ours are not comparable with them; none without it.
    """

    name: str
    title: str
    dataset: str
    findings: tuple[str, ...]
    labels: str = "labels.csv"
    methods: tuple[str, ...] = ("linear", "full")
    few: tuple[tuple[str, int], ...] = (("linear", DRAWS),)
    shots: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    seed: int = 0
    published: tuple[Known, ...] = ()
    not_comparable: str = ""

    def __post_init__(self) -> None:
        assert not (self.shots and self.fractions), "few labels are counted in one way"
        assert not self.published or self.not_comparable, "numbers of others need the sentence why not to compare"

    def about(self) -> dict[str, Any]:
        """A row of the list."""
        return {
            "name": self.name,
            "set": self.dataset,
            "findings": ", ".join(self.findings),
            "learned from": self.sizes(),
            "title": self.title,
        }

    def sizes(self) -> str:
        """How many labels, in words."""
        few = [f"{k}" for k in self.shots] + [f"{100 * share:g} %" for share in self.fractions]
        return f"{', '.join(few)}{' of each class' if self.shots else ''}, all"


_CT_FM = "CT-FM (arXiv 2501.09001), its repository's notebook of the head CT triage"
_FM_HCT_CODE = (
    "its code tests with the head in training mode, where a scan's number depends on those beside it, and trains a "
    "fixed number of steps whatever the number of scans"
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        one.name: one
        for one in (
            Protocol(
                name="fm-hct-cq500",
                title="FM-HCT's ten findings of CQ500: frozen, K shots, full",
                dataset="cq500",
                findings=(
                    *("ich", "iph", "ivh", "sdh", "edh", "sah"),
                    *("ich_left", "ich_right", "midline_shift", "mass_effect"),
                ),
                shots=SHOTS,
                published=fm_hct("CQ500", CQ500),
                not_comparable="other patients are tested (236 series of 71 patients, each series counted as a case), "
                f"other series are taken, few are positive (6 of edh, 14 of sdh, 16 of ivh), and {_FM_HCT_CODE}.",
            ),
            Protocol(
                name="fm-hct-rsna",
                title="FM-HCT's five findings of RSNA 2019: frozen, K shots, full",
                dataset="rsna-2019",
                findings=("ich", "iph", "ivh", "sah", "sdh"),
                shots=SHOTS,
                published=fm_hct("RSNA 2019", RSNA),
                not_comparable="other studies are tested, a tenth of ten thousand and not a fifth of all, and "
                f"{_FM_HCT_CODE}.",
            ),
            Protocol(
                name="ct-fm-sinoct",
                title="CT-FM's triage, normal or abnormal, on SinoCT: 2, 5, 10 and 100 % of labels",
                dataset="sinoct",
                findings=("abnormal",),
                few=(("linear", DRAWS), ("full", 1)),
                fractions=(0.02, 0.05, 0.10),
                published=(
                    Known(
                        finding="abnormal",
                        method="full",
                        theirs="0.836",
                        cases="978 series, 537 abnormal",
                        source=f"{_CT_FM}, fine-tuned",
                    ),
                ),
                not_comparable="its split goes by series folder and may have a patient on both sides, other series "
                "are tested, and its validation series shrink with the share of labels.",
            ),
            Protocol(
                name="ct-fm-cq500",
                title="CT-FM's triage label on CQ500 (any reader, any finding): 2, 5, 10 and 100 % of labels",
                dataset="cq500",
                findings=("abnormal",),
                labels="labels-any.csv",
                few=(("linear", DRAWS), ("full", 1)),
                fractions=(0.02, 0.05, 0.10),
                published=(
                    Known(
                        finding="abnormal",
                        method="full",
                        theirs="0.794",
                        cases="489 patients, 268 abnormal",
                        source=f"{_CT_FM}, fine-tuned on SinoCT",
                    ),
                ),
                not_comparable="CT-FM learns from SinoCT and tests on all of CQ500; this protocol learns from patients "
                "of CQ500 and tests on others of it.",
            ),
            Protocol(
                name="ct-ich",
                title="Bleeding and fracture of 75 trauma patients: frozen, K shots, full",
                dataset="ct-ich",
                findings=("ich", "iph", "ivh", "sah", "sdh", "edh", "fracture"),
                shots=SHOTS,
            ),
            Protocol(
                name="bhsd",
                title="Which kind of bleeding, in volumes that all bleed: frozen, K shots, full",
                dataset="bhsd",
                findings=("iph", "ivh", "sah", "sdh", "edh"),
                shots=SHOTS,
            ),
        )
    }
)

NAMES = tuple(PROTOCOLS)

WITHOUT: Mapping[str, str] = MappingProxyType(
    {"instance-2022": "all of its volumes bleed, so whether one does cannot be learned; it is for segmentation"}
)
"""Sets of which no protocol can be made, and why."""


def named(name: str) -> Protocol:
    """The protocol of this name. Raises Misuse where there is none, with those of a set that was named instead."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name in WITHOUT:
        raise Misuse(f"there is no protocol for {name}", why=WITHOUT[name], do=f"take one of {', '.join(NAMES)}")
    of_set = [one.name for one in PROTOCOLS.values() if one.dataset == name]
    near = of_set or get_close_matches(name.lower(), NAMES, n=1)
    do = f"did you mean {' or '.join(near)}?" if near else f"take one of {', '.join(NAMES)}"
    raise Misuse(f"no protocol is called {name!r}", do=do)
