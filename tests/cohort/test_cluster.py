"""The same code on a Dask cluster: the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cohort.folders import assert_same

from headct.cohort import executors
from headct.cohort.ingest import ingest
from headct.failure import Misuse

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler with two workers, each a process of its own."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=40
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_two_dask_workers_give_the_same_bytes(demo: Path, key: Path, tmp_path: Path, scheduler: str) -> None:
    inputs = [demo / "patient-01", demo / "patient-02"]
    summary = ingest(inputs, tmp_path / "dask", cluster=scheduler, key=key)
    assert summary.scans == 2
    ingest(inputs, tmp_path / "local", workers=2, key=key)
    assert_same(tmp_path / "dask", tmp_path / "local")


def test_an_address_where_nobody_answers_is_wrong_usage(
    demo: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "CONNECT_S", 1.0)
    with pytest.raises(Misuse, match="no Dask scheduler answers at tcp:"):
        ingest([demo], tmp_path / "cohort", cluster="tcp://127.0.0.1:9", key=key)
