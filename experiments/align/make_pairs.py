"""Makes pairs of a model's own answers: `python -m experiments.align.make_pairs --help`."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from experiments.align.options import AlignOptions
from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.cli.terminal import Terminal
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, Positive

PROG = "python -m experiments.align.make_pairs"
_BATCH = 8  # pairs that are sampled at a time
_MOST_LEFT_OUT = 100  # for each that is kept
_ENDING = ".jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Sample two answers to each prompt, and write which one a reward prefers, as JSON lines."""

    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """A new file, *.jsonl, with a prompt, the chosen and the rejected answer a line; --pairs reads
    it."""
    world: Literal["smollm2", "model"] = "smollm2"
    """smollm2: SmolLM2-135M-Instruct. model: any Qwen2 or Llama that --model names."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PATH|NAME")] = None
    """See experiments.align."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """See experiments.align; all of them are used, in turn."""
    reward: Annotated[str, tyro.conf.arg(metavar="NAME|MODULE:FUNCTION|DIR")] = "vader"
    """By which answers are compared; see experiments.align."""
    labels: Literal["sampled", "reward"] = "sampled"
    """sampled: the first is preferred with P = sigmoid(steepness times the difference of rewards),
    as by people who differ. reward: the larger one always is, and ties are left out."""
    steepness: Positive = 4.0
    """Of labels that are sampled."""
    num_pairs: Count = 256
    """Pairs to make."""
    max_tokens: Count = 64
    """Tokens of the longest answer; pairs with one that has not ended by then are left out."""
    temperature: Positive = 1.0
    """Of sampling."""
    seed: CountOrZero = 0
    """Of all random draws."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the arithmetic; auto: float32 on CPUs and bfloat16 elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_paths(self, "model", "prompts")
        if self.out is not tyro.MISSING and not self.out.endswith(_ENDING):
            raise ConfigError("out", f"{self.out}: expected a file *{_ENDING}")
        if self.world == "model" and self.model is None:
            raise ConfigError("world", "model: needs one too: --model PATH|NAME")
        if self.labels == "reward" and self.steepness != type(self).steepness:
            raise ConfigError("steepness", f"{self.steepness}: goes with labels sampled")
        if self.world != "model" and self.model is not None:
            raise ConfigError("model", f"{self.model}: goes with --world model")


class Made(NamedTuple):
    """Two answers to a prompt.

    Attributes:
      prompt, first, second: texts.
      first_reward, second_reward: their scores.
      first_wins: whether the first is the chosen one.
      ended: whether both answers did, and none was cut.
    """

    prompt: str
    first: str
    second: str
    first_reward: float
    second_reward: float
    first_wins: bool
    ended: bool = True

    def is_odd(self) -> bool:
        """Whether it is no pair: equal answers, or one that is cut, empty or no text."""
        both = (self.first, self.second)
        equal = self.first == self.second
        return equal or not self.ended or any(not text or "\0" in text for text in both)

    def row(self) -> dict[str, Any]:
        """As a line of the file has it."""
        answers = [(self.first, self.first_reward), (self.second, self.second_reward)]
        (chosen, high), (rejected, low) = answers if self.first_wins else answers[::-1]
        rewards = {"chosen_reward": high, "rejected_reward": low}
        return {"prompt": self.prompt, "chosen": chosen, "rejected": rejected, **rewards}


def main(args: Sequence[str] | None = None) -> int:
    """Makes pairs; returns the exit status."""
    return frame.run(_make, args)


def _make(args: Sequence[str], interrupts: Interrupts) -> int:
    options = flags.read(Options, Options(out=tyro.MISSING), args, PROG)
    from experiments.record.files import require_space, to_json, write_atomically

    path = Path(options.out).expanduser()
    if path.exists():
        raise BadInput(f"--out {options.out}: exists already; expected a new file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent)
    except OSError as error:
        raise BadInput(f"--out {options.out}: {error.strerror or error}") from None
    console, rows = Terminal(highlight=False, soft_wrap=True), list[bytes]()

    def write() -> int:
        try:
            write_atomically(path, b"".join(rows))
        except OSError as error:
            print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
            return EXIT_NOT_KEPT
        console.print(f"{len(rows):,} pairs -> {path}", markup=False)
        return 0

    started, left_out = time.perf_counter(), 0
    try:
        for batch in sample(options):
            interrupts.check()
            for made in batch:
                tied = options.labels == "reward" and made.first_reward == made.second_reward
                if made.is_odd() or tied:
                    left_out += 1
                elif len(rows) < options.num_pairs:
                    rows.append(to_json(made.row()))
            rate = len(rows) / (time.perf_counter() - started)
            left = (options.num_pairs - len(rows)) / rate if rate else float("inf")
            console.print(
                f"{len(rows):,} of {options.num_pairs:,} pairs, {left_out:,} left out (cut, "
                f"equal, tied, empty or no text); {rate:.1f} a second, {left:.0f} s left",
                markup=False,
            )
            if len(rows) >= options.num_pairs:
                break
            if left_out >= _MOST_LEFT_OUT * (1 + len(rows)):
                print(
                    f"error: of {left_out + len(rows):,} pairs {left_out:,} were left out: the "
                    "answers are cut or equal, or the reward is the same for all",
                    file=sys.stderr,
                )
                if rows:
                    write()
                return EXIT_BROKEN
    except Interrupted:
        if rows:
            write()
        raise
    return write()


def sample(options: Options) -> Iterator[list[Made]]:
    """Batches of pairs, without end.

    Raises:
      BadInput: the model, its prompts or the reward cannot be had.
    """
    from experiments.align import text_building

    run = AlignOptions(
        method="rloo",
        world=options.world,
        model=options.model,
        prompts=options.prompts,
        reward=options.reward,
        max_tokens=options.max_tokens,
        dtype=options.dtype,
        train="lora",  # nothing is trained: the fewest copies of parameters
    )
    score = text_building.scorer(options.reward, "--reward")
    texts = text_building.read_prompts(run)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from scipy.special import expit

    world = text_building.load_world(run, texts)
    policy, frozen, tokenizer = world.world.policy, world.world.frozen, world.tokenizer
    asked, masks = tokenizer.pad_left([tokenizer.chat(text) for text in texts])
    params = policy.init(jax.random.key(0), frozen, False)
    draw = jax.jit(policy.sample)
    rng = np.random.default_rng(options.seed)
    key, position = jax.random.key(options.seed), 0
    while True:
        key, step_key = jax.random.split(key)
        which = (position + np.arange(_BATCH)) % len(texts)
        position += _BATCH
        twice = np.repeat(which, 2)
        prompts = type(world.world.prompts)(jnp.asarray(asked[twice]), jnp.asarray(masks[twice]))
        drawn = draw(params, frozen, prompts, step_key, options.temperature)
        answers, ended = world.read(drawn), np.asarray(drawn.ended)
        rewards = score([texts[i] for i in twice], answers)
        made = []
        for i, prompt in enumerate(which):
            first, second = (float(x) for x in rewards[2 * i : 2 * i + 2])
            gap = options.steepness * (first - second)
            draw_below = rng.uniform() < expit(gap)
            wins = bool(draw_below if options.labels == "sampled" else first > second)
            one, other = answers[2 * i : 2 * i + 2]
            both = bool(ended[2 * i : 2 * i + 2].all())
            made.append(Made(texts[prompt], one, other, first, second, wins, both))
        yield made


if __name__ == "__main__":
    compiling.leave(main)
