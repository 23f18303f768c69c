"""The most reward that there is at each KL to the reference, and what a run has of it."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rgpo_jax.language.world import World


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The most reward at each KL to the reference: {q exp(R / b) / Z : b > 0}, in float64.

    Over several prompts reward and KL are means, and the frontier has one b for all of them.

    Attributes:
      reference: q [N, M].
      reward: R [N, M].
    """

    reference: np.ndarray
    reward: np.ndarray

    @classmethod
    def of(cls, world: "World", temperature: float = 1.0) -> "Frontier":
        """That of a world whose answers are enumerated."""
        from rgpo_jax.language.world import all_log_probs

        assert world.enumeration is not None
        log_probs = all_log_probs(world, None, world.frozen, temperature)
        reference = np.exp(np.asarray(log_probs, np.float64))
        reference /= reference.sum(axis=-1, keepdims=True)
        return cls(reference, np.asarray(world.enumeration.reward, np.float64))

    def at(self, inverse: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """KL and reward at 1 / b, of the shape of 1 / b."""
        inverse = np.asarray(inverse, float)
        logits = np.log(self.reference) + inverse[..., None, None] * self.reward
        peak = logits.max(axis=-1, keepdims=True)
        log_total = peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
        reward = (np.exp(logits - log_total) * self.reward).sum(axis=-1)
        kl = inverse[..., None] * reward - log_total[..., 0]
        return np.maximum(kl.mean(axis=-1), 0.0), reward.mean(axis=-1)

    @property
    def origin(self) -> float:
        """The reference's reward."""
        return float((self.reference * self.reward).sum(axis=-1).mean())

    @property
    def end(self) -> tuple[float, float]:
        """KL and reward of the best answers alone, in the reference's proportions."""
        best = self.reward == self.reward.max(axis=-1, keepdims=True)
        mass = np.where(best, self.reference, 0.0).sum(axis=-1)
        return float(-np.log(mass).mean()), float(self.reward.max(axis=-1).mean())

    def reward_at(self, kl: np.ndarray | float) -> np.ndarray:
        """The most reward that a policy of this KL, or a smaller one, can have."""
        kl = np.asarray(kl, float)
        low, high = np.full(kl.shape, -30.0), np.full(kl.shape, 30.0)  # log(1 / b)
        for _ in range(100):
            middle = (low + high) / 2
            is_less = self.at(np.exp(middle))[0] < kl
            low, high = np.where(is_less, middle, low), np.where(is_less, high, middle)
        last_kl, last_reward = self.end
        reached = np.where(kl >= last_kl, last_reward, self.at(np.exp(low))[1])
        return np.where(kl <= 0, self.origin, reached)

    def share(self, kl: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """Of the frontier's gain in reward over the reference at this KL; NaN where that is 0."""
        possible = self.reward_at(kl) - self.origin
        return np.where(possible > 1e-9, reward - self.origin, np.nan) / np.where(
            possible > 1e-9, possible, 1.0
        )


def reward_within(kl: np.ndarray, reward: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The most reward along a path while its KL is at most so large.

    Between two points of a path reward is linear in the root of KL, as it is for small steps away
    from the reference.

    Args:
      kl: to the reference [..., P], 0 at the first point.
      reward: [..., P].
      levels: of KL [K], rising.

    Returns:
      [..., K]
    """
    root, edges = np.sqrt(np.maximum(kl, 0.0)), np.sqrt(np.asarray(levels, float))
    inside = root[..., None] <= edges  # [..., P, K]
    best = np.max(np.where(inside, reward[..., None], -np.inf), axis=-2)
    before, after = root[..., :-1, None], root[..., 1:, None]
    crosses = inside[..., :-1, :] != inside[..., 1:, :]
    width = np.where(crosses, after - before, 1.0)
    share = (edges - before) / width
    start, end = reward[..., :-1, None], reward[..., 1:, None]
    at = np.where(crosses, start + share * (end - start), -np.inf)
    return np.asarray(np.maximum(best, np.max(at, axis=-2)))
