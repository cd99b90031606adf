"""Four hospitals that do not exist: their scanners, protocols and habits.

Manufacturer, model and kernel are strings as real scanners write them (0008,0070; 0008,1090; 0018,1210), so that
software that reads them meets what it will meet. No vendor has anything to do with this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one scanner takes a head. Ranges are drawn from uniformly for each scan."""

    manufacturer: str
    model: str
    kernel: str
    bone_kernel: str = ""  # of a second, sharper series, where the site sends one
    kvp: float
    thickness_mm: float
    gap_mm: float
    second_stack: tuple[float, float] | None = None  # thickness and gap above the base, where two stacks are taken
    field_mm: Range = (224.0, 250.0)  # width of the image, which has 512 pixels
    tilt_deg: Range = (0.0, 0.0)
    blur_mm: Range = (0.35, 0.5)  # sigma of the kernel's softness, which image and noise share
    sharpening: Range = (0.0, 0.1)
    noise_hu: Range = (2.5, 4.0)  # at the image's own pixels, in the middle of an average head
    noise_blur_mm: Range = (0.0, 0.0)  # sigma of what iterative reconstruction smooths in the noise alone
    limit_per_mm: float = 0.8  # the highest frequency of the kernel
    wings_mm: float = 0.0  # sigma of the edges of a slice's profile: none where the table stands still
    offset_hu: Range = (-5.0, 0.0)
    cupping_hu: Range = (0.0, 4.0)
    motion: float = 0.06  # how often the patient moves
    off_centre_mm: float = 6.0
    below_mm: Range = (66.0, 82.0)  # how far below the origin the first slice lies
    above_mm: Range = (84.0, 96.0)
    truncated: float = 0.02  # how often the scan begins too high or ends too low
    head_rest: float = 0.8
    strap: float = 0.3  # how often a band holds the forehead
    padding_hu: int | None = None  # outside the circle of reconstruction
    transfer_syntax: str = "explicit-little"
    intercept_hu: int = -1024


@dataclass(frozen=True, kw_only=True)
class Site:
    """A hospital: protocols with their shares, and what its archive sends along."""

    name: str
    protocols: tuple[Protocol, ...]
    shares: tuple[float, ...]
    localizer: float = 0.5  # how often a study has one
    capture: float = 0.2  # how often a dose page is among its images
    thin_copy: float = 0.0  # how often a second, sharper series follows

    def protocol(self, rng: np.random.Generator) -> Protocol:
        """One of the protocols, by its share."""
        return self.protocols[int(rng.choice(len(self.protocols), p=self.shares))]


SITE_A = Site(
    name="site-a",
    protocols=(
        Protocol(
            manufacturer="Philips", model="Brilliance 64", kernel="UB", kvp=120, thickness_mm=5.0, gap_mm=5.0,
            noise_hu=(1.8, 3.4), transfer_syntax="jpeg-ls", blur_mm=(0.46, 0.56), limit_per_mm=0.75, wings_mm=0.8,
            strap=0.6,
        ),
        Protocol(
            manufacturer="Philips", model="Ingenuity CT", kernel="UB", kvp=120, thickness_mm=3.0, gap_mm=3.0,
            noise_hu=(2.2, 4.2), offset_hu=(-4.0, 1.0), blur_mm=(0.46, 0.56), limit_per_mm=0.75, wings_mm=0.6,
            noise_blur_mm=(0.0, 0.2), strap=0.6, below_mm=(72.0, 92.0),
        ),
    ),
    shares=(0.7, 0.3),
)  # fmt: skip
SITE_B = Site(
    name="site-b",
    protocols=(
        Protocol(
            manufacturer="GE MEDICAL SYSTEMS", model="LightSpeed VCT", kernel="STANDARD", kvp=120, thickness_mm=5.0,
            gap_mm=5.0, tilt_deg=(8.0, 20.0), offset_hu=(-8.0, -2.0), noise_hu=(3.0, 5.5), padding_hu=-3024,
            field_mm=(228.0, 250.0), blur_mm=(0.32, 0.46), head_rest=0.95, strap=0.1,
        ),
        Protocol(
            manufacturer="GE MEDICAL SYSTEMS", model="HiSpeed DX/i", kernel="STD+", kvp=140, thickness_mm=4.0,
            gap_mm=4.0, second_stack=(7.0, 7.0), tilt_deg=(10.0, 20.0), offset_hu=(-9.0, -3.0), noise_hu=(3.0, 5.0),
            padding_hu=-1500, intercept_hu=0, field_mm=(250.0, 250.0), blur_mm=(0.3, 0.44), truncated=0.04,
            strap=0.1,
        ),
    ),
    shares=(0.75, 0.25),
    capture=0.35,
)  # fmt: skip
SITE_C = Site(
    name="site-c",
    protocols=(
        Protocol(
            manufacturer="SIEMENS", model="SOMATOM Definition AS", kernel="J40s\\3", bone_kernel="J70h\\3", kvp=120,
            thickness_mm=1.0, gap_mm=1.0, noise_hu=(5.0, 9.0), noise_blur_mm=(0.2, 0.4), offset_hu=(-3.0, 3.0),
            blur_mm=(0.3, 0.45), transfer_syntax="jpeg-2000", off_centre_mm=10.0, wings_mm=0.3, field_mm=(225.0, 265.0),
            below_mm=(72.0, 92.0), cupping_hu=(0.0, 2.0),
        ),
        Protocol(
            manufacturer="SIEMENS", model="SOMATOM Force", kernel="Hr40d\\3", bone_kernel="Hr60h\\3", kvp=100,
            thickness_mm=0.75, gap_mm=0.6,
            noise_hu=(6.0, 10.0), noise_blur_mm=(0.35, 0.5), offset_hu=(0.0, 5.0), blur_mm=(0.3, 0.4), wings_mm=0.25,
            field_mm=(220.0, 255.0), below_mm=(72.0, 92.0), cupping_hu=(0.0, 2.0),
        ),
    ),
    shares=(0.8, 0.2),
    thin_copy=0.3,
)  # fmt: skip
SITE_D = Site(
    name="site-d",
    protocols=(
        Protocol(
            manufacturer="TOSHIBA", model="Aquilion", kernel="FC26", kvp=120, thickness_mm=5.0, gap_mm=5.0,
            noise_hu=(5.5, 9.0), blur_mm=(0.25, 0.38), sharpening=(0.1, 0.35), limit_per_mm=1.05, wings_mm=0.5,
            offset_hu=(-6.0, 2.0), transfer_syntax="jpeg-lossless", padding_hu=-2048, intercept_hu=0,
            field_mm=(224.0, 240.0), truncated=0.05,
        ),
        Protocol(
            manufacturer="NMS", model="NeuViz 128", kernel="F20", kvp=120, thickness_mm=5.0, gap_mm=5.0,
            noise_hu=(4.0, 7.0), offset_hu=(-2.0, 5.0), transfer_syntax="implicit-little", motion=0.12, wings_mm=0.8,
            field_mm=(235.0, 260.0), truncated=0.08, off_centre_mm=9.0, head_rest=0.4,
        ),
        Protocol(
            manufacturer="Hitachi Medical Corporation", model="Supria", kernel="22", kvp=120, thickness_mm=7.0,
            gap_mm=7.0, tilt_deg=(-22.0, -8.0), noise_hu=(3.5, 6.0), blur_mm=(0.48, 0.62), offset_hu=(-7.0, 0.0),
            limit_per_mm=0.75, cupping_hu=(1.0, 6.0), truncated=0.05,
        ),
    ),
    shares=(0.5, 0.3, 0.2),
    localizer=0.7,
)  # fmt: skip

SITES: Mapping[str, Site] = MappingProxyType({site.name: site for site in (SITE_A, SITE_B, SITE_C, SITE_D)})
"""Site A is the internal one; B is tilted and thick, C thin, D noisy and mixed: the outside cohorts."""
