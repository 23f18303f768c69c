"""Settings per family of environments: the one table of defaults that depend on the task.

A run starts from the agent's Config, takes the family's settings where the agent has none of its
own, and then the flags.
"""

import dataclasses
from typing import Any

from rgpo_jax.config import Config, ConfigError

_DISCRETE_CONTROL = {"learning_rate": 1e-3, "entropy_coefficient": 0.02}

# Gym's MuJoCo tasks, of whatever version and library.
_MUJOCO = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
)

# Name -> settings: that of an environment without its prefix, the prefix, the suffix after its last
# hyphen, or MuJoCo, or Atari.
FAMILIES: dict[str, dict[str, Any]] = {
    # Control problems with discrete actions: one set, larger steps and more entropy than CleanRL's.
    "CartPole-v1": _DISCRETE_CONTROL,
    "CartPole-v1-masked": _DISCRETE_CONTROL,
    "Acrobot-v1": _DISCRETE_CONTROL,
    "MountainCar-v0": _DISCRETE_CONTROL,
    # Many small updates: RGPO's gate does not pull back a ratio that has run away, and ten epochs
    # at this step size, which PPO's clip survives, end it. Rewards are about -16 to 0 a step.
    "Pendulum-v1": {
        "num_steps": 64,
        "num_epochs": 1,
        "learning_rate": 2e-3,
        "discount": 0.9,
        "reward_scale": 0.1,
        "entropy_coefficient": 0.05,
    },
    # 10 x 10 images are small enough for an MLP, and on a CPU that is several times faster. The
    # games are deterministic: with little entropy a policy soon repeats one losing game for ever.
    "MinAtar": {
        "total_steps": 10_000_000,
        "num_envs": 64,
        "num_steps": 32,
        "num_epochs": 1,
        "learning_rate": 5e-3,
        "entropy_coefficient": 0.1,
        "network": "mlp",
        "activation": "relu",
    },
    # Brax's discount, scaled rewards and normalised observations, in the batches of 2048 that are
    # usual for MuJoCo; pools are small because a state is 1 to 30 kB. For two cores, and not tuned.
    "brax": {
        "total_steps": 2_000_000,
        "num_envs": 64,
        "num_steps": 32,
        "num_epochs": 4,
        "num_minibatches": 8,
        "learning_rate": 3e-4,
        "discount": 0.97,
        "reward_scale": 0.1,
        "entropy_coefficient": 1e-3,
        "hidden_sizes": (128, 128),
        "normalize_observations": True,
        "reset_pool_size": 4,
    },
    # What Playground gives DM control for PPO, in the batches of two cores. It scales those rewards
    # by 10 and locomotion's by 1; here both are normalised. Tried on CartpoleBalance alone.
    "playground": {
        "total_steps": 2_000_000,
        "num_envs": 64,
        "num_steps": 32,
        "num_epochs": 4,
        "num_minibatches": 8,
        "learning_rate": 1e-3,
        "discount": 0.995,
        "entropy_coefficient": 1e-2,
        "hidden_sizes": (128, 128),
        "normalize_observations": True,
        "normalize_rewards": True,
        "reset_pool_size": 4,
    },
    # CleanRL's for Atari through EnvPool; RGPO's gate was not tried with them.
    "Atari": {
        "total_steps": 10_000_000,
        "num_envs": 8,
        "num_steps": 128,
        "num_epochs": 4,
        "num_minibatches": 4,
        "learning_rate": 2.5e-4,
        "entropy_coefficient": 0.01,
        "network": "atari",
        "shared_torso": True,
        "hidden_sizes": (512,),
        "activation": "relu",
    },
    # CleanRL's for continuous control; the 2048 steps of a rollout come from eight environments.
    "MuJoCo": {
        "total_steps": 1_000_000,
        "num_envs": 8,
        "num_steps": 256,
        "num_epochs": 10,
        "num_minibatches": 32,
        "learning_rate": 3e-4,
        "entropy_coefficient": 0.0,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
}

# (family, gate) -> where a gate needs other numbers than its family. RGPO does not pull back a
# ratio that has run away: with ten epochs it learns nothing on Hopper. Four are the best there of
# 1, 2 and 4 (400k steps, seeds 1000 and 1001).
GATES_IN_FAMILIES: dict[tuple[str, str], dict[str, Any]] = {
    ("MuJoCo", "rgpo"): {"num_epochs": 4},
}

# What an agent may refuse of a family's settings: minibatches that do not divide its batch, and a
# torso that TRPO's critic would move under its policy.
_MAY_NOT_FIT = ("num_minibatches", "shared_torso")
_EXCLUDING = {"shared_torso": ("critic_hidden_sizes",)}  # what is refused beside it


def _family(env: str) -> str | None:
    """The name of an environment's family; None where it has none."""
    prefix, _, task = env.rpartition("/")
    stem, _, suffix = task.rpartition("-")
    if stem in _MUJOCO and prefix:  # gymnax has a Swimmer of its own
        return "MuJoCo"
    if prefix == "envpool" and suffix == "v5":  # of EnvPool's tasks those of MuJoCo and Atari
        return "Atari"
    if prefix.endswith(":ALE"):  # gymnasium/ale_py:ALE/Pong-v5
        return "Atari"
    return next((key for key in (prefix, task, suffix) if key in FAMILIES), None)


def for_environment(env: str, gate: str | None = None) -> dict[str, Any]:
    """The settings of an environment's family, for a gate; empty where it has none."""
    family = _family(env)
    if family is None:
        return {}
    return FAMILIES[family] | GATES_IN_FAMILIES.get((family, gate or ""), {})


def defaults(
    config_class: type[Config],
    env: str,
    gate: str | None = None,
    network: str | None = None,
    critic_apart: bool = False,
) -> Config:
    """The Config that an agent with this gate starts from on an environment.

    Where the agent's own default differs from the common one (A2C's short rollouts), it stays.

    Args:
      config_class: of the agent.
      env: name of the environment.
      gate: name of the gate.
      network: that was chosen, if it was. A torso is shared where it is the family's.
      critic_apart: whether the critic has layers of its own, which excludes a shared torso.
    """
    common, own = Config(), config_class()
    of_family = for_environment(env, gate)
    settings = {
        name: value
        for name, value in of_family.items()
        if getattr(own, name) == getattr(common, name)
    }
    chosen = network or settings.get("network", own.network)
    if critic_apart or chosen != of_family.get("network"):
        settings.pop("shared_torso", None)
    for name in _MAY_NOT_FIT:
        try:
            dataclasses.replace(own, **settings)
        except ConfigError as error:
            if error.field in (name, *_EXCLUDING.get(name, ())):
                settings.pop(name)
    return dataclasses.replace(own, **settings)
