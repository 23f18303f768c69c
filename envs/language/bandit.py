"""A bandit: an answer is one of K arms, and several prompts have arms of their own."""

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
    rng = np.random.default_rng(problem)
    logits = jnp.asarray(rng.normal(size=(num_prompts, 1, num_arms)), jnp.float32)
    reward = jnp.asarray(rng.normal(size=(num_prompts, num_arms)), jnp.float32)

    def judge(prompts: jnp.ndarray, answers: Answers) -> jnp.ndarray:
        return reward[prompts, answers.tokens[:, 0]]

    return World(
        "bandit",
        jnp.arange(num_prompts, dtype=jnp.int32),
        tabular.make(num_arms, length=1),
        {"logits": logits},
        judge,
        Enumeration(tabular.all_answers(num_arms, length=1), reward),
    )
