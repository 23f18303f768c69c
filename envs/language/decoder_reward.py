"""Rewards that are decoders: the model they are made on, how they are made, and how they score."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs.language.checked_files import Content, is_finite, read_arrays
from envs.words import one_line
from rgpo_jax.language import decoder_policy, reward_model, weights
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder import Architecture
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.reward_model import RewardModel
from rgpo_jax.language.tokenizer import Message, Tokenizer, Vocabulary
from rgpo_jax.language.weights import Model

SMOLLM2 = "smollm2"  # a name of a model beside those of `weights.find`
_ROWS = 32  # answers that a decoder reads at a time
_SHORTEST = 16  # tokens to which rows are padded; beyond, powers of two: a dozen programs at most


class Base(NamedTuple):
    """The model that a reward is made on.

    Attributes:
      name: as a person named it.
      path: where it was.
      architecture: its shape.
      tokenizer: digest of it.
      weights: digest of some of its parameters, in the precision of the arithmetic.
    """

    name: str
    path: str
    architecture: dict[str, Any]
    tokenizer: str
    weights: str


def find_base(name: str) -> Path:
    """Where a model is: "smollm2", or what `weights.find` takes; FileNotFoundError if nowhere."""
    if name == SMOLLM2 and not Path(name).exists():
        return weights.find_smollm2()
    return weights.find(name)


def describe_base(name: str, path: Path, model: Model) -> Base:
    """What a folder says of its base."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.params):
        flat = np.asarray(leaf).reshape(-1)
        digest.update(np.ascontiguousarray(flat[:: max(1, flat.size // 1024)]).tobytes())
    architecture = dataclasses.asdict(model.architecture)
    told = _digest_of_tokenizer(model.tokenizer_source)
    return Base(name, str(path.absolute()), architecture, told, digest.hexdigest())


def _digest_of_tokenizer(source: Path | Vocabulary) -> str:
    """Of what says how texts become tokens, and turns texts."""
    if isinstance(source, Vocabulary):
        fields = (source.tokens, source.types, source.merges, *source[3:])
        plain = json.dumps([x.tolist() if isinstance(x, np.ndarray) else x for x in fields])
        return hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()
    template = Tokenizer.load(source).chat_template or ""
    content = (source / "tokenizer.json").read_bytes() + b"\0" + template.encode()
    return hashlib.sha256(content).hexdigest()


def turns_of(prompt: str) -> list[Message]:
    """The turns of a prompt as `text.as_text` writes them; any other text is what a user says."""
    before, *parts = re.split(r"(?:\A|\n\n)(System|Human|Assistant): ", prompt)
    names = {"System": "system", "Human": "user", "Assistant": "assistant"}
    turns: list[Message] = [
        {"role": names[name], "content": said}
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    roles = [turn["role"] for turn in turns]
    del roles[: roles[:1] == ["system"]]
    alternate = roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
    if before or len(turns) < 2 or len(roles) % 2 == 0 or not alternate:
        return [{"role": "user", "content": prompt}]
    return turns


def make_model(
    architecture: Architecture,
    training: TrainedPart,
    optimizer: optax.GradientTransformation | None = None,
    microbatch_size: int | None = None,
) -> RewardModel:
    """`reward_model.make` of a decoder; ValueError for layers that it does not have."""
    # Nothing is sampled: what ends an answer, and where it is cut, is in its mask.
    policy = decoder_policy.make(architecture, 1, (), 0, training)
    optimizer = optax.identity() if optimizer is None else optimizer
    return reward_model.make(policy, architecture.hidden_size, optimizer, microbatch_size)


@functools.cache
def _score_of(architecture: Architecture, training: TrainedPart) -> Any:
    """Compiled once for all members and folders of this kind."""
    return jax.jit(make_model(architecture, training).score_members)


class DecoderMembers:
    """Members that are decoders, with trained parameters [K, ...] in float32.

    Prompts are written by the model's own chat template, and an answer is followed by the end
    token, as if it had ended. Texts of any length are read whole.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, training: TrainedPart, params: Any):
        """Takes the model that they are made on.

        Args:
          model: decoder and tokeniser.
          tokenizer: of the model.
          training: what of it was trained.
          params: {"actor": ..., "head": [K, D]}, arrays [K, ...].
        """
        self._tokenizer, self._end_ids, self._pad_id = tokenizer, model.end_ids, model.pad_id
        self._max_length = model.max_length
        # Trained as a whole, nothing of the base is read.
        self._frozen = {} if training.part == "full" else model.params
        self._params = jax.tree.map(jnp.asarray, params)
        self._score = _score_of(model.architecture, training)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Rewards [K, n], float64; ValueError for texts that are too long for the model."""
        space = " " if self._tokenizer.chat_template is None else ""
        asked = [self._tokenizer.chat(turns_of(prompt)) for prompt in prompts]
        given = [
            [*self._tokenizer.encode(space + answer, control=False), self._end_ids[0]]
            for answer in answers
        ]
        for row, answer in zip(asked, given, strict=True):
            if self._max_length is not None and len(row) + len(answer) > self._max_length:
                raise ValueError(
                    f"{len(row)} tokens of a prompt and {len(answer)} of an answer: the reward's "
                    f"model was made for {self._max_length}"
                )
        tokens, mask = self._tokenizer.pad_left(asked, _padded(max(map(len, asked))))
        width = _padded(max(map(len, given)))
        lengths = np.array([len(row) for row in given])
        filled = np.full((len(given), width), self._pad_id, np.int32)
        for i, ids in enumerate(given):
            filled[i, : len(ids)] = ids
        padded = Prompts(jnp.asarray(tokens), jnp.asarray(mask))
        return self.of_tokens(padded, _answers(filled, np.arange(width) < lengths[:, None]))

    def of_tokens(
        self, prompts: Prompts, answers: Answers, told: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """Rewards [K, n], float64, of answers [n, T] to prompts [n, P].

        `told` is called with how many are done, again and again.
        """
        number = len(answers.tokens)
        parts = []
        for start in range(0, number, _ROWS):
            told(start)
            # The last rows again, where there are too few: they are dropped.
            rows = np.minimum(np.arange(start, start + _ROWS), number - 1)
            part = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], (prompts, answers))
            parts.append(np.asarray(self._score(self._params, self._frozen, *part), float))
        return np.concatenate(parts, axis=1)[:, :number]


def _padded(length: int) -> int:
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def _answers(tokens: np.ndarray, mask: np.ndarray) -> Answers:
    log_prob, ended = np.zeros(tokens.shape, np.float32), np.ones(len(tokens), bool)
    return Answers(*map(jnp.asarray, (tokens, mask, log_prob, ended)))


def decoder_arrays(params: Any) -> dict[str, np.ndarray]:
    """Trained parameters [K, ...] by names, as they are saved."""
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _trained_part(recipe: Content) -> TrainedPart:
    """What was trained, as a folder says; ValueError for what cannot be."""
    told = recipe.part("training").content
    try:
        training = TrainedPart(**told)
        dtype = jnp.dtype(training.dtype)
        known = training.part in ("full", "last_layers", "lora")
        known &= dtype in (jnp.float32, jnp.bfloat16) and training.critic == "trunk"
        whole = all(type(x) is int and x > 0 for x in (training.num_last_layers, training.rank))
        if not (known and whole and is_finite(training.alpha)):
            raise ValueError("unknown values")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{recipe.path}: training: {one_line(error)}") from None
    return training


def load_members(
    path: Path, recipe: Content, number: int
) -> tuple[DecoderMembers, dict[str, np.ndarray]]:
    """Members of a folder, and what was learnt.

    Args:
      path: the folder's arrays.
      recipe: what reward.json says of the decoder.
      number: of members.

    Raises:
      ImportError: a library is missing; the message says how to install it.
      ValueError: something is damaged, or the model is not there or another one; one line.
    """
    folder = path.parent
    training = _trained_part(recipe)
    base = recipe.part("base")
    named = base.of("name", str)
    model = _load_base(folder, named, base.of("path", str), jnp.dtype(training.dtype))
    found = describe_base(named, Path(), model)
    for field, what in (
        ("architecture", "is of another architecture"),
        ("tokenizer", "has another tokeniser"),
        ("weights", "has other weights"),
    ):
        if base.content.get(field) != getattr(found, field):
            raise ValueError(f"{folder}: the model {named} {what} than the one it was made on")
    if not model.end_ids:
        raise ValueError(f"{folder}: the model {named} names no token that ends an answer")
    try:
        built = make_model(model.architecture, training)
    except ValueError as error:
        raise ValueError(f"{recipe.path}: training: {error}") from None
    tree = jax.eval_shape(lambda key: built.init(key, model.params).params, jax.random.key(0))
    shapes = {
        _name(path): ((number, *leaf.shape), np.float32)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    arrays = read_arrays(path, shapes)
    params = jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], tree)
    tokenizer = Tokenizer.load(model.tokenizer_source)
    return DecoderMembers(model, tokenizer, training, params), arrays


def _load_base(folder: Path, name: str, path: str, dtype: Any) -> Model:
    """From where it was, or from where its name leads now."""
    try:
        try:
            where = find_base(path)
        except FileNotFoundError:
            where = find_base(name)
        return weights.load(where, dtype)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: the model that it was made on: {one_line(error)}") from None
