"""Over-optimisation: the true reward of policies that follow a reward fitted to a few pairs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.language import rebel, rloo, rpo
from envs.language import bandit
from experiments.comparing import intervals
from experiments.comparing.intervals import Comparison, Interval, compare
from experiments.theory import alignment
from experiments.theory.alignment import Greek, band, divergence, draw_wins, exact_fit, softmax
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, Value, say

ARMS = 50
PAIRS = 400
REPEATS = 4  # problems of a seed, of whose results the mean is taken
SKILL, NOISE = 1.0, 0.5  # the reference's logits are SKILL R + NOISE * normal
BETAS = np.geomspace(0.02, 5.0, 25)[::-1]  # falling, so that KL rises
ETAS = (0.003, 0.01, 0.03, 0.1)
PRIMARY = 0.03  # eta
AT = 0.5  # KL in nats at which methods are compared; all of them come there
FAR = 3.0
NAMES = {0.0: "DPO", **{eta: f"RPO, {Greek.eta} = {eta:g}" for eta in ETAS}}
RPO = NAMES[PRIMARY]
ONLINE = ("RLOO on the proxy", "REBEL on the proxy")
_ONLINE_BETA = 0.05
_UPDATES = 400
_AGENT_BETA = 0.1


class Problem(NamedTuple):
    """Bandits with a competent reference, and pairs of it; arrays [S, ...].

    Attributes:
      reference: q [S, K].
      gold: the true reward, less the reference's expected one [S, K].
      wins: counts of pairs [S, K, K].
      proxy: the fitted reward, likewise centred [S, K].
    """

    reference: np.ndarray
    gold: np.ndarray
    wins: np.ndarray
    proxy: np.ndarray


def problems(rng: np.random.Generator, number: int) -> Problem:
    """Arms that the reference seldom shows are mostly bad, and their fitted rewards noisy."""
    reward = rng.normal(size=(number, ARMS))
    reference = softmax(SKILL * reward + NOISE * rng.normal(size=(number, ARMS)))
    wins = draw_wins(rng, reference, reward, PAIRS)
    proxy = exact_fit(wins)

    def centred(values: np.ndarray) -> np.ndarray:
        return values - np.sum(reference * values, axis=1, keepdims=True)

    return Problem(reference, centred(reward), wins, centred(proxy))


class Path(NamedTuple):
    """Where a method leads, by its beta or along its training; arrays [P, problems]."""

    kl: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray

    @classmethod
    def of(cls, policies: np.ndarray, problem: Problem) -> "Path":
        """Of policies [P, problems, K]."""
        return cls(
            divergence(policies, problem.reference),
            np.sum(policies * problem.gold, axis=-1),
            np.sum(policies * problem.proxy, axis=-1),
        )

    def at(self, kl: float) -> np.ndarray:
        """Gold reward where the KL first comes to this; NaN in problems where it never does."""
        found = []
        for x, y in zip(self.kl.T, self.gold.T, strict=True):
            beyond = np.flatnonzero(x >= kl)
            if not len(beyond):
                found.append(np.nan)
                continue
            i = int(beyond[0])
            share = 1.0 if i == 0 else (kl - x[i - 1]) / (x[i] - x[i - 1])
            found.append(y[i] if i == 0 else y[i - 1] + share * (y[i] - y[i - 1]))
        return np.array(found)

    def of_seeds(self, seeds: int) -> "Path":
        """Means over each seed's problems [P, S]."""
        return Path(*(x.reshape(len(x), seeds, -1).mean(axis=2) for x in self))

    @property
    def best(self) -> int:
        """Where the mean gold reward is largest."""
        return int(np.argmax(self.gold.mean(axis=1)))


def by_beta(problem: Problem, eta: float) -> Path:
    """DPO (eta 0) or RPO, fitted exactly at each beta."""
    policies, fitted = [], problem.proxy
    for beta in BETAS:
        if eta:  # DPO's implicit reward is the proxy itself, whatever beta is
            fitted = exact_fit(problem.wins, problem.reference, beta, eta, begin=fitted)
        policies.append(softmax(np.log(problem.reference) + fitted / beta))
    return Path.of(np.stack(policies), problem)


def _logits(problem: Any) -> jax.Array:
    return jnp.log(problem.reference)[None]


def online(problem: Problem, method: Any, seed: int, **settings: Any) -> Path:
    """Along the training of a method whose reward is the proxy."""

    def build(one: Problem) -> alignment.Setup:
        world = bandit.of(_logits(one), one.proxy[None])
        return alignment.setup(
            method,
            world,
            num_updates=_UPDATES,
            num_prompts=32,
            group_size=8,
            kl_coefficient=_ONLINE_BETA,
            max_grad_norm=10.0,
            anneal_learning_rate=False,
            **settings,
        )

    as_float = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), problem)
    keys = alignment.keys_of(seed, len(problem.gold))
    policies = alignment.train(build, as_float, keys, _UPDATES, 100)[0, :, :, 0]
    return Path.of(np.moveaxis(policies, 0, 1), problem)


def by_agent(problem: Problem, method: Any, updates: int = 1000, **settings: Any) -> np.ndarray:
    """Policies [S, K] of the suite's agent, trained on the same pairs as the exact fit."""
    lists = [alignment.listed(wins) for wins in problem.wins]
    winners, losers = (jnp.asarray(np.stack(x)) for x in zip(*lists, strict=True))

    def build(one: Any) -> alignment.Setup:
        problem, winners, losers = one
        world = bandit.of(_logits(problem), None)
        data = alignment.pairs_of(jnp.zeros(PAIRS, jnp.int32), winners, losers)
        return alignment.setup(
            method,
            world,
            data,
            num_updates=updates,
            num_prompts=PAIRS,
            kl_coefficient=_AGENT_BETA,
            learning_rate=0.3,
            max_grad_norm=1e6,
            **settings,
        )

    as_float = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), problem)
    keys = alignment.keys_of(0, len(problem.gold))
    found = alignment.train(build, (as_float, winners, losers), keys, updates, 1)
    return np.asarray(found[0, :, -1, 0])


class Found(NamedTuple):
    """What was measured.

    Attributes:
      paths: of DPO and RPO by beta, in all problems.
      best: where on its path each is best in the problems of other seeds.
      trained: online methods along their training and the agent of RPO, in each seed's first.
      distance: of that agent from the exact fit, largest |pi - exact| over arms [S].
      greatest: reward of the best arm, mean over problems.
    """

    paths: dict[str, Path]
    best: dict[str, int]
    trained: dict[str, Path]
    distance: np.ndarray
    greatest: float

    @property
    def seeds(self) -> int:
        return len(self.distance)

    def of_seeds(self, name: str) -> Path:
        """DPO's or RPO's path, means over each seed's problems."""
        return self.paths[name].of_seeds(self.seeds)

    def at_best(self, name: str) -> np.ndarray:
        """Its gold reward at the beta that was best on other seeds [S]."""
        return self.of_seeds(name).gold[self.best[name]]

    def at(self, name: str, kl: float) -> np.ndarray:
        """Its gold reward at this KL [S]; NaN where a problem never comes there."""
        path = (self.paths | self.trained)[name]
        return path.at(kl).reshape(self.seeds, -1).mean(axis=1)


def measure(options: Options, progress: Progress) -> Found:
    """Exact fits by beta, also on other seeds, and agents on each seed's first problem."""
    seeds = options.seeds
    rng, other = (np.random.default_rng((options.seed + i, 23)) for i in (0, alignment.CHOICE))
    whole, chosen_on = problems(rng, seeds * REPEATS), problems(other, seeds)
    problem = Problem(*(x[::REPEATS] for x in whole))
    paths, best = {}, {}
    for i, (eta, name) in enumerate(NAMES.items()):
        paths[name] = by_beta(whole, eta)
        best[name] = by_beta(chosen_on, eta).best
        progress(0.5 * (i + 1) / len(NAMES))
    agent = by_agent(problem, rpo, eta=PRIMARY)
    exact = exact_fit(problem.wins, problem.reference, _AGENT_BETA, PRIMARY)
    fitted = softmax(np.log(problem.reference) + exact / _AGENT_BETA)
    distance = np.max(np.abs(agent - fitted), axis=1)
    progress(0.7)
    trained = {
        ONLINE[0]: online(problem, rloo, options.seed, learning_rate=0.03),
        ONLINE[1]: online(problem, rebel, options.seed, learning_rate=0.03, eta=0.2),
    }
    progress(1.0)
    trained["agent rpo"] = Path.of(agent[None], problem)
    return Found(paths, best, trained, distance, float(whole.gold.max(axis=1).mean()))


def run(options: Options, progress: Progress) -> Study:
    """Exact curves of DPO and RPO by beta, and online methods along their training."""
    found, seeds = measure(options, progress), options.seeds
    return Study(
        "Over-optimisation",
        (
            f"{seeds} seeds, each of {REPEATS} bandits of {ARMS} arms, of which a mean is taken: "
            f"normal rewards R, and a reference that knows them, softmax({SKILL:g} R + {NOISE:g} "
            "noise), so that what it seldom shows is mostly bad. The proxy is Bradley and Terry's "
            f"reward, fitted to {PAIRS} pairs of the reference with sampled labels, one reward an "
            "arm; gold is R itself. Both are less what the reference has. The setting was made so "
            "that a rare arm that won by luck costs something; with a reference that is "
            "independent of R the fall was much smaller on other draws.",
            f"Primary comparison: gold reward at KL(pi || ref) = {AT:g} nat, RPO with {Greek.eta} "
            f"= {PRIMARY:g} minus DPO, paired by seed. Others with it: the other {Greek.eta}, the "
            f"gold reward of each method at the {Greek.beta} that was best on other seeds "
            f"({alignment.CHOICE} above these), and two online methods (in the first problem of "
            "each seed). Student's t, Holm's correction for all of them.",
            "DPO's policy here is exactly the policy that KL-regularised training on the proxy "
            f"would settle at, q exp(proxy/{Greek.beta})/Z, for its implicit reward is the proxy: "
            "in a table of arms DPO and RLHF over-optimise alike, but for the way there. DPO and "
            f"RPO are fitted exactly (Newton, float64, ridge {alignment.RIDGE:g} pairs), and "
            f"online methods are the suite's agents, along their training with {Greek.beta} = "
            f"{_ONLINE_BETA:g}. Bands are 95 % intervals by Student's t.",
        ),
        _claims(found),
        [_figure(found)],
        [_table(found)],
    )


class Tests(NamedTuple):
    """Gold reward minus DPO's, by what is compared; all tests are corrected together.

    Attributes:
      at_equal_kl: RPO with each eta, where all problems come to that KL.
      at_best: RPO with each eta, both at their best beta.
      online: online methods at equal KL, where all problems come there.
    """

    at_equal_kl: dict[str, Comparison]
    at_best: dict[str, Comparison]
    online: dict[str, Comparison]


def _tests(found: Found) -> Tests:
    at_equal_kl, at_best, online = {}, {}, {}
    for name in (NAMES[eta] for eta in ETAS):
        at_best[f"{name} at its best {Greek.beta}"] = found.at_best(name) - found.at_best("DPO")
        gap = found.at(name, AT) - found.at("DPO", AT)
        if np.isfinite(gap).all():
            at_equal_kl[f"{name} at {AT:g} nat"] = gap
    for name in ONLINE:
        gap = found.at(name, AT) - found.paths["DPO"].at(AT)[::REPEATS]
        if np.isfinite(gap).all():
            online[f"{name} at {AT:g} nat"] = gap
    tests = {c.name: c for c in compare({**at_equal_kl, **at_best, **online})}
    return Tests(*({key: tests[key] for key in x} for x in (at_equal_kl, at_best, online)))


def _told(tests: dict[str, Comparison]) -> str:
    return "; ".join(
        f"{key}: {alignment.tell(test.interval)} ({alignment.p_value(test.p)})"
        for key, test in tests.items()
    )


def _claims(found: Found) -> list[Claim]:
    tests = _tests(found)
    return [
        _rpo_gains_at_equal_kl(tests.at_equal_kl),
        _dpo_over_optimises(found),
        _rpo_gains_at_its_best(tests.at_best),
        _rpo_falls_less(found),
        _online_methods_gain_on_the_way(tests.online),
        _agent_is_the_exact_fit(found.distance),
    ]


def _rpo_gains_at_equal_kl(tests: dict[str, Comparison]) -> Claim:
    test = tests.get(f"{RPO} at {AT:g} nat")
    return Claim(
        f"At {AT:g} nat from the reference RPO ({Greek.eta} = {PRIMARY:g}, 2405.16436) has "
        "more of the true reward than DPO.",
        "ours",
        intervals.agree([test], 1) if test else None,
        "gold reward minus DPO's: " + _told(tests),
        ("overoptimisation",),
    )


def _dpo_over_optimises(found: Found) -> Claim:
    path = found.of_seeds("DPO")
    fall = Interval.of(path.gold[-1] - path.gold[path.best])
    rise = Interval.of(path.proxy[-1] - path.proxy[path.best])
    return Claim(
        f"Over-optimisation: as DPO's {Greek.beta} falls, the fitted reward rises on while the "
        "true one peaks and falls.",
        "ours",
        bool(fall.high < 0 < rise.low),
        f"from {Greek.beta} = {say(float(BETAS[path.best]), 2)} (mean KL "
        f"{say(float(path.kl[path.best].mean()), 2)} nats) to {BETAS[-1]:g} (KL "
        f"{say(float(path.kl[-1].mean()), 2)}): gold {alignment.tell(fall)}, proxy "
        f"{alignment.tell(rise)}",
        ("overoptimisation",),
    )


def _rpo_gains_at_its_best(tests: dict[str, Comparison]) -> Claim:
    return Claim(
        f"RPO ({Greek.eta} = {PRIMARY:g}) at its best {Greek.beta} has more of the true reward "
        "than DPO at its own.",
        "ours",
        intervals.agree([tests[f"{RPO} at its best {Greek.beta}"]], 1),
        f"gold reward minus DPO's, each at the {Greek.beta} that was best on other seeds: "
        + _told(tests),
        ("overoptimisation",),
    )


def _rpo_falls_less(found: Found) -> Claim:
    falls = {name: found.of_seeds(name).gold[-1] - found.at_best(name) for name in ("DPO", RPO)}
    (kinder,) = compare({"kinder": falls[RPO] - falls["DPO"]})
    return Claim(
        f"RPO's regulariser makes too small a {Greek.beta} less of a fall.",
        "ours",
        intervals.agree([kinder], 1),
        f"gold reward at {Greek.beta} = {BETAS[-1]:g} minus that at the best one: "
        + "; ".join(f"{k}: {alignment.tell(Interval.of(x))}" for k, x in falls.items())
        + f"; the difference of the two: {alignment.tell(kinder.interval)} "
        f"({alignment.p_value(kinder.p)})",
        ("overoptimisation",),
    )


def _online_methods_gain_on_the_way(tests: dict[str, Comparison]) -> Claim:
    return Claim(
        f"On the way, at {AT:g} nat, online methods on the proxy have more of the true reward "
        "than DPO, which is where they would settle.",
        "ours",
        intervals.agree([*tests.values()], 1) if len(tests) == len(ONLINE) else None,
        "gold reward minus DPO's: " + _told(tests),
        ("overoptimisation",),
    )


def _agent_is_the_exact_fit(distance: np.ndarray) -> Claim:
    return Claim(
        "The suite's agent rpo comes to the exact fit of the same pairs.",
        "ours",
        bool(distance.max() < 0.02),
        f"largest |pi - exact| over arms, {Greek.beta} = {_AGENT_BETA:g}, {Greek.eta} = "
        f"{PRIMARY:g}: {say(float(distance.max()))} in {len(distance)} seeds",
        ("overoptimisation",),
    )


def _figure(found: Found) -> Figure:
    whole = {name: found.of_seeds(name) for name in found.paths}

    def curves(of: str) -> list[Line]:
        lines = []
        for style, (name, path) in enumerate({**whole, **found.trained}.items()):
            x, y = path.kl.mean(axis=1), getattr(path, of).T
            if name in ONLINE or name in whole:
                lines.append(band(name, x, y, style, "-" if name in whole else "--"))
                continue
            label = f"{name}, {Greek.beta} = {_AGENT_BETA:g}, {Greek.eta} = {PRIMARY:g}"
            lines.append(band(label, x, y, 1 + ETAS.index(PRIMARY), "", "s"))
        return lines

    against = [band(name, BETAS, path.gold.T, i) for i, (name, path) in enumerate(whole.items())]
    return Figure(
        "overoptimisation",
        "True (gold) and fitted (proxy) reward over the reference's, against KL; lines by "
        f"{Greek.beta} (dashed: along training), each point a mean over {found.seeds} seeds with "
        f"its 95 % interval; the best arm has {say(found.greatest)}.",
        [
            Panel("gold", "KL(pi || ref), nats", "gold reward", curves("gold")),
            Panel("proxy", "KL(pi || ref), nats", "proxy reward", curves("proxy")),
            Panel(f"gold by {Greek.beta}", Greek.beta, "gold reward", against, log_x=True),
        ],
        columns=3,
    )


def _table(found: Found) -> Table:
    rows: list[tuple[Value, ...]] = []
    for name, path in {**found.paths, **{name: found.trained[name] for name in ONLINE}}.items():
        cells: list[Value] = [name]
        for kl in (AT, 2 * AT, FAR):
            gold = found.at(name, kl)
            whole = bool(np.isfinite(gold).all())
            cells += [*Interval.of(gold)] if whole else [None, None, None]
            cells.append(float(np.mean(np.isfinite(path.at(kl)))))
        if name in found.best:
            cells += [float(BETAS[found.best[name]]), *Interval.of(found.at_best(name))]
        else:
            cells += [None] * 4
        rows.append(tuple(cells))
    heads = ["method"]
    for kl in (AT, 2 * AT, FAR):
        heads += [f"gold at {kl:g} nats", "from", "to", "share of problems that come there"]
    heads += [f"best {Greek.beta}", "gold there", "from", "to"]
    return Table(
        "overoptimisation",
        f"Gold reward at equal KL, where all problems come there, and at the {Greek.beta} that "
        "was best on other seeds; 95 % intervals by Student's t",
        heads,
        rows,
    )
