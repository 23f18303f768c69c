"""Gates that differ from RGPO's and PPO's in one thing: whether a ratio is called back.

Where the advantage calls for a step that brings a ratio back to 1, PPO's weight is r, however far
the ratio has run, and RGPO's fades as it does on the way out.
"""

import jax
import jax.numpy as jnp

from rgpo_jax import gates

Array = jax.Array

SHARPNESS = 4.0  # of the row rgpo_k4
CLIP = 0.2458  # of the row ppo

# These names stand in the settings of runs, and stay.
# RGPO's weight on the way out; w = r where the ratio is called back, as PPO has it.
rgpo_calling_back = gates.rgpo(SHARPNESS, pull_back=True)

_rgpo = gates.rgpo(SHARPNESS)
_ppo = gates.ppo(CLIP)


def rgpo_calling_back_bounded(log_ratio: Array, advantage: Array) -> Array:
    """The same with w = k/4 where the ratio is called back, so that RGPO's weight stays bounded."""
    back = 0.5 + SHARPNESS / 4 * log_ratio
    return jnp.where(_returning(log_ratio, advantage), back, _rgpo(log_ratio, advantage))


def ppo_not_calling_back(log_ratio: Array, advantage: Array) -> Array:
    """PPO's weight within the clip, and 0 beyond it for either sign of the advantage."""
    # At -A the clip's other side is the active one.
    flipped = jnp.where(_returning(log_ratio, advantage), -advantage, advantage)
    return _ppo(log_ratio, flipped)


def _returning(log_ratio: Array, advantage: Array) -> Array:
    """Whether ascent brings the ratio nearer to 1."""
    return log_ratio * advantage < 0
