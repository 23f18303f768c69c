"""A bandit: an answer is one of K arms, and several prompts have arms of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.language import tabular
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.world import Enumeration, World


def make(num_arms: int = 5, num_prompts: int = 4, problem: int = 0) -> World:
    """Builds the world; rewards and the reference's logits are drawn from normal distributions.

    Args:
      num_arms: K.
      num_prompts: N.
      problem: which of the problems there are; training's seeds do not change it.
    """
    return of(*draw(problem, num_arms, num_prompts))


def draw(problem: int, num_arms: int = 5, num_prompts: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a reference and rewards, both [N, K]."""
    rng = np.random.default_rng(problem)
    logits = rng.normal(size=(num_prompts, num_arms))
    return logits, rng.normal(size=(num_prompts, num_arms))


def of(logits: Any, reward: Any) -> World:
    """The world of given logits and rewards [N, K], which may be traced.

    With reward None it has none, for methods that learn from pairs that they are given.
    """
    logits = jnp.asarray(logits, jnp.float32)
    number, arms = logits.shape
    judge = None
    if reward is not None:
        reward = jnp.asarray(reward, jnp.float32)

        def judge(prompts: jax.Array, answers: Answers) -> jax.Array:
            return reward[prompts, answers.tokens[:, 0]]

    values = jnp.zeros((number, arms)) if reward is None else reward
    return World(
        "bandit",
        jnp.arange(number, dtype=jnp.int32),
        tabular.make(arms, length=1),
        {"logits": logits[:, None, :]},
        judge,
        Enumeration(tabular.all_answers(arms, length=1), values),
    )
