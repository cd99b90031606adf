"""`headct datasets` as it is typed."""

from __future__ import annotations

import json

from headct.cli.app import run
from headct.datasets import NAMES, SETS


def test_the_list_is_data(capsys):
    assert run(["datasets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert tuple(one["name"] for one in listed) == NAMES
    assert all(one["licence"] and one["where"] for one in listed)


def test_the_table_names_every_set(capsys):
    assert run(["datasets"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)


def test_one_set_is_shown_with_the_counts_that_must_come_out(capsys):
    assert run(["datasets", "show", "cq500"]) == 0
    said = capsys.readouterr().out
    assert "491" in said
    assert "to be checked" in said
    assert run(["datasets", "show", "cq500", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expected"] == dict(SETS["cq500"].expected)


def test_preparing_ends_with_counts_and_warns_of_those_that_differ(prepared, key, tmp_path, capsys):
    data = prepared("instance-2022").data
    line = ["datasets", "prepare", "instance-2022", "--data", str(data), "--out", str(tmp_path / "out")]
    assert run([*line, "--key", str(key), "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "patients with scans" in said.err
    assert "warning: 2 counts are not those of the whole set (images, masks)" in said.err
    assert run([*line, "--key", str(key), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ingest"]["added_scans"] == 0


def test_an_unknown_set_ends_with_2(tmp_path, capsys):
    line = ["datasets", "prepare", "cq50", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(line) == 2
    assert "did you mean cq500?" in capsys.readouterr().err


def test_an_incomplete_folder_ends_with_1_and_what_to_do(tmp_path, capsys):
    (tmp_path / "download").mkdir()
    line = ["datasets", "prepare", "bhsd", "--data", str(tmp_path / "download"), "--out", str(tmp_path / "out")]
    assert run(line) == 1
    said = capsys.readouterr().err
    assert "lacks the volumes with masks" in said
    assert "do:  download label_192.zip and unpack it" in said
