"""Actor and critic networks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgpo_jax.config import Config
from rgpo_jax.distributions import Categorical, Distribution, Normal
from rgpo_jax.environment import Box, Discrete

Array = jax.Array
Params = Any


class Network(NamedTuple):
    """A policy and a value function with separate parameters.

    Attributes:
      init: key -> {"actor": params, "critic": params}.
      policy: (actor params, observation [..., *observation_shape]) -> Distribution [...].
      value: (critic params, observation [..., *observation_shape]) -> float32 [...].
    """

    init: Callable[[Array], Params]
    policy: Callable[[Params, Array], Distribution]
    value: Callable[[Params, Array], Array]


def _dense(features: int, scale: float, dtype: Any) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.orthogonal(scale))


class Torso(nn.Module):
    """Observation [..., *shape] -> features [..., hidden_sizes[-1]]; convolutions if `channels`."""

    observation_ndim: int
    hidden_sizes: tuple[int, ...]
    channels: tuple[int, ...]
    activation: Callable[[Array], Array]
    dtype: Any

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        x = observation.astype(self.dtype)
        if observation.dtype == jnp.uint8 and self.observation_ndim == 3:  # pixels
            x /= 255
        batch_shape = x.shape[: x.ndim - self.observation_ndim]
        for features in self.channels:
            convolution = nn.Conv(
                features,
                (3, 3),
                padding="VALID",
                dtype=self.dtype,
                kernel_init=nn.initializers.orthogonal(math.sqrt(2)),
            )
            x = self.activation(convolution(x))
        x = x.reshape(*batch_shape, -1)
        for features in self.hidden_sizes:
            x = self.activation(_dense(features, math.sqrt(2), self.dtype)(x))
        return x


class Head(nn.Module):
    """A torso and a linear read-out, computed in float32 whatever the torso computes in."""

    torso: Torso
    features: int
    scale: float

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        features = self.torso(observation).astype(jnp.float32)
        return _dense(self.features, self.scale, jnp.float32)(features)


class NormalHead(nn.Module):
    """Means from a head, and a log standard deviation that does not depend on the state."""

    mean: Head

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array]:
        log_std = self.param("log_std", nn.initializers.zeros, (self.mean.features,))
        return self.mean(observation), log_std


def make(
    observation_shape: tuple[int, ...], action_space: Discrete | Box, config: Config
) -> Network:
    """Builds actor and critic: orthogonal weights, the policy's last layer scaled by 0.01.

    Raises:
      ValueError: a CNN is asked for observations that are not [height, width, channels], or that
        its convolutions shrink to nothing.
    """
    image_like = len(observation_shape) == 3
    use_cnn = config.network == "cnn" or (config.network == "auto" and image_like)
    if use_cnn and not image_like:
        raise ValueError(
            f"network: a CNN needs observations [height, width, channels], not {observation_shape}"
        )
    if use_cnn and min(observation_shape[:2]) <= 2 * len(config.channels):
        raise ValueError(
            f"channels: {len(config.channels)} convolutions of 3x3 leave nothing of observations "
            f"{observation_shape}"
        )

    def head(features: int, scale: float) -> Head:
        torso = Torso(
            observation_ndim=len(observation_shape),
            hidden_sizes=config.hidden_sizes,
            channels=config.channels if use_cnn else (),
            activation=getattr(nn, config.activation),
            dtype=jnp.dtype(config.dtype),
        )
        return Head(torso, features, scale)

    critic = head(1, 1.0)
    actor: nn.Module
    if isinstance(action_space, Discrete):
        actor = head(action_space.n, 0.01)
    else:
        actor = NormalHead(head(math.prod(action_space.shape), 0.01))

    def init(key: Array) -> Params:
        actor_key, critic_key = jax.random.split(key)
        observation = jnp.zeros(observation_shape)
        return {
            "actor": actor.init(actor_key, observation),
            "critic": critic.init(critic_key, observation),
        }

    def policy(params: Params, observation: Array) -> Distribution:
        output: Any = actor.apply(params, observation)
        if isinstance(action_space, Discrete):
            return Categorical.from_logits(output)
        mean, log_std = output
        return Normal(mean, log_std)

    def value(params: Params, observation: Array) -> Array:
        output: Any = critic.apply(params, observation)
        return output[..., 0]

    return Network(init, policy, value)
