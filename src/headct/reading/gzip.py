"""Gzip (RFC 1952), fast and within limits.

Whole files in memory go through libdeflate, or ISA-L where they hold more than one member, trailing bytes or a false
size. `Unzipped` reads a file like a seekable one, for archives too large for memory, through zlib: the one of the
three whose state can be copied, which is what seeking needs.
"""

from __future__ import annotations

import bisect
import io
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import deflate
from isal import igzip_lib

from headct.reading.faults import Fault

MAGIC = b"\x1f\x8b\x08"
MAX_RATIO = 1032
"""What DEFLATE can reach at most: 258 bytes out of two bits. A larger claim is a lie."""

_TRAILER_BYTES = 8  # CRC-32, then the size modulo 2^32 (ISIZE), little-endian
_PIECE_BYTES = 1 << 20
_GZIP_BITS = 31  # tells zlib to expect a gzip header


def peek(head: bytes, count: int) -> bytes:
    """The first bytes, at most `count`, out of the beginning of a gzip file; empty where it is no gzip."""
    if not head.startswith(MAGIC):
        return b""
    try:
        return zlib.decompressobj(_GZIP_BITS).decompress(head, count)
    except zlib.error:
        return b""


def decompress(data: bytes, limit_bytes: int) -> bytes | bytearray:
    """All that a gzip file holds, its checksums verified; bytes after the last member are ignored.

    Raises Fault: too-large where it holds more than `limit_bytes` (no more than that is ever held), damaged where it
    is cut short or broken.
    """
    claimed_bytes = int.from_bytes(data[-4:], "little")
    if 0 < claimed_bytes <= min(limit_bytes, len(data) * MAX_RATIO):
        try:
            whole = deflate.gzip_decompress(data, claimed_bytes)
        except deflate.DeflateError:
            return _stream(data, limit_bytes)
        if _only_member(data, whole):
            return whole
    return _stream(data, limit_bytes)


def _only_member(data: bytes, whole: bytearray) -> bool:
    """True where the first member, `whole` when decompressed, is all there is: libdeflate stops after it silently.

    The file must end in the trailer of that member, and that trailer must not have stood earlier.
    """
    trailer = data[-_TRAILER_BYTES:]
    ours = deflate.crc32(whole).to_bytes(4, "little") + (len(whole) % 2**32).to_bytes(4, "little")
    return ours == trailer and data.find(trailer) == len(data) - _TRAILER_BYTES


def _stream(data: bytes, limit_bytes: int) -> bytearray:
    """Member after member, piece by piece."""
    whole = bytearray()
    position = 0
    while position == 0 or data.startswith(MAGIC, position):
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        piece_bytes = _PIECE_BYTES // 64  # small at first: there may be many small members
        while not member.eof:
            piece = data[position : position + piece_bytes] if member.needs_input else b""
            if member.needs_input and not piece:
                raise Fault("damaged", "its gzip data end too early")
            try:
                whole += member.decompress(piece, limit_bytes + 1 - len(whole))
            except igzip_lib.error as error:  # type: ignore[misc]  # its stub declares a value, not a class
                raise Fault("damaged", f"its gzip data are broken ({error})") from None
            if len(whole) > limit_bytes:
                raise Fault("too-large", f"its gzip data hold more than the limit of {limit_bytes / 1e6:,.0f} MB")
            position += len(piece)
            piece_bytes = min(2 * piece_bytes, _PIECE_BYTES)
        position -= len(member.unused_data)
    return whole


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """How much an `Unzipped` may give for what it takes."""

    ratio: float
    ratio_from_bytes: int  # so much is harmless, whatever the ratio
    total_bytes: int


@dataclass(frozen=True, slots=True)
class _Bookmark:
    position: int  # in what is given
    packed_position: int  # in what is taken, where the next piece comes from
    inflate: zlib._Decompress


class Unzipped(io.RawIOBase):
    """The content of a gzip file as a seekable, read-only file of bounded memory.

    Reading forward decompresses once. On the way a bookmark of about 50 KB is kept every `spacing_bytes`, so reading
    anywhere costs at most that much decompression beyond what is read; where more than `BOOKMARKS` pile up, every
    other one is dropped and the spacing doubled. The last `RECENT_BYTES` stay at hand, which makes going through
    members backwards as cheap as forwards. All this belongs to the object: another process starts without it.

    Raises Fault: archive-bomb beyond the limits, archive-unreadable where the data are broken or end too early.
    """

    BOOKMARKS = 1024
    RECENT_BYTES = 64 << 20

    def __init__(self, packed: BinaryIO, limits: StreamLimits, spacing_bytes: int = 4 << 20) -> None:
        super().__init__()
        self._packed = packed
        self._limits = limits
        self._spacing_bytes = spacing_bytes
        self._bookmarks = [_Bookmark(0, 0, zlib.decompressobj(_GZIP_BITS))]
        self._recent: dict[int, bytes] = {}  # pieces by where they start, oldest first
        self._recent_bytes = 0
        self._start, self._piece, self._within = 0, b"", 0
        self._return_to(self._bookmarks[0])

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Closes the gzip file too."""
        self._packed.close()
        super().close()

    def tell(self) -> int:
        """The position in the content in bytes."""
        return self._start + self._within

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position, counted from the start or from here; beyond the end it stops there, unlike a file."""
        if whence == io.SEEK_CUR:
            position += self.tell()
        elif whence != io.SEEK_SET:
            raise io.UnsupportedOperation("the end of a gzip stream is not known before it is reached")
        if not self._start <= position <= self._start + len(self._piece):
            self._load(position)
        self._within = min(position - self._start, len(self._piece))
        return self.tell()

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes: exactly `size` unless the end comes first, everything that is left if negative."""
        parts, missing = [], size
        while missing != 0:
            part = self._piece[self._within :] if missing < 0 else self._piece[self._within : self._within + missing]
            self._within += len(part)
            parts.append(part)
            missing -= len(part) if missing > 0 else 0
            if missing != 0 and not self._load(self.tell()):
                break
        return b"".join(parts)

    def _load(self, position: int) -> bool:
        """Makes the piece that holds a position current; where there is none, stands at the end and gives False."""
        for start, piece in reversed(self._recent.items()):
            if start <= position < start + len(piece):
                self._start, self._piece, self._within = start, piece, position - start
                return True
        nearest = bisect.bisect_right(self._bookmarks, position, key=lambda mark: mark.position) - 1
        if not self._bookmarks[nearest].position <= self._decoded_to <= position:
            self._return_to(self._bookmarks[nearest])
        while piece := self._decode():
            self._start, self._piece, self._within = self._decoded_to - len(piece), piece, 0
            if position < self._decoded_to:
                self._within = position - self._start
                return True
        self._start, self._piece, self._within = self._decoded_to, b"", 0
        return False

    def _return_to(self, mark: _Bookmark) -> None:
        self._inflate = mark.inflate.copy()
        self._packed.seek(mark.packed_position)
        self._packed_position = mark.packed_position
        self._decoded_to = mark.position

    def _decode(self) -> bytes:
        """The next piece of the content; empty at its end."""
        self._check()
        if self._decoded_to - self._bookmarks[-1].position >= self._spacing_bytes:
            self._add_bookmark()
        piece = b""
        while not piece:
            if self._inflate.eof and not self._next_member():
                return b""
            packed = self._inflate.unconsumed_tail or self._take()
            if not packed:
                raise Fault("archive-unreadable", "its gzip data end too early")
            try:
                piece = self._inflate.decompress(packed, _PIECE_BYTES)
            except zlib.error as error:
                raise Fault("archive-unreadable", f"its gzip data are broken ({error})") from None
        self._remember(piece)
        self._decoded_to += len(piece)
        return piece

    def _remember(self, piece: bytes) -> None:
        self._recent_bytes += len(piece) - len(self._recent.pop(self._decoded_to, b""))
        self._recent[self._decoded_to] = piece
        while self._recent_bytes > self.RECENT_BYTES:
            self._recent_bytes -= len(self._recent.pop(next(iter(self._recent))))

    def _take(self) -> bytes:
        packed = self._packed.read(_PIECE_BYTES // 8)
        self._packed_position += len(packed)
        return packed

    def _next_member(self) -> bool:
        """Moves on to a member that follows, if one does; other bytes after the last member are ignored."""
        end = self._packed_position - len(self._inflate.unused_data)
        self._packed.seek(end)
        if self._packed.read(len(MAGIC)) != MAGIC:
            return False
        self._packed.seek(end)
        self._packed_position = end
        self._inflate = zlib.decompressobj(_GZIP_BITS)
        return True

    def _add_bookmark(self) -> None:
        if len(self._bookmarks) >= self.BOOKMARKS:
            self._bookmarks = self._bookmarks[::2]
            self._spacing_bytes *= 2
        self._bookmarks.append(_Bookmark(self._decoded_to, self._packed_position, self._inflate.copy()))

    def _check(self) -> None:
        bound_bytes = max(self._limits.ratio_from_bytes, self._limits.ratio * self._packed_position)
        if self._decoded_to > min(bound_bytes, self._limits.total_bytes):
            size = f"{self._decoded_to / 1e6:,.0f} MB"
            raise Fault("archive-bomb", f"it unpacks to more than {size}, out of all proportion")
