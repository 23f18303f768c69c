"""EnvPool (Gym's MuJoCo tasks, Atari and others, stepped by C++ threads) behind the protocol."""

import contextlib
import ctypes
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from envs import parameters, spaces
from rgpo_jax.environment import Observation, TimeStep

with contextlib.suppress(OSError):  # only MuJoCo's pictures need it
    # EnvPool 1.2.5, the newest for Python 3.11, finds OpenGL only if it was there before.
    ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)
import envpool

from envs.words import one_line

_NO_LIMIT = 2**31 - 1  # what EnvPool says where a task has none
# What changes rewards or ends of training alone: off where the true score is wanted.
_TRAINING_ALONE = {"reward_clip": False, "episodic_life": False}
_FOR_ALL_TASKS = {"num_envs", "batch_size", "num_threads", "seed", "env_seed"}  # ours to choose


@contextlib.contextmanager
def _quiet_bounds() -> Iterator[None]:
    """Inside, Gymnasium does not warn that bounds of the tasks' own spaces become float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Box (low|high)'s precision lowered")
        yield


def names() -> list[str]:
    """All tasks of the installed version."""
    return envpool.list_all_envs()


class EnvPoolEnvironment:
    """A task of EnvPool, with the time limit kept here.

    `spaces` says how observations and actions are read.
    """

    draws_itself = True

    def __init__(self, name: str, task: str, params: Mapping[str, Any]):
        config, space = _inspect(name, task, params)
        limit = config["max_episode_steps"]
        self.name = name
        self.max_episode_steps: int | None = int(limit) if 0 < limit < _NO_LIMIT else None
        with _quiet_bounds():
            self.action_space = spaces.action_space(name, space.gymnasium_action_space)
            self._reading = spaces.observation(name, space.gymnasium_observation_space)
        self.observation_shape, self.observation_dtype, _ = self._reading
        self._task = task
        self._given = dict(params)
        self._params = dict(params)
        self._settings = config
        if self.max_episode_steps is not None:
            # EnvPool calls a death at the limit a truncation. Out there the limit is one step
            # further off: what ends at ours then ends by its own rules.
            self._params["max_episode_steps"] = self.max_episode_steps + 1

    def for_evaluation(self) -> "EnvPoolEnvironment":
        """The task with its true score, where training clips rewards or ends episodes early."""
        differing = {k: off for k, off in _TRAINING_ALONE.items() if self._settings.get(k)}
        if not differing:
            return self
        return EnvPoolEnvironment(self.name, self._task, {**self._given, **differing})

    def make_pool(self, seeds: Sequence[int], pictures: bool = False) -> "EnvPoolPool":
        """Environments with these seeds, which step side by side on all cores.

        With `pictures` they can be drawn, and stay where their episodes end: none restarts.
        """
        params = {**self._params, "render_mode": "rgb_array"} if pictures else self._params
        with _quiet_bounds():
            pool = envpool.make(
                self._task, "gymnasium", num_envs=len(seeds), seed=list(seeds), **params
            )
        return EnvPoolPool(
            pool,
            self.max_episode_steps,
            self._reading.read,
            restarts=not pictures,
            lives=bool(self._settings.get("episodic_life")),
        )


def _inspect(name: str, task: str, params: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Settings of a task, and its specification."""
    reserved = _FOR_ALL_TASKS.intersection(params)
    if reserved:
        raise ValueError(f"{name}: {', '.join(sorted(reserved))} cannot be chosen")
    try:
        plain = _settings(envpool.make_spec(task))
        parameters.check(name, params, list(plain))
        spec = envpool.make_spec(task, **params)
    except TypeError as error:
        # EnvPool then says the types of all that it takes, and not whose was wrong.
        for key, value in params.items():
            try:
                envpool.make_spec(task, **{key: value})
            except (TypeError, RuntimeError):
                raise ValueError(
                    f"{name}: {key} = {value!r}: expected such a value as {plain[key]!r}, "
                    "the default"
                ) from None
        raise ValueError(f"{name}: {one_line(error)}") from None
    except RuntimeError as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    return _settings(spec), spec


def _settings(spec: Any) -> dict[str, Any]:
    return dict(zip(spec._config_keys, spec._config_values, strict=True))


class EnvPoolPool:
    """A pool in which the next episode starts in the step that ends one.

    EnvPool itself spends the next step on that, whose action and reward mean nothing. With `lives`
    an episode may be one of several lives, and the game goes on in the next.
    """

    def __init__(
        self,
        pool: Any,
        limit: int | None,
        read: Callable[[Any], Observation],
        restarts: bool,
        lives: bool,
    ):
        self._pool = pool
        self._limit = limit
        self._read = read
        self._restarts = restarts
        self._lives = lives

    def reset(self) -> Observation:
        with _quiet_bounds():
            return self._read(self._pool.reset()[0])

    def send(self, action: np.ndarray) -> None:
        self._pool.send(action)

    def receive(self) -> TimeStep:
        observation, reward, terminated, truncated, info = self._pool.recv()
        if self._limit is not None:
            truncated = truncated | (info["elapsed_step"] >= self._limit)
        truncated = truncated & ~terminated  # a death at the limit is a death
        final = observation = self._read(observation)
        ended = np.flatnonzero(terminated | truncated).astype(np.int32)
        if ended.size and self._restarts:
            goes_on = terminated & (info["lives"] > 0) if self._lives else np.zeros_like(terminated)
            for who, restart in ((goes_on, self._next_life), (~goes_on, self._pool.reset)):
                which = ended[who[ended]]
                if which.size:
                    first = self._read(restart(which)[0])
                    observation = spaces.replaced(observation, which, first)
        reward = reward.astype(np.float32, copy=False)
        return TimeStep(observation, reward, terminated, truncated, final)

    def _next_life(self, which: np.ndarray) -> Any:
        """The step after a life, whose action EnvPool ignores; `reset` would begin a new game."""
        return self._pool.step(np.zeros(len(which), np.int32), which)

    def picture(self) -> np.ndarray:
        """The first environment: RGB, uint8 [height, width, 3].

        Raises:
          RuntimeError: it cannot be drawn; MuJoCo needs OpenGL (EGL), for instance.
        """
        return self._pool.render()[0]


def make(name: str, task: str, params: Mapping[str, Any]) -> EnvPoolEnvironment:
    """Raises ValueError for unknown parameters, and for kinds of spaces that agents do not have."""
    return EnvPoolEnvironment(name, task, params)
