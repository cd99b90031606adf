"""Finds the command that was asked for, runs it, and turns what went wrong into a sentence and an exit code.

Exit codes: 0 done, 1 nothing usable came out, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperGroup

from headct.cli.commands import COMMANDS, Command
from headct.cli.talk import Talk
from headct.failure import Failure, Misuse

NOTHING_USABLE, WRONG_USAGE, INTERRUPTED = 1, 2, 130
MAYBE_PLACES = ("SCAN", "MODEL")
"""What is a path or a name: `Path("")` would be the folder that one is in, so that no text may be empty here either."""

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no summary; data, warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = _headct().main(list(arguments), prog_name="headct", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        # the last door: whatever a room raised is told in the user's words, and in full with --debug
        if "--debug" in arguments:
            traceback.print_exception(error, file=sys.stderr)
        return _tell(error)
    if code == INTERRUPTED:  # typer turned the KeyboardInterrupt into its code
        return _tell(KeyboardInterrupt())
    return code if isinstance(code, int) else 0


def _headct() -> Any:
    app = typer.Typer(cls=_group(COMMANDS), rich_markup_mode=None, add_completion=False, no_args_is_help=True)

    @app.callback()
    def headct(
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print it.")
        ] = False,
    ) -> None:
        """Foundation models for head CT, from files to findings. Research software, not a medical device."""

    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from headct import __version__

        print(f"headct {__version__}")
        raise typer.Exit


def _group(commands: Mapping[str, Command]) -> type[TyperGroup]:
    """A group that imports a command only when it is called, and lists them all without importing any."""

    class Lazy(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return _build(cmd_name, commands[cmd_name]) if cmd_name in commands else None

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, command.summary) for name, command in commands.items()])

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if args and args[0] not in commands and not args[0].startswith("-"):
                near = get_close_matches(args[0], commands, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"commands are {', '.join(commands)}"
                ctx.fail(f"no command '{args[0]}'; {hint}")
            return super().resolve_command(ctx, args)

    return Lazy


def _build(name: str, command: Command) -> Any:
    module, _, attribute = command.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    text, examples = split_docstring(function)
    about = {"help": text, "epilog": "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)}
    if not command.parts:
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(name, **about)(_with_talk(function))  # type: ignore[arg-type]
        return typer.main.get_command(app)
    app = typer.Typer(cls=_group(command.parts), rich_markup_mode=None, add_completion=False)
    app.callback(invoke_without_command=True, **about)(_with_talk(function, unless_part=True))  # type: ignore[arg-type]
    group = typer.main.get_command(app)
    group.name = name
    return group


def split_docstring(function: Callable[..., Any]) -> tuple[str, list[str]]:
    """The text of a command's docstring and the command lines under its `Examples:`."""
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
    return text.strip(), [line.strip() for line in examples.splitlines() if line.strip()]


def _with_place(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter, its text parsed by `_place` where it names one."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, about = get_args(parameter.annotation)
    is_path = _holds_path(kind)
    if not is_path and about.metavar not in MAYBE_PLACES:
        return parameter
    name = about.default if isinstance(about.default, str) else about.metavar  # inside Annotated the first is its name

    def parse(text: str | Path) -> str | Path:
        return _place(name, text) if is_path else _not_empty(name, str(text))

    about = copy(about)
    about.parser = parse
    return parameter.replace(annotation=Annotated[kind, about])


def _holds_path(kind: Any) -> bool:
    """Whether a type is a path, several of them, or perhaps none."""
    return kind is Path or any(map(_holds_path, get_args(kind)))


def _place(name: str, text: str | Path) -> Path:
    """A path, with the home folder for a `~` that the shell has left, as it does in `--out=~/x`."""
    return Path(os.path.expanduser(_not_empty(name, str(text))))


def _not_empty(name: str, text: str) -> str:
    """Raises Misuse for an empty path, which would be the folder that one happens to be in."""
    if not text:
        raise Misuse(
            f"{name} is empty",
            why="an empty path names nothing; a shell leaves one where a variable has no value",
            do="write what is meant, or . for the folder that you are in",
        )
    return text


def _with_talk(function: Callable[..., Any], *, unless_part: bool = False) -> Callable[..., None]:
    """The command with `--quiet` and `--debug` among its options, and `talk` filled in if it asks for it.

    Options before the name of a part are those of the part.
    """
    signature = inspect.signature(function, eval_str=True)
    wants_talk = "talk" in signature.parameters

    @functools.wraps(function)
    def command(ctx: typer.Context, *, quiet: bool, debug: bool, **options: Any) -> None:
        if unless_part and ctx.invoked_subcommand is not None:
            ctx.default_map = {ctx.invoked_subcommand: {**options, "quiet": quiet, "debug": debug}}
            return
        if wants_talk:
            options["talk"] = Talk(quiet=quiet)
        function(**options)

    by_name, no_default = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    parameters = [_with_place(p).replace(kind=by_name) for p in signature.parameters.values() if p.name != "talk"]
    added: dict[str, tuple[Any, Any]] = {
        "ctx": (typer.Context, no_default),
        "quiet": (Quiet, False),
        "debug": (Debug, False),  # acted upon in `run`, which sees every error
    }
    for name, (kind, default) in added.items():
        parameters.append(inspect.Parameter(name, by_name, annotation=kind, default=default))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _tell(error: BaseException) -> int:
    """Say on stderr what went wrong; the exit code that it means."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; the same command line goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader of our output left (`| head`): nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOTHING_USABLE
    if isinstance(error, typer.TyperException):
        return _tell_usage(error)
    _print_failure(error if isinstance(error, Failure) else _as_failure(error))
    return WRONG_USAGE if isinstance(error, Misuse) else NOTHING_USABLE


def _tell_usage(error: typer.TyperException) -> int:
    """The command line could not be understood; a bare `headct` gets the help text."""
    message = error.format_message()
    if message.startswith("Usage:"):
        print(message, file=sys.stderr)
    else:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "headct"
        _print_failure(Misuse(message[:1].lower() + message[1:].rstrip("."), do=f"see `{where} --help`"))
    return WRONG_USAGE


def _as_failure(error: BaseException) -> Failure:
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        remedies = {
            errno.ENOSPC: "free some space and call the same command line again",
            errno.EACCES: "check who owns it and may write there",
            errno.EROFS: "name a place that can be written to",
        }
        return Failure(f"the system refused{place}: {error.strerror or error}", do=remedies.get(error.errno or 0, ""))
    if isinstance(error, MemoryError):
        return Failure("out of memory", do="try again with fewer --workers")
    if isinstance(error, ModuleNotFoundError):
        return Failure(f"the package {error.name} is not installed", do="run `headct doctor` to see what is missing")
    return Failure(
        f"unexpected {type(error).__name__}",
        why=str(error),
        do="run the same line with --debug and report what it prints",
    )


def _print_failure(failure: Failure) -> None:
    print(f"error: {failure}", file=sys.stderr)
