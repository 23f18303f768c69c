"""What a user can ask of the bench. Imports no JAX: flags are read before it is loaded."""

import dataclasses
from typing import Annotated, Literal, get_args

import tyro

from experiments.cli import flags
from rgpo_jax.config import Checked
from rgpo_jax.ranges import Count, CountOrZero, Range

Control = Literal["family", "variance", "bias", "improvement", "unification", "cost"]
Alignment = Literal[  # of methods, in exact worlds
    "coverage",
    "overoptimisation",
    "zeroth_order",
    "group_size",
    "regression",
    "dual_gates",
    "tiny_gates",
    "tiny_steps",
]
StudyName = Literal[Control, Alignment]
CONTROL: tuple[Control, ...] = get_args(Control)  # of the paper's claims; made by default
STUDIES: tuple[StudyName, ...] = get_args(StudyName)

AtLeastTwo = Annotated[
    int, Range(lambda x: x >= 2, "a whole number of at least 2, for an interval", whole=True)
]
Samples = Annotated[
    int, Range(lambda x: x >= 10_000, "a whole number of at least 10000", whole=True)
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Check what RGPO's paper claims, by numbers that have a reference, and write one page."""

    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for index.html, claims.json, and the figures (PNG) and tables (CSV) of each study;
    None: a new one in runs/."""
    overwrite: bool = False
    """Replace what an earlier call wrote there."""
    studies: tuple[StudyName, ...] = CONTROL
    """Which of them to make; those of alignment, from coverage on, where they are named."""
    seed: CountOrZero = 0
    """Of all random draws."""
    samples: Samples = 10_000_000
    """Largest sample of the study of variance."""
    replicates: AtLeastTwo = 8
    """Independent samples of that size, from which intervals come."""
    mdps: Count = 1000
    """Random decision processes of the study of improvement."""
    pairs: AtLeastTwo = 21
    """Pairs of timings of the study of cost."""
    seeds: AtLeastTwo = 20
    """Seeds of each row of the studies of alignment."""
    compilation_cache: flags.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_paths(self, "out", "compilation_cache")
