"""What a command says: data to stdout; messages, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

Progress = Callable[[int, int | None], None]
"""Called with how many items are done and, once known, how many there are."""

WIDE = 1000
"""Letters in a line that no terminal wraps."""
GAP, INDENT = 3, "    "
LEAST_WIDTH = 16
"""A column of text that would be narrower is not worth its place, nor is one that holds less than half of its cells."""


@dataclass(frozen=True)
class Talk:
    """How a command speaks to the person who called it; `quiet` leaves only data, warnings and errors."""

    quiet: bool = False

    def say(self, text: str) -> None:
        """One message to stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """What the user should know even with `quiet`, to stderr: the command went on, but not as one might think."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A bar on stderr while the block runs, drawn only on a terminal; yields what to call with (done, total).

        Rate and time left leave out what was done before the first call: a job that goes on begins with that.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.3g} per second" if task.speed else "")

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task, begun = bars.add_task(what, total=None), False

            def progress(done: int, total: int | None) -> None:
                nonlocal begun
                if not begun:
                    bars.reset(task, completed=done)
                begun = True
                bars.update(task, completed=done, total=total)

            yield progress

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
    columns = [_Column.of(name, rows) for name in rows[0]]
    spare = console.width - sum(column.width + GAP for column in columns)
    if spare < 0:
        print("\n".join(_narrow(_squeezed(columns, -spare), console.width)), file=stream)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


@dataclass(frozen=True)
class _Column:
    """A column of a table as text; `width` in letters. Without a width its cells stand below their rows."""

    name: str
    cells: tuple[str, ...]
    numeric: bool
    width: int

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Any]]) -> _Column:
        """As wide as it needs to be."""
        numeric = all(isinstance(row[name], int | float) and not isinstance(row[name], bool) for row in rows)
        cells = tuple(_cell(row[name]) for row in rows)
        return cls(name, cells, numeric, max(len(text) for text in (name, *cells)))

    def padded(self, text: str) -> str:
        """At its place in a line; one that is too long leaves it empty, and follows below."""
        text = "" if len(text) > self.width else text
        return text.rjust(self.width) if self.numeric else text.ljust(self.width)

    def below(self, text: str) -> str:
        """What stands below the row, if anything."""
        return f"{self.name}: {text}" if len(text) > self.width else ""


def _squeezed(columns: Sequence[_Column], letters: int) -> list[_Column]:
    """The columns of a table that is so many letters too wide: the widest of text give way, the first one stays."""
    squeezed = list(columns)
    for index in sorted(range(1, len(columns)), key=lambda index: -columns[index].width):
        if letters <= 0 or columns[index].numeric:
            continue
        width = columns[index].width - letters
        fit = sum(len(text) <= width for text in columns[index].cells)
        width = width if width >= LEAST_WIDTH and 2 * fit >= len(columns[index].cells) else 0
        letters -= columns[index].width - width + (0 if width else GAP)
        squeezed[index] = replace(columns[index], width=width)
    return squeezed


def _narrow(columns: Sequence[_Column], width: int) -> Iterator[str]:
    """The lines of a table for a narrow terminal: what does not fit into its column stands below its row."""
    shown = [column for column in columns if column.width]
    yield "  ".join(column.padded(column.name) for column in shown).rstrip()
    yield "─" * min(width, sum(column.width + 2 for column in shown) - 2)
    for cells in zip(*(column.cells for column in columns), strict=True):
        texts = dict(zip((column.name for column in columns), cells, strict=True))
        yield "  ".join(column.padded(texts[column.name]) for column in shown).rstrip()
        for column in columns:
            if below := column.below(texts[column.name]):
                yield from textwrap.wrap(below, width - 1, initial_indent=INDENT, subsequent_indent=INDENT + "  ")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    return str(value)
