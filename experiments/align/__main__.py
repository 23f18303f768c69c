"""Aligns a language model, or a small exact one: `python -m experiments.align --help`."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.align import building, page
from experiments.align.plan import PROG, Plan, read_plan
from experiments.cli import frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.record import loggers
from experiments.training import compiling, ending
from experiments.training.building import callback_of

if TYPE_CHECKING:
    from experiments.record.recorder import Recorder
    from experiments.training.programs import Programs
    from rgpo_jax.callback import Callback


def main(args: Sequence[str] | None = None) -> int:
    """Trains and writes results; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    from experiments.record.run_folder import choose_folder

    plan = read_plan(args)
    options = plan.options
    building.use_all_cores(plan, options.num_seeds)
    loggers.require(options.loggers)
    folder = choose_folder(options.out, plan.name, options.overwrite, options.resume)
    if ending.announce(plan, folder):
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
    callback: "Callback | None"


def _open(plan: Plan, folder: Path) -> _Opened:
    """Builds world and agent, and opens the record."""
    from experiments.record.recorder import Recorder

    options = plan.options
    try:
        compiling.keep_programs(options.compilation_cache)
        callback = callback_of(options)
        if not plan.is_exact:
            from experiments.align import text_building

            prepared = text_building.prepare(plan, folder)
            recorder = Recorder(folder, options.overwrite, options.resume, log_to=options.loggers)
            for line in (prepared.description, *prepared.text.notes):
                recorder.say(line)
            return _Opened(
                prepared.plan, recorder, prepared.make_programs, prepared.finish, callback
            )
        world = building.make_world(plan)
        agent = building.make_agent(plan, world)
        (target,) = building.targets_of([plan], world, [agent])
        plan = building.with_entries(plan, agent)
        recorder = Recorder(folder, options.overwrite, options.resume, log_to=options.loggers)
        recorder.say(building.describe_target(plan, target))
    except BadInput:
        if options.out is None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return _Opened(
        plan,
        recorder,
        lambda: building.make_programs([plan], world, agent, [target]),
        lambda: None,
        callback,
    )


def _train(opened: _Opened, folder: Path, interrupts: Interrupts) -> int:
    """Trains, from the start or from where the run was; returns the exit status."""
    from experiments.align.judge import RewardFailed
    from experiments.record.run_folder import CHECKPOINTS
    from experiments.training.loop import Broken, Training
    from experiments.training.subject import Cell

    plan, recorder = opened.plan, opened.recorder

    def train() -> None:
        run = Training(
            [Cell(plan, recorder)],
            opened.make_programs,
            folder / CHECKPOINTS,
            interrupts,
            recorder.advance_progress,
            opened.callback,
        )
        if plan.options.resume:
            run.resume()
        recorder.start_progress(plan.num_updates * plan.batch_size)
        try:
            run.run()
        except RewardFailed as error:
            recorder.say(f"error: {error}; {ending.go_on_with(PROG, folder, plan.settings())}")
            raise Broken from error
        opened.finish()

    return ending.status_of(train, recorder, PROG, folder, plan.settings())


if __name__ == "__main__":
    compiling.leave(main)
