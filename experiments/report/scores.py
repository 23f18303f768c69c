"""What a report says in numbers: scores, comparisons and curves, each with its interval."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from experiments.record.headline import CONTROL
from experiments.report.run_files import FINISHED
from experiments.report.runs import Cell, Collection
from rgpo_jax import statistics
from rgpo_jax.statistics import Estimate

SCORE = CONTROL.score.metric  # of the paper's runs
assert CONTROL.sampled is not None
SAMPLED = CONTROL.sampled.metric
RESAMPLES = 5000  # as in a run's summary, so that both name the same interval
SPIKES = "kl_spike_rate_"
_MOST_POINTS = 120  # of a curve: more cannot be told apart on a page
_PROFILE_POINTS = 81
_FRACTIONS = np.linspace(0.0, 1.0, 41)  # of training


@dataclasses.dataclass(frozen=True)
class Row:
    """The final scores of one cell."""

    cell: Cell
    scores: np.ndarray
    iqm: Estimate
    mean: Estimate
    sampled: Estimate | None
    is_best: bool

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else float("nan")

    @property
    def variation(self) -> float:
        """Coefficient of variation over seeds."""
        return statistics.coefficient_of_variation(self.scores)


def score_table(collection: Collection) -> dict[tuple[str, str], Row]:
    """Final scores by (env, variant); cells without an evaluation are left out.

    A score is best where its interval lies above those of all other finished variants of its
    budget.
    """
    rows, headline = {}, collection.headline
    for key, cell in collection.cells.items():
        scores = cell.final(headline.score.metric)
        if not len(scores):
            continue
        sampled = None if headline.sampled is None else cell.final(headline.sampled.metric)
        rows[key] = Row(
            cell,
            scores,
            _estimate(statistics.pooled_iqm, scores),
            _estimate(statistics.pooled_mean, scores),
            _estimate(statistics.pooled_iqm, sampled)
            if sampled is not None and len(sampled)
            else None,
            is_best=False,
        )
    for (env, variant), row in rows.items():
        others = [
            other.iqm
            for (e, v), other in rows.items()
            if e == env
            and v != variant
            and other.cell.status == FINISHED
            and other.cell.budget == row.cell.budget
        ]
        best = (
            bool(others)
            and row.cell.status == FINISHED
            and all(row.iqm.low > other.high for other in others)
        )
        rows[env, variant] = dataclasses.replace(row, is_best=best)
    return rows


def _estimate(statistic: statistics.Statistic, *strata: np.ndarray) -> Estimate:
    return statistics.estimate(statistic, strata, resamples=RESAMPLES)


@dataclasses.dataclass(frozen=True)
class Improvement:
    """P(a seed of `variant` beats a seed of the baseline), by environment and over all."""

    variant: str
    by_env: dict[str, Estimate]
    overall: Estimate | None


def improvements(
    rows: dict[tuple[str, str], Row], collection: Collection, baseline: str
) -> list[Improvement]:
    """Each variant against the baseline, where both are finished and have the same budget.

    `overall` is None where there is one environment only, or the variant lacks one.
    """
    found = []
    theirs = _finished(rows, baseline)
    for variant in collection.variants:
        ours = {
            env: scores
            for env, scores in _finished(rows, variant).items()
            if env in theirs and rows[env, variant].cell.budget == rows[env, baseline].cell.budget
        }
        if variant == baseline or not ours:
            continue

        def compare(envs: Sequence[str], ours: dict[str, np.ndarray] = ours) -> Estimate:
            return statistics.probability_of_improvement(
                [ours[env] for env in envs], [theirs[env] for env in envs], resamples=RESAMPLES
            )

        everywhere = len(theirs) > 1 and ours.keys() == theirs.keys()
        found.append(
            Improvement(
                variant,
                {env: compare([env]) for env in ours},
                compare(list(ours)) if everywhere else None,
            )
        )
    return found


def _finished(rows: dict[tuple[str, str], Row], variant: str) -> dict[str, np.ndarray]:
    return {
        env: row.scores
        for (env, v), row in rows.items()
        if v == variant and row.cell.status == FINISHED
    }


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """Normalised scores over all environments.

    Attributes:
      references: env -> (score of an untrained policy, best mean); these become 0 and 1.
      left_out: variants that are not finished on all of these environments.
      iqm, mean, gap: by variant.
      thresholds, profiles: performance profiles, fractions [thresholds] by variant.
      fractions, efficiency: IQM at fractions of training, [fractions] by variant.
    """

    references: dict[str, tuple[float, float]]
    left_out: tuple[str, ...]
    iqm: dict[str, Estimate]
    mean: dict[str, Estimate]
    gap: dict[str, Estimate]
    thresholds: np.ndarray
    profiles: dict[str, Estimate]
    fractions: np.ndarray
    efficiency: dict[str, Estimate]


def aggregate(rows: dict[tuple[str, str], Row], collection: Collection) -> Aggregate | None:
    """Aggregates over environments; None where fewer than two can be normalised."""
    references = {}
    for env in collection.envs:
        untrained = untrained_score(collection, env)
        means = [
            float(row.mean.value)
            for (e, _), row in rows.items()
            if e == env and row.cell.status == FINISHED
        ]
        if untrained is not None and means and max(means) > untrained:
            references[env] = (untrained, max(means))
    scores = {variant: _finished(rows, variant) for variant in collection.variants}
    complete = [v for v in collection.variants if references.keys() <= scores[v].keys()]
    if len(references) < 2 or not complete:
        return None

    def normalize(env: str, values: np.ndarray) -> np.ndarray:
        low, high = references[env]
        return (values - low) / (high - low)

    strata = {v: [normalize(env, scores[v][env]) for env in references] for v in complete}
    least = min(0.0, *(float(np.min(s)) for group in strata.values() for s in group))
    most = max(1.0, *(float(np.max(s)) for group in strata.values() for s in group))
    thresholds = np.linspace(max(least, -0.5), min(most, 2.0), _PROFILE_POINTS)
    efficiency = {}
    score = collection.headline.score.metric
    for v in complete:
        curves = [
            normalize(env, _at_fractions(collection.cells[env, v], score, _FRACTIONS))
            for env in references
        ]
        if all(np.isfinite(curve).all() for curve in curves):
            efficiency[v] = _estimate(statistics.pooled_iqm, *curves)
    return Aggregate(
        references,
        tuple(v for v in collection.variants if v not in complete),
        {v: _estimate(statistics.pooled_iqm, *strata[v]) for v in complete},
        {v: _estimate(statistics.pooled_mean, *strata[v]) for v in complete},
        {v: _estimate(statistics.pooled_optimality_gap, *strata[v]) for v in complete},
        thresholds,
        {
            v: statistics.performance_profile(strata[v], thresholds, resamples=RESAMPLES)
            for v in complete
        },
        _FRACTIONS,
        efficiency,
    )


def _at_fractions(cell: Cell, metric: str, fractions: np.ndarray) -> np.ndarray:
    """A score [seeds, fractions of training], straight between two evaluations."""
    steps, values = cell.curve(metric)
    share = steps / steps[-1]
    return np.stack([np.interp(fractions, share, column) for column in values.T])


def untrained_score(collection: Collection, env: str) -> float | None:
    """Mean evaluation of sampled actions before the first update, over all seeds; None if none.

    The untrained policy is close to uniform for discrete actions, and to its initial standard
    deviation for continuous ones. Where there is one kind of evaluation, it is that.
    """
    scores: list[float] = []
    shown = collection.headline.sampled or collection.headline.score
    for (e, _), cell in collection.cells.items():
        steps, values = cell.curve(shown.metric)
        if e == env and len(steps) and steps[0] == 0:
            scores += list(values[0][np.isfinite(values[0])])
    return float(np.mean(scores)) if scores else None


@dataclasses.dataclass(frozen=True)
class Curve:
    """IQM over seeds along training, with its pointwise interval; NaN where one seed is left.

    Attributes:
      steps, iqm, low, high: [points].
      seeds: how many were defined at each point.
    """

    steps: np.ndarray
    iqm: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


def curve(cell: Cell, metric: str) -> Curve:
    """A metric of a cell over training."""
    steps, values = cell.curve(metric)
    defined = np.isfinite(values).any(axis=1)
    steps, values = steps[defined], values[defined]
    if len(steps) > _MOST_POINTS:
        chosen = np.unique(np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int))
        steps, values = steps[chosen], values[chosen]
    return Curve(steps, *_intervals(values.tobytes(), values.shape))


@functools.lru_cache(maxsize=4096)  # --watch draws again what did not change
def _intervals(content: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    values = np.frombuffer(content).reshape(shape)
    seeds = np.isfinite(values).sum(axis=1)
    iqm, low, high = (np.full(len(values), np.nan) for _ in range(3))
    for count in np.unique(seeds):  # points with as many seeds are resampled together
        at = seeds == count
        scores = np.stack([row[np.isfinite(row)] for row in values[at]], axis=1)
        estimate = statistics.estimate(statistics.pooled_iqm, [scores], resamples=RESAMPLES // 2)
        iqm[at], low[at], high[at] = estimate
    return iqm, low, high, seeds


def spike_rates(cell: Cell) -> dict[float, Estimate]:
    """Threshold -> share of updates with a larger KL, mean over seeds; empty where not logged."""
    names = {name for run in cell.runs for name in run.metrics if name.startswith(SPIKES)}
    rates = {
        float(name.removeprefix(SPIKES)): cell.mean_over_updates(name) for name in sorted(names)
    }
    return {
        threshold: _estimate(statistics.pooled_mean, rate)
        for threshold, rate in rates.items()
        if len(rate)
    }
