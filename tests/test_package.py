"""Promises of the package as a whole: what it costs to import, what it offers, how it is laid out and pinned."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import headct

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "headct"
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_importing_headct_loads_nothing_beyond_the_standard_library():
    script = "import sys; before = set(sys.modules); import headct; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - sys.stdlib_module_names == {"headct"}


@pytest.mark.parametrize("name", headct.__all__)
def test_every_public_name_is_there(name):
    assert getattr(headct, name) is not None
    assert name in dir(headct)


def test_public_names_for_tools_and_for_people_are_the_same():
    """What mypy and editors see (the TYPE_CHECKING imports) is what `__getattr__` gives."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: (node.module or "").removeprefix("headct.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == headct._ROOMS
    assert sorted(headct.__all__) == sorted([*seen, "__version__"])


def test_unknown_public_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'Cohorts'; public names are Cohort, "):
        headct.Cohorts  # noqa: B018


def rooms() -> set[str]:
    """Names of the rooms that exist: folders with code, and modules, directly under the package."""
    folders = {path.parent.name for path in SOURCE.glob("*/*.py")}
    return folders | {path.stem for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__")}


def contracts() -> dict[str, dict]:
    return {contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}


def test_the_import_contract_lists_the_rooms_in_the_order_of_the_explanation():
    """docs/explanation/architecture.md prints the rooms from the ground up, the contract from the roof down."""
    layers = [layer.strip("()") for layer in contracts()["rooms"]["layers"]]
    page = (REPOSITORY / "docs" / "explanation" / "architecture.md").read_text()
    table = [
        line.split("`")[1].removesuffix("/").removesuffix(".py") for line in page.splitlines() if line.startswith("| `")
    ]
    assert table == layers[::-1]
    assert rooms() <= set(layers)


@pytest.mark.parametrize(
    ("contract", "free"),
    [
        (
            "no-torch",
            {"virtual", "encoders", "checkpoints", "embedding", "pretraining", "detection", "tasks", "studies", "cli"},
        ),
        ("virtual", {"virtual", "pretraining", "studies", "cli"}),
    ],
)
def test_no_room_escapes_a_prohibition(contract, free):
    bound = {module.removeprefix("headct.") for module in contracts()[contract]["source_modules"]}
    assert bound == rooms() - free


def test_no_room_without_a_subject():
    banned = {"utils", "util", "common", "helpers", "helper", "core", "base", "misc"}
    assert not {path.stem for path in SOURCE.rglob("*")} & banned


def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_constraints_pin_everything_that_setup_installs():
    project = PYPROJECT["project"]
    todo = [Requirement(line) for line in project["dependencies"]]
    todo += [Requirement(line) for lines in project["optional-dependencies"].values() for line in lines]
    needed: set[str] = set()
    done: set[str] = set()
    while todo:
        requirement = todo.pop()
        if str(requirement) in done:
            continue
        done.add(str(requirement))
        needed.add(canonicalize_name(requirement.name))
        for line in metadata.requires(requirement.name) or []:
            further = Requirement(line)
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if further.marker is None or any(further.marker.evaluate(extra) for extra in extras):
                todo.append(further)
    pins = pinned()
    assert needed <= set(pins), f"not pinned: {sorted(needed - set(pins))}"


def test_constraints_are_plain_pins_within_the_lower_bounds():
    pins = pinned()
    assert all(version and "+" not in version and "/" not in version for version in pins.values())
    for line in PYPROJECT["project"]["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_pytorch_is_not_capped():
    (torch,) = [line for line in PYPROJECT["project"]["dependencies"] if line.startswith("torch")]
    assert {part.operator for part in Requirement(torch).specifier} == {">="}
