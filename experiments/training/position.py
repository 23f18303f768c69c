"""Where training stands."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rgpo_jax.train import NEVER


@dataclasses.dataclass
class Position:
    """Where training stands, beside the states; lists are over members, or over cells.

    Attributes:
      updates: number of updates so far.
      seconds: that the run has taken.
      training_seconds: of these, in updates.
      evaluation_seconds: of these, in evaluations.
      logging_seconds: of these, in writing and saying what was measured.
      checkpoint_seconds: of these, in making checkpoints.
      largest: name -> largest so far, per member, of the metrics that the headline asks for.
      evaluation: the last one: name -> values per member.
      best_scores: the best evaluation so far, per member; empty where no policy is kept for it.
      best_at: after how many updates it was made.
      broken: (member, update) for those whose parameters are no longer finite.
      metrics_bytes: size of the metrics, per cell.
      unreported: whether the line of metrics of the last update is still to be written, since a
        stop came while it was evaluated.
    """

    updates: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    logging_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    largest: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_scores: list[float] = dataclasses.field(default_factory=list)
    best_at: list[int] = dataclasses.field(default_factory=list)
    broken: list[list[int]] = dataclasses.field(default_factory=list)
    metrics_bytes: list[int] = dataclasses.field(default_factory=list)
    unreported: bool = False

    @contextlib.contextmanager
    def timed(self, field: str) -> Iterator[None]:
        """What is done inside adds its seconds to this field."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, field, getattr(self, field) + time.perf_counter() - begun)

    @classmethod
    def of_checkpoint(cls, kept: dict[str, Any]) -> "Position":
        """What a checkpoint has, among other things.

        Earlier versions knew one largest value by name.
        """
        names = {field.name for field in dataclasses.fields(cls)} | {"first_ratio_deviation"}
        kept = {name: value for name, value in kept.items() if name in names}
        if "first_ratio_deviation" in kept:
            kept["largest"] = {"first_ratio_deviation": kept.pop("first_ratio_deviation")}
        return cls(**kept)

    def broken_in(self, part: slice) -> list[list[int]]:
        """(member, update) of those in a part whose parameters are no longer finite."""
        return [entry for entry in self.broken if part.start <= entry[0] < part.stop]

    def add_largest(self, metrics: Mapping[str, list[float]]) -> None:
        """Takes in the metrics of further updates."""
        for name in self.largest:
            # NumPy's maximum: NaN wins, and a broken run does not look perfect.
            self.largest[name] = np.maximum(self.largest[name], metrics[name]).tolist()

    def add_broken(self, broken_at: np.ndarray) -> None:
        """Takes in after which update each member's parameters broke [M]; `NEVER` if they did not.

        Those that are known already stay as they are.
        """
        known = {member for member, _ in self.broken}
        self.broken += [
            [int(member), int(broken_at[member])]
            for member in np.flatnonzero(broken_at != NEVER)
            if member not in known
        ]
