"""Alignment methods: a Config (defaults), a gate, and `make`, which joins them to the update step.

from agents.language import rgpo
from envs.language import bandit
world = bandit.make()
agent = rgpo.make(world, rgpo.Config(dual="geometric"))
"""

import importlib
from types import ModuleType

from agents import module_name

NAMES = (
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
)


def load(name: str) -> ModuleType:
    """Imports a method's module by name; hyphens may stand for underscores.

    Raises:
      ValueError: no method has this name; the message has the nearest.
    """
    return importlib.import_module(f"agents.language.{module_name(name, NAMES)}")
