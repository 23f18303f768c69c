"""Actor and critic networks."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgpo_jax.config import Config, is_own_network
from rgpo_jax.convolution import convolve
from rgpo_jax.distributions import Categorical, Categoricals, Distribution, Normal, TanhNormal
from rgpo_jax.environment import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    Observation,
    ObservationShape,
    zeros,
)

Array = jax.Array
Params = Any
"""Parameters: a pytree of arrays."""

_CONTINUOUS_ONLY = ("policy", "state_dependent_std", "initial_std")
_LEAST_STD = 1e-3  # of the state-dependent standard deviation, as a fraction of the initial one


class Sequence(NamedTuple):
    """What B environments showed over T steps; a recurrent network reads it as its observation.

    Attributes:
      observation: [B, T, *observation_shape].
      is_first: bool [B, T]; the step is an episode's first, and the memory before it is forgotten.
      memory: before the first step, {"actor": [B, H], "critic": [B, H]}.
    """

    observation: Observation
    is_first: Array
    memory: Any


class Recurrence(NamedTuple):
    """How a recurrent network acts step by step, and what follows a step.

    Attributes:
      size: H, of the actor's memory and of the critic's.
      step: (params, observation [..., *observation_shape], memory) -> (Distribution [...], memory
        after the observation). Params and memory may be the actor's alone, {"actor": ...}: of a
        policy that was taken away no critic is left.
      values: (critic params, Sequence, final_observation [B, T, *observation_shape]) -> V(s_t) and
        V(s'_t), both [B, T], where s'_t is what the step led to before any reset: its memory is
        that of the episode which the step belongs to.
    """

    size: int
    step: Callable[[Params, Observation, Any], tuple[Distribution, Any]]
    values: Callable[[Params, Sequence, Observation], tuple[Array, Array]]


class Network(NamedTuple):
    """A policy and a value function, with separate parameters but for a torso that they may share.

    Attributes:
      observation_shape: of one observation, an array or a dict of arrays.
      init: key -> {"actor": params, "critic": params}.
      policy: (actor params, observation [..., *observation_shape]) -> Distribution [...]; of a
        recurrent network (actor params, Sequence) -> Distribution [B, T].
      value: (`critic` of params, observation [..., *observation_shape]) -> float32 [...]; of a
        recurrent network (critic params, Sequence) -> float32 [B, T].
      recurrence: None where the network has no memory.
      config: of which `make` has built it; None: a network of your own.
      torso: "module:Class" of the torso of your own that is in it; None: there is none.
      joint: (params, observation) -> what `policy` and `value` say of it, by one pass through the
        torso that they share, whose parameters are in params["actor"], since that is what a policy
        is taken away with; None: they share none.
    """

    observation_shape: ObservationShape
    init: Callable[[Array], Params]
    policy: Callable[[Params, Any], Distribution]
    value: Callable[[Params, Any], Array]
    recurrence: Recurrence | None = None
    config: Config | None = None
    torso: str | None = None
    joint: Callable[[Params, Observation], tuple[Distribution, Array]] | None = None

    def critic(self, params: Params) -> Params:
        """What the value function needs of {"actor": ..., "critic": ...}: all with a shared torso.

        A gradient through it moves a shared torso, and with it the policy.
        """
        return params["critic"] if self.joint is None else params

    def policy_and_value(self, params: Params, observation: Any) -> tuple[Distribution, Array]:
        """Both of one observation or Sequence, as a loss needs them."""
        if self.joint is not None:
            return self.joint(params, observation)
        policy = self.policy(params["actor"], observation)
        return policy, self.value(params["critic"], observation)

    @property
    def num_weights(self) -> int:
        """Number of parameters, of actor and critic together."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def initial_memory(self, *batch_shape: int) -> Any:
        """At the start of episodes: zeros {"actor", "critic"} [*batch_shape, H]; None without."""
        if self.recurrence is None:
            return None
        shape = (*batch_shape, self.recurrence.size)
        # An array each: it may be donated.
        return {name: jnp.zeros(shape, jnp.float32) for name in ("actor", "critic")}


def forget(memory: Any, where: Array) -> Any:
    """The initial memory where a condition [...] holds; memory is a tree of [..., H], or None."""
    return jax.tree.map(lambda x: jnp.where(where[..., None], 0.0, x), memory)


def respond(
    policy: Callable[..., Any], observation: Observation, memory: Any
) -> tuple[Distribution, Any]:
    """What a policy with or without memory does on an observation, and the memory after it.

    Args:
      policy: observation -> Distribution; or, where memory is not None, (observation, memory) ->
        (Distribution, memory).
      observation: [..., *observation_shape].
      memory: before the observation; None for a policy without.
    """
    if memory is None:
        return policy(observation), None
    return policy(observation, memory)


def _dense(features: int, scale: float, dtype: Any) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.orthogonal(scale))


class Convolution(NamedTuple):
    """A square convolution without padding."""

    features: int
    size: int
    stride: int


# Of DQN (Mnih et al., Nature 518, 2015), for pictures of 84 x 84.
_ATARI = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))


class Torso(nn.Module):
    """Observation [..., *shape] -> features [..., hidden_sizes[-1]], by convolutions if any."""

    observation_ndim: int
    hidden_sizes: tuple[int, ...]
    convolutions: tuple[Convolution, ...]
    activation: Callable[[Array], Array]
    dtype: Any

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        x = observation.astype(self.dtype)
        if observation.dtype == jnp.uint8 and self.observation_ndim == 3:  # pixels
            x /= 255
        batch_shape = x.shape[: x.ndim - self.observation_ndim]
        for features, size, stride in self.convolutions:
            convolution = nn.Conv(
                features,
                (size, size),
                strides=(stride, stride),
                padding="VALID",
                dtype=self.dtype,
                kernel_init=nn.initializers.orthogonal(math.sqrt(2)),
                conv_general_dilated=convolve,
            )
            x = self.activation(convolution(x))
        x = x.reshape(*batch_shape, -1)
        for features in self.hidden_sizes:
            x = self.activation(_dense(features, math.sqrt(2), self.dtype)(x))
        return x


class JointTorso(nn.Module):
    """A dict of observations -> features [..., n]: an encoder of each, and a trunk behind them all.

    Encoders end in as many features each, so that a vector is heard beside an image.
    """

    encoders: dict[str, Torso]
    trunk: Torso

    def __call__(self, observation: dict[str, Array]) -> Array:
        encoded = [self.encoders[name](observation[name]) for name in sorted(self.encoders)]
        return self.trunk(jnp.concatenate(encoded, axis=-1))


class Head(nn.Module):
    """A torso and a linear read-out, computed in float32 whatever the torso computes in."""

    torso: Callable[[Observation], Array]
    features: int
    scale: float

    @nn.compact
    def __call__(self, observation: Observation) -> Array:
        features = self.torso(observation).astype(jnp.float32)
        return _dense(self.features, self.scale, jnp.float32)(features)


class RecurrentTorso(nn.Module):
    """A torso, and behind it a GRU whose memory [..., size] is its output; it is kept in float32.

    Source: arXiv 1406.1078.
    """

    torso: Any  # a module: observation -> features
    size: int
    dtype: Any

    def setup(self) -> None:
        """Makes the GRU's cell, which one step and a whole sequence share."""
        self.cell = nn.GRUCell(
            self.size, dtype=self.dtype, kernel_init=nn.initializers.orthogonal()
        )

    def __call__(self, observation: Observation, memory: Array) -> Array:
        """The memory after one observation."""
        return self.cell(memory, self.torso(observation))[0].astype(jnp.float32)

    def unroll(self, observation: Observation, is_first: Array, memory: Array) -> Array:
        """The memories [B, T, size] after each of T observations; `memory` [B, size] is before."""

        def step(cell: nn.GRUCell, memory: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
            features, is_first = xs
            memory = cell(forget(memory, is_first), features)[0].astype(jnp.float32)
            return memory, memory

        # The torso sees all steps at once: only the recurrence itself has to wait for the past.
        xs = self.torso(observation), is_first
        scan = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        return scan(self.cell, memory, xs)[1]


class NormalHead(nn.Module):
    """Means from a head, and a log standard deviation that does not depend on the state."""

    mean: Head
    initial_std: float

    @nn.compact
    def __call__(self, observation: Observation) -> tuple[Array, Array]:
        initial = nn.initializers.constant(math.log(self.initial_std))
        return self.mean(observation), self.param("log_std", initial, (self.mean.features,))


class StateDependentNormalHead(nn.Module):
    """Means and log standard deviations, both from one head of 2 d features.

    The standard deviation is `initial_std` at a feature of 0 and softplus of it elsewhere, shifted
    and scaled: it never collapses, and a feature far off neither overflows nor takes large steps.

    Source: softplus and a least deviation as in brax's NormalTanhDistribution; shifted to a chosen
    initial one as arXiv 2006.05990 recommends.
    """

    mean_and_std: Head
    initial_std: float

    @nn.compact
    def __call__(self, observation: Observation) -> tuple[Array, Array]:
        mean, feature = jnp.split(self.mean_and_std(observation), 2, axis=-1)
        shift = math.log(math.expm1(1.0 - _LEAST_STD))
        relative_std = nn.softplus(feature + shift) + _LEAST_STD
        return mean, jnp.log(relative_std) + math.log(self.initial_std)


def _check_policy(action_space: ActionSpace, config: Config) -> None:
    """Raises ValueError where the policy that was asked for cannot act in the space."""
    if not isinstance(action_space, Box):
        if isinstance(action_space, Discrete):
            here = f"there are {action_space.n} discrete ones"
        else:
            here = f"{len(action_space.nvec)} discrete ones are chosen at once"
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name in _CONTINUOUS_ONLY and value != field.default:
                raise ValueError(f"{field.name} {value}: for continuous actions alone; here {here}")
    elif config.policy == "tanh_normal":
        bounds = zip(action_space.low, action_space.high, strict=True)
        for i, (low, high) in enumerate(bounds):
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(
                    f"policy tanh_normal: expected a bounded action, and element {i} is in "
                    f"[{low}, {high}]"
                )


def _convolutions(observation_shape: tuple[int, ...], config: Config) -> tuple[Convolution, ...]:
    """Those for an array; none where it is no image or they are not wanted."""
    if len(observation_shape) != 3 or config.network == "mlp":
        return ()
    own = tuple(Convolution(features, 3, 1) for features in config.channels)
    convolutions = _ATARI if config.network == "atari" else own
    left = min(observation_shape[:2])
    for _, size, stride in convolutions:
        left = (left - size) // stride + 1
        if left < 1:
            what = "network atari" if convolutions is _ATARI else "channels"
            first = f"{convolutions[0].size}x{convolutions[0].size}"
            raise ValueError(
                f"{what}: {len(convolutions)} convolutions, the first of {first}, leave nothing of "
                f"observations {observation_shape}"
            )
    return convolutions


def _make_torso(observation_shape: ObservationShape, config: Config) -> Torso | JointTorso:
    """Layers up to the heads; raises ValueError as `make` does."""

    torso = functools.partial(
        Torso, activation=getattr(nn, config.activation), dtype=jnp.dtype(config.dtype)
    )

    def encoder(shape: tuple[int, ...], hidden_sizes: tuple[int, ...]) -> Torso:
        return torso(len(shape), hidden_sizes, _convolutions(shape, config))

    parts = observation_shape if isinstance(observation_shape, dict) else {"": observation_shape}
    if config.network in ("cnn", "atari") and all(len(shape) != 3 for shape in parts.values()):
        raise ValueError(
            f"network: a CNN needs observations [height, width, channels], not {observation_shape}"
        )
    if not isinstance(observation_shape, dict):
        return encoder(observation_shape, config.hidden_sizes)
    encoders = {name: encoder(shape, config.hidden_sizes[:1]) for name, shape in parts.items()}
    return JointTorso(encoders, trunk=torso(1, config.hidden_sizes[1:], convolutions=()))


def make(
    observation_shape: ObservationShape,
    action_space: ActionSpace,
    config: Config,
    torso: nn.Module | None = None,
) -> Network:
    """Builds actor and critic: orthogonal weights, the policy's last layer scaled by 0.01.

    A torso of your own is a module of flax.linen, observation [..., *observation_shape] -> features
    [..., n], in the place of the config's. Actor and critic have one each, with parameters of their
    own, or one for both with `config.shared_torso`, and the policy's head and the critic's behind.

    Where an observation is a dict of arrays, each has an encoder of its own, which ends in the
    first of `config.hidden_sizes`, and the other layers are behind all of them together. With
    `config.network` "gru" actor and critic have a memory each (see `Recurrence`).

    Raises:
      ValueError: the config's network is one of your own, and there is no torso; a CNN is asked for
        observations that are not [height, width, channels], or that
        its convolutions shrink to nothing; a policy does not fit the actions (see `Config`).
    """
    _check_policy(action_space, config)
    recurrent = config.network == "gru"
    if torso is not None:
        config = _named_after(torso, config)
    elif is_own_network(config.network):
        raise ValueError(f"network {config.network}: expected the module itself, as network=")

    def make_torso(config: Config = config) -> Any:
        return _make_torso(observation_shape, config) if torso is None else torso

    # What stands behind a memory, or behind one torso for both, sees what that says.
    seen_shape = (config.recurrent_size,) if recurrent else observation_shape
    if torso is not None or config.shared_torso:
        features_shape = _features_shape(make_torso(), observation_shape)
        seen_shape = features_shape if config.shared_torso else seen_shape

    def head(features: int, scale: float, config: Config = config) -> Head:
        behind = recurrent or config.shared_torso
        return Head((lambda seen: seen) if behind else make_torso(config), features, scale)

    of_critic = config
    if config.critic_hidden_sizes is not None:
        of_critic = dataclasses.replace(config, hidden_sizes=config.critic_hidden_sizes)
    critic = head(1, 1.0, of_critic)
    actor: nn.Module
    if isinstance(action_space, Discrete):
        actor = head(action_space.n, 0.01)
    elif isinstance(action_space, MultiDiscrete):
        actor = head(sum(action_space.nvec), 0.01)
    else:
        size = math.prod(action_space.shape)
        if config.state_dependent_std:
            actor = StateDependentNormalHead(head(2 * size, 0.01), config.initial_std)
        else:
            actor = NormalHead(head(size, 0.01), config.initial_std)
    continuous = TanhNormal if config.policy == "tanh_normal" else Normal

    def init(key: Array) -> Params:
        actor_key, critic_key = jax.random.split(key)
        observation = zeros(seen_shape)
        return {
            "actor": actor.init(actor_key, observation),
            "critic": critic.init(critic_key, observation),
        }

    def policy(params: Params, observation: Observation) -> Distribution:
        output: Any = actor.apply(params, observation)
        if isinstance(action_space, Discrete):
            return Categorical.from_logits(output)
        if isinstance(action_space, MultiDiscrete):
            return Categoricals.from_logits(output, action_space.nvec)
        mean, log_std = output
        return continuous(mean, log_std)

    def value(params: Params, observation: Observation) -> Array:
        output: Any = critic.apply(params, observation)
        return output[..., 0]

    network = Network(seen_shape, init, policy, value)
    if recurrent:
        memory = RecurrentTorso(make_torso(), config.recurrent_size, jnp.dtype(config.dtype))
        network = _with_memory(network, memory, observation_shape)
    elif config.shared_torso:
        network = _with_torso(network, make_torso(), observation_shape)
    name = None if torso is None else name_of(torso)
    return network._replace(config=config, torso=name)


def name_of(torso: nn.Module) -> str:
    """Module and class of a torso, as in "my_module:MyNet"."""
    return f"{type(torso).__module__}:{type(torso).__qualname__}"


def _named_after(torso: nn.Module, config: Config) -> Config:
    """A config that says whose torso it is, so that none other is built in its place."""
    if config.network == "gru" or is_own_network(config.network):
        return config
    return dataclasses.replace(config, network=name_of(torso))


def _features_shape(torso: nn.Module, observation_shape: ObservationShape) -> tuple[int]:
    """Of what a torso says of one observation; raises ValueError where that is no vector."""
    observations = jax.tree.map(lambda x: jnp.stack([x, x]), zeros(observation_shape))
    try:
        features, _ = jax.eval_shape(torso.init_with_output, jax.random.key(0), observations)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"network {name_of(torso)}: {type(error).__name__}: {first}") from error
    shapes = jax.tree.map(lambda x: x.shape, features)
    if not (hasattr(features, "shape") and features.ndim == 2 and len(features) == 2):
        raise ValueError(
            f"network {name_of(torso)}: expected features [batch, n] of 2 observations "
            f"{observation_shape}, and they are {shapes}"
        )
    return (features.shape[1],)


def _with_torso(heads: Network, torso: nn.Module, observation_shape: ObservationShape) -> Network:
    """A network of heads whose observation is what one torso says, for both of them."""

    def init(key: Array) -> Params:
        heads_key, torso_key = jax.random.split(key)
        params = heads.init(heads_key)
        of_torso = torso.init(torso_key, zeros(observation_shape))
        return params | {"actor": {"torso": of_torso, "head": params["actor"]}}

    def features(actor_params: Params, observation: Observation) -> Array:
        result: Any = torso.apply(actor_params["torso"], observation)
        return result

    def policy(params: Params, observation: Observation) -> Distribution:
        return heads.policy(params["head"], features(params, observation))

    def value(params: Params, observation: Observation) -> Array:
        return heads.value(params["critic"], features(params["actor"], observation))

    def joint(params: Params, observation: Observation) -> tuple[Distribution, Array]:
        seen = features(params["actor"], observation)
        policy = heads.policy(params["actor"]["head"], seen)
        return policy, heads.value(params["critic"], seen)

    return Network(observation_shape, init, policy, value, joint=joint)


def _with_memory(
    heads: Network, torso: RecurrentTorso, observation_shape: ObservationShape
) -> Network:
    """A recurrent network of heads whose observation is the memory, and the torso that keeps it."""

    def init(key: Array) -> Params:
        heads_key, *torso_keys = jax.random.split(key, 3)
        observation, memory = zeros(observation_shape), jnp.zeros(torso.size)
        return {
            name: {"torso": torso.init(torso_key, observation, memory), "head": head}
            for torso_key, (name, head) in zip(
                torso_keys, heads.init(heads_key).items(), strict=True
            )
        }

    def advance(params: Params, observation: Observation, memory: Array) -> Array:
        result: Any = torso.apply(params["torso"], observation, memory)
        return result

    def unroll(params: Params, sequence: Sequence, name: str) -> Array:
        if not isinstance(sequence, Sequence):
            raise TypeError("a recurrent network needs a memory beside the observation")
        inputs = sequence.observation, sequence.is_first, sequence.memory[name]
        result: Any = torso.apply(params["torso"], *inputs, method="unroll")
        return result

    def policy(params: Params, sequence: Sequence) -> Distribution:
        return heads.policy(params["head"], unroll(params, sequence, "actor"))

    def value(params: Params, sequence: Sequence) -> Array:
        return heads.value(params["head"], unroll(params, sequence, "critic"))

    def step(params: Params, observation: Observation, memory: Any) -> tuple[Distribution, Any]:
        memory = {name: advance(params[name], observation, memory[name]) for name in memory}
        return heads.policy(params["actor"]["head"], memory["actor"]), memory

    def values(
        params: Params, sequence: Sequence, final_observation: Observation
    ) -> tuple[Array, Array]:
        memory = unroll(params, sequence, "critic")
        # From the memory after the step, which no reset has touched: the next step's does that.
        next_memory = advance(params, final_observation, memory)
        return heads.value(params["head"], memory), heads.value(params["head"], next_memory)

    return Network(observation_shape, init, policy, value, Recurrence(torso.size, step, values))
