"""A cell: one worker process that may crash, hang or swallow memory without taking anything else along.

Native codecs meet hostile bytes here. A cell is a plain child process with two private pipes, not a
`multiprocessing` worker, so that it can be had inside daemonic workers (Dask) and leaves no helper process behind.
It guards against accidents and denial of service; it is no jail: a codec taken over by an attacker has the user's
rights, and what it sends back is unpickled.

On Linux memory is bounded by RLIMIT_AS above what the process maps before the call. Other systems do not enforce
that limit (macOS accepts and ignores it): there a cell still bounds time and survives crashes, but not memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import numpy as np

R = TypeVar("R")
Death = Literal["time-limit", "memory-limit", "crashed"]

START_S = 120.0
"""How long a fresh process may take to start and to import the module of the function, on a very busy machine."""

_CALL, _BEGUN, _AT, _VALUE, _ERROR, _MEMORY = range(6)
_HEADER = struct.Struct("<BI")  # kind of message, number of buffers
_LENGTH = struct.Struct("<Q")  # of each buffer, the pickle first
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLOSC_NTHREADS")


class CellDied(RuntimeError):
    """The process of a cell had to be ended, or ended itself, while it ran a function.

    `reason` is the rejection code; `at` the last name given to `announce`, empty if none was.
    """

    def __init__(self, reason: Death, at: str = "") -> None:
        super().__init__(reason, at)
        self.reason: Death = reason
        self.at = at

    def __str__(self) -> str:
        return self.reason + (f" at {self.at}" if self.at else "")


class CellError(RuntimeError):
    """An exception inside a cell that could not travel as itself; the message is its text."""


class Cell:
    """One worker process, started when first needed and again after each death.

    `memory_bytes` is what a call may map beyond what the process held when the call began; `time_s` how long a call
    may take, imports of the function's module not counted. Calls from several threads wait for each other: give
    each thread its own cell (`cell()`) to run them side by side.
    """

    def __init__(self, memory_bytes: int = 2 << 30, time_s: float = 60.0) -> None:
        self.memory_bytes = memory_bytes
        self.time_s = time_s
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._finalize: Callable[[], Any] = lambda: None

    def run(self, function: Callable[..., R], *args: Any, time_s: float | None = None) -> R:
        """The value of `function(*args)`, worked out in the process of the cell.

        The function travels by reference, so it must be importable by name and not live in `__main__`. Raises
        CellDied where the process died or was ended, and whatever the function raises, with the traceback of the
        cell as a note.
        """
        if getattr(function, "__module__", None) == "__main__":
            raise ValueError(f"{function!r} lives in __main__, which a cell cannot import; move it to a module")
        request = _pack((self.memory_bytes, function, args))
        with self._lock:
            process = self._ready()
            try:
                value: R = process.call(request, self.time_s if time_s is None else time_s)
            finally:
                if not process.idle:  # a call is under way, or was when we were interrupted
                    self._finalize()
            return value

    def close(self) -> None:
        """Ends the process; a later `run` starts a new one."""
        with self._lock:
            self._finalize()

    def _ready(self) -> _Process:
        if self._process is None or self._process.worn(self.memory_bytes):
            self._finalize()
            self._process = _Process()
            self._finalize = weakref.finalize(self, self._process.end)  # also when the interpreter exits
        return self._process


def cell() -> Cell:
    """The cell of the calling thread, made at its first use and ended with the thread or the interpreter."""
    found: Cell | None = getattr(_of_thread, "cell", None)
    if found is None:
        found = _of_thread.cell = Cell()
    return found


def announce(name: str) -> None:
    """Says what is worked on now, so that a death can be blamed on it; does nothing outside a cell."""
    if _inside.link is not None:
        _send(_inside.link, _AT, _pack(name))


_of_thread = threading.local()


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started in the block never hear Ctrl-C, which reaches the whole group: their parent decides.

    A child inherits the signals that are blocked where it is started, so that it is deaf from its first instruction
    on, whereas a handler of its own would leave the imports before it to end in a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# The parent's side


class _Process:
    """A child process, the pipes to and from it, and one more whose closing tells it that the parent is gone."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.idle = True
        self.at = ""
        self.first_mapped_bytes: int | None = None
        self.mapped_bytes = 0
        calls, to_child = os.pipe()
        from_child, answers = os.pipe()
        life, self.life = os.pipe()
        self.link = _Link(from_child, to_child)
        theirs = (calls, answers, life)
        try:
            with deaf_children():
                self.child = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=theirs,
                    env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
                )
        except BaseException:
            self._let_go()
            raise
        finally:
            for end in theirs:
                os.close(end)
        _living.add(self)
        _watch_forks()

    def call(self, request: list[memoryview], time_s: float) -> Any:
        self.idle, self.at = False, ""
        try:
            kind, body = self._begin(request)
            if kind == _BEGUN:
                self.mapped_bytes = body
                self.first_mapped_bytes = self.first_mapped_bytes or body
                kind, body = self._answer(time.monotonic() + time_s)
        except TimeoutError:
            raise CellDied("time-limit", self.at) from None
        except (EOFError, ConnectionError):
            if self.first_mapped_bytes is None:
                raise RuntimeError(f"the worker process could not start (exit code {self.child.wait()})") from None
            raise CellDied("crashed", self.at) from None
        if kind == _MEMORY:
            raise CellDied("memory-limit", self.at)
        self.idle = True
        if kind == _ERROR:
            raise _revived(*body)
        return body

    def _begin(self, request: list[memoryview]) -> tuple[int, Any]:
        deadline = time.monotonic() + START_S
        _send(self.link, _CALL, request, deadline)
        return self._answer(deadline)

    def _answer(self, deadline: float) -> tuple[int, Any]:
        while True:
            kind, parts = _take(self.link, deadline)
            body = _unpack(parts)
            if kind != _AT:
                return kind, body
            self.at = body

    def worn(self, memory_bytes: int) -> bool:
        """True where the process is dead, belongs to the process we were forked from, or has leaked too much."""
        if self.owner != os.getpid() or self.life < 0 or self.child.poll() is not None:
            return True
        return self.mapped_bytes > (self.first_mapped_bytes or 0) + memory_bytes // 2

    def end(self) -> None:
        if self.owner == os.getpid():
            self.child.kill()
            self.child.wait()
        self._let_go()

    def _let_go(self) -> None:
        """Closes our ends without touching the child."""
        _living.discard(self)
        self.link.close()
        if self.life >= 0:
            os.close(self.life)
            self.life = -1


_living: weakref.WeakSet[_Process] = weakref.WeakSet()
_forks_watched = False


def _watch_forks() -> None:
    """A forked copy of this process must not keep the pipes of our cells open, or orphans would live on."""
    global _forks_watched
    if not _forks_watched:
        _forks_watched = True
        os.register_at_fork(after_in_child=_forget_living)


def _forget_living() -> None:
    for process in list(_living):
        process._let_go()


def _revived(pickled: bytes | None, text: str) -> Exception:
    error = None
    if pickled is not None:
        # an exception whose constructor does not take its own arguments cannot be rebuilt, whatever it raises then
        with contextlib.suppress(Exception):
            error = pickle.loads(pickled)
    if not isinstance(error, Exception):
        return CellError(text)
    error.add_note("in a cell:\n" + text)
    return error


# The child's side

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from headct.reading.isolation import _serve; _serve(*map(int, sys.argv[2:]))"
)


class _Inside:
    link: _Link | None = None


_inside = _Inside()


def _serve(calls_fd: int, answers_fd: int, life_fd: int) -> None:
    """The life of a child: take a call, answer it, until the parent is gone."""
    _settle(life_fd)
    link = _inside.link = _Link(calls_fd, answers_fd)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            _, call = _take(link, None)
            kind, body = _work(link, call)
            _send(link, kind, body)
            if kind == _MEMORY:
                os._exit(1)  # what is left of the heap is not worth keeping


def _settle(life_fd: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _end_with_parent(life_fd)
    # Codecs complain on stderr, as much as they like; what went wrong before this line can still be seen there.
    os.dup2(1, 2)


def _end_with_parent(life_fd: int) -> None:
    """Nobody writes to the life line; that it is closed says that the parent is gone.

    On Linux the kernel then sends SIGIO, whose default ends the process even inside a loop in C. (PR_SET_PDEATHSIG
    would act at the end of the thread that started us, not of the process.) Elsewhere a thread waits for it, which
    cannot act while C code holds the interpreter.
    """
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    else:
        threading.Thread(target=lambda: os._exit(len(os.read(life_fd, 1))), daemon=True).start()


def _work(link: _Link, call: list[memoryview]) -> tuple[int, list[memoryview]]:
    try:
        memory_bytes, function, args = _unpack(call)
        with _bounded(memory_bytes) as mapped_bytes:
            _send(link, _BEGUN, _pack(mapped_bytes))
            return _VALUE, _pack(function(*args))
    except MemoryError:
        return _MEMORY, _pack(None)
    except Exception as error:  # noqa: BLE001 - whatever the function raises is the caller's to judge
        return _ERROR, _pack((_portable(error), traceback.format_exc()))


@contextlib.contextmanager
def _bounded(memory_bytes: int) -> Iterator[int]:
    """Limits the address space to what is mapped now, which it yields in bytes, and `memory_bytes` more."""
    import resource

    if sys.platform != "linux":
        yield 0
        return
    with open("/proc/self/statm") as statm:
        mapped_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = mapped_bytes + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    try:
        yield mapped_bytes
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _portable(error: Exception) -> bytes | None:
    try:
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001 - an exception may hold anything, an open file for instance
        return None


# Messages: both sides


class _Link:
    """One end of a pair of pipes. Neither end waits for a full or empty pipe but here, until a deadline."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd
        for end in (read_fd, write_fd):
            os.set_blocking(end, False)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a user may hold no more large pipes than the system allows
                fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def write(self, data: memoryview | bytes, deadline: float | None = None) -> None:
        """All of `data`. Raises ConnectionError where the other end is gone, TimeoutError at the deadline."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            try:
                view = view[os.write(self.write_fd, view) :]
            except BlockingIOError:
                _wait(self.write_fd, select.POLLOUT, deadline)

    def read(self, length: int, deadline: float | None = None) -> memoryview:
        """Exactly `length` bytes, writable. Raises EOFError where the other end is gone, TimeoutError when late."""
        whole = view = np.empty(length, np.uint8).data
        while view.nbytes:
            try:
                got = os.readv(self.read_fd, [view])
            except BlockingIOError:
                _wait(self.read_fd, select.POLLIN, deadline)
                continue
            if got == 0:
                raise EOFError("the other end of the link is closed")
            view = view[got:]
        return whole

    def close(self) -> None:
        for end in {self.read_fd, self.write_fd} - {-1}:
            os.close(end)
        self.read_fd = self.write_fd = -1


_PIPE_BYTES = 1 << 20  # what an unprivileged user may ask for on Linux


def _wait(fd: int, event: int, deadline: float | None) -> None:
    """Until a pipe can be read or written, or its other end is closed."""
    poll = select.poll()
    poll.register(fd, event)
    left_s = None if deadline is None else deadline - time.monotonic()
    if left_s is not None and (left_s <= 0 or not poll.poll(1000 * left_s)):
        raise TimeoutError
    if left_s is None:
        poll.poll()


def _pack(value: Any) -> list[memoryview]:
    """The pickle and, apart from it and not copied, the memory of the arrays in it (PEP 574)."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [memoryview(head), *(buffer.raw() for buffer in buffers)]


def _unpack(parts: list[memoryview]) -> Any:
    return pickle.loads(parts[0], buffers=parts[1:])


def _send(link: _Link, kind: int, parts: list[memoryview], deadline: float | None = None) -> None:
    lengths = b"".join(_LENGTH.pack(part.nbytes) for part in parts)
    link.write(_HEADER.pack(kind, len(parts)) + lengths, deadline)
    for part in parts:
        link.write(part, deadline)


def _take(link: _Link, deadline: float | None) -> tuple[int, list[memoryview]]:
    kind, count = _HEADER.unpack(link.read(_HEADER.size, deadline))
    lengths = _LENGTH.iter_unpack(link.read(count * _LENGTH.size, deadline))
    return kind, [link.read(length, deadline) for (length,) in lengths]
