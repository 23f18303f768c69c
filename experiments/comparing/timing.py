"""Timing of compiled programs: machines drift, so what is compared runs in turn, A B A B."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program (state, count) -> something, which repeats its work `count` times.

    Attributes:
      run: the program.
      state: its first argument.
      steps: environment steps of one repetition, over all seeds.
      compile_seconds: that it took to compile.
      memory_bytes: that it needs; 0 where that is not known.
    """

    run: Callable[[Any, Any], Any]
    state: Any
    steps: int
    compile_seconds: float
    memory_bytes: int

    def seconds(self, count: int) -> float:
        """Wall time of `count` repetitions."""
        import jax

        started = time.perf_counter()
        jax.block_until_ready(self.run(self.state, count))
        return time.perf_counter() - started

    def least_seconds(self) -> float:
        """The shortest of a few repetitions."""
        return min(self.seconds(1) for _ in range(4))

    def calibrate(self, seconds: float) -> int:
        """A count whose run takes about so many seconds."""
        self.seconds(1)
        count = 1
        while (elapsed := self.seconds(count)) < seconds / 4:
            count *= 4
        return max(1, round(count * seconds / elapsed))


def in_turn(
    programs: Sequence[Program], seconds: float, rounds: int
) -> Iterator[tuple[float, ...]]:
    """Times programs in turn: round by round, the seconds that each takes for one repetition.

    Args:
      programs: neighbours in this order run next to each other in every round.
      seconds: that a timing takes, about.
      rounds: number of them.
    """
    counts = [program.calibrate(seconds) for program in programs]
    for i in range(rounds):
        # The order alternates, so that none always runs on the warmer machine.
        order = range(len(programs)) if i % 2 == 0 else reversed(range(len(programs)))
        taken = {j: programs[j].seconds(counts[j]) / counts[j] for j in order}
        yield tuple(taken[j] for j in range(len(programs)))
