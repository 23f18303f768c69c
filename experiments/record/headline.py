"""By which of its metrics a kind of training is judged and shown, in which units and words.

What is trained declares it; loop, run folder, figure, summary, sweep and report read names, units
and titles from it. A report of several kinds of training takes that of its first run.
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
class Unit:
    """What progress is counted in, of one seed; the defaults are control's.

    Attributes:
      name: of many, on a terminal.
      singular: of one.
      counter: under which name lines of metrics have how many there were so far.
      total: the same of a summary.
      rate: under which name a summary has how many there were a second, of all seeds.
      in_thousands: whether a terminal shows thousands of them a second, where there are many.
    """

    name: str = "steps"
    singular: str = "step"
    counter: str = "env_steps"
    total: str = "total_steps"
    rate: str = "steps_per_second"
    in_thousands: bool = True

    def a_second(self, rate: float) -> str:
        """A rate in words, such as "12k steps/s" or "290 steps/s"."""
        if self.in_thousands and rate >= 9_950:
            return f"{rate / 1e3:,.0f}k {self.name}/s"
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self.name}/s"


@dataclasses.dataclass(frozen=True)
class Headline:
    """What a kind of training is told by.

    Attributes:
      quantity: what the score measures, such as "return".
      axis: of a figure that has score and training in it.
      steps: what progress is counted in, in full.
      score: the evaluation that ranks runs, made at each of them; its last value is the result.
      sampled: the same of sampled actions, made less often; None where there is one kind of
        evaluation.
      training: what training itself shows of the quantity.
      largest: metrics of which a summary has the largest over the whole run.
      unit: what progress is counted in, wherever a name or a word is short.
      manner: how the score was evaluated, a word for the last line; empty: there is one way.
      sampled_manner: the same of `sampled`, and of its key in a summary.
      digits: after the point, of scores on a terminal.
      results: evaluation metrics of which a summary has the mean over seeds, each under its name.
      broken: what happened where a seed could not go on.
      skipped: a metric, the share of an update's gradient steps that were left out as they were not
        finite; it is told where it is not 0. Empty: none are left out.
      learning: what `training` is of, for the line of progress; empty: the quantity.
    """

    quantity: str
    axis: str
    steps: str
    score: Curve
    sampled: Curve | None
    training: Curve
    largest: tuple[str, ...] = ()
    unit: Unit = Unit()
    manner: str = "deterministic"
    sampled_manner: str = "stochastic"
    digits: int = 1
    results: tuple[str, ...] = ()
    broken: str = "parameters became NaN or infinite"
    skipped: str = ""
    learning: str = ""

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All, the score first."""
        return tuple(c for c in (self.score, self.sampled, self.training) if c is not None)

    def summary_key(self, curve: Curve) -> str:
        """Under which name a summary has the last value of the score, or of that of samples."""
        suffix = f"_{self.sampled_manner}" if curve == self.sampled else ""
        return f"final_{self.quantity}{suffix}"

    def entry(self) -> dict[str, Any]:
        """What a run's `config.json` has of it: all but what is as usual."""
        fields = dataclasses.fields(self)
        unusual = [f.name for f in fields if getattr(self, f.name) != f.default]
        content = dataclasses.asdict(self)
        return {name: content[name] for name in unusual}

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> "Headline":
        """That which a run's `config.json` has; of runs that have none, control's."""
        content = config.get("headline")
        if not isinstance(content, dict):
            return CONTROL
        try:
            parts: dict[str, Any] = {name: Curve(**content[name]) for name in ("score", "training")}
            sampled = content["sampled"]
            parts["sampled"] = None if sampled is None else Curve(**sampled)
            for name in ("largest", "results"):
                parts[name] = tuple(content.get(name, ()))
            found = cls(**{**content, **parts, "unit": Unit(**content.get("unit", {}))})
        except (KeyError, TypeError):
            return CONTROL
        return found if _is_sound(found, CONTROL) else CONTROL


def _is_sound(found: Any, like: Any) -> bool:
    """Whether all that a file has said is of the types that it should be."""
    if dataclasses.is_dataclass(like):
        names = [field.name for field in dataclasses.fields(like)]
        return type(found) is type(like) and all(
            _is_sound(getattr(found, name), getattr(like, name))
            # Not all kinds of training have it.
            or (name == "sampled" and getattr(found, name) is None)
            for name in names
        )
    if isinstance(like, tuple):
        return isinstance(found, tuple) and all(isinstance(item, str) for item in found)
    return type(found) is type(like) and (not isinstance(found, int) or 0 <= found <= 20)


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
