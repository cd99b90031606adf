"""Finding files: each ends in exactly one Source or Rejection, whatever the folder looks like."""

from __future__ import annotations

import gzip as standard
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from headct.reading import files, guard
from headct.reading.archives import HEAD_BYTES, ArchiveLimits
from headct.reading.faults import Fault
from headct.reading.files import Source, find, format_of
from headct.scan import Rejection


def found(*inputs, isolated=False):
    """Names of sources, and names with the codes of rejections; no name may come twice."""
    results = list(find(inputs, isolated=isolated))
    names = [name for result in results for name in result.files]
    assert len(names) == len(set(names)), "a file was accounted for twice"
    sources = [result.name for result in results if isinstance(result, Source)]
    rejections = {result.files[0]: result.code for result in results if isinstance(result, Rejection)}
    return sources, rejections


def put(path, data=b"content"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_nested_folders_in_the_order_of_names(tmp_path):
    for name in ("I100", "I20", "b/c/x", "b/a", ".hidden", "Ä", "B/y", "a b/z.dcm"):
        put(tmp_path / "in" / name)
    sources, rejections = found(tmp_path / "in")
    assert sources == [f"in/{name}" for name in (".hidden", "B/y", "I100", "I20", "a b/z.dcm", "b/a", "b/c/x", "Ä")]
    assert rejections == {}


def test_a_source_reads_what_the_file_holds_and_travels(tmp_path, monkeypatch):
    put(tmp_path / "in" / "a", b"0123456789")
    monkeypatch.chdir(tmp_path)
    (source,) = find(["in/a"], isolated=False)
    assert source == Source(str(tmp_path / "in" / "a"), None, "a", 10)
    monkeypatch.chdir("/")
    source = pickle.loads(pickle.dumps(source))
    assert source.read() == source.read(10) == b"0123456789"
    with source.open() as file:
        file.seek(4)
        assert file.read(2) == b"45"
    with pytest.raises(Fault) as fault:
        source.read(9)
    assert fault.value.code == "too-large"
    os.remove(source.path)
    for reading in (source.read, source.open):
        with pytest.raises(Fault) as fault:
            reading()
        assert fault.value.code == "unreadable"


def test_a_member_is_a_source(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inner/a.dcm", b"0123456789")
        archive.writestr("../b", b"1")
    (source, rejection) = find([tmp_path / "x.zip"], isolated=False)
    assert (source.member, source.name, source.size_bytes) == ("inner/a.dcm", "x.zip/inner/a.dcm", 10)
    assert (rejection.code, rejection.files) == ("archive-path", ("x.zip/../b",))
    source = pickle.loads(pickle.dumps(source))
    assert source.read() == b"0123456789"
    with source.open() as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == b"89"
    os.remove(source.path)
    with pytest.raises(Fault) as fault:
        source.read()
    assert fault.value.code == "unreadable"


def test_inputs_that_share_a_name_are_told_apart(tmp_path):
    for name in ("a/data/x", "b/data/x", "c/data/x"):
        put(tmp_path / name)
    sources, _ = found(tmp_path / "b/data", tmp_path / "a/data", tmp_path / "c/data/")
    assert sources == ["data/x", "data~2/x", "data~3/x"]


def test_inputs_that_overlap_are_read_once(tmp_path):
    for name in ("in/a/x", "in/a/y", "in/z"):
        put(tmp_path / name)
    everything = tmp_path / "in"
    assert found(everything, everything, everything / "a", everything / "a/x")[0] == ["in/a/x", "in/a/y", "in/z"]
    assert found(everything / "a/x", everything / "a", everything) == (["x", "a/y", "in/z"], {})
    os.symlink(everything / "a", tmp_path / "link")
    assert found(everything, tmp_path / "link") == (["in/a/x", "in/a/y", "in/z"], {})
    assert found(tmp_path / "link", everything) == (["link/x", "link/y", "in/z"], {})


def test_links_add_only_what_lies_outside(tmp_path):
    put(tmp_path / "in/z")
    put(tmp_path / "outside/x")
    put(tmp_path / "outside/deep/y")
    put(tmp_path / "elsewhere/single")
    for name, target in (
        ("a-inside", "z"),
        ("b-file", "../elsewhere/single"),
        ("c-file-again", "../elsewhere/single"),
        ("d-folder", "../outside"),
        ("e-folder-again", "../outside/deep"),
        ("f-dangling", "nowhere"),
        ("g-up", ".."),
        ("h-self", "h-self"),
        ("i-here", "."),
        ("j-through-file", "z/x"),
    ):
        os.symlink(target, tmp_path / "in" / name)
    os.symlink("../in", tmp_path / "outside/back")
    sources, rejections = found(tmp_path / "in")
    assert sources == ["in/z", "in/b-file", "in/d-folder/deep/y", "in/d-folder/x"]
    assert rejections == {
        "in/a-inside": "duplicate-file",
        "in/c-file-again": "duplicate-file",
        "in/e-folder-again": "link-loop",
        "in/f-dangling": "dangling-link",
        "in/g-up": "link-loop",
        "in/h-self": "link-loop",
        "in/i-here": "link-loop",
        "in/j-through-file": "dangling-link",
        "in/d-folder/back": "link-loop",
    }


def test_hard_links_are_read_once(tmp_path):
    put(tmp_path / "in/b")
    os.link(tmp_path / "in/b", tmp_path / "in/a")
    os.link(tmp_path / "in/b", tmp_path / "in/c")
    assert found(tmp_path / "in") == (["in/a"], {"in/b": "duplicate-file", "in/c": "duplicate-file"})
    assert found(tmp_path / "in/b", tmp_path / "in") == (["b"], {"in/a": "duplicate-file", "in/c": "duplicate-file"})


def test_what_is_no_file_is_said(tmp_path):
    folder = tmp_path / "in"
    put(folder / "empty", b"")
    put(folder / "good")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
        sources, rejections = found(folder, tmp_path / "missing", folder / "good" / "below", tmp_path / "in/pipe")
    assert sources == ["in/good"]
    assert rejections == {
        "in/empty": "empty-file",
        "in/pipe": "special-file",
        "in/socket": "special-file",
        "missing": "not-found",
        "below": "not-found",
    }


def test_special_inputs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("loop", tmp_path / "loop")
    put(tmp_path / "real")
    os.symlink("real", tmp_path / "link")
    sources, rejections = found(*(tmp_path / name for name in ("pipe", "dangling", "loop", "link")))
    assert sources == ["link"]
    assert rejections == {"pipe": "special-file", "dangling": "dangling-link", "loop": "link-loop"}


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_files_and_folders_without_permission(tmp_path):
    put(tmp_path / "in/secret").chmod(0)
    put(tmp_path / "in/closed/x")
    put(tmp_path / "in/good")
    (tmp_path / "in/closed").chmod(0)
    try:
        sources, rejections = found(tmp_path / "in", tmp_path / "in/closed/x")
    finally:
        (tmp_path / "in/closed").chmod(0o700)
    assert sources == ["in/good"]
    assert rejections == {"in/secret": "unreadable", "in/closed": "unreadable", "x": "unreadable"}


def test_a_file_that_the_system_refuses_is_unreadable(tmp_path, monkeypatch):
    """What permissions do to ordinary users, also where the tests run as root."""
    put(tmp_path / "in/secret")
    put(tmp_path / "in/closed/x")
    put(tmp_path / "in/good")

    def refusing(call, name):
        def refuse(path, *arguments, **options):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", path)
            return call(path, *arguments, **options)

        return refuse

    monkeypatch.setattr(files, "open", refusing(open, "secret"), raising=False)
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, "closed"))
    sources, rejections = found(tmp_path / "in")
    assert sources == ["in/good"]
    assert rejections == {"in/secret": "unreadable", "in/closed": "unreadable"}


def test_a_file_that_vanishes_during_the_walk(tmp_path):
    put(tmp_path / "in/a")
    put(tmp_path / "in/b")
    walk = find([tmp_path / "in"], isolated=False)
    assert next(walk).name == "in/a"
    os.remove(tmp_path / "in/b")
    (rejection,) = walk
    assert (rejection.code, rejection.files) == ("not-found", ("in/b",))


def test_folders_nested_deeper_than_python_recurses(tmp_path):
    levels = 1500
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("x", os.O_WRONLY | os.O_CREAT, dir_fd=here), "w") as file:
        file.write("content")
    os.close(here)
    sources, rejections = found(tmp_path / "d")
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # what pytest cleans up with recurses
    assert sources == ["/".join(["d"] * levels + ["x"])]
    assert rejections == {}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text_can_be_shown_and_read(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with open(os.path.join(os.fsencode(folder), b"caf\xe9\x1b[2J\n"), "wb") as file:
        file.write(b"content")
    (source,) = find([folder], isolated=False)
    assert source.name == "in/caf\\xe9\\x1b[2J\\n"
    source.name.encode("utf-8")
    assert pickle.loads(pickle.dumps(source)).read() == b"content"


def test_archives_are_told_by_content_and_listed_in_a_cell(tmp_path):
    folder = tmp_path / "in"
    put(folder / "no-suffix").unlink()
    with zipfile.ZipFile(folder / "no-suffix", "w") as archive:
        archive.writestr("a", b"zip")
    with tarfile.open(folder / "export.dcm", "w:gz") as archive:
        archive.add(put(tmp_path / "b", b"tar"), "b")
    put(folder / "c.dcm.gz", standard.compress(b"gzip"))
    put(folder / "fake.zip", b"no archive at all")
    put(folder / "broken.zip", b"PK\3\4" + bytes(50))
    sources, rejections = found(folder, isolated=True)
    assert sources == ["in/c.dcm.gz/c.dcm", "in/export.dcm/b", "in/fake.zip", "in/no-suffix/a"]
    assert rejections == {"in/broken.zip": "archive-unreadable"}
    contents = {source.name: source.read() for source in find([folder]) if isinstance(source, Source)}
    assert contents["in/c.dcm.gz/c.dcm"] == b"gzip"
    assert contents["in/export.dcm/b"] == b"tar"
    assert contents["in/no-suffix/a"] == b"zip"
    assert found(folder, isolated=False) == (sources, rejections)


def test_an_archive_cut_short_gives_its_beginning_and_one_rejection(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name in "abc":
            archive.add(put(tmp_path / name, os.urandom(20_000)), name)
    path.write_bytes(path.read_bytes()[:50_000])
    sources, rejections = found(path)
    assert sources[:2] == ["x.tar/a", "x.tar/b"]
    assert rejections == {"x.tar": "archive-unreadable"}


def test_a_bomb_gives_one_rejection_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMITS", ArchiveLimits(members=2))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in "abc":
            archive.writestr(name, b"1")
    assert found(tmp_path / "x.zip") == ([], {"x.zip": "archive-bomb"})


def test_a_time_limit_on_listing_is_a_rejection(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LISTING_S", 0.0)
    monkeypatch.setattr(files, "_LISTING_BYTES_PER_S", 1e12)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}", b"1")
    assert found(tmp_path / "x.zip", isolated=True) == ([], {"x.zip": "time-limit"})


DETACHED = {
    "a.mhd": b"ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n",
    "a.raw": b"12345678",
    "b.nhdr": b"NRRD0004\ntype: short\ndata file: voxels.bin\n\n",
    "voxels.bin": b"12345678",
}


def test_data_of_a_detached_header_belong_to_it(tmp_path):
    for name, data in DETACHED.items():
        put(tmp_path / "in" / name, data)
    put(tmp_path / "in/other.raw")
    results = list(find([tmp_path / "in"], isolated=False))
    assert {result.name: result.files for result in results} == {
        "in/a.mhd": ("in/a.mhd", "in/a.raw"),
        "in/b.nhdr": ("in/b.nhdr", "in/voxels.bin"),
        "in/other.raw": ("in/other.raw",),
    }


@pytest.mark.parametrize("header", ["a.mhd", "b.nhdr"])
def test_data_of_a_header_named_alone_belong_to_it(tmp_path, header):
    for name, data in DETACHED.items():
        put(tmp_path / "in" / name, data)
    data = {"a.mhd": "a.raw", "b.nhdr": "voxels.bin"}[header]
    for inputs in ([header], [header, data], [data, header], [header, header]):
        (source,) = find([tmp_path / "in" / name for name in inputs], isolated=False)
        assert source.files == (header, f"{header}/{data}")
        assert source.read_beside(data, 100) == b"12345678"
    others = {"a.mhd": "in/b.nhdr", "b.nhdr": "in/a.mhd"}
    assert found(tmp_path / "in" / header, tmp_path / "in")[0] == [header, others[header]]
    assert found(tmp_path / "in", tmp_path / "in" / data)[0] == ["in/a.mhd", "in/b.nhdr"]


def test_data_of_a_header_met_by_a_link_lie_beside_the_header(tmp_path):
    put(tmp_path / "far/a.mhd", DETACHED["a.mhd"])
    put(tmp_path / "far/a.raw", b"far")
    put(tmp_path / "in/a.raw", b"near")
    os.symlink("../far/a.mhd", tmp_path / "in/a.mhd")
    os.symlink("../far/a.raw", tmp_path / "in/z.raw")
    sources, rejections = found(tmp_path / "in")
    assert sources == ["in/a.raw", "in/a.mhd"]
    assert rejections == {"in/z.raw": "duplicate-file"}
    (_, source, _) = find([tmp_path / "in"], isolated=False)
    assert source.files == ("in/a.mhd", "in/a.mhd/a.raw")
    assert source.read_beside("a.raw", 100) == b"far"


def test_a_dot_before_the_name_means_the_folder_of_the_header(tmp_path):
    put(tmp_path / "in/a.mhd", b"NDims = 3\nElementDataFile = ./a.raw\n")
    put(tmp_path / "in/a.raw", b"12345678")
    for place in ("in", "in/a.mhd"):
        (source,) = find([tmp_path / place], isolated=False)
        assert source.read_beside("./a.raw", 100) == b"12345678"


def test_two_headers_may_share_their_data(tmp_path):
    for name in ("a.mhd", "b.mhd"):
        put(tmp_path / "in" / name, DETACHED["a.mhd"])
    put(tmp_path / "in/a.raw")
    results = list(find([tmp_path / "in"], isolated=False))
    assert [result.files for result in results] == [("in/a.mhd", "in/a.raw"), ("in/b.mhd", "in/b.mhd/a.raw")]


def test_a_detached_header_in_an_archive_says_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in DETACHED.items():
            archive.writestr(name, data)
    (source, *_) = find([tmp_path / "x.zip"], isolated=False)
    with pytest.raises(Fault, match="archive") as fault:
        source.read_beside("a.raw", 100)
    assert fault.value.code == "archive-unreadable"


@pytest.mark.parametrize(
    "named", ["../secret", "/etc/passwd", "gone.raw", "link.raw", "a.mhd", "LIST", "x%03d.raw 1 9 1"]
)
def test_a_detached_header_reaches_nothing_else(tmp_path, named):
    put(tmp_path / "secret", b"12345678")
    put(tmp_path / "in/a.mhd", b"NDims = 3\nElementDataFile = " + named.encode())
    os.symlink("../secret", tmp_path / "in/link.raw")
    (source, *rest) = find([tmp_path / "in"], isolated=False)
    assert source.files == ("in/a.mhd",)
    assert [type(result) for result in rest] == [Source], "the link is found like any other"


def test_the_way_to_a_member_does_not_count_as_reading_it(tmp_path, monkeypatch):
    """A tar.gz has to be decompressed up to the member, by each process anew."""
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        for name, size in (("big", 200 << 20), ("late", 400)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    big, late = find([tmp_path / "x.tar.gz"], isolated=False)
    assert 0 < big.reach_s <= late.reach_s == pytest.approx(200 * (1 << 20) / 5e7, rel=0.01)
    assert Source("/x", None, "x", 1 << 30).reach_s == 0
    times_s = []

    class Clock:
        def run(self, function, sources, *, time_s):
            times_s.append(time_s)
            return function(sources)

    monkeypatch.setattr(guard, "cell", Clock)
    guard.read_headers([big, late], time_s=10)
    assert times_s == [10 + late.reach_s]


# Telling formats apart


def test_dicom_of_every_first_element():
    preamble = bytes(128) + b"DICM"
    assert format_of(preamble) == format_of(b"PK\3\4" + preamble[4:]) == format_of(b"II*\0" + preamble[4:]) == "dicom"
    value = b"ISO_IR 100" + bytes(50)
    assert format_of(struct.pack("<HH2sH", 8, 5, b"CS", 10) + value) == "dicom"  # explicit little endian
    assert format_of(struct.pack(">HH2sH", 8, 5, b"CS", 10) + value) == "dicom"  # explicit big endian
    assert format_of(struct.pack("<HHI", 8, 5, 10) + value) == "dicom"  # implicit little endian
    assert format_of(struct.pack("<HH2sHI", 2, 0, b"UL", 4, 100) + value) == "dicom"  # meta group, no preamble
    assert format_of(struct.pack("<HHI", 8, 5, 11) + value) == "unknown"  # an odd length
    assert format_of(struct.pack("<HHI", 8, 5, 4000) + value) == "unknown"
    assert format_of(struct.pack("<HHI", 9, 5, 10) + value) == "unknown"


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "ExplVR_BigEnd.dcm", "rtplan.dcm", "MR_small_implicit.dcm", "image_dfl.dcm"]
)
def test_real_dicom_with_and_without_preamble(name):
    with open(get_testdata_file(name, download=False), "rb") as file:
        data = file.read()
    assert format_of(data[:4096]) == "dicom"
    if data[128:132] == b"DICM":
        assert format_of(data[132 : 132 + 4096]) == "dicom"


@pytest.mark.parametrize("sort", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path, sort, suffix):
    path = tmp_path / f"x{suffix}"
    nib.save(sort(np.zeros((4, 4, 4), np.int16), np.eye(4)), path)
    (source,) = find([path], isolated=False)
    assert source.member is None
    assert format_of(source.read()[:HEAD_BYTES]) == "nifti"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"NRRD0004\n", "nrrd"),
        (b"ObjectType = Image\nNDims = 3\n", "metaimage"),
        (b"NDims=3\n", "metaimage"),
        (b"Comment = x\nObjectType = Image\n", "metaimage"),
        (b"ObjectType = Tube\n", "unknown"),
        (b"PK\3\4", "archive"),
        (b"7z\xbc\xaf\x27\x1c", "archive"),
        (standard.compress(b"x", mtime=0), "archive"),
        (tarfile.TarInfo("a").tobuf(), "archive"),
        (bytes(512), "unknown"),
        (b"", "unknown"),
        (b"\x89PNG\r\n\x1a\n", "unknown"),
        (b"%PDF-1.7", "unknown"),
        (b'{"json": 1}', "unknown"),
        (struct.pack("<i", 348) + bytes(400), "unknown"),  # Analyze 7.5 states no orientation and no magic
    ],
)
def test_other_formats(head, expected):
    assert format_of(head) == expected


def test_every_real_file_is_found_once(shared):
    sources, rejections = found(shared / "data")
    on_disk = [os.path.join(folder, name) for folder, _, names in os.walk(shared / "data") for name in names]
    assert len(sources) == len(on_disk)
    assert rejections == {}
