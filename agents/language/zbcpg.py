"""ZBCPG: ZPG along blocks of random coordinates, which may be tried in parallel (2409.17401)."""

import dataclasses

from agents.language.method import config, maker_zeroth
from rgpo_jax.language.zeroth_config import ZerothConfig
from rgpo_jax.ranges import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    num_coordinates: Count = 16
    """Parameters that a direction changes (K)."""


Config = config(__name__, _Block, ZerothConfig, max_grad_norm=10.0)
make = maker_zeroth(Config)
