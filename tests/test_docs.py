"""What the documentation says is what the code does. Its examples are run by the `conftest.py` at the top."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import headct

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
GENERATOR = DOCS / "generate.py"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(generator().PAGES))
def test_generated_pages_are_up_to_date(page):
    written = (DOCS / "reference" / page).read_text()
    assert written == generator().PAGES[page](), "run `python docs/generate.py`"


def columns(page: str, heading: str) -> dict[str, str]:
    """Names and types in the first table below a heading."""
    section = (DOCS / "reference" / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE)
    return {name: kind.replace("&lt;", "<").replace("&gt;", ">").strip() for name, kind in rows}


@pytest.mark.parametrize(
    ("heading", "schema"),
    [("scans.parquet", "SCANS"), ("rejections.parquet", "REJECTIONS"), ("files.parquet", "FILES")],
)
def test_every_column_is_documented_with_its_type(heading, schema):
    from headct.cohort import tables

    def plain(kind: object) -> str:
        return re.sub(r"^(?:fixed_size_)?list<\w+: (\w+)>(?:\[\d+\])?$", r"list<\1>", str(kind))

    built = {field.name: plain(field.type) for field in getattr(tables, schema)}
    assert columns("tables.md", heading) == built


def test_every_column_of_vectors_is_documented():
    from headct.embedding.embeddings import VECTORS

    kinds = {field.name: re.sub(r"^list<\w+: (\w+)>$", r"list<\1>", str(field.type)) for field in VECTORS}
    assert list(columns("tables.md", "Embeddings").items())[: len(kinds)] == list(kinds.items())


def test_every_public_name_is_documented():
    page = (DOCS / "reference" / "python.md").read_text()
    for name in set(headct.__all__) - {"__version__"}:
        assert f".{name}\n" in page or f"headct.{name}`" in page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_of_the_front_pages_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (REPOSITORY / page).read_text())
    assert [link for link in links if "://" not in link and not (REPOSITORY / link).exists()] == []


def test_the_tree_of_the_readme_is_the_tree():
    tree = (REPOSITORY / "README.md").read_text().partition("src/headct/\n")[2].partition("```")[0]
    listed = [line.split()[0] for line in tree.splitlines() if line.strip()]
    source = REPOSITORY / "src" / "headct"
    there = {f"{path.parent.name}/" for path in source.glob("*/*.py")}
    there |= {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_is_named_exists(page):
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make (\w+)", (REPOSITORY / page).read_text(), flags=re.MULTILINE))
    assert named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)] == []


def test_pages_fetch_nothing():
    """No font, and no plug-in that loads a script from elsewhere; pages link to no picture elsewhere."""
    settings = (REPOSITORY / "mkdocs.yml").read_text()
    assert re.search(r"^  font: false", settings, flags=re.MULTILINE)
    assert not re.search(r"^  - offline", settings, flags=re.MULTILINE)
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"(!\[[^]]*\]\(|src=[\"'])https?://", page.read_text()), page
