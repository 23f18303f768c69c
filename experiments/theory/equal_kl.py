"""Methods at equal KL to the reference: rows, searches with equal budgets, reward at a KL.

A point of a run says little: a method that is slow, or held by a larger coefficient, has less KL
and less reward. So what is compared is the most reward that a run has while its KL is at most so
large, with settings that were chosen for that KL, for each row out of equally many, on other seeds.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents import language as methods
from experiments.comparing import alignment_rows
from experiments.comparing.frontier import Frontier, reward_within
from experiments.theory import alignment
from experiments.theory.alignment import Setup, plain
from experiments.theory.study import Arrays, Line, Progress
from rgpo_jax.language.agent import Agent
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.world import World

_NOISE = 7  # of the key that noise comes from: no other key is folded with it


def row_of(name: str) -> tuple[str, dict[str, Any]]:
    """The method of a row of `alignment_rows`, and the row's own settings.

    Gates of RGPO are normalised, so that each has the weight 1 at first, as all others have.
    """
    flags = alignment_rows.ROWS[name]
    settings: dict[str, Any] = {
        flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    method = settings.pop("method")
    return method, settings | ({"normalize": True} if method == "rgpo" else {})


# The first are others' methods, the last two regress.
ROWS = {
    name: row_of(name)
    for name in (
        *("ppo", "reinforce", "rloo", "grpo-published", "grpo-direct"),
        *("rgpo-none", "rgpo-product", "rgpo-geometric", "rgpo-two_sided", "rgpo-min"),
        *("rebel", "dual_kl"),
    )
}
DUAL = ("rgpo-product", "rgpo-geometric", "rgpo-two_sided", "rgpo-min")
REGRESSIONS = ("rebel", "dual_kl")


def build(row: str, world: World, noise: Any, **settings: Any) -> Setup:
    """A row's agent in a world whose rewards are given with noise.

    Args:
      row: of `alignment_rows`.
      world: without noise.
      noise: standard deviation of what is added to each answer's reward, anew each time.
      **settings: of the Config, beside the row's own.
    """
    method, own = row_of(row)
    made = alignment.setup(methods.load(method), world, **settings, **own)
    return made._replace(agent=noisy(made.agent, world, noise))


def noisy(agent: Agent, world: World, noise: Any) -> Agent:
    """The agent, its step with noise of this standard deviation on each answer's reward."""
    judge = world.reward
    assert judge is not None

    def step(state: Any, frozen: Any, prompts: Any) -> tuple[Any, Any]:
        state, asked, answers = agent.sample(state, frozen, prompts)
        reward = judge(asked, answers)
        key = jax.random.fold_in(state.key, _NOISE)
        reward = reward + noise * jax.random.normal(key, reward.shape)
        return agent.update(state, frozen, Batch(asked, answers, reward))

    return agent._replace(step=step)


def draw(module: ModuleType, seeds: Sequence[int]) -> tuple[list[Frontier], Any]:
    """A problem of each seed, of a module of `envs.language`: its frontier, and what makes it.

    Returns:
      Frontiers [S], and the arguments of the module's `of`, a tree of arrays [S, ...].
    """
    drawn = [module.draw(seed) for seed in seeds]
    frontiers = [Frontier.of(module.of(*problem)) for problem in drawn]
    return frontiers, jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *drawn)


def settings_of(coefficients: Sequence[float], rates: Sequence[float]) -> dict[str, np.ndarray]:
    """What rows are searched over, all combinations: name -> its value in each of them [C]."""
    combined = np.array(list(itertools.product(coefficients, rates)), float)
    return dict(zip(("kl_coefficient", "learning_rate"), combined.T, strict=True))


class Paths(NamedTuple):
    """Exact expectations along training, of all settings and seeds.

    Attributes:
      kl: to the reference, mean over prompts [C, S, P].
      reward: [C, S, P].
    """

    kl: np.ndarray
    reward: np.ndarray


def paths_of(policies: np.ndarray, frontiers: Sequence[Frontier]) -> Paths:
    """Of policies [C, S, P, N, M], each seed in the world of its own frontier [S]."""
    reference = np.stack([f.reference for f in frontiers])[:, None]  # [S, 1, N, M]
    rewards = np.stack([f.reward for f in frontiers])[:, None]
    kl = alignment.divergence(policies, reference).mean(axis=-1)
    return Paths(kl, np.sum(policies * rewards, axis=-1).mean(axis=-1))


class Gains(NamedTuple):
    """What runs earn while their KL is at most so large [C, S, K].

    Attributes:
      reward: the most of it.
      share: of the frontier's gain over the reference at that KL.
    """

    reward: np.ndarray
    share: np.ndarray

    def best(self) -> np.ndarray:
        """Which setting has the largest mean share over seeds, at each KL [K]."""
        return np.asarray(np.argmax(self.share.mean(axis=1), axis=0))


def gains_of(paths: Paths, frontiers: Sequence[Frontier], levels: np.ndarray) -> Gains:
    """At each KL of `levels` [K], each seed in the world of its own frontier [S]."""
    reward = reward_within(paths.kl, paths.reward, levels)
    origin = np.array([f.origin for f in frontiers])[:, None]
    most = np.stack([f.reward_at(levels) for f in frontiers])  # [S, K]
    return Gains(reward, (reward - origin) / (most - origin))


class Chosen(NamedTuple):
    """A row at each KL with the settings that were best there for the tuning seeds.

    Attributes:
      settings: which of the combinations, at each KL [K].
      reward: of the reported seeds [S, K].
      share: of the frontier's gain over the reference at that KL [S, K].
    """

    settings: np.ndarray
    reward: np.ndarray
    share: np.ndarray


def choose(
    paths: Paths, frontiers: Sequence[Frontier], levels: np.ndarray, tuning_seeds: int
) -> Chosen:
    """Settings by the first seeds, and what they give on the others.

    Args:
      paths: of tuning and reported seeds.
      frontiers: of each seed's world.
      levels: of KL [K].
      tuning_seeds: how many choose.
    """
    found = gains_of(paths, frontiers, levels)
    best = Gains(*(x[:, :tuning_seeds] for x in found)).best()
    return take(Gains(*(x[:, tuning_seeds:] for x in found)), best, best)


def take(found: Gains, at: np.ndarray, settings: np.ndarray) -> Chosen:
    """Of reported seeds, at each KL the row `at` [K] of what was run, which has these settings."""
    levels = np.arange(len(at))
    return Chosen(settings, found.reward[at, :, levels].T, found.share[at, :, levels].T)


def learn(
    make: Callable[[Any], tuple[World, Any]],
    row: str,
    problems: Any,
    keys: jax.Array,
    settings: Mapping[str, Any],
    numbers: Mapping[str, np.ndarray],
    points: int | None = None,
    told: Callable[[float], None] | None = None,
) -> np.ndarray:
    """A row's policies along training [C, S, points + 1, N, M].

    Args:
      make: problem -> world and noise; called while tracing.
      row: as in `build`.
      problems: of each seed, a tree of arrays [S, ...].
      keys: of each seed [S].
      settings: of the Config.
      numbers: combinations of traced settings [C].
      points: at which policies are kept, beside the start; None: after each update.
      told: as in `alignment.train`.
    """

    def of_problem(problem: Any) -> Setup:
        world, noise = make(problem)
        return build(row, world, noise, **settings)

    updates = settings["num_updates"]
    return alignment.train(of_problem, problems, keys, updates, points or updates, numbers, told)


def frontier_line(frontiers: Sequence[Frontier], largest: float) -> Line:
    """The mean of frontiers at each b, as far as this KL."""
    inverse = np.geomspace(1e-2, 1e4, 600)
    known = [f.at(inverse) for f in frontiers]
    kl, reward = (np.mean([x[i] for x in known], axis=0) for i in (0, 1))
    inside = kl <= largest
    return plain("frontier", kl[inside], reward[inside], None, "--")


def each(
    rows: Sequence[str],
    progress: Progress,
    learn: Callable[[str, Callable[[float], None]], Arrays],
) -> dict[str, Arrays]:
    """What is learnt of rows, one after another; those that were kept are not learnt anew.

    Args:
      rows: their names.
      progress: of the study.
      learn: (row, told) -> what is kept of it; told is called with the share that is done.
    """
    found = {}
    for done, row in enumerate(rows):

        def told(share: float, done: int = done) -> None:
            progress((done + share) / len(rows))

        found[row] = progress.remember(row, functools.partial(learn, row, told))
        told(1.0)
    return found
