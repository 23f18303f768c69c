"""A learner: its traced numbers, its state, and the (init, update) pair that `update` builds."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import jax

from rgpo_jax import normalization
from rgpo_jax.config import Config
from rgpo_jax.hyperparameters import TracedNumbers
from rgpo_jax.metrics import Metrics
from rgpo_jax.networks import Network
from rgpo_jax.rollout import Trajectory
from rgpo_jax.tunable import Tunable

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparameters(TracedNumbers):
    """The traced numbers of an update; scalars, or batched by vmap.

    Attributes:
      learning_rate: step size of the optimiser, at its largest (see `schedules`).
      discount: gamma.
      gae_lambda: lambda.
      reward_scale: by which rewards are multiplied before anything is learnt from them.
      entropy_coefficient: weight of the entropy bonus.
      value_coefficient: weight of the value loss.
      max_grad_norm: global norm to which gradients are scaled down.
      target_kl: KL at which an update's remaining gradient steps are skipped; None: all are taken.
      gate: the one thing in which gate agents differ.
      advantage_transform: applied to the (normalised) advantages; the identity but for AWR.
      policy_step: takes the optimiser's place for the actor (TRPO); None: the optimiser steps it.
      annealing: the share of the way from it to its end that the learning rate goes per update.
      penalty: a further term of the loss; None: none.
      end_learning_rate: where it goes.
      warmup_updates: number of updates in which it first rises.
    """

    learning_rate: Any
    discount: Any
    gae_lambda: Any
    reward_scale: Any
    entropy_coefficient: Any
    value_coefficient: Any
    max_grad_norm: Any
    target_kl: Any
    gate: Tunable
    advantage_transform: Tunable
    policy_step: Tunable | None
    annealing: Any  # it and what follows are missing from checkpoints of earlier versions
    penalty: Tunable | None = None
    end_learning_rate: Any = 0.0
    warmup_updates: Any = 0.0

    @classmethod
    def from_config(
        cls,
        config: Config,
        gate: Tunable,
        advantage_transform: Tunable,
        policy_step: Tunable | None,
        penalty: Tunable | None = None,
    ) -> Self:
        """The defaults that a Config gives, as float32 scalars."""
        return cls.from_settings(
            config,
            gate=gate,
            advantage_transform=advantage_transform,
            policy_step=policy_step,
            penalty=penalty,
        )


class LearnerState(NamedTuple):
    """What an update changes, and what it needs to go on.

    Attributes:
      params: {"actor": ..., "critic": ...}.
      optimizer_state: of the optimiser, over the parameters as one flat vector, or as they are
        where `update.make` was told so.
      key: typed key, for shuffling.
      updates: number of updates so far, int32 [].
      observation_moments: of all observations learnt from, elementwise; where these are a dict of
        arrays, a dict; None without `normalize_observations`.
      return_scale: by which rewards are divided; None without `normalize_rewards`.
      hyperparameters: traced numbers; replaced freely between updates.
    """

    params: Any
    optimizer_state: Any
    key: Array
    updates: Array
    observation_moments: normalization.Moments | dict[str, normalization.Moments] | None
    return_scale: normalization.ReturnScale | None
    hyperparameters: Hyperparameters


class Update(Protocol):
    """Signature of `Learner.update`."""

    def __call__(
        self, state: LearnerState, trajectory: Trajectory, max_episode_steps: int | None = None
    ) -> tuple[LearnerState, Metrics]: ...


class Init(Protocol):
    """Signature of `Learner.init`."""

    def __call__(
        self, key: Array, hyperparameters: Hyperparameters | None = None
    ) -> LearnerState: ...


class Learner(NamedTuple):
    """The update alone, without environments: an (init, update) pair.

    Attributes:
      init: (key, hyperparameters=None) -> LearnerState; None: the defaults.
      update: (LearnerState, Trajectory, max_episode_steps=None) -> (LearnerState, metrics); metrics
        are float32 scalars. Observations and rewards of the trajectory are the environment's own,
        not normalised. The number is the least between two truncations of one environment, if it
        is known (see `samples.bootstrap_values`).
      policy: (LearnerState, observation [..., *observation_shape]) -> Distribution [...], of
        observations as the environment gives them; with a recurrent network (LearnerState,
        observation, memory) -> (Distribution, memory after the observation).
      hyperparameters: the defaults.
      network: of policy and value function, for normalised observations.
    """

    init: Init
    update: Update
    policy: Callable[..., Any]
    hyperparameters: Hyperparameters
    network: Network
