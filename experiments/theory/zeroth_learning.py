"""How fast methods learn from who wins: rows, bandits of each seed, and runs of all rates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.language import rloo, zbcpg, zpg
from envs.language import bandit
from experiments.theory import alignment
from experiments.theory.alignment import softmax
from experiments.theory.zeroth_signal import MU, PAIRS

UPDATES = 300
POINTS = 75
TUNING_SEEDS = 5  # that choose a learning rate
RATES = (0.03, 0.1, 0.3)


class Row(NamedTuple):
    """A way of learning.

    Attributes:
      method: of the suite.
      settings: of its Config.
      verdicts: of an update.
    """

    method: Any
    settings: dict[str, Any]
    verdicts: int


def _zeroth(method: Any = zpg, judges: int = 31, **settings: Any) -> Row:
    return Row(method, {"num_judges": judges, **settings}, PAIRS * judges)


ROWS: dict[str, Row] = {
    "M = 31, each": _zeroth(),
    "M = 3, each": _zeroth(judges=3, trim=0.2),
    "M = 1, pooled": _zeroth(judges=1, feedback="pooled"),
    "M = 1, sign": _zeroth(judges=1, feedback="sign"),
    "M = 31, common numbers": _zeroth(common_random_numbers=True),
    "M = 31, central": _zeroth(central=True),
    "M = 31, both": _zeroth(common_random_numbers=True, central=True),
    "ZBCPG, M = 31": _zeroth(zbcpg),
}
REWARDS = "rewards known (RLOO)"
RLOO = Row(rloo, {"group_size": 2, "num_epochs": 1, "num_minibatches": 1}, PAIRS)
DEFAULT, POOLED, BOTH = "M = 31, each", "M = 1, pooled", "M = 31, both"
COMMON, CENTRAL = "M = 31, common numbers", "M = 31, central"


class Problem(NamedTuple):
    """Bandits; arrays [S, K]."""

    reference: np.ndarray
    reward: np.ndarray


def problems(seed: int, number: int, arms: int) -> Problem:
    """Normal rewards and logits, one problem a seed."""
    each = [
        np.random.default_rng((seed + i, 31, arms)).normal(size=(2, arms)) for i in range(number)
    ]
    logits, reward = np.moveaxis(np.array(each), 1, 0)
    return Problem(softmax(logits), reward)


class Learnt(NamedTuple):
    """What runs gain.

    Attributes:
      share: of the possible gain [rates, tuning and reported seeds, points].
      updates: at each point [points].
    """

    share: np.ndarray
    updates: np.ndarray

    def _point(self, updates: float) -> int:
        return max(0, int(np.searchsorted(self.updates, updates + 1e-9)) - 1)

    def rate(self, updates: float) -> int:
        """Number of the rate that is best for the tuning seeds at so many updates."""
        return int(np.argmax(self.share[:, :TUNING_SEEDS, self._point(updates)].mean(axis=1)))

    def at(self, updates: float) -> np.ndarray:
        """Of reported seeds [S] at so many updates, at the rate that tuning seeds choose there."""
        return np.asarray(self.share[self.rate(updates), TUNING_SEEDS:, self._point(updates)])

    @property
    def curve(self) -> np.ndarray:
        """Of reported seeds [S, points], at the rate that is best at the end."""
        return np.asarray(self.share[self.rate(self.updates[-1]), TUNING_SEEDS:])


def learn(row: Row, arms: int, seed: int, seeds: int) -> Learnt:
    """Runs of all rates and of both kinds of seeds in one program."""
    parts = (problems(seed + alignment.CHOICE, TUNING_SEEDS, arms), problems(seed, seeds, arms))
    problem = Problem(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    keys = jnp.concatenate(
        [
            alignment.keys_of(seed + alignment.CHOICE, TUNING_SEEDS),
            alignment.keys_of(seed, seeds),
        ]
    )
    settings: dict[str, Any] = {
        "anneal_learning_rate": False,
        "num_updates": UPDATES,
        "num_prompts": PAIRS,
    }
    if row.method is rloo:
        settings |= {"kl_coefficient": 0.0, "max_grad_norm": 10.0}
    else:
        settings |= {"smoothing": MU, "max_grad_norm": 10.0}

    def build(one: Problem) -> alignment.Setup:
        world = bandit.of(jnp.log(one.reference)[None], one.reward[None])
        return alignment.setup(row.method, world, **settings, **row.settings)

    as_float = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), problem)
    rates = {"learning_rate": np.array(RATES)}
    found = alignment.train(build, as_float, keys, UPDATES, POINTS, rates)
    value = np.sum(found[:, :, :, 0] * problem.reward[:, None], axis=-1)
    first = value[:, :, :1]
    possible = problem.reward.max(axis=1)[:, None] - first
    steps = value.shape[-1] - 1
    return Learnt((value - first) / possible, np.arange(steps + 1) * (UPDATES // steps))
