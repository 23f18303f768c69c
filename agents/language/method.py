"""What all methods share: a Config of defaults, and `make`, which joins its gate to the update.

A method is a file with these two calls. What it says of itself is its docstring.
"""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rgpo_jax.language.config import Common, Config

if TYPE_CHECKING:
    from rgpo_jax.gates import Gate, Tunable
    from rgpo_jax.language.agent import Agent
    from rgpo_jax.language.world import World


def config(module: str, *bases: type, **defaults: Any) -> Any:
    """Returns a Config class: shared settings with other defaults, and those of further bases.

    Args:
      module: of the method, `__name__`.
      *bases: dataclasses of settings: what the method has beside the shared ones, such as a gate's,
        and last which shared ones; those of gated methods where none of these is among them.
      **defaults: of settings that are there.
    """
    if not any(issubclass(base, Common) for base in bases):
        bases = (*bases, Config)
    hints: dict[str, Any] = {}
    for base in reversed(bases):
        hints |= typing.get_type_hints(base, include_extras=True)
    fields = [(name, hints[name], dataclasses.field(default=x)) for name, x in defaults.items()]
    made = dataclasses.make_dataclass("Config", fields, bases=bases, frozen=True, kw_only=True)
    made.__module__ = module
    made.__doc__ = bases[-1].__doc__
    return made


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


def loss_of(name: str, settings: Sequence[str] = ()) -> "Callable[[Any], Tunable]":
    """Returns Config -> the loss of pairs of this name (`rgpo_jax.language.contrasts`).

    Args:
      name: of the loss.
      settings: of the Config, its numbers and switches.
    """

    def loss(config: Any) -> "Tunable":
        """The loss that the Config describes."""
        from rgpo_jax.language import contrasts
        from rgpo_jax.tunable import Tunable

        found = {setting: getattr(config, setting) for setting in settings}
        switches = tuple((k, x) for k, x in found.items() if isinstance(x, bool))
        numbers = {k: x for k, x in found.items() if not isinstance(x, bool)}
        return Tunable(getattr(contrasts, name), numbers, switches)

    return loss


def maker_from_data(
    config_class: Any, loss: "Callable[[Any], Tunable]", **more: Any
) -> "Callable[..., Agent]":
    """Returns `make(world, config=config_class(), **parts)` of a method that learns from pairs.

    In a world whose reward is compiled the pairs are made, of answers of the reference; else the
    data set is what `step` is given in the place of prompts.
    """

    def make(world: "World", config: Any = config_class(), **parts: Any) -> "Agent":
        """Builds the agent for a world; `parts` are those of `rgpo_jax.language.pair_learner`."""
        from rgpo_jax.language import pair_agent

        source: pair_agent.Source = pair_agent.from_array
        if world.reward is not None:
            source = pair_agent.made_of_reference(world.policy, world.reward, config.labels)
        parts = {**more, **parts}
        return pair_agent.from_data(world.policy, config, loss(config), source, **parts)

    return make


def maker_from_own(
    config_class: Any, loss: "Callable[[Any], Tunable]", kl_in_reward: bool = False
) -> "Callable[..., Agent]":
    """Returns `make(world, config=config_class(), **parts)` of a method with pairs of its own."""

    def make(world: "World", config: Any = config_class(), **parts: Any) -> "Agent":
        """Builds the agent for a world; `parts` are those of `rgpo_jax.language.pair_learner`."""
        from rgpo_jax.language import pair_agent

        labels = getattr(config, "labels", None)
        return pair_agent.from_own(
            world.policy, config, loss(config), world.reward, labels, kl_in_reward, **parts
        )

    return make


def maker_zeroth(config_class: Any) -> "Callable[..., Agent]":
    """Returns `make(world, config=config_class(), **parts)` of a zeroth-order method."""

    def make(world: "World", config: Any = config_class(), **parts: Any) -> "Agent":
        """Builds the agent for a world; `parts` are those of `rgpo_jax.language.zeroth_order`."""
        from rgpo_jax.language import zeroth_order

        number = getattr(config, "num_coordinates", None)
        direction = (
            zeroth_order.on_sphere if number is None else zeroth_order.on_coordinates(number)
        )
        return zeroth_order.make(world.policy, config, direction, world.reward, **parts)

    return make
