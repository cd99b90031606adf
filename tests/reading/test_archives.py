"""Archives read in place. Oracle: zipfile and tarfile of Python wrote them; members must come back byte for byte."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip as standard
import io
import os
import random
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.reading import archives
from headct.reading.archives import ArchiveLimits, Entry, Refused
from headct.reading.faults import Fault

MB = 1 << 20
LIMITS = ArchiveLimits()
SMALL = dataclasses.replace(LIMITS, ratio_from_bytes=4 * MB)
CONTENT = {
    "a.dcm": b"\x08\x00" * 5000,
    "deep/er/I10": random.Random(0).randbytes(70_000),
    "deep/er/I9": b"x",
    "ünï.nii": bytes(3000),
}


def zipped(content, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(content, mode="w", **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, data in content.items():
            if isinstance(name, tarfile.TarInfo):
                archive.addfile(name, io.BytesIO(data))
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def listed(tmp_path, data, limits=LIMITS, name="x"):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path), archives.listing(str(path), limits)


def names(listing, kind=Entry):
    return [member.name for member in listing.members if isinstance(member, kind)]


def refusals(listing):
    return {member.name: member.code for member in listing.members if isinstance(member, Refused)}


def contents(path, listing, limits=LIMITS):
    return {
        member.name: archives.read(path, member.place, limits)
        for member in listing.members
        if isinstance(member, Entry)
    }


SORTS = {
    "zip, stored": lambda content: zipped(content, zipfile.ZIP_STORED),
    "zip, deflated": zipped,
    "tar, ustar": lambda content: tarred(content, format=tarfile.USTAR_FORMAT),
    "tar, gnu": lambda content: tarred(content, format=tarfile.GNU_FORMAT),
    "tar, pax": lambda content: tarred(content, format=tarfile.PAX_FORMAT),
    "tar.gz": lambda content: tarred(content, "w:gz"),
}


@pytest.mark.parametrize("sort", SORTS)
def test_members_come_back_in_any_order(tmp_path, sort):
    path, listing = listed(tmp_path, SORTS[sort](CONTENT))
    assert listing.fault is None
    assert names(listing) == list(CONTENT), "in the order of the archive"
    assert [member.size_bytes for member in listing.members] == [len(data) for data in CONTENT.values()]
    for _ in range(2):
        for member in reversed(listing.members):
            assert archives.read(path, member.place, LIMITS) == CONTENT[member.name]


@settings(max_examples=30, deadline=None)
@given(
    content=st.dictionaries(
        st.text("abcXYZ019 ._-é", min_size=1, max_size=12).filter(lambda name: set(name) - set(". ")),
        st.one_of(st.binary(min_size=1, max_size=3000), st.integers(1, 100_000).map(bytes)),
        min_size=1,
        max_size=8,
    ),
    sort=st.sampled_from(list(SORTS)),
    order=st.randoms(use_true_random=False),
)
def test_round_trip(tmp_path_factory, content, sort, order):
    path, listing = listed(tmp_path_factory.mktemp("a"), SORTS[sort](content))
    members = [member for member in listing.members if isinstance(member, Entry)]
    assert {member.name for member in members} | set(refusals(listing)) == set(content)
    assert all(code == "archive-unreadable" for code in refusals(listing).values()), (
        "content that looks like an archive"
    )
    order.shuffle(members)
    for member in members:
        assert archives.read(path, member.place, LIMITS) == content[member.name]


def test_folders_are_not_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("folder")
        archive.writestr("folder/a", b"1")
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    for data in ((tmp_path / "a.zip").read_bytes(), tarred({folder: b"", "folder/a": b"1"})):
        assert names(listed(tmp_path, data)[1]) == ["folder/a"]


def test_a_gzipped_file_is_an_archive_of_one(tmp_path):
    path, listing = listed(tmp_path, standard.compress(CONTENT["a.dcm"]), name="a.dcm.gz")
    assert contents(path, listing) == {"a.dcm": CONTENT["a.dcm"]}
    two = standard.compress(b"one") + standard.compress(b"two")
    path, listing = listed(tmp_path, two, name="I10")
    assert contents(path, listing) == {"I10": b"onetwo"}


@pytest.mark.parametrize("outer", SORTS)
@pytest.mark.parametrize("inner", SORTS)
def test_an_archive_in_an_archive(tmp_path, outer, inner):
    nested = SORTS[outer]({"patient": SORTS[inner](CONTENT), "b.dcm.gz": standard.compress(b"content"), "c": b"plain"})
    path, listing = listed(tmp_path, nested)
    expected = {f"patient/{name}": data for name, data in CONTENT.items()}
    assert contents(path, listing) == {**expected, "b.dcm.gz/b.dcm": b"content", "c": b"plain"}


def test_a_third_level_is_refused(tmp_path):
    path, listing = listed(tmp_path, zipped({"a": zipped({"b": zipped({"c": b"1"}), "d": b"2"})}))
    assert refusals(listing) == {"a/b": "archive-unreadable"}
    assert contents(path, listing) == {"a/d": b"2"}


def test_a_damaged_inner_archive_costs_only_itself(tmp_path):
    cut = tarred(CONTENT)[:-20_000]
    path, listing = listed(tmp_path, zipped({"a": b"PK\x03\x04" + bytes(100), "b": cut, "c": b"1"}))
    assert refusals(listing) == {"a": "archive-unreadable", "b": "archive-unreadable"}
    assert names(listing)[0] == "b/a.dcm"
    assert archives.read(path, listing.members[-1].place, LIMITS) == b"1"
    large = dataclasses.replace(LIMITS, inner_bytes=10)
    assert refusals(listed(tmp_path, zipped({"a": zipped(CONTENT)}), large)[1]) == {"a": "too-large"}


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("/etc/passwd", None),
        ("../a", None),
        ("a/../../b", None),
        ("a/..", None),
        ("C:/windows/a", None),
        ("c:a", None),
        ("\\\\server\\share", None),
        ("..\\a", None),
        ("a\0b", None),
        (".", None),
        ("x" * 5000, None),
        ("./a//b/./c", "a/b/c"),
        ("a\\b", "a/b"),
        ("...", "..."),
        ("a..b", "a..b"),
        ("a\x1b[2Jb\n", "a\\x1b[2Jb\\n"),
    ],
)
@pytest.mark.parametrize("sort", ["zip, deflated", "tar, pax"])
def test_names_that_leave_the_archive_are_refused(tmp_path, sort, name, clean):
    data = SORTS[sort]({"good": b"1"})
    if sort.startswith("zip"):
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a") as archive:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            archive.writestr(info, b"2")
        data = buffer.getvalue()
    elif "\0" in name:
        pytest.skip("tar ends names at a NUL")
    else:
        data = SORTS[sort]({"good": b"1", name: b"2"})
    path, listing = listed(tmp_path, data)
    if clean is None:
        assert list(refusals(listing).values()) == ["archive-path"]
        assert names(listing) == ["good"]
    else:
        assert contents(path, listing) == {"good": b"1", clean: b"2"}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_second_member_of_the_same_name_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"first")
        archive.writestr("a", b"second")
        archive.writestr("./a", b"third")
    first, second = tarfile.TarInfo("a"), tarfile.TarInfo("a")
    first.size = second.size = 5
    for data in (buffer.getvalue(), tarred({first: b"first", second: b"later"})):
        path, listing = listed(tmp_path, data)
        assert refusals(listing) == {"a": "archive-path"}
        assert contents(path, listing) == {"a": b"first"}


def test_links_devices_and_sparse_files_in_a_tar_are_refused(tmp_path):
    odd = {}
    for name, sort in (
        ("symlink", tarfile.SYMTYPE),
        ("hardlink", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = sort, "/etc/passwd"
        odd[info] = b""
    path, listing = listed(tmp_path, tarred({"good": b"1", **odd}))
    assert refusals(listing) == dict.fromkeys(("symlink", "hardlink", "device", "pipe"), "archive-path")
    assert contents(path, listing) == {"good": b"1"}


def test_links_in_a_zip_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good", b"1")
    path, listing = listed(tmp_path, buffer.getvalue())
    assert refusals(listing) == {"link": "archive-path"}
    assert contents(path, listing) == {"good": b"1"}


def test_encrypted_and_exotic_members_cost_only_themselves(tmp_path):
    data = bytearray(zipped({"secret": b"1", "good": b"2"}))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    path, listing = listed(tmp_path, bytes(data))
    assert refusals(listing) == {"secret": "archive-unreadable"}
    assert contents(path, listing) == {"good": b"2"}
    assert refusals(listed(tmp_path, zipped({"a": b"1"}, zipfile.ZIP_LZMA))[1]) == {"a": "archive-unreadable"}


def test_an_empty_member_is_an_empty_file(tmp_path):
    for sort in SORTS.values():
        assert refusals(listed(tmp_path, sort({"a": b"", "b": b"1"}))[1]) == {"a": "empty-file"}


@pytest.mark.parametrize(
    "data",
    [zipped({}), tarred({}), zipped(CONTENT)[:-1], zipped(CONTENT)[:2000], b"PK\x03\x04" + bytes(5000)],
    ids=["empty zip", "empty tar", "zip without its last byte", "half a zip", "only a signature"],
)
def test_archives_of_which_nothing_can_be_read(tmp_path, data):
    with pytest.raises(Fault) as fault:
        listed(tmp_path, data)
    assert fault.value.code == "archive-unreadable"


@pytest.mark.parametrize(
    ("magic", "word"),
    [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\x01\0", "rar"), (b"\xfd7zXZ\0", "xz"), (b"BZh91AY&SY", "bzip2")],
)
def test_other_sorts_are_named(tmp_path, magic, word):
    with pytest.raises(Fault, match=word) as fault:
        listed(tmp_path, magic + bytes(1000))
    assert fault.value.code == "archive-unreadable"


@pytest.mark.parametrize("sort", ["tar, ustar", "tar.gz"])
def test_a_cut_tar_gives_what_came_before(tmp_path, sort):
    content = {f"{n}": random.Random(n).randbytes(20_000) for n in range(10)}
    path, listing = listed(tmp_path, SORTS[sort](content)[:100_000])
    assert listing.fault is not None
    assert listing.fault.code == "archive-unreadable"
    assert 3 <= len(listing.members) < 10
    for member in listing.members[:-1]:
        assert archives.read(path, member.place, LIMITS) == content[member.name]
    with pytest.raises(Fault) as fault:
        archives.read(path, listing.members[-1].place, LIMITS)
    assert fault.value.code in ("damaged", "archive-unreadable")


def test_a_damaged_member_costs_only_itself(tmp_path):
    for sort in ("zip, stored", "zip, deflated"):
        data = bytearray(SORTS[sort](CONTENT))
        middle = data.index(b"deep/er/I10") + 30_000
        data[middle] ^= 0xFF
        path, listing = listed(tmp_path, bytes(data))
        for member in listing.members:
            if member.name == "deep/er/I10":
                with pytest.raises(Fault) as fault:
                    archives.read(path, member.place, LIMITS)
                assert fault.value.code == "damaged"
            else:
                assert archives.read(path, member.place, LIMITS) == CONTENT[member.name]


def test_an_archive_that_changed_is_not_misread(tmp_path):
    path, listing = listed(tmp_path, zipped(CONTENT))
    listed(tmp_path, zipped({"other": b"content" * 1000}))
    with pytest.raises(Fault, match="changed"):
        archives.read(path, listing.members[1].place, LIMITS)


# Bombs


def bomb_of(tmp_path, data, limits=SMALL):
    with pytest.raises(Fault) as fault:
        listed(tmp_path, data, limits)
    assert fault.value.code == "archive-bomb"


def test_too_many_members(tmp_path):
    limits = dataclasses.replace(LIMITS, members=5)
    for sort in SORTS.values():
        bomb_of(tmp_path, sort({str(n): b"1" for n in range(6)}), limits)
        assert len(listed(tmp_path, sort({str(n): b"1" for n in range(5)}), limits)[1].members) == 5


def test_too_much_in_all(tmp_path):
    limits = dataclasses.replace(LIMITS, total_bytes=100_000)
    for sort in SORTS.values():
        bomb_of(tmp_path, sort({str(n): bytes(20_000) for n in range(6)}), limits)


@pytest.mark.parametrize("sort", ["zip, deflated", "tar.gz"])
def test_out_of_all_proportion(tmp_path, sort):
    bomb_of(tmp_path, SORTS[sort]({str(n): bytes(2 * MB) for n in range(4)}))
    assert len(listed(tmp_path, SORTS[sort]({str(n): bytes(MB) for n in range(4)}), SMALL)[1].members) == 4


def test_one_member_out_of_proportion_costs_only_itself(tmp_path):
    data = zipped({"bomb": bytes(5 * MB), "good": random.Random(0).randbytes(100_000)})
    path, listing = listed(tmp_path, data, SMALL)
    assert refusals(listing) == {"bomb": "archive-bomb"}
    assert list(contents(path, listing)) == ["good"]


def test_a_member_above_the_limit(tmp_path):
    limits = dataclasses.replace(LIMITS, member_bytes=1000)
    for sort in SORTS.values():
        assert refusals(listed(tmp_path, sort({"a": bytes(1001), "b": bytes(1000)}), limits)[1]) == {"a": "too-large"}


def test_a_bomb_in_an_archive(tmp_path):
    bomb_of(tmp_path, zipped({str(n): zipped({"a": bytes(3 * MB)}) for n in range(3)}))


def test_a_gzipped_bomb(tmp_path):
    bomb_of(tmp_path, standard.compress(bytes(8 * MB)))


def overlapping(shared):
    """A zip whose members all use the same compressed bytes, as in Fifield's "A better zip bomb" (WOOT 2019).

    With `shared`, all directory entries point to one local header; else each has its own, and its data run over the
    headers of those that follow.
    """
    kernel = zlib.compressobj(9, wbits=-15)
    packed = kernel.compress(bytes(100_000)) + kernel.flush()
    names_, offsets, body = [f"{n:04}" for n in range(50)], [], b""
    for name in names_:
        offsets.append(0 if shared else len(body))
        if not shared or not body:
            local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), 100_000, len(name), 0)
            body += local + name.encode()
    body += packed
    directory = b""
    for name, offset in zip(names_, offsets, strict=True):
        packed_bytes = len(packed) if shared else len(body) - offset - 30 - len(name)
        entry = (20, 20, 0, 8, 0, 0, 0, packed_bytes, 100_000, len(name), 0, 0, 0, 0, 0, offset)
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", *entry) + name.encode()
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(names_), len(names_), len(directory), len(body), 0)
    return body + directory + end


@pytest.mark.parametrize("shared", [True, False], ids=["one header", "many headers"])
def test_overlapping_members(tmp_path, shared):
    data = overlapping(shared)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.infolist()) == 50, "the directory itself is in order"
    bomb_of(tmp_path, data, LIMITS)


def test_a_directory_that_points_nowhere(tmp_path):
    data = bytearray(zipped({"a": b"12345", "b": b"67890"}))
    second = data.index(b"PK\3\4", 4)
    data[second : second + 4] = b"XXXX"
    path, listing = listed(tmp_path, bytes(data))
    assert refusals(listing) == {"b": "archive-unreadable"}
    assert contents(path, listing) == {"a": b"12345"}


def test_members_that_reach_into_the_directory(tmp_path):
    data = bytearray(zipped({"a": b"12345"}))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 20, 5000)
    with pytest.raises(Fault, match="beyond its end") as fault:
        listed(tmp_path, bytes(data))
    assert fault.value.code == "archive-unreadable"


def test_few_archives_stay_open(tmp_path):
    for number in range(10):
        path, listing = listed(tmp_path, tarred({"a": b"1" * (number + 1)}), name=f"{number}.tar")
        assert archives.read(path, listing.members[0].place, LIMITS) == b"1" * (number + 1)
    assert len(archives._kept) <= archives._KEPT


@pytest.mark.parametrize(("claimed", "code"), [(10, "archive-bomb"), (200_000, "damaged")])
def test_a_lying_size_in_a_zip(tmp_path, claimed, code):
    data = bytearray(zipped({"a": random.Random(0).randbytes(100_000)}))
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + at, claimed)
    path, listing = listed(tmp_path, bytes(data))
    with pytest.raises(Fault) as fault:
        archives.read(path, listing.members[0].place, LIMITS)
    assert fault.value.code == code


def tar_header(name, size, sort=b"0"):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, sort
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def resealed(header):
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_tar_header_that_claims_gigabytes_for_a_name(tmp_path):
    for sort in (b"L", b"x", b"g"):
        bomb_of(tmp_path, bytes(tar_header("long", 8 << 30, sort)) + bytes(2048))


def test_a_negative_size_does_not_go_in_circles(tmp_path):
    header = tar_header("a", 0)
    header[124:136] = b"\xff" * 10 + (2**16 - 1024).to_bytes(2, "big")  # base 256, -1024
    for sort in (b"0", b"L", b"x"):
        header[156:157] = sort
        with pytest.raises(Fault) as fault:
            listed(tmp_path, resealed(header) + bytes(4096))
        assert fault.value.code in ("archive-unreadable", "archive-bomb")


def test_an_endless_tar_gz(tmp_path):
    """A stream of members without an end: found out by proportion, not by waiting for it."""
    block = bytes(tar_header("a", 0)) * 40_000  # 20 MB of empty members, a few KB when compressed
    bomb_of(tmp_path, standard.compress(block))
    bomb_of(tmp_path, standard.compress(bytes(tar_header("a", 1 << 39)) + bytes(30 * MB)))


@settings(max_examples=300, deadline=None)
@given(
    sort=st.sampled_from(list(SORTS)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_mutated_archives_end_in_members_or_a_fault(tmp_path_factory, sort, changes, cut):
    data = bytearray(MUTABLE[sort])
    for where, value in changes:
        data[int(where * len(data))] = value
    data = data[: int(cut * len(data))]
    if archives.kind(bytes(data[:4096])) == "":
        return
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(data)
    os.utime(path, ns=(0, random.getrandbits(40)))  # so that it is not taken for the one before
    with contextlib.suppress(Fault):
        for member in archives.listing(str(path), SMALL).members:
            if isinstance(member, Entry):
                with contextlib.suppress(Fault):
                    assert len(archives.read(str(path), member.place, SMALL)) == member.size_bytes


MUTABLE = {
    name: sort({"a": b"12345" * 50, "b/c": bytes(700), "d": zipped({"e": b"f"})}) for name, sort in SORTS.items()
}
