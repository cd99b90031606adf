"""The command line as a person meets it: help, errors, exit codes; run in this process by `headct.cli.app.run`."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import pytest

from headct.cli import app, doctor
from headct.cli.commands import COMMANDS, Command
from headct.cli.pretrain import ENCODERS
from headct.encoders import ARCHITECTURES
from headct.failure import Failure, Misuse


def every_command() -> list[tuple[str, ...]]:
    """("doctor",), ("models",), ("models", "show"), ..."""
    names: list[tuple[str, ...]] = []
    for name, command in COMMANDS.items():
        names += [(name,), *((name, part) for part in command.parts)]
    return names


def function_of(words: tuple[str, ...]) -> Callable[..., None]:
    command = COMMANDS[words[0]]
    for part in words[1:]:
        command = command.parts[part]
    module, _, name = command.function.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_with_two_examples_and_the_shared_options(words, capsys):
    assert app.run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    _, examples = app.split_docstring(function_of(words))
    assert len(examples) >= 2
    assert all(example.startswith("headct " + " ".join(words)) for example in examples)
    assert all(f"  {example}\n" in text for example in examples), "an example was wrapped or lost"
    for option in ("--quiet", "--debug", "--help"):
        assert option in text


@pytest.mark.parametrize("command", ["adapt cohort", "map cohort", "evaluate --detector d --cohort cohort"])
def test_a_key_that_is_to_know_patients_again_is_not_made(command, tmp_path, capsys):
    out = tmp_path / ("out.html" if command.startswith("map") else "out")
    model = [] if command.startswith("evaluate") else ["--model", "m"]
    line = [*command.split(), "--labels", "l.csv", *model, "--out", str(out), "--key", str(tmp_path / "slip")]
    assert app.run(line) == 2
    assert "there is no key" in capsys.readouterr().err
    assert not (tmp_path / "slip").exists()


def test_help_lists_every_command_with_its_line(capsys):
    assert app.run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in text


def test_help_of_everything_loads_nothing_heavy():
    """Time cannot be asserted on a shared machine; what costs it can: the modules that were imported."""
    heavy = {
        "numpy",
        "torch",
        "pandas",
        "pyarrow",
        "pydicom",
        "scipy",
        "matplotlib",
        "nibabel",
        "rich",
        "dask",
        "blosc2",
    }
    helps = [[], *([*words] for words in every_command())]
    script = (
        "import sys; from headct.cli.app import run\n"
        f"for words in {helps!r}:\n"
        "    assert run([*words, '--help']) == 0\n"
        "print('loaded', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.partition("loaded ")[2].split())
    assert "headct.cli.doctor" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize("start", [["-c", "from headct.cli import main; main()"], ["-m", "headct"]])
def test_the_installed_command_answers(start):
    done = subprocess.run([sys.executable, *start, "--version"], capture_output=True)
    assert done.returncode == 0
    assert done.stdout.decode().startswith("headct ")


def test_bare_command_prints_help_and_is_wrong_usage(capsys):
    assert app.run([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["doctr"], "did you mean 'doctor'?"),
        (["xyzzy"], "commands are demo, doctor"),
        (["doctor", "--jsn"], "--jsn"),
        (["ingest"], "INPUT"),
    ],
)
def test_wrong_usage_says_what_and_where_to_look(line, expected, capsys):
    assert app.run(line) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert expected in said.err
    assert "--help`" in said.err
    assert said.out == ""


def names_places(words: tuple[str, ...]) -> list[list[str]]:
    """A line for each place that a command takes, with nothing in it."""
    lines = []
    for parameter in inspect.signature(function_of(words), eval_str=True).parameters.values():
        kind, *about = get_args(parameter.annotation) or (None,)
        if about and (app._holds_path(kind) or about[0].metavar in app.MAYBE_PLACES):
            option = about[0].default
            lines.append([*words, f"{option}="] if isinstance(option, str) else [*words, ""])
    return lines


@pytest.mark.parametrize("line", [line for words in every_command() for line in names_places(words)], ids=" ".join)
def test_an_empty_path_is_never_the_folder_that_one_is_in(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.run(line) == 2
    said = capsys.readouterr()
    assert " is empty\n  why: an empty path names nothing" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (
            Failure("no scan was usable", why="all 3 files are MR", do="give CT"),
            1,
            "  why: all 3 files are MR\n  do:  give CT",
        ),
        (Misuse("cohort night uses recipe 3f2a, the checkpoint 91c0"), 2, "error: cohort night uses recipe 3f2a"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/shard"),
            1,
            "the system refused out/shard: No space left",
        ),
        (ModuleNotFoundError("No module named 'dask'", name="dask"), 1, "package dask is not installed"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_sentences_and_tracebacks_only_with_debug(error, code, expected, monkeypatch, capsys):
    def broken(*, as_json: bool = False) -> None:
        """Break."""
        raise error

    monkeypatch.setattr(doctor, "doctor", broken)
    assert app.run(["doctor"]) == code
    said = capsys.readouterr()
    assert expected in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    if not isinstance(error, KeyboardInterrupt):
        assert app.run(["doctor", "--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_not_an_error():
    script = "from headct.cli.app import run; import sys; sys.exit(run(['doctor', '--json']))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_parts_of_a_command_are_found_and_the_command_alone_still_works(monkeypatch, capsys):
    def models() -> None:
        """List.

        Examples:
            headct models
        """
        print("all")

    def show(name: str) -> None:
        """Show one."""
        print(f"one {name}")

    monkeypatch.setattr(doctor, "models", models, raising=False)
    monkeypatch.setattr(doctor, "show", show, raising=False)
    place = "headct.cli.doctor"
    commands = {"models": Command(f"{place}:models", "All.", parts={"show": Command(f"{place}:show", "One.")})}
    monkeypatch.setattr(app, "COMMANDS", commands)
    assert app.run(["models"]) == 0
    assert app.run(["models", "show", "vit-tiny"]) == 0
    assert capsys.readouterr().out == "all\none vit-tiny\n"
    assert app.run(["models", "shw"]) == 2
    assert "did you mean 'show'?" in capsys.readouterr().err


def test_options_before_a_part_are_those_of_the_part(capsys):
    assert app.run(["models", "show", "vit-tiny", "--json"]) == 0
    shown = capsys.readouterr().out
    for line in (["models", "--json", "show", "vit-tiny"], ["models", "--json", "--quiet", "show", "vit-tiny"]):
        assert app.run(line) == 0
        assert capsys.readouterr().out == shown


def test_what_is_no_cohort_is_wrong_usage(tmp_path, capsys):
    for name in ("missing", "."):
        assert app.run(["pretrain", str(tmp_path / name), "--steps", "1", "--out", str(tmp_path / "run")]) == 2
        assert "error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pretrain_names_every_encoder():
    assert ENCODERS.replace(" or ", ", ").split(", ") == list(ARCHITECTURES)


def test_quiet_leaves_only_data(capsys):
    assert app.run(["doctor", "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert isinstance(json.loads(said.out), list)
