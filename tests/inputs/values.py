"""What the stored values mean: rescale, padding in its disguises, and images that are not Hounsfield units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from openjpeg.utils import encode_array
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless

from headct.scan import Scan
from headct.virtual.phantom import Phantom
from inputs.kinds import kind, refused
from inputs.series import all_tagged, each_stored, head, images, outside_circle, stored, tagged, with_stored, write

OUTSIDE = outside_circle(72, 72, 3.2)


def _padded(value_hu: int, **settings: object) -> Scan:
    """The head with everything outside the scanner's circle set to a value that no tissue has."""
    scan = head()
    return replace(scan, hu=np.where(OUTSIDE, np.int16(value_hu), scan.hu))


@kind("stored values without an offset, Rescale Intercept 0")
def intercept_zero(folder: Path) -> None:
    write(images(intercept_hu=0), folder)


@kind("no rescale tags; stored values are Hounsfield units")
def no_rescale(folder: Path) -> None:
    write(all_tagged(images(intercept_hu=0), RescaleIntercept=None, RescaleSlope=None, RescaleType=None), folder)


@kind("stored values have an offset of 1024, Rescale Intercept says 0", flags=("intercept-added",))
def intercept_missing(folder: Path) -> None:
    write(all_tagged(images(), RescaleIntercept="0"), folder)


@kind("stored values are Hounsfield units, Rescale Intercept says -1024", flags=("intercept-removed",))
def intercept_doubled(folder: Path) -> None:
    write(all_tagged(images(intercept_hu=0), RescaleIntercept="-1024"), folder)


UNSURE = ("file-dropped", "gap-filled", "uneven")


@kind("one slice without rescale tags, which the others have", flags=UNSURE, rejected={"not-hounsfield": 1})
def one_without_rescale(folder: Path) -> None:
    some = images()
    some[14] = tagged(some[14], RescaleIntercept=None, RescaleSlope=None)
    write(some, folder)


@kind("a Rescale Slope of nan in one slice", flags=("gap-filled", "uneven"), rejected={"not-hounsfield": 1})
def slope_nan(folder: Path) -> None:
    some = images()
    some[14] = tagged(some[14], RescaleSlope="7654321 ")
    path = write(some, folder)[14]
    path.write_bytes(path.read_bytes().replace(b"7654321 ", b"nan     "))


@kind("a Rescale Intercept of 1e30 in one slice", flags=("gap-filled", "uneven"), rejected={"not-hounsfield": 1})
def intercept_huge(folder: Path) -> None:
    some = images()
    some[14] = tagged(some[14], RescaleIntercept="1e30")
    write(some, folder)


@kind("a Rescale Slope of -1 in one slice", flags=UNSURE, rejected={"not-hounsfield": 1})
def one_mirrored(folder: Path) -> None:
    some = images()
    some[14] = tagged(some[14], RescaleSlope="-1")
    write(some, folder)


@kind("signed values called unsigned in one slice", flags=UNSURE, rejected={"not-hounsfield": 1})
def one_unsigned(folder: Path) -> None:
    some = images(intercept_hu=0)
    some[14] = tagged(some[14], PixelRepresentation=0)
    write(some, folder)


@refused("signed values called unsigned in every second slice", "not-hounsfield", 30)
def half_unsigned(folder: Path) -> None:
    some = images(intercept_hu=0)
    some[::2] = all_tagged(some[::2], PixelRepresentation=0)
    write(some, folder)


@kind("an intercept of -8192 with values to match")
def offset_8192(folder: Path) -> None:
    write(images(intercept_hu=-8192), folder)


@kind("Rescale Slope 0.5, stored values doubled")
def slope_half(folder: Path) -> None:
    some = each_stored(images(intercept_hu=0), lambda values: values * 2)
    write(all_tagged(some, RescaleSlope="0.5"), folder)


@kind("padded with -1500 outside the circle, padding tag present", flags=("padding",))
def padding_1500_with_tag(folder: Path) -> None:
    some = images(_padded(-1500), intercept_hu=0)
    for image in some:
        image.add_new("PixelPaddingValue", "SS", -1500)
    write(some, folder)


@kind("padded with -1500 outside the circle, no padding tag", flags=("padding",))
def padding_1500(folder: Path) -> None:
    write(images(_padded(-1500), intercept_hu=0), folder)


@kind("padded with -2000 stored, no padding tag, intercept 0", flags=("padding",))
def padding_2000(folder: Path) -> None:
    write(images(_padded(-2000), intercept_hu=0), folder)


@kind("padded with -2048, no padding tag", flags=("padding",))
def padding_2048(folder: Path) -> None:
    write(images(_padded(-2048), intercept_hu=0), folder)


@kind("padded with -2000 stored, -3024 after the intercept", flags=("padding",))
def padding_3024(folder: Path) -> None:
    write(images(_padded(-3024)), folder)


@kind("Pixel Padding Value 63536 on signed values (means -2000)", flags=("padding",))
def padding_sign(folder: Path) -> None:
    some = images(_padded(-2000), intercept_hu=0)
    for image in some:
        image.add_new("PixelPaddingValue", "US", 63536)
    write(some, folder)


@kind("unsigned values, padding 63536 (-2000 wrapped round)", flags=("clipped", "padding"))
def unsigned_with_padding(folder: Path) -> None:
    some = []
    for image in images():
        values = np.where(OUTSIDE, 63536, stored(image).astype(np.int32)).astype("<u2")
        some.append(with_stored(image, values, PixelRepresentation=0))
        some[-1].add_new("PixelPaddingValue", "US", 63536)
    write(some, folder)


@kind("12 bits stored, unsigned")
def bits_12(folder: Path) -> None:
    write(_twelve_bits(), folder)


@kind("12 bits stored, an overlay in the bits above")
def overlay_bits(folder: Path) -> None:
    mark = np.zeros((72, 72), dtype=np.uint16)
    mark[2:10, 2:30] = 1 << 13
    some = []
    for image in _twelve_bits():
        marked = with_stored(image, stored(image) | mark)
        marked.add_new(0x60000010, "US", 72)
        marked.add_new(0x60000011, "US", 72)
        marked.add_new(0x60000040, "CS", "G")
        marked.add_new(0x60000050, "SS", [1, 1])
        marked.add_new(0x60000100, "US", 16)
        marked.add_new(0x60000102, "US", 13)
        some.append(marked)
    write(some, folder)


def _twelve_bits() -> list[Dataset]:
    unsigned = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    return [with_stored(image, np.clip(stored(image), 0, 4095).astype("<u2"), **unsigned) for image in images()]


@kind("MONOCHROME1, 12 bits, values inverted as well", flags=("inverted",))
def monochrome1_inverted(folder: Path) -> None:
    inverted = [4095 - stored(image) for image in _twelve_bits()]
    some = [with_stored(image, values) for image, values in zip(_twelve_bits(), inverted, strict=True)]
    write(all_tagged(some, PhotometricInterpretation="MONOCHROME1"), folder)


@kind("MONOCHROME1, values as ever")
def monochrome1(folder: Path) -> None:
    write(all_tagged(images(), PhotometricInterpretation="MONOCHROME1"), folder)


@kind("JPEG 2000 whose codestream is unsigned, against the header", flags=("sign",))
def jpeg_2000_sign(folder: Path) -> None:
    paths = write(images(intercept_hu=0), folder)
    for image, path in zip(images(intercept_hu=0), paths, strict=True):
        wrapped = (stored(image).astype(np.int32) % (1 << 13)).astype(np.uint16)
        stream = encode_array(wrapped, bits_stored=13, photometric_interpretation=2, use_mct=False)
        file = dcmread(path)
        file.BitsStored, file.HighBit = 13, 12
        file.file_meta.TransferSyntaxUID = JPEG2000Lossless
        del file.PixelData
        file.add_new(Tag("PixelData"), "OB", encapsulate([stream]))
        file["PixelData"].is_undefined_length = True
        file.save_as(path, enforce_file_format=True)


@kind("metal: a clip of 12,000 HU", flags=("metal",))
def metal(folder: Path) -> None:
    scan = head()
    hu = scan.hu.copy()
    hu[18:20, 40:43, 30:32] = 12000
    write(images(replace(scan, hu=hu)), folder)


@refused("8-bit export in a brain window", "not-hounsfield", 30)
def windowed_8_bit(folder: Path) -> None:
    write(each_stored(images(intercept_hu=0), lambda hu: np.clip(hu * 255 // 80, 0, 255), RescaleType=None), folder)


@refused("Cormack scale: soft tissue stretched eleven times", "not-hounsfield", 30)
def cormack(folder: Path) -> None:
    def stretched(hu: np.ndarray) -> np.ndarray:
        low, soft = np.clip(hu, -1000, -100) + 1000, np.clip(hu, -100, 100) + 100
        return low + soft * 11 + np.clip(hu - 100, 0, None)

    write(each_stored(images(intercept_hu=0), stretched, RescaleType=None), folder)


@refused("subtracted angiography: vessels on zero", "not-hounsfield", 30)
def subtracted(folder: Path) -> None:
    vessels = np.zeros((72, 72), dtype=np.int32)
    vessels[30:34, 20:50] = vessels[20:50, 35:37] = 400
    write(each_stored(images(intercept_hu=0), lambda hu: vessels), folder)


@kind("every voxel is zero", known=False, flags=("hu-unverified",), prepared="no-head")
def constant(folder: Path) -> None:
    write(each_stored(images(intercept_hu=0), lambda hu: hu * 0), folder)


@kind("random values between -1024 and -770", known=False, flags=("hu-unverified",), prepared="no-head")
def noise(folder: Path) -> None:
    rng = np.random.default_rng(0)
    write(each_stored(images(intercept_hu=0), lambda hu: rng.integers(-1024, -770, hu.shape)), folder)


@kind("a bleed of 66 HU", known=False)
def bleeding(folder: Path) -> None:
    write(images(Phantom(7, "iph").scan(rows=72, cols=72, pixel_mm=3.2, noise_hu=2.0)), folder)


@kind("a noisy sharp kernel")
def sharp_kernel(folder: Path) -> None:
    write(all_tagged(images(head(noise_hu=25.0)), ConvolutionKernel="H70h"), folder)


@kind("window centre and width missing, values as ever")
def no_window(folder: Path) -> None:
    write([tagged(image, WindowCenter=None, WindowWidth=None) for image in images()], folder)
