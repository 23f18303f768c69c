"""What the paper says of MuJoCo, and whether the runs bear it out."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.report import scores
from experiments.report.runs import FINISHED, Cell, Collection
from experiments.reproduction.rows import BASELINE, ROWS
from rgpo_jax import statistics
from rgpo_jax.diagnostics import KL_SPIKE_THRESHOLDS
from rgpo_jax.statistics import Estimate

HELD, NOT_HELD, UNTOLD = "held", "not held", "cannot be told"
# Task -> gain in return over PPO, as readers of the paper report it; 0 is parity.
PAPERS_GAINS = {
    "envpool/Walker2d-v4": 0.81,
    "envpool/Ant-v4": 0.47,
    "envpool/HalfCheetah-v4": 0.0,
    "envpool/Hopper-v4": 0.0,
}
_PARITY = 0.2  # what we take for parity: at most so much better or worse
_LARGEST_VARIATION = 0.27
_PPO_SPIKES = (0.44, 0.84)
_NO_SPIKES = 0.005  # a rate that is printed as 0 %
_KL = (0.01, 0.04)  # what we take for "about 0.02"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one row's runs say of a claim.

    Attributes:
      verdict: HELD, NOT_HELD or UNTOLD.
      evidence: the intervals that say so.
    """

    verdict: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and by name of a row what its runs say of it."""

    text: str
    rule: str
    findings: dict[str, Finding]


def relative_gain(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """IQM of our scores over that of theirs, minus 1, with a stratified bootstrap interval."""

    def gain(ours: np.ndarray, theirs: np.ndarray, axis: int) -> np.ndarray:
        return statistics.pooled_iqm(ours, axis=axis) / statistics.pooled_iqm(theirs, axis=axis) - 1

    return statistics.estimate(gain, [ours, theirs], resamples=scores.RESAMPLES)


def variation(values: np.ndarray) -> Estimate:
    """Coefficient of variation over seeds, with a bootstrap interval."""

    def spread(values: np.ndarray, axis: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.std(values, axis, ddof=1) / np.abs(np.mean(values, axis))

    return statistics.estimate(spread, [values], resamples=scores.RESAMPLES)


def mean_kl(cell: Cell) -> Estimate:
    """KL of an update in nats, mean over updates and seeds."""
    kl = cell.mean_over_updates("approx_kl")
    return statistics.estimate(statistics.pooled_mean, [kl], resamples=scores.RESAMPLES)


def judge_gain(gain: Estimate, papers: float) -> str:
    """Whether a gain in return bears out the paper's; parity is a gain of 0."""
    if not gain.has_interval:
        return UNTOLD
    if papers == 0:
        if gain.low >= -_PARITY and gain.high <= _PARITY:
            return HELD
        return NOT_HELD if gain.low > _PARITY or gain.high < -_PARITY else UNTOLD
    if gain.high < papers:
        return NOT_HELD
    return HELD if gain.low > 0 else UNTOLD


def judge_at_most(found: Sequence[Estimate], limit: float) -> str:
    """Whether all of some numbers are at most so large."""
    if any(estimate.low > limit for estimate in found):
        return NOT_HELD
    return HELD if all(estimate.high <= limit for estimate in found) else UNTOLD


def judge_within(found: Sequence[Estimate], low: float, high: float) -> str:
    """Whether all of some numbers lie in a range."""
    if any(estimate.low > high or estimate.high < low for estimate in found):
        return NOT_HELD
    return HELD if all(low <= e.low and e.high <= high for e in found) else UNTOLD


def claims(collection: Collection, rows: Sequence[str]) -> list[Claim]:
    """The paper's claims, judged by the finished runs of some rows and of PPO."""
    finished = {key: cell for key, cell in collection.cells.items() if cell.status == FINISHED}
    names = {row: ROWS[row] for row in rows}
    return [
        *(_gain(task, papers, finished, names) for task, papers in PAPERS_GAINS.items()),
        _variation(finished, names),
        _spikes(finished, names),
        _kl(finished, names),
    ]


Cells = Mapping[tuple[str, str], Cell]


def _gain(task: str, papers: float, cells: Cells, names: Mapping[str, str]) -> Claim:
    findings = {}
    baseline = cells.get((task, ROWS[BASELINE]))
    for row, name in names.items():
        cell = cells.get((task, name))
        if cell is None or baseline is None:
            findings[row] = Finding(UNTOLD, "not run yet")
            continue
        gain = relative_gain(cell.final(scores.SCORE), baseline.final(scores.SCORE))
        findings[row] = Finding(judge_gain(gain, papers), percent(gain, sign=True))
    short = short_name(task)
    if papers == 0:
        rule = f"held: interval within ±{100 * _PARITY:.0f} %; not held: interval wholly outside"
        return Claim(f"{short}: return equal to PPO's", rule, findings)
    rule = "held: interval above 0 % and reaching the paper's; not held: interval below the paper's"
    return Claim(f"{short}: return {100 * papers:+.0f} % against PPO", rule, findings)


def _tasks(cells: Cells, name: str) -> list[str]:
    return [task for task in PAPERS_GAINS if (task, name) in cells]


def _over_tasks(verdict: str, by_task: Mapping[str, str]) -> Finding:
    missing = [short_name(task) for task in PAPERS_GAINS if task not in by_task]
    if missing and verdict == HELD:
        verdict = UNTOLD
    text = "; ".join(f"{short_name(task)} {found}" for task, found in by_task.items())
    text += f"{'; ' if text else ''}not run yet: {', '.join(missing)}" if missing else ""
    return Finding(verdict, text)


def _variation(cells: Cells, names: Mapping[str, str]) -> Claim:
    findings = {}
    for row, name in names.items():
        found = {t: variation(cells[t, name].final(scores.SCORE)) for t in _tasks(cells, name)}
        verdict = judge_at_most(list(found.values()), _LARGEST_VARIATION)
        findings[row] = _over_tasks(verdict, {task: percent(e) for task, e in found.items()})
    text = (
        f"Coefficient of variation over seeds at most {100 * _LARGEST_VARIATION:.0f} % everywhere"
    )
    return Claim(text, "of every task: interval below; not held: one interval above", findings)


def _spikes(cells: Cells, names: Mapping[str, str]) -> Claim:
    def rates(name: str) -> dict[str, dict[float, Estimate]]:
        return {task: scores.spike_rates(cells[task, name]) for task in _tasks(cells, name)}

    theirs, findings = rates(ROWS[BASELINE]), {}
    for row, name in names.items():
        ours = rates(name)
        tasks = [task for task in ours if task in theirs]
        bearing_out = [
            threshold
            for threshold in KL_SPIKE_THRESHOLDS
            if all(ours[task][threshold].value < _NO_SPIKES for task in tasks)
            and all(
                theirs[task][threshold].low <= _PPO_SPIKES[1]
                and theirs[task][threshold].high >= _PPO_SPIKES[0]
                for task in tasks
            )
        ]
        verdict = HELD if bearing_out else NOT_HELD
        by_task = {task: f"{spikes(ours[task])} % (PPO {spikes(theirs[task])} %)" for task in tasks}
        findings[row] = _over_tasks(verdict if tasks else UNTOLD, by_task)
    low, high = _PPO_SPIKES
    thresholds = ", ".join(f"{t:g}" for t in KL_SPIKE_THRESHOLDS)
    return Claim(
        f"KL spikes in no update, and in {100 * low:.0f} to {100 * high:.0f} % of PPO's",
        f"share of updates with KL > {thresholds} nats; held: both at one of them, everywhere",
        findings,
    )


def _kl(cells: Cells, names: Mapping[str, str]) -> Claim:
    findings = {}
    for row, name in names.items():
        found = {task: mean_kl(cells[task, name]) for task in _tasks(cells, name)}
        verdict = judge_within(list(found.values()), *_KL)
        by_task = {t: f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for t, e in found.items()}
        findings[row] = _over_tasks(verdict, by_task)
    return Claim(
        "KL of an update about 0.02",
        f"mean over updates in nats; held: intervals within [{_KL[0]}, {_KL[1]}]; not held: one "
        "wholly outside",
        findings,
    )


def short_name(task: str) -> str:
    """A task without the library that it comes from."""
    return task.rpartition("/")[2]


def spikes(rates: Mapping[float, Estimate]) -> str:
    """Shares of updates at each threshold, in percent: `12 / 3 / 0 / 0`."""
    return " / ".join(f"{100 * rates[t].value:.0f}" for t in KL_SPIKE_THRESHOLDS if t in rates)


def percent(estimate: Estimate, sign: bool = False) -> str:
    """`12 % [3, 20]`."""
    plus = "+" if sign else ""
    if not estimate.has_interval:
        return f"{100 * estimate.value:{plus}.0f} %"
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:{plus}.0f} % [{low:{plus}.0f}, {high:{plus}.0f}]"
