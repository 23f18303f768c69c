"""Variance: the second moment of gradient estimators where the ratio has a heavy tail."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.record import colors
from experiments.theory import catalogue, family, ratios
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, Value, say
from rgpo_jax import gates
from rgpo_jax.gates import Gate, weight
from rgpo_jax.tunable import Tunable

TAILS = ratios.TAILS
_CHUNK = 1 << 19
_FIT_FROM = 1000  # smaller samples do not follow the power law yet


def _sine(log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    del advantage
    return 0.5 * (1.0 + jnp.sin(jnp.exp(log_ratio) - 1.0))


# A bounded gate whose weight, r cos(r - 1) / 2, is not.
SINE = "(1 + sin(r - 1)) / 2"
ESTIMATORS: dict[str, Tunable] = {
    "importance": gates.importance(),
    "truncated c=1": gates.truncated_importance(1.0),
    "ppo": gates.ppo(),
    **{catalogue.rgpo_name(k): gates.rgpo(k) for k in (1.0, 4.0, 16.0)},
    SINE: Tunable(_sine),
}
_AGENTS = {"truncated c=1": "truncated_importance"}  # of those whose name does not begin with it
_KINKS = (0.0, math.log(0.8), math.log(1.2))  # of the gates above
FORMS: dict[str, Callable[[float], ratios.ParetoBandit | ratios.Normals]] = {
    "bandit": lambda tail: ratios.ParetoBandit(tail, kinks=_KINKS),
    "normal": lambda tail: ratios.Normals.with_tail(tail, kinks=_KINKS),
}


_STEPS = 12  # of the staircase
_FIGURES = ("variance", "variance_normal")


def staircase_moments(tail: float) -> np.ndarray:
    """What each step of a monotone gate in [0, 1] adds to E_old[w^2] under a Pareto ratio.

    g = sum_n 2^-n sigmoid(16^n (r - 2^n)) rises by 2^-n at r = 2^n, ever more steeply. The squares
    of its steps' own weights are summed, which is less than the square of their sum.

    Args:
      tail: Pareto's index a, less than 3.

    Returns:
      Partial sums over the first 1, 2, ... steps.
    """
    x, weights = np.polynomial.legendre.leggauss(200)
    x, weights = 30.0 * x, 30.0 * weights
    least = (tail - 1.0) / tail
    added = []
    for n in range(1, _STEPS + 1):
        steepness, at = 16.0**n, 2.0**n
        r = at + x / steepness
        w = 2.0**-n * steepness * r / (4.0 * np.cosh(x / 2.0) ** 2)
        density = tail / least * (r / least) ** (-tail - 1.0)
        added.append(float(np.sum(weights / steepness * np.square(w) * density)))
    return np.cumsum(added)


@jax.jit
def _cumulative(
    gate: Gate, log_ratio: jax.Array, advantage: jax.Array, score: jax.Array
) -> jax.Array:
    """Running sums of (w A s)^2."""
    return jnp.cumsum(jnp.square(weight(gate)(log_ratio, advantage) * advantage * score))


def sizes(largest: int) -> np.ndarray:
    """Sample sizes at which the moments are read: three a decade, from 100 on."""
    count = round(3 * math.log10(largest / 100)) + 1
    return np.unique(np.round(np.geomspace(100, largest, count)).astype(np.int64))


def measure(
    model: ratios.Model,
    estimators: dict[str, Tunable],
    at: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Second moments of the first n draws of one sample.

    Args:
      model: that is drawn from.
      estimators: name -> gate.
      at: the sizes n, rising.
      rng: of the draws.

    Returns:
      Name -> mean of (w A s)^2 over the first n draws, for each n.
    """
    totals = dict.fromkeys(estimators, 0.0)
    found: dict[str, list[float]] = {name: [] for name in estimators}
    done = 0
    while done < at[-1]:
        n = min(_CHUNK, int(at[-1]) - done)
        samples = model.draw(rng, n)
        ends = at[(at > done) & (at <= done + n)] - done - 1
        with jax.enable_x64(True):
            for name, gate in estimators.items():
                sums = _cumulative(gate, *samples[:3])
                found[name] += list(totals[name] + np.asarray(sums[ends]))
                totals[name] += float(sums[-1])
        done += n
    return {name: np.array(sums) / at for name, sums in found.items()}


def exponent(at: np.ndarray, moments: np.ndarray) -> tuple[float, float, float]:
    """The power of n with which second moments grow, with its 95 % interval over replicates.

    Args:
      at: sample sizes.
      moments: [replicates, sizes].

    Returns:
      The mean over replicates of the slope of log moment over log n, and Student's interval.
    """
    use = at >= min(_FIT_FROM, at[-1] // 10)
    slopes = np.array([np.polyfit(np.log(at[use]), np.log(row[use]), 1)[0] for row in moments])
    half = stats.t.ppf(0.975, len(slopes) - 1) * slopes.std(ddof=1) / math.sqrt(len(slopes))
    return float(slopes.mean()), float(slopes.mean() - half), float(slopes.mean() + half)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One estimator under one model.

    Attributes:
      exact: second moment; inf where it diverges.
      moments: measured [replicates, sizes].
      bound: (sup |w|)² E_old[A^2 s^2].
      exponent: fitted power of n, with its interval.
      theory: the power that the tails say.
    """

    form: str
    tail: float
    estimator: str
    exact: float
    moments: np.ndarray
    bound: float
    exponent: tuple[float, float, float]
    theory: float

    def row(self) -> tuple[Value, ...]:
        last = self.moments[:, -1]
        return (
            *(self.form, self.tail, self.estimator, self.exact),
            *map(float, (np.median(last), last.min(), last.max())),
            *(self.bound, *self.exponent, self.theory),
        )


def _measured(form: str, tail: float, name: str, at: np.ndarray, moments: np.ndarray) -> Measured:
    gate, model = ESTIMATORS[name], FORMS[form](tail)
    if name == SINE:  # its weight oscillates between r/2 and -r/2
        power, largest = 1.0, math.inf
        exact = math.inf if tail <= 2.0 else math.nan
    else:
        power = ratios.largest_growth(gate)
        largest = max(family.supremum(gate, sign)[0] for sign in (1.0, -1.0))
        exact = ratios.second_moment(gate, model)
    square = model.quadrature()
    bound = largest**2 * float(np.sum(square.mass * np.square(square.advantage * square.score)))
    theory = max(0.0, 2.0 * power / tail - 1.0)
    return Measured(form, tail, name, exact, moments, bound, exponent(at, moments), theory)


def measure_all(options: Options, at: np.ndarray, progress: Progress) -> list[Measured]:
    """Each estimator, form and tail; samples are drawn side by side."""
    tasks = [
        (form, tail, replicate)
        for form in FORMS
        for tail in TAILS
        for replicate in range(options.replicates)
    ]

    def work(task: tuple[str, float, int]) -> dict[str, np.ndarray]:
        form, tail, replicate = task
        key = (options.seed, list(FORMS).index(form), TAILS.index(tail), replicate)
        return measure(FORMS[form](tail), ESTIMATORS, at, np.random.default_rng(key))

    measured: dict[tuple[str, float, str], list[np.ndarray]] = {}
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for i, (task, moments) in enumerate(zip(tasks, pool.map(work, tasks), strict=True)):
                for name, values in moments.items():
                    measured.setdefault((*task[:2], name), []).append(values)
                progress((i + 1) / len(tasks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [
        _measured(form, tail, name, at, np.array(m)) for (form, tail, name), m in measured.items()
    ]


def run(options: Options, progress: Progress) -> Study:
    """Second moments, exact and measured, of each estimator, form and tail."""
    at = sizes(options.samples)
    measured = measure_all(options, at, progress)
    stairs = {tail: staircase_moments(tail) for tail in (1.5, 2.5)}
    return Study(
        "Variance under heavy-tailed ratios",
        (
            "Ratios with P(r > t) falling like t^-a: for a ≤ 2 their second "
            "moment is infinite. Bandit: the ratio itself is Pareto's. Normal: a policy wider than "
            "the old one, of variance a/(a - 1) times the old one's, whose ratio has that tail but "
            "for a logarithm. Advantages are +1 or -1, mixed for all actions, so that the tail has "
            "both signs. All exact values are quadratures of the very gates that agents use. "
            "RGPO's is the paper's, whose weight at r = 1 is k/4: moments at different k are to be "
            "divided by its square before they are compared.",
            "Where the exact value is finite (dashed) the sample's settles on it; where it is "
            "infinite the sample's grows with its size as n^(2p/a - 1), which the last panel holds "
            "against theory. At a = 2 the growth is logarithmic, which a fit "
            "of a power over few decades takes for a small one.",
        ),
        _claims(measured, stairs, options.samples),
        [_figure(form, at, measured) for form in FORMS],
        [_moments_table(measured, options), _staircase_table(stairs)],
    )


def _colors() -> dict[str, str]:
    """Estimator -> the colour of the agent whose gate it has."""
    agents = {name: _AGENTS.get(name, name.split()[0]) for name in ESTIMATORS}
    looks = colors.of_variants(list(agents.values()))
    return {name: look.color for name, look in zip(agents, looks, strict=True)}


def _figure(form: str, at: np.ndarray, measured: Sequence[Measured]) -> Figure:
    panels = []
    for tail in TAILS:
        lines = []
        for name, style in _colors().items():
            (one,) = (c for c in measured if (c.form, c.tail, c.estimator) == (form, tail, name))
            m = one.moments
            middle, low, high = np.median(m, axis=0), m.min(axis=0), m.max(axis=0)
            lines.append(Line(name, at, middle, style, low=low, high=high))
            if math.isfinite(one.exact):
                ends = at[[0, -1]]
                lines.append(Line("", ends, np.full(2, one.exact), style, "--"))
        panels.append(
            Panel(f"a = {tail:g}", "samples n", "second moment", lines, log_x=True, log_y=True)
        )
    tails = np.linspace(TAILS[0], TAILS[-1], 200)
    lines = [
        Line("max(2/a - 1, 0)", tails, np.maximum(2.0 / tails - 1.0, 0.0), None),
        *(
            Line(name, np.array(TAILS), *_exponents(form, name, measured), marker="o")
            for name in ESTIMATORS
        ),
    ]
    panels.append(Panel("growth of the second moment", "tail index a", "power of n", lines))
    return Figure(
        "variance" if form == "bandit" else f"variance_{form}",
        f"Second moment of the gradient estimator against the sample size, {form} form: median and "
        "range over replicates; dashed: exact, where it is finite.",
        panels,
        columns=3,
    )


def _exponents(
    form: str, name: str, measured: Sequence[Measured]
) -> tuple[np.ndarray, str, str, np.ndarray, np.ndarray]:
    """What a line needs of an estimator's fits over tails, after its x."""
    fits = np.array([c.exponent for c in measured if (c.form, c.estimator) == (form, name)])
    return fits[:, 0], _colors()[name], "", fits[:, 1], fits[:, 2]


def _claims(
    measured: Sequence[Measured], stairs: dict[float, np.ndarray], samples: int
) -> list[Claim]:
    return [
        _rgpo_is_bounded(measured, samples),
        _importance_diverges(measured),
        _bounded_gates_can_diverge(measured, stairs),
        _ppo_diverges(measured),
    ]


def _heavy(measured: Sequence[Measured], name: str) -> list[Measured]:
    """An estimator's, under tails of infinite variance."""
    return [one for one in measured if one.estimator == name and one.tail < 2.0]


def _fits(measured: Sequence[Measured], name: str) -> str:
    return "; ".join(
        f"{c.form} a = {c.tail:g}: {say(c.exponent[0])} [{say(c.exponent[1])}, "
        f"{say(c.exponent[2])}], theory {say(c.theory)}"
        for c in _heavy(measured, name)
    )


def _grows(measured: Sequence[Measured], name: str) -> bool | None:
    """Whether all fits are above 0; None where their intervals leave that open."""
    heavy = _heavy(measured, name)
    if all(one.exponent[1] > 0.0 for one in heavy):
        return True
    return False if any(one.exponent[2] < 0.0 for one in heavy) else None


def _rgpo_is_bounded(measured: Sequence[Measured], samples: int) -> Claim:
    rgpo = [one for one in measured if one.estimator.startswith("rgpo")]
    closest = max(rgpo, key=lambda one: one.exact / one.bound)
    off = max(abs(float(np.median(c.moments[:, -1])) / c.exact - 1.0) for c in rgpo)
    return Claim(
        "RGPO's gradient variance is finite and bounded even where importance ratios are "
        "heavy-tailed.",
        "paper",
        all(max(c.exact, float(c.moments[:, -1].max())) <= c.bound for c in rgpo),
        f"in all {len(rgpo)} cells (k, form, tail from {TAILS[0]:g}) the exact second moment, "
        f"and that of every sample of {samples:,}, is below (sup w)² E[A² s²]; it "
        f"comes closest at {closest.estimator}, {closest.form}, a = {closest.tail:g}, with "
        f"{say(closest.exact)} of {say(closest.bound)}; samples' medians are within "
        f"{say(100 * off)} % of exact",
        _FIGURES,
    )


def _importance_diverges(measured: Sequence[Measured]) -> Claim:
    importance = [one for one in measured if one.estimator == "importance"]
    return Claim(
        "There the variance of importance sampling diverges.",
        "paper",
        all(math.isinf(c.exact) == (c.tail <= 2.0) for c in importance)
        and _grows(measured, "importance"),
        f"the exact second moment is infinite for a <= 2 and finite above; fitted power of n: "
        f"{_fits(measured, 'importance')}",
        _FIGURES,
    )


def _bounded_gates_can_diverge(
    measured: Sequence[Measured], stairs: dict[float, np.ndarray]
) -> Claim:
    return Claim(
        "What bounds the variance is a bounded weight w; that g lies in [0, 1] does not.",
        "ours",
        all(sums[-1] > 4.0 * sums[_STEPS // 2] for sums in stairs.values())
        and _grows(measured, SINE),
        f"g = {SINE} lies in [0, 1] and w = r cos(r - 1)/2; fitted power of n: "
        f"{_fits(measured, SINE)}. A monotone g in [0, 1] can diverge as well: the staircase's "
        "second moment is at least "
        + ", ".join(f"{say(sums[-1])} at a = {tail:g}" for tail, sums in stairs.items())
        + f" after {_STEPS} steps, without end",
        _FIGURES,
    )


def _ppo_diverges(measured: Sequence[Measured]) -> Claim:
    return Claim(
        "PPO's estimator diverges as importance sampling's does where the tail has samples of "
        "negative advantage, since its clip leaves their weight at r.",
        "ours",
        _grows(measured, "ppo"),
        f"fitted power of n: {_fits(measured, 'ppo')}",
        _FIGURES,
    )


def _moments_table(measured: Sequence[Measured], options: Options) -> Table:
    return Table(
        "variance",
        f"Second moment E[w² A² s²] of each "
        f"estimator: exact, and of {options.replicates} samples of {options.samples:,} (median, "
        "least, largest); the bound (sup |w|)² "
        "E[A² s²]; the power of n with which it grows, fitted "
        f"from n = {min(_FIT_FROM, options.samples // 10):,} on with its 95 % interval, and what "
        "theory says: 2 p/a - 1 where w ~ r^p, if above 0",
        (
            *("form", "tail a", "estimator", "exact", "median", "least", "largest", "bound"),
            *("exponent", "low", "high", "exponent, theory"),
        ),
        [one.row() for one in measured],
    )


def _staircase_table(stairs: dict[float, np.ndarray]) -> Table:
    return Table(
        "variance_staircase",
        "A monotone gate in [0, 1] of infinite variance: what the first steps of "
        "Σ 2^-n \N{GREEK SMALL LETTER SIGMA}(16^n (r - 2^n)) add up to in "
        "E[w²], at least",
        ("steps", *(f"a = {tail:g}" for tail in stairs)),
        [(n + 1, *(float(sums[n]) for sums in stairs.values())) for n in range(_STEPS)],
    )
