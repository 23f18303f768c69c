"""Folders that look like checkouts of other suites: same files, same imports, little in them."""

PUREJAXRL_PPO = """
import distrax
import gymnax
import jax
import jax.numpy as jnp
from flax.training.train_state import TrainState
from wrappers import FlattenObservationWrapper, LogWrapper


def make_train(config):
    env, params = gymnax.make(config["ENV_NAME"])
    env = LogWrapper(FlattenObservationWrapper(env))
    num_actions = env.action_space(params).n
    num_envs = config["NUM_ENVS"]
    num_steps = config["TOTAL_TIMESTEPS"] // num_envs

    def train(rng):
        rng, key = jax.random.split(rng)
        obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)

        def step(carry, _):
            obs, state, rng = carry
            rng, act_key, step_key = jax.random.split(rng, 3)
            policy = distrax.Categorical(logits=jnp.zeros((num_envs, num_actions)))
            action = policy.sample(seed=act_key)
            keys = jax.random.split(step_key, num_envs)
            obs, state, reward, done, info = jax.vmap(env.step, (0, 0, 0, None))(
                keys, state, action, params
            )
            return (obs, state, rng), (reward, done, policy.log_prob(action), info)

        carry, metrics = jax.lax.scan(step, (obs, state, rng), None, num_steps)
        return {"runner_state": carry[:2], "metrics": metrics}

    return train
"""

PUREJAXRL_WRAPPERS = """
from functools import partial
from typing import Optional, Tuple

import chex
import jax
import jax.numpy as jnp
import navix as nx
from brax import envs
from brax.envs.wrappers.training import AutoResetWrapper, EpisodeWrapper
from gymnax.environments import environment, spaces


class GymnaxWrapper(object):
    def __init__(self, env):
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)


class FlattenObservationWrapper(GymnaxWrapper):
    @partial(jax.jit, static_argnums=(0,))
    def reset(
        self, key: chex.PRNGKey, params: Optional[environment.EnvParams] = None
    ) -> Tuple[chex.Array, environment.EnvState]:
        assert isinstance(self._env.observation_space(params), spaces.Box)
        obs, state = self._env.reset(key, params)
        return jnp.reshape(obs, (-1,)), state


class LogWrapper(GymnaxWrapper):
    @partial(jax.jit, static_argnums=(0,))
    def step(self, key: chex.PRNGKey, state, action, params=None):
        obs, state, reward, done, info = self._env.step(key, state, action, params)
        info["returned_episode"] = done
        return obs, state, reward, done, info
"""

REJAX = """
import chex
import distrax
import gymnax
import jax
from flax import struct
from gymnax import make

assert gymnax.make is make


class PPO(struct.PyTreeNode):
    env: gymnax.environments.environment.Environment = struct.field(pytree_node=False)
    num_steps: int = struct.field(pytree_node=False)
    eval_callback: object = struct.field(pytree_node=False)

    @classmethod
    def create(cls, env, agent_kwargs, num_envs, total_timesteps, **config):
        assert agent_kwargs == {"activation": "tanh", "hidden_layer_sizes": (64, 64)}
        assert (config["num_epochs"], config["num_minibatches"]) == (4, 4)
        env, _ = make(env)
        return cls(env, total_timesteps // num_envs, lambda *_: 1 / 0)

    def train(self, rng: chex.PRNGKey):
        _, state = self.env.reset(rng)

        def step(state, key):
            _, state, reward, done, _ = self.env.step(key, state, 0)
            return state, reward * (1 - done)

        result = jax.lax.scan(step, state, jax.random.split(rng, self.num_steps))
        return result, self.eval_callback(self, result, rng)
"""

BRAX_ENVS = """
def get_environment(name, backend):
    return name, backend
"""

BRAX_NETWORKS = """
def make_ppo_networks(**kwargs):
    return kwargs
"""

BRAX_TRAIN = """
import time

ended = []


def train(environment, num_timesteps, num_evals, progress_fn, network_factory, **sizes):
    assert environment == ("ant", "spring")
    assert network_factory()["policy_hidden_layer_sizes"] == (64, 64)
    batch = sizes["batch_size"] * sizes["num_minibatches"] * sizes["unroll_length"]
    assert batch == sizes["num_envs"] * sizes["unroll_length"]
    assert num_timesteps % ((num_evals - 1) * batch) == 0
    try:
        for epoch in range(num_evals - 1):
            if epoch == 3:
                raise ArithmeticError("in the fourth epoch")
            time.sleep(0.2 if epoch == 0 else 0.02)
            progress_fn(epoch, {})
    finally:
        ended.append(epoch)
"""


def write(folder, files):
    """Writes files, name -> text, and makes packages of the folders in between."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def purejaxrl(folder):
    files = {"ppo.py": PUREJAXRL_PPO, "wrappers.py": PUREJAXRL_WRAPPERS}
    return write(folder / "purejaxrl", {f"purejaxrl/{name}": files[name] for name in files})


def rejax(folder):
    return write(
        folder / "their-rejax",
        {"src/rejax/__init__.py": REJAX, "src/rejax/algos/ppo.py": "raise ImportError\n"},
    )


def brax(folder, train=BRAX_TRAIN):
    packages = ("brax", "brax/training", "brax/training/agents", "brax/training/agents/ppo")
    return write(
        folder / "their-brax",
        {
            **{f"{package}/__init__.py": "" for package in packages},
            "brax/envs/__init__.py": BRAX_ENVS,
            "brax/training/agents/ppo/networks.py": BRAX_NETWORKS,
            "brax/training/agents/ppo/train.py": train,
        },
    )
