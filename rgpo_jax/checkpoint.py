"""The full training state on disk, by orbax: replaced atomically, and verified when it is read.

Several processes write and read one checkpoint together, in a folder that all of them see: each its
share of the arrays, the first one everything else.
"""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rgpo_jax import processes

# Half a second to import: functions do it, so that who starts does not wait for the first save.
if TYPE_CHECKING:
    import orbax.checkpoint as orbax

_CHECKSUMS = "checksums.json"


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says which, and why."""


class UnreadableCheckpoint(CheckpointError):
    """There are checkpoints, but none is whole, or the newest is of something else."""


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      updates: after which it was made.
      parts: name -> pytree of arrays.
      position: what the caller wants to know beside them.
      damaged: newer checkpoints that were passed over, and what is wrong with each.
    """

    updates: int
    parts: dict[str, Any]
    position: dict[str, Any]
    damaged: list[str]


class Checkpoints:
    """The newest few checkpoints of a run, in a folder of its own.

    A checkpoint counts once the checksums of all its files are written, which is the last thing
    that `save` does: a kill at any moment leaves the ones before it as they were.
    """

    def __init__(self, folder: Path, keep: int = 3):
        """Touches nothing; the first `save` creates the folder.

        Args:
          folder: holds one folder per checkpoint, named by its number of updates.
          keep: how many are kept; at least 2, so that there is one before the newest.
        """
        self._folder = folder.absolute()
        self._keep = keep
        self._open: orbax.CheckpointManager | None = None

    @property
    def _manager(self) -> "orbax.CheckpointManager":
        import orbax.checkpoint as orbax

        # Made anew after damaged ones were passed over: it reads the folder only once.
        if self._open is None:
            options = orbax.CheckpointManagerOptions(
                max_to_keep=self._keep, enable_async_checkpointing=False
            )
            self._open = orbax.CheckpointManager(self._folder, options=options)
        return self._open

    def save(self, updates: int, parts: dict[str, Any], position: dict[str, Any]) -> None:
        """Writes a checkpoint, and removes the oldest.

        Args:
          updates: number of updates so far; larger than at the last call.
          parts: name -> pytree of arrays, typed keys among them.
          position: anything that JSON can hold.

        Raises:
          CheckpointError: it could not be written; older ones are as they were.
        """
        import orbax.checkpoint as orbax

        arguments = orbax.args.Composite(
            position=orbax.args.JsonSave(position),
            **{name: orbax.args.StandardSave(_leaves(part)) for name, part in parts.items()},
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._manager.save(updates, args=arguments, force=True)
            with processes.together():
                if processes.is_first():
                    folder = self._folder / str(updates)
                    content = json.dumps(dict(_checksums(folder)), indent=1)
                    temporary = folder / f".{_CHECKSUMS}"
                    temporary.write_text(content)
                    temporary.replace(folder / _CHECKSUMS)
        except Exception as error:  # orbax passes on whatever its storage raises
            self.close()
            raise CheckpointError(
                f"cannot write a checkpoint to {self._folder}: {_reason(error)}"
            ) from error

    def restore(
        self,
        like: dict[str, Any],
        *,
        tidy: bool = True,
        refuse: Callable[[dict[str, Any]], str | None] = lambda position: None,
    ) -> Restored | None:
        """Reads the newest checkpoint that is whole; None if none was ever finished.

        Args:
          like: the parts to read: name -> pytree of arrays (or `jax.ShapeDtypeStruct`), of whose
            structure, shapes, types and shardings the part is. Arrays at its end that an earlier
            version did not save keep the values that they have here.
          tidy: take damaged checkpoints out of the way of those to come; not by who only reads, for
            another process may be writing them.
          refuse: position -> why the checkpoint is not to be read; None: it is.

        Raises:
          UnreadableCheckpoint: all are damaged; or it is the state of something else.
        """
        import orbax.checkpoint as orbax

        begun = bool(processes.agree(self.begun()))
        updates, damaged = self._newest_whole()
        if updates is None:
            if begun:
                raise UnreadableCheckpoint("no checkpoint is whole: " + "; ".join(damaged))
            if tidy:
                self.forget_unfinished()
            return None
        if damaged and tidy:
            self._forget_after(updates)
        wanted: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        folder = self._folder / str(updates)
        try:
            alone = orbax.args.Composite(position=orbax.args.JsonRestore())
            position = self._manager.restore(updates, args=alone).position
            why = refuse(position)
        except Exception as error:
            raise UnreadableCheckpoint(f"{folder}: cannot be read: {_reason(error)}") from error
        if why is not None:
            raise UnreadableCheckpoint(f"{folder}: {why}")
        try:
            for name, part in like.items():
                leaves, saved = _leaves(part), _saved_arrays(folder / name)
                new = [key for key in leaves.keys() - saved if isinstance(leaves[key], jax.Array)]
                kept[name] = {key: leaves.pop(key) for key in new}
                wanted[name] = orbax.args.StandardRestore(leaves)
            content = self._manager.restore(updates, args=orbax.args.Composite(**wanted))
        except Exception as error:
            reason = f"{folder}: cannot be restored: {_reason(error)}"
            raise UnreadableCheckpoint(reason) from error
        parts = {
            name: _unflatten(part, {**content[name], **kept[name]}) for name, part in like.items()
        }
        return Restored(updates, parts, position, damaged)

    def _newest_whole(self) -> tuple[int | None, list[str]]:
        """The newest checkpoint that is whole, if there is one, and what is wrong with newer ones.

        All processes take what the first one finds; the others know only how many are damaged.
        """
        newest, damaged = -1, []
        with processes.together():
            for updates in self.saved() if processes.is_first() else ():
                folder = self._folder / str(updates)
                wrong = _damage(folder)
                if wrong is None:
                    newest = updates
                    break
                damaged.append(f"{folder}: {wrong}")
        newest, count = map(int, processes.agree((newest, len(damaged))))
        damaged += ["a newer one"] * (count - len(damaged))
        return (newest if newest >= 0 else None), damaged

    def saved(self) -> list[int]:
        """The numbers of updates of which there are checkpoints, whole or not, newest first."""
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir() if path.is_dir()]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def begun(self) -> bool:
        """Whether a checkpoint was ever finished, be it damaged now.

        The only one there is, without checksums, is a first one that was cut off.
        """
        saved = self.saved()
        return len(saved) > 1 or any(
            (self._folder / str(updates) / _CHECKSUMS).exists() for updates in saved
        )

    def forget_unfinished(self) -> None:
        """Takes the first checkpoint out of the way, if it was cut off before it was finished."""
        if processes.agree(bool(self.saved()) and not self.begun()):
            self._forget_after(-1)

    def _forget_after(self, updates: int) -> None:
        """Takes damaged checkpoints out of the way, since their numbers will be needed again."""
        self.close()
        with processes.together():
            for newer in self.saved() if processes.is_first() else ():
                if newer > updates:
                    path = self._folder / str(newer)
                    path.replace(_free(path.with_name(f"damaged-{newer}")))

    def forget_damaged(self) -> None:
        """Removes what was taken out of the way, once nobody needs to look at it."""
        if processes.is_first():
            for path in self._folder.glob("damaged-*"):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Ends what orbax has running; a later call starts it again."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _saved_arrays(folder: Path) -> set[str]:
    """The names of the arrays in a part of a checkpoint."""
    import orbax.checkpoint as orbax

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it misses a file that is optional
    try:
        return set(orbax.StandardCheckpointer().metadata(folder).item_metadata.tree)
    finally:
        logger.setLevel(level)


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves by number: static parts, such as functions, are the template's business.

    Arrays without elements, of which physics engines have many, are left out: orbax saves none.
    """
    return {f"{i:06d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}


def _unflatten(like: Any, leaves: dict[str, Any]) -> Any:
    """The tree of which these are the leaves with elements; the others are the template's."""

    def empty(leaf: Any) -> jax.Array:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    templates = enumerate(jax.tree.leaves(like))
    filled = [leaves[f"{i:06d}"] if leaf.size else empty(leaf) for i, leaf in templates]
    return jax.tree.unflatten(jax.tree.structure(like), filled)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _checksums(folder: Path) -> Iterator[tuple[str, str]]:
    for path in _files(folder):
        if not path.name.endswith(_CHECKSUMS):
            with path.open("rb") as file:
                yield (
                    path.relative_to(folder).as_posix(),
                    hashlib.file_digest(file, "sha256").hexdigest(),
                )


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        if not (folder / _CHECKSUMS).is_file():  # nor a pipe, on which one would wait
            return "was not finished"
        expected = json.loads((folder / _CHECKSUMS).read_text())
        found = dict(_checksums(folder))
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read: {error}"
    if not isinstance(expected, dict) or not expected:
        return f"{_CHECKSUMS} is not what was written"
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            return f"{name} is {'not what was written' if name in found else 'missing'}"
    return None


def _free(path: Path) -> Path:
    """The path, numbered if it is taken."""
    count, free = 1, path
    while free.exists():
        count += 1
        free = path.with_name(f"{path.name}-{count}")
    return free


def _reason(error: BaseException) -> str:
    """The first line of what an error says: storage layers append pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
