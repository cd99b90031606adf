"""What a command says of inputs that came to nothing, the same in all commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headct.failure import Failure


def reasons(rejected: Mapping[str, int], **more: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of a table: each code with what it means, how often it came and what to do; `more` are columns by code."""
    from headct.scan import REASONS

    return [
        {
            "code": code,
            "rejected because": REASONS[code].meaning,
            "series or files": number,
            **{name: numbers.get(code, 0) for name, numbers in more.items()},
            "what to do": REASONS[code].remedy,
        }
        for code, number in rejected.items()
    ]


def expect_something(what: str, inputs: Sequence[Path]) -> None:
    """Raises `nothing` where the inputs hold no file, or no scan if they are cohorts, before anything is written."""
    from headct.cohort import Cohort
    from headct.cohort.inputs import holds_files
    from headct.embedding.inputs import is_cohort

    if not any(len(Cohort(place)) if is_cohort(place) else holds_files(place) for place in inputs):
        raise nothing(what, inputs, {}, do="")


def nothing(what: str, inputs: Sequence[Path], counted: Mapping[str, str], do: str) -> Failure:
    """The failure of a job without a result: `counted` by code, or that the inputs hold nothing."""
    from headct.embedding.inputs import is_cohort

    if counted:
        return Failure(what, why=", ".join(f"{code} ({number})" for code, number in counted.items()), do=do)
    missing = "scans" if any(map(is_cohort, inputs)) else "files"
    places = ", ".join(str(place) for place in inputs)
    return Failure(what, why=f"no {missing} in {places}", do="name files, folders or archives that hold scans")
