"""Where answers are given and judged: prompts, a policy, a reward; and all answers, if few."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.language.answers import Answers
from rgpo_jax.language.policy import Policy

Array = jax.Array


class Enumeration(NamedTuple):
    """All answers that there are to a prompt, so that expectations are sums.

    Attributes:
      answers: all M of them [M, T]; their log-probabilities are of no meaning.
      reward: of each to each prompt [N, M].
    """

    answers: Answers
    reward: Array


class World(NamedTuple):
    """What an agent is made for.

    Attributes:
      name: of the world.
      prompts: all N of them, arrays [N, ...].
      policy: what answers.
      frozen: what is not trained, the reference among it; arrays.
      reward: (prompts [n, ...], Answers [n, T]) -> [n], compiled; None: it lives on the host.
      enumeration: of all answers, where they are few; else None.
    """

    name: str
    prompts: Any
    policy: Policy
    frozen: Any
    reward: Callable[[Any, Answers], Array] | None
    enumeration: Enumeration | None = None


class Expectations(NamedTuple):
    """What holds of a policy exactly, as sums over all answers; means over prompts.

    Attributes:
      reward: E_pi[R].
      kl_ref: KL(pi || ref) of whole answers, in nats.
      entropy: of whole answers, in nats.
      target_distance: largest |pi(y|x) - target(y|x)| over answers and prompts; NaN without one.
    """

    reward: Array
    kl_ref: Array
    entropy: Array
    target_distance: Array


def all_log_probs(world: World, params: Any, frozen: Any, temperature: Any = 1.0) -> Array:
    """log pi of every answer to every prompt [N, M]; params None: of the reference.

    Raises:
      ValueError: the world has no enumeration.
    """
    if world.enumeration is None:
        raise ValueError(f"{world.name}: its answers are too many to be enumerated")
    answers = world.enumeration.answers
    number, _ = answers.tokens.shape

    def of_prompt(prompt: Any) -> Array:
        prompts = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), prompt)
        prompts = world.policy.encode(frozen, prompts, answers)
        if params is None:
            log_prob = world.policy.reference(frozen, prompts, answers, temperature)
        else:
            predicted = world.policy.predict(params, frozen, prompts, answers, temperature)
            log_prob = predicted.log_prob
        return jnp.sum(jnp.where(answers.mask, log_prob, 0.0), axis=-1)

    return jax.lax.map(of_prompt, world.prompts)


def expectations(
    world: World, params: Any, frozen: Any, target: Array | None = None, temperature: Any = 1.0
) -> Expectations:
    """Exact expectations of the policy that the parameters give.

    Args:
      world: one with an enumeration.
      params: of the policy.
      frozen: of the world.
      target: the distribution where the method settles [N, M]; None: it has none.
      temperature: of sampling.
    """
    assert world.enumeration is not None
    log_prob = all_log_probs(world, params, frozen, temperature)
    log_ref = all_log_probs(world, None, frozen, temperature)
    probability = jnp.exp(log_prob)

    def mean(values: Array) -> Array:
        # An answer of probability 0 may have a log-probability of minus infinity.
        return jnp.mean(jnp.sum(jnp.where(probability > 0, probability * values, 0.0), axis=-1))

    distance = jnp.nan if target is None else jnp.max(jnp.abs(probability - target))
    return Expectations(
        mean(world.enumeration.reward),
        mean(log_prob - log_ref),
        -mean(log_prob),
        jnp.asarray(distance, jnp.float32),
    )
