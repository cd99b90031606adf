"""Stored values out of files.

Oracles: the array that was encoded, for every lossless syntax, exactly; bit patterns written by hand, for what headers
say of bits; NEMA's WG-04 samples, one slice in six syntaxes, which must be identical (within 4 where near-lossless:
NEAR of that file, ISO/IEC 14495-1).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs.series import images, stored, tagged, with_stored
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from reading.headers import pixel_element

from headct.reading import pixels
from headct.reading.faults import Fault
from headct.reading.files import Source
from headct.reading.instances import Instance, read_header
from headct.reading.pixels import CODECS, Frames, available_plugins
from headct.writing.dicom import save

SYNTAXES = {
    "numpy": (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
    "pylibjpeg-rle": (RLELossless,),
    "gdcm": (JPEGLosslessSV1, JPEG2000Lossless),
    "pyjpegls": (JPEGLSLossless,),
}


def source(path: Path) -> Source:
    return Source(str(path), None, path.name, path.stat().st_size)


def image_in(path: Path) -> Instance:
    (image,) = read_header(source(path))
    assert isinstance(image, Instance), image
    return image


def decode(image: Instance, **settings) -> pixels.Frame:
    with Frames() as frames:
        return frames.decode(image, **settings)


def fault_of(image: Instance) -> Fault:
    with pytest.raises(Fault) as fault:
        decode(image)
    return fault.value


@pytest.mark.parametrize(("decoder", "syntax"), [(d, s) for d, some in SYNTAXES.items() for s in some], ids=str)
@pytest.mark.parametrize("intercept", [0, -1024])
def test_every_lossless_syntax_gives_the_encoded_values(tmp_path, decoder, syntax, intercept):
    image = images()[12]
    values = stored(image).astype(np.int32) + (-1024 - int(image.RescaleIntercept) if intercept == 0 else 0)
    signed = intercept == 0
    changes = {"PixelRepresentation": int(signed), "BitsStored": 16, "HighBit": 15, "RescaleIntercept": intercept}
    image = with_stored(image, values.astype("<i2" if signed else "<u2"), **changes)
    save(image, tmp_path / "a", syntax)
    frame = decode(image_in(tmp_path / "a"))
    assert frame.decoder == decoder
    assert np.array_equal(frame.stored, values)
    assert not frame.sign_disagrees


def test_the_samples_of_nema_are_one_slice(shared):
    folder = shared / "data" / "dicom" / "transfer_syntaxes"
    names = ("RLE", "J2KR", "JLSL", "JPLL", "JLSN", "J2KI")
    stored_of = {name: decode(image_in(folder / f"CT2_{name}.dcm")).stored for name in names}
    for name in ("J2KR", "JLSL", "JPLL"):
        assert np.array_equal(stored_of[name], stored_of["RLE"]), name
    assert 0 < np.abs(stored_of["JLSN"].astype(int) - stored_of["RLE"]).max() <= 4
    assert 4 < np.abs(stored_of["J2KI"].astype(int) - stored_of["RLE"]).max() < 3000


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is None, reason="no HTJ2K encoder is installed")
def test_high_throughput_jpeg_2000(tmp_path):
    import imagecodecs

    image = images()[12]
    save(image, tmp_path / "a", ExplicitVRLittleEndian)
    file = dcmread(tmp_path / "a")
    file.PixelData = encapsulate([imagecodecs.htj2k_encode(stored(image).copy(), reversible=True)])
    file["PixelData"].is_undefined_length = True
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    file.save_as(tmp_path / "b")
    assert np.array_equal(decode(image_in(tmp_path / "b")).stored, stored(image))


def test_a_codestream_of_the_other_sign_is_told(shared):
    frame = decode(image_in(shared / "data" / "dicom" / "odd_headers" / "J2K_pixelrep_mismatch.dcm"))
    assert frame.sign_disagrees
    assert (frame.stored.min(), frame.stored[256, 256] < 100) == (-2000, True)  # not 6192, its 13 bits without a sign


# Bits


def integers(bits: list[int], *, signed: bool, **element) -> list[int]:
    element = pixel_element(rows=1, cols=len(bits), signed=signed, **element)
    return pixels._integers(np.array([bits], f"u{element.bits_allocated // 8}"), element, signed=signed)[0].tolist()


TWELVE = {"bits_stored": 12, "high_bit": 11}


@given(values=st.lists(st.integers(-2048, 2047), min_size=1, max_size=20), overlay=st.integers(0, 15))
def test_unused_high_bits_are_cut_off_and_the_sign_kept(values, overlay):
    bits = [(value & 0xFFF) | overlay << 12 for value in values]
    assert integers(bits, signed=True, **TWELVE) == values
    assert integers(bits, signed=False, **TWELVE) == [value & 0xFFF for value in values]


@given(values=st.lists(st.integers(-2048, 2047), min_size=1, max_size=20), low=st.integers(0, 15))
def test_values_may_lie_in_the_high_bits(values, low):
    bits = [(value & 0xFFF) << 4 | low for value in values]
    assert integers(bits, signed=True, bits_stored=12, high_bit=15) == values
    assert integers(bits, signed=False, bits_stored=12, high_bit=15) == [value & 0xFFF for value in values]


def test_sixteen_bits_with_and_without_sign():
    assert integers([0, 32767, 32768, 65535], signed=True) == [0, 32767, -32768, -1]
    assert integers([0, 32767, 32768, 65535], signed=False) == [0, 32767, 32768, 65535]


def test_eight_and_thirty_two_bits():
    assert integers([0, 127, 255], signed=False, bits_allocated=8, bits_stored=8, high_bit=7) == [0, 127, 255]
    assert integers([0, 127, 255], signed=True, bits_allocated=8, bits_stored=8, high_bit=7) == [0, 127, -1]
    thirty_two = {"bits_allocated": 32, "bits_stored": 32, "high_bit": 31}
    assert integers([0, 0xFFFFFC00], signed=True, **thirty_two) == [0, -1024]


def test_padding_that_does_not_fit_its_bits_keeps_its_sign():
    minus_2000 = 0x10000 - 2000
    assert integers([minus_2000, 2096], signed=False, padding=(minus_2000,), **TWELVE) == [-2000, 2096]


# What cannot be decoded


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=str)
def test_a_codestream_of_another_size_never_reaches_the_codec(tmp_path, syntax, monkeypatch):
    save(images()[12], tmp_path / "a", syntax)
    file = dcmread(tmp_path / "a")
    file.Rows = file.Rows + 1
    file.save_as(tmp_path / "b")
    monkeypatch.setattr(pixels, "_decode", None)
    fault = fault_of(image_in(tmp_path / "b"))
    assert fault.code == "damaged"
    assert "its codestream holds" in str(fault)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=str)
def test_garbage_behind_a_frame_header_is_damaged(tmp_path, syntax):
    save(images()[12], tmp_path / "a", syntax)
    image = image_in(tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    start = image.pixels.offset + 8 + 8 + 120
    data[start : start + 400] = bytes(400)
    (tmp_path / "a").write_bytes(data)
    assert code_of(image) in ("", "damaged")  # not every codestream can tell


def code_of(image: Instance) -> str:
    """The code of the fault of an image; empty where it is decoded to its full size."""
    try:
        frame = decode(image)
    except Fault as fault:
        return fault.code
    assert frame.stored.shape == (image.pixels.rows, image.pixels.cols)
    return ""


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless], ids=str)
def test_a_truncated_file_is_found_before_decoding(tmp_path, syntax):
    save(images()[12], tmp_path / "a", syntax)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-600])
    image = image_in(tmp_path / "a")
    assert "cut off" in image.fault
    assert fault_of(image).code == "damaged"


def test_a_file_truncated_after_its_header_was_read_is_damaged_too(tmp_path):
    save(images()[12], tmp_path / "a", ExplicitVRLittleEndian)
    image = image_in(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-600])
    assert fault_of(image).code == "damaged"


def test_a_file_that_went_away_is_unreadable(tmp_path):
    save(images()[12], tmp_path / "a", ExplicitVRLittleEndian)
    image = image_in(tmp_path / "a")
    (tmp_path / "a").unlink()
    assert fault_of(image).code == "unreadable"


def test_without_a_codec_or_for_an_unknown_syntax_there_is_no_decoder(tmp_path, monkeypatch):
    save(images()[12], tmp_path / "a", JPEGLSLossless)
    image = image_in(tmp_path / "a")
    monkeypatch.setattr(pixels, "_decoder", lambda _: SimpleNamespace(available_plugins=()))
    assert fault_of(image).code == "no-decoder"
    file = dcmread(tmp_path / "a")
    file.file_meta.TransferSyntaxUID = "1.2.3.4"
    file.save_as(tmp_path / "b", enforce_file_format=True)
    fault = fault_of(image_in(tmp_path / "b"))
    assert (fault.code, "1.2.3.4" in str(fault)) == ("no-decoder", True)


@pytest.mark.parametrize("syntax", [syntax for syntax, codec in CODECS.items() if codec.plugins])
def test_a_codec_is_installed_for_every_compressed_syntax(syntax):
    assert available_plugins(syntax)[0] == CODECS[syntax].plugins[0]


def test_the_first_jpeg_frame_header_counts_whatever_comes_before_it():
    stream = bytes.fromhex("ffd8 ffe0 0004 0000 ff ffc4 0003 00 ffc3 000b 10 0102 0304 01 00 11 00")
    assert pixels._claims(stream) == pixels._Claims(0x102, 0x304, 1)


def test_overlays_in_unused_bits_do_not_show(tmp_path):
    image = images()[12]
    values = stored(image).astype(np.int32) - min(0, int(stored(image).min()))
    with_overlay = (values | (np.indices(values.shape).sum(0) % 2 << 15)).astype("<u2")
    image = with_stored(image, with_overlay, PixelRepresentation=0, BitsStored=13, HighBit=12)
    save(tagged(image, OverlayBitPosition=None), tmp_path / "a", ExplicitVRLittleEndian)
    assert np.array_equal(decode(image_in(tmp_path / "a")).stored, values)
