"""A world of texts: a real model, prompts in its own template, and prompts that are held out."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from envs.language.preference_tokens import tokenize
from envs.language.preferences import PairData
from rgpo_jax.language import decoder, decoder_policy
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.pairs import Pairs
from rgpo_jax.language.tokenizer import Message, Tokenizer
from rgpo_jax.language.weights import Model
from rgpo_jax.language.world import World

_MULTIPLE = 8  # of tokens, to which prompts are padded: other prompts find the same program


class TextWorld(NamedTuple):
    """A world whose answers are texts, judged on the host.

    Attributes:
      world: prompts, policy and reference; it has no reward of its own.
      tokenizer: of the model.
      prompts: texts of the prompts that are trained on, in the order of `world.prompts`.
      held_out: texts of those that are not.
      held_out_prompts: the same as tokens.
      model: decoder and tokeniser, as they were read.
      training: what of it is trained.
      mesh: on which it lies; None: one device.
      pairs: of answers to `prompts`, one each; None: there are none.
      held_out_pairs: of answers to prompts that are not trained on.
      notes: lines on the data.
    """

    world: World
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_prompts: Prompts
    model: Model
    training: TrainedPart
    mesh: Mesh | None = None
    pairs: Pairs | None = None
    held_out_pairs: Pairs | None = None
    notes: tuple[str, ...] = ()

    def read(self, answers: Answers) -> list[str]:
        """The texts of answers [n, T]."""
        tokens, masks = np.asarray(answers.tokens), np.asarray(answers.mask)
        return [
            self.tokenizer.decode(row[mask].tolist()).strip()
            for row, mask in zip(tokens, masks, strict=True)
        ]


def split(prompts: Sequence[str], held_out: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those to train on, and the last ones, a share of all: at least one of each."""
    number = min(max(1, round(held_out * len(prompts))), len(prompts) - 1)
    return tuple(prompts[:-number]), tuple(prompts[-number:])


def make(
    name: str,
    model: Model,
    prompts: Sequence[str],
    held_out: float,
    eval_prompts: int,
    max_tokens: int,
    max_prompt_tokens: int,
    training: TrainedPart,
    mesh: Mesh | None = None,
) -> TextWorld:
    """Builds the world.

    Args:
      name: of the world.
      model: decoder and tokeniser.
      prompts: texts, at least two.
      held_out: share of them that is not trained on.
      eval_prompts: how many of those are kept for evaluation.
      max_tokens: of the longest answer.
      max_prompt_tokens: of the longest prompt, template included.
      training: what of the model is trained.
      mesh: with axes "fsdp" and "tp", over which the model is spread; None: one device.

    Raises:
      ValueError: a prompt is too long, or with an answer too long for the model.
    """
    tokenizer = Tokenizer.load(model.tokenizer_source)
    rows = [tokenizer.chat(prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > max_prompt_tokens:
            limit = f"expected at most {max_prompt_tokens}"
            raise ValueError(f"a prompt of {len(row)} tokens: {limit}: {prompt[:60]!r}")
    longest = max(map(len, rows))
    longest += -longest % _MULTIPLE
    train, rest = split(prompts, held_out)

    def padded(part: list[list[int]]) -> Prompts:
        tokens, mask = tokenizer.pad_left(part, longest)
        return Prompts(jnp.asarray(tokens), jnp.asarray(mask))

    rest = rest[:eval_prompts]
    asked = padded(rows[: len(train)])
    rest_asked = padded(rows[len(train) : len(train) + len(rest)])
    model, world = _world(name, model, asked, max_tokens, training, mesh)
    return TextWorld(world, tokenizer, train, rest, rest_asked, model, training, mesh)


def of_pairs(
    name: str,
    model: Model,
    train: PairData,
    held_out: PairData,
    eval_prompts: int,
    eval_pairs: int,
    max_tokens: int,
    max_prompt_tokens: int,
    too_long: Literal["skip", "truncate"],
    training: TrainedPart,
    mesh: Mesh | None = None,
) -> TextWorld:
    """Builds the world whose prompts are those of preference pairs, which it has as well.

    Args:
      name: of the world.
      model: decoder and tokeniser.
      train: pairs to learn from.
      held_out: others.
      eval_prompts: how many prompts of those are kept for evaluation.
      eval_pairs: how many of those are kept.
      max_tokens: of the longest answer, of the model's or of a pair.
      max_prompt_tokens: of the longest prompt, template included.
      too_long: what becomes of longer ones (`preference_tokens.tokenize`).
      training: what of the model is trained.
      mesh: see `make`.

    Raises:
      ValueError: no pair is left, or prompt and answer are too long for the model.
    """
    tokenizer = Tokenizer.load(model.tokenizer_source)
    if not model.end_ids:
        raise ValueError("the model names no token that ends an answer")
    parts = []
    for data in (train, held_out):
        tokens = tokenize(
            data,
            tokenizer,
            model.end_ids[0],
            model.pad_id,
            max_prompt_tokens,
            max_tokens,
            too_long,
        )
        parts.append(tokens)

    def first(tree: Any, number: int) -> Any:
        return jax.tree.map(lambda x: x[:number], tree)

    own, other = parts
    _check_length(model, other.pairs.prompts.tokens.shape[1], max_tokens)
    model, world = _world(name, model, own.pairs.prompts, max_tokens, training, mesh)
    prompts, rest = ([as_text(pair.prompt) for pair in part.texts] for part in parts)
    # Several pairs may have one prompt.
    asked = np.unique(rest, return_index=True)[1]
    asked = np.sort(asked)[:eval_prompts]
    return TextWorld(
        world,
        tokenizer,
        tuple(prompts),
        tuple(rest[i] for i in asked),
        jax.tree.map(lambda x: x[asked], other.pairs.prompts),
        model,
        training,
        mesh,
        own.pairs,
        first(other.pairs, eval_pairs),
        # Both parts of one file begin with the same line.
        tuple(dict.fromkeys([*train.describe(), *own.notes, *held_out.describe(), *other.notes])),
    )


def as_text(prompt: Sequence[Message]) -> str:
    """A conversation as a reward reads it: what the user says, if that is all, or all turns."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "\n\n".join(f"{names[turn['role']]}: {turn['content']}" for turn in prompt)


def _check_length(model: Model, prompt_tokens: int, max_tokens: int) -> None:
    if model.max_length is not None and prompt_tokens + max_tokens > model.max_length:
        raise ValueError(
            f"{prompt_tokens} tokens of a prompt and {max_tokens} of an answer: the model was made "
            f"for {model.max_length}"
        )


def _world(
    name: str,
    model: Model,
    prompts: Prompts,
    max_tokens: int,
    training: TrainedPart,
    mesh: Mesh | None,
) -> tuple[Model, World]:
    """The model where it lies, and the world of these prompts."""
    _check_length(model, prompts.tokens.shape[1], max_tokens)
    policy = decoder_policy.make(
        model.architecture, max_tokens, model.end_ids, model.pad_id, training, mesh
    )
    if mesh is not None:
        params = decoder.shard(model.params, model.architecture, mesh)
        model = model._replace(params=params)
    return model, World(name, prompts, policy, policy.freeze(model.params), None)
