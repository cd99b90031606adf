"""`headct embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.options import CriteriaName, Inputs, Key
from headct.cli.talk import Talk


def embed(
    talk: Talk,
    inputs: Inputs,
    *,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A checkpoint folder, or a finished run.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="Where the vectors go.")],
    tokens: Annotated[
        Path | None, typer.Option("--tokens", metavar="DIR", help="Write a vector for each place of a scan there too.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Scans that are looked at together.")] = 8,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Threads that prepare scans meanwhile.")
    ] = 1,
    criteria: CriteriaName = "default",
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Keep identifiers instead of pseudonyms.")] = False,
    key: Key = None,
) -> None:
    """Turn scans, or the scans of a cohort, into vectors: a table of scan_id and vector.

    What cannot be embedded is in FILE.rejections.parquet beside it, with the reason.

    Examples:
        headct embed night --model run --out night.parquet
        headct embed /data/ct scan.nii.gz --model run/checkpoint --out vectors.parquet
    """
    from headct.embedding import embed as run
    from headct.failure import Failure
    from headct.reading.criteria import named
    from headct.reading.pseudonyms import user_key

    with talk.progress("embedding") as progress:
        found = run(
            inputs,
            model,
            batch_size=batch,
            tokens=tokens is not None,
            workers=workers,
            criteria=named(criteria),
            key=None if key is None else user_key(key),
            keep_ids=keep_ids,
            progress=progress,
        )
    found.write(out)
    if tokens is not None:
        found.write_tokens(tokens)
    reasons = found.rejections["code"].value_counts()
    talk.table([{"rejected because": code, "inputs": int(n)} for code, n in reasons.items()], to_stderr=True)
    talk.say(f"{len(found)} scans embedded in {found.vectors.shape[1]} numbers each: {out}")
    if not len(found):
        why = ", ".join(f"{code} ({n})" for code, n in reasons.items())
        raise Failure("nothing could be embedded", why=why, do=f"see the sentences beside {out}")
