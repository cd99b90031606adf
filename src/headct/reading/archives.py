"""Archives read in place: zip, tar, tar.gz and a single gzipped file, one archive inside another included.

Nothing is unpacked to disk and no name from an archive is used as a path. A member is found again by where it lies,
not by its name. What is listed has been checked against `ArchiveLimits`; what is read gives exactly the bytes that
were listed, or a Fault.

Cost. A zip is read at random. A tar.gz is decompressed once when it is listed, and once more, up to the member it
needs, in each process that reads from it: N workers on one tar.gz do N times that work side by side. After that a
process pays next to nothing for members in the order of the archive or against it, and for members at random at most
4 MB of decompression each beyond their own (`gzip.Unzipped`; 600 slices in 300 MB: listed in 0.5 s, read in order in
0.6 s, backwards in 0.4 s, at random in 2.5 s).
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import posixpath
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

import deflate

from headct.reading import gzip
from headct.reading.faults import Fault

Kind = Literal["zip", "tar", "gzip", "foreign", ""]
Place = tuple[tuple[int, int], ...]
"""Where a member lies: (position, bytes) in its archive; for an archive in an archive, first that of the inner one."""

HEAD_BYTES = 4096
"""How much of the beginning of a file is looked at to tell what it is."""


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """How much an archive may unpack to. A ratio counts from `ratio_from_bytes` on: less is harmless."""

    members: int = 1_000_000
    member_bytes: int = 2 << 30
    inner_bytes: int = 256 << 20  # an archive inside an archive, which is held in memory while it is read
    total_bytes: int = 1 << 40
    ratio: float = 200.0  # slices reach 10, empty masks more
    ratio_from_bytes: int = 256 << 20
    name_characters: int = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """A member that can be read. `name` has forward slashes and nothing that leaves the archive."""

    name: str
    size_bytes: int
    place: Place


@dataclass(frozen=True, slots=True)
class Refused:
    """A member that cannot be read, and why."""

    name: str
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The members in the order of the archive; `fault` where it could not be listed to its end."""

    members: tuple[Entry | Refused, ...]
    fault: Fault | None = None


def kind(head: bytes) -> Kind:
    """What sort of archive begins like this; "foreign" for sorts that are not read, empty for what is no archive.

    A gzipped NIfTI file is a volume, not an archive.
    """
    if head[128:132] == b"DICM":  # a preamble may look like anything
        return ""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(gzip.MAGIC):
        return "" if looks_like_nifti(gzip.peek(head, HEAD_BYTES)) else "gzip"
    if head.startswith(tuple(_FOREIGN)):
        return "foreign"
    return "tar" if _looks_like_tar(head) else ""


def looks_like_nifti(head: bytes) -> bool:
    """True for NIfTI-1 (also the header of a pair) and NIfTI-2, of either byte order."""
    size = head[:4]
    if size in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        return head[344:348] in (b"n+1\0", b"ni1\0")
    return size in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") and head[4:8] in (b"n+2\0", b"ni2\0")


def listing(path: str, limits: ArchiveLimits) -> Listing:
    """The members of an archive, one archive inside another opened.

    Raises Fault where nothing of it can be used: archive-bomb, or archive-unreadable from the start.
    """
    tally = _Tally(limits, os.path.getsize(path))
    members: list[Entry | Refused] = []
    try:
        with open(path, "rb") as file:
            for member in _members(_open(file, os.path.basename(path), limits), tally, inner=False):
                members.append(member)  # one by one: those before a fault count
    except Fault as fault:
        if fault.code == "archive-bomb" or not members:
            raise
        return Listing(tuple(members), fault)
    return Listing(tuple(members))


def read(path: str, place: Place, limits: ArchiveLimits) -> bytes:
    """The bytes of one member. Raises Fault where they are not as listed, OSError where the archive is gone."""
    *outer, (position, size_bytes) = place
    with _lock:
        return _reopened(path, tuple(outer), limits).read(position, size_bytes)


def printable(name: str) -> str:
    """A file name that can be stored and shown anywhere: what is not printable or not Unicode is written as escapes."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in name
    )


# Listing


class _Archive(Protocol):
    def members(self) -> Iterator[tuple[Entry, bytes] | Refused]:
        """Each file with its first bytes; names as the archive has them. Folders are left out."""

    def read(self, position: int, size_bytes: int) -> bytes:
        """The bytes of the member at a position of the listing."""

    def close(self) -> None:
        """Lets go of what was opened here."""


class _Tally:
    """What an archive unpacks to so far, archives inside it included, measured against its bytes on disk."""

    def __init__(self, limits: ArchiveLimits, packed_bytes: int) -> None:
        self.limits = limits
        self.count = 0
        self._total_bytes = 0
        self._bound_bytes = min(limits.total_bytes, max(limits.ratio_from_bytes, limits.ratio * packed_bytes))

    def add(self, size_bytes: int) -> None:
        """Raises Fault (archive-bomb) where this member is one too many."""
        self.count += 1
        self._total_bytes += size_bytes
        if self.count > self.limits.members:
            raise Fault("archive-bomb", f"it holds more than {self.limits.members:,} files")
        if self._total_bytes > self._bound_bytes:
            raise Fault("archive-bomb", f"it unpacks to more than {self._bound_bytes / 1e6:,.0f} MB")


def _members(archive: _Archive, tally: _Tally, *, inner: bool) -> Iterator[Entry | Refused]:
    limits, seen, before = tally.limits, set[str](), tally.count
    for found in archive.members():
        tally.add(0 if isinstance(found, Refused) else found[0].size_bytes)
        if isinstance(found, Refused):
            yield Refused(printable(found.name), found.code, found.sentence)
            continue
        entry, head = found
        name = _inside(entry.name)
        if name is None or len(name) > limits.name_characters:
            shown = printable(entry.name)[: limits.name_characters]
            yield Refused(shown, "archive-path", "its name is not that of a file inside the archive")
        elif name in seen:
            yield Refused(name, "archive-path", "another member of the archive has the same name")
        elif entry.size_bytes > limits.member_bytes:
            yield Refused(name, "too-large", f"it holds {entry.size_bytes / 1e6:,.0f} MB")
        elif entry.size_bytes == 0:
            yield Refused(name, "empty-file", "it has no bytes")
        else:
            seen.add(name)
            yield from _opened_once(archive, Entry(name, entry.size_bytes, entry.place), head, tally, inner=inner)
    if tally.count == before:
        raise Fault("archive-unreadable", "it holds no files")


def _opened_once(
    archive: _Archive, entry: Entry, head: bytes, tally: _Tally, *, inner: bool
) -> Iterator[Entry | Refused]:
    """The member itself, or its members where it is an archive."""
    if kind(head) == "":
        yield entry
    elif inner:
        yield Refused(entry.name, "archive-unreadable", "it is an archive in an archive in an archive")
    elif entry.size_bytes > tally.limits.inner_bytes:
        yield Refused(entry.name, "too-large", f"an archive of {entry.size_bytes / 1e6:,.0f} MB inside an archive")
    else:
        try:
            content = io.BytesIO(archive.read(*entry.place[0]))
            opened = _open(content, posixpath.basename(entry.name), tally.limits)
            for member in _members(opened, tally, inner=True):
                name = f"{entry.name}/{member.name}"
                if isinstance(member, Entry):
                    yield Entry(name, member.size_bytes, entry.place + member.place)
                else:
                    yield Refused(name, member.code, member.sentence)
        except Fault as fault:
            if fault.code == "archive-bomb":
                raise
            yield Refused(entry.name, fault.code, fault.sentence)


def _inside(name: str) -> str | None:
    """A member's name with forward slashes, without detours; None where it is absolute, climbs out or is no name."""
    name = name.replace("\\", "/")  # some Windows programs write these
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return None
    return printable("/".join(parts))


# Which sort, and those already open

_FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}

_KEPT = 3
_lock = threading.RLock()
_kept: OrderedDict[tuple[object, ...], _Archive] = OrderedDict()


def _looks_like_tar(head: bytes) -> bool:
    if len(head) < tarfile.BLOCKSIZE or head[0] == 0:
        return False
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")  # checks the checksum
    except tarfile.HeaderError:
        return False
    return True


def _open(file: BinaryIO, name: str, limits: ArchiveLimits) -> _Archive:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    sort = kind(head)
    if sort == "zip":
        return _Zip(file, limits)
    if sort == "tar":
        return _Tar(file)
    if sort == "gzip":
        unzipped = _unzipped(file, limits)
        return _Tar(unzipped) if _looks_like_tar(gzip.peek(head, HEAD_BYTES)) else _Gzipped(file, unzipped, name)
    foreign = next((word for magic, word in _FOREIGN.items() if head.startswith(magic)), "this")
    raise Fault("archive-unreadable", f"{foreign} files are not read; unpack it first")


def _reopened(path: str, outer: Place, limits: ArchiveLimits) -> _Archive:
    """The archive at a path, or the one inside it at a place; the last few stay open in each process."""
    status = os.stat(path)
    # a forked process shares file positions with its parent, so it must not share what is open
    key = (os.getpid(), path, status.st_ino, status.st_mtime_ns, status.st_size, outer)
    archive = _kept.pop(key, None)
    if archive is None:
        file: BinaryIO
        if outer:  # noqa: SIM108
            file = io.BytesIO(_reopened(path, outer[:-1], limits).read(*outer[-1]))
        else:
            file = open(path, "rb")  # noqa: SIM115 - closed when the archive is let go
        try:
            archive = _open(file, os.path.basename(path), limits)
        except BaseException:
            file.close()
            raise
    if not _kept:
        atexit.register(_close_kept)
    _kept[key] = archive
    while len(_kept) > _KEPT:
        _kept.popitem(last=False)[1].close()
    return archive


def _close_kept() -> None:
    while _kept:
        _kept.popitem()[1].close()


# The three sorts


class _Zip:
    """The directory by `zipfile`, the data by libdeflate: each member is bounded by its listed size."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self._file = file
        self._limits = limits
        with _blamed_on_the_archive():
            self._directory = zipfile.ZipFile(file)
        self._by_position = {info.header_offset: info for info in self._directory.infolist()}

    def members(self) -> Iterator[tuple[Entry, bytes] | Refused]:
        infos = self._directory.infolist()
        _check_apart(infos, self._directory.start_dir)
        for info in infos:
            if info.is_dir():
                continue
            refused = self._refusal(info)
            if refused is not None:
                yield Refused(info.orig_filename, *refused)
                continue
            try:
                head = self._begin(info)
            except Fault as fault:
                yield Refused(info.orig_filename, fault.code, fault.sentence)
                continue
            yield Entry(info.orig_filename, info.file_size, ((info.header_offset, info.file_size),)), head

    def _refusal(self, info: zipfile.ZipInfo) -> tuple[str, str] | None:
        if info.flag_bits & 0x1:
            return "archive-unreadable", "it is encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return "archive-unreadable", f"zip's compression method {info.compress_type} is not read"
        unix_mode = info.external_attr >> 16
        if stat.S_IFMT(unix_mode) not in (0, stat.S_IFREG):
            return "archive-path", "it is a link or a device, not a plain file"
        if info.file_size > max(self._limits.ratio_from_bytes, self._limits.ratio * info.compress_size):
            return "archive-bomb", f"it would unpack from {info.compress_size:,} to {info.file_size:,} bytes"
        return None

    def _packed(self, info: zipfile.ZipInfo, limit_bytes: int) -> bytes:
        self._file.seek(info.header_offset)
        local = self._file.read(30)
        if len(local) < 30 or not local.startswith(b"PK\x03\x04"):
            raise Fault("archive-unreadable", "the archive's directory points to where no member begins")
        name_bytes, extra_bytes = struct.unpack_from("<HH", local, 26)
        self._file.seek(name_bytes + extra_bytes, io.SEEK_CUR)
        return self._file.read(min(info.compress_size, limit_bytes))

    def _begin(self, info: zipfile.ZipInfo) -> bytes:
        packed = self._packed(info, HEAD_BYTES)
        if info.compress_type == zipfile.ZIP_STORED:
            return packed
        try:
            return zlib.decompressobj(-15).decompress(packed, HEAD_BYTES)
        except zlib.error as error:
            raise Fault("damaged", f"its compressed data are broken ({error})") from None

    def read(self, position: int, size_bytes: int) -> bytes:
        info = self._by_position.get(position)
        if info is None or info.file_size != size_bytes:
            raise Fault("archive-unreadable", "the archive changed since it was listed")
        content = self._packed(info, info.compress_size)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflated(content, size_bytes)
        if len(content) != size_bytes or deflate.crc32(content) != info.CRC:
            raise Fault("damaged", "its size or checksum is not what the archive says")
        return content

    def close(self) -> None:
        self._directory.close()
        self._file.close()


def _check_apart(infos: list[zipfile.ZipInfo], directory_start: int) -> None:
    """Raises Fault where two members share bytes: an honest zip never does, the densest bombs do (Fifield 2019)."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Fault("archive-bomb", "several of its members use the same bytes")
        end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
    if end > directory_start:
        raise Fault("archive-unreadable", "its members reach beyond its end")


def _inflated(packed: bytes, size_bytes: int) -> bytes:
    try:
        return bytes(deflate.deflate_decompress(packed, size_bytes))
    except deflate.DeflateError:
        too_much_or_broken = zlib.decompressobj(-15)
    with contextlib.suppress(zlib.error):
        if len(too_much_or_broken.decompress(packed, size_bytes + 1)) > size_bytes:
            raise Fault("archive-bomb", f"it unpacks to more than the {size_bytes:,} bytes that the archive says")
    raise Fault("damaged", "its compressed data are broken")


class _Tar:
    """Headers by `tarfile`, from a file that refuses what only hostile headers ask of it."""

    def __init__(self, file: BinaryIO | gzip.Unzipped) -> None:
        self._file = file

    def members(self) -> Iterator[tuple[Entry, bytes] | Refused]:
        guarded = _ForwardOnly(self._file)
        last = -1
        with _blamed_on_the_archive():
            tar = tarfile.TarFile(fileobj=guarded, errors="surrogateescape")
            while (info := tar.next()) is not None:
                if info.offset <= last or info.size < 0:
                    raise Fault("archive-unreadable", "its headers do not follow each other")
                last = info.offset
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                if info.isreg() and not info.issparse():
                    self._file.seek(info.offset_data)
                    head = self._file.read(min(HEAD_BYTES, info.size))
                    yield Entry(info.name, info.size, ((info.offset_data, info.size),)), head
                elif not info.isdir():
                    yield Refused(info.name, "archive-path", "it is a link, a device or a sparse file")

    def read(self, position: int, size_bytes: int) -> bytes:
        self._file.seek(position)
        content = self._file.read(size_bytes)
        if len(content) != size_bytes:
            raise Fault("damaged", "the archive ends before it does")
        return content

    def close(self) -> None:
        self._file.close()


class _ForwardOnly(io.RawIOBase):
    """What `tarfile` reads headers from. Header blocks are small and come one after the other, data are skipped.

    Without it a header can claim gigabytes for a name, or a negative size that makes tarfile go in circles
    (CVE-2025-8194).
    """

    MOST_BYTES = 1 << 20

    def __init__(self, file: BinaryIO | gzip.Unzipped) -> None:
        super().__init__()
        self._file = file
        self._header = 0  # nothing before it is needed again

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._header:
            raise Fault("archive-unreadable", "its headers do not follow each other")
        self._header = position
        return self._file.seek(position)

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self.MOST_BYTES:
            raise Fault("archive-bomb", f"one of its headers claims {size:,} bytes")
        return self._file.read(size)


class _Gzipped:
    """A single gzipped file as an archive of one member."""

    def __init__(self, file: BinaryIO, unzipped: gzip.Unzipped, name: str) -> None:
        self._file = file
        self._unzipped = unzipped
        self._name = name

    def members(self) -> Iterator[tuple[Entry, bytes] | Refused]:
        head = self._unzipped.read(HEAD_BYTES)
        while self._unzipped.read(1 << 20):
            pass
        size_bytes = self._unzipped.tell()
        yield Entry(self._name.removesuffix(".gz") or "content", size_bytes, ((0, size_bytes),)), head

    def read(self, position: int, size_bytes: int) -> bytes:
        self._file.seek(position)
        content = gzip.decompress(self._file.read(), size_bytes)
        if len(content) != size_bytes:
            raise Fault("archive-unreadable", "the archive changed since it was listed")
        return bytes(content)

    def close(self) -> None:
        self._file.close()


def _unzipped(file: BinaryIO, limits: ArchiveLimits) -> gzip.Unzipped:
    bounds = gzip.StreamLimits(
        ratio=limits.ratio, ratio_from_bytes=limits.ratio_from_bytes, total_bytes=limits.total_bytes
    )
    return gzip.Unzipped(file, bounds)


@contextlib.contextmanager
def _blamed_on_the_archive() -> Iterator[None]:
    """Whatever the standard library raises on hostile bytes becomes a Fault; the list of what it may raise is open."""
    try:
        yield
    except (Fault, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001
        raise Fault("archive-unreadable", f"the archive is damaged ({error})") from None
