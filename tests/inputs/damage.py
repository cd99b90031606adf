"""Files that broke, files that are no scans, links, and what else lies in a folder."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from inputs.kinds import kind, refused
from inputs.series import images, write

ONE_LOST = ("gap-filled", "uneven")


@kind("one file breaks off in its header", flags=ONE_LOST, rejected={"damaged": 1})
def truncated_header(folder: Path) -> None:
    path = write(images(), folder)[14]
    path.write_bytes(path.read_bytes()[:900])


@kind("one file breaks off in its pixels", flags=("file-dropped", *ONE_LOST), rejected={"damaged": 1})
def truncated_pixels(folder: Path) -> None:
    path = write(images(), folder)[14]
    path.write_bytes(path.read_bytes()[:-4000])


@kind("one compressed file breaks off", flags=("file-dropped", *ONE_LOST), rejected={"damaged": 1})
def truncated_compressed(folder: Path) -> None:
    path = write(images(), folder, syntax=JPEG2000Lossless)[14]
    path.write_bytes(path.read_bytes()[:-2500])


@refused("every file breaks off in its pixels", "damaged", 30)
def truncated_all(folder: Path) -> None:
    for path in write(images(), folder):
        path.write_bytes(path.read_bytes()[:-4000])


@kind("a broken copy beside a good series", rejected={"damaged": 1})
def broken_copy(folder: Path) -> None:
    path = write(images(), folder)[14]
    (folder / "015-copy.dcm").write_bytes(path.read_bytes()[:-4000])


@kind("a file of zeros under a good file's name", flags=ONE_LOST, rejected={"unknown-format": 1})
def zeros(folder: Path) -> None:
    path = write(images(), folder)[14]
    path.write_bytes(bytes(path.stat().st_size))


@kind("an empty file in the series", flags=ONE_LOST, rejected={"empty-file": 1})
def empty_file(folder: Path) -> None:
    write(images(), folder)[14].write_bytes(b"")


@refused("an empty file alone", "empty-file")
def empty_file_alone(folder: Path) -> None:
    (folder / "scan.dcm").write_bytes(b"")


@kind("notes, pictures and system files among the slices", rejected={"unknown-format": 4})
def clutter(folder: Path) -> None:
    write(images(), folder)
    (folder / "README.txt").write_text("Patient was late.\n")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(100))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (folder / "slice.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))


@kind("tables and an array that headct writes, among the slices", rejected={"side-file": 4})
def tables_of_ours(folder: Path) -> None:
    write(images(), folder)
    (folder / "labels.csv").write_text("scan_id,patient_id,ich\n1a,2b,1\n")
    (folder / "landmarks.csv").write_text("series_id,landmark,x_mm,y_mm,z_mm\n3c,right-eye,1,2,3\n")
    (folder / "classes.csv").write_text("value,name\n1,brain\n")
    np.save(folder / "classes.npy", np.ones((3, 4, 5), np.uint8))


@refused("a text file named .dcm", "unknown-format")
def text_named_dcm(folder: Path) -> None:
    (folder / "scan.dcm").write_text("This is not a scan.\n" * 50)


@refused("random bytes", "unknown-format")
def random_bytes(folder: Path) -> None:
    (folder / "scan").write_bytes(np.random.default_rng(0).bytes(50_000))


@refused("DICM and then random bytes", "damaged")
def random_after_preamble(folder: Path) -> None:
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(50_000))


@refused("a preamble and DICM, then nothing", "damaged")
def only_preamble(folder: Path) -> None:
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM")


@kind("pixel data that claim four gigabytes, in a file that holds a slice")
def huge_element(folder: Path) -> None:
    path = write(images(), folder)[14]
    content = path.read_bytes()
    start = content.index(b"\xe0\x7f\x10\x00OW") + 8
    path.write_bytes(content[:start] + b"\xf0\xff\xff\xff" + content[start + 4 :])


@refused("ten thousand sequences, one in the other", "damaged")
def deep_nesting(folder: Path) -> None:
    path = write(images()[:1], folder)[0]
    content = path.read_bytes()
    place = content.index(b"\x10\x00\x20\x00LO")  # before Patient ID
    item = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:place] + item * 10_000 + content[place:])


@refused("a deflated file that unpacks to 1.1 GB", "too-large")
def deflate_bomb(folder: Path) -> None:
    path = write(images()[:1], folder, syntax=DeflatedExplicitVRLittleEndian)[0]
    content = path.read_bytes()
    end = 132 + 12 + int.from_bytes(content[140:144], "little")  # of the meta information, which is not deflated
    header = zlib.decompress(content[end:], -zlib.MAX_WBITS)
    pixels = header.index(b"\xe0\x7f\x10\x00OW")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = 66 << 24
    parts = [header[: pixels + 8], size.to_bytes(4, "little"), *_zeros(size)]
    path.write_bytes(content[:end] + b"".join(squeeze.compress(part) for part in parts) + squeeze.flush())


def _zeros(size: int, step: int = 1 << 24) -> Iterator[bytes]:
    yield from (bytes(step) for _ in range(size // step))


@kind("blanks, quotes, accents, line breaks and 240 characters in names")
def odd_names(folder: Path) -> None:
    names = [f"{'x' * 200} {index:03d} 'ä\"頭\n$(rm)&;|.dcm" for index in range(30)]
    write(images(), folder / "a b;c" / "-rf" / "…", names=names)


@kind("a name that is not valid Unicode")
def name_not_unicode(folder: Path) -> None:
    path = write(images(), folder)[0]
    os.rename(path, os.fsencode(folder) + b"/caf\xe9.dcm")


@kind("folders nested 60 deep")
def deep_folders(folder: Path) -> None:
    write(images(), folder.joinpath(*"d" * 60))


@kind("files that may only be read")
def read_only(folder: Path) -> None:
    for path in write(images(), folder):
        path.chmod(0o444)


@kind("a file whose permissions forbid reading", flags=ONE_LOST, rejected={"unreadable": 1},
      lacking="root may read any file" if os.geteuid() == 0 else "")  # fmt: skip
def unreadable(folder: Path) -> None:
    write(images(), folder)[14].chmod(0)


@kind("a pipe in the folder", rejected={"special-file": 1})
def pipe(folder: Path) -> None:
    write(images(), folder)
    os.mkfifo(folder / "pipe")


@kind("a socket in the folder", rejected={"special-file": 1})
def socket_file(folder: Path) -> None:
    write(images(), folder)
    here = os.getcwd()
    os.chdir(folder)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(here)


@kind("a link that points to nothing", rejected={"dangling-link": 1})
def dangling_link(folder: Path) -> None:
    write(images(), folder)
    (folder / "031.dcm").symlink_to(folder / "gone.dcm")


@kind("a link that leads back to its own folder", rejected={"link-loop": 1})
def link_loop(folder: Path) -> None:
    write(images(), folder / "series")
    (folder / "series" / "again").symlink_to(folder)


@kind("two links that lead to each other", rejected={"link-loop": 2})
def links_in_a_ring(folder: Path) -> None:
    write(images(), folder)
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")


@kind("a link to each file of the series", rejected={"duplicate-file": 30})
def links_to_files(folder: Path) -> None:
    (folder / "links").mkdir()
    for path in write(images(), folder / "series"):
        (folder / "links" / path.name).symlink_to(path)


@kind("one file under two names (hard link)", rejected={"duplicate-file": 1})
def hard_link(folder: Path) -> None:
    path = write(images(), folder)[0]
    os.link(path, folder / "again.dcm")


@refused("no such path", "not-found")
def missing_path(folder: Path) -> None:
    folder.rmdir()


@kind("one file's pixels belong to another modality's header", flags=ONE_LOST, rejected={"not-ct": 1})
def foreign_slice(folder: Path) -> None:
    path = write(images(), folder)[14]
    file = dcmread(path)
    file.Modality, file.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.save_as(path, enforce_file_format=True)
