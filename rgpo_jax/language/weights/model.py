"""A decoder that was read, with what its files say beside its parameters."""

from pathlib import Path
from typing import NamedTuple

from rgpo_jax.language.decoder import Architecture, Params
from rgpo_jax.language.tokenizer import Vocabulary


class Model(NamedTuple):
    """A decoder that was read.

    Attributes:
      architecture: its shape.
      params: see `decoder`.
      tokenizer_source: from which `Tokenizer.load` builds its tokeniser.
      end_ids: the tokens that end an answer; none if the files name none.
      pad_id: the token that pads; often also an end, so that masks never go by it.
      max_length: the most tokens that it was made for, if the files say so.
    """

    architecture: Architecture
    params: Params
    tokenizer_source: Path | Vocabulary
    end_ids: tuple[int, ...]
    pad_id: int
    max_length: int | None = None
