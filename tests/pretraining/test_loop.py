"""The loop: a killed run ends in the same bits, a wrong one is refused, a diverged one stops.

Oracle of resuming: the undisturbed run, compared bit for bit (one machine, one number of threads).
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pretraining.memory_cohort import MemoryCohort, heads
from safetensors.torch import load_file

from headct import checkpoints, encoders
from headct.failure import Failure, Misuse
from headct.pretraining import PretrainSettings, Run, loop, pretrain, read_settings, settings_for
from headct.pretraining.interruption import Interruption
from headct.pretraining.loop import _taken_over, descend, new_objective, new_optimizer
from headct.pretraining.objectives.dino import DinoSettings
from headct.pretraining.runs import RunFolder
from headct.pretraining.views import Crops, ViewSettings

SMALL = PretrainSettings(
    steps=10,
    batch=3,
    save_every=1,
    encoder_settings={"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": [4, 4, 4], "grid": [3, 3, 3]},
    objectives={
        "dino": DinoSettings(
            prototypes=16,
            hidden=16,
            bottleneck=8,
            frozen_prototypes=0.5,
            global_crops=Crops(views=2, shape=(12, 12, 12), edge_mm=(36.0, 48.0), overhang=0.1),
            local_crops=Crops(views=1, shape=(8, 8, 8), edge_mm=(16.0, 24.0), overhang=0.0),
        )
    },
    device="cpu",
)


def cohort() -> MemoryCohort:
    return MemoryCohort(heads(5))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint / "model.safetensors")


def same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain([cohort()], tmp_path_factory.mktemp("runs") / "run", SMALL)


KILLED = """
import os, signal, sys
from pathlib import Path
from pretraining.test_loop import SMALL, cohort
from headct.pretraining import pretrain
from headct.pretraining import loop

steps = {"left": int(sys.argv[2])}

def descend_and_die(*args, real=loop.descend, **kwargs):
    if steps["left"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    steps["left"] -= 1
    return real(*args, **kwargs)

loop.descend = descend_and_die
from dataclasses import replace
pretrain([cohort()], Path(sys.argv[1]), replace(SMALL, save_every=int(sys.argv[3])))
"""


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_run_that_was_killed_ends_in_the_same_bits(tmp_path: Path, undisturbed: Run, save_every: int) -> None:
    settings = replace(SMALL, save_every=save_every)
    tests = str(Path(__file__).parents[1])
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "5", str(save_every)],
        env={"PYTHONPATH": tests, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert died.returncode == -9
    assert not (tmp_path / "run" / "checkpoint").exists()
    said: list[str] = []
    resumed = pretrain([cohort()], tmp_path / "run", settings, progress=said.append)
    assert f"from step {5 - 5 % save_every}" in said[0]
    assert same_bits(weights(resumed), weights(undisturbed))
    assert resumed.history["step"].tolist() == list(range(10))
    assert resumed.history["loss"].tolist() == undisturbed.history["loss"].tolist()


def test_a_run_that_was_killed_before_its_first_state_says_that_it_begins_anew(
    tmp_path: Path, undisturbed: Run
) -> None:
    RunFolder(tmp_path / "run").begin(undisturbed.settings)
    said: list[str] = []
    run = pretrain([cohort()], tmp_path / "run", SMALL, progress=said.append)
    assert said[0] == "no state was saved before the run was stopped: it begins anew"
    assert same_bits(weights(run), weights(undisturbed))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_an_interrupted_run_goes_on_at_that_step(tmp_path: Path, undisturbed: Run, name: str) -> None:
    said: list[str] = []

    def interrupt_once(*args, real=loop.descend, **kwargs):
        if not said:
            signal.raise_signal(signal.Signals[name])
            said.append("interrupted in the middle of a step")
        return real(*args, **kwargs)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "descend", interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            pretrain([cohort()], tmp_path / "run", replace(SMALL, save_every=50))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, save_every=50), progress=said.append)
    assert any("from step 1" in line for line in said)
    assert same_bits(weights(run), weights(undisturbed))


def test_a_second_interruption_is_not_waited_for() -> None:
    with Interruption() as interruption:
        for _ in range(3):  # schedulers and launchers both send it
            signal.raise_signal(signal.SIGTERM)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_finished_run_is_not_trained_again(undisturbed: Run) -> None:
    before = weights(undisturbed)
    again = pretrain([cohort()], undisturbed.checkpoint.parent, SMALL)
    assert same_bits(before, weights(again))
    assert len(again.history) == 10


def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path: Path, undisturbed: Run) -> None:
    torch.manual_seed(99)  # the global generator must not matter
    again = pretrain([cohort()], tmp_path / "again", SMALL)
    other = pretrain([cohort()], tmp_path / "other", replace(SMALL, seed=1))
    assert same_bits(weights(again), weights(undisturbed))
    assert not same_bits(weights(other), weights(undisturbed))


def test_the_checkpoint_knows_where_it_comes_from(undisturbed: Run) -> None:
    model = checkpoints.load(undisturbed.checkpoint)
    assert model.recipe == cohort().recipe
    assert model.card.objective["name"] == "dino"
    assert model.card.objective["dino"]["prototypes"] == 16
    assert model.card.data[0]["scans"] == 5
    assert read_settings(undisturbed.checkpoint.parent / "settings.toml") == undisturbed.settings


def test_the_history_has_what_a_reader_asks_for(undisturbed: Run) -> None:
    expected = {"step", "loss", "gradient_norm", "entropy", "used", "spread", "lr", "decay", "air", "step_s", "data_s"}
    assert expected <= set(undisturbed.history.columns)
    assert np.isfinite(undisturbed.history.to_numpy(dtype=float)).all()


def test_a_run_does_not_go_on_with_other_settings_or_scans(tmp_path: Path) -> None:
    two = replace(SMALL, steps=2)
    pretrain([cohort()], tmp_path / "run", two)
    with pytest.raises(Misuse, match=r"begun with other settings \(then lr = 0\.\d+, now lr = 0\.1\)"):
        pretrain([cohort()], tmp_path / "run", replace(two, lr=0.1))
    with pytest.raises(Misuse, match="begun on other scans"):
        pretrain([MemoryCohort(heads(4))], tmp_path / "run", two)


def test_whole_numbers_and_their_fractions_are_one(tmp_path: Path) -> None:
    whole = replace(SMALL, steps=1, views=ViewSettings(rotation_deg=4))
    pretrain([cohort()], tmp_path / "run", whole)
    pretrain([cohort()], tmp_path / "run", whole)


def test_a_run_does_not_go_on_with_another_objective(tmp_path: Path) -> None:
    pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=1))
    with pytest.raises(Misuse, match="begun with other settings"):
        pretrain([cohort()], tmp_path / "run", settings_for(None, objective="dinov2"))


def test_numbers_that_a_full_disk_refuses_are_said_and_the_run_goes_on(tmp_path: Path, undisturbed: Run) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    (tmp_path / "run").mkdir()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "keep_history_before", lambda self, step: self.history_file.symlink_to("/dev/full"))
        patch.setattr(RunFolder, "history", lambda self: undisturbed.history)
        run = pretrain([cohort()], tmp_path / "run", SMALL, progress=said.append)
    assert sum("could not be written down (" in line for line in said) == SMALL.steps
    assert same_bits(weights(run), weights(undisturbed))


def test_half_a_line_of_numbers_is_taken_back(tmp_path: Path) -> None:
    run, said = RunFolder(tmp_path), list[str]()
    run.add_to_history({"step": 0, "loss": 1.0}, said.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.history_file.stat().st_size + 5, limits[1]))
    try:
        run.add_to_history({"step": 1, "loss": 1.0}, said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.add_to_history({"step": 2, "loss": 1.0}, said.append)
    run.close_history()
    assert run.history()["step"].tolist() == [0, 2]
    assert len(said) == 1


def test_a_kill_before_the_first_file_is_there_leaves_a_folder_to_begin_in(tmp_path: Path) -> None:
    (tmp_path / "settings.toml.partial").write_text("steps")
    assert RunFolder(tmp_path).begun_with(SMALL) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1079872 vs 1079768"),  # torch's own
    ],
    ids=["system", "torch"],
)
def test_a_full_disk_costs_no_state(error: Exception, tmp_path: Path, undisturbed: Run) -> None:
    def full(state: object, file: object) -> None:
        raise error

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        run = pretrain([cohort()], tmp_path / "run", SMALL, progress=said.append)
    assert sum("could not be saved" in line for line in said) == SMALL.steps
    assert not list((tmp_path / "run" / "states").iterdir())
    assert same_bits(weights(run), weights(undisturbed))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(Misuse, match="not empty and not a run"):
        pretrain([cohort()], tmp_path, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in encoders.ARCHITECTURES if name not in ("vit-base", "vit-large")])
def test_every_encoder_can_be_trained(tmp_path: Path, name: str) -> None:
    """But the largest transformers, which are the small ones with other numbers."""
    dino = DinoSettings(
        global_crops=Crops(views=2, shape=(32, 32, 32), edge_mm=(120.0, 130.0), overhang=0.1),
        local_crops=Crops(views=1, shape=(32, 32, 32), edge_mm=(60.0, 70.0), overhang=0.0),
    )
    settings = PretrainSettings(steps=1, batch=2, encoder=name, objectives={"dino": dino}, device="cpu")
    run = pretrain([MemoryCohort(heads(2, (96, 112, 96)))], tmp_path / "run", settings)
    assert np.isfinite(run.history["loss"]).all()
    assert checkpoints.load(run.checkpoint).architecture == name


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2))
    one, two = sorted((run.checkpoint.parent / "states").iterdir())
    two.write_bytes(b"half a file")
    said: list[str] = []
    again = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2), progress=said.append)
    assert f"{two} cannot be read" in said[0]
    assert "weights_only" not in said[0], "torch's advice is not safe"
    assert "from step 1" in said[1]
    assert same_bits(weights(again), weights(run))
    for path in (one, two):
        path.write_bytes(b"half a file")
    with pytest.raises(Failure, match=r"no saved state in .* can be read"):
        pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2))


def test_a_budget_becomes_steps_that_are_said_and_stored(tmp_path: Path) -> None:
    said: list[str] = []
    settings = replace(SMALL, steps=None, budget_s=4.0)
    run = pretrain([cohort()], tmp_path / "run", settings, progress=said.append)
    assert run.settings.steps is not None
    assert run.settings.steps >= 1
    assert f"{run.settings.steps} steps fit into 4 s" in said[1]
    again = pretrain([cohort()], tmp_path / "run", settings)  # the stored number, not a new measurement
    assert again.settings == run.settings


def test_where_no_step_fits_one_is_taken_and_it_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=None, budget_s=0.01), progress=said.append)
    assert run.settings.steps == 1
    assert "none fits into 0.01 s" in said[1]


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    planned = pretrain([cohort()], tmp_path / "planned", replace(SMALL, steps=None, budget_s=0.5))
    told = pretrain([cohort()], tmp_path / "told", replace(SMALL, steps=planned.settings.steps))
    assert same_bits(weights(planned), weights(told))


def test_a_scan_full_of_metal_does_not_break_a_run_but_a_huge_rate_does(tmp_path: Path) -> None:
    metal = [np.full((24, 28, 24), 32767, dtype=np.int16), *heads(2)]
    pretrain([MemoryCohort(metal)], tmp_path / "metal", replace(SMALL, steps=2))
    with pytest.raises(Failure, match="was not a finite number at step"):
        pretrain([cohort()], tmp_path / "diverges", replace(SMALL, lr=1e30, clip=1e30))
    state = torch.load(sorted((tmp_path / "diverges" / "states").iterdir())[-1], weights_only=True)
    with np.load(tmp_path / "diverges" / "broken.npz") as kept:
        assert kept["hu"].shape == (3, 24, 28, 24)
        assert set(kept["scan_ids"]) <= {f"scan-{number}" for number in range(5)}
        for scan_id, hu in zip(kept["scan_ids"], kept["hu"], strict=True):
            assert np.array_equal(hu, cohort().array(str(scan_id)))
    assert all(torch.isfinite(tensor).all() for tensor in state["objective"].values())


def test_a_collapse_stops_the_run_and_says_so(tmp_path: Path) -> None:
    same = [heads(1)[0]] * 4  # one head four times, seen without any change: nothing tells the scans apart
    still = ViewSettings(rotation_deg=0.0, scale_hu=0.0, shift_hu=0.0, noise_hu=0.0)
    dino = replace(
        SMALL.objectives["dino"],
        global_crops=Crops(views=2, shape=(12, 12, 12), edge_mm=(500.0, 500.0), overhang=0.5),
        local_crops=Crops(views=0, shape=(8, 8, 8), edge_mm=(16.0, 24.0), overhang=0.0),
    )
    settings = replace(SMALL, steps=60, views=still, objectives={"dino": dino})
    run = pretrain([MemoryCohort(same)], tmp_path / "run", settings)
    assert "every scan gets the same vector" in run.stopped
    assert len(run.history) < 60
    assert checkpoints.load(run.checkpoint).card.objective["stopped"] == run.stopped


def test_weights_of_linear_layers_decay_and_nothing_else() -> None:
    objective = new_objective(SMALL)
    optimizer = new_optimizer(objective)
    names = {id(weight): name for name, weight in objective.named_parameters()}
    decayed, free = ([names[id(w)] for w in group["params"]] for group in optimizer.param_groups)
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert "parts.dino.student.encoder.class_token" in free
    assert "parts.dino.student.encoder.register_tokens" in free
    assert all(name.endswith(".bias") or "norm" in name or "token" in name or "mlp" in name for name in free)
    assert not any("teacher" in name for name in decayed + free)
    assert len(decayed) + len(free) == sum(1 for weight in objective.parameters() if weight.requires_grad)


def test_descend_clips_all_gradients_together() -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": list(layer.parameters()), "decays": False}], lr=0.0, fused=True)
    before = torch.cat([weight.flatten() for weight in layer.parameters()]).detach().clone()
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    norm = descend(optimizer, lr=1.0, decay=0.0, clip=1.0)
    after = torch.cat([weight.flatten() for weight in layer.parameters()])
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(before - after, torch.tensor([0.6, 0.0, 0.8]))
    assert layer.weight.grad is None


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_change_nothing(broken: float) -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = new_optimizer(layer)
    before = [weight.detach().clone() for weight in layer.parameters()]
    for gradient in (broken, 1.0):
        layer.weight.grad, layer.bias.grad = torch.tensor([[gradient, 0.0]]), torch.tensor([4.0])
        descend(optimizer, lr=1.0, decay=0.1, clip=1.0)
        unchanged = [torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True)]
        assert unchanged == [gradient is broken] * 2
    assert all(torch.isfinite(weight).all() for weight in layer.parameters())
    assert all(float(state["step"]) == 1 for state in optimizer.state.values())


def test_a_run_leaves_a_page_and_its_numbers_as_csv(undisturbed: Run) -> None:
    folder = undisturbed.checkpoint.parent
    page = (folder / "report.html").read_text()
    assert "vit-tiny was trained by dino from 5 scans in 10 steps" in page
    assert "waiting for data" in page
    assert page.count("<svg") >= 5
    table = pd.read_csv(folder / "history.csv")
    assert table["loss"].tolist() == pytest.approx(undisturbed.history["loss"].tolist())


def test_a_run_goes_on_from_a_model(tmp_path: Path, undisturbed: Run) -> None:
    origin = str(undisturbed.checkpoint)
    settings = PretrainSettings(
        steps=1, batch=3, objectives=SMALL.objectives, continue_from=origin, lr=1e-9, device="cpu"
    )
    said: list[str] = []
    run = pretrain([MemoryCohort(heads(4, seed=7), name="others")], tmp_path / "run", settings, progress=said.append)
    assert f"goes on from {origin}" in said[0]
    before, after = weights(undisturbed), weights(run)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=0)
    assert checkpoints.load(run.checkpoint).card.objective["continued_from"] == origin
    again = pretrain([MemoryCohort(heads(4, seed=7), name="others")], tmp_path / "run", settings)
    assert again.settings == run.settings
    with pytest.raises(Misuse, match=r"\(then continue_from = \"[^;]*\", now continue_from = \"another\"\)"):
        pretrain([cohort()], tmp_path / "run", replace(settings, continue_from="another"))
    with pytest.raises(Misuse, match="takes 3 channels, the run has 1 windows"):
        _taken_over(settings, replace_windows(checkpoints.load(origin)), said.append)


def test_a_model_that_knew_findings_is_not_washed_clean_by_going_on(tmp_path: Path, undisturbed: Run) -> None:
    model = checkpoints.load(undisturbed.checkpoint)
    card = replace(model.card, objective={**model.card.objective, "uses_findings": True})
    checkpoints.save(tmp_path / "origin", model.encoder, card)
    settings = replace(SMALL, steps=1, continue_from=str(tmp_path / "origin"))
    run = pretrain([cohort()], tmp_path / "run", settings)
    assert checkpoints.load(run.checkpoint).card.objective["uses_findings"] is True
    assert "No label was read" not in (tmp_path / "run" / "report.html").read_text()
    pretrain([cohort()], tmp_path / "run", settings)  # the same line, to which the model is not told again


def test_how_a_step_is_worked_out_may_change_when_a_run_goes_on(tmp_path: Path, undisturbed: Run) -> None:
    pretrain([cohort()], tmp_path / "run", replace(SMALL, accumulate=1, workers=1))
    again = pretrain([cohort()], tmp_path / "run", replace(SMALL, accumulate=3, workers=2))
    assert (again.settings.accumulate, again.settings.workers) == (3, 2)


def replace_windows(model: checkpoints.PretrainedEncoder) -> checkpoints.PretrainedEncoder:
    model.card = replace(model.card, windows={"brain": (40.0, 80.0)})
    return model
