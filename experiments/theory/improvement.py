"""Improvement: lower bounds on J(pi) - J(old) against the truth, in random processes."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.theory import bounds, catalogue, tabular
from experiments.theory.bounds import Pair
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, say
from rgpo_jax import gates

_SIZES = ((5, 2, 2), (10, 4, 3), (20, 4, 5), (50, 8, 5))  # states, actions, branching
_DISCOUNTS = (0.5, 0.9, 0.95, 0.99)
_NEAR = (1e-3, 1e-2, 1e-1)
_STEPS = 4  # sizes of each kind of change, per process
_ROUNDING = 1e-10  # of A_max / (1 - gamma)

LINEAR, CUBIC, WITHOUT_SHIFT = "RGPO linear", "RGPO cubic", "RGPO without shift"
BOUNDS: dict[str, Callable[[Pair], np.ndarray]] = {
    "importance (Achiam et al.)": bounds.importance,
    "TRPO": bounds.trpo,
    "PPO clip 0.2": bounds.ppo,
    **{
        f"{name} k={k:g}": functools.partial(function, sharpness=k)
        for name, function in ((LINEAR, bounds.linear), (CUBIC, bounds.cubic))
        for k in catalogue.SHARPNESSES
    },
    f"{WITHOUT_SHIFT} k=4": functools.partial(bounds.without_shift, sharpness=4.0),
}


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def changes(
    rng: np.random.Generator, logits: np.ndarray, advantage: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """New policies at log-uniform distances: at random, uphill, and towards the greedy one."""
    n = len(logits)
    old = _softmax(logits)
    greedy = np.eye(logits.shape[-1])[advantage.argmax(-1)]
    for _ in range(_STEPS):
        size = np.exp(rng.uniform(np.log(1e-4), np.log(3.0), (n, 1, 1)))
        yield "random", _softmax(logits + size * rng.standard_normal(logits.shape))
        scale = np.abs(advantage).max((1, 2), keepdims=True)
        yield "uphill", _softmax(logits + size * advantage / scale)
        share = np.exp(rng.uniform(np.log(1e-4), np.log(0.99), (n, 1, 1)))
        yield "greedy", (1.0 - share) * old + share * greedy


class Outcome(NamedTuple):
    """Pairs of policies, in units of A_max / (1 - gamma) where they are returns [n].

    Attributes:
      kind: of the change.
      discount: gamma.
      variation: E_d[D].
      improvement: J(pi) - J(old).
      bounds: name -> lower bound of it.
    """

    kind: np.ndarray
    discount: np.ndarray
    variation: np.ndarray
    improvement: np.ndarray
    bounds: dict[str, np.ndarray]


def compare(processes: tabular.Processes, old: np.ndarray, new: np.ndarray, kind: str) -> Outcome:
    """Exact improvement and all bounds of pairs of policies [n, S, A]."""
    before, after = tabular.solve(processes, old), tabular.solve(processes, new)
    pair = Pair(processes.discount, before.occupancy, before.advantage, old, new)
    unit = pair.largest_advantage / (1.0 - processes.discount)
    return Outcome(
        np.full(len(unit), kind),
        processes.discount,
        pair.variation,
        (after.value - before.value) / unit,
        {name: bound(pair) / unit for name, bound in BOUNDS.items()},
    )


def sample(rng: np.random.Generator, count: int, progress: Progress) -> Outcome:
    """Random processes of all sizes and discounts, each with changes of all kinds."""
    outcomes = []
    cells = [(size, discount) for size in _SIZES for discount in _DISCOUNTS]
    shares = np.diff(np.linspace(0, count, len(cells) + 1).round().astype(int))
    for i, ((size, discount), n) in enumerate(zip(cells, shares, strict=True)):
        if n:
            processes = tabular.garnets(rng, int(n), *size, discount)
            logits = rng.standard_normal((n, *size[:2]))
            advantage = tabular.solve(processes, _softmax(logits)).advantage
            for kind, new in changes(rng, logits, advantage):
                outcomes.append(compare(processes, _softmax(logits), new, kind))
        progress((i + 1) / len(cells))
    joined: Outcome = jax.tree.map(lambda *parts: np.concatenate(parts), *outcomes)
    return joined


def traps() -> Outcome:
    """Processes made to break a bound that forgets the states: random ones do not show it."""
    outcomes = [
        compare(*tabular.trap(discount, leak, cost=1.0), "trap")
        for discount in _DISCOUNTS
        for leak in np.geomspace(1e-4, 0.99, 12).tolist()
    ]
    joined: Outcome = jax.tree.map(lambda *parts: np.concatenate(parts), *outcomes)
    return joined


class Verdict(NamedTuple):
    """A bound over all pairs.

    Attributes:
      violations: pairs whose improvement is below it.
      closest: least improvement minus bound, in units of A_max / (1 - gamma).
      certified: share of the improving pairs for which it is above 0.
      farthest: largest E_d[D] of those.
      looseness: median of improvement minus bound at each E_d[D] of `_NEAR`.
    """

    violations: int
    closest: float
    certified: float
    farthest: float | None
    looseness: tuple[float, ...]


def judge(outcome: Outcome, name: str) -> Verdict:
    """How one of the bounds did."""
    margin = outcome.improvement - outcome.bounds[name]
    certain = (outcome.bounds[name] > _ROUNDING) & (outcome.improvement > 0)
    near = [np.abs(np.log(outcome.variation / at)) < 0.5 for at in _NEAR]
    return Verdict(
        int(np.sum(margin < -_ROUNDING)),
        float(margin.min()),
        float(np.mean(certain[outcome.improvement > 0])) if certain.any() else 0.0,
        float(outcome.variation[certain].max()) if certain.any() else None,
        tuple(float(np.median(margin[at])) if at.any() else float("nan") for at in near),
    )


class Found(NamedTuple):
    """What all bounds did.

    Attributes:
      outcome: random processes.
      verdicts: name -> how the bound did there.
      trap: one process made to break a bound, of which the page tells.
      trapped: all of that form.
    """

    outcome: Outcome
    verdicts: dict[str, Verdict]
    trap: Outcome
    trapped: Outcome

    @property
    def pairs(self) -> int:
        return len(self.outcome.improvement)

    def of(self, kind: str) -> dict[float, Verdict]:
        """Sharpness -> how RGPO's bound of a kind did in random processes."""
        return {k: self.verdicts[f"{kind} k={k:g}"] for k in catalogue.SHARPNESSES}

    def in_traps(self, kind: str) -> int:
        """Violations of RGPO's bound of a kind in the other processes, all sharpnesses together."""
        names = (f"{kind} k={k:g}" for k in catalogue.SHARPNESSES)
        return sum(judge(self.trapped, name).violations for name in names)


def run(options: Options, progress: Progress) -> Study:
    """All bounds in all processes, the inequality they rest on, and its counterexample."""
    outcome = sample(np.random.default_rng((options.seed, 4)), options.mdps, progress)
    verdicts = {name: judge(outcome, name) for name in BOUNDS}
    trap = compare(*tabular.trap(discount=0.99, leak=0.05, cost=1.0), "trap")
    return Study(
        "Improvement",
        (
            f"{options.mdps:,} random processes (garnets of 5 to 50 states, 2 to 8 actions, "
            f"discounts {', '.join(f'{d:g}' for d in _DISCOUNTS)}), in each "
            f"{3 * _STEPS} changes of a random policy: at random, uphill along the advantage, and "
            "towards the greedy policy, from hardly any to nearly all. Values, occupancies and "
            "advantages are exact, by linear solves; no bound here is about estimated advantages. "
            "Returns are in units of A_max/(1 - \N{GREEK SMALL LETTER GAMMA}).",
            "The paper's Eq. 40 and Eq. 38 are known to us from a secondary summary alone. "
            "Linear is the repair with |(r - g) - (1 - g(1))| ≤ L |r - 1|; "
            "cubic is ours, with |r - f| ≤ min(|r - 1|, "
            "k²|r - 1|³/12) for f = 4 g/k. A bound is of use "
            "where it is above 0: there it certifies that the new policy is better.",
        ),
        _claims(Found(outcome, verdicts, trap, traps())),
        [_figure(outcome)],
        [
            Table(
                "improvement",
                f"Each bound over {len(outcome.improvement):,} pairs of policies; looseness is the "
                "median of improvement minus bound, near three distances E[D]",
                (
                    *("bound", "violations", "least margin", "certified share of improvements"),
                    "certified up to E[D]",
                    *(f"looseness, E[D] = {at:g}" for at in _NEAR),
                ),
                [(name, *v[:4], *v.looseness) for name, v in verdicts.items()],
            )
        ],
    )


def largest_slope(sharpness: float, scale: float) -> float:
    """sup |r - 1 - scale (g - 1/2)| / |r - 1| over r, in float64; at scale 4/k it is of r - f."""
    away = np.concatenate(
        [-np.linspace(1e-6, 1.0 - 1e-12, 20_001), np.geomspace(1e-6, 1e3, 20_001)]
    )
    with jax.enable_x64(True):
        g = np.asarray(gates.rgpo(sharpness)(np.log1p(away), np.ones_like(away)))
    return float(np.max(np.abs(away - scale * (g - 0.5)) / np.abs(away)))


def _claims(found: Found) -> list[Claim]:
    slopes = {k: largest_slope(k, 1.0) for k in catalogue.SHARPNESSES}
    return [
        _improvement_is_guaranteed(found),
        _eq_40(slopes),
        _eq_40_of_the_normalised_gate(),
        _eq_38(found),
        _linear_bound_holds(found, slopes),
        _linear_bound_says_nothing(found.outcome),
        _cubic_bound_holds(found),
    ]


def _violations(of: dict[float, Verdict]) -> str:
    return ", ".join(f"{v.violations} (k = {k:g})" for k, v in of.items())


def _improvement_is_guaranteed(found: Found) -> Claim:
    linear, cubic, trpo = found.of(LINEAR), found.of(CUBIC), found.verdicts["TRPO"]
    best = cubic[4.0]
    return Claim(
        "RGPO has an approximate monotonic improvement guarantee, analogous to TRPO's.",
        "paper",
        sum(v.violations for v in (*linear.values(), *cubic.values())) == 0
        and found.in_traps(LINEAR) + found.in_traps(CUBIC) == 0
        and best.certified > 0,
        f"in a repaired form: no violation in {found.pairs:,} pairs, k from 1 to 16; the cubic "
        f"bound certifies {say(100 * best.certified)} % of the improvements at k = 4 (TRPO's own "
        f"{say(100 * trpo.certified)} %), up to E[D] = {say(best.farthest)} (TRPO's "
        f"{say(trpo.farthest)})",
        ("improvement",),
    )


def _eq_40(slopes: dict[float, float]) -> Claim:
    with jax.enable_x64(True):
        at_one = float(gates.rgpo(4.0)(np.zeros(1), np.ones(1))[0])
    return Claim(
        "Eq. 40: |r - g(r)| ≤ L |r - 1|.",
        "summary",
        abs(1.0 - at_one) == 0.0,
        f"at r = 1 the left side is {say(abs(1.0 - at_one))} and the right side 0, for every L "
        "and k. With constants taken out, which E_old[A] = 0 allows, L = max(1, k/4 - 1) will "
        "do: largest |(r - g) - (1 - g(1))|/|r - 1|: "
        + ", ".join(f"{say(value, 4)} (k = {k:g})" for k, value in slopes.items()),
        ("improvement",),
    )


def _eq_40_of_the_normalised_gate() -> Claim:
    slopes = {k: largest_slope(k, 4.0 / k) for k in catalogue.SHARPNESSES}
    return Claim(
        "For the normalised gate f = 1 + (4/k)(g - 1/2) Eq. 40 holds, with L = 1.",
        "ours",
        max(slopes.values()) <= 1.0,
        "largest |r - f|/|r - 1|: "
        + ", ".join(f"{say(value, 4)} (k = {k:g})" for k, value in slopes.items()),
        ("improvement",),
    )


def _eq_38(found: Found) -> Claim:
    name = f"{WITHOUT_SHIFT} k=4"
    bound, truth = float(found.trap.bounds[name][0]), float(found.trap.improvement[0])
    return Claim(
        "Eq. 38: the bound holds without a term for the states that the new policy visits.",
        "summary",
        truth >= bound - _ROUNDING,
        f"in a process of two states the return falls by {say(-truth)} A_max/(1 - gamma) where "
        f"that bound promises a fall of at most {say(-bound)}; of {len(found.trapped.kind)} pairs "
        f"of this form {judge(found.trapped, name).violations} violate it, and in the random "
        f"processes {found.verdicts[name].violations} of {found.pairs:,}",
        ("improvement",),
    )


def _linear_bound_holds(found: Found, slopes: dict[float, float]) -> Claim:
    linear, in_traps = found.of(LINEAR), found.in_traps(LINEAR)
    return Claim(
        "The repaired bound, with L = max(1, k/4 - 1) and Achiam et al.'s term for the states, "
        "holds.",
        "ours",
        sum(v.violations for v in linear.values()) + in_traps == 0
        and all(value <= max(1.0, k / 4.0 - 1.0) + 1e-9 for k, value in slopes.items()),
        f"violations in {found.pairs:,} pairs: {_violations(linear)}; least margin "
        f"{say(min(v.closest for v in linear.values()))}; in {len(found.trapped.kind)} pairs made "
        f"to break a bound without the states' term: {in_traps}",
        ("improvement",),
    )


def _linear_bound_says_nothing(outcome: Outcome) -> Claim:
    sharp = catalogue.SHARPNESSES
    largest = {k: float(outcome.bounds[f"{LINEAR} k={k:g}"].max()) for k in sharp}
    return Claim(
        "The repaired bound says nothing for k ≤ 4: it is never above 0.",
        "ours",
        all(value <= _ROUNDING for k, value in largest.items() if k <= 4.0),
        "its largest value: "
        + ", ".join(f"{say(value)} (k = {k:g})" for k, value in largest.items())
        + "; both the surrogate and what it may hide are of the first order in the distance, "
        "and for k ≤ 4 the surrogate's slope k/4 is not the larger one",
        ("improvement",),
    )


def _cubic_bound_holds(found: Found) -> Claim:
    cubic, in_traps = found.of(CUBIC), found.in_traps(CUBIC)
    return Claim(
        "With |r - f| ≤ min(|r - 1|, k²|r - 1|³/12) in its place the bound holds, and certifies "
        "small steps for every k.",
        "ours",
        sum(v.violations for v in cubic.values()) + in_traps == 0
        and all(v.certified > 0 for v in cubic.values()),
        f"violations in {found.pairs:,} pairs: {_violations(cubic)}, and {in_traps} in "
        f"{len(found.trapped.kind)} made to break a bound without the states' term; certified "
        "shares of the improvements: "
        + ", ".join(f"{say(100 * v.certified)} % (k = {k:g})" for k, v in cubic.items())
        + f"; importance sampling's own bound "
        f"{say(100 * found.verdicts['importance (Achiam et al.)'].certified)} %, PPO's surrogate "
        f"in it {say(100 * found.verdicts['PPO clip 0.2'].certified)} %",
        ("improvement",),
    )


_DRAWN = (
    "importance (Achiam et al.)",
    "TRPO",
    "PPO clip 0.2",
    f"{CUBIC} k=4",
    f"{CUBIC} k=16",
    f"{LINEAR} k=4",
)


def _figure(outcome: Outcome) -> Figure:
    return Figure(
        "improvement",
        "Median of improvement minus bound against the distance; share of the improvements, at "
        "discount 0.9, for which the bound is above 0; bound against truth, both over E[D], where "
        "no point may lie above the line; and the inequality that the bounds rest on, at k = 4. "
        "Returns are in units of A_max/(1 - \N{GREEK SMALL LETTER GAMMA}).",
        [*_by_distance(outcome), _against_truth(outcome), _inequality()],
    )


def _by_distance(outcome: Outcome) -> tuple[Panel, Panel]:
    """How loose bounds are, and how many improvements they certify."""
    edges = np.geomspace(1e-4, 1.0, 17)
    middle = np.sqrt(edges[1:] * edges[:-1])
    places = np.digitize(outcome.variation, edges) - 1
    uphill = (outcome.improvement > 0) & (outcome.discount == 0.9)
    everywhere = np.full(len(places), True)

    def per_place(values: np.ndarray, which: np.ndarray, reduce: Callable) -> np.ndarray:
        chosen = [values[which & (places == i)] for i in range(len(middle))]
        return np.array([reduce(part) if len(part) > 4 else np.nan for part in chosen])

    loose, certified = [], []
    for style, name in enumerate(_DRAWN):
        bound = outcome.bounds[name]
        margin = per_place(outcome.improvement - bound, everywhere, np.median)
        share = per_place((bound > _ROUNDING).astype(float), uphill, np.mean)
        loose.append(Line(name, middle, margin, style))
        certified.append(Line(name, middle, share, style))
    return (
        Panel("looseness", "E[D]", "improvement - bound", loose, log_x=True, log_y=True),
        Panel("certified improvements", "E[D]", "share", certified, log_x=True),
    )


def _against_truth(outcome: Outcome) -> Panel:
    """Some pairs, drawn at random."""
    number = len(outcome.improvement)
    shown = np.random.default_rng(0).choice(number, min(500, number), replace=False)
    distance = outcome.variation[shown]
    points = [
        Line(
            name,
            outcome.improvement[shown] / distance,
            outcome.bounds[name][shown] / distance,
            _DRAWN.index(name),
            "",
            marker=".",
        )
        for name in ("TRPO", f"{CUBIC} k=4")
    ]
    diagonal = np.array([-1.0, 1.0])
    return Panel(
        "bound and truth",
        "improvement / E[D]",
        "bound / E[D]",
        [*points, Line("", diagonal, diagonal, None)],
        limits=(-2.0, 1.0),
    )


def _inequality() -> Panel:
    r = np.linspace(0.0, 3.0, 301)
    with jax.enable_x64(True):
        g = np.asarray(gates.rgpo(4.0)(np.log(np.maximum(r, 1e-12)), np.ones_like(r)))
    away = np.abs(r - 1.0)
    lines = [
        Line("|r - g|", r, np.abs(r - g), 6),
        Line("|r - f|", r, np.abs(r - 0.5 - g), 7),
        Line("|r - 1|", r, away, None),
        Line("min(|r - 1|, k²|r - 1|³/12)", r, np.minimum(away, 16.0 / 12.0 * away**3), None, ":"),
    ]
    return Panel("the inequality", "ratio r", "", lines, limits=(0.0, 2.0))
