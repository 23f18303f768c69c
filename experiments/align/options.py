"""The options of `experiments.align` that are not a method's: which world, and how it is judged."""

import dataclasses
from typing import Annotated, Literal, get_args

import tyro

from agents import language as methods
from experiments.cli import flags
from experiments.plan.run_options import RunOptions
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, Positive, UnitInterval

WorldName = Literal["bandit", "tree", "tiny", "smollm2", "model"]
WORLDS: tuple[str, ...] = get_args(WorldName)
EXACT_WORLDS = ("bandit", "tree", "tiny")
TEXT_WORLDS = ("smollm2", "model")
# In which worlds a setting is read, if not in all.
_READ_IN = {
    "problem": EXACT_WORLDS,
    "model": ("model",),
    **dict.fromkeys(
        (
            *("prompts", "held_out", "reward", "gold", "max_tokens", "max_prompt_tokens"),
            *("train", "num_last_layers", "lora_rank", "lora_alpha", "critic", "dtype", "remat"),
            *("fsdp", "tp"),
            *("eval_prompts", "eval_answers", "pairs", "too_long", "eval_pairs", "preference"),
        ),
        TEXT_WORLDS,
    ),
}
_METHOD_HELP = (
    f"One of {', '.join(methods.NAMES)}. The agent options below are those of the method you name."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _What(Checked):
    """What to align, and by what."""

    method: Annotated[str, tyro.conf.arg(metavar="NAME", help=_METHOD_HELP)] = "rgpo"
    world: WorldName = "bandit"
    """bandit: an answer is one of five arms. tree: three of four tokens. tiny: a transformer with
    random weights, of four tokens. In these everything is known exactly. smollm2:
    SmolLM2-135M-Instruct. model: any Qwen2 or Llama that --model names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignOptions(RunOptions, _What):  # the fields of the last come first
    """What to align, by what, and where the results go."""

    problem: CountOrZero = 0
    """Which problem of the world bandit, tree or tiny; seeds do not change it."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PATH|NAME")] = None
    """A folder with safetensors, a GGUF file, or a repository in your hub cache, such as
    Qwen/Qwen2.5-1.5B-Instruct, with world model. Nothing is downloaded."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Prompts, one a line, or JSON lines with a "prompt"; None: "Write one sentence about ...", of
    40 subjects. Some are held out, for evaluation."""
    pairs: Annotated[str | None, tyro.conf.arg(metavar="PATH|NAME")] = None
    """Preference data: JSON lines with chosen and rejected (.jsonl, .jsonl.gz), a folder with
    train.jsonl and perhaps test.jsonl, or a data set in your hub cache, such as
    Anthropic/hh-rlhf/harmless-base. Its prompts take the place of --prompts; dpo, ipo, kto and rpo
    learn from its pairs."""
    too_long: Literal["skip", "truncate"] = "skip"
    """Pairs with longer prompts than max_prompt_tokens or answers than max_tokens are left out; or
    their prompts lose the oldest turns, and their answers the end."""
    held_out: UnitInterval = 0.2
    """Share of the prompts that is held out: the last ones. Of pairs, those of a share of the
    prompts; where there is a file for tests, that is it."""
    reward: Annotated[str, tyro.conf.arg(metavar="NAME|MODULE:FUNCTION|DIR")] = "vader"
    """Reward of answers: vader or textblob, sentiments from -1 to 1; a function of your own
    (prompts, answers) -> scores, on lists of texts; or a reward that experiments.align.reward has
    learnt from pairs."""
    gold: Annotated[str | None, tyro.conf.arg(metavar="NAME|MODULE:FUNCTION|DIR")] = None
    """Another reward, measured and never trained on, to tell over-optimisation; None: none."""
    preference: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """A judge of pairs of your own, (prompts, first answers, second answers) -> probabilities that
    the first is better, for online-dpo and on-policy-dpo; --reward is then measured alone. None:
    the reward is the judge."""
    max_tokens: Count = 32
    """Tokens of the longest answer."""
    max_prompt_tokens: Count = 256
    """Longer prompts are refused."""
    train: Literal["full", "last_layers", "lora"] = "last_layers"
    """What of a model is trained: all, its last layers (over states of the others that are computed
    once an update), or low-rank adapters."""
    num_last_layers: Count = 4
    """How many, with train last_layers."""
    lora_rank: Count = 8
    """Rank of adapters."""
    lora_alpha: Positive = 16.0
    """Adapters are multiplied by lora_alpha / lora_rank."""
    critic: Literal["trunk", "separate"] = "trunk"
    """Of PPO: a value head on the model's states, or a model of its own beside it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the arithmetic; auto: float32 on CPUs and bfloat16 elsewhere. What is trained
    stays in float32."""
    remat: bool = False
    """Compute the activations of layers anew for their gradient, to fit memory."""
    fsdp: Count = 1
    """Devices over which answers, and a share of every weight, are spread (fully sharded data
    parallel)."""
    tp: Count = 1
    """Devices over which each of those spreads attention heads and the MLP's width (tensor
    parallel); fsdp * tp devices are used. On CPUs such devices are made, to try it."""
    log_every: Annotated[Count | None, tyro.conf.arg(metavar="ANSWERS")] = None
    """Answers (of one seed) between two lines of metrics; None: a hundredth of all."""
    eval_every: Annotated[Count | None, tyro.conf.arg(metavar="ANSWERS")] = None
    """Answers (of one seed) between two evaluations; None: a tenth of all."""
    eval_prompts: Count = 32
    """Held-out prompts of an evaluation, the first so many of them."""
    eval_answers: Count = 4
    """Answers to each of them at an evaluation."""
    eval_pairs: Count = 64
    """Held-out pairs of which an evaluation tells margin and accuracy, the first so many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_paths(self, "model", "prompts", "pairs")
        if self.world == "model" and self.model is None:
            raise ConfigError("world", "model: needs one too: --model PATH|NAME")
        if self.world in TEXT_WORLDS and self.num_seeds > 1:
            raise ConfigError("num_seeds", f"{self.num_seeds}: expected 1 with world {self.world}")
        if not 0 < self.held_out < 1:
            raise ConfigError("held_out", f"{self.held_out}: expected a share between 0 and 1")
        method = self.method.replace("-", "_")
        if self.preference is not None and method not in ("online_dpo", "on_policy_dpo"):
            raise ConfigError(
                "preference", f"{self.preference}: goes with --method online-dpo or on-policy-dpo"
            )
        from_data = method in methods.FROM_DATA
        if self.world in TEXT_WORLDS and from_data and self.pairs is None:
            raise ConfigError("method", f"{self.method}: needs pairs too: --pairs PATH|NAME")
        if self.pairs is not None and self.prompts is not None:
            raise ConfigError("prompts", f"{self.prompts}: expected none with --pairs")
        self._refuse_what_nothing_reads()

    def _refuse_what_nothing_reads(self) -> None:
        for name, worlds in _READ_IN.items():
            if self.world not in worlds and flags.is_given(self, name):
                accepted = f"goes with --world {' or '.join(worlds)}"
                raise ConfigError(name, f"{getattr(self, name)}: {accepted}")
        if self.pairs is None:
            for name in ("too_long", "eval_pairs"):
                if flags.is_given(self, name):
                    raise ConfigError(name, f"{getattr(self, name)}: goes with --pairs")
        for name, field, value in (
            ("num_last_layers", "train", "last_layers"),
            ("lora_rank", "train", "lora"),
            ("lora_alpha", "train", "lora"),
            ("critic", "method", "ppo"),
        ):
            if getattr(self, field) != value and flags.is_given(self, name):
                raise ConfigError(name, f"{getattr(self, name)}: goes with {field} {value}")
