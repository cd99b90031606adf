"""What an unfinished job has already done, on disk, so that a killed one goes on where it stopped.

Every record is a file of its own, written whole or not at all. Records may hold what files say about a patient, so
the folder is closed to other users, and it is removed when the job is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import pickle
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headct.failure import Failure, Misuse

RECORDS_IN_A_FOLDER = 1000


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that, whatever happens, it is there as a whole or as it was before.

    What is not `durable` survives a kill, but a power cut may leave it old, absent or damaged; it is written faster.
    Raises Failure, with what to do, where the system refuses: a full disk, a quota, a place that is read-only.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            to_disk(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refused(path, error) from error
        raise


def refused(path: Path, error: OSError) -> Failure:
    """The failure of writing to `path`, in the user's words."""
    remedies = {
        errno.ENOSPC: "free some space and call the same line again; what was done is kept",
        errno.EDQUOT: "free some of your quota and call the same line again; what was done is kept",
        errno.EFBIG: "write to a file system that allows larger files",
    }
    fallback = "name a place that you may write to"
    return Failure(
        f"cannot write {path}", why=error.strerror or str(error), do=remedies.get(error.errno or 0, fallback)
    )


def expect_writable(path: Path) -> None:
    """Raises Failure where a file at `path` could not be made, so that a long job says so before it begins.

    Folders that are missing will be made. The disk may still fill up meanwhile.
    """
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))  # False where it is closed
    refusal = 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES
    refusal = refusal if os.path.isdir(folder) else errno.ENOTDIR
    if refusal:
        raise refused(path, OSError(refusal, f"{folder}: {os.strerror(refusal)}"))


def sweep_partials(folder: Path) -> None:
    """Remove what a kill in the middle of `write_atomically` has left in a folder or one below it."""
    for partial in (*folder.glob("*.partial"), *folder.glob("*/*.partial")):
        if partial.is_file():
            partial.unlink()


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_writer(folder: Path, what: Path | None = None) -> Iterator[None]:
    """Holds the folder against a second writer; the system lets go of it with the process, however that ends.

    Raises Failure where another process holds it or the folder cannot be written; it then names `what` is written, the
    folder's parent if None.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        raise refused(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            place = what or folder.parent
            raise Failure(
                f"another process is writing to {place}", do="wait for it to end, or name another place"
            ) from None
        yield


class Journal:
    """Numbered records of several kinds in one folder. Damaged or missing ones are as if they had not been written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, kind: str, number: int, value: Any) -> None:
        """Keep a value: builtin types and this package's dataclasses.

        A power cut may lose the latest records, as their checksums then tell; that work is done again.
        """
        body = pickle.dumps(value, protocol=5)
        write_atomically(self._path(kind, number), zlib.crc32(body).to_bytes(4, "little") + body, durable=False)

    def get(self, kind: str, number: int) -> Any:
        """The value kept under this number, or None."""
        try:
            record = self._path(kind, number).read_bytes()
        except FileNotFoundError:
            return None
        body = record[4:]
        if zlib.crc32(body).to_bytes(4, "little") != record[:4]:
            return None
        return _PlainUnpickler(io.BytesIO(body)).load()

    def has(self, kind: str, number: int) -> bool:
        """True where something is kept under this number, without looking at it."""
        return self._path(kind, number).exists()

    def drop(self, kind: str, number: int) -> None:
        """Forget one value."""
        self._path(kind, number).unlink(missing_ok=True)

    def resume(self, terms: Mapping[str, Any], out: Path, *, remains: str = "") -> bool:
        """Go on where a job on the same terms was cut short, or begin one; True where it goes on.

        `out` is what the job makes, `remains` what it would leave if it is given up; the journal's place if not given.
        Raises Misuse where an unfinished job was begun on other terms.
        """
        self.sweep()
        before = self.get("terms", 0)
        if before is None:
            self.begin()
            self.put("terms", 0, dict(terms))
            return False
        if before != dict(terms):
            other = sorted(name for name in {*before, *terms} if before.get(name) != terms.get(name))
            raise Misuse(
                f"an unfinished job at {out} was begun otherwise ({', '.join(other)})",
                why="what goes on otherwise is neither of the two",
                do=f"finish it by the line that began it, or remove {remains or self.folder.parent} "
                "and call this line again",
            )
        return True

    def begin(self) -> None:
        """An empty folder that only its owner can enter."""
        self.remove()
        try:
            self.folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise refused(self.folder, error) from error

    def remove(self) -> None:
        """Forget everything. A kill half-way leaves a folder under another name; `sweep` removes it."""
        self.sweep()
        if self.folder.exists():
            self.folder.rename(self._doomed)
            self.sweep()

    def sweep(self) -> None:
        """Remove what a removal that was cut short has left."""
        if self._doomed.exists():
            shutil.rmtree(self._doomed)

    @property
    def _doomed(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.doomed")

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number // RECORDS_IN_A_FOLDER:06d}" / f"{number:09d}"


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds builtin values and dataclasses of this package; a record that asks for more is not one of ours."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("headct.") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"a journal holds no {module}.{name}")
