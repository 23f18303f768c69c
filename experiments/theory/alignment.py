"""What the studies of alignment share: worlds, exact fits to pairs, runs over seeds, intervals.

Settings are chosen on other seeds than those that are reported (`CHOICE` above them).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import expit, log_expit

from experiments.comparing.intervals import Comparison, Interval
from experiments.theory.study import Line, say
from experiments.training import compiling
from experiments.training.programs import wait
from rgpo_jax.language import pair_agent
from rgpo_jax.language.agent import Agent
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.pairs import Pairs
from rgpo_jax.language.world import World, all_log_probs

CHOICE = 1000  # seeds from here on above the reported ones choose settings
RIDGE = 0.01  # of `exact_fit`, in pairs
_ITERATIONS = 500
_TOLERANCE = 1e-9


class Greek:
    """Letters of texts."""

    beta = "\N{GREEK SMALL LETTER BETA}"
    delta = "\N{GREEK SMALL LETTER DELTA}"
    eta = "\N{GREEK SMALL LETTER ETA}"
    mu = "\N{GREEK SMALL LETTER MU}"
    theta = "\N{GREEK SMALL LETTER THETA}"


# Worlds and policies.


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats, over the last axis; p may have zeros."""
    tiny = np.finfo(float).tiny
    log_ratio = np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny))
    return np.maximum(np.sum(np.where(p > 0, p * log_ratio, 0.0), axis=-1), 0.0)


# Pairs as counts, and the exact fit to them.


def draw_wins(
    rng: np.random.Generator, policy: np.ndarray, reward: np.ndarray, number: int
) -> np.ndarray:
    """How often an arm was preferred to another in so many pairs of a policy's answers [S, K, K].

    Both answers are drawn independently; who is preferred, by Bradley and Terry's model.

    Args:
      rng: of the draws.
      policy: [S, K].
      reward: R [S, K].
      number: of pairs, each pair of equal arms among them.
    """
    size, arms = policy.shape
    policy = policy / policy.sum(axis=-1, keepdims=True)
    both = (policy[:, :, None] * policy[:, None, :]).reshape(size, -1)
    met = rng.multinomial(number, both / both.sum(axis=-1, keepdims=True))
    met = met.reshape(size, arms, arms)
    first = rng.binomial(met, expit(reward[:, :, None] - reward[:, None, :]))
    return np.asarray(first + np.swapaxes(met - first, 1, 2), np.float64)


def exact_fit(
    wins: np.ndarray,
    reference: np.ndarray | None = None,
    beta: float = 1.0,
    eta: float = 0.0,
    start: np.ndarray | None = None,
    ridge: float = RIDGE,
    begin: np.ndarray | None = None,
) -> np.ndarray:
    r"""The implicit reward r = beta log(pi / q) + constant at which a loss of pairs is least.

    DPO's loss depends on the pairs by their counts alone, and in r it is Bradley and Terry's
    likelihood, whatever q and beta are; RPO's (2405.16436) depends on both:

        sum wins[i, j] (-log sigmoid(r_i - r_j) - eta beta log pi(i)) + ridge / 2 |r - start|^2

    Newton's method with halved steps, in float64. The ridge picks one where the pairs do not say
    which: the nearest to where the fit began, as descent would.

    Args:
      wins: how often i was preferred to j [S, K, K].
      reference: q [S, K]; needed where eta is not 0.
      beta: weight of the KL.
      eta: of RPO; 0: DPO.
      start: [S, K]; None: 0, the reference.
      ridge: its weight, in pairs.
      begin: where Newton's method begins [S, K], which changes nothing but its time.

    Raises:
      ArithmeticError: Newton's method does not settle.
    """
    size, arms, _ = wins.shape
    met, chosen = wins + np.swapaxes(wins, 1, 2), wins.sum(axis=2)
    total = chosen.sum(axis=1)
    start = np.zeros((size, arms)) if start is None else start
    log_q = np.zeros((size, arms)) if reference is None else np.log(reference)

    def loss(r: np.ndarray) -> np.ndarray:
        gap = r[:, :, None] - r[:, None, :]
        value = -np.sum(wins * log_expit(gap), axis=(1, 2))
        value = value + 0.5 * ridge * np.sum(np.square(r - start), axis=1)
        if eta:
            logits = log_q + r / beta
            peak = logits.max(axis=1, keepdims=True)
            log_pi = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
            value = value - eta * beta * np.sum(chosen * log_pi, axis=1)
        return np.asarray(value)

    r, identity = (start if begin is None else begin).copy(), np.eye(arms)
    before = loss(r)
    for _ in range(_ITERATIONS):
        share = expit(r[:, :, None] - r[:, None, :])
        gradient = np.sum(met * share, axis=2) - chosen + ridge * (r - start)
        curvature = met * share * (1.0 - share)
        hessian = curvature.sum(axis=2)[:, :, None] * identity - curvature + ridge * identity
        if eta:
            pi = softmax(log_q + r / beta)
            gradient += eta * (total[:, None] * pi - chosen)
            spread = pi[:, :, None] * identity - pi[:, :, None] * pi[:, None, :]
            hessian += (eta / beta * total)[:, None, None] * spread
        if np.all(np.abs(gradient) <= _TOLERANCE * (1.0 + total[:, None])):
            return r
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        length = np.ones(size)
        for _ in range(40):
            after = loss(r - length[:, None] * step)
            worse = after > before + 1e-12 * np.abs(before)
            if not worse.any():
                break
            length = np.where(worse, length / 2.0, length)
        r, before = r - length[:, None] * step, np.minimum(after, before)
    raise ArithmeticError("the exact fit was not found: Newton's method does not settle")


def pairs_of(prompts: jax.Array, winners: jax.Array, losers: jax.Array) -> Pairs:
    """Pairs of arms [n], for agents that learn from data."""

    def answers(arms: jax.Array) -> Answers:
        tokens = arms[:, None].astype(jnp.int32)
        shape = tokens.shape
        return Answers(tokens, jnp.ones(shape, bool), jnp.zeros(shape), jnp.ones(len(arms), bool))

    certain = jnp.full(len(winners), 100.0)
    return pair_agent.ordered(
        prompts,
        answers(winners),
        answers(losers),
        certain,
        jnp.ones(len(winners), bool),
        jnp.ones(len(winners), bool),
    )


def listed(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of one world [K, K] as winners and losers, one entry a pair."""
    winner, loser = np.nonzero(wins)
    times = wins[winner, loser].astype(int)
    return np.repeat(winner, times), np.repeat(loser, times)


# Runs over seeds.


class Setup(NamedTuple):
    """An agent in its world, and what its step is given: prompts, or pairs."""

    world: World
    agent: Agent
    data: Any


def setup(module: Any, world: World, data: Any = None, **settings: Any) -> Setup:
    """A method (of `agents.language`) with settings, in a world."""
    agent = module.make(world, module.Config(**settings))
    return Setup(world, agent, world.prompts if data is None else data)


def keys_of(seed: int, number: int) -> jax.Array:
    """Typed keys of so many seeds [number], from this one on."""
    return jnp.stack([jax.random.key(seed + i) for i in range(number)])


def train(
    build: Callable[[Any], Setup],
    problems: Any,
    keys: jax.Array,
    updates: int,
    points: int,
    numbers: Mapping[str, Any] | None = None,
    told: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Policies along training, of all seeds and settings, side by side in one program or in turn.

    Args:
      build: problem -> agent and world; called while tracing.
      problems: of each seed, a tree of arrays [S, ...].
      keys: of each seed [S].
      updates: of each run.
      points: at which the policy is kept, beside the start; the largest divisor of updates up to
        this is taken.
      numbers: traced settings [C], such as learning_rate; None: those of the Config (C = 1).
      told: called after each run with the share of them that is done; what it raises ends training.
        Runs are then trained in turn, which for transformers takes no longer on a CPU. None: side
        by side.

    Returns:
      pi [C, S, points + 1, N, M].
    """
    points = max(d for d in range(1, min(points, updates) + 1) if updates % d == 0)
    numbers = {k: jnp.asarray(v, jnp.float32) for k, v in (numbers or {}).items()}

    def of_seed(numbers: Any, problem: Any, key: jax.Array) -> jax.Array:
        world, agent, data = build(problem)

        def policy(state: Any) -> jax.Array:
            return all_log_probs(world, state.learner.params, world.frozen)

        def one(state: Any, _: Any) -> tuple[Any, None]:
            return agent.step(state, world.frozen, data)[0], None

        def many(state: Any, _: Any) -> tuple[Any, jax.Array]:
            state, _ = jax.lax.scan(one, state, length=updates // points)
            return state, policy(state)

        state = agent.init(key, world.frozen, **numbers)
        _, after = jax.lax.scan(many, state, length=points)
        return jnp.concatenate([policy(state)[None], after])

    if told is not None:
        return np.exp(_in_turn(of_seed, numbers, problems, keys, told))
    run = jax.vmap(of_seed, in_axes=(None, 0, 0))
    if numbers:
        run = jax.vmap(run, in_axes=(0, None, None))
    found = _compile(run, numbers, problems, keys)(numbers, problems, keys)
    return np.exp(found if numbers else found[None])


def _compile(function: Callable[..., jax.Array], *args: Any) -> Callable[..., np.ndarray]:
    """The program for arguments of these shapes; signals are heard while it is made and runs."""
    program = compiling.Compilation(
        function.__name__, jax.jit(function).lower(*args).compile
    ).result()

    def run(*args: Any) -> np.ndarray:
        found = program(*args)
        wait(found)
        return np.asarray(found, np.float64)

    return run


def _in_turn(
    of_seed: Callable[[Any, Any, jax.Array], jax.Array],
    numbers: Mapping[str, jax.Array],
    problems: Any,
    keys: jax.Array,
    told: Callable[[float], None],
) -> np.ndarray:
    """What `of_seed` gives of each combination of settings [C], or of one, and each seed [S]."""
    combinations = list(zip(*numbers.values(), strict=True)) or [()]
    chosen = [dict(zip(numbers, values, strict=True)) for values in combinations]
    of_seeds = [jax.tree.map(lambda x, s=s: x[s], problems) for s in range(len(keys))]
    run = _compile(of_seed, chosen[0], of_seeds[0], keys[0])
    found = []
    for settings in chosen:
        for problem, key in zip(of_seeds, keys, strict=True):
            found.append(run(settings, problem, key))
            told(len(found) / (len(combinations) * len(keys)))
    return np.reshape(found, (len(combinations), len(keys), *found[0].shape))


# What is told of seeds.


def tell(interval: Interval, digits: int = 3) -> str:
    """Mean [low, high]."""
    return (
        f"{say(interval.mean, digits)} [{say(interval.low, digits)}, {say(interval.high, digits)}]"
    )


def p_value(p: float) -> str:
    """p as people read it."""
    return "p < 0.001" if p < 0.001 else f"p = {say(p, 2)}"


def words(tests: Sequence[Comparison], show: Callable[[Interval, int], str] = tell) -> str:
    """Each difference with its interval and its corrected p."""
    return "; ".join(f"{t.name}: {show(t.interval, 2)} ({p_value(t.p)})" for t in tests)


def tell_ratio(interval: Interval, digits: int = 2) -> str:
    """As `tell`, of an interval of logarithms."""
    return tell(Interval(*(float(np.exp(x)) for x in interval)), digits)


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row of y over x [S]."""
    centred = np.asarray(x, float) - np.mean(x)
    return np.asarray(y @ centred / np.sum(np.square(centred)))


def band(
    label: str,
    x: np.ndarray,
    values: np.ndarray,
    style: int | None,
    dash: str = "-",
    marker: str = "",
    logarithmic: bool = False,
) -> Line:
    """A curve over seeds: means of values [S, P] with 95 % intervals; geometric ones if asked for.

    The interval of a geometric mean is that of the mean of logarithms.
    """
    values = np.log(values) if logarithmic else np.asarray(values, float)
    mean = values.mean(axis=0)
    half = np.zeros_like(mean)
    if (number := len(values)) > 1:
        half = values.std(axis=0, ddof=1) * stats.t.ppf(0.975, number - 1) / math.sqrt(number)
    bounds = [mean, mean - half, mean + half]
    y, low, high = (np.exp(b) for b in bounds) if logarithmic else bounds
    return Line(label, np.asarray(x, float), y, style, dash, low, high, marker)


def plain(
    label: str, x: np.ndarray, y: np.ndarray, style: int | None, dash: str = "-", marker: str = ""
) -> Line:
    """A curve that is exact, without a band."""
    return Line(label, np.asarray(x, float), np.asarray(y, float), style, dash, marker=marker)
