"""Measures all about a device in one call of under ten minutes: a GPU, or a CPU to try it out.

Parts run in order of importance, each on its own: what fails says so in one line, and the next one
runs. After each part the results are written anew: a call that is cut off leaves what it measured.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import agents
from experiments.cli import flags
from experiments.cli.flags import BadInput
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, Positive

if TYPE_CHECKING:
    from experiments.benchmark.accelerator_parts import Bench

PROG = "python -m experiments.benchmark --device gpu"
EXIT_PART_FAILED = 3
_COLUMNS = (
    "part",
    "program",
    "steps/s",
    "range",
    "compile s",
    "MiB",
    "of bandwidth",
    "of matmul",
)
_WIDTHS = (32, 14, 11, 25, 9, 8, 12, 11)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Measure a device: correctness, CartPole beside a plain PPO, Brax, MinAtar, shares of its
    peaks, kernels."""

    device: Literal["gpu", "cpu"] = "gpu"
    """Where to measure: gpu, or cpu with small sizes, to try it."""
    agent: str = "ppo"
    """The agent to measure."""
    budget: Positive = 540.0
    """Seconds for all parts; one that would not fit into what is left is skipped."""
    seconds: Positive = 0.5
    """Duration of one timing, about."""
    repeats: Count = 5
    """Timings of each program; the median counts."""
    out: str | None = None
    """JSON file for the results, NAME.json; the table goes to NAME.md. None: print only."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the parts are.

    Attributes:
      correctness: names of the environments on which numbers are compared.
      copy_bytes: of the array that bandwidth is measured with.
      matrix_size: of the products.
      agents: numbers of agents on CartPole.
      environments: (name, number, parameters) of the others, in order.
      language: (answers, tokens of a prompt, tokens of an answer) of a language model; None: none.
    """

    correctness: tuple[str, ...]
    copy_bytes: int
    matrix_size: int
    agents: tuple[int, ...]
    environments: tuple[tuple[str, int, dict[str, Any]], ...]
    language: tuple[int, int, int] | None = None


SPRING, MJX = {"backend": "spring"}, {"backend": "mjx"}
# Discrete actions, continuous ones, and convolutions.
CORRECTNESS = ("CartPole-v1", "Pendulum-v1", "Breakout-MinAtar")
SIZES = {
    "gpu": Sizes(
        correctness=CORRECTNESS,
        copy_bytes=2**31,
        matrix_size=8192,
        agents=(2048, 1, 64),
        environments=(
            ("brax/ant", 4096, SPRING),
            ("Breakout-MinAtar", 4096, {}),
            ("brax/ant", 8192, SPRING),
            ("brax/ant", 2048, SPRING),
            ("brax/ant", 4096, MJX),  # takes longest to compile
            ("brax/halfcheetah", 4096, SPRING),
            ("brax/ant", 8192, MJX),
            ("brax/ant", 2048, MJX),
            ("brax/halfcheetah", 4096, MJX),
        ),
        language=(256, 64, 64),
    ),
    "cpu": Sizes(
        correctness=CORRECTNESS,
        copy_bytes=2**27,
        matrix_size=1024,
        agents=(8, 1),
        environments=(
            ("brax/ant", 64, SPRING),
            ("Breakout-MinAtar", 64, {}),
            ("brax/ant", 16, MJX),
        ),
        language=(8, 8, 8),
    ),
}


class Part(NamedTuple):
    """One thing to measure.

    Attributes:
      name: in table and JSON.
      kind: parts of a kind take about equally long.
      seconds: roughly what it takes if no part of its kind ran before.
      run: bench -> what JSON holds of it.
    """

    name: str
    kind: str
    seconds: float
    run: Callable[["Bench"], dict[str, Any]]


def parts_of(sizes: Sizes) -> list[Part]:
    """All parts, the most important first."""
    from experiments.benchmark import accelerator_parts as measure

    parts = [
        Part("machine", "machine", 5, measure.machine),
        Part(
            "correctness", "correctness", 60, partial(measure.correctness, names=sizes.correctness)
        ),
        Part(
            "peaks",
            "peaks",
            20,
            partial(measure.peaks, array_bytes=sizes.copy_bytes, matrix_size=sizes.matrix_size),
        ),
    ]
    parts += [
        Part(f"CartPole, agents: {count:,}", "CartPole", 45, partial(measure.cartpole, count=count))
        for count in sizes.agents
    ]
    parts.append(
        Part("kernels", "kernels", 30, partial(measure.longest_kernels, count=max(sizes.agents)))
    )
    if sizes.language is not None:
        from experiments.benchmark import language_parts

        run = partial(language_parts.language, sizes=language_parts.sizes(*sizes.language))
        parts.append(Part("language model", "language model", 90, run))
    for env, num_envs, params in sizes.environments:
        kind = " ".join((env, *params.values()))
        run = partial(measure.environments, env=env, num_envs=num_envs, params=params)
        seconds = 150 if params == MJX else 60
        parts.append(Part(f"{kind}, {num_envs:,}", kind, seconds, run))
    return parts


def line(cells: Sequence[str]) -> str:
    """A row of the table."""
    widths = _WIDTHS[: len(cells)]
    return f"| {' | '.join(f'{c:<{w}}' for c, w in zip(cells, widths, strict=True))} |"


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """What the table says of a part."""
    if result["status"] != "done":
        return [line((name, f"{result['status']}: {result['error']}"))]

    def share(row: dict[str, Any], of: str) -> str:
        return f"{row[of]:.1%}" if of in row else ""

    lines = [
        line(
            (
                name,
                row["program"],
                f"{row['steps_per_second']:,.0f}",
                f"{row['slowest']:,.0f} - {row['fastest']:,.0f}",
                f"{row['compile_seconds']:.1f}",
                f"{row['memory_mib']:,.1f}",
                share(row, "share_of_bandwidth"),
                share(row, "share_of_matmul"),
            )
        )
        for row in result.get("programs", ())
    ]
    return lines + ([line((name, result["said"]))] if "said" in result else [])


def run(parts: Sequence[Part], bench: "Bench", budget: float, report: Callable) -> int:
    """Runs all parts that fit; returns how many failed.

    Args:
      parts: in order.
      bench: what they are measured with.
      budget: seconds for all of them.
      report: is called with the results of all parts so far, before and after each.
    """
    started = time.monotonic()
    results: list[dict[str, Any]] = []
    seen: dict[str, float] = {}  # kind -> seconds of the last part of that kind
    for part in parts:
        needed = seen.get(part.kind, part.seconds)
        left = budget - (time.monotonic() - started)
        result: dict[str, Any] = {"part": part.name, "status": "running"}
        results.append(result)
        if needed > left:
            said = f"about {needed:.0f} s needed, {max(left, 0.0):.0f} s left"
            result |= {"status": "skipped", "error": said}
        else:
            report(results)
            began = time.monotonic()
            try:
                result |= part.run(bench)
                result["status"] = "failed" if "error" in result else "done"
            except Exception as error:  # whatever it is, the next part may do
                words = " ".join(str(error).split())[:300]
                result |= {"status": "failed", "error": f"{type(error).__name__}: {words}"}
            result["seconds"] = seen[part.kind] = time.monotonic() - began
        report(results)
    return sum(result["status"] == "failed" for result in results)


def main(args: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Measures all parts, prints the table and writes JSON; returns the exit status."""
    try:
        options = flags.read(Options, Options(), sys.argv[1:] if args is None else args, PROG)
        check(options)
        import jax

        try:
            device = jax.devices(options.device)[0]
        except RuntimeError as error:
            raise BadInput(f"--device {options.device}: JAX has none here: {error}") from None
    except (BadInput, ConfigError) as error:
        flags.refuse(error)

    from experiments.benchmark.accelerator_parts import Bench
    from experiments.record.files import to_json, write_atomically
    from experiments.record.provenance import provenance

    sizes = SIZES[options.device] if sizes is None else sizes
    where = provenance() | {"device": f"{device.platform}: {device.device_kind}"}
    table = [line(_COLUMNS), line(["-" * width for width in _WIDTHS])]
    print(f"{where['device']}; {where['machine']}; jax {where['versions']['jax']}")
    print("\n".join(table), flush=True)

    def report(results: Sequence[dict[str, Any]]) -> None:
        last = results[-1]
        if last["status"] != "running":
            lines = rows(last["part"], last)
            table.extend(lines)
            print("\n".join(lines), flush=True)
        if options.out is not None:
            content = {
                "options": dataclasses.asdict(options),
                "sizes": dataclasses.asdict(sizes),
                **where,
                "compilation_cache": jax.config.values["jax_compilation_cache_dir"],
                "parts": results,
            }
            write_atomically(Path(options.out), to_json(content, indent=2))
            markdown = Path(options.out).with_suffix(".md")
            write_atomically(markdown, ("\n".join(table) + "\n").encode())

    bench = Bench(device, options.agent, options.seconds, options.repeats)
    with jax.default_device(device):
        failed = run(parts_of(sizes), bench, options.budget, report)
    if options.out is not None:
        print(f"written to {options.out} and {Path(options.out).with_suffix('.md')}")
    return EXIT_PART_FAILED if failed else 0


def check(options: Options) -> None:
    """Raises BadInput for an unknown agent, or a file that cannot be written."""
    try:
        agents.load(options.agent)
    except ValueError as error:
        raise BadInput(f"--agent {options.agent}: unknown agent; {error}") from None
    flags.check_path("out", options.out)
    if options.out is not None and not options.out.endswith(".json"):
        raise BadInput(f"--out {options.out}: expected a name that ends in .json")
    if options.out is not None and not Path(options.out).absolute().parent.is_dir():
        raise BadInput(f"--out {options.out}: no such folder")
