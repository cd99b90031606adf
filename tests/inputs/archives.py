"""Archives, honest and not."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

from inputs.kinds import kind, refused
from inputs.series import images, write


def _files(folder: Path) -> dict[str, bytes]:
    """The average head as file contents by name; nothing is left on disk."""
    paths = write(images(), folder / "unpacked")
    contents = {f"series/{path.name}": path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    paths[0].parent.rmdir()
    return contents


def _zip(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


def _tar(contents: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@kind("a series in a zip")
def zip_series(folder: Path) -> None:
    (folder / "series.zip").write_bytes(_zip(_files(folder)))


@kind("a series in a tar.gz")
def tar_gz_series(folder: Path) -> None:
    (folder / "series.tar.gz").write_bytes(_tar(_files(folder), "w:gz"))


@kind("a series in a tar named .dat")
def tar_series(folder: Path) -> None:
    (folder / "series.dat").write_bytes(_tar(_files(folder), "w"))


@kind("MetaImage in two files in a zip", scans=0, rejected={"archive-unreadable": 1, "unknown-format": 1})
def mhd_in_zip(folder: Path) -> None:
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
    pair = {"head.mhd": header + b"ElementDataFile = head.raw\n", "head.raw": bytes(128)}
    (folder / "series.zip").write_bytes(_zip(pair))


@kind("a zip in a zip")
def zip_in_zip(folder: Path) -> None:
    (folder / "outer.zip").write_bytes(_zip({"inner.zip": _zip(_files(folder))}))


@kind("the series once as files and once in a zip", rejected={"duplicate-file": 30})
def zip_and_files(folder: Path) -> None:
    (folder / "series.zip").write_bytes(_zip(_files(folder)))
    write(images(), folder / "series")


@kind("each file gzipped on its own")
def gzipped_files(folder: Path) -> None:
    for name, content in _files(folder).items():
        (folder / f"{Path(name).name}.gz").write_bytes(gzip.compress(content, mtime=0))


@refused("a zip bomb: 320 MB in 1.5 MB", "archive-bomb")
def zip_bomb(folder: Path) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("zeros.dcm", "w", force_zip64=True) as member,
    ):
        for _ in range(20):
            member.write(bytes(1 << 24))
    (folder / "bomb.zip").write_bytes(buffer.getvalue())


@refused("a zip that lies about the size of its member", "archive-bomb")
def zip_wrong_size(folder: Path) -> None:
    content = bytearray(_zip({"zeros.dcm": bytes(4 << 20)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(signature) + offset
        content[place : place + 4] = (1000).to_bytes(4, "little")
    (folder / "liar.zip").write_bytes(content)


@kind("a zip whose members' names leave it", rejected={"archive-path": 2})
def zip_path_tricks(folder: Path) -> None:
    contents = _files(folder)
    contents["../../outside.dcm"] = contents["/etc/absolute.dcm"] = b"x" * 100
    (folder / "tricks.zip").write_bytes(_zip(contents))


@kind("a tar with links and a device among its members", rejected={"archive-path": 3})
def tar_special_members(folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in _files(folder).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, sort in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = sort, "/etc/passwd"
            archive.addfile(member)
    (folder / "series.tar").write_bytes(buffer.getvalue())


@refused("an encrypted zip", "archive-unreadable", 30)
def zip_encrypted(folder: Path) -> None:
    content = bytearray(_zip(_files(folder)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(signature, place + 4)
    (folder / "secret.zip").write_bytes(content)


@refused("a zip that breaks off", "archive-unreadable")
def zip_truncated(folder: Path) -> None:
    content = _zip(_files(folder))
    (folder / "half.zip").write_bytes(content[: len(content) // 2])


@kind("a tar.gz that breaks off after two thirds", rejected={"archive-unreadable": 1})
def tar_gz_truncated(folder: Path) -> None:
    content = _tar(_files(folder), "w:gz")
    (folder / "half.tar.gz").write_bytes(content[: 2 * len(content) // 3])


@refused("an archive of a sort that is not read (7z)", "archive-unreadable")
def seven_zip(folder: Path) -> None:
    (folder / "series.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(2000))


@kind("an empty zip beside a series", rejected={"archive-unreadable": 1})
def zip_empty(folder: Path) -> None:
    write(images(), folder)
    (folder / "empty.zip").write_bytes(_zip({}))
