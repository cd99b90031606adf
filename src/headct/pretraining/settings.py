"""What a pre-training run is told, and the TOML file that says it again."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from headct.failure import Misuse
from headct.preparing.windows import WINDOWS
from headct.pretraining.objectives import OBJECTIVES, ObjectiveSettings
from headct.pretraining.probe import ProbeSettings
from headct.pretraining.tracking import SERVICES
from headct.pretraining.views import ViewSettings

PRECISIONS = ("fp32", "bf16")
LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16"}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """One run. Its length is given by `steps`, by `epochs`, or by `budget_s`, into which as many steps fit as will.

    What is "auto" is resolved once, before the first step, and said with its reason (`headct.pretraining.auto`).
    """

    objectives: Mapping[str, ObjectiveSettings] = field(default_factory=lambda: {"dino": objective_settings("dino")})
    encoder: str = "vit-tiny"  # a name of `headct.encoders.ARCHITECTURES`
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)  # what differs from those of its name
    windows: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(WINDOWS))  # level, width in HU
    views: ViewSettings = field(default_factory=ViewSettings)
    continue_from: str | None = None  # a model, whose encoder and windows the run takes over
    origin_uses_findings: bool = False  # whether that model was taught with what the generator knows of findings
    auto: tuple[str, ...] = ()  # names of settings that are yet to be resolved, such as "lr"
    shares: Mapping[str, float] = field(default_factory=dict)  # of cohorts by name; else as many as each has scans

    steps: int | None = None  # the length
    epochs: float | None = None  # the same in passes over the scans
    budget_s: float | None = None  # the same in seconds, by a few steps that are measured first
    batch: int = 8  # scans a step, over all processes
    memory_gb: float | None = None  # parts of a step are made so small that a process stays below it
    accumulate: int = 1  # parts of a step that are worked out one after the other, to save memory
    seed: int = 0  # decides everything random
    precision: str = "fp32"  # or bf16, by autocast; float32 and bfloat16 mean the same
    device: str = "auto"  # a GPU where there is one; or cpu, or cuda
    workers: int = 2  # threads that read scans, in each process
    compile: bool = False  # the encoder, by torch.compile
    recompute: bool = False  # activations of transformer blocks in the backward pass, to save memory
    shard: bool = False  # weights, gradients and optimiser over all processes (FSDP2), to save memory

    lr: float = 1e-3  # the peak
    lr_end: float = 1e-6  # at the last step
    warmup: float = 0.1  # share of the steps in which it rises
    decay: tuple[float, float] = (0.04, 0.4)  # of weights of linear layers, at the first and the last step
    clip: float = 3.0  # norm of all gradients together

    probe: ProbeSettings | None = None  # labels to look at now and then, which nothing is trained by
    save_every: int = 50  # steps between saved states; a killed run repeats at most these
    keep: int = 2  # saved states
    track: str | None = None  # mlflow or wandb, beside the files that every run writes
    licence: str = "not stated"  # of the weights, which the owner of the data decides

    def __post_init__(self) -> None:
        windows = {name: (float(level), float(width)) for name, (level, width) in self.windows.items()}
        object.__setattr__(self, "windows", windows)
        object.__setattr__(self, "precision", LONG_NAMES.get(self.precision, self.precision))
        if self.steps is None and self.epochs is None and self.budget_s is None and "epochs" not in self.auto:
            raise Misuse("a run needs a length", do="set steps, epochs, or budget_s in seconds (--fit 60s)")
        above_zero = (
            "steps",
            "epochs",
            "budget_s",
            "memory_gb",
            "batch",
            "accumulate",
            "workers",
            "lr",
            "clip",
            "save_every",
            "keep",
        )
        object.__setattr__(self, "auto", tuple(self.auto))
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise Misuse(f"{name} must be above zero, got {value}")
        not_below_zero = {"lr_end": self.lr_end, "decay": min(self.decay), "warmup": self.warmup, "seed": self.seed}
        for name, value in not_below_zero.items():
            if value < 0:
                raise Misuse(f"{name} must not be below zero, got {value}")
        if self.warmup >= 1:
            raise Misuse(f"warmup is a share of the steps below 1, got {self.warmup}")
        if self.precision not in PRECISIONS:
            raise Misuse(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.track is not None and self.track not in SERVICES:
            raise Misuse(
                f"track must be {' or '.join(SERVICES)}, got {self.track!r}",
                do="name one of them, or leave it out: every run writes history.csv and a page",
            )
        if self.shard and self.probe is not None:
            raise Misuse(
                "a model in shards cannot be probed",
                why="one process looks at the labels, and it has only its share of the weights",
                do="leave probe or shard out",
            )
        if not self.windows:
            raise Misuse("a run needs at least one window", do="leave windows out for brain, subdural and bone")
        if not self.objectives:
            raise Misuse("a run needs an objective", do=f"name one of {', '.join(OBJECTIVES)}")


def to_toml(settings: PretrainSettings) -> str:
    """The settings as TOML; what is None is left out. `from_toml` reads them again."""
    return "\n".join(_section("", _as_table(settings))).strip() + "\n"


def to_pairs(settings: PretrainSettings) -> dict[str, str]:
    """The settings by dotted names, as a page lists them."""
    return dict(_pairs("", _as_table(settings)))


def _pairs(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _pairs(f"{prefix}{key}.", value)
        elif value is not None:
            yield f"{prefix}{key}", literal(value)


def _as_table(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_table(entry) for name, entry in value.items()}
    if not is_dataclass(value):
        return value
    return {entry.name: _as_table(getattr(value, entry.name)) for entry in fields(value)}


def _section(title: str, table: Mapping[str, Any]) -> list[str]:
    lines = ["", f"[{title}]"] if title else []
    lines += [f"{_key(key)} = {literal(value)}" for key, value in table.items() if _is_plain(value)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _section(f"{title}.{_key(key)}" if title else _key(key), value)
    return lines


def _key(name: str) -> str:
    """Bare where TOML allows it: cohorts and windows may be called anything."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def literal(value: Any) -> str:
    """A value as TOML writes it, a group of settings as a table in a line."""
    if is_dataclass(value):
        return "{" + ", ".join(f"{entry.name} = {literal(getattr(value, entry.name))}" for entry in fields(value)) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(literal(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # JSON's strings, numbers and booleans are TOML's


def from_toml(text: str, origin: str = "the settings", **overrides: Any) -> PretrainSettings:
    """Settings from TOML; `overrides` that are not None win. Raises Misuse naming the key that is wrong."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misuse(f"{origin} is not TOML", why=str(error)) from error
    values = {key: value for key, value in overrides.items() if value is not None}
    left_open = [*table.get("auto", []), *_taken_auto(table)]
    table["auto"] = [name for name in left_open if name.partition(".")[0] not in values]
    lengths = {"steps", "epochs", "budget_s"}
    if lengths & set(values):
        table = {key: value for key, value in table.items() if key not in lengths}
    return _from_table(PretrainSettings, table, origin, values)


def _taken_auto(table: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of values that are "auto", which are taken out; a device may be called so."""
    names = []
    for key, value in list(table.items()):
        if isinstance(value, dict):
            names += _taken_auto(value, f"{prefix}{key}.")
        elif value == "auto" and key != "device":
            names.append(f"{prefix}{key}")
            del table[key]
    return names


def limits(fit: str | None) -> tuple[float | None, float | None]:
    """Seconds from `60s`, `30m` or `8h`, or gigabytes from `12GB` or `800MB`. Raises Misuse for anything else."""
    if fit is None:
        return None, None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|mb|gb)", fit.strip().lower())
    if found is None:
        raise Misuse(f"{fit!r} is neither a time nor a memory", do="write 60s, 30m, 8h or 12GB")
    if float(found[1]) == 0:
        raise Misuse(f"nothing fits into {fit}", do="write 60s, 30m, 8h or 12GB")
    if found[2] in ("mb", "gb"):
        return None, float(found[1]) / (1000 if found[2] == "mb" else 1)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]], None


def read_settings(path: Path, **overrides: Any) -> PretrainSettings:
    """Settings from a TOML file, see `from_toml`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{path} cannot be read", why=str(error), do="name a TOML file of settings") from error
    return from_toml(text, str(path), **overrides)


def objective_settings(name: str) -> ObjectiveSettings:
    """The default settings of a named objective. Raises Misuse for an unknown one."""
    if name not in OBJECTIVES:
        near = get_close_matches(name, OBJECTIVES, n=1)
        meant = f"did you mean {near[0]}? There are " if near else "take one of "
        raise Misuse(f"no objective is called {name!r}", do=f"{meant}{', '.join(OBJECTIVES)}")
    return OBJECTIVES[name].settings()


def _from_table(kind: type[T], table: Mapping[str, Any], where: str, overrides: Mapping[str, Any]) -> T:
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise Misuse(f"{where} has an unknown key {key!r}", do=f"did you mean {near[0]}?" if near else "remove it")
    values = {key: _typed(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    for entry in fields(kind):  # type: ignore[arg-type]
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and entry.name not in values and entry.name not in overrides:
            raise Misuse(f"{where} lacks the key {entry.name!r}")
    return kind(**{**values, **overrides})


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as TOML gave it, turned into what the field holds, or Misuse."""
    if kind == Mapping[str, ObjectiveSettings] and isinstance(value, Mapping):
        kinds = {name: type(objective_settings(name)) for name in value}
        return {name: _typed(kinds[name], table, f"{where}.{name}") for name, table in value.items()}
    if get_origin(kind) is UnionType:
        return _typed(next(one for one in get_args(kind) if one is not type(None)), value, where)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        return _from_table(kind, value, where, {})
    if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,) and isinstance(value, list):
        return tuple(_typed(get_args(kind)[0], entry, where) for entry in value)
    if get_origin(kind) is tuple and isinstance(value, list) and len(value) == len(get_args(kind)):
        return tuple(_typed(one, entry, where) for one, entry in zip(get_args(kind), value, strict=True))
    if get_origin(kind) is Mapping and isinstance(value, Mapping):
        inner = get_args(kind)[1]
        return {key: value if inner is Any else _typed(inner, value, f"{where}.{key}") for key, value in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    raise Misuse(f"{where} must be {_written(kind)}, got {value!r}", do=_as_example(kind, where.split(": ")[-1], value))


def _written(kind: Any) -> str:
    """What TOML calls a value of this kind."""
    if get_origin(kind) is Mapping or is_dataclass(kind):
        return "a table"
    if get_origin(kind) is tuple:
        return "a list" if get_args(kind)[1:] == (Ellipsis,) else f"a list of {len(get_args(kind))}"
    return {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}[kind]


def _as_example(kind: Any, key: str, value: Any) -> str:
    if kind == Mapping[str, ObjectiveSettings]:
        named = [name for name in OBJECTIVES if name == value or (isinstance(value, list) and name in value)]
        return f"write a table for each, [{key}.{(named or ['dino'])[0]}], with its settings or empty"
    return "write a value of that kind; the reference of settings lists all keys"
