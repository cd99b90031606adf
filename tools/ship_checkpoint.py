"""Takes the checkpoint of a finished run into the package: `python tools/ship_checkpoint.py RUN NAME`.

What comes with the package as `virtual-coarse` is the run of `benchmarks/few_labels.py`, whose first lines say how it
is made. Prints what `headct.checkpoints.registry` must know of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from headct import checkpoints
from headct.checkpoints import layout, registry
from headct.checkpoints.card import NOT_STATED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    found = checkpoints.load(options.run)
    if found.card.licence == NOT_STATED:
        parser.error("the run states no licence of its weights, so nobody may use them: set `licence` in its settings")
    folder = registry.SHIPPED / options.name
    folder.parent.mkdir(exist_ok=True)
    checkpoints.save(folder, found.encoder, found.card, replace_existing=True)
    weights = folder / layout.MODEL
    print(f"{folder}: sha256={checkpoints.load(folder).sha256!r}, size_bytes={weights.stat().st_size}")


if __name__ == "__main__":
    main()
