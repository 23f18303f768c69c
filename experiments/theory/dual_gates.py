"""What a reference in the gate adds: reward at equal KL, in worlds where both are exact."""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import bandit, tree
from experiments.comparing import intervals
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Comparison, Interval, compare
from experiments.theory import alignment, dual_ascent, equal_kl
from experiments.theory.alignment import Greek, band, plain, tell, tell_ratio, words
from experiments.theory.dual_verdicts import MATTERS, at_equal_steps, gains, in_all
from experiments.theory.equal_kl import DUAL, ROWS, Chosen, Paths
from experiments.theory.options import Options
from experiments.theory.study import (
    Arrays,
    Claim,
    Figure,
    Panel,
    Progress,
    Study,
    Table,
    Value,
    say,
)
from rgpo_jax.language.world import World

WORLDS: dict[str, ModuleType] = {"bandit": bandit, "tree": tree}
UPDATES, PROMPTS, GROUP, MINIBATCHES = 30, 16, 8, 4
EPOCHS = (1, 4, 16)
NOISES = (0.0, 1.0)
TUNING_SEEDS = 10
COEFFICIENTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
RATES = (0.01, 0.03, 0.1)
LEVELS = np.array([0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0])
# Of the primary comparison; and of that at equal steps, with one coefficient and one rate for all.
LEVEL, REUSE, NOISE = 0.3, 4, 1.0
COEFFICIENT, RATE = 0.2, 0.03
_FIRST = 20  # problems of the first results
_NEAR = 2e-4  # nats, past the first step of an ascent, which is the same for all gates


class Case(NamedTuple):
    """A world, how noisy rewards are, and how many passes an update takes."""

    world: str
    noise: float
    epochs: int

    def describe(self) -> str:
        return f"{self.world}, {_noise(self.noise)}, {_passes(self.epochs)}"


class Found(NamedTuple):
    """A row in a case.

    Attributes:
      chosen: with the best settings at each KL.
      last: KL and reward at the end, of all settings and reported seeds [C, S].
    """

    chosen: Chosen
    last: Paths

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*(f"chosen_{x}" for x in Chosen._fields), *(f"last_{x}" for x in Paths._fields))

    def arrays(self) -> dict[str, np.ndarray]:
        """Under `names`."""
        return dict(zip(self.names(), (*self.chosen, *self.last), strict=True))

    @classmethod
    def of(cls, arrays: Arrays) -> "Found":
        """The inverse of `arrays`."""
        values = [arrays[name] for name in cls.names()]
        number = len(Chosen._fields)
        return cls(Chosen(*values[:number]), Paths(*values[number:]))


Results = dict[tuple[str, Case], Found]  # of a row in a case
Exact = dict[tuple[str, float], np.ndarray]  # of `dual_ascent.exact_shares`


def _noise(noise: float) -> str:
    return f"noise {noise:g}" if noise else "no noise"


def _passes(epochs: int) -> str:
    return "1 pass" if epochs == 1 else f"{epochs} passes"


def learn(
    row: str,
    world: str,
    epochs: int,
    frontiers: Sequence[Frontier],
    problems: Any,
    keys: jax.Array,
    tuning_seeds: int,
    updates: int = UPDATES,
) -> dict[Case, Found]:
    """A row in a world, with and without noise, in one program."""
    number, module = len(frontiers), WORLDS[world]

    def make(problem: Any) -> tuple[World, Any]:
        drawn, noise = problem
        return module.of(*drawn), noise

    noises = jnp.repeat(jnp.asarray(NOISES), number)
    repeated = jax.tree.map(lambda x: jnp.concatenate([x] * len(NOISES)), problems)
    policies = equal_kl.learn(
        make,
        row,
        (repeated, noises),
        jnp.concatenate([keys] * len(NOISES)),
        {
            "num_updates": updates,
            "num_prompts": PROMPTS,
            "group_size": GROUP,
            "num_epochs": epochs,
            "num_minibatches": MINIBATCHES,
        },
        equal_kl.settings_of(COEFFICIENTS, RATES),
    )
    found = {}
    for i, noise in enumerate(NOISES):
        part = policies[:, i * number : (i + 1) * number]
        paths = equal_kl.paths_of(part, frontiers)
        chosen = equal_kl.choose(paths, frontiers, LEVELS, tuning_seeds)
        last = Paths(*(x[:, tuning_seeds:, -1] for x in paths))
        found[Case(world, noise, epochs)] = Found(chosen, last)
    return found


def _arrays(*args: Any) -> Arrays:
    """What `learn` finds, by names."""
    return {
        f"{case.noise:g} {name}": x
        for case, value in learn(*args).items()
        for name, x in value.arrays().items()
    }


def learn_all(options: Options, progress: Progress) -> tuple[Results, dict[str, list[Frontier]]]:
    """All rows in all cases, and each world's frontiers of the reported seeds."""
    found: Results = {}
    frontiers: dict[str, list[Frontier]] = {}
    keys = jnp.concatenate(
        [
            alignment.keys_of(options.seed + alignment.CHOICE, TUNING_SEEDS),
            alignment.keys_of(options.seed, options.seeds),
        ]
    )
    numbers = [*range(alignment.CHOICE, alignment.CHOICE + TUNING_SEEDS), *range(options.seeds)]
    done, total = 0, len(WORLDS) * len(EPOCHS) * len(ROWS)
    for world in WORLDS:
        seeds = [options.seed + number for number in numbers]
        known, problems = equal_kl.draw(WORLDS[world], seeds)
        frontiers[world] = known[TUNING_SEEDS:]
        for epochs in EPOCHS:
            for row in ROWS:
                task = functools.partial(
                    _arrays, row, world, epochs, known, problems, keys, TUNING_SEEDS
                )
                kept = progress.remember(f"{world}.{epochs}.{row}", task)
                for noise in NOISES:
                    of_noise = {name: kept[f"{noise:g} {name}"] for name in Found.names()}
                    found[row, Case(world, noise, epochs)] = Found.of(of_noise)
                done += 1
                progress(done / total)
    return found, frontiers


def run(options: Options, progress: Progress) -> Study:
    """All rows in all cases, and the exact ascent in bandits."""
    found, frontiers = learn_all(options, progress)
    exact_levels = np.array([_NEAR, 1e-3, 0.003, 0.01, *LEVELS])
    exact = dual_ascent.exact_shares(frontiers["bandit"], exact_levels)
    answers = UPDATES * PROMPTS * GROUP
    searched = len(COEFFICIENTS) * len(RATES)
    return Study(
        "Dual gates at equal KL",
        (
            "Does a gate that also looks at the ratio to the reference earn more reward at the "
            "same KL(pi || ref)? Random bandits (5 arms, 4 prompts) and trees (64 answers of three "
            f"tokens, 2 prompts), {options.seeds} of each, a problem a seed; reward and KL are "
            f"exact sums. Every row has {answers:,} answers, {PROMPTS} prompts "
            f"\N{MULTIPLICATION SIGN} {GROUP} an update, Adam, and {searched} settings "
            f"({Greek.beta} of {', '.join(f'{b:g}' for b in COEFFICIENTS)}; rates "
            f"{', '.join(f'{r:g}' for r in RATES)}), the best of which, at each KL, {TUNING_SEEDS} "
            "other problems choose. Rewards are exact or have normal noise of standard deviation 1 "
            "on each answer; an update takes 1, 4 or 16 passes in 4 minibatches. A row's reward at "
            "a KL is the most along its run while its KL is at most that; its share is of the gain "
            "over the reference that the frontier q exp(R / b) / Z has at that KL. Gates have "
            "k = 4 and are normalised.",
            "Primary comparison, stated before the reported problems were run: the share at "
            f"{LEVEL:g} nats with {_passes(REUSE)} and {_noise(NOISE)}, each of the four dual "
            f"gates minus PPO-RLHF, in both worlds: {2 * len(DUAL)} tests, paired by problem, by "
            "Student's t, corrected by Holm's method. Each claim's tests are corrected together. "
            f"A difference of less than {MATTERS:g} of a share is taken as of no use; that a gain "
            "must be larger to count was made a rule after the first results, those of --seed 0.",
        ),
        _claims(found, exact, is_new=options.seed >= _FIRST),
        _figures(found, exact, exact_levels, frontiers, options.seeds),
        _tables(found),
    )


# What is claimed.


def _share(found: Results, row: str, case: Case) -> np.ndarray:
    """At the KL of the primary comparison, of the reported seeds [S]."""
    return found[row, case].chosen.share[:, int(np.flatnonzero(LEVEL == LEVELS)[0])]


def _against(
    found: Results, rows: Sequence[str], other: str, cases: Sequence[Case]
) -> list[Comparison]:
    """Shares of rows minus another's, tested together."""
    return compare(
        {
            f"{row}, {case.describe()}": _share(found, row, case) - _share(found, other, case)
            for case in cases
            for row in rows
        }
    )


def _cases(epochs: Sequence[int] = (REUSE,), noises: Sequence[float] = (NOISE,)) -> list[Case]:
    return [Case(world, noise, n) for world in WORLDS for noise in noises for n in epochs]


def _regressions(found: Results, rows: Sequence[str], cases: Sequence[Case]) -> list[Comparison]:
    """Shares of REBEL and dual_kl minus those of rows, tested together."""
    return compare(
        {
            f"{other} minus {row}, {case.world}": _share(found, other, case)
            - _share(found, row, case)
            for other in equal_kl.REGRESSIONS
            for case in cases
            for row in rows
        }
    )


def _claims(found: Results, exact: Exact, is_new: bool) -> list[Claim]:
    return [
        _gains_over_ppo(found),
        _gains_over_no_reference(found),
        _less_kl_at_equal_steps(found),
        _loses_less_by_passes(found),
        _regressions_gain(found),
        _exact_regressions_gain(found, is_new),
        _leave_in_one_direction(exact),
    ]


def _gains_over_ppo(found: Results) -> Claim:
    primary = _against(found, DUAL, "ppo", _cases())
    by_gate = [[t for t in primary if t.name.startswith(f"{row},")] for row in DUAL]
    return Claim(
        f"At equal KL ({LEVEL:g} nats) some dual gate has more reward than PPO-RLHF in both "
        "worlds.",
        "ours",
        in_all(by_gate),
        f"share of the frontier's gain, minus PPO-RLHF's: {words(primary)}",
        ("dual_gates",),
    )


def _gains_over_no_reference(found: Results) -> Claim:
    without = _against(found, DUAL, "rgpo-none", _cases(EPOCHS, NOISES))
    shown = [test for test in without if test.sign]
    return Claim(
        "A reference in the gate adds reward at equal KL to RGPO's gate without it.",
        "ours",
        gains(without),
        f"share minus that of rgpo-none, {len(without)} tests (4 gates, 2 worlds, 2 noises, 3 "
        f"numbers of passes): {sum(t.sign > 0 for t in shown)} shown above 0, "
        f"{sum(t.sign < 0 for t in shown)} below; from "
        f"{say(min(t.interval.mean for t in without), 2)} to "
        f"{say(max(t.interval.mean for t in without), 2)}"
        + (f"; shown: {words(shown)}" if shown else ""),
        ("dual_gates", "dual_gates_reuse"),
    )


def _less_kl_at_equal_steps(found: Results) -> Claim:
    at_end = at_equal_steps(_ends_of(found))
    return Claim(
        f"At equal steps, with one {Greek.beta} ({COEFFICIENT:g}) and one rate ({RATE:g}) for "
        "all, dual gates end at less KL than PPO-RLHF and than GRPO as published.",
        "ours",
        intervals.agree(at_end.kl, -1),
        "ratio of KLs: "
        + words(at_end.kl, tell_ratio)
        + f". Difference of rewards: {words(at_end.reward)}",
        ("dual_gates_steps",),
    )


def _loses_less_by_passes(found: Results) -> Claim:
    few, many = EPOCHS[0], EPOCHS[-1]

    def change(row: str, world: str) -> np.ndarray:
        return _share(found, row, Case(world, NOISE, many)) - _share(
            found, row, Case(world, NOISE, few)
        )

    reuse = compare(
        {f"{row}, {w}": change(row, w) - change("ppo", w) for w in WORLDS for row in DUAL}
    )
    return Claim(
        "With many passes a dual gate loses less than PPO-RLHF does.",
        "ours",
        intervals.agree(reuse, 1),
        f"change of the share from {_passes(few)} to {_passes(many)}, minus PPO-RLHF's, "
        f"{_noise(NOISE)}: {words(reuse)}",
        ("dual_gates_reuse",),
    )


def _regressions_gain(found: Results) -> Claim:
    tests = _regressions(found, DUAL, _cases())
    return Claim(
        "REBEL and dual_kl, which regress to the maximum of a reward with two KLs, have more "
        "reward at equal KL than every dual gate, in both worlds.",
        "ours",
        intervals.agree(tests, 1),
        f"difference of shares at {LEVEL:g} nats: {words(tests)}",
        ("dual_gates",),
    )


def _exact_regressions_gain(found: Results, is_new: bool) -> Claim:
    many = EPOCHS[-1]
    tests = _regressions(found, ("ppo", *DUAL), _cases((many,), (0.0,)))
    return Claim(
        f"With exact rewards and {_passes(many)}, where their fits are nearly exact, REBEL and "
        "dual_kl have more reward at equal KL than PPO-RLHF and every dual gate, in both "
        "worlds.",
        "ours",
        intervals.agree(tests, 1) if is_new else None,
        "seen in the problems of --seed 0, and then stated for others, of which "
        f"{'these are some' if is_new else 'these are none'}; difference of shares at "
        f"{LEVEL:g} nats: {words(tests)}",
        ("dual_gates_reuse",),
    )


def _leave_in_one_direction(exact: Exact) -> Claim:
    near = np.stack([share[:, 0] for share in exact.values()])
    spread = float(np.max(near.max(axis=0) - near.min(axis=0)))
    plain_gate = Interval.of(exact["none", dual_ascent.SHARPNESSES[0]][:, 0])
    far = {name: Interval.of(share[:, -1]) for name, share in exact.items()}
    return Claim(
        "All gates leave the reference in one direction, whatever k: near it, a gate changes "
        "nothing at equal KL.",
        "ours",
        spread < 0.01,
        f"exact ascent without a KL, bandit: shares at {_NEAR:g} nats differ by at most "
        f"{say(spread, 2)} between 15 gates; they are {tell(plain_gate, 2)}. At "
        f"{LEVELS[-1]:g} nat: "
        + "; ".join(f"{name} k = {k:g}: {tell(x, 2)}" for (name, k), x in far.items()),
        ("dual_gates_exact",),
    )


def _ends_of(found: Results) -> dict[str, dict[str, Paths]]:
    """With one coefficient and one rate for all."""
    grid = equal_kl.settings_of(COEFFICIENTS, RATES)
    same = (grid["kl_coefficient"] == COEFFICIENT) & (grid["learning_rate"] == RATE)
    which = int(np.flatnonzero(same)[0])
    return {
        case.world: {row: Paths(*(x[which] for x in found[row, case].last)) for row in ROWS}
        for case in _cases()
    }


# What is shown.


_SHARE, _NATS = "share of the frontier's gain", "KL(pi || ref), nats"


def _figures(
    found: Results,
    exact: Exact,
    exact_levels: np.ndarray,
    frontiers: dict[str, list[Frontier]],
    seeds: int,
) -> list[Figure]:
    over = f"Means over {seeds} problems with 95 % intervals"
    places = [(world, noise) for world in WORLDS for noise in NOISES]
    return [
        Figure(
            "dual_gates",
            f"Reward at equal KL, with {_passes(REUSE)} an update, each row with the settings that "
            f"were best at that KL on other problems. {over}.",
            [_by_kl(found, world, noise) for world, noise in places],
        ),
        Figure(
            "dual_gates_reuse",
            f"At {LEVEL:g} nats, by passes. {over}.",
            [_by_passes(found, world, noise) for world, noise in places],
        ),
        Figure(
            "dual_gates_exact",
            "Without noise, sampling or a KL: the ascent along the mean gradient in bandits, by "
            f"how far it has come. {over}.",
            [_ascent(exact, exact_levels, k) for k in dual_ascent.SHARPNESSES],
            columns=3,
        ),
        Figure(
            "dual_gates_steps",
            f"At equal steps: where runs end with {Greek.beta} of "
            f"{', '.join(f'{b:g}' for b in COEFFICIENTS)} (points, from right to left), rate "
            f"{RATE:g}, {_passes(REUSE)}, {_noise(NOISE)}. Means over {seeds} problems; dashed: "
            "the exact frontier.",
            [_ends(found, world, frontiers[world]) for world in WORLDS],
        ),
    ]


def _by_kl(found: Results, world: str, noise: float) -> Panel:
    case = Case(world, noise, REUSE)
    lines = [
        band(row, LEVELS, found[row, case].chosen.share, style) for style, row in enumerate(ROWS)
    ]
    return Panel(f"{world}, {_noise(noise)}", _NATS, _SHARE, lines, log_x=True)


def _by_passes(found: Results, world: str, noise: float) -> Panel:
    lines = []
    for style, row in enumerate(ROWS):
        values = [_share(found, row, Case(world, noise, n)) for n in EPOCHS]
        lines.append(band(row, np.array(EPOCHS), np.stack(values, axis=1), style))
    return Panel(f"{world}, {_noise(noise)}", "passes of an update", _SHARE, lines, log_x=True)


def _ascent(exact: Exact, levels: np.ndarray, sharpness: float) -> Panel:
    lines = [
        band(gate, levels, exact[gate, sharpness], style)
        for style, gate in enumerate(dual_ascent.GATES)
    ]
    return Panel(f"exact ascent, k = {sharpness:g}", _NATS, _SHARE, lines, log_x=True)


def _ends(found: Results, world: str, frontiers: Sequence[Frontier]) -> Panel:
    at_rate = equal_kl.settings_of(COEFFICIENTS, RATES)["learning_rate"] == RATE
    lines, largest = [], 0.0
    for style, row in enumerate(ROWS):
        last = found[row, Case(world, NOISE, REUSE)].last
        kl, reward = (x[at_rate].mean(axis=1) for x in last)
        largest = max(largest, float(kl.max()))
        lines.append(plain(row, kl, reward, style, marker="o"))
    lines.append(equal_kl.frontier_line(frontiers, 1.05 * largest))
    return Panel(world, _NATS, "reward", lines)


def _tables(found: Results) -> list[Table]:
    grid = equal_kl.settings_of(COEFFICIENTS, RATES)
    at = [int(np.flatnonzero(level == LEVELS)[0]) for level in (0.1, LEVEL, 1.0)]
    cells: list[tuple[Value, ...]] = []
    for (row, case), value in found.items():
        line: list[Value] = [case.world, case.noise, case.epochs, row]
        for i in at:
            line += [*Interval.of(value.chosen.share[:, i])]
        best = value.chosen.settings[at[1]]
        line += [float(grid["kl_coefficient"][best]), float(grid["learning_rate"][best])]
        cells.append(tuple(line))
    columns = ["world", "noise", "passes", "row"]
    for i in at:
        columns += [f"share at {LEVELS[i]:g} nats", "from", "to"]
    columns += [f"{Greek.beta} at {LEVEL:g} nats", "rate"]
    return [
        Table(
            "dual_gates",
            "Share of the frontier's gain over the reference, 95 % intervals by Student's t; and "
            f"the settings chosen at {LEVEL:g} nats",
            columns,
            cells,
        )
    ]
