"""Policies that are taken away act as the agents that they are of, here and elsewhere."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from probes import Recall, assert_refused

import rgpo_jax
from agents import ppo
from experiments import export as program
from experiments.training import trained
from rgpo_jax import networks, normalization, onnx_graph, policy_file, rollout
from rgpo_jax.agent import AgentState
from rgpo_jax.environment import Box, Discrete, MultiDiscrete, Spaces, TimeStep
from rgpo_jax.policy_file import PolicyError

ROOT = Path(__file__).parents[1]
FLOAT_ERROR = {"rtol": 1e-5, "atol": 1e-5}
BATCH = 5
PARTLY_BOUNDED = Box((3,), (-2.0, 0.0, -np.inf), (2.0, 5.0, 1.0))
BOUNDED = Box((2, 1), (-2.0, 0.0), (2.0, 5.0))
IMAGE = {"channels": (6, 4), "hidden_sizes": (8,)}
# Name -> shape and type of observations, space of actions, settings.
KINDS = {
    "discrete": ((4,), np.float32, Discrete(3), {}),
    "relu": ((2, 3), np.float32, Discrete(3), {"activation": "relu"}),
    "silu": ((4,), np.float32, PARTLY_BOUNDED, {"activation": "silu"}),
    "gelu": ((4,), np.float32, PARTLY_BOUNDED, {"activation": "gelu"}),
    "normalised": ((4,), np.float32, BOUNDED, {"normalize_observations": True}),
    "tanh": ((4,), np.float32, BOUNDED, {"policy": "tanh_normal", "state_dependent_std": True}),
    "pixels": ((7, 8, 2), np.uint8, Discrete(3), IMAGE),
    "several": ((4,), np.float32, MultiDiscrete((3, 2, 4), start=(1, 0, -2)), {}),
    "joint": (
        {"eye": (7, 8, 2), "joints": (3,)},
        {"eye": np.uint8, "joints": np.float32},
        Discrete(3, start=5),
        IMAGE | {"hidden_sizes": (8, 8), "normalize_observations": True},
    ),
    "scaled": ((7, 8, 2), np.uint8, Discrete(3), IMAGE | {"normalize_observations": True}),
}  # fmt: skip
# What a process is left without: None among the modules makes an import fail.
WITHOUT = "import sys; sys.modules |= dict.fromkeys({names!r});"
SUITE = ["rgpo_jax", "agents", "envs", "experiments"]


def trained_state(agent, seed=0):
    """A learner whose parameters and statistics are none of those that it starts with."""

    @jax.jit
    def make(key):
        keys = jax.random.split(key, 3)
        state = agent.learner.init(keys[0], agent.learner.hyperparameters)
        moved = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(keys[1], x.shape), state.params)
        moments = state.observation_moments
        if moments is not None:
            moments = normalization.by_part(lambda old, _: saw(old, keys[2]), moments, moments)
        return state._replace(params=moved, observation_moments=moments)

    return make(jax.random.key(seed))


def saw(moments, key):
    seen = 3.0 + 2.0 * jax.random.normal(key, (50, *moments.mean.shape))
    return normalization.include(moments, seen)


def observations(shape, dtype):
    if isinstance(shape, dict):
        return {name: observations(shape[name], dtype[name]) for name in shape}
    drawn = 2.0 * np.random.default_rng(0).normal(size=(BATCH, *shape))
    return np.abs(50 * drawn).astype(dtype) if dtype == np.uint8 else drawn.astype(dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Kind -> an agent, its state, observations, and the folder in which it was saved."""
    made = {}

    def of(kind):
        if kind not in made:
            shape, dtype, space, settings = KINDS[kind]
            agent = ppo.make(Spaces(shape, space, dtype), ppo.Config(**settings))
            state = trained_state(agent)
            folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
            rgpo_jax.save(folder, agent, state)
            made[kind] = agent, state, observations(shape, dtype), folder
        return made[kind]

    return of


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """A recurrent agent, the state of two seeds, and the folder in which they were saved."""
    config = ppo.Config(network="gru", recurrent_size=5, num_envs=4, hidden_sizes=(6,))
    agent = ppo.make(Recall(), config)
    states = jax.tree.map(lambda *x: jnp.stack(x), *(trained_state(agent, i) for i in range(2)))
    folder = tmp_path_factory.mktemp("recurrent")
    rgpo_jax.save(folder, agent, states, seeds=(7, 9))
    return agent, states, folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_acts_as_its_agent(saved, kind):
    agent, state, seen, folder = saved(kind)
    policy, key, act = rgpo_jax.load(folder), jax.random.key(3), jax.jit(agent.act)
    mode, sample = policy.act(seen), policy.act(seen, key)
    assert type(mode) is np.ndarray
    np.testing.assert_allclose(mode, act(state, seen), **FLOAT_ERROR)
    np.testing.assert_allclose(sample, act(state, seen, key), **FLOAT_ERROR)
    assert not np.array_equal(mode, sample)
    np.testing.assert_allclose(
        policy.act(jax.tree.map(lambda x: x[0], seen)), mode[0], **FLOAT_ERROR
    )
    assert policy.act(jax.tree.map(lambda x: x[None, :2], seen)).shape == (1, 2, *mode.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_its_distribution_is_that_of_its_agent(saved, kind):
    agent, state, seen, folder = saved(kind)
    drawn = agent.sample(state, seen, jax.random.key(3))
    distribution = jax.jit(rgpo_jax.load(folder).distribution)(seen)
    np.testing.assert_allclose(distribution.log_prob(drawn.action), drawn.log_prob, **FLOAT_ERROR)
    theirs = agent.learner.policy(state, seen)
    np.testing.assert_allclose(distribution.entropy(), theirs.entropy(), **FLOAT_ERROR)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_acts_as_it_does(saved, kind, tmp_path):
    _, _, seen, folder = saved(kind)
    policy = rgpo_jax.load(folder)
    mode = policy.act(seen)
    policy.export(tmp_path / "policy.onnx")
    policy.export(tmp_path / "policy.stablehlo")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    for size in (1, BATCH):
        parts = {f"observation.{name}": x for name, x in seen.items()} if kind == "joint" else {}
        feed = parts or {"observation": seen}
        (found,) = session.run(["action"], {name: x[:size] for name, x in feed.items()})
        assert found.dtype == mode.dtype
        np.testing.assert_allclose(found, mode[:size], **FLOAT_ERROR)
    call = jax.export.deserialize((tmp_path / "policy.stablehlo").read_bytes()).call
    np.testing.assert_allclose(call(seen), mode, **FLOAT_ERROR)


def test_a_recurrent_one_carries_its_memory(recurrent, tmp_path):
    agent, states, folder = recurrent
    policy = rgpo_jax.load(folder, seed=9)
    policy.export(tmp_path / "policy.onnx")
    policy.export(tmp_path / "policy.stablehlo")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    call = jax.export.deserialize((tmp_path / "policy.stablehlo").read_bytes()).call
    state = jax.tree.map(lambda x: x[1], states)
    theirs, memory = agent.initial_memory(BATCH), policy.initial_memory(BATCH)
    act = jax.jit(agent.act)
    for key in jax.random.split(jax.random.key(0), 4):
        seen = np.asarray(jax.random.normal(key, (BATCH, 1)))
        given = {"observation": seen, "memory": memory}
        results = [session.run(["action", "next_memory"], given), call(seen, memory)]
        expected, theirs = act(state, seen, None, theirs)
        action, memory = policy.act(seen, memory=memory)
        for found, after in (*results, (action, memory)):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_allclose(after, theirs["actor"], **FLOAT_ERROR)
    assert not np.allclose(memory, 0.0)
    assert policy.seed == 9 and rgpo_jax.load(folder).seed == 7


def run_without(names, source, folder):
    """Runs Python in a folder, in a process that cannot import these modules."""
    whole = WITHOUT.format(names=names) + source
    done = subprocess.run(
        [sys.executable, "-c", whole], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def test_it_acts_where_neither_training_nor_suite_nor_jax_is(saved, tmp_path):
    _, _, seen, folder = saved("normalised")
    policy = rgpo_jax.load(folder)
    shutil.copy(folder / "policy.npz", tmp_path)
    policy.export(tmp_path / "policy.onnx")
    policy.export(tmp_path / "policy.stablehlo")
    np.save(tmp_path / "seen.npy", seen)
    head = "import numpy as np; seen = np.load('seen.npy');"
    tail = "; print(np.asarray(actions).tolist())"
    loading = "import rgpo_jax; actions = rgpo_jax.load('.').act(seen)"
    onnx = (
        "import onnxruntime; session = onnxruntime.InferenceSession('policy.onnx');"
        "actions = session.run(None, {'observation': seen})[0]"
    )
    stablehlo = (
        "from jax import export; content = open('policy.stablehlo', 'rb').read();"
        "actions = export.deserialize(bytearray(content)).call(seen)"
    )
    training = ["agents", "envs", "experiments", "orbax", "optax", "gymnax"]
    for names, source in (
        (training, loading),
        ([*SUITE, "jax", "jaxlib", "flax"], onnx),
        ([*SUITE, "flax"], stablehlo),
    ):
        found = run_without(names, head + source + tail, tmp_path)
        np.testing.assert_allclose(found, policy.act(seen), **FLOAT_ERROR)


def test_observations_are_checked(saved, recurrent):
    policy = rgpo_jax.load(saved("discrete")[-1])
    with pytest.raises(ValueError, match=re.escape("shape (3,): expected (4,), or a batch")):
        policy.act(np.zeros(3))
    with pytest.raises(TypeError, match="takes no memory"):
        policy.act(np.zeros(4), memory=np.zeros(5))
    with pytest.raises(TypeError, match="float64: expected uint8"):
        rgpo_jax.load(saved("pixels")[-1]).act(np.zeros((7, 8, 2)))
    policy = rgpo_jax.load(recurrent[-1])
    with pytest.raises(TypeError, match="needs a memory"):
        policy.act(np.zeros(1))
    with pytest.raises(ValueError, match=re.escape("memory of shape (2, 5): expected (3, 5)")):
        policy.act(np.zeros((3, 1)), memory=policy.initial_memory(2))


def test_a_network_of_ones_own_has_to_be_given(tmp_path):
    """Also where its parameters look like those of the config's: what it does is not known."""
    spaces, config = Spaces((4,), Discrete(3)), ppo.Config(hidden_sizes=(8,))
    inner = networks.make(spaces.observation_shape, spaces.action_space, config)
    network = inner._replace(policy=lambda *args: inner.policy(*args), config=None)
    agent = rgpo_jax.agent.make(spaces, config, rgpo_jax.gates.ppo(0.2), network=network)
    state = trained_state(agent)
    rgpo_jax.save(tmp_path / "own.npz", agent, state)
    with pytest.raises(PolicyError, match=r"own.npz: it has a Network of its own: give it"):
        rgpo_jax.load(tmp_path / "own.npz")
    seen = observations((4,), np.float32)
    action = rgpo_jax.load(tmp_path / "own.npz", network=network).act(seen)
    np.testing.assert_array_equal(action, agent.act(state, seen))
    wider = networks.make((4,), spaces.action_space, ppo.Config(hidden_sizes=(9,)))
    with pytest.raises(PolicyError, match="is not that of its network"):
        rgpo_jax.load(tmp_path / "own.npz", network=wider)


def test_the_states_and_the_seeds_are_as_many(recurrent, tmp_path):
    agent, states, _ = recurrent
    with pytest.raises(ValueError, match=r"seeds \(1,\): there are 2 states"):
        rgpo_jax.save(tmp_path / "new", agent, states, seeds=(1,))
    assert not (tmp_path / "new").exists()


def damaged(content, how):
    if how == "cut":
        return content[:-100]
    if how == "pickled":
        file = io.BytesIO()
        np.savez(file, about=np.array([{}], object))
        return file.getvalue()
    if how == "text":
        return b"no policy"
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    if how == "newer":
        about["format"] = 2
    elif how == "setting":
        about["config"]["activation"] = "exec"
    elif how == "space":
        about["action_space"] = {"kind": "Box", "shape": [1], "low": [1], "high": [0]}
    elif how == "shape":
        del arrays["actor/params/Dense_0/bias"]
    arrays["about"] = np.array(json.dumps(about))
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "damaged"),
        ("pickled", "damaged: Object arrays cannot be loaded"),
        ("text", "damaged"),
        ("newer", "another version of this suite"),
        ("setting", "activation 'exec': expected one of"),
        ("space", "low is 1 in element 0: expected at most its high"),
        ("shape", "actor/params/Dense_0/bias is not that of its network"),
    ],
)
def test_what_is_none_is_refused(saved, tmp_path, how, message):
    content = (saved("discrete")[-1] / "policy.npz").read_bytes()
    (tmp_path / "policy.npz").write_bytes(damaged(content, how))
    with pytest.raises(PolicyError, match=re.escape(message)) as refused:
        rgpo_jax.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_observations_in_bfloat16_may_be_given_as_float32(tmp_path):
    class Line:
        name = "Line"
        observation_shape = (2,)
        action_space = Discrete(3)
        max_episode_steps = 5

        def reset(self, key):
            observation = jax.random.normal(key, (2,), jnp.bfloat16)
            return observation, observation

        def step(self, key, state, action):
            no = jnp.bool_(False)
            return state, TimeStep(state, jnp.float32(0.0), no, no, state)

    agent = ppo.make(Line())
    state = trained_state(agent)
    rgpo_jax.save(tmp_path, agent, state)
    observation = jnp.array([0.5, -1.25], jnp.bfloat16)
    for given in (observation, np.asarray(observation, np.float32)):
        acted = rgpo_jax.load(tmp_path).act(given)
        assert acted == agent.act(state, observation)


def test_half_precision_is_not_for_onnx(tmp_path):
    agent = ppo.make(Spaces((4,), Discrete(3)), ppo.Config(dtype="bfloat16"))
    rgpo_jax.save(tmp_path, agent, trained_state(agent))
    policy = rgpo_jax.load(tmp_path)
    with pytest.raises(PolicyError, match="ONNX: no arithmetic in bfloat16; StableHLO has it"):
        policy.export(tmp_path / "policy.onnx")
    policy.export(tmp_path / "policy.stablehlo")
    with pytest.raises(PolicyError, match=r"'.pb': expected .stablehlo or .onnx"):
        policy.export(tmp_path / "policy.pb")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["policy.npz", "policy.stablehlo"]


@jax.custom_vjp
def doubled(x):
    return x * 2


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2 * g,))

FUNCTIONS = {
    "arithmetic": lambda x, y: -x / (1 + y**2) + jnp.abs(x) ** 1.5 - x**3,
    "transcendental": lambda x, y: jnp.exp(x) + jnp.log(1 + y**2) * jnp.sin(x) - jnp.cos(y),
    "roots": lambda x, y: jnp.sqrt(x**2 + 1) * jax.lax.rsqrt(y**2 + 1) + jax.scipy.special.erf(x),
    "square": lambda x, y: jnp.square(x) + jax.nn.sigmoid(y),
    "comparisons": lambda x, y: jnp.stack(
        [x < y, x <= y, x > y, x >= y, x == y, x != y], axis=1
    ).astype(jnp.int32),
    "logic": lambda x, y: jnp.where((x > 0) & ~(y > 0) | (x > 1), x, y),
    "bounds": lambda x, y: jnp.clip(x, -0.5, jnp.maximum(y, 0.0)),
    "reductions": lambda x, y: x.sum(axis=1) + y.max(axis=1) * x.min(axis=1),
    "softmax": lambda x, y: jax.nn.softmax(x + y),
    "layer norm": lambda x, y: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3),
    "parts": lambda x, y: jnp.concatenate([x[:, 1:3], *jnp.split(y, 2, axis=1)[::-1]], axis=1),
    "axes": lambda x, y: (x[:, None, :] * y[:, :, None]).transpose(0, 2, 1).reshape(-1, 16),
    "squeezing": lambda x, y: x[:, :1].squeeze(1) * y[:, 0] * x[..., -1],
    "slices": lambda x, y: jax.lax.slice_in_dim(x, 1, 3, axis=1) * y[:, 1:3],
    "contractions": lambda x, y: jnp.einsum("bi,bj,jk->bik", x, y, jnp.eye(4) + 0.5),
    "convolution": lambda x, y: jax.lax.conv_general_dilated(
        jnp.stack([x, y], axis=2), jnp.arange(12.0).reshape(3, 2, 2), (2,), ((1, 2),),
        rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "own gradient": lambda x, y: doubled(x) + jax.nn.relu(y),
    "padding": lambda x, y: jnp.pad(x, [(0, 0), (1, 2)], constant_values=-3.0) * y.sum(1)[:, None],
    "a constant": lambda x, y: jnp.broadcast_to(jnp.array([1.0, 2.0]), (x.shape[0], 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operator_does_what_its_operation_does(name):
    function, x = FUNCTIONS[name], np.random.default_rng(1).normal(size=(2, 3, 4))
    x = x.astype(np.float32)
    x[1, 0] = x[0, 0]  # comparisons meet equals
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 4), jnp.float32)
    model = onnx_graph.convert(function, [shape, shape], ["x", "y"], ["result"])
    (found,) = onnxruntime.InferenceSession(model).run(None, {"x": x[0], "y": x[1]})
    expected = function(*map(jnp.asarray, x))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, **FLOAT_ERROR)


def test_what_has_no_operator_is_named():
    shape = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    with pytest.raises(onnx_graph.NotInOnnx, match="no operator for sort"):
        onnx_graph.convert(jnp.sort, [shape], ["x"], ["result"])


def test_a_loop_of_ones_own_has_what_a_rollout_has(recurrent):
    """Step by step, with a memory: the trajectory that `collect` gathers, but for its noise."""
    agent, states, _ = recurrent
    learner = jax.tree.map(lambda x: x[0], states)
    rolled = agent.init(jax.random.key(0)).rollout
    _, trajectory, _ = rollout.collect(
        agent.env,
        lambda *args: agent.learner.policy(learner, *args),
        rolled,
        jax.random.key(1),
        3,
        4,
    )
    memory, sample = rolled.memory, jax.jit(agent.sample)
    for t, seen in enumerate(trajectory.observation):
        acted = sample(learner, seen, jax.random.key(t), memory)
        distribution, memory = agent.learner.policy(learner, seen, memory)
        same = acted.action == trajectory.action[t]
        expected = np.where(same, trajectory.log_prob[t], np.log1p(-np.exp(trajectory.log_prob[t])))
        np.testing.assert_allclose(acted.log_prob, expected, rtol=1e-4)  # of two actions
        np.testing.assert_array_equal(acted.action, distribution.sample(jax.random.key(t)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), acted.memory, memory)


def test_a_sample_is_in_the_environments_units_too(saved):
    agent, state, seen, _ = saved("tanh")
    key = jax.random.key(2)
    acted = agent.sample(state, seen, key)
    expected = (jnp.array([0.0, 2.5]) + jnp.array([2.0, 2.5]) * jnp.tanh(acted.action))[..., None]
    np.testing.assert_allclose(acted.env_action, expected, rtol=1e-5)
    np.testing.assert_array_equal(acted.env_action, agent.act(state, seen, key))
    as_agent = AgentState(state, rollout=None, key=key)
    np.testing.assert_array_equal(agent.sample(as_agent, seen, key).log_prob, acted.log_prob)


def test_a_world_of_ones_own_is_stepped_by_nobody_else(saved):
    agent, _, _, _ = saved("discrete")
    with pytest.raises(TypeError, match=r"step it yourself \(agent.sample\)"):
        rgpo_jax.host.Collector(agent, seeds=(0,))


TINY = [
    *("--agent", "rgpo", "--env", "CartPole-v1", "--num-seeds", "2", "--total-steps", "64"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
    "--normalize-observations",
]


def test_a_run_keeps_the_policies_of_its_checkpoint(whole):
    loaded, seen = trained.load(str(whole), "--run"), observations((4,), np.float32)
    for seed in (0, 1):
        policy = rgpo_jax.load(whole, seed=seed)
        learner = jax.tree.map(lambda x, seed=seed: x[seed], loaded.learners)
        key = jax.random.key(5)
        np.testing.assert_allclose(
            policy.act(seen, key), loaded.agent.act(learner, seen, key), **FLOAT_ERROR
        )
        assert float(learner.observation_moments.num_values) == 64
        assert (policy.about.env, policy.about.updates) == ("CartPole-v1", 4)
    with pytest.raises(PolicyError, match=r"seed 2: it has 0, 1"):
        rgpo_jax.load(whole, seed=2)


def test_an_earlier_run_gets_the_file_from_its_checkpoint(whole, tmp_path, capsys):
    folder = tmp_path / "earlier"
    shutil.copytree(whole, folder)
    (folder / "policy.npz").unlink()
    with pytest.raises(PolicyError, match=r"no policy.npz; a run of an earlier version gets one"):
        rgpo_jax.load(folder)
    args = ["--run", str(folder), "--out", str(folder / "policy.npz")]
    assert program.main(args) == 0
    assert "the policies for CartPole-v1, after 4 updates -> " in capsys.readouterr().out
    about, arrays = policy_file.unpack((folder / "policy.npz").read_bytes())
    as_kept, kept = policy_file.unpack((whole / "policy.npz").read_bytes())
    assert about == as_kept
    jax.tree.map(np.testing.assert_array_equal, arrays, kept)


def test_a_command_exports(whole, tmp_path, capsys):
    out = tmp_path / "policy.onnx"
    assert program.main(["--run", str(whole), "--out", str(out), "--seed", "1"]) == 0
    assert "the policy for CartPole-v1, seed 1, after 4 updates -> " in capsys.readouterr().out
    seen = observations((4,), np.float32)
    (found,) = onnxruntime.InferenceSession(out).run(None, {"observation": seen})
    np.testing.assert_array_equal(found, rgpo_jax.load(whole, seed=1).act(seen))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "policy.pb"], "--out policy.pb: expected a name that ends in .onnx, .stablehlo"),
        (["--out", "there.onnx"], "--out there.onnx: is there already"),
        (["--out", "no/policy.onnx"], "no is no folder that can be written"),
        (["--out", "new.npz", "--seed", "1"], "--seed 1: an .npz has all seeds"),
        (["--out", "new.onnx", "--seed", "7"], "seed 7: it has 0, 1"),
        (["--out", "new.onnx", "--run", "."], "--run .: expected the folder of a run"),
        (["--out", "new.onnx", "--run", "cut"], "--run cut: policy.npz: no policy of this suite"),
        (["--out", "new.onnx", "--run", "linked"], "policy.npz is a link, which is not followed"),
    ],
)
def test_bad_input_is_one_line(whole, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_text("mine")
    for folder in ("cut", "linked"):
        Path(folder).mkdir()
    Path("cut/policy.npz").write_bytes((whole / "policy.npz").read_bytes()[:1000])
    Path("linked/policy.npz").symlink_to(whole / "policy.npz")
    before = sorted(tmp_path.iterdir())
    assert_refused(program.main, ["--run", str(whole), *args], message, capsys)
    assert sorted(tmp_path.iterdir()) == before and Path("there.onnx").read_text() == "mine"


def test_every_block_of_the_page_runs(whole, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "policy.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 10
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cartpole").symlink_to(whole)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/policy.md", "exec"), names)
    assert names["episode_return"] >= 8 and names["actions"].shape == (3,)
    assert names["policy"].about.env == "CartPole-v1"
    assert zipfile.is_zipfile("mine/policy.npz")
