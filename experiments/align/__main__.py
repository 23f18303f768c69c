"""Aligns a language model, or a small exact one: `python -m experiments.align --help`."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.align import building, page
from experiments.align.plan import PROG, Plan, read_plan
from experiments.cli import flags
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.cli.terminal import Terminal
from experiments.record import loggers
from experiments.training import compiling

if TYPE_CHECKING:
    from experiments.record.recorder import Recorder
    from experiments.training.programs import Programs


def main(args: Sequence[str] | None = None) -> int:
    """Trains and writes results; returns the exit status."""
    with Interrupts() as interrupts:
        try:
            return _main(sys.argv[1:] if args is None else args, interrupts)
        except Interrupted as interrupted:
            return interrupted.exit_status


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    from experiments.record.run_folder import SWEEP, choose_folder, is_finished

    try:
        plan = read_plan(args)
        options = plan.options
        building.use_all_cores(plan, options.num_seeds)
        loggers.require(options.loggers)
        folder = choose_folder(options.out, plan.name, options.overwrite, options.resume)
    except BadInput as error:
        flags.refuse(error)
    finished = options.resume and is_finished(folder)
    if options.resume and not finished and (folder.parent / SWEEP).exists():
        # Its checkpoints are those of all cells that are trained with it.
        flags.refuse(f"--resume: {folder} belongs to a sweep; go on with the sweep")
    found = f": finished already, in {folder}" if finished else f" -> {folder}"
    Terminal(highlight=False, soft_wrap=True).print(f"{plan.title}{found}", markup=False)
    if finished:
        page.write_missing(folder, plan.curve_title)  # of a run that was killed at its very end
        return 0
    opened = _open(plan, folder)
    with opened.recorder:
        return _train(opened, folder, interrupts)


class _Opened(NamedTuple):
    """What a run needs to train: its programs, its record, and what is made of it at the end."""

    plan: Plan
    recorder: "Recorder"
    make_programs: "Callable[[], Programs]"
    finish: Callable[[], None]


def _open(plan: Plan, folder: Path) -> _Opened:
    """Builds world and agent, and opens the record."""
    from experiments.record.recorder import Recorder

    options = plan.options
    try:
        compiling.keep_programs(options.compilation_cache)
        if not plan.is_exact:
            from experiments.align import text_building

            prepared = text_building.prepare(plan, folder)
            recorder = Recorder(folder, options.overwrite, options.resume, log_to=options.loggers)
            recorder.say(prepared.describe())
            return _Opened(prepared.plan, recorder, prepared.make_programs, prepared.finish)
        world = building.make_world(plan)
        agent = building.make_agent(plan, world)
        (target,) = building.targets_of([plan], world, [agent])
        plan = building.with_entries(plan, agent)
        recorder = Recorder(folder, options.overwrite, options.resume, log_to=options.loggers)
        recorder.say(building.describe_target(plan, target))
    except BadInput as error:
        if options.out is None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        flags.refuse(error)
    return _Opened(
        plan,
        recorder,
        lambda: building.make_programs([plan], world, agent, [target]),
        lambda: None,
    )


def _train(opened: _Opened, folder: Path, interrupts: Interrupts) -> int:
    """Trains, from the start or from where the run was; returns the exit status."""
    from experiments.align import text_programs
    from experiments.record.run_folder import CHECKPOINTS
    from experiments.training.loop import Broken, Training
    from experiments.training.subject import Cell
    from rgpo_jax.checkpoint import CheckpointError, UnreadableCheckpoint

    plan, recorder = opened.plan, opened.recorder
    go_on = f"go on with: {PROG} --out {shlex.quote(str(folder))} --resume"
    try:
        run = Training(
            [Cell(plan, recorder)],
            opened.make_programs,
            folder / CHECKPOINTS,
            interrupts,
            recorder.advance_progress,
        )
        if plan.options.resume:
            run.resume()
        recorder.start_progress(plan.num_updates * plan.batch_size)
        run.run()
        opened.finish()
    except BadInput as error:
        flags.refuse(error)
    except Broken:
        return EXIT_BROKEN
    except text_programs.RewardFailed as error:
        recorder.say(f"error: {error}; {go_on}")
        return EXIT_BROKEN
    except Interrupted as interrupted:
        recorder.say(f"stopped; {go_on}")
        return interrupted.exit_status
    except UnreadableCheckpoint as error:
        flags.refuse(f"--resume: {error}; start in another folder, or here again with --overwrite")
    except (CheckpointError, OSError) as error:
        with contextlib.suppress(OSError):
            recorder.say(f"error: {error}; what was kept before is whole; {go_on}")
        return EXIT_NOT_KEPT
    return 0


if __name__ == "__main__":
    compiling.leave(main)
