"""Evaluates the policies of a run: `python -m experiments.evaluate --help`."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.cli.terminal import Terminal
from experiments.plan import env_kwargs
from experiments.record.files import to_json, write_atomically
from experiments.record.run_folder import choose_file
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero

if TYPE_CHECKING:
    import numpy as np

    from experiments.plan.reading import Plan
    from experiments.training.trained import Trained
    from rgpo_jax.agent import Agent

PROG = "python -m experiments.evaluate"
# Episodes of a policy side by side: more need memory, and fewer leave an accelerator idle.
_AT_A_TIME, _AT_A_TIME_ON_HOST = 128, 16
# Apart from what training drew, and from its own evaluations.
_STREAM = 0xE5A1
_HOST_SEEDS = 2**30

Run = Callable[[Any], tuple["np.ndarray", "np.ndarray"]]
"""A key -> returns and lengths [S, n] of episodes that it draws."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Evaluate all policies of a run over whole episodes, in its environment or a changed one."""

    run: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of a run, whose newest checkpoint is evaluated."""
    episodes: Count = 100
    """Episodes of each seed's policy."""
    which: Literal["newest", "best"] = "newest"
    """best: the policy of each seed's best evaluation, where the run was told to --keep-best."""
    stochastic: bool = False
    """Actions are samples of the policy; without it they are its mode."""
    episode_seed: CountOrZero = 0
    """What is drawn in the episodes; the same number repeats them, for all policies alike."""
    env_kwargs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Parameters of the environment that differ from the run's, such as length=1.0: how well does
    what was learnt carry over?"""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .json with the return and length of each episode; None: the terminal alone."""
    overwrite: bool = False
    """Replace FILE."""
    trust_code: bool = False
    """Import code that is not of the suite where the run's settings name it: a gate, an agent."""
    compilation_cache: flags.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_path("compilation_cache", self.compilation_cache)
        env_kwargs.parse(self.env_kwargs)
        if self.episode_seed >= _HOST_SEEDS:
            raise ConfigError("episode_seed", f"{self.episode_seed}: expected less than 2^30")


def main(args: Sequence[str] | None = None) -> int:
    """Evaluates; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(run=tyro.MISSING), args, PROG)
    path = None if options.out is None else choose_file(options.out, (".json",), options.overwrite)
    from experiments.training import trained
    from experiments.training.results import aggregate, describe
    from rgpo_jax.inspection import EnvironmentFailed

    compiling.keep_programs(options.compilation_cache)
    loaded = trained.load(options.run, "--run", options.trust_code, which=options.which)
    plan, agent = _changed(options, loaded)
    if agent.env.max_episode_steps is None:
        raise BadInput(
            f"--env-kwargs max_episode_steps=STEPS is needed: {agent.env.name} has no time limit"
        )
    headline = plan.headline
    manner = headline.sampled_manner if options.stochastic else headline.manner
    steps = " or ".join(f"{number:,}" for number in sorted(set(loaded.env_steps)))
    print(
        f"{plan.options.who} on {plan.options.where}: {options.which} {manner} policy after "
        f"{steps} steps, {options.episodes} episodes of each seed",
        flush=True,
    )
    try:
        returns, lengths = _evaluate(options, agent, loaded.learners, len(plan.seeds))
    except EnvironmentFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BROKEN
    for seed, own, taken in zip(plan.seeds, returns, lengths, strict=True):
        print(
            f"  seed {seed}: return {own.mean():.1f} ({own.min():.1f} to {own.max():.1f}, standard "
            f"deviation {own.std():.1f}), length {taken.mean():.1f}"
        )
    means = [float(own.mean()) for own in returns]
    print(
        f"return {describe(means, headline.digits)}, IQM [95 % interval] of the means of "
        f"{plan.number_of_seeds}"
    )
    if path is None:
        return 0
    content = {
        "run": options.run,
        "agent": plan.options.agent,
        "gate": plan.options.gate,
        "env": plan.options.env,
        "env_kwargs": list(plan.options.env_kwargs),
        "randomize": list(plan.options.randomize),
        "which": options.which,
        "manner": manner,
        "env_steps": list(loaded.env_steps),
        "episode_seed": options.episode_seed,
        "seeds": list(plan.seeds),
        "return": aggregate(means),
        "returns": returns.tolist(),
        "lengths": lengths.tolist(),
    }
    try:
        write_atomically(path, to_json(content, indent=1))
    except OSError as error:
        print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    print(f"each episode -> {path}")
    return 0


def _changed(options: Options, loaded: "Trained") -> "tuple[Plan, Agent]":
    """The run's plan and agent, in an environment with the parameters that were typed.

    Raises:
      BadInput: there is no such environment, or its spaces are others.
    """
    if not options.env_kwargs:
        return loaded.plan, loaded.agent
    from experiments.training.building import make_agent

    before = loaded.plan.options
    typed = env_kwargs.parse(options.env_kwargs)
    params = {**env_kwargs.parse(before.env_kwargs), **typed}
    drawn = tuple(one for one in before.randomize if one.partition("=")[0] not in typed)
    changed = dataclasses.replace(
        before, env_kwargs=tuple(env_kwargs.items(params)), randomize=drawn
    )
    plan = dataclasses.replace(loaded.plan, options=changed)
    agent = make_agent(plan)
    for name in ("observation_shape", "action_space"):
        ours, theirs = getattr(agent.env, name), getattr(loaded.agent.env, name)
        if ours != theirs:
            raise BadInput(
                f"--env-kwargs {' '.join(options.env_kwargs)}: {name} is {ours}; the policies are "
                f"for {theirs}"
            )
    return plan, agent


def _evaluate(
    options: Options, agent: "Agent", learners: Any, num_seeds: int
) -> "tuple[np.ndarray, np.ndarray]":
    """Returns and lengths [S, episodes]."""
    import jax
    import numpy as np

    from rgpo_jax.environment import HostEnvironment

    on_host = isinstance(agent.env, HostEnvironment)
    number, run = (_on_host if on_host else _compiled)(options, agent, learners, num_seeds)
    key = jax.random.fold_in(jax.random.key(options.episode_seed), _STREAM)
    columns = (TextColumn("episode {task.completed}"), BarColumn(), TimeRemainingColumn())
    said = TextColumn("return {task.fields[mean]}")
    console = Terminal()
    found = []
    with Progress(
        *columns, said, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=options.episodes, mean="")
        for _ in range(-(-options.episodes // number)):
            key, own = jax.random.split(key)
            found.append(run(own))
            progress.update(task, advance=number, mean=f"{found[-1][0].mean():.1f}")
    returns, lengths = (
        np.concatenate(x, axis=1)[:, : options.episodes] for x in zip(*found, strict=True)
    )
    return returns.astype(np.float64), lengths


def _compiled(options: Options, agent: "Agent", learners: Any, _: int) -> tuple[int, Run]:
    """How many episodes n of a compiled environment run side by side, and what runs them."""
    import jax

    from experiments.training.programs import wait
    from rgpo_jax import train

    number = min(options.episodes, _AT_A_TIME)
    episodes = train.make_evaluation(agent, number, deterministic=not options.stochastic)
    program = jax.jit(
        jax.vmap(episodes, in_axes=(0, None)),
        compiler_options=compiling.options(compiling.Runs.RARELY),
    )

    def run(key: Any) -> Any:
        result = program(learners, key)
        wait(result)
        return jax.device_get(result)

    return number, run


def _on_host(options: Options, agent: "Agent", learners: Any, num_seeds: int) -> tuple[int, Run]:
    """The same of an environment on the host."""
    import jax

    from rgpo_jax import host

    number = min(options.episodes, _AT_A_TIME_ON_HOST)
    evaluator = host.Evaluator(agent, [_HOST_SEEDS + options.episode_seed] * num_seeds, number)

    def run(key: Any) -> Any:
        keys = jax.random.split(key, num_seeds)
        return evaluator.run(learners, keys, deterministic=not options.stochastic)

    return number, run


if __name__ == "__main__":
    compiling.leave(main)
