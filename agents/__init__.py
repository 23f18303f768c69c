"""The agents: a Config (defaults), a gate, and `make`, which joins them to the one update step.

from agents import rgpo
agent = rgpo.make(envs.make("CartPole-v1"), rgpo.Config(num_envs=64, sharpness=4.0))

A Config's own defaults are the same for every environment; `agents.defaults` has those of a task.

An agent that differs from the others in its gate alone has no file: its module, `agents.rgpo` as
any other, is made of the gate's row in `rgpo_jax.gate_table`.
"""

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agents import families, gated
from rgpo_jax.config import Config
from rgpo_jax.gate_table import GATES

if TYPE_CHECKING:
    from rgpo_jax.environment import AnyEnvironment

GATE_AGENTS = tuple(GATES)
"""One update step and one set of defaults: they differ in w(r) alone."""
OTHER_AGENTS = ("a2c", "trpo", "awr")
"""Agents that change something else as well."""
NAMES = GATE_AGENTS + OTHER_AGENTS
"""All agents."""


def module_name(name: str, among: Sequence[str]) -> str:
    """The module that a name means; hyphens may stand for underscores.

    Raises:
      ValueError: it is none of these; the message has the nearest.
    """
    module = name.replace("-", "_")
    if module not in among:
        nearest = difflib.get_close_matches(module, among, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise ValueError(f"{hint}known are {', '.join(among)}")
    return module


def load(name: str, among: tuple[str, ...] = NAMES) -> ModuleType:
    """Imports an agent's module by name; hyphens may stand for underscores.

    Raises:
      ValueError: no agent has this name; the message has the nearest.
    """
    return importlib.import_module(f"agents.{module_name(name, among)}")


def defaults(agent: str, env: "AnyEnvironment", **settings: Any) -> Config:
    """The Config from which `python -m experiments.run` starts: an agent's, for an environment.

    env = envs.make("Pendulum-v1")
    agent = rgpo.make(env, agents.defaults("rgpo", env, num_envs=8))

    Args:
      agent: its name.
      env: whose family's settings take the place of the Config's own defaults.
      **settings: that take the place of both.

    Raises:
      ValueError: no agent has this name; or a setting is out of range (ConfigError).
      TypeError: the Config has no such setting; or the environment is but a name.
    """
    if isinstance(env, str):
        raise TypeError(f"env {env!r}: expected an environment, as envs.make gives")
    name = module_name(agent, NAMES)
    is_apart = settings.get("critic_hidden_sizes") is not None
    network = settings.get("network")
    start = families.defaults(load(name).Config, env.name, name, network, is_apart)
    return dataclasses.replace(start, **settings)


# `import agents.rgpo` and what was pickled there find the module here, after this one.
for _name in GATE_AGENTS:
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = gated.module(_name)
