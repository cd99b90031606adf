"""A killed, interrupted or starved ingest goes on, and ends with the bytes of one that was left in peace."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from cohort.folders import assert_same, contents

from headct.cohort import Cohort, commit
from headct.cohort.ingest import ingest
from headct.failure import Failure, Misuse

SMALL_SHARD_BYTES = 1_000_000  # two scans, so that kills meet shards at every stage
KILLS = 10

COMMAND = (
    "import signal, sys, headct.cohort.commit as commit; commit.SHARD_BYTES = " + str(SMALL_SHARD_BYTES) + "\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
    "from headct.cli import main; main()"
)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """`headct` with small shards, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Undisturbed(NamedTuple):
    """A cohort made in one go."""

    path: Path
    begins_s: float  # when the first trace of it was on disk; before, Python was loading
    took_s: float


@pytest.fixture(scope="module")
def undisturbed(demo: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    out = tmp_path_factory.mktemp("undisturbed") / "cohort"
    started_s = time.monotonic()
    process = start("ingest", demo, "--out", out, "--key", key, "--workers", "2")
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    begins_s = time.monotonic() - started_s
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert len(list((out / "volumes").iterdir())) > 1
    return Undisturbed(out, begins_s, time.monotonic() - started_s)


def kill(demo: Path, key: Path, out: Path, moment_s: float) -> bool:
    """Call the line and kill it after a moment; whether it was still running."""
    process = start("ingest", demo, "--out", out, "--key", key, "--workers", "2")
    time.sleep(moment_s)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def test_three_kills(demo: Path, key: Path, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """The same line again and again."""
    out, moments = tmp_path / "cohort", random.Random(1)
    killed = [kill(demo, key, out, moments.uniform(0.2, 1) * undisturbed.took_s) for _ in range(3)]
    assert any(killed)
    process = start("ingest", demo, "--out", out, "--key", key, "--workers", "2")
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert_same(out, undisturbed.path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_kills_at_every_stage(
    seed: int, demo: Path, key: Path, tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kill each, at moments spread over the whole job from its first trace on disk; this process goes on."""
    share = (seed + random.Random(seed).random()) / KILLS
    kill(demo, key, tmp_path / "cohort", undisturbed.begins_s + share * (undisturbed.took_s - undisturbed.begins_s))
    monkeypatch.setattr(commit, "SHARD_BYTES", SMALL_SHARD_BYTES)
    ingest([demo], tmp_path / "cohort", workers=1, key=key)
    assert_same(tmp_path / "cohort", undisturbed.path)


class Stopped(BaseException):
    """The end of a process, as far as this one can play it: nothing after a write happens."""


def ingest_with_stops(inputs: list[Path], out: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many stops it takes until a call returns, if the first write of each file is the last deed of its call."""
    replace, written = os.replace, set[str]()

    def stop_after(partial: Path, path: Path) -> None:
        replace(partial, path)
        if str(path) not in written:
            written.add(str(path))
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_after)
        patch.setattr(commit, "SHARD_BYTES", 1)
        while True:
            stops = len(written)
            try:
                ingest(inputs, out, workers=1, key=key)
                return stops
            except Stopped:
                assert len(written) == stops + 1


def test_a_stop_after_every_single_write(
    demo: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [demo / "patient-02", demo / "patient-03"]
    monkeypatch.setattr(commit, "SHARD_BYTES", 1)
    ingest(inputs, tmp_path / "calm", workers=1, key=key)
    assert ingest_with_stops(inputs, tmp_path / "stopped", key, monkeypatch) > 10
    assert_same(tmp_path / "stopped", tmp_path / "calm")


def test_a_stop_after_every_single_write_while_adding(
    demo: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [demo / "patient-02"]
    both = [*first, demo / "patient-03"]
    monkeypatch.setattr(commit, "SHARD_BYTES", 1)
    for out in (tmp_path / "calm", tmp_path / "stopped"):
        ingest(first, out, workers=1, key=key)
    ingest(both, tmp_path / "calm", workers=1, key=key)
    assert ingest_with_stops(both, tmp_path / "stopped", key, monkeypatch) > 8
    assert_same(tmp_path / "stopped", tmp_path / "calm")


def test_a_kill_while_the_journal_is_removed(
    demo: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds of patients must not stay behind in a cohort that is finished."""
    inputs, out = [demo / "patient-02"], tmp_path / "cohort"
    ingest(inputs, tmp_path / "calm", workers=1, key=key)

    def stop(path: Path) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(Stopped):
            ingest(inputs, out, workers=1, key=key)
    assert (out / "cohort.json").exists()
    assert len(contents(out / ".ingest")) > 3
    ingest(inputs, out, workers=1, key=key)
    assert_same(out, tmp_path / "calm")


def test_control_c_ends_with_130_and_can_be_resumed(
    demo: Path, key: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    whole = undisturbed.path
    line = ("ingest", demo, "--out", tmp_path / "cohort", "--key", key, "--workers", "2")
    process = start(*line)
    while not (tmp_path / "cohort" / ".ingest" / "unfinished" / "headers").exists():
        time.sleep(0.01)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "goes on where it stopped" in said
    assert "Traceback" not in said
    with pytest.raises(Failure, match="not finished"):
        Cohort(tmp_path / "cohort")
    process = start(*line)
    process.communicate()
    assert process.returncode == 0
    assert_same(tmp_path / "cohort", whole)


def test_a_full_disk_loses_nothing(
    demo: Path, key: Path, tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write in eight is refused as by a full disk; somebody makes room, and calls again."""
    whole = undisturbed.path
    monkeypatch.setattr(commit, "SHARD_BYTES", SMALL_SHARD_BYTES)
    replace, luck = os.replace, random.Random(2)

    def sometimes_full(partial: Path, path: Path) -> None:
        if luck.random() < 1 / 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(partial, path)

    monkeypatch.setattr(os, "replace", sometimes_full)
    refused: list[Failure] = []
    while True:
        try:
            ingest([demo], tmp_path / "cohort", workers=2, key=key)
            break
        except Failure as failure:
            refused.append(failure)
            assert len(refused) < 100
    assert len(refused) > 3
    assert {failure.why for failure in refused} == {"No space left on device"}
    assert {failure.do for failure in refused} == {
        "free some space and call the same line again; what was done is kept"
    }
    assert_same(tmp_path / "cohort", whole)


def test_a_file_size_limit_ends_with_1_and_a_sentence(demo: Path, key: Path, tmp_path: Path) -> None:
    """The kernel itself refuses: no file may grow beyond 200 kB, a scan's voxels need more."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n{COMMAND}"
    line = ["ingest", str(demo / "patient-02"), "--out", str(tmp_path / "cohort"), "--key", str(key), "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", limited, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-c", COMMAND, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Cohort(tmp_path / "cohort")) == 1


def test_a_place_that_cannot_be_written_ends_with_1(demo: Path, key: Path) -> None:
    process = start("ingest", demo, "--out", "/proc/headct-cohort", "--key", key)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "error: cannot write /proc/headct-cohort" in said


def test_files_that_come_while_it_was_stopped_are_added(demo: Path, key: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "cohort"
    shutil.copytree(demo / "patient-02", source / "patient-02")
    stop_at_first_series(source, out, key)
    shutil.copytree(demo / "patient-03", source / "patient-03")
    summary = ingest([source], out, workers=1, key=key)
    assert (summary.scans, len(Cohort(out))) == (2, 2)


def test_files_that_change_while_it_was_stopped_are_read_as_they_are(demo: Path, key: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "cohort"
    shutil.copytree(demo / "patient-02", source)
    stop_at_first_series(source, out, key)
    path = sorted((source / "head").iterdir())[0]
    path.unlink()
    ingest([source], out, workers=1, key=key)
    ingest([source], tmp_path / "fresh", workers=1, key=key)
    assert_same(out, tmp_path / "fresh")


@pytest.mark.parametrize("last", ["rejections.parquet", "seen.parquet", "cohort.json"])
def test_files_that_change_when_some_tables_were_replaced(
    last: str, demo: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two tables, then other files: the cohort goes back to what it was, and on from there."""
    source = tmp_path / "in"
    shutil.copytree(demo / "patient-02", source / "patient-02")
    ingest([source], tmp_path / "stopped", workers=1, key=key)
    shutil.copytree(tmp_path / "stopped", tmp_path / "calm")
    shutil.copytree(demo / "patient-03", source / "patient-03")
    replace = os.replace

    def stop_after(partial: Path, path: Path) -> None:
        replace(partial, path)
        if path.name == last:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_after)
        with pytest.raises(Stopped):
            ingest([source], tmp_path / "stopped", workers=1, key=key)
    sorted((source / "patient-03" / "head").iterdir())[0].unlink()
    for out in (tmp_path / "stopped", tmp_path / "calm"):
        ingest([source], out, workers=1, key=key)
    assert_same(tmp_path / "stopped", tmp_path / "calm")
    assert len(Cohort(tmp_path / "stopped")) == 2


def test_other_inputs_or_options_do_not_take_over_an_unfinished_job(demo: Path, key: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    stop_at_first_series(demo / "patient-02", out, key)
    before = contents(out)
    with pytest.raises(Misuse, match="reads other inputs"):
        ingest([demo / "patient-03"], out, workers=1, key=key)
    with pytest.raises(Misuse, match="site"):
        ingest([demo / "patient-02"], out, workers=1, key=key, site="south")
    with pytest.raises(Misuse, match=r"head-fine \("):
        ingest([demo / "patient-02"], out, "head-fine", workers=1, key=key)
    assert contents(out) == before


def stop_at_first_series(source: Path, out: Path, key: Path) -> None:
    """An ingest that is interrupted when the first series is about to be read."""

    def interrupt(what: str, done: int, total: int | None) -> None:
        if what == "series":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([source], out, workers=1, key=key, progress=interrupt)
    assert (out / ".ingest" / "unfinished").is_dir()
