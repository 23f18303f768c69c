"""Summary statistics over seeds."""

import numpy as np
import pytest
from scipy import stats

from rgpo_jax import statistics
from rgpo_jax.statistics import bootstrap_interval, holm, interquartile_mean

SCORES = [3.0, 100.0, 5.0, 1.0, 4.0, 2.0, 6.0, -50.0]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 3.0], 2.0),
        ([0.0, 1.0, 2.0, 90.0], 1.5),  # one of four goes at either end
        (SCORES, 3.5),  # the mean of 2, 3, 4, 5
        (np.array(SCORES), 3.5),
        ([*SCORES, 999.0, 999.0], 20.0),  # two of ten: 2, 3, 4, 5, 6, 100 are left
    ],
)
def test_is_the_mean_of_the_middle_half(scores, expected):
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_the_order_of_seeds_does_not_matter():
    assert interquartile_mean(SCORES) == interquartile_mean(sorted(SCORES))


def test_an_outlier_does_not_move_it():
    assert interquartile_mean(SCORES) == interquartile_mean([*SCORES[:1], 1e9, *SCORES[2:]])


def test_interval_is_reproducible():
    assert bootstrap_interval(SCORES) == bootstrap_interval(SCORES)


@pytest.mark.parametrize("seed", range(3))
def test_interval_contains_the_mean(seed):
    scores = np.random.default_rng(seed).normal(size=10)
    low, high = bootstrap_interval(scores)
    assert low < interquartile_mean(scores) < high


def test_more_confidence_is_a_wider_interval():
    low, high = bootstrap_interval(SCORES, confidence=0.5)
    lower, higher = bootstrap_interval(SCORES, confidence=0.99)
    assert lower < low < high < higher


def test_interval_covers_the_truth_as_often_as_it_says():
    # 90 % of 100 intervals: 5 sigma is 15. The percentile bootstrap is somewhat too narrow.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(size=30), confidence=0.9, resamples=300)
        hits += low <= 0.0 <= high
    assert 75 <= hits <= 99


@pytest.mark.parametrize("scores", [[], [3.0]])
def test_too_few_scores_have_no_interval(scores):
    assert bootstrap_interval(scores) is None


@pytest.mark.filterwarnings("error")
def test_identical_scores_have_a_degenerate_interval():
    assert bootstrap_interval([2.5] * 5) == (2.5, 2.5)


# Three environments, ten seeds of ours and eight of a baseline. Made by rliable 1.2.0 itself, with
# arch 7.2.0 and pandas 2.3.3 (it does not import beside pandas 3): `get_interval_estimates`, and
# `create_performance_profile` for the last, with 5,000 to 50,000 resamples.
_RNG = np.random.default_rng(7)
OURS = _RNG.normal([0.6, 0.3, 0.9], [0.1, 0.2, 0.3], (10, 3)).round(3)
THEIRS = _RNG.normal(0.5, 0.25, (8, 3)).round(3)
RLIABLE = [
    (statistics.pooled_iqm, 0.515625, (0.4371875, 0.5870625)),
    (statistics.pooled_mean, 0.50823333, (0.43843333, 0.57236667)),
    (statistics.pooled_optimality_gap, 0.492, (0.42783333, 0.56223417)),
]
MONTE_CARLO = 0.006  # of a bound, between two sets of resamples


@pytest.mark.parametrize(("statistic", "value", "interval"), RLIABLE)
def test_aggregates_are_those_of_rliable(statistic, value, interval):
    found = statistics.estimate(statistic, list(OURS.T), resamples=20_000)
    assert found.value == pytest.approx(value, abs=1e-6)
    assert (found.low, found.high) == pytest.approx(interval, abs=MONTE_CARLO)


def test_probability_of_improvement_is_that_of_rliable():
    found = statistics.probability_of_improvement(list(OURS.T), list(THEIRS.T))
    assert found.value == pytest.approx(0.59583333, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.50416667, 0.68333333), abs=0.01)


def test_performance_profile_is_that_of_rliable():
    found = statistics.performance_profile(list(OURS.T), np.array([0.2, 0.5, 0.8]))
    np.testing.assert_allclose(found.value, [0.83333333, 0.6, 0.16666667], atol=1e-6)
    # Counts of 30 runs: a bound moves by whole runs.
    np.testing.assert_allclose(found.low, [0.7, 0.46666667, 0.06666667], atol=0.034)
    np.testing.assert_allclose(found.high, [0.93333333, 0.7, 0.26666667], atol=0.034)


def test_probability_of_improvement_counts_pairs():
    # 4 against 1, 4 and 9: one win, one tie, one loss; 8 against them: two wins, one loss.
    found = statistics.probability_of_improvement([[4.0, 8.0]], [[1.0, 4.0, 9.0]])
    assert found.value == pytest.approx((1 + 0.5 + 2) / 6)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_probability_of_improvement_over_oneself_is_a_half():
    assert statistics.probability_of_improvement([SCORES], [SCORES]).value == pytest.approx(0.5)


def test_strata_are_resampled_apart():
    # Within each environment all seeds agree, so nothing varies, however far apart they lie.
    found = statistics.estimate(statistics.pooled_mean, [[0.0] * 3, [10.0] * 5])
    assert found == (6.25, 6.25, 6.25)


def test_strata_may_carry_further_axes():
    curves = np.arange(24.0).reshape(4, 6) ** 2
    together = statistics.estimate(statistics.pooled_iqm, [curves])
    assert together.value.shape == together.low.shape == together.high.shape == (6,)
    for i, column in enumerate(curves.T):
        alone = statistics.estimate(statistics.pooled_iqm, [column])
        assert (together.value[i], together.low[i]) == pytest.approx((alone.value, alone.low))


def test_a_stratum_of_one_seed_has_no_interval():
    found = statistics.estimate(statistics.pooled_mean, [[1.0, 2.0], [6.0]])
    assert found.value == 3.0
    assert not found.has_interval
    assert statistics.estimate(statistics.pooled_mean, [[1.0, 2.0]]).has_interval


@pytest.mark.parametrize("strata", [[], [[1.0, 2.0], []]])
def test_an_empty_stratum_is_refused(strata):
    with pytest.raises(ValueError, match="at least one score"):
        statistics.estimate(statistics.pooled_mean, strata)


def test_coefficient_of_variation():
    assert statistics.coefficient_of_variation([-1.0, -2.0, -3.0]) == pytest.approx(0.5)
    assert np.isnan(statistics.coefficient_of_variation([1.0]))
    assert np.isnan(statistics.coefficient_of_variation([-1.0, 1.0]))


@pytest.mark.parametrize("shapes", [[(8,)], [(5,), (10,)], [(3, 7)], [(10, 4), (7, 4)], [(2,)]])
@pytest.mark.parametrize(
    "statistic", [statistics.pooled_iqm, statistics.pooled_mean, statistics.pooled_optimality_gap]
)
def test_interval_is_that_of_scipys_bootstrap(shapes, statistic):
    rng = np.random.default_rng(1)
    strata = [rng.normal(size=shape) for shape in shapes]
    ours = statistics.estimate(statistic, strata, resamples=500)
    expected = stats.bootstrap(
        strata,
        statistic,
        axis=0,
        n_resamples=500,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose(ours.low, expected.low, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ours.high, expected.high, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", range(1, 14))
def test_interquartile_mean_is_scipys_trimmed_mean(n):
    scores = np.random.default_rng(n).normal(size=(n, 3))
    ours = statistics.pooled_iqm(scores, axis=0)
    np.testing.assert_allclose(ours, stats.trim_mean(scores, 0.25, axis=0), rtol=1e-13, atol=1e-14)


def test_holms_correction_by_hand():
    # Smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.02]) == pytest.approx([1.0, 1.0, 0.06])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holms_correction_is_that_of_statsmodels():
    # multipletests(ps, method="holm")[1] of statsmodels 0.15.
    ps = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    ps += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]  # Benjamini and Hochberg 1995
    expected = [0.0015, 0.0056, 0.0247, 0.1140, 0.2211, 0.2780, 0.2780, 0.2780, 0.3213]
    assert holm(ps) == pytest.approx([*expected, *[1.0] * 6], abs=1e-9)
