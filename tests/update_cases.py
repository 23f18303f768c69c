"""Learners, and states and trajectories that are made by hand for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from test_advantages import by_definition

from rgpo_jax import advantages, gates, networks, trust_region, update
from rgpo_jax.config import Config
from rgpo_jax.environment import Box, Discrete
from rgpo_jax.rollout import Trajectory

T, B, SIZE = 8, 4, 3
GAP = 3  # least number of steps between two truncations of an environment
DISCRETE = Discrete(3)
BOX = Box((2,), (-1.0, -1.0), (1.0, 1.0))
SETTINGS = {
    "num_steps": T,
    "num_envs": B,
    "total_steps": 10 * T * B,
    "hidden_sizes": (8,),
    "learning_rate": 1e-2,
    "num_epochs": 1,
    "num_minibatches": 1,
}


@functools.cache
def start(space):
    """A state and a trajectory that all learners of a space share: they differ in other things."""
    network = networks.make((SIZE,), space, Config(**SETTINGS))
    learner = update.make(network, Config(**SETTINGS), gates.reinforce())
    state = jax.jit(learner.init)(jax.random.key(0), learner.hyperparameters)
    outputs = jax.jit(
        lambda params, observation: (
            network.policy(params["actor"], observation),
            network.value(params["critic"], observation),
        )
    )
    return state, outputs, make_trajectory(outputs, state.params)


class Case:
    """A learner, its compiled update, and a state and a trajectory for it.

    `outputs` maps parameters and observations [T, B] to the policy and the values.
    """

    def __init__(self, gate, space=DISCRETE, max_episode_steps=None, parts=None, **settings):
        self.config = Config(**(SETTINGS | settings))
        self.network = networks.make((SIZE,), space, self.config)
        self.learner = update.make(self.network, self.config, gate, **(parts or {}))
        update_ = functools.partial(self.learner.update, max_episode_steps=max_episode_steps)
        self.update = jax.jit(update_)
        state, self.outputs, self.trajectory = start(space)
        self.state = state._replace(hyperparameters=self.learner.hyperparameters)

    def replace(self, **overrides):
        """The state with other hyper-parameters."""
        as_arrays = {name: jnp.float32(value) for name, value in overrides.items()}
        hyperparameters = self.state.hyperparameters.replace(**as_arrays)
        return self.state._replace(hyperparameters=hyperparameters)


@functools.cache
def case(name):
    """Cases that several tests share, compiled once."""
    if name == "reinforce":
        return Case(gates.reinforce())
    if name == "ppo":
        return Case(gates.ppo(0.2), max_episode_steps=GAP, num_epochs=3)
    if name == "box":
        plain = {"normalize_advantages": False, "anneal_learning_rate": False}
        return Case(gates.ppo(0.2), space=BOX, **plain)
    if name == "awr":
        parts = {"advantage_transform": advantages.exponential(0.5, 3.0)}
        return Case(gates.reinforce(), parts=parts)
    assert name == "trpo"
    parts = {"policy_step": trust_region.natural_gradient()}
    return Case(gates.importance(), parts=parts)


def truncations(gap, seed):
    """Truncations at least `gap` steps apart, at the first and the last row among others."""
    rng = np.random.default_rng(seed)
    truncated = np.zeros((T, B), bool)
    for b in range(B):
        t = rng.integers(0, gap)
        while t < T:
            truncated[t, b] = True
            t += gap + rng.integers(0, 2)
    truncated[:, 0] = np.arange(T) % gap == 0  # from the first row on, as many as there can be
    truncated[:, 1] = np.arange(T)[::-1] % gap == 0  # up to the last row
    truncated[:, 2] &= rng.random() < 0.5
    return truncated


def make_trajectory(outputs, params, seed=0, gap=GAP):
    """Random steps; the policy that acted is near the network's, so that ratios are not 1."""
    rng = np.random.default_rng(seed)
    observation, next_observation = rng.normal(size=(2, T, B, SIZE))
    truncated = truncations(gap, seed)
    terminated = (rng.random((T, B)) < 0.2) & ~truncated
    going_on = ~(terminated | truncated)[:-1, :, None]
    next_observation[:-1] = np.where(going_on, observation[1:], next_observation[:-1])
    observation = jnp.asarray(observation, jnp.float32)
    policy, _ = outputs(params, observation)
    action = policy.sample(jax.random.key(seed))
    return Trajectory(
        observation=observation,
        action=action,
        log_prob=policy.log_prob(action) - jnp.asarray(rng.normal(size=(T, B)) * 0.3, jnp.float32),
        reward=jnp.asarray(rng.normal(size=(T, B)), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        final_observation=jnp.asarray(next_observation, jnp.float32),
    )


def advantages_and_targets(case, normalized=True):
    """By the definition, in NumPy's float64."""
    steps = case.trajectory
    value, next_value = (
        np.asarray(case.outputs(case.state.params, observation)[1], np.float64)
        for observation in (steps.observation, steps.final_observation)
    )
    rest = [np.asarray(x) for x in (steps.terminated, steps.truncated)]
    reward = np.asarray(steps.reward, np.float64)
    advantage = by_definition(
        reward, value, next_value, *rest, case.config.discount, case.config.gae_lambda
    )
    target = advantage + value
    if normalized:
        advantage = (advantage - advantage.mean()) / advantage.std()
    return jnp.asarray(advantage, jnp.float32), jnp.asarray(target, jnp.float32)


def assert_close(actual, expected, atol):
    for path, leaf in jax.tree.leaves_with_path(expected):
        other = functools.reduce(lambda tree, key: tree[key.key], path, actual)
        np.testing.assert_allclose(other, leaf, rtol=0, atol=atol, err_msg=str(path))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


# A step of Adam moves a parameter by about 1e-2; these are 1 / 1000 of it, and float error.
STEP_TOLERANCE = 1e-5
