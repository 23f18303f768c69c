"""Learns a reward from pairs of answers: `python -m experiments.align.reward --help`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from envs.language.rewards import REWARD
from experiments.align import pair_data
from experiments.align.reward_options import Options
from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.cli.terminal import Terminal
from experiments.training import compiling

PROG = "python -m experiments.align.reward"


def main(args: Sequence[str] | None = None) -> int:
    """Learns and writes the reward; returns the exit status."""
    return frame.run(_main, args, "stopped; nothing was written")


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    options = flags.read(Options, Options(pairs=tyro.MISSING, out=tyro.MISSING), args, PROG)
    folder = _choose_folder(options)
    train, held_out = pair_data.read(options.pairs, options.held_out)
    from envs.language import learnt_reward
    from experiments.align import decoder_learning, ngram_learning, reward_judgement
    from experiments.align.reward_learning import Broken
    from experiments.record.files import without_nan
    from experiments.record.provenance import provenance

    began = provenance() | {"settings": flags.as_settings(options)}
    terminal = Terminal(highlight=False, soft_wrap=True, markup=False)
    say = terminal.print
    told = list(dict.fromkeys([*train.describe(), *held_out.describe()]))
    for line in told:
        say(line)
    learn = ngram_learning.learn if options.kind == "ngrams" else decoder_learning.learn
    start = time.perf_counter()
    try:
        learnt = learn(options, train, held_out, say, interrupts)
    except Broken as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return EXIT_BROKEN
    seconds = time.perf_counter() - start
    judged = reward_judgement.judge(learnt, options.num_bins)
    facts: dict[str, Any] = {
        **began,
        "seconds": seconds,
        "data": {"source": options.pairs, "notes": [*told, *learnt.notes]},
        "history": learnt.history,
        "held_out": judged,
    }
    files = {
        learnt_reward.FIGURE: reward_judgement.draw(judged, f"{options.kind} on {held_out.source}")
    }
    for line in reward_judgement.lines(judged):
        say(line)
    interrupts.check()
    try:
        learnt_reward.save(folder, learnt.reward, without_nan(facts), files)
    except OSError as error:
        print(f"error: {folder}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    say(f"learnt in {seconds:.1f} s -> {folder}; use it by --reward {folder}")
    return 0


def _choose_folder(options: Options) -> Path:
    """The folder, which holds nothing, or a reward that may be replaced."""
    from experiments.record.run_folder import choose_page_folder, refusing

    folder = choose_page_folder(options.out, "reward", (REWARD,), options.overwrite)
    with refusing(folder):
        if folder.is_dir() and not (folder / REWARD).exists() and any(folder.iterdir()):
            raise BadInput(
                f"--out {options.out}: holds something that is no reward; choose another"
            )
    return folder


if __name__ == "__main__":
    compiling.leave(main)
