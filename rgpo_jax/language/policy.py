"""What the update step needs of a model that answers prompts: pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from rgpo_jax.language.answers import Answers

Array = jax.Array


class Prediction(NamedTuple):
    """What parameters say of answers [n, T], token by token.

    Attributes:
      log_prob: of the token.
      entropy: of the distribution that it came from, in nats.
      value: of the state in which it was chosen; None without a critic.
    """

    log_prob: Array
    entropy: Array
    value: Array | None


class Predict(Protocol):
    """Signature of `Policy.predict`."""

    def __call__(
        self, params: Any, frozen: Any, encoded: Any, answers: Answers, temperature: Any
    ) -> Prediction: ...


def prompts_as_they_are(frozen: Any, prompts: Any, answers: Answers) -> Any:
    """`Policy.encode` where nothing is to be computed ahead."""
    del frozen, answers
    return prompts


def freeze_as_it_is(reference: Any) -> Any:
    """`Policy.freeze` where nothing is to be added."""
    return reference


class Policy(NamedTuple):
    """A distribution of answers to prompts.

    What is trained (`params`) is apart from what is not (`frozen`): the reference, of which the
    former may be a small addition, such as LoRA's matrices. Both are arguments, never closed over.

    Attributes:
      init: (key, frozen, with critic?) -> params {"actor": ..., "critic": ...}: at first the policy
        is the reference.
      sample: (params, frozen, prompts [n, ...], key, temperature) -> Answers [n, T].
      predict: (params, frozen, encoded prompts, answers, temperature) -> Prediction [n, T], equal
        to what `sample` said of log-probabilities.
      reference: (frozen, encoded prompts, answers, temperature) -> log pi_ref of tokens [n, T].
      max_tokens: T, of the longest answer.
      encode: (frozen, prompts, answers) -> encoded prompts, arrays [n, ...]: what policy and
        reference have in common, computed once an update, such as the states of a trunk that is
        not trained.
      recomputes: whether `predict` says the old log-probabilities anew, since the sampler's are not
        equal to them, as in low precision; by how much they differ is then a metric.
      freeze: reference parameters -> `frozen`: with what sampling reads of them, if that is laid
        out in another way; called once a run.
      next_tokens: (params, frozen, encoded prompts, answers, temperature) -> log-probabilities of
        every token at each place of the answers [n, T, V]; params None: those of the reference.
        None: the policy does not say.
    """

    init: Callable[[Array, Any, bool], Any]
    sample: Callable[[Any, Any, Any, Array, Any], Answers]
    predict: Predict
    reference: Callable[[Any, Any, Answers, Any], Array]
    max_tokens: int
    encode: Callable[[Any, Any, Answers], Any] = prompts_as_they_are
    freeze: Callable[[Any], Any] = freeze_as_it_is
    recomputes: bool = False
    next_tokens: Callable[[Any, Any, Any, Answers, Any], Array] | None = None
