"""Several processes: the loss curve of one process at the same global batch, and a run that any number may take up."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining.test_loop import SMALL, cohort, weights

from headct.failure import Misuse
from headct.pretraining import PretrainSettings, Run, pretrain
from headct.pretraining.loop import new_objective, order_of
from headct.pretraining.objectives import Mixture
from headct.pretraining.probe import ProbeSettings
from headct.pretraining.processes import Processes, _of_others, joined
from headct.pretraining.runs import RunFolder
from headct.pretraining.scans import Scans
from headct.pretraining.sharding import sharded

# a BatchNorm takes its statistics from the scans of its own process, so there is none; 4 is shared out evenly
SHARED = replace(
    SMALL, batch=4, steps=6, objectives={"dino": replace(SMALL.objectives["dino"], batch_norm=False)}, save_every=2
)

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from pretraining.test_loop import cohort
from pretraining.test_processes import SHARED
from headct.pretraining import pretrain
pretrain([cohort()], Path(sys.argv[1]), replace(SHARED, accumulate=int(sys.argv[2])))
"""

LEFT_ALONE = (
    SCRIPT.replace(
        "from headct.pretraining import pretrain",
        "import os\n"
        "from headct.failure import Failure\n"
        "from headct.pretraining import pretrain\n"
        "from headct.pretraining.objectives import Mixture\n"
        "def follow(objective, step, steps, real=Mixture.follow):\n"
        "    real(objective, step, steps)\n"
        "    if step == 2 and os.environ['RANK'] == '1':\n"
        "        os._exit(0)\n"
        "Mixture.follow = follow\n",
    ).replace("pretrain([", "try:\n    pretrain([")
    + "except Failure as failure:\n    print(failure)\n"
)

STOPPED = (
    SCRIPT.replace(
        "from headct.pretraining import pretrain",
        "import os, signal\n"
        "from headct.pretraining import pretrain\n"
        "from headct.pretraining.objectives import Mixture\n"
        "def follow(objective, step, steps, real=Mixture.follow):\n"
        "    real(objective, step, steps)\n"
        "    if step == 2 and os.environ['RANK'] == '1':\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "Mixture.follow = follow\n",
    ).replace("pretrain([", "try:\n    pretrain([")
    + "except KeyboardInterrupt:\n    print('stopped')\n"
)

SHARDED = """
from dataclasses import replace
import torch
from torch.distributed.tensor import DTensor, Shard
from pretraining import test_processes
from headct.pretraining.objectives import Mixture
def follow(objective, step, steps, real=Mixture.follow):
    real(objective, step, steps)
    if step == 0:  # student and teacher are cut alike, and nothing trained is left whole
        dino = objective.parts["dino"]
        for ours, theirs in zip(dino.student.parameters(), dino.teacher.parameters(), strict=True):
            assert isinstance(ours, DTensor) and isinstance(theirs, DTensor)
            assert ours.placements == theirs.placements == (Shard(0),)
        torch.distributed.barrier()
        print("in shards")
Mixture.follow = follow
test_processes.SHARED = replace(test_processes.SHARED, shard=True)
"""


def by_torchrun(out: Path, processes: int, accumulate: int = 1, script: str = SCRIPT) -> str:
    file = out.with_suffix(".py")
    file.write_text(script)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*line, str(file), str(out), str(accumulate)],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain([cohort()], tmp_path_factory.mktemp("alone") / "run", SHARED)


def close(run: Run, other: Run) -> None:
    """Sums in another order: float32 rounding, multiplied by Adam in the first steps, where it divides by itself."""
    np.testing.assert_allclose(run.history["loss"], other.history["loss"], rtol=2e-4)
    for name, weight in weights(run).items():
        torch.testing.assert_close(weight, weights(other)[name], atol=2e-3, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path, alone: Run) -> None:
    by_torchrun(tmp_path / "run", 2)
    close(pretrain([cohort()], tmp_path / "run", SHARED), alone)


@pytest.mark.slow
def test_a_run_may_go_on_with_another_number_of_processes(tmp_path: Path, alone: Run) -> None:
    def interrupt_in_the_third_step(objective: Mixture, step: int, steps: int, real=Mixture.follow) -> None:
        real(objective, step, steps)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixture, "follow", interrupt_in_the_third_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain([cohort()], tmp_path / "run", SHARED)
    by_torchrun(tmp_path / "run", 2)
    close(pretrain([cohort()], tmp_path / "run", SHARED), alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both(tmp_path: Path, alone: Run) -> None:
    """Else the other would wait for it in the next step, for ever."""
    said = by_torchrun(tmp_path / "run", 2, script=STOPPED)
    assert said.split() == ["stopped", "stopped"]
    assert [path.name for path in sorted((tmp_path / "run" / "states").iterdir())] == ["000000002.pt", "000000003.pt"]
    close(pretrain([cohort()], tmp_path / "run", SHARED), alone)


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5313", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete", True),
        ("Application timeout caused pair closure", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("[gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 5 vs 4", False),
        ("NCCL error: Duplicate GPU detected", False),
        ("file igloo/scan.pt is broken", False),
    ],
)
def test_what_says_that_another_process_is_gone(words: str, gone: bool) -> None:
    assert _of_others(RuntimeError(words)) == gone


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so_and_the_run_goes_on(tmp_path: Path, alone: Run) -> None:
    said = by_torchrun(tmp_path / "run", 2, script=LEFT_ALONE)
    assert said.startswith("another process of this run cannot be reached")
    assert "goes on from the last saved state" in said
    close(pretrain([cohort()], tmp_path / "run", SHARED), alone)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_with_half_of_the_model_each_learn_what_one_learns(
    tmp_path: Path, alone: Run, accumulate: int
) -> None:
    said = by_torchrun(tmp_path / "run", 2, accumulate, SHARDED + SCRIPT)
    assert said.count("in shards") == 2
    close(pretrain([cohort()], tmp_path / "run", SHARED), alone)


@pytest.mark.slow
def test_a_run_goes_on_from_one_process_to_shards_and_back(tmp_path: Path, alone: Run) -> None:
    """Two steps by one process, two more by two with half of the model each, the last two by one again."""

    def interrupt_after(last: int) -> Callable[[Mixture, int, int], None]:
        def follow(objective: Mixture, step: int, steps: int, real=Mixture.follow) -> None:
            real(objective, step, steps)
            if step == last:
                signal.raise_signal(signal.SIGINT)

        return follow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixture, "follow", interrupt_after(1))
        with pytest.raises(KeyboardInterrupt):
            pretrain([cohort()], tmp_path / "run", SHARED)
    stopped = STOPPED.replace("RANK'] == '1'", "RANK'] == '0'").replace("step == 2", "step == 3")
    by_torchrun(tmp_path / "run", 2, script=SHARDED.replace("step == 0", "step == 2") + stopped)
    state = RunFolder(tmp_path / "run").state_of(4)
    assert {type(value) for value in state["objective"].values()} == {torch.Tensor}
    close(pretrain([cohort()], tmp_path / "run", SHARED), alone)


def test_what_scans_decide_cannot_be_in_shards() -> None:
    objective = new_objective(SHARED)
    objective.truth = ("classes",)
    with pytest.raises(Misuse, match="dino cannot be sharded"):
        sharded(objective, Processes("cpu", 0, 2))
    with pytest.raises(Misuse, match="a model in shards cannot be probed"):
        replace(SHARED, shard=True, probe=ProbeSettings(labels="labels.csv"))


def test_parts_of_a_step_add_up_to_it(tmp_path: Path) -> None:
    whole = pretrain([cohort()], tmp_path / "whole", SHARED)
    close(pretrain([cohort()], tmp_path / "run", replace(SHARED, accumulate=2)), whole)


def test_one_process_alone_needs_no_torchrun() -> None:
    with joined("cpu") as processes:
        assert processes == Processes("cpu")
        assert processes.first
        assert processes.agreed(3.5) == 3.5
        processes.wait()


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(Misuse, match="must be auto, cpu or cuda"), joined(device):
        pass


def test_a_batch_must_be_shared_out_evenly() -> None:
    settings = PretrainSettings(steps=1, batch=6, accumulate=2)
    with pytest.raises(Misuse, match="a batch of 6 scans has no 4 equal parts"):
        order_of(Scans([cohort()]), settings, Processes("cpu", 0, 2))
    with pytest.raises(Misuse, match="shares name 'day'"):
        order_of(Scans([cohort()]), replace(settings, shares={"day": 1.0}), Processes("cpu"))
