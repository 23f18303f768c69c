"""What is searched: settings and their ranges, from the command line and a file. No JAX."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import drawn, own, reading, settings_file
from experiments.plan.drawn import Drawn
from experiments.plan.reading import Plan
from experiments.plan.run_options import OF_ONE_RUN

BUDGET = "total_steps"
_FORM = "expected NAME=log_uniform:LOW,HIGH, NAME=uniform:LOW,HIGH or NAME=choice:A,B,..."


@dataclasses.dataclass(frozen=True)
class Space:
    """Settings that are searched, and all others, which trials share.

    Attributes:
      ranges: name -> what it may be.
      sources: name -> what the user typed of it, for messages.
      arguments: flags of `experiments.run` that all trials share.
    """

    ranges: Mapping[str, Drawn]
    sources: Mapping[str, str]
    arguments: tuple[str, ...]

    def plan(self, chosen: Mapping[str, Any], prog: str) -> Plan:
        """The run of one choice of settings.

        Raises:
          BadInput: one of them is out of range, or they do not fit together.
        """
        # As flags, which win over those of a --config file.
        source = next((self.sources[name] for name in chosen), "")
        given = flags.as_arguments(chosen, source, list(chosen), ())
        return reading.read_plan([*self.arguments, *given], prog)

    def entry(self) -> dict[str, Any]:
        """Name -> range, as a file has them."""
        return {name: {r.kind: list(r.values)} for name, r in self.ranges.items()}


def read(search: Sequence[str], file: str | None, arguments: Sequence[str], prog: str) -> Space:
    """Reads ranges, and checks their ends against the settings that the agent has.

    Args:
      search: of the command line, NAME=KIND:VALUES each.
      file: path of a YAML or JSON file of ranges, as a sweep's; a list is a choice.
      arguments: flags of `experiments.run`.
      prog: the program that they were given to.

    Raises:
      BadInput: an unknown setting, one that cannot be searched, or a value out of its range.
    """
    if file is not None:
        own.refuse_found(settings_file.read(file), f"--file {file}", arguments)
    ranges: dict[str, Drawn] = {}
    sources: dict[str, str] = {}
    for name, how, source in (*_of_file(file), *map(_of_line, search)):
        if name in ranges:
            raise BadInput(f"{source}: {sources[name]} searches {name} already")
        ranges[name], sources[name] = drawn.read(name, how, source), source
    if not ranges:
        raise BadInput(f"--search: nothing is searched; {_FORM}; or --file FILE")
    space = Space(ranges, sources, tuple(arguments))
    plan = space.plan({}, prog)
    known = [field.name for field in dataclasses.fields(plan.config)]
    for name, source in sources.items():
        if name == BUDGET:
            raise BadInput(f"{source}: all trials share a budget; give it as --total-steps")
        flags.as_arguments({name: 0}, source, known, ())  # refuses what the agent does not have
        if flags.peek(flags.flag(name), arguments) is not None:
            raise BadInput(f"{source}: {flags.flag(name)} gives it a value; give one of both")
        for value in ranges[name].values:
            try:
                space.plan({name: value}, prog)
            except BadInput as error:
                raise BadInput(f"{source}: {error}") from None
    return space


def _of_line(item: str) -> tuple[str, dict[str, Any], str]:
    """NAME=KIND:A,B as name, {kind: [a, b]} and source."""
    source = f"--search {item}"
    name, equals, rest = item.partition("=")
    kind, colon, values = rest.partition(":")
    if not (equals and colon and name and values):
        raise BadInput(f"{source}: {_FORM}")
    try:
        read = [yaml.safe_load(value) for value in values.split(",")]
    except (yaml.YAMLError, ValueError):  # Python reads no number of 5,000 digits
        raise BadInput(f"{source}: {_FORM}") from None
    if any(isinstance(value, list | dict) for value in read):
        raise BadInput(f"{source}: {_FORM}")
    (name,) = flags.with_new_names({name.replace("-", "_"): None})
    return name, {kind: [_number(value) for value in read]}, source


def _of_file(file: str | None) -> Iterator[tuple[str, dict[str, Any], str]]:
    content = {} if file is None else settings_file.read(file)
    for name, how in content.items():
        source = f"--file {file}"
        if isinstance(how, list):
            how = {"choice": how}
        if not isinstance(how, dict):
            raise BadInput(
                f"{source}: {name} = {how}: expected a range; what all trials share is a flag"
            )
        yield name, how, source


def _number(value: Any) -> Any:
    """YAML takes 1e-4, without a point, for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def share(arguments: Sequence[str], first_seed: int, trust_code: bool) -> list[str]:
    """The flags of all trials, with what a search has by default."""
    others = ("resume", "overwrite", "init_from", "coordinator", "num_processes", "process_id")
    for name in (*others, "train_longer", *OF_ONE_RUN):
        flag = flags.flag(name)
        if any(arg == flag or arg.startswith(flag + "=") for arg in arguments):
            raise BadInput(f"{flag}: not for a search")
    given = list(arguments)
    if flags.peek("--seed", given) is None:
        given += ["--seed", str(first_seed)]
    return [*given, *([own.TRUST] if trust_code else [])]
