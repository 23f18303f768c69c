"""Action distributions as pytrees: sample, log_prob, entropy, mode, kl and squash."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array

# tanh as a mixture of error functions, tanh(u) ~ sum_i p_i erf(u / (s_i sqrt 2)): weights p_i and
# standard deviations s_i, fitted to log(2 cosh u) and its slope in the supremum norm. It is the
# normal mixture of Monahan and Stefanski (1992) for the logistic distribution, in other units.
_MIXTURE = (
    (0.112906111, 0.492164221),
    (0.468494060, 0.723108427),
    (0.363800476, 1.06629790),
    (0.054799353, 1.57786036),
)


class Distribution(Protocol):
    """What rollouts and updates ask of a policy, batched over leading axes [...].

    An action is what the distribution samples and what `log_prob` takes; `squash` makes of it what
    `environment.to_environment_units` takes.
    """

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
        """The action to play when not exploring: the most probable, but for `TanhNormal`."""
        ...

    def squash(self, action: Array) -> Array:
        """The action as environments know it but for their units, which are [-1, 1] here."""
        ...

    def kl(self, other: Any) -> Array:
        """KL(self || other) in nats [...], for another distribution of the same class."""
        ...


_NEVER = -1e9  # log 0, of which 0 log 0 is 0 and not NaN


@flax.struct.dataclass
class Categorical:
    """Distribution over {0, ..., n - 1}.

    Attributes:
      log_probs: normalised log-probabilities [..., n].
    """

    log_probs: Array

    @classmethod
    def from_logits(cls, logits: Array) -> "Categorical":
        """Normalises logits [..., n]; -inf is an action that never comes."""
        return cls(jax.nn.log_softmax(jnp.maximum(logits, _NEVER)))

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

    def squash(self, action: Array) -> Array:
        return action

    def kl(self, other: "Categorical") -> Array:
        return jnp.sum(jnp.exp(self.log_probs) * (self.log_probs - other.log_probs), axis=-1)


@flax.struct.dataclass
class Categoricals:
    r"""Independent categorical distributions, of which an action [..., d] has a number each.

    .. math:: \log p(a) = \sum_i \log p_i(a_i)

    Entropies and KLs are sums over the elements too.

    Attributes:
      each: of all elements [..., d], over as many numbers as the widest has; those that an element
        does not have are never drawn.
    """

    each: Categorical

    @classmethod
    def from_logits(cls, logits: Array, sizes: Sequence[int]) -> "Categoricals":
        """Normalises each element's part of logits [..., sum of sizes].

        Args:
          logits: the elements' own, one after another.
          sizes: over how many numbers each of the d elements is.
        """
        batch_shape, widest = logits.shape[:-1], max(sizes)
        if min(sizes) == widest:  # one operation, however many elements
            return cls(Categorical.from_logits(logits.reshape(*batch_shape, len(sizes), widest)))
        parts = jnp.split(logits, list(itertools.accumulate(sizes))[:-1], axis=-1)
        unpadded = [(0, 0)] * len(batch_shape)
        padded = [
            jnp.pad(
                jax.nn.log_softmax(part), [*unpadded, (0, widest - size)], constant_values=_NEVER
            )
            for size, part in zip(sizes, parts, strict=True)
        ]
        return cls(Categorical(jnp.stack(padded, axis=-2)))

    def noise(self, key: Array, shape: tuple[int, ...]) -> Array:
        return self.each.noise(key, (*shape, self.each.log_probs.shape[-2]))

    def sample_from(self, noise: Array) -> Array:
        return self.each.sample_from(noise)

    def sample(self, key: Array) -> Array:
        return self.each.sample(key)

    def log_prob(self, action: Array) -> Array:
        return jnp.sum(self.each.log_prob(action), axis=-1)

    def entropy(self) -> Array:
        return jnp.sum(self.each.entropy(), axis=-1)

    def mode(self) -> Array:
        return self.each.mode()

    def squash(self, action: Array) -> Array:
        return action

    def kl(self, other: "Categoricals") -> Array:
        return jnp.sum(self.each.kl(other.each), axis=-1)


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

    def squash(self, action: Array) -> Array:
        return action  # knows no bounds: where there are some, `to_environment_units` clips

    def kl(self, other: "Normal") -> Array:
        log_variance_ratio = 2 * (self.log_std - other.log_std)
        distance = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        # expm1 keeps a small divergence exact, where exp(x) - 1 - x cancels.
        return 0.5 * jnp.sum(jnp.expm1(log_variance_ratio) - log_variance_ratio + distance, axis=-1)


@flax.struct.dataclass
class TanhNormal(Normal):
    r"""Independent distributions of a = tanh(u) in (-1, 1), u normal, over the last axis.

    .. math:: \log p(a) = \log N(u; \mu, \sigma) - \sum_i \log(1 - \tanh^2 u_i)

    Actions are kept as u: `sample`, `log_prob` and `mode` give and take it, and `squash` makes a of
    it. So a need never be inverted, which fails where float32 rounds it to 1. Densities and
    entropies are those of a, per unit of a. The Jacobian does not depend on the parameters: ratios
    of densities are those of the normal distributions of u, and so is `kl`, which no bijection
    changes.

    Attributes:
      mean: of u [..., d].
      log_std: log of the standard deviation of u, [..., d] or [d].
    """

    def log_prob(self, action: Array) -> Array:
        # log(1 - tanh(u)^2), finite and exact also where tanh(u) rounds to 1.
        log_slope = 2.0 * (math.log(2.0) - action - jax.nn.softplus(-2.0 * action))
        return super().log_prob(action) - jnp.sum(log_slope, axis=-1)

    def entropy(self) -> Array:
        """Entropy of a in nats [...], within 3e-5 nats per action element; in float32 also within
        the rounding of 2 |mean|, which is more from a mean of about 100 on.

        It is the entropy of u plus the mean of log(1 - tanh(u)^2) = 2 log 2 - 2 log(2 cosh u). That
        mean has no closed form, but with tanh as a mixture of error functions log(2 cosh u) is a
        mixture of E|u + s_i z|, z standard normal, which averaged over u is E|x| of another normal
        x. The error is below 2.3e-5 at every u, hence for every mean and standard deviation; so is
        that of the gradient in the mean and in std. No samples are drawn and no key is needed.
        """
        variance = jnp.exp(2.0 * self.log_std)
        log_cosh = sum(
            p * _mean_absolute(self.mean, jnp.sqrt(variance + s**2)) for p, s in _MIXTURE
        )
        return super().entropy() + jnp.sum(2.0 * (math.log(2.0) - log_cosh), axis=-1)

    def mode(self) -> Array:
        """The mean of u, whose tanh is the median of a.

        It is not the density's maximum: a wide distribution piles up at -1 and 1.
        """
        return self.mean

    def squash(self, action: Array) -> Array:
        return jnp.tanh(action)


def _mean_absolute(mean: Array, std: Array) -> Array:
    """E|x| of a normal x, elementwise."""
    z = mean / std
    tail = math.sqrt(2.0 / math.pi) * std * jnp.exp(-0.5 * jnp.square(z))
    return tail + mean * jax.scipy.special.erf(z * math.sqrt(0.5))
