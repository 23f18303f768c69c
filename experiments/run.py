"""Trains one agent on one environment over several seeds: `python -m experiments.run --help`."""

import shlex
import sys
from collections.abc import Sequence

import envs
from experiments import command_line, devices, plan
from experiments.command_line import BadInput
from experiments.interrupts import Interrupted, Interrupts

EXIT_BROKEN = 3
EXIT_NOT_KEPT = 4  # a full disk, or one that fails


def main(args: Sequence[str] | None = None) -> int:
    """Trains and writes results; returns the exit status."""
    with Interrupts() as interrupts:
        try:
            return _main(sys.argv[1:] if args is None else args, interrupts)
        except Interrupted as interrupted:
            return interrupted.exit_status


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    try:
        wanted = plan.read_plan(args)
        options = wanted.options
        from experiments import results

        folder = results.choose_folder(options.out, wanted.name, options.overwrite, options.resume)
    except BadInput as error:
        command_line.refuse(error)
    if options.resume and results.is_finished(folder):
        print(f"{wanted.title}: finished already, in {folder}")
        return 0
    print(f"{wanted.title} -> {folder}", flush=True)

    num_seeds, on_host = options.num_seeds, envs.is_on_host(options.env)
    devices.use_all_cores(wanted.config, num_seeds, on_host)
    # Loads JAX: two seconds that a typing mistake need not wait.
    from experiments import trained, training
    from rgpo_jax.checkpoint import CheckpointError

    try:
        layout = devices.Layout.choose(wanted.config, num_seeds, on_host)
        config = devices.fit_to_caches(wanted.config, num_seeds, layout)
        agent = plan.make_agent(wanted, config, layout.axis_name)
        start = None
        if options.init_from is not None and not (folder / results.CHECKPOINTS).exists():
            start = trained.load_start(options.init_from, agent)
        recorder = results.Recorder(folder, options.overwrite, options.resume)
    except BadInput as error:
        command_line.refuse(error)
    with recorder:
        go_on = f"go on with: {plan.PROG} --out {shlex.quote(str(folder))} --resume"
        try:
            run = training.Training(
                [training.Cell(wanted, recorder)],
                agent,
                layout,
                folder / results.CHECKPOINTS,
                recorder.advance_progress,
            )
            if start is not None:
                run.start_from(start)
            if options.resume:
                run.resume()
            recorder.start_progress(config.num_updates * config.batch_size)
            run.run(interrupts)
        except BadInput as error:
            command_line.refuse(error)
        except training.Broken:
            return EXIT_BROKEN
        except Interrupted as interrupted:
            recorder.say(f"stopped; {go_on}")
            return interrupted.exit_status
        except (CheckpointError, OSError) as error:
            line = f"error: {error}; what was kept before is whole; {go_on}"
            print(line, file=sys.stderr)
            return EXIT_NOT_KEPT
    return 0


if __name__ == "__main__":
    sys.exit(main())
