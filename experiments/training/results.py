"""What a run has come to: scores in words, and summaries."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.record.headline import Headline
from experiments.training.position import Position
from experiments.training.subject import Cell
from rgpo_jax.statistics import bootstrap_interval, interquartile_mean


def describe(scores: Sequence[float], digits: int, brief: bool = False) -> str:
    """IQM of scores, with its interval unless it is to be brief, to be read by people."""
    finite = [score for score in scores if math.isfinite(score)]
    if not finite:
        return "none yet"
    interval = None if brief else bootstrap_interval(finite, resamples=1000)
    ends = ", ".join(f"{end:.{digits}f}" for end in interval or ())
    spread = f" [{ends}]" if interval else ""
    return f"{interquartile_mean(finite):.{digits}f}{spread}"


def aggregate(scores: list[float]) -> dict[str, Any]:
    """Scores of the seeds, their mean, interquartile mean and its 95 % bootstrap interval."""
    return {
        "per_seed": scores,
        "mean": float(np.mean(scores)),
        "iqm": interquartile_mean(scores),
        "ci95": bootstrap_interval(scores),
    }


def describe_broken(
    what: str, broken: Sequence[Sequence[int]], seeds: Sequence[int], num_updates: int
) -> str:
    """What happened, and where: (member, update) in words."""
    where = ", ".join(f"seed {seeds[member]} at update {update}" for member, update in broken)
    return f"{what}: {where} (of {num_updates})"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What members side by side have come to; each cell's summary has its part.

    Attributes:
      headline: by which metrics they are judged.
      position: where training stands.
      seeds: of all members.
      compile_seconds, run_seconds: what it took, and without compiling.
      in_turn: whether members that share a device were trained one after another.
      device: in words.
    """

    headline: Headline
    position: Position
    seeds: Sequence[int]
    compile_seconds: float
    run_seconds: float
    in_turn: bool
    device: str

    def write(self, cell: Cell, part: slice, interrupted: bool) -> None:
        """Writes a cell's summary, and says what it has come to unless it was interrupted."""
        headline, broken = self.headline, self.position.broken_in(part)
        steps = self.position.updates * cell.plan.batch_size
        rate = steps * len(self.seeds) / self.position.training_seconds
        summary = self._summary(cell, part, steps, rate)
        if interrupted:
            summary["interrupted"] = True
        if broken:
            summary["broken"] = [
                {"seed": self.seeds[member], "update": update} for member, update in broken
            ]
        cell.recorder.write_summary(summary, cell.plan.curve_title)
        if broken:
            number = cell.plan.num_updates
            what = describe_broken(headline.broken, broken, self.seeds, number)
            cell.recorder.say(f"error: {what}; kept what was measured")
        elif not interrupted:
            number = len(cell.plan.seeds)
            cell.recorder.say(
                f"final {headline.quantity} {self._scores_in_words(part)}, "
                f"IQM [95 % interval] over {number} seed{'s' if number > 1 else ''}; "
                f"{headline.unit.a_second(rate)}; results in {cell.recorder.folder}"
            )

    def _summary(self, cell: Cell, part: slice, steps: int, rate: float) -> dict[str, Any]:
        position, headline = self.position, self.headline
        scores: dict[str, Any] = {
            headline.summary_key(headline.score): aggregate(
                position.evaluation[headline.score.metric][part]
            )
        }
        if headline.sampled is not None:
            sampled = position.evaluation.get(headline.sampled.metric)
            scores[headline.summary_key(headline.sampled)] = (
                None if sampled is None else aggregate(sampled[part])
            )
        results = {name: position.evaluation.get(name) for name in headline.results}
        return {
            **cell.plan.heading(),
            headline.unit.total: steps,
            **scores,
            **{k: None if x is None else float(np.mean(x[part])) for k, x in results.items()},
            **self._best(cell, part),
            "compile_seconds": round(self.compile_seconds, 3),
            "run_seconds": round(self.run_seconds, 3),
            "training_seconds": round(position.training_seconds, 3),
            "evaluation_seconds": round(position.evaluation_seconds, 3),
            "logging_seconds": round(position.logging_seconds, 3),
            "checkpoint_seconds": round(position.checkpoint_seconds, 3),
            headline.unit.rate: rate,
            "trained_side_by_side": len(self.seeds),
            "in_turn": self.in_turn,
            **{name: float(np.max(x[part])) for name, x in position.largest.items()},
            "device": self.device,
        }

    def _best(self, cell: Cell, part: slice) -> dict[str, Any]:
        """The best evaluation of each seed, and after how many steps it was made."""
        position = self.position
        if not position.best_scores:
            return {}
        steps = [updates * cell.plan.batch_size for updates in position.best_at[part]]
        return {
            f"best_{self.headline.quantity}": position.best_scores[part],
            "best_at": steps,
        }

    def _scores_in_words(self, part: slice) -> str:
        headline, evaluation = self.headline, self.position.evaluation
        shown = [(headline.score, headline.manner)]
        if headline.sampled is not None:
            shown.append((headline.sampled, headline.sampled_manner))
        return ", ".join(
            describe(evaluation[curve.metric][part], headline.digits)
            + (f" ({manner})" if manner else "")
            for curve, manner in shown
        )
