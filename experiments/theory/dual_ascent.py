"""The exact ascent along a gate: no noise, no sampling, no KL, only what the gate weighs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparing.frontier import Frontier
from experiments.theory import equal_kl
from experiments.theory.equal_kl import DUAL, Paths
from rgpo_jax import gates
from rgpo_jax.gates import weight

GATES = ("none", *(row.removeprefix("rgpo-") for row in DUAL))
SHARPNESSES = (1.0, 4.0, 16.0)
_STEPS, _KEPT, _SIZE = 6000, 60, 0.05


def ascend(dual: str, sharpness: float, frontiers: Sequence[Frontier]) -> Paths:
    """The exact ascent along a gate without a KL, from the reference [1, S, P].

    On policy, by the plain gradient of logits: pi w(1, rho) A less its part along pi. In float64.
    """
    settings: dict[str, Any] = {"sharpness": sharpness, "normalize": True}
    gate = gates.rgpo(**settings) if dual == "none" else gates.make(f"dual_{dual}", **settings)
    with jax.enable_x64(True):
        log_reference = jnp.log(jnp.asarray(np.stack([f.reference for f in frontiers])))
        reward = jnp.asarray(np.stack([f.reward for f in frontiers]))

        def step(log_policy: jax.Array, _: Any) -> tuple[jax.Array, None]:
            policy = jnp.exp(log_policy)
            advantage = reward - jnp.sum(policy * reward, axis=-1, keepdims=True)
            ratios = (log_policy - log_reference,) if dual != "none" else ()
            w = weight(gate)(jnp.zeros_like(policy), advantage, *ratios)
            force = w * advantage
            force -= jnp.sum(policy * force, axis=-1, keepdims=True)
            return jax.nn.log_softmax(log_policy + _SIZE * policy * force), None

        def many(log_policy: jax.Array, length: int) -> jax.Array:
            return jax.lax.scan(step, log_policy, None, length=length)[0]

        def kept(log_policy: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
            after = many(log_policy, _STEPS // _KEPT)
            return after, after

        def run(start: jax.Array) -> jax.Array:
            first = jax.lax.scan(step_and_keep, start, None, length=20)
            _, rest = jax.lax.scan(kept, first[0], None, length=_KEPT)
            return jnp.concatenate([start[None], first[1], rest])

        def step_and_keep(log_policy: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
            after, _ = step(log_policy, None)
            return after, after

        found = np.exp(np.asarray(jax.jit(run)(log_reference)))  # [P, S, N, K]
    return equal_kl.paths_of(np.moveaxis(found, 0, 1)[None], frontiers)


def exact_shares(
    frontiers: Sequence[Frontier], levels: np.ndarray
) -> dict[tuple[str, float], np.ndarray]:
    """Of the frontier's gain, along the exact ascent of each gate and sharpness [S, K]."""
    return {
        (dual, k): equal_kl.gains_of(ascend(dual, k, frontiers), frontiers, levels).share[0]
        for k in SHARPNESSES
        for dual in GATES
    }
