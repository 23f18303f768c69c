"""Alignment methods: a Config (defaults), a gate, and `make`, which joins them to the update step.

from agents.language import rgpo
from envs.language import bandit
world = bandit.make()
agent = rgpo.make(world, rgpo.Config(dual="geometric"))
"""

import difflib
import importlib
from types import ModuleType

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
    module = name.replace("-", "_")
    if module not in NAMES:
        nearest = difflib.get_close_matches(module, NAMES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(f"{hint}known are {', '.join(NAMES)}")
    return importlib.import_module(f"agents.language.{module}")
