"""Environments and networks as a user writes them, of every kind that can be named MODULE:NAME."""

from typing import ClassVar

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnax.environments import CartPole
from gymnax.environments import environment as gymnax_environment
from gymnax.environments import spaces as gymnax_spaces
from gymnax.registration import register, registered_envs

from rgpo_jax.distributions import Categorical
from rgpo_jax.environment import Discrete, TimeStep
from rgpo_jax.networks import Network


class Line:
    """One number, 1 for the action that is its sign; of the compiled protocol, without a limit."""

    name = "Line"
    observation_shape = (1,)
    action_space = Discrete(2)
    max_episode_steps = None

    def __init__(self, width=1.0, noise=0.0):
        self.width = width
        self.noise = noise

    def reset(self, key):
        place = jax.random.uniform(key, (1,), minval=-self.width, maxval=self.width)
        return place, place

    def step(self, key, state, action):
        reward = jnp.where((state[0] > 0) == (action == 1), 1.0, 0.0) + self.noise
        state, observation = self.reset(key)
        never = jnp.bool_(False)
        return state, TimeStep(observation, reward, never, never, observation)


class Short(Line):
    """With a limit of its own, which it may say wrongly."""

    def __init__(self, steps=10, said=0, **kwargs):
        super().__init__(**kwargs)
        self.line, self.steps = Line(**kwargs), steps
        self.max_episode_steps = steps if said == 0 else said

    def reset(self, key):
        state, observation = self.line.reset(key)
        return (state, jnp.int32(0)), observation

    def step(self, key, state, action):
        inner, time = state
        inner, timestep = self.line.step(key, inner, action)
        return (inner, time + 1), timestep._replace(truncated=time + 1 >= self.steps)


def short_line(steps=10, **kwargs):
    return Short(steps, **kwargs)


class Whole(Line):
    """Wrong: a step's observation is of another type than that of the reset."""

    def step(self, key, state, action):
        state, timestep = super().step(key, state, action)
        whole = timestep.observation.astype(jnp.int32)
        return state, timestep._replace(observation=whole, final_observation=whole)


class Pooled:
    """`Line` of the host protocol, with episodes of a few steps."""

    name = "Pooled"
    observation_shape = (1,)
    observation_dtype = np.float32
    action_space = Discrete(2)

    def __init__(self, steps=4):
        self.max_episode_steps = steps

    def make_pool(self, seeds):
        return _Pool(seeds, self.max_episode_steps)


class _Pool:
    def __init__(self, seeds, steps):
        self.draws = [np.random.default_rng(seed) for seed in seeds]
        self.steps = steps

    def draw(self):
        self.place = np.array([[draw.uniform(-1, 1)] for draw in self.draws], np.float32)
        return self.place

    def reset(self):
        self.done = 0
        return self.draw()

    def send(self, action):
        self.reward = ((self.place[:, 0] > 0) == (action == 1)).astype(np.float32)

    def receive(self):
        self.done += 1
        cut = np.full(len(self.draws), self.done % self.steps == 0)
        observation = self.draw()
        return TimeStep(observation, self.reward, np.zeros_like(cut), cut, observation)


class Sign(gymnasium.Env):
    """The same of Gymnasium, in NumPy."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, scale=1.0):
        self.scale = scale

    def _draw(self):
        self.place = self.np_random.uniform(-self.scale, self.scale, 1).astype(np.float32)
        return self.place

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        reward = float((self.place[0] > 0) == (action == 1))
        return self._draw(), reward, False, False, {}


class Counted(Sign):
    """It cuts its episodes itself."""

    def __init__(self, max_episode_steps=3):
        super().__init__()
        self.limit = max_episode_steps

    def reset(self, **kwargs):
        self.time = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.time += 1
        observation, reward, *_ = super().step(action)
        return observation, reward, False, self.time >= self.limit, {}


class Robot(Sign):
    """In its step `at` it fails, or gives a reward that is no number."""

    def __init__(self, at=30, fails=True):
        super().__init__()
        self.at, self.fails, self.time = at, fails, 0

    def step(self, action):
        self.time += 1
        observation, reward, *ends = super().step(action)
        if self.time == self.at and self.fails:
            raise OSError("the robot is off")
        return observation, reward if self.time < self.at else float("nan"), *ends


def make_sign(scale=1.0):
    return Sign(scale)


class Drawn(Sign):
    """It draws itself."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return None if self.render_mode is None else np.full((4, 6, 3), 7, np.uint8)


def make_drawn(render_mode=None):
    return Drawn(render_mode)


def make_undrawn():
    return Drawn()


class Unlimited:
    """Wrong: it says nothing of a limit."""

    name, observation_shape, action_space = "Unlimited", (1,), Discrete(2)
    reset, step = Line.reset, Line.step


class Foreign(Line):
    """Wrong: its actions are of another library."""

    action_space = spaces.Discrete(2)


gymnasium.register("own/Sign-v0", entry_point=Sign, max_episode_steps=10)


class Bandit(gymnax_environment.Environment):
    """Two arms, of gymnax."""

    @property
    def default_params(self):
        return gymnax_environment.EnvParams(max_steps_in_episode=5)

    def reset_env(self, key, params):
        state = gymnax_environment.EnvState(time=0)
        return jnp.zeros(1), state

    def step_env(self, key, state, action, params):
        state = gymnax_environment.EnvState(time=state.time + 1)
        return jnp.zeros(1), state, jnp.float32(action), jnp.bool_(False), {}

    def action_space(self, params=None):
        return gymnax_spaces.Discrete(2)

    def observation_space(self, params):
        return gymnax_spaces.Box(0, 1, (1,))


class BrokenBandit(Bandit):
    """Its reward is no number."""

    def step_env(self, key, state, action, params):
        observation, state, reward, *rest = super().step_env(key, state, action, params)
        return observation, state, reward * jnp.nan, *rest


if "OwnBandit-v0" not in registered_envs:
    register("OwnBandit-v0", Bandit)

ONE_SIGN = Sign()
NUMBER = 3


class Pole(CartPole):
    """gymnax's, named otherwise."""


def fails():
    raise RuntimeError("no licence")


def leaves():
    raise SystemExit(0)


def makes_a_dict():
    return {}


class Net(nn.Module):
    """A torso: one layer of sines."""

    width: int = 8

    @nn.compact
    def __call__(self, observation):
        return jnp.sin(nn.Dense(self.width)(observation))


def wide_net(observation_shape, action_space, config):
    """A torso for what there is."""
    return Net(width=4 * observation_shape[0])


def whole_net(observation_shape, action_space, config):
    """A policy and a value function, both linear."""

    def init(key):
        return {"actor": jnp.zeros((*observation_shape, action_space.n)), "critic": jnp.zeros(1)}

    def policy(params, observation):
        return Categorical.from_logits(observation @ params)

    def value(params, observation):
        return jnp.zeros(observation.shape[:-1]) + params[0]

    return Network(observation_shape, init, policy, value)


def no_net(observation_shape, action_space, config):
    return {}
