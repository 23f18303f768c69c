"""What a checkpoint was made by: settings and versions, kept in it and compared when it is read."""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from experiments.cli import flags
from experiments.plan.run_options import MAY_CHANGE
from experiments.record.files import to_json
from experiments.record.lengthening import lengthened

_KEY = "made_by"
# Where a model or prompts lie may differ: what they are is seen in shapes.
_PLACES = ("model", "prompts", "init_from")
_VERSIONS = ("jax", "jaxlib")


def entry(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept beside a position, of cells that are trained side by side, as JSON holds it."""
    content = [{k: v for k, v in one.items() if k not in MAY_CHANGE} for one in settings]
    versions = {name: metadata.version(name) for name in _VERSIONS}
    made_by = {"settings": content, "versions": versions}
    result: dict[str, Any] = json.loads(to_json({_KEY: made_by}))
    return result


def difference(
    position: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], strict: bool = True
) -> str | None:
    """In what the settings of a checkpoint differ from those of a run, in words; None: in nothing.

    Args:
      position: what it keeps beside arrays; those of earlier versions have no `entry`, and pass.
      settings: of the cells that it is to be read for.
      strict: whether all cells of the checkpoint are to be the same; else one of them will do, as
        where a cell of several is read.
    """
    made_by = position.get(_KEY)
    if not isinstance(made_by, dict):
        return None
    theirs, ours = made_by.get("settings"), entry(settings)[_KEY]["settings"]
    if not isinstance(theirs, list) or not all(isinstance(one, dict) for one in theirs):
        return "the settings in it are damaged"
    if strict and len(theirs) != len(ours):
        return f"it is of {len(theirs)} cells, not of {len(ours)}"
    if not strict:  # any of several cells
        found = [_difference(made, own) for made in theirs for own in ours]
        return None if None in found or not found else found[0]
    differences = (_difference(made, own) for made, own in zip(theirs, ours, strict=True))
    return next((found for found in differences if found is not None), None)


def _difference(made: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    made = flags.with_new_names(made)
    longer = lengthened(made, own)  # it was made before the run was told to go on to more steps
    for name in made:
        if longer and name == longer.setting:
            continue
        if name in own and name not in _PLACES and made[name] != own[name]:
            return (
                f"it was made with {flags.flag(name)} {made[name]}, and {own[name]} is what the "
                "settings of the run say"
            )
    return None


def remarks(position: Mapping[str, Any]) -> list[str]:
    """A line where the version of JAX is another, with which numbers differ."""
    made_by = position.get(_KEY)
    versions = made_by.get("versions") if isinstance(made_by, dict) else None
    if not isinstance(versions, dict):
        return []
    here = metadata.version("jax")
    if versions.get("jax") in (here, None):
        return []
    return [
        f"its checkpoint was made with jax {versions['jax']}, and this is {here}: "
        "numbers will differ a little"
    ]
