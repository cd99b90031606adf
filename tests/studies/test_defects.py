"""`benchmarks/defects.py` on blocks that stand for heads: it runs, and a head in evaluation mode is steady."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, save
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "defects.py"


@pytest.fixture(scope="module")
def defects() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("defects", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "defects", module)  # where dataclasses look for the names in their annotations
        spec.loader.exec_module(module)
        yield module


def test_each_defect_is_switched_off_once_and_then_all_of_them(defects: ModuleType) -> None:
    for shots in (None, 8):
        *each, together = defects.without_defects(shots, 100).values()
        assert all(len(settings) == 1 for settings in each)
        assert together == {name: value for settings in each for name, value in settings.items()}


def test_a_table_comes_out(defects: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = made.make(tmp_path / "cohort", 40)
    made.truth(cohort).to_csv(tmp_path / "cohort" / "labels.csv", index=False)
    torch.manual_seed(0)
    encoder = encoders.build("conv-tiny", stem=8, widths=(4, 8), blocks=(1, 1))
    save(tmp_path / "model", encoder, Card(recipe=recipes["head"], windows=WINDOWS))
    line = [str(tmp_path / "cohort"), "--model", str(tmp_path / "model"), "--findings", "ich", "--shots", "4"]
    defects.main([*line, "--draws", "1", "--epochs", "1", "--batch", "8", "--methods", "linear", "--device", "cpu"])
    said = capsys.readouterr().out
    rows = ("as published", "head in evaluation mode", "no flips", "drawn without replacement", "all of these")
    assert all(f"\n{row} " in said for row in (*rows, "this package, linear"))
    low, high = re.findall(r"in evaluation mode: ([0-9.]+) to ([0-9.]+)", said)[0]
    assert low == high
