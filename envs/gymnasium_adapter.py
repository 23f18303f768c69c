"""Gymnasium's vector environments, stepped one after another in Python, behind the protocol."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array

from envs import spaces
from rgpo_jax.environment import Observation, TimeStep


def names() -> list[str]:
    """All environments that are registered."""
    return list(gymnasium.registry)


class GymnasiumEnvironment:
    """A registered environment of Gymnasium.

    `spaces` says how observations and actions are read. Termination wins where it falls together
    with truncation.
    """

    def __init__(self, name: str, task: str, params: Mapping[str, Any]):
        try:
            env = gymnasium.make(task, **params)
        except (gymnasium.error.Error, TypeError, ImportError) as error:
            raise ValueError(f"{name}: {' '.join(str(error).split())}") from None
        self.name = name
        self.max_episode_steps = None if env.spec is None else env.spec.max_episode_steps
        self.action_space = spaces.action_space(name, env.action_space)
        self._reading = spaces.observation(name, env.observation_space)
        self.observation_shape, self.observation_dtype, _ = self._reading
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
            raise RuntimeError(" ".join(str(error).split())) from None
        if not pictures or pictures[0] is None:
            raise RuntimeError("it does not draw itself")
        return np.asarray(pictures[0])


def make(name: str, task: str, params: Mapping[str, Any]) -> GymnasiumEnvironment:
    """Raises ValueError for unknown parameters, and for kinds of spaces that agents do not have."""
    return GymnasiumEnvironment(name, task, params)
