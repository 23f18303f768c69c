"""Learns a reward from pairs of answers: `python -m experiments.align.reward --help`."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from experiments.align import pair_data
from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput, CacheChoice
from experiments.cli.interrupts import Interrupts
from experiments.cli.terminal import Terminal
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, NonNegative, Positive, UnitInterval

if TYPE_CHECKING:
    import numpy as np

    from envs.language.learnt_reward import LearntReward
    from envs.language.preferences import Pair, PairData
    from rgpo_jax.language.bradley_terry import Estimate

PROG = "python -m experiments.align.reward"

_OF_NGRAMS = ("l2", "num_features")
_OF_DECODER = (
    *("model", "train", "num_last_layers", "lora_rank", "lora_alpha", "num_epochs", "batch_size"),
    *("microbatch_size", "learning_rate", "max_grad_norm", "max_tokens", "max_prompt_tokens"),
    *("too_long", "dtype", "remat", "compilation_cache"),
)
_FLOOR = "the shorter answer"
_STANDARD = 256  # pairs by whose answers a decoder's scores are standardised: reading takes long
_SILENCE = 30.0  # seconds, after which an epoch says how far it is
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Learn a reward from pairs of answers, by Bradley and Terry's model, for --reward."""

    pairs: Annotated[str, tyro.conf.arg(metavar="PATH|NAME")]
    """Preference data: JSON lines with chosen and rejected (.jsonl, .jsonl.gz), a folder with
    train.jsonl and perhaps test.jsonl, or a data set in your hub cache, such as
    Anthropic/hh-rlhf/harmless-base."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """A new folder for the reward: reward.json, arrays.npz and calibration.png."""
    overwrite: bool = False
    """Replace the reward that is in --out."""
    kind: Literal["ngrams", "decoder"] = "ngrams"
    """ngrams: words and pairs of words of an answer, in seconds. decoder: a language model that
    reads prompt and answer, with a head at the last token."""
    ensemble: Count = 1
    """Members, each learnt from its own sample of the pairs; a score is their mean, and where they
    disagree the pairs say little."""
    pessimism: NonNegative = 0.0
    """A score is the members' mean minus so many of their standard deviations."""
    held_out: UnitInterval = 0.2
    """Share of the prompts whose pairs are held out; where there is a file for tests, that is
    it."""
    seed: CountOrZero = 0
    """Of samples, first parameters and orders. Which pairs are held out does not depend on it."""
    num_bins: Count = 10
    """Of the calibration table."""
    l2: Positive = 20.0
    """With kind ngrams: penalty l2 / 2 times the squared weights, beside the sum over pairs."""
    num_features: Count = 2**14
    """With kind ngrams: places into which words and pairs of words are hashed."""
    model: Annotated[str, tyro.conf.arg(metavar="smollm2|PATH|NAME")] = "smollm2"
    """With kind decoder, as all that follows: the model that it is made on: SmolLM2-135M-Instruct,
    a folder with safetensors, a GGUF file, or a repository in your hub cache. Nothing is
    downloaded, and the reward needs it to be there later."""
    train: Literal["full", "last_layers", "lora"] = "last_layers"
    """What of it is trained beside the head: all, its last layers, or low-rank adapters."""
    num_last_layers: Count = 4
    """How many, with train last_layers."""
    lora_rank: Count = 8
    """Rank of adapters."""
    lora_alpha: Positive = 16.0
    """Adapters are multiplied by lora_alpha / lora_rank."""
    num_epochs: Count = 1
    """Passes over the pairs."""
    batch_size: Count = 16
    """Pairs of a gradient step."""
    microbatch_size: Count | None = None
    """Pairs that are differentiated at a time, to fit memory; a divisor of batch_size. None:
    all."""
    learning_rate: Positive = 2e-5
    """Of Adam, at first; it falls to 0 along a line."""
    max_grad_norm: Positive = 1.0
    """Larger gradients are scaled down to it."""
    max_tokens: Count = 128
    """Tokens of the longest answer that is learnt from."""
    max_prompt_tokens: Count = 384
    """Tokens of the longest prompt that is learnt from."""
    too_long: Literal["skip", "truncate"] = "skip"
    """Longer pairs are left out; or prompts lose the oldest turns, and answers the end."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the arithmetic; auto: float32 on CPUs and bfloat16 elsewhere. What is trained
    stays in float32."""
    remat: bool = False
    """Compute the activations of layers anew for their gradient, to fit memory."""
    compilation_cache: CacheChoice = None
    """Where compiled programs are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pairs", "out", "model"):
            if getattr(self, name) is not tyro.MISSING:
                flags.check_path(name, getattr(self, name))
        if not 0 < self.held_out < 1:
            raise ConfigError("held_out", f"{self.held_out}: expected a share between 0 and 1")
        if self.pessimism and self.ensemble < 2:
            raise ConfigError("pessimism", f"{self.pessimism}: needs --ensemble of 2 or more")
        size = self.microbatch_size
        if size is not None and self.batch_size % size:
            message = f"{size}: expected a divisor of batch_size = {self.batch_size}"
            raise ConfigError("microbatch_size", message)
        for names, kind in ((_OF_NGRAMS, "ngrams"), (_OF_DECODER, "decoder")):
            for name in names:
                if self.kind != kind and self._is_given(name):
                    raise ConfigError(name, f"{getattr(self, name)}: goes with --kind {kind}")
        for name, part in (
            ("num_last_layers", "last_layers"),
            ("lora_rank", "lora"),
            ("lora_alpha", "lora"),
        ):
            if self.train != part and self._is_given(name):
                raise ConfigError(name, f"{getattr(self, name)}: goes with --train {part}")

    def _is_given(self, name: str) -> bool:
        """Whether a setting is another than the default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return bool(getattr(self, name) != defaults[name])


class _Learnt(NamedTuple):
    """What was learnt, and what it says of pairs that it has not seen.

    Attributes:
      reward: as it is saved.
      margins: [K, n], each member's reward of chosen minus rejected.
      held_out: these pairs as texts [n].
      notes: lines on the data.
      history: of epochs, or of members.
    """

    reward: "LearntReward"
    margins: "np.ndarray"
    held_out: Sequence["Pair"]
    notes: Sequence[str]
    history: list[dict[str, Any]]


class _Broken(Exception):
    """Training came to nothing; the message is one line."""


def main(args: Sequence[str] | None = None) -> int:
    """Learns and writes the reward; returns the exit status."""
    return frame.run(_main, args, "stopped; nothing was written")


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    options = flags.read(Options, Options(pairs=tyro.MISSING, out=tyro.MISSING), args, PROG)
    folder = _choose_folder(options)
    train, held_out = pair_data.read(options.pairs, options.held_out)
    from envs.language import learnt_reward
    from experiments.record.files import without_nan
    from experiments.record.provenance import provenance

    began = provenance() | {"settings": flags.as_settings(options)}
    terminal = Terminal(highlight=False, soft_wrap=True, markup=False)
    say = terminal.print
    told = list(dict.fromkeys([*train.describe(), *held_out.describe()]))
    for line in told:
        say(line)
    learn = _learn_ngrams if options.kind == "ngrams" else _learn_decoder
    start = time.perf_counter()
    try:
        learnt = learn(options, train, held_out, say, interrupts)
    except _Broken as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return EXIT_BROKEN
    seconds = time.perf_counter() - start
    judged = _judge(learnt, options.num_bins)
    facts: dict[str, Any] = {
        **began,
        "seconds": seconds,
        "data": {"source": options.pairs, "notes": [*told, *learnt.notes]},
        "history": learnt.history,
        "held_out": judged,
    }
    files = {learnt_reward.FIGURE: _draw(judged, f"{options.kind} on {held_out.source}")}
    for line in _told(judged):
        say(line)
    interrupts.check()
    try:
        learnt_reward.save(folder, learnt.reward, without_nan(facts), files)
    except OSError as error:
        print(f"error: {folder}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    say(f"learnt in {seconds:.1f} s -> {folder}; use it by --reward {folder}")
    return 0


def _choose_folder(options: Options) -> Path:
    """The folder, which holds nothing, or a reward that may be replaced."""
    from experiments.record.run_folder import choose_page_folder, refusing

    folder = choose_page_folder(options.out, "reward", ("reward.json",), options.overwrite)
    with refusing(folder):
        if folder.is_dir() and not (folder / "reward.json").exists() and any(folder.iterdir()):
            raise BadInput(
                f"--out {options.out}: holds something that is no reward; choose another"
            )
    return folder


def _percent(estimate: "Estimate") -> str:
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _member(number: int, options: Options) -> str:
    return f"member {number + 1} of {options.ensemble}, " if options.ensemble > 1 else ""


def _learn_ngrams(
    options: Options, train: "PairData", held_out: "PairData", say: Say, interrupts: Interrupts
) -> _Learnt:
    import numpy as np

    from envs.language import learnt_reward, ngram_reward
    from rgpo_jax.language import bradley_terry

    def of(data: "PairData") -> tuple[Any, Any]:
        return tuple(
            ngram_reward.features(
                [getattr(pair, side) for pair in data.pairs], options.num_features
            )
            for side in ("chosen", "rejected")
        )

    start = time.perf_counter()
    (chosen, rejected), other = of(train), of(held_out)
    differences, others = chosen - rejected, other[0] - other[1]
    fitted, history = [], []
    for number in range(options.ensemble):
        interrupts.check()
        fit = ngram_reward.member(differences, options.l2, number, options.ensemble, options.seed)
        fitted.append(fit.weights)
        share = bradley_terry.accuracy(others @ fit.weights).value
        seconds = time.perf_counter() - start
        history.append({"loss": fit.loss, "iterations": fit.iterations, "accuracy": share})
        say(
            f"{_member(number, options)}{fit.iterations} iterations: loss {fit.loss:.4f}, "
            f"held-out accuracy {100 * share:.1f} % ({seconds:.1f} s)"
        )
    learnt = np.stack(fitted)
    members = learnt_reward.ngram_members(learnt)
    rewards = np.concatenate([(chosen @ learnt.T).T, (rejected @ learnt.T).T], axis=1)
    recipe = {"num_features": options.num_features, "l2": options.l2}
    try:
        reward = learnt_reward.make(
            "ngrams", members, rewards, {"weights": learnt}, recipe, options.pessimism
        )
    except ValueError as error:
        raise _Broken(str(error)) from None
    return _Learnt(reward, (others @ learnt.T).T, held_out.pairs, (), history)


def _learn_decoder(
    options: Options, train: "PairData", held_out: "PairData", say: Say, interrupts: Interrupts
) -> _Learnt:
    import jax
    import numpy as np
    import optax

    from envs.language import decoder_reward, learnt_reward
    from envs.language.preference_tokens import tokenize
    from rgpo_jax.language import bradley_terry, weights
    from rgpo_jax.language.decoder_policy import TrainedPart
    from rgpo_jax.language.tokenizer import Tokenizer

    compiling.keep_programs(options.compilation_cache)
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
    try:
        own, other = (
            tokenize(
                data,
                tokenizer,
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
    notes = (*own.notes, *other.notes)
    for line in notes:
        say(line)

    # On the host, from where each batch is taken.
    pairs, others = (jax.tree.map(np.asarray, part.pairs) for part in (own, other))
    number = len(own.texts)
    size = options.batch_size
    steps = -(-number // size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.max_grad_norm),
        optax.adam(optax.linear_schedule(options.learning_rate, 0.0, steps * options.num_epochs)),
    )
    built = decoder_reward.make_model(
        model.architecture, training, optimizer, options.microbatch_size
    )
    update = jax.jit(built.update, donate_argnums=0, compiler_options=compiling.options(often=True))

    def scores(params: Any, sides: Any) -> "np.ndarray":
        """A member's rewards of chosen and rejected [2, n]."""
        alone = jax.tree.map(lambda x: x[None], params)
        members = decoder_reward.DecoderMembers(model, tokenizer, training, alone)
        told, total = time.perf_counter(), 2 * len(sides.chosen.tokens)

        def of(side: Any, before: int) -> "np.ndarray":
            def progress(done: int) -> None:
                nonlocal told
                interrupts.check()
                if time.perf_counter() - told > _SILENCE:
                    told = time.perf_counter()
                    say(f"{before + done:,} of {total:,} answers scored")

            return members.of_tokens(sides.prompts, side, progress)[0]

        return np.stack([of(sides.chosen, 0), of(sides.rejected, total // 2)])

    def learn(member: int) -> Any:
        rng = np.random.default_rng([options.seed, member])
        rows = np.arange(number)
        if options.ensemble > 1:
            rows = rng.integers(0, number, number)
        key = jax.random.fold_in(jax.random.key(options.seed), member)
        state = jax.jit(built.init)(key, model.params)
        start = told = time.perf_counter()
        for epoch in range(options.num_epochs):
            order = rng.permutation(rows)
            sums = {"loss": 0.0, "accuracy": 0.0, "taken": 0.0}
            for begin in range(0, number, size):
                interrupts.check()
                index = order[begin : begin + size]
                # As many as in any other batch; those beyond do not count.
                batch = jax.tree.map(lambda x, i=index: x[np.resize(i, size)], pairs)
                batch = batch._replace(counts=batch.counts & (np.arange(size) < len(index)))
                state, metrics = update(state, model.params, batch)
                for name in sums:
                    sums[name] += float(metrics[name]) * len(index) / number
                done = begin + len(index)
                if time.perf_counter() - told > _SILENCE and done < number:
                    told = time.perf_counter()
                    loss = sums["loss"] * number / done
                    say(f"{_member(member, options)}{done:,} of {number:,} pairs: loss {loss:.4f}")
            if not sums["taken"] or not math.isfinite(sums["loss"]):
                raise _Broken("the loss became NaN or infinite; a lower --learning-rate may help")
            first, second = scores(state.params, others)
            margin = first - second
            share = bradley_terry.accuracy(margin).value
            told = time.perf_counter()
            seconds = told - start
            line = {"member": member, "epoch": epoch + 1, "loss": sums["loss"], "accuracy": share}
            history.append(line)
            say(
                f"{_member(member, options)}epoch {epoch + 1} of {options.num_epochs}: loss "
                f"{sums['loss']:.4f}, held-out accuracy {100 * share:.1f} % ({seconds:.1f} s)"
            )
        some = jax.tree.map(lambda x: x[:_STANDARD], pairs)
        return jax.tree.map(np.asarray, state.params), margin, scores(state.params, some).ravel()

    history: list[dict[str, Any]] = []
    learnt = [learn(member) for member in range(options.ensemble)]
    parts, margins, rewards = zip(*learnt, strict=True)
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    base = decoder_reward.describe_base(options.model, path, model)
    recipe: dict[str, Any] = {"base": base._asdict(), "training": dataclasses.asdict(training)}
    recipe |= {"max_tokens": options.max_tokens, "max_prompt_tokens": options.max_prompt_tokens}
    try:
        reward = learnt_reward.make(
            "decoder",
            decoder_reward.DecoderMembers(model, tokenizer, training, params),
            np.stack(rewards),
            decoder_reward.decoder_arrays(params),
            recipe,
            options.pessimism,
        )
    except ValueError as error:
        raise _Broken(str(error)) from None
    return _Learnt(reward, np.stack(margins), other.texts, notes, history)


def _judge(learnt: _Learnt, num_bins: int) -> dict[str, Any]:
    """What reward.json says of the pairs that were held out."""
    from rgpo_jax.language import bradley_terry

    margin = learnt.margins.mean(axis=0)
    shorter = [len(pair.rejected) - len(pair.chosen) for pair in learnt.held_out]
    table = bradley_terry.calibration(margin, num_bins=num_bins)
    gain = bradley_terry.gain(bradley_terry.right(margin), bradley_terry.right(shorter))
    return {
        "pairs": len(margin),
        "accuracy": bradley_terry.accuracy(margin)._asdict(),
        "accuracy_of_members": [bradley_terry.accuracy(m).value for m in learnt.margins],
        "floor": {"rule": _FLOOR, **bradley_terry.accuracy(shorter)._asdict()},
        "gain_over_floor": gain._asdict(),
        "log_loss": bradley_terry.log_loss(margin),
        "brier": bradley_terry.brier(margin),
        "calibration": {
            "error": table.error,
            "bins": [b._asdict() | {"accuracy": b.accuracy._asdict()} for b in table.bins],
        },
    }


def _told(judged: dict[str, Any]) -> list[str]:
    """The same in lines."""
    from rgpo_jax.language.bradley_terry import Estimate

    floor = {name: judged["floor"][name] for name in Estimate._fields}
    gain = Estimate(**judged["gain_over_floor"])
    difference = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
    return [
        f"{judged['pairs']:,} held-out pairs: accuracy {_percent(Estimate(**judged['accuracy']))}, "
        f'"{_FLOOR}" {_percent(Estimate(**floor))}; {difference}; intervals of 95 %',
        f"log loss {judged['log_loss']:.4f} (guessing: {math.log(2):.4f}), Brier "
        f"{judged['brier']:.4f} (.25), expected calibration error "
        f"{100 * judged['calibration']['error']:.1f} points",
    ]


def _draw(judged: dict[str, Any], title: str) -> bytes:
    """The reliability diagram, a PNG: accuracy against confidence, and how many pairs are where."""
    from matplotlib.figure import Figure

    from experiments.record.curve import png
    from rgpo_jax.language.bradley_terry import Bin, Estimate

    bins: list[Bin] = [
        Bin(**row | {"accuracy": Estimate(**row["accuracy"])})
        for row in judged["calibration"]["bins"]
    ]
    filled = [b for b in bins if b.number]
    figure = Figure(figsize=(5.2, 5.6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0.5, 1], [0.5, 1], color="black", linewidth=1, label="calibrated")
    x, y = [b.confidence for b in filled], [b.accuracy.value for b in filled]
    # A share of 0 or 1 lies at the end of its interval, give or take a rounding.
    away = [
        [max(0.0, b.accuracy.value - b.accuracy.low) for b in filled],
        [max(0.0, b.accuracy.high - b.accuracy.value) for b in filled],
    ]
    look: Any = {"color": "#c8452d", "marker": "o", "markersize": 4, "capsize": 2}
    above.errorbar(x, y, yerr=away, linewidth=1.2, label="held-out pairs, 95 %", **look)
    above.set_ylabel("share that was foretold rightly")
    above.set_xlim(0.5, 1)
    above.set_ylim(min(0.4, *(b.accuracy.low for b in filled)) - 0.02, 1.02)
    above.legend(frameon=False, loc="upper left", fontsize=9)
    error = 100 * judged["calibration"]["error"]
    above.set_title(f"{title}\nexpected calibration error {error:.1f} points", fontsize=9)
    edges, width = [b.lower for b in bins], bins[0].upper - bins[0].lower
    below.bar(edges, [b.number for b in bins], width, align="edge", color="#7a8ca3", edgecolor="w")
    below.set_xlabel("confidence, max(P, 1 - P)")
    below.set_ylabel("pairs")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
    return png(figure)


if __name__ == "__main__":
    compiling.leave(main)
