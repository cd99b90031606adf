"""Each set has a page that says the same as the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.datasets import NAMES, SETS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_set_names_its_findings_and_the_counts_that_must_come_out(name):
    page = (DOCS / "reference" / "datasets" / f"{name}.md").read_text()
    which = SETS[name]
    assert which.licence in page
    for what, number in which.expected.items():
        assert f"| {what} | {'to be checked' if number is None else f'{number:,}'} |" in page
    for finding in which.findings:
        assert f"`{finding}`" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_in_the_navigation_and_in_the_list(name):
    assert f"reference/datasets/{name}.md" in (DOCS.parent / "mkdocs.yml").read_text()
    assert f"({name}.md)" in (DOCS / "reference" / "datasets" / "index.md").read_text()
