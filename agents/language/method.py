"""What all methods share: a Config of defaults, and `make`, which joins its gate to the update.

A method is a file with these two calls. What it says of itself is its docstring.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rgpo_jax
from rgpo_jax.gate_table import GATES
from rgpo_jax.language.config import Config

if TYPE_CHECKING:
    from rgpo_jax.gates import Gate, Tunable
    from rgpo_jax.language.agent import Agent
    from rgpo_jax.language.world import World


def config(module: str, *bases: type, **defaults: Any) -> Any:
    """Returns a Config class: the common settings with other defaults, and those of further bases.

    Args:
      module: of the method, `__name__`.
      *bases: dataclasses of settings that the method has beside the common ones, such as a gate's.
      **defaults: of settings that are there.
    """
    bases = (*bases, Config)
    hints: dict[str, Any] = {}
    for base in reversed(bases):
        hints |= typing.get_type_hints(base, include_extras=True)
    fields = [(name, hints[name], dataclasses.field(default=x)) for name, x in defaults.items()]
    made = dataclasses.make_dataclass("Config", fields, bases=bases, frozen=True, kw_only=True)
    made.__module__ = module
    made.__doc__ = "Settings of answers, advantages, KL and loss, and the gate's numbers."
    return made


def gate_of(name: str) -> "Callable[[Any], Tunable]":
    """Returns Config -> the gate of this name, with the settings that the Config has."""
    settings = [field.name for field in dataclasses.fields(GATES[name].settings)]

    def gate(config: Any) -> "Tunable":
        """The gate that the Config describes."""
        return rgpo_jax.gates.make(name, **{field: getattr(config, field) for field in settings})

    return gate


def maker(config_class: Any, default_gate: "Callable[[Any], Tunable]") -> "Callable[..., Agent]":
    """Returns `make(world, config=config_class(), gate=None, **parts)`."""

    def make(
        world: "World", config: Config = config_class(), gate: "Gate | None" = None, **parts: Any
    ) -> "Agent":
        """Builds the agent for a world; a gate of your own takes the place of its own.

        `parts`, such as an optimiser, are those of `rgpo_jax.language.learner.make`.
        """
        from rgpo_jax.language import agent

        chosen = default_gate(config) if gate is None else gate
        return agent.make(world.policy, config, chosen, world.reward, **parts)

    return make
