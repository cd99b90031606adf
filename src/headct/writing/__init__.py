"""`Scan` and arrays to files: DICOM series and NIfTI volumes on the geometry they have, nothing resampled."""

from headct.writing.dicom import TRANSFER_SYNTAXES, write_dicom
from headct.writing.nifti import write_nifti

__all__ = ["TRANSFER_SYNTAXES", "write_dicom", "write_nifti"]
