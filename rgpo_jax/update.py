"""THE update step: epochs of minibatches over one trajectory, the same for every agent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rgpo_jax import advantages, diagnostics, normalization, objective, samples, shuffle
from rgpo_jax.config import Config
from rgpo_jax.learner import Hyperparameters, Learner, LearnerState, Metrics
from rgpo_jax.networks import Network
from rgpo_jax.objective import Batch
from rgpo_jax.rollout import Trajectory
from rgpo_jax.spread import Spread
from rgpo_jax.tunable import Tunable

Array = jax.Array

_ADAM_EPSILON = 1e-5  # as in every PPO since OpenAI's baselines


def _optimizer(hyperparameters: Hyperparameters, step_size: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.max_grad_norm),
        optax.scale_by_adam(eps=_ADAM_EPSILON),
        optax.scale_by_learning_rate(step_size),
    )


def _mean_gradient(
    loss: Callable[[Array, Batch], tuple[Array, Any]],
    params: Array,
    batch: Batch,
    microbatch_size: int | None,
) -> tuple[Array, Any]:
    """Gradient of a mean over n samples, by parts if asked for; also the loss's terms [n]."""
    gradient_of = jax.grad(loss, has_aux=True)
    num_samples = batch.log_prob.shape[0]
    if microbatch_size is None or microbatch_size >= num_samples:
        return gradient_of(params, batch)
    if num_samples % microbatch_size:
        raise ValueError(
            f"{num_samples} samples of a minibatch do not divide into microbatches of "
            f"{microbatch_size}"
        )
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)

    def add(total: Array, part: Batch) -> tuple[Array, Any]:
        gradient, terms = gradient_of(params, part)
        return total + gradient, terms

    total, terms = jax.lax.scan(add, jnp.zeros_like(params), parts)
    return total * (microbatch_size / num_samples), jax.tree.map(jnp.ravel, terms)


class GradientSteps(NamedTuple):
    """What the gradient steps of an update were [epochs, minibatches, ...].

    Attributes:
      terms: of the loss, before each step, a value per sample.
      grad_norm: of the gradient, before it is clipped.
      taken: whether early stopping let it count.
    """

    terms: dict[str, Array]
    grad_norm: Array
    taken: Array


def _descend(
    loss: Callable[[Any, Batch], tuple[Array, dict[str, Array]]],
    params: Any,
    optimizer_state: Any,
    batch: Batch,
    key: Array,
    optimizer: optax.GradientTransformation,
    target_kl: Any,
    config: Config,
    spread: Spread,
) -> tuple[Any, Any, GradientSteps]:
    """Passes over a batch in shuffled minibatches, each a step down the gradient of their loss.

    With a `target_kl` the first step at whose start KL(old || new) exceeds it, estimated on its
    minibatch, and all after it change nothing.

    Returns:
      Parameters, the optimiser's state, and what the steps were.
    """
    # One flat vector: Adam is then a handful of operations and not a handful per layer.
    flat_params, unravel = ravel_pytree(params)
    num_samples = batch.log_prob.shape[0]

    def flat_loss(flat_params: Array, minibatch: Batch) -> tuple[Array, dict[str, Array]]:
        return loss(unravel(flat_params), minibatch)

    def gradient_step(carry: tuple, minibatch: Batch) -> tuple[tuple, GradientSteps]:
        before, goes_on = carry
        flat_params, optimizer_state = before
        gradient, terms = _mean_gradient(flat_loss, flat_params, minibatch, config.microbatch_size)
        gradient = spread.mean(gradient)
        change, optimizer_state = optimizer.update(gradient, optimizer_state)
        norm = jnp.linalg.norm(gradient)
        after = (flat_params + change, optimizer_state)
        if target_kl is not None:
            kl = spread.mean(diagnostics.kl_k3(terms["log_ratio"].ravel()))
            goes_on &= kl <= target_kl
            after = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), after, before)
        return (after, goes_on), GradientSteps(terms, norm, goes_on)

    def epoch(carry: tuple, key: Array) -> tuple[tuple, GradientSteps]:
        order = shuffle.permutation(key, num_samples).reshape(config.num_minibatches, -1)
        order = jax.lax.optimization_barrier(spread.share(order, axis=1))
        minibatches = jax.tree.map(lambda x: x[order], batch)
        return jax.lax.scan(gradient_step, carry, minibatches)

    ((flat_params, optimizer_state), _), steps = jax.lax.scan(
        epoch,
        ((flat_params, optimizer_state), jnp.bool_(True)),
        jax.random.split(key, config.num_epochs),
    )
    # [epochs, minibatches, samples of one], whether a sample was a step or a sequence.
    terms = jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1), spread.gather(steps.terms, axis=2))
    return unravel(flat_params), optimizer_state, steps._replace(terms=terms)


def _step_policy(
    network: Network,
    hyperparameters: Hyperparameters,
    actor_params: Any,
    batch: Batch,
    spread: Spread,
) -> tuple[Any, Array, Metrics]:
    """One trust-region step; also the log-ratios before it, as of one minibatch [1, 1, n]."""
    assert hyperparameters.policy_step is not None
    batch = spread.share(batch, axis=0)
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

    new_params, report = hyperparameters.policy_step(actor_params, surrogate, kl, spread.mean)
    metrics = {
        "policy_grad_norm": report.grad_norm,
        "line_search_accepted": report.accepted,
        "line_search_scale": report.step_scale,
        "trust_region_kl": report.kl,
    }
    before = spread.gather(log_ratio(actor_params), axis=0)
    return new_params, before.reshape(1, 1, -1), metrics


def make(
    network: Network,
    config: Config,
    gate: Tunable,
    advantage_transform: Tunable | None = None,
    policy_step: Tunable | None = None,
    max_episode_steps: int | None = None,
    spread: Spread = Spread(),
) -> Learner:
    """Builds the update step.

    An update estimates advantages over the trajectory, then takes `num_epochs` passes over it in
    `num_minibatches` shuffled parts, each a step of Adam on the gated objective. With a
    `policy_step` the actor takes one such step on the whole batch instead, and the passes train
    the critic alone. What is shuffled are steps, and with a recurrent network whole sequences, one
    of each environment, which are run again from the memory with which the rollout began.

    Args:
      network: policy and value function.
      config: shapes, and the defaults of the hyper-parameters.
      gate: function (log_ratio, advantage) -> g.
      advantage_transform: applied to the advantages after normalisation; None: the identity.
      policy_step: see `trust_region.natural_gradient`; None: gradient steps.
      max_episode_steps: of the environment, if known (see `bootstrap_values`).
      spread: of which trajectories are this device's share, if environments are spread over
        several.

    Returns:
      An (init, update) pair, with the default hyper-parameters.

    Raises:
      ValueError: `policy_step` and the config's `target_kl` exclude each other.
    """

    def refuse_early_stopping(target_kl: Any) -> None:
        if policy_step is not None and target_kl is not None:
            raise ValueError("target_kl: expected None with a policy_step, which is one step")

    refuse_early_stopping(config.target_kl)
    defaults = Hyperparameters.from_config(
        config, gate, advantage_transform or advantages.identity(), policy_step
    )

    def init(key: Array, hyperparameters: Hyperparameters) -> LearnerState:
        refuse_early_stopping(hyperparameters.target_kl)
        params_key, key = jax.random.split(key)
        params = network.init(params_key)
        optimizer_state = _optimizer(hyperparameters, 0.0).init(ravel_pytree(params)[0])
        moments = normalization.empty(network.observation_shape)
        return_scale = normalization.initial_return_scale(config.num_envs)
        return LearnerState(
            params,
            optimizer_state,
            key,
            jnp.int32(0),
            moments if config.normalize_observations else None,
            return_scale if config.normalize_rewards else None,
            hyperparameters,
        )

    def policy(state: LearnerState, observation: Array, memory: Any = None) -> Any:
        observation = samples.observe(state, observation)
        if memory is None:
            return network.policy(state.params["actor"], observation)
        if network.recurrence is None:
            raise TypeError("this network has no recurrence, and takes no memory")
        return network.recurrence.step(state.params, observation, memory)

    def actor_critic_loss(
        params: Any, minibatch: Batch, hyperparameters: Hyperparameters
    ) -> tuple[Array, dict[str, Array]]:
        total, terms = objective.loss(
            params,
            network,
            hyperparameters.gate,
            minibatch,
            hyperparameters.value_coefficient,
            hyperparameters.entropy_coefficient,
        )
        return total, terms._asdict()

    def critic_loss(
        params: Any, minibatch: Batch, hyperparameters: Hyperparameters
    ) -> tuple[Array, dict[str, Array]]:
        errors = objective.squared_error(network, params["critic"], minibatch)
        loss = hyperparameters.value_coefficient * 0.5 * jnp.mean(errors)
        return loss, {"squared_error": errors}

    def update(state: LearnerState, trajectory: Trajectory) -> tuple[LearnerState, Metrics]:
        hyperparameters, params = state.hyperparameters, state.params
        batch, state, metrics = samples.prepare(
            network, config, state, trajectory, max_episode_steps, spread
        )
        num_samples = batch.log_prob.shape[0]
        unit = "steps" if network.recurrence is None else "environments"
        if num_samples % config.num_minibatches:
            raise ValueError(
                f"a trajectory of {num_samples} {unit} does not divide into num_minibatches = "
                f"{config.num_minibatches}"
            )
        remaining = 1.0 - state.updates * hyperparameters.annealing
        step_size = hyperparameters.learning_rate * jnp.maximum(remaining, 0.0)
        loss = actor_critic_loss
        if policy_step is not None:
            actor, log_ratio, policy_metrics = _step_policy(
                network, hyperparameters, params["actor"], batch, spread
            )
            params, loss = {**params, "actor": actor}, critic_loss
            metrics |= policy_metrics

        key, shuffle_key = jax.random.split(state.key)
        params, optimizer_state, steps = _descend(
            lambda params, minibatch: loss(params, minibatch, hyperparameters),
            params,
            state.optimizer_state,
            batch,
            shuffle_key,
            _optimizer(hyperparameters, step_size),
            hyperparameters.target_kl,
            config,
            spread,
        )
        own = spread.share(batch, axis=0)
        policy = network.policy(params["actor"], own.observation)
        metrics |= diagnostics.gate_diagnostics(
            hyperparameters.gate,
            spread.gather(policy.log_prob(own.action) - own.log_prob, axis=0).ravel(),
            batch.advantage.ravel(),
            steps.terms["log_ratio"] if policy_step is None else log_ratio,
        )
        metrics["entropy"] = spread.mean(jnp.mean(policy.entropy()))
        # Of the gradient steps that were taken; NaN where early stopping left none.
        value_losses = 0.5 * jnp.mean(steps.terms["squared_error"], axis=-1)
        metrics["value_loss"] = jnp.mean(value_losses, where=steps.taken)
        metrics["grad_norm"] = jnp.mean(steps.grad_norm, where=steps.taken)
        metrics["learning_rate"] = step_size
        if hyperparameters.target_kl is not None:
            metrics["gradient_step_rate"] = jnp.mean(steps.taken, dtype=jnp.float32)
        state = state._replace(
            params=params, optimizer_state=optimizer_state, key=key, updates=state.updates + 1
        )
        return state, metrics

    return Learner(init, update, policy, defaults, network)
