"""Networks of a user's own, as an argument and by name; widths of the critic; Atari's network."""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from workers import ask_here

import envs
import rgpo_jax
from agents import ppo
from experiments import export, run
from experiments.plan.reading import read_plan
from experiments.sweep import probing
from experiments.sweep.__main__ import main as sweep_main
from experiments.training import building
from experiments.tune.__main__ import main as tune_main
from rgpo_jax import networks
from rgpo_jax.config import ConfigError
from rgpo_jax.environment import Box, Discrete

WORLDS = Path(__file__).parent / "data" / "own_worlds.py"
SMALL = ["--num-envs", "2", "--num-steps", "8", "--num-minibatches", "1", "--total-steps", "64"]
SMALL += ["--eval-episodes", "1", "--agent", "ppo"]
pytestmark = pytest.mark.usefixtures("curves_are_drawn_once")


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_module(tmp_path, monkeypatch):
    shutil.copy(WORLDS, tmp_path / "own_worlds.py")
    monkeypatch.chdir(tmp_path)


class Sines(nn.Module):
    """A torso without settings."""

    @nn.compact
    def __call__(self, observation):
        return jnp.sin(nn.Dense(8)(observation))


def test_a_torso_of_ones_own_is_that_of_actor_and_critic():
    network = networks.make((4,), Discrete(3), ppo.Config(), torso=Sines())
    params = network.init(jax.random.key(0))
    seen = jax.random.normal(jax.random.key(1), (5, 4))
    for name, head in (("actor", network.policy), ("critic", network.value)):
        own = params[name]["params"]
        features = jnp.sin(seen @ own["torso"]["Dense_0"]["kernel"])
        expected = features @ own["Dense_0"]["kernel"] + own["Dense_0"]["bias"]
        found = head(params[name], seen)
        if name == "actor":
            np.testing.assert_allclose(found.log_probs, jax.nn.log_softmax(expected), rtol=1e-5)
        else:
            np.testing.assert_allclose(found, expected[:, 0], rtol=1e-5, atol=1e-6)
    kernels = [params[name]["params"]["torso"]["Dense_0"]["kernel"] for name in params]
    assert not np.array_equal(*kernels)


def test_an_agent_with_a_torso_learns_and_is_taken_away(tmp_path):
    config = ppo.Config(num_envs=4, num_steps=8, num_minibatches=1)
    agent = ppo.make(envs.make("CartPole-v1"), config, network=Sines())
    state = jax.jit(agent.init)(jax.random.key(0))
    after, _ = jax.jit(agent.step)(state)
    kernels = [s.learner.params["actor"]["params"]["Dense_0"]["kernel"] for s in (state, after)]
    assert not np.array_equal(*kernels)
    rgpo_jax.save(tmp_path, agent, after)
    with pytest.raises(ValueError, match="test_own_networks:Sines: expected the module itself"):
        rgpo_jax.load(tmp_path)
    policy = rgpo_jax.load(tmp_path, network=Sines())
    seen = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_array_equal(policy.act(seen), agent.act(after, seen))


def test_a_torso_with_a_memory_behind_it():
    config = ppo.Config(network="gru", recurrent_size=3)
    network = networks.make((4,), Discrete(2), config, torso=Sines())
    params = network.init(jax.random.key(0))
    memory = network.initial_memory(5)
    _, after = network.recurrence.step(params, jnp.ones((5, 4)), memory)
    assert after["actor"].shape == (5, 3) and jnp.abs(after["actor"]).max() > 0


class Cosines(nn.Module):
    """A torso whose parameters have the names and shapes of the suite's."""

    @nn.compact
    def __call__(self, observation):
        return jnp.cos(nn.Dense(8)(observation))


class Twice(Cosines):
    """Another, whose parameters are the same."""


@pytest.mark.parametrize("network", ["auto", "gru"])
def test_a_torso_of_ones_own_is_not_taken_for_the_suites(network, tmp_path):
    small = ppo.Config(
        network=network, hidden_sizes=(8,), recurrent_size=3, num_envs=4, num_minibatches=1
    )
    agent = ppo.make(envs.make("CartPole-v1"), small, network=Cosines())
    state = agent.init(jax.random.key(0))
    rgpo_jax.save(tmp_path, agent, state)
    with pytest.raises(ValueError, match=r"its torso is .*Cosines: expected the module itself"):
        rgpo_jax.load(tmp_path)
    with pytest.warns(UserWarning, match="the one given is test_own_networks:Twice"):
        rgpo_jax.load(tmp_path, network=Twice())
    policy = rgpo_jax.load(tmp_path, network=Cosines())
    assert policy.is_recurrent == (network == "gru")
    seen = np.ones((6, 4), np.float32)
    memory = policy.initial_memory(6)
    found = policy.act(seen, memory=memory)
    assert np.shape(found[0] if network == "gru" else found) == (6,)


def test_the_critic_may_have_widths_of_its_own():
    config = ppo.Config(hidden_sizes=(8, 4), critic_hidden_sizes=(32,))
    network = networks.make((3,), Box((2,), (-1.0, -1.0), (1.0, 1.0)), config)
    params = jax.eval_shape(network.init, jax.random.key(0))

    def widths(tree):
        return sorted(x.shape for x in jax.tree.leaves(tree) if x.ndim == 2)

    assert widths(params["actor"]) == [(3, 8), (4, 2), (8, 4)]
    assert widths(params["critic"]) == [(3, 32), (32, 1)]
    with pytest.raises(ConfigError, match="critic_hidden_sizes expected None with network gru"):
        ppo.Config(network="gru", critic_hidden_sizes=(4,), num_envs=4)


def test_ataris_network_is_that_of_dqn():
    config = ppo.Config(network="atari", hidden_sizes=(512,), activation="relu")
    network = networks.make((84, 84, 4), Discrete(6), config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    # 1,684,128 weights of Nature's before the last layer, which has 512 x 6 + 6.
    assert sum(x.size for x in jax.tree.leaves(shapes["actor"])) == 1_684_128 + 3_078
    with pytest.raises(ValueError, match="network atari: 3 convolutions, the first of 8x8, leave"):
        networks.make((20, 20, 3), Discrete(2), config)
    with pytest.raises(ValueError, match="a CNN needs observations"):
        networks.make((20,), Discrete(2), config)


def test_a_torso_by_name_may_be_that_of_a_function_which_is_told_what_there_is():
    plan = read_plan(["--network", "own_worlds:wide_net", *SMALL])
    params = jax.eval_shape(building.make_agent(plan).init, jax.random.key(0)).learner.params
    for part in params.values():
        assert part["params"]["torso"]["Dense_0"]["kernel"].shape == (4, 16)


@pytest.mark.parametrize("name", ["own_worlds:Net", "own_worlds:whole_net"])
def test_by_name_a_run_is_trained_and_goes_on(name, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert run.main(["--network", name, *SMALL, "--out", out]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert stored["network"] == name
    capsys.readouterr()
    with pytest.raises(SystemExit):  # the folder's word is not enough
        run.main(["--resume", "--out", out])
    assert "its network is own_worlds:" in capsys.readouterr().err
    taken = tmp_path / "policy.onnx"
    given = ["--run", out, "--out", str(taken), "--trust-code"]
    assert export.main(given) == 0 and taken.stat().st_size > 100
    if name == "own_worlds:Net":
        again = [*SMALL, "--network", name, "--init-from", out, "--out", str(tmp_path / "next")]
        assert run.main(again) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cn",
            "--network cn: did you mean cnn? expected auto, mlp, cnn, atari, gru or MODULE:NAME",
        ),
        ("own_worlds:Ne", "--network own_worlds:Ne: AttributeError"),
        ("own_worlds:no_net", "--network own_worlds:no_net: a dict; expected a module of flax"),
        ("own_worlds:Sign", "--network own_worlds:Sign: TypeError"),
        ("nothing:Net", "--network nothing:Net: no module named 'nothing'"),
    ],
)
def test_what_is_no_network_is_one_line(name, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run.main(["--network", name, *SMALL, "--out", str(tmp_path / "run")])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_sweeps_or_a_searchs_file_does_not_run_code_unasked(tmp_path, capsys):
    for main, content in (
        (sweep_main, "network: {choice: ['own_worlds:Net']}\ndraws: 1\n"),
        (sweep_main, "network: ['own_worlds:Net', mlp]\n"),
        (tune_main, "network: ['own_worlds:Net', mlp]\n"),
        (tune_main, "network: {choice: ['own_worlds:Net', mlp]}\n"),
    ):
        (tmp_path / "file.yaml").write_text(content)
        with pytest.raises(SystemExit) as exit_:
            main(
                ["--file", str(tmp_path / "file.yaml"), "--out", str(tmp_path / "out"), *SMALL[:-2]]
            )
        assert exit_.value.code == 2
        assert "in a module own_worlds that would be imported" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_sweep_refuses_a_wrong_network_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probing, "ask", ask_here)
    (tmp_path / "file.yaml").write_text("network: [mlp, 'own_worlds:no_net']\n")
    with pytest.raises(SystemExit) as exit_:
        sweep_main(["--file", "file.yaml", "--trust-code", "--out", "out", *SMALL[:-2]])
    assert exit_.value.code == 2 and not (tmp_path / "out").exists()
    assert "--network own_worlds:no_net: a dict; expected a module" in capsys.readouterr().err


def test_what_is_no_network_is_refused_by_the_library_too():
    with pytest.raises(ValueError, match="network: a int; expected a module of flax"):
        ppo.make(envs.make("CartPole-v1"), network=3)
