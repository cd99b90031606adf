"""`headct embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.options import Inputs, Json
from headct.cli.talk import Talk


def embed(
    talk: Talk,
    inputs: Inputs,
    *,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A checkpoint or run folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="Where to write the vectors.")],
    tokens: Annotated[
        Path | None, typer.Option("--tokens", metavar="DIR", help="Write the token grid of each scan there, as .npy.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Scans seen at once.")] = 8,
    as_json: Json = False,
) -> None:
    """Turn scans, or a cohort, into vectors: a row a scan, and beside it a table of what was rejected.

    Examples:
        headct embed night --model run --out night.parquet
        headct embed scan.nii.gz /data/ct --model run/checkpoint --out vectors.parquet
    """
    import numpy as np

    from headct.embedding import embed as run
    from headct.failure import Failure

    with talk.progress("scans") as progress:
        found = run(list(inputs), model, batch_size=batch_size, tokens=tokens is not None, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    found.write(out)
    if tokens is not None:
        tokens.mkdir(parents=True, exist_ok=True)
        for scan_id, grid in zip(found.table["scan_id"], found.tokens or [], strict=True):
            np.save(tokens / f"{scan_id}.npy", grid)
    counts = {"scans": len(found.vectors), "features": found.vectors.shape[1], "rejections": len(found.rejections)}
    if as_json:
        talk.json(counts)
    talk.table([{"embedded": name, str(out): number} for name, number in counts.items()], to_stderr=True)
    if not len(found.vectors):
        why = ", ".join(sorted(set(found.rejections["code"])))
        raise Failure("no scan could be embedded", why=why, do=f"see {out.stem}.rejections.parquet")
