"""A policy that is a table of logits: one row for each prompt and each beginning of an answer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.language.answers import Answers, mask_after_end
from rgpo_jax.language.policy import Policy, Prediction

Array = jax.Array


def num_prefixes(vocabulary: int, length: int) -> int:
    """Beginnings of answers of so many tokens, the empty one among them."""
    return sum(vocabulary**t for t in range(length))


def _rows(tokens: Array, vocabulary: int) -> Array:
    """The row of the table in which each token was chosen [..., T]: by what came before it."""
    length = tokens.shape[-1]
    row, rows = jnp.zeros(tokens.shape[:-1], jnp.int32), []
    for t in range(length):
        rows.append(row + num_prefixes(vocabulary, t))
        row = row * vocabulary + tokens[..., t]
    return jnp.stack(rows, axis=-1)


def _combinations(vocabulary: int, length: int) -> Array:
    """All rows of so many tokens [vocabulary ** length, length], the last changing fastest."""
    grid = jnp.indices((vocabulary,) * length, jnp.int32)
    return grid.reshape(length, vocabulary**length).T


@jax.ensure_compile_time_eval()  # how many there are is a shape, also where worlds are traced
def all_answers(vocabulary: int, length: int, end_id: int | None = None) -> Answers:
    """Every answer there is [M, T]; what follows an end token is filled up with it."""
    tokens = _combinations(vocabulary, length)
    if end_id is None:
        mask = jnp.ones(tokens.shape, bool)
        return Answers(tokens, mask, jnp.zeros(tokens.shape), jnp.ones(len(tokens), bool))
    mask, ended = mask_after_end(tokens, (end_id,))
    padded = jnp.all(mask | (tokens == end_id), axis=-1)
    return Answers(tokens[padded], mask[padded], jnp.zeros(mask.shape)[padded], ended[padded])


class Beginnings(NamedTuple):
    """What all answers begin with, so that a model reads each beginning once.

    Attributes:
      answers: every beginning of all tokens but one [L, T]; the last token is of no meaning.
      rows: of each answer and place, a beginning that is the answer's so far [M, T].
    """

    answers: Answers
    rows: Array


@jax.ensure_compile_time_eval()
def beginnings(answers: Answers, vocabulary: int, end_id: int | None = None) -> Beginnings:
    """The beginnings of all answers [M, T], as `all_answers` gives them."""
    length = answers.tokens.shape[1]
    going_on = jnp.array([t for t in range(vocabulary) if t != end_id], jnp.int32)
    before_last = going_on[_combinations(len(going_on), length - 1)]
    tokens = jnp.pad(before_last, [(0, 0), (0, 1)], constant_values=going_on[0])
    everywhere = jnp.ones(tokens.shape, bool)
    read = Answers(tokens, everywhere, jnp.zeros(tokens.shape), everywhere[:, 0])
    digits = jnp.searchsorted(going_on, answers.tokens[:, :-1])
    weights = len(going_on) ** jnp.arange(length - 2, -1, -1)
    so_far = jnp.cumsum(digits % len(going_on) * weights, axis=1)
    return Beginnings(read, jnp.pad(so_far, [(0, 0), (1, 0)]))


def make(vocabulary: int, length: int, end_id: int | None = None) -> Policy:
    """Builds the policy; `frozen` is {"logits": [N, rows, vocabulary]}, and a prompt is its index.

    Args:
      vocabulary: number of tokens.
      length: of the longest answer, in tokens.
      end_id: the token that ends an answer; None: all have the same length.
    """

    def init(key: Array, frozen: Any, critic: bool) -> Any:
        del key
        logits = frozen["logits"]
        params = {"actor": jnp.array(logits)}  # a copy: who donates it keeps the reference
        return params | {"critic": jnp.zeros(logits.shape[:-1])} if critic else params

    def sample(params: Any, frozen: Any, prompts: Array, key: Array, temperature: Any) -> Answers:
        del frozen
        table = params["actor"] / temperature
        row, tokens, log_probs = jnp.zeros(prompts.shape, jnp.int32), [], []
        for t, step_key in enumerate(jax.random.split(key, length)):
            logits = jax.nn.log_softmax(table[prompts, row + num_prefixes(vocabulary, t)])
            token = jax.random.categorical(step_key, logits).astype(jnp.int32)
            log_probs.append(jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0])
            tokens.append(token)
            row = row * vocabulary + token
        answer, log_prob = jnp.stack(tokens, axis=-1), jnp.stack(log_probs, axis=-1)
        if end_id is None:
            mask = jnp.ones(answer.shape, bool)
            return Answers(answer, mask, log_prob, jnp.ones(prompts.shape, bool))
        mask, ended = mask_after_end(answer, (end_id,))
        return Answers(jnp.where(mask, answer, end_id), mask, jnp.where(mask, log_prob, 0.0), ended)

    def log_softmax(table: Array, prompts: Array, answers: Answers, temperature: Any) -> Array:
        rows = _rows(answers.tokens, vocabulary)
        return jax.nn.log_softmax(table[prompts[:, None], rows] / temperature)

    def of_tokens(logits: Array, answers: Answers) -> Array:
        return jnp.take_along_axis(logits, answers.tokens[..., None], axis=-1)[..., 0]

    def predict(
        params: Any, frozen: Any, encoded: Array, answers: Answers, temperature: Any
    ) -> Prediction:
        del frozen
        logits = log_softmax(params["actor"], encoded, answers, temperature)
        value = None
        if "critic" in params:
            value = params["critic"][encoded[:, None], _rows(answers.tokens, vocabulary)]
        entropy = -jnp.sum(jnp.exp(logits) * logits, axis=-1)
        return Prediction(of_tokens(logits, answers), entropy, value)

    def reference(frozen: Any, encoded: Array, answers: Answers, temperature: Any) -> Array:
        logits = log_softmax(frozen["logits"], encoded, answers, temperature)
        return of_tokens(logits, answers)

    return Policy(init, sample, predict, reference, length)
