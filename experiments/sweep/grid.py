"""A sweep as a list of cells: subjects x places x settings, from flags and a file. No JAX."""

import dataclasses
import difflib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import drawn, env_kwargs, own, settings_file
from experiments.plan.run_options import OF_ONE_RUN
from experiments.sweep.kinds import KINDS, RUN, Kind
from experiments.training.subject import Planned
from rgpo_jax.config import ConfigError

# Of a sweep file, beside settings and what the product is taken of: how many draws.
_DRAWING = ("draws", "draw_seed")
_MOST_DRAWS = 10_000
_LONGEST_SUFFIX = 60
_OF_ENV = f"{env_kwargs.FIELD}."  # before the name of an environment's parameter


@dataclasses.dataclass(frozen=True)
class Cell:
    """One subject in one place with one choice of settings: in control, an agent on an environment.

    Attributes:
      name: of its folder.
      settings: by which it is one of the sweep's.
      plan: of the run.
      kind: the program whose run it is.
    """

    name: str
    settings: dict[str, Any]
    plan: Planned
    kind: Kind = RUN


def _is_grid(name: str, value: Any, lists: frozenset[str]) -> bool:
    """Whether a value is a list to go through; a list of numbers is one value of `hidden_sizes`."""
    if not isinstance(value, list):
        return False
    return name not in lists or any(isinstance(item, list) for item in value)


def _combinations(content: Mapping[str, Any], source: str, kind: Kind) -> Iterator[dict[str, Any]]:
    """Every combination of the lists, once for every draw."""
    lists = frozenset(
        field.name
        for settings in (kind.config(), kind.options())
        for field in dataclasses.fields(settings)
        if isinstance(getattr(settings, field.name), tuple)
    )
    settings = {k: v for k, v in content.items() if k not in (*kind.axes, *_DRAWING)}
    of_envs = settings.get(env_kwargs.FIELD)
    if isinstance(of_envs, dict):  # each parameter is gone through, or drawn, by itself
        del settings[env_kwargs.FIELD]
        settings |= {_OF_ENV + name: value for name, value in of_envs.items()}
    ranges = {k: v for k, v in settings.items() if isinstance(v, dict)}
    listed = {k: v for k, v in settings.items() if _is_grid(k, v, lists)}
    for name, values in listed.items():
        if not values:
            raise BadInput(f"{source}: {name} = []: expected at least one value")
        if name not in lists and any(isinstance(value, list | dict) for value in values):
            raise BadInput(f"{source}: {name} = {values}: expected a list of plain values")
    fixed = {k: v for k, v in settings.items() if k not in ranges and k not in listed}
    numbers = {name: content.get(name, 1 if name == "draws" else 0) for name in _DRAWING}
    for name, number in numbers.items():
        least = 1 if name == "draws" else 0
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise BadInput(
                f"{source}: {name} = {number}: expected a whole number of at least {least}"
            )
    if numbers["draws"] > _MOST_DRAWS:
        raise BadInput(f"{source}: draws = {numbers['draws']}: expected at most {_MOST_DRAWS:,}")
    if "draws" in content and not ranges:
        raise BadInput(f"{source}: draws = {numbers['draws']}: nothing is drawn")
    random = np.random.default_rng(numbers["draw_seed"])
    read = {name: drawn.read(name, how, source) for name, how in ranges.items()}
    for _ in range(numbers["draws"]):
        sample = {name: values.draw(random) for name, values in read.items()}
        for values in itertools.product(*listed.values()):
            yield _gathered({**fixed, **sample, **dict(zip(listed, values, strict=True))})


def _gathered(combination: Mapping[str, Any]) -> dict[str, Any]:
    """A combination in which the parameters of an environment are one setting, as in a run's."""
    params = {k: v for k, v in combination.items() if k.startswith(_OF_ENV)}
    rest = {k: v for k, v in combination.items() if k not in params}
    if params:
        named = {name.removeprefix(_OF_ENV): value for name, value in params.items()}
        rest[env_kwargs.FIELD] = env_kwargs.items(named)
    return rest


def _names_in(content: Mapping[str, Any], key: str, source: str) -> list[str] | None:
    names = content.get(key)
    if names is None:
        return None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise BadInput(f"{source}: {key} = {names}: expected a list of names")
    return names


def refuse_code(file: str, args: Sequence[str], kind: Kind) -> None:
    """Raises BadInput if a sweep file names code that is not of the suite, and `args` do not."""
    content = settings_file.read(file)
    own.refuse_found(content, f"--file {file}", args)
    for axis in (kind.subjects, kind.places):
        names = content.get(axis.field)
        named = {axis.setting: names if isinstance(names, list) else [names]}
        own.refuse_found(named, f"--file {file}", trusted=args, can_be_typed=False)


def expand(
    subjects: Sequence[str] | None,
    places: Sequence[str] | None,
    arguments: Sequence[str],
    file: str | None,
    prog: str,
    kind: Kind = RUN,
) -> list[Cell]:
    """The cells of a sweep, in order; those that come out the same are one.

    Args:
      subjects: names, such as agents; None: those of the file, or the kind's default.
      places: names, such as environments; None: those of the file, or the kind's default.
      arguments: flags of the kind's program, for all cells; they override the file.
      file: path of a sweep file.
      prog: the program that they were given to.
      kind: whose runs the cells are.

    Raises:
      BadInput: an unknown name, a setting that no subject has, a value out of range ...
    """
    content = settings_file.read(file) if file is not None else {}
    source = f"--file {file}"
    of_subjects, of_places = kind.subjects, kind.places
    subjects_of_file = _names_in(content, of_subjects.field, source)
    subjects = subjects or subjects_of_file or [of_subjects.default]
    places = places or _names_in(content, of_places.field, source) or [of_places.default]
    fixed = (of_subjects.setting, of_places.setting, *flags.NOT_IN_FILES, *OF_ONE_RUN)
    for name in fixed:
        flag = flags.flag(name)
        if any(arg == flag or arg.startswith(flag + "=") for arg in arguments):
            raise BadInput(f"{flag}: not for a sweep; see {prog} --help")
    for name, value in content.items():
        if isinstance(value, list | dict) and flags.peek(flags.flag(name), arguments):
            raise BadInput(f"{flags.flag(name)}: {file} has a list of it; give one of both")
    known = {f.name for f in dataclasses.fields(kind.options)} - set(fixed)
    # Flags may choose among the subjects of a file, and what the others have is no mistake then.
    mentioned: Sequence[str] = subjects
    if subjects_of_file and set(subjects) <= set(subjects_of_file):
        mentioned = subjects_of_file
    flag, in_file = flags.flag(of_subjects.field), f"{source}: {of_subjects.field}"
    known |= kind.settings_of(mentioned, flag if mentioned is subjects else in_file)
    for name in content:
        if name not in (*known, *kind.axes, *_DRAWING):
            for other in KINDS.values():
                if name in other.axes:
                    raise BadInput(f"{source}: {name}: expected --program {other.program} with it")
            nearest = difflib.get_close_matches(name, [*known, *kind.axes, *_DRAWING], n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise BadInput(f"{source}: {name}: none of {', '.join(mentioned)} has it{hint}")
    cells: dict[str, tuple[dict[str, Any], Planned]] = {}
    combinations = _combinations(content, source, kind)
    for place, subject, settings in itertools.product(places, subjects, combinations):
        given = {of_subjects.setting: subject, of_places.setting: place, **settings}
        cell = kind.read_plan(arguments, prog, given, source)
        everything = flags.as_settings(cell.options, cell.config)
        cells.setdefault(json.dumps(everything, sort_keys=True), (everything, cell))
    return _named(list(cells.values()), kind)


def _named(found: list[tuple[dict[str, Any], Planned]], kind: Kind) -> list[Cell]:
    """Names the cells by place, subject and the settings in which those differ."""
    groups: dict[str, list[tuple[dict[str, Any], Planned]]] = {}
    for settings, cell in found:
        groups.setdefault(cell.name, []).append((env_kwargs.flat(settings), cell))
    cells: dict[str, Cell] = {}
    for name, group in groups.items():
        keys = dict.fromkeys(key for settings, _ in group for key in settings)
        differing = [
            key for key in keys if len({str(settings.get(key)) for settings, _ in group}) > 1
        ]
        for settings, cell in group:
            suffix = "".join(
                f"-{key.removeprefix(_OF_ENV)}={_short(settings.get(key))}" for key in differing
            )
            if len(suffix) > _LONGEST_SUFFIX:
                suffix = "-" + hashlib.sha256(suffix.encode()).hexdigest()[:10]
            safe = "".join(c if c.isalnum() or c in "-+_.=" else "-" for c in name + suffix)
            if safe in cells:  # they differ in what a name does not show
                safe += "-" + hashlib.sha256(repr(settings).encode()).hexdigest()[:10]
            cells[safe] = Cell(safe, {key: settings.get(key) for key in differing}, cell, kind)
    return list(cells.values())


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def static_settings(cell: Cell) -> str:
    """All that is not traced and no seed, as JSON: what is compiled depends on nothing else."""
    settings = flags.as_settings(cell.plan.options, cell.plan.config)
    traced = ("seed", *cell.plan.config.traced())
    return json.dumps({k: v for k, v in settings.items() if k not in traced}, sort_keys=True)


def programs(cells: Sequence[Cell], max_members: int) -> list[list[Cell]]:
    """Groups cells that one program can train side by side: all but traced numbers and seeds agree.

    Args:
      cells: of a sweep.
      max_members: of a program, seeds over all its cells; a cell is never divided.

    Raises:
      ConfigError: a cell alone has more.
    """
    groups: dict[str, list[list[Cell]]] = {}
    for cell in cells:
        size = cell.plan.options.num_seeds
        if size > max_members:
            raise ConfigError("max_members", f"{max_members}: {cell.name} has {size} seeds")
        alike = groups.setdefault(static_settings(cell), [[]])
        if sum(c.plan.options.num_seeds for c in alike[-1]) + size > max_members:
            alike.append([])
        alike[-1].append(cell)
    return [group for alike in groups.values() for group in alike]
