"""What all agents share: `make`, which joins a Config's gate to the one update step."""

import dataclasses
import importlib.machinery
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, TypeVar

import rgpo_jax
from rgpo_jax.config import Config
from rgpo_jax.gate_table import GATES

AnyConfig = TypeVar("AnyConfig", bound=Config, contravariant=True)


class Make(Protocol[AnyConfig]):
    """Signature of every agent's `make`."""

    def __call__(
        self,
        env: "rgpo_jax.environment.AnyEnvironment",
        config: AnyConfig = ...,
        gate: "rgpo_jax.gates.Gate | None" = None,
        axis_name: str | None = None,
        **parts: Any,
    ) -> "rgpo_jax.agent.Agent": ...


def maker(
    config_class: Callable[[], AnyConfig],
    default_gate: Callable[[AnyConfig], "rgpo_jax.gates.Gate"],
    **parts: Callable[[AnyConfig], Any],
) -> Make[AnyConfig]:
    """Returns `make(env, config=config_class(), gate=None, axis_name=None, **others)`.

    Args:
      config_class: the agent's settings.
      default_gate: Config -> gate, used where `make` is given none.
      **parts: Config -> further arguments of `rgpo_jax.agent.make`, for agents that change
        more than the gate.
    """

    def make(
        env: "rgpo_jax.environment.AnyEnvironment",
        config: AnyConfig = config_class(),
        gate: "rgpo_jax.gates.Gate | None" = None,
        axis_name: str | None = None,
        **others: Any,
    ) -> "rgpo_jax.agent.Agent":
        """Builds the agent for an environment; a gate of your own takes the place of its own.

        `axis_name`, and `others` such as a network or an optimiser, are those of
        `rgpo_jax.agent.make`.

        Raises:
          ValueError: the config is another agent's, and lacks what this one's gate or step needs.
        """
        if gate is None or parts:
            own: Any = config_class()
            needed = [field.name for field in dataclasses.fields(own)]
            missing = [name for name in needed if not hasattr(config, name)]
            if missing:
                raise ValueError(
                    f"the config of {type(config).__module__} has no {', '.join(missing)}: "
                    f"expected one of {type(own).__module__}"
                )
        chosen = default_gate(config) if gate is None else gate
        extras = {name: part(config) for name, part in parts.items()} | others
        return rgpo_jax.agent.make(env, config, chosen, axis_name=axis_name, **extras)

    return make


def gate_of(name: str) -> Callable[[Any], "rgpo_jax.gates.Tunable"]:
    """Returns Config -> the gate of this name, with the settings that the Config has."""
    settings = [field.name for field in dataclasses.fields(GATES[name].settings)]

    def gate(config: Any) -> "rgpo_jax.gates.Tunable":
        """The gate that the Config describes."""
        return rgpo_jax.gates.make(name, **{field: getattr(config, field) for field in settings})

    return gate


def module(name: str) -> ModuleType:
    """Makes the module of the agent that differs from the others in its gate alone."""
    row = GATES[name]
    found = ModuleType(f"{__package__}.{name}", row.settings.__doc__)
    found.__file__ = __file__
    found.__spec__ = importlib.machinery.ModuleSpec(found.__name__, None)
    gate = gate_of(name)
    gate.__module__, gate.__qualname__ = found.__name__, "gate"
    config_class: type[Config] = Config
    if dataclasses.fields(row.settings):
        config_class = dataclasses.make_dataclass(
            "Config", [], bases=(row.settings, Config), frozen=True, kw_only=True
        )
        config_class.__module__ = found.__name__
        config_class.__doc__ = "Settings of the update step, and the gate's numbers."
    vars(found).update(Config=config_class, gate=gate, make=maker(config_class, gate))
    return found
