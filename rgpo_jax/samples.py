"""From a trajectory to the samples of an update: normalisation, bootstrap values, advantages."""

from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax import advantages, diagnostics, normalization
from rgpo_jax.acting import observe
from rgpo_jax.config import Config
from rgpo_jax.data_parallel import DataParallel
from rgpo_jax.learner import Hyperparameters, LearnerState
from rgpo_jax.metrics import Metrics, means
from rgpo_jax.networks import Network, Sequence
from rgpo_jax.normalization import Moments
from rgpo_jax.objective import Batch
from rgpo_jax.rollout import Trajectory

Array = jax.Array


def _include(moments: Moments, values: Array) -> Moments:
    return normalization.include(moments, values.reshape(-1, *moments.mean.shape))


def sequences(trajectory: Trajectory) -> Sequence:
    """The trajectory as a recurrent network reads it, environments first."""
    if trajectory.memory is None:
        raise ValueError("a recurrent network learns from trajectories that have its memory")
    done = trajectory.terminated | trajectory.truncated
    # The done before a step tells its memory to forget; before the first, the rollout did so.
    is_first = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
    memory = jax.tree.map(lambda x: x[0], trajectory.memory)
    observation = jax.tree.map(lambda x: x.swapaxes(0, 1), trajectory.observation)
    return Sequence(observation, is_first.T, memory)


def _rows_of(holds: Array, distance: int) -> Array:
    """The rows of a bool array [T, B] in which columns hold, int32 [ceil(T / distance), B].

    Of so many rows in a row a column holds in one at most, which is what is found of them; T: in
    none.
    """
    num_rows, num_columns = holds.shape
    distance = min(distance, num_rows)
    num_parts = -(-num_rows // distance)
    row = jnp.where(holds, jnp.arange(num_rows, dtype=jnp.int32)[:, None], num_rows)
    padding = ((0, num_parts * distance - num_rows), (0, 0))
    parts = jnp.pad(row, padding, constant_values=num_rows)
    return jnp.min(parts.reshape(num_parts, distance, num_columns), axis=1)


def bootstrap_values(
    network: Network, critic_params: Any, trajectory: Trajectory, max_episode_steps: int | None
) -> tuple[Array, Array]:
    """Evaluates the critic where advantage estimation needs it, once per rollout.

    Args:
      network: of which the value function is used.
      critic_params: what its value function takes, `network.critic(params)`.
      trajectory: [T, B, ...].
      max_episode_steps: the least distance in steps between two truncations of one environment,
        which bounds the number of final observations to look at; None: look at all.

    Returns:
      V(s_t) and V(s'_t), both [T, B], where s'_t is what the step led to before any reset. Where
      an episode terminated, the latter is that of some other state, to be ignored.
    """
    if network.recurrence is not None:
        final_observation = jax.tree.map(lambda x: x.swapaxes(0, 1), trajectory.final_observation)
        values = network.recurrence.values(critic_params, sequences(trajectory), final_observation)
        return values[0].T, values[1].T
    num_steps, num_envs = trajectory.reward.shape
    if max_episode_steps is None:
        both = jax.tree.map(
            lambda *x: jnp.stack(x), trajectory.observation, trajectory.final_observation
        )
        value, next_value = network.value(critic_params, both)
        return value, next_value

    # Where an episode goes on, s'_t is s_{t+1}. What is left are the last row and truncations.
    rows = _rows_of(trajectory.truncated, max_episode_steps)
    columns = jnp.arange(num_envs)

    def needed(observation: Array, final_observation: Array) -> Array:
        cut_off = final_observation[jnp.minimum(rows, num_steps - 1), columns]
        return jnp.concatenate([observation, final_observation[-1:], cut_off])

    value = network.value(
        critic_params,
        jax.tree.map(needed, trajectory.observation, trajectory.final_observation),
    )
    next_value = value[1 : num_steps + 1].at[rows, columns].set(value[num_steps + 1 :], mode="drop")
    return value[:num_steps], next_value


def by_minibatch(config: Config) -> bool:
    """Whether advantages are not shaped before they are split into minibatches."""
    return config.normalize_advantages and config.normalize_advantages_over == "minibatch"


def shape_advantages(config: Config, hyperparameters: Hyperparameters, advantage: Array) -> Array:
    """Advantages as gates see them: normalised over all that are given, and transformed."""
    if config.normalize_advantages:
        advantage = advantages.normalize(advantage)
    transformed: Array = hyperparameters.advantage_transform(advantage)
    return transformed


def prepare(
    network: Network,
    config: Config,
    state: LearnerState,
    trajectory: Trajectory,
    max_episode_steps: int | None = None,
    parallel: DataParallel = DataParallel(),
) -> tuple[Batch, LearnerState, Metrics]:
    """The samples to learn from, and the state with its statistics brought up to date.

    Observations are normalised by the statistics that the rollout used, so that the ratio
    starts at 1: what this trajectory adds to them concerns the next one.

    Args:
      network: policy and value function.
      config: whether advantages are normalised, and over what.
      state: before the update.
      trajectory: [T, B, ...], as the environment gave it.
      max_episode_steps: of the environment, if known (see `bootstrap_values`).
      parallel: of which the trajectory is this device's share.

    Returns:
      All samples of the batch, steps [T * B, ...] or with a recurrent network sequences
      [B, T, ...], with advantages as they were estimated where minibatches are normalised; the
      state; and what the value function explained.
    """
    hyperparameters = state.hyperparameters
    observed = trajectory._replace(
        observation=observe(state, trajectory.observation),
        final_observation=observe(state, trajectory.final_observation),
    )
    value, next_value = bootstrap_values(
        network, network.critic(state.params), observed, max_episode_steps
    )
    # From here on every device has the whole batch: minibatches are shuffled over all of it.
    trajectory, value, next_value = parallel.gather((trajectory, value, next_value), axis=1)
    observation, reward = observe(state, trajectory.observation), trajectory.reward
    if state.observation_moments is not None:
        moments = normalization.by_part(_include, state.observation_moments, trajectory.observation)
        state = state._replace(observation_moments=moments)
    if state.return_scale is not None:
        return_scale, reward = normalization.scale_rewards(
            state.return_scale,
            reward,
            trajectory.terminated | trajectory.truncated,
            hyperparameters.discount,
        )
        state = state._replace(return_scale=return_scale)
    advantage = advantages.generalized_advantages(
        hyperparameters.reward_scale * reward,
        value,
        next_value,
        trajectory.terminated,
        trajectory.truncated,
        hyperparameters.discount,
        hyperparameters.gae_lambda,
    )
    target = advantage + value
    explained = diagnostics.explained_variance(value, target)
    metrics = means({"explained_variance": explained}, weight=jnp.isfinite(explained))
    if not by_minibatch(config):
        advantage = shape_advantages(config, hyperparameters, advantage)
    batch = Batch(
        observation,
        trajectory.action,
        trajectory.log_prob,
        advantage,
        target,
        value,
    )
    if network.recurrence is None:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), state, metrics
    as_sequences = sequences(trajectory._replace(observation=observation))
    batch = jax.tree.map(lambda x: x.swapaxes(0, 1), batch)
    return batch._replace(observation=as_sequences), state, metrics
