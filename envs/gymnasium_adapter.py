"""Gymnasium's vector environments, stepped one after another in Python, behind the protocol."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array

from envs import parameters, spaces
from envs.words import one_line
from rgpo_jax.environment import Observation, TimeStep


def names() -> list[str]:
    """All environments that are registered."""
    return list(gymnasium.registry)


class GymnasiumEnvironment:
    """An environment of Gymnasium, which `gymnasium.make` can make.

    `spaces` says how observations and actions are read. Termination wins where it falls together
    with truncation.
    """

    def __init__(self, name: str, task: str | EnvSpec, params: Mapping[str, Any]):
        """Makes one, and looks at it.

        Raises:
          ValueError: it cannot be made, has no such parameter, or has spaces that agents do not.
        """
        try:
            env = gymnasium.make(task, **params)
        except (Exception, SystemExit) as error:  # it may be anybody's
            said = one_line(error) or type(error).__name__
            raise ValueError(f"{name}: {said}") from error
        self.name = name
        self.max_episode_steps = None if env.spec is None else env.spec.max_episode_steps
        self.action_space = spaces.action_space(name, env.action_space)
        self._reading = spaces.observation(name, env.observation_space)
        self.observation_shape, self.observation_dtype, _ = self._reading
        # Whether `play` can have its pictures.
        self.draws_itself = "rgb_array" in (env.metadata.get("render_modes") or ())
        env.close()
        self._task = task
        self._params = dict(params)

    def make_pool(self, seeds: Sequence[int], pictures: bool = False) -> "GymnasiumPool":
        """Environments with these seeds.

        With `pictures` they can be drawn, and stay where their episodes end: none restarts.
        """
        mode = AutoresetMode.DISABLED if pictures else AutoresetMode.SAME_STEP
        if pictures and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # its default needs a screen
        envs = gymnasium.make_vec(
            self._task,
            num_envs=len(seeds),
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": mode},
            **({**self._params, "render_mode": "rgb_array"} if pictures else self._params),
        )
        return GymnasiumPool(envs, seeds, self._reading.read, restarts=not pictures)


class GymnasiumPool:
    """A vector environment in which the next episode starts in the step that ends one."""

    def __init__(
        self,
        envs: gymnasium.vector.VectorEnv,
        seeds: Sequence[int],
        read: Callable[[Any], Observation],
        restarts: bool,
    ):
        self._envs = envs
        self._restarts = restarts
        self._seeds: Any = list(seeds)
        self._read = read
        self._action: np.ndarray | None = None

    def reset(self) -> Observation:
        observation, _ = self._envs.reset(seed=self._seeds)
        self._seeds = None  # later episodes go on from the same random numbers
        return self._read(observation)

    def send(self, action: np.ndarray) -> None:
        self._action = action

    def receive(self) -> TimeStep:
        # The vector environment hands out copies.
        observation, reward, terminated, truncated, info = self._envs.step(self._action)
        observation = final = self._read(observation)
        done = terminated | truncated
        if done.any() and self._restarts:
            final = spaces.replaced(
                observation, done, self._read(self._batch(info["final_obs"][done]))
            )
        return TimeStep(
            observation, reward.astype(np.float32), terminated, truncated & ~terminated, final
        )

    def _batch(self, observations: np.ndarray) -> Any:
        """One batch of single observations."""
        space = self._envs.single_observation_space
        empty = create_empty_array(space, len(observations))
        return concatenate(space, observations, empty)

    def picture(self) -> np.ndarray:
        """The first environment: RGB, uint8 [height, width, 3].

        Raises:
          RuntimeError: it cannot be drawn: an extra of Gymnasium's is missing, or OpenGL is.
        """
        try:
            pictures = self._envs.render()
        except (gymnasium.error.Error, ImportError, AttributeError) as error:
            raise RuntimeError(one_line(error)) from None
        if not pictures or pictures[0] is None:
            raise RuntimeError("it does not draw itself")
        return np.asarray(pictures[0])


# What `gymnasium.make` takes beside the parameters of the environment.
_TAKEN = (parameters.LIMIT, "disable_env_checker")


def _check_params(name: str, make: Any, params: Mapping[str, Any]) -> None:
    """Raises ValueError for a parameter that a class or function does not take, if it says so."""
    own, takes_all = parameters.taken_by(make)
    if not takes_all:
        parameters.check(name, params, [*own, *_TAKEN])


def make(name: str, task: str, params: Mapping[str, Any]) -> GymnasiumEnvironment:
    """A registered environment.

    Raises:
      ValueError: none has this name, or such parameters, or its spaces are none that agents have.
    """
    if task not in gymnasium.registry:
        raise ValueError(f"{name}: its module registers no {task!r} with Gymnasium")
    creator: Any = gymnasium.spec(task).entry_point
    creator = load_env_creator(creator) if isinstance(creator, str) else creator
    _check_params(name, creator, params)
    return GymnasiumEnvironment(name, task, params)


def of_callable(
    make: Callable[..., gymnasium.Env], name: str, params: Mapping[str, Any]
) -> GymnasiumEnvironment:
    """What a class or function makes; `max_episode_steps` limits its episodes.

    Raises:
      ValueError: as `make`.
    """
    own = dict(params)
    is_own = parameters.LIMIT in parameters.taken_by(make)[0]  # then the class is told as well
    limit = own.get(parameters.LIMIT) if is_own else own.pop(parameters.LIMIT, None)
    limit = None if limit is None else parameters.limit(limit)
    _check_params(name, make, own)
    # Not as the spec's kwargs, of which Gymnasium takes the limit for itself.
    make = functools.partial(make, **own)
    spec = EnvSpec("own/Environment-v0", entry_point=make, max_episode_steps=limit)
    return GymnasiumEnvironment(name, spec, {})
