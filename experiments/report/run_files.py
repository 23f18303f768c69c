"""Reads the folders of runs, each as it is now.

What progress is counted in, and under which names, a run's headline says. What was trained, and
for how long, are settings of `experiments.run`; the `config.json` of another program says so in an
entry of its own, which wins over the settings:

    "subject": {"agent": "rgpo", "env": "bandit", "total": 100000}

`agent` and `env` are what a report calls them, gate and backend included, and `total` is what
progress ends at. Of the settings such a run needs `seed` and `num_seeds` alone.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import env_kwargs
from experiments.plan.run_options import MOST_SEEDS
from experiments.record.files import is_text, read_plain
from experiments.record.headline import CONTROL, Headline
from experiments.record.provenance import short_commit
from experiments.record.run_folder import CONFIG, METRICS, SUMMARY
from rgpo_jax.config import ConfigError

_DEPTHS = ("", "*/", "*/*/")  # of run folders below what was named
COUNTERS = (CONTROL.unit.counter, "updates", "wall_seconds")  # of control; see `_counters`
FINISHED, UNFINISHED, INTERRUPTED, BROKEN = "finished", "unfinished", "interrupted", "broken"
_LARGEST = 2**62  # of steps, updates and seconds


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as it is now; it may still grow.

    Attributes:
      folder: where it lies.
      name: its path below what the user named.
      config: content of `config.json`.
      summary: content of `summary.json`; empty while the run goes on.
      env_steps, updates, wall_seconds: counters of the log lines [lines]; the first of whatever its
        headline counts.
      metrics: name -> [lines, seeds], NaN where undefined.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    env_steps: np.ndarray
    updates: np.ndarray
    wall_seconds: np.ndarray
    metrics: dict[str, np.ndarray]

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.config["settings"]
        return settings

    @property
    def headline(self) -> Headline:
        return Headline.of_run(self.config)

    @property
    def _subject(self) -> dict[str, Any]:
        """What another program than `experiments.run` says that it trained."""
        subject: dict[str, Any] = self.config.get("subject") or {}
        return subject

    @property
    def agent(self) -> str:
        """Agent, and gate where it is not the agent's own."""
        if self._subject:
            return str(self._subject["agent"])
        gate = self.settings.get("gate")
        return self.settings["agent"] + (f"+{gate}" if gate else "")

    @property
    def env(self) -> str:
        """Environment, with its backend and its parameters where they are not the usual ones."""
        if self._subject:
            return str(self._subject["env"])
        return self._described((env_kwargs.FIELD, env_kwargs.DRAWN))

    @property
    def plain_env(self) -> str:
        """As `env`, without the parameters that were set."""
        return str(self._subject["env"]) if self._subject else self._described((env_kwargs.DRAWN,))

    @property
    def env_params(self) -> dict[str, Any] | None:
        """The environment's parameters that were set; None: there are none, or not as flags."""
        if self._subject:
            return None
        try:
            return env_kwargs.parse(self._items(env_kwargs.FIELD))
        except ConfigError:
            return None

    def _items(self, name: str) -> list[str]:
        value = self.settings.get(name)
        return [str(item) for item in value] if isinstance(value, list) else []

    def _described(self, names: Sequence[str]) -> str:
        given = [item for name in names for item in self._items(name)]
        backend = self.settings.get("backend")
        return env_kwargs.describe(self.settings["env"], str(backend) if backend else None, given)

    @property
    def seeds(self) -> tuple[int, ...]:
        first = self.settings["seed"]
        return tuple(range(first, first + self.settings["num_seeds"]))

    @property
    def commit(self) -> str | None:
        """Abbreviated, and whether files were changed after it; None if unknown."""
        return short_commit(self.config.get("git_commit"))

    @property
    def status(self) -> str:
        if not self.summary:
            return UNFINISHED
        if self.summary.get("broken"):
            return BROKEN
        return INTERRUPTED if self.summary.get("interrupted") else FINISHED

    @property
    def total(self) -> int:
        """What `env_steps` ends at, or a little above."""
        return int(self._subject["total"] if self._subject else self.settings["total_steps"])

    @property
    def progress(self) -> float:
        """Share of `total` that has been logged, at most 1."""
        return min(1.0, float(self.env_steps[-1]) / self.total)

    def rows(self, metric: str) -> np.ndarray:
        """Which lines define a metric for any seed [lines]."""
        values = self.metrics.get(metric)
        return (
            np.zeros(len(self.env_steps), bool)
            if values is None
            else np.isfinite(values).any(axis=1)
        )


def run_folders(paths: Sequence[str]) -> list[tuple[Path, str]]:
    """The run folders in some folders, up to two levels down, each with a name.

    Raises:
      BadInput: a path is no folder, or cannot be read.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for path in paths:
        top = Path(path).expanduser()
        try:
            if not top.is_dir():
                reason = "expected a folder" if top.exists() else "no such folder"
                raise BadInput(f"{path}: {reason}")
            next(top.iterdir(), None)  # glob passes over what it may not read
            configs = sorted(file for depth in _DEPTHS for file in top.glob(depth + CONFIG))
            for folder in (config.parent for config in configs):
                below, above = folder.relative_to(top), top.resolve().name
                name = Path(above) / below if len(paths) > 1 or folder == top else below
                found.setdefault(folder.resolve(), (folder, name.as_posix()))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return list(found.values())


def files(paths: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """What can tell that runs changed: path, time and size of each of their files."""
    seen = []
    for folder, _ in run_folders(paths):
        with contextlib.suppress(OSError):  # removed or replaced this moment
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    stat = file.stat()
                    seen.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(seen)


class NotARun(Exception):
    """There is a config.json, but not that of a run."""


def _is_there(file: Path) -> bool:
    return file.exists() or file.is_symlink()


class Files(NamedTuple):
    """What the files of a run hold: `config.json`, `summary.json`, and the lines of metrics."""

    config: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]


def _counters(config: dict[str, Any]) -> tuple[str, ...]:
    """Under which names the lines of a run's metrics have steps, updates and seconds."""
    return (Headline.of_run(config).unit.counter, *COUNTERS[1:])


def read_files(folder: Path) -> Files:
    """Reads a run folder; without a summary, as while the run goes on, that is empty.

    Raises:
      NotARun: a file cannot be read, or is damaged.
    """
    config = _read_json(folder / CONFIG)
    summary = _read_json(folder / SUMMARY) if _is_there(folder / SUMMARY) else {}
    try:
        text = read_plain(folder / METRICS).decode() if _is_there(folder / METRICS) else ""
    except (OSError, ValueError) as error:
        raise NotARun(f"{METRICS}: {getattr(error, 'strerror', None) or error}") from None
    lines, counters = [], _counters(config)
    for number, line in enumerate(text.splitlines(), 1):
        try:
            content = json.loads(line)
            numbers = [content[counter] for counter in counters]
            if not all(type(x) in (int, float) and abs(x) < _LARGEST for x in numbers):
                raise ValueError
            if not is_text(content):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            if number <= text.count("\n"):
                raise NotARun(f"line {number} of its {METRICS} is damaged") from None
            break  # the last line is being written, or was when the run was killed
        lines.append(content)
    return Files(config, summary, lines)


def parse(folder: Path, name: str, files: Files) -> Run | None:
    """The run that files hold; None where it has no line of metrics yet.

    Args:
      folder: where it lies.
      name: what a reader calls it.
      files: their content.

    Raises:
      NotARun: they are not those of a run.
    """
    config, summary, lines = files
    settings: Any = config.get("settings")
    subject: Any = config.get("subject") or settings
    total = "total_steps" if subject is settings else "total"
    of_seeds, of_subject = {"seed": int, "num_seeds": int}, {"agent": str, "env": str, total: int}
    for entry, expected in ((settings, of_seeds), (subject, of_subject)):
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), kind) for key, kind in expected.items()
        ):
            raise NotARun(f"its {CONFIG} is not that of a run")
    if not (
        0 < subject[total] < _LARGEST
        and 0 < settings["num_seeds"] <= MOST_SEEDS
        and 0 <= settings["seed"] < _LARGEST
    ):
        raise NotARun(f"its {CONFIG} is not that of a run: it has numbers that no run has")
    config = {**config, "settings": flags.with_new_names(settings)}
    if not isinstance(config.get("versions") or {}, dict):
        raise NotARun(f"its {CONFIG} is not that of a run")
    unit, counters = Headline.of_run(config).unit, _counters(config)
    broken = summary.get("broken") or []
    if not isinstance(broken, list) or not all(
        isinstance(entry, dict) and {"seed", "update"} <= entry.keys() for entry in broken
    ):
        raise NotARun(f"its {SUMMARY} is not that of a run")
    if not all(isinstance(summary.get(key, 0), int | float) for key in ("run_seconds", unit.total)):
        raise NotARun(f"its {SUMMARY} is not that of a run")
    if not lines:
        if summary and not broken and not summary.get("interrupted"):
            raise NotARun(f"it is finished, and its {METRICS} is empty")
        return None
    undefined = [None] * settings["num_seeds"]
    names = dict.fromkeys(key for line in lines for key in line if key not in counters)
    try:
        metrics = {
            key: np.array([line.get(key, undefined) for line in lines], float) for key in names
        }
    except (ValueError, TypeError, OverflowError):
        metrics = {}
    if not metrics or any(m.shape != (len(lines), len(undefined)) for m in metrics.values()):
        raise NotARun(f"its {METRICS} does not hold one value per seed")
    steps, updates, seconds = (np.array([line[key] for line in lines]) for key in counters)
    run = Run(folder, name, config, summary, steps, updates, seconds, metrics)
    if run.status == FINISHED and steps[-1] < (end := summary.get(unit.total, 0)):
        ends = f"its {METRICS} ends at {steps[-1]:,}"
        raise NotARun(f"it is finished at {end:,} {unit.name}, and {ends}")
    return run


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_plain(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotARun(f"{file.name}: {reason}") from None
    if not is_text(content):
        raise NotARun(f"{file.name} holds text that is none")
    if not isinstance(content, dict):
        raise NotARun(f"{file.name} holds no object")
    return content
