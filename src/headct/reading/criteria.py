"""Which series to take: what headers must say, and which one series of a study comes first.

Criteria are a TOML file with the fields of `Criteria`; what it leaves out keeps its default.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from headct.failure import Misuse
from headct.reading.series import Volume
from headct.scan import Rejection, Scan

Row = Mapping[str, Any]
"""A row of the table of scans."""


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What a series must be like. Empty lists and None ask for nothing; a header that does not say fails what is asked.

    Raises Misuse where a value cannot be meant.
    """

    check_head: bool = True  # skull and brain must be seen in the pixels; off for phantoms
    min_coverage: float | None = None  # least share of the brain, 0..1; None: that of `headct.preparing`
    contrast: str = "none"  # none: not where an agent is known to be given; any; only: where it is known
    min_slices: int = 3  # fewer have no measurable spacing
    max_slices: int | None = None
    thickness_mm: tuple[float, float] | None = None  # of every slice, both ends included
    repeated_positions: bool = True  # False refuses a series with more images than positions
    kvp: tuple[float, ...] = ()
    kernels: tuple[str, ...] = ()  # patterns such as "Hr4*", without regard to case
    descriptions: tuple[str, ...] = ()  # patterns of the study or series description, without regard to case
    prefer: str = "thin"  # which of a study's series comes first: thin or thick

    def __post_init__(self) -> None:
        for name in ("thickness_mm", "kvp", "kernels", "descriptions"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        _one_of("contrast", self.contrast, ("none", "any", "only"))
        _one_of("prefer", self.prefer, ("thin", "thick"))
        if self.min_slices < 1:
            raise Misuse(f"min_slices must be at least 1, got {self.min_slices}")
        if self.max_slices is not None and self.max_slices < self.min_slices:
            raise Misuse(f"max_slices {self.max_slices} is below min_slices {self.min_slices}")
        if self.min_coverage is not None and not 0 <= self.min_coverage <= 1:
            raise Misuse(f"min_coverage must lie in 0..1, got {self.min_coverage}")
        span_mm = [0.0, 0.0] if self.thickness_mm is None else list(self.thickness_mm)
        if len(span_mm) != 2 or not 0 <= span_mm[0] <= span_mm[1]:
            raise Misuse(f"thickness_mm must be [least, most], got {span_mm}")

    @classmethod
    def from_toml(cls, text: str, origin: str = "the criteria") -> Criteria:
        """Criteria from TOML. Raises Misuse for what is no TOML, an unknown field, or a value of another kind."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Misuse(f"{origin} is not TOML", why=str(error)) from None
        known = [one.name for one in fields(cls)]
        for name, value in table.items():
            if name not in known:
                near = get_close_matches(name, known, n=1)
                do = f"did you mean {near[0]}?" if near else f"fields are {', '.join(known)}"
                raise Misuse(f"{origin} has no field {name!r}", do=do)
            if not _fits(name, value):
                raise Misuse(f"{origin}: {name} cannot be {value!r}", do=_kind_wanted(name))
        return cls(**table)

    def to_toml(self) -> str:
        """A TOML file that gives these criteria again; what asks for nothing is left out."""
        return "".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
            for name, value in self.to_dict().items()
            if value is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON and TOML can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Misuse(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "check_head": "true or false",
        "repeated_positions": "true or false",
        "contrast": "text",
        "prefer": "text",
        "min_slices": "a whole number",
        "max_slices": "a whole number",
        "min_coverage": "a number",
        "thickness_mm": "a list of numbers",
        "kvp": "a list of numbers",
        "kernels": "a list of texts",
        "descriptions": "a list of texts",
    }
)


def _fits(name: str, value: Any) -> bool:
    kind = _KINDS[name]
    if kind.startswith("a list of"):
        inner: type | tuple[type, ...] = str if kind.endswith("texts") else (int, float)
        return isinstance(value, list) and all(isinstance(x, inner) and not isinstance(x, bool) for x in value)
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str)
    return isinstance(value, int if kind == "a whole number" else (int, float)) and not isinstance(value, bool)


def _kind_wanted(name: str) -> str:
    return f"give {_KINDS[name]}"


_FM_HCT_KERNELS = (
    *("Hr40s", "J37s", "Hr40f", "H37s", "J40s", "Qr40s", "Hc40s", "Qr36s", "H40s", "Hr40d", "J37f", "H37f"),
    *("Qr36d", "J45s", "H40f", "Br40f", "Hc40f", "Hr35f", "Hr38s", "H41s", "H45s", "H45f", "J40f"),
)

CRITERIA: Mapping[str, Criteria] = MappingProxyType(
    {
        "default": Criteria(),
        # The published table joins study description, voltage and kernel; its descriptions are names of local
        # protocols, of which all name head or brain (arXiv 2502.02779, its public code).
        "fm-hct": Criteria(
            kvp=(70, 80, 90, 100, 110, 120, 130, 150),
            kernels=_FM_HCT_KERNELS,
            descriptions=("*head*", "*brain*"),
        ),
        # Every CT series of the archive, of whatever body part (arXiv 2501.09001, its public code).
        "ct-fm": Criteria(
            check_head=False, contrast="any", min_slices=51, thickness_mm=(1.0, 5.0), repeated_positions=False
        ),
    }
)
"""Criteria by name."""


def named(criteria: str) -> Criteria:
    """Criteria by their name, or from the TOML file at a path. Raises Misuse where there are none."""
    if criteria in CRITERIA:
        return CRITERIA[criteria]
    path = Path(criteria)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            why = f"byte {error.start} is not UTF-8, in which TOML is written"
            raise Misuse(f"{criteria} is not TOML", why=why, do="save it as UTF-8") from None
        return Criteria.from_toml(text, origin=criteria)
    raise Misuse(f"no criteria {criteria!r}", do=f"give a TOML file, or one of {', '.join(CRITERIA)}")


def judge(volume: Volume, criteria: Criteria) -> Rejection | None:
    """Why the headers of a volume do not meet the criteria; None where they do.

    A file that holds a whole volume has no such headers: `judge_scan` follows when it has been read.
    """
    if volume.grid is not None:
        return None
    images = volume.images
    first = images[0]
    stated_mm = volume.thicknesses_mm[np.isfinite(volume.thicknesses_mm)]  # a slice may state nothing and belong here
    thinnest, thickest = (float(stated_mm.min()), float(stated_mm.max())) if len(stated_mm) else (math.nan, math.nan)
    kernel = next((image.kernel for image in images if image.kernel), "").partition("/")[0]
    kvp = next((image.kvp for image in images if image.kvp), None)
    said = [text for text in (first.study_description, first.series_description, first.protocol) if text]
    contrast = any(image.contrast for image in images)
    faults = {
        "contrast": _contrast_fault(contrast, first.contrast_in_words, criteria),
        **_slices_faults(len(images), criteria),
        "thickness": _thickness_fault(thinnest, thickest, criteria),
        "same-position": ""
        if criteria.repeated_positions or not volume.repeated
        else "it has more images than positions",
        "kvp": "" if not criteria.kvp or kvp in criteria.kvp else f"{_or_not_said(kvp)} kV",
        "kernel": "" if _matches([kernel], criteria.kernels) else f"kernel {kernel or 'not stated'}",
        # the description itself is free text and stays here
        "description": "" if _matches(said, criteria.descriptions) else "no description matches",
    }
    return _first_fault(faults, volume.files)


def judge_loaded(left: Volume | None, scan: Scan, criteria: Criteria) -> Rejection | None:
    """The same once the volume has been read: what is `left` of it may be too little, and a whole file now has slices.

    `left` is None where no file is left, which cannot be of a scan.
    """
    assert left is not None, "a scan comes from some file"
    return judge(left, criteria) if left.grid is None else judge_scan(scan, criteria, left.files)


def judge_scan(scan: Scan, criteria: Criteria, files: tuple[str, ...]) -> Rejection | None:
    """Why a volume from a single file does not meet the criteria, as far as such files can say."""
    faults = {
        "contrast": _contrast_fault(bool(scan.header.contrast), False, criteria),
        **_slices_faults(len(scan.hu), criteria),
        "thickness": _thickness_fault(scan.thickness_mm, scan.thickness_mm, criteria),
        "kvp": "" if not criteria.kvp else "the file states no tube voltage",
        "kernel": "" if not criteria.kernels else "the file states no kernel",
        "description": "" if not criteria.descriptions else "the file has no description",
    }
    return _first_fault(faults, files)


def _first_fault(faults: Mapping[str, str], files: tuple[str, ...]) -> Rejection | None:
    return next((Rejection.because(code, sentence, files) for code, sentence in faults.items() if sentence), None)


def _contrast_fault(given: bool, in_words: bool, criteria: Criteria) -> str:
    if criteria.contrast == "none" and given:
        return "a description says that contrast was given" if in_words else "the header names a contrast agent"
    return "no contrast agent is known to be given" if criteria.contrast == "only" and not given else ""


def _slices_faults(slices: int, criteria: Criteria) -> dict[str, str]:
    most = criteria.max_slices
    return {
        "too-few-slices": f"{slices} of at least {criteria.min_slices} slices" if slices < criteria.min_slices else "",
        "too-many-slices": f"{slices} of at most {most} slices" if most is not None and slices > most else "",
    }


def _thickness_fault(thinnest_mm: float, thickest_mm: float, criteria: Criteria) -> str:
    if criteria.thickness_mm is None:
        return ""
    least, most = criteria.thickness_mm
    if least <= thinnest_mm and thickest_mm <= most:
        return ""
    if not math.isfinite(thickest_mm):
        return "the thickness of its slices is not stated"
    span = f"{thinnest_mm:g}" if thinnest_mm == thickest_mm else f"{thinnest_mm:g} to {thickest_mm:g}"
    return f"slices of {span} mm, not {least:g} to {most:g} mm"


def _or_not_said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def _matches(values: Iterable[str], patterns: tuple[str, ...]) -> bool:
    """True where nothing is asked, or one of the values matches one of the patterns."""
    return not patterns or any(fnmatchcase(v.lower(), p.lower()) for v in values for p in patterns)


# One series of a study

PREFERRED_MM = (1.0, 5.0)
"""Thickness of the series that people read: thinner ones are noisy, thicker ones lose lesions."""

_SHARP_NAMES = frozenset(
    {"bone", "boneplus", "edge", "edgeplus", "lung", "detail", "sharp", "ultra", "d", "e", "l", "ya", "yb", "yc", "yd"}
)
_SIEMENS = re.compile(r"[a-z]{1,3}(\d{2})[a-z]?")
_TOSHIBA = re.compile(r"fc(\d{2})")
SIEMENS_SHARP, TOSHIBA_SHARP = 55, (range(30, 40), range(50, 60), range(80, 90))


def is_sharp(kernel: str) -> bool:
    """True for kernels made for bone or lung, by the vendors' own names; an unknown name counts as soft.

    Siemens numbers its kernels by sharpness (H60s, Hr64, J70h); Canon reserves FC30 to FC39 and FC80 to FC89 for bone
    and FC50 to FC59 for lung; GE and Philips have names (BONE, EDGE; D, E, YA).
    """
    name = kernel.partition("/")[0].strip().lower().replace(" ", "").rstrip("+-")
    if found := _TOSHIBA.fullmatch(name):
        return any(int(found[1]) in numbers for numbers in TOSHIBA_SHARP)
    if found := _SIEMENS.fullmatch(name):
        return int(found[1]) >= SIEMENS_SHARP
    return name in _SHARP_NAMES


def preference(row: Row, prefer: str = "thin") -> tuple[Any, ...]:
    """Sorts the series of a study, the preferred one first.

    A soft kernel before a sharp one; then one without contrast; then the larger share of the brain, to a tenth; then 1
    to 5 mm before other thicknesses; then the thinnest, or the thickest if asked; then the id, so that it is sure.
    """
    thickness_mm = float(row["thickness_mm"] or row["gap_median_mm"] or 0.0)
    coverage = row["coverage"]
    return (
        is_sharp(row["kernel"]),
        bool(row["contrast"]),
        -round(1.0 if coverage is None else float(coverage), 1),
        not PREFERRED_MM[0] <= thickness_mm <= PREFERRED_MM[1],
        thickness_mm if prefer == "thin" else -thickness_mm,
        row["scan_id"],
    )


def preferred(rows: Iterable[Row], prefer: str = "thin") -> frozenset[str]:
    """The `scan_id` of the one scan to take from each study."""
    studies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        studies[row["study_id"]].append(row)
    return frozenset(min(of_study, key=lambda row: preference(row, prefer))["scan_id"] for of_study in studies.values())
