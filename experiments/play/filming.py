"""Plays episodes of a policy, and makes a film, or a page, of what was seen."""

import functools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envs
from experiments.cli.flags import BadInput
from experiments.play.options import Options
from experiments.record.files import write_atomically
from experiments.record.run_folder import EPISODE, choose_file
from rgpo_jax.importing import install_hint

if TYPE_CHECKING:
    import numpy as np

    from experiments.play.episodes import Moment
    from experiments.play.film import Film
    from experiments.training.trained import Trained

FILMS, PAGES = (".gif", ".mp4"), (".html",)
_SHOWN = 8  # numbers of an action
# Frames a second: of environments whose steps are no fractions of a second.
_PACE = {"bsuite": 4.0, "MinAtar": 12.0, "misc": 12.0}


def make_film(options: Options, loaded: "Trained") -> tuple[Path, str]:
    """Plays, and writes the file; returns where it is, and what happened in words.

    Raises:
      BadInput: the options do not fit the run, or the environment cannot be drawn.
      OSError: the file cannot be written.
    """
    seed = choose_seed(options, loaded)
    path = choose_path(options, loaded.plan.options.env)
    title = title_of(loaded, seed)
    film, ends = _play(options, loaded, seed, title)
    outcome = _outcome(ends)
    content = _develop(film, options, loaded, path.suffix.lower(), f"{title}: {outcome}")
    write_atomically(path, content)
    return path, outcome


def choose_seed(options: Options, loaded: "Trained") -> int:
    """Whose policy is played; raises BadInput where there is none, or its episodes do not end."""
    seeds = loaded.plan.options.seeds
    seed = seeds[0] if options.seed is None else options.seed
    if seed not in seeds:
        has = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        raise BadInput(f"--seed {seed}: the run has trained {has}")
    if options.max_steps is None and loaded.agent.env.max_episode_steps is None:
        raise BadInput(f"--max-steps is needed: {loaded.agent.env.name} has no time limit")
    return seed


def choose_path(options: Options, env: str) -> Path:
    """Where the film goes; raises BadInput where it cannot."""
    accepted = PAGES if env in envs.BRAX else FILMS
    given = options.out
    if given is None:
        given = str(Path(options.run) / f"{EPISODE}{accepted[0]}")
    path = choose_file(given, accepted, options.overwrite, any_case=True)
    if path.suffix.lower() == ".mp4":
        from experiments.play import film

        if not film.mp4_is_possible():
            raise BadInput(
                f"--out {given}: MP4 needs FFmpeg, which an extra brings: "
                f"{install_hint('play')}; a .gif does not"
            )
    return path


def title_of(loaded: "Trained", seed: int) -> str:
    """What is shown, in words."""
    options = loaded.plan.options
    return f"{options.who} on {options.where}, seed {seed}"


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
