"""A finished run that goes on to more steps: which settings say how long it is, and have grown."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# What may grow. A run has one of them: that of control, or that of language models.
LENGTHS = ("total_steps", "num_updates")


class Lengthened(NamedTuple):
    """A run that is to be longer.

    Attributes:
      setting: one of `LENGTHS`.
      before: its value up to now.
      after: what it is to be.
    """

    setting: str
    before: int
    after: int


def lengthened(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> Lengthened | None:
    """In what a run's settings are of a longer one than those stored; None: in nothing."""
    for name in LENGTHS:
        before, after = stored.get(name), settings.get(name)
        if isinstance(before, int) and isinstance(after, int) and before < after:
            return Lengthened(name, before, after)
    return None
