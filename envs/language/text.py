"""A world of texts: a real model, prompts in its own template, and prompts that are held out."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rgpo_jax.language import decoder, decoder_policy
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder_policy import Prompts, Training
from rgpo_jax.language.tokenizer import Tokenizer
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
    """

    world: World
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_prompts: Prompts
    model: Model
    training: Training
    mesh: Mesh | None = None

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
    training: Training,
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
    if model.max_length is not None and longest + max_tokens > model.max_length:
        raise ValueError(
            f"{longest} tokens of a prompt and {max_tokens} of an answer: the model was made for "
            f"{model.max_length}"
        )
    train, rest = split(prompts, held_out)

    def padded(part: list[list[int]]) -> Prompts:
        tokens, mask = tokenizer.pad_left(part, longest)
        return Prompts(jnp.asarray(tokens), jnp.asarray(mask))

    policy = decoder_policy.make(
        model.architecture, max_tokens, model.end_ids, model.pad_id, training, mesh
    )
    if mesh is not None:
        params = decoder.shard(model.params, model.architecture, mesh)
        model = model._replace(params=params)
    frozen = policy.freeze(model.params)
    world = World(name, padded(rows[: len(train)]), policy, frozen, None)
    rest = rest[:eval_prompts]
    rest_rows = padded(rows[len(train) : len(train) + len(rest)])
    return TextWorld(world, tokenizer, train, rest, rest_rows, model, training, mesh)
