"""Preference data that a flag names, in two parts."""

from typing import NamedTuple

from envs.language import preferences
from envs.language.preferences import PairData
from experiments.cli.flags import BadInput


class Parts(NamedTuple):
    """Pairs to learn from, and those that are held out."""

    train: PairData
    held_out: PairData


def read(source: str, held_out: float) -> Parts:
    """Reads pairs; those for tests are in a file of that name, or else of a share of the prompts.

    Raises:
      BadInput: they cannot be read.
    """
    try:
        train = preferences.read(source, "train")
        if preferences.find(source).is_dir():
            try:
                return Parts(train, preferences.read(source, "test"))
            except FileNotFoundError as error:
                if error.errno is not None:  # there is one, which cannot be opened
                    raise
        return Parts(*preferences.split_off(train, held_out, seed=0))
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{source}: ")
        raise BadInput(f"--pairs {source}: {reason}") from None
