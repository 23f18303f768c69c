"""Programs of the suite that another one starts, in processes of their own."""

import os
from pathlib import Path


def environment() -> dict[str, str]:
    """Ours; and a child finds the packages of this checkout, whatever folder it runs in."""
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
