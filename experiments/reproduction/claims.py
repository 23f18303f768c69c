"""What the paper says of MuJoCo, and whether the runs bear it out."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from experiments.report import scores
from experiments.report.run_files import FINISHED
from experiments.report.runs import Cell
from experiments.reproduction.rows import ALL, BASELINE, SAME_SETTINGS
from rgpo_jax import statistics
from rgpo_jax.diagnostics import KL_SPIKE_THRESHOLDS
from rgpo_jax.statistics import Estimate

HELD, NOT_HELD, UNTOLD = "held", "not held", "cannot be told"
# Task -> gain in return over PPO, as secondary summaries of the paper report it; 0 is parity.
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
_THRESHOLDS = " / ".join(f"{t:g}" for t in KL_SPIKE_THRESHOLDS)
_KL = (0.01, 0.04)  # what we take for "about 0.02"
_NOTHING = Estimate(math.nan, math.nan, math.nan)

Cells = Mapping[tuple[str, str], Cell]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one row's runs say of a claim.

    Attributes:
      verdict: HELD, NOT_HELD or UNTOLD; of a return, by the policy's mode.
      evidence: the intervals that say so.
      by_samples: of a return, the verdict by the policy's samples where that is another, else "".
    """

    verdict: str
    evidence: str
    by_samples: str = ""

    @property
    def scope(self) -> str:
        """What the verdict does not go beyond, to be written after it."""
        return ", by the mode alone" if self.by_samples else ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the rule by which it is judged, and row -> what its runs say.

    The sentence is as summaries of the paper report it. Of a return, `paper` is the gain that it
    states, in words.
    """

    text: str
    rule: str
    findings: dict[str, Finding]
    paper: str = ""


# Statistics. Where they are not defined they are NaN, and bear no claim out.


def interquartile_mean(values: np.ndarray) -> Estimate:
    """IQM with its bootstrap interval."""
    return _bootstrap(statistics.pooled_iqm, values)


def relative_gain(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """IQM of our scores over that of theirs, minus 1, with a stratified bootstrap interval.

    NaN unless theirs is surely above 0: what else would a share of it mean?
    """
    if not interquartile_mean(theirs).low > 0:
        return _NOTHING

    def gain(ours: np.ndarray, theirs: np.ndarray, axis: int) -> np.ndarray:
        return statistics.pooled_iqm(ours, axis=axis) / statistics.pooled_iqm(theirs, axis=axis) - 1

    return _bootstrap(gain, ours, theirs)


def variation(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Coefficient of variation over seeds, with an interval for normal returns.

    The bootstrap of five seeds covers two thirds where it says 95 %. This is McKay's interval as
    modified by Vangel (The American Statistician 50, 1996), good below a coefficient of about 1/3;
    its upper end is infinite where the seeds exclude no spread.
    """
    n = len(values)
    value = statistics.coefficient_of_variation(values)
    if not math.isfinite(value):
        return _NOTHING

    def end(quantile: float) -> float:
        u = float(stats.chi2.ppf(quantile, n - 1))
        denominator = ((u + 2) / n - 1) * value**2 + u / (n - 1)
        return value / math.sqrt(denominator) if denominator > 0 else math.inf

    tail = (1 - confidence) / 2
    return Estimate(value, end(1 - tail), end(tail))


def mean_over_updates(cell: Cell, metric: str) -> Estimate:
    """Mean of a metric over updates and seeds."""
    return _bootstrap(statistics.pooled_mean, cell.mean_over_updates(metric))


def mean_kl(cell: Cell) -> Estimate:
    """KL of an update in nats, mean over updates and seeds."""
    return mean_over_updates(cell, "approx_kl")


def improvement(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """P(a seed of ours scores above one of theirs)."""
    if not len(ours) or not len(theirs):
        return _NOTHING
    return statistics.probability_of_improvement([ours], [theirs], resamples=scores.RESAMPLES)


def _bootstrap(statistic: statistics.Statistic, *strata: np.ndarray) -> Estimate:
    if not all(len(stratum) for stratum in strata):
        return _NOTHING
    return statistics.estimate(statistic, strata, resamples=scores.RESAMPLES)


# Judgements: an interval that is NaN cannot tell.


def judge_gain(gain: Estimate, papers: float) -> str:
    """Whether a gain in return bears out the paper's; parity is a gain of 0."""
    if papers == 0:
        return judge_within([gain], -_PARITY, _PARITY)
    if gain.high < papers:
        return NOT_HELD
    return HELD if gain.low > papers / 2 else UNTOLD


def judge_at_most(found: Sequence[Estimate], limit: float) -> str:
    """Whether all of some numbers are at most so large."""
    return judge_within(found, -math.inf, limit)


def judge_within(found: Sequence[Estimate], low: float, high: float) -> str:
    """Whether all of some numbers lie in a range: held by all, broken by one."""
    if any(estimate.low > high or estimate.high < low for estimate in found):
        return NOT_HELD
    return HELD if all(low <= e.low and e.high <= high for e in found) else UNTOLD


def claims_of_return(cells: Cells, rows: Sequence[str]) -> list[Claim]:
    """The paper's gains over PPO, judged by some rows' runs.

    Against PPO, and where that was run, against PPO with the step size and epochs of a row: what
    the gate alone does.
    """
    found = []
    for task in PAPERS_GAINS:
        found.append(_gain(task, cells, rows, BASELINE))
        for row, baseline in SAME_SETTINGS.items():
            if row in rows and (task, ALL[baseline].name) in cells:
                found.append(_gain(task, cells, [row], baseline))
    return found


def claims_of_updates(cells: Cells, rows: Sequence[str]) -> list[Claim]:
    """What the paper says of all four tasks together: of RGPO's spread and KL, and of PPO's KL."""
    return [
        _variation(cells, rows),
        _no_spikes(cells, rows),
        _spikes_of_baseline(cells),
        _kl(cells, rows),
    ]


def _missing(cells: Cells, task: str, row: str) -> str | None:
    """Why a row has no score on a task; None where it has one."""
    cell = cells.get((task, ALL[row].name))
    if cell is None:
        return "not run yet"
    if cell.status != FINISHED:
        return f"{cell.status} at {cell.progress:.0%}"
    return None if len(cell.final(scores.SCORE)) else "never evaluated"


def _gain(task: str, cells: Cells, rows: Sequence[str], baseline: str) -> Claim:
    papers, findings = PAPERS_GAINS[task], {}
    for row in rows:
        reason = _missing(cells, task, row)
        theirs = _missing(cells, task, baseline)
        if reason or theirs:
            findings[row] = Finding(UNTOLD, reason or f"{ALL[baseline].name} {theirs}")
            continue
        pair = [cells[task, ALL[name].name] for name in (row, baseline)]
        gain = relative_gain(*(cell.final(scores.SCORE) for cell in pair))
        verdict = judge_gain(gain, papers)
        evidence = percent(gain, sign=True) or "PPO's return is not clearly above 0"
        # Policies that go on exploring show what a mode hides.
        sampled, other = relative_gain(*(cell.final(scores.SAMPLED) for cell in pair)), ""
        if says := percent(sampled, sign=True):
            judged = judge_gain(sampled, papers)
            other = "" if judged == verdict else judged
            evidence += f" (sampled {says}{f': {other}' if other else ''})"
        findings[row] = Finding(verdict, evidence, other)
    against = "" if baseline == BASELINE else f", against {ALL[baseline].name}"
    if papers == 0:
        rule = f"held: interval within ±{100 * _PARITY:.0f} %; not held: wholly outside"
        return Claim(short_name(task) + against, rule, findings, "equal")
    rule = (
        "held: lower end above half of the paper's gain, upper end at least that gain; not held: "
        "upper end below it"
    )
    return Claim(short_name(task) + against, rule, findings, f"{100 * papers:+.0f} %")


def _over_tasks(
    cells: Cells,
    row: str,
    measure: Callable[[Cell], Estimate],
    judge: Callable[[Sequence[Estimate]], str],
    say: Callable[[Estimate], str],
) -> Finding:
    """Judges a number of all four tasks together; where one is missing it cannot be held."""
    found, texts = [], []
    for task in PAPERS_GAINS:
        reason = _missing(cells, task, row)
        if reason is None:
            found.append(measure(cells[task, ALL[row].name]))
        texts.append(f"{short_name(task)} {reason or say(found[-1])}")
    verdict = judge(found)
    complete = len(found) == len(PAPERS_GAINS)
    return Finding(verdict if complete or verdict == NOT_HELD else UNTOLD, "; ".join(texts))


def _variation(cells: Cells, rows: Sequence[str]) -> Claim:
    def judge(found: Sequence[Estimate]) -> str:
        return judge_at_most(found, _LARGEST_VARIATION)

    limit = f"{100 * _LARGEST_VARIATION:.0f} %"
    return Claim(
        f"Coefficient of variation over seeds at most {limit} everywhere",
        f"held: all intervals (McKay, Vangel) below {limit}, for which five seeds may vary by at "
        "most 9 %, ten by 14 %; not held: one above",
        {
            row: _over_tasks(
                cells, row, lambda cell: variation(cell.final(scores.SCORE)), judge, percent
            )
            for row in rows
        },
    )


def _kl(cells: Cells, rows: Sequence[str]) -> Claim:
    def judge(found: Sequence[Estimate]) -> str:
        return judge_within(found, *_KL)

    return Claim(
        "KL of an update about 0.02",
        f"nats, mean over updates; held: all intervals within {_KL[0]} to {_KL[1]}; not held: one "
        "wholly outside",
        {row: _over_tasks(cells, row, mean_kl, judge, nats) for row in rows},
    )


def _no_spikes(cells: Cells, rows: Sequence[str]) -> Claim:
    def judge(rate: Estimate) -> str:
        return judge_at_most([rate], _NO_SPIKES)

    return Claim(
        "KL spikes in no update",
        f"updates with KL > {_THRESHOLDS} nats; held: at one threshold at most "
        f"{100 * _NO_SPIKES:g} %, everywhere, by interval (the paper's threshold is not known: it "
        "has four chances); not held: at no threshold",
        {row: _rates(cells, row, judge) for row in rows},
    )


def _spikes_of_baseline(cells: Cells) -> Claim:
    low, high = _PPO_SPIKES

    def judge(rate: Estimate) -> str:
        return judge_within([rate], low, high)

    return Claim(
        f"KL spikes in {100 * low:.0f} to {100 * high:.0f} % of PPO's updates",
        "PPO's rates in that range, at one threshold; not held: at none",
        {BASELINE: _rates(cells, BASELINE, judge)},
    )


def _rates(cells: Cells, row: str, judge: Callable[[Estimate], str]) -> Finding:
    """Judges the rates of spikes of all four tasks together, by the kindest threshold."""
    texts, by_threshold = [], {threshold: [HELD] for threshold in KL_SPIKE_THRESHOLDS}
    for task in PAPERS_GAINS:
        reason = _missing(cells, task, row)
        rates = {} if reason else scores.spike_rates(cells[task, ALL[row].name])
        says = f"{spikes(rates, interval=True)} %" if rates else reason or "not logged"
        texts.append(f"{short_name(task)} {says}")
        for threshold, verdicts in by_threshold.items():
            verdicts.append(judge(rates[threshold]) if rates else UNTOLD)
    worst = [_worst(verdicts) for verdicts in by_threshold.values()]
    return Finding(_first(HELD, UNTOLD, NOT_HELD, among=worst), "; ".join(texts))


def _worst(verdicts: Sequence[str]) -> str:
    return _first(NOT_HELD, UNTOLD, HELD, among=verdicts)


def _first(*order: str, among: Sequence[str]) -> str:
    return next(verdict for verdict in order if verdict in among)


# Words.


def short_name(task: str) -> str:
    """A task without the library that it comes from."""
    return task.rpartition("/")[2]


def spikes(rates: Mapping[float, Estimate], interval: bool = False) -> str:
    """Shares of updates at each threshold, in percent: `12 / 3 / 0 / 0`, or `12 [10, 14] / ...`."""

    def write(share: float) -> str:
        return f"{100 * share:.0f}"

    shown = [rates[t] for t in KL_SPIKE_THRESHOLDS if t in rates]
    return " / ".join(_say(rate, write) if interval else write(rate.value) for rate in shown)


def percent(estimate: Estimate, sign: bool = False) -> str:
    """`12 % [3, 20]`; empty where undefined."""
    plus = "+" if sign else ""
    return _say(estimate, lambda value: f"{100 * value:{plus}.0f}", " %")


def share(estimate: Estimate) -> str:
    """`0.92 [0.72, 1.00]`; empty where undefined."""
    return _say(estimate, lambda value: f"{value:.2f}")


def nats(estimate: Estimate) -> str:
    """`0.021 [0.019, 0.024]`; empty where undefined."""
    return _say(estimate, lambda value: f"{value:.3f}")


def number(estimate: Estimate) -> str:
    """`3321 [2747, 4186]`, with a digit behind the point where numbers are small."""
    digits = 0 if abs(estimate.value) >= 1000 else 1
    return _say(estimate, lambda value: f"{value:.{digits}f}")


def _say(estimate: Estimate, write: Callable[[float], str], unit: str = "") -> str:
    if math.isnan(estimate.value):
        return ""
    value = write(estimate.value) + unit
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return value
    high = "∞" if math.isinf(estimate.high) else write(estimate.high)
    return f"{value} [{write(estimate.low)}, {high}]"
