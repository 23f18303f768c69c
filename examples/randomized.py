"""Domain randomisation: CartPole with a pole of one length, or of another in every episode.

Both policies are then tried on poles of lengths that they were and were not trained on. Four seeds
of each are one program.
"""

import jax
import numpy as np

from agents import ppo
from envs import make, randomize
from rgpo_jax import train

SEEDS = 4
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
CONFIG = ppo.Config(
    total_steps=300_000, num_envs=8, learning_rate=1e-3, entropy_coefficient=0.02, discount=0.99
)


def learn(env):
    agent = ppo.make(env, CONFIG)

    def one(key):
        return jax.lax.scan(agent.step, agent.init(key), length=CONFIG.num_updates)[0].learner

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), SEEDS))


def returns_at(learners, length):
    """Mean returns of policies [N, SEEDS] with a pole of this length, on new episodes."""
    agent = ppo.make(make("CartPole-v1", length=length), CONFIG)
    evaluate = train.make_evaluation(agent, num_episodes=32, deterministic=True)
    keys = jax.random.split(jax.random.key(1), SEEDS)
    every_seed = jax.vmap(evaluate)
    return jax.jit(jax.vmap(every_seed, in_axes=(0, None)))(learners, keys)[0].mean(axis=2)


if __name__ == "__main__":
    worlds = {
        "length 0.5": make("CartPole-v1"),
        "0.25 to 2.0": randomize("CartPole-v1", {"length": (0.25, 2.0)}),
    }
    learners = [learn(env) for env in worlds.values()]
    learners = jax.tree.map(lambda *x: jax.numpy.stack(x), *learners)
    by_length = [returns_at(learners, length) for length in LENGTHS]
    for name, returns in zip(worlds, np.moveaxis(by_length, 1, 0), strict=True):
        for length, seeds in zip(LENGTHS, np.sort(returns), strict=True):
            print(
                f"trained on {name}, pole of {length:g}: "
                f"median return {np.median(seeds):5.1f}, seeds {seeds[0]:5.1f} to {seeds[-1]:5.1f}"
            )
