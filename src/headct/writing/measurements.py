"""Volumes of segments as a DICOM structured report: Comprehensive 3D SR by template TID 1500 (PS3.16).

Each measurement names the segment that it was taken of, so a viewer finds the one by the other. Needs highdicom, from
`pip install highdicom`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from headct import __version__
from headct.writing.segmentation import (
    SERIES_OFFSET,
    Source,
    date_and_time,
    forget_the_moment,
    headers,
    names_as_they_are,
    segment_named,
)

MILLILITRE = Code("ml", "UCUM", "milliliter")
DEVICE = generate_uid(entropy_srcs=["headct", "device observer"])
"""Identifies the observer, which is this software wherever it runs."""


def write_measurements(
    volumes_ml: Mapping[str, float],
    segmentation: Path,
    numbers: Mapping[str, int],
    sources: Sequence[Source],
    path: Path,
) -> Path:
    """Write the volume of each segment of a DICOM segmentation as a report; gives the path.

    `numbers` are the segment numbers by name, and `sources` the CT images, as `write_class_map` gave and took them.
    Equal input gives equal bytes. Raises ValueError where a segment has no volume.
    """
    from highdicom import sr  # so that whoever has not installed it is told so by the module above

    missing = sorted(numbers.keys() - volumes_ml.keys())
    if missing or not numbers:
        raise ValueError(f"the segment {missing[0]!r} has no volume" if missing else "there is no segment to report")
    images, drawn = headers(sources), dcmread(segmentation)
    content = hashlib.blake2b(repr((__version__, dict(volumes_ml), drawn.SOPInstanceUID)).encode(), digest_size=16)
    known = content.hexdigest()
    groups = [
        _group(name, number, volumes_ml[name], drawn, images[0], generate_uid(entropy_srcs=["tracking", known, name]))
        for name, number in numbers.items()
    ]
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=DEVICE, name="headct", manufacturer_name="headct", model_name=f"headct {__version__}"
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ComputedTomographyOfHead,
        imaging_measurements=groups,
    )
    with names_as_they_are():
        document = sr.Comprehensive3DSR(
            evidence=[drawn, *images],
            content=report,
            series_instance_uid=generate_uid(entropy_srcs=["report series", known]),
            series_number=int(images[0].get("SeriesNumber") or 0) + 2 * SERIES_OFFSET,
            sop_instance_uid=generate_uid(entropy_srcs=["report", known]),
            instance_number=1,
            manufacturer="headct",
            series_description="Volumes drawn by headct, research software",
        )
    document["ContentDate"].value, document["ContentTime"].value = date_and_time(images[0])
    forget_the_moment(document)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, document, enforce_file_format=True)
    return path


def _group(name: str, number: int, volume_ml: float, drawn: Dataset, image: Dataset, tracking_uid: str) -> Any:
    """TID 1411: what a segment is, and its volume."""
    from highdicom import sr

    segment = segment_named(name)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=tracking_uid, identifier=name),
        # not `from_segmentation`, which does not find the only segment of a file in its shared groups
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=drawn.SOPClassUID,
            sop_instance_uid=drawn.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(image.SeriesInstanceUID),
        ),
        finding_type=segment.kind,
        finding_category=segment.category,
        algorithm_id=sr.AlgorithmIdentification(name="headct", version=__version__),
        measurements=[sr.Measurement(name=codes.SCT.Volume, value=round(volume_ml, 4), unit=MILLILITRE)],
    )
