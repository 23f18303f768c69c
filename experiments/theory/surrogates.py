"""One batch of an agent, and gradients of surrogates on it: by gates, as published, by weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import envs
from agents import families, ppo
from experiments.training.collecting import collect
from rgpo_jax import advantages, gates, networks, objective, samples
from rgpo_jax.distributions import Categorical, Distribution, Normal
from rgpo_jax.environment import Discrete
from rgpo_jax.gates import Gate

Array = jax.Array

CLIP = 0.2
SHARPNESSES = (1.0, 4.0, 16.0)

_FURTHER = 4  # updates on the batch, each of several passes

GATES: dict[str, Gate] = {
    "REINFORCE": gates.reinforce(),
    "PPO": gates.ppo(CLIP),
    "TRPO": gates.importance(),
}


def _acceptance(sharpness: float) -> Callable[[Array, Array], Array]:
    return lambda r, advantage: 1.0 / (1.0 + jnp.exp(-sharpness * (r - 1.0)))


# g as a function of the ratio and the advantage, as the paper has it: the weight is g'(r) r.
FORMS: dict[str, Callable[[Array, Array], Array]] = {
    "REINFORCE": lambda r, advantage: jnp.log(r),
    "PPO": lambda r, advantage: jnp.where(
        advantage >= 0, jnp.minimum(r, 1.0 + CLIP), jnp.maximum(r, 1.0 - CLIP)
    ),
    "TRPO": lambda r, advantage: r,
    **{f"RGPO, k = {k:g}": _acceptance(k) for k in SHARPNESSES},
}


@dataclasses.dataclass(frozen=True)
class Samples:
    """A batch of n samples of an old policy, and a new one, in float64.

    Attributes:
      network: the agent's, in float64.
      density: (actor params, observation, action) -> pi(a|s) of one sample, written without the
        library's distributions.
      old: actor params of the policy that drew the batch.
      params: of the new policy (actor) and its critic.
      batch: log_prob is that of the old policy in float64.
      drift: largest |log pi_old| difference between this and what the rollout kept, in nats.
    """

    network: networks.Network
    density: Callable[[Any, Array, Array], Array]
    old: Any
    params: Any
    batch: objective.Batch
    drift: float

    def ratio(self) -> np.ndarray:
        """pi / pi_old [n], a quotient of densities."""
        with jax.enable_x64(True):
            return np.asarray(self.densities(self.params["actor"]) / self.densities(self.old))

    def densities(self, actor: Any) -> Array:
        """pi(a|s) of the batch's actions under a policy [n]."""
        per_sample = jax.vmap(self.density, (None, 0, 0))
        return per_sample(actor, self.batch.observation, self.batch.action)


def _double(tree: Any) -> Any:
    """Floating arrays as float64, in NumPy; all others as they are."""

    def cast(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x

    return jax.tree.map(cast, tree)


def _double_network(
    env: Any, config: ppo.Config, template: networks.Network
) -> tuple[networks.Network, Callable[[Any, Array, Array], Array]]:
    """The agent's network in float64, and its density of one sample.

    The library computes its heads in float32. Here they are written out behind its torso.
    """
    torso = networks.Torso(
        observation_ndim=len(env.observation_shape),
        hidden_sizes=config.hidden_sizes,
        convolutions=(),
        activation=getattr(nn, config.activation),
        dtype=jnp.float64,
    )
    discrete = isinstance(env.action_space, Discrete)

    def head(weights: Any, observation: Array) -> Array:
        features: Any = torso.apply({"params": weights["torso"]}, observation)
        return features @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]

    def policy(actor: Any, observation: Array) -> Distribution:
        weights = actor["params"]
        if discrete:
            return Categorical.from_logits(head(weights, observation))
        return Normal(head(weights["mean"], observation), weights["log_std"])

    def value(critic: Any, observation: Array) -> Array:
        return head(critic["params"], observation)[..., 0]

    def density(actor: Any, observation: Array, action: Array) -> Array:
        weights = actor["params"]
        if discrete:
            return jax.nn.softmax(head(weights, observation))[action]
        mean, std = head(weights["mean"], observation), jnp.exp(weights["log_std"])
        return jnp.prod(jax.scipy.stats.norm.pdf(action, mean, std))

    return template._replace(policy=policy, value=value), density


def draw(
    task: str,
    seed: int,
    step_size: float,
    num_envs: int = 16,
    num_steps: int = 32,
    num_updates: int = 4,
) -> Samples:
    """A rollout of a PPO agent after some updates, and the policy after more updates on it.

    Args:
      task: name of a compiled environment without memory or normalisers in its settings.
      seed: of everything.
      step_size: Adam's, in the updates that lead to the new policy.
      num_envs: of the rollout.
      num_steps: of the rollout, in each environment.
      num_updates: with the settings of the task's family, before the rollout.
    """
    env = envs.make(task)
    config: Any = dataclasses.replace(
        families.defaults(ppo.Config, task),
        num_envs=num_envs,
        num_steps=num_steps,
        num_epochs=4,
        num_minibatches=4,
        network="mlp",
        anneal_learning_rate=False,
    )
    agent = ppo.make(env, config)

    @jax.jit
    def experience(key: Array) -> tuple[Any, Any, Any, Any]:
        state, _ = jax.lax.scan(agent.step, agent.init(key), length=num_updates)
        _, trajectory = collect(agent, state)
        learner = state.learner
        numbers, network = learner.hyperparameters, agent.learner.network
        value, next_value = samples.bootstrap_values(
            network, network.critic(learner.params), trajectory, None
        )
        advantage = advantages.generalized_advantages(
            numbers.reward_scale * trajectory.reward,
            value,
            next_value,
            trajectory.terminated,
            trajectory.truncated,
            numbers.discount,
            numbers.gae_lambda,
        )
        batch = objective.Batch(
            trajectory.observation,
            trajectory.action,
            trajectory.log_prob,
            advantages.normalize(advantage),
            advantage + value,
        )
        longer = learner._replace(
            hyperparameters=numbers.replace(learning_rate=jnp.float32(step_size))
        )
        new, _ = jax.lax.scan(
            lambda state, _: agent.learner.update(state, trajectory), longer, length=_FURTHER
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        return learner.params["actor"], new.params, batch, batch.log_prob

    old, params, batch, kept = _double(experience(jax.random.key(seed)))
    with jax.enable_x64(True):
        network, density = _double_network(env, config, agent.learner.network)
        log_prob = np.asarray(network.policy(old, batch.observation).log_prob(batch.action))
    drift = float(np.max(np.abs(log_prob - kept)))
    return Samples(network, density, old, params, batch._replace(log_prob=log_prob), drift)


def through_gates(samples: Samples, chosen: Sequence[Gate]) -> list[np.ndarray]:
    """Gradients [p] of the gated surrogate: of minus the policy part of `objective.loss`."""
    with jax.enable_x64(True):
        actor, unravel = ravel_pytree(samples.params["actor"])

        def surrogate(actor: Array, gate: Gate) -> Array:
            params = samples.params | {"actor": unravel(actor)}
            return -objective.loss(params, samples.network, gate, samples.batch, 0.0, 0.0)[0]

        gradient = jax.jit(jax.grad(surrogate))  # once for all numbers of a gate
        return [np.asarray(gradient(actor, gate)) for gate in chosen]


def scores(samples: Samples) -> np.ndarray:
    """grad log pi of each sample under the new policy [n, p]."""
    with jax.enable_x64(True):
        actor, unravel = ravel_pytree(samples.params["actor"])

        def log_density(actor: Array, observation: Array, action: Array) -> Array:
            return jnp.log(samples.density(unravel(actor), observation, action))

        per_sample = jax.jit(jax.vmap(jax.grad(log_density), (None, 0, 0)))
        return np.asarray(per_sample(actor, samples.batch.observation, samples.batch.action))


def published(samples: Samples, score: np.ndarray) -> dict[str, np.ndarray]:
    """The three gradients [p], written from their sources and without gates.

    REINFORCE (Williams, 1992): the mean of A grad log pi. PPO (arXiv 1707.06347, eq. 7): of
    min(r A, clip(r, 1 - e, 1 + e) A). TRPO (arXiv 1502.05477, eq. 14): of pi / pi_old A, a quotient
    of probabilities. `score`: that of `scores`.
    """
    with jax.enable_x64(True):
        actor, unravel = ravel_pytree(samples.params["actor"])
        advantage = jnp.asarray(samples.batch.advantage)
        old = samples.densities(samples.old)

        def ratio(actor: Array) -> Array:
            return samples.densities(unravel(actor)) / old

        def ppo_loss(actor: Array) -> Array:
            r = ratio(actor)
            clipped = jnp.clip(r, 1.0 - CLIP, 1.0 + CLIP)
            return -jnp.mean(jnp.minimum(r * advantage, clipped * advantage))

        def trpo_objective(actor: Array) -> Array:
            return jnp.mean(ratio(actor) * advantage)

        return {
            "REINFORCE": np.mean(samples.batch.advantage[:, None] * score, axis=0),
            "PPO": -np.asarray(jax.jit(jax.grad(ppo_loss))(actor)),
            "TRPO": np.asarray(jax.jit(jax.grad(trpo_objective))(actor)),
        }


def by_weight(
    samples: Samples, score: np.ndarray, form: Callable[[Array, Array], Array]
) -> np.ndarray:
    """mean(g'(r) r A grad log pi) [p], with g' differentiated in r; `score`: that of `scores`."""
    ratio, advantage = samples.ratio(), samples.batch.advantage
    with jax.enable_x64(True):
        slope = np.asarray(jax.vmap(jax.grad(form))(jnp.asarray(ratio), jnp.asarray(advantage)))
    return (slope * ratio * advantage) @ score / len(ratio)
