"""Policy-gradient agents in JAX: one update step, one swappable gate.

Submodules load on first use (PEP 562), so that reading a Config, printing a help text or
reporting a mistyped flag does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = (
    "advantages",
    "agent",
    "checkpoint",
    "config",
    "data_parallel",
    "descent",
    "diagnostics",
    "distributions",
    "environment",
    "gate_table",
    "gates",
    "host",
    "learner",
    "metrics",
    "networks",
    "normalization",
    "objective",
    "penalties",
    "processes",
    "ranges",
    "rollout",
    "samples",
    "shuffle",
    "statistics",
    "train",
    "trust_region",
    "tunable",
    "update",
)

if TYPE_CHECKING:
    from rgpo_jax import (  # noqa: F401
        advantages,
        agent,
        checkpoint,
        config,
        data_parallel,
        descent,
        diagnostics,
        distributions,
        environment,
        gate_table,
        gates,
        host,
        learner,
        metrics,
        networks,
        normalization,
        objective,
        penalties,
        processes,
        ranges,
        rollout,
        samples,
        shuffle,
        statistics,
        train,
        trust_region,
        tunable,
        update,
    )


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"rgpo_jax.{name}")
    raise AttributeError(f"module 'rgpo_jax' has no attribute {name!r}")
