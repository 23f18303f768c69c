"""What `python -m experiments.align.reward` is told."""

import dataclasses
from typing import Annotated, Literal

import tyro

from experiments.cli import flags
from experiments.cli.flags import CacheChoice
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, NonNegative, Positive, UnitInterval

_OF_NGRAMS = ("l2", "num_features")
_OF_DECODER = (
    *("model", "train", "num_last_layers", "lora_rank", "lora_alpha", "num_epochs", "batch_size"),
    *("microbatch_size", "learning_rate", "max_grad_norm", "max_tokens", "max_prompt_tokens"),
    *("too_long", "dtype", "remat", "compilation_cache"),
)


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
                if self.kind != kind and flags.is_given(self, name):
                    raise ConfigError(name, f"{getattr(self, name)}: goes with --kind {kind}")
        for name, part in (
            ("num_last_layers", "last_layers"),
            ("lora_rank", "lora"),
            ("lora_alpha", "lora"),
        ):
            if self.train != part and flags.is_given(self, name):
                raise ConfigError(name, f"{getattr(self, name)}: goes with --train {part}")
