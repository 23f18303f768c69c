"""Environments of a user's own, by name, with parameters: run, resume, sweep, play, report."""

import importlib
import json
import os
import shutil
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from workers import WorkersHere, ask_here

import envs
from agents import ppo
from experiments import run
from experiments.plan.reading import read_plan
from experiments.play import __main__ as play
from experiments.sweep import __main__ as sweep
from experiments.sweep import launchers, probing
from experiments.training import building
from rgpo_jax import inspection
from rgpo_jax.environment import HostEnvironment

WORLDS = Path(__file__).parent / "data" / "own_worlds.py"
SMALL = ["--num-envs", "4", "--num-steps", "8", "--num-minibatches", "1"]
SMALL += ["--hidden-sizes", "8", "--eval-episodes", "2"]
pytestmark = pytest.mark.usefixtures("curves_are_drawn_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a user's, with a module in it."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(WORLDS, folder / "own_worlds.py")
    return folder


@pytest.fixture(autouse=True)
def _in_that_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_a_class_is_built_with_its_parameters():
    env = envs.make("own_worlds:Line", width=3.0, max_episode_steps=7)
    assert env.max_episode_steps == 7
    _, observations = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 200))
    assert 2.5 < abs(observations).max() <= 3.0
    assert not envs.place("own_worlds:Line").on_host


def test_a_run_builds_its_environment_once(monkeypatch):
    plan = read_plan(["--env", "own_worlds:Line", "--env-kwargs", "max_episode_steps=7"])
    make, built = envs.make, []
    monkeypatch.setattr(envs, "make", lambda *a, **k: built.append(make(*a, **k)) or built[-1])
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    building.use_all_cores(plan, 1)
    agent, _ = building.make_spread_agent(plan, 1)
    assert built == [agent.env]


def test_a_limit_truncates_at_its_step_and_not_before():
    env = envs.make("own_worlds:Line", max_episode_steps=3)
    key = jax.random.key(0)
    state, _ = env.reset(key)
    cut = []
    for _ in range(3):
        state, timestep = env.step(key, state, 1)
        cut.append(bool(timestep.truncated))
        assert not timestep.terminated
    assert cut == [False, False, True]


def test_a_shorter_limit_wins_and_a_longer_one_is_refused():
    assert envs.make("own_worlds:short_line", max_episode_steps=4).max_episode_steps == 4
    with pytest.raises(ValueError, match="max_episode_steps = 40: expected at most 10"):
        envs.make("own_worlds:short_line", max_episode_steps=40)


@pytest.mark.parametrize("name", ["own_worlds:Sign", "own_worlds:make_sign"])
def test_a_class_of_gymnasium_lives_on_the_host(name):
    env = envs.make(name, scale=0.25, max_episode_steps=5)
    assert isinstance(env, HostEnvironment) and envs.place(name).on_host
    assert env.max_episode_steps == 5
    pool = env.make_pool([3, 4])
    first = pool.reset()
    assert first.shape == (2, 1) and abs(first).max() <= 0.25
    ends = []
    for _ in range(5):
        pool.send(np.ones(2, int))
        ends.append(pool.receive().truncated.tolist())
    assert ends == [[False, False]] * 4 + [[True, True]]


def test_a_factory_is_told_how_to_draw_if_it_takes_it():
    pool = envs.make("own_worlds:make_drawn", max_episode_steps=5).make_pool([1], pictures=True)
    pool.reset()
    assert pool.picture().shape == (4, 6, 3)
    pool = envs.make("own_worlds:make_undrawn", max_episode_steps=5).make_pool([1], pictures=True)
    pool.reset()
    with pytest.raises(RuntimeError, match="does not draw itself"):
        pool.picture()


def test_what_a_library_has_once_a_module_is_imported():
    env = envs.make("gymnasium/own_worlds:own/Sign-v0")
    assert env.max_episode_steps == 10 and envs.place(env.name).on_host
    env = envs.make("gymnax/own_worlds:OwnBandit-v0", max_episode_steps=6)
    assert env.max_episode_steps == 6
    assert envs.make("own_worlds:Bandit").max_episode_steps == 5


def test_one_that_truncates_before_its_limit_is_bootstrapped_all_the_same(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    own_worlds = importlib.import_module("own_worlds")
    config = ppo.Config(num_envs=2, num_steps=16, num_minibatches=1, hidden_sizes=(8,))
    learnt = []
    for said in (10, None):
        agent = ppo.make(own_worlds.Short(steps=3, said=said), config)
        state, _ = jax.jit(lambda key, agent=agent: agent.step(agent.init(key)))(jax.random.key(0))
        learnt.append(jax.tree.leaves(state.learner.params))
    jax.tree.map(np.testing.assert_array_equal, *learnt)


def test_a_class_of_gymnax_has_its_parameters_and_what_follows_from_them():
    heavy = {"masscart": 5.0, "max_episode_steps": 50}
    ours, theirs = envs.make("own_worlds:Pole", **heavy), envs.make("CartPole-v1", **heavy)
    assert ours.max_episode_steps == 50
    for env in (ours, theirs):
        state, _ = env.reset(jax.random.key(0))
        _, timestep = env.step(jax.random.key(1), state, jnp.int32(1))
        if env is ours:
            found = timestep.observation
    np.testing.assert_array_equal(found, timestep.observation)
    with pytest.raises(ValueError, match="no parameter 'lenght'; did you mean length"):
        envs.make("own_worlds:Pole", lenght=1.0)
    drawn = envs.randomize("own_worlds:Pole", {"length": (0.5, 2.0)})
    assert drawn.max_episode_steps == 500


def test_a_name_that_gymnax_has_too_is_no_class_of_gymnax(folder):
    (folder / "own_pole.py").write_text(
        "from own_worlds import Bandit\nclass CartPole(Bandit):\n    pass\n"
    )
    assert envs.make("own_pole:CartPole", max_episode_steps=3).max_episode_steps == 3


def test_bounds_may_be_arrays_where_parameters_are_drawn(folder):
    (folder / "own_boxes.py").write_text(
        "import jax.numpy as jnp\n"
        "from own_worlds import Line\n"
        "from rgpo_jax.environment import Box\n"
        "class Boxed(Line):\n"
        "    def __init__(self, width=1.0):\n"
        "        super().__init__(width)\n"
        "        self.action_space = Box((1,), jnp.array([-2.0]), jnp.array([2.0]))\n"
    )
    env = envs.randomize("own_boxes:Boxed", {"width": (0.5, 2.0)}, max_episode_steps=4)
    assert env.action_space.low == (-2.0,)


def test_a_class_of_the_host_protocol_is_trained(tmp_path):
    assert envs.place("own_worlds:Pooled", steps=3).on_host
    args = ["--env", "own_worlds:Pooled", "--env-kwargs", "steps=5", "--agent", "ppo", *SMALL]
    assert run.main([*args, "--total-steps", "2000", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["final_return"]["mean"] > 4.0  # of 5; 2.5 by chance
    again = ["--resume", "--trust-code", "--out", str(tmp_path / "run")]
    assert run.main(again) == 0


def test_a_class_of_brax(folder):
    pytest.importorskip("brax")
    (folder / "own_fast.py").write_text(
        "from brax.envs.fast import Fast\n"
        "class Faster(Fast):\n"
        "    def __init__(self, bonus=0.0):\n"
        "        super().__init__()\n"
        "        self.bonus = bonus\n"
        "    def step(self, state, action):\n"
        "        state = super().step(state, action)\n"
        "        return state.replace(reward=state.reward + self.bonus)\n"
    )
    rewards = []
    for bonus in (0.0, 2.0):
        env = envs.make("own_fast:Faster", bonus=bonus, max_episode_steps=12)
        assert env.max_episode_steps == 12 and not envs.place("own_fast:Faster").on_host
        state, _ = env.reset(jax.random.key(0))
        _, timestep = env.step(jax.random.key(1), state, jnp.zeros(env.action_space.shape))
        rewards.append(float(timestep.reward))
    assert rewards[1] == rewards[0] + 2.0


def test_a_task_registered_with_brax(monkeypatch, folder):
    pytest.importorskip("brax")
    (folder / "own_brax.py").write_text(
        "from brax import envs\n"
        "from brax.envs.fast import Fast\n"
        "class Faster(Fast):\n"
        "    def __init__(self, pace=2, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "envs.register_environment('faster', Faster)\n"
    )
    env = envs.make("brax/own_brax:faster", pace=3, max_episode_steps=12)
    assert env.max_episode_steps == 12
    with pytest.raises(ValueError, match="registers no 'slower' with Brax"):
        envs.make("brax/own_brax:slower")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("own_worlds:Lin", {}, "own_worlds:Lin: AttributeError"),
        ("no_such_module:Line", {}, "no module named 'no_such_module'"),
        ("own_worlds:Line", {"widht": 2.0}, "no parameter 'widht'; did you mean width"),
        ("own_worlds:Sign", {"scal": 2.0}, "no parameter 'scal'; did you mean scale"),
        ("own_worlds:fails", {}, "cannot be made: RuntimeError: no licence"),
        ("own_worlds:leaves", {}, "cannot be made: SystemExit"),
        ("own_worlds:makes_a_dict", {}, "makes a dict: expected a class or a function"),
        ("own_worlds:NUMBER", {}, "is a int: expected a class or a function"),
        ("own_worlds:ONE_SIGN", {}, "is one environment of Gymnasium, and training needs many"),
        ("gymnasium/own_worlds:own/Sin-v0", {}, "registers no 'own/Sin-v0' with Gymnasium"),
        ("gymnax/own_worlds:OwnBandi-v0", {}, "registers no 'OwnBandi-v0' with gymnax"),
        ("own_worlds:Line", {"max_episode_steps": 0}, "max_episode_steps = 0: expected at least 1"),
    ],
)
def test_what_is_no_environment_is_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **params)


def test_an_object_of_a_library_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"envs\.adapt takes a user's own, of Gymnasium its class"):
        ppo.make(gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize("params", [{}, {"max_episode_steps": 4}])
def test_what_a_step_gives_is_looked_at_behind_a_limit_too(params):
    with pytest.raises(ValueError, match="observation is int32: expected float32"):
        ppo.make(envs.make("own_worlds:Whole", **params))
    if params:
        with pytest.raises(ValueError, match="observation is int32: expected float32"):
            ppo.make(envs.randomize("own_worlds:Whole", {"width": (1.0, 2.0)}, **params))


def test_a_nan_behind_a_limit_is_found():
    env = envs.make("own_worlds:Line", noise=float("nan"), max_episode_steps=4)
    assert not inspection.is_known(env)
    found = inspection.find_nonfinite(env, jax.random.key(0), num_envs=2, num_steps=8)
    assert found == "environment Line: reward of step 1 is NaN or infinite"


def test_a_class_of_gymnasium_with_a_limit_of_its_own_is_told():
    env = envs.make("own_worlds:Counted", max_episode_steps=7)
    pool = env.make_pool([1])
    pool.reset()
    ends = []
    for _ in range(8):
        pool.send(np.ones(1, int))
        ends.append(bool(pool.receive().truncated[0]))
    assert ends.index(True) == 6


def test_adapt_takes_classes_functions_and_objects():
    import own_worlds

    assert envs.adapt(own_worlds.Sign, max_episode_steps=3).max_episode_steps == 3
    assert envs.adapt(own_worlds.Line, width=2.0, max_episode_steps=3).name == "Line"
    assert envs.adapt(own_worlds.Bandit()).max_episode_steps == 5
    line = own_worlds.short_line()
    assert envs.adapt(line) is line


NAMES = {
    "own_worlds:Line": ["width=2.0", "max_episode_steps=10"],
    "own_worlds:Sign": ["scale=0.5", "max_episode_steps=10"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_trained_goes_on_and_starts_another(name, tmp_path, capsys):
    args = ["--env", name, "--env-kwargs", *NAMES[name], "--agent", "ppo", *SMALL]
    out = str(tmp_path / "run")
    assert run.main([*args, "--total-steps", "64", "--out", out]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert stored["env"] == name and stored["env_kwargs"] == sorted(NAMES[name])
    capsys.readouterr()
    # What the folder names is not imported unasked.
    with pytest.raises(SystemExit):
        run.main(["--resume", "--out", out])
    assert "in a module own_worlds that would be imported" in capsys.readouterr().err
    assert run.main(["--resume", "--out", out, "--trust-code"]) == 0
    assert "finished" in capsys.readouterr().out
    film = tmp_path / "film.gif"
    given = ["--run", out, "--trust-code", "--out", str(film), "--size", "120", "--max-steps", "5"]
    assert play.main(given) == 0  # its observation, where it does not draw itself
    with Image.open(film) as opened:
        assert opened.n_frames == 6
    if name == "own_worlds:Sign":
        again = ["--init-from", out, "--total-steps", "32", "--out", str(tmp_path / "next")]
        assert run.main([*args, *again]) == 0
    with pytest.raises(SystemExit):
        run.main([*args, "--env-kwargs", "max_episode_steps=9", "--resume", "--out", out])
    assert "--env-kwargs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("True", "step 30: OSError: the robot is off; go on with: "),
        ("False", "reward of step 30 is NaN or infinite"),
    ],
)
def test_what_an_environment_broke_is_told(fails, said, tmp_path, capsys):
    args = ["--env", "own_worlds:Robot", "--env-kwargs", f"fails={fails}", "max_episode_steps=10"]
    args += ["--agent", "ppo", "--total-steps", "256", *SMALL]
    assert run.main([*args, "--out", str(tmp_path / "run")]) == 3
    assert f"error: environment own_worlds:Robot: {said}" in capsys.readouterr().out


def test_a_nan_by_a_parameter_of_the_suites_own_is_found():
    env = envs.make("Pendulum-v1", max_torque=1e20)
    found = inspection.find_nonfinite(env, jax.random.key(0), num_envs=2, num_steps=8)
    assert found == "environment Pendulum-v1: reward of step 1 is NaN or infinite"


def test_what_a_librarys_own_class_broke_is_found():
    env = envs.make("own_worlds:BrokenBandit")
    assert not inspection.is_known(env)
    found = inspection.find_nonfinite(env, jax.random.key(0), num_envs=2, num_steps=8)
    assert found == "environment own_worlds:BrokenBandit: reward of step 1 is NaN or infinite"


def test_a_sweep_goes_through_parameters(tmp_path, monkeypatch):
    # A process of its own, which has to find the module, looks at the cells before.
    monkeypatch.setattr(launchers, "Local", WorkersHere)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "envs: [own_worlds:Sign]\nagents: [ppo]\n"
        "env_kwargs: {scale: [0.25, 0.5], max_episode_steps: 10}\n"
    )
    out = tmp_path / "sweep"
    args = ["--file", str(file), "--out", str(out), *SMALL, "--total-steps", "64", "--trust-code"]
    assert sweep.main(args) == 0
    cells = sorted(path.parent.name for path in out.glob("*/summary.json"))
    assert [name.rpartition("-")[2] for name in cells] == ["scale=0.25", "scale=0.5"]
    stored = json.loads((out / cells[1] / "config.json").read_text())["settings"]
    assert sorted(stored["env_kwargs"]) == ["max_episode_steps=10", "scale=0.5"]


def test_a_sweep_refuses_a_wrong_parameter_before_it_begins(tmp_path, monkeypatch, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text("envs: [CartPole-v1]\nenv_kwargs: {lenght: [0.5, 2.0]}\n")
    out = tmp_path / "sweep"
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["--file", str(file), "--out", str(out), *SMALL])
    assert exit_.value.code == 2 and not out.exists()
    said = capsys.readouterr().err
    assert "--env-kwargs lenght=0.5: CartPole-v1 has no parameter 'lenght'" in said
    assert said.startswith("error: --env") and said.count("\n") == 1
    monkeypatch.setattr(probing, "ask", ask_here)
    file.write_text("network: [mlp, atari]\n")  # of pictures
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["--file", str(file), "--out", str(out), *SMALL])
    assert exit_.value.code == 2 and not out.exists()
    assert "a CNN needs observations [height, width, channels]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--env-kwargs", "lenght=1.0"],
            "--env-kwargs lenght=1.0: CartPole-v1 has no parameter 'lenght'; did you mean length?",
        ),
        (["--env-kwargs", "length"], "--env-kwargs length: expected key=value"),
        (["--env-kwargs", "length=1", "length=2"], "length is there twice"),
        (["--env-kwargs", "length=abc"], "length = 'abc': expected a float"),
        (["--env", "own_worlds:Line"], "say --env-kwargs max_episode_steps=STEPS"),
        (["--env", "own_worlds:Nothing"], "AttributeError"),
        (["--env", "own_worlds:Unlimited"], "max_episode_steps is missing"),
        (["--env", "own_worlds:Foreign"], "expected a Discrete, a MultiDiscrete or a Box"),
        (
            ["--env", "own_worlds:short_line", "--env-kwargs", "max_episode_steps=abc"],
            "max_episode_steps = 'abc': expected",
        ),
        (["--env", "gymnasium/ALE/Pong-v5"], "ale_py brings it: gymnasium/ale_py:ALE/Pong-v5"),
        (["--env", "gymnasium/Mine-v0"], "one that a module registers is gymnasium/MODULE:NAME"),
        (["--list-envs", "xyz"], "--list-envs xyz: expected one of gymnax, brax"),
        (["--list-envs", "brax/xyz"], "--list-envs brax/xyz: expected one of gymnax, brax"),
        (
            ["--env", "envpool/Pong-v5", "--env-kwargs", "stack_num=two"],
            "envpool/Pong-v5: stack_num = 'two': expected such a value as 4, the default",
        ),
    ],
)
def test_bad_input_is_one_line(args, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run.main([*args, "--out", str(tmp_path / "run"), *SMALL])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and len(said) < 600
    assert not list(tmp_path.glob("run/*"))


def test_names_are_listed(capsys):
    assert run.main(["--list-envs"]) == 0
    assert capsys.readouterr().out.split() == list(envs.NAMES)
    assert run.main(["--list-envs", "gymnasium"]) == 0
    assert "gymnasium/CartPole-v1" in capsys.readouterr().out.split()
    assert run.main(["--list-envs", "brax/h"]) == 0
    assert capsys.readouterr().out.split() == [n for n in envs.NAMES if n.startswith("brax/h")]
    for args in (["--list-envs=brax/h"], ["--list-envs", "brax/h/"]):
        assert run.main(args) == 0
        assert "brax/halfcheetah" in capsys.readouterr().out
    assert run.main(["--list-envs", "--agent", "ppo"]) == 0
    assert capsys.readouterr().out.split() == list(envs.NAMES)
    assert run.main(["--list-envs", "cartpole-v1"]) == 0
    found = capsys.readouterr().out.split()
    assert found[0] == "CartPole-v1" and "gymnasium/CartPole-v1" in found
