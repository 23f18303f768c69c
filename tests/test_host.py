"""Environments on the host: adapters against their own libraries, rollouts against hand loops."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killing import killed_in
from probes import RUN_FILES, timeless_records

import envs
from agents import families, ppo
from experiments import run
from rgpo_jax import host, samples
from rgpo_jax.environment import Box, Discrete, HostEnvironment, to_environment_units
from rgpo_jax.importing import install_hint

envpool = pytest.importorskip("envpool")
pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")

SEEDS = (5, 6)
NUM_ENVS, NUM_STEPS = 3, 24  # shares of one environment and of two
PENDULUM = "InvertedPendulum-v4"
CONFIG = ppo.Config(
    num_envs=NUM_ENVS, num_steps=NUM_STEPS, num_minibatches=2, num_epochs=1, hidden_sizes=(8,)
)


class Reference:
    """One environment, driven by the library's own calls; `step` never resets."""

    def __init__(self, name, seed, **params):
        library, self.task = envs.split(name)
        self.is_envpool = library == "envpool"
        if self.is_envpool:
            self.env = envpool.make(self.task, "gymnasium", num_envs=1, seed=seed, **params)
            self.first = self.env.reset()[0][0]
        else:
            self.env = gymnasium.make(self.task, **params)
            self.first = self.env.reset(seed=seed)[0]

    def step(self, action):
        if not self.is_envpool:
            return self.env.step(action)[:4]
        return [x[0] for x in self.env.step(np.asarray(action)[None])[:4]]

    def restart(self):
        if not self.is_envpool:
            return self.env.reset()[0]
        # EnvPool restarts by itself, in the step after the last, whatever the action.
        action = np.zeros((1, *self.env.action_space.shape), self.env.action_space.dtype)
        observation, reward, *_, info = self.env.step(action)
        assert reward[0] == 0.0 and info["elapsed_step"][0] == 0
        return observation[0]


def same(ours, theirs):
    np.testing.assert_array_equal(ours, np.asarray(theirs, np.asarray(ours).dtype))


@pytest.mark.parametrize(
    ("name", "params", "scale"),
    [
        (f"envpool/{PENDULUM}", {}, 3.0),
        ("envpool/HalfCheetah-v4", {"max_episode_steps": 7}, 1.0),
        ("gymnasium/CartPole-v1", {}, None),
        ("gymnasium/Pendulum-v1", {"max_episode_steps": 7}, 2.0),
    ],
)
def test_follows_the_library_step_by_step(name, params, scale):
    env = envs.make(name, **params)
    assert isinstance(env, HostEnvironment)
    seeds = [11, 3, 12]
    pool = env.make_pool(seeds)
    references = [Reference(name, seed, **params) for seed in seeds]
    same(pool.reset(), np.stack([reference.first for reference in references]))
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        if isinstance(env.action_space, Discrete):
            action = rng.integers(env.action_space.n, size=len(seeds))
        else:
            action = rng.uniform(-scale, scale, (len(seeds), *env.action_space.shape))
            action = action.astype(np.float32)
        pool.send(action)
        timestep = pool.receive()
        assert timestep.reward.dtype == timestep.observation.dtype == np.float32
        for i, reference in enumerate(references):
            final, reward, terminated, truncated = reference.step(action[i])
            same(timestep.final_observation[i], final)
            same(timestep.reward[i], reward)
            assert timestep.terminated[i] == terminated
            assert timestep.truncated[i] == truncated
            done = terminated or truncated
            ends += done
            same(timestep.observation[i], reference.restart() if done else final)
    assert ends >= 3


def test_a_death_at_the_time_limit_is_a_death():
    # EnvPool itself would call it a truncation.
    def first_end(limit):
        pool = envs.make(f"envpool/{PENDULUM}", max_episode_steps=limit).make_pool([1])
        pool.reset()
        for t in range(1, 100):
            pool.send(np.full((1, 1), 3.0, np.float32))
            timestep = pool.receive()
            if timestep.done[0]:
                return t, bool(timestep.terminated[0]), bool(timestep.truncated[0])
        raise AssertionError

    dies = first_end(1000)[0]
    assert first_end(dies) == (dies, True, False)
    assert first_end(dies - 1) == (dies - 1, False, True)


@pytest.fixture(scope="module")
def agent():
    return ppo.make(envs.make(f"envpool/{PENDULUM}"), CONFIG)


def learners(agent, seeds=SEEDS):
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    init = jax.jit(jax.vmap(agent.learner.init, (0, None)))
    return init(keys, agent.learner.hyperparameters), keys


@pytest.fixture(scope="module")
def rollouts(agent):
    """Two rollouts, one after the other."""
    state, keys = learners(agent)
    collector = host.Collector(agent, SEEDS)
    next_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    return collector.collect(state, keys), collector.collect(state, next_keys)


def test_a_rollout_is_what_each_environment_gives_by_itself(agent, rollouts):
    # Action by action, over both rollouts; dummy transitions would show here first.
    (first, totals), (second, later_totals) = rollouts
    both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), first, second)
    assert both.observation.shape == (2, 2 * NUM_STEPS, NUM_ENVS, 4)
    assert np.all(both.reward == 1.0)
    units = np.asarray(to_environment_units(agent.env.action_space, both.action))
    episodes = {(s, part): [] for s in range(2) for part in range(2)}
    for s, seed in enumerate(SEEDS):
        env_seeds = host.environment_seeds(seed, 0, NUM_ENVS)
        for b in range(NUM_ENVS):
            reference = Reference(f"envpool/{PENDULUM}", int(env_seeds[b]))
            observation, length = reference.first, 0
            for t in range(2 * NUM_STEPS):
                row = jax.tree.map(lambda x, t=t, b=b, s=s: x[s, t, b], both)
                same(row.observation, observation)
                observation, reward, terminated, truncated = reference.step(units[s, t, b])
                length += 1
                same(row.final_observation, observation)
                assert row.reward == reward
                assert row.terminated == terminated
                assert row.truncated == truncated
                if terminated or truncated:
                    episodes[s, t // NUM_STEPS].append(length)
                    observation, length = reference.restart(), 0
    for part, counted in enumerate((totals, later_totals)):
        for s in range(2):
            assert len(episodes[s, part]) > 0
            assert counted.episodes[s] == len(episodes[s, part])
            assert counted.returns[s] == counted.lengths[s] == sum(episodes[s, part])


def test_actions_are_the_policys(agent, rollouts):
    (trajectory, _), _ = rollouts
    state, _ = learners(agent)

    def log_prob(state, observation, action):
        return agent.learner.policy(state, observation).log_prob(action)

    expected = jax.vmap(log_prob)(state, trajectory.observation, trajectory.action)
    np.testing.assert_allclose(trajectory.log_prob, expected, atol=1e-5)
    drawn = trajectory.action.ravel()
    assert len(np.unique(drawn)) == drawn.size  # no noise is used twice


def test_rollouts_repeat_and_seeds_differ(agent, rollouts):
    (trajectory, _), _ = rollouts
    state, keys = learners(agent)
    again, _ = host.Collector(agent, SEEDS).collect(state, keys)
    jax.tree.map(np.testing.assert_array_equal, again, trajectory)
    first = trajectory.observation[:, 0].reshape(-1, 4)
    assert len(np.unique(first, axis=0)) == len(first)


def test_a_seeds_numbers_do_not_depend_on_the_others(agent, rollouts):
    (trajectory, _), _ = rollouts
    state, keys = learners(agent, SEEDS[1:])
    alone, _ = host.Collector(agent, SEEDS[1:]).collect(state, keys)
    same(alone.observation[0, 0], trajectory.observation[1, 0])
    # Up to the rounding of products in batches of other sizes.
    np.testing.assert_allclose(alone.action[0, :4], trajectory.action[1, :4], rtol=1e-4, atol=1e-4)


@pytest.mark.alike
def test_a_truncated_episode_bootstraps_from_its_last_observation():
    limit = 5
    env = envs.make("envpool/HalfCheetah-v4", max_episode_steps=limit)
    agent = ppo.make(env, CONFIG)
    state, keys = learners(agent)
    trajectory, totals = host.Collector(agent, SEEDS).collect(state, keys)
    assert not trajectory.terminated.any()
    same(
        trajectory.truncated,
        np.broadcast_to(
            (np.arange(1, NUM_STEPS + 1) % limit == 0)[None, :, None], trajectory.truncated.shape
        ),
    )
    same(totals.episodes, [NUM_ENVS * (NUM_STEPS // limit)] * 2)
    same(totals.lengths, totals.episodes * limit)
    following = trajectory.observation[:, 1:]
    final, truncated = trajectory.final_observation[:, :-1], trajectory.truncated[:, :-1]
    same(final[~truncated], following[~truncated])
    assert np.all(np.any(final[truncated] != following[truncated], axis=-1))

    critic = jax.tree.map(lambda x: x[0], state.params["critic"])
    one = jax.tree.map(lambda x: x[0], trajectory)
    _, next_value = samples.bootstrap_values(agent.learner.network, critic, one, None)
    expected = agent.learner.network.value(critic, one.final_observation)
    np.testing.assert_allclose(next_value, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_runs_whole_episodes_on_environments_of_its_own(agent):
    state, keys = learners(agent)
    evaluator = host.Evaluator(agent, SEEDS, 3)
    returns, lengths = evaluator.run(state, keys, deterministic=True)
    assert returns.shape == lengths.shape == (2, 3)
    act = jax.jit(agent.act)
    for s, seed in enumerate(SEEDS):
        own = jax.tree.map(lambda x, s=s: x[s], state)
        env_seeds = host.environment_seeds(seed, 1, 3)
        assert not set(env_seeds) & set(host.environment_seeds(seed, 0, 1000))
        for e in range(3):
            reference = Reference(f"envpool/{PENDULUM}", int(env_seeds[e]))
            observation, total, length, done = reference.first, 0.0, 0, False
            while not done:
                action = act(Acting(own), jnp.asarray(observation, jnp.float32))
                observation, reward, terminated, truncated = reference.step(action)
                total, length, done = total + reward, length + 1, terminated or truncated
            assert (returns[s, e], lengths[s, e]) == (total, length)
    stochastic, _ = evaluator.run(state, keys, deterministic=False)
    assert not np.array_equal(stochastic, returns)


class Acting:
    """All of an agent's state that `act` looks at."""

    def __init__(self, learner):
        self.learner = learner


jax.tree_util.register_pytree_node(Acting, lambda x: ((x.learner,), None), lambda _, x: Acting(*x))


def test_an_agent_says_how_it_is_trained(agent):
    with pytest.raises(TypeError, match=r"host\.Collector"):
        agent.init(jax.random.key(0))
    with pytest.raises(TypeError, match=r"agent\.learner"):
        agent.step(None)
    with pytest.raises(ValueError, match="spread"):
        ppo.make(agent.env, CONFIG, axis_name="env")
    with pytest.raises(TypeError, match=r"agent\.step"):
        host.Collector(ppo.make(envs.make("CartPole-v1"), CONFIG), [0])


def test_spaces_are_those_of_the_task():
    walker = envs.make("envpool/Walker2d-v5")
    assert walker.observation_shape == (17,)
    assert walker.action_space == Box((6,), (-1.0,) * 6, (1.0,) * 6)
    assert walker.max_episode_steps == 1000
    humanoid = envs.make("envpool/Humanoid-v4")
    np.testing.assert_allclose(humanoid.action_space.high, 0.4, rtol=1e-6)
    cartpole = envs.make("gymnasium/CartPole-v1")
    assert (cartpole.action_space, cartpole.max_episode_steps) == (Discrete(2), 500)


def test_a_task_of_envpool_says_nothing(recwarn):
    pool = envs.make("envpool/Pendulum-v1").make_pool([0])
    pool.reset()
    pool.send(np.zeros((1, 1)))
    pool.receive()
    assert not [str(warning.message) for warning in recwarn]


class OfOtherTypes:
    """A pool whose resets give integers."""

    def __init__(self, pool):
        self._pool = pool

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def reset(self):
        return np.round(self._pool.reset()).astype(np.int32)


def test_programs_compiled_ahead_take_what_a_pool_gives_in_other_types(agent, monkeypatch):
    make_pool = agent.env.make_pool
    monkeypatch.setattr(agent.env, "make_pool", lambda seeds: OfOtherTypes(make_pool(seeds)))
    state, keys = learners(agent)
    acting = host.ActingPrograms(agent)
    collector = host.Collector(agent, SEEDS, acting=acting)
    for program in collector.programs:
        acting.use(program, acting.lower(program, state, keys).compile())
    ahead, _ = collector.collect(state, keys)
    first_needed, _ = host.Collector(agent, SEEDS).collect(state, keys)
    jax.tree.map(np.testing.assert_array_equal, ahead, first_needed)


@pytest.mark.alike
def test_atari_is_played_from_pixels():
    env = envs.make("envpool/Pong-v5")
    assert env.observation_shape == (84, 84, 4)
    config = ppo.Config(
        num_envs=2, num_steps=4, num_minibatches=2, num_epochs=1, channels=(2,), hidden_sizes=(8,)
    )
    agent = ppo.make(env, config)
    state, keys = learners(agent, (0,))
    collector = host.Collector(agent, (0,))
    learn = jax.jit(jax.vmap(agent.learner.update))
    for _ in range(2):
        trajectory, _ = collector.collect(state, keys)
        assert trajectory.observation.dtype == np.uint8
        assert trajectory.observation.shape == (1, 4, 2, 84, 84, 4)
        state, metrics = learn(state, trajectory)
        assert np.all(metrics["first_ratio_deviation"] < 1e-5)
    # Four pictures, the newest last.
    before, after = trajectory.observation[0, 0, 0], trajectory.observation[0, 1, 0]
    same(before[..., 1:], after[..., :-1])


TINY = [
    *("--agent", "ppo", "--num-seeds", "2", "--seed", "5", "--total-steps", "256"),
    *("--num-envs", "4", "--num-steps", "16", "--num-minibatches", "2", "--num-epochs", "1"),
    *("--hidden-sizes", "8", "--eval-episodes", "2"),
]
ON_PENDULUM = [*TINY, "--env", f"envpool/{PENDULUM}", "--normalize-rewards"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run on environments of EnvPool."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run.main([*ON_PENDULUM, "--out", str(folder)]) == 0
    return folder


def check_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted([*RUN_FILES, "policy.npz"])
    records = timeless_records(folder)
    assert [record["env_steps"] for record in records] == [0, 64, 128, 192, 256]
    for record in records[1:]:
        assert all(deviation < 1e-5 for deviation in record["first_ratio_deviation"])
        assert {"entropy", "gate_mean", "episode_return", "episode_length"} <= record.keys()
        assert len(record["episode_return"]) == 2
    assert records[-1]["eval_return"] == records[-1]["eval_length"]  # each step pays 1
    assert records[-1]["eval_return_stochastic"] != records[-1]["eval_return"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final_return"]["per_seed"] == records[-1]["eval_return"]


def test_a_run_writes_its_files(whole, tmp_path):
    check_files(whole)
    assert run.main([*TINY, "--env", "gymnasium/CartPole-v1", "--out", str(tmp_path / "run")]) == 0
    check_files(tmp_path / "run")


def test_a_run_that_breaks_says_where(tmp_path, capsys):
    args = [*ON_PENDULUM, "--learning-rate", "1e38"]
    assert run.main([*args, "--out", str(tmp_path / "broken")]) == 3
    assert "seed 5 at update 0, seed 6 at update 0" in capsys.readouterr().out


def test_a_task_without_a_limit_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--env", "envpool/Catch-v0", "--out", str(tmp_path / "x")])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "envpool/Catch-v0" in error and "no limit" in error
    assert not (tmp_path / "x").exists()


def test_a_missing_library_is_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "envpool" else find(name)
    )
    with pytest.raises(SystemExit) as refused:
        run.main(["--env", "envpool/Hopper-v4"])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert install_hint("envpool") in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("envpool/halfcheetah-v4", "envpool/HalfCheetah-v4"),
        ("gymnasium/CartPol-v1", "gymnasium/CartPole-v1"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(ValueError, match="did you mean") as refused:
        envs.make(wrong)
    assert meant in str(refused.value)


@pytest.mark.parametrize("name", ["envpool/Hopper-v4", "gymnasium/CartPole-v1"])
def test_an_unknown_parameter_is_refused(name):
    with pytest.raises(ValueError, match="gravity_constant"):
        envs.make(name, gravity_constant=1.0)


def test_a_pools_own_settings_are_not_parameters():
    with pytest.raises(ValueError, match="num_envs cannot be chosen"):
        envs.make("envpool/Hopper-v4", num_envs=3)


def test_names_without_a_prefix_load_no_library():
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, envs; envs.check_name('CartPole-v1'); print(*sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    ).stdout.split()
    assert {"envpool", "gymnasium", "jax", "numpy"}.isdisjoint(loaded)


def test_a_task_has_its_familys_settings_under_every_prefix():
    assert families.for_environment("envpool/Walker2d-v4") == families.FAMILIES["MuJoCo"]
    for name in ("envpool/Pong-v5", "gymnasium/ale_py:ALE/Pong-v5"):
        assert families.for_environment(name) == families.FAMILIES["Atari"]
    assert families.for_environment("gymnasium/Hopper-v5") == families.FAMILIES["MuJoCo"]
    assert families.for_environment("gymnasium/CartPole-v1") == families.FAMILIES["CartPole-v1"]
    assert families.for_environment("Swimmer-misc") == {}  # gymnax's own, another task


@pytest.mark.alike
def test_a_run_repeats_and_goes_on_with_new_episodes_and_new_returns(whole, tmp_path, monkeypatch):
    from experiments.training import loop

    folder = tmp_path / "run"
    again = ["--config", str(whole / "config.json"), "--checkpoint-every", "0"]
    with killed_in(loop.Training, "_write_summaries"):
        run.main([*again, "--out", str(folder)])
    assert timeless_records(folder) == timeless_records(whole)
    seen = []
    goes_on = loop.Training.run

    def look(self):
        seen.append(self._states.learner.return_scale)
        goes_on(self)

    monkeypatch.setattr(loop.Training, "run", look)
    assert run.main(["--out", str(folder), "--resume"]) == 0
    (scale,) = seen
    assert (np.asarray(scale.running_return) == 0).all()
    assert "environments on the host cannot be saved" in (folder / "run.log").read_text()


def test_a_game_goes_on_after_a_life(monkeypatch):
    env = envs.make("envpool/Breakout-v5", episodic_life=True)
    pool, rng, restarts = env.make_pool([1, 2]), np.random.default_rng(0), ["", ""]
    pool.reset()

    def record(library, what):
        def restart(*arguments):
            for i in arguments[-1]:
                restarts[i] += what
            return library(*arguments)

        return restart

    monkeypatch.setattr(pool._pool, "reset", record(pool._pool.reset, "G"))
    monkeypatch.setattr(pool._pool, "step", record(pool._pool.step, "L"))
    ends = np.zeros(2, int)
    for _ in range(500):
        pool.send(rng.integers(0, 4, 2))
        timestep = pool.receive()
        ends += timestep.terminated
    assert [len(restart) for restart in restarts] == ends.tolist()
    assert all(restart.startswith("LLLLGLLLLG") for restart in restarts)  # five lives a game


def test_atari_is_scored_by_whole_games_and_true_rewards(monkeypatch):
    training = envs.make("envpool/Breakout-v5", reward_clip=True, episodic_life=True)
    agent = ppo.make(training, ppo.Config(num_envs=2, num_steps=4, channels=(2,)))
    made, make_pool = [], type(training).make_pool

    def record(self, seeds):
        made.append(self._params)
        return make_pool(self, seeds)

    monkeypatch.setattr(type(training), "make_pool", record)
    host.Evaluator(agent, (0,), 1)
    assert not made[0]["reward_clip"] and not made[0]["episodic_life"]
    host.Collector(agent, (0,))
    assert made[1]["reward_clip"] and made[1]["episodic_life"]
    unchanged = envs.make("envpool/Breakout-v5")
    assert unchanged.for_evaluation() is unchanged
