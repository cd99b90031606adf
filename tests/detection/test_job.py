"""Prediction as a job: what it writes, and that a kill costs little and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from detection import made

from headct.cohort import Cohort
from headct.detection import Detector
from headct.detection import job as jobs
from headct.detection.detector import PREDICTIONS
from headct.detection.job import check, predict_into
from headct.embedding.inputs import Reading
from headct.embedding.machine import choose
from headct.failure import Misuse
from headct.preparing import recipes
from headct.reading import Criteria

MACHINE = choose("fp32", "cpu")
READING = Reading(recipe=recipes["head"], criteria=Criteria(), keep_ids=True)


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    return Detector.load(folder)


def test_the_table_is_what_the_detector_says(detector: Detector, cohort: Cohort, tmp_path: Path) -> None:
    done = predict_into(tmp_path / "p.parquet", [cohort], detector, READING, MACHINE)
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert table.columns.tolist() == PREDICTIONS.names
    wanted = detector.predict(cohort)
    pd.testing.assert_frame_equal(table.drop(columns="reasons"), wanted.drop(columns="reasons"))
    assert table["reasons"].map(list).tolist() == wanted["reasons"].tolist()
    assert (done.scans, done.repeated, dict(done.rejected)) == (96, 0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "p.rejections.parquet"]


def test_what_is_rejected_and_what_is_repeated_is_counted(detector: Detector, cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear colleague")
    inputs = [cohort.path, tmp_path / "letter.txt", cohort.path]
    done = predict_into(tmp_path / "p.parquet", inputs, detector, READING, MACHINE)
    assert (done.scans, done.repeated, dict(done.rejected)) == (96, 96, {"unknown-format": 1})
    assert pd.read_parquet(tmp_path / "p.rejections.parquet")["code"].tolist() == ["unknown-format"]


def test_a_killed_job_goes_on_and_gives_the_same(
    detector: Detector, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PART_INPUTS", 16)
    out = tmp_path / "p.parquet"
    predict_into(tmp_path / "whole.parquet", [cohort], detector, READING, MACHINE)

    def killed(done: int, total: int | None) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_into(out, [cohort], detector, READING, MACHINE, progress=killed)
    assert not out.exists()
    read: list[str] = []
    array = Cohort.array
    monkeypatch.setattr(Cohort, "array", lambda self, scan_id: (read.append(scan_id), array(self, scan_id))[1])
    predict_into(out, [cohort], detector, READING, MACHINE)
    assert len(read) == 96 - 32  # two parts were kept
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(tmp_path / "whole.parquet"))


def test_a_damaged_part_is_judged_again_and_nothing_counted_twice(
    detector: Detector, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that are made anew are larger, so the second one from before holds what is in the first one too."""
    (tmp_path / "letter.txt").write_text("dear colleague")
    inputs = [made.make(tmp_path / "few", 8, seed=5).path, tmp_path / "letter.txt", cohort.path]
    out = tmp_path / "p.parquet"

    def killed(done: int, total: int | None) -> None:
        if done > 40:
            raise KeyboardInterrupt

    for size in (8, 32):
        monkeypatch.setattr(jobs, "PART_INPUTS", size)
        with pytest.raises(KeyboardInterrupt):
            predict_into(out, inputs, detector, READING, MACHINE, progress=killed)
        if size == 8:
            first, *others = sorted((tmp_path / ".p.parquet.predicting" / "journal" / "part").glob("*/*"))
            assert others
            first.write_bytes(b"half")
    done = predict_into(out, inputs, detector, READING, MACHINE)
    assert (done.scans, dict(done.rejected)) == (104, {"unknown-format": 1})
    assert len(pd.read_parquet(tmp_path / "p.rejections.parquet")) == 1


def test_an_unfinished_job_of_other_inputs_is_not_mixed_in(detector: Detector, cohort: Cohort, tmp_path: Path) -> None:
    def killed(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_into(tmp_path / "p.parquet", [cohort], detector, READING, MACHINE, progress=killed)
    with pytest.raises(Misuse, match=r"begun otherwise \(inputs\)"):
        predict_into(tmp_path / "p.parquet", [cohort, cohort], detector, READING, MACHINE)


def test_a_place_that_holds_something_else_is_refused(detector: Detector, cohort: Cohort, tmp_path: Path) -> None:
    pd.DataFrame({"mine": [1]}).to_parquet(tmp_path / "mine.parquet")
    for out, inputs, says in (
        (tmp_path / "mine.parquet", [cohort.path], "is no table of predictions"),
        (tmp_path / "p.csv", [cohort.path], r"name .*p\.parquet"),
        (tmp_path / "p.parquet", [tmp_path / "typo"], "there is no"),
    ):
        with pytest.raises(Misuse, match=says):
            check(out, inputs)
    predict_into(tmp_path / "p.parquet", [cohort], detector, READING, MACHINE)
    check(tmp_path / "p.parquet", [cohort.path])
