"""Several readers to one label, and files that hold no table.

Oracle of the readers: `statistics.multimode` over the votes that were given.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import multimode

import numpy as np
import pytest

from headct.evaluation.cells import combined, opened
from headct.failure import Misuse

NONE = float("nan")


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
def test_every_combination_of_votes(readers: int) -> None:
    """Even votes and missing ones included: who said neither has no vote, an even vote is unknown."""
    every = list(itertools.product((1.0, 0.0, NONE), repeat=readers))
    given = [[vote for vote in votes if vote == vote] for votes in every]  # without NaN
    modes = [multimode(votes) for votes in given]
    expected = [mode[0] if len(mode) == 1 else NONE for mode in modes]
    np.testing.assert_equal(combined(list(np.array(every).T), "majority"), expected)
    expected = [max(votes, default=NONE) for votes in given]
    np.testing.assert_equal(combined(list(np.array(every).T), "any"), expected)


@pytest.mark.parametrize("votes", list(itertools.product((1.0, 0.0, NONE), repeat=3)))
def test_where_all_three_should_have_read(votes: tuple[float, ...]) -> None:
    """Counted by hand: two of three decide, and a missing vote might have said yes."""
    ones, zeros = votes.count(1.0), votes.count(0.0)
    readers = [np.array([vote]) for vote in votes]
    expected = 1.0 if ones >= 2 else 0.0 if zeros >= 2 else NONE
    np.testing.assert_equal(combined(readers, "majority", all_read=True), [expected])
    expected = 1.0 if ones else 0.0 if zeros == 3 else NONE
    np.testing.assert_equal(combined(readers, "any", all_read=True), [expected])


@pytest.mark.parametrize(
    ("votes", "majority", "some"),
    [
        ((1, 0), NONE, 1),
        ((1, NONE, NONE), 1, 1),
        ((0, 0, NONE), 0, 0),
        ((1, 0, NONE), NONE, 1),
        ((NONE, NONE), NONE, NONE),
    ],
)
def test_ties_and_missing_votes(votes: tuple[float, ...], majority: float, some: float) -> None:
    readers = [np.array([vote], dtype=float) for vote in votes]
    np.testing.assert_equal(combined(readers, "majority"), [majority])
    np.testing.assert_equal(combined(readers, "any"), [some])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "t.csv is empty\n  why: the file has 0 bytes\n  do:  "),
        ("scan_id,größe\na,1\n".encode("latin-1"), "t.csv is not written in UTF-8\n  why: .*\n  do:  save it as `CSV"),
        ("scan_id,ich\na,1\n".encode("utf-16-le"), "t.csv is not written in UTF-8"),
        (b"\xff\xfes", "t.csv is not written in UTF-8"),
    ],
)
def test_a_file_without_text_is_said_with_what_to_do(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(Misuse, match=says):
        opened(tmp_path / "t.csv")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is a folder, and no table"):
        opened(tmp_path)
