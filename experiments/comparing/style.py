"""The style of pages that show comparisons."""

from pathlib import Path


def css() -> str:
    """For a style element."""
    return Path(__file__).with_suffix(".css").read_text()
