"""One page: the answer first, then the sections, last what is needed to make it again."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from headct.failure import Misuse
from headct.reporting.tables import pairs

NOT_A_DEVICE = "Research software, not a medical device"
SUFFIXES = (".html", ".htm")
GENERATED = b'<meta name="generator" content="headct">'
"""By which a page of ours is known again; it stands within the first `HEAD_BYTES` of the file."""
HEAD_BYTES = 4096
VIRTUAL = "Every patient on this page is virtual: made by a computer, from no real person."


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under its own heading; `lead` is the sentence that opens it."""

    title: str
    lead: str | Markup
    body: Markup

    @property
    def anchor(self) -> str:
        """The name by which other parts of the page link here."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made the page: settings, hashes of what went in, versions of the software. No time, so bytes repeat."""

    settings: Mapping[str, object] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def tables(self) -> list[Markup]:
        named = {"Settings": self.settings, "Hashes": self.hashes, "Versions": self.versions}
        return [pairs(dict(values), name) for name, values in named.items() if values]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page to be written.

    `answer` says in words what was found, its first sentence set large; `to_do` lists what the reader can do about
    it. `virtual` marks every figure as made from virtual patients.
    """

    title: str
    kind: str
    answer: Sequence[str | Markup]
    sections: Sequence[Section]
    provenance: Provenance
    to_do: Sequence[str | Markup] = ()
    virtual: bool = False

    def html(self) -> str:
        """The whole page, style and script inside; everything that is not Markup is escaped."""
        style, script = _asset("page.css"), _asset("page.js")
        return _template().render(
            page=self,
            style=Markup(style),
            script=Markup(script),
            script_hash=_policy_hash(script),
            not_a_device=NOT_A_DEVICE,
            virtual_words=VIRTUAL,
        )

    def write(self, path: Path) -> None:
        """Write the page whole or not at all; folders are made as needed. Raises OSError where the disk refuses."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # names that are no Unicode reach the page as lone surrogates, which UTF-8 cannot hold
        content = self.html().encode("utf-8", "backslashreplace")
        draft = path.with_name(f".{path.name}.draft")
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raises Misuse where a page at `path` would bear a wrong name, or replace what is not a page of ours."""
    if path.suffix.lower() not in SUFFIXES:
        raise Misuse(f"a page is an HTML file, and {path} is not called so", do=f"name {path.with_suffix('.html')}")
    if path.is_dir():
        raise Misuse(f"{path} is a folder", do=f"name a file in it: {path / 'page.html'}")
    if path.exists() and not _is_ours(path):
        raise Misuse(
            f"{path} is there already, and headct did not write it", do="name another file, or move that one away"
        )


DIGITS = 4
"""Of the name of a numbered page."""


def numbered(folder: Path, number: int) -> Path:
    """The place of one of several pages."""
    return folder / f"{number:0{DIGITS}d}.html"


def clear(folder: Path) -> None:
    """Remove numbered pages of ours that an earlier call has left in a folder, perhaps of other scans."""
    for path in folder.glob("*.html"):
        if path.stem.isdecimal() and len(path.stem) == DIGITS and path.is_file() and _is_ours(path):
            path.unlink()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATED in file.read(HEAD_BYTES)


def software_versions(*packages: str) -> dict[str, str]:
    """The installed version of each named package."""
    return {package: metadata.version(package) for package in packages}


@cache
def _asset(name: str) -> str:
    return resources.files("headct.reporting").joinpath(name).read_text(encoding="utf-8").strip()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html.jinja"))


def _policy_hash(script: str) -> str:
    """The digest by which the page's Content-Security-Policy allows its own script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
