"""One formula: REINFORCE's, PPO's and TRPO's gradients by their gates and as published."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import envs
from agents import ppo
from experiments import benchmark, settings
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, say
from rgpo_jax import advantages, gates, networks, objective, samples
from rgpo_jax.distributions import Categorical, Distribution, Normal
from rgpo_jax.environment import Discrete
from rgpo_jax.gates import Gate

Array = jax.Array

TOLERANCE = 1e-6  # of a relative difference
CLIP = 0.2
_SHARPNESSES = (1.0, 4.0, 16.0)
_SWEEP = np.geomspace(0.25, 64.0, 13)

# Environment -> Adam's step size on the way from the old policy to the new one: so large that many
# ratios leave the clip range on both sides, since at r = 1 all these gradients are the same.
_TASKS = {"CartPole-v1": 2e-2, "Pendulum-v1": 1e-2, "Breakout-MinAtar": 3e-3}

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
    **{f"RGPO, k = {k:g}": _acceptance(k) for k in _SHARPNESSES},
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
        channels=(),
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
        settings.defaults(ppo.Config, task),
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
        _, trajectory = benchmark.collect(agent, state)
        learner = state.learner
        numbers = learner.hyperparameters
        value, next_value = samples.bootstrap_values(
            agent.learner.network, learner.params["critic"], trajectory, None
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


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|, in the Euclidean norm."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was measured on one batch.

    Attributes:
      below: share of ratios below PPO's clip range.
      above: share above it.
      largest: largest |log r|, in nats.
      to_published: name -> relative difference of the gate's gradient from the published one.
      to_form: name -> that from mean(g'(r) r A grad log pi).
      cosines: name -> cosine of RGPO's gradient with the published one, over `_SWEEP`.
      distances: name -> relative difference of the two.
      contrast: name -> cosine and relative difference of RGPO's at k = 4.
    """

    num_samples: int
    num_params: int
    below: float
    above: float
    largest: float
    drift: float
    to_published: Mapping[str, float]
    to_form: Mapping[str, float]
    cosines: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    contrast: Mapping[str, tuple[float, float]]

    @property
    def tells(self) -> bool:
        """Whether ratios lie beyond both ends of the clip range: at r = 1 all weights agree."""
        return self.below > 0 and self.above > 0


def measure(samples: Samples) -> Findings:
    """All comparisons on one batch."""
    score, ratio = scores(samples), samples.ratio()
    references = published(samples, score)
    all_gates = GATES | {f"RGPO, k = {k:g}": gates.rgpo(k) for k in _SHARPNESSES}
    gradients = dict(zip(all_gates, through_gates(samples, list(all_gates.values())), strict=True))
    sweep = through_gates(samples, [gates.rgpo(k, normalize=True) for k in _SWEEP.tolist()])
    at_four = gradients["RGPO, k = 4"]
    return Findings(
        num_samples=score.shape[0],
        num_params=score.shape[1],
        below=float(np.mean(ratio < 1.0 - CLIP)),
        above=float(np.mean(ratio > 1.0 + CLIP)),
        largest=float(np.max(np.abs(np.log(ratio)))),
        drift=samples.drift,
        to_published={
            name: relative_difference(gradients[name], reference)
            for name, reference in references.items()
        },
        to_form={
            name: relative_difference(gradient, by_weight(samples, score, FORMS[name]))
            for name, gradient in gradients.items()
        },
        cosines={
            name: np.array([cosine(gradient, reference) for gradient in sweep])
            for name, reference in references.items()
        },
        distances={
            name: np.array([relative_difference(gradient, reference) for gradient in sweep])
            for name, reference in references.items()
        },
        contrast={
            name: (cosine(at_four, reference), relative_difference(at_four, reference))
            for name, reference in references.items()
        },
    )


def _panels(found: Mapping[str, Findings]) -> list[Panel]:
    directions, distances = [], []
    for task, findings in found.items():
        against, differences = [], []
        for style, name in enumerate(GATES):
            own = np.full(len(_SWEEP), findings.to_published[name])
            against.append(
                Line(f"RGPO against {name}", _SWEEP, findings.cosines[name], style, marker="o")
            )
            differences += [
                Line(f"RGPO against {name}", _SWEEP, findings.distances[name], style, marker="o"),
                Line(f"{name}'s gate against {name}", _SWEEP, own, style, "--"),
            ]
        sharpness = "sharpness k of RGPO's gate"
        directions.append(
            Panel(task, sharpness, "cosine of the gradients", against, log_x=True, guides=(1.0,))
        )
        distances.append(
            Panel(
                task,
                sharpness,
                "relative difference",
                differences,
                log_x=True,
                log_y=True,
                guides=(TOLERANCE,),
            )
        )
    return directions + distances


def _tables(found: Mapping[str, Findings]) -> list[Table]:
    difference = "relative difference from"
    return [
        Table(
            "unification",
            "The batches, and the relative difference |g1 \N{MINUS SIGN} g2| / |g2| of the gate's "
            "gradient from the published surrogate's.",
            (
                "environment",
                "samples",
                "parameters",
                f"share of r < {1.0 - CLIP:g}",
                f"share of r > {1.0 + CLIP:g}",
                "largest |log r| (nats)",
                *(f"{difference} {name}" for name in GATES),
            ),
            [
                (
                    task,
                    findings.num_samples,
                    findings.num_params,
                    findings.below,
                    findings.above,
                    findings.largest,
                    *(findings.to_published[name] for name in GATES),
                )
                for task, findings in found.items()
            ],
        ),
        Table(
            "unification_weights",
            "Relative difference of the gate's gradient from mean(g\N{PRIME}(r) r A "
            "\N{NABLA}log \N{GREEK SMALL LETTER PI}), with g written in r.",
            ("environment", *FORMS),
            [
                (task, *(findings.to_form[name] for name in FORMS))
                for task, findings in found.items()
            ],
        ),
        Table(
            "unification_contrast",
            "What is not equal: RGPO's gradient at k = 4 and the published ones.",
            (
                "environment",
                *(f"cosine with {name}" for name in GATES),
                *(f"{difference} {name}" for name in GATES),
            ),
            [
                (task, *(findings.contrast[name][i] for i in range(2) for name in GATES))
                for task, findings in found.items()
            ],
        ),
    ]


def _claims(found: Mapping[str, Findings]) -> list[Claim]:
    tells = all(findings.tells for findings in found.values())
    shares = ", ".join(
        f"{say(findings.below)} and {say(findings.above)} on {task}"
        for task, findings in found.items()
    )
    batches = (
        f"float64; shares of ratios below and above [{1.0 - CLIP:g}, {1.0 + CLIP:g}]: {shares}"
    )

    def verdict(largest: float) -> bool | None:
        return largest <= TOLERANCE if tells else None

    of_three = max(
        difference
        for findings in found.values()
        for name in GATES
        for difference in (findings.to_published[name], findings.to_form[name])
    )
    of_rgpo = max(
        findings.to_form[name] for findings in found.values() for name in FORMS.keys() - GATES
    )
    contrast = min(
        difference for findings in found.values() for _, difference in findings.contrast.values()
    )
    return [
        Claim(
            "The policy gradients of TRPO, PPO and REINFORCE correspond to choices of "
            "w(r) = g\N{PRIME}(r) r.",
            "paper",
            verdict(of_three),
            f"Through the gate, from the published surrogate and from the weight written in r: "
            f"largest relative difference {say(of_three)} on {len(found)} environments "
            f"({batches}). RGPO's own gradient at k = 4 differs from each of the three by at least "
            f"{say(contrast)} there.",
            ("unification",),
        ),
        Claim(
            "The gradient of the gated surrogate is the mean of w(r) A \N{NABLA}log "
            "\N{GREEK SMALL LETTER PI} with w(r) = g\N{PRIME}(r) r, for RGPO's gate too.",
            "paper",
            verdict(of_rgpo),
            f"Largest relative difference {say(of_rgpo)} at k = "
            f"{', '.join(f'{k:g}' for k in _SHARPNESSES)} on {len(found)} environments "
            f"({batches}).",
        ),
    ]


def _study(found: Mapping[str, Findings]) -> Study:
    drift = max(findings.drift for findings in found.values())
    return Study(
        title="One formula for REINFORCE, PPO and TRPO",
        text=(
            "A PPO agent trains for a few updates; its policy of then draws a batch, whose "
            "advantages are estimated and normalised as the agent does. More updates on that very "
            "batch give the new policy, far enough from the old one that many ratios lie outside "
            "PPO's clip range, on both sides: at r = 1 the three weights are the same, and nothing "
            "would be tested. On this batch the gradient through each gate, by the library's "
            "objective, is held against the surrogate of its source, written without gates: "
            "REINFORCE by scores of single samples, PPO by its clipped minimum, TRPO by a quotient "
            "of probabilities. All of it is in float64, in which the log-probabilities of the old "
            f"policy are computed anew (the rollout's differ by at most {say(drift)} nats).",
            "The abstract introduces g as an acceptance gate in [0, 1], and none of these three "
            "gates maps into [0, 1]: log r and r are unbounded, and PPO's exceeds 1. They belong "
            "to the family by their weight alone. And the weight is all that is equal: TRPO's step "
            "is a natural gradient with a line search, and differs from PPO's in the step and not "
            "in this formula.",
        ),
        claims=_claims(found),
        figures=[
            Figure(
                "unification",
                "RGPO's gradient (scaled so that w(1) = 1) against the three published ones, by "
                "direction and by relative difference; dashed, each method's own gate against its "
                f"published gradient; the thin line below is the tolerance of {say(TOLERANCE)}.",
                _panels(found),
                columns=max(1, len(found)),
            )
        ],
        tables=_tables(found),
    )


def run(options: Options, progress: Progress) -> Study:
    """Compares gradients on one batch from each of three environments."""
    found: dict[str, Findings] = {}
    for task, step_size in _TASKS.items():
        found[task] = measure(draw(task, options.seed, step_size))
        progress(len(found) / len(_TASKS))
    return _study(found)
