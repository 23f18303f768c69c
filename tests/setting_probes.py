"""The settings of a dataclass, read from its annotations, and values that each may have or not."""

import itertools
import typing
from typing import Literal, NamedTuple

from rgpo_jax.gate_table import GATES
from rgpo_jax.ranges import Range

# Words in which a range is announced: (refused, accepted), the borders among them. No number at
# all is finite and in range that is NaN, infinite or text.
WORDS = {
    "a number above 0": ((0.0, 0, -1e-6, -1), (1e-6, 1, 1e6)),
    "a number of at least 0": ((-1e-6, -1), (0.0, 0, 1e-6, 3)),
    "a number between 0 and 1, both excluded": ((0.0, 1.0, -0.5, 1.5), (1e-6, 0.999)),
    "a number from 0 to 1": ((-1e-6, 1.000001, -1), (0.0, 1.0, 0, 1, 0.5)),
    "a number above 1": ((1.0, 1, 0.5, -3.0), (1.000001, 3)),
    "a whole number of at least 1": ((0, -1), (1,)),
    "a whole number of at least 0": ((-1,), (0, 1)),
}


class Setting(NamedTuple):
    """A field of a dataclass and its Range; many: a tuple of such numbers."""

    config: type
    field: str
    accepted: str
    many: bool
    optional: bool


def ranged(config):
    """The Range-annotated fields of a dataclass."""
    for name, hint in typing.get_type_hints(config, include_extras=True).items():
        is_annotated = typing.get_origin(hint) is typing.Annotated
        options = (hint,) if is_annotated else typing.get_args(hint)
        for option in options:
            for constraint in getattr(option, "__metadata__", ()):
                if isinstance(constraint, Range):
                    many = typing.get_origin(option.__origin__) is tuple
                    optional = type(None) in options
                    yield Setting(config, name, constraint.accepted, many, optional)


def literal(config):
    """The fields of a dataclass that are one of some words, and the words."""
    for name, hint in typing.get_type_hints(config).items():
        if typing.get_origin(hint) is Literal:
            yield name, typing.get_args(hint)


def switches(config):
    return [name for name, hint in typing.get_type_hints(config).items() if hint is bool]


NUMBERS = {name: list(ranged(row.settings)) for name, row in GATES.items()}
OPTIONS = {
    name: dict(literal(row.settings)) | dict.fromkeys(switches(row.settings), (False, True))
    for name, row in GATES.items()
}


def programs(name):
    """The settings of a gate that select a program: its options, and which numbers are off."""
    choices = OPTIONS[name] | {n.field: (None, "on") for n in NUMBERS[name] if n.optional}
    for values in itertools.product(*choices.values()):
        chosen = zip(choices, values, strict=True)
        yield {field: value for field, value in chosen if value != "on"}
