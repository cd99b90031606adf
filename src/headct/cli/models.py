"""`headct models` and `headct models show`."""

from __future__ import annotations

from typing import Annotated

import typer

from headct.cli.options import Json
from headct.cli.talk import Talk


def models(talk: Talk, *, as_json: Json = False) -> None:
    """List the models that can be named, with what is known about their weights.

    Nothing is fetched. Those without weights start at random: `headct pretrain` trains them. Some weights are given on
    request; once you have the file, name its path.

    Examples:
        headct models
        headct models --json
    """
    from headct.checkpoints import registry

    if as_json:
        talk.json(registry.listed())
    else:
        talk.table(registry.readable())


def show(
    talk: Talk,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from the list, or a checkpoint folder.")],
    *,
    as_json: Json = False,
) -> None:
    """Show what is known about one model: architecture, recipe, training, licence. Nothing is fetched.

    Examples:
        headct models show ct-fm
        headct models show run/checkpoint --json
    """
    from headct.checkpoints import registry

    about = registry.about(model)
    if as_json:
        talk.json(about)
    else:
        talk.table([{"": name, "value": value} for name, value in registry.flat(about).items()])
