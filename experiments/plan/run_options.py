"""The options that say how a run is made and kept, whatever it trains."""

import dataclasses
from typing import Annotated

import tyro

from experiments.cli import flags
from experiments.record.loggers import DEFAULT_LOGGERS, LoggerName
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, NonNegative

# Options that say how a run is kept, and not what it computes: they may differ when it goes on.
MAY_CHANGE = ("checkpoint_every", "loggers", "callback", "log_film")
OF_ONE_RUN = ("callback", "log_film")  # refused in a sweep, which trains several side by side
MOST_SEEDS = 2**20  # of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """Seeds, and where the results go."""

    seed: CountOrZero = 0
    """First seed."""
    num_seeds: Count = 1
    """Seeds trained side by side in one program: seed, seed + 1, ..."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the results; None: a new folder under runs/."""
    overwrite: bool = False
    """Replace the run that DIR holds."""
    resume: bool = False
    """Go on with the run that DIR holds, from its last checkpoint and with its own settings; start
    it if there is none. The same command line can be given again and again."""
    train_longer: bool = False
    """With --resume: go on to more steps than the run had, finished or not (--total-steps, or
    --num-updates of a language model). All is kept; the learning rate is that of a run which was so
    long from the start."""
    checkpoint_every: Annotated[NonNegative | None, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Seconds between two checkpoints, or more, as many as it takes for them to cost under 2
    percent; the newest three are kept. 0 makes one at every line of metrics, None only the last."""
    keep_best: bool = False
    """Keep in checkpoints, beside each seed's newest policy, that of its best evaluation so far:
    play --which best. Its score is the best of many and flatters it; episodes of play are fresh."""
    callback: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """A function of your own, called after each line of metrics with a rgpo_jax.callback.Moment:
    steps, metrics, what was learnt, and how it acts. Where it returns True the run is saved and
    ends there. It changes no number."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Settings from a JSON file, such as an earlier run's config.json; flags override them."""
    trust_code: bool = False
    """Import code that is not of the suite where the settings of a folder or of FILE name it: a
    gate, an agent, a reward, a callback. What you type yourself is imported without."""
    compilation_cache: flags.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""
    loggers: tuple[LoggerName, ...] = DEFAULT_LOGGERS
    """Where metrics go beside metrics.jsonl; wandb is Weights & Biases, and needs an extra."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.num_seeds > 2**32:
            raise ConfigError("seed", f"{self.seed}: expected seeds below 2^32")
        if self.num_seeds > MOST_SEEDS:
            raise ConfigError("num_seeds", f"{self.num_seeds}: expected at most {MOST_SEEDS:,}")
        for field in ("out", "compilation_cache"):
            flags.check_path(field, getattr(self, field))
        if self.resume and self.out is None:
            raise ConfigError("resume", "needs the run's folder too: --out DIR")
        if self.resume and self.overwrite:
            raise ConfigError("resume", "and overwrite exclude each other")
        if self.train_longer and not self.resume:
            raise ConfigError("train_longer", "goes with --out DIR --resume")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)
