"""Plays episodes of a trained policy and keeps what was seen: `python -m experiments.play --help`.

Environments of gymnax, EnvPool and Gymnasium give a GIF or an MP4, those of Brax a page. A language
model answers `--prompt`s.
"""

import dataclasses
import functools
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import envs
from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.record.files import write_atomically
from experiments.record.run_folder import EPISODE
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.importing import install_hint
from rgpo_jax.ranges import Count, CountOrZero, Positive

if TYPE_CHECKING:
    import numpy as np

    from experiments.play.episodes import Moment
    from experiments.play.film import Film
    from experiments.training.trained import Trained

PROG = "python -m experiments.play"
FILMS, PAGES = (".gif", ".mp4"), (".html",)
_SHOWN = 8  # numbers of an action
# Frames a second: of environments whose steps are no fractions of a second.
_PACE = {"bsuite": 4.0, "MinAtar": 12.0, "misc": 12.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Play episodes of a trained policy, and make a film of them."""

    run: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of a run, whose newest checkpoint is played."""
    which: Literal["newest", "best"] = "newest"
    """best: the policy of the seed's best evaluation, where the run was told to --keep-best."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .gif or .mp4, for Brax an .html; None: episode.gif or episode.html in the run's folder."""
    overwrite: bool = False
    """Replace FILE."""
    seed: CountOrZero | None = None
    """Which of the seeds that the run trained; None: its first."""
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")] = ()
    """What to ask a language model that experiments.align has trained: it answers on the terminal,
    as does the model that it was before. It plays no episodes; --stochastic, --episodes (answers),
    --episode-seed and --max-steps (tokens) hold for answers."""
    episodes: Count = 1
    """Episodes, one after another."""
    episode_seed: CountOrZero = 0
    """Seed of the first episode; the others have the next numbers. It repeats the same episodes."""
    stochastic: bool = False
    """Actions are samples of the policy; without it they are its mode."""
    max_steps: Annotated[Count | None, tyro.conf.arg(metavar="STEPS")] = None
    """Cut episodes after so many steps; None: they end by themselves."""
    size: Annotated[Count, tyro.conf.arg(metavar="PIXELS")] = 400
    """Longer side of the picture; a page fills its window."""
    max_frames: Count = 300
    """Largest number of frames; of longer episodes every second step is shown, or every third, ...,
    and each end. MuJoCo without a GPU draws some ten frames a second."""
    fps: Annotated[Positive | None, tyro.conf.arg(metavar="FRAMES")] = None
    """Frames a second, up to 50; None: 4 for bsuite, 12 for MinAtar and misc, 30 for others, and
    for Brax the environment's own time."""
    trust_code: bool = False
    """Import code that is not of the suite where the run's settings name it: a gate, an agent."""
    compilation_cache: flags.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_path("compilation_cache", self.compilation_cache)
        if self.episode_seed + self.episodes > 2**31:
            raise ConfigError("episode_seed", f"{self.episode_seed}: expected seeds below 2^31")
        if not 120 <= self.size <= 4096:
            raise ConfigError("size", f"{self.size}: expected 120 to 4096")
        if self.fps is not None and self.fps > 50:  # of more, browsers make 10
            raise ConfigError("fps", f"{self.fps}: expected at most 50")


def main(args: Sequence[str] | None = None) -> int:
    """Plays, and writes the file; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(run=tyro.MISSING), args, PROG)
    from experiments.training import trained

    compiling.keep_programs(options.compilation_cache)
    if options.prompt:
        from experiments.align import talk

        return talk.answer(
            options.run,
            options.prompt,
            options.stochastic,
            options.episodes,
            options.episode_seed,
            options.max_steps,
            options.which,
        )
    loaded = trained.load(options.run, "--run", options.trust_code, which=options.which)
    seed = _choose_seed(options, loaded)
    path = _choose_file(options, loaded.plan.options.env)
    steps = loaded.env_steps[seed - loaded.plan.options.seed]
    title = _title(loaded, seed)
    print(f"{title}, {options.which} policy, after {steps:,} steps", flush=True)
    try:
        outcome = make_film(options, loaded)[1]
    except OSError as error:
        print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    print(f"{outcome} -> {path}")
    return 0


def make_film(options: Options, loaded: "Trained") -> tuple[Path, str]:
    """Plays, and writes the file; returns where it is, and what happened in words.

    Raises:
      BadInput: the options do not fit the run, or the environment cannot be drawn.
      OSError: the file cannot be written.
    """
    seed = _choose_seed(options, loaded)
    path = _choose_file(options, loaded.plan.options.env)
    title = _title(loaded, seed)
    film, ends = _play(options, loaded, seed, title)
    outcome = _outcome(ends)
    content = _develop(film, options, loaded, path.suffix.lower(), f"{title}: {outcome}")
    write_atomically(path, content)
    return path, outcome


def _choose_seed(options: Options, loaded: "Trained") -> int:
    seeds = loaded.plan.options.seeds
    seed = seeds[0] if options.seed is None else options.seed
    if seed not in seeds:
        has = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        raise BadInput(f"--seed {seed}: the run has trained {has}")
    if options.max_steps is None and loaded.agent.env.max_episode_steps is None:
        raise BadInput(f"--max-steps is needed: {loaded.agent.env.name} has no time limit")
    return seed


def _choose_file(options: Options, env: str) -> Path:
    """Where the film goes; raises BadInput where it cannot."""
    accepted = PAGES if env in envs.BRAX else FILMS
    given = options.out
    if given is None:
        given = str(Path(options.run) / f"{EPISODE}{accepted[0]}")
    path = Path(given).expanduser()
    if path.suffix.lower() not in accepted:
        raise BadInput(f"--out {given}: expected a name that ends in {' or '.join(accepted)}")
    if path.suffix.lower() == ".mp4":
        from experiments.play import film

        if not film.mp4_is_possible():
            raise BadInput(
                f"--out {given}: MP4 needs FFmpeg, which an extra brings: "
                f"{install_hint('play')}; a .gif does not"
            )
    if path.exists() and not (options.overwrite and path.is_file()):
        raise BadInput(f"--out {given}: is there already; choose another, or say --overwrite")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"--out {given}: {path.parent} is no folder that can be written")
    return path


def _title(loaded: "Trained", seed: int) -> str:
    options = loaded.plan.options
    agent = options.agent if options.gate is None else f"{options.agent} (gate {options.gate})"
    return f"{agent} on {options.where}, seed {seed}"


def _play(
    options: Options, loaded: "Trained", seed: int, title: str
) -> tuple["Film[Any]", list["Moment"]]:
    """Plays all episodes; returns what was seen, and how each ended."""
    import jax

    from experiments.play import episodes, film
    from rgpo_jax.environment import Box

    agent, index = loaded.agent, seed - loaded.plan.options.seed
    learner = jax.tree.map(lambda x: x[index], loaded.learners)
    stage = episodes.make_stage(agent, options.size)
    is_page = loaded.plan.options.env in envs.BRAX

    def shoot(line: str) -> Any:
        if is_page:
            return line, stage.picture()
        return film.frame(stage.picture(), options.size, (title, line))

    def perform() -> Iterator[tuple[int, "Moment"]]:
        for number in range(options.episodes):
            for moment in episodes.play(
                agent,
                learner,
                stage,
                options.episode_seed + number,
                stochastic=options.stochastic,
                max_steps=options.max_steps,
            ):
                yield number, moment

    ends = []
    is_discrete = not isinstance(agent.env.action_space, Box)
    with _Progress() as progress:
        limits = filter(None, (options.max_steps, agent.env.max_episode_steps))
        moments = options.episodes * (min(limits) + 1)  # with the start of each
        if moments > options.max_frames:
            # Steps take less than pictures: those that would not be shown are not drawn.
            moments = sum(1 for _ in perform())
        whole: Film[Any] = film.Film(-(-moments // options.max_frames))
        for number, moment in perform():
            label = "" if options.episodes == 1 else f"episode {number + 1}   "
            line = label + _line(moment, is_discrete)
            whole.offer(functools.partial(shoot, line), bool(moment.end))
            progress.say(line)
            if moment.end:
                ends.append(moment)
    return whole, ends


def _line(moment: "Moment", with_action: bool) -> str:
    """Where an episode stands."""
    if moment.end:
        return f"step {moment.step}   final return {moment.episode_return:.2f}   {moment.end}"
    line = f"step {moment.step}   return {moment.episode_return:.2f}"
    if moment.action is None:
        return line
    action = f"   action {_in_words(moment.action)}" if with_action else ""
    return f"{line}{action}   reward {moment.reward:+.2f}"


def _in_words(action: "np.ndarray") -> str:
    """A discrete action's numbers, the first few of many."""
    numbers = [str(number) for number in action.ravel()]
    return " ".join(numbers[:_SHOWN] + ["..."] * (len(numbers) > _SHOWN))


def _outcome(ends: Sequence["Moment"]) -> str:
    """Returns and lengths of the episodes."""
    returns = [f"{end.episode_return:.2f}" for end in ends]
    lengths = [str(end.step) for end in ends]
    if len(ends) == 1:
        return f"return {returns[0]}, {lengths[0]} steps, {ends[0].end}"
    mean = statistics.fmean(end.episode_return for end in ends)
    return f"returns {', '.join(returns)} (mean {mean:.2f}), {', '.join(lengths)} steps"


def _develop(
    film: "Film[Any]", options: Options, loaded: "Trained", suffix: str, comment: str
) -> bytes:
    """The file's content."""
    from experiments.play import brax_page
    from experiments.play import film as films

    env: Any = loaded.agent.env
    if suffix in PAGES:
        lines, places = zip(*film.frames, strict=True)
        seconds = env.seconds_per_step * film.stride if options.fps is None else 1 / options.fps
        return brax_page.page(comment, lines, env.describe(places, seconds), seconds)
    fps = options.fps or _PACE.get(env.name.rpartition("-")[2], 30.0)
    return (films.gif if suffix == ".gif" else films.mp4)(film, fps, comment)


class _Progress:
    """One line on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._status = self._console.status("compiling")

    def __enter__(self) -> "_Progress":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def say(self, line: str) -> None:
        self._status.update(line)


if __name__ == "__main__":
    compiling.leave(main)
