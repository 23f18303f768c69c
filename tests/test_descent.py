"""Epochs of minibatches, against steps written out; whatever the parameters and the loss are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rgpo_jax import descent, shuffle
from rgpo_jax.data_parallel import DataParallel

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)).astype(np.float32), RNG.normal(size=12).astype(np.float32)
MASK = RNG.random((12, 4)) < 0.5
PARAMS = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.float32(0.5)}
KEY = jax.random.key(3)


def loss(params, batch):
    x, y = batch
    error = x @ params["w"] + params["b"] - y
    return jnp.mean(jnp.square(error)), {"error": error}


def masked_loss(params, batch):
    """A mean over the tokens of a mask, of which rows have different numbers."""
    x, y, mask = batch
    error = (x @ params["w"] + params["b"] - y)[:, None] * jnp.arange(1.0, 5.0)
    mean = jnp.sum(jnp.where(mask, jnp.square(error), 0.0)) / jnp.sum(mask)
    return mean, {"error": error}


def count(batch):
    return jnp.sum(batch[2])


def assert_close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), tree, other)


def centred(batch):
    return batch[0], batch[1] - jnp.mean(batch[1])


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize(("microbatch_size", "prepare"), [(None, None), (2, None), (2, centred)])
def test_it_is_what_the_steps_written_out_are(flatten, microbatch_size, prepare):
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))
    params, state, steps = jax.jit(
        lambda: descent.descend(
            loss,
            PARAMS,
            descent.init(optimizer, PARAMS, flatten),
            (X, Y),
            KEY,
            optimizer,
            num_epochs=2,
            num_minibatches=3,
            microbatch_size=microbatch_size,
            flatten=flatten,
            prepare=prepare,
        )
    )()
    expected, expected_state = PARAMS, optimizer.init(PARAMS)
    norms, errors = [], []
    for key in jax.random.split(KEY, 2):
        for rows in shuffle.permutation(key, 12).reshape(3, 4):
            batch = X[rows], Y[rows]
            batch = batch if prepare is None else prepare(batch)
            gradient, terms = jax.grad(loss, has_aux=True)(expected, batch)
            change, expected_state = optimizer.update(gradient, expected_state)
            expected = optax.apply_updates(expected, change)
            norms.append(optax.tree.norm(gradient))
            errors.append(terms["error"])
    assert_close(params, expected)
    assert_close(steps.grad_norm.ravel(), jnp.array(norms))
    assert_close(steps.terms["error"].reshape(-1, 4), jnp.array(errors))
    assert steps.taken.all()
    if not flatten:
        assert_close(state, expected_state)


@pytest.mark.parametrize("flatten", [True, False])
def test_an_optimiser_may_look_at_the_parameters_one_by_one(flatten):
    # Weight decay of matrices alone: it needs parameters that stay apart.
    mask = (lambda params: {"w": True, "b": False}) if not flatten else None
    decayed = optax.chain(optax.add_decayed_weights(0.5, mask), optax.scale(-0.1))
    params, _, _ = descent.descend(
        lambda params, batch: (0.0 * loss(params, batch)[0], {}),
        PARAMS,
        descent.init(decayed, PARAMS, flatten),
        (X, Y),
        KEY,
        decayed,
        num_epochs=1,
        num_minibatches=1,
        flatten=flatten,
    )
    assert_close(params["w"], 0.95 * PARAMS["w"])
    assert_close(params["b"], (0.95 if flatten else 1.0) * PARAMS["b"])


def test_parts_of_a_masked_mean_count_by_their_weight():
    batch = (X, Y, MASK)
    whole, terms = jax.grad(masked_loss, has_aux=True)(PARAMS, batch)
    by_parts, terms_by_parts, weight = descent.mean_gradient(masked_loss, PARAMS, batch, 3, count)
    assert_close(by_parts, whole)
    assert_close(terms_by_parts, terms)
    assert weight == MASK.sum()
    unweighted, _, _ = descent.mean_gradient(masked_loss, PARAMS, batch, 3)
    assert abs(unweighted["b"] - whole["b"]) > 1e-3  # which a mean of the parts' means is not


def test_a_part_without_weight_is_no_part():
    mask = MASK.copy()
    mask[3:6] = False  # 0 / 0 is what the loss says of it
    whole = jax.grad(masked_loss, has_aux=True)(PARAMS, (X, Y, mask))[0]
    assert_close(
        descent.mean_gradient(masked_loss, PARAMS, (X, Y, mask), 3, count)[0],
        whole,
    )
    nothing = (X, Y, np.zeros_like(mask))
    gradient, _, weight = descent.mean_gradient(masked_loss, PARAMS, nothing, 3, count)
    assert weight == 0
    assert_close(gradient, jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_parameters_keep_their_precision(flatten, microbatch_size):
    optimizer, params = optax.adam(0.1), jax.tree.map(jnp.bfloat16, PARAMS)

    def weigh(batch):
        return jnp.sum(batch[2], dtype=jnp.float32)

    after, _, _ = descent.descend(
        masked_loss,
        params,
        descent.init(optimizer, params, flatten),
        (X, Y, MASK),
        KEY,
        optimizer,
        num_epochs=1,
        num_minibatches=3,
        microbatch_size=microbatch_size,
        flatten=flatten,
        weigh=weigh,
    )
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(after))


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_a_minibatch_without_weight_is_no_step(microbatch_size):
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    after, _, steps = descent.descend(
        masked_loss,
        PARAMS,
        descent.init(optimizer, PARAMS),
        (X, Y, np.zeros_like(MASK)),
        KEY,
        optimizer,
        num_epochs=1,
        num_minibatches=2,
        microbatch_size=microbatch_size,
        weigh=count,
    )
    jax.tree.map(np.testing.assert_array_equal, after, PARAMS)
    assert not steps.taken.any()


@pytest.mark.parametrize("weigh", [None, count])
def test_devices_share_a_minibatch_and_not_its_mean(weigh):
    optimizer = optax.sgd(0.1)
    state = descent.init(optimizer, PARAMS)
    the_loss, batch = (loss, (X, Y)) if weigh is None else (masked_loss, (X, Y, MASK))

    def descend(parallel):
        return descent.descend(
            the_loss, PARAMS, state, batch, KEY, optimizer, 2, 3, weigh=weigh, parallel=parallel
        )

    params, _, steps = descend(DataParallel())
    parallel, _, spread_steps = jax.vmap(
        lambda _: descend(DataParallel("device")), axis_name="device", axis_size=2, in_axes=None
    )(None)
    assert_close(jax.tree.map(lambda x: x[1], parallel), params)
    assert_close(spread_steps.terms["error"][0].shape, steps.terms["error"].shape)


def test_early_stopping_takes_no_step_after_the_first_that_is_too_far():
    optimizer = optax.sgd(0.1)
    params, _, steps = descent.descend(
        loss,
        PARAMS,
        descent.init(optimizer, PARAMS),
        (X, Y),
        KEY,
        optimizer,
        num_epochs=1,
        num_minibatches=4,
        goes_on=lambda terms: jnp.abs(terms["error"][0]) < 1.0,
    )
    first = np.abs(np.asarray(steps.terms["error"][0, :, 0])) < 1.0
    taken = np.logical_and.accumulate(first)
    np.testing.assert_array_equal(steps.taken[0], taken)
    rows = shuffle.permutation(jax.random.split(KEY, 1)[0], 12).reshape(4, 3)
    expected = PARAMS
    for row in rows[: int(taken.sum())]:
        gradient, _ = jax.grad(loss, has_aux=True)(expected, (X[row], Y[row]))
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, gradient)
    assert list(first) == [True, False, True, True]
    assert_close(params, expected)


@pytest.mark.parametrize(
    ("batch", "minibatches", "microbatch", "message"),
    [
        ((X, Y), 5, None, "12 samples do not divide into num_minibatches = 5"),
        ((X, Y), 2, 4, "6 samples of a minibatch do not divide into microbatches of 4"),
        ((X, Y[:6]), 2, None, r"share their first axis; got \(12, 3\), \(6,\)"),
    ],
)
def test_what_does_not_divide_is_refused(batch, minibatches, microbatch, message):
    optimizer = optax.sgd(0.1)
    state = descent.init(optimizer, PARAMS)
    with pytest.raises(ValueError, match=message):
        descent.descend(loss, PARAMS, state, batch, KEY, optimizer, 1, minibatches, microbatch)
