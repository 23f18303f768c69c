"""What a user brings: a gate, an agent or a reward in a module of their own, by its name.

Names that a user types are imported. Names that were found in a folder or a file, which may be
somebody else's, are not, unless the user says so.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import agents
import rgpo_jax
from experiments.cli import flags
from experiments.cli.flags import BadInput
from rgpo_jax import importing
from rgpo_jax.config import Config

# Settings that may name code.
_CODE = ("agent", "gate", "network", "env", "reward", "gold", "preference", "callback")
# Of these, what no compiled program has in it.
ON_HOST = ("reward", "gold", "preference", "callback")
# Modules of the suite that have gates without a name of their own.
_GATES = ("experiments.reproduction.ablations", "rgpo_jax.gates")
TRUST = "--trust-code"


def hint_at_optimizer(settings: Mapping[str, Any]) -> str:
    """What may help where a checkpoint of an agent of one's own does not fit; empty for others."""
    if not is_own("agent", settings.get("agent")):
        return ""
    return (
        "; where its agent has an optimizer=, that gets parameters by layer now, and what was made "
        "before goes on with flatten=True in agent.make"
    )


def is_own(setting: str, value: Any) -> bool:
    """Whether a setting names code that is not of the suite."""
    if setting not in _CODE or not isinstance(value, str):
        return False
    if setting == "agent":
        return value.replace("-", "_") not in agents.NAMES
    module, colon, _ = value.partition(":")
    return bool(colon) and module not in _GATES


def is_trusted(args: Sequence[str]) -> bool:
    """Whether a command line says that found names may be imported."""
    return any(arg.replace("_", "-") == TRUST for arg in args)


def refuse_found(
    settings: Mapping[str, Any],
    where: str,
    args: Sequence[str] = (),
    trusted: Collection[Any] = (),
    can_be_typed: bool = True,
) -> None:
    """Raises BadInput if settings name code that the user has not asked for.

    Args:
      settings: that were found.
      where: for the message.
      args: what the user typed; a setting that is among the flags replaces the one found.
      trusted: names that may be imported.
      can_be_typed: whether the program has flags for the settings.
    """
    if is_trusted(args):
        return
    for name, value in ((name, x) for name, whole in settings.items() for x in _plain(whole)):
        typed = flags.peek(flags.flag(name), args) is not None
        if typed or not is_own(name, value) or value in trusted:
            continue
        module = value.partition(":")[0].rpartition("/")[2]  # gymnasium/MODULE:NAME
        or_typed = f", or {flags.flag(name)} {value}" if can_be_typed else ""
        raise BadInput(
            f"{where}: its {name} is {value}: code that is not of the suite, in a module {module} "
            f"that would be imported; if you trust it, say {TRUST}{or_typed}"
        )


def _plain(value: Any) -> Iterator[Any]:
    """What lists and mappings hold, however deep: as flags and draws are made of settings."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _plain(part)
    else:
        yield value


def _import(name: str, where: str) -> Any:
    """Imports MODULE or MODULE:NAME."""
    try:
        return importing.load(name)
    except ValueError as error:
        raise BadInput(f"{where} {name}: {error}") from None


def find_gate(name: str) -> None:
    """Raises BadInput unless there is a module for MODULE:FUNCTION; does not run it."""
    module = name.partition(":")[0]
    if not importing.exists(module):
        raise BadInput(f"--gate {name}: no module named {module!r}")


def function(name: str, flag: str) -> Any:
    """Imports MODULE:FUNCTION.

    Raises:
      BadInput: there is none of this name, or it cannot be called.
    """
    module = name.partition(":")[0]
    if not importing.exists(module):
        raise BadInput(f"{flag} {name}: no module named {module!r}")
    found = _import(name, flag)
    if not callable(found):
        raise BadInput(f"{flag} {name}: expected a function, got {type(found).__name__}")
    return found


def gate(name: str) -> Any:
    """Imports MODULE:FUNCTION and checks that it is a gate.

    Raises:
      BadInput: it does not import, or is no gate.
    """
    found = _import(name, "--gate")
    try:
        return rgpo_jax.gates.check(found)
    except ValueError as error:
        raise BadInput(f"--gate {name}: {error}") from None


def network(name: str, *arguments: Any) -> Any:
    """Imports MODULE:NAME, which is a network of a user's own.

    Args:
      name: of a class of flax.linen modules, which is built without arguments, of such a module, or
        of a function that makes one, or a `Network`, of these arguments.
      *arguments: shape of observations, space of actions, and Config.

    Raises:
      BadInput: it does not import, or is nothing of this.
    """
    import flax.linen as nn

    found = _import(name, "--network")
    try:
        if isinstance(found, type) and issubclass(found, nn.Module):
            found = found()
        elif callable(found) and not isinstance(found, nn.Module):
            found = found(*arguments)
    except Exception as error:
        raise BadInput(f"--network {name}: {type(error).__name__}: {error}") from None
    if not isinstance(found, nn.Module | rgpo_jax.networks.Network):
        raise BadInput(
            f"--network {name}: a {type(found).__name__}; expected a module of flax.linen, or a "
            "function of (observation_shape, action_space, config) that makes one or a Network"
        )
    return found


def agent(name: str, where: str = "--agent") -> Any:
    """An agent of the suite by its name, or MODULE[:NAME], which has a Config and a make as those.

    The module runs before JAX is set up, since its Config is read as flags.

    Args:
      name: of the agent.
      where: it was read, for messages.

    Raises:
      BadInput: there is none of this name; it does not import, or is no agent.
    """
    try:
        return agents.load(name)
    except ValueError as error:
        module = name.partition(":")[0]
        if not importing.exists(module):
            if ":" in name:
                raise BadInput(f"{where} {name}: no module named {module!r}") from None
            raise BadInput(
                f"{where} {name}: unknown agent; {error}; or MODULE[:NAME] for your own"
            ) from None
    found = _import(name, where)
    config, make = getattr(found, "Config", None), getattr(found, "make", None)
    if not (isinstance(config, type) and issubclass(config, Config) and callable(make)):
        raise BadInput(
            f"{where} {name}: no agent; expected a Config, of rgpo_jax.config.Config, and a make"
        )
    return found


def check(name: str, built: Any, config: Config) -> None:
    """Raises BadInput unless a module's make built an agent that has the numbers of its Config."""
    if not isinstance(built, rgpo_jax.agent.Agent):
        raise BadInput(f"--agent {name}: its make returned {type(built).__name__}, not an Agent")
    try:
        built.learner.hyperparameters.replace(**config.traced())
    except TypeError as error:
        raise BadInput(
            f"--agent {name}: {error}; a real number of a Config is one of the gate's, by its name"
        ) from None
