"""How long a user waits: whole processes in turn, from the command line to its results."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark import peers
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.record.run_folder import SUMMARY
from rgpo_jax.config import Config

# A line of results of either program: "  100,352 steps  evaluation 2.1 ...", "final return ...".
_RESULT = re.compile(r"\s*[\d,]+ steps +evaluation |final return ")

COMPARED = ("first_result", "total")
"""Fields of a `Wait` of which there are ratios."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """What one process took.

    Attributes:
      first_line: seconds until its first line.
      first_result: seconds until its first line of results.
      total: seconds until it ended.
      compile: seconds that it spent compiling, as it says.
      train: seconds that it spent training, as it says.
      evaluate, log: seconds of evaluations, and of logging; of the plain PPO none.
    """

    first_line: float
    first_result: float
    total: float
    compile: float
    train: float
    evaluate: float = 0.0
    log: float = 0.0


class Watched(NamedTuple):
    """What was seen of a process: its first line, first result and end in seconds; all lines."""

    first_line: float
    first_result: float
    total: float
    output: str


def watch(arguments: Sequence[str]) -> Watched:
    """Runs `python` with these arguments.

    Raises:
      BadInput: it ended with an error, or without a result.
    """
    # No cache of compiled programs but the one that is asked for.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    started = time.perf_counter()
    first_line, first_result, lines = None, None, []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**inherited, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter() - started
            first_line = now if first_line is None else first_line
            if first_result is None and _RESULT.match(line):
                first_result = now
            lines.append(line)
        status = process.wait()
        total = time.perf_counter() - started
        errors.seek(0)
        said = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
    if status != 0 or first_line is None or first_result is None:
        raise BadInput(f"--start: python {' '.join(arguments)} gave no result: {said[0]}")
    return Watched(first_line, first_result, total, "".join(lines))


def run_ours(arguments: Sequence[str], cache: Path) -> Wait:
    """Times `experiments.run` with its compiled programs kept in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["-m", "experiments.run", *arguments, "--out", str(out)]
        seen = watch([*command, "--compilation-cache", str(cache)])
        summary = json.loads((out / SUMMARY).read_text())
    parts = ("compile", "training", "evaluation", "logging")
    return Wait(*seen[:3], *(summary[f"{name}_seconds"] for name in parts))


def run_plain(arguments: Sequence[str]) -> Wait:
    """Times `experiments.plain_ppo`, which caches nothing."""
    seen = watch(["-m", "experiments.plain_ppo", *arguments])
    said = re.search(r"^compiled in ([\d.]+) s\ntrained in ([\d.]+) s", seen.output, re.MULTILINE)
    assert said is not None, seen.output
    return Wait(*seen[:3], float(said[1]), float(said[2]))


def measure(
    agent: str, config: Config, env: str, num_seeds: int, rounds: int, with_peer: bool = True
) -> dict[str, list[Wait]]:
    """Times processes in turn, round by round.

    They are "cold", ours with an empty cache of compiled programs; "warm", the same with the cache
    that "cold" filled; and "plain", the peer, where it is wanted.

    Args:
      agent: ours.
      config: its settings on the environment, whose length and sizes the peer gets.
      env: name of an environment of gymnax.
      num_seeds: of each.
      rounds: number of them.
      with_peer: whether "plain" is one of them.
    """
    shared = ["--env", env, "--num-seeds", str(num_seeds)]
    shared += ["--total-steps", str(config.total_steps)]
    same_sizes = [
        word
        for name, value in peers.sizes(config).items()
        for word in (flags.flag(name), str(value))
    ]
    waits: dict[str, list[Wait]] = {"cold": [], "warm": [], "plain": []}
    for i in range(rounds):
        with tempfile.TemporaryDirectory() as cache:

            def ours(cache: str = cache) -> None:
                for name in ("cold", "warm"):
                    arguments = ["--agent", agent, *shared]
                    waits[name].append(run_ours(arguments, Path(cache)))

            def plain() -> None:
                waits["plain"].append(run_plain([*shared, *same_sizes]))

            # The order alternates, so that none always runs on the warmer machine.
            both = (ours, plain) if with_peer else (ours,)
            for run in both if i % 2 == 0 else reversed(both):
                run()
    return {name: of_one for name, of_one in waits.items() if of_one}


def ratios(waits: Mapping[str, Sequence[Wait]]) -> dict[str, dict[str, list[float]]]:
    """How many times as long the peer takes, round by round.

    Returns:
      "cold" and "warm" -> "first_result" and "total" -> a number a round; empty without a peer.
    """
    return {
        name: {
            field: [
                getattr(theirs, field) / getattr(ours, field)
                for ours, theirs in zip(waits[name], waits["plain"], strict=True)
            ]
            for field in COMPARED
        }
        for name in ("cold", "warm")
        if "plain" in waits
    }


def as_json(waits: Mapping[str, Sequence[Wait]]) -> dict[str, Any]:
    """Every process's seconds."""
    return {name: [dataclasses.asdict(wait) for wait in of_one] for name, of_one in waits.items()}
