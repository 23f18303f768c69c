"""What values a number may have: the one place for conditions and their wording."""

import numbers
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

_LARGEST_FLOAT32 = 3.4028234663852886e38


class Range(NamedTuple):
    """A set of numbers.

    Attributes:
      contains: elementwise condition on a finite number or an array of them.
      accepted: the same in words, to follow "expected".
      whole: whether only whole numbers belong to it.
    """

    contains: Callable[[Any], Any]
    accepted: str
    whole: bool = False

    def admits(self, value: Any) -> bool:
        """Whether a single number, Python's or NumPy's, is in range and finite as float32.

        Whole numbers that no float can hold are in no range.
        """
        kind = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        largest = _LARGEST_WHOLE if self.whole else _LARGEST_FLOAT32
        number: Any = value
        return bool(-largest <= number <= largest) and bool(self.contains(value))


_LARGEST_WHOLE = 10**300


class Above(NamedTuple):
    """Larger than another setting beside it.

    Attributes:
      setting: the other one's name.
    """

    setting: str

    def beyond(self, value: Any) -> Range:
        """The range where the other setting has this value."""
        return Range(lambda x: x > value, f"a number above {self.setting} = {value}")


FINITE = Range(lambda x: x == x, "a finite number")
POSITIVE = Range(lambda x: x > 0, "a number above 0")
NON_NEGATIVE = Range(lambda x: x >= 0, "a number of at least 0")
FRACTION = Range(lambda x: (x > 0) & (x < 1), "a number between 0 and 1, both excluded")
UNIT_INTERVAL = Range(lambda x: (x >= 0) & (x <= 1), "a number from 0 to 1")
ABOVE_ONE = Range(lambda x: x > 1, "a number above 1")
AT_LEAST_ONE = Range(lambda x: x >= 1, "a whole number of at least 1", whole=True)
AT_LEAST_ZERO = Range(lambda x: x >= 0, "a whole number of at least 0", whole=True)

Finite = Annotated[float, FINITE]
Positive = Annotated[float, POSITIVE]
NonNegative = Annotated[float, NON_NEGATIVE]
Fraction = Annotated[float, FRACTION]
UnitInterval = Annotated[float, UNIT_INTERVAL]
AboveOne = Annotated[float, ABOVE_ONE]
Count = Annotated[int, AT_LEAST_ONE]
CountOrZero = Annotated[int, AT_LEAST_ZERO]
Counts = Annotated[tuple[int, ...], AT_LEAST_ONE]
