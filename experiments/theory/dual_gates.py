"""What a reference in the gate adds: reward at equal KL, in worlds where both are exact."""

import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import bandit, tree
from experiments.comparing import intervals
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Comparison, Interval, compare
from experiments.theory import alignment, equal_kl
from experiments.theory.alignment import Greek, band, plain, tell, tell_ratio, words
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
from rgpo_jax import gates
from rgpo_jax.gates import weight
from rgpo_jax.language.world import World

WORLDS: dict[str, ModuleType] = {"bandit": bandit, "tree": tree}
UPDATES, PROMPTS, GROUP, MINIBATCHES = 30, 16, 8, 4
EPOCHS = (1, 4, 16)
NOISES = (0.0, 1.0)
CHOOSERS = 10
COEFFICIENTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
RATES = (0.01, 0.03, 0.1)
LEVELS = np.array([0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0])
# Of the primary comparison; and of that at equal steps, with one coefficient and one rate for all.
LEVEL, REUSE, NOISE = 0.3, 4, 1.0
COEFFICIENT, RATE = 0.2, 0.03
MATTERS = 0.02  # of a share: a smaller difference is of no use to anybody
# Of the exact ascent, without a KL.
SHARPNESSES = (1.0, 4.0, 16.0)
_STEPS, _KEPT, _SIZE = 6000, 60, 0.05
_FIRST = 20  # problems of the first results
_NEAR = 2e-4  # nats, past the first step, which is the same for all gates


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


def _noise(noise: float) -> str:
    return f"noise {noise:g}" if noise else "no noise"


def _passes(epochs: int) -> str:
    return "1 pass" if epochs == 1 else f"{epochs} passes"


def settings_of() -> dict[str, np.ndarray]:
    """What every row is searched over."""
    return equal_kl.grid(kl_coefficient=COEFFICIENTS, learning_rate=RATES)


def learn(
    row: str,
    world: str,
    epochs: int,
    frontiers: Sequence[Frontier],
    problems: Any,
    keys: jax.Array,
    choosers: int,
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
        settings_of(),
    )
    found = {}
    for i, noise in enumerate(NOISES):
        part = policies[:, i * number : (i + 1) * number]
        paths = equal_kl.paths_of(part, frontiers)
        chosen = equal_kl.choose(paths, frontiers, LEVELS, choosers)
        last = Paths(*(x[:, choosers:, -1] for x in paths))
        found[Case(world, noise, epochs)] = Found(chosen, last)
    return found


def ascend(dual: str, sharpness: float, frontiers: Sequence[Frontier]) -> Paths:
    """The exact ascent along a gate without a KL, from the reference [1, S, P].

    On policy, by the plain gradient of logits: pi w(1, rho) A less its part along pi. In float64.
    """
    settings: dict[str, Any] = {"sharpness": sharpness, "normalize": True}
    gate = gates.rgpo(**settings) if dual == "none" else gates.make(f"dual_{dual}", **settings)
    with jax.enable_x64(True):
        log_reference = jnp.log(jnp.asarray(np.stack([f.reference for f in frontiers])))
        reward = jnp.asarray(np.stack([f.reward for f in frontiers]))

        def step(log_policy: jax.Array, _: Any) -> tuple[jax.Array, None]:
            policy = jnp.exp(log_policy)
            advantage = reward - jnp.sum(policy * reward, axis=-1, keepdims=True)
            ratios = (log_policy - log_reference,) if dual != "none" else ()
            w = weight(gate)(jnp.zeros_like(policy), advantage, *ratios)
            force = w * advantage
            force -= jnp.sum(policy * force, axis=-1, keepdims=True)
            return jax.nn.log_softmax(log_policy + _SIZE * policy * force), None

        def many(log_policy: jax.Array, length: int) -> jax.Array:
            return jax.lax.scan(step, log_policy, None, length=length)[0]

        def kept(log_policy: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
            after = many(log_policy, _STEPS // _KEPT)
            return after, after

        def run(start: jax.Array) -> jax.Array:
            first = jax.lax.scan(step_and_keep, start, None, length=20)
            _, rest = jax.lax.scan(kept, first[0], None, length=_KEPT)
            return jnp.concatenate([start[None], first[1], rest])

        def step_and_keep(log_policy: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
            after, _ = step(log_policy, None)
            return after, after

        found = np.exp(np.asarray(jax.jit(run)(log_reference)))  # [P, S, N, K]
    return equal_kl.paths_of(np.moveaxis(found, 0, 1)[None], frontiers)


def exact_shares(
    frontiers: Sequence[Frontier], levels: np.ndarray
) -> dict[tuple[str, float], np.ndarray]:
    """Of the frontier's gain, along the exact ascent of each gate and sharpness [S, K]."""
    return {
        (dual, k): equal_kl.gains_of(ascend(dual, k, frontiers), frontiers, levels).share[0]
        for k in SHARPNESSES
        for dual in ("none", *(row.removeprefix("rgpo-") for row in DUAL))
    }


def _arrays(*args: Any) -> Arrays:
    """What `learn` finds, by names."""
    return {
        f"{case.noise:g} {name}": x
        for case, value in learn(*args).items()
        for name, x in value.arrays().items()
    }


def run(options: Options, progress: Progress) -> Study:
    """All rows in all cases."""
    found: dict[tuple[str, Case], Found] = {}
    frontiers: dict[str, list[Frontier]] = {}
    keys = jnp.concatenate(
        [
            alignment.keys_of(options.seed + alignment.CHOICE, CHOOSERS),
            alignment.keys_of(options.seed, options.seeds),
        ]
    )
    numbers = [*range(alignment.CHOICE, alignment.CHOICE + CHOOSERS), *range(options.seeds)]
    done, total = 0, len(WORLDS) * len(EPOCHS) * len(ROWS)
    for world in WORLDS:
        seeds = [options.seed + number for number in numbers]
        known, problems = equal_kl.draw(WORLDS[world], seeds)
        frontiers[world] = known[CHOOSERS:]
        for epochs in EPOCHS:
            for row in ROWS:
                task = functools.partial(
                    _arrays, row, world, epochs, known, problems, keys, CHOOSERS
                )
                kept = progress.remember(f"{world}.{epochs}.{row}", task)
                for noise in NOISES:
                    of_noise = {name: kept[f"{noise:g} {name}"] for name in Found.names()}
                    found[row, Case(world, noise, epochs)] = Found.of(of_noise)
                done += 1
                progress(done / total)
    exact_levels = np.array([_NEAR, 1e-3, 0.003, 0.01, *LEVELS])
    exact = exact_shares(frontiers["bandit"], exact_levels)
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
            f"{', '.join(f'{r:g}' for r in RATES)}), the best of which, at each KL, {CHOOSERS} "
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


def _share(found: dict[tuple[str, Case], Found], row: str, case: Case) -> np.ndarray:
    """At the KL of the primary comparison, of the reported seeds [S]."""
    return found[row, case].chosen.share[:, int(np.flatnonzero(LEVEL == LEVELS)[0])]


def _against(
    found: dict[tuple[str, Case], Found],
    rows: Sequence[str],
    other: str,
    cases: Sequence[Case],
) -> list[Comparison]:
    """Shares of rows minus another's, tested together."""
    return compare(
        {
            f"{row}, {case.describe()}": _share(found, row, case) - _share(found, other, case)
            for case in cases
            for row in rows
        }
    )


def gains(tests: Sequence[Comparison]) -> bool | None:
    """Whether some difference is shown to be above 0, and is of use; False where none can be."""
    if any(test.sign > 0 and test.interval.mean > MATTERS for test in tests):
        return True
    return False if all(test.interval.high < MATTERS for test in tests) else None


def in_all(groups: Sequence[Sequence[Comparison]]) -> bool | None:
    """Whether all differences of some group are gains; False if none can be: each has one that is
    shown to be below 0, or that can be of no use.
    """
    if any(all(gains([test]) for test in group) for group in groups):
        return True
    lost = [any(t.sign < 0 or gains([t]) is False for t in group) for group in groups]
    return False if all(lost) else None


def _cases(epochs: Sequence[int] = (REUSE,), noises: Sequence[float] = (NOISE,)) -> list[Case]:
    return [Case(world, noise, n) for world in WORLDS for noise in noises for n in epochs]


def _claims(
    found: dict[tuple[str, Case], Found], exact: dict[tuple[str, float], np.ndarray], is_new: bool
) -> list[Claim]:
    primary = _against(found, DUAL, "ppo", _cases())
    by_gate = [[t for t in primary if t.name.startswith(f"{row},")] for row in DUAL]
    without = _against(found, DUAL, "rgpo-none", _cases(EPOCHS, NOISES))
    shown = [test for test in without if test.sign]
    regression = compare(
        {
            f"{other} minus {row}, {case.world}": _share(found, other, case)
            - _share(found, row, case)
            for other in equal_kl.REGRESSIONS
            for case in _cases()
            for row in DUAL
        }
    )
    few, many = EPOCHS[0], EPOCHS[-1]
    fitted = compare(
        {
            f"{other} minus {row}, {world}": _share(found, other, case) - _share(found, row, case)
            for other in equal_kl.REGRESSIONS
            for world, case in ((w, Case(w, 0.0, many)) for w in WORLDS)
            for row in ("ppo", *DUAL)
        }
    )

    def worn(row: str, world: str) -> np.ndarray:
        """By how much passes change a row."""
        return _share(found, row, Case(world, NOISE, many)) - _share(
            found, row, Case(world, NOISE, few)
        )

    reuse = compare({f"{row}, {w}": worn(row, w) - worn("ppo", w) for w in WORLDS for row in DUAL})
    at_end = at_equal_steps(_ends_of(found))
    near = np.stack([share[:, 0] for share in exact.values()])
    spread = float(np.max(near.max(axis=0) - near.min(axis=0)))
    far = {name: Interval.of(share[:, -1]) for name, share in exact.items()}
    widest = {k: Interval.of(exact["none", k][:, 0]) for k in SHARPNESSES}
    return [
        Claim(
            f"At equal KL ({LEVEL:g} nats) some dual gate has more reward than PPO-RLHF in both "
            "worlds.",
            "ours",
            in_all(by_gate),
            f"share of the frontier's gain, minus PPO-RLHF's: {words(primary)}",
            ("dual_gates",),
        ),
        Claim(
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
        ),
        Claim(
            f"At equal steps, with one {Greek.beta} ({COEFFICIENT:g}) and one rate ({RATE:g}) for "
            "all, dual gates end at less KL than PPO-RLHF and than GRPO as published.",
            "ours",
            intervals.agree(at_end.kl, -1),
            "ratio of KLs: "
            + words(at_end.kl, tell_ratio)
            + f". Difference of rewards: {words(at_end.reward)}",
            ("dual_gates_steps",),
        ),
        Claim(
            "With many passes a dual gate loses less than PPO-RLHF does.",
            "ours",
            intervals.agree(reuse, 1),
            f"change of the share from {_passes(few)} to {_passes(many)}, minus PPO-RLHF's, "
            f"{_noise(NOISE)}: {words(reuse)}",
            ("dual_gates_reuse",),
        ),
        Claim(
            "REBEL and dual_kl, which regress to the maximum of a reward with two KLs, have more "
            "reward at equal KL than every dual gate, in both worlds.",
            "ours",
            intervals.agree(regression, 1),
            f"difference of shares at {LEVEL:g} nats: {words(regression)}",
            ("dual_gates",),
        ),
        Claim(
            f"With exact rewards and {_passes(many)}, where their fits are nearly exact, REBEL and "
            "dual_kl have more reward at equal KL than PPO-RLHF and every dual gate, in both "
            "worlds.",
            "ours",
            intervals.agree(fitted, 1) if is_new else None,
            "seen in the problems of --seed 0, and then stated for others, of which "
            f"{'these are some' if is_new else 'these are none'}; difference of shares at "
            f"{LEVEL:g} nats: {words(fitted)}",
            ("dual_gates_reuse",),
        ),
        Claim(
            "All gates leave the reference in one direction, whatever k: near it, a gate changes "
            "nothing at equal KL.",
            "ours",
            spread < 0.01,
            f"exact ascent without a KL, bandit: shares at {_NEAR:g} nats differ by at most "
            f"{say(spread, 2)} between 15 gates; they are {tell(widest[SHARPNESSES[0]], 2)}. At "
            f"{LEVELS[-1]:g} nat: "
            + "; ".join(f"{name} k = {k:g}: {tell(x, 2)}" for (name, k), x in far.items()),
            ("dual_gates_exact",),
        ),
    ]


class AtEnd(NamedTuple):
    """Comparisons after all steps, of logarithms of KL and of rewards."""

    kl: list[Comparison]
    reward: list[Comparison]


def at_equal_steps(ends: Mapping[str, Mapping[str, Paths]]) -> AtEnd:
    """Dual gates against PPO-RLHF and GRPO as published, all worlds' tests together.

    Args:
      ends: world -> row -> KL and reward after all steps [S].
    """
    kl: dict[str, np.ndarray] = {}
    reward: dict[str, np.ndarray] = {}
    for world, rows in ends.items():
        for row in DUAL:
            for other in ("ppo", "grpo-published"):
                name = f"{row} against {other}, {world}"
                kl[name] = np.log(rows[row].kl) - np.log(rows[other].kl)
                reward[name] = rows[row].reward - rows[other].reward
    return AtEnd(compare(kl), compare(reward))


def _ends_of(found: dict[tuple[str, Case], Found]) -> dict[str, dict[str, Paths]]:
    """With one coefficient and one rate for all."""
    grid = settings_of()
    same = (grid["kl_coefficient"] == COEFFICIENT) & (grid["learning_rate"] == RATE)
    which = int(np.flatnonzero(same)[0])
    return {
        case.world: {row: Paths(*(x[which] for x in found[row, case].last)) for row in ROWS}
        for case in _cases()
    }


# What is shown.


def _figures(
    found: dict[tuple[str, Case], Found],
    exact: dict[tuple[str, float], np.ndarray],
    exact_levels: np.ndarray,
    frontiers: dict[str, list[Frontier]],
    seeds: int,
) -> list[Figure]:
    share = "share of the frontier's gain"
    over = f"Means over {seeds} problems with 95 % intervals"
    nats = "KL(pi || ref), nats"
    by_kl, by_epochs = [], []
    for world in WORLDS:
        for noise in NOISES:
            case = Case(world, noise, REUSE)
            lines = [
                band(row, LEVELS, found[row, case].chosen.share, style)
                for style, row in enumerate(ROWS)
            ]
            title = f"{world}, {_noise(noise)}"
            by_kl.append(Panel(title, nats, share, lines, log_x=True))
            lines = []
            for style, row in enumerate(ROWS):
                values = [_share(found, row, Case(world, noise, n)) for n in EPOCHS]
                lines.append(band(row, np.array(EPOCHS), np.stack(values, axis=1), style))
            by_epochs.append(Panel(title, "passes of an update", share, lines, log_x=True))
    names = ["none", *(row.removeprefix("rgpo-") for row in DUAL)]
    ascents = [
        Panel(
            f"exact ascent, k = {k:g}",
            nats,
            share,
            [band(n, exact_levels, exact[n, k], style) for style, n in enumerate(names)],
            log_x=True,
        )
        for k in SHARPNESSES
    ]
    return [
        Figure(
            "dual_gates",
            f"Reward at equal KL, with {_passes(REUSE)} an update, each row with the settings that "
            f"were best at that KL on other problems. {over}.",
            by_kl,
        ),
        Figure("dual_gates_reuse", f"At {LEVEL:g} nats, by passes. {over}.", by_epochs),
        Figure(
            "dual_gates_exact",
            "Without noise, sampling or a KL: the ascent along the mean gradient in bandits, by "
            f"how far it has come. {over}.",
            ascents,
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


def _ends(found: dict[tuple[str, Case], Found], world: str, frontiers: Sequence[Frontier]) -> Panel:
    at_rate = settings_of()["learning_rate"] == RATE
    lines, largest = [], 0.0
    for style, row in enumerate(ROWS):
        last = found[row, Case(world, NOISE, REUSE)].last
        kl, reward = (x[at_rate].mean(axis=1) for x in last)
        largest = max(largest, float(kl.max()))
        lines.append(plain(row, kl, reward, style, marker="o"))
    lines.append(equal_kl.frontier_line(frontiers, 1.05 * largest))
    return Panel(world, "KL(pi || ref), nats", "reward", lines)


def _tables(found: dict[tuple[str, Case], Found]) -> list[Table]:
    grid = settings_of()
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
