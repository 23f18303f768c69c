"""The settings that every agent shares, their meaning, unit and accepted range.

This module does not import JAX: flags are read and checked before anything heavy is loaded.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal

from rgpo_jax.ranges import (
    Above,
    Count,
    CountOrZero,
    Counts,
    NonNegative,
    Positive,
    Range,
    UnitInterval,
)

NETWORKS = ("auto", "mlp", "cnn", "atari", "gru")


def is_own_network(name: str) -> bool:
    """Whether a network is MODULE:NAME, one of a user's own."""
    module, colon, attribute = name.partition(":")
    return bool(colon and module and attribute)


class ConfigError(ValueError):
    """A setting out of range. `field` is its name; `message` gives value and accepted range."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


class Checked:
    """A dataclass whose fields are checked against the `Range` or `Literal` of their annotation.

    Numbers of NumPy and JAX become Python's, whole ones that stand for real ones floats, and lists
    that stand for tuples tuples: equal settings are equal, can be hashed, and are told alike.
    """

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            kinds = _types(hint)
            value = _as_pythons(getattr(self, name), kinds)
            _check(name, value, hint)
            if float in kinds and type(value) is int:
                value = float(value)
            object.__setattr__(self, name, value)
            for constraint in getattr(hint, "__metadata__", ()):
                if isinstance(constraint, Above):
                    accepted = constraint.beyond(getattr(self, constraint.setting))
                    _check_range(name, value, accepted, None)


def _types(hint: Any) -> set[Any]:
    """The types of an annotation's values, without what is said of them."""
    if typing.get_origin(hint) is typing.Annotated:
        return _types(hint.__origin__)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_types, typing.get_args(hint)))
    return {origin or hint}


def _as_pythons(value: Any, kinds: set[Any]) -> Any:
    if isinstance(value, list | tuple) and tuple in kinds:
        return tuple(_as_pythons(element, {int, float}) for element in value)
    if {int, float} & kinds and hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        try:
            return value.item()
        except Exception:  # a traced one has no value: it is refused by name
            return value
    return value


def _check(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is typing.Annotated:
        inner = typing.get_args(hint)[0]
        if typing.get_origin(inner) is not tuple:
            _check(name, value, inner)
    options = typing.get_args(hint) if typing.get_origin(hint) is not typing.Annotated else (hint,)
    if value is None and type(None) in options:
        return
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(name, f"{value!r}: expected True or False")
    if typing.get_origin(hint) is Literal and value not in options:
        raise ConfigError(name, f"{value!r}: expected one of {', '.join(map(str, options))}")
    for option in options:
        for constraint in getattr(option, "__metadata__", ()):
            if isinstance(constraint, Range):
                _check_range(name, value, constraint, typing.get_origin(option.__origin__))


def _check_range(name: str, value: Any, constraint: Range, container: type | None) -> None:
    if container is None:
        if not constraint.admits(value):
            raise ConfigError(name, f"{value}: expected {constraint.accepted}")
    elif not isinstance(value, tuple):
        raise ConfigError(name, f"{value!r}: expected a tuple, each element {constraint.accepted}")
    elif not all(map(constraint.admits, value)):
        raise ConfigError(name, f"{' '.join(map(str, value))}: expected {constraint.accepted}")


_STATIC_NUMBERS = ("initial_std",)  # only initial parameters depend on it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled(Checked):
    """How the learning rate moves over a run, whatever is trained.

    A subclass has a `learning_rate`, `num_updates` and `warmup_updates`. A schedule's name selects
    the compiled program, but for a constant rate, which is a linear one; its numbers are traced.
    """

    learning_rate_schedule: Literal["auto", "linear", "cosine", "constant"] = "auto"
    """How the learning rate goes to its end, over the whole run: along a line or half a cosine, or
    constant: it stays. auto: linear, or constant where anneal_learning_rate is off."""
    end_learning_rate: NonNegative = 0.0
    """Learning rate at the end of the run, where the schedule is linear or cosine."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall, where learning_rate_schedule is auto."""

    def __post_init__(self) -> None:
        if callable(getattr(self, "learning_rate", None)):
            raise ConfigError(
                "learning_rate",
                "is a function: expected a number; learning_rate_schedule and warm-up say how it "
                "moves, and an optimizer= of optax moves as it likes",
            )
        super().__post_init__()
        named = self.learning_rate_schedule
        # False may be an agent's own default, which a name replaces.
        if named in ("linear", "cosine") and (
            type(self).anneal_learning_rate and not self.anneal_learning_rate
        ):
            raise ConfigError(
                "anneal_learning_rate", f"False: expected True with learning_rate_schedule {named}"
            )
        if self.schedule == "constant" and self.end_learning_rate:
            raise ConfigError(
                "end_learning_rate",
                f"{self.end_learning_rate}: expected 0 with a constant rate, which has no end",
            )

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        raise NotImplementedError

    @property
    def warmup_updates(self) -> int:
        """Updates before the learning rate is at its largest."""
        raise NotImplementedError

    @property
    def schedule(self) -> str:
        """linear, cosine or constant."""
        if self.learning_rate_schedule != "auto":
            return self.learning_rate_schedule
        return "linear" if self.anneal_learning_rate else "constant"

    @property
    def annealing(self) -> float:
        """The share of the way from the learning rate to its end that an update goes."""
        left = self.num_updates - self.warmup_updates
        return 0.0 if self.schedule == "constant" else 1.0 / max(1, left)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Scheduled):
    """Settings of the rollout, the networks and the update step.

    Whole numbers, names and switches select the compiled program. Real numbers, but for
    `initial_std`, are defaults of `learner.Hyperparameters`: they are traced, and may differ
    between vmapped seeds.
    """

    total_steps: Count = 500_000
    """Environment steps of the whole run, over all environments of one seed; the learning rate
    reaches its end with them."""
    num_envs: Count = 4
    """Environments stepped side by side."""
    num_steps: Count = 128
    """Steps of each environment between two updates."""
    num_epochs: Count = 4
    """Passes over each rollout."""
    num_minibatches: Count = 4
    """Gradient steps a pass; must divide num_envs * num_steps, or with network gru num_envs."""
    microbatch_size: Count | None = None
    """Samples differentiated at a time, to fit memory or caches: a gradient is the mean over a
    minibatch's parts of this size. None: all at once."""
    learning_rate: Positive = 2.5e-4
    """Step size of Adam, at its largest; learning_rate_schedule says how it moves."""
    warmup_steps: CountOrZero = 0
    """Environment steps of one seed, over which the learning rate first rises, along a line, to
    learning_rate; rounded up to whole updates. 0: it starts there."""
    discount: UnitInterval = 0.99
    """Discount factor gamma per step, from 0 to 1."""
    gae_lambda: UnitInterval = 0.95
    """Lambda of generalised advantage estimation, from 0 (one-step) to 1 (full returns)."""
    reward_scale: Positive = 1.0
    """Factor on rewards in learning (not in reported returns), to keep values near 1 to 10."""
    entropy_coefficient: NonNegative = 0.01
    """Weight of the entropy bonus in the loss."""
    value_coefficient: NonNegative = 0.5
    """Weight of the value loss, half the mean squared error."""
    value_clip: Positive | None = None
    """Clip range of values around those before the update, as in OpenAI's PPO: the value loss is
    the larger of the plain and the clipped one; None: the plain one. The metric value_loss is the
    plain one, and penalty what is added."""
    kl_coefficient: NonNegative | None = None
    """Weight in the loss of KL(old || new), by the estimate r - 1 - log r, in nats: the penalty of
    P3O, and of PPO without a clip (--agent importance); None: no such term."""
    max_grad_norm: Positive = 0.5
    """Largest global norm of a gradient; a longer one is scaled down to it."""
    target_kl: Positive | None = None
    """Early stopping: from the first minibatch on that meets a KL of the policy above this (r - 1 -
    log r, in nats), an update takes no more gradient steps of actor and critic; None: takes all."""
    normalize_advantages: bool = True
    """Shift and scale advantages to mean 0 and standard deviation 1."""
    normalize_advantages_over: Literal["rollout", "minibatch"] = "rollout"
    """What has mean 0 and standard deviation 1 then: the advantages of a rollout, or those of each
    minibatch, as in CleanRL, PureJaxRL and OpenAI's PPO."""
    normalize_observations: bool = False
    """Shift and scale observations, elementwise, to mean 0 and standard deviation 1 over all that
    were seen, and clip them to [-10, 10]."""
    normalize_rewards: bool = False
    """Divide rewards by the standard deviation of all discounted returns so far, and clip them to
    [-10, 10], in learning (not in reported returns)."""
    network: str = "auto"
    """Torso of actor and critic: auto, mlp, cnn, atari or gru. auto is a CNN for image-like
    observations (height, width, channels) and an MLP for all others; atari has the strided
    convolutions of DQN (2015); gru puts a recurrent layer behind auto's, for tasks with hidden
    state, and learns from whole sequences of num_steps. MODULE:NAME is your own."""
    hidden_sizes: Counts = (64, 64)
    """Units of each hidden layer of an MLP, or of the dense layers behind a CNN. Where observations
    are several arrays, such as an image and a vector, each has the first of these layers to itself,
    and the others are behind all of them."""
    critic_hidden_sizes: Counts | None = None
    """Those of the critic, where they differ from the actor's hidden_sizes."""
    shared_torso: bool = False
    """One torso under both heads, the actor's and the critic's, which both losses train; else each
    has its own. Half the work where the torso is most of it, as with images."""
    recurrent_size: Count = 64
    """Units of a GRU: how much it can remember."""
    channels: Counts = (16,)
    """Channels of each 3x3 convolution of a CNN."""
    activation: Literal["tanh", "relu", "silu", "gelu"] = "tanh"
    """Activation between layers."""
    policy: Literal["normal", "tanh_normal"] = "normal"
    """Distribution of continuous actions: normal ones are clipped to the bounds, tanh_normal
    ones are squashed into them by tanh. Refused with discrete actions."""
    state_dependent_std: bool = False
    """Let the network give the standard deviations of continuous actions as well; else they are
    parameters that all states share. Refused with discrete actions."""
    initial_std: Positive = 1.0
    """Standard deviation of a continuous action at first, before the tanh if any, where the
    bounds are -1 and 1. Refused with discrete actions."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the networks' arithmetic; parameters, losses and returns stay float32. float16
    loses what a step adds to the gradient of thousands: bfloat16 does not, from 2,048 steps a
    minibatch on."""
    reset_pool_size: CountOrZero = 16
    """Fresh starts that each environment draws per rollout and restarts from in order; 0 computes
    a reset for every environment at every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.num_minibatches:
            raise ConfigError(
                "num_minibatches",
                f"{self.num_minibatches}: expected a divisor of num_envs * num_steps = "
                f"{self.num_envs} * {self.num_steps} = {self.batch_size}",
            )
        if self.network not in NETWORKS and not is_own_network(self.network):
            near = difflib.get_close_matches(self.network, NETWORKS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                "network", f"{self.network}: {hint}expected {', '.join(NETWORKS)} or MODULE:NAME"
            )
        if self.network == "gru":
            self._check_sequences()
            if self.critic_hidden_sizes is not None:
                raise ConfigError("critic_hidden_sizes", "expected None with network gru")
            if self.shared_torso:
                raise ConfigError("shared_torso", "True: expected False with network gru")
        if self.shared_torso and self.critic_hidden_sizes is not None:
            raise ConfigError("critic_hidden_sizes", "expected None with shared_torso")
        if self.target_kl is not None and self.num_epochs * self.num_minibatches == 1:
            raise ConfigError(
                "target_kl",
                f"{self.target_kl}: expected None where an update is one gradient step",
            )
        minibatch_size = self.batch_size // self.num_minibatches
        over = self.normalize_advantages_over
        together = self.batch_size if over == "rollout" else minibatch_size
        if self.normalize_advantages and together == 1:
            raise ConfigError(
                "normalize_advantages",
                f"True: expected False where a {over} is one step, whose advantage would be 0",
            )
        if not self.normalize_advantages and over != "rollout":
            raise ConfigError(
                "normalize_advantages_over",
                f"{over}: expected rollout without normalize_advantages",
            )
        if self.microbatch_size is not None and minibatch_size % self.microbatch_size:
            raise ConfigError(
                "microbatch_size",
                f"{self.microbatch_size}: expected a divisor of a minibatch's {minibatch_size} "
                "samples",
            )
        for field, number in (("num_envs", self.batch_size), ("total_steps", self.num_updates)):
            if number >= 2**31:
                raise ConfigError(
                    field,
                    f"{getattr(self, field)}: expected fewer than 2^31 steps a rollout and 2^31 "
                    "updates",
                )
        if self.warmup_steps > self.total_steps:
            raise ConfigError(
                "warmup_steps",
                f"{self.warmup_steps}: expected at most total_steps, {self.total_steps}",
            )
        if self.total_steps < self.batch_size:
            raise ConfigError(
                "total_steps",
                f"{self.total_steps}: expected at least one update, num_envs * num_steps = "
                f"{self.num_envs} * {self.num_steps} = {self.batch_size}",
            )

    def _check_sequences(self) -> None:
        if self.num_envs % self.num_minibatches:
            raise ConfigError(
                "num_minibatches",
                f"{self.num_minibatches}: expected a divisor of num_envs = {self.num_envs}, since "
                "with network gru a minibatch is made of whole sequences, one of each environment",
            )
        if self.microbatch_size is not None:
            raise ConfigError(
                "microbatch_size",
                f"{self.microbatch_size}: expected None with network gru, whose sequences are not "
                "cut; more num_minibatches need less memory",
            )

    def traced(self) -> dict[str, float]:
        """The numbers that may differ between vmapped seeds of one compiled program."""
        numbers = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in numbers.items()
            if isinstance(value, float) and name not in _STATIC_NUMBERS
        }

    @property
    def batch_size(self) -> int:
        """Steps in a rollout, over all environments."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Updates of the whole run: the least number that reaches total_steps."""
        return -(-self.total_steps // self.batch_size)

    @property
    def warmup_updates(self) -> int:
        """Updates before the learning rate is at its largest."""
        return -(-self.warmup_steps // self.batch_size)
