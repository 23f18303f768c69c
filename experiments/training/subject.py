"""What the loop reads of a plan, whatever is trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from experiments.record.headline import Headline
from experiments.record.recorder import Recorder


class Subject(Protocol):
    """A run whose settings are known: `experiments.plan.reading.Plan` is control's.

    Steps are whatever the headline's unit is, and of one seed.
    """

    @property
    def headline(self) -> Headline:
        """By which metrics it is judged and shown."""

    @property
    def seeds(self) -> Sequence[int]:
        """Those that are trained side by side; metrics have a value for each."""

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""

    @property
    def batch_size(self) -> int:
        """Steps of an update."""

    @property
    def log_every(self) -> int | None:
        """Steps between two lines of metrics; None: a hundredth of all."""

    @property
    def eval_every(self) -> int | None:
        """Steps between two evaluations; None: a tenth of all."""

    @property
    def checkpoint_every(self) -> float | None:
        """Seconds between two checkpoints; 0: one whenever it may be; None: only the last."""

    @property
    def keep_best(self) -> bool:
        """Whether the best policy so far is kept, too."""

    @property
    def entries(self) -> Mapping[str, Any]:
        """What `config.json` has beside settings, headline and versions."""

    @property
    def curve_title(self) -> str:
        """Of the figure of its learning curve."""

    def settings(self) -> dict[str, Any]:
        """What is needed to repeat the run, for `config.json`."""

    def heading(self) -> dict[str, Any]:
        """With what its summary begins."""


class Planned(Subject, Protocol):
    """A subject that was read from flags, as programs that train several side by side see it."""

    @property
    def name(self) -> str:
        """Of its folder, where the settings do not tell it from others."""

    @property
    def title(self) -> str:
        """What is trained, for how long, in words."""

    @property
    def options(self) -> Any:
        """The options of its run."""

    @property
    def config(self) -> Any:
        """The settings of what is trained."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A part of what is trained side by side, with a folder of its own: one agent's seeds."""

    plan: Subject
    recorder: Recorder


def parts_of(cells: Sequence[Cell]) -> list[slice]:
    """Where the members of each cell lie among all that are trained side by side."""
    parts: list[slice] = []
    for cell in cells:
        begin = parts[-1].stop if parts else 0
        parts.append(slice(begin, begin + len(cell.plan.seeds)))
    return parts
