"""When something is done that is not done after each update."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.training.subject import Subject


@dataclasses.dataclass(frozen=True)
class Every:
    """Evenly spaced updates up to the last: every `updates / points` of them, rounded up."""

    updates: int
    points: int = 1

    @classmethod
    def make(cls, steps: int | None, points: int, plan: "Subject") -> "Every":
        """Every so many steps, or that many points over the run where steps is None."""
        if steps is None:
            return cls(plan.num_updates, points)
        return cls(max(1, steps // plan.batch_size))

    def next(self, done: int) -> int:
        """The first of these updates after `done`."""
        index = done * self.points // self.updates + 1
        return -(-index * self.updates // self.points)

    def includes(self, done: int) -> bool:
        """Whether `done` is one of these updates."""
        return self.next(done - 1) == done

    @property
    def interval(self) -> int:
        """Updates from one to the next, at the least."""
        return max(1, self.updates // self.points)
