"""The convolution of image networks: its gradient, and the form in which CPUs are told of it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rgpo_jax.convolution import convolve

HOW = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "precision": None}


def ours(inputs, kernel, strides):
    return convolve(inputs, kernel, strides, "VALID", **HOW)


def xlas(inputs, kernel, strides):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(inputs, kernel, strides, "VALID", dimension_numbers=dimensions)


def loss_of(convolution, strides):
    return lambda inputs, kernel: jnp.sum(jnp.sin(convolution(inputs, kernel, strides)))


def draw(inputs, kernel):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (inputs, kernel)]


# Windows that reach the last rows and columns and that do not; strides of both dimensions.
@pytest.mark.parametrize(
    ("inputs", "kernel", "strides"),
    [
        ((3, 20, 20, 4), (8, 8, 4, 5), (4, 4)),
        ((2, 11, 14, 3), (4, 3, 3, 2), (3, 2)),
        ((2, 5, 4, 1), (3, 3, 1, 6), (1, 1)),
        ((2, 6, 6, 2), (2, 2, 2, 3), (4, 3)),
    ],
)
def test_gradients_are_xlas(inputs, kernel, strides):
    arguments = draw(inputs, kernel)
    values = []
    for convolution in (ours, xlas):
        loss = loss_of(convolution, strides)
        first = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
        # Forward over reverse, as in TRPO's products with the Fisher matrix.
        second = jax.jvp(jax.grad(loss, 1), arguments, arguments)
        values.append((first, second))
    ours_, xlas_ = values
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours_, xlas_)


def test_members_side_by_side_have_the_gradients_of_each():
    inputs, kernel = draw((3, 2, 9, 9, 2), (3, 4, 4, 2, 5))
    gradient = jax.jit(jax.grad(loss_of(ours, (2, 2)), (0, 1)))
    together = jax.jit(jax.vmap(gradient))(inputs, kernel)
    for i in range(3):
        for part, whole in zip(gradient(inputs[i], kernel[i]), together, strict=True):
            np.testing.assert_allclose(whole[i], part, rtol=1e-5, atol=1e-5)


def labels_in_a_loop(convolution):
    """How the convolutions of a loop's descent are laid out, in what XLA's CPU code is made of."""
    inputs, kernel = draw((2, 12, 12, 2), (4, 4, 2, 3))
    gradient = jax.grad(loss_of(convolution, (2, 2)), (0, 1))

    def step(pair, _):
        return jax.tree.map(lambda x, g: x - 0.1 * g, pair, gradient(*pair)), None

    descend = jax.jit(lambda *pair: lax.scan(step, pair, length=3)[0])
    compiled = descend.lower(inputs, kernel).compile().as_text()
    return re.findall(r"dim_labels=(\S+?)[,\s]", compiled)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU code")
def test_in_a_loop_all_have_the_form_that_is_fast():
    labels = labels_in_a_loop(ours)
    assert len(labels) == 3 and set(labels) == {"b01f_01io->b01f"}
    # The day this fails, XLA does it itself, and the module is not needed any more.
    assert set(labels_in_a_loop(xlas)) != {"b01f_01io->b01f"}


def test_flax_takes_it():
    module = nn.Conv(4, (3, 3), (2, 2), padding="VALID", conv_general_dilated=convolve)
    usual = nn.Conv(4, (3, 3), (2, 2), padding="VALID")
    images = draw((2, 5, 9, 9, 3), ())[0]
    params = module.init(jax.random.key(0), images)
    np.testing.assert_array_equal(module.apply(params, images), usual.apply(params, images))
    padded = nn.Conv(4, (3, 3), conv_general_dilated=convolve)
    with pytest.raises(ValueError, match="expected padding VALID"):
        padded.init(jax.random.key(0), images)
