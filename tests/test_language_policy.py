"""A decoder as a policy: what is trained of it, what it says of its answers, and its critic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_probes import largest

from agents.language import load
from envs.language import tiny
from rgpo_jax.language import decoder, decoder_policy, tabular, targets
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.world import all_log_probs

PARTS = ("full", "last_layers", "lora")
REFERENCE = jax.jit(decoder.init, static_argnums=(1, 2))(jax.random.key(7), tiny.ARCHITECTURE, 0.3)
# Of 5, 3, 1 and 4 tokens, padded on the left; six answers to each.
LENGTHS = np.array([5, 3, 1, 4])
TOKENS = np.random.default_rng(0).integers(1, tiny.VOCABULARY, (4, 5))
MASK = np.arange(5) >= 5 - LENGTHS[:, None]
PROMPTS = Prompts(
    jnp.asarray(np.repeat(np.where(MASK, TOKENS, tiny.END), 6, axis=0), jnp.int32),
    jnp.asarray(np.repeat(MASK, 6, axis=0)),
)
TEMPERATURES = (1.0, 0.6)


def training(part, **settings):
    return TrainedPart(part, num_last_layers=1, rank=3, **settings)


@functools.cache
def policy_of(part, **settings):
    return decoder_policy.make(
        tiny.ARCHITECTURE, tiny.LENGTH, (tiny.END,), tiny.END, training(part, **settings)
    )


def moved(tree, scale=0.1):
    """Parameters that differ from the first ones everywhere."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(11), len(leaves))
    noise = [scale * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [x + n for x, n in zip(leaves, noise, strict=True)])


@functools.cache
def compiled(policy):
    """What the policy samples, and what it says of that and of the reference."""

    def run(params, frozen, prompts, key, temperature):
        answers = policy.sample(params, frozen, prompts, key, temperature)
        encoded = policy.encode(frozen, prompts, answers)
        predicted = policy.predict(params, frozen, encoded, answers, temperature)
        return answers, predicted, policy.reference(frozen, encoded, answers, temperature)

    return jax.jit(run)


def first_params(policy, critic=False, frozen=REFERENCE):
    return policy.init(jax.random.key(1), frozen, critic)


@functools.cache
def first_answers():
    """Of the reference."""
    policy = policy_of("full")
    return compiled(policy)(first_params(policy), REFERENCE, PROMPTS, jax.random.key(6), 1.0)[0]


@pytest.mark.parametrize("part", PARTS)
def test_at_first_the_policy_is_the_reference(part):
    policy = policy_of(part)
    params = first_params(policy)
    assert params.keys() == {"actor"}
    answers, predicted, reference = compiled(policy)(
        params, REFERENCE, PROMPTS, jax.random.key(2), 1.0
    )
    mask = np.asarray(answers.mask)
    assert 0 < np.mean(~mask) < 1 and 0 < np.mean(answers.ended) < 1
    ratio = np.exp(np.asarray(predicted.log_prob - reference))[mask]
    np.testing.assert_allclose(ratio, 1.0, rtol=0, atol=1e-6)
    assert predicted.value is None


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("part", PARTS)
def test_what_is_said_of_answers_is_what_sampling_said(part, temperature):
    policy = policy_of(part)
    params = moved(first_params(policy))
    answers, predicted, reference = compiled(policy)(
        params, REFERENCE, PROMPTS, jax.random.key(3), temperature
    )
    mask = np.asarray(answers.mask)
    found, expected = np.asarray(predicted.log_prob), np.asarray(answers.log_prob)
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=1e-5)
    assert np.abs(np.asarray(reference) - found)[mask].max() > 0.01
    assert np.all(expected[~mask] == 0)


@pytest.mark.parametrize("part", PARTS)
def test_beginnings_say_of_all_answers_what_reading_each_says(part):
    world = tiny.make(num_prompts=2, training=training(part))
    each = world._replace(enumeration=world.enumeration._replace(beginnings=None))
    params = moved(first_params(world.policy, frozen=world.frozen))
    assert len(world.enumeration.beginnings.answers.tokens) == 7**3  # where there are 2,801 answers
    for chosen in (params,) if part == "lora" else (params, None):  # its reference is that of full
        found, expected = (
            jax.jit(functools.partial(all_log_probs, w))(chosen, world.frozen, 0.6)
            for w in (world, each)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("end_id", [None, 0, 2])
def test_beginnings_of_tables(end_id):
    """All rows of a table are told apart by what came before."""
    answers = tabular.all_answers(3, 3, end_id)
    read, rows = tabular.beginnings(answers, 3, end_id)
    assert len(read.tokens) == (9 if end_id is None else 4)
    for tokens, mask, row in zip(answers.tokens, answers.mask, rows, strict=True):
        for place in range(3):
            if mask[place]:
                np.testing.assert_array_equal(read.tokens[row[place], :place], tokens[:place])


@pytest.mark.parametrize("part", PARTS)
def test_padding_on_the_left_is_not_seen(part):
    policy = policy_of(part)
    params = moved(first_params(policy))
    answers, predicted, _ = compiled(policy)(params, REFERENCE, PROMPTS, jax.random.key(4), 1.0)

    @jax.jit
    def say(prompts, answers):
        encoded = policy.encode(REFERENCE, prompts, answers)
        return policy.predict(params, REFERENCE, encoded, answers, 1.0).log_prob

    for i in (1, 2):  # the prompts of 3 tokens and of 1, without their padding
        rows = slice(6 * i, 6 * i + 6)
        alone = jax.tree.map(lambda x, n=LENGTHS[i], r=rows: x[r, 5 - n :], PROMPTS)
        theirs = jax.tree.map(lambda x, r=rows: x[r], answers)
        found, mask = np.asarray(say(alone, theirs)), np.asarray(theirs.mask)
        expected = np.asarray(predicted.log_prob)[rows]
        np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=1e-5)


def test_last_layers_are_sampled_alike_with_a_trunk_that_was_laid_out_before():
    policy = policy_of("last_layers")
    params = moved(first_params(policy))
    frozen = policy.freeze(REFERENCE)
    assert frozen.keys() == REFERENCE.keys() | {"decoding"}
    key = jax.random.key(5)
    with_it, said, _ = compiled(policy)(params, frozen, PROMPTS, key, 1.0)
    without, said_too, _ = compiled(policy)(params, REFERENCE, PROMPTS, key, 1.0)
    np.testing.assert_array_equal(with_it.tokens, without.tokens)
    np.testing.assert_allclose(with_it.log_prob, without.log_prob, rtol=0, atol=1e-6)
    np.testing.assert_allclose(said.log_prob, said_too.log_prob, rtol=0, atol=1e-6)


def test_gradients_of_last_layers_are_those_of_full_training():
    answers = first_answers()
    weight = jax.random.normal(jax.random.key(8), answers.mask.shape)
    model = moved(REFERENCE)

    def gradient(part, actor):
        policy = policy_of(part)

        def loss(actor):
            encoded = policy.encode(model, PROMPTS, answers)
            said = policy.predict({"actor": actor}, model, encoded, answers, 0.8)
            total = weight * (said.log_prob + 0.3 * said.entropy)
            return jnp.sum(jnp.where(answers.mask, total, 0.0))

        return jax.jit(jax.grad(loss))(actor)

    of_all = gradient("full", model)
    of_last = gradient("last_layers", first_params(policy_of("last_layers"), frozen=model)["actor"])
    expected = {"layers": jax.tree.map(lambda x: x[-1:], of_all["layers"]), "norm": of_all["norm"]}
    assert jax.tree.structure(of_last) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(of_last), jax.tree.leaves(expected), strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * largest(of_all))


# Updates.

SMALL = {
    "num_prompts": 4,
    "group_size": 4,
    "num_epochs": 1,
    "num_minibatches": 1,
    "learning_rate": 0.01,
    "kl_coefficient": 0.0,
}


tiny_world = functools.cache(tiny.make)


@functools.cache
def agent_of(part, method="reinforce", **settings):
    world = tiny_world()._replace(policy=policy_of(part, **settings))
    module = load(method)
    return world, module.make(world, module.Config(**SMALL))


@functools.cache
def step_of(part, **settings):
    return jax.jit(agent_of(part, **settings)[1].step)


HALF = {"dtype": "bfloat16"}


# The last layers in half precision, where an update has something more to do.
@pytest.mark.parametrize(("part", "settings"), [("full", {}), ("last_layers", HALF), ("lora", {})])
def test_an_update_changes_what_is_trained_and_nothing_else(part, settings):
    world, agent = agent_of(part, **settings)
    state = agent.init(jax.random.key(0), world.frozen)
    after, metrics = step_of(part, **settings)(state, world.frozen, world.prompts)
    assert float(metrics["first_ratio_deviation"]) < 1e-5
    old, new = state.learner.params["actor"], after.learner.params["actor"]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), old, new)
    if part == "lora":  # while b is 0, a has no gradient
        assert all(changed[name] == {"a": False, "b": True} for name in changed)
    else:
        assert all(jax.tree.leaves(changed))
    model = decoder_policy.merge(training(part), new, world.frozen)
    for path, x in jax.tree.leaves_with_path(world.frozen):
        found = functools.reduce(lambda tree, key: tree[key.key], path, model)
        name, is_of_layer = path[-1].key, path[0].key == "layers"
        is_trained = part == "full" or (part == "lora" and is_of_layer and "norm" not in name)
        if part == "last_layers":
            is_trained = is_of_layer or name == "norm"
            if is_of_layer:
                np.testing.assert_array_equal(found[:-1], x[:-1])
                found, x = found[-1:], x[-1:]
        assert bool(jnp.any(found != x)) == is_trained, path


def test_seeds_side_by_side_are_those_alone():
    world, agent = agent_of("full")
    keys = jax.random.split(jax.random.key(9), 2)
    states = jax.vmap(lambda key: agent.init(key, world.frozen))(keys)
    beside = jax.jit(jax.vmap(agent.step, in_axes=(0, None, None)))
    after, metrics = beside(states, world.frozen, world.prompts)
    for i, key in enumerate(keys):
        state = agent.init(key, world.frozen)
        alone, expected = step_of("full")(state, world.frozen, world.prompts)
        assert metrics.keys() == expected.keys()
        for name in ("sampled_reward", "policy_loss", "grad_norm"):
            wanted = float(expected[name])
            assert float(metrics[name][i]) == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
        difference = jax.tree.map(
            lambda a, b, i=i: a[i] - b, after.learner.params, alone.learner.params
        )
        # Adam's first step is the gradient's sign, which rounding decides where there is none.
        large = [np.mean(np.abs(x) > 1e-4) for x in jax.tree.leaves(difference)]
        assert max(large) < 0.01


def test_half_precision_is_of_the_arithmetic_alone():
    world, agent = agent_of("last_layers", **HALF)
    state = agent.init(jax.random.key(0), world.frozen)
    after, metrics = step_of("last_layers", **HALF)(state, world.frozen, world.prompts)
    # What the sampler said would differ by some percent: it is said anew.
    assert agent.policy.recomputes and not policy_of("last_layers").recomputes
    assert float(metrics["first_ratio_deviation"]) < 1e-5
    old, new = (x.learner.params["actor"] for x in (state, after))
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    # Changes that are not rounded to what bfloat16 can tell apart.
    assert largest(jax.tree.map(jnp.subtract, new, old)) > 0
    assert bool(jnp.any(new["norm"] != new["norm"].astype(jnp.bfloat16)))


@pytest.mark.parametrize("part", PARTS)
def test_half_precision_says_almost_the_same(part):
    params = moved(first_params(policy_of(part)), 0.02)
    answers = first_answers()

    def say(policy, params, frozen):
        encoded = policy.encode(frozen, PROMPTS, answers)
        said = policy.predict(params, frozen, encoded, answers, 1.0)
        return said.log_prob, policy.reference(frozen, encoded, answers, 1.0)

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), REFERENCE)
    policies = policy_of(part), policy_of(part, dtype="bfloat16")
    exact, rough = jax.jit(
        lambda params, frozen: [
            say(policy, params, x) for policy, x in zip(policies, frozen, strict=True)
        ]
    )(params, (REFERENCE, half))
    for expected, found in zip(exact, rough, strict=True):
        assert found.dtype == jnp.float32
        difference = np.abs(np.asarray(found - expected))[np.asarray(answers.mask)]
        assert 0 < difference.max() < 0.2


# Critics.


@pytest.mark.parametrize("critic", ["trunk", "separate"])
@pytest.mark.parametrize("part", PARTS)
def test_a_critic_teaches_the_model_whose_states_it_reads(part, critic):
    policy, answers = policy_of(part, critic=critic), first_answers()
    params = first_params(policy, critic=True)
    assert ("body" in params["critic"]) == (critic == "separate")

    def total(params):
        encoded = policy.encode(REFERENCE, PROMPTS, answers)
        value = policy.predict(params, REFERENCE, encoded, answers, 1.0).value
        return jnp.sum(jnp.where(answers.mask, value, 0.0)), value

    teach = jax.jit(jax.grad(total, has_aux=True))
    _, value = teach(params)
    assert value.shape == answers.mask.shape
    assert value.dtype == jnp.float32
    assert not np.any(value)
    gradient, _ = teach(params | {"critic": moved(params["critic"])})
    assert largest(gradient["critic"]["weight"]) > 0
    assert float(gradient["critic"]["bias"]) == pytest.approx(float(np.sum(answers.mask)))
    if critic == "trunk":
        assert largest(gradient["actor"]) > 1e-3
    else:
        assert largest(gradient["actor"]) == 0
        assert largest(gradient["critic"]["body"]) > 1e-3


@pytest.mark.parametrize("number", [0, 3])
def test_layers_that_are_not_there_are_refused(number):
    with pytest.raises(ValueError, match=f"num_last_layers {number}: expected 1 to 2"):
        decoder_policy.make(
            tiny.ARCHITECTURE, 4, (0,), 0, TrainedPart("last_layers", num_last_layers=number)
        )


# What is known exactly.


def _soft_optimum(log_prob, worth, beta):
    """pi_ref exp(R / beta) / Z of additive rewards by dynamic programming over prefixes.

    The soft value of a prefix is V = beta log sum_t pi_ref(t) exp((worth_t + V(prefix t)) / beta),
    and the optimum's next token has pi_ref(t) exp((worth_t + V(prefix t) - V(prefix)) / beta).

    Args:
      log_prob: log pi_ref of the next token after each prefix, by prefixes of 0, 1, ... tokens, a
        list of arrays [V, ..., V]; the last axis is the next token.
      worth: of each token [V]; that of the end token ends the answer.
      beta: weight of the KL.

    Returns:
      log pi* of the next token, in the same form.
    """
    value = 0.0
    optimum = []
    for depth in reversed(range(len(log_prob))):
        future = np.broadcast_to(value, log_prob[depth].shape).copy()
        future[..., tiny.END] = 0.0
        logits = log_prob[depth] + (worth + future) / beta
        peak = logits.max(axis=-1, keepdims=True)
        total = peak + np.log(np.sum(np.exp(logits - peak), axis=-1, keepdims=True))
        optimum.append(logits - total)
        value = beta * total[..., 0]
    return optimum[::-1]


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_soft_optimum_is_the_enumerated_one(beta):
    world = tiny.make(num_prompts=1)
    answers, reward = world.enumeration.answers, np.asarray(world.enumeration.reward, float)
    tokens, mask = np.asarray(answers.tokens), np.asarray(answers.mask)
    log_ref = np.asarray(_reference_of_all(), float)
    tables = [np.zeros([tiny.VOCABULARY] * (depth + 1)) for depth in range(tiny.LENGTH)]
    for depth, table in enumerate(tables):
        is_there = mask[:, depth]
        table[tuple(tokens[is_there, : depth + 1].T)] = log_ref[is_there, depth]
    # An answer of one token and the end is worth what the token is.
    worth = np.zeros(tiny.VOCABULARY)
    short = mask.sum(axis=1) == 2
    worth[tokens[short, 0]] = reward[0, short]
    optimum = _soft_optimum(tables, worth, beta)
    found = sum(
        np.where(mask[:, depth], table[tuple(tokens[:, : depth + 1].T)], 0.0)
        for depth, table in enumerate(optimum)
    )
    reference = np.exp(np.where(mask, log_ref, 0.0).sum(axis=1))
    assert reference.sum() == pytest.approx(1.0, abs=1e-5)
    expected = targets.gibbs(reference, reward[0], beta)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6, atol=1e-6)
    assert np.exp(found).sum() == pytest.approx(1.0)
    assert np.abs(expected - reference).max() > 1e-3


@functools.cache
def _reference_of_all():
    """log pi_ref of each token of each answer to the only prompt."""
    world = tiny.make(num_prompts=1)
    answers = world.enumeration.answers

    @jax.jit
    def say(frozen, prompts, answers):
        number = len(answers.tokens)
        prompts = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape[1:])), prompts)
        encoded = world.policy.encode(frozen, prompts, answers)
        return world.policy.reference(frozen, encoded, answers, 1.0)

    return say(world.frozen, world.prompts, answers)
