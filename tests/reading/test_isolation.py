"""What a cell promises: whatever a function does to its process, the caller learns why and goes on."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from reading import misbehaviour

from headct.reading import isolation
from headct.reading.faults import Fault
from headct.reading.isolation import Cell, CellDied, CellError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds memory and has /proc")


@pytest.fixture
def cell():
    one = Cell(memory_bytes=1 << 30, time_s=30)
    yield one
    one.close()


def test_gives_the_value(cell):
    assert cell.run(divmod, 17, 5) == (3, 2)


def test_keeps_its_process_between_calls(cell):
    assert cell.run(misbehaviour.pid) == cell.run(misbehaviour.pid) != os.getpid()


def test_control_c_does_not_reach_it_not_even_while_it_starts(cell):
    process = cell._ready()
    for _ in range(20):
        process.child.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert cell.run(misbehaviour.pid) == process.child.pid
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # and it still reaches us


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (misbehaviour.die, (signal.SIGSEGV,)),
        (misbehaviour.die, (signal.SIGKILL,)),
        (misbehaviour.die, (signal.SIGABRT,)),
        (misbehaviour.follow_null, ()),
        (misbehaviour.leave, (0,)),
        (misbehaviour.leave, (3,)),
    ],
    ids=["segfault", "killed", "abort", "null pointer", "exit 0", "exit 3"],
)
def test_a_death_is_a_crash_and_the_next_call_works(cell, function, arguments):
    before = cell.run(misbehaviour.pid)
    with pytest.raises(CellDied) as death:
        cell.run(function, *arguments)
    assert death.value.reason == "crashed"
    assert cell.run(misbehaviour.pid) != before


def test_a_death_names_what_was_announced_last(cell):
    with pytest.raises(CellDied) as death:
        cell.run(misbehaviour.die_at, "a/b.dcm", signal.SIGSEGV)
    assert death.value.at == "a/b.dcm"
    with pytest.raises(CellDied) as death:
        cell.run(misbehaviour.die, signal.SIGSEGV)
    assert death.value.at == "", "the announcement of an earlier call must not stick"


def test_announcing_outside_a_cell_does_nothing():
    isolation.announce("nobody listens")


@pytest.mark.parametrize("function", [misbehaviour.backtrack, misbehaviour.sleep], ids=["in C", "in Python"])
def test_too_long_is_ended(cell, function):
    process = cell.run(misbehaviour.pid)
    with pytest.raises(CellDied) as death:
        cell.run(function, *([600] if function is misbehaviour.sleep else []), time_s=1)
    assert death.value.reason == "time-limit"
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert cell.run(divmod, 17, 5) == (3, 2)


@linux_only
@pytest.mark.parametrize(
    ("function", "size"),
    [(misbehaviour.hold, 4 << 30), (misbehaviour.hold_in_pieces, 16 << 20)],
    ids=["at once", "bit by bit"],
)
def test_too_much_memory_is_refused(cell, function, size):
    with pytest.raises(CellDied) as death:
        cell.run(function, size)
    assert death.value.reason == "memory-limit"
    assert cell.run(misbehaviour.hold, 600 << 20) == 600 << 20, "what the process held before must not count"


@linux_only
def test_memory_of_earlier_calls_does_not_count(cell):
    for _ in range(4):
        assert cell.run(misbehaviour.hold, 400 << 20) == 400 << 20


def test_an_exception_comes_back_as_itself_with_its_traceback(cell):
    with pytest.raises(KeyError, match="lost") as error:
        cell.run(misbehaviour.fail, "lost")
    assert any("misbehaviour.py" in note for note in error.value.__notes__)
    process = cell.run(misbehaviour.pid)
    with pytest.raises(EOFError, match="no more pixels"):
        cell.run(misbehaviour.raise_eof)
    assert cell.run(misbehaviour.pid) == process, "an ordinary exception costs no process"


def test_a_fault_keeps_its_code(cell):
    with pytest.raises(Fault) as fault:
        cell.run(misbehaviour.raise_fault)
    assert (fault.value.code, str(fault.value)) == ("damaged", "it ends early")


def test_an_exception_that_cannot_be_rebuilt_comes_as_text(cell):
    with pytest.raises(CellError, match="onetwo"):
        cell.run(misbehaviour.fail_oddly)


def test_what_cannot_be_imported_is_refused(cell):
    def local():
        return 1

    with pytest.raises((AttributeError, TypeError)):
        cell.run(local)
    local.__module__ = "__main__"
    with pytest.raises(ValueError, match="__main__"):
        cell.run(local)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_whole_and_writable(cell, order):
    got = cell.run(misbehaviour.array, (40, 30, 20), "int16", order)["values"]
    np.testing.assert_array_equal(got, np.arange(24000).astype("int16").reshape((40, 30, 20), order=order))
    got += 1


def test_a_hundred_megabytes_there_and_back(cell):
    values = cell.run(misbehaviour.array, (100_000_000,), "uint8", "C")["values"]
    assert values.nbytes == 100_000_000
    assert cell.run(misbehaviour.total, values) == (float(values.sum()), values.shape)


def test_what_a_decoder_prints_goes_nowhere(cell, capfd):
    assert cell.run(misbehaviour.noise, 300_000) == 300_000
    assert capfd.readouterr() == ("", "")


@linux_only
def test_no_helper_processes_one_thread_and_no_foreign_pipes(cell):
    tracker_before = _resource_tracker()
    other = Cell()
    other.run(misbehaviour.pid)
    found = cell.run(misbehaviour.environment)
    other.close()
    assert found["threads"] == "1"
    assert found["modules"] == []
    assert len(found["open"]) == 7, "stdin, stdout, stderr, two pipes, the life line, and the listing itself"
    assert _resource_tracker() == tracker_before, "others may have started one, a cell does not"


def _resource_tracker() -> int | None:
    """The pipe to the helper process of `multiprocessing`, if there is one."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    return None if tracker is None else tracker._resource_tracker._fd


def test_each_thread_has_its_own_cell_and_they_run_side_by_side():
    met = threading.Barrier(2, timeout=60)
    seen = {}

    def use(name):
        process = isolation.cell().run(misbehaviour.pid)
        met.wait()
        assert isolation.cell().run(divmod, 17, 5) == (3, 2)
        seen[name] = process, isolation.cell() is isolation.cell()

    threads = [threading.Thread(target=use, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen["a"][0] != seen["b"][0]
    assert seen["a"][1]
    assert seen["b"][1]
    gc.collect()
    for process, _ in seen.values():
        with pytest.raises(ProcessLookupError):  # ended with its thread
            os.kill(process, 0)


def test_threads_may_share_a_cell(cell):
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(cell.run(divmod, n, 7))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [divmod(n, 7) for n in range(20)]


def _is_running(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@linux_only
def test_a_cell_stuck_in_c_dies_with_its_parent():
    orphan, code = misbehaviour.starts_parent()
    assert code == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while _is_running(orphan) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(orphan)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_gets_a_cell_of_its_own(cell):
    ours = cell.run(misbehaviour.pid)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = -1
        try:
            theirs = cell.run(misbehaviour.pid)
            cell.close()
        finally:
            os.write(writer, str(theirs).encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert int(answer.read()) not in (-1, ours)
    assert cell.run(misbehaviour.pid) == ours, "the fork must not have touched our process"
