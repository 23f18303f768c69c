"""What a user can ask of the reproduction. Imports no JAX."""

import dataclasses
from typing import Annotated

import tyro

from experiments.cli import flags
from rgpo_jax.config import Checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Judge the claims of RGPO's paper by the stored runs, and write the page and its figures."""

    data: Annotated[str, tyro.conf.arg(metavar="DIR")] = "results/data"
    """Folder with the runs: tables FAMILY/runs.jsonl.gz, or folders FAMILY/ROW/RUN, and
    FAMILY/search/SWEEP/RUN for the search; FAMILY/reading.md holds a person's comments on them."""
    collect: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder with further runs, FAMILY/ROW/RUN: take what the page reads of them into the tables of
    --data, in the place of runs of the same name, and write no page."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for README.md and figures/; None: a new one in runs/."""
    overwrite: bool = False
    """Replace what an earlier call wrote there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_paths(self, "data", "collect", "out")
