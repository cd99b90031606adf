"""What the readers of whole volumes give: values on a grid, one matrix away from patient space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.reading.faults import Fault


@dataclass(frozen=True, kw_only=True)
class VolumeLimits:
    """What a volume in one file may measure, checked from its header before memory is asked for."""

    axis_voxels: int = 8192
    volume_bytes: int = 1536 << 20  # as stored; a float64 volume of 512 x 512 x 700 still fits
    step_mm: tuple[float, float] = (0.01, 100.0)  # shortest and longest distance of two neighbouring voxels
    origin_mm: float = 1e5  # of the first voxel from the origin, along any axis
    flatness: float = 0.05  # volume of a voxel by the product of its edges: 1 upright, 0 where its axes lie in a plane


LIMITS = VolumeLimits()


@dataclass(frozen=True, kw_only=True)
class RawVolume:
    """A volume as its file gives it, its own linear scaling applied, not yet known to be Hounsfield units.

    `values` is (slices, rows, cols) of any integer or float dtype, often a view with negative strides. The centre of
    voxel (s, r, c) lies at `origins_mm[s] + r * row_step_mm + c * col_step_mm` in RAS mm. `thickness_mm` is the gap
    along the normal, since such files do not state a thickness.
    """

    values: np.ndarray
    origins_mm: np.ndarray
    row_step_mm: np.ndarray
    col_step_mm: np.ndarray
    thickness_mm: float
    flags: tuple[str, ...] = ()


def check_shape(shape: tuple[int, ...], itemsize_bytes: int, limits: VolumeLimits) -> None:
    """Raises Fault where a shape is not that of one volume (not-spatial) or is beyond the limits (too-large)."""
    if len(shape) != 3 or min(shape) < 1:
        raise Fault("not-spatial", f"its shape is {' x '.join(map(str, shape))}, not that of one 3D volume")
    volume_bytes = itemsize_bytes * shape[0] * shape[1] * shape[2]
    if max(shape) > limits.axis_voxels or volume_bytes > limits.volume_bytes:
        size = f"{' x '.join(map(str, shape))} voxels ({volume_bytes / 1e6:,.0f} MB)"
        raise Fault("too-large", f"it claims {size}; the limit is {limits.volume_bytes / 1e6:,.0f} MB")


def stored_values(data: bytes | bytearray, start_byte: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The values (i, j, k) that lie in `data` from a byte on, the first axis fastest; native byte order.

    A read-only view where the bytes are in native order. Raises Fault (damaged) where they end too early.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - start_byte < count * dtype.itemsize:
        present, needed = max(0, len(data) - start_byte), count * dtype.itemsize
        raise Fault("damaged", f"it should hold {needed:,} bytes of voxels and holds {present:,}")
    values = np.frombuffer(data, dtype, count, start_byte).reshape(shape, order="F")
    return values.astype(dtype.newbyteorder("="), copy=False)


def values_from_text(text: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The values (i, j, k) written as decimal numbers. Raises Fault: damaged, or too-large for such a format."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(text) > _LONGEST_TEXT_BYTES:
        raise Fault("too-large", f"{len(text) / 1e6:,.0f} MB of numbers written as text; store them as binary")
    words = text.split()
    if len(words) != count:
        raise Fault("damaged", f"it should hold {count:,} numbers and holds {len(words):,}")
    try:
        return np.array(words).astype(dtype).reshape(shape, order="F")
    except (ValueError, OverflowError):
        raise Fault("damaged", "some of its voxels are no numbers of the type it says") from None


def volume_from_affine(
    values_ijk: np.ndarray,
    affine_ras: np.ndarray,
    *,
    flags: tuple[str, ...] = (),
    limits: VolumeLimits = LIMITS,
) -> RawVolume:
    """The volume (slices, rows, cols) from values (i, j, k) and the (4, 4) matrix from voxel (i, j, k) to RAS mm.

    The slice axis is the one axis of a single voxel, if there is just one; else the one whose step is at least
    1.5 times as long as both others (thick slices, whatever their direction); else the one nearest to
    superior-inferior. Of the other two, columns run along the one nearer to right-left. All three are then turned so
    that slices go up, rows to the back and columns to the patient's left (as in axial DICOM), or, for axes that lie
    crosswise to these, along the largest component that is left. Nothing here looks at the order or direction of
    the stored axes, so a volume stored flipped or permuted gives the same values and geometry. The result is a view.

    Raises Fault (no-geometry) where the matrix is not finite, is singular, or its steps are beyond the limits.
    """
    affine_ras = np.asarray(affine_ras, dtype=np.float64)
    steps_mm = _checked_steps(affine_ras, limits)
    order = _slices_rows_cols(values_ijk.shape, steps_mm)
    values, steps_mm = values_ijk.transpose(order), steps_mm[list(order)]
    origin_mm = affine_ras[:3, 3].copy()
    for axis, towards in enumerate(_UP_BACK_LEFT):
        if _runs_against(steps_mm[axis], towards):
            origin_mm = origin_mm + (values.shape[axis] - 1) * steps_mm[axis]
            steps_mm[axis] = -steps_mm[axis]
            values = np.flip(values, axis)
    slice_step, row_step, col_step = steps_mm
    across = np.cross(row_step, col_step)
    return RawVolume(
        values=values,
        origins_mm=origin_mm + np.arange(values.shape[0])[:, None] * slice_step,
        row_step_mm=row_step,
        col_step_mm=col_step,
        thickness_mm=float(abs(slice_step @ across) / np.linalg.norm(across)),
        flags=flags,
    )


_UP_BACK_LEFT = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])  # RAS
_THICK = 1.5
_LONGEST_TEXT_BYTES = 256 << 20
_TIE_DECIMALS = 6  # directions this near count as equal, so that rounding does not decide


def _checked_steps(affine_ras: np.ndarray, limits: VolumeLimits) -> np.ndarray:
    """The steps (3 axes, 3) of a matrix that can be that of a scanner."""
    if affine_ras.shape != (4, 4) or not np.all(np.isfinite(affine_ras)):
        raise Fault("no-geometry", "its matrix to patient space is not made of finite numbers")
    steps_mm = affine_ras[:3, :3].T.copy()
    with np.errstate(over="ignore"):  # a length beyond all numbers is infinite, and too long
        lengths_mm = np.linalg.norm(steps_mm, axis=1)
    shortest, longest = limits.step_mm
    if lengths_mm.min() < shortest or lengths_mm.max() > longest:
        size = " x ".join(f"{length:.4g}" for length in lengths_mm)
        raise Fault("no-geometry", f"its voxels measure {size} mm; between {shortest:g} and {longest:g} is possible")
    if np.abs(affine_ras[:3, 3]).max() > limits.origin_mm:
        raise Fault("no-geometry", f"it lies {np.abs(affine_ras[:3, 3]).max() / 1000:,.4g} m from the origin of space")
    if abs(np.linalg.det(steps_mm / lengths_mm[:, None])) < limits.flatness:
        raise Fault("no-geometry", "the three axes of its voxels lie in one plane")
    return steps_mm


def _slices_rows_cols(shape: tuple[int, ...], steps_mm: np.ndarray) -> tuple[int, int, int]:
    """Which stored axes become slices, rows and columns."""
    lengths_mm = np.linalg.norm(steps_mm, axis=1)
    closeness, lines = np.abs(steps_mm) / lengths_mm[:, None], [_line(step_mm) for step_mm in steps_mm]

    def nearest(axes: list[int], components: list[int]) -> int:
        """The axis nearest to the first of these components of space; the next ones settle a tie, the line the last."""
        ranked = np.round(closeness[:, components], _TIE_DECIMALS).tolist()
        return max(axes, key=lambda axis: (ranked[axis], lines[axis]))

    single = [axis for axis in range(3) if shape[axis] == 1]
    by_length = np.argsort(lengths_mm)
    if len(single) == 1:
        slices = single[0]
    elif lengths_mm[by_length[2]] >= _THICK * lengths_mm[by_length[1]]:
        slices = int(by_length[2])
    else:
        slices = nearest([0, 1, 2], [2, 1, 0])
    others = [axis for axis in range(3) if axis != slices]
    cols = nearest(others, [0, 1, 2])
    return slices, others[others[0] == cols], cols


def _line(step_mm: np.ndarray) -> list[float]:
    """A step without its sense: the same for a step and its opposite."""
    return (-step_mm if step_mm[np.argmax(np.abs(step_mm))] < 0 else step_mm).tolist()


def _runs_against(step_mm: np.ndarray, towards: np.ndarray) -> bool:
    """True where a step leads away from a direction; where it lies crosswise, its largest component decides."""
    along = float(step_mm @ towards) / float(np.linalg.norm(step_mm))
    if abs(along) > 10**-_TIE_DECIMALS:
        return along < 0
    return bool(step_mm[np.argmax(np.round(np.abs(step_mm), _TIE_DECIMALS))] < 0)
