"""`headct doctor` tries things; these tests break them one at a time and look at what it says."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from headct.cli import app, doctor
from headct.cli.samples import SAMPLES


def findings(capsys, code: int = 0) -> dict[str, dict]:
    assert app.run(["doctor", "--json"]) == code
    return {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_everything_that_a_job_needs_works_here(capsys):
    found = findings(capsys)
    assert [what for what, finding in found.items() if finding["needed"] and not finding["works"]] == []
    assert {"Python", "cores", "memory", "disk here", "torch", "GPU", "--cluster", "pseudonyms"} <= set(found)


def test_what_does_not_work_says_what_to_do(capsys):
    for finding in findings(capsys).values():
        assert finding["works"] or finding["do"]


def test_a_broken_library_is_found_and_ends_with_one(monkeypatch, capsys):
    real = importlib.import_module

    def broken(name: str, package: str | None = None):
        if name == "blosc2":
            raise ImportError("libblosc2.so: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    finding = findings(capsys, code=1)["blosc2"]
    assert not finding["works"]
    assert "cannot open shared object" in finding["found"]
    assert finding["do"] == "pip install --force-reinstall blosc2"


def test_a_missing_extra_is_no_error_and_names_its_install_line(monkeypatch, capsys):
    real = importlib.import_module

    def missing(name: str, package: str | None = None):
        if name == "distributed":
            raise ModuleNotFoundError("No module named 'distributed'", name="distributed")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    finding = findings(capsys)["--cluster"]
    assert not finding["works"]
    assert finding["do"] == "pip install 'dask[distributed]'"


TWELVE_BIT_LOSSY = "1.2.840.10008.1.2.4.51"  # pydicom gives it to no decoder that is permissively licensed


@pytest.mark.parametrize("syntax", [syntax for syntax in SAMPLES if syntax != TWELVE_BIT_LOSSY])
def test_every_sample_is_decoded_here(syntax):
    assert doctor.decodes(syntax)


def test_a_decoder_that_gives_wrong_values_does_not_count(monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    syntax = "1.2.840.10008.1.2.4.80"
    assert doctor.decodes(syntax)
    monkeypatch.setattr(Decoder, "as_array", lambda self, buffer, **options: (np.zeros((16, 16), np.uint16), {}))
    assert doctor.decodes(syntax) == ""


def test_memory_and_cores_are_those_of_this_process(monkeypatch):
    total, free = doctor.memory_bytes()
    assert 0 < free <= total
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)
    assert doctor.usable_cores() == 1


def test_little_memory_is_turned_into_workers(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (8_000_000_000, 5_000_000_000))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 16)
    assert findings(capsys)["memory"]["do"] == "use --workers 2: 2 GB for each"


def test_a_home_that_cannot_be_written_names_the_key_and_the_place(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    finding = findings(capsys)["pseudonyms"]
    assert not finding["works"]
    assert finding["found"].endswith(f"headct/pseudonym-key cannot be made: {tmp_path / 'file'} is not writable")
    assert "--key FILE" in finding["do"]


def test_the_key_is_looked_for_where_ingest_makes_it(monkeypatch, capsys, tmp_path):
    from headct.reading.pseudonyms import user_key

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "no key yet" in findings(capsys)["pseudonyms"]["found"]
    assert not list(tmp_path.rglob("*")), "looking must not make one"
    user_key()
    (key,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert findings(capsys)["pseudonyms"]["found"] == f"key {key}"
