"""The first half of an agent's step, to be measured or looked at by itself."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rgpo_jax.agent import Agent, AgentState
    from rgpo_jax.rollout import Trajectory


def collect(
    agent: "Agent", state: "AgentState", axis_name: str | None = None
) -> tuple["AgentState", "Trajectory"]:
    """The rollout of `agent.step` alone: the state after it, with the learner as it was.

    `axis_name`: that of `rgpo_jax.agent.make`.
    """
    import jax

    from rgpo_jax import rollout
    from rgpo_jax.data_parallel import DataParallel

    key, rollout_key = jax.random.split(state.key)
    rollout_state, trajectory, _ = rollout.collect(
        agent.env,  # type: ignore[arg-type]
        functools.partial(agent.learner.policy, state.learner),
        state.rollout,
        rollout_key,
        agent.config.num_steps,
        agent.config.reset_pool_size,
        DataParallel(axis_name),
    )
    return state._replace(rollout=rollout_state, key=key), trajectory
