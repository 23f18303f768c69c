"""Sampling: what is reported is what was sampled, and it is what all tokens at once would say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_language_decoder import (
    ARCHITECTURE,
    PLAIN,
    answer_log_probs,
    hidden_states,
    random_params,
    random_tokens,
)

from rgpo_jax.language import decoder, sampler
from rgpo_jax.language.answers import mask_after_end

END = 2
PROMPTS = random_tokens(16, 5)
PROMPT_MASK = jnp.arange(5) >= (jnp.arange(16) % 5)[:, None]  # 5 down to 1 real tokens


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 9))
def sample(params, prompts, prompt_mask, key, length, architecture, end, pad, temperature, greedy):
    weights = sampler.decoding_weights(params, architecture)
    return sampler.sample(
        weights, architecture, prompts, prompt_mask, key, length, end, pad, temperature, greedy
    )


def answers_with(
    key,
    params,
    architecture=ARCHITECTURE,
    length=8,
    end=(END, 5),
    pad=END,
    temperature=1.0,
    greedy=False,
    prompts=PROMPTS,
    prompt_mask=PROMPT_MASK,
):
    return sample(
        params, prompts, prompt_mask, key, length, architecture, end, pad, temperature, greedy
    )


answers_of = functools.partial(answers_with, jax.random.key(0))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("architecture", [ARCHITECTURE, PLAIN])
def test_sampled_log_probs_are_the_teacher_forced_ones(architecture, temperature):
    params = random_params(architecture)
    answers = answers_of(params, architecture, temperature=temperature)
    assert answers.ended.any() and not answers.ended.all()
    scored = answer_log_probs(
        params,
        architecture,
        PROMPTS,
        PROMPT_MASK,
        answers.tokens,
        answers.mask,
        temperature=temperature,
    )
    np.testing.assert_allclose(answers.log_prob, scored.log_prob, atol=2e-5)
    ratios = jnp.exp(scored.log_prob - answers.log_prob)
    assert abs(ratios - 1).max() < 1e-4


def test_greedy_answers_are_the_most_probable_tokens():
    params = random_params()
    answers = answers_of(params, end=(), greedy=True, temperature=0.0)
    tokens = jnp.concatenate([PROMPTS, answers.tokens], axis=1)
    mask = jnp.pad(PROMPT_MASK, [(0, 0), (0, 8)], constant_values=True)
    hidden = hidden_states(params, ARCHITECTURE, tokens, mask)[:, 4:-1]
    log_probs = jax.nn.log_softmax(hidden @ decoder.head(params))
    assert np.array_equal(answers.tokens, jnp.argmax(log_probs, axis=-1))
    np.testing.assert_allclose(answers.log_prob, log_probs.max(-1), atol=2e-5)
    assert not answers.ended.any() and answers.mask.all()


@pytest.mark.parametrize("pad", [END, 0])
def test_answers_end_with_their_first_end_token(pad):
    answers = answers_of(random_params(), pad=pad)
    tokens, mask = np.asarray(answers.tokens), np.asarray(answers.mask)
    assert answers.ended.any()
    for row, its_mask, log_prob, ended in zip(
        tokens, mask, np.asarray(answers.log_prob), answers.ended, strict=True
    ):
        ends = np.flatnonzero(np.isin(row, (END, 5)))
        length = ends[0] + 1 if ended else 8
        assert ended or len(ends) == 0
        assert its_mask[:length].all() and not its_mask[length:].any()
        assert (row[length:] == pad).all()
        assert (log_prob[:length] < 0).all() and (log_prob[length:] == 0).all()
    again = mask_after_end(answers.tokens, (END, 5))
    assert np.array_equal(again[0], mask) and np.array_equal(again[1], answers.ended)


def test_full_length_answers_have_not_ended_unless_their_last_token_is_the_end():
    answers = answers_of(random_params(), length=1, end=())
    assert answers.tokens.shape == (16, 1)
    assert answers.mask.all() and not answers.ended.any()
    every = tuple(range(ARCHITECTURE.vocab_size))
    answers = answers_of(random_params(), length=3, end=every)
    assert answers.ended.all() and answers.mask.sum(1).tolist() == [1] * 16
    assert (answers.tokens[:, 1:] == END).all()


def test_padding_of_prompts_changes_nothing():
    params = random_params()
    padding = [(0, 0), (3, 0)]
    padded = answers_of(
        params,
        prompts=jnp.pad(PROMPTS, padding, constant_values=7),
        prompt_mask=jnp.pad(PROMPT_MASK, padding),
    )
    plain = answers_of(params)
    assert np.array_equal(padded.tokens, plain.tokens)
    np.testing.assert_allclose(padded.log_prob, plain.log_prob, atol=1e-5)


def test_samples_have_the_models_frequencies():
    """Of all pairs of tokens of a vocabulary of 7, chi-squared with 48 degrees of freedom."""
    architecture = decoder.Architecture(7, 8, 8, 1, 2, 1, 4)
    params = jax.jit(lambda key: decoder.init(key, architecture, scale=0.5))(jax.random.key(0))
    number = 20000
    answers = answers_of(
        params,
        architecture,
        length=2,
        end=(),
        temperature=0.8,
        prompts=jnp.ones((number, 1), jnp.int32),
        prompt_mask=jnp.ones((number, 1), bool),
    )
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(7), jnp.arange(7), indexing="ij"), -1).reshape(-1, 2)
    ones = jnp.ones((49, 1), jnp.int32)
    scored = answer_log_probs(
        params, architecture, ones, ones > 0, pairs, jnp.ones((49, 2), bool), temperature=0.8
    )
    expected = number * jnp.exp(scored.log_prob.sum(1))
    np.testing.assert_allclose(expected.sum(), number, rtol=1e-4)
    counts = np.bincount(np.asarray(answers.tokens @ jnp.array([7, 1])), minlength=49)
    assert np.sum((counts - expected) ** 2 / expected) < 94  # p = 1e-4


@pytest.mark.parametrize("vocab_size", [1, 2, 10, 64])
def test_drawing_by_blocks_is_drawing(vocab_size):
    """Whatever the size of the last block, and where most blocks have next to no probability."""
    number = 4000
    logits = 3 * jax.random.normal(jax.random.key(1), (vocab_size, 1))
    hidden = jnp.ones((1, number))
    draw = jax.jit(sampler._draw, static_argnums=4)
    tokens, log_prob = draw(logits, hidden, jax.random.key(0), 1.5, False)
    log_probs = jax.nn.log_softmax(logits[:, 0] / 1.5)
    np.testing.assert_allclose(log_prob, log_probs[tokens], atol=1e-5)
    frequencies = np.bincount(np.asarray(tokens), minlength=vocab_size) / number
    probabilities = np.exp(log_probs)
    allowed = 4.5 * np.sqrt(probabilities * (1 - probabilities) / number) + 1e-3
    assert (abs(frequencies - probabilities) < allowed).all()


def test_keys_decide_what_is_sampled():
    params = random_params()
    keys = map(jax.random.key, (0, 0, 1))
    first, again, other = (answers_with(key, params).tokens for key in keys)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_temperatures_near_zero_are_refused():
    params = random_params(PLAIN)
    weights = sampler.decoding_weights(params, PLAIN)
    key = jax.random.key(0)
    for temperature in (0, 0.0, 9e-3, -1.0):
        with pytest.raises(ValueError, match="greedy"):
            sampler.sample(weights, PLAIN, PROMPTS, PROMPT_MASK, key, 2, (), 0, temperature)
    with pytest.raises(ValueError, match="1 token or more"):
        sampler.sample(weights, PLAIN, PROMPTS, PROMPT_MASK, key, 0, (), 0)


def test_sampling_vmaps_over_models_and_keys():
    init = jax.jit(jax.vmap(lambda key: decoder.init(key, PLAIN, scale=0.4)))
    models = init(jax.random.split(jax.random.key(3), 3))
    keys = jax.random.split(jax.random.key(4), 3)

    together = jax.vmap(lambda params, key: answers_with(key, params, PLAIN))(models, keys)
    for i in range(3):
        expected = answers_with(keys[i], jax.tree.map(lambda x, i=i: x[i], models), PLAIN)
        assert np.array_equal(together.tokens[i], expected.tokens)
        assert np.array_equal(together.ended[i], expected.ended)
        np.testing.assert_allclose(together.log_prob[i], expected.log_prob, atol=1e-5)
    assert together.ended.any() and not together.ended.all()


def test_bfloat16_models_are_sampled():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params())
    answers = answers_of(params)
    assert answers.log_prob.dtype == jnp.float32
    scored = answer_log_probs(
        params, ARCHITECTURE, PROMPTS, PROMPT_MASK, answers.tokens, answers.mask
    )
    np.testing.assert_allclose(answers.log_prob, scored.log_prob, atol=0.3)
