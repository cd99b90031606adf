"""`headct models` and `headct models show`."""

from __future__ import annotations

from typing import Annotated

import typer

from headct.cli.options import Json
from headct.cli.talk import Talk


def models(talk: Talk, *, as_json: Json = False) -> None:
    """List the models that can be named.

    Those without weights start at random: `headct pretrain` trains them.

    Examples:
        headct models
        headct models --json
    """
    from headct.checkpoints import registry

    talk.table(registry.listed(), as_json=as_json)


def show(
    talk: Talk,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from the list, or a checkpoint folder.")],
    *,
    as_json: Json = False,
) -> None:
    """Show what is known about one model: architecture, recipe, training, licence.

    Examples:
        headct models show vit-tiny
        headct models show run/checkpoint --json
    """
    from headct.checkpoints import registry

    about = registry.about(model)
    if as_json:
        talk.json(about)
    else:
        talk.table([{"": name, "value": value} for name, value in registry.flat(about).items()])
