"""Records are whole or absent, hold only plain values, and belong to one writer."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headct.cohort.journal import Journal, only_writer, write_atomically
from headct.cohort.work import Outcome
from headct.failure import Failure, Misuse
from headct.scan import Rejection

OUTCOME = Outcome(rejections=(Rejection.because("no-head", "no skull", ("a/b",)),))


def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "unfinished")
    journal.begin()
    return journal


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    records = journal(tmp_path)
    records.put("series", 1234, OUTCOME)
    records.put("other", 1234, {"a": (1, 2.5, None, b"x")})
    assert records.get("series", 1234) == OUTCOME
    assert records.get("other", 1234) == {"a": (1, 2.5, None, b"x")}
    assert records.get("series", 1235) is None
    records.drop("series", 1234)
    assert records.get("series", 1234) is None


def test_a_job_goes_on_only_on_the_terms_it_was_begun_on(tmp_path: Path) -> None:
    records = Journal(tmp_path / "home" / "journal")
    assert not records.resume({"model": "a", "seed": 1}, tmp_path / "out")
    records.put("part", 0, "done")
    assert records.resume({"seed": 1, "model": "a"}, tmp_path / "out")
    assert records.get("part", 0) == "done"
    with pytest.raises(Misuse) as refused:
        records.resume({"model": "b", "window": (1, 2)}, tmp_path / "out")
    assert refused.value.what == f"an unfinished job at {tmp_path / 'out'} was begun otherwise (model, seed, window)"
    assert f"or remove {tmp_path / 'home'} and" in str(refused.value.do)
    assert records.get("part", 0) == "done"
    with pytest.raises(Misuse) as refused:
        records.resume({}, tmp_path / "out", remains="this and that")
    assert "or remove this and that and" in str(refused.value.do)


def test_nobody_else_can_look_inside(tmp_path: Path) -> None:
    assert journal(tmp_path).folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("position", [0, 5, -1])
def test_a_damaged_record_was_never_written(tmp_path: Path, position: int) -> None:
    records = journal(tmp_path)
    records.put("series", 0, OUTCOME)
    (path,) = (path for path in records.folder.rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)
    assert records.get("series", 0) is None


class _Evil:
    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, ("touch /tmp/headct-was-here",)),
        (eval, ("1",)),
        (write_atomically, (Path("/tmp/headct-was-here"), b"")),
        (Journal, (Path("/tmp"),)),
    ],
)
def test_a_record_cannot_run_anything(tmp_path: Path, call: tuple[Any, ...]) -> None:
    records = journal(tmp_path)
    records.put("series", 0, _Evil(call))
    with pytest.raises(pickle.UnpicklingError, match="a journal holds no"):
        records.get("series", 0)
    assert not Path("/tmp/headct-was-here").exists()


def test_a_dotted_name_does_not_lead_out_of_the_package(tmp_path: Path) -> None:
    """Protocol 4 resolves `module` + "os.system" attribute by attribute; ours must not."""
    records = journal(tmp_path)
    records.put("series", 0, OUTCOME)
    (path,) = (path for path in records.folder.rglob("*") if path.is_file())
    body = pickle.dumps(OUTCOME, protocol=5)
    evil = body.replace(b"\x8c\x07Outcome", b"\x8c\x09os.system").replace(b"headct.cohort.work", b"headct.cohort.jour")
    assert evil != body
    import zlib

    path.write_bytes(zlib.crc32(evil).to_bytes(4, "little") + evil)
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError)):
        records.get("series", 0)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match="No space left") as failure:
        write_atomically(path, b"new")
    assert "call the same line again" in failure.value.do
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_must_survive_a_power_cut_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    journal(tmp_path).put("series", 0, OUTCOME)
    assert flushed == []
    write_atomically(tmp_path / "file", b"")
    assert len(flushed) == 2  # the file, and the folder that has its name


def test_a_limit_on_file_size_is_told_in_a_sentence(tmp_path: Path) -> None:
    """A real refusal by the kernel, in a process that may write 1,000 bytes a file."""
    code = (
        "import resource, pathlib; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from headct.cohort.journal import write_atomically\n"
        f"write_atomically(pathlib.Path({str(tmp_path / 'big')!r}), bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Failure: cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom headct.cohort.journal import only_writer\n"
        f"with only_writer(pathlib.Path({str(tmp_path / '.ingest')!r})):\n print('in', flush=True)\n sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(Failure, match=r"another process is writing to out\.parquet"),
            only_writer(tmp_path / ".ingest", Path("out.parquet")),
        ):
            pass
        with pytest.raises(Failure, match="another process is writing"), only_writer(tmp_path / ".ingest"):
            pass
        other.kill()
    with only_writer(tmp_path / ".ingest"):  # the kernel lets go with the process
        pass


def test_a_removal_cut_short_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = journal(tmp_path)
    records.put("series", 0, OUTCOME)
    import headct.cohort.journal as module

    monkeypatch.setattr(module.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        records.remove()
    monkeypatch.undo()
    assert records.get("series", 0) is None
    records.begin()
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]
