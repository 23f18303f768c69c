"""Cost: RGPO's update and whole step over PPO's and TRPO's, timed in turn in one process."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

import agents
import envs
from experiments.benchmark import measure
from experiments.comparing import timing
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, say
from experiments.training.collecting import collect
from rgpo_jax import update
from rgpo_jax.agent import Agent

_TASKS = ("CartPole-v1", "Pendulum-v1")
_PARTS = ("update", "step")
# RGPO in the middle: it runs next to both that it is compared with.
_AGENTS = ("ppo", "rgpo", "trpo")
_OTHERS = ("ppo", "trpo")
_NAMES = {"ppo": "PPO", "rgpo": "RGPO", "trpo": "TRPO"}
_NUM_ENVS = 64
_NUM_STEPS = 128
_SECONDS = 0.25  # of a timing
_CONFIDENCE = 0.95
# Within this range of a ratio two costs are called equal.
_EQUAL = (0.95, 1.05)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval of order statistics that holds the median with a probability of at least 95 %.

    Whatever the distribution, if values (positive) are independent draws of it: the number of
    draws below the median is binomial. Fewer than six draws bound nothing: (0, infinity).
    """
    rank = int(stats.binom.ppf((1.0 - _CONFIDENCE) / 2.0, len(values), 0.5))
    bounded = [0.0, *sorted(values), math.inf]
    return bounded[rank], bounded[len(values) + 1 - rank]


def differentiation_order(agent: Agent) -> int:
    """How often an agent's update differentiates its networks: 1, or 2 (or more) where it needs
    derivatives of derivatives.

    The update is traced and not run. Its parameters pass through an identity whose derivative, by
    a rule of its own, is a function that notes when it is differentiated in turn.
    """
    order = 0

    @jax.custom_jvp
    def slope(x: jax.Array) -> jax.Array:
        return jax.numpy.ones_like(x)

    @slope.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        nonlocal order
        order = 2
        return slope(*primals), jax.numpy.zeros_like(tangents[0])

    @jax.custom_jvp
    def probe(x: jax.Array) -> jax.Array:
        return x

    @probe.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        nonlocal order
        order = max(order, 1)
        return probe(*primals), slope(*primals) * tangents[0]

    def probed(function: Callable, params: Any, *seen: Any) -> Any:
        return function(jax.tree.map(probe, params), *seen)

    learner = agent.learner
    functions: dict[str, Any] = {
        name: functools.partial(probed, field)
        for name, field in learner.network._asdict().items()
        if callable(field) and name != "init"  # all others are of parameters
    }
    network = learner.network._replace(**functions)
    parts = learner.hyperparameters
    own = update.make(
        network, agent.config, parts.gate, parts.advantage_transform, parts.policy_step
    )

    def once(key: jax.Array) -> Any:
        state = agent.init(key)
        return own.update(state.learner, collect(agent, state)[1])

    jax.eval_shape(once, jax.random.key(0))
    return order


@dataclasses.dataclass(frozen=True)
class Comparison:
    """RGPO's cost over another agent's.

    Attributes:
      part: "update" or "step".
      other: the agent that RGPO is held against.
      seconds: of one repetition, RGPO's and the other's, pair by pair [pairs, 2].
    """

    task: str
    part: str
    other: str
    seconds: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """RGPO's seconds over the other's, pair by pair."""
        return self.seconds[:, 0] / self.seconds[:, 1]

    @property
    def median(self) -> float:
        return float(np.median(self.ratios))

    @property
    def interval(self) -> tuple[float, float]:
        return median_interval(self.ratios.tolist())


def parity(comparisons: Sequence[Comparison]) -> bool | None:
    """Whether costs are equal: yes if all intervals lie in `_EQUAL`, no if one lies above it."""
    low, high = _EQUAL
    intervals = [comparison.interval for comparison in comparisons]
    if any(interval[0] > high for interval in intervals):
        return False
    if all(low <= interval[0] and interval[1] <= high for interval in intervals):
        return True
    return None


def _measure(options: Options, progress: Progress) -> list[Comparison]:
    comparisons = []
    cells = [(task, part) for task in _TASKS for part in _PARTS]
    for i, (task, part) in enumerate(cells):
        settings = measure.Options(env=task, num_steps=_NUM_STEPS)
        env = envs.make(task)
        programs = [
            measure.build(name, env, settings, _NUM_ENVS, num_seeds=1, part=part)
            for name in _AGENTS
        ]
        rounds = []
        for taken in timing.in_turn(programs, _SECONDS, options.pairs):
            rounds.append(taken)
            progress((i + len(rounds) / options.pairs) / len(cells))
        seconds = np.array(rounds)
        comparisons += [
            Comparison(task, part, other, seconds[:, [_AGENTS.index("rgpo"), _AGENTS.index(other)]])
            for other in _OTHERS
        ]
    return comparisons


def _describe(comparison: Comparison) -> str:
    low, high = comparison.interval
    return f"{say(comparison.median)} ({say(low)} to {say(high)}) on {comparison.task}"


def _select(comparisons: Sequence[Comparison], part: str, other: str) -> list[Comparison]:
    return [c for c in comparisons if (c.part, c.other) == (part, other)]


def _claims(comparisons: Sequence[Comparison], orders: dict[str, int], pairs: int) -> list[Claim]:
    steps, updates = (_select(comparisons, part, "ppo") for part in ("step", "update"))
    against_trpo = _select(comparisons, "update", "trpo")
    low, high = _EQUAL
    return [
        Claim(
            "RGPO matches PPO in computational cost.",
            "paper",
            parity(steps),
            "RGPO's whole step over PPO's, median of "
            f"{pairs} pairs (95 % interval): {', '.join(map(_describe, steps))}; the update alone: "
            f"{', '.join(map(_describe, updates))}. Equal is called what lies within {low:g} to "
            f"{high:g}.",
            ("cost",),
        ),
        Claim(
            "RGPO requires no second-order optimization.",
            "paper",
            orders["rgpo"] == 1,
            "Highest order in which an update differentiates its networks, by a probe in the "
            f"traced program: {', '.join(f'{_NAMES[name]} {orders[name]}' for name in _AGENTS)}. "
            "Whether that is cheaper is another question: RGPO's update takes "
            f"{', '.join(map(_describe, against_trpo))} times TRPO's, whose actor takes one "
            "natural-gradient step where RGPO's takes a step for every minibatch and pass.",
            ("cost",),
        ),
    ]


def _figure(comparisons: Sequence[Comparison]) -> Figure:
    panels = []
    for task in _TASKS:
        for other in _OTHERS:
            lines = []
            for style, part in enumerate(_PARTS):
                (found,) = (c for c in _select(comparisons, part, other) if c.task == task)
                pairs = np.arange(1.0, len(found.ratios) + 1)
                ends = pairs[[0, -1]]
                name = "whole step" if part == "step" else part
                low, high = (np.full(2, bound) for bound in found.interval)
                bounded = bool(np.isfinite(high).all())
                lines += [
                    Line(f"{name}, a pair", pairs, found.ratios, style, "", marker="o"),
                    Line(
                        f"{name}, median and interval",
                        ends,
                        np.full(2, found.median),
                        style,
                        low=low if bounded else None,
                        high=high if bounded else None,
                    ),
                ]
            panels.append(
                Panel(
                    f"{task}: RGPO over {_NAMES[other]}",
                    "pair, in order of time",
                    "ratio of times",
                    lines,
                    guides=(*_EQUAL, 1.0) if other == "ppo" else (1.0,),
                )
            )
    return Figure(
        "cost",
        "Time of RGPO over that of PPO and of TRPO, pair by pair, with the median and its 95 % "
        f"interval. Thin lines: 1, and beside PPO the range {_EQUAL[0]:g} to {_EQUAL[1]:g}.",
        panels,
        columns=len(_OTHERS),
    )


def _tables(comparisons: Sequence[Comparison], orders: dict[str, int]) -> list[Table]:
    return [
        Table(
            "cost",
            f"RGPO's time over another's, {_NUM_ENVS} environments, {_NUM_STEPS} steps a rollout.",
            (
                "environment",
                "part",
                "against",
                "pairs",
                "RGPO, median (ms)",
                "other, median (ms)",
                "median ratio",
                "lower quartile",
                "upper quartile",
                "median, 95 % from",
                "to",
            ),
            [
                (
                    c.task,
                    c.part,
                    _NAMES[c.other],
                    len(c.ratios),
                    *(1e3 * np.median(c.seconds, axis=0)).tolist(),
                    c.median,
                    *np.quantile(c.ratios, (0.25, 0.75)).tolist(),
                    *c.interval,
                )
                for c in comparisons
            ],
        ),
        Table(
            "cost_order",
            "Highest order in which an agent's update differentiates its networks.",
            ("agent", "order"),
            [(_NAMES[name], order) for name, order in orders.items()],
        ),
    ]


def _study(comparisons: Sequence[Comparison], orders: dict[str, int], pairs: int) -> Study:
    config: Any = agents.load("rgpo").Config()
    device = jax.devices()[0]
    return Study(
        title="Cost",
        text=(
            f"Both agents run {_NUM_ENVS} environments for {_NUM_STEPS} steps a rollout; RGPO and "
            f"PPO then take {config.num_epochs} passes of {config.num_minibatches} minibatches, "
            "and TRPO one natural-gradient step for the actor and the same passes for the critic. "
            "Machines drift, so programs run in turn in one process, in an order that alternates "
            f"from pair to pair, about {say(_SECONDS)} s each; what counts is the ratio of a pair "
            f"({device.platform}: {device.device_kind} x {jax.device_count()}).",
            "The interval of the median is one of order statistics: it supposes no distribution, "
            "but that pairs are independent. A ratio of times belongs to this machine and these "
            "sizes; the order of differentiation does not.",
        ),
        claims=_claims(comparisons, orders, pairs),
        figures=[_figure(comparisons)],
        tables=_tables(comparisons, orders),
    )


def run(options: Options, progress: Progress) -> Study:
    """Times the programs in turn, and looks for second derivatives."""
    env = envs.make(_TASKS[0])
    orders = {name: differentiation_order(agents.load(name).make(env)) for name in _AGENTS}
    return _study(_measure(options, progress), orders, options.pairs)
