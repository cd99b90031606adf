"""Data to stdout, talk to stderr, and tables that stay whole when piped."""

from __future__ import annotations

import json
import pickle

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
