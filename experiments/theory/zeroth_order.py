"""Zeroth-order policy gradients: what few judges, many parameters and common numbers do to them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import expit

from agents.language import rloo, zbcpg, zpg
from envs.language import bandit
from experiments.comparing import intervals
from experiments.comparing.intervals import Interval, compare
from experiments.theory import alignment
from experiments.theory.alignment import Greek, band, softmax
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, Value, say
from rgpo_jax.language import zeroth_order as library

JUDGES = (1, 3, 31, 1000)
TRIMS = (0.05, 0.2, 0.4)
SIZES = (10, 40, 160)  # arms, which are parameters: d
PAIRS = 64  # of a direction
MU = 0.5
LEARNT = (SIZES[0], SIZES[-1])
UPDATES = 300
POINTS = 75
CHOOSERS = 5  # seeds that choose a learning rate
RATES = (0.03, 0.1, 0.3)


# What is expected, in closed form.


def expected_logit(gap: np.ndarray, judges: int, trim: float, power: int = 1) -> np.ndarray:
    """E[logit(share of wins, cut off)^power] of a pair, by the binomial sum over its judges.

    Args:
      gap: reward of the first minus that of the second [...].
      judges: M.
      trim: delta.
      power: 1 or 2.
    """
    return expected_function(expit(gap), judges, trim, power)


def expected_function(p: np.ndarray, number: int, trim: float, power: int = 1) -> np.ndarray:
    """The same of so many verdicts that are won with probability p [...]."""
    wins = np.arange(number + 1)
    share = np.clip(wins / number, trim, 1.0 - trim)
    values = np.power(np.log(share / (1.0 - share)), power)
    return np.asarray(stats.binom.pmf(wins, number, np.asarray(p)[..., None]) @ values)


def expected_sign(p: np.ndarray, number: int) -> np.ndarray:
    """E[sign(share - 1/2)] of so many verdicts that are won with probability p [...]."""
    wins = np.arange(number + 1)
    return np.asarray(
        stats.binom.pmf(wins, number, np.asarray(p)[..., None]) @ np.sign(2 * wins - number)
    )


class Signal(NamedTuple):
    """Of the estimate along one direction, for small mu.

    Attributes:
      scale: projection of its mean on the true gradient, over the gradient's length squared.
      cosine: of its mean to the true gradient.
      directions: at which the noise of their mean is as large as the signal: E|g|^2 / |E g|^2.
    """

    scale: float
    cosine: float
    directions: float


def signal_of(
    policy: np.ndarray, reward: np.ndarray, feedback: str, judges: int, trim: float, mu: float
) -> Signal:
    """In closed form: the mean estimate is the gradient of E[F], with F what pairs make of R.

    With independent answers a, b and f(a, b) the expected advantage of a over b, it is pi (F - E F)
    with F(a) = E_b f(a, b), as mu goes to 0; pooled and sign are for one judge a pair.

    Args:
      policy: pi [K].
      reward: R [K].
      feedback: see `ZerothConfig`; exact: values themselves, without answers or judges.
      judges: M.
      trim: delta.
      mu: smoothing.
    """

    def gradient(values: np.ndarray) -> np.ndarray:
        return np.asarray(policy * (values - policy @ values))

    truth, d = gradient(reward), len(policy)
    gap, both = reward[:, None] - reward[None, :], np.outer(policy, policy)
    if feedback == "exact":
        return Signal(1.0, 1.0, float(d))
    if feedback == "each":
        mean = gradient(expected_logit(gap, judges, trim) @ policy)
        second = float(np.sum(both * expected_logit(gap, judges, trim, 2))) / PAIRS
    else:
        if judges != 1:
            raise ValueError("pooled and sign have a closed form for one judge a pair")
        step = 1e-4

        def of(p: float) -> float:
            x = np.array(p)
            if feedback == "sign":
                return float(expected_sign(x, PAIRS))
            return float(expected_function(x, PAIRS, trim))

        slope = (of(0.5 + step) - of(0.5 - step)) / (2 * step)
        mean = slope * gradient(expit(gap) @ policy)
        ties = float(stats.binom.pmf(PAIRS // 2, PAIRS, 0.5))
        second = 1.0 - ties
        if feedback == "pooled":
            second = float(expected_function(np.array(0.5), PAIRS, trim, 2))
    square = float(mean @ mean)
    dot = float(mean @ truth)
    # To the noise of answers and judges comes that of the direction, which is there without them.
    needed = d + (d / mu) ** 2 * second / square
    return Signal(
        dot / float(truth @ truth), dot / math.sqrt(square * float(truth @ truth)), needed
    )


def drawn(
    policy: np.ndarray,
    reward: np.ndarray,
    judges: int,
    trim: float,
    seed: int,
    number: int = 20_000,
) -> tuple[float, float, float]:
    """The suite's own estimate, drawn: its scale less the exact one of the same directions.

    Returns:
      Exact scale at this mu; the mean difference; its standard error.
    """
    mu, d = 1.0, len(policy)
    theta, value = jnp.log(jnp.asarray(policy)), jnp.asarray(reward)
    truth = policy * (reward - policy @ reward)

    def of_direction(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        v_key, first_key, second_key, judge_key = jax.random.split(key, 4)
        v = library.on_sphere(v_key, d)
        first = jax.random.categorical(first_key, theta + mu * v, shape=(PAIRS,))
        second = jax.random.categorical(second_key, theta, shape=(PAIRS,))
        wins = library.share_of_wins(judge_key, value[first] - value[second], judges)
        return v, library.advantage_of(wins, "each", trim)

    keys = jax.random.split(jax.random.key(seed), number)
    v, advantage = (np.asarray(x, np.float64) for x in jax.jit(jax.vmap(of_direction))(keys))
    ahead = softmax(np.log(policy) + mu * v)
    of_arm = expected_logit(reward[:, None] - reward[None, :], judges, trim) @ policy
    along = d / mu * (v @ truth) / float(truth @ truth)
    exact, gap = along * (ahead @ of_arm), along * (advantage - ahead @ of_arm)
    return float(exact.mean()), float(gap.mean()), float(gap.std(ddof=1) / math.sqrt(number))


# Learning.


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
_RLOO = Row(rloo, {"group_size": 2, "num_epochs": 1, "num_minibatches": 1}, PAIRS)
DEFAULT, POOLED, BOTH = "M = 31, each", "M = 1, pooled", "M = 31, both"
COMMON, CENTRAL = "M = 31, common numbers", "M = 31, central"
IN_ALL = (DEFAULT, POOLED, BOTH, REWARDS)  # sizes of `LEARNT`; the others in the first alone


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
    """Shares of the possible gain [rates, choosers + seeds, points], and updates [points]."""

    share: np.ndarray
    updates: np.ndarray

    def _point(self, updates: float) -> int:
        return max(0, int(np.searchsorted(self.updates, updates + 1e-9)) - 1)

    def rate(self, updates: float) -> int:
        """Number of the rate that is best for the choosers at so many updates."""
        return int(np.argmax(self.share[:, :CHOOSERS, self._point(updates)].mean(axis=1)))

    def at(self, updates: float) -> np.ndarray:
        """Of the seeds [S] at so many updates, at the rate that is best there for the choosers."""
        return np.asarray(self.share[self.rate(updates), CHOOSERS:, self._point(updates)])

    @property
    def curve(self) -> np.ndarray:
        """Of the seeds [S, points], at the rate that is best at the end."""
        return np.asarray(self.share[self.rate(self.updates[-1]), CHOOSERS:])


def learn(row: Row, arms: int, seed: int, seeds: int) -> Learnt:
    """Runs of all rates and of both kinds of seeds in one program."""
    parts = (problems(seed + alignment.CHOICE, CHOOSERS, arms), problems(seed, seeds, arms))
    problem = Problem(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    keys = jnp.concatenate(
        [alignment.keys_of(seed + alignment.CHOICE, CHOOSERS), alignment.keys_of(seed, seeds)]
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


def run(options: Options, progress: Progress) -> Study:
    """Closed forms, a check of them by the suite's own draws, and learning."""
    seed, seeds = options.seed, options.seeds
    signals = signals_of(seed, seeds)
    checked = problems(seed, 1, SIZES[0])
    draws = [
        (judges, trim, *drawn(checked.reference[0], checked.reward[0], judges, trim, seed))
        for judges in JUDGES
        for trim in TRIMS[:2]
    ]
    progress(0.1)
    jobs = [(name, d) for d in LEARNT for name in ROWS if d == LEARNT[0] or name in IN_ALL]
    jobs += [(REWARDS, d) for d in LEARNT]
    learnt = {}
    for i, (name, d) in enumerate(jobs):
        learnt[name, d] = learn(ROWS.get(name, _RLOO), d, seed, seeds)
        progress(0.1 + 0.9 * (i + 1) / len(jobs))
    return Study(
        "Zeroth order: from who wins",
        (
            f"Bandits of d = {', '.join(map(str, SIZES))} arms and one prompt, one problem a seed "
            f"({seeds} seeds), with normal rewards and logits; d is the number of parameters. A "
            f"direction has {PAIRS} pairs of answers, of the policies at {Greek.theta} + "
            f"{Greek.mu} v and at {Greek.theta} (ZPG, arXiv 2409.17401), and a pair has M judges, "
            "each of whom gives a verdict by Bradley and Terry's model. each: the logit of each "
            f"pair's share of wins, cut off at {Greek.delta}. pooled: of the share over all pairs. "
            "sign: who wins more often.",
            "Scale is the mean estimate's projection on the true gradient, over its length: 1 is "
            f"unbiased. For small {Greek.mu} it has a closed form: the mean is the gradient of "
            "E[F], where F(a) is the expected advantage of a over the policy's answers, a sum over "
            "what judges may say. Directions needed: at which the noise of the mean estimate is as "
            f"large as it is itself; {Greek.mu} = {MU:g}, unless said.",
            f"Learning: the suite's agents, {UPDATES} updates of one direction, and RLOO, which "
            "sees rewards, with as many answers. Learning rates are the best of "
            f"{', '.join(f'{r:g}' for r in RATES)} on {CHOOSERS} other seeds, for each row, size "
            "and budget. Primary comparison: share of the possible gain in reward at equal "
            f"verdicts, {UPDATES * PAIRS:,}, one judge a pair pooled minus 31 judges each, for "
            "each d; with it the same at equal pairs, common random numbers and central "
            "differences, and RLOO. Differences are paired by seed; Student's t, Holm's correction "
            "for all of them. Bands are 95 % intervals.",
        ),
        _claims(signals, draws, learnt),
        [_figure(signals, learnt, seeds)],
        _tables(signals, draws, learnt),
    )


KINDS: dict[str, tuple[str, int, float]] = {
    "exact values": ("exact", 1, 0.05),
    f"M = 31, each, {Greek.delta} = 0.05": ("each", 31, 0.05),
    "M = 1, pooled": ("pooled", 1, 0.05),
    "M = 1, sign": ("sign", 1, 0.05),
}
_ROOT = f", {Greek.mu} ~ \u221ad"


def signals_of(seed: int, seeds: int) -> dict[tuple[str, int], list[Signal]]:
    """(kind, d) -> of each seed's problem; kinds are `KINDS`, and "each" by M and trim."""
    found: dict[tuple[str, int], list[Signal]] = {}
    for d in SIZES:
        problem = problems(seed, seeds, d)
        each = list(zip(problem.reference, problem.reward, strict=True))
        root = MU * math.sqrt(d / SIZES[0])
        for name, kind in KINDS.items():
            found[name, d] = [signal_of(p, r, *kind, MU) for p, r in each]
            found[name + _ROOT, d] = [signal_of(p, r, *kind, root) for p, r in each]
        if d == SIZES[0]:
            for judges in JUDGES:
                for trim in TRIMS:
                    found[_each(judges, trim), d] = [
                        signal_of(p, r, "each", judges, trim, MU) for p, r in each
                    ]
    return found


def _each(judges: int, trim: float) -> str:
    return f"M = {judges}, each, {Greek.delta} = {trim:g}, scale"


def _scales(signals: dict[tuple[str, int], list[Signal]], judges: int, trim: float) -> np.ndarray:
    return np.array([s.scale for s in signals[_each(judges, trim), SIZES[0]]])


def _growth(signals: dict[tuple[str, int], list[Signal]], kind: str) -> Interval:
    """Power of d by which the directions needed grow."""
    needed = np.array([[s.directions for s in signals[kind, d]] for d in SIZES]).T
    return Interval.of(alignment.slopes(np.log(SIZES), np.log(needed)))


def _claims(
    signals: dict[tuple[str, int], list[Signal]],
    draws: list[tuple[int, float, float, float, float]],
    learnt: dict[tuple[str, int], Learnt],
) -> list[Claim]:
    scales = {(m, t): Interval.of(_scales(signals, m, t)) for m in JUDGES for t in TRIMS}
    least = min(scales[m, t].mean for m in JUDGES[1:2] for t in TRIMS)
    farthest = max(abs(gap / error) for *_, gap, error in draws)
    last, (small, large) = UPDATES, LEARNT
    gaps: dict[str, np.ndarray] = {}
    for d in LEARNT:
        one, many = learnt[POOLED, d], learnt[DEFAULT, d]
        gaps[f"d = {d}, equal verdicts, M = 1 pooled minus M = 31"] = one.at(last) - many.at(
            last * PAIRS / ROWS[DEFAULT].verdicts
        )
        gaps[f"d = {d}, equal pairs, M = 1 pooled minus M = 31"] = one.at(last) - many.at(last)
        both = learnt[BOTH, d].at(last)
        gaps[f"d = {d}, common numbers and central minus neither"] = both - many.at(last)
        gaps[f"d = {d}, RLOO minus M = 31"] = learnt[REWARDS, d].at(last) - many.at(last)
    for name in (COMMON, CENTRAL):
        gaps[f"d = {small}, {name} minus M = 31, each"] = learnt[name, small].at(last) - learnt[
            DEFAULT, small
        ].at(last)
    tests = {c.name: c for c in compare(gaps)}

    def told(part: str) -> str:
        return alignment.words([c for n, c in tests.items() if part in n])

    def shown(part: str, sign: int) -> bool | None:
        return intervals.agree([c for n, c in tests.items() if part in n], sign)

    growth = {kind: _growth(signals, kind) for kind in (*KINDS, *(k + _ROOT for k in KINDS))}
    noisy = [growth[k] for k in list(KINDS)[1:]]
    lost = learnt[DEFAULT, large].at(last) - learnt[DEFAULT, small].at(last)
    (size,) = compare({"d": lost})
    return [
        Claim(
            "At equal verdicts one judge a pair, pooled, learns more than 31 judges of fewer "
            "pairs, at every d.",
            "ours",
            shown("equal verdicts", 1),
            f"share of the possible gain, {UPDATES * PAIRS:,} verdicts: " + told("equal verdicts"),
            ("zeroth_order",),
        ),
        Claim(
            "At equal pairs 31 judges a pair learn more than one, at every d.",
            "ours",
            shown("equal pairs", -1),
            f"share of the possible gain, {UPDATES * PAIRS:,} pairs: " + told("equal pairs"),
            ("zeroth_order",),
        ),
        Claim(
            f"Few judges bias the estimate, in scale, and the cut-off {Greek.delta} says by how "
            f"much: three judges more than 10 % off at every {Greek.delta} of the table, 31 and "
            "more less than 10 % at 0.05.",
            "ours",
            bool(
                all(abs(scales[3, t].mean - 1.0) > 0.1 for t in TRIMS)
                and all(abs(scales[m, 0.05].mean - 1.0) < 0.1 for m in (31, 1000))
            ),
            f"scale by closed form, d = {small}, mean over seeds: "
            + "; ".join(
                f"M = {m}: " + ", ".join(f"{say(scales[m, t].mean)} ({t:g})" for t in TRIMS)
                for m in JUDGES
            )
            + f"; the least of three judges is {say(least)}. Cosines to the gradient are at least "
            + say(
                min(s.cosine for m in JUDGES for t in TRIMS for s in signals[_each(m, t), small])
            ),
            ("zeroth_order",),
        ),
        Claim(
            "The suite's estimate, drawn, has the mean of the closed form.",
            "ours",
            bool(farthest < 4.0),
            f"scale at {Greek.mu} = 1, 20,000 directions, exact along the same directions: largest "
            f"of {len(draws)} differences {say(farthest)} standard errors",
            ("zeroth_order",),
        ),
        Claim(
            "With sampled answers the directions needed grow faster than linearly in d, at a fixed "
            f"{Greek.mu}.",
            "ours",
            all(x.low > 1.0 for x in noisy),
            "power of d: "
            + "; ".join(f"{k}: {alignment.tell(x)}" for k, x in growth.items())
            + ". Part of it is the gradient, which is shorter where arms are many",
            ("zeroth_order",),
        ),
        Claim(
            "Common random numbers and central differences together learn more from the same "
            "pairs, at every d.",
            "ours",
            shown("common numbers and central", 1),
            "share of the possible gain: "
            + told("common numbers and central")
            + "; alone: "
            + told("minus M = 31, each"),
            ("zeroth_order",),
        ),
        Claim(
            "A method that sees rewards, RLOO, learns more from as many answers, at every d.",
            "ours",
            shown("RLOO", 1),
            "share of the possible gain: " + told("RLOO"),
            ("zeroth_order",),
        ),
        Claim(
            f"The same budget brings less where parameters are more: d = {large} against {small}.",
            "ours",
            intervals.agree([size], -1),
            f"share of the possible gain, M = 31: {alignment.tell(size.interval, 2)}, "
            f"{alignment.p_value(size.p)}; of RLOO "
            + alignment.tell(
                Interval.of(learnt[REWARDS, large].at(last) - learnt[REWARDS, small].at(last)),
                2,
            ),
            ("zeroth_order",),
        ),
    ]


def _figure(
    signals: dict[tuple[str, int], list[Signal]],
    learnt: dict[tuple[str, int], Learnt],
    seeds: int,
) -> Figure:
    names = [*ROWS, REWARDS]
    scale = [
        band(
            f"{Greek.delta} = {trim:g}",
            np.array(JUDGES),
            np.array([_scales(signals, m, trim) for m in JUDGES]).T,
            i,
            ":",
            "o",
        )
        for i, trim in enumerate(TRIMS)
    ]
    needed = []
    for i, kind in enumerate(KINDS):
        for suffix, dash in (("", "-"), (_ROOT, "--")):
            if kind == "exact values" and suffix:
                continue
            values = np.array([[s.directions for s in signals[kind + suffix, d]] for d in SIZES]).T
            style = names.index(kind.split(f", {Greek.delta}")[0]) if i else None
            label = "exact values" if not i else ""
            needed.append(band(label, np.array(SIZES), values, style, dash, "o", logarithmic=True))

    def curves(d: int, chosen: Sequence[str], verdicts: bool = False) -> list[Line]:
        lines = []
        for name in chosen:
            found = learnt[name, d]
            cost = ROWS[name].verdicts if verdicts else PAIRS
            keep = slice(1, None) if verdicts else slice(None)
            x = (found.updates * cost)[keep]
            lines.append(band(name, x, found.curve[:, keep], names.index(name)))
        return lines

    def panel(title: str, x_label: str, lines: list[Line], log_x: bool = False) -> Panel:
        return Panel(title, x_label, "share of the possible gain", lines, log_x=log_x)

    judged = (DEFAULT, "M = 3, each", POOLED, "M = 1, sign")
    ways = (DEFAULT, COMMON, CENTRAL, BOTH, "ZBCPG, M = 31", REWARDS)
    return Figure(
        "zeroth_order",
        "Scale of the mean estimate (each; 1 is unbiased) and directions needed, by closed form "
        f"(dashed: {Greek.mu} grows with \u221ad); and learning, rates chosen on other seeds for "
        f"the whole run. Means over {seeds} seeds with 95 % intervals.",
        [
            Panel(
                f"bias, d = {SIZES[0]}",
                "judges of a pair, M",
                "scale",
                scale,
                log_x=True,
                guides=(1.0,),
            ),
            Panel("noise", "parameters d", "directions needed", needed, log_x=True, log_y=True),
            panel(f"judges, d = {SIZES[0]}", "pairs", curves(SIZES[0], judged)),
            panel(f"ways, d = {SIZES[0]}", "pairs", curves(SIZES[0], ways)),
            panel(f"d = {LEARNT[-1]}", "pairs", curves(LEARNT[-1], IN_ALL)),
            panel(
                f"d = {LEARNT[0]}, by verdicts",
                "verdicts",
                curves(LEARNT[0], (DEFAULT, "M = 3, each", POOLED), True),
                log_x=True,
            ),
        ],
        columns=3,
    )


def _tables(
    signals: dict[tuple[str, int], list[Signal]],
    draws: list[tuple[int, float, float, float, float]],
    learnt: dict[tuple[str, int], Learnt],
) -> list[Table]:
    closed: list[tuple[Value, ...]] = []
    for (kind, d), each in signals.items():
        scale = Interval.of(np.array([s.scale for s in each]))
        needed = Interval.of(np.log([s.directions for s in each]))
        cosine = min(s.cosine for s in each)
        closed.append((kind, d, *scale, cosine, *(float(np.exp(x)) for x in needed)))
    gains: list[tuple[Value, ...]] = []
    for (name, d), found in learnt.items():
        verdicts = ROWS[name].verdicts if name in ROWS else None
        at_equal = None if verdicts is None else UPDATES * PAIRS / verdicts
        whole = Interval.of(found.at(UPDATES))
        equal = [None] * 3 if at_equal is None else [*Interval.of(found.at(at_equal))]
        gains.append((name, d, RATES[found.rate(UPDATES)], *whole, *equal))
    return [
        Table(
            "zeroth_order",
            f"Share of the possible gain in reward after {UPDATES * PAIRS:,} pairs, and after as "
            "many verdicts; 95 % intervals by Student's t",
            ("row", "d", "learning rate", "share", "from", "to", "at equal verdicts", "from", "to"),
            gains,
        ),
        Table(
            "zeroth_order_signal",
            "By closed form: scale of the mean estimate, least cosine to the gradient, and "
            "directions needed (geometric mean); 95 % intervals over seeds by Student's t",
            (
                *("estimate", "d", "scale", "from", "to", "least cosine"),
                *("directions needed", "from", "to"),
            ),
            closed,
        ),
        Table(
            "zeroth_order_draws",
            f"Scale at {Greek.mu} = 1 along 20,000 directions: exact, and what the suite's own "
            "estimate drew minus that",
            ("M", Greek.delta, "exact", "drawn minus exact", "standard error"),
            draws,
        ),
    ]
