"""Finding what there is to read. Whatever is found ends in exactly one `Source` or `Rejection`.

Links. A file or folder is read where it lies; symbolic links are followed after everything else, so they add only
what lies outside the inputs. Two links to one thing, or a second hard link, are rejected as duplicates, a link to a
folder already walked as a loop. Inputs that overlap are silently read once: naming a file twice is no fault.

Names. A name starts with the base name of the input it was found in. Where two different inputs share a base name, the
second is called `NAME~2`, the third `NAME~3`, in the order of the inputs.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from headct.reading import archives, detached, gzip
from headct.reading.archives import HEAD_BYTES, ArchiveLimits, Place, printable
from headct.reading.faults import Fault
from headct.reading.isolation import CellDied, cell
from headct.scan import Rejection

Format = Literal["dicom", "nifti", "nrrd", "metaimage", "archive", "unknown"]
LIMITS = ArchiveLimits()

_LISTING_S = 60.0  # to list an archive of no size
_LISTING_BYTES_PER_S = 5e6  # and this rate, far below that of a slow disk, for its size
_REACHING_BYTES_PER_S = 5e7  # of what an archive holds, a quarter of what zlib does


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or a member of an archive, that can be read any number of times, also in another process.

    `path` is absolute; `member` the name inside the archive at that path, None for a plain file. `name` is what
    tables and messages say: relative, with forward slashes, starting with the base name of the input. `place` is
    where the member lies in its archive. `beside` are the names of files in the same folder that hold the data of a
    detached header; they have no source of their own. Tables say that they lie `within`: in the folder, or, as an
    archive's members do, in the header, where the folder is no input or another header has the same data.
    """

    path: str
    member: str | None
    name: str
    size_bytes: int
    place: Place = ()
    beside: tuple[str, ...] = ()
    within: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that this source stands for: its own, and those of its detached data."""
        return (self.name, *(printable(f"{self.within}/{name}") for name in self.beside))

    @property
    def reach_s(self) -> float:
        """How long it may take to get to where it lies in an archive: up to there, a tar.gz has to be decompressed."""
        return sum(position + size_bytes for position, size_bytes in self.place) / _REACHING_BYTES_PER_S

    def read(self, limit_bytes: int | None = None) -> bytes:
        """All of its bytes. Raises Fault where they cannot be had, or are more than `limit_bytes` (too-large)."""
        if limit_bytes is not None and self.size_bytes > limit_bytes:
            raise Fault("too-large", f"it has {self.size_bytes / 1e6:,.0f} MB; the limit is {limit_bytes / 1e6:,.0f}")
        try:
            if self.member is not None:
                return archives.read(self.path, self.place, LIMITS)
            with open(self.path, "rb") as file:
                return file.read(self.size_bytes)  # what was appended since it was found is left alone
        except OSError as error:
            raise _unreadable(error) from None

    def read_beside(self, name: str, limit_bytes: int) -> bytes:
        """The bytes of the data file that this detached header names. Raises Fault."""
        if self.member is not None:
            sentence = f"its voxels are in another file, {name!r}; in an archive such pairs are not read"
            raise Fault("archive-unreadable", sentence)
        return detached.read(self.path, self.beside, name, limit_bytes)

    def open(self) -> BinaryIO:
        """A seekable binary file to close after use; of a member, all bytes are in memory. Raises Fault."""
        if self.member is not None:
            return io.BytesIO(self.read())
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise _unreadable(error) from None


def find(
    inputs: Iterable[str | os.PathLike[str]], *, names: Iterable[str] | None = None, isolated: bool = True
) -> Iterator[Source | Rejection]:
    """All files of the inputs (files, folders, archives), each folder in the order of its names.

    `names` are what to call the inputs, one each, instead of their base names; equal ones for equal paths only.
    Costs one open and one read of 4 KB a file, because archives are told by their content; archives are listed in a
    cell unless `isolated` is False. Hidden files count like others.
    """
    walk = _Walk(isolated)
    paths = [os.path.abspath(os.fspath(given)) for given in inputs]
    named = list(_named(paths) if names is None else zip(paths, names, strict=True))
    for path, _ in named:
        with contextlib.suppress(OSError):  # the visit meets it again and says why
            walk.claim(os.path.realpath(path))
    for path, name in named:
        yield from walk.visit(path, name)
    while walk.links:
        yield from walk.follow(*walk.links.popleft())


def format_of(head: bytes) -> Format:
    """What begins with these bytes (4 KB are enough for every format)."""
    if head[128:132] == b"DICM" or _looks_like_bare_dicom(head):
        return "dicom"
    if archives.looks_like_nifti(head) or archives.looks_like_nifti(gzip.peek(head, HEAD_BYTES)):
        return "nifti"
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if _METAIMAGE.match(head):
        return "metaimage"
    return "archive" if archives.kind(head) else "unknown"


_METAIMAGE = re.compile(rb"\s*(?:ObjectType\s*=\s*Image|(?:Comment|NDims|ObjectSubType)\s*=)")
_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_FIRST_GROUPS = (0x0002, 0x0008)
_LAST_FIRST_ELEMENT = (
    0x0070  # files without a preamble start with (0008,0000), (0008,0005), (0008,0008), (0008,0016)...
)
_LONGEST_FIRST_VALUE = 256


def _looks_like_bare_dicom(head: bytes) -> bool:
    """True for a plausible first data element of a file without the preamble of PS3.10, of any byte order."""
    if len(head) < 8:
        return False
    explicit = head[4:6] in _VALUE_REPRESENTATIONS
    little = int.from_bytes(head[0:2], "little"), int.from_bytes(head[2:4], "little")
    big = int.from_bytes(head[0:2], "big"), int.from_bytes(head[2:4], "big")
    if little[0] in _FIRST_GROUPS and little[1] <= _LAST_FIRST_ELEMENT:
        length = int.from_bytes(head[4:8], "little")
        return explicit or (length % 2 == 0 and length <= _LONGEST_FIRST_VALUE and len(head) > 8 + length)
    return explicit and big[0] in _FIRST_GROUPS and big[1] <= _LAST_FIRST_ELEMENT


def base_name(given: str | os.PathLike[str]) -> str:
    """What an input is called, before others are known."""
    return printable(os.path.basename(os.path.abspath(given))) or "root"


def _named(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each absolute path with its name; equal base names are told apart, unless the paths are equal too."""
    taken: dict[str, str] = {}
    for path in paths:
        base = name = base_name(path)
        copy = 1
        while taken.setdefault(name, path) != path:
            copy += 1
            name = f"{base}~{copy}"
        yield path, name


_Identity = tuple[int, int]  # device and inode


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


class _Walk:
    """What was met so far. Remembers folders, not their files: a million files cost a million names at most once."""

    def __init__(self, isolated: bool) -> None:
        self.links: deque[tuple[str, str]] = deque()  # (path, name), followed at the end
        self._isolated = isolated
        self._folders: set[_Identity] = set()
        self._single: dict[_Identity, str] = {}  # real paths of files named one by one or reached by a link
        self._hard_links: dict[_Identity, str] = {}
        self._claimed: set[_Identity] = set()  # data of detached headers that are read on their own

    def claim(self, header_path: str) -> tuple[str, ...]:
        """The names of the data files of a detached header, which are not read but with it; none for other paths."""
        names = detached.data_of(header_path)
        for name in names:
            self._claimed.add(_identity(os.stat(os.path.join(os.path.dirname(header_path), name))))
        return names

    def visit(self, path: str, name: str) -> Iterator[Source | Rejection]:
        """An input, which may itself be a link."""
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                yield from self._folder(path, name)
            elif not self._is_read_anyway(path, status):
                yield from self._single_file(path, name, status)
        except OSError as error:
            yield _missing(path, name, error)

    def follow(self, path: str, name: str) -> Iterator[Source | Rejection]:
        """A link met in a folder."""
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                inside = os.path.join(os.path.realpath(os.path.dirname(path)), "")
                if _identity(status) in self._folders or inside.startswith(os.path.join(os.path.realpath(path), "")):
                    yield Rejection.because("link-loop", "it leads to a folder that is read anyway", (name,))
                else:
                    yield from self._folder(path, name)
            elif self._is_read_anyway(path, status):
                target = printable(os.path.basename(os.path.realpath(path)))
                yield Rejection.because("duplicate-file", f"it is a link to {target}, which is read anyway", (name,))
            else:
                yield from self._single_file(path, name, status)
        except OSError as error:
            yield _missing(path, name, error)

    def _is_read_anyway(self, path: str, status: os.stat_result) -> bool:
        """True where a file, links resolved, is read on its own or with its header, or lies in a folder walked."""
        folder = os.stat(os.path.dirname(os.path.realpath(path)))
        return self._is_single(path, status) or _identity(status) in self._claimed or _identity(folder) in self._folders

    def _single_file(self, path: str, name: str, status: os.stat_result) -> Iterator[Source | Rejection]:
        self._single[_identity(status)] = real = os.path.realpath(path)
        beside = self.claim(real)
        yield from self._file(real if beside else path, name, status, beside, name)

    def _folder(self, path: str, name: str) -> Iterator[Source | Rejection]:
        """Everything below a folder, depth first, by a stack: folders may be nested deeper than Python recurses."""
        stack = self._entries(path, name, os.stat(path))
        while stack:
            path, name, beside, within = stack.pop()
            try:
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    self.links.append((path, name))
                elif stat.S_ISDIR(status.st_mode):
                    stack += self._entries(path, name, status)
                elif not self._is_single(path, status):
                    yield from self._file(path, name, status, beside, within)
            except OSError as error:
                yield _missing(path, name, error)

    def _is_single(self, path: str, status: os.stat_result) -> bool:
        """True where a file was read on its own before, under this path or one that leads to it."""
        single = self._single.get(_identity(status))
        return single is not None and single == os.path.realpath(path)

    def _entries(self, path: str, name: str, status: os.stat_result) -> list[tuple[str, str, tuple[str, ...], str]]:
        """What lies in a folder, last name first, as (path, name, beside, within); nothing the second time.

        The data of detached headers come with these; where two share them, with the first.
        """
        if _identity(status) in self._folders:
            return []
        self._folders.add(_identity(status))
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
        data_of = detached.data_files(path, {entry.name for entry in entries if entry.is_file(follow_symlinks=False)})
        owner_of = {data: header for header in sorted(data_of, reverse=True) for data in data_of[header]}
        found = []
        for entry in entries:
            if entry.name not in owner_of:
                shown, beside = f"{name}/{printable(entry.name)}", data_of.get(entry.name, ())
                owns = all(owner_of[data] == entry.name for data in beside)
                found.append((entry.path, shown, beside, name if owns else shown))
        return found

    def _file(
        self, path: str, name: str, status: os.stat_result, beside: tuple[str, ...], within: str
    ) -> Iterator[Source | Rejection]:
        if not stat.S_ISREG(status.st_mode):
            yield Rejection.because("special-file", "it is a pipe, a socket or a device", (name,))
            return
        if status.st_size == 0:
            yield Rejection.because("empty-file", "it has no bytes", (name,))
            return
        if status.st_nlink > 1:
            first = self._hard_links.setdefault(_identity(status), name)
            if first != name:
                yield Rejection.because("duplicate-file", f"it is the same file as {first} (a hard link)", (name,))
                return
        try:
            with open(path, "rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            yield _unreadable(error).rejection(name)
            return
        if archives.kind(head):
            yield from self._archive(path, name, status.st_size)
        else:
            yield Source(path, None, name, status.st_size, beside=beside, within=within if beside else "")

    def _archive(self, path: str, name: str, size_bytes: int) -> Iterator[Source | Rejection]:
        try:
            if self._isolated:
                time_s = _LISTING_S + size_bytes / _LISTING_BYTES_PER_S
                listing = cell().run(archives.listing, path, LIMITS, time_s=time_s)
            else:
                listing = archives.listing(path, LIMITS)
        except Fault as fault:
            yield fault.rejection(name)
            return
        except OSError as error:
            yield _unreadable(error).rejection(name)
            return
        except CellDied as death:
            yield Rejection.because(death.reason, "listing what the archive holds did not come to an end", (name,))
            return
        for member in listing.members:
            member_name = f"{name}/{member.name}"
            if isinstance(member, archives.Entry):
                yield Source(path, member.name, member_name, member.size_bytes, place=member.place)
            else:
                yield Rejection.because(member.code, member.sentence, (member_name,))
        if listing.fault is not None:
            yield listing.fault.rejection(name)


def _unreadable(error: OSError) -> Fault:
    return Fault("unreadable", f"the operating system says: {error.strerror or error}")


def _missing(path: str, name: str, error: OSError) -> Rejection:
    """The rejection of a path that `os.stat`, which follows links, could not look at."""
    if error.errno == errno.ELOOP:
        return Rejection.because("link-loop", "the link leads to itself", (name,))
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return _unreadable(error).rejection(name)
    if os.path.islink(path):
        return Rejection.because("dangling-link", "the link points to nothing", (name,))
    return Rejection.because("not-found", f"there is no {path}", (name,))
