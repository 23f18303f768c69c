"""GRPO's group size: where the method settles, exactly and trained, against pi*."""

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from agents.language import grpo
from envs.language import bandit
from experiments.comparing import intervals
from experiments.comparing.intervals import Interval, compare
from experiments.theory import alignment
from experiments.theory.alignment import Greek, band, divergence, plain
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, Value, say
from rgpo_jax.language import targets

Kl = Literal["published", "direct"]
KLS: tuple[Kl, ...] = ("published", "direct")
SIZES = (2, 4, 8, 16, 32)
ANSWERS = 256  # of an update
UPDATES = 500
RATE = 0.03
_SETTLING = 0.05  # slower than the library's: far arms make it stiff
_ALONE = 1e-10
AGREES = 0.02  # in probability


class Problem(NamedTuple):
    """A bandit of one prompt.

    Attributes:
      name: of it.
      reference: q [K].
      reward: R [K].
      beta: weight of the KL.
    """

    name: str
    reference: np.ndarray
    reward: np.ndarray
    beta: float

    @property
    def target(self) -> np.ndarray:
        """pi*, the most of E[R] - beta KL [K]."""
        return targets.gibbs(self.reference, self.reward, self.beta)

    def value(self, policy: np.ndarray) -> np.ndarray:
        """E[R] - beta KL(pi || q) [...]."""
        kl = divergence(policy, self.reference)
        return np.asarray(policy @ self.reward - self.beta * kl)


TWO = Problem("two arms", np.array([0.3, 0.7]), np.array([1.0, 0.0]), 1.0)
FOUR = Problem("four arms", np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.7, 0.2, 0.0]), 0.5)
PROBLEMS = (TWO, FOUR)


class _Collapsed(Exception):
    """The policy has left all arms but one."""


def settled(problem: Problem, kl: Kl, size: int | None) -> np.ndarray:
    """Where GRPO settles [K], in float64; size None: groups without end.

    With A(y) the expected advantage of an answer among its group, the policy stands still where
    A - beta D is the same for all y: D = 1 - q / pi as published, log(pi / q) direct (2502.18548).
    Where the flow from the reference ends in the best arm alone, that is what is returned: with
    groups without end an advantage of the rare arms has no bound, and a log no more holds it.
    """

    q, reward = problem.reference, problem.reward

    def field(policy: np.ndarray) -> np.ndarray:
        if policy.max() > 1.0 - _ALONE:
            raise _Collapsed
        if size is None:
            centred = reward - policy @ reward
            advantage = centred / math.sqrt(float(policy @ np.square(centred)))
        else:
            advantage = targets.expected_group_advantage(policy, reward, size)
        away = 1.0 - q / policy if kl == "published" else np.log(policy / q)
        return np.asarray(advantage - problem.beta * away)

    try:
        return targets.settle(q, field, rate=_SETTLING)
    except _Collapsed:
        return np.where(reward == reward.max(), 1.0, 0.0)


def two_arms_of_two(q: float, beta: float) -> float:
    """P(better arm) with groups of two and the published KL, rewards without noise: row 6a."""
    return (1.0 - beta + math.sqrt((1.0 - beta) ** 2 + 4.0 * beta * q)) / 2.0


def two_arms_of_many(q: float, beta: float) -> float:
    """P(better arm) with groups without end and the published KL: row 6b."""
    square = beta * beta
    root = math.sqrt(1.0 + 4.0 * square * q * (1.0 - q))
    return (2.0 * square * q + 1.0 + root) / (2.0 * (1.0 + square))


def trained(problem: Problem, kl: Kl, size: int, seed: int, seeds: int) -> np.ndarray:
    """Policies of the suite's agent at the end [S, K]."""
    world = bandit.of(np.log(problem.reference)[None], problem.reward[None])
    made = alignment.setup(
        grpo,
        world,
        num_updates=UPDATES,
        num_prompts=ANSWERS // size,
        group_size=size,
        num_epochs=1,
        num_minibatches=1,
        kl=kl,
        kl_coefficient=problem.beta,
        learning_rate=RATE,
        max_grad_norm=10.0,
    )
    keys = alignment.keys_of(seed, seeds)
    found = alignment.train(lambda _: made, jnp.zeros(seeds), keys, UPDATES, 1)
    return np.asarray(found[0, :, -1, 0])


def run(options: Options, progress: Progress) -> Study:
    """Exact and trained, for both problems, both KLs and all sizes."""
    exact = {
        (p.name, kl, size): settled(p, kl, size)
        for p in PROBLEMS
        for kl in KLS
        for size in (*SIZES, None)
    }
    ours: dict[tuple[str, Kl, int], np.ndarray] = {}
    number = len(PROBLEMS) * len(KLS) * len(SIZES)
    for problem in PROBLEMS:
        for kl in KLS:
            for size in SIZES:
                found = trained(problem, kl, size, options.seed, options.seeds)
                ours[problem.name, kl, size] = found
                progress(len(ours) / number)
    return Study(
        "Group size in GRPO",
        (
            "GRPO divides by the standard deviation of a group, so where it settles depends on how "
            "many answers a group has (arXiv 2502.18548), and on the form of its KL: as published "
            "its gradient is that of KL(ref || pi), direct that of KL(pi || ref). Exact: the "
            "policy at which the expected gradient is 0, a sum over all groups, in float64. "
            f"Trained: the suite's agent, {UPDATES} updates of {ANSWERS} answers, one gradient "
            f"step each, at a rate of {RATE:g} that falls to 0, {options.seeds} seeds. "
            f"{_describe(TWO)}; {_describe(FOUR)}.",
            f"Primary comparison: E[R] - {Greek.beta} KL of the trained policies minus that of "
            "pi*, in the problem of four arms, for each size and both KLs; Student's t over seeds, "
            f"Holm's correction for {len(KLS) * len(SIZES)} tests. Trained and exact are said to "
            f"agree where the largest difference of mean probabilities is below {AGREES:g}. The "
            "rate was not searched.",
        ),
        _claims(exact, ours),
        [_figure(exact, ours, options.seeds)],
        [_table(exact, ours)],
    )


def _describe(problem: Problem) -> str:
    def numbers(values: np.ndarray) -> str:
        return ", ".join(f"{x:g}" for x in values)

    return (
        f"{problem.name}: reference {numbers(problem.reference)}, rewards "
        f"{numbers(problem.reward)}, {Greek.beta} = {problem.beta:g}"
    )


Exact = dict[tuple[str, Kl, int | None], np.ndarray]
Trained = dict[tuple[str, Kl, int], np.ndarray]


def _best_arms(exact: Exact) -> dict[tuple[str, Kl], np.ndarray]:
    """(problem, KL) -> exact probability of the best arm, by size, the last without end."""
    return {
        (p.name, kl): np.array([exact[p.name, kl, size][0] for size in (*SIZES, None)])
        for p in PROBLEMS
        for kl in KLS
    }


def _claims(exact: Exact, ours: Trained) -> list[Claim]:
    best = _best_arms(exact)
    return [
        _below_the_target(ours),
        _agent_settles_where_exact(exact, ours),
        _larger_groups_go_farther(best),
        _direct_kl_leaves_one_arm(best),
        _two_arms_have_closed_forms(exact),
        _unit_of_reward_changes_nothing(exact),
    ]


def _below_the_target(ours: Trained) -> Claim:
    tests = compare(
        {
            f"{kl}, G = {size}": FOUR.value(ours[FOUR.name, kl, size]) - FOUR.value(FOUR.target)
            for kl in KLS
            for size in SIZES
        }
    )
    return Claim(
        "At every group size, and with either KL, GRPO settles below pi* in E[R] - "
        f"{Greek.beta} KL.",
        "ours",
        intervals.agree(tests, -1),
        f"four arms, trained minus pi* (of {say(float(FOUR.value(FOUR.target)))}, and "
        f"{say(float(FOUR.value(FOUR.reference)))} at the reference): " + alignment.words(tests),
        ("group_size",),
    )


def _agent_settles_where_exact(exact: Exact, ours: Trained) -> Claim:
    away = {
        key: float(np.max(np.abs(found.mean(axis=0) - exact[key]))) for key, found in ours.items()
    }
    return Claim(
        "The suite's agent settles where the exact calculation says, for every group size.",
        "ours",
        max(away.values()) < AGREES,
        "largest difference of mean probabilities: "
        + "; ".join(f"{name}, {kl}, G = {g}: {say(x, 2)}" for (name, kl, g), x in away.items()),
        ("group_size",),
    )


def _larger_groups_go_farther(best: dict[tuple[str, Kl], np.ndarray]) -> Claim:
    return Claim(
        "Larger groups go farther: the best arm has the more probability, the larger the group.",
        "ours",
        all(bool(np.all(np.diff(x) > 0)) for x in best.values()),
        f"exact, G = {', '.join(map(str, SIZES))}, \N{INFINITY}: "
        + "; ".join(
            f"{name}, {kl}: " + ", ".join(say(float(y)) for y in x)
            for (name, kl), x in best.items()
        )
        + "; pi*: "
        + ", ".join(f"{say(float(p.target[0]))} ({p.name})" for p in PROBLEMS),
        ("group_size",),
    )


def _direct_kl_leaves_one_arm(best: dict[tuple[str, Kl], np.ndarray]) -> Claim:
    return Claim(
        "With the direct KL, and not with the published one, large groups leave the other arms "
        "next to nothing, and groups without end nothing at all.",
        "ours",
        all(best[p.name, "direct"][-1] == 1.0 for p in PROBLEMS)
        and all(best[p.name, "published"][-1] < 0.9 for p in PROBLEMS),
        "exact probability of all arms but the best, G = "
        + f"{', '.join(map(str, SIZES))}, ∞: "
        + "; ".join(
            f"{name}, {kl}: " + ", ".join(say(float(1.0 - y), 2) for y in x)
            for (name, kl), x in best.items()
        )
        + ". In large groups the advantage of a rare arm is about minus the root of its "
        "odds, against which log(pi / q) is weak and q / pi is not",
        ("group_size",),
    )


def _two_arms_have_closed_forms(exact: Exact) -> Claim:
    q, beta = float(TWO.reference[0]), TWO.beta
    ends = {
        2: two_arms_of_two(q, beta) - exact[TWO.name, "published", 2][0],
        None: two_arms_of_many(q, beta) - exact[TWO.name, "published", None][0],
    }
    return Claim(
        "Two arms have the closed forms of 2502.18548, for groups of two and without end.",
        "ours",
        bool(max(map(abs, ends.values())) < 1e-9),
        "closed form minus exact: "
        + ", ".join(f"{say(float(x), 2)} (G = {'∞' if g is None else g})" for g, x in ends.items()),
        ("group_size",),
    )


def _unit_of_reward_changes_nothing(exact: Exact) -> Claim:
    many = [Problem("", FOUR.reference, FOUR.reward * gap, FOUR.beta) for gap in (0.1, 10.0)]
    moved = max(
        float(np.max(np.abs(settled(p, kl, size) - exact[FOUR.name, kl, size])))
        for p in many
        for kl in KLS
        for size in (SIZES[0], SIZES[-1], None)
    )
    far = float(np.max(np.abs(many[0].target - many[1].target)))
    return Claim(
        "Where GRPO settles does not depend on the unit of reward; pi* does.",
        "ours",
        moved < 1e-9,
        f"four arms, rewards times 0.1 and 10: largest change of a probability {say(moved, 2)} "
        f"(G = 2, 8, \N{INFINITY}, both KLs), of pi* {say(far)}",
        ("group_size",),
    )


def _figure(exact: Exact, ours: Trained, seeds: int) -> Figure:
    panels = []
    sizes = np.array(SIZES, float)
    for problem in PROBLEMS:
        for value, label in (
            ("best", "P(best arm)"),
            ("loss", f"E[R] - {Greek.beta} KL"),
        ):

            def of(policy: np.ndarray, problem: Problem = problem, value: str = value) -> Any:
                return policy[..., 0] if value == "best" else problem.value(policy)

            lines: list[Line] = []
            for style, kl in enumerate(KLS):
                name = problem.name
                y = np.array([of(exact[name, kl, size]) for size in SIZES])
                lines.append(plain(f"exact, {kl} KL", sizes, y, style))
                points = np.array([of(ours[name, kl, size]) for size in SIZES]).T
                lines.append(band(f"trained, {kl} KL", sizes, points, style, "", "o"))
                limit = np.full(2, float(of(exact[name, kl, None])))
                label_of = f"exact, {kl} KL, G = \N{INFINITY}"
                lines.append(plain(label_of, sizes[[0, -1]], limit, style, ":"))
            star = np.full(2, float(of(problem.target)))
            lines.append(plain("pi*", sizes[[0, -1]], star, None, "--"))
            panels.append(Panel(problem.name, "group size G", label, lines, log_x=True))
    return Figure(
        "group_size",
        "Where GRPO settles: exact (lines; dotted: groups without end), trained (points, means "
        f"over {seeds} seeds with 95 % intervals), and pi* (dashed).",
        panels,
    )


def _table(exact: Exact, ours: Trained) -> Table:
    rows: list[tuple[Value, ...]] = []
    for problem in PROBLEMS:
        top = float(problem.value(problem.target))
        for kl in KLS:
            for size in (*SIZES, None):
                policy = exact[problem.name, kl, size]
                cells: list[Value] = [
                    *(problem.name, kl, math.inf if size is None else size),
                    *(float(policy[0]), float(problem.value(policy)) - top),
                ]
                if size is None:
                    cells += [None] * 6
                else:
                    found = ours[problem.name, kl, size]
                    cells += [*Interval.of(found[:, 0])]
                    cells += [*Interval.of(problem.value(found) - top)]
                rows.append(tuple(cells))
    return Table(
        "group_size",
        f"Probability of the best arm, and E[R] - {Greek.beta} KL less that of pi*: exact, and "
        "trained with 95 % intervals over seeds by Student's t",
        (
            *("problem", "KL", "G", "best arm, exact", "value, exact"),
            *("best arm, trained", "from", "to", "value, trained", "from", "to"),
        ),
        rows,
    )
