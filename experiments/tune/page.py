"""What a search leaves for people and for `--config`: a table of its trials, and the best one."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.plan.reading import Plan
from experiments.plan.run_options import MAY_CHANGE
from experiments.record.files import to_json, write_atomically
from experiments.record.headline import CONTROL
from experiments.tune.study import DONE, Trial

BEST, PAGE = "best.json", "README.md"
_OF_THE_SEARCH = ("seed", "num_seeds", *MAY_CHANGE)  # and not of what it found


def write(
    folder: Path, trials: Sequence[Trial], best: tuple[Trial, Plan] | None, ranges: Mapping
) -> None:
    """Writes both files, as far as there is something to tell.

    Args:
      folder: of the search.
      trials: all so far.
      best: the best finished one, with its run; None: there is none yet.
      ranges: name -> range, as a file has them.
    """
    if best is not None:
        write_atomically(folder / BEST, to_json(_settings(trials, *best), indent=2))
    write_atomically(folder / PAGE, _page(folder, trials, best, ranges).encode())


def _settings(trials: Sequence[Trial], best: Trial, plan: Plan) -> dict[str, Any]:
    """Everything that repeats the best trial but its seeds: others are for what is reported."""
    settings = plan.settings()
    return {
        "settings": {name: x for name, x in settings.items() if name not in _OF_THE_SEARCH},
        "tuned": {
            "trial": best.number,
            "trials": len(trials),
            "chosen": best.chosen,
            CONTROL.score.metric: best.score,
            "seeds": list(plan.seeds),
        },
    }


def _page(
    folder: Path, trials: Sequence[Trial], best: tuple[Trial, Plan] | None, ranges: Mapping
) -> str:
    lines = ["# A search of settings", ""]
    if best is not None:
        trial, plan = best
        config = shlex.quote(str(folder / BEST))
        lines += [
            f"{plan.title} a trial, seeds {plan.seeds[0]} to {plan.seeds[-1]}. The best of "
            f"{len(trials)} trials is trial {trial.number}, {show(trial.score)}: `{BEST}`. Its "
            "score is flattered by the seeds that chose it; with others:",
            "",
            "```sh",
            f"python -m experiments.run --config {config} --num-seeds 10",
            "```",
            "",
        ]
    lines += ["| searched | range |", "| --- | --- |"]
    lines += [f"| {name} | {json.dumps(how)} |" for name, how in ranges.items()]
    names = list(ranges)
    score = f"{CONTROL.quantity}, interquartile mean"
    lines += ["", _line(["trial", score, "state", *names]), _line(["---"] * (3 + len(names)))]
    for trial in sorted(trials, key=_order):
        chosen = [json.dumps(trial.chosen.get(name)) for name in names]
        lines.append(
            _line([str(trial.number), show(trial.score), trial.state or "goes on", *chosen])
        )
    lines += ["", f"`python -m experiments.report {shlex.quote(str(folder))}` draws them.", ""]
    return "\n".join(lines)


def _order(trial: Trial) -> tuple[bool, float, int]:
    """Finished ones first, by their score."""
    score = float("-inf") if trial.score is None else trial.score
    return trial.state != DONE, -score, trial.number


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def show(score: float | None) -> str:
    """A score as people read it."""
    return "" if score is None else f"{score:.{CONTROL.digits}f}"
