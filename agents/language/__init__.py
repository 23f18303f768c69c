"""Alignment methods: a Config (defaults), a gate or a loss, and `make`, which builds the agent.

from agents.language import rgpo
from envs.language import bandit
world = bandit.make()
agent = rgpo.make(world, rgpo.Config(dual="geometric"))
"""

import importlib
from types import ModuleType

from agents import module_name

GATED = (
    "reinforce",
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "ppo",
    "rgpo",
    "dual_kl",
)
"""Methods that learn from rewards of their own answers, by a gate."""
FROM_OWN_PAIRS = ("rebel", "reward_distillation", "online_dpo", "on_policy_dpo")
"""From pairs of their own answers."""
FROM_DATA = ("dpo", "ipo", "kto", "rpo")
"""From a data set of pairs."""
FROM_WINS = ("zpg", "zbcpg")
"""From who wins."""
NAMES = (*GATED, *FROM_OWN_PAIRS, *FROM_DATA, *FROM_WINS)
"""All methods."""


def load(name: str) -> ModuleType:
    """Imports a method's module by name; hyphens may stand for underscores.

    Raises:
      ValueError: no method has this name; the message has the nearest.
    """
    return importlib.import_module(f"agents.language.{module_name(name, NAMES)}")
