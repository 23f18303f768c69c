"""Reads a run's flags and files, and checks them, before JAX is loaded."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import agents
import envs
from agents import families
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import env_kwargs, own
from experiments.plan.options import ControlOptions
from experiments.plan.run_options import MAY_CHANGE
from experiments.plan.run_plan import RunPlan
from experiments.record.files import read_plain
from experiments.record.headline import CONTROL, Headline
from experiments.record.lengthening import LENGTHS, lengthened
from experiments.record.run_folder import CONFIG
from rgpo_jax.config import Config, ConfigError

if TYPE_CHECKING:
    from rgpo_jax.environment import AnyEnvironment

PROG = "python -m experiments.run"


@dataclasses.dataclass(frozen=True)
class Plan(RunPlan):
    """A run of control; `config` is its agent's."""

    options: ControlOptions
    config: Config

    @functools.cached_property
    def env(self) -> "AnyEnvironment":
        """Its environment, built where it is first asked for; ValueError as `envs.make`."""
        name, params = self.options.env, self.options.env_params
        if self.options.ranges:
            return envs.randomize(name, self.options.ranges, **params)
        return envs.make(name, **params)

    @functools.cached_property
    def place(self) -> envs.Place:
        """Where that is computed; one of a user's own is built to know it, and JAX not begun."""
        if envs.is_own(self.options.env) and not self.options.ranges:
            return envs.place_of(self.env)
        return envs.place(self.options.env, **self.options.env_params)

    @property
    def name(self) -> str:
        """Environment and agent; backend and gate where they are not the usual ones."""
        options = self.options
        parts = (options.env, options.backend, options.agent, options.gate)
        return "-".join(part for part in parts if part is not None)

    @property
    def title(self) -> str:
        what = f"{self.number_of_seeds} x {self.config.total_steps:,} steps"
        return f"{self.options.who} on {self.options.where}: {what}"

    @property
    def headline(self) -> Headline:
        return CONTROL

    @property
    def curve_title(self) -> str:
        return f"{self.options.agent} on {self.options.where}"

    def heading(self) -> dict[str, Any]:
        """With what its summary begins."""
        names = ("agent", "gate", "env", "seed", "num_seeds")
        return {name: getattr(self.options, name) for name in names}


def _config_class(agent: str, gate: str | None) -> type[Config]:
    """The settings that an agent with this gate has."""
    agent_module = own.agent(agent)
    if gate is None:
        return agent_module.Config
    # The flags of a gate agent are its gate's: another gate brings others.
    rest = Config if agent.replace("-", "_") in agents.GATE_AGENTS else agent_module.Config
    if ":" in gate:
        own.find_gate(gate)
        return rest
    try:
        gate_module = agents.load(gate, among=agents.GATE_AGENTS)
    except ValueError as error:
        raise BadInput(
            f"--gate {gate}: unknown gate; {error}; or MODULE:FUNCTION for your own"
        ) from None
    if rest is Config:
        return gate_module.Config
    return dataclasses.make_dataclass(
        "Config", [], bases=(rest, gate_module.Config), frozen=True, kw_only=True
    )


class KnownBefore(NamedTuple):
    """Settings that are known before the flags are read as a whole.

    Attributes:
      stored: of the run that is to go on; empty where there is none.
      settings: these, those given from elsewhere, and those of a config file.
      source: where settings come from, for messages.
      of_a_run: whether they were all that a run had, of this version or an older one.
    """

    stored: dict[str, Any]
    settings: dict[str, Any]
    source: str
    of_a_run: bool

    @classmethod
    def find(
        cls, args: Sequence[str], given: Mapping[str, Any] | None, source: str
    ) -> "KnownBefore":
        """Looks for them; see `read_plan`."""
        stored = settings_to_resume(args)
        file = flags.peek("--config", args)
        content = flags.content_of(file) if file is not None else {}
        from_file = flags.settings_in(content, file)
        source = source if file is None else f"--config {file}"
        trusted = [x for x in (given or {}).values() if isinstance(x, str)]
        replaced = {**(given or {}), **from_file}  # of what is stored
        left = {name: x for name, x in stored.items() if name not in replaced}
        own.refuse_found(left, f"--resume {flags.peek('--out', args)}", args, trusted)
        own.refuse_found(from_file, source, args, trusted)
        settings = {**stored, **(given or {}), **from_file}
        return cls(stored, settings, source, bool(stored) or flags.is_of_a_run(content))

    def choose(self, args: Sequence[str], name: str, default: str | None) -> Any:
        """A name on which it depends which flags there are; None only where that is the default."""
        value = flags.peek(f"--{name}", args)
        if value is None:
            value = self.settings.get(name, default)
        if not isinstance(value, str) and not (value is None and default is None):
            raise BadInput(f"{self.source}: {name} = {value}: expected a name")
        return value


def read_plan(
    args: Sequence[str],
    prog: str = PROG,
    given: Mapping[str, Any] | None = None,
    source: str = "",
    of_a_run: bool = False,
) -> Plan:
    """Reads flags and config file; of a run that is to go on, its settings too. Loads no JAX.

    Args:
      args: flags of the command line.
      prog: the program that they were given to.
      given: settings from elsewhere, which flags override.
      source: where those come from, for messages.
      of_a_run: whether those are all that a run had.

    Raises:
      BadInput: anything that the user should type otherwise.
    """
    known_before = KnownBefore.find(args, given, source)
    stored, from_file, source, is_whole = known_before
    if isinstance(from_file.get(env_kwargs.FIELD), dict):  # as people write it
        from_file[env_kwargs.FIELD] = env_kwargs.items(from_file[env_kwargs.FIELD])
    chosen = functools.partial(known_before.choose, args)
    agent, gate, env = chosen("agent", "rgpo"), chosen("gate", None), chosen("env", "CartPole-v1")
    gate = None if gate == "None" else gate
    config_class = _config_class(agent, gate)
    try:
        envs.check_name(env)
    except ValueError as error:
        raise BadInput(f"--env {env}: {error}") from None

    if of_a_run or is_whole:  # not what the environment's family has now
        from_file = with_defaults(from_file, config_class)
    if from_file.get("agent", agent) != agent and _refuses_shared_torso(config_class):
        from_file.pop("shared_torso", None)  # another agent's, which had it by its family
    fields = (*dataclasses.fields(ControlOptions), *dataclasses.fields(config_class))
    known = [field.name for field in fields if field.name not in flags.NOT_IN_FILES]
    # A file may come from a run of another agent: what only others have does not concern this one.
    file_args = flags.as_arguments(from_file, source, known, settings_of_agents())
    network = chosen("network", None)
    of_critic = flags.peek("--critic-hidden-sizes", args), from_file.get("critic_hidden_sizes")
    is_apart = any(sizes is not None for sizes in of_critic)
    default = families.defaults(config_class, env, gate or agent, network, is_apart)
    what = "Train one agent on one environment over several seeds."
    plan = Plan(*flags.read_pair(ControlOptions(), default, [*file_args, *args], prog, what))
    if stored:
        refuse_other_settings(stored, plan.options, plan.config, Path(str(plan.options.out)))
    return plan


def _refuses_shared_torso(config_class: type[Config]) -> bool:
    try:
        config_class(shared_torso=True)
    except ConfigError:
        return True
    return False


def settings_of_agents(names: Sequence[str] = agents.NAMES, where: str = "--agent") -> set[str]:
    """The names of the settings that any of these agents has; BadInput for one that is none."""
    return {f.name for name in names for f in dataclasses.fields(own.agent(name, where).Config)}


def settings_to_resume(args: Sequence[str]) -> dict[str, Any]:
    """The settings of the run that is to go on; empty where there is none."""
    out = flags.peek("--out", args)
    if "--resume" not in args or out is None:
        return {}
    path = Path(out).expanduser() / CONFIG
    try:
        return flags.settings_from_file(str(path), read_plain) if path.exists() else {}
    except BadInput as error:
        raise BadInput(f"--resume: {str(error).removeprefix('--config ')}") from None


def with_defaults(stored: Mapping[str, Any], *settings: type) -> dict[str, Any]:
    """Settings of a stored run: one that is older than a setting of these had its default."""
    defaults = flags.as_settings(*(kind() for kind in settings))
    return {**json.loads(json.dumps(defaults)), **stored}


def refuse_other_settings(
    stored: Mapping[str, Any], options: Any, config: Any, folder: Path
) -> None:
    """Raises BadInput if the run in a folder was begun with other options, or another Config.

    One that is to be trained for longer may have more steps, where options say so.
    """
    wanted = json.loads(json.dumps(flags.as_settings(options, config)))
    before = with_defaults(stored, type(options), type(config))
    longer = lengthened(before, wanted)
    grown = longer.setting if longer and options.train_longer else None
    for name, value in before.items():
        if name in (*MAY_CHANGE, grown) or wanted.get(name) == value:
            continue
        if longer and name == longer.setting:
            advice = "or train it for longer by --train-longer"
        elif name in LENGTHS:
            advice = "or, by --train-longer, with more steps"
        else:
            advice = "or start one in another folder"
        raise BadInput(
            f"{flags.flag(name)} {wanted.get(name)}: the run in {folder} was begun with "
            f"{value}; go on with its own settings, {advice}"
        )
