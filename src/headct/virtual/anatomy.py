"""What differs from patient to patient before any disease: age, size, skull, fluid spaces, calcification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.virtual.solids import Vector, vector
from headct.virtual.streams import stream

AGES = (18.0, 95.0)

SIZE = {"F": (1.128, 0.026), "M": (1.084, 0.026)}
"""Template millimetres to one of a head, mean and sd by sex: cavities of 1,330 ± 115 and 1,500 ± 125 ml, as adults'.

Size alone gives 7 % of volume; form, drawn apart, adds the rest.
"""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One head. Lengths in patient millimetres; every field is drawn from the stream `anatomy` of the seed."""

    seed: int
    age: float  # years
    sex: str  # F or M
    scale: Vector  # template millimetres to one of this head, per axis
    shear: Vector  # x by y, x by z, y by z
    warp_mm: Vector  # amplitude of the individual form, correlated over 70 mm, per axis
    folding_mm: float  # amplitude of the brain's own form, correlated over 17 mm
    atrophy: float  # 0 for a young brain to about 1.5
    gap_mm: float  # fluid between skull and brain
    ventricles_mm: float  # how much wider than the average
    ventricle_asymmetry: float  # -0.35..0.35, positive wider on the right
    sulcal_threshold: float
    sulcal_strength: float
    own_gyri: float  # share of the brain whose gyri are its own rather than the template's
    skull_mm: float
    inner_table_mm: float
    scalp_mm: float
    temporalis_mm: float
    skin_mm: float
    pneumatization_mm: float  # sinuses and mastoid cells larger (positive) or smaller
    grey_hu: float
    white_hu: float
    csf_hu: float
    contrast: float  # how sharply grey parts from white
    dura_hu: float
    blood_hu: float  # in vessels
    fat_hu: float
    muscle_hu: float
    table_hu: float
    diploe_hu: float
    base_hu: float
    leukoaraiosis_hu: float
    leukoaraiosis_mm: float
    pineal_hu: float  # 0: not calcified
    plexus_hu: float
    pallidum_hu: float
    falx_spots: int
    artery_calcium: float  # share of the carotid siphons' wall
    shifts: tuple[Vector, ...]  # where this head lies on the noise tiles

    @classmethod
    def draw(cls, seed: int, *, age: float | None = None, sex: str | None = None) -> Anatomy:
        """The anatomy of a seed; a given age or sex replaces the drawn one and leaves all else as it was drawn."""
        rng = stream(seed, "anatomy")
        drawn_age, drawn_sex = float(rng.uniform(*AGES)), "FM"[int(rng.integers(2))]
        age, sex = drawn_age if age is None else float(age), drawn_sex if sex is None else sex
        aged = float(np.clip((age - 45) / 45, 0, 1.1))
        atrophy = aged * rng.uniform(0.3, 1.3) + rng.uniform(0, 0.12)
        mean, sd = SIZE[sex]
        size = mean + sd * rng.standard_normal()
        breadth = rng.normal(0, 0.03)  # brachycephalic to dolichocephalic
        scale = size * np.array([1 + breadth, 1 - breadth, 1]) * rng.normal(1, 0.018, 3)
        uniform = rng.uniform

        def calcified(share: float, low: float, high: float) -> float:
            value = uniform(low, high)
            return float(value) if uniform() < share else 0.0

        return cls(
            seed=seed,
            age=age,
            sex=sex,
            scale=vector(scale),
            shear=vector(uniform(-0.04, 0.04, 3)),
            warp_mm=vector(uniform(0.8, 2.2, 3)),
            folding_mm=float(uniform(0.8, 1.8)),
            atrophy=float(atrophy),
            gap_mm=float(uniform(0.2, 1.2) + 3.0 * atrophy * uniform(0.5, 1)),
            ventricles_mm=float(min(13.0, uniform(-1.6, 1.6) + 12.5 * atrophy * uniform(0.45, 1))),
            ventricle_asymmetry=float(uniform(-0.35, 0.35)),
            sulcal_threshold=float(uniform(0.62, 0.90) - 0.5 * atrophy),
            sulcal_strength=float(uniform(0.75, 1)),
            own_gyri=float(uniform(0.3, 0.8)),
            skull_mm=float(np.clip(5.8 * np.exp(rng.normal(0, 0.17)), 3.8, 9) * (1.03 if sex == "F" else 0.97)),
            inner_table_mm=float(uniform(0.8, 2.0)),
            scalp_mm=float(np.clip(5.5 * np.exp(rng.normal(0, 0.3)), 2.8, 13)),
            temporalis_mm=float(uniform(3, 9)),
            skin_mm=float(uniform(1.9, 2.8)),
            pneumatization_mm=float(rng.normal(0, 1.1)),
            grey_hu=float(uniform(35.5, 40.0)),
            white_hu=float(uniform(26.0, 30.0)),
            csf_hu=float(uniform(3, 10)),
            contrast=float(uniform(1.4, 2.2)),
            dura_hu=float(uniform(40, 58)),
            blood_hu=float(uniform(42, 60)),
            fat_hu=float(uniform(-105, -75)),
            muscle_hu=float(uniform(46, 58)),
            table_hu=float(uniform(1250, 1800)),
            diploe_hu=float(uniform(450, 900)),
            base_hu=float(uniform(700, 950)),
            leukoaraiosis_hu=float(-11 * atrophy * uniform(0, 1)),
            leukoaraiosis_mm=float(uniform(4, 9)),
            pineal_hu=calcified(0.53 + 0.25 * np.clip((age - 18) / 42, 0, 1), 70, 400),
            plexus_hu=calcified(0.36 + 0.40 * np.clip((age - 18) / 52, 0, 1), 60, 350),
            pallidum_hu=calcified(0.08 + 0.15 * aged, 50, 160),
            falx_spots=int(calcified(0.15, 1, 4)),
            artery_calcium=calcified(0.5 if age > 55 else 0.0, 0.3, 1),
            shifts=tuple(vector(row) for row in uniform(0, 1, (5, 3))),
        )

    @property
    def mean_scale(self) -> float:
        """Template millimetres to one of this head, whatever the direction."""
        return float(np.mean(self.scale))
