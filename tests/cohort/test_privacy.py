"""Nothing that names a person, a date or a place is in any byte of a cohort, finished or appended to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pytest

from headct.cohort import Cohort
from headct.cohort.ingest import ingest

PLANTED = {
    "PatientName": "Zyxwvut^Quirina",
    "PatientID": "MRN9081726354",
    "PatientBirthDate": "19430217",
    "StudyDate": "20190823",
    "SeriesDate": "20190824",
    "AcquisitionDate": "20190825",
    "AccessionNumber": "ACC5544332211",
    "StudyDescription": "HEAD OF ZYXWVUT QUIRINA",
    "SeriesDescription": "HEAD zyxwvut 9081726354",
    "ProtocolName": "Head zyxwvut",
    "InstitutionName": "Klinik Abrakadabra",
    "ReferringPhysicianName": "Doktor^Hokuspokus",
    "StationName": "STSIMSALABIM",
    "PatientAddress": "Musterweg 17",
    "ImageComments": "comment abrakadabra",
    "DeviceSerialNumber": "SN771199",
    "StudyID": "SID662288",
}
SECRETS = ("zyxwvut", "quirina", "9081726354", "19430217", "20190823", "20190824", "20190825", "5544332211",
           "abrakadabra", "hokuspokus", "simsalabim", "musterweg", "771199", "662288")  # fmt: skip


def plant(path: Path) -> None:
    image = pydicom.dcmread(path)
    for keyword, value in PLANTED.items():
        setattr(image, keyword, value)
    image.private_block(0x0009, "ABRAKADABRA", create=True).add_new(1, "LO", "zyxwvut private")
    image.save_as(path)


@pytest.fixture(scope="module")
def source(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A readable series, one with contrast, a truncated file and a capture, all with planted tags."""
    folder = tmp_path_factory.mktemp("planted") / "in"
    shutil.copytree(demo / "patient-01", folder / "one")
    shutil.copytree(demo / "captures", folder / "captures")
    broken = next(folder.rglob("*-copy.dcm"))
    broken.unlink()
    for path in folder.rglob("*.dcm"):
        plant(path)
    whole = broken.with_name("0003.dcm").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    return folder


def every_text(folder: Path) -> str:
    """All bytes of all files as they lie there, and all cells of all tables, which are compressed on disk."""
    texts = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    texts += [str(pq.read_table(path).to_pylist()) for path in folder.rglob("*.parquet")]
    return "\n".join(texts).lower()


def test_no_planted_word_comes_through(source: Path, key: Path, tmp_path: Path) -> None:
    ingest([source], tmp_path / "cohort", workers=1, key=key)
    cohort = Cohort(tmp_path / "cohort")
    assert len(cohort) == 1
    assert len(cohort.rejections) > 2
    text = every_text(cohort.path)
    assert [secret for secret in SECRETS if secret in text] == []
    uids = {pydicom.dcmread(path).SeriesInstanceUID for path in source.rglob("0001.dcm")}
    assert [uid for uid in uids if uid in text] == []


def test_kept_ids_are_kept_and_nothing_more(source: Path, key: Path, tmp_path: Path) -> None:
    ingest([source], tmp_path / "cohort", workers=1, key=key, keep_ids=True)
    cohort = Cohort(tmp_path / "cohort")
    assert cohort.scans["patient_id"].tolist() == [PLANTED["PatientID"]]
    text = every_text(cohort.path)
    assert [secret for secret in SECRETS if secret in text] == ["9081726354"]


def test_hashed_paths_hide_names_of_files_everywhere(source: Path, key: Path, tmp_path: Path) -> None:
    named = tmp_path / "Zyxwvut Quirina"
    shutil.copytree(source, named / "hokuspokus")
    shutil.copy(named / "hokuspokus" / "one" / "head" / "0001.dcm", named / "twin of quirina.dcm")
    (named / "musterweg.zip").write_bytes(b"PK\x03\x04 no archive")
    (named / "simsalabim").symlink_to(named / "nowhere")
    ingest([named], tmp_path / "cohort", workers=1, key=key, hash_paths=True)
    cohort = Cohort(tmp_path / "cohort")
    assert len(cohort.files) == sum(1 for path in named.rglob("*") if not path.is_dir())
    assert cohort.files["path"].str.fullmatch("[0-9a-f]{16}").all()
    assert cohort.files["path"].is_unique
    text = every_text(cohort.path)
    assert [secret for secret in SECRETS if secret in text] == []
    before = cohort.files["path"].tolist()
    shutil.copy(named / "musterweg.zip", named / "another.zip")
    summary = ingest([named], tmp_path / "cohort", workers=1, key=key, hash_paths=True)
    assert summary.added_files == 1
    assert Cohort(tmp_path / "cohort").files["path"].tolist()[:-1] == before


def test_an_unfinished_cohort_is_closed_to_others(source: Path, key: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        if what == "series":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([source], tmp_path / "cohort", workers=1, key=key, progress=interrupt)
    unfinished = tmp_path / "cohort" / ".ingest" / "unfinished"
    assert any(unfinished.rglob("*"))
    assert unfinished.stat().st_mode & 0o077 == 0
    rest = [p for p in (tmp_path / "cohort").rglob("*") if p.is_file() and unfinished not in p.parents]
    assert [path.name for path in rest] == ["lock"]
