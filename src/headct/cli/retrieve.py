"""`headct retrieve build`, `query` and `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headct.cli.options import (
    Batch,
    CriteriaName,
    Device,
    Json,
    KeepIds,
    KnownKey,
    Precision,
    Threads,
    criteria_of,
    expect_key,
)
from headct.cli.talk import Talk

if TYPE_CHECKING:
    from headct.cohort import Cohort
    from headct.tasks.retrieval import Index, Judged
    from headct.tasks.retrieval.asking import Query

IndexPlace = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder of headct retrieve build.")]
CohortPlace = Annotated[
    Path | None,
    typer.Option("--cohort", metavar="COHORT", help="The cohort of the vectors, if not where it was."),
]


def retrieve(talk: Talk) -> None:
    """Scans like this one: build an index of a cohort, query it, and judge by labels what it finds.

    Examples:
        headct retrieve build cohort --model run --out index
        headct retrieve query index scan.nii.gz --out alike.html
    """
    from headct.failure import Misuse

    raise Misuse("retrieve is build, query or evaluate", do="headct retrieve build COHORT --model MODEL --out INDEX")


def build(
    talk: Talk,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A cohort, or a table of headct embed.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="INDEX", help="The folder to make.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The encoder, for a cohort; for a table, its own.")
    ] = None,
    cohort: CohortPlace = None,
    metric: Annotated[str, typer.Option("--metric", metavar="NAME", help="cosine or euclidean.")] = "cosine",
    search: Annotated[
        str,
        typer.Option("--search", metavar="NAME", help="exact, approximate, or auto: approximate from 50,000 scans on."),
    ] = "auto",
    precision: Precision = "auto",
    device: Device = None,
    batch: Batch = 8,
    workers: Threads = 1,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where vectors are kept; beside INDEX if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an index of a cohort, or of vectors that are there. An exact one misses nothing and needs no FAISS.

    An approximate one (pip install faiss-cpu) looks at a part of the vectors: the share of the ten nearest
    that it finds is measured while it is built, and said. A table needs --cohort for conditions and pictures.

    Examples:
        headct retrieve build cohort --model run --out index
        headct retrieve build vectors.parquet --cohort cohort --out index --metric euclidean --search exact
    """
    from headct import checkpoints
    from headct.cohort import Cohort
    from headct.cohort.identities import is_virtual
    from headct.cohort.journal import expect_writable
    from headct.embedding.inputs import is_cohort
    from headct.embedding.machine import choose
    from headct.failure import Misuse
    from headct.tasks import retrieval
    from headct.tasks.retrieval.gallery import expect_scans
    from headct.tasks.retrieval.index import check_place, search_named
    from headct.tasks.retrieval.ranking import metric_named

    wanted, how = metric_named(metric), search_named(search)
    check_place(out)
    expect_writable(out)
    if source.is_dir() or is_cohort(source):
        if model is None:
            raise Misuse("a cohort needs an encoder", do="--model MODEL (see headct models)")
        opened: Cohort | None = Cohort(source)
        assert opened is not None
        expect_scans(opened)
        encoder = checkpoints.load(model)
        machine = choose(precision, device, graph=encoder.runtime)
        talk.say(f"embedding on {machine}")
        place = cache or out.parent / ".headct-vectors"
        with talk.progress("embedding") as progress:
            gallery = retrieval.of_cohort(
                opened, encoder, machine, place, batch_size=batch, workers=workers, progress=progress
            )
    else:
        opened = None if cohort is None else Cohort(cohort)
        gallery = retrieval.of_table(source, opened)
    made = retrieval.build(
        out,
        gallery,
        metric=wanted,
        search=how,
        model_name=_lasting(model),
        cohort=None if opened is None else opened.path,
        virtual=opened is not None and is_virtual(opened),
    )
    talk.table([_about(made)], as_json=as_json)
    if opened is None:
        talk.warn("without --cohort the index knows no scanner, age or sex, and has no pictures")
    talk.say(f"the index is in {out}")


def _lasting(model: str | None) -> str:
    """A model's name as a later call finds it from elsewhere: a path becomes absolute."""
    if model is None:
        return ""
    return str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model


def _about(index: Index) -> dict[str, Any]:
    how = index.about["search"]
    return {
        "scans": len(index),
        "patients": index.about["patients"],
        "numbers": index.about["width"],
        "metric": index.metric,
        "search": how["kind"],
        "recall of the ten nearest": float(how["recall_at_10"]),
        "megabytes": round(index.bytes / 1e6, 3),
    }


def query(
    talk: Talk,
    index: IndexPlace,
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="[SCAN]...", help="Files or folders of scans to look for.")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PAGE.html", help="A page of pictures, side by side.")
    ] = None,
    scan_id: Annotated[
        list[str] | None, typer.Option("--scan-id", metavar="ID", help="A scan of the index; may be repeated.")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="FILE", help="Vectors: .npy, or a table of headct embed.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="K", help="How many scans are wanted.")] = 5,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="What they must be: 'thickness_mm<=2.5', 'sex=F', 'kernel~H3*', 'scanner=ACME'; may be repeated.",
        ),
    ] = None,
    own_patient: Annotated[
        bool, typer.Option("--own-patient", help="Find other scans of the same patient too.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Miss nothing, even in an approximate index.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The index's encoder, where it has moved.")
    ] = None,
    cohort: CohortPlace = None,
    precision: Precision = "auto",
    device: Device = None,
    criteria: CriteriaName = "default",
    keep_ids: KeepIds = False,
    key: KnownKey = None,
    as_json: Json = False,
) -> None:
    """Find the scans that are most like a scan, never of the same patient unless asked.

    Conditions choose before anything is ranked, so K scans come back if there are as many. A patient is known again by
    the id, so scans in files need the --key (or --keep-ids) that the cohort was ingested with.

    Examples:
        headct retrieve query index scan.nii.gz --out alike.html
        headct retrieve query index --scan-id 1a2b3c4d5e6f7a8b --where 'thickness_mm<=2' --where sex=F --json
    """
    from headct.cohort.journal import expect_writable, refused
    from headct.failure import Misuse
    from headct.reporting.page import check_place
    from headct.reporting.words import count
    from headct.tasks.retrieval import Condition, Index, asking
    from headct.tasks.retrieval.gallery import expect_finite
    from headct.tasks.retrieval.showing import page_of

    ways = [bool(scans), bool(scan_id), vector is not None]
    if sum(ways) != 1:
        raise Misuse("a query is scans, --scan-id or --vector, one of the three", do="name one of them")
    if out is not None:
        check_place(out)
        expect_writable(out)
    conditions = [Condition.of(text) for text in where or ()]
    opened = Index(index)
    home = asking.cohort_of(opened, cohort)
    if scans:
        queries = _of_files(talk, scans, opened, model, precision, device, criteria, keep_ids, key)
    elif vector is not None:
        queries = asking.of_vectors(vector, opened)
    else:
        queries = asking.of_index(scan_id or [], opened, home)
    import numpy as np

    vectors = np.stack([one.vector for one in queries])
    expect_finite(vectors, [one.name for one in queries])
    patients = [""] * len(queries) if own_patient else [one.patient_id for one in queries]
    found = opened.search(
        vectors,
        k,
        scan_ids=[one.name for one in queries],
        patients=patients,
        conditions=conditions,
        exact=exact,
    )
    doubles = [asking.double(*pair, opened) for pair in zip(queries, found, strict=True)]
    note = "" if own_patient else asking.caution(queries, opened)
    if note:
        talk.warn(note)
    for one, what, twin in zip(queries, found, doubles, strict=True):
        if twin:
            talk.warn(f"{twin} is most likely the scan {one.name} itself, under another id")
        if len(what.rows) < k:
            talk.warn(f"{one.name}: {k:,} were asked for, and only {count(len(what.rows), 'scan')} could be found")
    rows = list(_rows(queries, found, opened))
    talk.table(rows, as_json=as_json)
    if not all(one.exact for one in found):
        talk.say(f"approximate: {opened.about['search']['recall_at_10']:.3f} of the ten nearest are found on average")
    if out is not None:
        try:
            page_of(queries, found, doubles, opened, home, conditions, note).write(out)
        except OSError as error:
            raise refused(out, error) from error
        talk.say(f"wrote {out}" + ("" if home else ", without pictures: the cohort is not at hand (--cohort)"))


def _of_files(
    talk: Talk,
    scans: list[Path],
    index: Index,
    model: str | None,
    precision: str,
    device: str | None,
    criteria: str,
    keep_ids: bool,
    key: Path | None,
) -> list[Query]:
    from headct import checkpoints
    from headct.cli.rejected import nothing, reasons
    from headct.embedding.inputs import Reading
    from headct.embedding.machine import choose
    from headct.failure import Misuse
    from headct.reading.pseudonyms import user_key
    from headct.tasks.retrieval import asking

    name = model or index.about["model_name"]
    if not name:
        raise Misuse("the index does not say which model made it", do="--model MODEL")
    wanted = criteria_of(criteria)
    expect_key(key)
    encoder = checkpoints.load(name)
    machine = choose(precision, device, graph=encoder.runtime)
    reading = Reading(
        recipe=encoder.recipe, criteria=wanted, key=None if key is None else user_key(key), keep_ids=keep_ids
    )
    queries, rejected = asking.of_files(scans, index, encoder, reading, machine)
    talk.table(reasons(rejected), to_stderr=True)
    if not queries:
        counted = {code: f"{number:,}" for code, number in rejected.items()}
        raise nothing("no scan to look for", scans, counted, do="headct ingest says what was seen in each file")
    return queries


def _rows(queries: list[Query], found: list[Any], index: Index) -> Iterator[Mapping[str, Any]]:
    known = index.scans
    told = [name for name in ("manufacturer", "kernel", "thickness_mm", "age", "sex") if name in known]
    for one, what in zip(queries, found, strict=True):
        for rank, (row, similarity) in enumerate(zip(what.rows.tolist(), what.similarities.tolist(), strict=True), 1):
            yield {
                "query": one.name,
                "rank": rank,
                "scan_id": known["scan_id"][row],
                "patient_id": known["patient_id"][row],
                **({"cosine": similarity} if index.metric == "cosine" else {"distance": -similarity}),
                **{name: _plain(known[name][row]) for name in told},
            }


def _plain(value: Any) -> Any:
    """A cell as JSON has it."""
    import pandas as pd

    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def evaluate(
    talk: Talk,
    index: IndexPlace,
    *,
    labels: Annotated[
        Path, typer.Option("--labels", metavar="TABLE", help="CSV, Parquet or Excel: who, and 1, 0 or nothing.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of metrics.json and report.html.")],
    findings: Annotated[
        str | None,
        typer.Option("--findings", metavar="NAMES", help="Columns to judge by, with commas between; all if not given."),
    ] = None,
    relevance: Annotated[
        str,
        typer.Option(
            "--relevance", metavar="NAME", help="present: queries have the finding; same: all query, labels must agree."
        ),
    ] = "present",
    ks: Annotated[str, typer.Option("--ks", metavar="NUMBERS", help="How many neighbours are looked at.")] = "1,5,10",
    cohort: CohortPlace = None,
    as_json: Json = False,
) -> None:
    """Judge by labels what an index finds: precision@k, average precision, hit rate and mAP, beside a random order.

    Every labelled scan looks among those of other patients, exactly. Intervals count the queries' patients.

    Examples:
        headct retrieve evaluate index --labels reads.csv --out judged
        headct retrieve evaluate index --labels reads.csv --findings ich,sdh --relevance same --ks 3,5,10 --out judged
    """
    from headct.cohort.journal import expect_writable, refused, write_atomically
    from headct.failure import Misuse
    from headct.reporting.page import check_place
    from headct.tasks.retrieval import Index, Judging, asking
    from headct.tasks.retrieval.judging import relevance_named
    from headct.tasks.retrieval.labelled import judge_by, labels_of
    from headct.tasks.retrieval.showing import report_of

    try:
        wanted = tuple(sorted({int(one) for one in ks.split(",")}))
    except ValueError:
        raise Misuse(f"{ks!r} are no numbers", do="write them as 1,5,10") from None
    check_place(out / "report.html")
    expect_writable(out / "metrics.json")
    opened = Index(index)
    settings = Judging(metric=opened.metric, ks=wanted, relevance=relevance_named(relevance))
    names = [name.strip() for name in (findings or "").split(",") if name.strip()]
    labelled, sentences = labels_of(labels, opened, asking.cohort_of(opened, cohort), names)
    for sentence in sentences:
        talk.say(sentence)
    judged, left_out = judge_by(opened, labelled, settings)
    for name, why in left_out.items():
        talk.warn(f"{name} is left out: {why}")
    tree = {name: one.tree() for name, one in judged.items()}
    content = json.dumps({"settings": {**_settings(settings)}, "findings": tree}, indent=1) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(out / "metrics.json", content.encode())
        report_of(opened, judged, left_out, settings, sentences).write(out / "report.html")
    except OSError as error:
        raise refused(out, error) from error
    if as_json:
        talk.json(tree)
    else:
        talk.table(list(_judged(judged, wanted)))
    talk.say(f"wrote {out / 'metrics.json'} and {out / 'report.html'}")


def _settings(settings: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(settings)


def _judged(judged: Mapping[str, Judged], ks: tuple[int, ...]) -> Iterator[Mapping[str, Any]]:
    k = ks[-1]
    for name, one in judged.items():
        yield {
            "finding": name,
            "queries": one.queries,
            "gallery": one.gallery,
            "mAP against chance": one.against_chance,
            **{
                title: f"{one.estimates[metric].written()}, chance {one.chance[metric]:.3f}"
                for title, metric in (
                    (f"precision@{k}", f"precision_at_{k}"),
                    (f"AP@{k}", f"average_precision_at_{k}"),
                    (f"hit rate@{k}", f"hit_rate_at_{k}"),
                    ("mAP", "average_precision"),
                )
            },
        }
