"""The search itself, by Optuna: what to try next, what to stop, and what was found so far."""

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan.drawn import Drawn, rounded
from experiments.record.files import read_plain

JOURNAL = "study.jsonl"
_NAME = "tune"
_WARM_UP = 3  # the first evaluation after which a trial may be stopped
_UNPRUNED = 5  # trials before any is

PrunerName = Literal["median", "hyperband", "none"]
DONE, PRUNED, FAILED = "finished", "stopped early", "failed"
_STATES = {TrialState.COMPLETE: DONE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice of settings, and what became of it.

    Attributes:
      number: from 0.
      chosen: name -> value.
      state: DONE, PRUNED or FAILED; None: it goes on.
      score: at its end, or where it was stopped; None: it has none.
    """

    number: int
    chosen: dict[str, Any]
    state: str | None = None
    score: float | None = None


class Study:
    """A search in a folder, which goes on where it was: lines of JSON, and nothing pickled."""

    def __init__(
        self,
        folder: Path,
        ranges: Mapping[str, Drawn],
        pruner: PrunerName,
        evaluations: int,
        seed: int,
    ):
        """Opens the study of a folder, or begins it.

        Args:
          folder: which this process holds.
          ranges: of the settings that are searched.
          pruner: what stops trials that fall behind.
          evaluations: of each trial, after the first update.
          seed: of the sampler.

        Raises:
          BadInput: the study cannot be read, or is another's.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._ranges, self._seed = ranges, seed
        path = folder / JOURNAL
        _mend(path)
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
                pruner=_make_pruner(pruner, evaluations),
            )
            kept = self._study.get_trials(deepcopy=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"--out {folder}: {JOURNAL} cannot be read: {error!r}") from None
        for trial in kept:
            if any(not _is_in(ranges.get(name), x) for name, x in _params(trial).items()):
                raise BadInput(
                    f"--out {folder}: trial {trial.number} of {JOURNAL} is not of this search"
                )

    def trials(self) -> list[Trial]:
        """All of them, by number."""
        return [self._read(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _read(self, frozen: FrozenTrial) -> Trial:
        state, reported = _STATES.get(frozen.state), frozen.intermediate_values
        score = frozen.value if state == DONE else reported.get(max(reported, default=0))
        return Trial(frozen.number, self._chosen(_params(frozen)), state, score)

    def ask(self, number: int) -> list[Trial]:
        """So many new trials.

        What it asks depends on the seed and on trials so far, and not on whether it was stopped.
        """
        begun = len(self._study.get_trials(deepcopy=False))
        with _quiet():
            self._study.sampler = TPESampler(
                seed=self._seed + 10_007 * begun, constant_liar=number > 1
            )
            asked = [self._study.ask() for _ in range(number)]
            return [Trial(trial.number, self._choose(trial)) for trial in asked]

    def _choose(self, trial: optuna.Trial) -> dict[str, Any]:
        for name, values in self._ranges.items():
            if values.kind == "choice":
                trial.suggest_categorical(name, _words(values))
            else:
                low, high = values.values
                trial.suggest_float(name, low, high, log=values.kind == "log_uniform")
        return self._chosen(trial.params)

    def _chosen(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Name -> value of what Optuna keeps: numbers with more digits, and choices as JSON."""
        return {
            name: rounded(value) if isinstance(value, float) else json.loads(value)
            for name, value in params.items()
        }

    def report(self, number: int, evaluation: int, score: float) -> bool:
        """Takes a trial's score at an evaluation, from 1; returns whether to stop it there."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        trial = optuna.Trial(self._study, frozen._trial_id)
        with _quiet():  # one that goes on reports again
            trial.report(score, evaluation)
            return bool(trial.should_prune())

    def tell(self, number: int, state: str, score: float | None = None) -> None:
        """Ends a trial; only one that is DONE has a score of its own."""
        states = {name: found for found, name in _STATES.items()}
        self._study.tell(number, score if state == DONE else None, state=states[state])

    def best(self) -> Trial | None:
        """The finished trial of the highest score, of equals the first; None if there is none."""
        done = [trial for trial in self.trials() if trial.state == DONE]
        return max(done, key=lambda trial: (trial.score, -trial.number), default=None)


def _make_pruner(name: PrunerName, evaluations: int) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(_UNPRUNED, n_warmup_steps=_WARM_UP)
    if name == "hyperband":
        with _quiet():
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=evaluations)
    return optuna.pruners.NopPruner()


def _words(values: Drawn) -> list[str]:
    """Choices as Optuna keeps them: a list, such as of layer sizes, is nothing to it."""
    return [json.dumps(value) for value in values.values]


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """What Optuna keeps of a trial, by the names of today."""
    return flags.with_new_names(trial.params)


def _is_in(values: Drawn | None, value: Any) -> bool:
    """Whether what Optuna keeps of a setting is one of these values."""
    if values is None:
        return False
    if values.kind == "choice":
        return value in _words(values)
    return isinstance(value, float) and values.values[0] <= value <= values.values[1]


def _mend(path: Path) -> None:
    """Drops a line that a kill has left half-written, and the lock of who was killed.

    Raises:
      BadInput: it is a link, or cannot be read.
    """
    (path.parent / f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists() and not path.is_symlink():
        return
    try:
        content = read_plain(path)
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise BadInput(f"--out {path.parent}: {error.strerror or error}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings that a part of it is experimental, or that a value came twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
