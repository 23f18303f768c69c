"""An agent: a rollout and an update joined into pure functions to vmap, scan and shard."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgpo_jax import acting, gates, inspection, keys, networks, rollout, update
from rgpo_jax.acting import Acted
from rgpo_jax.config import Config
from rgpo_jax.data_parallel import DataParallel
from rgpo_jax.environment import AnyEnvironment, HostEnvironment, Observation
from rgpo_jax.gates import Gate
from rgpo_jax.hyperparameters import check_overrides
from rgpo_jax.learner import Learner, LearnerState
from rgpo_jax.metrics import Metrics, means, sums
from rgpo_jax.networks import Network
from rgpo_jax.rollout import EpisodeTotals, RolloutState
from rgpo_jax.tunable import Tunable

Array = jax.Array


class AgentState(NamedTuple):
    """The whole of a training run: what `step` maps to its successor.

    Attributes:
      learner: parameters, optimiser, hyper-parameters.
      rollout: environments.
      key: typed key, for rollouts.
    """

    learner: LearnerState
    rollout: RolloutState
    key: Array


class Init(Protocol):
    """Signature of `Agent.init`."""

    def __call__(self, key: Array, **hyperparameters: Any) -> AgentState: ...


class Act(Protocol):
    """Signature of `Agent.act`."""

    def __call__(
        self,
        state: AgentState | LearnerState,
        observation: Observation,
        key: Array | None = None,
        memory: Any = None,
    ) -> Any: ...


class Agent(NamedTuple):
    """Pure functions over `AgentState`; jit, vmap and scan them.

    Attributes:
      init: (key, **hyperparameters) -> AgentState. Keyword arguments override the Config's real
        numbers (but `initial_std`), the gate's own among them, and may be traced:
        `init(key, sharpness=k)`.
      step: AgentState -> (AgentState, metrics): one rollout, one update. It ignores further
        arguments, so that `jax.lax.scan(agent.step, state, length=n)` works as it stands.
      act: (state, observation [..., *observation_shape], key=None) -> action in the environment's
        units: the policy's mode, or a sample of it where a key is given. A recurrent policy takes
        the memory too, (state, observation, key, memory) -> (action, memory after it): that of
        `initial_memory` where an episode starts. Without one it raises TypeError. The learner's
        state will do for the agent's.
      learner: the update alone, for trajectories that you collected yourself (see `sample`).
      env: the environment. Where it lives on the host (`HostEnvironment`), `init` and `step` raise
        TypeError: `host.Collector` collects for `learner.update`.
      config: the settings.
    """

    init: Init
    step: Callable[..., tuple[AgentState, Metrics]]
    act: Act
    learner: Learner
    env: AnyEnvironment
    config: Config

    def initial_memory(self, *batch_shape: int) -> Any:
        """What a recurrent policy remembers where an episode starts; None without recurrence."""
        return self.learner.network.initial_memory(*batch_shape)

    def sample(
        self,
        state: AgentState | LearnerState,
        observation: Observation,
        key: Array,
        memory: Any = None,
    ) -> Acted:
        """Draws actions, with what a `Trajectory` needs of them: for a loop of your own.

        Args:
          state: of the learner; or of the agent, which has one.
          observation: as the environment gives it [..., *observation_shape].
          key: a typed key.
          memory: of a recurrent policy, before the observation; see `initial_memory`.

        Returns:
          The actions [...]: as drawn, their log-probabilities, and in the environment's units.

        Raises:
          TypeError: the policy is recurrent and there is no memory, or the other way round; or the
            observation is no dict where it should be one.
          ValueError: the observation is of another shape.
        """
        observation = acting.as_observation(observation, self.env.observation_shape)
        policy = functools.partial(self.learner.policy, acting.learner_of(state))
        distribution, memory = networks.respond(policy, observation, memory)
        return acting.act(distribution, distribution.sample(key), self.env.action_space, memory)


def episode_metrics(totals: EpisodeTotals) -> Metrics:
    """Number of episodes that ended, mean return and length; NaN, and not 0, where none did."""
    count = jnp.asarray(totals.episodes, jnp.float32)
    ended = jnp.where(count > 0, count, jnp.nan)
    per_episode = {
        "episode_return": totals.returns / ended,
        "episode_length": totals.lengths / ended,
    }
    return sums({"episodes": count}) | means(per_episode, weight=count)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{name} lives on the host and cannot be compiled: collect with "
            "rgpo_jax.host.Collector, or step by step with agent.sample, and train with "
            "agent.learner"
        )

    return refuse


def make(
    env: AnyEnvironment,
    config: Config,
    gate: Gate,
    advantage_transform: Tunable | None = None,
    policy_step: Tunable | None = None,
    axis_name: str | None = None,
    penalty: Tunable | None = None,
    optimizer: update.Optimizer = update.adam,
    network: Network | nn.Module | None = None,
    flatten: bool | None = None,
) -> Agent:
    """Joins environment, networks and the update step into an agent.

    Args:
      env: one environment.
      config: settings.
      gate: a gate of `rgpo_jax.gates`, or any function (log_ratio, advantage) -> g.
      advantage_transform: see `update.make`.
      policy_step: see `update.make`.
      penalty: see `update.make`.
      optimizer: see `update.make`.
      network: policy and value function for the environment's observations and actions; or a module
        of flax.linen, observation -> features, which is the torso of both (`networks.make`); None:
        what the config describes.
      axis_name: of a mapped axis (`jax.shard_map`) over which the `num_envs` environments are
        spread in equal shares: `state.rollout` is then a device's own, all else is the same on
        all devices. None: one device has them all.
      flatten: see `update.make`.

    Raises:
      ValueError: the environment or the gate is none (`inspection`); the network cannot be built
        for these observations or actions; or environments on the host are to be spread, or met by
        a recurrent policy.
    """
    inspection.check_environment(env)
    if network is None or isinstance(network, nn.Module):
        network = networks.make(env.observation_shape, env.action_space, config, torso=network)
    elif not isinstance(network, Network):
        raise ValueError(
            f"network: a {type(network).__name__}; expected a module of flax.linen or a Network"
        )
    elif config.shared_torso and network.joint is None:
        raise ValueError("shared_torso True: the Network that was given shares none")
    parallel = DataParallel(axis_name)
    learner = update.make(
        network,
        config,
        gates.checked(gate),
        advantage_transform,
        policy_step,
        penalty,
        optimizer,
        parallel,
        flatten,
    )

    def act(
        state: AgentState | LearnerState,
        observation: Observation,
        key: Array | None = None,
        memory: Any = None,
    ) -> Any:
        observation = acting.as_observation(observation, env.observation_shape)
        policy = functools.partial(learner.policy, acting.learner_of(state))
        distribution, memory = networks.respond(policy, observation, memory)
        action = distribution.mode() if key is None else distribution.sample(key)
        action = acting.act(distribution, action, env.action_space).env_action
        return action if memory is None else (action, memory)

    if isinstance(env, HostEnvironment):
        if axis_name is not None:
            raise ValueError(f"{env.name} lives on the host: it cannot be spread over devices")
        if network.recurrence is not None:
            raise ValueError(f"{env.name} lives on the host: network gru is for compiled ones")
        refuse = _refusal(env.name)
        return Agent(refuse, refuse, act, learner, env, config)

    def init(key: Array, **hyperparameters: Any) -> AgentState:
        learner_key, env_key, key = jax.random.split(keys.as_typed(key), 3)
        overrides = check_overrides(config, hyperparameters, type(learner.hyperparameters))
        rollout_state = rollout.init(
            env, config.num_envs, env_key, parallel, network.initial_memory(config.num_envs)
        )
        return AgentState(
            learner.init(learner_key, learner.hyperparameters.replace(**overrides)),
            # An environment may give the same array twice, and a state's memory may be donated.
            jax.tree.map(jnp.copy, rollout_state),
            key,
        )

    # One of another's may truncate earlier than it says: then all final observations are looked at.
    least_episode = env.max_episode_steps if inspection.is_known(env) else None

    @jax.jit  # traced once, wherever it is used: in a loop, under vmap, for its shapes alone
    def step(state: AgentState, _: Any = None) -> tuple[AgentState, Metrics]:
        key, rollout_key = jax.random.split(state.key)
        rollout_state, trajectory, totals = rollout.collect(
            env,
            functools.partial(learner.policy, state.learner),
            state.rollout,
            rollout_key,
            config.num_steps,
            config.reset_pool_size,
            parallel,
        )
        learner_state, metrics = learner.update(state.learner, trajectory, least_episode)
        return AgentState(learner_state, rollout_state, key), metrics | episode_metrics(totals)

    return Agent(init, step, act, learner, env, config)
