"""The cost model: its page says what the script prints, operations against a closed form, times by hand."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cost", REPOSITORY / "benchmarks" / "cost.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_script_prints(cost: ModuleType) -> None:
    page = (REPOSITORY / "docs" / "explanation" / "cost.md").read_text()
    printed = [line for table in cost.tables(cost.MEASURED, cost.COHORTS) for line in table.splitlines() if line]
    assert len(printed) > 30
    assert [line for line in printed if line not in page] == []


def test_operations_of_a_scan_are_those_of_the_formula(cost: ModuleType) -> None:
    """ViT-B: 12 blocks of 768 features on 512 patches, a class token and 4 registers."""
    tokens, width, mlp, patch = 517, 768, 3072, 3 * 12**3
    block = 2 * tokens * (4 * width**2 + 2 * width * mlp) + 4 * tokens**2 * width
    head = 2 * (width * 2048 + 2048**2 + 2048 * 256 + 256 * 65536)
    embedding = 2 * 512 * patch * width
    once = 12 * block + head
    # the backward pass takes twice the forward one, but for the input, of which no gradient is asked
    expected = 4 * (3 * once + 2 * embedding) + 2 * (once + embedding)
    assert cost.flops_a_scan() == pytest.approx(expected, rel=0.01)


def test_times_by_hand(cost: ModuleType) -> None:
    rates = replace(cost.MEASURED, prepare_thick_s=0.36, stored_mb=1.0)
    text = "\n".join(cost.tables(rates, {"some": 1_000_000}))
    assert "| read and prepare, 40 slices | 360.0 ms | 100.0 | 6.2 h |" in text
    assert "Stored: 1,000 GB" in text
    seconds = cost.flops_a_scan() * 1e8 / (0.4 * 989e12)
    assert f"| H100 | 40 % | {1e8 / seconds:.0f} |" in text
    assert f"| {seconds / 3600:,.0f} | {seconds / 86400:.1f} days | {seconds / 8 / 3600:.1f} h |" in text
