"""A tiny transformer with random weights; its answers are many, and still can be enumerated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.language import decoder, decoder_policy, tabular
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder import Architecture
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.world import Enumeration, World

VOCABULARY, LENGTH, END = 8, 4, 0  # 1 + 7 + 49 + 343 + 2401 answers
ARCHITECTURE = Architecture(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)
_PROMPT_LENGTH = 3
_SCALE = 0.3  # of weights: conditional probabilities differ well from each other, and from 0


def make(num_prompts: int = 4, problem: int = 0, training: TrainedPart = TrainedPart()) -> World:
    """Builds the world: each token is worth a number, and an answer the sum over its tokens.

    Args:
      num_prompts: N, of random tokens.
      problem: which of the problems there are; training's seeds do not change it.
      training: what of the transformer is trained.
    """
    return of(*draw(problem, num_prompts), training)


def draw(problem: int, num_prompts: int = 4) -> tuple[Any, np.ndarray, np.ndarray]:
    """The transformer's weights, the prompts' tokens [N, P], and what each token is worth [V]."""
    rng = np.random.default_rng(problem)
    frozen = decoder.init(jax.random.key(problem), ARCHITECTURE, _SCALE)
    tokens = rng.integers(1, VOCABULARY, size=(num_prompts, _PROMPT_LENGTH))
    worth = rng.normal(size=VOCABULARY) / LENGTH
    worth[END] = 0.0
    return frozen, tokens, worth


def of(frozen: Any, tokens: Any, worth: Any, training: TrainedPart = TrainedPart()) -> World:
    """The world of given weights, prompts [N, P] and worths of tokens [V], which may be traced."""
    tokens, worth = jnp.asarray(tokens, jnp.int32), jnp.asarray(worth, jnp.float32)
    prompts = Prompts(tokens, jnp.ones(tokens.shape, bool))

    def judge(prompts: Prompts, answers: Answers) -> jnp.ndarray:
        del prompts
        return jnp.sum(jnp.where(answers.mask, worth[answers.tokens], 0.0), axis=-1)

    answers = tabular.all_answers(VOCABULARY, LENGTH, END)
    reward = jnp.broadcast_to(judge(prompts, answers), (len(tokens), len(answers.tokens)))
    policy = decoder_policy.make(ARCHITECTURE, LENGTH, (END,), END, training)
    beginnings = tabular.beginnings(answers, VOCABULARY, END)
    enumeration = Enumeration(answers, reward, beginnings)
    return World("tiny", prompts, policy, frozen, judge, enumeration)
