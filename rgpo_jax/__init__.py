"""Policy-gradient agents in JAX: one update step, one swappable gate.

Submodules load on first use (PEP 562), so that reading a Config, printing a help text or
reporting a mistyped flag does not wait for JAX.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_SUBMODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))
_OF_POLICIES = ("load", "save")  # functions of `policy`

if TYPE_CHECKING:  # the modules of the folder, whose types would not be known else
    from rgpo_jax import (  # noqa: F401
        acting,
        advantages,
        agent,
        callback,
        checkpoint,
        config,
        convolution,
        data_parallel,
        descent,
        diagnostics,
        distributions,
        environment,
        export,
        gate_table,
        gates,
        host,
        hyperparameters,
        importing,
        inspection,
        keys,
        language,
        learner,
        metrics,
        networks,
        normalization,
        objective,
        onnx_graph,
        penalties,
        policy,
        policy_file,
        processes,
        ranges,
        rollout,
        samples,
        schedules,
        shuffle,
        statistics,
        train,
        trust_region,
        tunable,
        update,
    )
    from rgpo_jax.policy import load, save  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"rgpo_jax.{name}")
    if name in _OF_POLICIES:
        return getattr(importlib.import_module("rgpo_jax.policy"), name)
    raise AttributeError(f"module 'rgpo_jax' has no attribute {name!r}")
