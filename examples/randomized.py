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
    """Mean return of each seed's policy with a pole of this length, on new episodes."""
    agent = ppo.make(make("CartPole-v1", length=length), CONFIG)
    evaluate = train.make_evaluation(agent, num_episodes=32, deterministic=True)
    keys = jax.random.split(jax.random.key(1), SEEDS)
    return jax.jit(jax.vmap(evaluate))(learners, keys)[0].mean(axis=1)


if __name__ == "__main__":
    worlds = {
        "length 0.5": make("CartPole-v1"),
        "0.25 to 2.0": randomize("CartPole-v1", {"length": (0.25, 2.0)}),
    }
    for name, env in worlds.items():
        learners = learn(env)
        for length in LENGTHS:
            returns = np.sort(returns_at(learners, length))
            low, middle, high = returns[0], np.median(returns), returns[-1]
            print(
                f"trained on {name}, pole of {length:g}: "
                f"median return {middle:5.1f}, seeds {low:5.1f} to {high:5.1f}"
            )
