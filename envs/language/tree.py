"""A token tree: answers few enough to enumerate, with logits of their own for each prefix."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from rgpo_jax.language import tabular
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.world import Enumeration, World


def make(
    vocabulary: int = 4,
    length: int = 3,
    num_prompts: int = 2,
    end_id: int | None = None,
    problem: int = 0,
) -> World:
    """Builds the world: 64 answers to each prompt; a token is worth what the prompt says.

    The reward is the share of an answer's tokens that are the prompt's favourite: a few different
    rewards for many answers.

    Args:
      vocabulary: number of tokens.
      length: of the longest answer.
      num_prompts: N.
      end_id: a token that ends an answer; None: all answers are as long as the longest.
      problem: which of the problems there are; training's seeds do not change it.
    """
    drawn = draw(problem, vocabulary, length, num_prompts, end_id)
    return of(*drawn, length=length, end_id=end_id)


def draw(
    problem: int,
    vocabulary: int = 4,
    length: int = 3,
    num_prompts: int = 2,
    end_id: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a reference after each prefix [N, prefixes, V], and favourite tokens [N]."""
    rng = np.random.default_rng(problem)
    rows = tabular.num_prefixes(vocabulary, length)
    logits = rng.normal(size=(num_prompts, rows, vocabulary))
    content = [token for token in range(vocabulary) if token != end_id]
    return logits, rng.choice(content, size=num_prompts)


def of(logits: Any, favourite: Any, length: int = 3, end_id: int | None = None) -> World:
    """The world of given logits [N, prefixes, V] and favourite tokens [N], which may be traced."""
    logits = jnp.asarray(logits, jnp.float32)
    favourite = jnp.asarray(favourite, jnp.int32)
    num_prompts, _, vocabulary = logits.shape
    answers = tabular.all_answers(vocabulary, length, end_id)

    def judge(prompts: jnp.ndarray, answers: Answers) -> jnp.ndarray:
        hits = (answers.tokens == favourite[prompts][:, None]) & answers.mask
        return jnp.sum(hits, axis=-1) / length

    prompts = jnp.arange(num_prompts, dtype=jnp.int32)
    number = len(answers.tokens)
    reward = jnp.stack([judge(jnp.full(number, prompt, jnp.int32), answers) for prompt in prompts])
    return World(
        "tree",
        prompts,
        tabular.make(vocabulary, length, end_id),
        {"logits": logits},
        judge,
        Enumeration(answers, reward),
    )
