"""gymnax behind the protocol: all of its environments that run offline."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import types
from jax.flatten_util import ravel_pytree

import envs
from agents import ppo, rgpo
from envs.masked import MaskedEnvironment
from rgpo_jax.environment import Box, Discrete, Environment, TimeStep, to_environment_units

LIMIT = 6  # below every environment's own, so that short runs meet the time limit
WALKERS = 3
# Nearly all of the time here is spent in compiling programs that run once.
all_environments = pytest.mark.parametrize("name", envs.GYMNAX)


def random_actions(space, key, batch_shape):
    if isinstance(space, Discrete):
        return jax.random.randint(key, batch_shape, 0, space.n)
    return 2.0 * jax.random.normal(key, (*batch_shape, *space.shape))  # some beyond the bounds


def test_the_list_is_gymnax_without_the_one_that_downloads():
    assert sorted(envs.GYMNAX) == sorted(set(gymnax.registered_envs) - {"MNISTBandit-bsuite"})


@all_environments
def test_types_are_those_of_the_protocol_and_a_step_keeps_them(name):
    env = envs.make(name)
    action = random_actions(env.action_space, jax.random.key(0), ())
    state, observation = jax.eval_shape(env.reset, jax.random.key(0))
    new_state, timestep = jax.eval_shape(env.step, jax.random.key(0), state, action)
    # A weak type that a step makes definite compiles every program twice, and stops a scan.
    assert types(new_state) == types(state)
    shape = env.observation_shape
    assert types(observation) == (shape, jnp.float32, False)
    assert types(timestep.observation) == (shape, jnp.float32, False)
    assert types(timestep.final_observation) == (shape, jnp.float32, False)
    assert types(timestep.reward)[:2] == ((), jnp.float32)
    assert types(timestep.terminated)[:2] == ((), bool)
    assert types(timestep.truncated)[:2] == ((), bool)


# What an agent makes of an environment depends on its spaces alone: one of each kind.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Pendulum-v1", marks=pytest.mark.alike),
        "Breakout-MinAtar",  # pictures
        # Discrete actions; a matrix, which is no picture.
        pytest.param("Catch-bsuite", marks=pytest.mark.alike),
    ],
)
def test_an_agent_steps(name):
    config = rgpo.Config(
        num_envs=4, num_steps=16, reset_pool_size=2, hidden_sizes=(16,), channels=(4,)
    )
    agent = rgpo.make(envs.make(name, max_steps_in_episode=LIMIT), config)

    @jax.jit
    def run(key):
        before = agent.init(key)
        return before, *agent.step(before)

    before, after, metrics = run(jax.random.key(0))
    assert types(before.rollout) == types(after.rollout)
    # The policy that the update sees is the one that acted: the same numbers, the same actions.
    assert metrics["first_ratio_deviation"] < 1e-5
    for part in ("actor", "critic"):
        old, new = (ravel_pytree(state.learner.params[part])[0] for state in (before, after))
        assert np.all(np.isfinite(new))
        assert not np.array_equal(old, new)
    assert np.all(np.isfinite(after.rollout.observation))
    # No episode outlasts its limit.
    assert agent.env.max_episode_steps == LIMIT
    assert metrics["episodes"] >= 4 * (16 // LIMIT)
    assert metrics["episode_length"] <= LIMIT
    assert np.all(after.rollout.episode_length < LIMIT)


class Walk(NamedTuple):
    """Random actions up to the time limit under jit, vmap and scan, without resets."""

    env: Environment
    reset_keys: jax.Array
    step_keys: jax.Array
    action: jax.Array
    first_observation: jax.Array
    state: Any
    timestep: TimeStep


@functools.cache
def walk(name):
    env = envs.make(name, max_steps_in_episode=LIMIT)
    reset_key, action_key, step_key = jax.random.split(jax.random.key(7), 3)
    reset_keys = jax.random.split(reset_key, WALKERS)
    step_keys = jax.random.split(step_key, (LIMIT, WALKERS))
    action = random_actions(env.action_space, action_key, (LIMIT, WALKERS))
    action = to_environment_units(env.action_space, action)

    @jax.jit
    def run():
        state, observation = jax.vmap(env.reset)(reset_keys)

        def step(state, xs):
            state, timestep = jax.vmap(env.step)(xs[0], state, xs[1])
            return state, (state, timestep)

        _, (states, timesteps) = jax.lax.scan(step, state, (step_keys, action))
        return observation, states, timesteps

    observation, states, timesteps = jax.tree.map(np.asarray, run())
    return Walk(env, reset_keys, step_keys, action, observation, states, timesteps)


# What gymnax computes is taken as it is: held for those in which something is converted.
@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "Breakout-MinAtar",
        pytest.param("UmbrellaChain-bsuite", marks=pytest.mark.alike),  # int32 rewards
        pytest.param("FourRooms-misc", marks=pytest.mark.alike),  # int32 observations
        pytest.param("PointRobot-misc", marks=pytest.mark.alike),
        "BernoulliBandit-misc",  # a time, and a limit, of type float
        "FrozenLake-misc",  # a scalar observation
    ],
)
def test_follows_the_dynamics_of_gymnax_key_by_key(name):
    walked = walk(name)
    # Under jit and vmap on our side, one by one on the other.
    env, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=type(params.max_steps_in_episode)(LIMIT))
    if hasattr(params, "t_max"):  # by which a bandit's time is normalised
        params = params.replace(t_max=LIMIT)
    reset = jax.jit(env.reset_env)

    @jax.jit
    def step(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return observation, state, reward, terminated, env.is_truncated(state, params)

    def as_ours(observation):
        return np.eye(16)[observation] if name == "FrozenLake-misc" else observation

    def same(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    for i in range(WALKERS):
        observation, state = reset(walked.reset_keys[i], params)
        same(walked.first_observation[i], as_ours(observation))
        for t in range(LIMIT):
            observation, state, reward, terminated, truncated = step(
                walked.step_keys[t, i], state, walked.action[t, i]
            )
            ours, our_state = jax.tree.map(
                lambda x, t=t, i=i: x[t, i], (walked.timestep, walked.state)
            )
            same(ours.observation, as_ours(observation))
            same(ours.reward, reward)
            assert ours.terminated == terminated
            assert ours.done == (terminated | truncated)
            jax.tree.map(same, our_state, state)


@pytest.mark.alike
@all_environments
def test_stays_finite_and_does_not_reset(name):
    timestep = walk(name).timestep
    assert np.all(np.isfinite(walk(name).first_observation))
    assert np.all(np.isfinite(timestep.observation)) and np.all(np.isfinite(timestep.reward))
    np.testing.assert_array_equal(timestep.observation, timestep.final_observation)


@pytest.mark.alike
@all_environments
def test_truncates_at_the_limit_and_only_there_unless_terminated(name):
    terminated, truncated = walk(name).timestep.terminated, walk(name).timestep.truncated
    assert walk(name).env.max_episode_steps == LIMIT
    assert not np.any(truncated[:-1])
    np.testing.assert_array_equal(truncated[-1], ~terminated[-1])


def test_a_discrete_observation_is_one_hot():
    env = envs.make("FrozenLake-misc")
    state, observation = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(observation, np.eye(16)[[0, 0]])
    keys = jax.random.split(jax.random.key(1), 12)
    state, timestep = jax.jit(jax.vmap(env.step, (0, None, None)))(
        keys, jax.tree.map(lambda x: x[0], state), 2
    )
    assert len(np.unique(state.position)) > 1  # the ice is slippery
    np.testing.assert_array_equal(timestep.observation, np.eye(16)[np.asarray(state.position)])


def test_every_environment_states_a_whole_limit():
    limits = {name: envs.make(name).max_episode_steps for name in envs.GYMNAX}
    assert all(type(limit) is int and limit > 0 for limit in limits.values())
    assert limits["CartPole-v1"] == 500
    assert limits["Pendulum-v1"] == 200
    assert limits["BernoulliBandit-misc"] == 100  # gymnax says 100.0


def run_episode(env, action, num_steps):
    """States and time steps [num_steps] under one action, never reset."""

    def step(state, key):
        state, timestep = env.step(key, state, action)
        return state, (state, timestep)

    def run(key):
        state, _ = env.reset(key)
        return jax.lax.scan(step, state, jax.random.split(key, num_steps))[1]

    return jax.jit(run)(jax.random.key(3))


def test_pendulum_is_cut_after_200_steps_and_never_terminates():
    _, timestep = run_episode(envs.make("Pendulum-v1"), jnp.array([2.0]), 200)
    assert not np.any(timestep.terminated)
    np.testing.assert_array_equal(np.flatnonzero(timestep.truncated), [199])


def test_cartpole_terminates_by_falling():
    state, timestep = run_episode(envs.make("CartPole-v1"), 1, 12)
    fallen = np.abs(np.asarray(state.theta)) > np.deg2rad(12)
    assert not fallen[0] and fallen[-1]
    np.testing.assert_array_equal(timestep.terminated, fallen)
    assert not np.any(timestep.truncated)


@pytest.mark.alike
@pytest.mark.parametrize("name", ["CartPole-v1", "UmbrellaChain-bsuite", "DeepSea-bsuite"])
def test_termination_wins_where_it_meets_the_time_limit(name):
    last = int(np.argmax(run_episode(envs.make(name), 1, 12)[1].terminated))
    assert last > 0
    _, timestep = run_episode(envs.make(name, max_steps_in_episode=last + 1), 1, last + 1)
    assert timestep.terminated[last] and not timestep.truncated[last]
    # Not so a step earlier, where the limit alone ends the episode.
    _, timestep = run_episode(envs.make(name, max_steps_in_episode=last), 1, last)
    assert timestep.truncated[-1] and not timestep.terminated[-1]


def test_a_limit_between_two_steps_is_met_by_the_later():
    env = envs.make("BernoulliBandit-misc", max_steps_in_episode=2.5)
    _, timestep = run_episode(env, 0, 3)
    np.testing.assert_array_equal(timestep.truncated, [False, False, True])
    assert env.max_episode_steps == 3


def test_params_reach_the_dynamics():
    heavy = run_episode(envs.make("Pendulum-v1", g=20.0), jnp.array([0.0]), 5)[1]
    light = run_episode(envs.make("Pendulum-v1", g=10.0), jnp.array([0.0]), 5)[1]
    usual = run_episode(envs.make("Pendulum-v1"), jnp.array([0.0]), 5)[1]
    assert not np.allclose(heavy.observation, light.observation)
    np.testing.assert_array_equal(light.observation, usual.observation)


def message_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("CartPol", "CartPole-v1"),
        ("cartpole-V1", "CartPole-v1"),
        ("breakout", "Breakout-MinAtar"),
        ("Frozen-Lake", "FrozenLake-misc"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong, meant):
    message = message_of(lambda: envs.make(wrong))
    assert repr(wrong) in message
    assert meant in message.split("did you mean")[1]


def test_a_name_like_no_other_is_answered_briefly():
    message = message_of(lambda: envs.make("xyzzy"))
    assert f"{len(envs.NAMES)} are compiled" in message and "--list-envs lists them" in message
    assert len(message) < 150


def test_the_environment_that_downloads_is_refused():
    message_of(lambda: envs.make("MNISTBandit-bsuite"))


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    message = message_of(lambda: envs.make("Pendulum-v1", gravity=9.8))
    assert "'gravity'" in message
    assert {"g", "max_torque", "max_steps_in_episode"} <= set(re.findall(r"\w+", message))


@pytest.mark.parametrize(
    ("name", "params", "bound"),
    [
        ("Pendulum-v1", {}, [2.0]),
        ("Pendulum-v1", {"max_torque": 3.0}, [3.0]),
        ("MountainCarContinuous-v0", {}, [1.0]),
        ("PointRobot-misc", {}, [0.1, 0.1]),
        ("Reacher-misc", {}, [1.0, 1.0]),
        ("Swimmer-misc", {}, [1.0, 1.0]),
    ],
)
def test_bounds_are_those_of_the_environment(name, params, bound):
    space = envs.make(name, **params).action_space
    assert space.shape == (len(bound),)
    np.testing.assert_allclose(space.high, bound, rtol=1e-6)
    np.testing.assert_allclose(space.low, -np.array(bound), rtol=1e-6)


def test_there_are_five_continuous_environments():
    spaces = {name: envs.make(name).action_space for name in envs.GYMNAX}
    continuous = {name for name, space in spaces.items() if isinstance(space, Box)}
    assert continuous == {
        "Pendulum-v1",
        "MountainCarContinuous-v0",
        "PointRobot-misc",
        "Reacher-misc",
        "Swimmer-misc",
    }


@pytest.mark.parametrize(
    ("action", "torque"), [(1.0, 2.0), (-1.0, -2.0), (0.25, 0.5), (1.7, 2.0), (-30.0, -2.0)]
)
def test_pendulum_turns_with_torque_two_for_a_policys_one(action, torque):
    env = envs.make("Pendulum-v1")
    action = to_environment_units(env.action_space, jnp.array([action]))
    state, _ = env.step(jax.random.key(0), env.reset(jax.random.key(0))[0], action)
    np.testing.assert_allclose(action, [torque], rtol=1e-6)
    np.testing.assert_allclose(state.last_u, torque, rtol=1e-6)


def test_point_robot_moves_a_tenth_for_a_policys_one():
    # Unscaled, all but the middle tenth of a policy's actions would be one and the same.
    env = envs.make("PointRobot-misc", center_init=True)  # a step away from every goal at first
    state, _ = env.reset(jax.random.key(0))
    action = to_environment_units(env.action_space, jnp.array([9.0, -0.5]))
    new_state, _ = env.step(jax.random.key(1), state, action)
    np.testing.assert_allclose(new_state.pos - state.pos, [0.1, -0.05], atol=1e-7)


def test_masked_cartpole_is_cartpole_without_its_velocities():
    whole, masked = envs.make("CartPole-v1"), envs.make("CartPole-v1-masked")
    assert masked.name == "CartPole-v1-masked"
    assert masked.observation_shape == (2,)
    assert masked.max_episode_steps == whole.max_episode_steps
    assert masked.action_space == whole.action_space
    key = jax.random.key(0)
    states, observations = zip(*(env.reset(key) for env in (whole, masked)), strict=True)
    np.testing.assert_array_equal(observations[1], observations[0][jnp.array([0, 2])])
    steps = [
        env.step(key, state, jnp.int32(1))[1]
        for env, state in zip((whole, masked), states, strict=True)
    ]
    for field in ("observation", "final_observation"):
        shown = getattr(steps[0], field)[jnp.array([0, 2])]
        np.testing.assert_array_equal(getattr(steps[1], field), shown)
    assert [steps[1][i] for i in (1, 2, 3)] == [steps[0][i] for i in (1, 2, 3)]


@pytest.mark.parametrize("keep", [(), (4,), (-1,)])
def test_masks_show_what_there_is(keep):
    assert "from 0 to 3" in message_of(lambda: MaskedEnvironment(envs.make("CartPole-v1"), keep))


def test_images_are_not_masked():
    assert "vectors" in message_of(lambda: MaskedEnvironment(envs.make("Breakout-MinAtar"), (0,)))


def in_a_fresh_interpreter(program):
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    return done.stdout.split()


def test_importing_agents_and_envs_leaves_gymnax_and_jax_alone():
    # `--help` and the report of a mistyped flag must not wait for them.
    loaded = in_a_fresh_interpreter(
        "import sys, envs; from agents import rgpo; envs.check_name('Pendulum-v1');"
        "rgpo.Config(num_envs=2); print(*sys.modules)"
    )
    assert {"envs", "agents.rgpo"} <= set(loaded)
    assert {"gymnax", "jax", "flax", "optax"}.isdisjoint(loaded)


def test_importing_agents_and_envs_is_quick():
    (seconds,) = in_a_fresh_interpreter(
        "import time; start = time.perf_counter(); import agents, envs; from agents import rgpo;"
        "print(time.perf_counter() - start)"
    )
    assert float(seconds) < 3.0


GYM_CARTPOLE = {"masscart": 2.5, "masspole": 0.4, "length": 1.2, "gravity": 7.0, "tau": 0.03}


@pytest.mark.parametrize("params", [{name: x} for name, x in GYM_CARTPOLE.items()] + [GYM_CARTPOLE])
def test_cartpole_with_other_parameters_moves_as_gymnasiums(params):
    # An independent step; gymnax by itself keeps total_mass and polemass_length as they were.
    theirs = gymnasium.make("CartPole-v1").unwrapped
    for name, value in params.items():
        setattr(theirs, name, value)
    theirs.total_mass = theirs.masscart + theirs.masspole
    theirs.polemass_length = theirs.masspole * theirs.length
    ours = envs.make("CartPole-v1", **params)
    key = jax.random.key(3)
    state, observation = ours.reset(key)
    theirs.reset(seed=0)
    theirs.state = np.asarray(observation, np.float64)
    for action in (1, 0, 0, 1, 1, 1):
        state, timestep = ours.step(key, state, jnp.int32(action))
        expected, *_ = theirs.step(action)
        np.testing.assert_allclose(timestep.observation, expected, rtol=2e-5, atol=1e-6)


def test_what_follows_from_other_parameters_is_refused():
    with pytest.raises(ValueError, match=r"total_mass = 2\.0: it follows from the others"):
        envs.make("CartPole-v1", total_mass=2.0)


def test_parameters_may_be_traced_and_vmapped():
    def fall(length):
        env = envs.make("CartPole-v1", length=length, masspole=0.2)
        state, _ = env.reset(jax.random.key(0))
        return env.step(jax.random.key(1), state, jnp.int32(1))[1].observation

    lengths = jnp.array([0.25, 0.5, 2.0])
    alone = jnp.stack([fall(float(length)) for length in lengths])
    np.testing.assert_allclose(jax.jit(jax.vmap(fall))(lengths), alone, rtol=1e-6)


@pytest.mark.alike
def test_agents_of_environments_with_traced_parameters_are_one_program():
    config = ppo.Config(num_envs=2, num_steps=4, num_minibatches=1, hidden_sizes=(4,))

    def learn(length):
        agent = ppo.make(envs.make("CartPole-v1", length=length), config)
        state, _ = agent.step(agent.init(jax.random.key(0)))
        return ravel_pytree(state.learner.params)[0]

    together = jax.jit(jax.vmap(learn))(jnp.array([0.5, 2.0]))
    assert not np.array_equal(together[0], together[1])
    alone = jax.jit(lambda: learn(2.0))()
    np.testing.assert_allclose(together[1], alone, rtol=2e-4, atol=1e-6)


def test_drawn_parameters_are_those_of_their_episode():
    env = envs.randomize("CartPole-v1", {"length": (0.25, 1.0), "masspole": (0.1, 0.4)})
    keys = jax.random.split(jax.random.key(0), 500)
    states, _ = jax.vmap(env.reset)(keys)
    drawn = np.asarray(states.drawn["length"])
    assert 0.25 <= drawn.min() < 0.26 and 0.99 < drawn.max() < 1.0
    assert abs(np.corrcoef(drawn, states.drawn["masspole"])[0, 1]) < 0.15
    assert abs(drawn.mean() - 0.625) < 4 * 0.75 / np.sqrt(12 * 500)
    first = jax.tree.map(lambda x: x[0], states)
    state, timestep = env.step(keys[1], first, jnp.int32(1))
    assert float(state.drawn["length"]) == float(first.drawn["length"])
    values = {name: float(x) for name, x in first.drawn.items()}
    fixed = envs.make("CartPole-v1", **values)
    _, expected = fixed.step(keys[1], first.inner, jnp.int32(1))
    np.testing.assert_allclose(timestep.observation, expected.observation, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "ranges", "params", "message"),
    [
        ("CartPole-v1", {"length": (1.0, 0.5)}, {}, "expected a low below its high"),
        ("CartPole-v1", {"lenght": (0.5, 1.0)}, {}, "no parameter 'lenght'; did you mean length"),
        ("CartPole-v1", {"length": (0.5, 1.0)}, {"length": 1.0}, "length is given, and drawn"),
        ("Pendulum-v1", {"max_torque": (1.0, 2.0)}, {}, "its action_space depends on max_torque"),
        ("brax/ant", {"mass": (1.0, 2.0)}, {}, "its parameters cannot be drawn"),
        ("CartPole-v1", {"max_steps_in_episode": (5.0, 9.0)}, {}, "depends on max_steps_in_epis"),
        ("CartPole-v1", {"length": (-1.0, 1.0)}, {}, "length = -1: expected more than 0"),
        ("Pendulum-v1", {"g": (1.0, 2.0)}, {"m": 0.0}, "m = 0: expected more than 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, ranges, params, message):
    with pytest.raises(ValueError, match=message):
        envs.randomize(name, ranges, **params)
