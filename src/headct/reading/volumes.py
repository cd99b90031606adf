"""From a volume to a `Scan`: every slice decoded, the scale checked, identifiers replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from headct.reading import geometry, hounsfield, metaimage, nifti, nrrd
from headct.reading.beside import mask_in
from headct.reading.faults import Fault
from headct.reading.files import Source
from headct.reading.grids import RawVolume
from headct.reading.hounsfield import INT16, Scale
from headct.reading.instances import GridFile, Instance
from headct.reading.isolation import announce
from headct.reading.pixels import Frame, Frames
from headct.reading.pseudonyms import Pseudonyms
from headct.reading.series import Volume
from headct.reading.slices import Slice
from headct.scan import GeometryError, Header, Rejection, Scan


@dataclass(frozen=True, kw_only=True)
class LoadLimits:
    """What a volume may cost."""

    voxels: int = 1 << 29  # 1 GiB of Hounsfield units: 2048 slices of 512 x 512
    base_s: float = 8.0
    slice_s: float = 0.25  # a slice of JPEG 2000 takes 0.03 s
    byte_s: float = 1e-7
    strange_share: float = 0.25  # of slices on another scale than the others, before the others are not believed either


LIMITS = LoadLimits()


def load(volume: Volume, pseudonyms: Pseudonyms) -> tuple[Scan | None, list[Rejection]]:
    """The scan, or None, and a rejection for each file of the volume that is not part of it.

    A slice that cannot be decoded gives way to a copy of it, or leaves a gap that must not be too wide. Never raises
    for what files contain.
    """
    try:
        return _load_grid(volume.grid, pseudonyms) if volume.grid is not None else _load_slices(volume, pseudonyms)
    except Fault as fault:
        return None, [fault.rejection(*volume.files)]
    except GeometryError as error:
        return None, [Rejection.because("no-geometry", str(error), volume.files)]
    except OSError as error:
        return None, [Rejection.because("unreadable", error.strerror or "it cannot be read", volume.files)]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a hostile file that gets past all checks becomes a rejection too
        return None, [Rejection.because("damaged", f"it cannot be decoded ({type(error).__name__})", volume.files)]


def time_limit_s(volume: Volume) -> float:
    """How long reading a volume may take; generous, since machines are shared."""
    sizes_bytes = {source.name: source.size_bytes for source in volume.sources}
    return LIMITS.base_s + LIMITS.slice_s * len(volume.slices) + LIMITS.byte_s * sum(sizes_bytes.values())


# Slices


@dataclass
class _Stack:
    """What decoding a volume gives; `hu` holds the values as the file means them, repairs are still to come."""

    hu: np.ndarray
    images: list[Instance] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)
    flags_of: list[set[str]] = field(default_factory=list)  # of each image
    own_flags: set[str] = field(default_factory=set)
    rejections: list[Rejection] = field(default_factory=list)

    @property
    def flags(self) -> set[str]:
        """Of the images that are left, and of what became of the others."""
        return self.own_flags.union(*self.flags_of)

    def leave_out(self, strange: np.ndarray) -> None:
        """Take out the slices where `strange` (slices,) is True, and reject the files of which no other is used."""
        names = set(_used(self.images))
        kept = np.flatnonzero(~strange)
        self.hu = self.hu[kept]
        self.images = [self.images[index] for index in kept]
        self.decoders = [self.decoders[index] for index in kept]
        self.flags_of = [self.flags_of[index] for index in kept]
        self.own_flags.add("file-dropped")
        sentence = "its values are on another scale than those of its series"
        lost = sorted(names - set(_used(self.images)))
        self.rejections += [Rejection.because("not-hounsfield", sentence, (name,)) for name in lost]


def _load_slices(volume: Volume, pseudonyms: Pseudonyms) -> tuple[Scan | None, list[Rejection]]:
    stack = _decode(volume)
    if not stack.images:
        return None, stack.rejections
    try:
        stack, scale = _sound_reading(volume, stack)
        if (strange := hounsfield.strangers(stack.hu, scale)).any():
            _check_few(strange)
            stack.leave_out(strange)
        scan = _scan(volume, stack, scale, pseudonyms)
    except Fault as fault:
        if fault.code == "missing-slices" and "file-dropped" in stack.flags:
            fault = Fault(fault.code, f"{fault.sentence}; faulty files of the series were left out")
        return None, [*stack.rejections, fault.rejection(*_used(stack.images))]
    return scan, stack.rejections


def _check_few(strange: np.ndarray) -> None:
    if strange.mean() > LIMITS.strange_share:
        counts = f"{np.count_nonzero(strange)} of its {len(strange)} slices"
        raise Fault("not-hounsfield", f"the values of {counts} are on another scale than the others")


def _used(images: Iterable[Instance]) -> tuple[str, ...]:
    return tuple(sorted({name for image in images for name in image.source.files}))


def _decode(volume: Volume, *, signed: bool | None = None) -> _Stack:
    """Every slice decoded and rescaled; what is not used, or cannot be, is rejected file by file."""
    first = volume.images[0].pixels
    shape = (len(volume.slices), first.rows, first.cols)
    if np.prod(shape, dtype=np.int64) > LIMITS.voxels:
        raise Fault("too-large", f"{shape[0]} slices of {shape[1]} x {shape[2]} are more than {LIMITS.voxels:,} voxels")
    stack = _Stack(np.empty(shape, np.int16))
    faults: dict[str, Fault] = {}
    rescaled = any(image.rescaled for image in volume.images)
    with Frames() as frames:
        for part in volume.slices:
            decoded = _decode_slice(part, frames, signed, faults, rescaled=rescaled)
            if decoded is not None:
                _take(stack, *decoded)
    stack.hu = stack.hu[: len(stack.images)]
    stack.rejections = _leftovers(volume, stack.images, faults)
    if faults or volume.file_dropped:
        stack.own_flags.add("file-dropped")
    if any(part.doubles for part in volume.slices):
        stack.own_flags.add("duplicate-dropped")
    return stack


def _decode_slice(
    part: Slice, frames: Frames, signed: bool | None, faults: dict[str, Fault], *, rescaled: bool
) -> tuple[Instance, Frame] | None:
    """The first image of a position that can be decoded; what is wrong with those before it goes into `faults`.

    `rescaled` says that images of the series state a rescale: one that does not is then not on a known scale.
    """
    for image in part.candidates:
        try:
            if rescaled and not image.rescaled:
                raise Fault("not-hounsfield", "it lacks the Rescale Slope or Intercept that others of its series have")
            return image, frames.decode(image, signed=signed)
        except Fault as fault:
            faults.setdefault(image.source.name, fault)
    return None


def _take(stack: _Stack, image: Instance, frame: Frame) -> None:
    clipped = hounsfield.rescale(frame.stored, image.slope, image.intercept, stack.hu[len(stack.images)])
    stack.images.append(image)
    stack.decoders.append(frame.decoder)
    told = (("clipped", clipped), ("sign", frame.sign_disagrees), ("lossy", image.pixels.lossy))
    stack.flags_of.append({flag for flag, is_so in told if is_so})


def _leftovers(volume: Volume, images: list[Instance], faults: dict[str, Fault]) -> list[Rejection]:
    """One rejection for each file of the volume of which no image is used."""
    used = set(_used(images))
    rejections = {name: fault.rejection(name) for name, fault in faults.items() if name not in used}
    for part in volume.slices:
        for kind, others in (("duplicate-file", (part.chosen, *part.copies)), ("duplicate-slice", part.doubles)):
            for image in others:
                if image.source.name not in used:
                    rejections.setdefault(image.source.name, _not_needed(image, kind))
    return [rejections[name] for name in sorted(rejections)]


def _not_needed(image: Instance, kind: str) -> Rejection:
    """Why an image was never tried; that it is broken is said although a whole one took its place."""
    sentence = {
        "duplicate-file": "the same image as another file of its series",
        "duplicate-slice": "another image of its series lies at the same position",
    }[kind]
    code, sentence = ("damaged", image.fault) if image.fault else (kind, sentence)
    return Rejection.because(code, sentence, (image.source.name,))


def _scan(volume: Volume, stack: _Stack, scale: Scale, pseudonyms: Pseudonyms) -> Scan:
    images = stack.images
    origins_mm = np.array([image.position_mm for image in images])
    thicknesses_mm = np.array([np.nan if image.thickness_mm is None else image.thickness_mm for image in images])
    shape_flags = geometry.review(origins_mm, volume.across, thicknesses_mm)
    converted = hounsfield.to_hounsfield(stack.hu, padding=_padding_hu(images), trusted=True, scale=scale)
    if isinstance(converted, str):
        raise Fault("not-hounsfield", converted)
    hu, repairs, hu_flags = converted
    return Scan(
        hu=hu,
        origins_mm=origins_mm,
        row_step_mm=np.array(images[0].row_step_mm),
        col_step_mm=np.array(images[0].col_step_mm),
        thickness_mm=_thickness_mm(origins_mm, volume.across, thicknesses_mm),
        header=_header(stack, pseudonyms, {*stack.flags, *shape_flags, *hu_flags}),
        repairs=repairs,
    )


def _thickness_mm(origins_mm: np.ndarray, across: np.ndarray, thicknesses_mm: np.ndarray) -> float:
    """The lower median of the stated thicknesses, else of the gaps, else 0: a value that occurs."""
    known = np.sort(thicknesses_mm[np.isfinite(thicknesses_mm)])
    if not len(known):
        known = np.sort(np.diff(origins_mm @ across))
    return float(known[(len(known) - 1) // 2]) if len(known) else 0.0


# Readings: what the bits may mean where header and values disagree


def _sound_reading(volume: Volume, stack: _Stack) -> tuple[_Stack, Scale]:
    """The stack as its header says, or, where only another reading of the bits gives a CT, that one.

    Pixel Representation may contradict the codestream or be plainly wrong (air at 64536), and values marked
    MONOCHROME1 are inverted by some writers, although the standard inverts the display alone (PS3.3 C.7.6.3.1.2).
    """
    scale = hounsfield.scale_of(stack.hu)
    if scale == "sound":
        return stack, scale
    pixels = stack.images[0].pixels
    if "sign" in stack.flags or (not pixels.signed and pixels.bits_stored == 16):
        other = _decode(volume, signed=not pixels.signed)
        if len(other.images) == len(stack.images) and _is_sound(other.hu):
            other.own_flags.add("sign")
            return other, "sound"
    if pixels.inverted:
        for sum_hu in _mirrors_hu(stack):
            if INT16.min <= sum_hu - int(stack.hu.max()) and sum_hu - int(stack.hu.min()) <= INT16.max:
                mirrored = np.subtract(np.int32(sum_hu), stack.hu, dtype=np.int32).astype(np.int16)
                if _is_sound(mirrored):
                    stack.hu = mirrored
                    stack.own_flags.add("inverted")
                    return stack, "sound"
    return stack, scale


def _is_sound(hu: np.ndarray) -> bool:
    return hounsfield.scale_of(hu) == "sound"


def _mirrors_hu(stack: _Stack) -> list[int]:
    """Sums of a value and its mirror image: of the whole range of stored values, and of the range that occurs."""
    image = stack.images[0]
    stored_sum = -1 if image.pixels.signed else (1 << image.pixels.bits_stored) - 1
    return [round(image.slope * stored_sum + 2 * image.intercept), int(stack.hu.min()) + int(stack.hu.max())]


def _padding_hu(images: Iterable[Instance]) -> list[tuple[float, float]]:
    """Ranges of Hounsfield values that Pixel Padding Value and Range Limit mean, in every sense that they may have.

    The sign of the value may disagree with Pixel Representation, and its high bits may have been cut off with the
    unused bits of the data.
    """
    ranges = set()
    for image in images:
        pixels = image.pixels
        if not pixels.padding:
            continue
        senses = {pixels.padding}
        if max(pixels.padding) >> 15:
            senses.add(tuple(value - (1 << 16) if value >> 15 else value for value in pixels.padding))
        if pixels.bits_stored < 16:
            senses.add(tuple(value & ((1 << pixels.bits_stored) - 1) for value in pixels.padding))
        for sense in senses:
            ends = np.clip([image.slope * value + image.intercept for value in sense], INT16.min, INT16.max)
            ranges.add((float(np.rint(ends.min())), float(np.rint(ends.max()))))
    return sorted(ranges)


# What is known besides the voxels


def _header(stack: _Stack, pseudonyms: Pseudonyms, flags: set[str]) -> Header:
    images = stack.images
    first = images[0]
    given = [image.contrast for image in images]
    contrast = True if True in given else False if False in given else None
    if any(image.contrast_in_words for image in images if image.contrast == contrast):
        flags.add("contrast-in-words")
    patient = next((image.patient_id for image in images if image.patient_id), "")
    study_uid = next((image.study_uid for image in images if image.study_uid), "")
    if not patient:
        flags.add("no-patient-id")
    kernels, voltages = {image.kernel for image in images} - {""}, {image.kvp for image in images} - {None}
    if max(len(kernels), len(voltages)) > 1:
        flags.add("mixed-settings")
    content = "\n".join(sorted(f"{image.sop_uid} {image.frame or 0}" for image in images))
    # some exporters number the images of every patient from 1
    scan_id = pseudonyms.of("scan", "\n".join([patient, study_uid, first.series_uid, content]))
    study = study_uid or first.series_uid or scan_id
    return Header(
        source="dicom",
        manufacturer=first.manufacturer,
        model=first.model,
        kernel=_most_common(image.kernel for image in images),
        kvp=_most_common(image.kvp for image in images),
        contrast=contrast,
        age=first.age,
        sex=first.sex,
        patient_id=pseudonyms.of("patient", patient or study),
        study_id=pseudonyms.of("study", study),
        series_id=pseudonyms.of("series", first.series_uid or scan_id),
        scan_id=scan_id,
        transfer_syntax=_most_common(image.pixels.transfer_syntax for image in images),
        decoder=_most_common(stack.decoders),
        flags=tuple(sorted(flags)),
    )


H = TypeVar("H", bound=Hashable)


def _most_common(values: Iterable[H]) -> H:
    """The most frequent value; of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


# Whole volumes in one file

_READERS: dict[str, Callable[[Source], RawVolume]] = {
    "nifti": nifti.read_volume,
    "nrrd": nrrd.read_volume,
    "metaimage": metaimage.read_volume,
}


def _load_grid(grid: GridFile, pseudonyms: Pseudonyms) -> tuple[Scan | None, list[Rejection]]:
    announce(grid.source.name)
    raw = _READERS[grid.kind](grid.source)
    if found := mask_in(raw.values):
        raise Fault("side-file", found)
    converted = hounsfield.to_hounsfield(raw.values)
    if isinstance(converted, str):
        raise Fault("not-hounsfield", converted)
    hu, repairs, hu_flags = converted
    flags = {*raw.flags, *hu_flags, "no-patient-id"}
    across = np.cross(raw.row_step_mm, raw.col_step_mm)
    if geometry.tilt_deg(raw.origins_mm, across / np.linalg.norm(across)) > geometry.LIMITS.tilt_deg:
        flags.add("tilt")
    scan = Scan(
        hu=hu,
        origins_mm=raw.origins_mm,
        row_step_mm=raw.row_step_mm,
        col_step_mm=raw.col_step_mm,
        thickness_mm=raw.thickness_mm,
        header=_grid_header(grid, pseudonyms, flags),
        repairs=repairs,
    )
    return scan, []


def _grid_header(grid: GridFile, pseudonyms: Pseudonyms, flags: set[str]) -> Header:
    """Such a file names nobody; its content stands for patient, study and series, its name where names are kept."""
    identity = grid.source.name if pseudonyms.keep else grid.digest
    return Header(
        source=grid.kind,
        patient_id=pseudonyms.of("patient", identity),
        study_id=pseudonyms.of("study", identity),
        series_id=pseudonyms.of("series", identity),
        scan_id=pseudonyms.of("scan", grid.digest),
        decoder=grid.kind,
        flags=tuple(sorted(flags)),
    )
