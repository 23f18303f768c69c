"""Reads the flags of an alignment run, and checks them, before JAX is loaded."""

import dataclasses
import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents import language as methods
from envs.language.rewards import BUILT_IN
from experiments.align.options import EXACT_WORLDS, TEXT_WORLDS, WORLDS, AlignOptions
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan.reading import KnownBefore, refuse_other_settings, with_defaults
from experiments.plan.run_plan import RunPlan
from experiments.record.headline import Curve, Headline, Unit
from rgpo_jax.language.config import Common, Config, Minibatched
from rgpo_jax.language.pair_config import DataConfig, OwnPairsConfig, PairConfig
from rgpo_jax.language.zeroth_config import ZerothConfig

PROG = "python -m experiments.align"

_UNIT = Unit("answers", "answer", "answers", "total_answers", "answers_per_second", False)
_TRAINING = Curve("sampled_reward", "answers it learns from", "reward (training)", "training")
HEADLINE = Headline(
    quantity="reward",
    axis="reward of an answer",
    steps="answers",
    score=Curve("reward", "expected reward", "reward", "evaluation"),
    sampled=None,
    training=_TRAINING,
    largest=("first_ratio_deviation",),
    unit=_UNIT,
    manner="",
    digits=3,
    results=("target_distance", "reward", "kl_ref"),
    broken="parameters, or all gradients of an update, became NaN or infinite",
    skipped="nonfinite_step_rate",
)

_OF_DATA = dataclasses.replace(
    HEADLINE,
    training=Curve(
        "margin", "implicit reward of chosen minus rejected", "margin (training)", "margin"
    ),
    largest=(),
    learning="margin",
)

# World -> settings in the place of the Config's own and of the method's: sizes of what is trained.
_EXACT = {
    "num_updates": 4000,
    "num_prompts": 32,
    "learning_rate": 1e-2,
    "max_grad_norm": 10.0,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    # One pass: at the second, PPO's clip moves where a method rests by about 0.01.
    "bandit": {**_EXACT, "num_prompts": 64, "num_epochs": 1, "kl_coefficient": 1.0},
    "tree": {**_EXACT, "kl_coefficient": 0.2},
    "tiny": {**_EXACT, "num_updates": 200, "learning_rate": 1e-4, "kl_coefficient": 0.5},
    "smollm2": {
        "num_updates": 30,
        "num_prompts": 8,
        "group_size": 4,
        "num_minibatches": 2,
    },
    "model": {"num_updates": 200, "num_prompts": 16, "group_size": 4, "microbatch_size": 4},
}


# Settings in the place of the world's, of methods whose gradient is mostly noise.
_ZEROTH = {"learning_rate": 0.1}
# The same of rounds with a full fit, where answers cost nothing.
_ROUNDS = {"num_prompts": 1024, "num_epochs": 100}
# Of what each method has beside them, its own settings are told.
_SHARED = (DataConfig, OwnPairsConfig, ZerothConfig, Config)


@dataclasses.dataclass(frozen=True)
class Plan(RunPlan):
    """An alignment run; `config` is its method's."""

    options: AlignOptions

    @property
    def method(self) -> str:
        """Its name, as a module's."""
        return self.options.method.replace("-", "_")

    @property
    def headline(self) -> Headline:
        if self.learns_from_data:
            return _OF_DATA
        return dataclasses.replace(HEADLINE, largest=()) if self.is_zeroth else HEADLINE

    @property
    def learns_from_data(self) -> bool:
        """Whether it learns from a data set of pairs."""
        return self.method in methods.FROM_DATA

    @property
    def is_zeroth(self) -> bool:
        """Whether it learns from who wins, and no policy is compared with what sampled."""
        return self.method in methods.FROM_WINS

    @property
    def label(self) -> str:
        """The method, with what distinguishes its forms where that is not the usual."""
        dual, kl = (getattr(self.config, name, None) for name in ("dual", "kl"))
        forms = [] if dual is None else [dual]
        if kl is not None and (self.method == "grpo" or kl != type(self.config)().kl):
            forms.append(kl)
        return "-".join([self.options.method, *forms])

    @property
    def name(self) -> str:
        return f"{self.options.world}-{self.label}"

    @property
    def title(self) -> str:
        what = f"{self.number_of_seeds} x {self.num_updates * self.batch_size:,} answers"
        return f"{self.label} on {self.options.world}: {what}"

    @property
    def curve_title(self) -> str:
        return f"{self.label} on {self.options.world}"

    @property
    def is_exact(self) -> bool:
        """Whether all answers of the world can be enumerated."""
        return self.options.world in EXACT_WORLDS

    def heading(self) -> dict[str, Any]:
        """With what its summary begins."""
        options = self.options
        form = {n: getattr(self.config, n) for n in ("dual", "kl") if hasattr(self.config, n)}
        return {
            "method": options.method,
            **form,
            "world": options.world,
            "seed": options.seed,
            "num_seeds": options.num_seeds,
        }

    def subject(self) -> dict[str, Any]:
        """What a report calls it."""
        total = self.num_updates * self.batch_size
        return {"agent": self.label, "env": self.options.world, "total": total}


def _config_class(method: str, where: str = "--method") -> Any:
    try:
        return methods.load(method).Config
    except ValueError as error:
        raise BadInput(f"{where} {method}: unknown method; {error}") from None


def settings_of_methods(names: Sequence[str] = methods.NAMES, where: str = "--method") -> set[str]:
    """The names of the settings that any of these methods has; BadInput for one that is none."""
    return {f.name for name in names for f in dataclasses.fields(_config_class(name, where))}


# World -> part that is trained -> step size: the fewer parameters, the larger.
_RATES = {
    "smollm2": {"full": 1e-5, "last_layers": 1e-4, "lora": 1e-3},
    "model": {"full": 1e-6, "last_layers": 1e-5, "lora": 1e-4},
}


def _own_settings(config_class: Any) -> dict[str, Any]:
    """In what a method's defaults differ from the common ones."""
    shared = next(base for base in _SHARED if issubclass(config_class, base))
    common, own = shared(), config_class()
    return {
        field.name: getattr(own, field.name)
        for field in dataclasses.fields(common)
        if getattr(own, field.name) != getattr(common, field.name)
    }


def _made_of(config_class: Any) -> set[str]:
    """The settings that make a method what it is: those that it alone has, and its defaults."""
    shared = next(base for base in _SHARED if issubclass(config_class, base))
    fields = {field.name for field in dataclasses.fields(config_class)}
    alone = fields - {field.name for field in dataclasses.fields(shared)}
    return alone | set(_own_settings(config_class))


def _defaults(config_class: Any, world: str, part: str, judged: bool = False) -> Common:
    """A method's defaults in a world: its own where they differ from the common ones.

    Args:
      config_class: of the method.
      world: its name.
      part: what is trained.
      judged: whether a judge of pairs says with which probability an answer is preferred.
    """
    own: Common = config_class()
    wanted = dict(DEFAULTS[world])
    if world in _RATES:
        wanted["learning_rate"] = _RATES[world].get(part, own.learning_rate)
    stays = set(_own_settings(config_class))
    if isinstance(own, ZerothConfig):
        wanted |= _ZEROTH
    if isinstance(own, OwnPairsConfig) and world in TEXT_WORLDS and not judged:
        wanted["labels"] = "reward"  # differences of such rewards are no logits
    if config_class is methods.load("kto").Config:
        wanted.pop("microbatch_size", None)  # it would estimate the KL
    if config_class is methods.load("on_policy_dpo").Config and world in ("bandit", "tree"):
        wanted, stays = wanted | _ROUNDS, stays - _ROUNDS.keys()
    if isinstance(own, PairConfig) and world in EXACT_WORLDS:
        stays.discard("kl_coefficient")  # it goes with the size of rewards
    names = {field.name for field in dataclasses.fields(own)} - stays
    return dataclasses.replace(own, **{k: x for k, x in wanted.items() if k in names})


def _with_whole_paths(options: AlignOptions) -> AlignOptions:
    """The options as they hold from another folder, too."""
    names = ("model", "prompts", "pairs", "reward", "gold")
    paths = {name: getattr(options, name) for name in names}
    found: dict[str, Any] = {
        name: str(Path(path).expanduser().resolve())
        for name, path in paths.items()
        if path is not None and path not in BUILT_IN and Path(path).expanduser().exists()
    }
    return dataclasses.replace(options, **found)


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
    chosen = functools.partial(known_before.choose, args)
    method, world = chosen("method", "rgpo"), chosen("world", "bandit")
    part = chosen("train", "last_layers")
    config_class = _config_class(method)
    if of_a_run or is_whole:  # not what its world has now
        from_file = with_defaults(from_file, config_class)
    stored_method = from_file.get("method", method)
    if isinstance(stored_method, str) and stored_method.replace("-", "_") != method.replace(
        "-", "_"
    ):
        # What makes a method what it is does not come from another's run.
        made_of = {name for m in methods.NAMES for name in _made_of(_config_class(m))}
        from_file = {name: x for name, x in from_file.items() if name not in made_of}
    if world not in WORLDS:
        raise BadInput(f"--world {world}: expected one of {', '.join(WORLDS)}")
    fields = (*dataclasses.fields(AlignOptions), *dataclasses.fields(config_class))
    known = [field.name for field in fields if field.name not in flags.NOT_IN_FILES]
    file_args = flags.as_arguments(from_file, source, known, settings_of_methods())
    what = "Align a language model, or a small one whose every answer is known."
    default = _defaults(config_class, world, part, chosen("preference", None) is not None)
    options, config = flags.read_pair(AlignOptions(), default, [*file_args, *args], prog, what)
    if isinstance(config, Minibatched):
        minibatch_size = config.num_samples // config.num_minibatches
        at_a_time = min(config.microbatch_size or minibatch_size, minibatch_size)
        if at_a_time % options.fsdp:
            raise BadInput(
                f"--fsdp {options.fsdp}: expected a divisor of the {at_a_time} answers that are "
                "differentiated at a time"
            )
    is_made = options.world in EXACT_WORLDS
    if isinstance(config, DataConfig) and not is_made and config.labels != "sampled":
        raise BadInput(f"--labels {config.labels}: goes with --world {' or '.join(EXACT_WORLDS)}")
    plan = Plan(_with_whole_paths(options), config)
    if stored:
        folder = Path(str(plan.options.out)).expanduser()
        refuse_other_settings(stored, plan.options, plan.config, folder)
    return plan


def command(settings: Mapping[str, Any]) -> str:
    """The command of a run: flags of what it is, and of those settings that are not the default.

    Args:
      settings: all of the run, as its `config.json` has them; one that is newer than the run had
        its default.
    """
    config_class = _config_class(settings["method"])
    whole = with_defaults(settings, AlignOptions, config_class)
    judged = whole["preference"] is not None
    default = _defaults(config_class, whole["world"], whole["train"], judged)
    usual = json.loads(json.dumps(flags.as_settings(AlignOptions(), default)))
    given = {
        name: value
        for name, value in whole.items()
        if name in ("method", "world", "seed") or name not in usual or usual[name] != value
    }
    return shlex.join([*PROG.split(), *flags.as_arguments(given, "settings", list(given), ())])
