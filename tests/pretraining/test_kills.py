"""A long run that is killed at twenty random moments ends in the bits of one that was left in peace."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from pretraining.test_loop import SMALL, cohort, same_bits, weights

from headct.pretraining import pretrain

STEPS, KILLS = 300, 20
LONG = replace(SMALL, steps=STEPS, save_every=2)

SCRIPT = """
import contextlib, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
with contextlib.suppress(ModuleNotFoundError):
    import torch.utils.tensorboard  # once, and not in each of the children
from pretraining.test_kills import KILLS, LONG
from pretraining.test_loop import cohort
from headct.pretraining import pretrain

out, luck, killed = Path(sys.argv[1]), random.Random(1), 0
while True:
    child = os.fork()  # nothing was computed here yet, so a copy of this process is a fresh one
    if child == 0:
        pretrain([cohort()], out, LONG)
        os._exit(0)
    if killed < KILLS:
        time.sleep(luck.uniform(0.3, 1.0))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        continue
    print(killed)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_twenty_kills(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peaceful = pretrain([cohort()], tmp_path / "peaceful", LONG)
        killed = pretrain([cohort()], tmp_path / "killed", LONG)  # it has ended: nothing is trained
    finally:
        torch.set_num_threads(threads)
    assert int(done.stdout) == KILLS, "it was over before it could be killed so often"
    assert same_bits(weights(killed), weights(peaceful))
    assert killed.history["loss"].tolist() == peaceful.history["loss"].tolist()
    assert killed.history["step"].tolist() == list(range(STEPS))
