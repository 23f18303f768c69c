"""An environment of your own: two pure functions. `python examples/own_environment.py`"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents import rgpo
from rgpo_jax import train
from rgpo_jax.environment import Box, TimeStep


class State(NamedTuple):
    position: jax.Array
    velocity: jax.Array
    time: jax.Array


class Cart:
    """A cart on a rail is pushed to the middle; beyond the rail's ends it is lost."""

    name = "Cart"
    observation_shape = (2,)
    action_space = Box((1,), low=(-2.0,), high=(2.0,))  # force, in the environment's own units
    max_episode_steps = 100

    def reset(self, key):
        state = State(jax.random.uniform(key, (), minval=-1.0), jnp.zeros(()), jnp.int32(0))
        return state, self._observe(state)

    def step(self, key, state, action):
        velocity = state.velocity + 0.1 * action[0]
        state = State(state.position + 0.1 * velocity, velocity, state.time + 1)
        lost = jnp.abs(state.position) > 2.0
        reward = jnp.where(lost, -100.0, 1.0 - jnp.abs(state.position))
        observation = self._observe(state)
        # Lost is the end: nothing follows. At the time limit the episode is cut, and its value
        # goes on. Do not reset here: whoever steps many environments does.
        cut = (state.time >= self.max_episode_steps) & ~lost
        return state, TimeStep(observation, reward, lost, cut, final_observation=observation)

    def _observe(self, state):
        return jnp.stack([state.position, state.velocity])


CONFIG = rgpo.Config(
    total_steps=100_000,
    num_envs=16,
    num_steps=64,
    learning_rate=2e-3,
    discount=0.95,
    normalize_rewards=True,
)

if __name__ == "__main__":
    agent = rgpo.make(Cart(), CONFIG)
    evaluate = jax.jit(train.make_evaluation(agent, num_episodes=64, deterministic=True))
    many = jax.jit(lambda state: jax.lax.scan(agent.step, state, length=20)[0])
    state = jax.jit(agent.init)(jax.random.key(0))
    for steps in range(0, CONFIG.total_steps + 1, 20 * CONFIG.num_envs * CONFIG.num_steps):
        returns, lengths = evaluate(state.learner, jax.random.key(1))
        print(f"{steps:7,} steps: return {returns.mean():6.1f}, {lengths.mean():5.1f} steps long")
        state = many(state)
