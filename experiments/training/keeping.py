"""Makes checkpoints, as often as they may be made."""

import dataclasses
import operator
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from experiments.record.files import require_space, write_atomically
from experiments.record.run_folder import CHECKPOINTS, POLICY
from experiments.training import best, fingerprint
from experiments.training.position import Position
from experiments.training.subject import Cell
from rgpo_jax import processes
from rgpo_jax.checkpoint import Checkpoints, Restored

_FILE_OVERHEAD = 2**20  # bytes of a checkpoint beside its arrays
_SHARED = ("learner", best.PART)  # what the folder of a cell gets
_LARGEST_SHARE = 0.02  # of a run's time that checkpoints may take

# (learners, parts of the cells, updates) -> see `Programs.pack_policies`.
PackPolicies = Callable[[Any, Sequence[slice], int], Sequence[bytes] | None]


class Keeper:
    """The checkpoints of cells that are trained side by side; of the last, each gets its part."""

    def __init__(
        self, folder: Path, cells: Sequence[Cell], parts: Sequence[slice], every: float | None
    ):
        """Takes over the checkpoints that are there.

        Args:
          folder: of the checkpoints.
          cells: whose folders get what they learnt at the end.
          parts: where the members of each lie.
          every: seconds between two; None: only the last is made.
        """
        self._folder, self._cells, self._parts, self._every = folder, cells, parts, every
        self._checkpoints = Checkpoints(folder)
        self.newest: int | None = None  # its updates
        self._saved, self._cost = time.perf_counter(), 0.0

    def start_clock(self) -> None:
        """The next one is due so many seconds after this."""
        self._saved, self._cost = time.perf_counter(), 0.0

    def is_due(self) -> bool:
        """Whether it is time for one, and it would not cost too large a share of the run."""
        if self._every is None:
            return False
        affordable = self._cost / _LARGEST_SHARE if self._every else 0.0
        return time.perf_counter() - self._saved >= max(self._every, affordable)

    def restore(self, like: dict[str, Any]) -> Restored | None:
        """The newest that is whole; None if there is none. See `Checkpoints.restore`.

        Raises:
          UnreadableCheckpoint: also where it was made with other settings.
        """
        settings = [cell.plan.settings() for cell in self._cells]
        restored = self._checkpoints.restore(
            like, refuse=lambda position: fingerprint.difference(position, settings)
        )
        if restored is not None:
            self.newest = restored.updates
        return restored

    def save(
        self, position: Position, content: dict[str, Any], is_last: bool, pack: PackPolicies
    ) -> None:
        """Makes a checkpoint, and adds to the position what that took.

        Args:
          position: where training stands.
          content: parts of a checkpoint; each cell gets its learners, and its best, at the end.
          is_last: whether training is at its end.
          pack: what is kept beside checkpoints to be taken away.
        """
        begun = time.perf_counter()
        position.metrics_bytes = [cell.recorder.metrics_bytes() for cell in self._cells]
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(content)]
        require_space(self._cells[0].recorder.folder, sum(sizes) + _FILE_OVERHEAD)
        if position.updates != self.newest:  # as it is where a run was killed after its last one
            made_by = fingerprint.entry([cell.plan.settings() for cell in self._cells])
            kept = dataclasses.asdict(position) | made_by
            self._checkpoints.save(position.updates, content, kept)
            self.newest = position.updates
        if is_last:
            self._share_out(position, {name: content[name] for name in _SHARED if name in content})
            self._checkpoints.forget_damaged()
        if is_last or self._folders == [self._folder]:
            self._write_policies(pack(content["learner"], self._parts, position.updates))
        self._saved = time.perf_counter()
        self._cost = self._saved - begun
        position.checkpoint_seconds += self._cost

    @property
    def _folders(self) -> list[Path]:
        """Where the checkpoints of each cell lie in the end."""
        return [cell.recorder.folder / CHECKPOINTS for cell in self._cells]

    def _write_policies(self, contents: Sequence[bytes] | None) -> None:
        """Writes what can be taken away beside the checkpoints: who takes it needs no orbax."""
        with processes.together():
            if contents is None or not processes.is_first():
                return
            for cell, content in zip(self._cells, contents, strict=True):
                write_atomically(cell.recorder.folder / POLICY, content)

    def _share_out(self, position: Position, content: dict[str, Any]) -> None:
        """Gives each cell's folder what is its own, where the checkpoints are not there."""
        if self._folders == [self._folder]:
            return
        # One device: an array that lies on a mesh cannot be cut anywhere.
        content = jax.device_put(content, SingleDeviceSharding(jax.devices()[0]))
        for cell, folder, part in zip(self._cells, self._folders, self._parts, strict=True):
            checkpoints = Checkpoints(folder)
            if not checkpoints.begun():
                checkpoints.forget_unfinished()
                own = jax.tree.map(operator.itemgetter(part), content)
                kept = {"best_at": position.best_at[part]}
                made_by = fingerprint.entry([cell.plan.settings()])
                checkpoints.save(position.updates, own, kept | made_by)
                checkpoints.close()
