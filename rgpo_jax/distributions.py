"""Action distributions as pytrees: sample, log_prob, entropy, mode and kl."""

import math
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


class Distribution(Protocol):
    """What the update step asks of a policy's distribution, batched over leading axes [...]."""

    def noise(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Noise for a batch of actions of leading axes `shape`, whatever this batch's own are."""
        ...

    def sample_from(self, noise: Array) -> Array:
        """Turns noise into one action per batch element."""
        ...

    def sample(self, key: Array) -> Array:
        """Draws one action per batch element."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Log-probability or log-density of an action, in nats [...]."""
        ...

    def entropy(self) -> Array:
        """Entropy in nats [...]."""
        ...

    def mode(self) -> Array:
        """The most probable action."""
        ...

    def kl(self, other: Any) -> Array:
        """KL(self || other) in nats [...], for another distribution of the same class."""
        ...


@flax.struct.dataclass
class Categorical:
    """Distribution over {0, ..., n - 1}.

    Attributes:
      log_probs: normalised log-probabilities [..., n].
    """

    log_probs: Array

    @classmethod
    def from_logits(cls, logits: Array) -> "Categorical":
        """Normalises logits [..., n]."""
        return cls(jax.nn.log_softmax(logits))

    def noise(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.gumbel(key, (*shape, self.log_probs.shape[-1]))

    def sample_from(self, noise: Array) -> Array:
        return jnp.argmax(self.log_probs + noise, axis=-1)

    def sample(self, key: Array) -> Array:
        return self.sample_from(self.noise(key, self.log_probs.shape[:-1]))

    def log_prob(self, action: Array) -> Array:
        # A masked sum: its gradient is elementwise, where that of a gather is a scatter.
        chosen = action[..., None] == jnp.arange(self.log_probs.shape[-1])
        return jnp.sum(jnp.where(chosen, self.log_probs, 0.0), axis=-1)

    def entropy(self) -> Array:
        return -jnp.sum(jnp.exp(self.log_probs) * self.log_probs, axis=-1)

    def mode(self) -> Array:
        return jnp.argmax(self.log_probs, axis=-1)

    def kl(self, other: "Categorical") -> Array:
        return jnp.sum(jnp.exp(self.log_probs) * (self.log_probs - other.log_probs), axis=-1)


@flax.struct.dataclass
class Normal:
    """Independent normal distributions over the last axis.

    Attributes:
      mean: [..., d].
      log_std: log of the standard deviation, [..., d] or [d].
    """

    mean: Array
    log_std: Array

    def noise(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.normal(key, (*shape, self.mean.shape[-1]))

    def sample_from(self, noise: Array) -> Array:
        return self.mean + jnp.exp(self.log_std) * noise

    def sample(self, key: Array) -> Array:
        return self.sample_from(self.noise(key, self.mean.shape[:-1]))

    def log_prob(self, action: Array) -> Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(z) - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Array:
        log_std = jnp.broadcast_to(self.log_std, self.mean.shape)
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def mode(self) -> Array:
        return self.mean

    def kl(self, other: "Normal") -> Array:
        log_variance_ratio = 2 * (self.log_std - other.log_std)
        distance = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        # expm1 keeps a small divergence exact, where exp(x) - 1 - x cancels.
        return 0.5 * jnp.sum(jnp.expm1(log_variance_ratio) - log_variance_ratio + distance, axis=-1)
