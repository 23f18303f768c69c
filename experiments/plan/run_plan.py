"""What the plans of all kinds of runs tell the loop, of their options and settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.cli import flags


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run whose flags have been read and checked; what the loop reads of it are its properties.

    Attributes:
      options: of the run.
      config: of what is trained.
      entries: what is known later, and `config.json` has beside the settings.
    """

    options: Any
    config: Any
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def seeds(self) -> range:
        return self.options.seeds

    @property
    def number_of_seeds(self) -> str:
        """In words."""
        return "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"

    @property
    def num_updates(self) -> int:
        return self.config.num_updates

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def log_every(self) -> int | None:
        return self.options.log_every

    @property
    def eval_every(self) -> int | None:
        return self.options.eval_every

    @property
    def checkpoint_every(self) -> float | None:
        return self.options.checkpoint_every

    @property
    def keep_best(self) -> bool:
        return self.options.keep_best

    def settings(self) -> dict[str, Any]:
        """Everything that repeats the run."""
        return flags.as_settings(self.options, self.config)
