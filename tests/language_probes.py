"""What tests of alignment share: gradients of the library's own update step, exact expectations.

An optimiser whose change is minus the gradient makes an update say what it follows. Run on every
group of answers that there can be, weighted by its probability, it gives the expected gradient.
In float64, within `jax.enable_x64(True)`.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.language import load
from rgpo_jax.language import learner as learners
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.world import World, all_log_probs

# Tests compile for seconds and run for milliseconds: code that is not optimised is ready sooner.


def plain_descent(hyperparameters, step_size):
    """An optimiser that changes parameters by minus the gradient, uncut and unscaled."""
    del hyperparameters, step_size
    return optax.scale(-1.0)


def in_float64(world: World) -> World:
    """The same world, its numbers in float64."""

    def widen(x):
        return jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return world._replace(
        frozen=jax.tree.map(widen, world.frozen),
        enumeration=jax.tree.map(widen, world.enumeration),
    )


@functools.cache
def _learner(method: str, policy: Policy, settings: tuple) -> learners.Learner:
    module = load(method)
    config = module.Config(**dict(settings))
    return learners.make(policy, config, module.gate(config), plain_descent)


def one_step(method: str, world: World, **settings: Any) -> learners.Learner:
    """A method's update of one pass in one minibatch, which descends the gradient itself.

    Real numbers select no program: what differs in them alone is compiled once.
    """
    parts = {"num_prompts": 1, "num_epochs": 1, "num_minibatches": 1} | settings
    numbers = {name: x for name, x in parts.items() if isinstance(x, float)}
    chosen = tuple(sorted((name, x) for name, x in parts.items() if name not in numbers))
    learner = _learner(method, world.policy, chosen)
    return learner._replace(hyperparameters=learner.hyperparameters.replace(**numbers))


@functools.cache
def _update(init, update):
    def gradient(params, frozen, batch, hyperparameters):
        state = init(jax.random.key(0), frozen, hyperparameters)._replace(params=params)
        after, _ = update(state, frozen, batch)
        return jax.tree.map(jnp.subtract, after.params, params)

    return gradient


@functools.cache
def _update_of_one(init, update):
    return jax.jit(_update(init, update))


def ascent(learner: learners.Learner, world: World, params: Any, batch: Batch, **numbers) -> Any:
    """By what one update of a batch changes the parameters: minus the gradient of its loss."""
    numbers = learner.hyperparameters.replace(**numbers)
    return _update_of_one(learner.init, learner.update)(params, world.frozen, batch, numbers)


class Groups(NamedTuple):
    """Groups of answers: which they are [n, size], and in how many orders each is met [n]."""

    which: np.ndarray
    ways: np.ndarray


def every_group(number: int, size: int) -> Groups:
    """All groups of so many answers, in every order."""
    which = np.array(list(itertools.product(range(number), repeat=size)), np.int32)
    return Groups(which, np.ones(len(which)))


def groups_of_two_arms(size: int) -> Groups:
    """Groups of answers that are 0 or 1, by how many are 1: orders do not matter to a loss."""
    which = np.array([[0] * (size - ones) + [1] * ones for ones in range(size + 1)], np.int32)
    return Groups(which, np.array([math.comb(size, ones) for ones in range(size + 1)], float))


@functools.cache
def _expected(init, update, world_policy, which_prompts):
    def expected(params, frozen, answers, rewards, which, ways, hyperparameters):
        prompts = jnp.array(which_prompts, jnp.int32)
        world = World("", prompts, world_policy, frozen, None, None)
        everywhere = jax.vmap(
            lambda prompt: _token_log_probs(world, params, prompt, answers, hyperparameters)
        )(prompts)  # [P, M, T]
        asked = jnp.repeat(prompts, which.shape[1] // len(which_prompts))
        place = jnp.repeat(jnp.arange(len(which_prompts)), which.shape[1] // len(which_prompts))

        def of_group(group):
            chosen: Answers = jax.tree.map(lambda x: x[group], answers)
            chosen = chosen._replace(log_prob=everywhere[place, group])
            batch = Batch(asked, chosen, rewards[asked, group])
            change = _update(init, update)(params, frozen, batch, hyperparameters)
            return change, jnp.exp(jnp.sum(jnp.where(chosen.mask, chosen.log_prob, 0.0)))

        changes, probability = jax.vmap(of_group)(which)
        return jax.tree.map(lambda x: jnp.tensordot(ways * probability, x, 1), changes)

    return expected


def _token_log_probs(world, params, prompt, answers, hyperparameters):
    prompts = jnp.full(len(answers.tokens), prompt, jnp.int32)
    predicted = world.policy.predict(
        params, world.frozen, prompts, answers, hyperparameters.temperature
    )
    return jnp.where(answers.mask, predicted.log_prob, 0.0)


@functools.cache
def _jitted_expected(*arguments):
    return jax.jit(_expected(*arguments))


def expected_ascent(
    learner: learners.Learner,
    world: World,
    params: Any,
    groups: Groups,
    which_prompts: tuple[int, ...] = (0,),
    compiled: bool = True,
    **numbers: Any,
) -> Any:
    """The change that one update makes on average over groups that the policy itself sampled.

    Args:
      learner: of `one_step`.
      world: with an enumeration, in float64.
      params: of the policy.
      groups: of all the answers of a batch, in the order of prompts.
      which_prompts: of the batch.
      compiled: False where the caller compiles.
      **numbers: hyper-parameters in the place of the learner's.
    """
    make = _jitted_expected if compiled else _expected
    return make(learner.init, learner.update, world.policy, which_prompts)(
        params,
        world.frozen,
        world.enumeration.answers,
        world.enumeration.reward,
        groups.which,
        groups.ways,
        learner.hyperparameters.replace(**numbers),
    )


@functools.cache
def _objective(policy):
    def objective(params, frozen, prompts, enumeration, beta):
        world = World("", prompts, policy, frozen, None, enumeration)
        log_prob = all_log_probs(world, params, frozen)
        log_ref = all_log_probs(world, None, frozen)
        value = enumeration.reward - beta * (log_prob - log_ref)
        return jnp.mean(jnp.sum(jnp.exp(log_prob) * value, axis=-1))

    return jax.jit(jax.grad(objective))


def exact_ascent(world: World, params: Any, beta: float) -> Any:
    """The gradient of E[R] - beta KL(pi || ref), a mean over prompts."""
    prompts = world.prompts
    return _objective(world.policy)(params, world.frozen, prompts, world.enumeration, beta)


def logits_of(world: World, distribution: np.ndarray) -> dict[str, jax.Array]:
    """Parameters of a tabular world whose answers have this distribution [N, M]."""
    answers = world.enumeration.answers
    tokens, masks = np.asarray(answers.tokens), np.asarray(answers.mask)
    table = np.zeros(world.frozen["logits"].shape)
    vocabulary = table.shape[-1]
    for mass, rows in zip(np.asarray(distribution), table, strict=True):
        total = np.zeros_like(rows)
        for probability, answer, mask in zip(mass, tokens, masks, strict=True):
            prefix = 0
            for t, token in enumerate(answer[mask]):
                total[sum(vocabulary**i for i in range(t)) + prefix, token] += probability
                prefix = prefix * vocabulary + int(token)
        rows[:] = np.log(np.maximum(total, 1e-300))
        rows[total.sum(axis=-1) == 0] = 0.0  # beginnings that are none
    return {"actor": jnp.asarray(table)}


def largest(tree: Any) -> float:
    """The largest magnitude in a pytree."""
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))
