"""Writes docs/reference/bad-inputs.md from real runs: `python docs/scripts/bad_inputs.py`. A test compares them."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from inputs import KINDS, Kind  # noqa: E402
from inputs.outcomes import Outcome, outcome_of  # noqa: E402

from headct.scan import REASONS, Rejection  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "bad-inputs.md"

TOPICS = {
    "geometry": "Where slices lie",
    "values": "What values mean",
    "objects": "What an object is",
    "headers": "What headers lack",
    "syntaxes": "How pixels are stored",
    "damage": "Damage, links and clutter",
    "archives": "Archives",
    "volumes": "NIfTI, NRRD and MetaImage",
}

INTRODUCTION = """# Bad inputs and what happens

Each of these {count} inputs is built by the tests from a virtual head (or from none), read with the default criteria
and prepared with the recipe `head`. This page is written from those runs. Where the head comes out, the tests also
compare its voxels with those that it was made from.

Nothing that a file holds stops a job. Files read and files rejected add up to files found, here and in every cohort.
Codes and flags are explained under [Rejections and flags](rejections.md)."""

HEADER = "| input | outcome | what is said | what to do |\n|---|---|---|---|"


def page(outcomes: Mapping[str, Outcome]) -> str:
    """The page for what came of each kind; kinds without an outcome are told as the tests expect them."""
    parts = [INTRODUCTION.format(count=len(KINDS))]
    for topic, title in TOPICS.items():
        names = [name for name, kind in KINDS.items() if kind.topic == topic]
        rows = [row(KINDS[name], outcomes.get(name)) for name in names]
        parts += [f"## {title}", "\n".join([HEADER, *rows])]
    return "\n\n".join(parts) + "\n"


def row(kind: Kind, outcome: Outcome | None) -> str:
    """One line of the table."""
    cells = [kind.what, *(told(outcome) if outcome else expected(kind))]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def told(outcome: Outcome) -> tuple[str, str, str]:
    """What came of an input, what was said about it, and what to do."""
    away = outcome.turned_away
    accepted = len(outcome.scans) - len(away)
    results = [_accepted(accepted, outcome.flags)] if accepted else []
    results += [f"`{code}`{_times(count)}" for code, count in outcome.rejected.items()]
    results += [f"`{code}`" for code in dict.fromkeys(one.code for one in away)]
    refused = [*outcome.rejections, *away]
    return ", ".join(results), "; ".join(_said(refused)), "; ".join(dict.fromkeys(one.remedy for one in refused))


def _said(refused: Sequence[Rejection]) -> list[str]:
    """The different sentences about some rejections, two for each code at most."""
    by_code: dict[str, dict[str, None]] = {}
    for one in refused:
        by_code.setdefault(one.code, {})[_neutral(one.sentence)] = None
    return [sentence for said in by_code.values() for sentence in [*list(said)[:2], *["…"][: len(said) > 2]]]


def expected(kind: Kind) -> tuple[str, str, str]:
    """The same for an input that not every machine can make, from the table of the tests."""
    codes, flags = kind.expected.rejected, kind.expected.flags
    results = [_accepted(kind.expected.scans, flags)] if kind.expected.scans else []
    results += [f"`{code}`{_times(count)}" for code, count in codes.items()]
    said = [REASONS[code].meaning for code in codes]
    return ", ".join(results), "; ".join(said), "; ".join(REASONS[code].remedy for code in codes)


def _accepted(scans: int, flags: tuple[str, ...]) -> str:
    what = "accepted" if scans == 1 else f"accepted as {scans} scans"
    return f"{what} ({', '.join(f'`{flag}`' for flag in flags)})" if flags else what


def _times(count: int) -> str:
    return "" if count == 1 else f" × {count}"


def _neutral(sentence: str) -> str:
    """A sentence without the folder in which this machine built the input."""
    return re.sub(r"/\S*/(?=[^/\s]+(\s|$))", "…/", sentence) if "there is no /" in sentence else sentence


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        outcomes = {name: outcome_of(kind, Path(place) / name) for name, kind in KINDS.items() if kind.lacking is None}
    PAGE.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
