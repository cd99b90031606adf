"""Data to stdout, talk to stderr, and tables that stay whole when piped."""

from __future__ import annotations

import io
import json
import pickle
import sys

import pytest

from headct.cli.talk import Talk
from headct.failure import Failure, Misuse

ROWS = [{"name": "a" * 200, "n": 1, "share": 0.123456}, {"name": "[red]b[/red]", "n": 20, "share": None}]


def test_a_piped_table_is_neither_wrapped_nor_interpreted(capsys):
    Talk().table(ROWS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["name", "n", "share"]
    assert lines[2] == ["a" * 200, "1", "0.1235"]
    assert lines[3] == ["[red]b[/red]", "20"]


def test_json_holds_the_same_rows_exactly(capsys):
    Talk().table(ROWS, as_json=True)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_an_empty_table_is_an_empty_list_in_json(capsys):
    Talk().table([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_a_warning_passes_quiet(capsys):
    Talk(quiet=True).warn("one file changed")
    said = capsys.readouterr()
    assert said.err == "warning: one file changed\n"
    assert said.out == ""


def test_large_numbers_are_written_out(capsys):
    Talk().table([{"MB": 123456.7, "share": 0.5}])
    assert capsys.readouterr().out.split()[-2:] == ["123457", "0.5"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_too_narrow_for_a_table_gets_every_cell_whole(columns, monkeypatch):
    """No line is too long, and every cell is there word for word, beside its row's name or below it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    remedies = ["send the whole series again from the archive, or mend its files if some are damaged", ""]
    meanings = ["a gap that is too wide to fill between two of its slices", "not a CT image"]
    rows = [
        {"code": code, "because": meaning, "files": files, "do": remedy}
        for code, meaning, files, remedy in zip(("missing", "not-ct"), meanings, (12, 3), remedies, strict=True)
    ]
    Talk().table(rows)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    first = next(index for index, line in enumerate(lines) if line.split()[:1] == ["missing"])
    second = next(index for index, line in enumerate(lines) if line.split()[:1] == ["not-ct"])
    for start, end, cells in ((first, second, (meanings[0], "12", remedies[0])), (second, None, (meanings[1], "3"))):
        said = " ".join(" ".join(lines[start:end]).split())
        assert all(cell in said for cell in cells)


def test_a_table_that_fits_a_terminal_is_one_line_a_row(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    Talk().table([{"name": "a", "value": "b"}, {"name": "c", "value": "d"}])
    assert [line.split() for line in terminal.getvalue().splitlines() if "a" in line or "c" in line][-1] == ["c", "d"]
    assert ": " not in terminal.getvalue()


def test_quiet_silences_talk_and_summaries_but_not_data(capsys):
    quiet = Talk(quiet=True)
    quiet.say("hello")
    quiet.table(ROWS, to_stderr=True)
    with quiet.progress("reading") as advance:
        advance(1, 2)
    quiet.table(ROWS)
    said = capsys.readouterr()
    assert said.err == ""
    assert "0.1235" in said.out


def test_talk_goes_to_stderr(capsys):
    Talk().say("hello")
    Talk().table(ROWS, to_stderr=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("hello\n")
    assert "0.1235" in said.err


def test_a_failure_survives_the_way_from_a_worker():
    failure = pickle.loads(pickle.dumps(Misuse("two recipes", why="they differ", do="choose one")))
    assert isinstance(failure, Failure)
    assert str(failure) == "two recipes\n  why: they differ\n  do:  choose one"
