"""THE update step: epochs of minibatches over one trajectory, the same for every agent."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rgpo_jax import (
    acting,
    advantages,
    descent,
    diagnostics,
    keys,
    normalization,
    objective,
    penalties,
    samples,
    schedules,
)
from rgpo_jax.config import Config
from rgpo_jax.data_parallel import DataParallel
from rgpo_jax.descent import GradientSteps
from rgpo_jax.learner import Hyperparameters, Learner, LearnerState
from rgpo_jax.metrics import Metrics, means
from rgpo_jax.networks import Network
from rgpo_jax.objective import Batch
from rgpo_jax.rollout import Trajectory
from rgpo_jax.tunable import Tunable, as_tunable

Array = jax.Array

Optimizer = Callable[[Hyperparameters, Any], optax.GradientTransformation]
"""(hyper-parameters, step size) -> optimiser; its state must not depend on their values."""

_ADAM_EPSILON = 1e-5  # as in every PPO since OpenAI's baselines


def adam(hyperparameters: Hyperparameters, step_size: Any) -> optax.GradientTransformation:
    """Adam with clipped gradients, the optimiser of all agents unless another is given."""
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.max_grad_norm),
        optax.scale_by_adam(eps=_ADAM_EPSILON),
        optax.scale_by_learning_rate(step_size),
    )


def _step_policy(
    network: Network,
    hyperparameters: Hyperparameters,
    actor_params: Any,
    batch: Batch,
    parallel: DataParallel,
) -> tuple[Any, Array, Metrics]:
    """One trust-region step; also the log-ratios before it, as of one minibatch [1, 1, n]."""
    assert hyperparameters.policy_step is not None
    batch = parallel.share(batch, axis=0)
    old = network.policy(actor_params, batch.observation)

    def log_ratio(params: Any) -> Array:
        new = network.policy(params, batch.observation)
        return new.log_prob(batch.action) - batch.log_prob

    def surrogate(params: Any) -> Array:
        gain = objective.surrogate(hyperparameters.gate, log_ratio(params), batch.advantage)
        entropy = jnp.mean(network.policy(params, batch.observation).entropy())
        return gain + hyperparameters.entropy_coefficient * entropy

    def kl(params: Any) -> Array:
        return jnp.mean(old.kl(network.policy(params, batch.observation)))

    new_params, report = hyperparameters.policy_step(actor_params, surrogate, kl, parallel.mean)
    metrics = means(
        {
            "policy_grad_norm": report.grad_norm,
            "line_search_accepted": report.accepted,
            "line_search_scale": report.step_scale,
            "trust_region_kl": report.kl,
        }
    )
    before = parallel.gather(log_ratio(actor_params), axis=0)
    return new_params, before.reshape(1, 1, -1), metrics


def _actor_critic_loss(network: Network, hyperparameters: Hyperparameters) -> descent.Loss:
    penalty = hyperparameters.penalty

    def loss(params: Any, minibatch: Batch) -> tuple[Array, dict[str, Array]]:
        return objective.loss(
            params,
            network,
            hyperparameters.gate,
            minibatch,
            hyperparameters.value_coefficient,
            hyperparameters.entropy_coefficient,
            None if penalty is None else lambda *args: penalty(*args, hyperparameters),
        )

    return loss


def _critic_loss(network: Network, hyperparameters: Hyperparameters) -> descent.Loss:
    def loss(params: Any, minibatch: Batch) -> tuple[Array, dict[str, Array]]:
        value = network.value(params["critic"], minibatch.observation)
        errors = jnp.square(value - minibatch.target)
        return hyperparameters.value_coefficient * 0.5 * jnp.mean(errors), {"squared_error": errors}

    return loss


def _step_metrics(steps: GradientSteps, may_stop: bool) -> Metrics:
    """On the gradient steps of an update that were taken; undefined where none was."""
    value_losses = 0.5 * jnp.mean(steps.terms["squared_error"], axis=-1)
    averages = {"value_loss": value_losses, "grad_norm": steps.grad_norm}
    if "penalty" in steps.terms:
        averages["penalty"] = jnp.mean(steps.terms["penalty"], axis=-1)
    taken = {name: jnp.mean(x, where=steps.taken) for name, x in averages.items()}
    if not may_stop:
        return means(taken)
    rate = jnp.mean(steps.taken, dtype=jnp.float32)
    return means(taken, weight=rate > 0) | means({"gradient_step_rate": rate})


def _penalty(config: Config, own: Tunable | None) -> Tunable | None:
    """The further term of the loss: one that was given, or what the config says."""
    configured = penalties.make(config.kl_coefficient, config.value_clip)
    if own is None:
        return configured
    if configured is not None:
        raise ValueError("penalty: expected None with the config's kl_coefficient or value_clip")
    return as_tunable(own)


def _refuse_early_stopping(target_kl: Any) -> None:
    if target_kl is not None:
        raise ValueError("target_kl: expected None with a policy_step, which is one step")


def _refuse_beside_policy_step(network: Network, config: Config, penalty: Tunable | None) -> None:
    """Raises ValueError for what a `policy_step` excludes."""
    if network.joint is not None:
        raise ValueError(
            "shared_torso: expected False with a policy_step, past which the critic's gradient "
            "steps would move the policy"
        )
    _refuse_early_stopping(config.target_kl)
    if samples.by_minibatch(config):
        raise ValueError(
            "normalize_advantages_over minibatch: expected rollout with a policy_step, which takes "
            "the rollout as a whole"
        )
    if penalty is not None:
        raise ValueError("kl_coefficient, value_clip: expected None with a policy_step")


@dataclasses.dataclass(frozen=True, eq=False)
class _Update:
    """The update step of one agent: what is the same in each call; see `make`."""

    network: Network
    config: Config
    has_policy_step: bool
    optimizer: Optimizer
    flatten: bool
    parallel: DataParallel
    defaults: Hyperparameters

    def init(self, key: Array, hyperparameters: Hyperparameters | None = None) -> LearnerState:
        network, config = self.network, self.config
        hyperparameters = self.defaults if hyperparameters is None else hyperparameters
        hyperparameters = jax.tree.map(jnp.copy, hyperparameters)  # a state's may be donated
        key = keys.as_typed(key)
        if self.has_policy_step:
            _refuse_early_stopping(hyperparameters.target_kl)
        params_key, key = jax.random.split(key)
        params = network.init(params_key)
        moments = jax.tree.map(
            normalization.empty,
            network.observation_shape,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        return_scale = normalization.initial_return_scale(config.num_envs)
        return LearnerState(
            params,
            # Some keep the first parameters themselves.
            jax.tree.map(
                jnp.copy, descent.init(self.optimizer(hyperparameters, 0.0), params, self.flatten)
            ),
            key,
            jnp.int32(0),
            moments if config.normalize_observations else None,
            return_scale if config.normalize_rewards else None,
            hyperparameters,
        )

    def update(
        self, state: LearnerState, trajectory: Trajectory, max_episode_steps: int | None = None
    ) -> tuple[LearnerState, Metrics]:
        network, config, parallel = self.network, self.config, self.parallel
        hyperparameters, params = state.hyperparameters, state.params
        batch, state, metrics = samples.prepare(
            network, config, state, trajectory, max_episode_steps, parallel
        )
        step_size = schedules.learning_rate(config.schedule, hyperparameters, state.updates)
        loss, log_ratio = _actor_critic_loss(network, hyperparameters), None
        if self.has_policy_step:
            actor, log_ratio, policy_metrics = _step_policy(
                network, hyperparameters, params["actor"], batch, parallel
            )
            params, loss = {**params, "actor": actor}, _critic_loss(network, hyperparameters)
            metrics |= policy_metrics

        def is_near(terms: dict[str, Array]) -> Array:
            kl = diagnostics.kl_k3(terms["log_ratio"].ravel())
            return parallel.mean(kl) <= hyperparameters.target_kl

        def shaped(samples_of: Batch) -> Batch:
            advantage = samples.shape_advantages(config, hyperparameters, samples_of.advantage)
            return samples_of._replace(advantage=advantage)

        by_minibatch = samples.by_minibatch(config)
        may_stop = hyperparameters.target_kl is not None
        key, shuffle_key = jax.random.split(state.key)
        params, optimizer_state, steps = descent.descend(
            loss,
            params,
            state.optimizer_state,
            batch,
            shuffle_key,
            self.optimizer(hyperparameters, step_size),
            config.num_epochs,
            config.num_minibatches,
            config.microbatch_size,
            flatten=self.flatten,
            goes_on=is_near if may_stop else None,
            parallel=parallel,
            prepare=shaped if by_minibatch else None,
        )
        if self.has_policy_step:  # an optimiser with weight decay moves what has no gradient
            params = {**params, "actor": actor}
        own = parallel.share(batch, axis=0)
        policy = network.policy(params["actor"], own.observation)
        metrics |= diagnostics.gate_diagnostics(
            hyperparameters.gate,
            parallel.gather(policy.log_prob(own.action) - own.log_prob, axis=0).ravel(),
            (shaped(batch) if by_minibatch else batch).advantage.ravel(),
            steps.terms["log_ratio"] if log_ratio is None else log_ratio,
        )
        metrics |= _step_metrics(steps, may_stop)
        entropy = parallel.mean(jnp.mean(policy.entropy()))
        metrics |= means({"entropy": entropy, "learning_rate": step_size})
        state = state._replace(
            params=params, optimizer_state=optimizer_state, key=key, updates=state.updates + 1
        )
        return state, metrics


def make(
    network: Network,
    config: Config,
    gate: Tunable,
    advantage_transform: Tunable | None = None,
    policy_step: Tunable | None = None,
    penalty: Tunable | None = None,
    optimizer: Optimizer = adam,
    parallel: DataParallel = DataParallel(),
    flatten: bool | None = None,
) -> Learner:
    """Builds the update step.

    An update estimates advantages over the trajectory, then takes `num_epochs` passes over it in
    `num_minibatches` shuffled parts, each a step of the optimiser on the gated objective. With a
    `policy_step` the actor takes one such step on the whole batch instead, and the passes train
    the critic alone. What is shuffled are steps, and with a recurrent network whole sequences, one
    of each environment, which are run again from the memory with which the rollout began.

    Args:
      network: policy and value function.
      config: shapes, and the defaults of the hyper-parameters.
      gate: function (log_ratio, advantage) -> g.
      advantage_transform: applied to the advantages after normalisation; None: the identity.
      policy_step: see `trust_region.natural_gradient`; None: gradient steps.
      penalty: a further term of the loss, see `penalties`; None: what the config says.
      optimizer: (hyper-parameters, step size) -> optax's transformation.
      parallel: of which trajectories are this device's share, if environments are spread over
        several.
      flatten: hand the optimiser all parameters as one vector, which is faster; False: as they are,
        {"actor": ..., "critic": ...}, for one that tells them apart, by name as a mask does, or as
        LAMB, Muon and Adafactor do. A shared torso is the actor's. None: as one vector for `adam`
        alone, to which it makes no difference.

    Returns:
      An (init, update) pair, with the default hyper-parameters.

    Raises:
      ValueError: a `policy_step` excludes the config's `target_kl`, penalties, and a torso that
        the critic shares; a `penalty` excludes those of the config; or the optimizer is no
        function.
    """
    descent.check_optimizer(optimizer)
    flatten = optimizer is adam if flatten is None else flatten
    penalty = _penalty(config, penalty)
    if policy_step is not None:
        _refuse_beside_policy_step(network, config, penalty)
    defaults = Hyperparameters.from_config(
        config, gate, advantage_transform or advantages.identity(), policy_step, penalty
    )
    step = _Update(network, config, policy_step is not None, optimizer, flatten, parallel, defaults)
    policy = functools.partial(acting.policy, network)
    return Learner(step.init, step.update, policy, defaults, network)
