"""What an archive sends along with a head CT and a reader must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from headct.scan import AIR_HU, Header, Scan
from headct.virtual.solids import Points, ellipsoid, paint
from headct.writing import write_dicom
from headct.writing.dicom import images_of, save

RODS: tuple[tuple[float, float, float, float], ...] = (
    (0, 0, 105, 110),
    (0, 0, 98, 0),
    (60, 0, 12, 120),
    (-60, 0, 12, AIR_HU),
    (0, 60, 12, -95),
    (0, -60, 12, 340),
)
"""The quality phantom's cylinders: centre x and y in mm, radius in mm, HU; the first two are its wall and water."""


def water_cylinder(*, slices: int = 12, rows: int = 64, pixel_mm: float = 4.0, gap_mm: float = 5.0) -> Scan:
    """A scanner's quality phantom: water in a plastic cylinder, with rods of plastic and air. No head."""
    across_mm = (np.arange(rows) - (rows - 1) / 2) * pixel_mm
    y, x = np.meshgrid(-across_mm, -across_mm, indexing="ij")
    at = Points(x.ravel(), y.ravel(), np.zeros(x.size))
    hu = np.full(x.size, float(AIR_HU))
    for x_mm, y_mm, radius_mm, value_hu in RODS:
        paint(hu, ellipsoid(at, (x_mm, y_mm, 0), (radius_mm, radius_mm, 1e6)), value_hu, pixel_mm)
    plane = np.rint(hu).astype(np.int16).reshape(rows, rows)
    return Scan(
        hu=np.repeat(plane[None], slices, axis=0),
        origins_mm=np.array([(across_mm[-1], across_mm[-1], index * gap_mm) for index in range(slices)]),
        row_step_mm=np.array([0.0, -pixel_mm, 0.0]),
        col_step_mm=np.array([-pixel_mm, 0.0, 0.0]),
        thickness_mm=gap_mm,
        header=Header(manufacturer="Virtual A", model="water cylinder", patient_id="quality"),
    )


def write_water_cylinder(folder: Path) -> None:
    """The daily quality check, filed among the patients."""
    write_dicom(water_cylinder(), folder, description="DAILY QA")


def write_localizer(side: Scan, folder: Path) -> None:
    """The side view by which a scan is planned, from one thick sagittal slice: one more CT image."""
    (image,) = images_of(side, description="LOCALIZER", series_number=99)
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    del image.RescaleType  # a projection is not in Hounsfield units
    save(image, folder / "0001.dcm", ExplicitVRLittleEndian)


def write_capture(path: Path, *, study_id: str = "", patient_id: str = "virtual-0001") -> None:
    """A colour page with the dose, as scanners add it to a study under Modality CT."""
    page = Image.new("RGB", (160, 96), (16, 24, 64))
    ImageDraw.Draw(page).multiline_text(
        (8, 8), "Exam summary\n\nCTDIvol 41.2 mGy\nDLP 702 mGy cm", fill=(240, 230, 120)
    )
    image = capture_of(np.asarray(page))
    image.PatientID = patient_id
    if study_id:
        image.StudyInstanceUID = study_id
        image.SeriesInstanceUID = generate_uid(entropy_srcs=["capture", "series", study_id])
        image.SOPInstanceUID = generate_uid(entropy_srcs=["capture", "image", study_id])
    save(image, path, ExplicitVRLittleEndian)


def capture_of(rgb: np.ndarray) -> Dataset:
    """A secondary capture image (PS3.3 A.8.1) of a picture, uint8 (rows, cols, 3)."""
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=["capture", rgb.tobytes().hex()])
    image.StudyInstanceUID = generate_uid(entropy_srcs=["capture", "study"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=["capture", "series"])
    image.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    image.Modality = "CT"
    image.ConversionType = "WSD"
    image.PatientID = "virtual-0001"
    image.PatientName = image.PatientBirthDate = image.PatientSex = image.StudyDate = image.StudyTime = ""
    image.ReferringPhysicianName = image.AccessionNumber = image.StudyID = image.Manufacturer = ""
    image.SeriesNumber, image.InstanceNumber = 999, 1
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.Rows, image.Columns = rgb.shape[:2]
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.add_new("PixelData", "OW", rgb.tobytes())
    return image


def truncate(path: Path, to: Path) -> None:
    """A copy that broke off on its way, half of it."""
    data = path.read_bytes()
    to.write_bytes(data[: len(data) // 2])
