"""Studies that are done, kept in files: a bench that was stopped goes on after them."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.record.files import read_plain, write_atomically
from experiments.record.provenance import provenance
from experiments.theory.options import STUDIES
from experiments.theory.study import Arrays, Claim, Figure, Line, Panel, Study, Table

FOLDER = ".studies"
_KINDS: dict[str, type] = {k.__name__: k for k in (Claim, Figure, Line, Panel, Study, Table)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray):
        return {"kind": "array", "dtype": value.dtype.str, "values": value.tolist()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if value["kind"] == "array":
        return np.array(value["values"], np.dtype(value["dtype"]))
    fields = {name: _from_json(item) for name, item in value["fields"].items()}
    return _KINDS[value["kind"]](**fields)


def _made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a study is repeated by: settings, and versions of what computed it."""
    where = provenance()
    return {"settings": dict(settings), **{k: where[k] for k in ("versions", "git_commit")}}


def _write(path: Path, value: Any, settings: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    content = {"made_by": _made_by(settings), "value": value}
    write_atomically(path, json.dumps(content).encode())


def _read(path: Path, settings: Mapping[str, Any]) -> Any:
    """What a file has of a call with these settings; None if there is no such."""
    try:
        content = json.loads(read_plain(path))
        if content["made_by"] != json.loads(json.dumps(_made_by(settings))):
            return None
        return _from_json(content["value"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def keep(folder: Path, name: str, study: Study, settings: Mapping[str, Any]) -> None:
    """Writes a study; floats are exact."""
    _write(folder / FOLDER / f"{name}.json", _to_json(study), settings)


def find(folder: Path, name: str, settings: Mapping[str, Any]) -> Study | None:
    """A study that an earlier call with these settings has kept; None if there is none."""
    study = _read(folder / FOLDER / f"{name}.json", settings)
    return study if isinstance(study, Study) else None


def keep_part(
    folder: Path, name: str, part: str, arrays: Arrays, settings: Mapping[str, Any]
) -> None:
    """Writes a part of a study that goes on; floats are exact."""
    _write(_part(folder, name, part), _to_json(list(arrays.items())), settings)


def find_part(
    folder: Path, name: str, part: str, settings: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
    """A part that an earlier call with these settings has kept; None if there is none."""
    try:
        found = dict(_read(_part(folder, name, part), settings))
    except (TypeError, ValueError):
        return None
    return found if all(isinstance(x, np.ndarray) for x in found.values()) else None


def _part(folder: Path, name: str, part: str) -> Path:
    return folder / FOLDER / f"{name}.{part}.json"


def forget(folder: Path) -> None:
    """Removes what was kept, and nothing else, once the page has it."""
    for name in STUDIES:
        for path in (folder / FOLDER).glob(f"{name}.*json"):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / FOLDER).rmdir()
