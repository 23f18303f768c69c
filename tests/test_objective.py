"""The loss, what may be added to it, and parts of your own in the place of `agent.make`'s."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import TABLES, Tabular

from agents import ppo, trpo
from rgpo_jax import agent, gates, learner, networks, objective, penalties, train, update
from rgpo_jax.config import ConfigError
from rgpo_jax.hyperparameters import check_overrides
from rgpo_jax.objective import Batch, Prediction
from rgpo_jax.tunable import Tunable

RNG = np.random.default_rng(0)
LOG_RATIO, ADVANTAGE = RNG.normal(size=(2, 3, 4)).astype(np.float32)
WHERE = RNG.random((3, 4)) < 0.5
SETTINGS = {
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 2,
    "num_epochs": 2,
    "hidden_sizes": (8,),
    "total_steps": 320,
}


def test_a_masked_surrogate_is_that_of_what_counts():
    gate = gates.rgpo(2.0)
    expected = objective.surrogate(gate, LOG_RATIO[WHERE], ADVANTAGE[WHERE])
    masked = objective.surrogate(gate, LOG_RATIO, ADVANTAGE, WHERE)
    assert masked == pytest.approx(float(expected), rel=1e-6)
    # Whatever stands where nothing counts, it is no part of the gradient.
    spoilt = np.where(WHERE, LOG_RATIO, np.nan), np.where(WHERE, ADVANTAGE, np.inf)
    slope = jax.grad(lambda x: objective.surrogate(gate, x, spoilt[1], WHERE))(spoilt[0])
    clean = jax.grad(lambda x: objective.surrogate(gate, x, ADVANTAGE, WHERE))(LOG_RATIO)
    np.testing.assert_array_equal(slope, clean)
    assert (np.asarray(clean)[~WHERE] == 0).all()
    assert objective.surrogate(gate, LOG_RATIO, ADVANTAGE, np.zeros_like(WHERE)) == 0

    def drift(log_ratio, advantage):  # divides by the advantage, as gates made of a drift do
        return jnp.exp(log_ratio) - jax.nn.relu(log_ratio) ** 2 / advantage

    assert np.isfinite(objective.surrogate(drift, LOG_RATIO, ADVANTAGE, WHERE))


@pytest.mark.parametrize(
    ("advantage", "where", "message"),
    [
        (ADVANTAGE[:, :1], None, r"advantage \(3, 1\): expected the log-ratio's shape \(3, 4\)"),
        (ADVANTAGE, WHERE[0], r"where \(4,\): expected the log-ratio's shape \(3, 4\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(advantage, where, message):
    with pytest.raises(ValueError, match=message):
        objective.surrogate(gates.ppo(), LOG_RATIO, advantage, where)


def batch_and_prediction():
    old, new, target = RNG.normal(size=(3, 50)).astype(np.float32)
    log_ratio = RNG.normal(size=50).astype(np.float32)
    batch = Batch(None, None, jnp.zeros(50), jnp.zeros(50), jnp.asarray(target), jnp.asarray(old))
    return batch, Prediction(None, jnp.asarray(log_ratio), jnp.asarray(new)), old, new, target


def hyperparameters(penalty, **settings):
    config = ppo.Config(**(SETTINGS | settings))
    return agent.make(
        Tabular(TABLES["action"]), config, gates.ppo(), penalty=penalty
    ).learner.hyperparameters


def test_the_clipped_value_loss_is_that_of_openais_baselines():
    batch, prediction, old, new, target = batch_and_prediction()
    ours = hyperparameters(penalties.make(value_clip=0.3), value_coefficient=0.7)
    clipped = old + np.clip(new - old, -0.3, 0.3)
    expected = 0.7 * 0.5 * np.maximum((new - target) ** 2, (clipped - target) ** 2)
    plain = 0.7 * 0.5 * (new - target) ** 2
    extra = ours.penalty(prediction, batch, ours)
    np.testing.assert_allclose(plain + extra, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected batches that have old_value"):
        ours.penalty(prediction, batch._replace(old_value=None), ours)


def test_the_kl_penalty_is_unbiased_and_never_negative():
    # KL(old || new) of two categorical distributions, by the sum over what the old one draws.
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    prediction = Prediction(None, jnp.log(new / old), None)
    ours = hyperparameters(penalties.make(kl_coefficient=2.0))
    values = np.asarray(ours.penalty(prediction, None, ours))
    assert (values >= 0).all()
    assert (old * values).sum() == pytest.approx(2.0 * (old * np.log(old / new)).sum(), rel=1e-5)


@pytest.mark.parametrize("name", ["kl_coefficient", "value_clip"])
def test_a_penalty_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} = -1.0: expected a number"):
        penalties.make(**{name: -1.0})
    with pytest.raises(ConfigError, match=f"{name} -1.0: expected a number"):
        ppo.Config(**{name: -1.0})


def test_a_penalty_is_part_of_the_loss_and_is_reported():
    env, config = Tabular(TABLES["action"]), ppo.Config(**SETTINGS)
    plain = agent.make(env, config, gates.importance())
    penalised = agent.make(env, dataclasses.replace(config, kl_coefficient=1.0), gates.importance())
    key = jax.random.key(0)
    expected, metrics = plain.step(plain.init(key))
    without, free = penalised.step(penalised.init(key, kl_coefficient=0.0))
    _, held = penalised.step(penalised.init(key, kl_coefficient=100.0))
    assert "penalty" not in metrics
    assert free["penalty"] == 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        without.learner.params,
        expected.learner.params,
    )
    assert held["penalty"] > 0
    assert held["approx_kl"] < metrics["approx_kl"]
    with pytest.raises(ValueError, match="expected None with a policy_step"):
        update.make(
            plain.learner.network,
            config,
            gates.importance(),
            policy_step=gates.ppo(),
            penalty=penalties.make(1.0),
        )


def test_a_penalty_of_your_own_is_a_function_and_the_only_one():
    env, config = Tabular(TABLES["action"]), ppo.Config(**SETTINGS)

    def pull(prediction, batch, hyperparameters):
        return 100.0 * jnp.square(prediction.log_ratio)

    held = ppo.make(env, config, penalty=pull)
    free = ppo.make(env, config)
    key = jax.random.key(0)
    bound, loose = held.step(held.init(key))[1], free.step(free.init(key))[1]
    assert bound["approx_kl"] < loose["approx_kl"]
    with pytest.raises(ValueError, match="penalty: expected None with the config's kl_coefficient"):
        ppo.make(env, dataclasses.replace(config, kl_coefficient=1.0), penalty=pull)


@pytest.mark.parametrize("name", ["kl_coefficient", "value_clip"])
def test_trpo_has_no_penalty(name):
    with pytest.raises(ConfigError, match=f"{name} 0.5: expected None with TRPO"):
        trpo.Config(**{name: 0.5})


def test_optimiser_and_network_may_be_your_own():
    env, config = Tabular(TABLES["action"]), ppo.Config(**SETTINGS, anneal_learning_rate=False)

    with pytest.raises(ValueError, match=r"optimizer: a Gradient.*expected a function"):
        agent.make(env, config, gates.ppo(), optimizer=optax.adam(1e-3))

    def still(hyperparameters, step_size):
        return optax.sgd(0.0 * step_size)

    wide = dataclasses.replace(config, hidden_sizes=(32,))
    network = networks.make(env.observation_shape, env.action_space, wide)
    own = agent.make(env, config, gates.ppo(), optimizer=still, network=network)
    state = own.init(jax.random.key(0))
    assert 32 in {x.shape[-1] for x in jax.tree.leaves(state.learner.params)}
    assert not jax.tree.leaves(state.learner.optimizer_state)  # plain SGD remembers nothing
    after, _ = train.make_chunk(own)(state, 2)
    jax.tree.map(np.testing.assert_array_equal, after.learner.params, state.learner.params)


def test_an_optimiser_may_tell_parameters_apart_by_name():
    env = Tabular(TABLES["action"])
    config = ppo.Config(**{**SETTINGS, "num_epochs": 1, "num_minibatches": 1})

    def is_critics_torso(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[0].key == "critic" and "torso" in jax.tree_util.keystr(path),
            params,
        )

    def masked(hyperparameters, step_size):
        adam = update.adam(hyperparameters, step_size)
        return optax.chain(adam, optax.masked(optax.set_to_zero(), is_critics_torso))

    def learnt(optimizer):
        own = agent.make(env, config, gates.ppo(), optimizer=optimizer, flatten=False)
        before = own.init(jax.random.key(0))
        return before.learner.params, own.step(before)[0].learner.params

    start, free = learnt(update.adam)
    _, held = learnt(masked)
    torso = is_critics_torso(start)
    assert sum(jax.tree.leaves(torso)) == 2  # weights and biases of its one layer
    expected = jax.tree.map(lambda mask, x, y: x if mask else y, torso, start, free)
    jax.tree.map(np.testing.assert_array_equal, held, expected)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), start, free)
    assert all(jax.tree.leaves(moved))


def test_a_number_beside_a_new_gate_is_the_new_gates():
    ours = hyperparameters(None)
    changed = ours.replace(sharpness=8.0, gate=gates.rgpo(2.0, form="log"))
    assert changed.gate.numbers["sharpness"] == 8.0
    assert dict(changed.gate.options)["form"] == "log"
    penalised = ours.replace(kl_coefficient=0.5, penalty=penalties.make(kl_coefficient=0.1))
    assert penalised.penalty.numbers["kl_coefficient"] == 0.5


def test_hyperparameters_can_be_extended():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Extended(learner.Hyperparameters):
        temperature: float = 1.0

    config = ppo.Config(**SETTINGS)
    own = Extended.from_config(config, gates.ppo(0.1), gates.ppo(), None)
    changed = own.replace(temperature=2.0, clip=0.3, discount=0.5)
    assert isinstance(changed, Extended)
    assert (changed.temperature, changed.gate.numbers["clip"], changed.discount) == (2.0, 0.3, 0.5)
    assert own.temperature == 1.0


def test_a_further_function_is_checked_as_the_others_are():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Extended(learner.Hyperparameters):
        shaping: Tunable | None = None

    config, own = ppo.Config(**SETTINGS), gates.ppo(0.1)
    assert check_overrides(config, {"shaping": own}, Extended)["shaping"] == own
    for name in ("gate", "advantage_transform", "policy_step", "penalty", "shaping"):
        with pytest.raises(TypeError, match=f"{name} = 2.0: expected a Tunable"):
            check_overrides(config, {name: 2.0}, Extended)
