"""Readers of pages for the tests: tables as data frames and tags in order, by Python's own HTML parser."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd

VOID = frozenset({"meta", "img", "input", "br", "hr"})


class Tags(HTMLParser):
    """Every tag of a page with its attributes, the tags around it, and the text directly in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[dict] = []
        self._open: list[dict] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {"tag": tag, "attrs": dict(attrs), "inside": [one["tag"] for one in self._open], "text": ""}
        self.tags.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1]["tag"] == tag, f"</{tag}> closes <{self._open[-1]['tag']}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one["text"] += data

    def named(self, tag: str) -> list[dict]:
        """The tags of a name."""
        return [one for one in self.tags if one["tag"] == tag]


def read_table(html: str) -> pd.DataFrame:
    """The first table as text, without its index; blanks are single spaces."""
    cells = [
        one for one in Tags(html[: html.index("</table>")] + "</table>" + "</div>").tags if one["tag"] in ("th", "td")
    ]
    words = [" ".join(one["text"].replace("\u00a0", " ").split()) for one in cells]
    width = sum("thead" in one["inside"] for one in cells)
    rows = [words[start : start + width] for start in range(width, len(words), width)]
    return pd.DataFrame(rows, columns=words[:width])
