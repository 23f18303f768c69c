"""The options of a run that are not an agent's: what to train, where, how often to evaluate."""

import dataclasses
import re
from typing import Annotated, Any

import tyro

import agents
import envs
from experiments.cli import flags
from experiments.plan import env_kwargs
from experiments.plan.run_options import RunOptions
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, NonNegative

_AGENT_HELP = (
    f"One of {', '.join(agents.NAMES)}; or an agent of your own, a module or an object in it with "
    "a Config and a make. The agent options below are those of the agent you name."
)
_ENV_HELP = (
    "Such as CartPole-v1, Breakout-MinAtar, brax/ant or playground/CheetahRun, which are compiled; "
    "or envpool/NAME or gymnasium/NAME, which live on the host; --list-envs [PREFIX] lists them. "
    "MODULE:NAME is your own, a class or a function that makes it; PREFIX/MODULE:NAME one that a "
    "library has once the module is imported. Settings that you do not give come from its family."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _What(Checked):
    """What to train."""

    agent: Annotated[str, tyro.conf.arg(metavar="NAME|MODULE[:NAME]", help=_AGENT_HELP)] = "rgpo"
    gate: Annotated[str | None, tyro.conf.arg(metavar="NAME|MODULE:FUNCTION")] = None
    """Another gate in the agent's update step: the name of a gate agent, or a function
    (log_ratio, advantage) -> g of your own."""
    env: Annotated[str, tyro.conf.arg(metavar="NAME", help=_ENV_HELP)] = "CartPole-v1"
    env_kwargs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Parameters of the environment, such as length=1.0, or max_episode_steps=200, which all have.
    """
    randomize: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=LOW..HIGH ...")] = ()
    """Real-valued parameters of a compiled environment that are drawn anew for every episode, such
    as length=0.25..1.0, while it trains and where it is evaluated (domain randomisation)."""
    backend: envs.BraxBackend | None = None
    """Physics of a brax/ environment; None: spring, the fastest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlOptions(RunOptions, _What):  # the fields of the last come first
    """What to train, and where the results go."""

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
    log_every: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Environment steps (of one seed) between two lines of metrics; None: a hundredth of all."""
    eval_every: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Environment steps (of one seed) between two evaluations; None: a tenth of all."""
    eval_episodes: Count = 32
    """Episodes of the last evaluation, per seed, once with the policy's mode and once with samples.
    Evaluations while it trains are of the mode alone."""
    eval_share: NonNegative = 0.33
    """Most steps that an evaluation may take while it trains, as a share of those trained on since
    the one before: of the divisors of eval_episodes it runs the most that fit, at least one."""

    log_film: bool = False
    """Play an episode of the first seed's policy at the end, keep it as episode.gif (.html for
    Brax), as experiments.play does, and show the GIF where metrics go. Where the environment cannot
    be drawn a line says so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_path("init_from", self.init_from)
        if self.backend is not None and self.env not in envs.BRAX:
            raise ConfigError("backend", f"{self.backend}: only brax/ environments have one")
        env_kwargs.ranges(self.randomize)
        # Their order means nothing.
        object.__setattr__(self, env_kwargs.FIELD, tuple(sorted(self.env_kwargs)))
        object.__setattr__(self, env_kwargs.DRAWN, tuple(sorted(self.randomize)))
        if "backend" in env_kwargs.parse(self.env_kwargs) and self.backend is not None:
            raise ConfigError("backend", f"{self.backend}: env_kwargs have one too")
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
        for field in ("callback", "log_film"):
            if getattr(self, field):
                raise ConfigError(field, f"{getattr(self, field)}: goes with one process")
        if self.out is None:
            raise ConfigError("coordinator", "needs a folder that all processes see: --out DIR")

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Parameters of the environment that are drawn for every episode."""
        return env_kwargs.ranges(self.randomize)

    @property
    def who(self) -> str:
        """The agent in words."""
        return self.agent if self.gate is None else f"{self.agent} (gate {self.gate})"

    @property
    def where(self) -> str:
        """The environment in words."""
        return env_kwargs.describe(self.env, self.backend, (*self.env_kwargs, *self.randomize))

    @property
    def env_params(self) -> dict[str, Any]:
        """Parameters of the environment that differ from its own defaults."""
        given = {} if self.backend is None else {"backend": self.backend}
        return given | env_kwargs.parse(self.env_kwargs)
