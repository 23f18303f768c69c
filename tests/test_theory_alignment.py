"""The studies of alignment: their exact helpers against other ways, and each study in small."""

import functools
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from agents.language import dpo, reinforce
from envs.language import bandit
from experiments.comparing import intervals
from experiments.comparing.intervals import Interval
from experiments.theory import __main__ as program
from experiments.theory import (
    alignment,
    coverage,
    drawing,
    dual_ascent,
    dual_gates,
    equal_kl,
    group_size,
    keeping,
    overoptimisation,
    page,
    regression,
    tiny_gates,
    tiny_steps,
    zeroth_learning,
    zeroth_order,
    zeroth_signal,
)
from experiments.theory.options import CONTROL, STUDIES, Options
from experiments.theory.study import Study
from rgpo_jax import gates
from rgpo_jax.language import pair_targets, targets
from rgpo_jax.language.world import all_log_probs


def test_the_studies_of_alignment_are_made_where_they_are_named():
    assert Options().studies == CONTROL
    assert len(CONTROL) == 6 and len(SMALL) == 8
    assert STUDIES[:6] == CONTROL and set(STUDIES[6:]) == set(SMALL)


# Exact fits.


def problem(seeds=3, arms=4, pairs=60, seed=0):
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(seeds, arms))
    reference = alignment.softmax(rng.normal(size=(seeds, arms)))
    return reference, reward, alignment.draw_wins(rng, reference, reward, pairs)


@pytest.mark.parametrize(("eta", "beta"), [(0.0, 0.5), (0.3, 0.5), (0.05, 0.05)])
def test_the_exact_fit_is_the_least_of_the_loss_of_single_pairs(eta, beta):
    reference, _, wins = problem()
    start = np.random.default_rng(1).normal(size=reference.shape)
    found = alignment.exact_fit(wins, reference, beta, eta, start, ridge=0.1)
    for q, counts, begin, r in zip(reference, wins, start, found, strict=True):
        winners, losers = alignment.listed(counts)
        assert len(winners) == 60

        def loss(x, q=q, begin=begin, winners=winners, losers=losers):
            log_pi = np.log(q) + x / beta
            log_pi = log_pi - np.log(np.sum(np.exp(log_pi)))
            log_ratio = log_pi - np.log(q)
            each = np.logaddexp(0.0, -beta * (log_ratio[winners] - log_ratio[losers]))
            each = each - eta * beta * log_pi[winners]
            return np.sum(each) + 0.05 * np.sum(np.square(x - begin))

        least = optimize.minimize(loss, np.zeros(len(q)), method="BFGS", options={"gtol": 1e-9})
        np.testing.assert_allclose(r, least.x, atol=1e-4)


def test_where_a_fit_begins_changes_nothing():
    reference, _, wins = problem()
    args = (wins, reference, 0.1, 0.02)
    once = alignment.exact_fit(*args)
    again = alignment.exact_fit(*args, begin=once + np.array([3.0, -2.0, 0.0, 1.0]))
    np.testing.assert_allclose(once, again, atol=1e-6)


def test_with_pairs_without_end_the_fit_is_the_target():
    """Expected counts take the place of drawn ones."""
    reference, reward, _ = problem(seeds=1)
    q, r = reference[0], reward[0]
    wins = 2.0 * np.outer(q, q) * expit(r[:, None] - r[None, :]) * 1e6
    fitted = alignment.exact_fit(wins[None])[0]
    np.testing.assert_allclose(fitted - fitted.mean(), r - r.mean(), atol=1e-5)
    regular = alignment.exact_fit(wins[None], reference, beta=0.5, eta=0.3)[0]
    policy = alignment.softmax(np.log(q) + regular / 0.5)
    np.testing.assert_allclose(policy, pair_targets.rpo_policy(q, r, 0.5, 0.3), atol=1e-5)


def test_pairs_are_drawn_as_often_as_the_model_says():
    rng = np.random.default_rng(0)
    policy, reward = np.array([[0.5, 0.3, 0.2]]), np.array([[0.0, 1.0, -1.0]])
    wins = alignment.draw_wins(rng, policy, reward, 200_000)[0]
    assert wins.sum() == 200_000
    expected = 2 * np.outer(policy, policy) * expit(reward.T - reward)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(wins[off] / 200_000, expected[off], atol=4e-3)


def test_an_agent_that_is_given_pairs_comes_to_their_exact_fit():
    reference, _, wins = problem(pairs=400)
    lists = [alignment.listed(x) for x in wins]
    winners, losers = (jnp.asarray(np.stack(x)) for x in zip(*lists, strict=True))

    def build(one):
        q, winners, losers = one
        world = bandit.of(jnp.log(q)[None], None)
        data = alignment.pairs_of(jnp.zeros(400, jnp.int32), winners, losers)
        settings = {"num_updates": 300, "num_prompts": 400, "kl_coefficient": 0.5}
        return alignment.setup(dpo, world, data, learning_rate=0.05, max_grad_norm=1e6, **settings)

    problems = (jnp.asarray(reference, jnp.float32), winners, losers)
    found = alignment.train(build, problems, alignment.keys_of(0, 3), 300, 1)[0, :, -1, 0]
    exact = alignment.softmax(np.log(reference) + alignment.exact_fit(wins) / 0.5)
    np.testing.assert_allclose(found, exact, atol=2e-3)


def test_runs_side_by_side_are_those_of_the_agent_alone():
    world = bandit.make(num_prompts=2)
    made = alignment.setup(reinforce, world, num_updates=4, learning_rate=0.1)
    keys = alignment.keys_of(3, 2)
    rates = {"learning_rate": [0.05, 0.2]}
    found = alignment.train(lambda _: made, jnp.zeros(2), keys, 4, 2, rates)
    assert found.shape == (2, 2, 3, 2, 5)
    state = made.agent.init(keys[1], world.frozen, learning_rate=0.2)
    for _ in range(4):
        state, _ = made.agent.step(state, world.frozen, world.prompts)
    alone = jnp.exp(all_log_probs(world, state.learner.params, world.frozen))
    np.testing.assert_allclose(found[1, 1, -1], alone, atol=1e-5)
    told = []
    in_turn = alignment.train(lambda _: made, jnp.zeros(2), keys, 4, 2, rates, told.append)
    np.testing.assert_allclose(in_turn, found, atol=1e-5)
    assert told == [0.25, 0.5, 0.75, 1.0]


# Comparisons.


def test_comparisons_by_hand():
    rng = np.random.default_rng(0)
    far, none = rng.normal(3.0, 1.0, 12), rng.normal(0.0, 1.0, 12)
    tests = intervals.compare({"far": far, "none": none, "same": np.zeros(12)})
    ps = [stats.ttest_1samp(x, 0.0).pvalue for x in (far, none)]
    assert tests[0].p == pytest.approx(3 * ps[0])
    assert (tests[0].sign, tests[1].sign, tests[2].sign) == (1, 0, 0)
    low, high = stats.t.interval(0.95, 11, far.mean(), stats.sem(far))
    assert tests[0].interval == pytest.approx(Interval(far.mean(), low, high))
    assert intervals.agree(tests[:1], 1) is True
    assert intervals.agree(tests[:1], -1) is False
    assert intervals.agree(tests, 1) is None


def test_slopes_and_bands():
    x = np.log([1.0, 2.0, 4.0])
    y = np.stack([1.0 - 0.5 * x, 2.0 * x])
    np.testing.assert_allclose(alignment.slopes(x, y), [-0.5, 2.0])
    line = alignment.band("a", x, np.exp(y), 0, logarithmic=True)
    np.testing.assert_allclose(line.y, np.exp(y.mean(axis=0)))
    assert np.all(line.low <= line.y) and np.all(line.y <= line.high)


def test_divergence_is_that_of_scipy():
    p, q = np.array([0.2, 0.8, 0.0]), np.array([0.5, 0.25, 0.25])
    assert alignment.divergence(p, q) == pytest.approx(stats.entropy(p, q))


# Zeroth order.


@pytest.mark.parametrize(("judges", "trim"), [(1, 0.05), (3, 0.2), (31, 0.05)])
def test_the_binomial_sums_are_the_means_of_draws(judges, trim):
    rng = np.random.default_rng(0)
    gap = np.array([-1.0, 0.3, 2.0])
    share = rng.binomial(judges, expit(gap), (200_000, 3)) / judges
    clipped = np.clip(share, trim, 1.0 - trim)
    logit = np.log(clipped / (1.0 - clipped))
    for power in (1, 2):
        values = np.power(logit, power)
        error = 5.0 * values.std(axis=0) / math.sqrt(200_000) + 1e-9
        expected = zeroth_signal.expected_logit(gap, judges, trim, power)
        assert np.all(np.abs(values.mean(axis=0) - expected) < error)
    sign = zeroth_signal.expected_sign(expit(gap), judges)
    drawn = np.sign(share - 0.5).mean(axis=0)
    np.testing.assert_allclose(drawn, sign, atol=0.01)


def test_the_mean_estimate_is_the_gradient_of_what_pairs_make_of_rewards():
    rng = np.random.default_rng(0)
    logits, reward = rng.normal(size=5), rng.normal(size=5)
    pi = alignment.softmax(logits)
    gap = reward[:, None] - reward[None, :]
    advantage = zeroth_signal.expected_logit(gap, 3, 0.2)
    step = 1e-5

    def mean(theta):
        return alignment.softmax(theta) @ advantage @ pi

    numeric = np.array(
        [(mean(logits + step * e) - mean(logits - step * e)) / (2 * step) for e in np.eye(5)]
    )
    truth = pi * (reward - pi @ reward)
    found = zeroth_signal.signal_of(pi, reward, "each", 3, 0.2, 0.5)
    assert found.scale == pytest.approx(numeric @ truth / (truth @ truth), rel=1e-6)
    cosine = numeric @ truth / np.linalg.norm(numeric) / np.linalg.norm(truth)
    assert found.cosine == pytest.approx(cosine, rel=1e-6)
    exact = zeroth_signal.signal_of(pi, reward, "each", 1000, 1e-6, 0.5)
    assert exact.scale == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ValueError, match="one judge"):
        zeroth_signal.signal_of(pi, reward, "pooled", 3, 0.05, 0.5)


def test_the_directions_needed_are_those_of_draws():
    """E|g|^2 / |E g|^2 of single directions, from the suite's own estimate."""
    rng = np.random.default_rng(1)
    pi, reward, mu = alignment.softmax(rng.normal(size=5)), rng.normal(size=5), 0.3
    found = zeroth_signal.signal_of(pi, reward, "pooled", 1, 0.05, mu)
    theta, value = jnp.log(pi), jnp.asarray(reward)

    def of_direction(key):
        keys = jax.random.split(key, 4)
        v = zeroth_signal.library.on_sphere(keys[0], 5)
        shape = (zeroth_signal.PAIRS,)
        first = jax.random.categorical(keys[1], theta + mu * v, shape=shape)
        second = jax.random.categorical(keys[2], theta, shape=shape)
        wins = zeroth_signal.library.share_of_wins(keys[3], value[first] - value[second], 1)
        advantage = zeroth_signal.library.advantage_of(wins, "pooled", 0.05)
        return zeroth_signal.library.estimate(v[None], advantage[None], mu)

    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(of_direction))(keys), np.float64)
    truth = pi * (reward - pi @ reward)
    along = drawn @ truth / (truth @ truth)
    assert abs(along.mean() - found.scale) < 4.0 * along.std() / math.sqrt(len(along))
    # Of so few draws the mean is mostly noise: how long it is, the closed form says.
    length = found.scale * np.linalg.norm(truth) / found.cosine
    needed = np.mean(np.sum(np.square(drawn), axis=1)) / length**2
    assert needed == pytest.approx(found.directions, rel=0.1)  # four standard errors


def test_the_suites_estimate_has_the_closed_forms_mean():
    one = zeroth_learning.problems(0, 1, 5)
    exact, gap, error = zeroth_signal.drawn(one.reference[0], one.reward[0], 3, 0.2, 0, 5000)
    assert abs(gap) < 4 * error < 0.2 * abs(exact)


# Group size.


@pytest.mark.parametrize("kl", group_size.KLS)
@pytest.mark.parametrize("size", [2, 8])
def test_grpo_settles_where_the_library_says(kl, size):
    one = group_size.FOUR
    config = group_size.grpo.Config(kl=kl, group_size=size, kl_coefficient=one.beta)
    library = targets.stationary_policy(
        config, gates.ppo(), False, one.reference[None], one.reward[None]
    )
    np.testing.assert_allclose(group_size.settled(one, kl, size), library[0], atol=1e-9)


def test_two_arms_have_closed_forms():
    q, beta = group_size.TWO.reference[0], group_size.TWO.beta
    for size, form in ((2, group_size.two_arms_of_two), (None, group_size.two_arms_of_many)):
        found = group_size.settled(group_size.TWO, "published", size)[0]
        assert found == pytest.approx(form(q, beta), abs=1e-9)
    assert group_size.two_arms_of_many(0.3, 1.0) == pytest.approx(0.739, abs=5e-4)


def test_grpo_comes_to_where_it_settles():
    found = group_size.trained(group_size.FOUR, "published", 4, 0, 3)
    exact = group_size.settled(group_size.FOUR, "published", 4)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found.mean(axis=0), exact, atol=group_size.AGREES)


# Over-optimisation and regression.


def test_gold_at_a_kl_is_met_where_it_is_first_crossed():
    kl = np.array([[0.0, 0.0], [1.0, 0.1], [0.5, 0.2], [2.0, 0.3]])
    gold = np.array([[0.0, 0.0], [4.0, 1.0], [9.0, 2.0], [9.0, 3.0]])
    path = overoptimisation.Path(kl, gold, gold)
    np.testing.assert_allclose(path.at(0.5), [2.0, np.nan])
    np.testing.assert_allclose(path.of_seeds(1).gold[:, 0], gold.mean(axis=1))


def test_the_loss_of_a_policy_is_what_it_lacks_in_regularised_reward():
    for world in regression.worlds().values():
        exact = regression.Exact.of(world)
        policy = exact.frontier.reference

        def value(policy, exact=exact):
            return exact.reward(policy) - regression.BETA * exact.kl(policy)

        assert exact.loss(policy) == pytest.approx(value(exact.target) - value(policy))
        assert exact.loss(exact.target) == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_coverage_is_less_where_pairs_are_more():
    rng = np.random.default_rng(0)
    one = coverage.problems(rng, 40)
    errors = [
        one.error(coverage.rounds(rng, one, coverage.ALL, pairs, 3)[-1]).mean()
        for pairs in (64, 65_536)
    ]
    assert errors[1] < 0.05 < errors[0]
    np.testing.assert_allclose(one.policy(one.reward), one.target)


def test_rates_are_chosen_on_other_seeds_than_are_told(monkeypatch):
    monkeypatch.setattr(zeroth_learning, "TUNING_SEEDS", 2)
    share = np.zeros((2, 4, 3))
    share[1, :2, 1] = 1.0  # the second rate is better for the tuning seeds, half way
    share[0, :2, 2] = 1.0  # and the first at the end
    share[:, 2:] = np.arange(12).reshape(2, 2, 3)
    found = zeroth_learning.Learnt(share, np.array([0, 4, 8]))
    np.testing.assert_array_equal(found.at(5), share[1, 2:, 1])
    np.testing.assert_array_equal(found.at(8), share[0, 2:, 2])
    np.testing.assert_array_equal(found.curve, share[0, 2:])


def test_a_row_of_the_zeroth_order_study_learns(monkeypatch):
    for setting, value in {"UPDATES": 40, "POINTS": 10, "TUNING_SEEDS": 2}.items():
        monkeypatch.setattr(zeroth_learning, setting, value)
    found = zeroth_learning.learn(zeroth_learning.ROWS[zeroth_learning.BOTH], 3, 0, 4)
    assert found.share.shape == (3, 6, 11)
    np.testing.assert_array_equal(found.updates, np.arange(11) * 4)
    np.testing.assert_allclose(found.share[:, :, 0], 0.0, atol=1e-6)
    assert found.at(40).mean() > 0.2


def test_a_row_of_the_regression_study_learns(monkeypatch):
    monkeypatch.setattr(regression, "TUNING_SEEDS", 2)
    world = regression.worlds()["bandit"]
    exact = regression.Exact.of(world)
    found = regression.learn(regression.REBEL, world, exact, 0, 3)
    assert found.loss.shape == (3, regression.POINTS + 1)
    np.testing.assert_allclose(found.kl[:, 0], 0.0, atol=1e-6)
    assert np.all(found.loss[:, -1] < 0.2 * found.loss[:, 0])
    assert found.rate in regression.RATES


# Each study, in small.


class Nothing:
    """Progress that is told to nobody, and keeps nothing."""

    def __call__(self, share):
        assert 0.0 <= share <= 1.0 + 1e-9

    def remember(self, name, compute):
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum()  # a file's
        arrays = compute()
        assert all(isinstance(x, np.ndarray) for x in arrays.values())
        return arrays


def learnt(row, arms, seed, seeds):
    """In the place of runs, which have a test of their own."""
    rng = np.random.default_rng(arms)
    share = rng.uniform(size=(3, zeroth_learning.TUNING_SEEDS + seeds, 76))
    return zeroth_learning.Learnt(share, np.arange(76) * 4)


def row(name, world, exact, seed, seeds):
    rng = np.random.default_rng(len(name))
    return regression.Row(0.1, *rng.uniform(0.1, 0.4, size=(4, seeds, 31)))


def rising(rng, largest, shape):
    """Paths from 0 in random steps up to the largest."""
    steps = rng.uniform(0.0, largest, size=shape)
    return np.cumsum(steps, axis=-1) - steps[..., :1]


def a_row(row, world, epochs, frontiers, problems, keys, tuning_seeds):
    """In the place of runs of a row, which have a test of their own."""
    rng = np.random.default_rng(len(row) + epochs)
    combinations, levels = len(dual_gates.COEFFICIENTS) * len(dual_gates.RATES), dual_gates.LEVELS
    number = len(frontiers) - tuning_seeds
    found = {}
    for noise in dual_gates.NOISES:
        settings = rng.integers(combinations, size=len(levels))
        chosen = equal_kl.Chosen(settings, *rng.uniform(0.1, 0.9, (2, number, len(levels))))
        last = equal_kl.Paths(*rng.uniform(0.1, 1.0, (2, combinations, number)))
        found[dual_gates.Case(world, noise, epochs)] = dual_gates.Found(chosen, last)
    return found


def a_transformers_row(row, frontiers, problems, keys, told):
    rng = np.random.default_rng(len(row))
    number, levels = len(frontiers) - tiny_gates.TUNING_SEEDS, len(tiny_gates.LEVELS)
    settings = rng.integers(len(tiny_gates.COEFFICIENTS) * len(tiny_gates.RATES), size=levels)
    chosen = equal_kl.Chosen(settings, *rng.uniform(0.1, 0.9, (2, number, levels)))
    path = rising(rng, 0.5, (2, number, 26))
    return tiny_gates.Found(chosen, chosen.share.mean(axis=1), path)


def a_transformers_end(row, frontiers, problems, keys, told):
    rng = np.random.default_rng(len(row))
    kl, reward = rising(rng, 0.5, (2, len(tiny_steps.COEFFICIENTS), len(frontiers), 4))
    return equal_kl.Paths(kl[..., -1], reward[..., -1])


def an_ascent(dual, sharpness, frontiers):
    """In the place of exact ascents, which have a test of their own."""
    rng = np.random.default_rng(len(dual) + int(sharpness))
    return equal_kl.Paths(*rising(rng, 0.1, (2, 1, len(frontiers), 9)))


def once(run):
    """In the place of a run with other numbers that of the first."""
    found = []

    def first(*args, **settings):
        if not found:
            found.append(run(*args, **settings))
        return found[0]

    return first


def near_the_exact(problem, kl, size, seed, seeds):
    """In the place of trained policies, which have a test of their own."""
    rng = np.random.default_rng(size)
    exact = group_size.settled(problem, kl, size)
    return alignment.softmax(np.log(exact) + 0.01 * rng.normal(size=(seeds, len(exact))))


SMALL = {  # with no row trained, bandits do for transformers
    "tiny_steps": (tiny_steps, {"learn": a_transformers_end, "tiny": bandit}),
    "tiny_gates": (tiny_gates, {"learn": a_transformers_row, "TUNING_SEEDS": 2, "tiny": bandit}),
    "dual_gates": (dual_gates, {"learn": a_row, "TUNING_SEEDS": 2}),
    "coverage": (
        coverage,
        {
            "DRAWS": 2,
            "ROUNDS": 5,
            "AGENT_ROUNDS": {"full": 4, "early": 4},
            "RIDGES": (alignment.RIDGE, 1.0),
            "rounds": functools.partial(coverage.rounds, number=5),
            "FULL": {"num_prompts": 256, "num_epochs": 2, "learning_rate": 0.1},
            "EARLY": {"num_prompts": 64, "num_epochs": 2, "learning_rate": 0.05},
        },
    ),
    "overoptimisation": (
        overoptimisation,
        {"ARMS": 8, "PAIRS": 60, "REPEATS": 2, "_UPDATES": 10, "BETAS": np.array([2.0, 0.1])},
    ),
    "zeroth_order": (zeroth_order, {"SIZES": (4, 5, 6), "LEARNT": (4, 6), "learn": learnt}),
    "group_size": (group_size, {"SIZES": (2, 4), "trained": near_the_exact}),
    "regression": (regression, {"learn": row}),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_study_in_small(name, monkeypatch):
    module, settings = SMALL[name]
    for setting, value in settings.items():
        monkeypatch.setattr(module, setting, value)
    if name == "overoptimisation":  # its agent fits fewer pairs in fewer steps
        monkeypatch.setattr(module, "by_agent", functools.partial(module.by_agent, updates=5))
        monkeypatch.setattr(module, "online", once(module.online))
    if name == "coverage":
        monkeypatch.setattr(module, "by_agent", once(module.by_agent))
    if name == "dual_gates":
        monkeypatch.setattr(dual_ascent, "ascend", an_ascent)
    if name == "zeroth_order":  # has a test of its own
        monkeypatch.setattr(module, "drawn", lambda *args: (1.0, 0.01, 0.01))
    study = module.run(Options(seeds=2), Nothing())
    assert isinstance(study, Study)
    assert study.claims and all(claim.evidence for claim in study.claims)
    names = {figure.name for figure in study.figures} | {table.name for table in study.tables}
    assert all(part.startswith(name) for part in names)
    assert {figure for claim in study.claims for figure in claim.figures} <= names
    for figure in study.figures:
        _, rows = drawing.numbers(figure)
        assert len(rows) > 10
    for table in study.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    made = {"device": "", "machine": "", "versions": {"jax": "", "python": ""}, "git_commit": None}
    content = page.render({name: study}, made, {}).decode()
    assert study.title in content
    assert content.count("<svg ") == len(study.figures)


def test_a_study_that_was_stopped_goes_on_after_its_rows(tmp_path, monkeypatch):
    learnt = []

    def learn(row, *args):
        learnt.append(row)
        if len(learnt) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return a_transformers_row(row, *args)

    rows = ("ppo", "rgpo-none", *equal_kl.DUAL, *equal_kl.REGRESSIONS)  # of which claims are
    for setting, value in {"TUNING_SEEDS": 2, "learn": learn, "ALL": rows, "tiny": bandit}.items():
        monkeypatch.setattr(tiny_gates, setting, value)
    args = ["--studies", "tiny_gates", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert program.main(args) == 128 + signal.SIGTERM
    assert program.main(args) == 0
    # Each once, but for the one that was cut off.
    assert learnt == [*tiny_gates.ALL[:3], *tiny_gates.ALL[2:]]
    learnt.clear()
    learnt += [""] * 3
    whole = tmp_path / "whole"
    assert program.main([*args[:-1], str(whole)]) == 0
    for name in ("tiny_gates.csv", "claims.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "out" / keeping.FOLDER).exists()
