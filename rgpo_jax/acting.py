"""Acting: from observations to a distribution of actions, and from there to the environment."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rgpo_jax import normalization
from rgpo_jax.distributions import Distribution
from rgpo_jax.environment import ActionSpace, Observation, to_environment_units
from rgpo_jax.networks import Network

Array = jax.Array


class Actor(Protocol):
    """What acting needs of a state; `learner.LearnerState` has it, and `PolicyState` no more."""

    @property
    def params(self) -> Any:
        """{"actor": ...}, whatever there is beside."""

    @property
    def observation_moments(self) -> Any:
        """`Moments` by which observations are normalised, or a dict; None: they are not."""


class PolicyState(NamedTuple):
    """The `Actor` that remains where nothing is learnt any more.

    Attributes:
      params: {"actor": ...}.
      observation_moments: elementwise; where observations are a dict of arrays, a dict; None:
        they are not normalised.
    """

    params: Any
    observation_moments: Any


def learner_of(state: Any) -> Any:
    """The learner of a state that has one, such as an agent's; else the state is a learner's."""
    return getattr(state, "learner", state)


def batch_shape_of(name: str, array: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What an array [..., *shape] has before these axes; ValueError: it is of another shape."""
    batch_shape: tuple[int, ...] = array.shape[: array.ndim - len(shape)]
    if array.shape != (*batch_shape, *shape):
        raise ValueError(f"{name} of shape {array.shape}: expected {shape}, or a batch of such")
    return batch_shape


def parts_of(given: Any, shape: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Of an observation that is a dict of arrays: name -> what a message calls it, and the array.

    Raises:
      TypeError: it is no dict, or one with other names.
    """
    if not isinstance(given, Mapping) or given.keys() != shape.keys():
        raise TypeError(f"observation: expected a dict of {', '.join(sorted(shape))}")
    return {name: (f"observation[{name!r}]", given[name]) for name in shape}


def as_observation(given: Any, shape: Any) -> Observation:
    """An observation in arrays, where it may be lists of numbers.

    Args:
      given: [..., *shape]; where shape is a dict, a dict too.
      shape: of one observation.

    Raises:
      ValueError: it is of another shape.
      TypeError: it is no dict of the same names.
    """
    if isinstance(shape, dict):
        parts = parts_of(given, shape)
        return {name: _as_array(*part, shape[name]) for name, part in parts.items()}
    return _as_array("observation", given, shape)


def _as_array(name: str, given: Any, shape: tuple[int, ...]) -> Array:
    array = jnp.asarray(given)
    batch_shape_of(name, array, shape)
    if not hasattr(given, "dtype") and len(shape) == 3:
        raise ValueError(f"{name}: a list; expected an array, whose type tells pixels from others")
    return array


def observe(state: Actor, observation: Observation) -> Observation:
    """Observations [..., *observation_shape] as the networks see them: normalised, if at all."""
    if state.observation_moments is None:
        return observation
    return normalization.by_part(normalization.standardize, state.observation_moments, observation)


def policy(network: Network, state: Actor, observation: Observation, memory: Any = None) -> Any:
    """What a network's policy would do.

    Args:
      network: for normalised observations.
      state: its parameters, and the statistics by which it sees.
      observation: as the environment gives it [..., *observation_shape].
      memory: of a recurrent network, before the observation; that of the actor will do.

    Returns:
      A Distribution [...]; of a recurrent network, (Distribution, memory after the observation).

    Raises:
      TypeError: the network is recurrent and there is no memory, or the other way round.
    """
    observation = observe(state, observation)
    if memory is None:
        return network.policy(state.params["actor"], observation)
    if network.recurrence is None:
        raise TypeError("this network has no recurrence, and takes no memory")
    return network.recurrence.step(state.params, observation, memory)


class Acted(NamedTuple):
    """An action, as the update step and as the environment need it.

    Attributes:
      action: as the policy drew it, before `squash`, [...] or [..., d]; for `Trajectory.action`.
      log_prob: of it under that policy, in nats [...]; for `Trajectory.log_prob`.
      env_action: the same in the environment's units [..., *shape]: what it is stepped with.
      memory: of a recurrent policy, after the observation; None without.
    """

    action: Array
    log_prob: Array
    env_action: Array
    memory: Any = None


def act(distribution: Distribution, action: Array, space: ActionSpace, memory: Any = None) -> Acted:
    """What a distribution's action [...] is in the environment's units, and its log-probability.

    Args:
      distribution: of a policy, for actions in [-1, 1] where they are continuous.
      action: a sample of it, its mode, or another.
      space: of the environment's actions.
      memory: of a recurrent policy, which is passed on.
    """
    env_action = to_environment_units(space, distribution.squash(action))
    return Acted(action, distribution.log_prob(action), env_action, memory)
