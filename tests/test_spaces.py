"""Kinds of actions and observations: read as Gymnasium says, and learnt from."""

import json
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from killing import killed_in
from probes import OBSERVATION_ACTION, Tabular

import envs
from agents import ppo, trpo
from envs import spaces as ours
from experiments import run
from experiments.play import __main__ as play
from rgpo_jax import host, networks, train
from rgpo_jax.environment import Box, Discrete, MultiDiscrete, TimeStep

EIGHT = 8  # steps of an episode, of which each is worth 1


class Digits(gymnasium.Env):
    """Say the digits that are shown: none of them tells another."""

    observation_space = spaces.MultiDiscrete([2, 3, 4], start=[5, 0, -1])
    action_space = spaces.MultiDiscrete([2, 3, 4], start=[1, 0, -2])
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def _show(self):
        self.shown = self.observation_space.start + self.np_random.integers([2, 3, 4])
        return self.shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._show(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        wanted = self.shown - self.observation_space.start + self.action_space.start
        reward = float(np.mean(action == wanted))
        return self._show(), reward, False, False, {}

    def render(self):
        return np.full((40, 40, 3), 20 * int(self.shown[1]), np.uint8)


class Count(gymnasium.Env):
    """Say the number that is shown; both have starts."""

    observation_space = spaces.Discrete(3, start=-1)
    action_space = spaces.Discrete(3, start=4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = self.observation_space.start + self.np_random.integers(3)
        return self.shown, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = float(action - 4 == self.shown + 1)
        return self.reset()[0], reward, False, False, {}


class Lamp(gymnasium.Env):
    """A lamp, left or right, and a switch that swaps what to say: neither is enough."""

    observation_space = spaces.Dict(
        lamp=spaces.Box(0, 255, (1, 5, 6), np.uint8), switch=spaces.Discrete(2, start=1)
    )
    action_space = spaces.MultiBinary(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side, self.switch = self.np_random.integers(2, size=2)
        lamp = np.zeros((1, 5, 6), np.uint8)
        lamp[0, :, 3 * self.side + self.np_random.integers(3)] = 255
        return {"lamp": lamp, "switch": 1 + self.switch}, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = float(action[0] == self.side ^ self.switch)
        return self.reset()[0], reward, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def registered():
    names = [f"{kind.__name__}-v0" for kind in (Digits, Count, Lamp)]
    for name, kind in zip(names, (Digits, Count, Lamp), strict=True):
        gymnasium.register(name, kind, max_episode_steps=EIGHT)
    yield
    for name in names:
        gymnasium.registry.pop(name)


# What Gymnasium's spaces are read as.

BOX = spaces.Box(-1.0, 1.0, (2, 2))
PICTURE = spaces.Box(0, 255, (6, 7, 3), np.uint8)
PARTS = {
    "grid": BOX,
    "where": spaces.Discrete(3, start=-1),
    "hands": spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3], start=[1, 0])]),
}


def batch_of(space, number=4):
    """Observations one by one, and as a vector environment hands them out."""
    space.seed(0)
    singles = [space.sample() for _ in range(number)]
    empty = gymnasium.vector.utils.create_empty_array(space, number)
    return singles, gymnasium.vector.utils.concatenate(space, singles, empty)


@pytest.mark.parametrize("space", [spaces.Dict(PARTS), spaces.Tuple(PARTS.values())])
def test_vectors_are_joined_as_gymnasium_flattens_them(space):
    singles, batch = batch_of(space)
    shape, dtype, read = ours.observation("X", space)
    assert shape == spaces.flatdim(space) * np.ones(1)
    assert dtype == read(batch).dtype == np.float32
    np.testing.assert_allclose(read(batch), [spaces.flatten(space, one) for one in singles])


@pytest.mark.parametrize("space", [PARTS["where"], PARTS["hands"][1]])
def test_whole_numbers_are_one_hot(space):
    singles, batch = batch_of(space)
    shape, _, read = ours.observation("X", space)
    assert shape == (spaces.flatdim(space),)
    np.testing.assert_array_equal(read(batch), [spaces.flatten(space, one) for one in singles])


def test_arrays_keep_their_shape():
    for space in (BOX, spaces.MultiBinary([2, 3]), spaces.Box(0, 9, (3, 3), np.int64)):
        _, batch = batch_of(space)
        shape, dtype, read = ours.observation("X", space)
        assert (shape, dtype) == (space.shape, np.float32)
        np.testing.assert_array_equal(read(batch), batch)


def test_an_image_stays_beside_the_vector_under_its_name():
    space = spaces.Dict(eye=PICTURE, arm=spaces.Dict(eye=PICTURE, angle=BOX), goal=PARTS["where"])
    singles, batch = batch_of(space)
    shape, dtype, read = ours.observation("X", space)
    assert shape == {"eye": (6, 7, 3), "arm/eye": (6, 7, 3), "vector": (7,)}
    assert dtype == {"eye": np.uint8, "arm/eye": np.uint8, "vector": np.float32}
    found = read(batch)
    np.testing.assert_array_equal(found["eye"], [one["eye"] for one in singles])
    np.testing.assert_array_equal(found["arm/eye"], [one["arm"]["eye"] for one in singles])
    np.testing.assert_array_equal(found["vector"][:, :4], batch["arm"]["angle"].reshape(4, 4))


def test_an_image_alone_is_an_array():
    reading = ours.observation("X", spaces.Dict(eye=PICTURE))
    assert (reading.shape, reading.dtype) == ((6, 7, 3), np.uint8)
    with pytest.raises(ValueError, match="X: observations with two parts 'vector'"):
        ours.observation("X", spaces.Dict(vector=PICTURE, goal=BOX))


@pytest.mark.parametrize(
    ("theirs", "expected", "axes"),
    [
        ((84, 84, 4), (84, 84, 4), None),
        ((4, 84, 84), (84, 84, 4), (1, 2, 0)),  # a stack of gray pictures
        ((3, 96, 128), (96, 128, 3), (1, 2, 0)),
        ((210, 160, 3), (210, 160, 3), None),
        ((9, 9, 17), (9, 9, 17), None),  # a board of many planes
        ((5, 5, 5), (5, 5, 5), None),
        ((84, 84), (84, 84, 1), None),
        ((4, 84, 80, 3), (84, 80, 12), (1, 2, 0, 3)),  # a stack of coloured ones
        ((4, 3, 84, 80), (84, 80, 12), (2, 3, 0, 1)),
    ],
)
def test_channels_of_an_image_come_last(theirs, expected, axes):
    space = spaces.Box(0, 255, theirs, np.uint8)
    singles, batch = batch_of(space, 2)
    shape, dtype, read = ours.observation("X", space)
    found = read(batch)
    assert shape == found.shape[1:] == expected
    assert dtype == found.dtype == np.uint8
    ordered = [one if axes is None else one.transpose(axes) for one in singles]
    np.testing.assert_array_equal(found, np.reshape(ordered, (2, *expected)))


def test_a_matrix_of_few_values_is_no_image():
    assert ours.observation("X", spaces.Box(0, 2, (8, 8), np.uint8)).shape == (8, 8)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(3, start=-1), Discrete(3, -1)),
        (spaces.MultiDiscrete([2, 3], start=[1, 0]), MultiDiscrete((2, 3), (1, 0))),
        (spaces.MultiDiscrete([[2, 3]]), MultiDiscrete((2, 3), (0, 0), (1, 2))),
        (spaces.MultiBinary(3), MultiDiscrete((2, 2, 2))),
        (spaces.MultiBinary([2, 1]), MultiDiscrete((2, 2), shape=(2, 1))),
        (
            spaces.Box(np.array([0, -1]), np.array([4, 1]), dtype=int),
            MultiDiscrete((5, 3), (0, -1)),
        ),
        (spaces.Box(-1.0, 2.0, (1, 2)), Box((1, 2), (-1.0, -1.0), (2.0, 2.0))),
    ],
)
def test_actions_are_those_of_gymnasium(space, expected):
    assert ours.action_space("X", space) == expected


TEXT = spaces.Text(5)


class Sequences(spaces.Sequence):
    """Of a class of others."""


@pytest.mark.parametrize(
    ("read", "space", "named"),
    [
        (ours.observation, TEXT, "observations of kind Text"),
        (ours.observation, spaces.Sequence(PICTURE), "observations of kind Sequence"),
        (ours.observation, spaces.Graph(BOX, None), "observations of kind Graph"),
        (
            ours.observation,
            spaces.Dict(a=BOX, b=spaces.Tuple([spaces.Sequence(BOX)])),
            "a part 'b/0' of kind Sequence",
        ),
        (ours.observation, spaces.Dict(a=spaces.OneOf([BOX])), "a part 'a' of kind OneOf"),
        (ours.observation, spaces.Dict(a=Sequences(BOX)), "a part 'a' of kind Sequence"),
        (ours.observation, spaces.Dict(), "observations of kind Dict()"),
        (ours.action_space, TEXT, "actions of kind Text"),
        (ours.action_space, spaces.Dict(a=BOX), "actions of kind Dict"),
        (ours.action_space, spaces.Box(0, 10**6, (1,), np.int64), "actions of kind Box"),
    ],
)
def test_what_is_not_supported_is_named(read, space, named):
    with pytest.raises(ValueError, match="are not supported") as refused:
        read("gymnasium/X-v0", space)
    assert str(refused.value).startswith("gymnasium/X-v0: ") and named in str(refused.value)
    assert "\n" not in str(refused.value)


class Mission(spaces.Space):
    """What a library of others has, as MiniGrid does."""


@pytest.mark.parametrize("words", [TEXT, Mission()])
def test_words_beside_numbers_are_left_out_and_told(words):
    kind = type(words).__name__
    with pytest.warns(UserWarning, match=f"X: the policy does not see 'mission', a {kind}"):
        reading = ours.observation("X", spaces.Dict(mission=words, place=BOX))
    assert reading.shape == (4,)
    batch = {"mission": ("go",), "place": np.ones((1, 2, 2), np.float32)}
    np.testing.assert_array_equal(reading.read(batch), np.ones((1, 4)))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="are not supported"):
        ours.observation("X", spaces.Dict(mission=words))


# Environments on the host.


def test_a_pool_follows_its_environments_part_by_part():
    pool = envs.make("gymnasium/Lamp-v0").make_pool([3, 4])
    singles = [gymnasium.make("Lamp-v0") for _ in range(2)]

    def read(observations):
        lamps = np.stack([np.moveaxis(o["lamp"], 0, -1) for o in observations])
        return {"lamp": lamps, "vector": np.eye(2)[[o["switch"] - 1 for o in observations]]}

    def same(found, observations):
        jax.tree.map(np.testing.assert_array_equal, found, read(observations))

    same(pool.reset(), [env.reset(seed=seed)[0] for env, seed in zip(singles, (3, 4), strict=True)])
    for t in range(1, 2 * EIGHT + 1):
        action = np.array([[t % 2], [0]], np.int32)
        pool.send(action)
        timestep = pool.receive()
        finals = [env.step(a)[0] for env, a in zip(singles, action, strict=True)]
        same(timestep.final_observation, finals)
        ends = t % EIGHT == 0
        assert (timestep.truncated == ends).all()
        same(timestep.observation, [env.reset()[0] for env in singles] if ends else finals)


def test_envpools_dicts_are_read_in_their_order():
    envpool = pytest.importorskip("envpool")
    env = envs.make("envpool/CheetahRun-v1")
    assert env.observation_shape == (17,)
    found = env.make_pool([1, 2]).reset()
    raw = envpool.make("CheetahRun-v1", "gymnasium", num_envs=2, seed=[1, 2]).reset()[0]
    np.testing.assert_allclose(found, np.hstack([raw["position"], raw["velocity"]]), rtol=1e-6)


QUICK = [
    *("--agent", "ppo", "--num-envs", "16", "--num-steps", "16", "--num-minibatches", "4"),
    *("--hidden-sizes", "32", "32", "--channels", "4", "--learning-rate", "3e-3"),
    *("--entropy-coefficient", "0.001", "--eval-episodes", "32", "--discount", "0"),
]


def trained(folder, env, steps, *flags):
    args = [*QUICK, "--env", env, "--total-steps", str(steps), *flags, "--out", str(folder)]
    return run.main(args)


def final_return(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return summary["final_return"]["per_seed"][0]


@pytest.fixture(scope="module")
def digits(programs_are_kept, tmp_path_factory):
    """The folder of a run on Digits that was killed and went on."""
    from experiments.training import loop

    folder = tmp_path_factory.mktemp("digits") / "run"
    flags = ["--checkpoint-every", "0", "--normalize-observations"]
    flags += ["--log-every", "2048", "--eval-every", "2048"]
    with killed_in(loop.Training, "_write_summaries"):
        trained(folder, "gymnasium/Digits-v0", 4096, *flags)
    assert not (folder / "summary.json").exists()
    assert run.main(["--out", str(folder), "--resume"]) == 0
    return folder


def test_several_digits_at_once_are_learnt(digits):
    # 8 is the best there is; who ignores what is shown has (1/2 + 1/3 + 1/4) / 3 * 8 = 2.9.
    assert final_return(digits) >= 7.5


def test_a_killed_run_that_went_on_is_played(digits, capsys):
    assert play.main(["--run", str(digits), "--episodes", "2", "--stochastic"]) == 0
    assert f"{EIGHT}, {EIGHT} steps" in capsys.readouterr().out
    assert (digits / "episode.gif").stat().st_size > 0


def test_a_discrete_action_starts_where_the_environments_does():
    agent = ppo.make(
        envs.make("gymnasium/Count-v0"),
        ppo.Config(num_envs=4, num_steps=16, num_minibatches=1, hidden_sizes=(4,)),
    )
    keys = jax.random.split(jax.random.key(0), 1)
    learners = jax.jit(jax.vmap(agent.learner.init, (0, None)))(keys, agent.learner.hyperparameters)
    trajectory, _ = host.Collector(agent, (0,)).collect(learners, keys)  # Count asserts the range
    assert set(trajectory.action.ravel()) == {0, 1, 2}
    shown = trajectory.observation.argmax(-1)
    np.testing.assert_array_equal(trajectory.reward, trajectory.action == shown)


def test_an_image_and_a_vector_are_learnt_from_together(tmp_path):
    # Who sees one of them, or neither, has 4.
    assert trained(tmp_path / "run", "gymnasium/Lamp-v0", 4096) == 0
    assert final_return(tmp_path / "run") >= 7.5


@pytest.mark.slow
def test_trpo_learns_several_digits(tmp_path):
    agent = ("--agent", "trpo", "--max-kl", "0.05")
    assert trained(tmp_path / "run", "gymnasium/Digits-v0", 16384, *agent) == 0
    assert final_return(tmp_path / "run") >= 5


# Environments that are compiled.


class Parts:
    """Two arrays are seen, and two numbers chosen: the first is to be the second's opposite."""

    name = "Parts"
    observation_shape: ClassVar = {"picture": (4, 4, 1), "time": (1,)}
    action_space = MultiDiscrete((2, 3), start=(0, 1))
    max_episode_steps = 5

    def _see(self, time):
        return {"picture": jnp.full((4, 4, 1), 1.0 * time), "time": 100.0 + time[None]}

    def reset(self, key):
        time = jax.random.randint(key, (), 0, 3)
        return time, self._see(1.0 * time)

    def step(self, key, state, action):
        seen = self._see(1.0 * (state + 1))
        reward = 1.0 * (action[0] + action[1] == 2)
        truncated = state >= 3
        return state + 1, TimeStep(seen, reward, jnp.bool_(False), truncated, seen)


@pytest.mark.parametrize(
    ("module", "network", "limit"),
    [(ppo, "auto", 5), (ppo, "gru", 5), (trpo, "mlp", None)],
)
def test_the_update_takes_dicts_and_several_actions(module, network, limit):
    env = Parts()
    env.max_episode_steps = limit
    config = module.Config(
        num_envs=4, num_steps=8, num_minibatches=2, network=network, hidden_sizes=(8, 8),
        channels=(2,), recurrent_size=8, normalize_observations=True,
    )  # fmt: skip
    agent = module.make(env, config)

    @jax.jit
    def run(key):
        before = agent.init(key)
        return before, *jax.lax.scan(agent.step, before, length=2)

    before, state, metrics = run(jax.random.key(0))
    assert metrics["first_ratio_deviation"].max() < 1e-5
    moments = state.learner.observation_moments
    assert moments["time"].num_values == moments["picture"].num_values == 64
    np.testing.assert_allclose(moments["time"].mean[0] - 100, moments["picture"].mean[0, 0], 1e-3)
    for name in ("actor", "critic"):
        old, new = before.learner.params[name], state.learner.params[name]
        assert all(map(np.any, jax.tree.leaves(jax.tree.map(lambda a, b: a != b, old, new))))
    if network == "gru":
        evaluate = train.make_evaluation(agent, 3, deterministic=False)
        _, lengths = jax.jit(evaluate)(state.learner, jax.random.key(1))
        assert ((lengths >= 1) & (lengths <= 4)).all()


class Wrapped:
    """An environment of two actions, of which one is the only element of a vector."""

    name, action_space = "Wrapped", MultiDiscrete((2,))

    def __init__(self, env):
        self.env, self.observation_shape, self.reset = env, env.observation_shape, env.reset
        self.max_episode_steps = env.max_episode_steps

    def step(self, key, state, action):
        return self.env.step(key, state, action[0])


def test_one_number_of_one_is_a_discrete_action():
    discrete = Tabular(OBSERVATION_ACTION)
    config = ppo.Config(num_envs=4, num_steps=16, num_minibatches=2, hidden_sizes=(8,))
    params = []
    for env in (discrete, Wrapped(discrete)):
        agent = ppo.make(env, config)

        @jax.jit
        def learnt(key, agent=agent):
            state, _ = jax.lax.scan(agent.step, agent.init(key), length=3)
            return state.learner.params

        params.append(learnt(jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *params)


SHAPES = {"picture": (6, 7, 3), "vector": (2,)}


@pytest.mark.parametrize("network", ["auto", "cnn", "mlp"])
def test_every_part_is_heard_and_pixels_are_scaled(network):
    config = ppo.Config(network=network, hidden_sizes=(8, 4), channels=(2,))
    made = networks.make(SHAPES, Discrete(3), config)
    params = jax.jit(made.init)(jax.random.key(0))
    encoders = params["critic"]["params"]["torso"]
    assert encoders["encoders_vector"]["Dense_0"]["kernel"].shape == (2, 8)
    assert ("Conv_0" in encoders["encoders_picture"]) == (network != "mlp")
    assert encoders["trunk"]["Dense_0"]["kernel"].shape == (16, 4)
    value = jax.jit(made.value)
    pixels = jnp.arange(5 * 6 * 7 * 3, dtype=jnp.uint8).reshape(5, 6, 7, 3)
    seen = {"picture": pixels, "vector": jnp.arange(10.0).reshape(5, 2) / 10}
    values = value(params["critic"], seen)
    assert values.shape == (5,)
    scaled = seen | {"picture": pixels / 255}
    np.testing.assert_allclose(values, value(params["critic"], scaled), rtol=1e-5)
    for name in SHAPES:
        changed = seen | {name: seen[name][::-1]}
        differs = np.asarray(value(params["critic"], changed) != values)
        assert differs[[0, 1, 3, 4]].all()


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"a CNN needs observations \[height, width, channels\]"):
        networks.make({"a": (3,), "b": (2, 2)}, Discrete(2), ppo.Config(network="cnn"))
    with pytest.raises(ValueError, match=r"leave nothing of observations \(2, 2, 1\)"):
        networks.make({"a": (3,), "b": (2, 2, 1)}, Discrete(2), ppo.Config())
    with pytest.raises(ValueError, match=r"initial_std 0.5: .*2 discrete ones are chosen at once"):
        networks.make((3,), MultiDiscrete((2, 2)), ppo.Config(initial_std=0.5))
