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
from typing import Any

from experiments.benchmark import peers
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.record.run_folder import SUMMARY
from rgpo_jax.config import Config

# The first result that each of both programs prints.
_RESULTS = ("evaluation", "final return")


@dataclasses.dataclass(frozen=True)
class Wait:
    """What one process took.

    Attributes:
      first_result: seconds until its first line of results.
      total: seconds until it ended.
      compile: seconds that it spent compiling, as it says.
    """

    first_result: float
    total: float
    compile: float


def wait_for(arguments: Sequence[str]) -> tuple[float, float, str]:
    """Runs `python` with these arguments; returns seconds to first result and end, and the output.

    Raises:
      BadInput: it ended with an error, or without a result.
    """
    # No cache of compiled programs but the one that is asked for.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    started = time.perf_counter()
    first, lines = None, []
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
            if first is None and any(word in line for word in _RESULTS):
                first = time.perf_counter() - started
            lines.append(line)
        status = process.wait()
        total = time.perf_counter() - started
        errors.seek(0)
        said = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
    if status != 0 or first is None:
        raise BadInput(f"--start: python {' '.join(arguments)} gave no result: {said[0]}")
    return first, total, "".join(lines)


def run_ours(arguments: Sequence[str], cache: Path) -> Wait:
    """Times `experiments.run` with its compiled programs kept in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["-m", "experiments.run", *arguments, "--out", str(out)]
        first, total, _ = wait_for([*command, "--compilation-cache", str(cache)])
        summary = json.loads((out / SUMMARY).read_text())
    return Wait(first, total, summary["compile_seconds"])


def run_plain(arguments: Sequence[str]) -> Wait:
    """Times `experiments.plain_ppo`, which caches nothing."""
    first, total, said = wait_for(["-m", "experiments.plain_ppo", *arguments])
    compiled = re.search(r"^compiled in ([\d.]+) s", said, re.MULTILINE)
    assert compiled is not None, said
    return Wait(first, total, float(compiled[1]))


def measure(
    agent: str, config: Config, env: str, num_seeds: int, rounds: int
) -> dict[str, list[Wait]]:
    """Times three processes in turn, round by round.

    They are "cold", ours with an empty cache of compiled programs; "warm", the same with the cache
    that "cold" filled; and "plain", the peer.

    Args:
      agent: ours.
      config: its settings on the environment, whose length and sizes the peer gets.
      env: name of an environment of gymnax.
      num_seeds: of each.
      rounds: number of them.
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
            for run in (ours, plain) if i % 2 == 0 else (plain, ours):
                run()
    return waits


def ratios(waits: Mapping[str, Sequence[Wait]]) -> dict[str, dict[str, list[float]]]:
    """How many times as long the peer takes, round by round.

    Returns:
      "cold" and "warm" -> "first_result" and "total" -> a number a round.
    """
    return {
        name: {
            field: [
                getattr(theirs, field) / getattr(ours, field)
                for ours, theirs in zip(waits[name], waits["plain"], strict=True)
            ]
            for field in ("first_result", "total")
        }
        for name in ("cold", "warm")
    }


def as_json(waits: Mapping[str, Sequence[Wait]]) -> dict[str, Any]:
    """Every process's seconds."""
    return {name: [dataclasses.asdict(wait) for wait in of_one] for name, of_one in waits.items()}
