"""What is done to a scan before a network sees it, as a value: compared, hashed, stored beside every array.

A `Recipe` is a list of steps, in the order in which they are done. Our own have one step, `Frame`: a single resample
from the scanner's grid onto a box around the head. The published ones spell out the chain of steps that their
authors ran, with every size a field of its step:

    recipes["ct-fm-pretrain"].with_steps(Pad(at_least=(40, 96, 96), fill=-1024.0))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar

from headct.failure import Misuse
from headct.preparing.windows import WINDOWS, Window

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

LINE_MINIMUM = "line-minimum"


def _must_be_one_of(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One anti-aliased resample onto an upright RAS grid that is placed by the head (`headct.preparing.head`).

    The grid is centred on the braincase from side to side and from front to back; its upper face lies
    `above_vertex_mm` above the top of the braincase, wherever the scan begins and ends.
    """

    spacing_mm: Triple
    shape: Shape
    above_vertex_mm: float = 20.0
    """Skull and scalp at the vertex measure 8 to 16 mm together."""
    fill_hu: int = -1000
    """Where nothing was acquired."""
    edition: int = 1
    """Counts changes of the head finding or of the kernel that change arrays, so that they change the id."""


@dataclass(frozen=True)
class Orient:
    """Permute and flip axes so that they grow towards these letters (the nearest, where the scan is oblique)."""

    axes: str

    def __post_init__(self) -> None:
        if sorted(self.axes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
            raise ValueError(f"axes are three letters, one each of R/L, A/P and S/I; got {self.axes!r}")


@dataclass(frozen=True)
class Resample:
    """To `spacing_mm` along the scan's own directions; a shear between them is taken out. Edges are replicated."""

    spacing_mm: Triple
    spline: str
    """`linear`, or `cubic` with the B-spline prefilter."""

    def __post_init__(self) -> None:
        _must_be_one_of("spline", self.spline, "linear", "cubic")


@dataclass(frozen=True)
class Crop:
    """To the smallest box that holds every voxel above a value, in the unit of the values at that step."""

    above: float
    margin_voxels: int = 0
    beyond: float | None = None
    """What the margin holds outside the image; None: the box ends there."""


@dataclass(frozen=True)
class Pad:
    """To at least this shape, on both sides alike; the odd voxel goes behind."""

    at_least: Shape
    fill: float | str
    """A value, or `line-minimum`: axis by axis, each line goes on with its own minimum."""


@dataclass(frozen=True)
class CenterCrop:
    """To at most this shape around the middle voxel."""

    at_most: Shape


@dataclass(frozen=True)
class Windows:
    """Each window (level, width) in HU to 0..1, clipped."""

    windows: tuple[Window, ...]
    stacked_along: str = "channel"
    """`channel`, or `first-axis`: copies of the head one after the other along the first spatial axis."""

    def __post_init__(self) -> None:
        _must_be_one_of("stacked_along", self.stacked_along, "channel", "first-axis")


@dataclass(frozen=True)
class Resize:
    """To exactly this shape by averaging the voxels that each new one touches; the aspect ratio is not kept."""

    shape: Shape


Step = Frame | Orient | Resample | Crop | Pad | CenterCrop | Windows | Resize
S = TypeVar("S", bound=Step)
_KINDS: Mapping[str, type[Step]] = MappingProxyType(
    {
        "frame": Frame,
        "orient": Orient,
        "resample": Resample,
        "crop": Crop,
        "pad": Pad,
        "center-crop": CenterCrop,
        "windows": Windows,
        "resize": Resize,
    }
)
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a scan becomes an array. Two recipes with the same content have the same `id`, whatever their names.

    Raises ValueError where the steps cannot follow each other.
    """

    name: str
    steps: tuple[Step, ...]
    dtype: str
    """Of the array: `int16` for HU, `float32` or `float16` for windowed values in 0..1."""
    as_read: bool
    """Take HU as read, before our repairs of padding and intercept, as published systems do."""

    def __post_init__(self) -> None:
        kinds = [type(step) for step in self.steps]
        ours = kinds == [Frame]
        published = kinds[:1] == [Orient] and Frame not in kinds and len(set(kinds)) == len(kinds)
        if not (ours or published):
            raise ValueError("a recipe is one Frame, or an Orient with other steps after it, each at most once")
        _must_be_one_of("dtype", self.dtype, *(("int16",) if ours else ("float32", "float16")))

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the content, without the name."""
        content = {key: _plain(value) for key, value in self._content().items() if key != "name"}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def axes(self) -> str:
        """Letters towards which the spatial axes of the array grow, in order."""
        first = self.steps[0]
        return first.axes if isinstance(first, Orient) else "RAS"

    @property
    def in_hu(self) -> bool:
        """Whether arrays are Hounsfield units (X, Y, Z), as those of our own recipes; published ones are scaled."""
        return self.step(Frame) is not None

    @property
    def channels(self) -> int | None:
        """Length of the leading channel axis; None for our own recipes, whose arrays are (X, Y, Z)."""
        windows = self.step(Windows)
        if windows is not None and windows.stacked_along == "channel":
            return len(windows.windows)
        return None if self.in_hu else 1

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the array, the channel axis included; None where it differs from scan to scan."""
        sizes = {Frame: "shape", Resize: "shape", CenterCrop: "at_most"}
        spatial: Shape | None = None
        for step in self.steps:
            spatial = getattr(step, sizes[type(step)]) if type(step) in sizes else spatial
            spatial = None if isinstance(step, Crop | Resample) else spatial
        if spatial is None or self.channels is None:
            return spatial
        windows = self.step(Windows)
        stacked = len(windows.windows) if windows is not None and windows.stacked_along == "first-axis" else 1
        return (self.channels, stacked * spatial[0], *spatial[1:])

    @property
    def spacing_mm(self) -> Triple | None:
        """Between voxels along the spatial axes; None where it differs from scan to scan."""
        if frame := self.step(Frame):
            return frame.spacing_mm
        resample = self.step(Resample)
        return None if resample is None or self.step(Resize) else resample.spacing_mm

    def step(self, kind: type[S]) -> S | None:
        """The step of this kind, if the recipe has it."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    def with_steps(self, *steps: Step) -> Recipe:
        """The same recipe with its steps of these kinds exchanged. Raises ValueError for a kind it does not have."""
        new = {type(step): step for step in steps}
        if missing := [_NAMES[kind] for kind in new if kind not in {type(step) for step in self.steps}]:
            raise ValueError(f"recipe {self.name} has no step {', '.join(missing)}")
        return replace(self, steps=tuple(new.get(type(step), step) for step in self.steps))

    def to_json(self) -> str:
        """Text from which `from_json` makes an equal recipe."""
        return json.dumps(self._content(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Raises ValueError for text that is no recipe, naming the field that is wrong."""
        content = _checked(json.loads(text), {field.name for field in fields(cls)}, "a recipe")
        return cls(**{**content, "steps": tuple(_step(entry) for entry in content["steps"])})

    def _content(self) -> dict[str, Any]:
        steps = [{"step": _NAMES[type(step)], **asdict(step)} for step in self.steps]
        return {"name": self.name, "dtype": self.dtype, "as_read": self.as_read, "steps": steps}


def _step(entry: Any) -> Step:
    """A step from its JSON object."""
    name = str(entry.get("step")) if isinstance(entry, dict) else ""
    kind = _KINDS.get(name)
    if kind is None:
        raise ValueError(f"a step must be one of {', '.join(_KINDS)}; got {entry!r}")
    content = _checked(entry, {"step", *(field.name for field in fields(kind))}, f"step {name}")
    return kind(**{name: _frozen(value) for name, value in content.items() if name != "step"})


def _checked(content: Any, names: set[str], what: str) -> dict[str, Any]:
    """The object, if its fields are exactly `names`."""
    if not isinstance(content, dict) or set(content) != names:
        got = sorted(content) if isinstance(content, dict) else content
        raise ValueError(f"{what} has the fields {', '.join(sorted(names))}; got {got}")
    return content


def _plain(value: Any) -> Any:
    """Whole numbers as integers, all the way down: 2 and 2.0 are the same size and must give the same id."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def named(recipe: str | Recipe) -> Recipe:
    """The recipe of this name, or the recipe itself. Raises Misuse for an unknown name."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in recipes:
        nearest = get_close_matches(recipe, recipes, n=1)
        do = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(recipes)}"
        raise Misuse(f"there is no recipe {recipe!r}", do=do)
    return recipes[recipe]


def _ours(name: str, spacing_mm: Triple, shape: Shape) -> Recipe:
    return Recipe(name=name, steps=(Frame(spacing_mm=spacing_mm, shape=shape),), dtype="int16", as_read=False)


def _published(name: str, *steps: Step, dtype: str = "float32") -> Recipe:
    return Recipe(name=name, steps=steps, dtype=dtype, as_read=True)


_BRAIN, _SUBDURAL, _BONE = WINDOWS["brain"], WINDOWS["subdural"], WINDOWS["bone"]
_MM: Triple = (1.0, 1.0, 1.0)
_CUBE: Shape = (96, 96, 96)
_FULL_RANGE: Window = (512, 3072)
"""CT-FM's map of -1024..2048 HU."""

recipes: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            # Ours. One box for all four, 192 x 224 x 192 mm: the heads of large men are 170 mm wide, 190 with the
            # ears, 215 long, and 150 from the vertex to the foramen magnum.
            _ours("head", (2.0, 2.0, 2.0), (96, 112, 96)),
            # Keeps the detail in the plane that thin subdural and subarachnoid blood need.
            _ours("head-axial", (1.0, 1.0, 4.0), (192, 224, 48)),
            _ours("head-fine", _MM, (192, 224, 192)),
            # An eighth of the voxels of `head`, for the demo and for experiments on a processor.
            _ours("head-coarse", (4.0, 4.0, 4.0), (48, 56, 48)),
            # FM-HCT, arXiv 2502.02779: what its encoder was trained on, (3, 96, 96, 96) float16.
            _published(
                "fm-hct",
                Orient("RAS"),
                Resample(_MM, "cubic"),
                Crop(above=0.0),
                Windows((_BRAIN, _SUBDURAL, _BONE)),
                Resize(_CUBE),
                dtype="float16",
            ),
            # FM-HCT's notebook for extracting features resizes first, so its features differ from the training's.
            _published(
                "fm-hct-notebook",
                Orient("RAS"),
                Resample(_MM, "cubic"),
                Crop(above=0.0),
                Resize(_CUBE),
                Windows((_BRAIN, _SUBDURAL, _BONE)),
            ),
            # CT-FM, arXiv 2501.09001: what its encoder was trained on; (1, S, P, L), each axis at least this long.
            _published(
                "ct-fm-pretrain",
                Orient("SPL"),
                Resample((3.0, 1.0, 1.0), "linear"),
                Crop(above=0.0),
                Pad(at_least=(32, 128, 128), fill=-1024.0),
                Windows((_FULL_RANGE,)),
            ),
            # CT-FM's cards on the Hub: the scan's own spacing, whatever it is; (1, S, P, L), the shape varies.
            _published("ct-fm-hub", Orient("SPL"), Windows((_FULL_RANGE,)), Crop(above=0.0)),
            # CT-FM's head triage: four windows stacked along the first spatial axis, (1, 4 x 48, 128, 128).
            _published(
                "ct-fm-head",
                Orient("SPL"),
                Crop(above=0.0),
                Resample((5.0, 2.0, 2.0), "linear"),
                Pad(at_least=(48, 128, 128), fill=LINE_MINIMUM),
                CenterCrop((48, 128, 128)),
                Windows((_BRAIN, (25, 300), (32, 8), (600, 3000)), stacked_along="first-axis"),
            ),
        )
    }
)
"""Recipes by name: ours give int16 HU (X, Y, Z); the published ones what their authors' code gave."""
