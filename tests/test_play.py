"""Playing: what is shown is what happened, and every environment can be shown."""

import base64
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import envs
from agents import ppo
from experiments import run
from experiments.cli.flags import BadInput
from experiments.play import __main__ as play
from experiments.play import episodes, film
from experiments.training import trained

ROOT = Path(__file__).parents[1]
TINY = [
    *("--agent", "ppo", "--num-seeds", "2", "--seed", "5", "--hidden-sizes", "8"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1"),
    *("--total-steps", "32", "--eval-episodes", "1"),
]


def train(folder, *args):
    assert run.main([*TINY, *args, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", "--env", "CartPole-v1")


def played(folder, *args):
    assert play.main(["--run", str(folder), *map(str, args)]) == 0


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as refused:
        play.main(list(map(str, args)))
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def policy_of(folder, index):
    loaded = trained.load(str(folder), "--run")
    return loaded.agent, jax.tree.map(lambda x: x[index], loaded.learners)


def untrained(name, **settings):
    agent = ppo.make(envs.make(name), ppo.Config(num_envs=4, hidden_sizes=(8,), **settings))
    return agent, agent.learner.init(jax.random.key(0), agent.learner.hyperparameters)


def step_by_hand(agent, learner, seed, stochastic=False):
    """Return and length of an episode, by the keys that `episodes.play` documents."""
    key, reset_key = jax.random.split(jax.random.key(seed))
    state, observation = agent.env.reset(reset_key)
    memory, total, length, done = agent.initial_memory(), 0.0, 0, False
    act, step = jax.jit(agent.learner.policy), jax.jit(agent.env.step)
    while not done:
        key, action_key, step_key = jax.random.split(key, 3)
        if memory is None:
            distribution = act(learner, observation)
        else:
            distribution, memory = act(learner, observation, memory)
        action = distribution.sample(action_key) if stochastic else distribution.mode()
        state, timestep = step(step_key, state, action)
        observation, done = timestep.observation, bool(timestep.done)
        total, length = total + float(timestep.reward), length + 1
    return total, length


@pytest.mark.parametrize(("seed", "stochastic"), [(5, False), (6, True)])
def test_a_gif_shows_every_step_and_the_environments_own_return(
    seed, stochastic, cartpole, tmp_path, capsys
):
    total, length = step_by_hand(*policy_of(cartpole, seed - 5), 3, stochastic)
    out = tmp_path / "x.gif"
    flags = ["--stochastic"] if stochastic else []
    played(cartpole, "--out", out, "--seed", seed, "--episode-seed", 3, "--size", 160, *flags)
    said = f"return {total:.2f}, {length} steps, "
    assert capsys.readouterr().out.splitlines()[-1].startswith(said)
    with Image.open(out) as picture:
        assert f"ppo on CartPole-v1, seed {seed}: {said}" in picture.info["comment"].decode()
        assert picture.n_frames == length + 1
        for i in range(picture.n_frames):
            picture.seek(i)
            assert len(np.unique(np.asarray(picture.convert("RGB")))) > 2


def test_the_lines_on_the_frames_count_up_to_the_return(cartpole, tmp_path, monkeypatch):
    total, length = step_by_hand(*policy_of(cartpole, 0), 0)
    drawn = []
    frame = film.frame

    def spy(picture, size, lines):
        drawn.append(lines)
        return frame(picture, size, lines)

    monkeypatch.setattr(film, "frame", spy)
    played(cartpole, "--size", 160)
    assert (cartpole / "episode.gif").exists()
    titles, lines = zip(*drawn, strict=True)
    assert set(titles) == {"ppo on CartPole-v1, seed 5"}
    assert lines[0] == "step 0   return 0.00"
    assert re.fullmatch(r"step 4   return 4\.00   action [01]   reward \+1\.00", lines[4])
    assert lines[-1] == f"step {length}   final return {total:.2f}   terminated"


def test_episodes_follow_one_another_and_can_be_cut(cartpole, tmp_path, capsys):
    out = tmp_path / "x.gif"
    played(cartpole, "--out", out, "--episodes", 2, "--max-steps", 3, "--size", 160)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"returns 3.00, 3.00 (mean 3.00), 3, 3 steps -> {out}"
    with Image.open(out) as picture:
        assert picture.n_frames == 8


def test_of_long_episodes_fewer_steps_are_shown_and_the_ends_always():
    kept, made = film.Film(4), []

    def make(step):
        made.append(step)
        return step

    for step in range(12):
        kept.offer(lambda step=step: make(step), is_end=step in (5, 11))
    assert kept.frames == made == [0, 4, 5, 8, 11]
    assert kept.ends == [False, False, True, False, True]


def test_only_frames_that_are_shown_are_drawn(cartpole, tmp_path, monkeypatch):
    _, length = step_by_hand(*policy_of(cartpole, 0), 0)
    drawn, frame = [], film.frame

    def spy(picture, size, lines):
        drawn.append(lines[1].split("   ")[0])
        return frame(picture, size, lines)

    monkeypatch.setattr(film, "frame", spy)
    played(cartpole, "--out", tmp_path / "x.gif", "--size", 160, "--max-frames", 4)
    stride = -(-(length + 1) // 4)
    shown = sorted({*range(0, length, stride), length})
    assert drawn == [f"step {step}" for step in shown]


@pytest.mark.parametrize("shape", [(210, 160), (40, 30), (300, 400), (73, 200)])
def test_a_frame_is_a_band_of_text_over_the_whole_picture(shape):
    picture = np.full((*shape, 3), 255, np.uint8)
    image = np.asarray(film.frame(picture, 200, ("a title", "step 1")))
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0
    assert 190 < max(image.shape) < 290
    longer = film.frame(picture, 200, ("a title", "step 1 and more" * 9))
    assert longer.size == image.shape[1::-1]  # a film has one size
    white = (image == 255).all(axis=-1)
    rows, columns = (
        np.flatnonzero(white.mean(axis=1) > 0.4),
        np.flatnonzero(white.mean(axis=0) > 0.4),
    )
    assert (len(rows) / len(columns)) == pytest.approx(shape[0] / shape[1], rel=0.03)
    assert rows[0] > 12  # below the band


@pytest.mark.parametrize("name", [*envs.GYMNAX, *envs.MASKED])
def test_every_environment_of_gymnax_has_a_picture(name):
    env = envs.make(name)
    state, observation = jax.jit(env.reset)(jax.random.key(1))
    picture = env.picture(state, observation, 120)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 100 <= max(picture.shape) <= 120
    assert picture.std() > 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("CartPole-v1", {"theta": 0.3}),
        ("Pendulum-v1", {"theta": 2.0}),
        ("Acrobot-v1", {"joint_angle2": 1.0}),
        ("MountainCar-v0", {"position": 0.2}),
        ("FrozenLake-misc", {"position": 6}),
        ("FourRooms-misc", {"pos": (1, 1)}),
    ],
)
def test_a_picture_shows_the_state(name, change):
    env = envs.make(name)
    state, observation = jax.jit(env.reset)(jax.random.key(1))
    change = {field: jnp.asarray(value) for field, value in change.items()}
    moved = env.picture(state.replace(**change), observation, 120)
    assert (moved != env.picture(state, observation, 120)).any()


def test_a_policy_with_memory_keeps_it():
    agent, learner = untrained("CartPole-v1-masked", network="gru", recurrent_size=4)
    # Weights so large that what is remembered decides.
    learner = learner._replace(params=jax.tree.map(lambda x: 30 * x, learner.params))
    expected = step_by_hand(agent, learner, 2)
    stage = episodes.make_stage(agent, 120)
    *_, last = episodes.play(agent, learner, stage, 2)
    assert (last.episode_return, last.step) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--run", "/nowhere"], "--run /nowhere: expected the folder of a run"),
        (["--out", "x.avi"], "--out x.avi: expected a name that ends in .gif or .mp4"),
        (["--out", "x.html"], "--out x.html: expected a name that ends in .gif or .mp4"),
        (["--out", "/nowhere/x.gif"], "--out /nowhere/x.gif: /nowhere is no folder"),
        (["--seed", "7"], "--seed 7: the run has trained seeds 5 to 6"),
        (["--episodes", "0"], "--episodes 0: expected"),
        (["--fps", "100"], "--fps 100.0: expected at most 50"),
        (["--size", "2"], "--size 2: expected 120 to 4096"),
        (["--episode", "3"], "--episode"),
    ],
)
def test_bad_input_is_one_line(args, message, cartpole, capsys):
    assert message in refusal(capsys, "--run", cartpole, *args)


def test_what_is_there_is_kept(cartpole, tmp_path, capsys):
    out = tmp_path / "x.gif"
    out.write_bytes(b"mine")
    assert "say --overwrite" in refusal(capsys, "--run", cartpole, "--out", out)
    assert out.read_bytes() == b"mine"
    played(cartpole, "--out", out, "--overwrite", "--max-steps", 1, "--size", 160)
    assert out.read_bytes().startswith(b"GIF8")


def test_a_run_without_a_checkpoint_is_refused(cartpole, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((cartpole / "config.json").read_bytes())
    assert "has made no checkpoint yet" in refusal(capsys, "--run", tmp_path)


def test_reading_a_run_moves_none_of_its_checkpoints(cartpole):
    unfinished = cartpole / "checkpoints" / "999"
    unfinished.mkdir()
    trained.load(str(cartpole), "--run")
    assert unfinished.exists()
    unfinished.rmdir()


def test_mp4(cartpole, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(film, "mp4_is_possible", lambda: False)
        assert "[play]" in refusal(capsys, "--run", cartpole, "--out", out)
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    played(cartpole, "--out", out, "--max-steps", 4, "--fps", 10, "--size", 160)
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(out))
    assert frames == 4 + 15  # the last is held


def play_on_host(name, seed, max_steps=None):
    agent, learner = untrained(name)
    stage = episodes.make_stage(agent, 100)
    moments, pictures = [], []
    for moment in episodes.play(agent, learner, stage, seed, max_steps=max_steps):
        moments.append(moment)
        pictures.append(stage.picture())
    return agent, moments, pictures


def test_the_host_plays_what_a_pool_without_pictures_gives():
    pytest.importorskip("envpool")
    agent, moments, pictures = play_on_host("envpool/CartPole-v1", 11)
    pool = agent.env.make_pool([11])
    pool.reset()
    total = 0.0
    for moment in moments[1:]:
        pool.send(moment.action[None])
        timestep = pool.receive()
        total += float(timestep.reward[0])
        assert bool(timestep.done[0]) == bool(moment.end)
    assert moments[-1].episode_return == total == len(moments) - 1
    # The end is shown, and not the start of the next episode.
    assert all((a != b).any() for a, b in zip(pictures[-3:], pictures[-2:], strict=False))
    assert (pictures[-1] != pictures[0]).any()


def check_pictures(name):
    _, moments, pictures = play_on_host(name, 0, max_steps=2)
    assert moments[-1].end == "cut short"
    assert [picture.dtype for picture in pictures] == [np.uint8] * 3
    assert all(picture.shape[2] == 3 and picture.std() > 1 for picture in pictures)


def test_pictures_of_atari():
    pytest.importorskip("envpool")
    check_pictures("envpool/Pong-v5")


def test_pictures_of_mujoco(tmp_path):
    pytest.importorskip("envpool")
    # In a process of its own: without OpenGL, some versions end it.
    played = subprocess.run(
        [sys.executable, "-c", "import test_play; test_play.check_pictures('envpool/Hopper-v4')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if "GL" in played.stderr + played.stdout:
        pytest.skip(f"no OpenGL here: {played.stderr.strip().splitlines()[-1:]}")
    assert played.returncode == 0, played.stderr


def test_an_environment_that_cannot_be_drawn_says_why(monkeypatch):
    pytest.importorskip("gymnasium")
    from gymnasium.envs.classic_control import cartpole

    def render(self):
        raise cartpole.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(cartpole.CartPoleEnv, "render", render)
    with pytest.raises(BadInput, match="gymnasium/CartPole-v1 cannot be drawn: pygame is not inst"):
        play_on_host("gymnasium/CartPole-v1", 0)


def unpacked(page):
    packed = re.search(r'packed = "([^"]+)"', page)[1]
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_brax_gives_a_page_that_needs_no_network(tmp_path):
    pytest.importorskip("brax")
    from experiments.play import brax_page

    env = envs.make("brax/inverted_pendulum")
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    places = [env.place(state)] * 3
    system = env.describe(places, 0.5)
    lines = ["step 0", "step 1", "final return 2.00"]
    page = brax_page.page("a <title>", lines, system, 0.5).decode()
    assert "http" not in page
    assert "a &lt;title&gt;" in page
    content = unpacked(page)
    assert content["lines"] == lines
    # Every name that a module imports is the name of one, and Brax's files find all of three.js
    # that they use.
    three, *viewer = content["sources"]
    for source in viewer:
        assert set(re.findall(r"from '([^']+)'", source)) <= content["modules"].keys()
    exported = re.findall(r"\bas (\w+)", three[three.rindex("export{") :])
    used = {name for source in viewer for name in re.findall(r"THREE\.(\w+)", source)}
    assert used | {"OrbitControls", "GUI"} <= set(exported)
    shown = json.loads(content["system"])
    assert shown["opt"]["timestep"] == 0.5
    assert len(shown["states"]["x"]) == 3
    assert sum(map(len, shown["geoms"].values())) > 1


@pytest.mark.slow
def test_a_run_on_brax_is_played(tmp_path, capsys):
    pytest.importorskip("brax")
    folder = train(tmp_path / "run", "--env", "brax/inverted_pendulum", "--reset-pool-size", "2")
    assert "ends in .html" in refusal(capsys, "--run", folder, "--out", tmp_path / "x.gif")
    played(folder, "--max-steps", 20)
    said = capsys.readouterr().out.splitlines()[-1]
    total = re.match(r"return ([\d.]+), (\d+) steps", said)
    content = unpacked((folder / "episode.html").read_text())
    assert f"final return {total[1]}" in content["lines"][-1]
    assert len(content["lines"]) == int(total[2]) + 1
