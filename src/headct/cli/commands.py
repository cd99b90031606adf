"""Every command, with where its function lives and the line that `headct --help` prints for it.

A command is a plain function in a file of its own, imported only when the command is called:

- its parameters are `Annotated[..., typer.Option(...)]`; those that several commands share are in `headct.cli.options`;
- its docstring is the help text, and ends with `Examples:` and two indented command lines;
- a parameter `talk: Talk` gives it progress, tables and messages (`headct.cli.talk`) and is not an option;
- `--quiet` and `--debug` are added to every command, and failures are printed for it (`headct.cli.app`);
- heavy imports (torch, pandas, pydicom) stand inside the function, so that `headct COMMAND --help` is instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Command:
    """One line of `headct --help`; `function` is "module:name", `parts` are its own commands (`models show`)."""

    function: str
    summary: str
    parts: Mapping[str, Command] = field(default_factory=dict)


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "demo": Command("headct.cli.demo:demo", "The whole way, on virtual patients or your own scans, to one page."),
        "doctor": Command("headct.cli.doctor:doctor", "What works on this machine, and what to install for the rest."),
        "ingest": Command("headct.cli.ingest:ingest", "Files, folders and archives to a cohort."),
        "datasets": Command(
            "headct.cli.datasets:datasets",
            "Public sets as downloaded to cohort, labels and splits.",
            parts={
                "show": Command("headct.cli.datasets:show", "What is known about one set."),
                "prepare": Command("headct.cli.datasets:prepare", "A set as downloaded to cohort, labels and splits."),
            },
        ),
        "qc": Command("headct.cli.qc:qc", "A page of slices, rejections and histograms of a cohort."),
        "simulate": Command("headct.cli.simulate:simulate", "Virtual patients to files or to a cohort."),
        "pretrain": Command("headct.cli.pretrain:pretrain", "Cohorts to a run with a checkpoint."),
        "models": Command(
            "headct.cli.models:models",
            "The models that can be named.",
            parts={"show": Command("headct.cli.models:show", "What is known about one model.")},
        ),
        "embed": Command("headct.cli.embed:embed", "Scans or a cohort to vectors."),
        "adapt": Command("headct.cli.adapt:adapt", "Few labels to a detector."),
        "predict": Command("headct.cli.predict:predict", "Scans to probabilities of findings, with reasons to doubt."),
        "evaluate": Command("headct.cli.evaluate:evaluate", "Predictions and labels to numbers with intervals."),
        "protocol": Command("headct.cli.protocol:protocol", "A public set as downloaded to a table to compare by."),
        "segment": Command(
            "headct.cli.segment:segment",
            "What lies where: masks in the scanner's own geometry.",
            parts={
                "train": Command("headct.cli.segment:train", "Masks to a segmenter."),
                "predict": Command("headct.cli.segment:predict", "Scans to masks and volumes."),
                "evaluate": Command("headct.cli.segment:evaluate", "What was drawn, beside the truth."),
            },
        ),
        "retrieve": Command(
            "headct.cli.retrieve:retrieve",
            "Scans like this one: an index of a cohort.",
            parts={
                "build": Command("headct.cli.retrieve:build", "A cohort, or its vectors, to an index."),
                "query": Command("headct.cli.retrieve:query", "The scans that are most like a scan."),
                "evaluate": Command("headct.cli.retrieve:evaluate", "Do neighbours share a finding?"),
            },
        ),
        "search": Command("headct.cli.search:search", "A place in one scan, and the same place in others."),
        "robustness": Command("headct.cli.robustness:robustness", "What a re-scan changes."),
        "explain": Command("headct.cli.explain:explain", "What answers rest on, and whether that can be believed."),
        "map": Command("headct.cli.map:map_cohort", "Where scans and places lie in the features, by site and finding."),
        "export": Command("headct.cli.export:export", "A model for the Hub, or as a graph that is faster on a CPU."),
    }
)
