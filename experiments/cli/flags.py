"""Flags: read by tyro, checked before JAX is loaded, refused in one line."""

import contextlib
import dataclasses
import decimal
import difflib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from unittest import mock

import tyro

from experiments.cli.exits import EXIT_BAD_INPUT
from rgpo_jax.config import ConfigError
from rgpo_jax.importing import install_hint

S = TypeVar("S")
T = TypeVar("T")
# Of --compilation-cache.
CacheChoice = Annotated[str | None, tyro.conf.arg(metavar="DIR|off")]
# Options that say where a run goes and who computes it, and not what: config files lack them.
NOT_IN_FILES = (
    "config",
    "out",
    "overwrite",
    "resume",
    "train_longer",
    "trust_code",
    "coordinator",
    "num_processes",
    "process_id",
    "compilation_cache",
)


# Settings that have another name now: old -> new.
_RENAMED = {"call_back": "pull_back"}

_LONGEST = 4000  # characters of a message

# What other suites call the flags of ours.
_ELSEWHERE = {
    "batch-size": "num-steps",
    "clip-coef": "clip",
    "clip-range": "clip",
    "ent-coef": "entropy-coefficient",
    "env-id": "env",
    "gamma": "discount",
    "lr": "learning-rate",
    "max-steps": "total-steps",
    "n-envs": "num-envs",
    "n-epochs": "num-epochs",
    "n-seeds": "num-seeds",
    "n-steps": "num-steps",
    "num-timesteps": "total-steps",
    "output": "out",
    "output-dir": "out",
    "timesteps": "total-steps",
    "total-timesteps": "total-steps",
    "track": "loggers wandb",
    "update-epochs": "num-epochs",
    "vf-coef": "value-coefficient",
    "wandb": "loggers wandb",
}

# The packages of the extra `report`, and those they need that may also be missing.
_REPORT_PACKAGES = ("plotly", "jinja2", "markupsafe")

# What Python says of a word that is no number, and what we say.
_NOT_A_NUMBER = {
    r"invalid literal for int\(\) with base 10": "a whole number",
    "could not convert string to float": "a number",
}


_POWER_OF_TEN = re.compile(r"\d+(\.\d+)?[eE]\+?\d{1,2}")


def _whole_number(text: str) -> int:
    """Of 1000000, 1_000_000 or 1e6; ValueError for others."""
    if _POWER_OF_TEN.fullmatch(text):
        number = decimal.Decimal(text)
        if number == int(number):
            return int(number)
    return int(text)


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _whole_numbers(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda args: _whole_number(args[0]),
        is_instance=lambda x: isinstance(x, int) and not isinstance(x, bool),
        str_from_instance=lambda x: [str(x)],
    )


class BadInput(Exception):
    """What a user typed cannot be used; the message is the one line that they see."""


def check_path(field: str, path: str | None) -> None:
    """Raises ConfigError for what cannot be a path."""
    if path is not None and (not path or "\0" in path):
        raise ConfigError(field, f"{path!r}: expected a folder")


def check_paths(settings: Any, *fields: str) -> None:
    """The same of several fields of settings."""
    for field in fields:
        check_path(field, getattr(settings, field))


def check_some(field: str, folders: Sequence[str]) -> None:
    """Raises ConfigError where there is no folder."""
    if not folders:
        raise ConfigError(field, "expected at least one folder")


def is_given(settings: Any, name: str) -> bool:
    """Whether a setting is another than its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return bool(getattr(settings, name) != defaults[name])


def refuse(error: BaseException | str) -> NoReturn:
    """Prints one line to stderr and exits with status 2."""
    line = " ".join(str(error).split())
    if len(line) > _LONGEST:  # what it quotes may be anything
        line = line[:_LONGEST] + " ..."
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)


@contextlib.contextmanager
def report_extra(program: str) -> Iterator[None]:
    """Within it, a package that the extra `report` brings and that is missing is a BadInput."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _REPORT_PACKAGES:
            raise
        raise BadInput(
            f"{error.name} is not installed; {program} needs the extra: {install_hint('report')}"
        ) from None


def flag(field: str) -> str:
    """The flag of a field: `num_envs` -> `--num-envs`."""
    return "--" + field.replace("_", "-")


def peek(name: str, args: Sequence[str]) -> str | None:
    """The value of a flag, before the flags as a whole can be read; the last one counts."""
    value = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(name + "="):
            value = arg.partition("=")[2]
    return value


def with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, in which those that were renamed have the name of today."""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def renamed(args: Sequence[str]) -> list[str]:
    """Arguments with flags of today; for each that has an older name, a line says the new one."""
    result = list(args)
    for i, arg in enumerate(args):
        typed, equals, value = arg.partition("=")
        off = "no-" if typed.startswith(("--no-", "--no_")) else ""
        name = typed.removeprefix("--").removeprefix("no-").removeprefix("no_").replace("-", "_")
        if typed.startswith("--") and name in _RENAMED:
            new = f"--{off}{_RENAMED[name].replace('_', '-')}"
            print(f"{typed} is {new} now", file=sys.stderr)
            result[i] = new + equals + value
    return result


def read(kind: type[T], default: T, args: Sequence[str], prog: str) -> T:
    """Reads flags into a dataclass.

    Raises:
      BadInput: an unknown flag, a value of the wrong type or out of range.
    """
    return _read(kind, default, args, prog, return_unknown_args=False)


def read_some(kind: type[T], default: T, args: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """Reads flags into a dataclass, and also returns the flags that it does not have.

    Raises:
      BadInput: a value of the wrong type or out of range.
    """
    return _read(kind, default, args, prog, return_unknown_args=True)


def read_pair(options: S, config: T, args: Sequence[str], prog: str, what: str) -> tuple[S, T]:
    """Reads flags into two dataclasses, whose fields are all flags of one program.

    The help begins with what the config's own class adds to those it is derived from.

    Args:
      options: the first, with its defaults.
      config: the second.
      args: flags.
      prog: the program.
      what: it does, for its help.

    Raises:
      BadInput: an unknown flag, a value of the wrong type or out of range.
    """
    ordered = _own_fields_first(type(config))
    both = dataclasses.make_dataclass(
        "Flags",
        [
            ("agent", Annotated[ordered, tyro.conf.OmitArgPrefixes]),
            ("run", Annotated[type(options), tyro.conf.OmitArgPrefixes]),
        ],
        frozen=True,
    )
    both.__doc__ = what
    parsed: Any = read(both, both(_as(ordered, config), options), args, prog)
    return parsed.run, _as(type(config), parsed.agent)


def _as(kind: type, settings: Any) -> Any:
    """The same fields in another dataclass."""
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)})


def _own_fields_first(kind: type) -> type:
    """A subclass that differs in the order of its fields: those of the last derivation come first.

    dataclasses have those of the base class first.
    """
    ordered: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for cls in kind.__mro__:
        own = [name for name in vars(cls).get("__annotations__", ()) if name in fields]
        ordered |= {name: fields[name] for name in own if name not in ordered}
    return type(kind.__name__, (kind,), {"__dataclass_fields__": ordered, "__doc__": kind.__doc__})


def _read(kind: Any, default: Any, args: Sequence[str], prog: str, **more: Any) -> Any:
    captured = io.StringIO()
    wide = {} if {"-h", "--help"} & set(args) else {"COLUMNS": "1000"}  # messages stay unbroken
    try:
        with contextlib.redirect_stderr(captured), mock.patch.dict(os.environ, wide):
            return tyro.cli(
                kind, default=default, args=list(args), prog=prog, registry=_REGISTRY, **more
            )
    except BrokenPipeError:  # --help, of which the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except SystemExit as exit_:
        if exit_.code in (0, None):  # --help
            raise
        raise BadInput(_one_line(captured.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """Condenses tyro's framed message: its first paragraph, and the flag it thinks was meant."""
    # A title, the message, a rule, hints; in a frame where the terminal has the characters for it.
    rows = [row.strip("│ ") for row in box.splitlines()][1:]
    rows = list(itertools.dropwhile(_is_rule, rows))
    message = " ".join(itertools.takewhile(lambda row: not _is_rule(row), rows))
    meant = re.search(r"Perhaps you meant:?\s+(--[\w-]+)", " ".join(rows))
    message = re.sub(r"^Error parsing (--[\w-]+): ", r"\1: ", message)
    # A ConfigError names a field, where a user knows the flag.
    message = re.sub(r"^Error parsing [\w.-]+: (\w+) ", lambda m: flag(m[1]) + " ", message)
    for reason, accepted in _NOT_A_NUMBER.items():
        message = re.sub(
            f"^(--[\\w-]+): {reason}: '(.*)'$", rf"\1 \2: expected {accepted}", message
        )
    unknown = re.match(r"Unrecognized options: --([\w-]+)", message)
    known = unknown and _ELSEWHERE.get(unknown[1].replace("_", "-"))
    suggested = f"--{known}" if known else meant and meant[1]
    hint = f"; did you mean {suggested}?" if suggested else ""
    return f"{message.rstrip('.')}{hint} (see {prog} --help)"


def _is_rule(row: str) -> bool:
    return not row.strip("─-╭╮╰╯ ")


def as_arguments(
    settings: Mapping[str, Any], source: str, known: Sequence[str], elsewhere: Collection[str]
) -> list[str]:
    """Turns the settings of a `config.json` into flags, so that both are read by the same rules.

    Args:
      settings: name -> value; None stands for a setting that is off.
      source: where they come from, for messages: "--config FILE".
      known: names of settings that exist for the chosen agent.
      elsewhere: names that other agents have; these are passed over.

    Raises:
      BadInput: an unknown name, or a value that is none.
    """
    args = []
    for name, value in settings.items():
        if name not in known and name in elsewhere:
            continue
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise BadInput(f"{source}: unknown setting {name!r}{hint}")
        items = value if isinstance(value, list) else [value]
        if isinstance(value, dict) or any(
            isinstance(item, list | dict) or str(item).startswith("--") for item in items
        ):
            raise BadInput(f"{source}: {name} = {value}: expected a plain value")
        if isinstance(value, bool):
            args.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif isinstance(value, list):
            args += [flag(name), *map(str, value)]
        else:
            args += [flag(name), str(value)]
    return args


def settings_from_file(
    path: str, read: Callable[[Path], bytes] = Path.read_bytes
) -> dict[str, Any]:
    """The settings in a JSON file: an object, or a run's `config.json`, which holds it inside.

    Args:
      path: of the file.
      read: gives what a file holds, or raises OSError.

    Raises:
      BadInput: the file cannot be read, or is no such object.
    """
    return settings_in(content_of(path, read), path)


def content_of(path: str, read: Callable[[Path], bytes] = Path.read_bytes) -> Any:
    """What a JSON file holds; see `settings_from_file`."""
    try:
        return json.loads(read(Path(path).expanduser()))
    except OSError as error:
        raise BadInput(f"--config {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--config {path}: not JSON: {error}") from None


def settings_in(content: Any, path: str | None) -> dict[str, Any]:
    """The settings in the content of a JSON file; see `settings_from_file`."""
    settings = content.get("settings", content) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise BadInput(f"--config {path}: expected a JSON object of settings")
    return with_new_names(settings)


def is_of_a_run(content: Any) -> bool:
    """Whether a file's content is a run's `config.json`, or the best of a search: it has all
    settings of its version.
    """
    whole = {"versions", "tuned"}
    return isinstance(content, dict) and "settings" in content and bool(whole & content.keys())


def as_settings(*parts: Any) -> dict[str, Any]:
    """The fields of dataclasses as one flat dict, as a config file holds them."""
    settings: dict[str, Any] = {}
    for part in parts:
        settings |= dataclasses.asdict(part)
    return {name: value for name, value in settings.items() if name not in NOT_IN_FILES}
