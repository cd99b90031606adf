"""Tables that people use: sortable, copyable, numbers right-aligned with the same decimals, units in the header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from headct.reporting.words import NOT_STATED, is_missing, number, visible

LONG = 40
"""A table of more rows scrolls inside its own frame, under its header."""

BROAD = 10
"""A table of more columns is printed on a page turned sideways."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: which column of the frame, its header with unit, and how a cell is written.

    With `decimals` the cells are numbers; `write` turns a value into the cell's text or markup instead. `wide` cells
    hold sentences and may break over lines.
    """

    key: str
    header: str
    unit: str = ""
    decimals: int | None = None
    write: Callable[[Any], str | Markup] | None = None
    wide: bool = False

    @property
    def style(self) -> str:
        """How the style sheet sets its cells."""
        return "number" if self.decimals is not None else "wide" if self.wide else ""

    def cell(self, value: object) -> str | Markup:
        """What stands in the table for a value."""
        if self.write is not None:
            return self.write(value)
        if self.decimals is not None:
            return number(value, self.decimals)
        return NOT_STATED if is_missing(value) else visible(str(value))


def table(frame: pd.DataFrame, columns: list[Column], caption: str) -> Markup:
    """The rows of a frame as a table; the first column names the row. Columns that the frame lacks raise KeyError."""
    head = Markup("").join(_header(column) for column in columns)
    listed = [frame[column.key].tolist() for column in columns]
    body = Markup("").join(_row(columns, values) for values in zip(*listed, strict=True))
    return Markup(
        '<div class="table{}" role="region" tabindex="0" aria-label="{}">'
        '<table class="sortable"><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(_size(frame, columns), caption, caption, head, body)


def _size(frame: pd.DataFrame, columns: list[Column]) -> str:
    """Words by which the style sheet knows a table that does not fit a screen or an upright page."""
    return (" long" if len(frame) > LONG else "") + (" broad" if len(columns) > BROAD else "")


def _header(column: Column) -> Markup:
    unit = Markup(' <span class="unit">{}</span>').format(column.unit) if column.unit else Markup("")
    return Markup('<th scope="col"{}>{}{}</th>').format(_style(column), column.header, unit)


def _style(column: Column) -> Markup:
    return Markup(' class="{}"').format(column.style) if column.style else Markup("")


def _row(columns: list[Column], values: tuple[object, ...]) -> Markup:
    cells = [column.cell(value) for column, value in zip(columns, values, strict=True)]
    others = [
        Markup("<td{}>{}</td>").format(_style(column), cell)
        for column, cell in zip(columns[1:], cells[1:], strict=True)
    ]
    return Markup('<tr><th scope="row"{}>{}</th>{}</tr>').format(_style(columns[0]), cells[0], Markup("").join(others))


def pairs(values: dict[str, object], caption: str) -> Markup:
    """Names and their values as a two-column table, in the order given."""
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(name, visible(str(value)))
        for name, value in values.items()
    )
    return Markup('<table class="pairs"><caption>{}</caption><tbody>{}</tbody></table>').format(caption, rows)
