"""Was a contrast agent given? From the contrast tags, and, where those are silent, from the words of descriptions."""

from __future__ import annotations

import re

_NOTHING = re.compile(
    r"^(none|no|non(?= *$|[ -]*(con|contrast|enh|iv|inj))|n|nil|nein|nao|0|0 ?ml|c ?-|-|without|w/?o|nativ|native|plain"
    r"|unenhanced|n/?a)(?!\w)",
    re.I,
)
_NOT_VASCULAR = re.compile(r"^(oral|po|p\.o\.|rectal|per os|water|air)\b", re.I)


def in_tags(agent: str, route: str, volume_ml: float | None) -> bool | None:
    """True, False or None (not said), from Contrast/Bolus Agent (0018,0010), Route (0018,1040), Volume (0018,1041).

    Consoles write "NONE" or "C-" where no agent was given, and leave the tag empty as well where one was: an empty
    tag says nothing. Oral and rectal contrast do not reach the head.
    """
    if _NOT_VASCULAR.match(route) or _NOT_VASCULAR.match(agent):
        return None
    if agent:
        return _NOTHING.match(agent) is None
    return True if volume_ml else None


_BOTH = re.compile(
    r"with(out)?( iv)?( contrast)? ?(and|&|/|\+|or) ?with(out)?\b|\bw ?/? ?(and|&|\+) ?w/?o\b|\bw/?o ?(and|&|/|\+) ?w\b"
    r"|\bw/?wo\b|\bwo/w\b|\bpre ?(and|&|/|\+) ?post\b|\bc ?[-+] ?/ ?[-+]"
    r"|\bmit und ohne\b|\bohne und mit\b|\bsin y con\b",
    re.I,
)
# whole words: an injury, a ventricular haemorrhage (IVH) and a cervical spine (C-spine) are not given
_SUBSTANCE = (
    r"(iv|i\.v\.|ivc|contrast\w*|kontrast\w*|contraste|contrasto|km|mdc|inj|inje\w*|gad\w*|agent"
    r"|c(?![ -]*(spine|sp|collar)\b))(?!\w)"
)
_WITHOUT = re.compile(
    rf"\b(without|w/?o|ohne|sans|sin|senza|zonder|sem|utan|uden|bez|no|non|not)[ ./-]*{_SUBSTANCE}"
    r"|\bwithout\b|\bw/o\b|\bwo\b|\bohne\b"
    r"|\bnon ?-? ?(con|contrast|enhanced|enh|ce)\b|\bnon ?-?contrast\w*|\bnoncon\w*|\bunenhanced\b|\bplain\b"
    r"|\bnati(v|ve|vo|va|f)\b|\bncct\b|\bnect\b|\bnc\b|\bpre ?-?contrast\w*|\bpre ?-?(iv|inj|km)\b"
    r"|(?<!\w)c ?-(?![\w+]| ?sp)|(?<!\w)-c\b",
    re.I,
)
_WITH = re.compile(
    rf"\b(with|w|w/|mit|avec|con|met|com|med|post|after|nach|plus|\+)[ ./-]*{_SUBSTANCE}"
    r"|\b(ce|cect|cta|ctv|ctp|cte)\b|\bc ?\+|(?<!\w)\+ ?c\b|\biv ?\+"
    r"|\bpost ?-?(con|contrast\w*|gad\w*|inj|inje\w*|km|iv)\b|\bangio\w*|\barterial\w*|\barteriell\w*"
    r"|\bvenous\b|\bvenös\w*|\bvenogram\w*|\bperfusion\b|\bdelayed\b"
    r"|\b(contrast|contrasted|kontrast)[ -]?(enhanced|enhancement|phase)\b|\benhanced\b|\bcarotids?\b",
    re.I,
)
_POST_AND_NOTHING = re.compile(r"\bpost$", re.I)


def in_words(description: str) -> bool | None:
    """True, False or None (not said, or both), from a description in the usual languages and abbreviations."""
    text = re.sub(r"[\s_^,;()\[\]]+", " ", description).strip()
    if not text or _BOTH.search(text):
        return None
    if _WITHOUT.search(text):
        return False
    return True if _WITH.search(text) or _POST_AND_NOTHING.search(text) else None


def judge(tags: bool | None, descriptions: tuple[str, ...]) -> tuple[bool | None, bool]:
    """The verdict and whether it rests on words; the first description that says anything is believed.

    Descriptions come from the most specific to the least: series, protocol, study.
    """
    if tags is not None:
        return tags, False
    for description in descriptions:
        said = in_words(description)
        if said is not None:
            return said, True
    return None, False
