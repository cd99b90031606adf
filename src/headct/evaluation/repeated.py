"""Areas of a protocol that was repeated over draws of a few labelled scans, and how one such protocol beats another.

Two things might have come out otherwise: which few scans were learned from, and which patients were tested. The mean
over draws varies with both; its variance is that of a mean over draws of the same patients (each patient's influence,
averaged over draws and findings) and that of the draws, which shrinks with their number. Draws of a small pool resemble
each other, so for K near the size of the pool the second is underestimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from headct.evaluation.comparison import Difference
from headct.evaluation.intervals import LEVEL, PULL, Area, Estimate, Z, macro_deviation, on_logit, pulled
from headct.failure import Misuse

Areas = Mapping[str, Area]
"""By finding, of scans of the same patients."""


def over_draws(areas: Sequence[Area]) -> Area:
    """The mean area of one finding over draws that were tested on the same scans."""
    first = areas[0]
    if any((area.n, area.positives, area.holders) != (first.n, first.positives, first.holders) for area in areas):
        raise Misuse("areas of different scans have no mean", do="test every draw on the same scans")
    value = float(np.mean([area.value for area in areas]))
    influence = np.mean([area.influence for area in areas], axis=0)
    return Area(value, influence, first.holders, first.n, first.positives)


def macro_over_draws(draws: Sequence[Areas]) -> Estimate:
    """The mean area over findings and draws, with an interval over test patients and draws, on the logit scale.

    Each draw has the same findings, tested on the same scans. One draw says nothing about others: its interval is that
    of `macro_area`, and the method says so. Raises Misuse where findings differ.
    """
    findings = _same_findings(draws)
    means = {name: over_draws([areas[name] for areas in draws]) for name in findings}
    values = np.array([np.mean([areas[name].value for name in findings]) for areas in draws])
    patients = macro_deviation(means) ** 2
    deviation, quantile = _spread(patients, values)
    among = sum(min(area.holders) for area in means.values())
    low, high = on_logit(pulled(float(values.mean()), among, PULL), deviation * quantile / Z)
    return Estimate.of(
        float(values.mean()),
        low,
        high,
        n=max(area.n for area in means.values()),
        positives=sum(area.positives for area in means.values()),
        method=f"mean over {_counted(findings, draws)}; logit interval, DeLong variance by patient{_and_draws(draws)}",
    )


def difference_over_draws(first: Sequence[Areas], second: Sequence[Areas]) -> Difference:
    """The mean over findings and draws of the first area less the second, paired by draw, finding and patient.

    Draw i of both learned from the same scans, and all were tested on the same. With one finding and one draw it is
    DeLong's test. Raises Misuse where draws or findings differ.
    """
    findings = _same_findings([*first, *second])
    if len(first) != len(second):
        raise Misuse(f"{len(first)} draws cannot be paired with {len(second)}", do="compare draws that both have")
    values = np.array(
        [
            np.mean([mine[name].value - theirs[name].value for name in findings])
            for mine, theirs in zip(first, second, strict=True)
        ]
    )
    influence = np.mean(
        [
            mine[name].influence - theirs[name].influence
            for mine, theirs in zip(first, second, strict=True)
            for name in findings
        ],
        axis=0,
    )
    value = float(values.mean())
    patients = float((influence**2).sum())
    if patients == 0 and value != 0:  # neither varies, as in `delong`
        patients = sum(
            macro_deviation({name: over_draws([areas[name] for areas in draws]) for name in findings}) ** 2
            for draws in (first, second)
        )
    deviation, quantile = _spread(patients, values)
    p = (
        2 * float(student.sf(abs(value) / deviation, _freedom(deviation, values)))
        if deviation > 0
        else float(value == 0)
    )
    of_each = [first[0][name] for name in findings]
    estimate = Estimate.of(
        value,
        value - quantile * deviation,
        value + quantile * deviation,
        n=max(area.n for area in of_each),
        positives=sum(area.positives for area in of_each),
        method=f"mean over {_counted(findings, first)}; paired DeLong variance by patient{_and_draws(first)}",
    )
    return Difference(estimate=estimate, p=p)


def _same_findings(draws: Sequence[Areas]) -> tuple[str, ...]:
    if not draws or not draws[0] or any(set(areas) != set(draws[0]) for areas in draws):
        raise Misuse("the draws were not tested for the same findings", do="give each draw an area of each finding")
    return tuple(draws[0])


def _between(values: np.ndarray) -> float:
    """The variance of a mean over draws that the draws themselves show; 0 for a single one, which shows none."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _spread(patients: float, values: np.ndarray) -> tuple[float, float]:
    """The deviation from both variances, and how many of it reach to the end of an interval."""
    deviation = float(np.sqrt(patients + _between(values)))
    return deviation, float(student.ppf((1 + LEVEL) / 2, _freedom(deviation, values)))


def _freedom(deviation: float, values: np.ndarray) -> float:
    """Degrees of freedom (Satterthwaite, Biometrics Bulletin 2, 1946): few draws leave their variance uncertain."""
    between = _between(values)
    return float(deviation**4 * (len(values) - 1) / between**2) if between > 0 else np.inf


def _counted(findings: Sequence[str], draws: Sequence[Areas]) -> str:
    return f"{len(findings)} findings and {len(draws)} draws"


def _and_draws(draws: Sequence[Areas]) -> str:
    return " and variance of draws" if len(draws) > 1 else "; what other draws would give is not in it"
