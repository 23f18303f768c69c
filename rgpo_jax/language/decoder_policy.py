"""A decoder as a policy: all of it trained, its last layers, or adapters beside it."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rgpo_jax.language import decoder, log_probs, lora, sampler
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder import Architecture
from rgpo_jax.language.policy import Policy, Prediction

Array = jax.Array

_PARTS = ("embedding", "layers", "norm")
_HEADS = ("head", "embedding")  # where logits are read out


class Prompts(NamedTuple):
    """Prompts as tokens.

    Attributes:
      tokens: int32 [n, P], padded on the left.
      mask: bool [n, P], False where padded.
    """

    tokens: Array
    mask: Array


class _Trunk(NamedTuple):
    """Prompts and answers behind the layers that are not trained."""

    states: Array  # [n, P + T - 1, D]
    prompt_mask: Array  # [n, P]


def _heads(tree: Any) -> Any:
    """Of a decoder's parameters those that logits are read out by."""
    return {name: tree[name] for name in _HEADS if name in tree}


@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """What of a decoder is trained, and how.

    Attributes:
      part: all parameters ("full"); its last layers, over states of the others that are computed
        once an update ("last_layers"); or adapters, by which the reference needs no copy ("lora").
      num_last_layers: how many, with "last_layers".
      rank: of adapters.
      alpha: their products are multiplied by alpha / rank.
      critic: a linear value head on the states that predict tokens ("trunk"); or on those of a
        model of its own, of which the same part is trained ("separate").
      chunk_size: tokens whose logits exist at a time; None: of all.
      remat: compute the activations of layers anew for their gradient.
      dtype: of the arithmetic; what is trained stays in float32. Changes of a parameter that are
        below the resolution of its type have no effect yet.
      recompute: see `Policy.recomputes`; in float32 on a CPU there is no need.
    """

    part: Literal["full", "last_layers", "lora"] = "full"
    num_last_layers: int = 4
    rank: int = 8
    alpha: float = 16.0
    critic: Literal["trunk", "separate"] = "trunk"
    chunk_size: int | None = None
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False


def merge(training: TrainedPart, actor: Any, reference: Any) -> Any:
    """All parameters of the decoder: what was trained, in its place in the reference.

    Args:
      training: what was trained.
      actor: the policy's parameters, `params["actor"]`.
      reference: those of the decoder before.
    """
    if training.part == "full":
        return actor
    reference = {name: reference[name] for name in (*_PARTS, "head") if name in reference}
    if training.part == "lora":
        return lora.merge(reference, actor, training.alpha)
    number = training.num_last_layers
    layers = jax.tree.map(
        lambda old, new: jnp.concatenate([old[:-number], new.astype(old.dtype)]),
        reference["layers"],
        actor["layers"],
    )
    return reference | {"layers": layers, "norm": actor["norm"]}


def make(
    architecture: Architecture,
    max_tokens: int,
    end_ids: tuple[int, ...],
    pad_id: int,
    training: TrainedPart = TrainedPart(),
    mesh: Mesh | None = None,
) -> Policy:
    """Builds the policy; `frozen` are the decoder's parameters, and prompts are `Prompts`.

    Args:
      architecture: of the decoder.
      max_tokens: T, at which answers are cut.
      end_ids: the tokens that end an answer.
      pad_id: what follows an answer's end.
      training: what of it is trained.
      mesh: over whose axis "fsdp" samples are spread, where it divides their number; the parameters
        lie on it by `decoder.shardings`. None: one device.

    Raises:
      ValueError: there are not so many layers.
    """
    part, last = training.part, training.num_last_layers
    if part == "last_layers" and not 1 <= last <= architecture.num_layers:
        raise ValueError(
            f"num_last_layers {last}: expected 1 to {architecture.num_layers}, of all layers"
        )
    dtype = jnp.dtype(training.dtype)

    def spread(tree: Any) -> Any:
        """Samples [n, ...] over the devices of fsdp, each of which has a share of all weights."""
        if mesh is None:
            return tree
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(
                x, decoder.fitting(mesh, PartitionSpec("fsdp"), x.shape)
            ),
            tree,
        )

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    def trainable(key: Array, frozen: Any) -> Any:
        if part == "lora":
            return lora.init(key, frozen, training.rank)
        if part == "last_layers":
            tree = {"layers": jax.tree.map(lambda x: x[-last:], frozen["layers"])}
            tree["norm"] = frozen["norm"]
        else:
            tree = frozen
        return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)

    def whole(actor: Any, frozen: Any) -> Any:
        return cast(merge(training, actor, frozen))

    def init(key: Array, frozen: Any, critic: bool) -> Any:
        actor_key, critic_key = jax.random.split(key)
        params = {"actor": trainable(actor_key, frozen)}
        if not critic:
            return params
        head = {"weight": jnp.zeros(architecture.hidden_size), "bias": jnp.zeros(())}
        if training.critic == "separate":
            head["body"] = trainable(critic_key, frozen)
        return params | {"critic": head}

    def freeze(reference: Any) -> Any:
        """With the trunk as `sample` reads it: else it would be transposed at every update."""
        trunk = reference | {"layers": jax.tree.map(lambda x: x[:-last], reference["layers"])}
        weights = sampler.decoding_weights(cast(trunk), of_layers(architecture.num_layers - last))
        return reference | {"decoding": weights}

    def of_layers(number: int) -> Architecture:
        return dataclasses.replace(architecture, num_layers=number)

    def decoding_weights(actor: Any, frozen: Any) -> Any:
        if part != "last_layers" or "decoding" not in frozen:
            return sampler.decoding_weights(whole(actor, frozen), architecture)
        trunk, top = frozen["decoding"], cast({**_heads(frozen), **actor})
        weights = sampler.decoding_weights(top, of_layers(last))
        return trunk | {"layers": trunk["layers"] + weights["layers"], "norm": top["norm"]}

    def sample(params: Any, frozen: Any, prompts: Prompts, key: Array, temperature: Any) -> Answers:
        weights, (asked, mask) = decoding_weights(params["actor"], frozen), spread(prompts)
        return sampler.sample(
            weights, architecture, asked, mask, key, max_tokens, end_ids, pad_id, temperature
        )

    def encode(frozen: Any, prompts: Prompts, answers: Answers) -> _Trunk:
        prompts, answers = spread((prompts, answers))
        tokens = jnp.where(answers.mask, answers.tokens, 0)
        tokens = jnp.concatenate([prompts.tokens, tokens[:, :-1]], axis=1)
        mask = jnp.concatenate([prompts.mask, answers.mask[:, :-1]], axis=1)
        trunk = cast(jax.tree.map(lambda x: x[:-last], frozen["layers"]))
        x = decoder.embed(cast({"embedding": frozen["embedding"]}), tokens)
        x = decoder.run_layers(trunk, x, decoder.positions(mask), mask, architecture)
        return _Trunk(x, prompts.mask)

    def hidden(actor: Any, frozen: Any, encoded: Any, answers: Answers) -> Array:
        """The states that predict the tokens [n, T, D]."""
        encoded, answers = spread((encoded, answers))
        if part != "last_layers":
            return log_probs.answer_states(
                whole(actor, frozen),
                architecture,
                encoded.tokens,
                encoded.mask,
                answers.tokens,
                answers.mask,
                training.remat,
            )
        mask = jnp.concatenate([encoded.prompt_mask, answers.mask[:, :-1]], axis=1)
        layers, at = cast(actor["layers"]), decoder.positions(mask)
        x = decoder.run_layers(layers, encoded.states, at, mask, architecture, training.remat)
        x = decoder.final_norm(cast({"norm": actor["norm"]}), x, architecture)
        return x[:, encoded.prompt_mask.shape[1] - 1 :]

    def read_out(
        tree: Any, states: Array, answers: Answers, temperature: Any
    ) -> tuple[Array, Array]:
        head = decoder.head(cast(_heads(tree)))
        tokens = jnp.where(answers.mask, answers.tokens, 0)
        return log_probs.token_log_probs(states, head, tokens, temperature, training.chunk_size)

    def predict(
        params: Any, frozen: Any, encoded: Any, answers: Answers, temperature: Any
    ) -> Prediction:
        states = hidden(params["actor"], frozen, encoded, answers)
        tree = params["actor"] if part == "full" else frozen
        log_prob, entropy = read_out(tree, states, answers, temperature)
        value = None
        if "critic" in params:
            critic = params["critic"]
            if "body" in critic:
                states = hidden(critic["body"], frozen, encoded, answers)
            value = states.astype(jnp.float32) @ critic["weight"] + critic["bias"]
        return Prediction(log_prob, entropy, value)

    def reference_states(frozen: Any, encoded: Any, answers: Answers) -> Array:
        if part == "last_layers":
            its_own = {"layers": jax.tree.map(lambda x: x[-last:], frozen["layers"])}
            return hidden(its_own | {"norm": frozen["norm"]}, frozen, encoded, answers)
        encoded, answers = spread((encoded, answers))
        return log_probs.answer_states(
            cast(frozen),
            architecture,
            encoded.tokens,
            encoded.mask,
            answers.tokens,
            answers.mask,
        )

    def reference(frozen: Any, encoded: Any, answers: Answers, temperature: Any) -> Array:
        states = reference_states(frozen, encoded, answers)
        return read_out(frozen, states, answers, temperature)[0]

    def next_tokens(
        params: Any, frozen: Any, encoded: Any, answers: Answers, temperature: Any
    ) -> Array:
        if params is None:
            states = reference_states(frozen, encoded, answers)
        else:
            states = hidden(params["actor"], frozen, encoded, answers)
        tree = frozen if params is None or part != "full" else params["actor"]
        return log_probs.next_token_log_probs(states, decoder.head(cast(_heads(tree))), temperature)

    again = training.recompute or training.dtype != "float32"
    policy = Policy(
        init, sample, predict, reference, max_tokens, recomputes=again, next_tokens=next_tokens
    )
    return policy._replace(encode=encode, freeze=freeze) if part == "last_layers" else policy
