"""Brax behind the protocol. Compiling is slow here: programs are shared."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import check_types, in_a_fresh_interpreter, loading

import envs
from agents import families, rgpo
from experiments import run
from experiments.benchmark import __main__ as benchmark
from experiments.cli.flags import BadInput
from experiments.plan.reading import read_plan
from rgpo_jax.environment import restart_where_done
from rgpo_jax.importing import install_hint

pytest.importorskip("brax", reason="needs the extra `brax`")

LIMIT = 16
WALKERS = 3
PENDULUM = "brax/inverted_pendulum"  # the cheapest to compile
REACHER = "brax/reacher"


@functools.cache
def make(name, backend="spring"):
    """One task of a name, whose physics is traced once."""
    return envs.make(name, backend=backend, max_steps_in_episode=LIMIT)


@functools.cache
def programs(name):
    """(reset [B], scan over steps [T, B]) of the adapter, compiled once per task."""
    env = make(name)

    def step(state, action):
        return jax.vmap(env.step, (None, 0, 0))(jax.random.key(0), state, action)

    return jax.jit(jax.vmap(env.reset)), jax.jit(functools.partial(jax.lax.scan, step))


def walk(name, actions, time=0):
    """First observations, and steps, of episodes that have taken so many steps already."""
    reset, scan = programs(name)
    state, observation = reset(jax.random.split(jax.random.key(3), WALKERS))
    return observation, scan(state._replace(time=state.time + time), jnp.asarray(actions))[1]


def random_actions(name):
    size = make(name).action_space.shape[0]
    return jax.random.uniform(jax.random.key(1), (LIMIT, WALKERS, size), minval=-1.0)


PUSH = np.ones((LIMIT, WALKERS, 1), np.float32)  # topples the pendulum


def test_the_list_is_brax_without_the_one_that_does_not_load():
    from envs.brax_adapter import brax_envs

    assert sorted(envs.BRAX) == sorted(f"brax/{name}" for name in {*brax_envs._envs} - {"swimmer"})


# The slow test below holds the types of them all, on every backend.
@pytest.mark.parametrize("name", [PENDULUM, REACHER, "brax/fast"])
def test_a_step_keeps_the_types_of_the_protocol(name):
    env = make(name)
    check_types(env)
    assert env.name == name
    assert env.max_episode_steps == LIMIT
    (size,) = env.action_space.shape
    assert env.action_space.low == (-1.0,) * size
    assert env.action_space.high == (1.0,) * size


@pytest.mark.slow
@pytest.mark.parametrize("backend", envs.BRAX_BACKENDS)
@pytest.mark.parametrize("name", envs.BRAX)
def test_an_agent_steps_on_every_backend(name, backend):
    env = make(name, backend)
    check_types(env)
    config = rgpo.Config(num_envs=2, num_steps=2 * LIMIT, reset_pool_size=2, hidden_sizes=(16,))
    agent = rgpo.make(env, config)
    state, metrics = jax.jit(lambda key: agent.step(agent.init(key)))(jax.random.key(0))
    assert np.all(np.isfinite(state.rollout.observation))
    assert metrics["first_ratio_deviation"] < 1e-5
    assert metrics["episodes"] >= 2 * 2
    assert metrics["episode_length"] <= LIMIT


@pytest.mark.parametrize("name", [PENDULUM, pytest.param(REACHER, marks=pytest.mark.slow)])
def test_follows_brax_step_by_step(name):
    # Under vmap and scan on our side, one instance and a Python loop on the other.
    reset, step = make(name)._reset, make(name)._step  # of the library, under jit
    actions = random_actions(name)
    first, timestep = walk(name, actions)
    key = jax.random.split(jax.random.key(3), WALKERS)[1]
    state = reset(jax.random.key_data(key))
    np.testing.assert_allclose(first[1], state.obs, rtol=1e-5, atol=1e-6)
    for t in range(LIMIT):
        state = step(state, actions[t, 1])
        np.testing.assert_allclose(timestep.observation[t, 1], state.obs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(timestep.reward[t, 1], state.reward, rtol=1e-3, atol=1e-4)
        assert timestep.terminated[t, 1] == (state.done == 1)
    np.testing.assert_array_equal(timestep.observation, timestep.final_observation)


def test_the_time_limit_truncates_and_does_not_terminate():
    _, timestep = walk(PENDULUM, 0 * PUSH)
    assert not np.any(timestep.terminated)
    np.testing.assert_array_equal(np.argwhere(timestep.truncated)[:, 0], [LIMIT - 1] * WALKERS)


def test_a_fall_terminates_and_is_not_truncated():
    _, timestep = walk(PENDULUM, PUSH)
    fallen = np.abs(np.asarray(timestep.observation)[..., 1]) > 0.2
    assert not fallen[0].any() and fallen[LIMIT - 2].all()
    np.testing.assert_array_equal(timestep.terminated, fallen)
    assert not np.any(timestep.truncated & timestep.terminated)


def test_termination_wins_where_it_meets_the_time_limit():
    _, timestep = walk(PENDULUM, PUSH)
    last = int(np.argmax(timestep.terminated[:, 0]))
    _, timestep = walk(PENDULUM, PUSH, time=LIMIT - 1 - last)
    assert timestep.terminated[last, 0] and not timestep.truncated[last, 0]
    # Not so a step earlier, where the limit alone ends the episode.
    _, timestep = walk(PENDULUM, PUSH, time=LIMIT - last)
    assert timestep.truncated[last - 1, 0] and not timestep.terminated[last - 1, 0]


def test_a_step_leaves_the_state_that_it_is_given_alone():
    # Brax writes into it: seen outside jit, and by whoever steps twice from one state.
    env = make(REACHER)
    shapes, _ = jax.eval_shape(env.reset, jax.random.key(0))
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    before = dict(state.inner.metrics)
    assert before
    jax.eval_shape(lambda action: env.step(jax.random.key(0), state, action), jnp.zeros(2))
    assert all(state.inner.metrics[name] is value for name, value in before.items())


@functools.cache
def starts():
    """Some [states, observations] after resets."""
    reset, _ = programs(PENDULUM)
    return [reset(jax.random.split(jax.random.key(i), WALKERS)) for i in range(10)]


def test_every_episode_starts_afresh_from_the_reset_distribution():
    observations = np.concatenate([observation for _, observation in starts()])
    assert np.all(np.abs(observations) <= 0.01)
    assert len(np.unique(observations, axis=0)) == len(observations) == 10 * WALKERS
    assert observations.std() == pytest.approx(0.01 / np.sqrt(3), rel=0.3)


def test_the_final_observation_survives_the_restart():
    _, scan = programs(PENDULUM)
    # One step later than usual the limit is met, but by the second.
    state = starts()[0][0]._replace(time=jnp.array([-1, 0, -1]))
    state, timestep = scan(state, 0.0 * PUSH)
    final = jax.tree.map(lambda x: x[-1], timestep)
    fresh, seen = starts()[1]
    restarted, shown = jax.jit(restart_where_done)(state, final, (fresh, seen))
    np.testing.assert_array_equal(shown.done, [False, True, False])
    np.testing.assert_array_equal(shown.final_observation, final.observation)
    np.testing.assert_array_equal(shown.observation[1], seen[1])
    np.testing.assert_array_equal(shown.observation[::2], final.observation[::2])
    assert np.any(shown.final_observation[1] != shown.observation[1])
    for found, new, old in zip(*map(jax.tree.leaves, (restarted, fresh, state)), strict=True):
        np.testing.assert_array_equal(found[1], new[1])
        np.testing.assert_array_equal(found[::2], old[::2])


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("brax/ant", {"backend": "warp"}, "one of spring, positional, generalized, mjx"),
        ("brax/fast", {"backend": "warp"}, "one of spring, positional, generalized, mjx"),
        ("brax/ant", {"max_steps_in_episode": 0}, "max_episode_steps = 0: expected at least 1"),
        ("brax/ant", {"max_steps_in_episode": 2.5}, "max_episode_steps = 2.5: expected an int"),
        ("brax/ant", {"gravity": 9.8}, "no parameter 'gravity'; it has max_episode_steps, backend"),
        ("brax/ants", {}, "did you mean brax/ant"),
        ("brax/HalfCheetah", {}, "did you mean brax/halfcheetah"),
        ("brax/swimmer", {}, "brax/swimmer does not run"),
    ],
)
def test_what_does_not_exist_is_refused(name, params, message):
    with pytest.raises(ValueError) as refused:
        envs.make(name, **params)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_episodes_have_a_thousand_steps_by_default():
    assert envs.make("brax/fast").max_episode_steps == 1000


TINY = [
    *("--env", "brax/fast", "--backend", "mjx", "--total-steps", "32", "--num-envs", "2"),
    *("--num-steps", "8", "--num-minibatches", "2", "--hidden-sizes", "8", "--eval-episodes", "2"),
]


def test_a_run_says_nothing_of_brax_and_keeps_its_backend(tmp_path, capfd):
    folder = tmp_path / "run"
    assert run.main([*TINY, "--out", str(folder)]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert "warp" not in said.out
    assert json.loads((folder / "config.json").read_text())["settings"]["backend"] == "mjx"
    read = read_plan(["--config", str(folder / "config.json")])
    assert (read.options.env, read.options.backend) == ("brax/fast", "mjx")
    assert read.name == "brax/fast-mjx-rgpo"


def test_import_and_load_are_silent_and_leave_no_file(tmp_path):
    # halfcheetah: of its model file MuJoCo itself has something to say, past Python's streams.
    done = in_a_fresh_interpreter(loading("brax/halfcheetah"), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_importing_envs_leaves_brax_alone(tmp_path):
    program = (
        "import envs; from experiments.plan.reading import read_plan\n"
        "read_plan(['--env', 'brax/ant'])\n"
        "sys.exit(bool({'brax', 'mujoco', 'jax'} & set(sys.modules)))"
    )
    assert in_a_fresh_interpreter(program, tmp_path).returncode == 0


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(
        ValueError, match=re.escape(f"brax is not installed: {install_hint('brax')}")
    ):
        envs.make("brax/ant")
    for program in (run, benchmark):
        with pytest.raises(SystemExit) as refused:
            program.main(["--env", "brax/fast"])
        assert refused.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --env brax/fast: brax is not") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "CartPole-v1", "--backend", "spring"], "--backend spring: only brax/"),
        (["--backend", "mjx"], "--backend mjx: only brax/"),
        (
            ["--env", "brax/ant", "--backend", "warp"],
            "invalid choice 'warp' for argument '--backend'",
        ),
        (["--env", "brax/swimmer"], "--env brax/swimmer: brax/swimmer does not run"),
    ],
)
def test_bad_flags_are_refused(args, message):
    with pytest.raises(BadInput) as refused:
        read_plan(args)
    assert str(refused.value).startswith(message)


def test_the_family_is_found_by_prefix():
    assert families.for_environment("brax/ant") == families.FAMILIES["brax"]
    assert families.for_environment("Asterix-MinAtar") == families.FAMILIES["MinAtar"]
    assert families.for_environment("Pong-misc") == {}
