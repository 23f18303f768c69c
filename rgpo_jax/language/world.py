"""Where answers are given and judged: prompts, a policy, a reward; and all answers, if few."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.language.answers import Answers
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.tabular import Beginnings

Array = jax.Array


class Enumeration(NamedTuple):
    """All answers that there are to a prompt, so that expectations are sums.

    Attributes:
      answers: all M of them [M, T]; their log-probabilities are of no meaning.
      reward: of each to each prompt [N, M].
      beginnings: of them, for a policy whose `next_tokens` reads each once; None: it reads answers.
    """

    answers: Answers
    reward: Array
    beginnings: Beginnings | None = None


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
    answers, beginnings = world.enumeration.answers, world.enumeration.beginnings
    policy = world.policy

    def encode(prompt: Any, answers: Answers) -> Any:
        shape = answers.tokens.shape[:1]
        prompts = jax.tree.map(lambda x: jnp.broadcast_to(x, shape + x.shape), prompt)
        return policy.encode(frozen, prompts, answers)

    def of_tokens(prompt: Any) -> Array:
        if beginnings is not None and policy.next_tokens is not None:
            encoded = encode(prompt, beginnings.answers)
            table = policy.next_tokens(params, frozen, encoded, beginnings.answers, temperature)
            places = jnp.arange(answers.tokens.shape[1])
            return table[beginnings.rows, places, answers.tokens]
        encoded = encode(prompt, answers)
        if params is None:
            return policy.reference(frozen, encoded, answers, temperature)
        return policy.predict(params, frozen, encoded, answers, temperature).log_prob

    def of_prompt(prompt: Any) -> Array:
        return jnp.sum(jnp.where(answers.mask, of_tokens(prompt), 0.0), axis=-1)

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
