"""The reward model on a decoder: scores of padded batches, and updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reward_probes import ARCHITECTURE, PARAMS, PARTS

from rgpo_jax.language import bradley_terry, decoder, decoder_policy, reward_model
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder_policy import Prompts
from rgpo_jax.language.pairs import Pairs

END = 5


def policy_of(part, max_tokens=6, pad_id=END):
    return decoder_policy.make(ARCHITECTURE, max_tokens, (END,), pad_id, PARTS[part])


def model_of(part, optimizer=None, microbatch_size=None, **how):
    optimizer = optax.sgd(1.0) if optimizer is None else optimizer
    return reward_model.make(policy_of(part, **how), 16, optimizer, microbatch_size)


def batch_of(prompts, answers, width, length, pad=END):
    """Rows of ids as padded arrays."""
    tokens = np.full((len(prompts), width), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(prompts):
        tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    filled = np.full((len(answers), length), pad, np.int32)
    real = np.zeros(filled.shape, bool)
    for i, row in enumerate(answers):
        filled[i, : len(row)], real[i, : len(row)] = row, True
    zeros, ended = np.zeros(filled.shape, np.float32), np.array([r[-1] == END for r in answers])
    return Prompts(*map(jnp.asarray, (tokens, mask))), Answers(
        *map(jnp.asarray, (filled, real, zeros, ended))
    )


PROMPTS = [[7, 8, 9], [10], [11, END, 12, 13], [14, 15]]
# Ends within it; full length with an end, and without; a single one.
ANSWERS = [[20, END], [21, 22, 23, 24, 25, END], [26, 27, 28, 29, 30, 31], [END]]


@functools.cache
def last_states():
    """The state of the last token of each row, alone and without padding [4, D]."""
    read = jax.jit(decoder.hidden_states, static_argnums=1)
    rows = [jnp.array([p + a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    return jnp.stack(
        [read(PARAMS, ARCHITECTURE, row, jnp.ones(row.shape, bool))[0, -1] for row in rows]
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_score_is_read_at_the_last_token(part):
    model = model_of(part)
    params = model.init(jax.random.key(1), PARAMS).params
    prompts, answers = batch_of(PROMPTS, ANSWERS, 4, 6)
    found = jax.jit(model.score)(params, PARAMS, prompts, answers)
    # Whatever is trained, the model is at first the same.
    np.testing.assert_allclose(found, last_states() @ params["head"], atol=1e-5)
    assert found.dtype == jnp.float32


def test_padding_changes_no_score():
    model = model_of("last_layers")
    params = model.init(jax.random.key(1), PARAMS).params
    expected = last_states() @ params["head"]
    for width, length, pad in ((4, 6, 0), (7, 6, 3), (4, 11, END), (9, 8, 319)):
        batch = batch_of(PROMPTS, ANSWERS, width, length, pad)
        found = jax.jit(model.score)(params, PARAMS, *batch)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_members_are_scored_as_each_alone():
    model = model_of("lora")
    several = [model.init(jax.random.key(i), PARAMS).params for i in range(3)]
    assert not np.array_equal(several[0]["head"], several[1]["head"])
    batch = batch_of(PROMPTS, ANSWERS, 4, 6)
    score = jax.jit(model.score)
    alone = [score(member, PARAMS, *batch) for member in several]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.jit(model.score_members)(stacked, PARAMS, *batch)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def pairs_of(label=(1.0, 1.0, 0.25, 1.0), counts=(True,) * 4):
    prompts, chosen = batch_of(PROMPTS, ANSWERS, 4, 6)
    _, rejected = batch_of(PROMPTS, [[40, 41], [END], [42, 43, END], [44, 45, 46]], 4, 6)
    label = jnp.array(label, jnp.float32)
    return Pairs(prompts, chosen, rejected, label, jnp.zeros(4), jnp.array(counts))


def difference(one, other):
    return max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture(scope="module")
def update():
    """The compiled update of `model_of("last_layers")`, and a state."""
    model = model_of("last_layers", optax.sgd(0.1))
    state = model.init(jax.random.key(2), PARAMS)
    return jax.jit(model.update).lower(state, PARAMS, pairs_of()).compile(), state


def test_an_update_is_a_step_down_the_mean_loss(update):
    step, state = update
    pairs, model = pairs_of(), model_of("last_layers")
    after, metrics = step(state, PARAMS, pairs)

    def loss(params):
        chosen = model.score(params, PARAMS, pairs.prompts, pairs.chosen)
        rejected = model.score(params, PARAMS, pairs.prompts, pairs.rejected)
        return jnp.mean(bradley_terry.loss(chosen - rejected, pairs.label))

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, state.params, gradient)
    assert difference(after.params, expected) < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-5)
    assert bool(metrics["taken"]) and 0 <= float(metrics["accuracy"]) <= 1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert moved["head"] > 0 and max(jax.tree.leaves(moved["actor"])) > 0


def test_no_logits_are_computed(update):
    """The policy could say log-probabilities as well; the compiler drops what nobody asks for."""
    told = update[0].as_text()
    assert "8,7,16]" in told  # states
    assert "8,7,320]" not in told and "[56,320]" not in told


def test_pairs_that_do_not_count_change_nothing_and_parts_are_a_whole(update):
    step, state = update
    counts = (True, False, True, False)
    pairs = pairs_of(counts=counts)
    whole, _ = step(state, PARAMS, pairs)
    by_parts = jax.jit(model_of("last_layers", optax.sgd(0.1), microbatch_size=1).update)
    parts, _ = by_parts(state, PARAMS, pairs)
    assert difference(whole.params, parts.params) < 1e-5
    keep = np.array(counts)[:, None]
    others = jnp.where(keep, pairs.rejected.tokens, 99)
    changed, _ = step(
        state, PARAMS, pairs._replace(rejected=pairs.rejected._replace(tokens=others))
    )
    assert difference(whole.params, changed.params) < 1e-6
    broken = state.params | {"head": state.params["head"] * jnp.nan}
    kept, metrics = step(state._replace(params=broken), PARAMS, pairs)
    assert not bool(metrics["taken"])
    np.testing.assert_array_equal(kept.params["actor"]["norm"], state.params["actor"]["norm"])
