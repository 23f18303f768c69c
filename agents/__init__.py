"""The agents: each file holds a Config (defaults) and what sets the agent apart, its gate.

from agents import rgpo
agent = rgpo.make(envs.make("CartPole-v1"), rgpo.Config(num_envs=64, sharpness=4.0))
"""

import difflib
import importlib
from types import ModuleType

# Gate agents: one update step and one set of defaults; they differ in w(r) alone.
GATE_AGENTS = (
    "rgpo",
    "ppo",
    "reinforce",
    "importance",
    "truncated_importance",
    "cispo",
    "sapo",
    "p3o",
    "spo",
    "rollback",
    "topr",
    "smooth",
)
# Agents that change something else as well.
OTHER_AGENTS = ("a2c", "trpo", "awr")
NAMES = GATE_AGENTS + OTHER_AGENTS


def load(name: str, among: tuple[str, ...] = NAMES) -> ModuleType:
    """Imports an agent's module by name; hyphens may stand for underscores.

    Raises:
      ValueError: no agent has this name; the message has the nearest.
    """
    module = name.replace("-", "_")
    if module not in among:
        nearest = difflib.get_close_matches(module, among, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(f"{hint}known are {', '.join(among)}")
    return importlib.import_module(f"agents.{module}")
