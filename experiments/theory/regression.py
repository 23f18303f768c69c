"""REBEL, a regression to rewards, against PPO-RLHF and RGPO, at equal samples."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from agents.language import ppo, rebel, rgpo
from envs.language import bandit, tree
from experiments.comparing import intervals
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Comparison, Interval, compare
from experiments.theory import alignment
from experiments.theory.alignment import Greek, band, tell_ratio, words
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Panel, Progress, Study, Table, Value
from rgpo_jax.language.targets import gibbs
from rgpo_jax.language.world import World

BETA = 0.3
UPDATES = 30
POINTS = 30
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
TUNING_SEEDS = 5  # that choose a learning rate
PROMPTS, GROUP = 16, 8  # of an update
_ETA = 0.3  # where the two forms of REBEL's loss differ; the suite's default, 1, has but one
REBEL = "REBEL"
SMALL, DIVIDED = f"REBEL, {Greek.eta} = {_ETA:g}", f"REBEL, {Greek.eta} = {_ETA:g}, by {Greek.eta}²"
PPO, GEOMETRIC, PRODUCT = "PPO-RLHF", "RGPO geometric", "RGPO product"
ROWS: dict[str, tuple[Any, dict[str, Any]]] = {
    REBEL: (rebel, {}),
    SMALL: (rebel, {"eta": _ETA}),
    DIVIDED: (rebel, {"eta": _ETA, "by_eta": True}),
    PPO: (ppo, {}),
    GEOMETRIC: (rgpo, {"dual": "geometric", "normalize": True}),
    PRODUCT: (rgpo, {"dual": "product", "normalize": True}),
}
OTHERS = (PPO, GEOMETRIC, PRODUCT)
WORLDS: dict[str, ModuleType] = {"bandit": bandit, "tree": tree}


def worlds() -> dict[str, World]:
    """Problem 0 of each; training's seeds do not change it."""
    return {name: module.make() for name, module in WORLDS.items()}


class Row(NamedTuple):
    """A method in a world, at the rate that tuning seeds chose; arrays [S, points + 1]."""

    rate: float
    reward: np.ndarray
    kl: np.ndarray
    loss: np.ndarray
    distance: np.ndarray  # largest |pi - pi*|


Rows = dict[tuple[str, str], Row]  # of a world and a method


class Exact(NamedTuple):
    """What is known of a world; arrays [N, M]."""

    frontier: Frontier
    target: np.ndarray

    @classmethod
    def of(cls, world: World) -> "Exact":
        frontier = Frontier.of(world)
        return cls(frontier, gibbs(frontier.reference, frontier.reward, BETA))

    def reward(self, policy: np.ndarray) -> np.ndarray:
        """Mean over prompts [...] of policies [..., N, M]."""
        return np.asarray(np.sum(policy * self.frontier.reward, axis=-1).mean(axis=-1))

    def kl(self, policy: np.ndarray) -> np.ndarray:
        """To the reference, mean over prompts [...]."""
        found = alignment.divergence(policy, self.frontier.reference)
        return np.asarray(found.mean(axis=-1))

    def loss(self, policy: np.ndarray) -> np.ndarray:
        """By how much E[R] - beta KL is below the most: beta KL(pi || pi*), mean over prompts."""
        return np.asarray(BETA * alignment.divergence(policy, self.target).mean(axis=-1))

    def share(self, row: Row) -> np.ndarray:
        """Of the frontier's gain at the policy's own KL, at the end [S]."""
        return self.frontier.share(row.kl[:, -1], row.reward[:, -1])


def learn(
    name: str, world: World, exact: Exact, seed: int, seeds: int, updates: int = UPDATES
) -> Row:
    """All rates, on tuning and on reported seeds, in one program."""
    module, settings = ROWS[name]
    made = alignment.setup(
        module,
        world,
        num_updates=updates,
        num_prompts=PROMPTS,
        group_size=GROUP,
        num_epochs=4,
        num_minibatches=4,
        kl_coefficient=BETA,
        **settings,
    )
    keys = jnp.concatenate(
        [alignment.keys_of(seed + alignment.CHOICE, TUNING_SEEDS), alignment.keys_of(seed, seeds)]
    )
    nothing = jnp.zeros(TUNING_SEEDS + seeds)
    found = alignment.train(
        lambda _: made, nothing, keys, updates, POINTS, {"learning_rate": np.array(RATES)}
    )
    loss = exact.loss(found)
    best = int(np.argmin(loss[:, :TUNING_SEEDS, -1].mean(axis=1)))
    ours = found[best, TUNING_SEEDS:]
    distance = np.max(np.abs(ours - exact.target), axis=(-1, -2))
    return Row(RATES[best], exact.reward(ours), exact.kl(ours), loss[best, TUNING_SEEDS:], distance)


def run(options: Options, progress: Progress) -> Study:
    """All rows in both worlds."""
    made = worlds()
    exact = {name: Exact.of(world) for name, world in made.items()}
    rows: Rows = {}
    for name, world in made.items():
        for row in ROWS:
            rows[name, row] = learn(row, world, exact[name], options.seed, options.seeds)
            progress(len(rows) / (len(made) * len(ROWS)))
    samples = UPDATES * PROMPTS * GROUP
    return Study(
        "Regression to rewards",
        (
            "A bandit (5 arms, 4 prompts) and a tree (64 answers of three tokens, 2 prompts), one "
            f"problem each. All methods have {samples:,} answers, {PROMPTS} prompts "
            f"\N{MULTIPLICATION SIGN} {GROUP} an update, 4 epochs of 4 minibatches, Adam, and the "
            f"KL in the reward with {Greek.beta} = {BETA:g}, so that all settle at pi* = q "
            f"exp(R/{Greek.beta})/Z. REBEL (arXiv 2404.16767) regresses changes of log-probability "
            f"to {Greek.eta} times differences of reward, in pairs of neighbours; {Greek.eta} = 1 "
            f"is the suite's default. The paper divides the loss by {Greek.eta}², its code does "
            f"not: {Greek.eta} = {_ETA:g} has both. Each row has the best learning rate of "
            f"{', '.join(f'{r:g}' for r in RATES)}, by the mean final loss on {TUNING_SEEDS} other "
            f"seeds ({alignment.CHOICE} above these); other settings are the suite's. With ten "
            "times the answers all rows that were tried came to within 0.01 of pi* in every "
            "probability, so that what is compared here is how fast they come.",
            f"Primary comparison: the logarithm of the loss E*[R] - {Greek.beta} KL* - (E[R] - "
            f"{Greek.beta} KL) = {Greek.beta} KL(pi || pi*) after all samples, REBEL minus each of "
            f"{', '.join(OTHERS)}, in both worlds: six tests of the means over {options.seeds} "
            "seeds, by Student's t, paired by seed, with Holm's correction. Bands are 95 % "
            "intervals; of losses they are of geometric means.",
        ),
        _claims(rows, exact),
        [_figure(rows, exact, options.seeds)],
        [_table(rows, exact)],
    )


def _against_others(of: Callable[[str, str], np.ndarray]) -> list[Comparison]:
    """REBEL's minus each of the others, in all worlds, of a number of each seed (world, row)."""
    return compare(
        {
            f"{world}, {other}": of(world, REBEL) - of(world, other)
            for world in WORLDS
            for other in OTHERS
        }
    )


def _last(rows: Rows, world: str, row: str) -> np.ndarray:
    """Logarithm of the loss at the end [S]."""
    return np.log(rows[world, row].loss[:, -1])


def _claims(rows: Rows, exact: dict[str, Exact]) -> list[Claim]:
    return [
        _nearer_to_the_best(rows),
        _nearer_to_the_frontier(rows, exact),
        _division_changes_little(rows),
        _all_near_the_target(rows),
    ]


def _nearer_to_the_best(rows: Rows) -> Claim:
    tests = _against_others(functools.partial(_last, rows))
    return Claim(
        f"At equal samples REBEL ends nearer to the best of E[R] - {Greek.beta} KL than "
        "PPO-RLHF and RGPO, in bandit and tree.",
        "ours",
        intervals.agree(tests, -1),
        "ratio of losses, REBEL's over the other's: " + words(tests, tell_ratio),
        ("regression",),
    )


def _nearer_to_the_frontier(rows: Rows, exact: dict[str, Exact]) -> Claim:
    tests = _against_others(lambda world, row: exact[world].share(rows[world, row]))
    return Claim(
        "At equal samples REBEL is nearer to the frontier, at the KL that each has, than "
        "PPO-RLHF and RGPO, in bandit and tree.",
        "ours",
        intervals.agree(tests, 1),
        "share of the frontier's gain, REBEL's minus the other's: " + words(tests),
        ("regression",),
    )


def _division_changes_little(rows: Rows) -> Claim:
    tests = compare({w: _last(rows, w, DIVIDED) - _last(rows, w, SMALL) for w in WORLDS})
    small = [bool(np.exp(c.interval.high) < 1.25 and np.exp(c.interval.low) > 0.8) for c in tests]
    return Claim(
        f"Whether REBEL's loss is divided by {Greek.eta}² changes its final loss by less than "
        "a quarter, under Adam and with a rate chosen for each.",
        "ours",
        True if all(small) else (False if any(c.sign for c in tests) else None),
        "ratio of losses, divided over not: "
        + words(tests, tell_ratio)
        + "; rates "
        + "; ".join(f"{w}: {rows[w, DIVIDED].rate:g} and {rows[w, SMALL].rate:g}" for w in WORLDS),
        ("regression",),
    )


def _all_near_the_target(rows: Rows) -> Claim:
    near = {key: Interval.of(row.distance[:, -1]) for key, row in rows.items()}
    return Claim(
        "All rows are within 0.05 of pi* in every probability, on average over seeds.",
        "ours",
        all(x.high < 0.05 for x in near.values()),
        "largest |pi - pi*|: "
        + "; ".join(f"{w}, {r}: {alignment.tell(x, 2)}" for (w, r), x in near.items()),
        ("regression",),
    )


def _figure(rows: Rows, exact: dict[str, Exact], seeds: int) -> Figure:
    panels = []
    for world, known in exact.items():
        losses, paths = [], []
        for style, name in enumerate(ROWS):
            row = rows[world, name]
            points = row.loss.shape[1]
            x = np.linspace(0.0, UPDATES * PROMPTS * GROUP, points)
            losses.append(band(name, x, row.loss, style, logarithmic=True))
            paths.append(band(name, row.kl.mean(axis=0), row.reward, style))
        end = float(known.kl(known.target))
        kl, reward = known.frontier.at(np.geomspace(1e-2, 2.0 / BETA, 200))
        keep = kl < 1.6 * end
        paths.append(alignment.plain("frontier", kl[keep], reward[keep], None, "--"))
        star = np.array([end]), np.array([float(known.reward(known.target))])
        paths.append(alignment.plain("pi*", *star, None, "", "o"))
        panels += [
            Panel(
                f"{world}: loss",
                "answers",
                f"{Greek.beta} KL(pi || pi*)",
                losses,
                log_y=True,
            ),
            Panel(f"{world}: reward and KL", "KL(pi || ref), nats", "reward", paths),
        ]
    return Figure(
        "regression",
        f"Left: how far E[R] - {Greek.beta} KL is below its most; right: reward against KL along "
        f"training, and the frontier. Means over {seeds} seeds with 95 % intervals, at the "
        "learning rates that were chosen on other seeds.",
        panels,
    )


def _table(rows: Rows, exact: dict[str, Exact]) -> Table:
    cells: list[tuple[Value, ...]] = []
    for (world, name), row in rows.items():
        loss = (float(np.exp(x)) for x in Interval.of(np.log(row.loss[:, -1])))
        share = exact[world].share(row)
        kl = float(row.kl[:, -1].mean())
        line: list[Value] = [world, name, row.rate, *loss]
        line += [*Interval.of(row.reward[:, -1]), kl, *Interval.of(share)]
        cells.append((*line, float(row.distance[:, -1].mean())))
    return Table(
        "regression",
        f"After {UPDATES * PROMPTS * GROUP:,} answers: loss (geometric mean), reward, KL, share of "
        "the frontier's gain at the same KL, and largest |pi - pi*|; 95 % intervals by Student's t",
        (
            *("world", "method", "learning rate", "loss", "from", "to"),
            *("reward", "from", "to", "KL, nats", "share", "from", "to", "largest |pi - pi*|"),
        ),
        cells,
    )
