"""Settings per family of environments: the one table of defaults that depend on the task.

A run starts from the agent's Config, takes the family's settings where the agent has none of its
own, and then the flags.
"""

import dataclasses
from typing import Any

from rgpo_jax.config import Config, ConfigError

# Environment name -> settings; a name may be a whole name or the suffix after the last hyphen.
FAMILIES: dict[str, dict[str, Any]] = {
    # One set for the control problems with discrete actions: CleanRL's PPO, twice its step size.
    "CartPole-v1": {"learning_rate": 5e-4},
    "Acrobot-v1": {"learning_rate": 5e-4},
    "MountainCar-v0": {"learning_rate": 5e-4},
    # Continuous torque, no terminal states: the SB3 zoo's discount and entropy.
    "Pendulum-v1": {
        "learning_rate": 1e-3,
        "discount": 0.9,
        "entropy_coefficient": 0.0,
        "num_epochs": 10,
    },
    # 10 x 10 images are small enough for an MLP, and on a CPU that is several times faster.
    "MinAtar": {
        "total_steps": 10_000_000,
        "num_envs": 64,
        "num_minibatches": 8,
        "learning_rate": 1e-3,
        "network": "mlp",
    },
}


def for_environment(env: str) -> dict[str, Any]:
    """The settings of an environment's family; empty where it has none."""
    return FAMILIES.get(env) or FAMILIES.get(env.rpartition("-")[2]) or {}


def defaults(config_class: type[Config], env: str) -> Config:
    """The Config that an agent starts from on an environment.

    Where the agent's own default differs from the common one (A2C's short rollouts), it stays.
    """
    common, own = Config(), config_class()
    settings = {
        name: value
        for name, value in for_environment(env).items()
        if getattr(own, name) == getattr(common, name)
    }
    try:
        return dataclasses.replace(own, **settings)
    except ConfigError as error:  # the agent's batch does not divide by the family's minibatches
        assert error.field == "num_minibatches", error
        settings["num_minibatches"] = own.num_minibatches
        return dataclasses.replace(own, **settings)
