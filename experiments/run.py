"""Trains one agent on one environment over several seeds: `python -m experiments.run --help`."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import envs
from experiments.cli import flags, frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.plan.reading import PROG, Plan, read_plan
from experiments.record import loggers
from experiments.training import building, compiling, ending

if TYPE_CHECKING:
    from experiments.record.recorder import Recorder
    from experiments.training.devices import Layout
    from rgpo_jax.agent import Agent
    from rgpo_jax.callback import Callback
    from rgpo_jax.learner import LearnerState


LIST_ENVS = "--list-envs"


def main(args: Sequence[str] | None = None) -> int:
    """Trains and writes results; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    prepared = _prepare(args)
    if prepared is None:
        return 0
    opened = _open(prepared)
    with opened.recorder:
        return _train(prepared, opened, interrupts)


class _Prepared(NamedTuple):
    """A run whose folder is chosen; `speaks` is whether this process does so for all that train."""

    plan: Plan
    folder: Path
    speaks: bool


class _Opened(NamedTuple):
    """What a run needs to train: agent, parameters to start from, record and callback if any."""

    agent: "Agent"
    layout: "Layout"
    start: "LearnerState | None"
    recorder: "Recorder"
    callback: "Callback | None"


def _prepare(args: Sequence[str]) -> _Prepared | None:
    """Reads flags, chooses the folder and says what will run; None where there is nothing to do."""
    if any(arg.partition("=")[0] == LIST_ENVS for arg in args):
        _list_environments(args)
        return None
    plan = read_plan(args)
    options = plan.options
    building.use_all_cores(plan, options.num_seeds)
    loggers.require(options.loggers)
    folder, speaks = _choose_folder(plan)
    finished = ending.announce(plan, folder, speaks)
    return None if finished else _Prepared(plan, folder, speaks)


def _open(prepared: _Prepared) -> _Opened:
    """Builds the agent and opens the record. Loads JAX: two seconds that a typing mistake saves."""
    from experiments.record.recorder import NullRecorder, Recorder
    from experiments.record.run_folder import CHECKPOINTS
    from experiments.training import trained
    from rgpo_jax import processes
    from rgpo_jax.checkpoint import Checkpoints

    plan, folder, speaks = prepared
    options = plan.options
    try:
        compiling.keep_programs(options.compilation_cache)
        agent, layout = building.make_spread_agent(plan, options.num_seeds)
        start = None
        begun = options.resume and Checkpoints(folder / CHECKPOINTS).begun()
        if options.init_from is not None and not begun:
            start = trained.load_start(options, agent)
        callback = building.callback_of(options)
        with processes.together():
            if speaks:
                recorder = Recorder(
                    folder, options.overwrite, options.resume, log_to=options.loggers
                )
        with processes.together():
            if not speaks:
                recorder = NullRecorder(folder)
    except (BadInput, processes.ProcessFailed) as error:
        if options.out is None:
            _remove_empty(folder)
        raise BadInput(str(error)) from None
    return _Opened(agent, layout, start, recorder, callback)


def _train(prepared: _Prepared, opened: _Opened, interrupts: Interrupts) -> int:
    """Trains, from the start or from where the run was; returns the exit status."""
    from experiments.record.run_folder import CHECKPOINTS
    from experiments.training.loop import Training
    from experiments.training.subject import Cell

    plan, folder, _ = prepared
    agent, layout, start, recorder, callback = opened

    def train() -> None:
        cells = [Cell(building.with_gate(plan, agent), recorder)]
        make_programs = functools.partial(building.make_programs, agent, layout, [plan])
        show = recorder.advance_progress
        run = Training(cells, make_programs, folder / CHECKPOINTS, interrupts, show, callback)
        if start is not None:
            run.start_from(start)
        if plan.options.resume:
            run.resume()
        recorder.start_progress(plan.num_updates * plan.batch_size)
        run.run()
        if plan.options.log_film:
            _log_film(plan, folder, recorder)

    return ending.status_of(train, recorder, PROG, folder, prepared.plan.settings())


def _list_environments(args: Sequence[str]) -> None:
    """Prints the names that are known, or those that begin so; raises BadInput for none."""
    prefix = flags.peek(LIST_ENVS, args) or ""
    try:
        known = envs.names("" if prefix.startswith("-") else prefix)
    except ValueError as error:
        raise BadInput(f"{LIST_ENVS} {error}") from None
    print("\n".join(known))


def _log_film(plan: Plan, folder: Path, recorder: "Recorder") -> None:
    """Plays an episode of the policy, and shows it; a run that cannot be drawn is no less whole."""
    from experiments.play import filming
    from experiments.play.options import Options
    from experiments.training import trained

    try:
        loaded = trained.load(str(folder), "--run", trust_code=True)  # it has just run
        path, outcome = filming.make_film(Options(run=str(folder), overwrite=True), loaded)
        recorder.log_film(plan.num_updates * plan.batch_size, path)
    except Exception as error:  # whatever a library for drawing raises, where there is no screen
        line = (str(error).splitlines() or [""])[0]
        recorder.say(f"warning: --log-film: {type(error).__name__}: {line}")
    else:
        recorder.say(f"film: {outcome} -> {path}")


def _remove_empty(folder: Path) -> None:
    """Removes a folder that a run would have filled, and its parent, if nothing is in them."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _choose_folder(plan: Plan) -> tuple[Path, bool]:
    """The folder of the run, and whether this process, of those that train it, speaks for all.

    Joins them, if there are several.

    Raises:
      BadInput: the folder cannot be used, or the processes do not come together.
    """
    from experiments.record.run_folder import choose_folder

    options = plan.options
    choose = functools.partial(
        choose_folder, options.out, plan.name, options.overwrite, options.resume
    )
    if options.coordinator is None:
        return choose(), True
    from rgpo_jax import processes

    address = None if options.coordinator == "auto" else options.coordinator
    try:
        processes.join(address, options.num_processes, options.process_id)
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"--coordinator {options.coordinator}: {error}") from None
    try:
        with processes.together():
            if processes.is_first():
                choose()
    except processes.ProcessFailed as error:
        raise BadInput(str(error)) from None
    assert options.out is not None
    return Path(options.out).expanduser(), processes.is_first()


if __name__ == "__main__":
    compiling.leave(main)
