"""Oracles: the standard HTML parser, and SHA-256 computed here for the script that the page's policy allows."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from markupsafe import Markup

from headct.reporting.page import Page, Provenance, Section, software_versions

HOSTILE = "<script>alert('x')</script>"


def page(**changes: object) -> Page:
    sections = [Section(title=f"Part {n}", lead=f"Lead {HOSTILE}", body=Markup("<h3>Inner</h3>")) for n in range(3)]
    settings = {"title": f"Title {HOSTILE}", "kind": f"kind {HOSTILE}", "answer": [f"Found {HOSTILE}"]}
    provenance = Provenance(settings={HOSTILE: HOSTILE}, hashes={"a": "f00d"}, versions={"headct": "1"})
    return Page(**{**settings, "sections": sections, "to_do": [HOSTILE], "provenance": provenance, **changes})


class Reader(HTMLParser):
    """Collects tags with their attributes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_is_fetched() -> None:
    tags = Reader(page().html()).tags
    addresses = [
        value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href", "srcset", "action")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "base")]
    assert "url(" not in page().html()
    assert "@import" not in page().html()


def test_only_the_page_s_own_script_runs() -> None:
    html = page().html()
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in html or f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_headings_are_in_order_and_links_arrive() -> None:
    tags = Reader(page().html()).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    targets = {attrs.get("id") for _, attrs in tags}
    links = {attrs["href"][1:] for tag, attrs in tags if tag == "a"}
    assert links <= targets
    assert "main" in links  # the skip link


def test_the_answer_comes_first_and_the_disclaimer_is_there() -> None:
    html = page().html()
    assert html.index("Found") < html.index("What you can do") < html.index("Lead") < html.index("What made this page")
    assert html.count("Research software, not a medical device") == 2


def test_virtual_patients_are_said() -> None:
    assert "is virtual" in page(virtual=True).html()
    assert '<body class="virtual">' in page(virtual=True).html()
    assert "is virtual" not in page().html()
    assert '.virtual figcaption::after { content: " · virtual patients"; }' in page().html()


def test_the_same_page_gives_the_same_bytes(tmp_path: Path) -> None:
    page().write(tmp_path / "a" / "one.html")
    page().write(tmp_path / "two.html")
    assert (tmp_path / "a" / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert (tmp_path / "two.html").read_bytes().decode("utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "two.html"]


def test_a_name_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    page(title="undecodable \udcff").write(tmp_path / "page.html")
    assert "undecodable \\udcff" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match=r"page\.html"):
        page().write(tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_versions_are_those_installed() -> None:
    assert software_versions("jinja2")["jinja2"].startswith("3.")
