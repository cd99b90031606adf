"""`headct pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.talk import Talk

ENCODERS = "vit-tiny, vit-small, vit-base, vit-large, segresenc, slices-tiny or slices-small"
"""Those of `headct.encoders.ARCHITECTURES`, which help cannot wait for."""


def pretrain(
    talk: Talk,
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT", help="Cohorts of one recipe.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run to begin, or to go on with.")],
    objective: Annotated[str | None, typer.Option("--objective", metavar="NAME", help="What is learned: dino.")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="NAME", help=f"What is trained: {ENCODERS}.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.toml", help="Settings; those given here go before.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="TIME", help="As many steps as fit into 60s, 30m or 8h.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Steps, instead of --fit.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, metavar="N", help="Scans a step.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Decides everything random.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="NAME", help="fp32, or bf16 where it is faster.")
    ] = None,
) -> None:
    """Train an encoder on scans without labels; the run ends with a checkpoint folder.

    Called again with the same line it goes on where it was stopped: after Ctrl-C at that very step, after a kill at the
    state that was saved last, at most five minutes before. The resolved settings are written to
    RUN/settings.toml, which --config takes.

    Examples:
        headct pretrain night --objective dino --encoder vit-tiny --fit 10m --out run
        headct pretrain night day --config run/settings.toml --seed 1 --out second
    """
    from headct import pretraining
    from headct.failure import Misuse

    if fit is not None and steps is not None:
        raise Misuse("--fit and --steps are two lengths", do="give one of them")
    settings = pretraining.settings_for(
        config,
        objective=objective,
        encoder=encoder,
        budget_s=None if fit is None else pretraining.seconds(fit),
        steps=steps,
        batch=batch,
        seed=seed,
        precision=precision,
    )
    run = pretraining.pretrain(cohorts, out, settings, progress=talk.say)
    print(run.checkpoint)
