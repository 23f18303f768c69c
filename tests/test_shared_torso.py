"""One torso under actor and critic: what it computes, its gradient, and who may have it."""

import dataclasses

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import rgpo_jax
from agents import ppo, trpo
from experiments.theory import cost
from rgpo_jax import gates, networks, objective, update
from rgpo_jax.config import ConfigError
from rgpo_jax.environment import Box, Discrete
from rgpo_jax.trust_region import natural_gradient

APART = ppo.Config(hidden_sizes=(8, 6), num_envs=4, num_steps=8, num_minibatches=1)
SHARED = dataclasses.replace(APART, shared_torso=True)
PICTURE = (6, 6, 2)


def twins(shape, space):
    """A network with a shared torso, one without of equal weights, and the parameters of both."""
    shared, apart = (networks.make(shape, space, config) for config in (SHARED, APART))
    params = shared.init(jax.random.key(0))
    torso = params["actor"]["torso"]["params"]

    def whole(head):
        return {"params": {"torso": torso, **head["params"]}}

    # A normal policy's head stands in a module that has the standard deviation beside it.
    actor = params["actor"]["head"]
    if isinstance(space, Box):
        means = {"torso": torso, **actor["params"]["mean"]}
        actor = {"params": {"mean": means, "log_std": actor["params"]["log_std"]}}
    else:
        actor = whole(actor)
    return shared, apart, params, {"actor": actor, "critic": whole(params["critic"])}


def torso_of(actor):
    """The torso's gradient in that of an actor with one of its own."""
    inner = actor["params"]
    return inner["mean"]["torso"] if "mean" in inner else inner["torso"]


@pytest.mark.parametrize("shape", [(3,), PICTURE, {"image": PICTURE, "speed": (2,)}])
@pytest.mark.parametrize("space", [Discrete(3), Box((2,), (-1.0, -1.0), (1.0, 1.0))])
def test_it_is_one_of_two_equal_ones_with_the_gradients_of_both(shape, space):
    shared, apart, params, copies = twins(shape, space)
    seen = jax.tree.map(
        lambda size: jax.random.normal(jax.random.key(1), (5, *size)),
        shape,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    policy, value = shared.policy_and_value(params, seen)
    action = policy.sample(jax.random.key(2))
    for found in (policy, shared.policy(params["actor"], seen)):
        expected = apart.policy(copies["actor"], seen).log_prob(action)
        np.testing.assert_allclose(found.log_prob(action), expected, rtol=1e-5)
    for found in (value, shared.value(shared.critic(params), seen)):
        np.testing.assert_allclose(found, apart.value(copies["critic"], seen), rtol=1e-5, atol=1e-6)
    numbers = jnp.linspace(-1.0, 1.0, 5)
    batch = objective.Batch(seen, action, policy.log_prob(action) - 0.1, numbers, 2 * numbers)

    def gradient(network, params):
        def loss(params):
            return objective.loss(params, network, gates.importance(), batch, 0.5, 0.01)[0]

        return jax.grad(loss)(params)

    found, both = gradient(shared, params), gradient(apart, copies)
    expected = jax.tree.map(jnp.add, torso_of(both["actor"]), both["critic"]["params"]["torso"])
    np.testing.assert_allclose(
        *(
            jax.flatten_util.ravel_pytree(x)[0]
            for x in (found["actor"]["torso"]["params"], expected)
        ),
        rtol=1e-4,
        atol=1e-6,
    )
    kernel = found["critic"]["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(
        kernel, both["critic"]["params"]["Dense_0"]["kernel"], rtol=1e-4, atol=1e-6
    )


def test_it_has_the_weights_of_one():
    config = ppo.Config(network="atari", hidden_sizes=(512,), shared_torso=True)
    network = networks.make((84, 84, 4), Discrete(4), config)
    assert network.num_weights == 1_684_128 + 5 * (512 + 1)


def test_an_agent_with_one_learns_and_is_taken_away(tmp_path):
    agent = ppo.make(envs.make("CartPole-v1"), SHARED)
    state = jax.jit(agent.init)(jax.random.key(0))
    after, _ = agent.step(state)
    kernels = [
        s.learner.params["actor"]["torso"]["params"]["Dense_0"]["kernel"] for s in (state, after)
    ]
    assert not np.array_equal(*kernels)
    rgpo_jax.save(tmp_path, agent, after)
    policy = rgpo_jax.load(tmp_path)
    seen = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_array_equal(policy.act(seen), agent.act(after, seen))


def test_who_cannot_have_one_says_so():
    with pytest.raises(ConfigError, match="shared_torso True: expected False with network gru"):
        dataclasses.replace(SHARED, network="gru")
    with pytest.raises(ConfigError, match="critic_hidden_sizes expected None with shared_torso"):
        dataclasses.replace(SHARED, critic_hidden_sizes=(4,))
    with pytest.raises(ConfigError, match="shared_torso True: expected False with TRPO"):
        trpo.Config(shared_torso=True)
    network = networks.make((3,), Discrete(2), SHARED)
    step = natural_gradient(0.01, 0.1, 0.8, 10, 15)
    with pytest.raises(ValueError, match="shared_torso: expected False with a policy_step"):
        update.make(network, SHARED, gates.importance(), policy_step=step)


def test_a_network_of_ones_own_that_shares_none_is_not_said_to():
    env = envs.make("CartPole-v1")
    network = networks.make(env.observation_shape, env.action_space, APART)
    with pytest.raises(ValueError, match="shared_torso True: the Network that was given shares"):
        ppo.make(env, SHARED, network=network)


def test_its_update_is_differentiated_once():
    assert cost.differentiation_order(ppo.make(envs.make("CartPole-v1"), SHARED)) == 1


class Sum(nn.Module):
    def __call__(self, observation):
        return observation.sum()


class Pair(nn.Module):
    def __call__(self, observation):
        return observation, observation


class Square(nn.Module):
    def __call__(self, observation):
        return observation[..., None] * observation[..., None, :]


class Failing(nn.Module):
    def __call__(self, observation):
        raise KeyError("speed")


@pytest.mark.parametrize("config", [APART, SHARED])
@pytest.mark.parametrize(
    ("torso", "message"),
    [
        (Sum, r"Sum: expected features \[batch, n\] of 2 observations \(3,\), and they are \(\)"),
        (Pair, r"Pair: expected features .* they are \(\(2, 3\), \(2, 3\)\)"),
        (Square, r"Square: expected features .* they are \(2, 3, 3\)"),
        (Failing, "Failing: KeyError: 'speed'"),
    ],
)
def test_a_torso_that_makes_no_features_is_told(config, torso, message):
    with pytest.raises(ValueError, match=message):
        networks.make((3,), Discrete(2), config, torso=torso())
