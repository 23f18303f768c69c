"""A loop of your own: you step the world, agents act and learn. `python examples/own_loop.py`"""

import gymnasium
import jax
import numpy as np

from agents import rgpo
from rgpo_jax.environment import Discrete, Spaces
from rgpo_jax.rollout import Trajectory

# Of a world that no adapter knows, an agent has to know the spaces alone.
SPACES = Spaces(observation_shape=(4,), action_space=Discrete(2), name="CartPole")
CONFIG = rgpo.Config(total_steps=51_200, num_envs=8, num_steps=64, learning_rate=2e-3)


def collect(world, observation, act, state, key):
    """Steps the world `num_steps` times; returns what to act on next, and a trajectory [T, B]."""
    rows = []
    for step_key in jax.random.split(key, CONFIG.num_steps):
        acted = act(state, observation, step_key)
        after, reward, terminated, truncated, info = world.step(np.asarray(acted.env_action))
        final = after.copy()  # what the step led to, before the next episode began
        for i in np.flatnonzero(terminated | truncated):
            final[i] = info["final_obs"][i]
        transition = Trajectory(
            observation=observation,
            action=acted.action,
            log_prob=acted.log_prob,
            reward=reward.astype(np.float32),
            terminated=terminated,  # the value of what follows is 0
            truncated=truncated & ~terminated,  # a time limit: it is that of the final observation
            final_observation=final,
        )
        rows.append(transition)
        observation = after
    return observation, jax.tree.map(lambda *column: np.stack(column), *rows)


if __name__ == "__main__":
    world = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=CONFIG.num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    agent = rgpo.make(SPACES, CONFIG)
    key, learner_key = jax.random.split(jax.random.key(0))
    state = agent.learner.init(learner_key)
    act, update = jax.jit(agent.sample), jax.jit(agent.learner.update)

    observation, _ = world.reset(seed=0)
    for number in range(1, CONFIG.num_updates + 1):
        key, rollout_key = jax.random.split(key)
        observation, trajectory = collect(world, observation, act, state, rollout_key)
        state, metrics = update(state, trajectory)
        if number % 20 == 0:
            # A reward of 1 a step: the steps between two ends are a return.
            ended = np.sum(trajectory.terminated | trajectory.truncated)
            steps, length = number * CONFIG.batch_size, CONFIG.batch_size / max(ended, 1)
            print(f"{steps:6,} steps: return of about {length:5.0f}")
