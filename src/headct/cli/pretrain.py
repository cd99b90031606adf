"""`headct pretrain`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from headct.cli.talk import Talk
from headct.failure import Failure

OBJECTIVES = "dino, dinov2, mae, jepa, hybrid, simclr, rescan, twin, dense, insert or dense-insert"
"""Those of `headct.pretraining.objectives.OBJECTIVES`, which help cannot wait for."""

ENCODERS = (
    "vit-tiny, vit-small, vit-base, vit-large, segresenc, slices-tiny, slices-small, conv-tiny, anatomy-conv or "
    "anatomy-vit"
)
"""Those of `headct.encoders.ARCHITECTURES`, which help cannot wait for."""


def pretrain(
    talk: Talk,
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT", help="Cohorts of one recipe.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run to begin, or to go on with.")],
    objective: Annotated[
        str | None, typer.Option("--objective", metavar="NAME", help=f"What is learned: {OBJECTIVES}. Or several, a+b.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="NAME", help=f"What is trained: {ENCODERS}.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.toml", help="Settings; those given here go before.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", metavar="LIMIT", help="As many steps as fit into 60s, 30m or 8h; or a memory, 12GB."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Steps, instead of --fit.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, metavar="N", help="Scans a step.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Decides everything random.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="NAME", help="fp32, or bf16 where it is faster.")
    ] = None,
    continue_from: Annotated[
        str | None,
        typer.Option("--continue-from", metavar="MODEL", help="Go on with a model: its encoder and weights."),
    ] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Cut the weights over all processes (FSDP2), for large encoders.")
    ] = False,
    track: Annotated[
        str | None, typer.Option("--track", metavar="NAME", help="Also write to mlflow or wandb, on this machine.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and write nothing.")] = False,
) -> None:
    """Train an encoder on scans without labels; the run ends with a checkpoint folder.

    Called again with the same line it goes on where it was stopped: after Ctrl-C at that very step, after a kill at the
    state that was saved last, at most five minutes before. What is not given is worked out from the scans, the encoder
    and the machine, and said with its reason. The resolved settings are written to RUN/settings.toml, which --config
    takes.

    Examples:
        headct pretrain night --objective dino --encoder vit-tiny --fit 10m --out run
        headct pretrain night day --config run/settings.toml --seed 1 --out second
        headct pretrain night --objective dinov2 --encoder vit-base --fit 12GB --dry-run --out run
    """
    from headct import pretraining
    from headct.cohort.journal import expect_writable
    from headct.failure import Misuse

    budget_s, memory_gb = pretraining.limits(fit)
    if budget_s is not None and steps is not None:
        raise Misuse("--fit and --steps are two lengths", do="give one of them")
    if encoder is not None and continue_from is not None:
        raise Misuse(
            "--encoder and --continue-from both say what is trained",
            why="a run that goes on from a model has the encoder of that model",
            do="leave --encoder out, or begin anew without --continue-from",
        )
    given = {
        "encoder": encoder,
        "budget_s": budget_s,
        "memory_gb": memory_gb,
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "precision": precision,
        "continue_from": continue_from,
        "shard": shard or None,
        "track": track,
    }
    expect_writable(out / "settings.toml")
    settings = pretraining.settings_for(config, objective=objective, **given)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one speaks
    if dry_run:
        plan = pretraining.plan_of(cohorts, settings, progress=talk.say if first else None)
        for line in plan.lines() if first else ():
            print(line)
        return
    run = pretraining.pretrain(cohorts, out, settings, progress=talk.say)
    if first:
        if (page := out / "report.html").exists():
            talk.say(f"curves and settings: {page}")
        print(run.checkpoint)
        if run.stopped:
            raise Failure(
                f"{out} was stopped before its last step",
                why=run.stopped,
                do="look at its curves, and begin another run with other settings; the checkpoint has the last weights",
            )
