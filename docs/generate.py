"""Writes the reference pages that repeat what the code says: `python docs/generate.py`. A test compares them."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import headct
from headct.cli.app import run
from headct.cli.commands import COMMANDS
from headct.preparing.prepared import MIN_COVERAGE
from headct.pretraining import PretrainSettings
from headct.pretraining.auto import everything
from headct.pretraining.objectives import OBJECTIVES
from headct.pretraining.probe import ProbeSettings
from headct.pretraining.settings import literal, objective_settings
from headct.reading import CRITERIA, Criteria
from headct.scan import FLAGS, REASONS

REFERENCE = Path(__file__).parent / "reference"


def commands() -> str:
    """Every command's help text."""
    parts = [
        "# Commands",
        "Data go to files or stdout, messages to stderr. Exit codes: 0 done, 1 nothing usable came out or could be "
        "written (the reasons are printed), 2 wrong usage or a missing input, 130 interrupted.",
        _help(),
    ]
    for name, command in COMMANDS.items():
        parts += [f"## {name}", _help(name)]
        for part in command.parts:
            parts += [f"### {name} {part}", _help(name, part)]
    return "\n\n".join(parts) + "\n"


def rejections() -> str:
    """Every code of a rejection and every flag of a scan."""
    rows = {code: (reason.meaning, reason.remedy) for code, reason in REASONS.items()}
    parts = [
        "# Rejections and flags",
        "Whatever does not become a scan is a `Rejection` with one of these codes, a sentence about the file at hand, "
        "and what to do. They are the rows of a cohort's `rejections.parquet`; `headct.scan.REASONS` is the same list.",
        _table(("code", "what it means", "what to do"), rows),
        "## Flags",
        "A scan that was accepted carries a flag for everything about it that a reader of results may want to know. "
        "Column `flags` of `scans.parquet`; `headct.scan.FLAGS` is the same list.",
        _table(("flag", "what it means"), {flag: (meaning,) for flag, meaning in FLAGS.items()}),
    ]
    return "\n\n".join(parts) + "\n"


ABOUT_RECIPES = {
    "head": "The default: the whole head at 2 mm.",
    "head-axial": "Keeps the detail in the plane that thin subdural and subarachnoid blood need.",
    "head-fine": "The whole head at 1 mm.",
    "head-coarse": "The whole head at 4 mm: what the demo and experiments on a processor can afford.",
    "fm-hct": "What FM-HCT's encoder was trained on (arXiv 2502.02779).",
    "fm-hct-notebook": "FM-HCT's notebook for extracting features, which resizes before it windows.",
    "ct-fm-pretrain": "What CT-FM's encoder was trained on (arXiv 2501.09001).",
    "ct-fm-hub": "What CT-FM's model cards do: the scan's own spacing.",
    "ct-fm-head": "CT-FM's head triage: four windows along the first spatial axis.",
}


def recipes() -> str:
    """What each named recipe does, step by step."""
    parts = [
        "# Recipes",
        "A recipe is a frozen value that says how a `Scan` becomes an array. Its `id` is a hash of its content: two "
        "recipes with the same content have the same id, and combining cohorts, vectors or models of different ids is "
        "an error. Our own give int16 HU, axes growing to the right, anterior and superior (RAS); windows are applied "
        "later, on the device. The published ones give what their authors' code gave, from values as read, without our "
        "repairs.",
    ]
    for name, recipe in headct.recipes.items():
        facts = [
            f"id `{recipe.id}`",
            f"{recipe.dtype}, axes {recipe.axes}",
            f"shape {_sizes(recipe.shape) if recipe.shape else 'varies'}",
            f"spacing {_sizes(recipe.spacing_mm) + ' mm' if recipe.spacing_mm else 'varies'}",
            "values as read" if recipe.as_read else "values repaired",
        ]
        rows = {}
        for number, step in enumerate(recipe.steps, start=1):
            settings = ", ".join(f"{key} = {value}" for key, value in asdict(step).items())
            rows[f"{number}. {type(step).__name__}"] = (settings,)
        parts += [f"## `{name}`", ABOUT_RECIPES[name], "; ".join(facts) + ".", _table(("step", "settings"), rows)]
    return "\n\n".join(parts) + "\n"


ABOUT_CRITERIA = {
    "check_head": ("skull and brain must be seen in the pixels; false takes phantoms and other body parts", ""),
    "min_coverage": ("the least share of the brain that must be covered", "0 to 1"),
    "contrast": ('"none": no agent is known to be given; "any"; "only": one is known to be given', ""),
    "min_slices": ("fewer are rejected; below 3 no spacing can be measured", "slices"),
    "max_slices": ("more are rejected", "slices"),
    "thickness_mm": ("`[least, most]`, both included, for the stated thickness of every slice", "mm"),
    "repeated_positions": ("false rejects a series with more images than positions", ""),
    "kvp": ("tube voltages that are taken", "kV"),
    "kernels": ('patterns of kernels that are taken, such as "Hr4*", without regard to case', ""),
    "descriptions": ("patterns; a study, series or protocol description must match one, without regard to case", ""),
    "prefer": ('which series of a study comes first: "thin" or "thick"', ""),
}


def criteria() -> str:
    """Every field of a criteria file, and the named ones."""
    defaults = {**Criteria().to_dict(), "min_coverage": MIN_COVERAGE}  # None there stands for this
    parts = [
        "# Criteria",
        "Which series are taken: the fields of a file that `--criteria FILE.toml` names, and of "
        "`headct.reading.Criteria`. What a file leaves out keeps its default; an unknown field or a value of another "
        "kind is an error. [Choose which series are taken](../how-to/choose-series.md) has examples.",
        _table(
            ("field", "what it asks", "unit", "default"),
            {name: (*ABOUT_CRITERIA[name], _default(value)) for name, value in defaults.items()},
        ),
    ]
    for name, named in CRITERIA.items():
        parts += [f"## `--criteria {name}`", f"```toml\n{named.to_toml()}```"]
    return "\n\n".join(parts) + "\n"


def pretraining() -> str:
    """Every key of a settings file: default, whether it can be "auto", and what the source says beside it."""
    run = PretrainSettings(auto=("epochs",))
    parts = [
        "# Settings of pre-training",
        "The keys of a TOML file that `headct pretrain --config FILE.toml` reads, and of "
        "`headct.pretraining.PretrainSettings`. What a file leaves out has the default below; where *auto* says so, "
        '`KEY = "auto"` has it worked out from the scans, the encoder and the machine, which is what happens to all '
        "such keys where no file is named (`auto` lists them, and is empty where a run was begun). Objectives are "
        "tables, `[objectives.NAME]`; without one a file means `dino`. A group such as `crops` is given whole: "
        "`crops = {views = 1, shape = [48, 56, 48], edge_mm = [192.0, 200.0], overhang = 0.0}`. An unknown key and a "
        "value of another kind are errors. "
        "[Pre-train on your cohort](../how-to/pretrain.md) has examples.",
        _settings_table("", run, everything(run)),
    ]
    for name, settings in (("views", run.views), ("probe", ProbeSettings(labels=""))):
        parts += [f"## `[{name}]`", *_introduced(settings), _settings_table(name, settings, ())]
    for name in OBJECTIVES:
        settings = objective_settings(name)
        known = everything(PretrainSettings(steps=1, objectives={name: settings}))
        where = f"objectives.{name}"
        parts += [f"## `[{where}]`", *_introduced(settings), _settings_table(where, settings, known)]
    return "\n\n".join(parts) + "\n"


def _introduced(settings: object) -> list[str]:
    """The paragraphs of a docstring."""
    return [" ".join(paragraph.split()) for paragraph in (inspect.getdoc(type(settings)) or "").split("\n\n")]


def _settings_table(where: str, settings: Any, can_be_auto: tuple[str, ...]) -> str:
    """A row for each key; those of a group within it follow with its name before theirs."""
    return _table(("key", "default", "auto", "about"), dict(_settings_rows(where, "", settings, can_be_auto)))


def _settings_rows(
    where: str, prefix: str, settings: Any, can_be_auto: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    about = _beside_fields(type(settings))
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        key, dotted = f"{prefix}{entry.name}", f"{where}.{entry.name}" if where else entry.name
        if entry.name in {"objectives", "views", "probe", "auto"} and not where:
            continue  # the tables that follow; and what "auto" stands for
        auto = "yes" if dotted in can_be_auto else ""
        if is_dataclass(value) and not auto:
            yield from _settings_rows(dotted, f"{key}.", value, can_be_auto)
            continue
        default = "" if value is None else f"`{_toml(value)}`" if value != "" else "*must be given*"
        yield key, (default, auto, about[entry.name])


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {literal(one)}" for name, one in value.items()) + "}"
    return literal(value)


def _beside_fields(kind: type) -> dict[str, str]:
    """The comments of a dataclass's fields, those on the lines before it and those that follow it."""
    source = inspect.getsource(kind)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    [tree] = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    after = tree.lineno
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            before = " ".join(comments[line] for line in range(after + 1, node.lineno) if line in comments)
            beside = " ".join(comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments)
            found[node.target.id] = "; ".join(part for part in (before, beside) if part)
        after = node.end_lineno
    return found


def _default(value: object) -> str:
    return f"`{json.dumps(value)}`" if value not in (None, []) else "asks nothing"


def _sizes(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:g}" for value in values)


PAGES = {
    "commands.md": commands,
    "criteria.md": criteria,
    "pretraining.md": pretraining,
    "rejections.md": rejections,
    "recipes.md": recipes,
}


def _help(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), mock.patch.dict(os.environ, COLUMNS="80"):
        assert run([*words, "--help"]) == 0
    return f"```text\n{out.getvalue().strip()}\n```"


def _table(head: tuple[str, ...], rows: Mapping[str, tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head)]
    lines += [(f"`{key}`", *(cell.replace("|", "\\|") for cell in cells)) for key, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())
