"""Rewards that were learnt from pairs, as a folder: saved, read again, and used on texts.

A folder holds `reward.json`, which says what the reward is and how it did on pairs it had not seen,
and `arrays.npz`, what was learnt. Of a decoder that is what was trained: the model that it was made
on stays where it is, and is checked to be the same. Nothing in a folder is executed.

Scores are standardised: those of the answers that were trained on have mean 0 and standard
deviation 1. With `scale` of them, P(a is preferred to b) = sigmoid(scale (score(a) - score(b))).
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs.language import ngram_reward
from envs.words import one_line
from rgpo_jax.language import decoder_policy, reward_model, weights
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder import Architecture
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.reward_model import RewardModel
from rgpo_jax.language.tokenizer import Message, Tokenizer, Vocabulary
from rgpo_jax.language.weights import Model

REWARD, ARRAYS, FIGURE = "reward.json", "arrays.npz", "calibration.png"
SMOLLM2 = "smollm2"  # a name of a model beside those of `weights.find`
_FORMAT = 1
_LARGEST = 2**24  # bytes of reward.json
_ROWS = 32  # answers that a decoder reads at a time
_SHORTEST = 16  # tokens to which rows are padded; beyond, powers of two: a dozen programs at most

# (prompts, answers), lists of n texts -> [K, n], each member's rewards as they were learnt.
Members = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LearntReward:
    """A `rewards.TextReward`: scores of answers to prompts.

    Attributes:
      kind: "ngrams" or "decoder".
      members: what is scored by, K of them.
      shift: float64 [K], the mean of each member's rewards over the answers it learnt from. A
        constant of a reward says nothing, and each member has its own.
      scale: the standard deviation of the members' mean over these answers.
      pessimism: c of mean - c * spread, what a score is.
      arrays: what was learnt, as it is saved.
      recipe: what else it takes to score, as reward.json holds it under `kind`.
    """

    kind: str
    members: Members
    shift: np.ndarray
    scale: float
    pessimism: float
    arrays: Mapping[str, np.ndarray]
    recipe: Mapping[str, Any]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Scores [n], float64: mean - pessimism * spread."""
        mean, spread = self.score_with_spread(prompts, answers)
        return mean - self.pessimism * spread if self.pessimism else mean

    def score_with_spread(
        self, prompts: Sequence[str], answers: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over members [n], standardised; the latter 0 of one."""
        if not len(answers):
            return np.zeros(0), np.zeros(0)
        return standardised(self.members(prompts, answers), self.shift, self.scale)


def standardised(
    rewards: np.ndarray, shift: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over members [n] of rewards [K, n]; see `LearntReward`."""
    centred = (rewards - shift[:, None]) / scale
    spread = centred.std(axis=0, ddof=1) if len(centred) > 1 else np.zeros(centred.shape[1])
    return centred.mean(axis=0), spread


def make(
    kind: str,
    members: Members,
    rewards: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    recipe: Mapping[str, Any],
    pessimism: float = 0.0,
) -> LearntReward:
    """Builds a reward from what was learnt.

    Args:
      kind: "ngrams" or "decoder".
      members: see `LearntReward`.
      rewards: [K, n], what they say of the answers that they learnt from.
      arrays: see `LearntReward`.
      recipe: see `LearntReward`.
      pessimism: see `LearntReward`.

    Raises:
      ValueError: all answers have the same reward, or pessimism has no ensemble.
    """
    shift = rewards.mean(axis=1)
    scale = float((rewards - shift[:, None]).mean(axis=0).std())
    if not scale > 0 or not math.isfinite(scale):
        raise ValueError("nothing was learnt: all answers have the same reward")
    _check_pessimism(pessimism, len(rewards))
    return LearntReward(kind, members, shift, scale, pessimism, arrays, recipe)


def _check_pessimism(pessimism: Any, members: int) -> None:
    if isinstance(pessimism, bool) or not isinstance(pessimism, int | float):
        raise ValueError(f"pessimism {pessimism!r}: expected a number of at least 0")
    if not 0 <= pessimism < math.inf:
        raise ValueError(f"pessimism {pessimism}: expected a number of at least 0")
    if pessimism and members < 2:
        raise ValueError(f"pessimism {pessimism}: needs an ensemble of 2 members or more")


# N-grams.


def ngram_members(learnt: np.ndarray) -> Members:
    """Members of weights [K, features]; prompts are not read."""

    def members(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        del prompts
        rewards: np.ndarray = (ngram_reward.features(answers, learnt.shape[1]) @ learnt.T).T
        return rewards

    return members


# Decoders.


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


# Folders.


def save(
    folder: Path,
    reward: LearntReward,
    facts: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a reward; the folder appears once it is whole, in the place of what was there.

    Args:
      folder: with a reward, or nothing, in it; or not there yet.
      reward: what to save.
      facts: what else reward.json says, plain values without NaN.
      files: name -> content of what lies beside it.

    Raises:
      FileExistsError: something else is there.
      OSError: it cannot be written.
    """
    if folder.exists() and not (folder / REWARD).exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: holds something that is no reward")
    content = {
        "format": _FORMAT,
        "kind": reward.kind,
        "members": len(reward.shift),
        "shift": reward.shift.tolist(),
        "scale": reward.scale,
        "pessimism": reward.pessimism,
        reward.kind: reward.recipe,
        **facts,
    }
    told = json.dumps(content, indent=2, allow_nan=False) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        with (new / ARRAYS).open("wb") as file:
            np.savez(file, **{k: np.ascontiguousarray(x) for k, x in reward.arrays.items()})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        for name, data in {**(files or {}), REWARD: told.encode()}.items():
            with (new / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: str | Path, pessimism: float | None = None) -> LearntReward:
    """Reads a reward.

    Args:
      folder: as `save` writes it.
      pessimism: c of mean - c * spread; None: as it was saved.

    Raises:
      ImportError: a library is missing; the message says how to install it.
      ValueError: there is none, it is damaged, or the model that it was made on is not there or
        another one; the message has one line.
    """
    folder = Path(folder).expanduser()
    content = _Content(folder / REWARD)
    found = content.of("format", int)
    if found != _FORMAT:
        raise ValueError(f"{content.path}: format {found}: expected {_FORMAT}")
    kind, number = content.of("kind", str), content.of("members", int)
    if kind not in ("ngrams", "decoder") or not 1 <= number <= 10_000:
        raise ValueError(f"{content.path}: a {kind} of {number}: expected ngrams or decoder")
    shift, scale = content.of("shift", list), content.of("scale", float)
    if len(shift) != number or not all(map(_is_finite, shift)) or not scale > 0:
        raise ValueError(f"{content.path}: shift or scale: expected {number} numbers, and one > 0")
    chosen = content.of("pessimism", float) if pessimism is None else pessimism
    try:
        _check_pessimism(chosen, number)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    recipe = content.part(kind)
    members: Members
    if kind == "ngrams":
        size = recipe.of("num_features", int)
        shapes = {"weights": ((number, size), np.float64)}
        arrays = _read_arrays(folder / ARRAYS, shapes)
        members = ngram_members(arrays["weights"])
    else:
        members, arrays = _load_decoder(folder, recipe, number)
    told = np.array(shift, float)
    return LearntReward(kind, members, told, scale, float(chosen), arrays, recipe.content)


def _load_decoder(
    folder: Path, recipe: "_Content", number: int
) -> tuple[Members, dict[str, np.ndarray]]:
    told = recipe.part("training").content
    try:
        training = TrainedPart(**told)
        dtype = jnp.dtype(training.dtype)
        known = training.part in ("full", "last_layers", "lora")
        known &= dtype in (jnp.float32, jnp.bfloat16) and training.critic == "trunk"
        whole = all(type(x) is int and x > 0 for x in (training.num_last_layers, training.rank))
        if not (known and whole and _is_finite(training.alpha)):
            raise ValueError("unknown values")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{recipe.path}: training: {one_line(error)}") from None
    base = recipe.part("base")
    named = base.of("name", str)
    model = _load_base(folder, named, base.of("path", str), dtype)
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
    arrays = _read_arrays(folder / ARRAYS, shapes)
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


def _is_finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


class _Content:
    """A JSON object of a file, whose entries are asked for by their kinds."""

    def __init__(self, path: Path, content: Any = None):
        self.path = path
        if content is None:
            try:
                content = json.loads(_read_plain(path, _LARGEST))
            except OSError as error:
                raise ValueError(f"{path}: {error.strerror or error}") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: not JSON: {one_line(error)}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object")
        self.content: dict[str, Any] = content

    def of(self, name: str, kind: type) -> Any:
        value = self.content.get(name)
        is_number = kind is float and _is_finite(value)
        if not is_number and type(value) is not kind:
            raise ValueError(f"{self.path}: {name}: expected one of the kind {kind.__name__}")
        return float(value) if is_number else value  # type: ignore[arg-type]

    def part(self, name: str) -> "_Content":
        return _Content(self.path, self.of(name, dict))


def _open_plain(path: Path) -> Any:
    """Opens a file for reading that is no link and no pipe: a folder may be somebody else's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a plain file")
    return os.fdopen(descriptor, "rb")


def _read_plain(path: Path, most: int) -> bytes:
    with _open_plain(path) as file:
        content: bytes = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


def _read_arrays(
    path: Path, expected: Mapping[str, tuple[tuple[int, ...], Any]]
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which are finite and have these shapes and types.

    Their headers are held to what is expected before anything is allocated, and nothing is
    unpickled.

    Raises:
      ValueError: they are not; one line.
    """
    arrays = {}
    try:
        with _open_plain(path) as file, zipfile.ZipFile(file) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if different := sorted(found.keys() ^ expected.keys()):
                which = "missing" if different[0] in expected else "not a part of it"
                raise ValueError(f"{different[0]}: {which}")
            for name, (shape, dtype) in expected.items():
                with archive.open(found[name]) as member:
                    if np.lib.format.read_magic(member) != (1, 0):
                        raise ValueError(f"{name}: of another version")
                    header = np.lib.format.read_array_header_1_0(member)
                    if header != (shape, False, np.dtype(dtype)):
                        wanted, there = (
                            f"{x[-1]} {x[0]}" for x in ((shape, np.dtype(dtype)), header)
                        )
                        raise ValueError(f"{name}: expected {wanted}, found {there}")
                    size = math.prod(shape) * np.dtype(dtype).itemsize
                    content = bytearray(member.read(size + 1))
                    if len(content) != size:
                        raise ValueError(f"{name}: not as long as it should be")
                array = np.frombuffer(content, dtype).reshape(shape)
                if not np.isfinite(array).all():
                    raise ValueError(f"{name}: NaN or infinity")
                arrays[name] = array
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (
        *(ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError),
        *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError),
    ) as error:
        raise ValueError(f"{path}: damaged: {one_line(error)}") from None
    return arrays
