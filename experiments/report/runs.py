"""Reads run folders, and sorts their seeds into cells: an environment and a variant each.

A variant is an agent, its gate, and those settings in which runs of that agent differ on the same
environment. Settings that differ between environments only are the families' and make no variant.

What progress is counted in, and under which names, a run's headline says. What was trained, and
for how long, are settings of `experiments.run`; the `config.json` of another program says so in an
entry of its own, which wins over the settings:

    "subject": {"agent": "rgpo", "env": "bandit", "total": 100000}

`agent` and `env` are what a report calls them, gate and backend included, and `total` is what
progress ends at. Of the settings such a run needs `seed` and `num_seeds` alone.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import env_kwargs
from experiments.plan.reading import with_defaults
from experiments.plan.run_options import MOST_SEEDS
from experiments.record import colors
from experiments.record.colors import Look
from experiments.record.files import is_text, read_plain
from experiments.record.headline import CONTROL, Curve, Headline, Unit
from experiments.record.provenance import short_commit
from experiments.record.run_folder import CONFIG, METRICS, SUMMARY
from rgpo_jax.config import Config, ConfigError

_DEPTHS = ("", "*/", "*/*/")  # of run folders below what was named

# What a run is called, which seeds it has and how it is measured: none of it changes its training.
_NOT_A_VARIANT = frozenset(
    {
        *(env_kwargs.FIELD, env_kwargs.DRAWN),
        *("agent", "gate", "env", "backend", "seed", "num_seeds"),
        *("log_every", "eval_every", "eval_episodes", "eval_share"),
    }
)
COUNTERS = (CONTROL.unit.counter, "updates", "wall_seconds")  # of control; see `_counters`
_MOST_TOLD = 5  # interrupted runs, one by one
FINISHED, UNFINISHED, INTERRUPTED, BROKEN = "finished", "unfinished", "interrupted", "broken"


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


@dataclasses.dataclass(frozen=True)
class Cell:
    """The seeds of one variant on one environment, from one run or several.

    Attributes:
      env, variant: of all its runs.
      runs: in the order of their seeds.
      columns: for each run, the indices of those of its seeds that count.
    """

    env: str
    variant: str
    runs: tuple[Run, ...]
    columns: tuple[tuple[int, ...], ...]

    @property
    def agent(self) -> str:
        return self.runs[0].agent

    @property
    def plain_env(self) -> str:
        return self.runs[0].plain_env

    @property
    def env_params(self) -> dict[str, Any] | None:
        return self.runs[0].env_params

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its first run; in what others differ is no matter of training."""
        return self.runs[0].settings

    @property
    def budget(self) -> int:
        """What its runs end at, of one seed."""
        return self.runs[0].total

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(
            run.seeds[i]
            for run, columns in zip(self.runs, self.columns, strict=True)
            for i in columns
        )

    @property
    def status(self) -> str:
        """The worst of its runs."""
        states = {run.status for run in self.runs}
        return next(s for s in (BROKEN, INTERRUPTED, UNFINISHED, FINISHED) if s in states)

    @property
    def progress(self) -> float:
        return min(run.progress for run in self.runs)

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric over training: env_steps [points] and values [points, seeds], NaN where missing.

        Points are the steps at which each run that came so far was logged.
        """
        grids = [run.env_steps[run.rows(metric)] for run in self.runs]
        steps = np.array(
            [
                step
                for step in np.unique(np.concatenate(grids))
                if all(step in grid for grid in grids if len(grid) and grid[-1] >= step)
            ]
        )
        parts = []
        for run, columns in zip(self.runs, self.columns, strict=True):
            part = np.full((len(steps), len(columns)), np.nan)
            if metric in run.metrics:
                at = {step: i for i, step in enumerate(run.env_steps)}
                found = [i for i, step in enumerate(steps) if step in at]
                lines = [at[steps[i]] for i in found]
                part[found] = run.metrics[metric][np.ix_(lines, columns)]
            parts.append(part)
        return steps, np.concatenate(parts, axis=1)

    def final(self, metric: str) -> np.ndarray:
        """Each seed's last defined value [seeds], without seeds that have none."""
        values = []
        for run, columns in zip(self.runs, self.columns, strict=True):
            rows = run.rows(metric)
            if rows.any():
                values += list(run.metrics[metric][rows][-1, list(columns)])
        scores = np.array(values, float)
        return scores[np.isfinite(scores)]

    def mean_over_updates(self, metric: str) -> np.ndarray:
        """Mean over all updates of each seed [seeds]; a line weighs as many as it reports."""
        values = []
        for run, columns in zip(self.runs, self.columns, strict=True):
            rows = run.rows(metric)
            if rows.any():
                weights = np.diff(run.updates, prepend=0)[rows]
                logged = run.metrics[metric][rows][:, list(columns)]
                values += list(np.average(logged, axis=0, weights=weights))
        scores = np.array(values, float)
        return scores[np.isfinite(scores)]


@dataclasses.dataclass(frozen=True)
class Collection:
    """All that a report is about.

    Attributes:
      runs: that have metrics.
      cells: (env, variant) -> Cell.
      notes: what one must know about the runs that were found, a sentence each.
      waiting: run folders without a line of metrics yet.
    """

    runs: tuple[Run, ...]
    cells: dict[tuple[str, str], Cell]
    notes: tuple[str, ...]
    waiting: int

    @functools.cached_property
    def envs(self) -> tuple[str, ...]:
        return tuple(sorted({env for env, _ in self.cells}, key=_natural))

    @functools.cached_property
    def variants(self) -> tuple[str, ...]:
        return tuple(sorted({variant for _, variant in self.cells}, key=_natural))

    @functools.cached_property
    def looks(self) -> tuple[Look, ...]:
        """Of each variant, in their order: its agent's colour, or a shade of it, and a dash."""
        return tuple(colors.of_variants(self._agents))

    @functools.cached_property
    def colors(self) -> dict[str, str]:
        """Agent -> its colour."""
        return colors.of_agents(self._agents)

    @property
    def _agents(self) -> list[str]:
        """Of each variant, in their order."""
        agents = {variant: cell.agent for (_, variant), cell in self.cells.items()}
        return [agents[variant] for variant in self.variants]

    @property
    def headline(self) -> Headline:
        """By which metrics its runs are judged: those of the first, whose score is that of all."""
        return self.runs[0].headline if self.runs else CONTROL

    @property
    def curves(self) -> tuple[Curve, ...]:
        """What is shown over training, of whichever run has it; the score first."""
        headlines = [run.headline for run in self.runs] or [CONTROL]
        return tuple(dict.fromkeys(curve for headline in headlines for curve in headline.curves))

    @property
    def is_growing(self) -> bool:
        """Whether a run has no summary yet: it goes on, or it was killed."""
        return self.waiting > 0 or any(run.status == UNFINISHED for run in self.runs)


def _natural(name: str) -> list[tuple[float, str]]:
    """A sorting key by which k=4 comes before k=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name.lower())
    return [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts)]


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


def collect(paths: Sequence[str], strict: bool = False) -> Collection:
    """Reads the runs in some folders.

    Args:
      paths: the folders.
      strict: whether a damaged run is refused, and not passed over with a note.

    Raises:
      BadInput: a path is no folder, or cannot be read; or, if strict, a run is damaged.
    """
    runs, notes, waiting = [], [], 0
    for folder, name in run_folders(paths):
        try:
            run = parse(folder, name, read_files(folder))
        except NotARun as error:
            if strict:
                raise BadInput(f"{folder}: {error}") from None
            notes.append(f"{name} was passed over: {error}.")
            continue
        if run is None:
            waiting += 1
        else:
            runs.append(run)
    return gather(runs, waiting, notes)


def gather(runs: Sequence[Run], waiting: int = 0, notes: Sequence[str] = ()) -> Collection:
    """Sorts runs into cells, and notes what a reader must know of them.

    Args:
      runs: that have metrics.
      waiting: how many others have none yet.
      notes: of what was met before; they come first.
    """
    notes = list(notes)
    if waiting:
        notes.append(f"{waiting} run folder(s) have no metrics yet.")
    for run in runs:
        if run.status == BROKEN:
            broken = run.summary["broken"]
            where = ", ".join(
                f"seed {entry['seed']} at update {entry['update']}" for entry in broken
            )
            notes.append(f"{run.name} broke: {run.headline.broken} ({where}).")
    interrupted = [run for run in runs if run.status == INTERRUPTED]
    if len(interrupted) > _MOST_TOLD:
        names = _some([run.name for run in interrupted])
        notes.append(f"{len(interrupted)} runs were interrupted: {names}.")
    else:
        notes += [f"{run.name} was interrupted at {run.progress:.0%}." for run in interrupted]
    runs, others = _of_one_kind(runs)
    if others:
        names = ", ".join(run.name for run in others)
        notes.append(
            f"Left out, as its score is another than {runs[0].headline.score.title} by "
            f"{runs[0].headline.unit.name}: {names}. Make a report of these alone."
        )
    cells, more = _cells(runs)
    return Collection(tuple(runs), cells, (*notes, *more, *_budget_notes(cells)), waiting)


def _of_one_kind(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Those whose score and progress are the first run's, and the others."""

    def kind(run: Run) -> tuple[Curve, Unit]:
        return run.headline.score, run.headline.unit

    same = [run for run in runs if kind(run) == kind(runs[0])]
    return same, [run for run in runs if kind(run) != kind(runs[0])]


class NotARun(Exception):
    """There is a config.json, but not that of a run."""


_LARGEST = 2**62  # of steps, updates and seconds


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


def varying_settings(runs: Sequence[Run]) -> list[str]:
    """Names of settings in which runs of one agent differ on the same environment."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run.env, []).append(with_defaults(run.settings, Config))
    return [
        name
        for name in dict.fromkeys(name for run in runs for name in run.settings)
        if name not in _NOT_A_VARIANT
        and any(
            len({json.dumps(s[name]) for s in settings if name in s}) > 1
            for settings in groups.values()
        )
    ]


def _label(run: Run, varying: Sequence[str]) -> str:
    parts, settings = [run.agent], with_defaults(run.settings, Config)
    for name in varying:
        value = settings.get(name)
        if isinstance(value, list):
            value = "x".join(map(str, value))
        parts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(parts)


def _cells(runs: Sequence[Run]) -> tuple[dict[tuple[str, str], Cell], list[str]]:
    """Pools seeds; of a seed that came twice, the run that is finished, or went further, counts."""
    agents = {
        agent: [run for run in runs if run.agent == agent] for agent in {r.agent for r in runs}
    }
    varying = {agent: varying_settings(group) for agent, group in agents.items()}
    pools: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.agent, run.env, run.seeds)):
        pools.setdefault((run.env, _label(run, varying[run.agent])), []).append(run)
    cells, notes = {}, []
    for (env, variant), pool in pools.items():
        owner: dict[int, Run] = {}
        # Of equals the first by name counts, so that a report does not depend on file times.
        for run in sorted(pool, key=lambda r: (r.status != FINISHED, -r.env_steps[-1], r.name)):
            twice = [seed for seed in run.seeds if seed in owner]
            if twice:
                notes.append(
                    f"{variant} on {env}: {_plural(twice)} of {run.name} "
                    f"also came from {owner[twice[0]].name} and count once."
                )
            for seed in run.seeds:
                owner.setdefault(seed, run)
        kept = [run for run in pool if any(owner[seed] is run for seed in run.seeds)]
        columns = tuple(
            tuple(i for i, seed in enumerate(run.seeds) if owner[seed] is run) for run in kept
        )
        cells[env, variant] = Cell(env, variant, tuple(kept), columns)
    return cells, notes


def _budget_notes(cells: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    """Names the variants of each environment whose runs end at different steps."""
    for env in sorted({env for env, _ in cells}, key=_natural):
        groups: dict[int, list[str]] = {}
        for (e, variant), cell in cells.items():
            if e == env:
                groups.setdefault(cell.budget, []).append(variant)
        if len(groups) < 2:
            continue
        unit = next(cell for (e, _), cell in cells.items() if e == env).runs[0].headline.unit.name
        each = "; ".join(
            f"{budget:,} {unit} of {_some(sorted(names, key=_natural))}"
            for budget, names in sorted(groups.items())
        )
        yield (
            f"Unequal budgets on {env}: {each}. Only scores of one budget are ranked or tested "
            "against each other; curves and aggregates show all."
        )


def _some(names: Sequence[str]) -> str:
    """Names in a list, of which those after the third are counted."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _plural(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
