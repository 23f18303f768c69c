"""THE update step: epochs of minibatches over one trajectory, the same for every agent."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rgpo_jax import advantages, diagnostics, normalization, objective, shuffle
from rgpo_jax.config import Config
from rgpo_jax.networks import Network, Sequence
from rgpo_jax.rollout import Trajectory
from rgpo_jax.spread import Spread
from rgpo_jax.tunable import Tunable

Array = jax.Array
Metrics = dict[str, Array]

_ADAM_EPSILON = 1e-5  # as in every PPO since OpenAI's baselines


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """The traced numbers of an update; scalars, or batched by vmap.

    Attributes:
      learning_rate: of Adam, before annealing.
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

    @classmethod
    def from_config(
        cls,
        config: Config,
        gate: Tunable,
        advantage_transform: Tunable,
        policy_step: Tunable | None,
    ) -> "Hyperparameters":
        """The defaults that a Config gives, as float32 scalars."""
        numbers = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(cls)
            if hasattr(config, field.name) and field.name not in cls._functions()
        }
        hyperparameters = cls(
            **numbers, gate=gate, advantage_transform=advantage_transform, policy_step=policy_step
        )
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyperparameters)

    @staticmethod
    def _functions() -> tuple[str, ...]:
        return ("gate", "advantage_transform", "policy_step")

    def replace(self, **overrides: Any) -> "Hyperparameters":
        """Returns a copy with fields replaced, or numbers of the gate and its fellows by name.

        `replace(learning_rate=1e-3, sharpness=2.0)` sets the gate's sharpness. Raises TypeError
        for a name that neither has.
        """
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in overrides.items():
            owners = [f for f in self._functions() if fields[f] and name in fields[f].numbers]
            if name in fields:
                fields[name] = value
            elif owners:
                fields[owners[0]] = fields[owners[0]].replace(**{name: value})
            else:
                known = [n for n in fields if n not in self._functions()]
                for f in self._functions():
                    known += list(fields[f].numbers) if fields[f] else []
                raise TypeError(f"no hyper-parameter {name!r}; there are {', '.join(known)}")
        return Hyperparameters(**fields)


class LearnerState(NamedTuple):
    """What an update changes, and what it needs to go on.

    Attributes:
      params: {"actor": ..., "critic": ...}.
      optimizer_state: of Adam, over the parameters as one flat vector.
      key: typed key, for shuffling.
      updates: number of updates so far, int32 [].
      observation_moments: of all observations learnt from, elementwise; None without
        `normalize_observations`.
      return_scale: by which rewards are divided; None without `normalize_rewards`.
      hyperparameters: traced numbers; replaced freely between updates.
    """

    params: Any
    optimizer_state: Any
    key: Array
    updates: Array
    observation_moments: normalization.Moments | None
    return_scale: normalization.ReturnScale | None
    hyperparameters: Hyperparameters


class Learner(NamedTuple):
    """The update alone, without environments: an (init, update) pair.

    Attributes:
      init: (key, hyperparameters) -> LearnerState.
      update: (LearnerState, Trajectory) -> (LearnerState, metrics); metrics are float32 scalars.
        Observations and rewards of the trajectory are the environment's own, not normalised.
      policy: (LearnerState, observation [..., *observation_shape]) -> Distribution [...], of
        observations as the environment gives them; with a recurrent network (LearnerState,
        observation, memory) -> (Distribution, memory after the observation).
      hyperparameters: the defaults.
      network: of policy and value function, for normalised observations.
    """

    init: Callable[[Array, Hyperparameters], LearnerState]
    update: Callable[[LearnerState, Trajectory], tuple[LearnerState, Metrics]]
    policy: Callable[..., Any]
    hyperparameters: Hyperparameters
    network: Network


def _optimizer(hyperparameters: Hyperparameters, step_size: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.max_grad_norm),
        optax.scale_by_adam(eps=_ADAM_EPSILON),
        optax.scale_by_learning_rate(step_size),
    )


def _sequences(trajectory: Trajectory) -> Sequence:
    """The trajectory as a recurrent network reads it, environments first."""
    if trajectory.memory is None:
        raise ValueError("a recurrent network learns from trajectories that have its memory")
    done = trajectory.terminated | trajectory.truncated
    # The done before a step tells its memory to forget; before the first, the rollout did so.
    is_first = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
    memory = jax.tree.map(lambda x: x[0], trajectory.memory)
    return Sequence(trajectory.observation.swapaxes(0, 1), is_first.T, memory)


def bootstrap_values(
    network: Network, critic_params: Any, trajectory: Trajectory, max_episode_steps: int | None
) -> tuple[Array, Array]:
    """Evaluates the critic where advantage estimation needs it, once per rollout.

    Args:
      network: of which the value function is used.
      critic_params: its parameters.
      trajectory: [T, B, ...].
      max_episode_steps: the least distance in steps between two truncations of one environment,
        which bounds the number of final observations to look at; None: look at all.

    Returns:
      V(s_t) and V(s'_t), both [T, B], where s'_t is what the step led to before any reset. Where
      an episode terminated, the latter is that of some other state, to be ignored.
    """
    if network.recurrence is not None:
        final_observation = trajectory.final_observation.swapaxes(0, 1)
        values = network.recurrence.values(critic_params, _sequences(trajectory), final_observation)
        return values[0].T, values[1].T
    num_steps, num_envs = trajectory.reward.shape
    if max_episode_steps is None:
        both = jnp.stack([trajectory.observation, trajectory.final_observation])
        value, next_value = network.value(critic_params, both)
        return value, next_value

    # Where an episode goes on, s'_t is s_{t+1}. What is left are the last row and truncations.
    slots = 1 + (num_steps - 1) // max_episode_steps
    rows = jax.vmap(
        lambda truncated: jnp.nonzero(truncated, size=slots, fill_value=num_steps)[0],
        in_axes=1,
        out_axes=1,
    )(trajectory.truncated)
    columns = jnp.arange(num_envs)
    cut_off = trajectory.final_observation[jnp.minimum(rows, num_steps - 1), columns]
    value = network.value(
        critic_params,
        jnp.concatenate([trajectory.observation, trajectory.final_observation[-1:], cut_off]),
    )
    next_value = value[1 : num_steps + 1].at[rows, columns].set(value[num_steps + 1 :], mode="drop")
    return value[:num_steps], next_value


def _mean_gradient(
    loss: Callable[[Array, objective.Batch], tuple[Array, Any]],
    params: Array,
    samples: objective.Batch,
    microbatch_size: int | None,
) -> tuple[Array, Any]:
    """Gradient of a mean over n samples, by parts if asked for; also the loss's terms [n]."""
    gradient_of = jax.grad(loss, has_aux=True)
    num_samples = samples.log_prob.shape[0]
    if microbatch_size is None or microbatch_size >= num_samples:
        return gradient_of(params, samples)
    if num_samples % microbatch_size:
        raise ValueError(
            f"{num_samples} samples of a minibatch do not divide into microbatches of "
            f"{microbatch_size}"
        )
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), samples)

    def add(total: Array, part: objective.Batch) -> tuple[Array, Any]:
        gradient, terms = gradient_of(params, part)
        return total + gradient, terms

    total, terms = jax.lax.scan(add, jnp.zeros_like(params), parts)
    return total * (microbatch_size / num_samples), jax.tree.map(jnp.ravel, terms)


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

    def observe(state: LearnerState, observation: Array) -> Array:
        if state.observation_moments is None:
            return observation
        return normalization.standardize(state.observation_moments, observation)

    def policy(state: LearnerState, observation: Array, memory: Any = None) -> Any:
        observation = observe(state, observation)
        if memory is None:
            return network.policy(state.params["actor"], observation)
        if network.recurrence is None:
            raise TypeError("this network has no recurrence, and takes no memory")
        return network.recurrence.step(state.params, observation, memory)

    def make_batch(
        state: LearnerState, trajectory: Trajectory
    ) -> tuple[objective.Batch, LearnerState, Metrics]:
        """The samples to learn from, and the state with its statistics brought up to date.

        Samples are steps [T * B, ...]; with a recurrent network they are sequences [B, T, ...].

        Observations are normalised by the statistics that the rollout used, so that the ratio
        starts at 1: what this trajectory adds to them concerns the next one.
        """
        hyperparameters = state.hyperparameters
        observed = trajectory._replace(
            observation=observe(state, trajectory.observation),
            final_observation=observe(state, trajectory.final_observation),
        )
        value, next_value = bootstrap_values(
            network, state.params["critic"], observed, max_episode_steps
        )
        # From here on every device has the whole batch: minibatches are shuffled over all of it.
        trajectory, value, next_value = spread.gather((trajectory, value, next_value), axis=1)
        observation, reward = observe(state, trajectory.observation), trajectory.reward
        if state.observation_moments is not None:
            seen = trajectory.observation.reshape(-1, *network.observation_shape)
            moments = normalization.include(state.observation_moments, seen)
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
        metrics = {"explained_variance": diagnostics.explained_variance(value, target)}
        if config.normalize_advantages:
            advantage = advantages.normalize(advantage)
        batch = objective.Batch(
            observation,
            trajectory.action,
            trajectory.log_prob,
            hyperparameters.advantage_transform(advantage),
            target,
        )
        if network.recurrence is None:
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), state, metrics
        sequences = _sequences(trajectory._replace(observation=observation))
        batch = jax.tree.map(lambda x: x.swapaxes(0, 1), batch)
        return batch._replace(observation=sequences), state, metrics

    def step_policy(
        hyperparameters: Hyperparameters, actor_params: Any, batch: objective.Batch
    ) -> tuple[Any, Array, Metrics]:
        """One trust-region step; also the log-ratios before it, as of one minibatch [1, 1, n]."""
        assert hyperparameters.policy_step is not None
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

        new_params, report = hyperparameters.policy_step(actor_params, surrogate, kl)
        metrics = {
            "policy_grad_norm": report.grad_norm,
            "line_search_accepted": report.accepted,
            "line_search_scale": report.step_scale,
            "trust_region_kl": report.kl,
        }
        return new_params, log_ratio(actor_params).reshape(1, 1, -1), metrics

    def update(state: LearnerState, trajectory: Trajectory) -> tuple[LearnerState, Metrics]:
        hyperparameters = state.hyperparameters
        params = state.params
        batch, state, metrics = make_batch(state, trajectory)
        num_samples = batch.log_prob.shape[0]
        unit = "steps" if network.recurrence is None else "environments"
        if num_samples % config.num_minibatches:
            raise ValueError(
                f"a trajectory of {num_samples} {unit} does not divide into num_minibatches = "
                f"{config.num_minibatches}"
            )
        remaining = 1.0 - state.updates / float(config.num_updates)
        step_size = hyperparameters.learning_rate * (
            jnp.maximum(remaining, 0.0) if config.anneal_learning_rate else 1.0
        )
        optimizer = _optimizer(hyperparameters, step_size)

        if policy_step is not None:
            actor, log_ratio, policy_metrics = step_policy(hyperparameters, params["actor"], batch)
            params = {**params, "actor": actor}
            metrics |= policy_metrics

        # One flat vector: Adam is then a handful of operations and not a handful per layer.
        flat_params, unravel = ravel_pytree(params)

        def loss(flat_params: Array, minibatch: objective.Batch) -> tuple[Array, Any]:
            params = unravel(flat_params)
            if policy_step is not None:
                errors = objective.squared_error(network, params["critic"], minibatch)
                loss = hyperparameters.value_coefficient * 0.5 * jnp.mean(errors)
                return loss, {"squared_error": errors}
            total, terms = objective.loss(
                params,
                network,
                hyperparameters.gate,
                minibatch,
                hyperparameters.value_coefficient,
                hyperparameters.entropy_coefficient,
            )
            return total, terms._asdict()

        def gradient_step(carry: tuple, minibatch: objective.Batch) -> tuple[tuple, Any]:
            before, goes_on = carry
            flat_params, optimizer_state = before
            gradient, terms = _mean_gradient(loss, flat_params, minibatch, config.microbatch_size)
            gradient = spread.mean(gradient)
            change, optimizer_state = optimizer.update(gradient, optimizer_state)
            norm = jnp.linalg.norm(gradient)
            after = (flat_params + change, optimizer_state)
            if hyperparameters.target_kl is not None:
                kl = spread.mean(diagnostics.kl_k3(terms["log_ratio"].ravel()))
                goes_on &= kl <= hyperparameters.target_kl
                after = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), after, before)
            return (after, goes_on), (terms, norm, goes_on)

        def epoch(carry: tuple, key: Array) -> tuple[tuple, Any]:
            order = shuffle.permutation(key, num_samples).reshape(config.num_minibatches, -1)
            order = jax.lax.optimization_barrier(spread.share(order, axis=1))
            minibatches = jax.tree.map(lambda x: x[order], batch)
            return jax.lax.scan(gradient_step, carry, minibatches)

        key, shuffle_key = jax.random.split(state.key)
        ((flat_params, optimizer_state), _), (terms, norms, taken) = jax.lax.scan(
            epoch,
            ((flat_params, state.optimizer_state), jnp.bool_(True)),
            jax.random.split(shuffle_key, config.num_epochs),
        )
        params = unravel(flat_params)
        # [epochs, minibatches, samples of one], whether a sample was a step or a sequence.
        terms = jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1), spread.gather(terms, axis=2))
        own = spread.share(batch, axis=0)
        policy = network.policy(params["actor"], own.observation)
        metrics |= diagnostics.gate_diagnostics(
            hyperparameters.gate,
            spread.gather(policy.log_prob(own.action) - own.log_prob, axis=0).ravel(),
            batch.advantage.ravel(),
            terms["log_ratio"] if policy_step is None else log_ratio,
        )
        metrics["entropy"] = spread.mean(jnp.mean(policy.entropy()))
        metrics["value_loss"] = 0.5 * jnp.mean(terms["squared_error"])
        metrics["grad_norm"] = jnp.mean(norms)
        metrics["learning_rate"] = step_size
        if hyperparameters.target_kl is not None:
            metrics["gradient_step_rate"] = jnp.mean(taken, dtype=jnp.float32)
        state = state._replace(
            params=params, optimizer_state=optimizer_state, key=key, updates=state.updates + 1
        )
        return state, metrics

    return Learner(init, update, policy, defaults, network)
