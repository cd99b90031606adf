"""What a command says: data to stdout; messages, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Progress = Callable[[int, int | None], None]
"""Called with how many items are done and, once known, how many there are."""

WIDE = 1000  # columns of a table that no terminal wraps


@dataclass(frozen=True)
class Talk:
    """How a command speaks to the person who called it; `quiet` leaves only data and errors."""

    quiet: bool = False

    def say(self, text: str) -> None:
        """One message to stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A bar on stderr while the block runs, drawn only on a terminal; yields what to call with (done, total)."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    def table(self, rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, to_stderr: bool = False) -> None:
        """Rows that share their keys, as an aligned table or, with `as_json`, as a JSON list of objects.

        A table is data and goes to stdout; the summary at the end of a job that writes files is talk
        (`to_stderr`), which `--quiet` silences.
        """
        if as_json:
            self.json(list(rows))
        elif rows and not (to_stderr and self.quiet):
            _print_table(rows, to_stderr=to_stderr)

    def json(self, value: Any) -> None:
        """One JSON value to stdout."""
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_table(rows: Sequence[Mapping[str, Any]], *, to_stderr: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if to_stderr else sys.stdout
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else WIDE)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float) and not isinstance(row[name], bool) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in rows[0]))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
