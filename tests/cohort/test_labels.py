"""Tables of labels as users have them: what is matched, what is understood, what is refused and with which words.

Oracle: the truth that the tables were written from, and rules that are worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from detection import made

from headct.cohort import Cohort
from headct.cohort.labels import Labels, _Known, joined_patients, read_labels
from headct.detection.splits import split
from headct.failure import Misuse
from headct.reading.pseudonyms import Pseudonyms


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Four patients, two scans each."""
    return made.make(tmp_path_factory.mktemp("labels") / "cohort", 4, scans_each=2)


def read(content: str, cohort: Cohort, folder: Path, **options: object) -> Labels:
    path = folder / "labels.csv"
    path.write_text(content)
    return read_labels(path, [cohort], **options)  # type: ignore[arg-type]


IDS = {
    "scan_id": ["0000000000000000", "0000000000000001", "0000000000000003"],
    "series_id": ["se000-0", "se000-1", "se001-1"],
    "path": ["data/p000/scan-0.nii.gz", "p000/scan-1.nii.gz", "/mnt/old/data/p001/scan-1.nii.gz"],
}


@pytest.mark.parametrize("kind", list(IDS))
@pytest.mark.parametrize("column", ["who", "accession"])
def test_the_column_that_names_scans_is_found_whatever_it_is_called(
    kind: str, column: str, cohort: Cohort, tmp_path: Path
) -> None:
    lines = [f"{value},{label}" for value, label in zip(IDS[kind], ("1", "0", ""), strict=True)]
    labels = read("\n".join([f"{column},ich", *lines, "strange,1"]), cohort, tmp_path)
    assert labels.values["ich"].to_dict() == {IDS["scan_id"][0]: 1.0, IDS["scan_id"][1]: 0.0}
    assert labels.patients.tolist() == ["p000", "p000"]
    account = labels.account
    assert (account.column, account.matched_as, account.matched_rows, account.rows) == (column, kind, 3, 4)
    assert len(account.unmatched) == 1
    assert "row 5 (strange)" in account.unmatched[0]
    assert account.counts == {"ich": (1, 1, 6)}
    assert "1 row without a match: row 5 (strange)" in " ".join(account.sentences())


@pytest.mark.parametrize(("kind", "names"), [("patient_id", ("p001", "p002")), ("study_id", ("st001", "st002"))])
def test_the_label_of_a_patient_or_a_study_goes_to_its_scans_and_that_is_said(
    kind: str, names: tuple[str, str], cohort: Cohort, tmp_path: Path
) -> None:
    labels = read(f"id,ich\n{names[0]},1\n{names[1]},0\n", cohort, tmp_path)
    assert labels.values["ich"].tolist() == [1, 1, 0, 0]
    assert labels.account.matched_as == kind
    assert labels.account.spread_rows == 2
    assert "gave the label of a" in " ".join(labels.account.sentences())


def test_a_folder_names_its_scans_and_a_name_of_several_files_none(cohort: Cohort, tmp_path: Path) -> None:
    labels = read("path,ich\ndata/p003,1\nscan-0.nii.gz,0\n", cohort, tmp_path)
    assert labels.values.index.tolist() == ["0000000000000006", "0000000000000007"]
    assert "4 files or folders end so" in labels.account.unmatched[0]


def known_by(paths: Sequence[str]) -> _Known:
    """What a cohort with a scan in each of these files knows."""
    ids = [f"s{number}" for number in range(len(paths))]
    scans = pd.DataFrame({"scan_id": ids, "series_id": "", "study_id": "", "patient_id": ids, "preferred": True})
    files = pd.DataFrame({"path": list(paths), "outcome": ids})
    return _Known([cast(Cohort, SimpleNamespace(about={}, scans=scans, files=files, path=Path("c")))], None)


def test_files_and_folders_are_found_as_by_comparing_all() -> None:
    """The oracle looks at every file and folder of every path."""
    rng = np.random.default_rng(0)
    drawn = ["/".join(rng.choice(list("abc"), rng.integers(1, 6))) for _ in range(600)]
    known = known_by(drawn[:60])
    nodes = {tuple(path.split("/")[:length]) for path in drawn[:60] for length in range(1, 6)}
    several = 0
    for path in drawn[60:]:
        parts = tuple(path.split("/"))
        shared = {node: min(len(node), len(parts)) for node in nodes}
        matching = {node: length for node, length in shared.items() if node[-length:] == parts[-length:]}
        wanted = {node for node, length in matching.items() if length == max(matching.values())}
        assert set(known._nodes_of(parts)) == wanted, path
        several += len(wanted) > 1
    assert 50 < several < 500


class Counted(str):
    """A text that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_name_that_all_files_share_costs_no_more_than_others() -> None:
    """As in `sub1/ct.nii.gz`, `sub2/ct.nii.gz`: 2,000 rows must not be compared with 2,000 files each."""
    known = known_by([f"sub{number}/ct.nii.gz" for number in range(2000)])
    Counted.compared = 0
    for number in range(0, 2000, 100):
        parts = PurePosixPath(f"data/sub{number}/ct.nii.gz").parts
        assert known._nodes_of(tuple(map(Counted, parts))) == [(f"sub{number}", "ct.nii.gz")]
    assert Counted.compared < 20 * 20


def test_of_each_study_the_preferred_series_alone(cohort: Cohort, tmp_path: Path) -> None:
    """Of the two series of each study the first is preferred."""
    content = "study_id,ich\nst000,1\nst001,0\nst002,\n"
    everything, alone = read(content, cohort, tmp_path), read(content, cohort, tmp_path, preferred=True)
    assert everything.values["ich"].tolist() == [1, 1, 0, 0]
    assert alone.values["ich"].to_dict() == {"0000000000000000": 1.0, "0000000000000002": 0.0}
    assert alone.patients.tolist() == ["p000", "p001"]
    assert (alone.account.labelled, alone.account.alternates) == (2, 2)
    said = "of each study its preferred series alone; left out: 2 labelled scans"
    assert said in alone.account.sentences()
    assert said not in everything.account.sentences()
    measured = read("study_id,ich,ich_ml\nst000,1,2.5\n", cohort, tmp_path, preferred=True)
    assert measured.account.spread_rows == 0
    assert measured.measured["ich_ml"].tolist() == ["2.5"]
    with pytest.raises(Misuse, match="labels no series that is the preferred one"):
        read("series_id,ich\nse000-1,1\n", cohort, tmp_path, preferred=True)


def test_of_several_cohorts_the_first_says_which_series_of_a_study_is_preferred() -> None:
    """Both hold a and b, and prefer different ones; c is a further series of the study, d of a study of its own."""

    def holding(scan_ids: str, preferred: str) -> Cohort:
        rows = [(one, one, "other" if one == "d" else "study", "p", one in preferred) for one in scan_ids]
        scans = pd.DataFrame(rows, columns=["scan_id", "series_id", "study_id", "patient_id", "preferred"])
        return cast(Cohort, SimpleNamespace(scans=scans, about={}, path=Path()))

    both = [holding("ab", "b"), holding("abcd", "acd")]
    assert _Known(both, None).preferred_of == {"study": "b", "other": "d"}


def test_scans_that_the_table_gives_to_one_patient_are_of_one(cohort: Cohort, tmp_path: Path) -> None:
    """Of patients with two scans each the table says that p001 and p002 are one, y, by a scan of either."""
    content = (
        "scan_id,patient_id,ich\n0000000000000000,x,1\n0000000000000002,y,0\n0000000000000003,,1\n"
        "0000000000000004,z,0\n0000000000000005,y,1\n0000000000000006,unknown,0\n"
    )
    labels = read(content, cohort, tmp_path)
    assert labels.patients.tolist() == ["p000", "p001", "p001", "p001", "p001", "p003"]
    assert labels.account.patients == (4, 3)
    told = "4 patients of the cohort are 3 by column 'patient_id': their scans stay together"
    assert told in labels.account.sentences()
    alone = read("patient_id,patient,ich\np000,z,1\np001,z,0\n", cohort, tmp_path)
    assert alone.patients.tolist() == ["p000"] * 4
    apart = read("scan_id,ich\n0000000000000000,1\n0000000000000002,0\n", cohort, tmp_path)
    assert apart.patients.tolist() == ["p000", "p001"]
    assert not any("stay together" in sentence for sentence in apart.account.sentences())


def test_files_that_name_nobody_are_never_split_between_training_and_validation(tmp_path: Path) -> None:
    """Twelve files are twelve patients to a cohort; six are told, and the split must keep theirs together."""
    files = made.make(tmp_path / "files", 12)
    rows = [f"data/p{one:03d}/scan-0.nii.gz,sub-{one // 2},{one // 2 % 2}" for one in range(12)]
    labels = read("\n".join(["file,patient_id,ich", *rows]), files, tmp_path)
    assert labels.account.matched_as == "path"
    assert labels.patients.tolist() == [f"p{2 * (one // 2):03d}" for one in range(12)]
    shares = {"train": 0.5, "validation": 0.5}
    parts = split(labels.values.to_numpy(), labels.patients.tolist(), shares, seed=0)
    assert (parts[::2] == parts[1::2]).all()


def test_the_files_of_a_folder_that_the_table_calls_a_patient_are_of_one(tmp_path: Path) -> None:
    """A column of patients that names folders: the cohort takes each of their files for a patient."""
    files = made.make(tmp_path / "files", 12)
    labels = read("patient,ich\ndata,1\n", files, tmp_path)
    assert (labels.account.column, labels.account.matched_as) == ("patient", "path")
    assert labels.patients.tolist() == ["p000"] * 12


def test_what_the_table_calls_a_patient_is_kept_as_the_cohort_keeps_ids(cohort: Cohort, tmp_path: Path) -> None:
    table = "scan_id,patient_id,ich\n0000000000000000,MRN7,1\n0000000000000001,n/a,0\n"
    assert read(table, cohort, tmp_path).told.tolist() == ["MRN7", ""]
    key = bytes(32)
    hidden = made.make(tmp_path / "hidden", 4, key=key)
    assert read(table, hidden, tmp_path, key=key).told.tolist() == [Pseudonyms(key).of("patient", "MRN7"), ""]
    without = read(table, hidden, tmp_path)
    assert without.told.tolist() == ["", ""]
    assert any("'patient_id' calls patients is not kept" in sentence for sentence in without.account.sentences())


def test_a_name_is_one_patient_whoever_says_it() -> None:
    assert joined_patients(["a", "b", "c"], ["1", "", "1"]) == ["a", "b", "a"]
    assert joined_patients(["c", "b", "a"], ["b", "", ""]) == ["b", "b", "a"]
    assert joined_patients([], []) == []


def test_measurements_belong_to_rows_of_one_scan(cohort: Cohort, tmp_path: Path) -> None:
    alone = read("series_id,ich,ich_ml,ich_side\nse000-0,1,7.5,left\nse001-0,0,0,\n", cohort, tmp_path)
    assert alone.account.matched_as == "series_id"
    assert alone.measured.to_dict("list") == {"ich_ml": ["7.5", "0"], "ich_side": ["left", ""]}
    spread = read("patient_id,ich,ich_ml\np000,1,7.5\np001,0,0\n", cohort, tmp_path)
    assert spread.measured["ich_ml"].isna().all()
    told = "2 rows gave the label of a patient to several scans of it, its measurements to none"
    assert told in spread.account.sentences()


@pytest.mark.parametrize("column", ["age", "Site", "sex", "split", "volume_ml"])
def test_what_describes_a_scan_does_not_name_it(column: str, cohort: Cohort, tmp_path: Path) -> None:
    """As an age of 40 and a patient 40, where the column of ids is misspelt."""
    with pytest.raises(
        Misuse, match="matches no scan of the cohort\n  why: it has wrong; the cohort"
    ):  # no cells of it
        read(f"wrong,{column},ich\nq0,p000,1\nq1,p001,0\n", cohort, tmp_path)
    with pytest.raises(Misuse, match="it has no column of ids; the cohort"):
        read(f"{column},ich\np000,1\n", cohort, tmp_path)


def test_a_column_called_like_an_identifier_goes_before_one_that_matches_more(cohort: Cohort, tmp_path: Path) -> None:
    """As when the scans were shared out anew and only some ids of the table are still good."""
    labels = read("patient_id,note,ich\np000,p000,1\nx,p001,0\ny,p002,0\n", cohort, tmp_path)
    assert labels.account.column == "patient_id"
    assert labels.account.matched_rows == 1


@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        *(("1", 1), ("Yes", 1), ("TRUE", 1), ("positive", 1), ("present", 1), ("1.0", 1)),
        *(("0", 0), ("no", 0), ("False", 0), ("negative", 0), ("absent", 0), ("0.0", 0)),
        *(("", None), ("NaN", None), ("unknown", None), ("N/A", None), ("?", None)),
    ],
)
def test_the_usual_spellings(spelling: str, value: int | None, cohort: Cohort, tmp_path: Path) -> None:
    labels = read(f"patient_id,ich\np000,{spelling}\np001,1\n", cohort, tmp_path).values["ich"]
    found = labels.get("0000000000000000", np.nan)
    assert np.isnan(found) if value is None else found == value


def test_minus_one_is_refused_with_the_remedy(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"no label in ich: row 3 '-1'\n  why: -1 means .*\n  do:  write nothing"):
        read("patient_id,ich\np000,1\np001,-1\n", cohort, tmp_path)


def test_a_measurement_is_no_finding_and_is_said_to_be_left_out(cohort: Cohort, tmp_path: Path) -> None:
    labels = read("patient_id,ich,ml\np000,1,12.5\np001,0,0\n", cohort, tmp_path)
    assert labels.findings == ("ich",)
    assert labels.account.left_out == {"ml": "row 2 holds '12.5'"}
    whole = read("patient_id,ich,shift_mm\np000,1,1\np001,0,0\n", cohort, tmp_path)
    assert whole.account.left_out == {"shift_mm": "a measurement by its name"}
    assert "no finding (a measurement by its name): shift_mm" in whole.account.sentences()
    with pytest.raises(Misuse, match=r"no label in ml: row 2 '12\.5'"):
        read("patient_id,ich,ml\np000,1,12.5\np001,0,0\n", cohort, tmp_path, findings=["ml"])


READERS = "patient_id,ich_r1,ich_r2,ich_r3,R1:sdh,R2:sdh\np000,1,1,0,1,0\np001,0,,0,0,0\np002,1,0,,,1\np003,0,1,0,,\n"


@pytest.mark.parametrize(
    ("rule", "ich", "sdh"),
    [("majority", [1, 0, None, 0], [None, 0, 1, None]), ("any", [1, 0, 1, 1], [1, 0, 1, None])],
)
def test_several_readers_become_one_label_by_a_rule_that_is_said(
    rule: str, ich: list[int | None], sdh: list[int | None], cohort: Cohort, tmp_path: Path
) -> None:
    labels = read(READERS, cohort, tmp_path, readers=rule)
    for finding, wanted in (("ich", ich), ("sdh", sdh)):
        found = labels.values[finding].reindex([f"{2 * patient:016x}" for patient in range(4)])
        np.testing.assert_array_equal(found, np.array(wanted, dtype=float))
    assert labels.account.readers == {"ich": ("ich_r1", "ich_r2", "ich_r3"), "sdh": ("R1:sdh", "R2:sdh")}
    assert f"ich is the {rule} rule over ich_r1, ich_r2, ich_r3" in labels.account.sentences()


def test_what_readers_agreed_on_is_no_further_reader(cohort: Cohort, tmp_path: Path) -> None:
    """They settled for no, though two of three saw it: with four votes it would be even, and unknown."""
    table = "patient_id,ich,ich_r1,ich_r2,ich_r3\np000,0,1,1,0\np001,1,1,1,1\n"
    labels = read(table, cohort, tmp_path)
    assert labels.values["ich"].tolist() == [0, 0, 1, 1]
    assert labels.account.readers == {}
    assert "no finding (a reader's, and there is ich itself): ich_r1, ich_r2, ich_r3" in labels.account.sentences()
    one = read(table, cohort, tmp_path, findings=["ich_r1"])
    assert one.values["ich_r1"].tolist() == [1, 1, 1, 1]


def test_rows_about_the_same_scan_are_errors_that_name_them(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"contradict each other: rows 2, 4 \(scan 0000000000000000\) on ich"):
        read("patient_id,ich\np000,1\np001,0\np000,0\n", cohort, tmp_path)
    with pytest.raises(Misuse, match=r"are about the same scan: rows 2, 4 "):
        read("patient_id,ich\np000,1\np001,0\np000,1\n", cohort, tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "patient_id,ich\nq1,1\nq2,0\n",
            "labels.csv matches no scan of the cohort\n  why: it has patient_id 'q1'; the cohort has "
            "scan_id '0000000000000000', series_id 'se000-0', study_id 'st000', patient_id 'p000'\n",
        ),
        ("patient_id,ich\np000,\np001,unknown\n", "has no finding, beside 'patient_id'\n  why: ich: every value"),
        ("patient_id,age\np000,60\n", "has no finding, beside 'patient_id'"),
        ("patient_id,ich\n", "has no rows"),
        ("patient_id,ich,ich\np000,1,1\n", "two columns called 'ich'"),
    ],
)
def test_what_cannot_be_used_is_said(content: str, says: str, cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=says):
        read(content, cohort, tmp_path)


def test_the_scans_of_a_cohort_are_no_labels_though_preferred_is_yes_or_no(cohort: Cohort) -> None:
    with pytest.raises(Misuse, match=r"scans\.parquet is the table of a cohort's scans, and holds no labels"):
        read_labels(cohort.path / "scans.parquet", [cohort])


def test_wanted_findings_must_be_there_and_known(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"no finding 'ichh'\n  do:  did you mean ich\?"):
        read("patient_id,ich\np000,1\n", cohort, tmp_path, findings=["ichh"])
    with pytest.raises(Misuse, match=r"no finding 'ICH'\n  do:  did you mean ich\?"):
        read("patient_id,ich_r1,ich_r2\np000,1,1\n", cohort, tmp_path, findings=["ICH"])
    with pytest.raises(Misuse, match="all values of ich are unknown"):
        read("patient_id,ich\np000,\n", cohort, tmp_path, findings=["ich"])


def test_every_kind_of_file_gives_the_same(cohort: Cohort, tmp_path: Path) -> None:
    table = made.truth(cohort)
    table.loc[0, "ich"] = np.nan  # which makes floats of the column
    table.to_csv(tmp_path / "comma.csv", index=False)
    table.to_csv(tmp_path / "semicolon.csv", index=False, sep=";")
    table.to_csv(tmp_path / "tab.tsv", index=False, sep="\t", encoding="utf-8-sig")
    table.to_parquet(tmp_path / "table.parquet")
    table.to_csv(tmp_path / "unicode-text.txt", index=False, sep="\t", encoding="utf-16")  # as Excel calls it
    read = [read_labels(path, [cohort]) for path in sorted(tmp_path.iterdir())]
    assert len(read) == 5
    for one in read[1:]:
        pd.testing.assert_frame_equal(one.values, read[0].values)
    assert read[0].account.counts["ich"] == (4, 3, 1)


def test_a_sheet_gives_the_labels_of_the_same_table_as_text(cohort: Cohort, tmp_path: Path) -> None:
    """Cells of a workbook have types: numbers, truth values, nothing."""
    table = pd.DataFrame(
        {"patient_id": ["p000", "p001", "p002", "p003"], "ich": [1, 0, None, 1], "sah": [True, False] * 2}
    )
    with pd.ExcelWriter(tmp_path / "labels.xlsx") as book:
        table.to_excel(book, sheet_name="labels", index=False)
        pd.DataFrame().to_excel(book, sheet_name="empty", index=False)
        table.head(1).to_excel(book, sheet_name="choices", index=False)
        book.sheets["choices"].sheet_state = "hidden"
    table.to_csv(tmp_path / "labels.csv", index=False)
    of_book, of_text = (read_labels(tmp_path / name, [cohort]) for name in ("labels.xlsx", "labels.csv"))
    pd.testing.assert_frame_equal(of_book.values, of_text.values)
    assert of_book.account.counts == of_text.account.counts
    assert set(of_book.account.counts) == {"ich", "sah"}


def test_a_workbook_of_which_no_sheet_can_be_told_to_be_meant_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    sheet = pd.DataFrame({"patient_id": ["p000"], "ich": [1]})
    with pd.ExcelWriter(tmp_path / "labels.xlsx") as book:
        for name in ("2019", "2020"):
            sheet.to_excel(book, sheet_name=name, index=False)
    with pytest.raises(Misuse, match="has 2 sheets: 2019, 2020"):
        read_labels(tmp_path / "labels.xlsx", [cohort])
    pd.DataFrame({"patient_id": ["p000", "p001"], "ich": [1, "#N/A"]}).to_excel(tmp_path / "failed.xlsx", index=False)
    with pytest.raises(Misuse, match="row 3: a cell shows an error"):
        read_labels(tmp_path / "failed.xlsx", [cohort])
    pd.DataFrame().to_excel(tmp_path / "empty.xlsx", index=False)
    with pytest.raises(Misuse, match="has no rows"):
        read_labels(tmp_path / "empty.xlsx", [cohort])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.xls", b"\xd0\xcf\x11\xe0", "before 2007"),
        ("labels.xlsx", b"a sheet", "is no table"),
        ("labels.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 behind a password", "is no table"),
        ("labels.xlsx", b"PK\x03\x04 cut off", "is no table"),
    ],
)
def test_a_workbook_that_cannot_be_read_is_said(
    cohort: Cohort, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Misuse, match=said):
        read_labels(tmp_path / name, [cohort])


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"\xff\xfe\x00"])
def test_what_is_no_table_is_said(content: bytes, cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    path.write_bytes(content)
    with pytest.raises(Misuse, match="is no table"):
        read_labels(path, [cohort])
    with pytest.raises(Misuse, match="there is no table"):
        read_labels(tmp_path / "none.csv", [cohort])


def test_original_identifiers_match_pseudonyms_by_their_key(cohort: Cohort, tmp_path: Path) -> None:
    """What a row labels must not depend on whether identifiers were kept."""
    key = bytes(range(32))
    hidden = made.make(tmp_path / "hidden", 4, scans_each=2, key=key)
    path = tmp_path / "labels.csv"
    path.write_text("id,ich\nst000,1\nst001,0\nst003,1\n")
    plain, secret = read_labels(path, [cohort]), read_labels(path, [hidden], key=key)
    pd.testing.assert_frame_equal(secret.values, plain.values)
    assert (secret.account.pseudonymised, plain.account.pseudonymised) == (True, False)
    assert "turned into pseudonyms by the key" in secret.account.sentences()[0]
    for other in (None, bytes(32)):
        with pytest.raises(Misuse, match=r"it has id 'st000'; .*\n.*its ids are pseudonyms: name the key .*--key FILE"):
            read_labels(path, [hidden], key=other)


def test_cohorts_of_different_keys_are_pooled_with_a_warning(cohort: Cohort, tmp_path: Path) -> None:
    hidden = made.make(tmp_path / "hidden", 2, seed=1, key=bytes(range(32)))
    scans = [*cohort.scans["scan_id"], *hidden.scans["scan_id"]]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["scan_id,ich", *(f"{scan},{number % 2}" for number, scan in enumerate(scans))]))
    both = read_labels(path, [cohort, hidden]).account
    assert both.labelled == len(scans)
    print_of = hidden.about["pseudonyms"]
    assert any(f"different keys ({print_of}, none)" in sentence for sentence in both.sentences())
    assert not any("different keys" in sentence for sentence in read_labels(path, [hidden]).account.sentences())


def test_virtual_patients_are_nobodys_whatever_the_others_are_called_by(tmp_path: Path) -> None:
    hidden = made.make(tmp_path / "hidden", 2, seed=1, key=bytes(range(32)))
    virtual = made.make(tmp_path / "virtual", 2, seed=2, virtual=True)
    scans = [*hidden.scans["scan_id"], *virtual.scans["scan_id"]]
    path = tmp_path / "labels.csv"
    lines = (f"{scan},q{number},{number % 2}" for number, scan in enumerate(scans))
    path.write_text("\n".join(["scan_id,patient_id,ich", *lines]))
    both = read_labels(path, [hidden, virtual]).account
    assert both.pseudonyms == (hidden.about["pseudonyms"],)
    assert not any("different keys" in sentence for sentence in both.sentences())
    assert any("the cohorts hide ids" in sentence for sentence in both.sentences())
    assert not any("the cohorts hide ids" in one for one in read_labels(path, [virtual]).account.sentences())


def test_what_a_table_says_besides_is_kept_where_it_is_asked_for(cohort: Cohort, tmp_path: Path) -> None:
    rows = "study_id,ich,Age,site,ward,hours\nst000,1,63,a,east,5\nst001,0,,b,west,6\n"
    about = read(rows, cohort, tmp_path, beside=["ward", "other"]).about
    assert list(about) == ["age", "site", "ward"]
    assert about.loc["0000000000000001"].tolist() == ["63", "a", "east"]  # of both scans of the study
    assert about["age"].tolist() == ["63", "63", "", ""]
