"""By which of its metrics a kind of training is judged and shown.

Programs declare it; loop, run folder, figure, summary, sweep and report read names and titles from
it. A report of several kinds of training takes that of its first run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over training.

    Attributes:
      metric: its name.
      title: what it is called in full.
      axis: what an axis says, with the unit.
      short: one word for it, on a terminal.
    """

    metric: str
    title: str
    axis: str
    short: str


@dataclasses.dataclass(frozen=True)
class Headline:
    """What a kind of training is told by.

    Attributes:
      quantity: what the score measures, such as "return".
      axis: of a figure that has score and training in it.
      steps: what progress is counted in.
      score: the evaluation that ranks runs; its last value is the result.
      sampled: the same of sampled actions, made less often.
      training: what training itself shows of the quantity.
      largest: metrics of which a summary has the largest over the whole run.
    """

    quantity: str
    axis: str
    steps: str
    score: Curve
    sampled: Curve
    training: Curve
    largest: tuple[str, ...] = ()

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All, the score first."""
        return self.score, self.sampled, self.training

    def summary_key(self, curve: Curve) -> str:
        """Under which name a summary has the last value of the score, or of that of samples."""
        return f"final_{self.quantity}" + ("_stochastic" if curve == self.sampled else "")

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> "Headline":
        """That which a run's `config.json` has; of runs that have none, control's."""
        content = config.get("headline")
        if not isinstance(content, dict):
            return CONTROL
        try:
            curves = {name: Curve(**content[name]) for name in ("score", "sampled", "training")}
            return cls(**{**content, **curves, "largest": tuple(content["largest"])})
        except (KeyError, TypeError):
            return CONTROL


CONTROL = Headline(
    quantity="return",
    axis="episode return",
    steps="environment steps",
    score=Curve(
        "eval_return", "evaluation, deterministic policy", "return (evaluation)", "evaluation"
    ),
    sampled=Curve(
        "eval_return_stochastic",
        "evaluation, sampled actions",
        "return (sampled actions)",
        "sampled actions",
    ),
    training=Curve("episode_return", "training episodes", "return (training)", "training"),
    largest=("first_ratio_deviation",),
)
