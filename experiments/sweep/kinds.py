"""The programs whose runs a sweep makes, and in what they differ for it. Loads no JAX."""

import abc
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from agents import families
from experiments.align import plan as align_plan
from experiments.align.options import EXACT_WORLDS, TEXT_WORLDS, AlignOptions
from experiments.cli.flags import BadInput
from experiments.plan import reading
from experiments.plan.options import ControlOptions
from experiments.record.headline import CONTROL, Headline
from experiments.training.subject import Planned
from rgpo_jax.config import Config as ControlConfig
from rgpo_jax.language.config import Config as LanguageConfig

if TYPE_CHECKING:
    from experiments.training.programs import Programs


@dataclasses.dataclass(frozen=True)
class Axis:
    """Names that a sweep goes through.

    Attributes:
      field: of them, among the sweep's options and in its file.
      setting: of one of them, in a run.
      default: where none is given.
    """

    field: str
    setting: str
    default: str


class Prepared(NamedTuple):
    """What is needed to train plans side by side.

    Attributes:
      plans: with what is known of them by now.
      make_programs: traces what trains the members of all.
      load_start: reads learners with which each begins; None: each begins anew.
      remarks: a line on each, for its log; empty: there is nothing to say.
    """

    plans: list[Planned]
    make_programs: "Callable[[], Programs]"
    load_start: Callable[[], Any] | None = None
    remarks: Sequence[str] = ()


class Kind(abc.ABC):
    """A program whose runs are a sweep's cells.

    Attributes:
      program: its name below `experiments`.
      subjects: what is trained; the settings that there are depend on it.
      places: where.
      options: class of a run's options.
      config: class of the settings that all subjects share.
      choosing: options on which it depends what Config a run has.
      headline: of all its runs.
    """

    program: ClassVar[str]
    subjects: ClassVar[Axis]
    places: ClassVar[Axis]
    options: ClassVar[type]
    config: ClassVar[type]
    choosing: ClassVar[tuple[str, ...]]
    headline: ClassVar[Headline]

    @property
    def axes(self) -> tuple[str, str]:
        """Fields of the two."""
        return self.subjects.field, self.places.field

    @abc.abstractmethod
    def settings_of(self, subjects: Sequence[str], where: str) -> set[str]:
        """The settings that any of these has; BadInput, naming where, for one that is none."""

    @abc.abstractmethod
    def read_plan(
        self,
        args: Sequence[str],
        prog: str | None = None,
        given: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> Planned:
        """See `plan.reading.read_plan`; None: the kind's own program."""

    @abc.abstractmethod
    def use_all_cores(self, plan: Any, num_members: int) -> None:
        """Makes devices of the cores, for so many members of a plan; before JAX is loaded."""

    @abc.abstractmethod
    def is_unsure(self, plan: Any) -> bool:
        """Whether a part of a plan is known to be right only once `check` has made it."""

    @abc.abstractmethod
    def check(self, plans: Sequence[Any]) -> None:
        """Makes that of all plans; BadInput for the first that is refused. Loads JAX."""

    @abc.abstractmethod
    def prepare(self, plans: Sequence[Any]) -> Prepared:
        """Builds what trains plans that differ in seeds and traced numbers alone. Loads JAX.

        Raises:
          BadInput: parts of a plan do not fit together.
        """


class _Control(Kind):
    program = "run"
    subjects = Axis("agents", "agent", "rgpo")
    places = Axis("envs", "env", "CartPole-v1")
    options = ControlOptions
    config = ControlConfig
    choosing = ("agent", "gate")
    headline = CONTROL

    def settings_of(self, subjects: Sequence[str], where: str) -> set[str]:
        return reading.settings_of_agents(subjects, where)

    def read_plan(
        self,
        args: Sequence[str],
        prog: str | None = None,
        given: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> Planned:
        return reading.read_plan(args, prog or reading.PROG, given, source)

    def use_all_cores(self, plan: Any, num_members: int) -> None:
        from experiments.training import building

        building.use_all_cores(plan, num_members)

    def is_unsure(self, plan: Any) -> bool:
        options, config = plan.options, plan.config
        names = (options.env, options.agent, options.gate or "", config.network)
        usual = families.defaults(type(config), options.env, options.gate)
        return (
            any(":" in name for name in names)
            or bool(options.env_kwargs or options.randomize)
            or (config.network, config.policy) != (usual.network, usual.policy)
        )

    def check(self, plans: Sequence[Any]) -> None:
        from experiments.training import building

        for plan in plans:
            building.make_spread_agent(plan, len(plan.seeds))

    def prepare(self, plans: Sequence[Any]) -> Prepared:
        from experiments.training import building

        agent, layout = building.make_spread_agent(plans[0], sum(len(p.seeds) for p in plans))
        options = plans[0].options

        def load_start() -> Any:
            from experiments.training import trained

            return trained.load_start(options, agent)

        return Prepared(
            [building.with_gate(plan, agent) for plan in plans],
            lambda: building.make_programs(agent, layout, plans),
            None if options.init_from is None else load_start,
        )


class _Alignment(Kind):
    program = "align"
    subjects = Axis("methods", "method", "rgpo")
    places = Axis("worlds", "world", "bandit")
    options = AlignOptions
    config = LanguageConfig
    choosing = ("method",)
    headline = align_plan.HEADLINE

    def settings_of(self, subjects: Sequence[str], where: str) -> set[str]:
        return align_plan.settings_of_methods(subjects, where)

    def read_plan(
        self,
        args: Sequence[str],
        prog: str | None = None,
        given: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> Planned:
        world = (given or {}).get("world", self.places.default)
        known = f"{', '.join(EXACT_WORLDS[:-1])} or {EXACT_WORLDS[-1]}"
        if world in TEXT_WORLDS:
            raise BadInput(
                f"--worlds {world}: expected {known}; a world of texts holds one model a process, "
                f"which {align_plan.PROG} trains"
            )
        if world not in EXACT_WORLDS:
            nearest = difflib.get_close_matches(str(world), EXACT_WORLDS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise BadInput(f"--worlds {world}: expected {known}{hint}")
        return align_plan.read_plan(args, prog or align_plan.PROG, given, source)

    def use_all_cores(self, plan: Any, num_members: int) -> None:
        from experiments.align import building

        building.use_all_cores(plan, num_members)

    def is_unsure(self, plan: Any) -> bool:
        return False

    def check(self, plans: Sequence[Any]) -> None:
        """Exact worlds have no parts but those of the suite."""

    def prepare(self, plans: Sequence[Any]) -> Prepared:
        from experiments.align import building

        world = building.make_world(plans[0])
        # Each has its own, whose gate has its numbers: where it settles depends on them.
        agents = [building.make_agent(plan, world) for plan in plans]
        targets = building.targets_of(plans, world, agents)
        return Prepared(
            [building.with_entries(p, agent) for p, agent in zip(plans, agents, strict=True)],
            lambda: building.make_programs(plans, world, agents[0], targets),
            remarks=[building.describe_target(*pair) for pair in zip(plans, targets, strict=True)],
        )


RUN, ALIGN = _Control(), _Alignment()
KINDS: dict[str, Kind] = {kind.program: kind for kind in (RUN, ALIGN)}
