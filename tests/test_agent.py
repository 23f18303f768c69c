"""Whole agents on probes: each learns what a probe asks, under vmap, scan and sweeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import (
    ACTION,
    ACTIONS,
    DISCOUNT,
    DISCOUNT_FACTOR,
    TABLES,
    VALUES,
    Tabular,
    Target,
    Targets,
)

import agents
import envs
from rgpo_jax import acting, keys, rollout, train

# Those that learn in ways of their own: PPO and REINFORCE differ from RGPO in the gate alone.
LEARNERS = ("rgpo", "trpo", "awr")
EVERY_LEARNER = [
    *LEARNERS,
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("ppo", "reinforce")),
]
PROBES = tuple(TABLES)
NUM_SEEDS = 2
NUM_UPDATES = 40
SETTINGS = {
    "num_envs": 4,
    "num_steps": 16,
    "num_epochs": 4,
    "num_minibatches": 2,
    "learning_rate": 2e-2,
    "discount": DISCOUNT_FACTOR,
    "hidden_sizes": (16,),
    "total_steps": 4 * 16 * NUM_UPDATES,
}

STACKED = jax.tree.map(lambda *x: jnp.stack(x), *TABLES.values())
OBSERVATIONS = jnp.eye(2)


def make(name, env, **settings):
    module = agents.load(name)
    return module.make(env, module.Config(**(SETTINGS | settings)))


@functools.cache
def trainer(name):
    """(tables, keys, number of updates, overrides) -> what 12 runs gave, in one program.

    The environment's tables are traced, like seeds and hyper-parameters, so that all tests of an
    agent share one compilation.
    """

    def run(tables, key, num_updates, overrides):
        agent = make(name, Tabular(tables))
        state, report = train.make_chunk(agent)(agent.init(key, **overrides), num_updates)
        params, network = state.learner.params, agent.learner.network
        return {
            "params": params,
            "value": network.value(params["critic"], OBSERVATIONS),
            "probability": jnp.exp(network.policy(params["actor"], OBSERVATIONS).log_probs),
            "metrics": report.metrics,
            "broken_at": report.broken_at,
        }

    return jax.jit(jax.vmap(run, in_axes=(0, 0, None, 0)))


# Two seeds of each probe, side by side.
SIDE_BY_SIDE = jax.tree.map(lambda x: jnp.repeat(x, NUM_SEEDS, axis=0), STACKED)
NUM_RUNS = NUM_SEEDS * len(PROBES)
KEYS = jax.random.split(jax.random.key(0), NUM_RUNS)


def overrides(**values):
    """Hyper-parameters of 12 runs; defaults but for those given."""
    defaults = {
        "learning_rate": SETTINGS["learning_rate"],
        "entropy_coefficient": 0.01,
        "discount": DISCOUNT_FACTOR,
    }
    return {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (NUM_RUNS,))
        for name, value in (defaults | values).items()
    }


@functools.cache
def trained(name):
    # RGPO's sweep below varies the sharpness too, in the same program.
    own = {"sharpness": 4.0} if name == "rgpo" else {}
    report = trainer(name)(SIDE_BY_SIDE, KEYS, NUM_UPDATES, overrides(**own))
    return jax.tree.map(np.asarray, report)


def of_probe(name, probe):
    first = PROBES.index(probe) * NUM_SEEDS
    return jax.tree.map(lambda x: x[first : first + NUM_SEEDS], trained(name))


@pytest.mark.parametrize("probe", [p for p in PROBES if VALUES[p] != (None, None)])
@pytest.mark.parametrize("name", EVERY_LEARNER)
def test_values_are_exact(name, probe):
    report = of_probe(name, probe)
    for observed, exact in enumerate(VALUES[probe]):
        if exact is not None:
            np.testing.assert_allclose(report["value"][:, observed], exact, atol=0.05 * abs(exact))


@pytest.mark.parametrize("probe", [p for p in PROBES if ACTIONS[p] != (None, None)])
@pytest.mark.parametrize("name", EVERY_LEARNER)
def test_the_best_action_is_found(name, probe):
    report = of_probe(name, probe)
    for observed, best in enumerate(ACTIONS[probe]):
        if best is not None:
            assert report["probability"][:, observed, best].min() > 0.9
    # The last episodes show it; the mean over all updates lies between that of chance, 0, and 1.
    assert np.all(report["metrics"]["episode_return"] > 0.5)


@pytest.mark.parametrize("name", EVERY_LEARNER)
def test_episodes_are_counted_whole(name):
    steps = SETTINGS["total_steps"]
    for probe, length, reward in (("value", 1, 1), ("discount", 2, 1), ("endless", 4, 4)):
        metrics = of_probe(name, probe)["metrics"]
        np.testing.assert_array_equal(metrics["episodes"], steps // length)
        np.testing.assert_allclose(metrics["episode_length"], length)
        np.testing.assert_allclose(metrics["episode_return"], reward)


@pytest.mark.parametrize("name", EVERY_LEARNER)
def test_the_first_ratio_of_every_update_is_one(name):
    assert trained(name)["metrics"]["first_ratio_deviation"].max() < 1e-5


@pytest.mark.parametrize("name", EVERY_LEARNER)
def test_nothing_breaks(name):
    report = trained(name)
    np.testing.assert_array_equal(report["broken_at"], -1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(report["params"]))


def same_environment():
    return jax.tree.map(lambda x: jnp.stack([x] * NUM_RUNS), DISCOUNT)


def flat(params, run):
    return np.concatenate([np.ravel(leaf[run]) for leaf in jax.tree.leaves(params)])


def test_one_key_gives_one_run_bit_by_bit_and_another_key_another():
    keys = KEYS.at[1].set(KEYS[0])
    arguments = same_environment(), keys, 3, overrides(sharpness=4.0)
    first, second = (trainer("rgpo")(*arguments)["params"] for _ in range(2))
    runs = [flat(first, run) for run in range(NUM_RUNS)]
    for run in range(NUM_RUNS):
        np.testing.assert_array_equal(runs[run], flat(second, run))
    # Nor does the place among the vmapped seeds matter.
    np.testing.assert_array_equal(runs[0], runs[1])
    for other in runs[2:]:
        assert np.abs(runs[0] - other).max() > 1e-3


SWEEP = {
    "learning_rate": [1e-3, 1e-2, 3e-2],
    "sharpness": [1.0, 2.0, 16.0],
    "entropy_coefficient": [0.0, 0.1, 1.0],
    "discount": [0.0, 0.5, 0.99],
}


@functools.cache
def alone():
    """One run of 3 updates without vmap."""
    agent = make("rgpo", Tabular(DISCOUNT))

    def run(key, overrides):
        return train.make_chunk(agent)(agent.init(key, **overrides), 3)[0].learner.params

    return jax.jit(run)


def test_a_vmapped_sweep_is_its_separate_runs():
    values = {
        name: jnp.full(NUM_RUNS, column[0], jnp.float32).at[i * 3 : i * 3 + 3].set(column)
        for i, (name, column) in enumerate(SWEEP.items())
    }
    keys = jnp.broadcast_to(KEYS[0], (NUM_RUNS,))
    swept = trainer("rgpo")(same_environment(), keys, 3, values)["params"]
    for run in range(NUM_RUNS):
        single = alone()(KEYS[0], {name: column[run] for name, column in values.items()})
        expected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(single)])
        np.testing.assert_allclose(flat(swept, run), expected, rtol=0, atol=1e-5)
    # Each number does something: the runs of a column differ.
    for i in range(len(SWEEP)):
        first, *others = [flat(swept, i * 3 + j) for j in range(3)]
        for other in others:
            assert np.abs(first - other).max() > 1e-4, list(SWEEP)[i]


def test_an_override_is_what_the_config_would_have_said():
    env = Tabular(ACTION)
    changed = {name: column[1] for name, column in SWEEP.items()}
    state = jax.eval_shape(lambda key: make("rgpo", env).init(key, **changed), KEYS[0])
    by_config = make("rgpo", env, **changed).learner.hyperparameters
    by_override = make("rgpo", env).learner.hyperparameters.replace(
        **{name: jnp.float32(value) for name, value in changed.items()}
    )
    assert jax.tree.leaves(by_config) == jax.tree.leaves(by_override)
    assert jax.tree.structure(state.learner.hyperparameters) == jax.tree.structure(by_config)


def test_an_override_is_held_against_the_number_that_it_must_be_above():
    init = make("cispo", Tabular(ACTION)).init  # low is 0 there, high 5
    jax.eval_shape(lambda key: init(key, high=3.0), KEYS[0])
    for numbers in ({"low": 9.0}, {"high": 2.0, "low": 2.0}):
        with pytest.raises(ValueError, match=r"high = .*: expected a number above low = "):
            init(KEYS[0], **numbers)


def test_an_unknown_override_is_refused():
    with pytest.raises(TypeError, match="sharpnes"):
        make("rgpo", Tabular(ACTION)).init(KEYS[0], sharpnes=1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sharpness", -1.0),
        ("discount", 1.5),
        ("learning_rate", float("nan")),
        ("target_kl", -1.0),
    ],
)
def test_an_override_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}: expected"):
        make("rgpo", Tabular(ACTION)).init(KEYS[0], **{name: value})


@functools.cache
def many_seeds():
    """The agent and 256 seeds of it after 2 scanned steps."""
    agent = make("rgpo", Tabular(ACTION), num_steps=4, num_minibatches=1)

    @jax.jit
    def run(keys):
        states = jax.vmap(agent.init)(keys)
        return jax.vmap(lambda state: jax.lax.scan(agent.step, state, length=2))(states)

    return agent, *run(jax.random.split(jax.random.key(1), 256))


def test_256_seeds_are_one_vmap_and_steps_are_one_scan():
    _, states, metrics = many_seeds()
    assert {value.shape for value in metrics.values()} == {(256, 2)}
    np.testing.assert_array_equal(states.learner.updates, 2)
    runs = np.concatenate(
        [np.reshape(leaf, (256, -1)) for leaf in jax.tree.leaves(states.learner.params)], axis=1
    )
    assert np.isfinite(runs).all()
    assert len(np.unique(runs, axis=0)) == 256


def test_act_is_the_mode_or_a_sample():
    agent, states, _ = many_seeds()
    state = jax.tree.map(lambda leaf: leaf[0], states)
    network, actor = agent.learner.network, state.learner.params["actor"]
    observation = jnp.broadcast_to(OBSERVATIONS, (500, 2, 2))
    act = jax.jit(agent.act)
    policy = network.policy(actor, OBSERVATIONS)
    best = act(state, observation)
    assert best.shape == (500, 2)
    np.testing.assert_array_equal(best, np.broadcast_to(policy.mode(), (500, 2)))
    assert act(state, OBSERVATIONS[0]).shape == ()
    samples = act(state, observation, jax.random.key(0))
    np.testing.assert_allclose(samples.mean(0), np.exp(policy.log_probs)[:, 1], atol=0.1)
    np.testing.assert_array_equal(samples, act(state, observation, jax.random.key(0)))
    assert np.any(samples != act(state, observation, jax.random.key(1)))


def test_observations_may_be_lists_and_their_shape_is_checked():
    agent, states, _ = many_seeds()
    state = jax.tree.map(lambda leaf: leaf[0], states)
    listed = np.asarray(OBSERVATIONS).tolist()
    np.testing.assert_array_equal(agent.act(state, listed), agent.act(state, OBSERVATIONS))
    drawn = agent.sample(state, listed, jax.random.key(0))
    again = agent.sample(state, OBSERVATIONS, jax.random.key(0))
    np.testing.assert_array_equal(drawn.action, again.action)
    for act in (agent.act, agent.sample):
        with pytest.raises(ValueError, match=r"observation of shape \(3,\): expected \(2,\)"):
            act(state, np.zeros(3), jax.random.key(0))


def test_a_list_of_pixels_is_refused():
    pixels = np.zeros((2, 3, 3, 1), np.uint8)
    assert acting.as_observation(pixels, (3, 3, 1)).dtype == np.uint8
    with pytest.raises(ValueError, match=r"observation\['eye'\]: a list; expected an array"):
        acting.as_observation({"eye": pixels.tolist()}, {"eye": (3, 3, 1)})


class Mirror(Target):
    """Gives the same array twice, as its state and as what is seen of it."""

    def reset(self, key):
        _, observation = super().reset(key)
        return observation, observation


def test_a_states_memory_may_be_donated_and_the_agents_stays():
    agent = make("rgpo", Mirror())
    step = jax.jit(agent.step, donate_argnums=0)
    first = agent.init(jax.random.key(0))
    expected, _ = step(jax.tree.map(jnp.copy, first))
    for _ in range(2):  # the second starts from what the first may have taken along
        state, _ = step(agent.init(jax.random.key(0)))
        for ours, plain in zip(
            jax.tree.leaves(state.learner.params),
            jax.tree.leaves(expected.learner.params),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, plain)
    learner_state = agent.learner.init(jax.random.key(1), agent.learner.hyperparameters)
    jax.tree.map(lambda x: x.delete(), learner_state.hyperparameters)
    assert not any(x.is_deleted() for x in jax.tree.leaves(agent.learner.hyperparameters))


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"network": "gru"}),
        ("Pendulum-v1", {"normalize_observations": True, "normalize_rewards": True}),
    ],
)
@pytest.mark.parametrize("name", ["ppo", "trpo"])
def test_a_step_gives_the_types_that_it_takes_in_float64_too(name, env, settings, float64):
    agent = agents.load(name).make(envs.make(env), agents.load(name).Config(**settings))
    before = jax.eval_shape(agent.init, jax.random.key(0))
    after, _ = jax.eval_shape(agent.step, before)
    types = [[(x.shape, x.dtype) for x in jax.tree.leaves(state)] for state in (before, after)]
    assert types[0] == types[1]


def test_libraries_that_split_raw_keys_are_given_such_a_one():
    typed, other, rbg = (
        jax.random.key(seed, impl=kind) for seed, kind in ((0, None), (1, "rbg"), (2, "rbg"))
    )
    assert (keys.as_raw(typed) == jax.random.key_data(typed)).all()
    given = [keys.as_raw(key) for key in (other, rbg)]
    assert [x.shape for x in given] == [(2,), (2,)] and (given[0] != given[1]).any()
    jax.random.split(given[0])
    with jax.default_prng_impl("rbg"):
        assert (keys.as_raw(rbg) == jax.random.key_data(rbg)).all()
        jax.random.split(keys.as_raw(typed))


def test_an_old_styled_key_begins_the_same_run():
    agent = make("rgpo", Tabular(TABLES[PROBES[0]]))

    def begin(make_key):
        states = agent.init(make_key(3)), agent.learner.init(make_key(4))
        return [
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in jax.tree.leaves(states)
        ]

    both = jax.jit(lambda: [begin(make_key) for make_key in (jax.random.key, jax.random.PRNGKey)])
    for typed, raw in zip(*both(), strict=True):
        np.testing.assert_array_equal(typed, raw)
    keys = jax.vmap(jax.random.PRNGKey)(jnp.arange(2))
    after, _ = jax.eval_shape(lambda keys: jax.vmap(agent.step)(jax.vmap(agent.init)(keys)), keys)
    assert after.key.shape == (2,)


CONTINUOUS = {
    f"{policy}{'-state-dependent' * state_dependent}": {
        "policy": policy,
        "state_dependent_std": state_dependent,
    }
    for policy in ("normal", "tanh_normal")
    for state_dependent in (False, True)
}


@functools.cache
def archers(kind, name="rgpo"):
    """Three vmapped seeds of a policy that aims at targets within bounds of all sorts."""
    # The bonus holds std near 0.07: the error of a ratio is that of the mean over std, and a policy
    # that became deterministic would show float32's.
    steady = {"normalize_advantages": False, "entropy_coefficient": 0.01}
    steady |= {"num_envs": 8, "total_steps": 60 * 8 * 16}
    agent = make(name, Targets(), initial_std=0.5, **steady, **CONTINUOUS[kind])

    @jax.jit
    @jax.vmap
    def run(key):
        return jax.lax.scan(agent.step, agent.init(key), length=60)

    return agent, *run(jax.random.split(jax.random.key(0), 3))


def assert_targets_are_met(agent, states, metrics):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states.learner.params))
    actions = jax.vmap(agent.act, in_axes=(0, None))(states, jnp.ones(1))
    low, high = map(np.asarray, (Targets.action_space.low, Targets.action_space.high))
    # Within a twentieth of the interval.
    np.testing.assert_array_less(np.abs(actions - np.array(Targets.target)) / (high - low), 0.05)
    assert metrics["first_ratio_deviation"].max() < 1e-5
    assert np.isfinite(metrics["entropy"]).all()
    samples = jax.vmap(agent.act, in_axes=(0, None, 0))(
        states, jnp.ones((1000, 1)), jax.random.split(jax.random.key(1), 3)
    )
    assert samples.shape == (3, 1000, 3)
    assert ((low <= samples) & (samples <= high)).all()


# TRPO learns the last of them below: the two have both choices both ways. The others are slow.
KINDS = [
    kind if kind == "normal" else pytest.param(kind, marks=pytest.mark.slow) for kind in CONTINUOUS
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_continuous_policy_learns_within_bounds_of_all_sorts(kind):
    assert_targets_are_met(*archers(kind))


def test_a_continuous_mean_is_in_the_policys_own_units():
    agent, states, metrics = archers("normal")
    space = Targets.action_space
    own = 2 * (np.array(Targets.target) - space.low) / np.subtract(space.high, space.low) - 1
    for seed in range(3):
        actor = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states.learner.params["actor"])
        mean = agent.learner.network.policy(actor, jnp.ones(1)).mean
        np.testing.assert_allclose(mean, own, atol=0.1)
    returns = metrics["episode_return"]
    assert (returns[:, -1] > 0.5 * returns[:, 0]).all()


def test_continuous_samples_stay_within_the_bounds():
    agent, states, _ = archers("normal")
    state = jax.tree.map(lambda leaf: leaf[0], states)
    # The policy is a normal distribution and knows no bounds; the environment's are kept.
    wide = jax.tree.map(lambda leaf: leaf, state.learner.params)
    wide["actor"]["params"]["log_std"] = jnp.full(3, 3.0)
    state = state._replace(learner=state.learner._replace(params=wide))
    samples = jax.jit(agent.act)(state, jnp.ones((1000, 1)), jax.random.key(0))
    assert samples.shape == (1000, 3)
    space = agent.env.action_space
    low, high = np.float32(space.low), np.float32(space.high)
    assert ((low <= samples) & (samples <= high)).all()
    np.testing.assert_allclose(samples.min(axis=0), low, rtol=1e-6)
    np.testing.assert_allclose(samples.max(axis=0), high, rtol=1e-6)


def test_trpo_learns_a_tanh_normal_of_state_dependent_std():
    # Its Fisher-vector products differentiate the KL twice, through mean and std.
    agent, states, metrics = archers("tanh_normal-state-dependent", "trpo")
    assert_targets_are_met(agent, states, metrics)
    assert metrics["line_search_accepted"].mean() > 0.5
    assert metrics["trust_region_kl"].max() <= agent.config.max_kl


def test_bfloat16_keeps_the_first_ratio_of_a_tanh_normal():
    kind = CONTINUOUS["tanh_normal-state-dependent"]
    agent = make("ppo", Targets(), dtype="bfloat16", **kind)
    state, metrics = jax.jit(lambda key: agent.step(agent.init(key)))(KEYS[0])
    assert metrics["first_ratio_deviation"] < 1e-5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.learner.params))


def test_a_tanh_normal_is_evaluated_as_it_acts():
    agent, states, _ = archers("tanh_normal-state-dependent", "trpo")
    state = jax.tree.map(lambda leaf: leaf[0], states)
    evaluate = jax.jit(train.make_evaluation(agent, 4, deterministic=True))
    returns, _ = evaluate(state.learner, jax.random.key(0))
    action = agent.act(state, jnp.ones(1))
    expected = Targets.reward(action)
    np.testing.assert_allclose(returns, np.full(4, expected), rtol=1e-4, atol=1e-5)


@functools.cache
def experience():
    """A state and a trajectory that agents share: until they learn, they are the same."""
    agent = make("rgpo", Tabular(ACTION), num_steps=4)

    @jax.jit
    def collect(key):
        state = agent.init(key)
        policy = functools.partial(agent.learner.policy, state.learner)
        return state, rollout.collect(agent.env, policy, state.rollout, key, 4, 8)[1]

    return collect(KEYS[0])


def one_step(agent):
    state, trajectory = experience()
    before = state.learner._replace(hyperparameters=agent.learner.hyperparameters)
    own = jax.eval_shape(agent.init, KEYS[0])
    assert jax.tree.structure(own.learner) == jax.tree.structure(before)
    after, metrics = jax.jit(agent.learner.update)(before, trajectory)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert np.isfinite(new).all()
        assert np.any(old != new)
    assert all(np.isfinite(value) for value in metrics.values())
    return metrics


@pytest.mark.parametrize("name", [name for name in agents.NAMES if name not in LEARNERS])
def test_every_other_agent_takes_a_step(name):
    one_step(make(name, Tabular(ACTION), num_steps=4))


def own_gate(log_ratio, advantage):
    """A gate as a user would write it."""
    return jnp.tanh(log_ratio) + 0.0 * advantage


def test_a_gate_of_your_own_takes_the_place_of_the_agents():
    module = agents.load("rgpo")
    # Steps so small that the final policy, of which the gate's statistics are, keeps r near 1.
    config = module.Config(**(SETTINGS | {"num_steps": 4, "learning_rate": 1e-6}))
    agent = module.make(Tabular(ACTION), config, gate=own_gate)
    assert agent.learner.hyperparameters.gate.function is own_gate
    metrics = one_step(agent)
    # g(1) = 0 and w = 1 / cosh^2 <= 1, where RGPO's own gate would have a mean near 1/2.
    assert abs(metrics["gate_mean"]) < 0.1
    assert 0.9 < metrics["weight_max"] <= 1.0


def test_a_plain_function_and_its_builtin_twin_are_one_program():
    def twin(log_ratio, advantage):
        return log_ratio

    env = Tabular(ACTION)
    module = agents.load("reinforce")
    programs = []
    for gate in (twin, None):
        agent = module.make(env, module.Config(**SETTINGS), gate=gate)
        programs.append(str(jax.make_jaxpr(lambda key, a=agent: a.step(a.init(key)))(KEYS[0])))
    assert programs[0] == programs[1]
