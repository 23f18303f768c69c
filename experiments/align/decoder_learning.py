"""Learns a reward that is a decoder with a head, member by member."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from envs.language import decoder_reward, learnt_reward
from envs.language.preference_tokens import TokenPairs, tokenize
from envs.language.preferences import PairData
from experiments.align.reward_learning import Broken, Learnt, Say, member_name
from experiments.align.reward_options import Options
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.training import compiling
from rgpo_jax.language import bradley_terry, weights
from rgpo_jax.language.decoder_policy import TrainedPart
from rgpo_jax.language.pairs import Pairs
from rgpo_jax.language.tokenizer import Tokenizer
from rgpo_jax.language.weights import Model

_STANDARD = 256  # pairs by whose answers a decoder's scores are standardised: reading takes long
_SILENCE = 30.0  # seconds, after which an epoch says how far it is


class _Base(NamedTuple):
    """The model that a reward is made on, and what of it is trained."""

    path: Path
    model: Model
    tokenizer: Tokenizer
    training: TrainedPart


def _load_base(options: Options) -> _Base:
    dtype: Any = options.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    training = TrainedPart(
        options.train,
        options.num_last_layers,
        options.lora_rank,
        options.lora_alpha,
        remat=options.remat,
        dtype=dtype,
    )
    try:
        path = decoder_reward.find_base(options.model)
        model = weights.load(path, dtype)
        tokenizer = Tokenizer.load(model.tokenizer_source)
        if not model.end_ids:
            raise ValueError("the model names no token that ends an answer")
        decoder_reward.make_model(model.architecture, training)
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"--model {options.model}: {error}") from None
    return _Base(path, model, tokenizer, training)


def _tokenized(
    options: Options, base: _Base, train: PairData, held_out: PairData
) -> tuple[TokenPairs, TokenPairs]:
    model = base.model
    try:
        own, other = (
            tokenize(
                data,
                base.tokenizer,
                model.end_ids[0],
                model.pad_id,
                options.max_prompt_tokens,
                options.max_tokens,
                options.too_long,
            )
            for data in (train, held_out)
        )
        for part in (own, other):
            length = part.pairs.prompts.tokens.shape[1] + options.max_tokens
            if model.max_length is not None and length > model.max_length:
                raise ValueError(f"{length} tokens: --model was made for {model.max_length}")
    except (ValueError, ImportError) as error:
        reason = str(error)
        for data in (train, held_out):
            reason = reason.removeprefix(f"{data.source}: ")
        raise BadInput(f"--pairs {options.pairs}: {reason}") from None
    return own, other


def _seldom(say: Say) -> Say:
    """Says a line only where none was said for long."""
    told = time.perf_counter()

    def seldom(line: str) -> None:
        nonlocal told
        if time.perf_counter() - told > _SILENCE:
            told = time.perf_counter()
            say(line)

    return seldom


class _Learning:
    """Learns members from pairs, which stay on the host, from where each batch is taken.

    Attributes:
      history: of epochs.
    """

    def __init__(
        self, options: Options, base: _Base, pairs: Pairs, say: Say, check: Callable[[], None]
    ):
        self._options, self._base, self._pairs = options, base, pairs
        self._say, self._check = say, check
        self._number = len(pairs.counts)
        self.history: list[dict[str, Any]] = []
        steps = -(-self._number // options.batch_size) * options.num_epochs
        optimizer = optax.chain(
            optax.clip_by_global_norm(options.max_grad_norm),
            optax.adam(optax.linear_schedule(options.learning_rate, 0.0, steps)),
        )
        self._built = decoder_reward.make_model(
            base.model.architecture, base.training, optimizer, options.microbatch_size
        )
        self._update = jax.jit(
            self._built.update,
            donate_argnums=0,
            compiler_options=compiling.options(compiling.Runs.OFTEN),
        )

    def learn(self, member: int, held_out: Pairs) -> tuple[Any, np.ndarray, np.ndarray]:
        """Parameters, margins of the pairs held out, and rewards of answers it learnt from."""
        options = self._options
        rng = np.random.default_rng([options.seed, member])
        rows = np.arange(self._number)
        if options.ensemble > 1:
            rows = rng.integers(0, self._number, self._number)
        key = jax.random.fold_in(jax.random.key(options.seed), member)
        state = jax.jit(self._built.init)(key, self._base.model.params)
        start, name = time.perf_counter(), member_name(member, options)
        for epoch in range(1, options.num_epochs + 1):
            state, means = self._epoch(state, rng.permutation(rows), name)
            first, second = self._scores(state.params, held_out)
            margin = first - second
            share, loss = bradley_terry.accuracy(margin).value, means["loss"]
            line = {"member": member, "epoch": epoch, "loss": loss, "accuracy": share}
            self.history.append(line)
            self._say(
                f"{name}epoch {epoch} of {options.num_epochs}: loss {loss:.4f}, held-out accuracy "
                f"{100 * share:.1f} % ({time.perf_counter() - start:.1f} s)"
            )
        some = jax.tree.map(lambda x: x[:_STANDARD], self._pairs)
        rewards = self._scores(state.params, some).ravel()
        return jax.tree.map(np.asarray, state.params), margin, rewards

    def _epoch(self, state: Any, order: np.ndarray, name: str) -> tuple[Any, dict[str, float]]:
        """The state after all pairs in this order, and means over them; raises Broken."""
        number, size, seldom = self._number, self._options.batch_size, _seldom(self._say)
        means = {"loss": 0.0, "accuracy": 0.0, "taken": 0.0}
        for begin in range(0, number, size):
            self._check()
            index = order[begin : begin + size]
            # As many as in any other batch; those beyond do not count.
            batch = jax.tree.map(lambda x, i=index: x[np.resize(i, size)], self._pairs)
            batch = batch._replace(counts=batch.counts & (np.arange(size) < len(index)))
            state, metrics = self._update(state, self._base.model.params, batch)
            for key in means:
                means[key] += float(metrics[key]) * len(index) / number
            done = begin + len(index)
            if done < number:
                loss = means["loss"] * number / done
                seldom(f"{name}{done:,} of {number:,} pairs: loss {loss:.4f}")
        if not means["taken"] or not math.isfinite(means["loss"]):
            raise Broken("the loss became NaN or infinite; a lower --learning-rate may help")
        return state, means

    def _scores(self, params: Any, pairs: Pairs) -> np.ndarray:
        """A member's rewards of chosen and rejected [2, n]."""
        base, seldom = self._base, _seldom(self._say)
        alone = jax.tree.map(lambda x: x[None], params)
        members = decoder_reward.DecoderMembers(base.model, base.tokenizer, base.training, alone)
        number = len(pairs.counts)

        def of(side: Any, before: int) -> np.ndarray:
            def progress(done: int) -> None:
                self._check()
                seldom(f"{before + done:,} of {2 * number:,} answers scored")

            return members.of_tokens(pairs.prompts, side, progress)[0]

        return np.stack([of(pairs.chosen, 0), of(pairs.rejected, number)])


def learn(
    options: Options, train: PairData, held_out: PairData, say: Say, interrupts: Interrupts
) -> Learnt:
    """Trains each member.

    Raises:
      BadInput: the model cannot be had, or the pairs do not fit it.
      Broken: the loss became NaN, or all answers have the same reward.
    """
    compiling.keep_programs(options.compilation_cache)
    base = _load_base(options)
    own, other = _tokenized(options, base, train, held_out)
    notes = (*own.notes, *other.notes)
    for line in notes:
        say(line)
    pairs, others = (jax.tree.map(np.asarray, part.pairs) for part in (own, other))
    learning = _Learning(options, base, pairs, say, interrupts.check)
    learnt = [learning.learn(member, others) for member in range(options.ensemble)]
    parts, margins, rewards = zip(*learnt, strict=True)
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    described = decoder_reward.describe_base(options.model, base.path, base.model)
    recipe: dict[str, Any] = {
        "base": described._asdict(),
        "training": dataclasses.asdict(base.training),
        "max_tokens": options.max_tokens,
        "max_prompt_tokens": options.max_prompt_tokens,
    }
    try:
        reward = learnt_reward.make(
            "decoder",
            decoder_reward.DecoderMembers(base.model, base.tokenizer, base.training, params),
            np.stack(rewards),
            decoder_reward.decoder_arrays(params),
            recipe,
            options.pessimism,
        )
    except ValueError as error:
        raise Broken(str(error)) from None
    return Learnt(reward, np.stack(margins), other.texts, notes, learning.history)
