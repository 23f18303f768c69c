"""Metrics carry their reduction, and are reduced over updates as they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgpo_jax import agent, metrics
from rgpo_jax.metrics import maxima, means, sums
from rgpo_jax.rollout import EpisodeTotals


def run(*updates):
    """Reduces the metrics of several updates under jit, stacked as a scan stacks them."""
    stacked = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *updates)

    @jax.jit
    def whole(stacked):
        start = metrics.empty(updates[0])
        carry, _ = jax.lax.scan(lambda c, m: (metrics.accumulate(c, m), None), start, stacked)
        return metrics.reduce(carry)

    return {k: float(v) for k, v in whole(stacked).items()}


def test_they_are_a_mapping_and_a_pytree():
    both = means({"a": 1.0}, weight=2) | sums({"b": 3.0}) | maxima({"c": 4.0})
    assert dict(both) == {"a": 1.0, "b": 3.0, "c": 4.0}
    doubled = jax.jit(lambda m: jax.tree.map(lambda x: 2 * x, m))(both)
    assert doubled["b"] == 6.0
    assert doubled.weights == {"a": 4}
    assert doubled.reductions == both.reductions == {"b": "sum", "c": "maximum"}
    with pytest.raises(KeyError):
        both["d"]
    for joined in (both | {"d": 5.0}, {"d": 5.0} | both):
        assert joined["d"] == 5.0
        assert joined.reductions == both.reductions


def test_reduces_by_mean_maximum_and_sum():
    updates = [
        means({"mean": x}) | maxima({"largest": y}) | sums({"total": z})
        for x, y, z in ((1.0, 2.0, 1.0), (2.0, 5.0, 10.0), (6.0, 1.0, 100.0))
    ]
    assert run(*updates) == {"mean": 3.0, "largest": 5.0, "total": 111.0}


def test_a_maximum_may_be_negative_or_undefined():
    assert run(maxima({"x": -3.0}), maxima({"x": -2.0}))["x"] == -2.0
    some = (maxima({"x": x}, weight=w) for x, w in ((-3.0, 1), (np.nan, 0), (-5.0, 4)))
    assert run(*some)["x"] == -3.0
    assert np.isnan(run(maxima({"x": 7.0}, weight=0))["x"])


def test_what_takes_a_names_place_has_its_own_weight_and_reduction():
    undefined, largest = means({"a": 1.0}, weight=0), maxima({"a": 3.0})
    for before in (undefined, largest):
        after = before | means({"a": 2.0})
        assert not after.weights and not after.reductions


def test_a_share_is_the_mean_of_booleans():
    assert run(*(means({"x": spike}) for spike in (False, True, False, True, False)))["x"] == (
        pytest.approx(0.4)
    )


def test_the_mean_of_unequal_parts_is_that_of_all_samples():
    parts = [np.arange(1.0), np.arange(0.0), np.arange(5.0)]
    mean = [part.mean() if part.size else np.nan for part in parts]
    reports = [means({"x": m}, weight=part.size) for m, part in zip(mean, parts, strict=True)]
    assert run(*reports)["x"] == pytest.approx(np.concatenate(parts).mean())


def test_the_mean_return_is_that_of_all_episodes():
    # 1 episode of return 10 and length 2; none; 3 episodes of mean return 2 and mean length 6.
    totals = [EpisodeTotals(1, 10.0, 2), EpisodeTotals(0, 0.0, 0), EpisodeTotals(3, 6.0, 18)]
    report = run(*map(agent.episode_metrics, totals))
    assert report == {"episodes": 4.0, "episode_return": 4.0, "episode_length": 5.0}


def test_where_no_episode_ended_the_return_is_nan_and_not_zero():
    none = agent.episode_metrics(EpisodeTotals(0, 0.0, 0))
    assert np.isnan(none["episode_return"])
    report = run(none, none)
    assert report["episodes"] == 0.0
    assert np.isnan(report["episode_return"])
    assert np.isnan(report["episode_length"])


@pytest.mark.parametrize("kind", [means, maxima, sums])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_run_that_broke_does_not_report_its_last_good_number(kind, position):
    values = [1.0, 2.0, 3.0]
    values[position] = np.nan
    assert np.isnan(run(*(kind({"x": x}) for x in values))["x"])


def test_no_update_is_nothing_defined():
    report = metrics.reduce(metrics.empty(means({"a": 0}) | maxima({"b": 0}) | sums({"c": 0})))
    assert np.isnan(report["a"])
    assert np.isnan(report["b"])
    assert report["c"] == 0.0


def test_one_reduction_for_many_runs_and_for_numpy():
    total = metrics.empty(means({"a": 0.0}) | maxima({"b": 0.0}))
    batched = jax.vmap(lambda x: metrics.accumulate(total, means({"a": x}) | maxima({"b": -x})))(
        jnp.arange(3.0)
    )
    here, there = metrics.reduce(jax.tree.map(np.asarray, batched)), metrics.reduce(batched)
    for name, expected in {"a": [0, 1, 2], "b": [0, -1, -2]}.items():
        assert isinstance(here[name], np.ndarray)
        np.testing.assert_array_equal(here[name], expected)
        np.testing.assert_array_equal(there[name], expected)
