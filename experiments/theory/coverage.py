"""Coverage: DPO on fresh pairs of the policy, in rounds, against as many pairs of the reference."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.language import on_policy_dpo
from envs.language import bandit
from experiments.comparing import intervals
from experiments.comparing.intervals import Comparison, Interval, compare
from experiments.theory import alignment
from experiments.theory.alignment import Greek, band, divergence, draw_wins, exact_fit, softmax
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Panel, Progress, Study, Table, Value, say

ARMS = 10
BETA = 0.5
AVERSION = 1.5  # of the reference to reward: its logits are -1.5 R
PAIRS = (64, 256, 1024, 4096, 16_384, 65_536)  # of a round
DRAWS = 8  # of the pairs, in each problem
ROUNDS = 8
OFFLINE, FRESH, ALL = "offline", "on-policy, pairs of the round", "on-policy, all pairs so far"
WAYS = (OFFLINE, FRESH, ALL)
ABOVE = PAIRS[3:]  # the threshold, as seen on the draws that chose the problem
RIDGES = (0.001, alignment.RIDGE, 0.1, 1.0)
# Of the suite's agent: a fit that comes to its end, and one that is stopped early.
FULL: dict[str, Any] = {"num_prompts": 16_384, "num_epochs": 100, "learning_rate": 0.1}
EARLY: dict[str, Any] = {"num_prompts": 1024, "num_epochs": 100, "learning_rate": 0.05}
AGENT_ROUNDS = {"full": 2, "early": 4}


class Problem(NamedTuple):
    """Bandits whose reference is averse to reward; arrays [S, K]."""

    reference: np.ndarray
    reward: np.ndarray

    def repeated(self, times: int) -> "Problem":
        """Each problem so many times in a row."""
        return Problem(*(np.repeat(x, times, axis=0) for x in self))

    @property
    def target(self) -> np.ndarray:
        """pi* = q exp(R / beta) / Z."""
        return self.policy(self.reward)

    def policy(self, reward: np.ndarray) -> np.ndarray:
        """q exp(r / beta) / Z for a fitted reward."""
        return softmax(np.log(self.reference) + reward / BETA)

    def error(self, policy: np.ndarray) -> np.ndarray:
        """Largest |pi - pi*| over arms [S]."""
        return np.asarray(np.max(np.abs(policy - self.target), axis=-1))


def problems(rng: np.random.Generator, number: int) -> Problem:
    """Rewards are normal draws, standardised in each problem; the reference is softmax(-1.5 R)."""
    reward = rng.normal(size=(number, ARMS))
    reward -= reward.mean(axis=1, keepdims=True)
    reward /= reward.std(axis=1, keepdims=True)
    return Problem(softmax(-AVERSION * reward), reward)


def rounds(
    rng: np.random.Generator,
    problem: Problem,
    way: str,
    pairs: int,
    number: int = ROUNDS,
    ridge: float = alignment.RIDGE,
) -> np.ndarray:
    """Policies after each round [rounds, S, K], of full fits to the fixed reference.

    Args:
      rng: of pairs and labels.
      problem: one of each seed.
      way: of `WAYS`: whose pairs are drawn, and which are fitted.
      pairs: of a round.
      number: of rounds.
      ridge: of `exact_fit`.
    """
    policy, fitted = problem.reference, np.zeros_like(problem.reward)
    met = np.zeros((*problem.reward.shape, ARMS))
    found = []
    for _ in range(number):
        asked = problem.reference if way == OFFLINE else policy
        wins = draw_wins(rng, asked, problem.reward, pairs)
        met = wins if way == FRESH else met + wins
        # Of what the round's pairs do not say, a fit keeps what the policy had.
        fitted = exact_fit(met, start=fitted if way == FRESH else None, ridge=ridge)
        fitted -= fitted.mean(axis=1, keepdims=True)
        policy = problem.policy(fitted)
        found.append(policy)
    return np.stack(found)


def by_agent(problem: Problem, seed: int, settings: Mapping[str, Any], updates: int) -> np.ndarray:
    """Policies after each round [rounds, S, K], of the suite's own agent."""

    def build(one: Problem) -> alignment.Setup:
        return alignment.setup(
            on_policy_dpo,
            bandit.of(jnp.log(one.reference)[None], one.reward[None]),
            num_updates=updates,
            kl_coefficient=BETA,
            max_grad_norm=1e6,
            **settings,
        )

    as_float = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), problem)
    keys = alignment.keys_of(seed, len(problem.reward))
    found = alignment.train(build, as_float, keys, updates, updates)
    return np.asarray(np.moveaxis(found[0, :, 1:, 0], 0, 1))


class Found(NamedTuple):
    """What was measured; means over draws.

    Attributes:
      errors: (way, N) -> geometric mean of the errors [S, rounds].
      gaps: (way, N) -> reward of pi* minus that of the policy [S, rounds].
      ridges: (way, N, ridge) -> error after the last round [S].
      agents: "full" or "early" -> errors of the suite's agent [S, rounds].
    """

    errors: dict[tuple[str, int], np.ndarray]
    gaps: dict[tuple[str, int], np.ndarray]
    ridges: dict[tuple[str, int, float], np.ndarray]
    agents: dict[str, np.ndarray]


def measure(problem: Problem, seed: int, progress: Progress) -> Found:
    """All ways at all numbers of pairs, with several draws of each problem."""
    rng = np.random.default_rng((seed, 12))
    each = problem.repeated(DRAWS)
    optimum = np.sum(each.target * each.reward, axis=-1)

    def over_draws(values: np.ndarray) -> np.ndarray:
        return values.reshape(len(problem.reward), DRAWS, *values.shape[1:]).mean(axis=1)

    def errors_of(policies: np.ndarray) -> np.ndarray:
        errors = np.stack([each.error(p) for p in policies], axis=1)
        return np.exp(over_draws(np.log(errors)))

    found = Found({}, {}, {}, {})
    for i, pairs in enumerate(PAIRS):
        for way in WAYS:
            policies = rounds(rng, each, way, pairs)
            found.errors[way, pairs] = errors_of(policies)
            reward = np.sum(policies * each.reward, axis=-1)
            found.gaps[way, pairs] = over_draws((optimum - reward).T)
            if pairs in PAIRS[1:5]:
                for ridge in RIDGES:
                    policies = rounds(rng, each, way, pairs, ridge=ridge)
                    found.ridges[way, pairs, ridge] = errors_of(policies)[:, -1]
        progress(0.4 * (i + 1) / len(PAIRS))
    for i, (name, settings) in enumerate({"full": FULL, "early": EARLY}.items()):
        policies = by_agent(problem, seed, settings, AGENT_ROUNDS[name])
        found.agents[name] = np.stack([problem.error(p) for p in policies], axis=1)
        progress(0.7 + 0.3 * i)
    return found


def run(options: Options, progress: Progress) -> Study:
    """All three ways at every number of pairs, and the suite's agent beside the exact fit."""
    problem = problems(np.random.default_rng((options.seed, 11)), options.seeds)
    found = measure(problem, options.seed, progress)
    best = problem.reward.argmax(axis=1)
    rare = problem.reference[np.arange(options.seeds), best]
    return Study(
        "Coverage: on-policy DPO against offline DPO",
        (
            f"{options.seeds} bandits of {ARMS} arms, one a seed; rewards are standardised normal "
            f"draws and the reference is averse to them, softmax(-{AVERSION:g} R), so that it "
            f"shows its best arm with probability {say(float(np.median(rare)), 2)} (median); "
            f"{Greek.beta} = {BETA:g}, and KL(pi* || ref) is "
            f"{say(float(divergence(problem.target, problem.reference).mean()), 2)} nats. A round "
            "draws N pairs of two answers, labelled by Bradley and Terry's model, and fits DPO in "
            "full to the fixed reference. Offline, all pairs are of the reference and all so far "
            "are fitted; on-policy they are of the present policy, and the fit has those of the "
            "round alone (as in arXiv 2601.08421, of which we know the abstract) or all so far. At "
            "each round all three have had equally many pairs.",
            "Primary comparison: the logarithm of the error max |pi - pi*| after the last round, "
            f"on-policy minus offline, paired by seed (the mean of {DRAWS} draws of the pairs in "
            f"each problem), for each N; Student's t with Holm's correction for {2 * len(PAIRS)} "
            f"tests (both on-policy ways). The problem (arms, aversion, {Greek.beta}), the N and "
            "the claims were settled on other draws.",
            "The fit is exact: DPO depends on counts alone, and Newton's method finds the least "
            f"loss in float64 with a ridge of {alignment.RIDGE:g} pairs around the policy that the "
            "round began with; without it an arm that always lost would go to minus infinity. The "
            "second table has other ridges. Bands are 95 % intervals of geometric means over "
            "seeds, by Student's t.",
        ),
        _claims(found),
        [_figure(found, options.seeds)],
        _tables(found),
    )


def _comparisons(
    errors: Mapping[tuple[str, int], np.ndarray],
) -> dict[tuple[str, int], Comparison]:
    keys = [(way, pairs) for way in (FRESH, ALL) for pairs in PAIRS]
    gaps = {
        f"{way}, N = {pairs}": np.log(errors[way, pairs][:, -1] / errors[OFFLINE, pairs][:, -1])
        for way, pairs in keys
    }
    return dict(zip(keys, compare(gaps), strict=True))


def _ratios(tests: Mapping[tuple[str, int], Comparison], way: str) -> str:
    return "; ".join(
        f"N = {n:,}: {alignment.tell_ratio(t.interval)} ({alignment.p_value(t.p)})"
        for (w, n), t in tests.items()
        if w == way
    )


def _claims(found: Found) -> list[Claim]:
    tests = _comparisons(found.errors)
    return [
        _nearer_on_own_pairs(tests),
        _farther_where_pairs_are_few(tests),
        _nearer_on_all_pairs(tests),
        _floor_falls(found.errors),
        _second_round_brings_more(found.errors),
        _offline_falls(found.errors),
        _agent_has_the_exact_error(found),
        _full_fits_are_worse_where_pairs_are_few(found),
    ]


def _nearer_on_own_pairs(tests: Mapping[tuple[str, int], Comparison]) -> Claim:
    return Claim(
        "With enough pairs a round, on-policy DPO on the pairs of each round comes nearer to "
        f"pi* than offline DPO on equally many pairs (N from {ABOVE[0]:,} on; 2601.08421).",
        "ours",
        intervals.agree([tests[FRESH, n] for n in ABOVE], -1),
        f"ratio of errors after {ROUNDS} rounds, on-policy over offline, and corrected p: "
        + _ratios(tests, FRESH),
        ("coverage",),
    )


def _farther_where_pairs_are_few(tests: Mapping[tuple[str, int], Comparison]) -> Claim:
    test = tests[FRESH, PAIRS[0]]
    return Claim(
        f"With few pairs a round (N = {PAIRS[0]}) it is the other way round: the fit to a "
        "round's pairs loses what earlier rounds knew.",
        "ours",
        intervals.agree([test], 1),
        f"ratio of errors at N = {PAIRS[0]}: {alignment.tell_ratio(test.interval)}, "
        f"{alignment.p_value(test.p)}",
        ("coverage",),
    )


def _nearer_on_all_pairs(tests: Mapping[tuple[str, int], Comparison]) -> Claim:
    return Claim(
        "Fitted to all pairs so far, on-policy DPO comes nearer to pi* than offline DPO at "
        "every N.",
        "ours",
        intervals.agree([tests[ALL, n] for n in PAIRS], -1),
        "ratio of errors, and corrected p: " + _ratios(tests, ALL),
        ("coverage",),
    )


def _floor_falls(errors: Mapping[tuple[str, int], np.ndarray]) -> Claim:
    floors = np.stack(
        [np.log(errors[FRESH, pairs][:, ROUNDS // 2 :]).mean(axis=1) for pairs in ABOVE], 1
    )
    floor = Interval.of(alignment.slopes(np.log(ABOVE), floors))
    end = Interval.of(alignment.slopes(np.log(ABOVE[-2:]), floors[:, -2:]))
    return Claim(
        "The error of rounds on their own pairs stops at a floor that falls as 1/\u221aN.",
        "ours",
        intervals.covers(floor, -0.5),
        f"slope of the mean log error of the last {ROUNDS - ROUNDS // 2} rounds over log N, N "
        f"= {', '.join(f'{n:,}' for n in ABOVE)}: {alignment.tell(floor)}; between the last "
        f"two alone {alignment.tell(end)}: just above the threshold the floor is higher than "
        "that",
        ("coverage",),
    )


def _second_round_brings_more(errors: Mapping[tuple[str, int], np.ndarray]) -> Claim:
    steps = {
        pairs: [
            Interval.of(np.log(errors[FRESH, pairs][:, i + 1] / errors[FRESH, pairs][:, i]))
            for i in range(4)
        ]
        for pairs in PAIRS[2:]
    }
    second = [steps[pairs][0] for pairs in ABOVE]
    alone = -float(np.log(2.0)) / 2.0  # what twice the pairs bring by themselves
    return Claim(
        "Before the floor a round brings more than its pairs alone would: the second "
        f"multiplies the error by less than 1/\u221a2 (N from {ABOVE[0]:,} on).",
        "ours",
        True
        if all(x.high < alone for x in second)
        else (False if any(x.low > alone for x in second) else None),
        "error after a round over that before it, rounds 2 to 5: "
        + "; ".join(
            f"N = {n:,}: {alignment.tell_ratio(each[0])}, "
            + ", ".join(say(float(np.exp(x.mean)), 2) for x in each[1:])
            for n, each in steps.items()
        )
        + ". The floor is reached in two to five rounds, too few to tell a geometric fall "
        "from another fast one",
        ("coverage",),
    )


def _offline_falls(errors: Mapping[tuple[str, int], np.ndarray]) -> Claim:
    turns = np.log(np.arange(2, ROUNDS + 1))

    def falls(way: str) -> dict[int, Interval]:
        """Slope of log error over log pairs, from the second round on."""
        return {
            pairs: Interval.of(alignment.slopes(turns, np.log(errors[way, pairs][:, 1:])))
            for pairs in ABOVE
        }

    def told(slopes: dict[int, Interval]) -> str:
        return "; ".join(f"N = {n:,}: {alignment.tell(x)}" for n, x in slopes.items())

    offline, accumulated = falls(OFFLINE), falls(ALL)
    return Claim(
        "Offline the error falls as one over the root of the pairs, from the second round on "
        f"(N from {ABOVE[0]:,} on).",
        "ours",
        all(intervals.covers(x, -0.5) for x in offline.values()),
        f"slope of log error over log pairs: {told(offline)}; on-policy with all pairs so far: "
        + told(accumulated),
        ("coverage",),
    )


def _agent_has_the_exact_error(found: Found) -> Claim:
    full = _beside(found, "full", FULL)
    return Claim(
        "The suite's agent on_policy_dpo has the error of the exact fit, within a factor of "
        "1.5, where its fit comes to an end.",
        "ours",
        True
        if max(abs(full.low), abs(full.high)) < np.log(1.5)
        else (None if full.low < np.log(1.5) and full.high > -np.log(1.5) else False),
        f"ratio of errors after {AGENT_ROUNDS['full']} rounds of {FULL['num_prompts']:,} "
        f"pairs, on pairs of its own: {alignment.tell_ratio(full)}",
        ("coverage",),
    )


def _full_fits_are_worse_where_pairs_are_few(found: Found) -> Claim:
    helped = compare(
        {
            f"{way}, N = {n}": np.log(
                found.ridges[way, n, RIDGES[-1]] / found.ridges[way, n, alignment.RIDGE]
            )
            for way in (OFFLINE, FRESH)
            for n in PAIRS[1:3]
        }
    )
    early = _beside(found, "early", EARLY)
    return Claim(
        f"Where pairs are few (N = {PAIRS[1]} and {PAIRS[2]:,}) the fit to the end is the "
        "worse one: a ridge of one pair has a smaller error.",
        "ours",
        intervals.agree(helped, -1),
        f"ratio of errors after {ROUNDS} rounds, ridge {RIDGES[-1]:g} over "
        f"{alignment.RIDGE:g}: "
        + alignment.words(helped, alignment.tell_ratio)
        + f". So does an agent that is stopped after {EARLY['num_epochs']} epochs: its error "
        f"over the exact fit's after {AGENT_ROUNDS['early']} rounds of "
        f"{EARLY['num_prompts']:,} pairs is {alignment.tell_ratio(early)}",
        ("coverage",),
    )


def _beside(found: Found, name: str, settings: Mapping[str, Any]) -> Interval:
    """Log ratio of the agent's last error to the exact fit's of the same round."""
    agent, turn = found.agents[name][:, -1], AGENT_ROUNDS[name] - 1
    exact = found.errors[FRESH, settings["num_prompts"]][: len(agent), turn]
    return Interval.of(np.log(agent / exact))


def _figure(found: Found, seeds: int) -> Figure:
    panels = []
    turns = np.arange(1, ROUNDS + 1)
    agents: dict[int, np.ndarray] = {
        s["num_prompts"]: found.agents[n] for n, s in (("full", FULL), ("early", EARLY))
    }
    for pairs in (PAIRS[0], PAIRS[2], PAIRS[3], PAIRS[4]):
        lines = [
            band(way, pairs * turns, found.errors[way, pairs], i, marker="o", logarithmic=True)
            for i, way in enumerate(WAYS)
        ]
        if pairs in agents:
            x = pairs * np.arange(1, agents[pairs].shape[1] + 1)
            lines.append(
                band("agent on_policy_dpo", x, agents[pairs], 3, "", "s", logarithmic=True)
            )
        panels.append(
            Panel(
                f"N = {pairs:,} pairs a round",
                "pairs in all",
                "max |pi - pi*|",
                lines,
                log_x=True,
                log_y=True,
                limits=(3e-3, 1.0),
            )
        )
    return Figure(
        "coverage",
        f"Error after each of {ROUNDS} rounds at equal numbers of pairs: geometric means over "
        f"{seeds} seeds with 95 % intervals. The agent's fit comes to its end at N = "
        f"{FULL['num_prompts']:,}, and is stopped early at N = {EARLY['num_prompts']:,}.",
        panels,
    )


def _tables(found: Found) -> list[Table]:
    rows: list[tuple[Value, ...]] = []
    for (way, pairs), errors in found.errors.items():
        for turn in (0, 1, 3, ROUNDS - 1):
            error = (float(np.exp(x)) for x in Interval.of(np.log(errors[:, turn])))
            gap = Interval.of(found.gaps[way, pairs][:, turn])
            rows.append((way, pairs, turn + 1, pairs * (turn + 1), *error, *gap))
    for name, settings in (("full", FULL), ("early", EARLY)):
        pairs, errors = settings["num_prompts"], found.agents[name]
        error = (float(np.exp(x)) for x in Interval.of(np.log(errors[:, -1])))
        turns, nothing = errors.shape[1], (None, None, None)
        label = f"agent on_policy_dpo, {settings['num_epochs']} epochs"
        rows.append((label, pairs, turns, pairs * turns, *error, *nothing))
    ridges: list[tuple[Value, ...]] = [
        (way, pairs, ridge, *(float(np.exp(x)) for x in Interval.of(np.log(errors))))
        for (way, pairs, ridge), errors in found.ridges.items()
    ]
    return [
        Table(
            "coverage",
            "Error max |pi - pi*| (geometric mean over seeds), and reward of pi* minus that of the "
            "policy; 95 % intervals by Student's t",
            (
                *("fit", "N", "round", "pairs in all", "error", "from", "to"),
                *("reward gap", "from", "to"),
            ),
            rows,
        ),
        Table(
            "coverage_ridge",
            f"Error after {ROUNDS} rounds by the ridge of the fit, in pairs",
            ("fit", "N", "ridge", "error", "from", "to"),
            ridges,
        ),
    ]
