"""Collecting experience: a scan over time of vmapped environments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.acting import act
from rgpo_jax.data_parallel import DataParallel
from rgpo_jax.environment import Environment, Observation, restart_where_done
from rgpo_jax.networks import forget, respond

Array = jax.Array
_ONE_DEVICE = DataParallel()


class Trajectory(NamedTuple):
    """Experience of B environments over T steps; what the update step consumes.

    Attributes:
      observation: [T, B, *observation_shape]; a dict of arrays where the shape is one of theirs.
      action: as the policy drew it, before `squash`, [T, B] or [T, B, d].
      log_prob: of the action under the policy that drew it, in nats [T, B].
      reward: [T, B].
      terminated: bool [T, B].
      truncated: bool [T, B].
      final_observation: what each step led to, before any reset [T, B, *observation_shape].
        Where an episode goes on it equals the next row of `observation`.
      memory: of a recurrent network before the first step, a tree of [1, B, H]; that before later
        ones follows from it. None: the network has none.
    """

    observation: Observation
    action: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Observation
    memory: Any = None


class RolloutState(NamedTuple):
    """Where B environments stand between two rollouts.

    Attributes:
      env_state: the environment's own pytree, batched [B, ...].
      observation: to act on next [B, *observation_shape].
      episode_return: undiscounted return of the running episode so far [B].
      episode_length: its steps so far, int32 [B].
      memory: of a recurrent network before `observation`, a tree of [B, H]: the initial one where
        the last step ended an episode. None: the network has none.
    """

    env_state: Any
    observation: Observation
    episode_return: Array
    episode_length: Array
    memory: Any = None


class EpisodeTotals(NamedTuple):
    """Sums over the episodes that ended in a rollout, scalars.

    Attributes:
      episodes: number of episodes.
      returns: sum of their undiscounted returns.
      lengths: sum of their lengths in steps.
    """

    episodes: Array
    returns: Array
    lengths: Array


def init(
    env: Environment,
    num_envs: int,
    key: Array,
    parallel: DataParallel = _ONE_DEVICE,
    memory: Any = None,
) -> RolloutState:
    """Resets `num_envs` environments, of which the state holds this device's share.

    `memory`: the initial one of a recurrent network, for all `num_envs`.
    """
    keys = parallel.share(jax.random.split(key, num_envs), axis=0)
    env_state, observation = jax.vmap(env.reset)(keys)
    zeros = jnp.zeros(keys.shape)
    memory = parallel.share(memory, axis=0)
    return RolloutState(env_state, observation, zeros, zeros.astype(jnp.int32), memory)


def collect(
    env: Environment,
    policy: Callable[..., Any],
    state: RolloutState,
    key: Array,
    num_steps: int,
    reset_pool_size: int,
    parallel: DataParallel = _ONE_DEVICE,
) -> tuple[RolloutState, Trajectory, EpisodeTotals]:
    """Steps every environment `num_steps` times with the policy's samples.

    Where an episode ends, the next one starts from a pool of `reset_pool_size` fresh resets per
    environment, made once per rollout and used in order: starts are independent draws of the
    environment's own. Only an environment that ends more than `reset_pool_size` episodes in one
    rollout meets a start again (and short episodes' starts then more often than long ones'). With
    size 0 every step computes a reset for every environment instead.

    Args:
      env: one environment; it is vmapped here.
      policy: observations [..., *observation_shape] -> distribution of actions [...]; where the
        state has a memory, (observations, memory) -> (distribution, memory after them).
      state: of B environments.
      key: a typed key.
      num_steps: T.
      reset_pool_size: resets per environment in the pool, or 0.
      parallel: of which `state` and results are this device's share.

    Returns:
      The new state, the trajectory [T, B, ...] and totals over the episodes that ended.
    """
    share_size = state.episode_return.shape[0]
    num_envs = share_size * parallel.size
    action_key, step_key, reset_key = jax.random.split(key, 3)
    reset = jax.vmap(env.reset)
    step = jax.vmap(env.step)

    pool = restart_keys = None
    reset_pool_size = min(reset_pool_size, num_steps)  # no environment ends more episodes
    if reset_pool_size > 0:
        pool_keys = jax.random.split(reset_key, (reset_pool_size, num_envs))
        pool = jax.vmap(reset)(parallel.share(pool_keys, axis=1))
    else:
        restart_keys = parallel.share(jax.random.split(reset_key, (num_steps, num_envs)), axis=1)

    # All noise at once: on a CPU a random draw per step costs as much as the policy itself.
    distribution, _ = respond(policy, state.observation, state.memory)
    noise = distribution.noise(action_key, (num_steps, num_envs))
    action_noise = parallel.share(noise, axis=1)
    step_keys = parallel.share(jax.random.split(step_key, (num_steps, num_envs)), axis=1)

    def start(keys: Array | None, ended: Array) -> Any:
        if keys is not None:
            return reset(keys)
        rows = ended % reset_pool_size
        return jax.tree.map(lambda leaf: leaf[rows, jnp.arange(share_size)], pool)

    def advance(carry: tuple, xs: tuple) -> tuple[tuple, Trajectory]:
        state, totals, ended = carry
        noise, step_keys, restart_keys = xs
        distribution, memory = respond(policy, state.observation, state.memory)
        acted = act(distribution, distribution.sample_from(noise), env.action_space, memory)
        env_state, timestep = step(step_keys, state.env_state, acted.env_action)
        env_state, timestep = restart_where_done(env_state, timestep, start(restart_keys, ended))

        done = timestep.done
        episode_return = state.episode_return + timestep.reward
        episode_length = state.episode_length + 1
        totals = EpisodeTotals(
            totals.episodes + jnp.sum(done, dtype=jnp.int32),
            totals.returns + jnp.sum(jnp.where(done, episode_return, 0.0)),
            totals.lengths + jnp.sum(jnp.where(done, episode_length, 0), dtype=jnp.int32),
        )
        step_record = Trajectory(
            observation=state.observation,
            action=acted.action,
            log_prob=acted.log_prob,
            reward=timestep.reward,
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            final_observation=timestep.final_observation,
        )
        state = RolloutState(
            env_state,
            timestep.observation,
            jnp.where(done, 0.0, episode_return),
            jnp.where(done, 0, episode_length),
            forget(acted.memory, done),
        )
        return (state, totals, ended + done), step_record

    zero = jnp.zeros((), jnp.int32)
    memory = jax.tree.map(lambda x: x[None], state.memory)
    (state, totals, _), trajectory = jax.lax.scan(
        advance,
        (state, EpisodeTotals(zero, jnp.zeros(()), zero), jnp.zeros(share_size, jnp.int32)),
        (action_noise, step_keys, restart_keys),
    )
    return state, trajectory._replace(memory=memory), parallel.sum(totals)
