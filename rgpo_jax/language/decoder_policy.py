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


def _in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """The functions of a `Policy` on a decoder that is trained as a whole, or by adapters."""

    architecture: Architecture
    training: TrainedPart
    mesh: Mesh | None

    def spread(self, tree: Any) -> Any:
        """Samples [n, ...] over the devices of fsdp, each of which has a share of all weights."""
        if self.mesh is None:
            return tree
        mesh = self.mesh
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(
                x, decoder.fitting(mesh, PartitionSpec("fsdp"), x.shape)
            ),
            tree,
        )

    def cast(self, tree: Any) -> Any:
        """In the precision of the arithmetic."""
        return jax.tree.map(lambda x: x.astype(jnp.dtype(self.training.dtype)), tree)

    def trainable(self, key: Array, frozen: Any) -> Any:
        """What is trained, as it is at first."""
        if self.training.part == "lora":
            return lora.init(key, frozen, self.training.rank)
        return _in_float32(frozen)

    def init(self, key: Array, frozen: Any, critic: bool) -> Any:
        actor_key, critic_key = jax.random.split(key)
        params = {"actor": self.trainable(actor_key, frozen)}
        if not critic:
            return params
        head = {"weight": jnp.zeros(self.architecture.hidden_size), "bias": jnp.zeros(())}
        if self.training.critic == "separate":
            head["body"] = self.trainable(critic_key, frozen)
        return params | {"critic": head}

    def decoding_weights(self, actor: Any, frozen: Any) -> Any:
        """As the sampler reads them."""
        whole = self.cast(merge(self.training, actor, frozen))
        return sampler.decoding_weights(whole, self.architecture)

    def states(self, actor: Any, frozen: Any, encoded: Any, answers: Answers) -> Array:
        """Those that predict the tokens [n, T, D]."""
        whole = self.cast(merge(self.training, actor, frozen))
        return self._read(whole, encoded, answers, self.training.remat)

    def reference_states(self, frozen: Any, encoded: Any, answers: Answers) -> Array:
        """The same of the decoder before."""
        return self._read(self.cast(frozen), encoded, answers)

    def _read(self, params: Any, encoded: Any, answers: Answers, remat: bool = False) -> Array:
        encoded, answers = self.spread((encoded, answers))
        return log_probs.answer_states(
            params,
            self.architecture,
            encoded.tokens,
            encoded.mask,
            answers.tokens,
            answers.mask,
            remat,
        )

    def head(self, actor: Any, frozen: Any) -> Array:
        """By which logits are read out of states; `actor` None: the reference's."""
        is_trained = actor is not None and self.training.part == "full"
        return decoder.head(self.cast(_heads(actor if is_trained else frozen)))

    def _token_log_probs(
        self, states: Array, head: Array, answers: Answers, temperature: Any
    ) -> tuple[Array, Array]:
        tokens = jnp.where(answers.mask, answers.tokens, 0)
        return log_probs.token_log_probs(
            states, head, tokens, temperature, self.training.chunk_size
        )

    def predict(
        self, params: Any, frozen: Any, encoded: Any, answers: Answers, temperature: Any
    ) -> Prediction:
        states = self.states(params["actor"], frozen, encoded, answers)
        head = self.head(params["actor"], frozen)
        log_prob, entropy = self._token_log_probs(states, head, answers, temperature)
        value = None
        if "critic" in params:
            critic = params["critic"]
            if "body" in critic:
                states = self.states(critic["body"], frozen, encoded, answers)
            value = states.astype(jnp.float32) @ critic["weight"] + critic["bias"]
        return Prediction(log_prob, entropy, value)

    def reference(self, frozen: Any, encoded: Any, answers: Answers, temperature: Any) -> Array:
        states = self.reference_states(frozen, encoded, answers)
        return self._token_log_probs(states, self.head(None, frozen), answers, temperature)[0]

    def next_tokens(
        self, params: Any, frozen: Any, encoded: Any, answers: Answers, temperature: Any
    ) -> Array:
        if params is None:
            actor, states = None, self.reference_states(frozen, encoded, answers)
        else:
            actor = params["actor"]
            states = self.states(actor, frozen, encoded, answers)
        return log_probs.next_token_log_probs(states, self.head(actor, frozen), temperature)


class _LastLayers(_Decoder):
    """The same where the last layers are trained: the trunk below is read once an update."""

    def _top(self, frozen: Any) -> Any:
        """What is trained, as it was before."""
        last = self.training.num_last_layers
        layers = jax.tree.map(lambda x: x[-last:], frozen["layers"])
        return {"layers": layers, "norm": frozen["norm"]}

    def _trunk_layers(self, frozen: Any) -> Any:
        return jax.tree.map(lambda x: x[: -self.training.num_last_layers], frozen["layers"])

    def _of_layers(self, number: int) -> Architecture:
        return dataclasses.replace(self.architecture, num_layers=number)

    def trainable(self, key: Array, frozen: Any) -> Any:
        del key
        return _in_float32(self._top(frozen))

    def freeze(self, reference: Any) -> Any:
        """With the trunk as `sample` reads it: else it would be transposed at every update."""
        trunk = self.cast(reference | {"layers": self._trunk_layers(reference)})
        number = self.architecture.num_layers - self.training.num_last_layers
        weights = sampler.decoding_weights(trunk, self._of_layers(number))
        return reference | {"decoding": weights}

    def decoding_weights(self, actor: Any, frozen: Any) -> Any:
        if "decoding" not in frozen:
            return super().decoding_weights(actor, frozen)
        trunk, top = frozen["decoding"], self.cast({**_heads(frozen), **actor})
        weights = sampler.decoding_weights(top, self._of_layers(self.training.num_last_layers))
        return trunk | {"layers": trunk["layers"] + weights["layers"], "norm": top["norm"]}

    def encode(self, frozen: Any, prompts: Prompts, answers: Answers) -> _Trunk:
        prompts, answers = self.spread((prompts, answers))
        tokens = jnp.where(answers.mask, answers.tokens, 0)
        tokens = jnp.concatenate([prompts.tokens, tokens[:, :-1]], axis=1)
        mask = jnp.concatenate([prompts.mask, answers.mask[:, :-1]], axis=1)
        trunk = self.cast(self._trunk_layers(frozen))
        x = decoder.embed(self.cast({"embedding": frozen["embedding"]}), tokens)
        x = decoder.run_layers(trunk, x, decoder.positions(mask), mask, self.architecture)
        return _Trunk(x, prompts.mask)

    def states(self, actor: Any, frozen: Any, encoded: Any, answers: Answers) -> Array:
        encoded, answers = self.spread((encoded, answers))
        mask = jnp.concatenate([encoded.prompt_mask, answers.mask[:, :-1]], axis=1)
        layers, at = self.cast(actor["layers"]), decoder.positions(mask)
        x = decoder.run_layers(
            layers, encoded.states, at, mask, self.architecture, self.training.remat
        )
        x = decoder.final_norm(self.cast({"norm": actor["norm"]}), x, self.architecture)
        return x[:, encoded.prompt_mask.shape[1] - 1 :]

    def reference_states(self, frozen: Any, encoded: Any, answers: Answers) -> Array:
        return self.states(self._top(frozen), frozen, encoded, answers)


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
    last, number = training.num_last_layers, architecture.num_layers
    if training.part == "last_layers" and not 1 <= last <= number:
        raise ValueError(f"num_last_layers {last}: expected 1 to {number}, of all layers")
    kind = _LastLayers if training.part == "last_layers" else _Decoder
    model = kind(architecture, training, mesh)

    def sample(params: Any, frozen: Any, prompts: Prompts, key: Array, temperature: Any) -> Answers:
        weights = model.decoding_weights(params["actor"], frozen)
        asked, mask = model.spread(prompts)
        return sampler.sample(
            weights, architecture, asked, mask, key, max_tokens, end_ids, pad_id, temperature
        )

    policy = Policy(
        model.init,
        sample,
        model.predict,
        model.reference,
        max_tokens,
        recomputes=training.recompute or training.dtype != "float32",
        next_tokens=model.next_tokens,
    )
    if isinstance(model, _LastLayers):
        policy = policy._replace(encode=model.encode, freeze=model.freeze)
    return policy
