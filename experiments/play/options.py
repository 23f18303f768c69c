"""Which episodes of a trained policy are played, and how they are shown."""

import dataclasses
from typing import Annotated, Literal

import tyro

from experiments.cli import flags
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, Positive


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
