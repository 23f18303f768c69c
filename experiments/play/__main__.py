"""Plays episodes of a trained policy and keeps what was seen: `python -m experiments.play --help`.

Environments of gymnax, EnvPool and Gymnasium give a GIF or an MP4, those of Brax a page. A language
model answers `--prompt`s.
"""

import sys
from collections.abc import Sequence

import tyro

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.interrupts import Interrupts
from experiments.play import filming
from experiments.play.options import Options
from experiments.training import compiling

PROG = "python -m experiments.play"


def main(args: Sequence[str] | None = None) -> int:
    """Plays, and writes the file; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(run=tyro.MISSING), args, PROG)
    from experiments.training import trained

    compiling.keep_programs(options.compilation_cache)
    if options.prompt:
        from experiments.align import talk

        return talk.answer(
            options.run,
            options.prompt,
            options.stochastic,
            options.episodes,
            options.episode_seed,
            options.max_steps,
            options.which,
        )
    loaded = trained.load(options.run, "--run", options.trust_code, which=options.which)
    seed = filming.choose_seed(options, loaded)
    path = filming.choose_path(options, loaded.plan.options.env)
    steps = loaded.env_steps[seed - loaded.plan.options.seed]
    title = filming.title_of(loaded, seed)
    print(f"{title}, {options.which} policy, after {steps:,} steps", flush=True)
    try:
        outcome = filming.make_film(options, loaded)[1]
    except OSError as error:
        print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    print(f"{outcome} -> {path}")
    return 0


if __name__ == "__main__":
    compiling.leave(main)
