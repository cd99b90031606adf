"""One frame of stored values out of one file, by the fastest decoder that gives the right values.

Uncompressed frames are a view of the bytes. For the others pydicom drives a codec, chosen per transfer syntax by
measurement (`benchmarks/`), and the size that the codestream claims is compared with the header before the codec
sees it. Nothing is ever filled in: a frame is whole, or a Fault.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID

from headct.reading.faults import Fault
from headct.reading.instances import Instance, PixelElement, open_dataset
from headct.reading.isolation import announce


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How frames of one transfer syntax are decoded: its name, and pydicom's plug-ins in the order of preference."""

    name: str
    plugins: tuple[str, ...] = ()
    big_endian: bool = False
    max_bits: int = 16  # stored; what the plug-ins can decode


_JPEG = ("gdcm", "pylibjpeg", "pillow")
_J2K = ("gdcm", "pylibjpeg", "pillow")

CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        "1.2.840.10008.1.2": Codec(name="implicit little endian"),
        "1.2.840.10008.1.2.1": Codec(name="explicit little endian"),
        "1.2.840.10008.1.2.1.99": Codec(name="deflated explicit little endian"),
        "1.2.840.10008.1.2.2": Codec(name="explicit big endian", big_endian=True),
        "1.2.840.113619.5.2": Codec(name="implicit little endian, GE private"),
        "1.2.840.10008.1.2.5": Codec(name="RLE lossless", plugins=("pylibjpeg", "pydicom")),
        "1.2.840.10008.1.2.4.50": Codec(name="JPEG baseline", plugins=_JPEG),
        "1.2.840.10008.1.2.4.51": Codec(name="JPEG extended", plugins=_JPEG, max_bits=8),
        "1.2.840.10008.1.2.4.57": Codec(name="JPEG lossless", plugins=_JPEG),
        "1.2.840.10008.1.2.4.70": Codec(name="JPEG lossless, first-order prediction", plugins=_JPEG),
        "1.2.840.10008.1.2.4.80": Codec(name="JPEG-LS lossless", plugins=("pyjpegls", "gdcm", "pylibjpeg")),
        "1.2.840.10008.1.2.4.81": Codec(name="JPEG-LS near-lossless", plugins=("pyjpegls", "gdcm", "pylibjpeg")),
        "1.2.840.10008.1.2.4.90": Codec(name="JPEG 2000 lossless", plugins=_J2K),
        "1.2.840.10008.1.2.4.91": Codec(name="JPEG 2000", plugins=_J2K),
        "1.2.840.10008.1.2.4.201": Codec(name="HTJ2K lossless", plugins=("pylibjpeg",)),
        "1.2.840.10008.1.2.4.202": Codec(name="HTJ2K lossless, RPCL", plugins=("pylibjpeg",)),
        "1.2.840.10008.1.2.4.203": Codec(name="HTJ2K", plugins=("pylibjpeg",)),
    }
)
"""Every transfer syntax that can hold CT, in the order of PS3.6 table A-1."""

_LIBRARY = {
    ("pylibjpeg", "1.2.840.10008.1.2.5"): "pylibjpeg-rle",
    ("pydicom", "1.2.840.10008.1.2.5"): "pydicom",
}


@dataclass(frozen=True)
class Frame:
    """Stored values (rows, cols): int16, or int32 where 16 unsigned bits need it; and how they were read."""

    stored: np.ndarray
    decoder: str
    sign_disagrees: bool = False


class Frames:
    """Frames of images, one after the other; keeps a multi-frame file open, so that it is read once."""

    def __init__(self) -> None:
        self._key: tuple[str, str | None] = ("", None)
        self._stream: BinaryIO = io.BytesIO()
        self._fragments = b""

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def decode(self, image: Instance, *, signed: bool | None = None) -> Frame:
        """The stored values of an image, taken as `signed` where that is said, against the header.

        Raises Fault: damaged, no-decoder, or what opening the file raises.
        """
        announce(image.source.name)
        pixels = image.pixels
        if image.fault:
            raise Fault("damaged", image.fault)
        codec = CODECS.get(pixels.transfer_syntax)
        if codec is None:
            raise Fault("no-decoder", f"its transfer syntax, {_printable(pixels.transfer_syntax)}, is not known")
        signed = pixels.signed if signed is None else signed
        try:
            self._open(image)
            if codec.plugins:
                return _compressed(self._codestream(image), pixels, codec, signed=signed)
            return _native(self._bytes(image), pixels, codec, signed=signed)
        except OSError as error:
            raise Fault("unreadable", f"it cannot be read ({error.strerror or 'I/O error'})") from None

    def _open(self, image: Instance) -> None:
        key = (image.source.path, image.source.member)
        if key != self._key:
            self._stream.close()
            self._key, self._fragments = ("", None), b""
            self._stream = open_dataset(image.source, image.pixels)
            self._key = key

    def _bytes(self, image: Instance) -> bytes:
        pixels = image.pixels
        if pixels.encapsulated:
            raise Fault("damaged", "its pixel data are in fragments, but its transfer syntax is not compressed")
        self._stream.seek(pixels.offset + (image.frame or 0) * pixels.frame_bytes)
        return self._stream.read(pixels.frame_bytes)

    def _codestream(self, image: Instance) -> bytes:
        pixels = image.pixels
        if not self._fragments:
            self._stream.seek(pixels.offset)
            self._fragments = self._stream.read()
        try:
            return get_frame(self._fragments, image.frame or 0, number_of_frames=pixels.frames)
        except (ValueError, IndexError, EOFError, struct.error) as error:
            raise Fault("damaged", f"its compressed fragments are broken ({type(error).__name__})") from None


def _native(value: bytes, pixels: PixelElement, codec: Codec, *, signed: bool) -> Frame:
    if len(value) < pixels.frame_bytes:
        raise Fault("damaged", f"its pixel data are cut off: {len(value):,} of {pixels.frame_bytes:,} bytes are there")
    order = ">" if codec.big_endian else "<"
    bits = np.frombuffer(value, f"{order}u{pixels.bits_allocated // 8}", pixels.rows * pixels.cols)
    bits = bits.reshape(pixels.rows, pixels.cols).astype(f"u{pixels.bits_allocated // 8}", copy=False)
    return Frame(_integers(bits, pixels, signed=signed), "numpy")


def _integers(bits: np.ndarray, pixels: PixelElement, *, signed: bool) -> np.ndarray:
    """int16 (or int32) values from unsigned containers: unused high bits, which may hold overlays, are cut off.

    Padding is written with all bits of the container, whatever Bits Stored says (-2000 in 12 unsigned bits is
    common): where a container equals the padding value and does not fit the stored bits, it keeps its sign.
    """
    allocated, stored = pixels.bits_allocated, pixels.bits_stored
    unused = allocated - stored
    narrow = bits.itemsize <= 2 and (signed or stored < 16)
    if not unused:
        if signed:
            return bits.view(f"i{bits.itemsize}").astype(np.int16 if narrow else np.int32, copy=False)
        return bits.view(np.int16) if narrow and bits.itemsize == 2 else bits.astype(np.int16 if narrow else np.int32)
    shifted = bits << (allocated - 1 - pixels.high_bit) if pixels.high_bit < allocated - 1 else bits
    container = shifted.view(f"i{bits.itemsize}") if signed else shifted
    values = (container >> unused).astype(np.int16 if narrow else np.int32, copy=False)
    for padding in pixels.padding:
        if allocated == 16 and padding >> stored:
            values = np.where(bits == padding, np.int16(padding - (1 << 16) if padding >> 15 else padding), values)
    return values


# Compressed frames


def _compressed(codestream: bytes, pixels: PixelElement, codec: Codec, *, signed: bool) -> Frame:
    claims = _claims(codestream)
    if claims is not None:
        claims.check(pixels)
    if pixels.bits_stored > codec.max_bits:
        raise Fault("no-decoder", f"no installed codec decodes {codec.name} with {pixels.bits_stored} bits")
    plugin = _plugin(pixels.transfer_syntax, codec)
    stored = _decode(codestream, pixels, plugin, signed=signed)
    wide = not signed and pixels.bits_stored > 15
    disagrees = claims is not None and claims.signed is not None and claims.signed != pixels.signed
    library = _LIBRARY.get((plugin, pixels.transfer_syntax), "pylibjpeg-openjpeg" if plugin == "pylibjpeg" else plugin)
    return Frame(stored.astype(np.int32 if wide else np.int16, copy=False), library, disagrees)


def available_plugins(transfer_syntax: str) -> tuple[str, ...]:
    """The installed plug-ins that decode a compressed transfer syntax, best first; none for an unknown one."""
    codec = CODECS.get(transfer_syntax)
    if codec is None or not codec.plugins:
        return ()
    installed = _decoder(transfer_syntax).available_plugins
    return tuple(plugin for plugin in codec.plugins if plugin in installed)


_decoders: dict[str, Decoder] = {}


def _decoder(transfer_syntax: str) -> Decoder:
    if transfer_syntax not in _decoders:
        _decoders[transfer_syntax] = get_decoder(UID(transfer_syntax))
    return _decoders[transfer_syntax]


def _plugin(transfer_syntax: str, codec: Codec) -> str:
    installed = available_plugins(transfer_syntax)
    if not installed:
        raise Fault("no-decoder", f"no installed codec decodes {codec.name}")
    return installed[0]


def _decode(codestream: bytes, pixels: PixelElement, plugin: str, *, signed: bool) -> np.ndarray:
    """One frame through pydicom, with its corrections of unused bits and of a codestream without sign."""
    options: Any = {
        "rows": pixels.rows,
        "columns": pixels.cols,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "planar_configuration": 0,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_representation": int(signed),
        "pixel_keyword": "PixelData",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the codestream has been compared with the header already
        try:
            values, _ = _decoder(pixels.transfer_syntax).as_array(
                _encapsulated(codestream), index=0, raw=True, validate=False, decoding_plugin=plugin, **options
            )
        except MemoryError:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - what a codec raises on hostile bytes means: cannot be decoded.
            # pylibjpeg-rle is written in Rust, whose panics arrive as a BaseException that is no Exception.
            raise Fault("damaged", f"its compressed pixel data cannot be decoded ({type(error).__name__})") from None
    return np.asarray(values)


def _encapsulated(codestream: bytes) -> bytes:
    """A frame as the only fragment behind an empty offset table."""
    return b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + len(codestream).to_bytes(4, "little") + codestream


@dataclass(frozen=True)
class _Claims:
    """What a codestream says about itself; `signed` is None where its format cannot say."""

    rows: int
    cols: int
    components: int
    signed: bool | None = None

    def check(self, pixels: PixelElement) -> None:
        if (self.rows, self.cols, self.components) != (pixels.rows, pixels.cols, 1):
            raise Fault(
                "damaged",
                f"its codestream holds {self.components} x {self.rows} x {self.cols} values, "
                f"its header promises {pixels.rows} x {pixels.cols}",
            )


def _claims(codestream: bytes) -> _Claims | None:
    """Size of a JPEG, JPEG-LS or JPEG 2000 codestream, from its frame header; None for RLE, which has none."""
    if codestream[:4] == b"\xff\x4f\xff\x51":
        return _claims_j2k(codestream)
    if codestream[4:8] == b"jP  ":  # boxes around a codestream: not allowed in DICOM, but written
        at = codestream.find(b"\xff\x4f\xff\x51")
        return _claims_j2k(codestream[at:]) if at >= 0 else None
    return _claims_jpeg(codestream) if codestream[:2] == b"\xff\xd8" else None


def _claims_j2k(codestream: bytes) -> _Claims | None:
    """SIZ marker segment, ISO/IEC 15444-1 A.5.1."""
    if len(codestream) < 43:
        return None
    x1, y1, x0, y0 = (int.from_bytes(codestream[at : at + 4], "big") for at in (8, 12, 16, 20))
    return _Claims(y1 - y0, x1 - x0, int.from_bytes(codestream[40:42], "big"), bool(codestream[42] & 0x80))


_WITHOUT_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # among C0..CF: DHT, JPG, DAC


def _claims_jpeg(codestream: bytes) -> _Claims | None:
    """SOF marker segment, ISO/IEC 10918-1 B.2.2; SOF55 is JPEG-LS."""
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _WITHOUT_FRAME) or marker == 0xF7:
            rows, cols = (int.from_bytes(codestream[at + i : at + i + 2], "big") for i in (5, 7))
            return _Claims(rows, cols, codestream[at + 9])
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return None


def _printable(uid: str) -> str:
    """A UID as it may stand in a message: from a broken header it could be anything."""
    return uid if 0 < len(uid) <= 64 and set(uid) <= set("0123456789.") else "an invalid UID"
