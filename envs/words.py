"""What is said of things whose own words take several lines."""

from typing import Any


def one_line(thing: Any) -> str:
    """The text of an error or a space, without line breaks."""
    return " ".join(str(thing).split())
