"""The settings that every alignment method shares, their meaning, unit and accepted range.

This module does not import JAX: flags are read and checked before anything heavy is loaded.
"""

import dataclasses
from typing import Annotated, Literal

from rgpo_jax.config import ConfigError, Scheduled
from rgpo_jax.ranges import Count, CountOrZero, Finite, NonNegative, Positive, Range

SEQUENCE_AGGREGATIONS = ("sequence", "sequence_mean")
"""Those with one ratio an answer, in the place of one a token."""
# Nearly greedy answers have log-probabilities that overflow.
_TEMPERATURE = Range(lambda x: x >= 1e-2, "a number of at least 0.01")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Scheduled):
    """Settings of every update step of language models, whatever it learns from.

    Whole numbers, names and switches select the compiled program. Real numbers are traced, and may
    differ between vmapped seeds.
    """

    num_updates: Count = 200
    """Updates of the whole run; the learning rate reaches its end with them."""
    num_prompts: Count = 8
    """Prompts of an update: all that there are come in turn, shuffled anew each time round."""
    learning_rate: Positive = 1e-6
    """Step size of the optimiser, at its largest: Adam, but for plain steps where the gradient is
    of who wins."""
    warmup_updates: CountOrZero = 0
    """Updates over which the learning rate first rises, along a line, to learning_rate."""
    max_grad_norm: Positive = 1.0
    """Largest global norm of a gradient; a longer one is scaled down to it."""
    temperature: Annotated[float, _TEMPERATURE] = 1.0
    """Temperature of sampling, at least 0.01. Ratios and KL are of what was sampled: they are
    computed at this temperature too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_updates * self.batch_size >= 2**31:
            raise ConfigError(
                "num_updates", f"{self.num_updates}: expected fewer than 2^31 answers"
            )
        if self.warmup_updates > self.num_updates:
            raise ConfigError(
                "warmup_updates",
                f"{self.warmup_updates}: expected at most num_updates, {self.num_updates}",
            )

    @property
    def batch_size(self) -> int:
        """Answers of an update."""
        raise NotImplementedError

    def traced(self) -> dict[str, float]:
        """The numbers that may differ between vmapped seeds of one compiled program."""
        numbers = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in numbers.items() if isinstance(x, float)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Minibatched(Common):
    """Settings of an update that takes several gradient steps on its samples."""

    num_epochs: Count = 2
    """Passes over the samples of an update."""
    num_minibatches: Count = 4
    """Gradient steps a pass; must divide the samples of an update."""
    microbatch_size: Count | None = None
    """Samples differentiated at a time, to fit memory: a divisor of a minibatch's, or more than it
    has. None: all of a minibatch at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number, what = self.num_samples, self._samples_in_words
        if number % self.num_minibatches:
            raise ConfigError(
                "num_minibatches",
                f"{self.num_minibatches}: expected a divisor of {what} = {number}",
            )
        minibatch_size = number // self.num_minibatches
        at_a_time = min(self.microbatch_size or minibatch_size, minibatch_size)
        if minibatch_size % at_a_time:
            raise ConfigError(
                "microbatch_size",
                f"{self.microbatch_size}: expected a divisor of a minibatch's {minibatch_size}",
            )

    @property
    def num_samples(self) -> int:
        """What an update shuffles into minibatches: answers, or pairs of them."""
        return self.batch_size

    @property
    def _samples_in_words(self) -> str:
        return "num_prompts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Minibatched):
    """Settings of the answers that an update learns from, of advantages, KL and loss."""

    group_size: Count = 8
    """Answers to each prompt (G)."""
    target_kl: Positive | None = None
    """Early stopping: from the first minibatch on that meets a KL to the policy that sampled above
    this (mean of r - 1 - log r over tokens, or over answers that have one ratio each; in nats), an
    update takes no more steps; None: takes all."""
    entropy_coefficient: NonNegative | None = None
    """Weight of an entropy bonus in the loss; None: no such term."""
    kl_coefficient: NonNegative = 0.05
    """Weight of the KL to the reference (beta)."""
    kl: Literal["reward", "published", "direct"] = "reward"
    """Where it enters. reward: each token's reward is reduced by it, of the policy that sampled;
    with k1 the gradient is that of KL(pi || ref) of whole answers, exactly. published: in the loss,
    as GRPO published it; with k3 its gradient is that of KL(ref || pi), with k2 that of KL(pi ||
    ref), and with k1 it is 0 on average. direct: in the loss, times the ratio to the policy that
    sampled; with k1 and k3 its gradient is that of KL(pi || ref). In the loss these are of whole
    answers where an answer's ratio is the product of its tokens', of no divergence where it is the
    product's root (GSPO), and else of each token, where it was chosen."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of a token, with d = log ref - log pi. k1: -d. k2: d^2 / 2. k3: e^d - 1 - d. In the reward,
    k2 and k3 have the gradient of no divergence."""
    kl_target: Positive | None = None
    """Adapt kl_coefficient, so that the KL of an answer to the reference tends to this, in nats
    (Ziegler et al. 2019); None: keep it."""
    kl_horizon: Positive = 10_000.0
    """Answers over which the coefficient adapts."""
    old_kl_coefficient: NonNegative | None = None
    """Weight of a second KL in the loss, to the policy that sampled, by k2: it holds the passes of
    an update near to it; None: no such term."""
    baseline: Literal["none", "batch", "group", "leave_one_out", "value"] = "leave_one_out"
    """What is subtracted from an answer's reward: nothing, the mean over the batch, that over its
    group, that over the others of its group, or a critic's value, token by token."""
    scale: Literal["none", "group", "batch"] = "none"
    """By whose standard deviation advantages are divided: none's, their group's, the batch's."""
    drop_equal_groups: bool = False
    """Leave out groups whose answers all have the same reward: they count in no mean (DAPO)."""
    aggregation: Literal["token_mean", "answer_mean", "token_sum", "sequence", "sequence_mean"] = (
        "token_sum"
    )
    """How a loss per token becomes one number. token_mean: mean over all tokens of a minibatch.
    answer_mean: mean over answers of the mean over their tokens. token_sum: mean over answers of
    the sum over their tokens, divided by length_constant. sequence: one ratio an answer, the
    product of its tokens'. sequence_mean: one ratio an answer, their geometric mean."""
    length_constant: Positive = 1.0
    """Divides the sum of aggregation token_sum; Dr. GRPO's is the longest answer's tokens."""
    missing_end: Finite | None = None
    """The reward of an answer that has no end token, in the place of its own; None: its own."""
    overlong_buffer: CountOrZero = 0
    """Over the last so many tokens before the longest answer a penalty rises from 0 to 1 (DAPO's
    soft overlong punishment); 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        in_group = self.baseline in ("group", "leave_one_out") or self.scale == "group"
        if self.group_size == 1 and (in_group or self.drop_equal_groups):
            raise ConfigError(
                "group_size",
                f"1: expected at least 2 with {self._why_groups()}; or --baseline batch",
            )
        if self.baseline == "value" and self.aggregation in SEQUENCE_AGGREGATIONS:
            raise ConfigError(
                "aggregation",
                f"{self.aggregation}: expected one of tokens with baseline value, whose advantages "
                "differ from token to token",
            )
        if self.length_constant != 1.0 and self.aggregation != "token_sum":
            raise ConfigError(
                "length_constant", f"{self.length_constant}: goes with aggregation token_sum"
            )
        if self.baseline == "value" and not hasattr(self, "gae_lambda"):
            raise ConfigError("baseline", "value: goes with a method that has a critic, ppo")
        if self.kl_target is None and self.kl_horizon != type(self).kl_horizon:
            raise ConfigError("kl_horizon", f"{self.kl_horizon}: goes with kl_target")
        if self.kl_target is not None:
            self._check_adaptation()
        if self.baseline == "value" and self.scale == "group":
            raise ConfigError("scale", "group: expected none or batch with baseline value")
        if self.baseline == "value" and self.drop_equal_groups:
            raise ConfigError("drop_equal_groups", "True: expected False with baseline value")

    def _check_adaptation(self) -> None:
        if self.kl_coefficient == 0:
            raise ConfigError(
                "kl_target", f"{self.kl_target}: expected None with kl_coefficient 0, which stays 0"
            )
        if self.kl_horizon < self.batch_size:
            raise ConfigError(
                "kl_horizon",
                f"{self.kl_horizon}: expected at least an update's {self.batch_size} answers",
            )

    def _why_groups(self) -> str:
        if self.baseline in ("group", "leave_one_out"):
            return f"baseline {self.baseline}"
        return "scale group" if self.scale == "group" else "drop_equal_groups"

    @property
    def _samples_in_words(self) -> str:
        return f"num_prompts * group_size = {self.num_prompts} * {self.group_size}"

    @property
    def batch_size(self) -> int:
        return self.num_prompts * self.group_size
