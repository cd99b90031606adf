"""What the inputs are made of: heads, their DICOM images, and ways to change and store these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from headct.scan import Header, Scan
from headct.virtual.phantom import Phantom
from headct.writing.dicom import images_of, save, with_pixels

SLICES = 30
PADDING_RADIUS_MM = 112.0

HEADER = Header(manufacturer="headct", model="phantom", kernel="H31s", kvp=120.0, patient_id="phantom-0")


def head(**settings: Any) -> Scan:
    """The average head in 30 slices of 5 mm; settings as for `Phantom.scan`, sequences as tuples. Made once."""
    return _head(tuple(sorted({"noise_hu": 2.0, "header": HEADER, **settings}.items(), key=lambda item: item[0])))


@cache
def _head(settings: tuple[tuple[str, Any], ...]) -> Scan:
    return Phantom(0).scan(**{"rows": 72, "cols": 72, "pixel_mm": 3.2, **dict(settings)})


def images(scan: Scan | None = None, **settings: Any) -> list[Dataset]:
    """The CT images of a scan, by default of the average head."""
    return images_of(head() if scan is None else scan, **settings)


def write(
    some: Sequence[Dataset],
    folder: Path,
    *,
    syntax: UID = ExplicitVRLittleEndian,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Store images as 001.dcm and on, or under the given names."""
    paths = [folder / (names[index] if names else f"{index + 1:03d}.dcm") for index in range(len(some))]
    for image, path in zip(some, paths, strict=True):
        save(image, path, syntax)
    return paths


def stored(image: Dataset) -> np.ndarray:
    """The stored values (rows, cols) of an image with native 16-bit pixels."""
    dtype = "<i2" if image.PixelRepresentation else "<u2"
    return np.frombuffer(image.PixelData, dtype=dtype).reshape(image.Rows, image.Columns)


def with_stored(image: Dataset, values: np.ndarray, **header: Any) -> Dataset:
    """The image with other stored values, and what of its header has to change with them."""
    changed = with_pixels(image, np.ascontiguousarray(values).tobytes())
    return tagged(changed, **header)


def tagged(image: Dataset, **header: Any) -> Dataset:
    """The image with attributes set, or taken out where None is given; a new data set."""
    changed = Dataset()
    changed.update({element.tag: element for element in image if element.keyword not in header})
    for keyword, value in header.items():
        if value is not None:
            setattr(changed, keyword, value)
    return changed


def all_tagged(some: Sequence[Dataset], **header: Any) -> list[Dataset]:
    """`tagged` for each of some images."""
    return [tagged(image, **header) for image in some]


def renamed(some: Sequence[Dataset], **header: Any) -> list[Dataset]:
    """The same images as other objects: new SOP Instance UIDs, and attributes set as by `tagged`."""
    return [
        tagged(image, SOPInstanceUID=generate_uid(entropy_srcs=[image.SOPInstanceUID, repr(header)]), **header)
        for image in some
    ]


def outside_circle(rows: int, cols: int, pixel_mm: float) -> np.ndarray:
    """Which pixels lie outside a scanner's round field of view: bool (rows, cols)."""
    r = (np.arange(rows) - (rows - 1) / 2) * pixel_mm
    c = (np.arange(cols) - (cols - 1) / 2) * pixel_mm
    return np.hypot(r[:, None], c) > PADDING_RADIUS_MM


def each_stored(some: Sequence[Dataset], change: Callable[[np.ndarray], np.ndarray], **header: Any) -> list[Dataset]:
    """Images whose stored values are passed through a function, int32 in, with what of the header goes with it."""
    return [with_stored(image, change(stored(image).astype(np.int32)).astype("<i2"), **header) for image in some]
