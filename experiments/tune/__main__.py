"""Searches settings of an agent on an environment: `python -m experiments.tune --help`."""

import contextlib
import dataclasses
import datetime
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.plan.reading import Plan, refuse_other_settings
from experiments.record import loggers
from experiments.record.files import read_plain, to_json, write_atomically
from experiments.record.headline import CONTROL
from experiments.record.run_folder import CONFIG, LOG, METRICS, SWEEP, hold, refusing
from experiments.record.screen import Screen, duration
from experiments.training import building, compiling
from experiments.tune import space as spaces
from experiments.tune.space import Space
from rgpo_jax.config import Checked
from rgpo_jax.importing import install_hint
from rgpo_jax.ranges import Count, CountOrZero

if TYPE_CHECKING:
    from experiments.tune.study import Trial
    from experiments.tune.trials import Ended, PlannedTrial

PROG = "python -m experiments.tune"
SEARCH, TUNE_LOG, TRIALS, PROGRAMS = "tune.json", "tune.log", "trials", "programs"
FIRST_SEED = 1000  # of a search; those below are for results that are reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Search settings of one agent on one environment, by Optuna's TPE.

    --agent, --env, --num-seeds, --total-steps and all other flags of `experiments.run` hold for
    all trials. The same command again goes on where it was stopped, and with more --trials adds
    to them. The best settings are in DIR/best.json, which `experiments.run --config` reads.
    """

    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=KIND:VALUES ...")] = ()
    """Settings and their ranges: learning_rate=log_uniform:1e-4,1e-2 sharpness=uniform:1,16
    num_epochs=choice:2,4,8."""
    file: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """More of them, YAML or JSON, as in a sweep's file: learning_rate: {log_uniform: [1e-4, 1e-2]};
    a list is a choice."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the search; None: a new one under tunes/."""
    trials: Count = 40
    """How many choices of settings are tried, with those that DIR has."""
    parallel: Count = 1
    """Trials that are asked for at once. Those that differ in real numbers alone are trained side
    by side in one program, which stops early only where all of them may."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """What stops trials early: their evaluations are below the median of earlier trials', or by
    Hyperband's brackets."""
    search_seed: CountOrZero = 0
    """Seed of the search itself."""
    any_seeds: bool = False
    """Let trials have seeds below 1000, with which results are reported; the first seed is 1000
    unless --seed says otherwise."""
    trust_code: bool = False
    """Import code that is not of the suite where the settings of a --config file name it."""
    compilation_cache: flags.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_paths(self, "out", "compilation_cache")


def main(args: Sequence[str] | None = None) -> int:
    """Searches, or goes on with a search; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    options, others = flags.read_some(Options, Options(), args, PROG)
    shared = spaces.share(others, FIRST_SEED, options.trust_code)
    space = spaces.read(options.search, options.file, shared, PROG)
    plan = space.plan({}, PROG)
    _refuse_reported_seeds(plan, options)
    loggers.require(plan.options.loggers)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = Path(options.out or f"tunes/{stamp}").expanduser()
    entry = _entry(options, space, plan)
    _refuse_other_search(out, entry)
    building.use_all_cores(plan, options.parallel * len(plan.seeds))
    _require_optuna()
    compiling.keep_programs(options.compilation_cache)
    # What its parts refuse is told before anything is written.
    building.make_spread_agent(plan, options.parallel * len(plan.seeds))
    with refusing(out):
        held = hold(out)
    again = shlex.join([*PROG.split(), *args])
    if options.out is None:
        again += f" --out {shlex.quote(str(out))}"
    from rgpo_jax.checkpoint import CheckpointError  # loads JAX: what was typed is checked by now

    with held:
        search = _Search(options, space, plan, out, interrupts)
        try:
            write_atomically(search.out / SEARCH, to_json(entry, indent=2))
            return search.run()
        except Interrupted:
            search.screen.say(f"stopped; go on with: {again}")
            raise
        except (CheckpointError, OSError) as error:
            print(f"error: {error}; go on with: {again}", file=sys.stderr)
            return EXIT_NOT_KEPT


def _refuse_reported_seeds(plan: Plan, options: Options) -> None:
    first = plan.seeds[0]
    if first < FIRST_SEED and not options.any_seeds:
        raise BadInput(
            f"--seed {first}: expected a seed of at least {FIRST_SEED}, as seeds that choose "
            "settings flatter them and those below are for results; or --any-seeds"
        )


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise BadInput(
            f"optuna is not installed; a search needs the extra: {install_hint('tune')}"
        ) from None


def _entry(options: Options, space: Space, plan: Plan) -> dict[str, Any]:
    """By what a search is the same: all but how many trials, and how many at once."""
    settings = {name: x for name, x in plan.settings().items() if name not in space.ranges}
    entry = {
        "search": space.entry(),
        "pruner": options.pruner,
        "search_seed": options.search_seed,
        "settings": settings,
    }
    read: dict[str, Any] = json.loads(to_json(entry))
    return read


def _refuse_other_search(out: Path, entry: dict[str, Any]) -> None:
    """Raises BadInput if a folder holds another search, or something else."""
    with refusing(out):
        for name in (CONFIG, METRICS, LOG, SWEEP):
            if (out / name).exists():
                raise BadInput(f"--out {out}: holds {name}, and no search; choose another folder")
        if not (out / SEARCH).exists() and not (out / SEARCH).is_symlink():
            return
        try:
            stored = json.loads(read_plain(out / SEARCH))
            renamed = {k: flags.with_new_names(stored[k]) for k in ("search", "settings")}
            known = {**stored, **renamed}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"--out {out}: {SEARCH} is damaged: {error!r}") from None
    for name in ("search", "pruner", "search_seed"):
        if known.get(name) != entry[name]:
            raise BadInput(
                f"--out {out}: its search was begun with {name} = {json.dumps(known.get(name))}; "
                "go on with that, or choose another folder"
            )
    for name, value in entry["settings"].items():
        if known["settings"].get(name, value) != value:
            raise BadInput(
                f"{flags.flag(name)} {value}: the search in {out} was begun with "
                f"{known['settings'][name]}; go on with that, or choose another folder"
            )


class _Search:
    """A search that has its folder."""

    def __init__(
        self, options: Options, space: Space, plan: Plan, out: Path, interrupts: Interrupts
    ):
        from experiments.training.every import Every
        from experiments.tune.study import Study
        from experiments.tune.trials import Trainer

        every = Every.make(plan.eval_every, 10, plan)
        evaluations = max(1, every.points * plan.num_updates // every.updates)
        self.out, self.screen = out, Screen(out / TUNE_LOG)
        self._options, self._space, self._plan = options, space, plan
        self._interrupts = interrupts
        self._study: Study = Study(
            out, space.ranges, options.pruner, evaluations, options.search_seed
        )
        self._trainer = Trainer(self._study, interrupts)
        self._begun, self._ended = time.monotonic(), 0  # trials of this call

    def run(self) -> int:
        """Trains trials until there are enough; returns the exit status."""
        self.screen.say(
            f"{self._plan.title} a trial; {self._options.trials} trials -> {self.out}"
            + (f", {done} done already" if (done := self._done()) else "")
        )
        while True:
            with self._whole():
                batch = self._next()
            if not batch:
                break
            from experiments.tune.trials import groups

            for group in groups(batch):
                self._train(group)
        with self._whole():
            self._write()
        best = self._study.best()
        if best is None:
            self.screen.say("no trial was finished: nothing was found")
            return EXIT_BROKEN
        from experiments.tune.page import BEST, show

        config = shlex.quote(str(self.out / BEST))
        self.screen.say(
            f"best of {self._done()}: {show(best.score)} (trial {best.number}); with other seeds: "
            f"python -m experiments.run --config {config} --num-seeds 10"
        )
        return 0

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Inside, what is written is written as a whole; a signal is raised after it."""
        with self._interrupts.deferred():
            yield
        if self._interrupts.pending:
            raise Interrupted(self._interrupts.pending)

    def _done(self) -> int:
        return sum(trial.state is not None for trial in self._study.trials())

    def _next(self) -> "list[PlannedTrial]":
        """What goes on, else as many new trials as are wanted at once; those refused are told."""
        while True:
            trials = [trial for trial in self._study.trials() if trial.state is None]
            wanted = self._options.trials - self._done()
            if not trials and wanted > 0:
                trials = self._study.ask(min(wanted, self._options.parallel))
            if not trials:
                return []
            planned = [found for trial in trials if (found := self._plan_of(trial)) is not None]
            if planned:
                return planned

    def _plan_of(self, trial: "Trial") -> "PlannedTrial | None":
        from experiments.tune.study import FAILED
        from experiments.tune.trials import PlannedTrial

        if len(trial.chosen) < len(self._space.ranges):  # it was killed while it was asked for
            self._study.tell(trial.number, FAILED)
            return None
        try:
            plan = self._space.plan(trial.chosen, PROG)
        except BadInput as error:  # each value is in its range, but they do not go together
            self._study.tell(trial.number, FAILED)
            self.screen.say(f"trial {trial.number} fails: {error}")
            return None
        folder = self.out / TRIALS / str(trial.number)
        if (folder / CONFIG).exists():  # it goes on; or the study's file was lost
            stored = flags.settings_from_file(str(folder / CONFIG), read_plain)
            refuse_other_settings(stored, plan.options, plan.config, folder)
        return PlannedTrial(trial.number, plan, folder)

    def _train(self, group: "list[PlannedTrial]") -> None:
        from experiments.tune.trials import checkpoints_of

        checkpoints = checkpoints_of(group, self.out / PROGRAMS)
        numbers = ", ".join(str(trial.number) for trial in group)
        best = self._study.best()
        status = "" if best is None else f", best {best.score:.{CONTROL.digits}f}"
        total = self._plan.num_updates * self._plan.batch_size
        with self.screen.bar(total, CONTROL.unit) as bar:

            def show(steps: int, rate: float, word: str) -> None:
                many = self._options.trials
                bar(steps, rate, f"trial {numbers} of {many}: {word}{status}{self._left()}")

            ended = self._trainer.train(group, checkpoints, show)
        with self._whole():
            for one, trial in zip(ended, group, strict=True):
                self._study.tell(one.number, one.state, one.score)
                self._ended += 1
                self._say(one, trial)
            if len(group) > 1:
                shutil.rmtree(checkpoints.parent, ignore_errors=True)
            self._write()

    def _say(self, ended: "Ended", trial: "PlannedTrial") -> None:
        from experiments.tune.page import show

        chosen = self._study.trials()[ended.number].chosen
        words = " ".join(f"{name}={value}" for name, value in chosen.items())
        best = self._study.best()
        so_far = "" if best is None else f"; best {show(best.score)} (trial {best.number})"
        self.screen.say(
            f"[{self._done()}/{self._options.trials}] trial {ended.number} {ended.state}: "
            f"{show(ended.score)}  {words}{so_far}{self._left()}"
        )

    def _left(self) -> str:
        """How long the rest takes, if it is as the trials of this call."""
        left = self._options.trials - self._done()
        if not self._ended or left <= 0:
            return ""
        each = (time.monotonic() - self._begun) / self._ended
        return f"; about {duration(each * left)} left"

    def _write(self) -> None:
        from experiments.tune import page

        best = self._study.best()
        found = None if best is None else (best, self._space.plan(best.chosen, PROG))
        page.write(self.out, self._study.trials(), found, self._space.entry())


if __name__ == "__main__":
    compiling.leave(main)
