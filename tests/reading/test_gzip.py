"""Decompression within limits. Oracle: the gzip and zlib modules of Python, byte for byte.

The rate against nibabel is printed by `test_rate_beside_nibabel` (run with -s); no time is asserted.
"""

from __future__ import annotations

import gzip as standard
import io
import random
import time
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.reading import gzip
from headct.reading.faults import Fault

MB = 1 << 20
NO_LIMITS = gzip.StreamLimits(ratio=1e9, ratio_from_bytes=1 << 40, total_bytes=1 << 40)

contents = st.one_of(
    st.binary(max_size=200),
    st.integers(1, 300_000).map(bytes),
    st.tuples(st.binary(min_size=1, max_size=50), st.integers(1, 4000)).map(lambda pair: pair[0] * pair[1]),
)


def random_bytes(count, seed=0):
    return random.Random(seed).randbytes(count)


@given(content=contents, level=st.integers(0, 9))
def test_single_member(content, level):
    assert gzip.decompress(standard.compress(content, level), len(content)) == content


@given(members=st.lists(contents, min_size=2, max_size=5), same=st.booleans())
def test_several_members(members, same):
    if same:  # the last size and checksum are those of the first member: libdeflate alone would stop there
        members = members[:1] * len(members)
    packed = b"".join(standard.compress(member) for member in members)
    assert gzip.decompress(packed, 10 * MB) == b"".join(members)


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 1000, b"junk" * 10, b"\x1f\x8b", b"\x10\x27\0\0"])
def test_bytes_after_the_end_are_ignored(tail):
    content = random_bytes(10_000)
    assert gzip.decompress(standard.compress(content) + tail, MB) == content


def test_names_comments_and_extra_fields():
    content = random_bytes(5000)
    packed = standard.compress(content)
    flagged = packed[:3] + b"\x1c" + packed[4:10] + b"\x03\x00abc" + b"name\0" + b"comment\0" + packed[10:]
    assert gzip.decompress(flagged, MB) == content
    assert gzip.peek(flagged[:2000], 100) == content[:100]


@pytest.mark.parametrize("content", [random_bytes(20_000), bytes(20_000)], ids=["dense", "empty"])
def test_damage_is_found(content):
    packed = standard.compress(content)
    for cut in (0, 1, 2, 9, 10, 20, len(packed) - 9, len(packed) - 8, len(packed) - 1):
        with pytest.raises(Fault) as fault:
            gzip.decompress(packed[:cut], MB)
        assert fault.value.code == "damaged", cut


@given(content=contents.filter(len), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_found_or_harmless(content, where, flip):
    broken = bytearray(standard.compress(content))
    broken[10 + int(where * (len(broken) - 10))] ^= flip  # behind the fixed header, whose time stamp may change
    try:
        got = gzip.decompress(bytes(broken), 10 * MB)
    except Fault:
        with pytest.raises((OSError, EOFError, zlib.error)):
            standard.decompress(broken)
    else:  # the byte did not matter; zlib is stricter about code tables that leave codes unused
        assert got == content


@pytest.mark.parametrize("claimed", [0, 1, 5000, 10_001, 2**31, 2**32 - 1])
def test_a_lying_size_is_damage(claimed):
    packed = standard.compress(random_bytes(10_000))[:-4] + claimed.to_bytes(4, "little")
    with pytest.raises(Fault) as fault:
        gzip.decompress(packed, MB)
    assert fault.value.code == "damaged"


@pytest.mark.parametrize("claimed", [None, 1, 2**32 - 1], ids=["honest", "too small", "too large"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_bomb_stops_at_the_limit(claimed, members):
    packed = standard.compress(bytes(64 * MB // members)) * members
    if claimed is not None:
        packed = packed[:-4] + claimed.to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(Fault) as fault:
        gzip.decompress(packed, 8 * MB)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault.value.code == "too-large"
    assert peak_bytes < 40 * MB


def test_the_limit_itself_is_allowed():
    packed = standard.compress(bytes(MB))
    assert len(gzip.decompress(packed, MB)) == MB
    with pytest.raises(Fault):
        gzip.decompress(packed, MB - 1)


@pytest.mark.parametrize("head", [b"", b"\x1f", b"\x1f\x8b\x08", b"no gzip", b"\x1f\x8b\x08" + b"\xff" * 50])
def test_peek_of_nonsense_is_empty(head):
    assert gzip.peek(head, 100) == b""


def unzipped(content, spacing_bytes=256 << 10, tail=b"", cuts=()):
    pieces = [content[a:b] for a, b in zip((0, *cuts), (*cuts, len(content)), strict=True)]
    packed = b"".join(standard.compress(piece) for piece in pieces)
    return gzip.Unzipped(io.BytesIO(packed + tail), NO_LIMITS, spacing_bytes)


CONTENT = (random_bytes(700_000) + bytes(2 * MB)) * 2 + random_bytes(12_345, seed=1)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, len(CONTENT) + 1000), st.integers(0, 3 * MB)), max_size=8),
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=3).map(sorted),
    tail=st.sampled_from([b"", b"\0\0\0", b"trailing"]),
    recent_bytes=st.sampled_from([MB, 3 * MB, 64 * MB]),
)
def test_unzipped_reads_like_a_file(steps, cuts, tail, recent_bytes):
    stream, oracle = unzipped(CONTENT, cuts=cuts, tail=tail), io.BytesIO(CONTENT)
    stream.RECENT_BYTES = recent_bytes
    for position, size in steps:
        there = stream.seek(position)
        assert there == min(position, len(CONTENT)) == stream.tell()
        oracle.seek(position)
        assert stream.read(size) == oracle.read(size)
    stream.seek(0)
    assert stream.read() == CONTENT
    assert stream.read(10) == b""


def test_going_back_a_little_costs_nothing():
    content = random_bytes(4 * MB) * 5
    stream = unzipped(content)
    stream.seek(len(content))
    counting = stream._packed = Counting(stream._packed)
    for position in range(19 * MB, 0, -MB):
        stream.seek(position)
        assert stream.read(MB // 2) == content[position : position + MB // 2]
    assert counting.taken_bytes == 0


def test_going_back_costs_a_spacing_not_the_whole():
    content = random_bytes(4 * MB) * 5
    stream = unzipped(content, spacing_bytes=MB)
    stream.RECENT_BYTES = 2 * MB
    stream.seek(len(content))
    counting = stream._packed = Counting(stream._packed)
    for position in range(19 * MB, 0, -MB):
        stream.seek(position)
        assert stream.read(10) == content[position : position + 10]
    assert counting.taken_bytes < 19 * 4 * MB, "from the start each time, it would be 190 MB"


class Counting:
    """A file that counts what is read from it."""

    def __init__(self, file):
        self.file, self.taken_bytes = file, 0

    def seek(self, position):
        return self.file.seek(position)

    def read(self, size):
        got = self.file.read(size)
        self.taken_bytes += len(got)
        return got


def test_bookmarks_stay_few():
    content = random_bytes(MB)
    stream = unzipped(content * 30, spacing_bytes=1)
    stream.BOOKMARKS = 8
    assert stream.seek(30 * MB) == 30 * MB
    assert 4 <= len(stream._bookmarks) <= 8
    stream.seek(3 * MB + 5)
    assert stream.read(7) == content[5:12]


def test_unzipped_damage_and_bombs():
    packed = standard.compress(random_bytes(300_000))
    for data in (packed[:-1], packed[:1000], packed[:5000] + b"\x55" * 2000 + packed[7000:], b"\x1f\x8b\x08"):
        with pytest.raises(Fault) as fault:
            gzip.Unzipped(io.BytesIO(data), NO_LIMITS).read()
        assert fault.value.code == "archive-unreadable"
    bomb = standard.compress(bytes(64 * MB))
    for limits in (
        gzip.StreamLimits(ratio=100, ratio_from_bytes=16 * MB, total_bytes=1 << 40),
        gzip.StreamLimits(ratio=1e9, ratio_from_bytes=16 * MB, total_bytes=20 * MB),
    ):
        with pytest.raises(Fault) as fault:
            gzip.Unzipped(io.BytesIO(bomb), limits).seek(1 << 40)
        assert fault.value.code == "archive-bomb"
    gentle = gzip.StreamLimits(ratio=100, ratio_from_bytes=65 * MB, total_bytes=1 << 40)
    assert gzip.Unzipped(io.BytesIO(bomb), gentle).seek(1 << 40) == 64 * MB


def test_rate_beside_nibabel(tmp_path):
    """Prints the rates; fails only where the bytes differ."""
    grid = np.indices((128, 128, 100)).sum(0)
    values = (np.random.default_rng(0).normal(30, 5, grid.shape) + 40 * (grid // 97 % 3)).astype(np.int16)
    values[grid % 250 > 150] = -1000
    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    packed = path.read_bytes()

    def best_s(function):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            got = function()
            times.append(time.perf_counter() - start)
        return min(times), got

    ours_s, ours = best_s(lambda: gzip.decompress(packed, 1 << 30))
    stream_s, stream = best_s(lambda: gzip._stream(packed, 1 << 30))
    nibabel_s, theirs = best_s(lambda: np.asanyarray(nib.load(path).dataobj))
    whole, piecewise, plain = (len(ours) / 1e6 / seconds for seconds in (ours_s, stream_s, nibabel_s))
    print(f"\nMB/s: libdeflate {whole:.0f}, ISA-L {piecewise:.0f}, nibabel {plain:.0f}; {whole / plain:.1f} times")
    assert ours == stream
    assert ours[352:] == theirs.tobytes(order="F")
