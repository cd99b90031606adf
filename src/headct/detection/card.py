"""What a detector says about itself to a reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def write_up(config: Mapping[str, Any], version: str) -> str:
    """The model card in Markdown, from the configuration of a detector."""
    encoder, record = config["encoder"], config["record"]
    return "\n".join(
        [
            f"# Detector of {', '.join(config['findings'])} in head CT",
            "",
            "**Research software, not a medical device: not for decisions about a patient.**",
            "",
            f"{_how(config)} {encoder['architecture']} (SHA-256 {encoder['sha256'][:16]}..., scans by the recipe "
            f"`{encoder['recipe']['name']}`, {encoder['recipe']['id']}).",
            "",
            "## Use",
            "",
            "```python",
            "import headct",
            "",
            'table = headct.Detector.load("path/of/this/folder").predict(["scans/"])',
            "```",
            "",
            "A row for each scan and finding: `probability` with the 95 % interval `low` to `high` (what calibration "
            "on another sample of as many validation patients would have given; not what other training scans would), "
            "`ood`, the share of validation scans that are more like the training scans, and `reasons` to doubt.",
            "",
            *_learned(record),
            *_findings(config),
            "## Limits",
            "",
            "Validation scans chose among methods, calibrated the probabilities and set the operating points, so "
            "numbers on them are too good: judge the detector on patients it has not seen (`headct evaluate`). Nothing "
            "is known about scans unlike those it was learned from: other scanners, children, contrast, surgery.",
            "",
            f"Licence of the encoder's weights: {encoder['licence']}. Written by headct {version}.",
            "",
        ]
    )


def _how(config: Mapping[str, Any]) -> str:
    """Up to the encoder's name: of a network from scratch it lends its input, and how familiar a scan is."""
    settings = config["settings"]
    if settings.get("initial") == "random":
        return (
            f"A baseline: the network {settings['architecture']}, all of it learned from these labels. How scans are "
            "prepared, and how familiar they are, is by the encoder"
        )
    return f"Method `{config['method']}` on the encoder"


def _learned(record: Mapping[str, Any]) -> list[str]:
    lines = ["## Learned from", "", *(f"- {sentence}" for sentence in record.get("sentences", ()))]
    if rungs := record.get("ladder"):
        lines += ["", "| method | validation AUROC | decision |", "|---|---:|---|"]
        lines += [f"| {row['method']} | {_number(row['validation_auroc'])} | {row['decision']} |" for row in rungs]
    return [*lines, ""]


def _findings(config: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Findings",
        "",
        "| finding | learned from with / without | validated on with / without | validation AUROC | "
        "calibration | operating points |",
        "|---|---:|---:|---:|---|---|",
    ]
    rows = {row["finding"]: row for row in config["record"].get("findings", ())}
    for name, calibration, points in zip(
        config["findings"], config["calibration"], config["operating_points"], strict=True
    ):
        row = rows.get(name, {})
        told = ", ".join(f"{point} {value:.3g}" for point, value in points.items()) or "none"
        lines.append(
            f"| {name} | {_both(row, 'train')} | {_both(row, 'validation')} | {_area(row)} | {calibration['kind']} | "
            f"{told} |"
        )
    return [*lines, ""]


def _both(row: Mapping[str, Any], part: str) -> str:
    return f"{row[f'{part}_with']} / {row[f'{part}_without']}" if f"{part}_with" in row else ""


def _area(row: Mapping[str, Any]) -> str:
    low, high = (_number(row.get(f"validation_auroc_{end}")) for end in ("low", "high"))
    return f"{_number(row['validation_auroc'])} ({low} to {high})" if "validation_auroc" in row else ""


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"
