"""Trains one agent on one environment over several seeds: `python -m experiments.run --help`."""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import agents
import envs
import rgpo_jax
from experiments import command_line, devices, settings
from experiments.command_line import BadInput
from rgpo_jax.config import Checked, Config, ConfigError
from rgpo_jax.ranges import Count, CountOrZero

if TYPE_CHECKING:
    from rgpo_jax.agent import Agent

PROG = "python -m experiments.run"
EXIT_BROKEN = 3
EXIT_INTERRUPTED = 130


_AGENT_HELP = (
    f"One of {', '.join(agents.NAMES)}. The agent options below are those of the agent you name."
)
_ENV_HELP = (
    f"One of {envs.listing()}; or envpool/NAME or gymnasium/NAME, which live on the host. "
    "Settings that you do not give come from its family."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What to train, and where the results go."""

    agent: Annotated[str, tyro.conf.arg(metavar="NAME", help=_AGENT_HELP)] = "rgpo"
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
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Settings from a JSON file, such as an earlier run's config.json; flags override them."""
    log_every: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Environment steps (of one seed) between two lines of metrics; None: a hundredth of all."""
    eval_every: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Environment steps (of one seed) between two evaluations; None: a tenth of all."""
    eval_episodes: Count = 32
    """Episodes of an evaluation, per seed, once with the policy's mode and once with samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.num_seeds > 2**32:
            raise ConfigError("seed", f"{self.seed}: expected seeds below 2^32")
        if self.out == "":
            raise ConfigError("out", "'': expected a folder")
        if self.backend is not None and self.env not in envs.BRAX:
            raise ConfigError("backend", f"{self.backend}: only brax/ environments have one")

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
    try:
        agent_module = agents.load(agent)
    except ValueError as error:
        raise BadInput(f"--agent {agent}: unknown agent; {error}") from None
    if gate is None:
        return agent_module.Config
    # The flags of a gate agent are its gate's: another gate brings others.
    rest = Config if agent.replace("-", "_") in agents.GATE_AGENTS else agent_module.Config
    if ":" in gate:
        _find_module(gate)
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


def _find_module(gate: str) -> None:
    """Looks for the module of MODULE:FUNCTION, without running it."""
    name = gate.partition(":")[0]
    with _current_folder_importable():
        try:
            found = importlib.util.find_spec(name)
        except Exception:  # a parent package that does not import
            found = None
    if found is None:
        raise BadInput(f"--gate {gate}: no module named {name!r}")


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Puts the current folder on the path, where `python -m` has it but other callers may not."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def read_plan(args: Sequence[str]) -> Plan:
    """Reads flags and config file. Loads no JAX.

    Raises:
      BadInput: anything that the user should type otherwise.
    """
    file = command_line.peek("--config", args)
    from_file = command_line.settings_from_file(file) if file is not None else {}

    def chosen(name: str, default: Any) -> Any:
        value = command_line.peek(f"--{name}", args)
        if value is None:
            value = from_file.get(name, default)
        if not isinstance(value, str) and not (value is None and default is None):
            raise BadInput(f"--config {file}: {name} = {value}: expected a name")
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
    elsewhere = {
        f.name for name in agents.NAMES for f in dataclasses.fields(agents.load(name).Config)
    }
    file_args = command_line.as_arguments(from_file, str(file), known, elsewhere)
    flags = dataclasses.make_dataclass(
        "Flags",
        [
            ("run", Annotated[Options, tyro.conf.OmitArgPrefixes]),
            ("agent", Annotated[config_class, tyro.conf.OmitArgPrefixes]),
        ],
        frozen=True,
    )
    flags.__doc__ = "Train one agent on one environment over several seeds."
    default = flags(Options(), settings.defaults(config_class, env))
    parsed: Any = command_line.read(flags, default, [*file_args, *args], PROG)
    return Plan(parsed.run, parsed.agent)


def import_gate(name: str) -> Any:
    """Imports MODULE:FUNCTION and checks that it is a gate.

    Raises:
      BadInput: it does not import, or is no gate.
    """
    module_name, _, attribute = name.partition(":")
    with _current_folder_importable():
        try:
            gate = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:
            raise BadInput(f"--gate {name}: {type(error).__name__}: {error}") from None
    try:
        return rgpo_jax.gates.check(gate)
    except ValueError as error:
        raise BadInput(f"--gate {name}: {error}") from None


def make_agent(plan: Plan, config: Config, axis_name: str | None = None) -> "Agent":
    """Builds environment, gate and agent; the config may be the plan's, fitted to devices.

    Raises:
      BadInput: they do not fit together.
    """
    options = plan.options
    module = agents.load(options.agent)
    gate = None
    if options.gate is not None:
        if ":" in options.gate:
            gate = import_gate(options.gate)
        else:
            gate = agents.load(options.gate).gate(config)
    try:
        env = envs.make(options.env, **options.env_params)
        return module.make(env, config, gate, axis_name)
    except ValueError as error:
        raise BadInput(f"--env {options.env} --agent {options.agent}: {error}") from None


def main(args: Sequence[str] | None = None) -> int:
    """Trains and writes results; returns the exit status."""
    started = time.perf_counter()
    try:
        plan = read_plan(sys.argv[1:] if args is None else args)
        from experiments import results

        folder = results.choose_folder(plan.options.out, plan.options.overwrite, plan.name)
    except BadInput as error:
        command_line.refuse(error)
    print(f"{plan.title} -> {folder}", flush=True)

    num_seeds, on_host = plan.options.num_seeds, envs.is_on_host(plan.options.env)
    spread = devices.can_spread(envs.is_on_mjx(plan.options.env, **plan.options.env_params))
    devices.use_all_cores(plan.config, num_seeds, on_host, spread)
    from experiments import training  # loads JAX: two seconds that a typing mistake need not wait

    try:
        layout = devices.Layout.choose(plan.config, num_seeds, on_host, spread)
        config = devices.fit_to_caches(plan.config, num_seeds, layout)
        agent = make_agent(plan, config, layout.axis_name)
        recorder = results.Recorder(folder, plan.options.overwrite)
    except BadInput as error:
        command_line.refuse(error)
    with recorder:
        try:
            return training.train(plan, agent, layout, recorder, started)
        except training.Broken as error:
            recorder.say(f"error: {error}")
            return EXIT_BROKEN
        except KeyboardInterrupt:  # also before the first result
            recorder.say(f"interrupted; what was measured so far is in {folder}")
            return EXIT_INTERRUPTED


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before there was anything to keep
        sys.exit(EXIT_INTERRUPTED)
