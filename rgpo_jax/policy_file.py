"""The file in which policies are taken away: arrays by name, and in JSON what they mean.

It is an .npz of NumPy, in which nothing is pickled. This module does not import JAX.
"""

import dataclasses
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from rgpo_jax.config import Config

NAME = "policy.npz"
"""What the file is called in the folder of a run."""
_ABOUT = "about"  # the name of the JSON among the arrays
_FORMAT = 1


class PolicyError(ValueError):
    """A policy cannot be read or exported; the message says which, and why."""


@dataclasses.dataclass(frozen=True)
class About:
    """What the arrays of policies mean.

    Attributes:
      env: name of the environment that they were trained on.
      observation_shape: of one observation; of a dict of arrays a dict.
      observation_dtype: name of its type, such as "float32"; of a dict of arrays a dict.
      action_space: as JSON has it: {"kind": name of its class, field: value, ...}.
      config: of which the network is built (`networks.make`); None: it was one of its own.
      seeds: of the policies, in their order.
      updates: after which they were saved.
      torso: "module:Class" of a torso of its own that is in the network; None: there is none.
    """

    env: str
    observation_shape: tuple[int, ...] | dict[str, tuple[int, ...]]
    observation_dtype: str | dict[str, str]
    action_space: Mapping[str, Any]
    config: Config | None
    seeds: tuple[int, ...]
    updates: int
    torso: str | None = None  # it is missing from files of earlier versions

    def to_json(self) -> str:
        """The text that stands among the arrays of the file."""
        content = dataclasses.asdict(self)
        if self.config is not None:  # those of its own that an agent's Config has build no network
            names = [field.name for field in dataclasses.fields(Config)]
            content["config"] = {name: getattr(self.config, name) for name in names}
        return json.dumps({"format": _FORMAT, **content}, default=_as_python)

    @classmethod
    def of_json(cls, text: str) -> Self:
        """Raises KeyError, TypeError or ValueError where it is not what `to_json` gives."""
        content = json.loads(text)
        if content.pop("format") != _FORMAT:
            raise ValueError("it is of another version of this suite")
        config, torso = content.pop("config"), content.pop("torso", None)
        return cls(
            env=str(content.pop("env")),
            observation_shape=of_each(_shape_of_json, content.pop("observation_shape")),
            observation_dtype=of_each(_dtype_of_json, content.pop("observation_dtype")),
            seeds=tuple(map(int, content.pop("seeds"))),
            updates=int(content.pop("updates")),
            config=None if config is None else Config(**_with_tuples(config)),
            torso=None if torso is None else str(torso),
            **_exactly(content, "action_space"),
        )


def of_each(function: Callable[[Any], Any], described: Any) -> Any:
    """The function of what describes an array, or of each where it describes a dict of arrays."""
    if isinstance(described, dict):
        return {str(name): function(part) for name, part in described.items()}
    return function(described)


def _shape_of_json(sizes: Any) -> tuple[int, ...]:
    return tuple(map(int, sizes))


def _dtype_of_json(name: Any) -> str:
    if name == "bfloat16":  # NumPy alone has none, and what acts takes float32 all the same
        return "float32"
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise ValueError(f"observations of {dtype}")
    return dtype.name


def _exactly(content: dict[str, Any], *names: str) -> dict[str, Any]:
    if content.keys() != set(names):
        raise ValueError(f"it has {', '.join(sorted(content))}, expected {', '.join(names)}")
    return content


def _with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()}


def space_to_json(space: Any) -> dict[str, Any]:
    """An action space, which is a dataclass."""
    return {"kind": type(space).__name__, **dataclasses.asdict(space)}


def space_of_json(content: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    """An action space of one of these classes, by name; KeyError or TypeError where it is none."""
    fields = _with_tuples(content)
    return kinds[fields.pop("kind")](**fields)


def _as_python(value: Any) -> Any:
    """Numbers and arrays of NumPy and JAX, which an environment's bounds may be."""
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} is not for JSON")


def pack(about: About, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a file.

    Args:
      about: what they mean.
      arrays: name -> [number of seeds, ...].
    """
    file = io.BytesIO()
    np.savez(file, **{_ABOUT: np.array(about.to_json()), **arrays})  # type: ignore[arg-type]
    return file.getvalue()


def unpack(content: bytes) -> tuple[About, dict[str, np.ndarray]]:
    """What `pack` was given.

    Raises:
      PolicyError: it is damaged, or something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = About.of_json(str(arrays.pop(_ABOUT)))
    except (
        *(AttributeError, EOFError, KeyError, OSError, RecursionError, TypeError, ValueError),
        OverflowError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PolicyError(f"no policy of this suite, or damaged: {reason}") from None
    return about, arrays


def write(path: Path, content: bytes) -> None:
    """Writes a file that is whole or not there, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
