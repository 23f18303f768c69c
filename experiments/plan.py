"""What a run is to do: its options, read from flags and files, and checked before JAX is loaded."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import agents
import envs
from experiments import command_line, compiling, devices, own, settings
from experiments.command_line import BadInput
from experiments.loggers import DEFAULT_LOGGERS, LoggerName
from rgpo_jax.config import Checked, Config, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, NonNegative

if TYPE_CHECKING:
    from rgpo_jax.agent import Agent
    from rgpo_jax.environment import AnyEnvironment

PROG = "python -m experiments.run"
# Options that say how a run is kept, and not what it computes: they may differ when it goes on.
MAY_CHANGE = ("checkpoint_every", "loggers")

_AGENT_HELP = (
    f"One of {', '.join(agents.NAMES)}; or an agent of your own, a module or an object in it with "
    "a Config and a make. The agent options below are those of the agent you name."
)
_ENV_HELP = (
    f"One of {envs.listing()}; or envpool/NAME or gymnasium/NAME, which live on the host. "
    "Settings that you do not give come from its family."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What to train, and where the results go."""

    agent: Annotated[str, tyro.conf.arg(metavar="NAME|MODULE[:NAME]", help=_AGENT_HELP)] = "rgpo"
    gate: Annotated[str | None, tyro.conf.arg(metavar="NAME|MODULE:FUNCTION")] = None
    """Another gate in the agent's update step: the name of a gate agent, or a function
    (log_ratio, advantage) -> g of your own."""
    env: Annotated[str, tyro.conf.arg(metavar="NAME", help=_ENV_HELP)] = "CartPole-v1"
    backend: envs.BraxBackend | None = None
    """Physics of a brax/ environment; None: spring, the fastest."""
    seed: CountOrZero = 0
    """First seed."""
    num_seeds: Count = 1
    """Seeds trained side by side in one program: seed, seed + 1, ..."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the results; None: a new folder under runs/."""
    overwrite: bool = False
    """Replace the run that DIR holds."""
    resume: bool = False
    """Go on with the run that DIR holds, from its last checkpoint and with its own settings; start
    it if there is none. The same command line can be given again and again."""
    checkpoint_every: Annotated[NonNegative | None, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Seconds between two checkpoints, of which the newest three are kept, or as many as it takes
    for them to cost under 2 percent; 0 makes one at every line of metrics, None only the last."""
    init_from: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Start from the parameters and observation statistics of an earlier run's folder: seed after
    seed, and over again where it has fewer."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT|auto")] = None
    """Train together with other processes, all started with this same command line: where the
    first of them listens, or auto, as Slurm, Open MPI, Kubernetes or a TPU pod say. DIR must be a
    folder that all of them see; the first one alone writes and speaks."""
    num_processes: Annotated[Count | None, tyro.conf.arg(metavar="N")] = None
    """How many processes, with --coordinator HOST:PORT."""
    process_id: Annotated[CountOrZero | None, tyro.conf.arg(metavar="I")] = None
    """Which of them this is: 0 is the first."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Settings from a JSON file, such as an earlier run's config.json; flags override them."""
    compilation_cache: compiling.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""
    loggers: tuple[LoggerName, ...] = DEFAULT_LOGGERS
    """Where metrics go beside metrics.jsonl; wandb is Weights & Biases, and needs an extra."""
    log_every: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Environment steps (of one seed) between two lines of metrics; None: a hundredth of all."""
    eval_every: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Environment steps (of one seed) between two evaluations; None: a tenth of all."""
    eval_episodes: Count = 32
    """Episodes of the last evaluation, per seed, once with the policy's mode and once with samples.
    Evaluations while it trains are of the mode alone."""
    eval_share: NonNegative = 0.33
    """Most steps that an evaluation may take while it trains, as a share of those trained on since
    the one before: its episodes are halved as often as it takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.num_seeds > 2**32:
            raise ConfigError("seed", f"{self.seed}: expected seeds below 2^32")
        for field in ("out", "init_from", "compilation_cache"):
            command_line.check_path(field, getattr(self, field))
        if self.resume and self.out is None:
            raise ConfigError("resume", "needs the run's folder too: --out DIR")
        if self.resume and self.overwrite:
            raise ConfigError("resume", "and overwrite exclude each other")
        if self.backend is not None and self.env not in envs.BRAX:
            raise ConfigError("backend", f"{self.backend}: only brax/ environments have one")
        self._check_processes()

    def _check_processes(self) -> None:
        count, number = self.num_processes, self.process_id
        if self.coordinator in (None, "auto"):
            for field, value in (("num_processes", count), ("process_id", number)):
                if value is not None:
                    raise ConfigError(field, f"{value}: goes with --coordinator HOST:PORT")
        elif not re.fullmatch(r"[^\s/]+:\d{1,5}", self.coordinator):
            raise ConfigError("coordinator", f"{self.coordinator!r}: expected HOST:PORT or auto")
        elif count is None or number is None:
            raise ConfigError("coordinator", "needs --num-processes N and --process-id I too")
        elif number >= count:
            raise ConfigError("process_id", f"{number}: expected a number from 0 to {count - 1}")
        if self.coordinator is None:
            return
        if self.out is None:
            raise ConfigError("coordinator", "needs a folder that all processes see: --out DIR")
        if envs.is_on_host(self.env):
            raise ConfigError(
                "coordinator", f"{self.coordinator}: {self.env} lives on the host of one process"
            )

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def env_params(self) -> dict[str, Any]:
        """Parameters of the environment that differ from its own defaults."""
        return {} if self.backend is None else {"backend": self.backend}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run whose flags have been read and checked."""

    options: Options
    config: Config

    @property
    def name(self) -> str:
        """Environment and agent; backend and gate where they are not the usual ones."""
        options = self.options
        parts = (options.env, options.backend, options.agent, options.gate)
        return "-".join(part for part in parts if part is not None)

    @property
    def title(self) -> str:
        options = self.options
        agent = options.agent if options.gate is None else f"{options.agent} (gate {options.gate})"
        seeds = "1 seed" if options.num_seeds == 1 else f"{options.num_seeds} seeds"
        backend = "" if options.backend is None else f" ({options.backend})"
        return f"{agent} on {options.env}{backend}: {seeds} x {self.config.total_steps:,} steps"


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


def read_plan(
    args: Sequence[str],
    prog: str = PROG,
    given: Mapping[str, Any] | None = None,
    source: str = "",
) -> Plan:
    """Reads flags and config file; of a run that is to go on, its settings too. Loads no JAX.

    Args:
      args: flags of the command line.
      prog: the program that they were given to.
      given: settings from elsewhere, which flags override.
      source: where those come from, for messages.

    Raises:
      BadInput: anything that the user should type otherwise.
    """
    stored = _settings_to_resume(args)
    file = command_line.peek("--config", args)
    if file is not None:
        source = f"--config {file}"
    from_file = {
        **stored,
        **(given or {}),
        **(command_line.settings_from_file(file) if file is not None else {}),
    }

    def chosen(name: str, default: Any) -> Any:
        value = command_line.peek(f"--{name}", args)
        if value is None:
            value = from_file.get(name, default)
        if not isinstance(value, str) and not (value is None and default is None):
            raise BadInput(f"{source}: {name} = {value}: expected a name")
        return value

    agent, gate, env = chosen("agent", "rgpo"), chosen("gate", None), chosen("env", "CartPole-v1")
    gate = None if gate == "None" else gate
    config_class = _config_class(agent, gate)
    try:
        envs.check_name(env)
    except ValueError as error:
        raise BadInput(f"--env {env}: {error}") from None

    fields = (*dataclasses.fields(Options), *dataclasses.fields(config_class))
    known = [field.name for field in fields if field.name not in command_line.NOT_IN_FILES]
    # A file may come from a run of another agent: what only others have does not concern this one.
    file_args = command_line.as_arguments(from_file, source, known, settings_of_agents())
    flags = dataclasses.make_dataclass(
        "Flags",
        [
            ("run", Annotated[Options, tyro.conf.OmitArgPrefixes]),
            ("agent", Annotated[config_class, tyro.conf.OmitArgPrefixes]),
        ],
        frozen=True,
    )
    flags.__doc__ = "Train one agent on one environment over several seeds."
    default = flags(Options(), settings.defaults(config_class, env, gate or agent))
    parsed: Any = command_line.read(flags, default, [*file_args, *args], prog)
    plan = Plan(parsed.run, parsed.agent)
    if stored:
        refuse_other_settings(stored, plan, Path(str(plan.options.out)))
    return plan


def settings_of_agents(names: Sequence[str] = agents.NAMES, where: str = "--agent") -> set[str]:
    """The names of the settings that any of these agents has; BadInput for one that is none."""
    return {f.name for name in names for f in dataclasses.fields(own.agent(name, where).Config)}


def _settings_to_resume(args: Sequence[str]) -> dict[str, Any]:
    """The settings of the run that is to go on; empty where there is none."""
    out = command_line.peek("--out", args)
    if "--resume" not in args or out is None:
        return {}
    path = Path(out).expanduser() / "config.json"
    try:
        return command_line.settings_from_file(str(path)) if path.exists() else {}
    except BadInput as error:
        raise BadInput(f"--resume: {str(error).removeprefix('--config ')}") from None


def refuse_other_settings(stored: Mapping[str, Any], plan: Plan, folder: Path) -> None:
    """Raises BadInput if the run in a folder was begun with other settings than the plan's."""
    wanted = json.loads(json.dumps(command_line.as_settings(plan.options, plan.config)))
    defaults = command_line.as_settings(Options(), type(plan.config)())
    # A run that is older than a setting had its default.
    stored = {**json.loads(json.dumps(defaults)), **stored}
    for name, value in stored.items():
        if name not in MAY_CHANGE and wanted.get(name) != value:
            raise BadInput(
                f"{command_line.flag(name)} {wanted.get(name)}: the run in {folder} was begun with "
                f"{value}; go on with its own settings, or start one in another folder"
            )


@contextlib.contextmanager
def _naming_flags(plan: Plan) -> Iterator[None]:
    """Turns what environment and agent refuse into what the user should type otherwise."""
    options = plan.options
    try:
        yield
    except ValueError as error:
        raise BadInput(f"--env {options.env} --agent {options.agent}: {error}") from None


def _make_environment(plan: Plan) -> "AnyEnvironment":
    with _naming_flags(plan):
        return envs.make(plan.options.env, **plan.options.env_params)


def _assemble(
    plan: Plan, env: "AnyEnvironment", config: Config, axis_name: str | None = None
) -> "Agent":
    """Builds gate and agent; the config may be the plan's, fitted to devices."""
    options = plan.options
    gate = None
    if options.gate is not None:
        if ":" in options.gate:
            gate = own.gate(options.gate)
        else:
            gate = agents.load(options.gate).gate(config)
    with _naming_flags(plan):
        agent = own.agent(options.agent).make(env, config, gate, axis_name)
    own.check(options.agent, agent, config)
    return agent


def make_agent(plan: Plan) -> "Agent":
    """Builds environment, gate and agent.

    Raises:
      BadInput: they do not fit together.
    """
    return _assemble(plan, _make_environment(plan), plan.config)


def _places(plan: Plan) -> dict[str, bool]:
    """Whether its environments live on the host, and whether its programs may be spread."""
    options = plan.options
    return {
        "on_host": envs.is_on_host(options.env),
        "spread": devices.can_spread(envs.is_on_mjx(options.env, **options.env_params)),
    }


def use_all_cores(plan: Plan, num_members: int) -> None:
    """Makes devices of the cores, for so many members of a plan side by side; before JAX is loaded.

    Raises:
      BadInput: they cannot be shared out among the processes that are to train them.
    """
    num_processes = plan.options.num_processes or 1
    devices.use_all_cores(plan.config, num_members, num_processes=num_processes, **_places(plan))


def make_spread_agent(plan: Plan, num_members: int) -> "tuple[Agent, devices.Layout]":
    """Builds the agent for so many members side by side on the devices there are, and its layout.

    Raises:
      BadInput: environment, gate and agent, or members and processes, do not fit together.
    """
    from rgpo_jax import networks

    layout = devices.Layout.choose(plan.config, num_members, **_places(plan))
    env = _make_environment(plan)
    with _naming_flags(plan):
        if env.max_episode_steps is None:
            raise ValueError("its episodes have no limit, and an evaluation needs whole ones")
        network = networks.make(env.observation_shape, env.action_space, plan.config)
    config, layout = devices.fit_to_caches(plan.config, network.num_weights, num_members, layout)
    return _assemble(plan, env, config, layout.axis_name), layout
