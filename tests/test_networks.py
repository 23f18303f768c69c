"""Networks: shapes, initialisation, precision."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgpo_jax import networks
from rgpo_jax.config import Config
from rgpo_jax.distributions import Categorical, Normal, TanhNormal
from rgpo_jax.environment import Box, Discrete

DISCRETE = Discrete(3)
BOX = Box((2,), (-1.0, -1.0), (1.0, 1.0))
VECTOR, IMAGE = (5,), (6, 7, 2)
SMALL = {"hidden_sizes": (12, 8), "channels": (4,)}
# The networks that are really initialised, which takes seconds to compile; where shapes are enough
# they are traced instead.
INITIALISED = [(VECTOR, DISCRETE), (IMAGE, BOX)]


def build(shape=VECTOR, space=DISCRETE, **settings):
    return networks.make(shape, space, Config(**(SMALL | settings)))


@functools.cache
def initialise(shape, space):
    """Two sets of parameters, from keys 0 and 1."""
    init = jax.jit(build(shape, space).init)
    return [init(jax.random.key(seed)) for seed in (0, 1)]


@functools.cache
def forward(shape, space, **settings):
    """(value, policy), compiled for one shape of observations."""
    network = build(shape, space, **settings)
    return jax.jit(lambda p, o: (network.value(p["critic"], o), network.policy(p["actor"], o)))


def trace(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def kernels(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]


def observations(*batch_and_shape):
    return jax.random.normal(jax.random.key(1), batch_and_shape)


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
@pytest.mark.parametrize("space", [DISCRETE, BOX])
@pytest.mark.parametrize("shape", [VECTOR, (), (2, 3), IMAGE])
def test_batch_axes_lead(shape, space, batch):
    network = build(shape, space)
    value, policy = jax.eval_shape(
        lambda p, o: (network.value(p["critic"], o), network.policy(p["actor"], o)),
        trace(network),
        jnp.zeros((*batch, *shape)),
    )
    assert value.shape == batch
    if space is DISCRETE:
        assert isinstance(policy, Categorical)
        assert policy.log_probs.shape == (*batch, 3)
    else:
        assert isinstance(policy, Normal)
        assert policy.mean.shape == (*batch, 2)
        assert policy.log_std.shape == (2,)


@pytest.mark.parametrize(("shape", "space"), INITIALISED)
def test_batch_elements_do_not_mix(shape, space):
    params, _ = initialise(shape, space)
    both = observations(3, 2, *shape)
    value, policy = forward(shape, space)(params, both)
    value_of_one, policy_of_one = forward(shape, space)(params, both[2, 1])
    np.testing.assert_allclose(value[2, 1], value_of_one, rtol=1e-4)
    many, one = (p.log_probs if space is DISCRETE else p.mean for p in (policy, policy_of_one))
    np.testing.assert_allclose(many[2, 1], one, rtol=1e-4, atol=1e-6)
    assert np.unique(np.asarray(value)).size == 6


@pytest.mark.parametrize(
    ("shape", "choice", "convolves"),
    [
        (VECTOR, "auto", False),
        ((2, 3), "auto", False),
        (IMAGE, "auto", True),
        (IMAGE, "cnn", True),
        (IMAGE, "mlp", False),
    ],
)
def test_images_get_convolutions(shape, choice, convolves):
    params = trace(build(shape, network=choice))
    for part in ("actor", "critic"):
        assert [k.ndim for k in kernels(params[part])].count(4) == int(convolves)


@pytest.mark.parametrize("shape", [VECTOR, (2, 3), ()])
def test_a_cnn_of_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="height, width, channels"):
        build(shape, network="cnn")


@pytest.mark.parametrize("shape", [(6, 4, 1), (4, 6, 1), (1, 1, 1)])
def test_convolutions_that_leave_nothing_are_refused(shape):
    with pytest.raises(ValueError, match="channels"):
        build(shape, channels=(4, 4))


def test_the_smallest_image_that_convolutions_leave_something_of():
    params = trace(build((5, 5, 1), channels=(4, 4)))
    # One pixel of 4 channels is left to the dense layers.
    assert (4, 12) in [kernel.shape for kernel in kernels(params["critic"])]


@pytest.mark.parametrize(("shape", "space"), INITIALISED)
def test_kernels_are_orthogonal(shape, space):
    params, _ = initialise(shape, space)
    for part, outputs, last in (("actor", 3 if space is DISCRETE else 2, 0.01), ("critic", 1, 1.0)):
        readouts = 0
        for kernel in kernels(params[part]):
            w = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
            # The read-out comes from the last hidden layer, of 8 units.
            is_readout = w.shape == (8, outputs)
            readouts += is_readout
            squared = last**2 if is_readout else 2.0
            w = w if w.shape[0] >= w.shape[1] else w.T
            expected = squared * np.eye(w.shape[1])
            np.testing.assert_allclose(w.T @ w, expected, rtol=0, atol=1e-5 * squared)
        assert readouts == 1


def test_the_first_policy_is_nearly_uniform():
    _, policy = forward(VECTOR, DISCRETE)(
        initialise(VECTOR, DISCRETE)[0], observations(3, 2, *VECTOR)
    )
    np.testing.assert_allclose(np.exp(policy.log_probs), 1 / 3, atol=0.02)


def test_the_first_policy_of_a_box_is_nearly_standard_normal():
    params, _ = initialise(IMAGE, BOX)
    _, policy = forward(IMAGE, BOX)(params, observations(3, 2, *IMAGE))
    np.testing.assert_allclose(policy.mean, 0.0, atol=0.1)
    np.testing.assert_array_equal(policy.log_std, 0.0)


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("policy", ["normal", "tanh_normal"])
def test_the_policy_of_a_box_is_the_one_that_was_asked_for(policy, state_dependent_std):
    network = build(
        space=BOX, policy=policy, state_dependent_std=state_dependent_std, initial_std=0.5
    )
    params = jax.jit(network.init)(jax.random.key(0))
    distribution = jax.jit(network.policy)(params["actor"], observations(3, 4, *VECTOR))
    assert type(distribution) is (TanhNormal if policy == "tanh_normal" else Normal)
    assert distribution.mean.shape == (3, 4, 2)
    assert distribution.log_std.shape == ((3, 4, 2) if state_dependent_std else (2,))
    assert distribution.log_std.dtype == jnp.float32
    np.testing.assert_allclose(distribution.mean, 0.0, atol=0.1)
    np.testing.assert_allclose(jnp.exp(distribution.log_std), 0.5, atol=0.05)
    assert distribution.sample(jax.random.key(1)).shape == (3, 4, 2)


@functools.cache
def state_dependent():
    network = build(space=BOX, state_dependent_std=True)
    return network, jax.jit(network.init)(jax.random.key(0))["actor"]


def test_a_state_dependent_std_depends_on_the_state_and_is_learnt():
    network, actor = state_dependent()
    observation = observations(4, *VECTOR)
    log_std = network.policy(actor, observation).log_std
    assert np.unique(np.asarray(log_std)).size == log_std.size
    slopes = jax.grad(lambda p: jnp.sum(network.policy(p, observation).log_std))(actor)
    readout = [leaf for leaf in kernels(slopes) if leaf.shape == (8, 4)]
    assert len(readout) == 1
    np.testing.assert_array_equal(readout[0][:, :2], 0.0)  # of the means
    assert (np.abs(readout[0][:, 2:]).max(0) > 0).all()
    # Through the torso too.
    assert all(np.any(leaf != 0) for leaf in kernels(slopes))


@pytest.mark.parametrize(("feature", "std"), [(-1e4, 1e-3), (0.0, 1.0), (1e4, 1e4)])
def test_a_state_dependent_std_neither_collapses_nor_overflows(feature, std):
    network, actor = state_dependent()

    def log_std(feature):
        # A read-out of biases alone: whatever the torso says, these are the features.
        flat = jax.tree.map(jnp.zeros_like, actor)
        biases = jnp.concatenate([jnp.zeros(2), jnp.full(2, feature)])
        flat = jax.tree.map(lambda x: biases if x.shape == (4,) else x, flat)
        return network.policy(flat, jnp.ones(VECTOR)).log_std[0]

    value, slope = jax.value_and_grad(log_std)(feature)
    np.testing.assert_allclose(jnp.exp(value), std, rtol=1e-3)
    assert 0.0 <= slope < 1.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("policy", "tanh_normal"), ("state_dependent_std", True), ("initial_std", 0.5)],
)
def test_a_setting_of_continuous_actions_is_refused_with_discrete_ones(setting, value):
    with pytest.raises(ValueError, match=f"{setting} {value}: .*3 discrete"):
        build(space=DISCRETE, **{setting: value})


@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (0.0, math.inf)])
def test_tanh_is_refused_where_an_action_is_unbounded(low, high):
    space = Box((2,), (-1.0, low), (1.0, high))
    with pytest.raises(ValueError, match=r"policy tanh_normal: .*element 1"):
        build(space=space, policy="tanh_normal")
    build(space=space, policy="normal")


def test_actor_and_critic_share_nothing():
    params, _ = initialise(VECTOR, DISCRETE)
    for actor, critic in zip(kernels(params["actor"]), kernels(params["critic"]), strict=True):
        assert actor.shape != critic.shape or not np.allclose(actor, critic)
    # 5 x 12 + 12 and 12 x 8 + 8 in either torso, then 8 x n + n.
    torso = 72 + 104
    sizes = {part: sum(x.size for x in jax.tree.leaves(params[part])) for part in params}
    assert sizes == {"actor": torso + 27, "critic": torso + 9}


def test_seeds_differ_in_every_kernel():
    for one, other in zip(*map(kernels, initialise(VECTOR, DISCRETE)), strict=True):
        assert not np.allclose(one, other)


def test_the_activation_is_the_one_that_was_asked_for():
    critic = initialise(VECTOR, DISCRETE)[0]["critic"]
    names = ("tanh", "relu", "silu", "gelu")
    networks = [build(activation=name) for name in names]
    values = jax.jit(lambda o: [network.value(critic, o) for network in networks])(jnp.ones(VECTOR))
    assert np.unique(np.asarray(values)).size == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "space"), INITIALISED)
def test_low_precision_stays_inside(shape, space, dtype):
    network = build(shape, space, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(trace(network))} == {jnp.dtype("float32")}
    params, _ = initialise(shape, space)
    observation = observations(3, 2, *shape)
    exact, _ = forward(shape, space)(params, observation)
    value, policy = forward(shape, space, dtype=dtype)(params, observation)
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(policy)} == {jnp.dtype("float32")}
    # Near the exact one, and not it: the arithmetic did change.
    np.testing.assert_allclose(value, exact, atol=0.05)
    assert not np.array_equal(value, exact)


def test_low_precision_stays_inside_a_state_dependent_std():
    _, actor = state_dependent()
    network = build(space=BOX, state_dependent_std=True, dtype="bfloat16")
    policy = network.policy(actor, observations(4, *VECTOR))
    assert {leaf.dtype for leaf in jax.tree.leaves(policy)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_observations_may_be_whole_numbers(dtype):
    params, _ = initialise(VECTOR, DISCRETE)
    observation = jnp.array([0, 1, 1, 0, 1])
    value, _ = forward(VECTOR, DISCRETE)(params, observation.astype(dtype))
    exact, _ = forward(VECTOR, DISCRETE)(params, observation.astype(jnp.float32))
    np.testing.assert_array_equal(value, exact)
