"""A reward model: a decoder with a linear head that is read at an answer's last token.

It is trained on pairs by `bradley_terry.loss`. What of the decoder is trained, `TrainedPart` says;
the head always is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgpo_jax import descent
from rgpo_jax.language import bradley_terry
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.pairs import Pairs
from rgpo_jax.language.policy import Policy

Array = jax.Array


class RewardState(NamedTuple):
    """What an update changes.

    Attributes:
      params: {"actor": what is trained of the decoder, "head": float32 [D]}.
      optimizer_state: optax's.
      key: typed key.
    """

    params: Any
    optimizer_state: Any
    key: Array


class RewardModel(NamedTuple):
    """Pure functions; `frozen` are the decoder's parameters as they were before.

    Attributes:
      init: (key, frozen) -> RewardState; the head is drawn from N(0, 1 / (D + 1)).
      score: (params, frozen, prompts, answers) -> rewards of answers, float32 [n].
      score_members: (params of K members, frozen, prompts, answers) -> [K, n]; their parameters
        have a leading axis [K, ...], and what is not trained is computed once for all.
      update: (state, frozen, pairs [n, ...]) -> (state, metrics): one step down the mean loss of
        the pairs that count. Metrics are of before the step: "loss", "accuracy", "margin", and
        "taken", whether the gradient was finite; if it was not, nothing changes.
    """

    init: Callable[[Array, Any], RewardState]
    score: Callable[[Any, Any, Any, Answers], Array]
    score_members: Callable[[Any, Any, Any, Answers], Array]
    update: Callable[[RewardState, Any, Pairs], tuple[RewardState, dict[str, Array]]]


def _encode(policy: Policy, frozen: Any, prompts: Any, answers: Answers) -> tuple[Any, Answers]:
    # The policy reads states that predict tokens. With one more token, which no state sees,
    # there is a state for the one after the last: that of the last.
    answers = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 1)]) if x.ndim == 2 else x, answers)
    return policy.encode(frozen, prompts, answers), answers


def _read(policy: Policy, params: Any, frozen: Any, encoded: Any, answers: Answers) -> Array:
    critic = {"weight": params["head"], "bias": jnp.float32(0)}
    values: Any = policy.predict(
        {"actor": params["actor"], "critic": critic}, frozen, encoded, answers, 1.0
    ).value
    # By position: a token's value says nothing of whether it is padding.
    last = jnp.sum(answers.mask, axis=-1, keepdims=True)
    return jnp.take_along_axis(values, last, axis=-1)[:, 0]


def _loss(score: Callable[[Any, Any, Any, Answers], Array], frozen: Any) -> descent.Loss:
    """Bradley and Terry's, a mean over the pairs that count."""

    def loss(params: Any, pairs: Pairs) -> tuple[Array, Any]:
        both = (pairs.prompts, pairs.chosen), (pairs.prompts, pairs.rejected)
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)
        first, second = jnp.split(score(params, frozen, *stacked), 2)
        margin = first - second
        losses = bradley_terry.loss(margin, pairs.label)
        correct = jnp.where(margin == 0, 0.5, margin > 0)
        correct = jnp.where(pairs.label >= 0.5, correct, 1.0 - correct)
        terms = {"loss": losses, "accuracy": correct, "margin": margin}
        terms = {name: jnp.where(pairs.counts, x, 0.0) for name, x in terms.items()}
        number = jnp.maximum(weigh(pairs), 1.0)
        return jnp.sum(terms["loss"]) / number, terms

    return loss


def make(
    policy: Policy,
    hidden_size: int,
    optimizer: optax.GradientTransformation,
    microbatch_size: int | None = None,
) -> RewardModel:
    """Builds the model.

    Args:
      policy: the decoder, as `decoder_policy.make` builds it, with a critic on its own trunk: what
        that critic would say is the reward.
      hidden_size: D, of its states.
      optimizer: optax's.
      microbatch_size: pairs that are differentiated at a time; a divisor of those of an update.
        None: all.
    """

    def init(key: Array, frozen: Any) -> RewardState:
        actor_key, head_key, key = jax.random.split(key, 3)
        head = jax.random.normal(head_key, (hidden_size,)) / (hidden_size + 1) ** 0.5
        params = {"actor": policy.init(actor_key, frozen, False)["actor"], "head": head}
        return RewardState(params, descent.init(optimizer, params, flatten=False), key)

    def score(params: Any, frozen: Any, prompts: Any, answers: Answers) -> Array:
        return _read(policy, params, frozen, *_encode(policy, frozen, prompts, answers))

    def score_members(params: Any, frozen: Any, prompts: Any, answers: Answers) -> Array:
        encoded = _encode(policy, frozen, prompts, answers)
        return jax.lax.map(lambda member: _read(policy, member, frozen, *encoded), params)

    def update(
        state: RewardState, frozen: Any, pairs: Pairs
    ) -> tuple[RewardState, dict[str, Array]]:
        key, shuffle_key = jax.random.split(state.key)
        params, optimizer_state, steps = descent.descend(
            _loss(score, frozen),
            state.params,
            state.optimizer_state,
            pairs,
            shuffle_key,
            optimizer,
            num_epochs=1,
            num_minibatches=1,
            microbatch_size=microbatch_size,
            flatten=False,
            weigh=weigh,
            finite_only=True,
        )
        number = jnp.maximum(weigh(pairs), 1.0)
        metrics = {name: jnp.sum(x) / number for name, x in steps.terms.items()}
        return RewardState(params, optimizer_state, key), metrics | {"taken": steps.taken.all()}

    return RewardModel(init, score, score_members, update)


def weigh(pairs: Pairs) -> Array:
    """How many pairs count, float32."""
    return jnp.sum(pairs.counts).astype(jnp.float32)
