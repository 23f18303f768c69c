"""Decoders, log-probabilities and adapters: exact on tiny models with random weights."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from xla_flags import QUICK_TO_COMPILE

from rgpo_jax.language import decoder, log_probs, lora
from rgpo_jax.language.answers import mask_after_end
from rgpo_jax.language.decoder import Architecture

ARCHITECTURE = Architecture(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=100.0,
    attention_bias=True,
    tied_head=False,
)
hidden_states = jax.jit(decoder.hidden_states, static_argnums=1)
answer_log_probs = jax.jit(
    log_probs.answer_log_probs, static_argnums=1, static_argnames=("chunk_size", "remat")
)
PLAIN = dataclasses.replace(ARCHITECTURE, attention_bias=False, tied_head=True)


@functools.cache
def random_params(architecture=ARCHITECTURE):
    """No norm is 1 and no bias 0, or one that is forgotten would stay hidden."""

    @jax.jit
    def draw():
        params = decoder.init(jax.random.key(0), architecture, scale=0.4)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        return tree.unflatten(
            [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        )

    return draw()


def random_tokens(*shape, seed=2):
    return jax.random.randint(jax.random.key(seed), shape, 0, ARCHITECTURE.vocab_size)


def naive_hidden(params, architecture, tokens):
    """One sequence [S] in numpy: a loop over layers, heads and queries, in float64."""
    a, size = architecture, architecture.head_dim
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, weight):
        return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + a.rms_norm_eps)

    frequencies = a.rope_theta ** -(np.arange(0, size, 2) / size)
    angles = np.arange(len(tokens))[:, None] * np.concatenate([frequencies, frequencies])

    def rotate(x):
        half = np.concatenate([-x[:, size // 2 :], x[:, : size // 2]], -1)
        return x * np.cos(angles) + half * np.sin(angles)

    x = params["embedding"][tokens]
    for i in range(a.num_layers):
        layer = {name: value[i] for name, value in params["layers"].items()}
        y = norm(x, layer["attention_norm"])
        q, k, v = (y @ layer[n] + layer.get(n + "_bias", 0) for n in "qkv")
        heads = []
        for h in range(a.num_heads):
            g = h // (a.num_heads // a.num_kv_heads)
            one = rotate(q[:, h * size : (h + 1) * size])
            other = rotate(k[:, g * size : (g + 1) * size])
            scores = one @ other.T / np.sqrt(size)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            heads.append(weights @ v[:, g * size : (g + 1) * size])
        x = x + np.concatenate(heads, -1) @ layer["o"]
        y = norm(x, layer["mlp_norm"])
        gate = y @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"])) @ layer["down"]
    return norm(x, params["norm"])


@pytest.mark.parametrize("architecture", [ARCHITECTURE, PLAIN])
def test_decoder_is_the_one_written_out_head_by_head(architecture):
    params, tokens = random_params(architecture), random_tokens(2, 7)
    hidden = hidden_states(params, architecture, tokens, jnp.ones((2, 7), bool))
    for row in range(2):
        expected = naive_hidden(params, architecture, np.asarray(tokens[row]))
        np.testing.assert_allclose(hidden[row], expected, atol=2e-5)


def test_parameters_have_the_documented_shapes():
    for architecture in (ARCHITECTURE, PLAIN):
        params = jax.eval_shape(lambda a=architecture: decoder.init(jax.random.key(0), a))
        assert jax.tree.map(lambda x: x.shape, params) == decoder.shapes(architecture)
        assert ("head" in params) != architecture.tied_head
        assert ("q_bias" in params["layers"]) == architecture.attention_bias
    assert jax.eval_shape(decoder.head, params).shape == (37, 16)[::-1]


def test_architecture_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="do not share"):
        dataclasses.replace(PLAIN, num_kv_heads=3)
    with pytest.raises(ValueError, match="even"):
        dataclasses.replace(PLAIN, head_dim=5)


@pytest.mark.parametrize("left", [0, 3, 5])
def test_padding_changes_nothing(left):
    params, tokens = random_params(), random_tokens(2, 6)
    plain = hidden_states(params, ARCHITECTURE, tokens, jnp.ones((2, 6), bool))
    padding = [(0, 0), (left, 5 - left)]
    for fill in (0, 9):
        padded = hidden_states(
            params,
            ARCHITECTURE,
            jnp.pad(tokens, padding, constant_values=fill),
            jnp.pad(jnp.ones((2, 6), bool), padding),
        )
        assert np.isfinite(padded).all()
        np.testing.assert_allclose(padded[:, left : left + 6], plain, atol=1e-5)


def test_last_layers_on_the_trunks_states_are_the_decoder():
    params, tokens, mask = random_params(), random_tokens(2, 5), jnp.ones((2, 5), bool)
    positions = decoder.positions(mask)
    trunk = jax.tree.map(lambda x: x[:1], params["layers"])
    rest = jax.tree.map(lambda x: x[1:], params["layers"])
    x = decoder.run_layers(
        trunk, decoder.embed(params, tokens), positions, mask, ARCHITECTURE, remat=False
    )
    x = decoder.run_layers(rest, x, positions, mask, ARCHITECTURE)
    np.testing.assert_allclose(
        decoder.final_norm(params, x, ARCHITECTURE),
        hidden_states(params, ARCHITECTURE, tokens, mask),
        atol=1e-5,
    )


def score(params, architecture=ARCHITECTURE, **kwargs):
    prompts, tokens = random_tokens(3, 4), random_tokens(3, 5, seed=3)
    prompt_mask = jnp.arange(4) >= jnp.array([[0], [2], [3]])
    mask = jnp.arange(5) < jnp.array([[5], [1], [3]])
    return answer_log_probs(params, architecture, prompts, prompt_mask, tokens, mask, **kwargs)


def loss(params, **kwargs):
    scored = score(params, **kwargs)
    terms = scored.log_prob + 0.3 * scored.entropy + jnp.sum(scored.hidden**2, axis=-1)
    return jnp.sum(terms), scored


value_and_grad = jax.jit(
    jax.value_and_grad(loss, has_aux=True), static_argnames=("architecture", "remat", "chunk_size")
)


def assert_trees_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


@pytest.mark.parametrize("kwargs", [{"remat": True}, {"chunk_size": 4}])
def test_saving_memory_changes_nothing(kwargs):
    params = random_params()
    assert_trees_close(value_and_grad(params, **kwargs), value_and_grad(params), atol=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 5, 6, 100])
def test_chunked_log_probs_are_the_dense_ones(chunk_size):
    temperature = 0.6
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (3, 4, 8)), jax.random.normal(keys[1], (8, 11))
    targets = jax.random.randint(keys[2], (3, 4), 0, 11)
    weights = jax.random.normal(keys[3], (2, 3, 4))

    def total(hidden, head):
        log_prob, entropy = log_probs.token_log_probs(
            hidden, head, targets, temperature, chunk_size
        )
        return jnp.sum(weights[0] * log_prob + weights[1] * entropy), (log_prob, entropy)

    def dense(hidden, head):
        all_log_probs = jax.nn.log_softmax(hidden @ head / temperature)
        entropy = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs, -1)
        log_prob = jnp.sum(all_log_probs * jax.nn.one_hot(targets, 11), -1)
        return jnp.sum(weights[0] * log_prob + weights[1] * entropy), (log_prob, entropy)

    got, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(hidden, head) for f in (total, dense)
    )
    assert_trees_close(got, expected)


def test_chunked_log_probs_never_hold_all_logits():
    hidden, head = jnp.zeros((8, 16, 4)), jnp.zeros((4, 1000))

    def total(hidden):
        return sum(
            map(jnp.sum, log_probs.token_log_probs(hidden, head, jnp.zeros((8, 16), int), 1.0, 8))
        )

    memory = jax.jit(jax.grad(total)).lower(hidden).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 16 * 1000 * 4 / 2


def test_answers_are_predicted_from_the_token_before():
    params = random_params()
    prompt, answer = random_tokens(3), random_tokens(4, seed=3)
    scored = answer_log_probs(
        params,
        ARCHITECTURE,
        jnp.pad(prompt, (2, 0))[None],
        jnp.arange(5)[None] >= 2,
        jnp.pad(answer, (0, 2), constant_values=-1)[None],  # after the end: anything
        jnp.arange(6)[None] < 4,
    )
    hidden = naive_hidden(params, ARCHITECTURE, np.concatenate([prompt, answer]))[2:6]
    expected = np.asarray(jax.nn.log_softmax(hidden @ np.asarray(decoder.head(params))))
    np.testing.assert_allclose(
        scored.log_prob[0, :4], expected[np.arange(4), np.asarray(answer)], atol=2e-5
    )
    np.testing.assert_allclose(
        scored.entropy[0, :4], -(np.exp(expected) * expected).sum(-1), atol=2e-5
    )
    np.testing.assert_allclose(scored.hidden[0, :4], hidden, atol=2e-5)
    assert np.array_equal(scored.log_prob[0, 4:], [0, 0])
    assert np.array_equal(scored.entropy[0, 4:], [0, 0])


def test_bfloat16_stays_bfloat16_and_scores_are_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params())
    (_, scored), gradient = value_and_grad(params)
    assert scored.hidden.dtype == jnp.bfloat16
    assert scored.log_prob.dtype == scored.entropy.dtype == jnp.float32
    (_, near), _ = value_and_grad(random_params())
    np.testing.assert_allclose(scored.log_prob, near.log_prob, atol=0.5)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    merged = lora.merge(params, lora.init(jax.random.key(0), params, 2), alpha=4.0)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_masks_end_at_the_first_end_token_whatever_the_pad_is():
    tokens = jnp.array([[5, 2, 2, 2], [2, 5, 5, 2], [5, 5, 5, 5], [5, 5, 5, 2], [3, 2, 1, 1]])
    mask, ended = mask_after_end(tokens, (2, 3))
    assert mask.sum(1).tolist() == [2, 1, 4, 4, 1]
    assert mask[:, 0].all()
    assert ended.tolist() == [True, True, False, True, True]
    mask, ended = mask_after_end(tokens, ())
    assert mask.all() and not ended.any()


def test_new_adapters_change_nothing_to_the_bit():
    params = random_params()
    merged = lora.merge(params, lora.init(jax.random.key(0), params, 3), alpha=8.0)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_adapters_add_their_product_and_get_its_gradient():
    params = random_params()
    adapters = lora.init(jax.random.key(0), params, 2, targets=("q", "down"))
    assert set(adapters) == {"q", "down"}
    assert adapters["down"]["a"].shape == (2, 24, 2) and adapters["down"]["b"].shape == (2, 2, 16)
    std = np.std(lora.init(jax.random.key(0), params, 500)["q"]["a"])
    np.testing.assert_allclose(std, 16**-0.5, rtol=0.02)
    adapters["q"]["b"] += 0.1
    merged = lora.merge(params, adapters, alpha=6.0)
    product = np.asarray(adapters["q"]["a"][1]) @ np.asarray(adapters["q"]["b"][1])
    np.testing.assert_allclose(
        merged["layers"]["q"][1], params["layers"]["q"][1] + 3 * product, atol=1e-5
    )
    np.testing.assert_array_equal(merged["layers"]["down"], params["layers"]["down"])

    gradient = jax.jit(jax.grad(lambda x: loss(lora.merge(params, x, alpha=6.0))[0]))(adapters)
    of_full = value_and_grad(merged)[1]["layers"]
    for name, adapter in adapters.items():
        a, b, full = adapter["a"], adapter["b"], of_full[name]
        tolerance = {"rtol": 1e-4, "atol": 1e-3}
        np.testing.assert_allclose(
            gradient[name]["a"], 3 * full @ b.transpose(0, 2, 1), **tolerance
        )
        np.testing.assert_allclose(
            gradient[name]["b"], 3 * a.transpose(0, 2, 1) @ full, **tolerance
        )


def test_adapters_refuse_unknown_matrices_and_empty_ranks():
    with pytest.raises(ValueError, match="no matrix gates"):
        lora.init(jax.random.key(0), random_params(PLAIN), 2, targets=("gates",))
    with pytest.raises(ValueError, match="1 or more"):
        lora.init(jax.random.key(0), random_params(PLAIN), 0)


SHARDED = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
import test_language_decoder as tests
from rgpo_jax.language import decoder

assert len(jax.devices()) == 8
# A vocabulary and an MLP that 4 divides; key heads that it does not.
architecture = dataclasses.replace(tests.ARCHITECTURE, vocab_size=40)
params = tests.random_params(architecture)

def both(params):
    return tests.value_and_grad(params, architecture=architecture)

expected = both(params)
mesh = jax.make_mesh((2, 4), ("fsdp", "tp"))
placed = decoder.shard(params, architecture, mesh)
local = jax.tree.map(lambda x: x.addressable_shards[0].data.shape, placed)
assert local["layers"]["q"] == (2, 8, 6) and local["layers"]["down"] == (2, 6, 8), local
assert local["embedding"] == (10, 8) and local["head"] == (8, 10), local
assert local["layers"]["k_bias"] == (2, 3) and local["norm"] == (16,), local
tests.assert_trees_close(both(placed), expected, atol=1e-4)  # sums of shards, in another order
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tp"))
shapes = decoder.shapes(tests.ARCHITECTURE)  # 37 tokens: not split
zeros = jax.tree.map(np.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
odd = decoder.shard(zeros, tests.ARCHITECTURE, mesh)
assert odd["embedding"].is_fully_replicated
print("equal")
"""


def test_sharded_decoder_is_the_unsharded():
    root = Path(__file__).parents[1]
    flags = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests"))),
    }
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert run.stdout == "equal\n", run.stderr[-4000:]
