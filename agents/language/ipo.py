"""IPO: a margin of log-ratios that is regressed to 1 / (2 beta) and stays finite (2310.12036)."""

import dataclasses

from agents.language.method import config, loss_of, maker_from_data
from rgpo_jax.language.pair_config import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    by_length: bool = False
    """Divide log-ratios by an answer's number of tokens, as widely used code does; the paper's are
    sums."""


Config = config(__name__, _Loss, DataConfig)
loss = loss_of("ipo", ("by_length",))
make = maker_from_data(Config, loss)
