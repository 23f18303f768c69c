"""Speed of rollout, update and whole step, and what the gate and the order of seeds cost.

Also against another PPO: steps per second, and how long a user waits for results.
Machines drift, so a comparison is a ratio: both programs in turn, A B A B, in one process.
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agents
import envs
from agents import families
from experiments.benchmark import peers, start
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.training import compiling, devices
from rgpo_jax.config import Config, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

from experiments.benchmark.measure import (
    Options,
    build,
    compare,
    compare_with_peer,
    measure,
    settings_of,
)

PROG = "python -m experiments.benchmark"


def read(args: Sequence[str]) -> tuple[Options, peers.Peer | None]:
    """Reads and checks flags; loads no JAX.

    Raises:
      BadInput, ConfigError: what the user should type otherwise.
    """
    options = flags.read(Options, Options(), args, PROG)
    for field in ("agent", "against"):
        try:
            agents.load(getattr(options, field))
        except ValueError as error:
            name = getattr(options, field)
            raise BadInput(f"--{field} {name}: unknown agent; {error}") from None
    try:
        envs.check_name(options.env)
    except ValueError as error:
        raise BadInput(f"--env {options.env}: {error}") from None
    flags.check_path("out", options.out)
    if options.out is not None and not Path(options.out).absolute().parent.is_dir():
        raise BadInput(f"--out {options.out}: no such folder")
    for field in ("num_envs", "num_seeds"):
        if not getattr(options, field):
            raise BadInput(f"{flags.flag(field)}: expected at least one number")
    if min(options.num_envs) * options.num_steps % 4:
        raise BadInput(f"--num-steps {options.num_steps}: expected a multiple of 4")
    peer = None if options.peer is None else peers.find(options.peer)
    if options.start:
        if options.peer not in (None, peers.PLAIN):
            raise BadInput(f"--peer {options.peer}: expected {peers.PLAIN} with --start")
        config = started_settings(options)
        if options.peer is not None or _has_plain(options):
            peers.Plain().check(options.env, config, max(options.num_seeds))
    elif peer is not None:
        for num_envs in options.num_envs:
            config = settings_of(options.agent, options, num_envs)
            peer.check(options.env, config, max(options.num_seeds))
    return options, peer


def _has_plain(options: Options) -> bool:
    """Whether the plain PPO can be trained on the environment."""
    return options.env in peers.Plain.environments


def started_settings(options: Options) -> Config:
    """With which `experiments.run` trains the agent.

    Raises:
      ConfigError: there are fewer steps than an update has.
    """
    config_class = agents.load(options.agent).Config
    config = families.defaults(config_class, options.env, options.agent)
    return dataclasses.replace(config, total_steps=options.total_steps)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints tables and writes JSON; returns the exit status."""
    args = sys.argv[1:] if args is None else args
    if any(arg.partition("=")[0] == "--device" for arg in args):
        from experiments.benchmark import accelerator

        return accelerator.main(args)
    try:
        options, peer = read(args)
    except (BadInput, ConfigError) as error:
        flags.refuse(error)
    from rich.console import Console

    console = Console(width=120 if options.start else 100)
    try:
        if options.start:
            content = report_start(options, console)
        else:
            content = report_programs(options, peer, console)
    except BadInput as error:
        flags.refuse(error)
    if options.out is not None:
        from experiments.record.files import to_json, write_atomically
        from experiments.record.provenance import provenance

        content = {"options": dataclasses.asdict(options), **content, **provenance()}
        write_atomically(Path(options.out), to_json(content, indent=2))
        console.print(f"written to {options.out}")
    return 0


def report_programs(
    options: Options, peer: peers.Peer | None, console: "Console"
) -> dict[str, Any]:
    """Measures compiled programs in this process; prints tables, and returns what JSON holds.

    Raises:
      BadInput: the environment cannot be made, or the peer does not run.
    """
    print(f"{options.agent} on {options.env}, {options.num_steps} steps a rollout", flush=True)
    largest = settings_of(options.agent, options, max(options.num_envs))
    spread = devices.can_spread(envs.is_on_mjx(options.env))
    devices.use_all_cores(largest, max(options.num_seeds), spread=spread)

    import jax

    # Compiling is measured: what an earlier process compiled must not come from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        env = envs.make(options.env)
    except ValueError as error:
        raise BadInput(f"--env {options.env}: {error}") from None

    from experiments.record.provenance import provenance

    where = provenance()
    console.print(f"{where['device']}; {where['machine']}; jax {where['versions']['jax']}")
    if peer is not None:
        return report_peer(peer, env, options, console)
    return report_parts(env, options, console)


def report_parts(env: Any, options: Options, console: "Console") -> dict[str, Any]:
    """Measures the agent by parts, and what a gate and an order cost."""
    from rich.progress import track
    from rich.table import Table

    table = Table("seeds", "envs", "part", "steps/s", "range", "compile s", "memory MiB")
    rows = []
    cells = [
        (num_seeds, num_envs, part)
        for num_seeds in options.num_seeds
        for num_envs in options.num_envs
        for part in ("rollout", "update", "step")
    ]
    for num_seeds, num_envs, part in track(cells, "measuring", console=console, transient=True):
        program = build(options.agent, env, options, num_envs, num_seeds, part)
        result = measure(program, options)
        rows.append({"num_seeds": num_seeds, "num_envs": num_envs, "part": part, **result})
        table.add_row(
            str(num_seeds),
            str(num_envs),
            part,
            f"{result['steps_per_second'] / 1e3:,.0f}k",
            f"{result['slowest'] / 1e3:,.0f}k - {result['fastest'] / 1e3:,.0f}k",
            f"{result['compile_seconds']:.1f}",
            f"{result['memory_mib']:.1f}",
        )
    console.print(table)

    comparison = {}
    for part in ("update", "step"):
        measured, reference = (
            build(name, env, options, min(options.num_envs), min(options.num_seeds), part)
            for name in (options.agent, options.against)
        )
        comparison[part] = ratio = compare(measured, reference, options)
        low, high = ratio["quartiles"]
        console.print(
            f"cost of {options.agent} over {options.against}, {part}: "
            f"median {ratio['median']:.3f}, quartiles {low:.3f} to {high:.3f} "
            f"({ratio['pairs']} pairs)"
        )
    order = None
    num_envs, num_seeds = max(options.num_envs), max(options.num_seeds)
    largest = settings_of(options.agent, options, num_envs)
    spread = devices.can_spread(envs.is_on_mjx(options.env))
    if num_seeds > devices.Layout.choose(largest, num_seeds, spread=spread).seed_devices:
        cell = (options.agent, env, options, num_envs, num_seeds, "step")
        vmapped, in_order = (build(*cell, seeds_in_turn=choice) for choice in (False, True))
        order = compare(vmapped, in_order, options)
        low, high = order["quartiles"]
        console.print(
            f"seeds of a device side by side over one after another, {num_seeds} seeds of "
            f"{num_envs} environments, step: median {order['median']:.3f}, quartiles {low:.3f} to "
            f"{high:.3f} ({order['pairs']} pairs)"
        )
    return {"cells": rows, "cost_ratio": comparison, "seed_order_ratio": order}


def report_peer(peer: peers.Peer, env: Any, options: Options, console: "Console") -> dict[str, Any]:
    """Measures the agent in turn with a peer.

    Raises:
      BadInput: the peer does not run.
    """
    from rich.progress import track
    from rich.table import Table

    table = Table(
        "seeds",
        "envs",
        "peer on",
        "peer: steps/s",
        "ours",
        "times the peer",
        "peer: compile s",
        "ours",
        title=f"{options.agent} and {peer.title}: median and range of {options.repeats} pairs",
    )
    rows = []
    cells = [(seeds, count) for seeds in options.num_seeds for count in options.num_envs]
    for num_seeds, num_envs in track(cells, "measuring", console=console, transient=True):
        for row in compare_with_peer(peer, env, options, num_envs, num_seeds):
            rows.append(row)
            table.add_row(
                str(num_seeds),
                str(num_envs),
                "1 device" if row["peer_devices"] == 1 else f"{row['peer_devices']} devices",
                f"{statistics.median(row['peer_steps_per_second']) / 1e3:,.0f}k",
                f"{statistics.median(row['steps_per_second']) / 1e3:,.0f}k",
                _spread(row["ratios"]),
                f"{row['peer_compile_seconds']:.1f}",
                f"{row['compile_seconds']:.1f}",
            )
    console.print(table)
    return {"peer": peer.title, "peer_cells": rows}


def report_start(options: Options, console: "Console") -> dict[str, Any]:
    """Measures whole processes in turn.

    Raises:
      BadInput: one of them fails.
    """
    from rich.table import Table

    print(f"{options.agent} on {options.env}, {options.total_steps:,} steps a seed", flush=True)
    config = started_settings(options)
    title = f"seconds and their ratios: median and range of {options.repeats} rounds"
    shown = [field for field in dataclasses.fields(start.Wait) if field.name != "log"]
    heads = ("first line", "first result", "all", "compiling", "training", "evaluating")
    table = Table("seeds", "process", *heads, title=title)
    rows = []
    for num_seeds in options.num_seeds:
        measured = (options.agent, config, options.env, num_seeds, options.repeats)
        waits = start.measure(*measured, with_peer=_has_plain(options))
        ratios = start.ratios(waits)
        rows.append({"num_seeds": num_seeds, "seconds": start.as_json(waits), "ratios": ratios})
        names = {"cold": "ours, cold", "warm": "ours, warm", "plain": "plain PPO"}
        for name, of_one in waits.items():
            columns = []
            for field in shown:
                seconds = [getattr(wait, field.name) for wait in of_one]
                has_range = field.name in start.COMPARED
                median = f"{statistics.median(seconds):.1f}"
                columns.append(_spread(seconds, digits=1) if has_range else median)
            table.add_row(str(num_seeds), names[name], *columns)
        for name, ratio in ratios.items():
            columns = [_spread(ratio[field]) for field in start.COMPARED]
            table.add_row(str(num_seeds), f"plain over {name}", "", *columns)
    console.print(table)
    return {"start": rows}


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range in words."""
    numbers = (statistics.median(values), min(values), max(values))
    median, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{median} [{low}, {high}]"


if __name__ == "__main__":
    compiling.leave(main)
