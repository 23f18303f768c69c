"""Zeroth-order policy gradients: what few judges, many parameters and common numbers do to them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.comparing import intervals
from experiments.comparing.intervals import Comparison, Interval, compare
from experiments.theory import alignment
from experiments.theory.alignment import Greek, band
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Panel, Progress, Study, Table, Value, say
from experiments.theory.zeroth_learning import (
    BOTH,
    CENTRAL,
    COMMON,
    DEFAULT,
    POOLED,
    RATES,
    REWARDS,
    RLOO,
    ROWS,
    TUNING_SEEDS,
    UPDATES,
    Learnt,
    learn,
    problems,
)
from experiments.theory.zeroth_signal import MU, PAIRS, Signal, drawn, signal_of

JUDGES = (1, 3, 31, 1000)
TRIMS = (0.05, 0.2, 0.4)
SIZES = (10, 40, 160)  # arms, which are parameters: d
LEARNT = (SIZES[0], SIZES[-1])
IN_ALL = (DEFAULT, POOLED, BOTH, REWARDS)  # sizes of `LEARNT`; the others in the first alone
KINDS: dict[str, tuple[str, int, float]] = {
    "exact values": ("exact", 1, 0.05),
    f"M = 31, each, {Greek.delta} = 0.05": ("each", 31, 0.05),
    "M = 1, pooled": ("pooled", 1, 0.05),
    "M = 1, sign": ("sign", 1, 0.05),
}
_ROOT = f", {Greek.mu} ~ \u221ad"


# (kind, d) -> of each seed's problem.
Signals = dict[tuple[str, int], list[Signal]]
# M, trim, exact scale, what was drawn minus that, its standard error.
Draw = tuple[int, float, float, float, float]
# (row, d) -> what is learnt.
Runs = Mapping[tuple[str, int], Learnt]


def signals_of(seed: int, seeds: int) -> Signals:
    """Kinds are `KINDS`, and "each" by M and trim."""
    found: Signals = {}
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


def draws_of(seed: int) -> list[Draw]:
    """The suite's own estimates in one problem, beside the closed form."""
    one = problems(seed, 1, SIZES[0])
    return [
        (judges, trim, *drawn(one.reference[0], one.reward[0], judges, trim, seed))
        for judges in JUDGES
        for trim in TRIMS[:2]
    ]


def _each(judges: int, trim: float) -> str:
    return f"M = {judges}, each, {Greek.delta} = {trim:g}, scale"


def _scales(signals: Signals, judges: int, trim: float) -> np.ndarray:
    return np.array([s.scale for s in signals[_each(judges, trim), SIZES[0]]])


def _needed(signals: Signals, kind: str) -> np.ndarray:
    """Directions, of each seed and size [S, sizes]."""
    return np.array([[s.directions for s in signals[kind, d]] for d in SIZES]).T


def _growth(signals: Signals, kind: str) -> Interval:
    """Power of d by which the directions needed grow."""
    return Interval.of(alignment.slopes(np.log(SIZES), np.log(_needed(signals, kind))))


def learn_all(seed: int, seeds: int, progress: Progress) -> Runs:
    """All rows in the smaller size, and those of `IN_ALL` in both."""
    jobs = [(name, d) for d in LEARNT for name in ROWS if d == LEARNT[0] or name in IN_ALL]
    jobs += [(REWARDS, d) for d in LEARNT]
    learnt: dict[tuple[str, int], Learnt] = {}
    for i, (name, d) in enumerate(jobs):
        learnt[name, d] = learn(ROWS.get(name, RLOO), d, seed, seeds)
        progress(0.1 + 0.9 * (i + 1) / len(jobs))
    return learnt


def run(options: Options, progress: Progress) -> Study:
    """Closed forms, a check of them by the suite's own draws, and learning."""
    seed, seeds = options.seed, options.seeds
    signals = signals_of(seed, seeds)
    draws = draws_of(seed)
    progress(0.1)
    learnt = learn_all(seed, seeds, progress)
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
            f"{', '.join(f'{r:g}' for r in RATES)} on {TUNING_SEEDS} other seeds, for each row, "
            "size and budget. Primary comparison: share of the possible gain in reward at equal "
            f"verdicts, {UPDATES * PAIRS:,}, one judge a pair pooled minus 31 judges each, for "
            "each d; with it the same at equal pairs, common random numbers and central "
            "differences, and RLOO. Differences are paired by seed; Student's t, Holm's correction "
            "for all of them. Bands are 95 % intervals.",
        ),
        _claims(signals, draws, learnt),
        [_figure(signals, learnt, seeds)],
        _tables(signals, draws, learnt),
    )


# What is claimed.


def _comparisons(learnt: Runs) -> list[Comparison]:
    """Of all pairs of rows, corrected together."""
    last, small = UPDATES, LEARNT[0]
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
    return compare(gaps)


def _of(tests: Sequence[Comparison], part: str) -> list[Comparison]:
    """Those whose name has this part."""
    return [test for test in tests if part in test.name]


def _claims(signals: Signals, draws: Sequence[Draw], learnt: Runs) -> list[Claim]:
    tests = _comparisons(learnt)
    return [
        _one_judge_learns_more_from_verdicts(_of(tests, "equal verdicts")),
        _many_judges_learn_more_from_pairs(_of(tests, "equal pairs")),
        _few_judges_bias_the_scale(signals),
        _draws_have_the_exact_mean(draws),
        _directions_grow_with_parameters(signals),
        _common_and_central_learn_more(tests),
        _rewards_learn_more(_of(tests, "RLOO")),
        _many_parameters_learn_less(learnt),
    ]


def _one_judge_learns_more_from_verdicts(tests: Sequence[Comparison]) -> Claim:
    return Claim(
        "At equal verdicts one judge a pair, pooled, learns more than 31 judges of fewer "
        "pairs, at every d.",
        "ours",
        intervals.agree(tests, 1),
        f"share of the possible gain, {UPDATES * PAIRS:,} verdicts: {alignment.words(tests)}",
        ("zeroth_order",),
    )


def _many_judges_learn_more_from_pairs(tests: Sequence[Comparison]) -> Claim:
    return Claim(
        "At equal pairs 31 judges a pair learn more than one, at every d.",
        "ours",
        intervals.agree(tests, -1),
        f"share of the possible gain, {UPDATES * PAIRS:,} pairs: {alignment.words(tests)}",
        ("zeroth_order",),
    )


def _few_judges_bias_the_scale(signals: Signals) -> Claim:
    small = LEARNT[0]
    scales = {(m, t): float(_scales(signals, m, t).mean()) for m in JUDGES for t in TRIMS}
    least = min(scales[3, t] for t in TRIMS)
    cosine = min(s.cosine for m in JUDGES for t in TRIMS for s in signals[_each(m, t), small])
    return Claim(
        f"Few judges bias the estimate, in scale, and the cut-off {Greek.delta} says by how "
        f"much: three judges more than 10 % off at every {Greek.delta} of the table, 31 and "
        "more less than 10 % at 0.05.",
        "ours",
        bool(
            all(abs(scales[3, t] - 1.0) > 0.1 for t in TRIMS)
            and all(abs(scales[m, 0.05] - 1.0) < 0.1 for m in (31, 1000))
        ),
        f"scale by closed form, d = {small}, mean over seeds: "
        + "; ".join(
            f"M = {m}: " + ", ".join(f"{say(scales[m, t])} ({t:g})" for t in TRIMS) for m in JUDGES
        )
        + f"; the least of three judges is {say(least)}. Cosines to the gradient are at least "
        + say(cosine),
        ("zeroth_order",),
    )


def _draws_have_the_exact_mean(draws: Sequence[Draw]) -> Claim:
    farthest = max(abs(gap / error) for *_, gap, error in draws)
    return Claim(
        "The suite's estimate, drawn, has the mean of the closed form.",
        "ours",
        bool(farthest < 4.0),
        f"scale at {Greek.mu} = 1, 20,000 directions, exact along the same directions: largest "
        f"of {len(draws)} differences {say(farthest)} standard errors",
        ("zeroth_order",),
    )


def _directions_grow_with_parameters(signals: Signals) -> Claim:
    growth = {kind: _growth(signals, kind) for kind in (*KINDS, *(k + _ROOT for k in KINDS))}
    noisy = [growth[k] for k in list(KINDS)[1:]]
    return Claim(
        "With sampled answers the directions needed grow faster than linearly in d, at a fixed "
        f"{Greek.mu}.",
        "ours",
        all(x.low > 1.0 for x in noisy),
        "power of d: "
        + "; ".join(f"{k}: {alignment.tell(x)}" for k, x in growth.items())
        + ". Part of it is the gradient, which is shorter where arms are many",
        ("zeroth_order",),
    )


def _common_and_central_learn_more(tests: Sequence[Comparison]) -> Claim:
    together = _of(tests, "common numbers and central")
    alone = _of(tests, "minus M = 31, each")
    return Claim(
        "Common random numbers and central differences together learn more from the same "
        "pairs, at every d.",
        "ours",
        intervals.agree(together, 1),
        f"share of the possible gain: {alignment.words(together)}; alone: "
        + alignment.words(alone),
        ("zeroth_order",),
    )


def _rewards_learn_more(tests: Sequence[Comparison]) -> Claim:
    return Claim(
        "A method that sees rewards, RLOO, learns more from as many answers, at every d.",
        "ours",
        intervals.agree(tests, 1),
        f"share of the possible gain: {alignment.words(tests)}",
        ("zeroth_order",),
    )


def _many_parameters_learn_less(learnt: Runs) -> Claim:
    small, large = LEARNT

    def lost(row: str) -> np.ndarray:
        return learnt[row, large].at(UPDATES) - learnt[row, small].at(UPDATES)

    (size,) = compare({"d": lost(DEFAULT)})
    return Claim(
        f"The same budget brings less where parameters are more: d = {large} against {small}.",
        "ours",
        intervals.agree([size], -1),
        f"share of the possible gain, M = 31: {alignment.tell(size.interval, 2)}, "
        f"{alignment.p_value(size.p)}; of RLOO " + alignment.tell(Interval.of(lost(REWARDS)), 2),
        ("zeroth_order",),
    )


# What is shown.


_STYLES = {name: style for style, name in enumerate((*ROWS, REWARDS))}


def _figure(signals: Signals, learnt: Runs, seeds: int) -> Figure:
    judged = (DEFAULT, "M = 3, each", POOLED)
    ways = (DEFAULT, COMMON, CENTRAL, BOTH, "ZBCPG, M = 31", REWARDS)
    by_pairs = (
        (f"judges, d = {SIZES[0]}", SIZES[0], (*judged, "M = 1, sign")),
        (f"ways, d = {SIZES[0]}", SIZES[0], ways),
        (f"d = {LEARNT[-1]}", LEARNT[-1], IN_ALL),
    )
    return Figure(
        "zeroth_order",
        "Scale of the mean estimate (each; 1 is unbiased) and directions needed, by closed form "
        f"(dashed: {Greek.mu} grows with \u221ad); and learning, rates chosen on other seeds for "
        f"the whole run. Means over {seeds} seeds with 95 % intervals.",
        [
            _bias_panel(signals),
            _noise_panel(signals),
            *(_by_pairs(title, {n: learnt[n, d] for n in rows}) for title, d, rows in by_pairs),
            _by_verdicts(LEARNT[0], {name: learnt[name, LEARNT[0]] for name in judged}),
        ],
        columns=3,
    )


def _bias_panel(signals: Signals) -> Panel:
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
    title = f"bias, d = {SIZES[0]}"
    return Panel(title, "judges of a pair, M", "scale", scale, log_x=True, guides=(1.0,))


def _noise_panel(signals: Signals) -> Panel:
    needed = []
    for i, kind in enumerate(KINDS):
        for suffix, dash in (("", "-"), (_ROOT, "--")):
            if kind == "exact values" and suffix:
                continue
            style = _STYLES[kind.split(f", {Greek.delta}")[0]] if i else None
            label = "exact values" if not i else ""
            values = _needed(signals, kind + suffix)
            needed.append(band(label, np.array(SIZES), values, style, dash, "o", logarithmic=True))
    return Panel("noise", "parameters d", "directions needed", needed, log_x=True, log_y=True)


def _by_pairs(title: str, rows: Mapping[str, Learnt]) -> Panel:
    lines = [
        band(name, found.updates * PAIRS, found.curve, _STYLES[name])
        for name, found in rows.items()
    ]
    return Panel(title, "pairs", "share of the possible gain", lines)


def _by_verdicts(d: int, rows: Mapping[str, Learnt]) -> Panel:
    """Without the start, which a logarithmic axis does not have."""
    lines = [
        band(name, found.updates[1:] * ROWS[name].verdicts, found.curve[:, 1:], _STYLES[name])
        for name, found in rows.items()
    ]
    title = f"d = {d}, by verdicts"
    return Panel(title, "verdicts", "share of the possible gain", lines, log_x=True)


def _tables(signals: Signals, draws: list[Draw], learnt: Runs) -> list[Table]:
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
