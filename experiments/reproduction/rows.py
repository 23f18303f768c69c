"""The runs of the reproduction, sorted into rows: an agent and its settings, on several tasks."""

import dataclasses
from pathlib import Path

from experiments.command_line import BadInput
from experiments.report import runs
from experiments.report.runs import Cell, Collection

# Folder of a row's runs, and of its sweep file -> what the row is called.
BASELINE = "ppo"
ROWS = {
    "rgpo_k4": "RGPO, k = 4",
    "rgpo": "RGPO, searched k",
    "ppo": "PPO",
    "trpo": "TRPO",
    "awr": "AWR",
    "reinforce": "REINFORCE",
}
RELATIVES = {
    "ppo_target_kl": "PPO, early stopping on KL",
    "sapo": "SAPO",
    "spo": "SPO",
}
NAMES = {**ROWS, **RELATIVES}


def read(family: Path) -> Collection:
    """The cells of a family of tasks by (environment, name of the row).

    Args:
      family: a folder that holds one folder of runs per row; rows without one are left out.

    Raises:
      BadInput: a row holds runs whose settings differ.
    """
    cells: dict[tuple[str, str], Cell] = {}
    found: list[Collection] = []
    for row, name in NAMES.items():
        if not (family / row).is_dir():
            continue
        collection = runs.collect([str(family / row)])
        found.append(collection)
        for (env, variant), cell in collection.cells.items():
            if (env, name) in cells:
                raise BadInput(
                    f"{family / row}: expected one setting on {env}, found "
                    f"{cells[env, name].variant} and {variant} too"
                )
            cells[env, name] = cell
    return Collection(
        tuple(run for collection in found for run in collection.runs),
        {key: dataclasses.replace(cell, variant=key[1]) for key, cell in cells.items()},
        tuple(note for collection in found for note in collection.notes),
        sum(collection.waiting for collection in found),
    )
