"""Gradients of gates' surrogates against the losses as they are published.

Each is a function of log pi, log pi_old and A that is ascended in its mean.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gate_probes import away_from
from jax.lax import stop_gradient

from rgpo_jax import gates, objective


def published_rgpo(log_prob, old, a):
    return jax.nn.sigmoid(4.0 * (jnp.exp(log_prob - old) - 1.0)) * a


def published_ppo(log_prob, old, a, low=0.8, high=1.2):
    r = jnp.exp(log_prob - old)
    return jnp.minimum(r * a, jnp.clip(r, low, high) * a)


def published_dual_clip(log_prob, old, a):
    clipped = published_ppo(log_prob, old, a)
    return jnp.where(a < 0, jnp.maximum(clipped, 3.0 * a), clipped)


def published_sapo(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    positive = 4.0 / 1.0 * jax.nn.sigmoid(1.0 * (r - 1.0))
    negative = 4.0 / 1.05 * jax.nn.sigmoid(1.05 * (r - 1.0))
    return jnp.where(a > 0, positive, negative) * a


def published_p3o(log_prob, old, a):
    return 4.0 / 4.0 * jax.nn.sigmoid(4.0 * (jnp.exp(log_prob - old) - 1.0)) * a


def published_spo(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    return r * a - jnp.abs(a) / (2 * 0.2) * (r - 1.0) ** 2


def published_rollback(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    rolled = jnp.where(r <= 0.8, -0.3 * r + 1.3 * 0.8, r)
    rolled = jnp.where(r >= 1.2, -0.3 * r + 1.3 * 1.2, rolled)
    return jnp.minimum(r * a, rolled * a)


def published_importance(log_prob, old, a):
    return jnp.exp(log_prob - old) * a


def published_reinforce(log_prob, old, a):
    return log_prob * a


def published_tis(log_prob, old, a):
    return stop_gradient(jnp.minimum(jnp.exp(log_prob - old), 2.0)) * log_prob * a


def published_v_trace(log_prob, old, a):
    return stop_gradient(jnp.minimum(jnp.exp(log_prob - old), 1.0)) * log_prob * a


def published_cispo(log_prob, old, a):
    return stop_gradient(jnp.clip(jnp.exp(log_prob - old), 0.8, 1.28)) * log_prob * a


def published_topr(log_prob, old, a):
    tapered = jnp.clip(jnp.exp(log_prob - old), 0.0, 1.0)
    return stop_gradient(jnp.where(a >= 0, 1.0, tapered)) * log_prob * a


def published_discovered(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    positive = jax.nn.relu((r - 1.0) * a - 2.0 * jnp.tanh((r - 1.0) * a / 2.0))
    negative = jax.nn.relu(jnp.log(r) * a - 0.6 * jnp.tanh(jnp.log(r) * a / 0.6))
    return r * a - jnp.where(a >= 0, positive, negative)


PUBLISHED = {
    "rgpo": (gates.rgpo(4.0), published_rgpo),
    "ppo": (gates.ppo(0.2), published_ppo),
    "clip-higher": (
        gates.ppo(0.2, clip_high=0.28),
        functools.partial(published_ppo, low=0.8, high=1.28),
    ),
    "dual-clip": (gates.ppo(0.2, dual_clip=3.0), published_dual_clip),
    "sapo": (gates.sapo(), published_sapo),
    "p3o": (gates.p3o(4.0), published_p3o),
    "spo": (gates.spo(0.2), published_spo),
    "rollback": (gates.rollback(0.2, 0.3), published_rollback),
    "importance": (gates.importance(), published_importance),
    "reinforce": (gates.reinforce(), published_reinforce),
    "tis": (gates.truncated_importance(2.0), published_tis),
    "v-trace": (gates.truncated_importance(1.0), published_v_trace),
    "cispo": (gates.cispo(0.8, 1.28), published_cispo),
    "topr": (gates.topr(), published_topr),
    "discovered": (gates.discovered(), published_discovered),
}


@pytest.mark.parametrize(("gate", "published"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_gradient_of_the_surrogate_is_that_of_the_published_loss(gate, published):
    n = 512
    generator = np.random.default_rng(0)
    old = generator.uniform(-3.0, 0.0, n).astype(np.float32)
    log_prob = (old + generator.normal(0.0, 0.7, n)).astype(np.float32)
    advantage = generator.normal(0.0, 1.5, n).astype(np.float32)
    actual = jax.grad(lambda p: objective.surrogate(gate, p - old, advantage))(log_prob)
    expected = jax.grad(lambda p: jnp.mean(published(p, old, advantage)))(log_prob)
    smooth = away_from((0.8, 1.2, 1.28, 3.0), np.exp(log_prob - old), 1e-5)
    assert smooth.sum() > 500
    np.testing.assert_allclose(n * actual[smooth], n * expected[smooth], rtol=1e-4, atol=1e-5)
