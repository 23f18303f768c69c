"""Shuffling by a bijection: a permutation for every length, and as random as one can ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rgpo_jax.shuffle import permutation


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 511, 512, 1000, 8192, 70_001])
def test_every_number_comes_once(n):
    order = jax.jit(lambda key: permutation(key, n))(jax.random.key(0))
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


# With two rounds in the place of eight both fail.
@pytest.mark.parametrize(("n", "draws"), [(256, 20_000), (300, 5_000)])
def test_places_and_pairs_of_places_are_uniform(n, draws):
    keys = jax.random.split(jax.random.key(1), draws)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, n)))(keys))
    for place in (0, 1, n // 2, n - 1):
        assert stats.chisquare(np.bincount(orders[:, place], minlength=n)).pvalue > 1e-3
    # Whether two numbers meet in the same quarter (a minibatch), for neighbours and far ones.
    quarter = np.argsort(orders, axis=1) * 4 // n
    share = np.array([np.sum(np.arange(n) * 4 // n == q) for q in range(4)])
    together = np.sum(share * (share - 1)) / (n * (n - 1))
    for a, b in ((0, 1), (0, 2), (3, 4), (0, 128), (17, 200), (254, 255)):
        met = int(np.sum(quarter[:, a] == quarter[:, b]))
        assert stats.binomtest(met, draws, together).pvalue > 1e-3


def test_every_key_has_a_permutation_of_its_own():
    orders = jax.vmap(lambda key: permutation(key, 512))(jax.random.split(jax.random.key(2), 500))
    assert len(np.unique(np.asarray(orders), axis=0)) == 500
