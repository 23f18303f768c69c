"""The baseline is a PPO that learns; how fast is measured elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import plain_ppo
from experiments.plain_ppo import Settings
from rgpo_jax import advantages

SMALL = Settings(num_envs=2, num_steps=8, total_steps=64)


def parts(settings):
    env = plain_ppo.LoggedEnvironment(settings.env)
    discrete = hasattr(env.action_space, "n")
    count = env.action_space.n if discrete else np.prod(env.action_space.shape)
    return env, plain_ppo.ActorCritic(int(count), discrete)


def test_advantages_are_those_of_the_library():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 40, 3)).astype(np.float32)
    last_value = rng.normal(size=3).astype(np.float32)
    done = rng.random((40, 3)) < 0.1
    next_value = np.concatenate([value[1:], last_value[None]])
    expected = advantages.generalized_advantages(
        reward, value, next_value, done, jnp.zeros_like(done), 0.99, 0.95
    )
    advantage = plain_ppo.generalized_advantages(reward, value, done, last_value, Settings())
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Catch-bsuite"])
def test_the_first_ratio_is_one(env):
    settings = Settings(env=env, num_envs=2, num_steps=8, total_steps=64)
    env, network = parts(settings)

    @jax.jit
    def first(key):
        runner = plain_ppo.initial_runner(env, network, settings, key)
        _, steps = plain_ppo.collect(env, network, settings, runner)
        policy, value = plain_ppo.apply(network, runner.train_state.params, steps.observation)
        return policy.log_prob(steps.action) - steps.log_prob, value - steps.value

    for difference in first(jax.random.key(0)):
        assert difference.shape == (8, 2)
        np.testing.assert_allclose(difference, 0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (plain_ppo.Categorical, [(0.3, -1.0, 2.0)]),
        (plain_ppo.MultivariateNormalDiag, [(0.5, -1.0), (0.3, 2.0)]),
    ],
)
def test_entropy_is_the_mean_surprise_of_samples(kind, numbers):
    policy = kind(*map(jnp.array, numbers))
    actions = jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20_000))
    surprise = -jax.vmap(policy.log_prob)(actions)
    assert np.mean(surprise) == pytest.approx(float(policy.entropy()), abs=0.03)


def test_every_step_is_logged_and_every_update_made():
    result = jax.jit(plain_ppo.make_train(SMALL))(jax.random.key(0))
    metrics = jax.device_get(result["metrics"])
    assert SMALL.num_updates == 4
    assert int(result["runner"].train_state.step) == 4 * 4 * 4
    expected = np.arange(1, 33).reshape(4, 8, 1)
    np.testing.assert_array_equal(metrics["timestep"], np.broadcast_to(expected, (4, 8, 2)))
    # Every step of CartPole is worth 1, so that a return is a length.
    ended = metrics["returned_episode"]
    assert ended.any()
    returns = metrics["returned_episode_return"][ended]
    np.testing.assert_array_equal(returns, metrics["returned_episode_length"][ended])
    for env in range(2):
        ends = np.flatnonzero(ended[..., env].ravel())
        lengths = metrics["returned_episode_length"][..., env].ravel()[ends]
        np.testing.assert_array_equal(np.cumsum(lengths), ends + 1)


def test_it_learns_cartpole(capsys):
    """Mean return of the last tenth of training, with exploration; two seeds."""
    args = ["--num-seeds", "2", "--total-steps", "60000", "--learning-rate", "2e-3"]
    assert plain_ppo.main([*args, "--num-envs", "8", "--num-steps", "64"]) == 0
    said = capsys.readouterr().out
    assert "compiled in" in said and "trained in" in said
    final = float(said.split("final return ")[1].split(",")[0])
    assert final >= 400, said


def test_without_an_episode_there_is_no_return():
    metrics = {
        "timestep": jnp.ones((20, 4, 2)),
        "returned_episode": jnp.zeros((20, 4, 2), bool).at[3].set(True),
        "returned_episode_return": jnp.full((20, 4, 2), 7.0),
    }
    assert np.isnan(plain_ppo.final_return(metrics))
    metrics["returned_episode"] = metrics["returned_episode"].at[18, 0, 0].set(True)
    assert plain_ppo.final_return(metrics) == 7.0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "CartPol"], "--env CartPol: unknown environment"),
        (["--env", "CartPole-v1-masked"], "expected an environment of gymnax"),
        (["--env", "FrozenLake-misc"], "--env FrozenLake-misc: expected an environment whose"),
        (["--num-minibatches", "3"], "--num-minibatches 3: expected a divisor"),
        (["--total-steps", "100"], "--total-steps 100: expected at least"),
        (["--num-seeds", "0"], "--num-seeds 0: expected a whole number of at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as refused:
        plain_ppo.main(args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
