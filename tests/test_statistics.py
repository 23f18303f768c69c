"""Summary statistics over seeds."""

import numpy as np
import pytest

from rgpo_jax.statistics import bootstrap_interval, interquartile_mean

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
