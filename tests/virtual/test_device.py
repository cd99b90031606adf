"""Patients painted on another device: nothing is left on the CPU by mistake, and they are the same within 1 HU.

The device is a pretended one, so that this is tested without a GPU: its tensors hold others on the CPU, refuse to be
read as those, and refuse, as a GPU does, to be mixed with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from headct.failure import Misuse
from headct.preparing.recipe import named
from headct.virtual.acquisition import take
from headct.virtual.endless import Endless, arrays
from headct.virtual.findings.mixture import PREVALENCE
from headct.virtual.interpolation import Grid
from headct.virtual.places import along, by_axis, turned, where
from headct.virtual.simulated import Simulation

PRETENDED = "meta"
"""A device that every PyTorch knows, and on which nothing can be worked out without what is below."""

COARSE_ON_A_GPU = {"mm", "mv", "dot", "bmm", "addmm", "addmv", "baddbmm", "convolution"}
"""What TF32 and mixed precision change, which training around patients may have asked for."""

MANY = dict.fromkeys(PREVALENCE, 0.5)


class There(torch.Tensor):
    """A tensor that is on the pretended device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls: type[Self], held: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PRETENDED,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return worked_out(operation, args, kwargs or {})


def worked_out(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives, on the device on which its tensors are, or which it names."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, There) for tensor in given)
    named = kwargs.get("device")
    stays = there if named is None else torch.device(named).type == PRETENDED
    moves = operation._schema.name in ("aten::copy_", "aten::_to_copy")
    if there and not moves and any(tensor.dim() and not isinstance(tensor, There) for tensor in given):
        raise RuntimeError(f"{operation}: its tensors are on two devices")
    if there and operation._schema.name.removeprefix("aten::") in COARSE_ON_A_GPU:
        raise RuntimeError(f"{operation}: its digits are fewer on a GPU that is set so")
    here = {name: torch.device("cpu") if name == "device" and named else value for name, value in kwargs.items()}
    plain_args, plain_kwargs = tree_map_only(There, lambda tensor: tensor.held, (args, here))
    result = operation(*plain_args, **plain_kwargs)
    if operation._schema.is_mutable and isinstance(args[0], There):
        return args[0]
    return tree_map_only(torch.Tensor, There, result) if stays else result


class Dispatched(TorchDispatchMode):
    """Operations that begin on the CPU too, as bringing a tensor to the device does."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return worked_out(operation, args, kwargs or {})


class Beside(TorchFunctionMode):
    """PyTorch makes new tensors beside one on its pretended device without what is in them."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(args[1], dtype=args[0].dtype).to(PRETENDED)
        return function(*args, **(kwargs or {}))


@contextmanager
def pretended() -> Iterator[str]:
    """The device, while it is there."""
    with Dispatched(), Beside():
        yield PRETENDED


def test_the_pretended_device_keeps_its_tensors_apart() -> None:
    with pretended() as device:
        there = torch.arange(6.0).reshape(2, 3).to(device)
        assert (there.device.type, there.is_cpu) == (device, False)
        there[:, 0].add_(there.new_tensor((10.0, 20.0)))
        assert there.cpu().tolist() == [[10.0, 1.0, 2.0], [23.0, 4.0, 5.0]]
        with pytest.raises(RuntimeError, match="on two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="fewer on a GPU"):
            there @ there.T


def test_points_are_handled_alike() -> None:
    rng = np.random.default_rng(0)
    points = by_axis(torch.from_numpy(rng.normal(size=(500, 3)).astype(np.float32)))
    matrix = torch.from_numpy(rng.normal(size=(3, 3)).astype(np.float32))
    grid = Grid(rng.normal(size=(4, 5, 6, 2)).astype(np.float32), (-1.0, -2.0, -1.0), (1.0, 1.0, 2.0))
    with pretended() as device:
        there, its = points.to(device), matrix.to(device)
        assert torch.equal(where(there[:, 0] > 0).cpu(), where(points[:, 0] > 0))
        for found, expected in (
            (turned(there, its), turned(points, matrix)),
            (along(there, its[0]), along(points, matrix[0])),
            (grid.sample(there), grid.sample(points)),
        ):
            assert isinstance(found, There)
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("site", "index"), [("site-a", 0), ("site-b", 0), ("site-c", 1), ("site-d", 1)])
def test_patients_are_the_same_within_1_hu(site: str, index: int) -> None:
    simulated = next(Simulation(seed=4, site=site, prevalence=MANY, spacing_mm=3.0).scans(index))
    here = take(simulated.patient, simulated.visit, tissues=True)
    with pretended() as device:
        there = take(simulated.patient, simulated.visit, tissues=True, device=device)
    difference = np.abs(here.scan.hu.astype(int) - there.scan.hu)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert len(here.shares) > 3
    for expected, found in ((here.shares, there.shares), (here.tissues, there.tissues)):
        assert expected.keys() == found.keys()
        for name, shares in expected.items():
            np.testing.assert_allclose(found[name].astype(float), shares.astype(float), atol=2e-3)


def test_a_scan_is_the_same_one_wherever_it_is_painted() -> None:
    simulation = Simulation(seed=2).prepared_by(named("head-coarse"))
    assert next(arrays(Simulation(seed=2), "head-coarse"))[1] == next(simulation.scans(0))


def test_arrays_and_labels_come_from_a_device_too() -> None:
    simulation = Simulation(seed=2)
    with pretended() as device:
        there = next(iter(Endless(simulation, "head-coarse", device=device)))
    here = next(iter(Endless(simulation, "head-coarse")))
    assert there["hu"].is_cpu
    assert (there["hu"].int() - here["hu"].int()).abs().max() <= 1
    assert there["scan_id"] == here["scan_id"]
    torch.testing.assert_close(there["labels"], here["labels"], equal_nan=True)


@pytest.mark.parametrize("device", ["cuda:99", "elsewhere", "hpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(Misuse, match=f"nothing can be painted on the device {device}\n  why: .+\n  do:  leave"):
        next(arrays(Simulation(), "head-coarse", device=device))


def test_a_forked_worker_that_cannot_begin_its_gpu_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def forked(*size: int, device: str) -> torch.Tensor:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, …")

    monkeypatch.setattr(torch, "zeros", forked)
    with pytest.raises(Misuse, match=r"CUDA in forked subprocess\n  do:  give the DataLoader multiprocessing_context"):
        next(arrays(Simulation(), "head-coarse", device="cuda"))
