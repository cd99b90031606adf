"""Which DICOM objects are CT images, and under what name the others are turned away."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headct.reading.faults import Fault

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED_ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2.2"
CT_CLASSES = frozenset({CT_IMAGE, ENHANCED_CT_IMAGE, LEGACY_CONVERTED_ENHANCED_CT_IMAGE})
DIRECTORY = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and, with a suffix, its multi-frame kinds


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What a header says the object is; empty where it says nothing."""

    sop_class: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    has_matrix: bool = True
    samples_per_pixel: int = 1
    photometric: str = ""
    rescale_type: str = ""
    conversion_type: str = ""
    scan_options: str = ""
    series_description: str = ""
    calculation_technique: str = ""  # Volume Based Calculation Technique (0008,9207)
    axial: bool = False


def refuse(nature: Nature) -> Fault | None:
    """Why an object is not a CT slice in Hounsfield units, by name; None where it may be one.

    Image Type (0008,0008) is judged by its words, not by DERIVED or SECONDARY alone: reformats and re-encoded
    copies carry those and are Hounsfield units all the same. An object without Modality (0008,0060) is what its SOP
    class says.
    """
    return _not_ct(nature) or _localizer(nature) or _capture(nature) or _film(nature) or _derived(nature)


def _not_ct(nature: Nature) -> Fault | None:
    modality, sop_class = nature.modality.upper(), nature.sop_class
    if sop_class == DIRECTORY:
        return Fault("not-an-image", "a DICOM directory (DICOMDIR)")
    is_ct_class = sop_class in CT_CLASSES or (not sop_class and modality == "CT")
    is_capture = sop_class.startswith(SECONDARY_CAPTURE) and modality in ("", "CT", "OT", "SC")
    if (is_ct_class and modality in ("", "CT", "OT")) or is_capture:
        return None
    kind = f"modality {modality}" if re.fullmatch(r"[A-Z]{2,16}", modality) else "no modality"
    if not nature.has_matrix:
        if not (sop_class or modality):
            return Fault("damaged", "a DICOM file that does not say what it holds")
        return Fault("not-an-image", f"a DICOM object without an image ({kind})")
    return Fault("not-ct", f"not a CT image ({kind})")


_LOCALIZER = re.compile(r"LOCALI[SZ]ER|SCOUT|TOPOGRAM|SURVIEW|SCANOGRA|\bTOP\b|SCANO\b")


def _localizer(nature: Nature) -> Fault | None:
    said = _words(nature.image_type) + " " + nature.scan_options.upper()
    if not nature.axial:  # a stack may be described by the scout that planned it
        said += " " + nature.series_description.upper()
    return Fault("localizer", "a localizer (scout, topogram, surview)") if _LOCALIZER.search(said) else None


_CAPTURE = re.compile(
    r"\bSCREEN|\bCAPTURE|\bDOSE[ _]|\bDOSE\b|_INFO\b|\bPATIENT[ _]INFO|\bRESULTS\b|\bPROT\b|\bPROTOCOL\b"
    r"|\bSUMMARY\b|\bREPORT\b|\bGRAPH\b"
)


def _capture(nature: Nature) -> Fault | None:
    if nature.samples_per_pixel != 1 or nature.photometric.upper() not in ("", "MONOCHROME1", "MONOCHROME2"):
        return Fault("screen-capture", "a colour picture, not a CT slice")
    if _CAPTURE.search(_words(nature.image_type)):
        return Fault("screen-capture", "a page of text or a screen capture (dose, patient, protocol, results)")
    return None


def _film(nature: Nature) -> Fault | None:
    if nature.conversion_type.upper() in ("DF", "SD", "DRW"):
        return Fault("film", "a digitised film or document")
    if nature.sop_class.startswith(SECONDARY_CAPTURE):
        return Fault("film", "a secondary capture, not the original CT image")
    return None


_PROJECTION = re.compile(
    r"\b(MAX|MIN|MAXIMUM|MINIMUM)[ _]?IP\b|\bM(N|X|IN|AX)?IPS?\b|\bVRT\b|\bSSD\b|\bRAYSUM|RENDER"
    r"|\bPROJECTION IMAGE\b|\bCURVED\b"
)
_MAP = re.compile(
    r"PERFUSION|\bR?CB[FV]\b|\bR?MTT\b|\bR?TTP\b|\bTTD\b|\bTMAX\b|\bPBV\b|PENUMBRA|PERMEABILITY|\bSUBTRACT|\bDSA\b"
    r"|\bMATERIAL|\bIODINE\b|\bVNC\b|\bMD\b|\bRHO\b|\bZ_?EFF|\bCALCIUM\b|\bURIC"
)
_NOT_HU_TYPES = frozenset({"MGML", "PCT", "OD", "ED", "EDW", "Z_EFF", "ZEFF"})  # PS3.3 C.11.1.1.2
_PROJECTING = frozenset({"MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"})  # PS3.3 C.8.16.2.1.4


def _derived(nature: Nature) -> Fault | None:
    words = _words(nature.image_type)
    if _PROJECTION.search(words) or nature.calculation_technique.upper() in _PROJECTING:
        return Fault("projection", "a projection or a rendering, not a slice")
    original = "ORIGINAL" in words.split()
    if nature.rescale_type.upper() in _NOT_HU_TYPES or (not original and _MAP.search(words)):
        return Fault("derived-map", "a derived map (perfusion, material, subtraction), not Hounsfield units")
    if not original and "DERIVED" in words.split():
        said = nature.series_description.upper()
        if _PROJECTION.search(said):
            return Fault("projection", "a projection or a rendering by its description, not a slice")
        if _MAP.search(said):
            return Fault("derived-map", "a derived map by its description, not Hounsfield units")
    return None


def _words(image_type: tuple[str, ...]) -> str:
    return " ".join(image_type).upper()
