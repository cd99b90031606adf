"""What a decoder can do to the process it runs in, as functions that a cell can import."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from headct.reading.faults import Fault
from headct.reading.isolation import announce, cell


class Odd(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one, two):
        super().__init__(one + two)


def die(signal_number):
    os.kill(os.getpid(), signal_number)


def die_at(name, signal_number):
    announce("before " + name)
    announce(name)
    die(signal_number)


def leave(code):
    sys.exit(code)


def follow_null():
    ctypes.string_at(0)


def backtrack():
    """Hours inside one call to C that never gives the interpreter back."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def sleep(seconds):
    time.sleep(seconds)


def hold(count_bytes):
    return len(bytearray(count_bytes))


def hold_in_pieces(piece_bytes):
    pieces = []
    while True:
        pieces.append(bytearray(piece_bytes))


def array(shape, dtype, order):
    count = int(np.prod(shape))
    return {"values": np.arange(count).astype(dtype).reshape(shape, order=order), "name": "x"}


def total(values):
    return float(values.sum()), values.shape


def fail(*arguments):
    raise KeyError(*arguments)


def fail_oddly():
    raise Odd("one", "two")


def raise_fault():
    raise Fault("damaged", "it ends early")


def raise_eof():
    raise EOFError("no more pixels")


def pid():
    return os.getpid()


def noise(count):
    os.write(1, b"x" * count)
    os.write(2, b"x" * count)
    print("y" * count, file=sys.stderr)
    return count


def environment():
    return {
        "threads": os.environ["OMP_NUM_THREADS"],
        "modules": [name for name in sys.modules if "resource_tracker" in name],
        "open": sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else [],
    }


def parent_of_a_cell():
    """Prints the process id of a cell that is stuck in C, then dies without any clean-up."""
    print(cell().run(pid), flush=True)
    threading.Thread(target=cell_stuck, args=(cell(),), daemon=True).start()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def cell_stuck(shared):
    shared.run(backtrack, time_s=60)


def starts_parent():
    """Runs `parent_of_a_cell` in a process of its own; the process id of its cell."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from reading import misbehaviour; misbehaviour.parent_of_a_cell()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return int(done.stdout), done.returncode
