"""One small image in every compressed transfer syntax, to see that this machine's codecs decode it.

The image is a ramp, 16 x 16, 12 bits: 16 * (16 * row + column); for JPEG baseline 8 bits: 8 * (row + column). Encoded
once: RLE by pydicom 3.0.2, JPEG lossless of first order by gdcm 3.2.6, the others by imagecodecs 2026.3.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

SIDE = 16  # rows and columns


@dataclass(frozen=True)
class Sample:
    """A codestream in base 64, and how far from the ramp its decoded values may lie (0: lossless)."""

    codestream: str
    tolerance: int = 0
    bits: int = 12

    @property
    def ramp(self) -> np.ndarray:
        """What decoding must give: (rows, columns), uint8 or uint16."""
        row, column = np.indices((SIDE, SIDE))
        if self.bits == 8:
            return (8 * (row + column)).astype(np.uint8)
        return (16 * (16 * row + column)).astype(np.uint16)


SAMPLES: Mapping[str, Sample] = MappingProxyType(
    {
        "1.2.840.10008.1.2.5": Sample(
            "AgAAAEAAAABgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPEA8QHxAvED8QTx"
            "BfEG8QfxCPEJ8QrxC/EM8Q3xDvEPDwAQIDBAUGBwgJCgsMDQ4PAPABAgMEBQYHCAkKCwwNDg8A8AECAwQFBgcICQoLDA0ODwDwAQ"
            "IDBAUGBwgJCgsMDQ4PAPABAgMEBQYHCAkKCwwNDg8A8AECAwQFBgcICQoLDA0ODwDwAQIDBAUGBwgJCgsMDQ4PAPABAgMEBQYHCA"
            "kKCwwNDg8A8AECAwQFBgcICQoLDA0ODwDwAQIDBAUGBwgJCgsMDQ4PAPABAgMEBQYHCAkKCwwNDg8A8AECAwQFBgcICQoLDA0ODw"
            "DwAQIDBAUGBwgJCgsMDQ4PAPABAgMEBQYHCAkKCwwNDg8A8AECAwQFBgcICQoLDA0ODwDwAQIDBAUGBwgJCgsMDQ4PA=",
        ),
        "1.2.840.10008.1.2.4.50": Sample(
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoK"
            "CgoKBggLDAsKDAkKCgr/wAALCAAQABABAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
            "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
            "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
            "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APzf/Zt/Zt/49/8AQPT+Gv0A/Zt/Zt/49/8AQPT+Gj9m39m3/j3/ANA9P4a/QD9m"
            "39m3/j3/ANA9P4a//9k=",
            tolerance=2,
            bits=8,
        ),
        "1.2.840.10008.1.2.4.51": Sample(
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoK"
            "CgoKBggLDAsKDAkKCgr/wQALDAAQABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAACg3/xAAbEAAABwEAAAAAAAAAAAAAAAAACQ0p"
            "NEdS4//aAAgBAQAAPwCdvltpuNAYXzW3IIALbTcaAwvmtuQvABbabjQGF81tyCAC203GgML5rbkP/9k=",
            tolerance=20,
        ),
        "1.2.840.10008.1.2.4.57": Sample(
            "/9j/xAAXAAEBAQEAAAAAAAAAAAAAAAAICQUM/8MACwwAEAAQAQARAP/aAAgBAAAGAADn/wDQ0NDQ0NDQ0NDQ0NDQ0NCgCAQCAQCA"
            "QCAQCAQCAQCAQCAoAgEAgEAgEAgEAgEAgEAgEAgKAIBAIBAIBAIBAIBAIBAIBAICgCAQCAQCAQCAQCAQCAQCAQCAoAgEAgEAgEAg"
            "EAgEAgEAgEAgKAIBAIBAIBAIBAIBAIBAIBAICgCAQCAQCAQCAQCAQCAQCAQCAoAgEAgEAgEAgEAgEAgEAgEAgKAIBAIBAIBAIBAI"
            "BAIBAIBAICgCAQCAQCAQCAQCAQCAQCAQCAoAgEAgEAgEAgEAgEAgEAgEAgKAIBAIBAIBAIBAIBAIBAIBAICgCAQCAQCAQCAQCAQC"
            "AQCAQCAoAgEAgEAgEAgEAgEAgEAgEAgKAIBAIBAIBAIBAIBAIBAIBAIA/9k=",
        ),
        "1.2.840.10008.1.2.4.70": Sample(
            "/9j/wwALEAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABQkQ/9oACAEBAAEAAMgggggggggggggghQBBBBBBBBBBBBBBBCgC"
            "CCCCCCCCCCCCCCFAEEEEEEEEEEEEEEEKAIIIIIIIIIIIIIIIUAQQQQQQQQQQQQQQQoAgggggggggggggghQBBBBBBBBBBBBBBBCg"
            "CCCCCCCCCCCCCCCFAEEEEEEEEEEEEEEEKAIIIIIIIIIIIIIIIUAQQQQQQQQQQQQQQQoAgggggggggggggghQBBBBBBBBBBBBBBBC"
            "gCCCCCCCCCCCCCCCFAEEEEEEEEEEEEEEEP/Z",
        ),
        "1.2.840.10008.1.2.4.80": Sample(
            "/9j/6AAgU1BJRkYAAgAAAQAAABAAAAAQChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQABAAEAEBEQD/+AANAf//ABIAQwEUAED/"
            "2gAIAQEAAAAAoPwfg/B2G4PwdhuGYvFYnEY+NwBCCD0OQ1GItFIlIR0ZGRUVCDAERERERGjRo0aNEiRIkHr/IkSJEiRIkSFCiiii"
            "hz/Iooooooooooooooa/qKKKKKKKKKKKKKCMfxBCEIQhCEIQhCLftCEIQhCEIQhCEU/SEIQhEREREREvyiIiIiIiIiJD8IiIiIiJ"
            "JJHfdJJJJJJJGfZJJJJJJUZ9VVVVVRX0VVVVVFfNX/8I/9k=",
        ),
        "1.2.840.10008.1.2.4.81": Sample(
            "/9j/6AAgU1BJRkYAAgAAAQAAABAAAAAQChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQABAAEAEBEQD/+AANAf//ABgATQEiAED/"
            "2gAIAQEAAgAAoLBYPCwcHhYOLDixwxw2aDQ0NGiRJJJIopIoIRZpSlCUoShKEoShuaUKiKiIqIiIbmioiIqIiKiI3NERURJpJJE5"
            "JJJJJJJInJJJJJJVSclVVVVSclVVVVk5P/9Fxf9+Li//cjF//wmL/3xMX/9k/9k=",
            tolerance=2,
        ),
        "1.2.840.10008.1.2.4.90": Sample(
            "/0//UQApAAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABCwEB/1IADAAAAAEAAQQEAAH/XAAHQGBoaHD/ZAAlAAFD"
            "cmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABeAAH/k9/g9BIrAwsLE+S5L4U/OFCLF3Xs/uu7v5kK41dJ"
            "ijMPeCQK4ToLNdAH+QBsRY8PBFqgRlGN7gnTuodlVO+c/Z/AHzhIPzBQNqGZzz2mNGDP/9k=",
        ),
        "1.2.840.10008.1.2.4.91": Sample(
            "/0//UQApAAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABCwEB/1IADgECAAEAAQQEAACIiP9cAAtCaCR303fTd2L/"
            "ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABbAAH/k8+w0BDcQjzmV0PjwMlgHFEhmCG+drQz"
            "pg2vck/slq6B88WrDIg96CMPm+b0Z8ndKVlDe/MBS8zABHAfGNA2oX49pi1lYRmDbcDtwoAH/9k=",
            tolerance=20,
        ),
        "1.2.840.10008.1.2.4.201": Sample(
            "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
            "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAH4AAf+TwAAmSfYFB3QAAMAAEsAAEwAiAYd0"
            "AEbyA4d0AMAAE0AAE4AQyAECdAAe6ZEAw1QAwAAVEAAFYIZhGKpwgnUAfvTDDz/+wFKB7LYAwAArIAAWkO7u7u7nwKenp8J4AP79"
            "/f39/f39/Yxge/Yxgey6AP/Z",
        ),
    }
)
"""By transfer syntax UID."""
