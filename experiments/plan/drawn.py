"""What a setting is drawn from, as the files of sweeps and tunings say it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from experiments.cli.flags import BadInput

ACCEPTED = "expected {uniform: [low, high]}, {log_uniform: [low, high]} or {choice: [...]}"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Values that a setting may have.

    Attributes:
      kind: how they are distributed.
      values: the lowest and the highest number, or all choices.
    """

    kind: Literal["uniform", "log_uniform", "choice"]
    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        """One of them; numbers have four digits."""
        if self.kind == "choice":
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "uniform":
            return rounded(random.uniform(low, high))
        return rounded(np.exp(random.uniform(np.log(low), np.log(high))))


def rounded(value: float) -> float:
    """A number with four digits, as folders and tables show it."""
    return float(f"{value:.4g}")


def read(name: str, how: Mapping[str, Any], source: str) -> Drawn:
    """Reads `{uniform: [a, b]}`, `{log_uniform: [a, b]}` or `{choice: [...]}`.

    Args:
      name: of the setting, for messages.
      how: the mapping.
      source: where it comes from, for messages.

    Raises:
      BadInput: it is none of these.
    """
    try:
        said = f"{name} = {how}"
    except ValueError:  # Python writes no number of so many digits
        said = name
    refused = BadInput(f"{source}: {said}: {ACCEPTED}")
    if len(how) != 1:
        raise refused
    (kind, values), *_ = how.items()
    if kind == "choice" and isinstance(values, list) and values:
        return Drawn("choice", tuple(values))
    if not isinstance(values, list):
        raise refused
    try:
        low, high = map(float, values)
    except (TypeError, ValueError, OverflowError):
        raise refused from None
    # The distance too: numpy draws from no range that is not a number.
    if kind not in ("uniform", "log_uniform") or not (low < high and math.isfinite(high - low)):
        raise refused
    if kind == "uniform":
        return Drawn("uniform", (low, high))
    if low <= 0:
        raise BadInput(f"{source}: {said}: expected a low above 0")
    return Drawn("log_uniform", (low, high))
