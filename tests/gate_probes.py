"""What tests of gates share: a gate's value and weight, compiled once for all its numbers."""

import jax
import numpy as np

from rgpo_jax import gates
from rgpo_jax.gates import weight

DEFAULTS = {name: constructor() for name, constructor in gates.CONSTRUCTORS.items()}
LOG_RATIO = np.linspace(-2.0, 2.0, 9).astype(np.float32)
ADVANTAGE = np.where(np.arange(9) % 2, 1.0, -1.0).astype(np.float32)


@jax.jit
def value_and_weight(gate, log_ratio, advantage):
    """Compiled once for all numbers of a gate; `with jax.enable_x64(True)` once more."""
    return gate(log_ratio, advantage), weight(gate)(log_ratio, advantage)


def weight64(gate, r, advantage=1.0):
    with jax.enable_x64(True):
        return np.asarray(value_and_weight(gate, np.log(np.float64(r)), np.float64(advantage))[1])


def value64(gate, r, advantage=1.0):
    with jax.enable_x64(True):
        return np.asarray(value_and_weight(gate, np.log(np.float64(r)), np.float64(advantage))[0])


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def away_from(kinks, r, distance):
    return np.all([np.abs(r - kink) > distance for kink in (-1.0, *kinks)], axis=0)
