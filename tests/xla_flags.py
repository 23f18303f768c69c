"""Flags of XLA for tests, and for processes that they start."""

import importlib.metadata

SAME_IN_A_BATCH = "--xla_backend_optimization_level=0"
"""For programs that are held against one another to the bit: without the fusion emitters what a
seed computes depends on how many there are beside it, by rounding."""

# An XLA that does not know a flag ends the process: jaxlib 0.11 has no other emitters.
_MAY_DO_WITHOUT_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.9.")

QUICK_TO_COMPILE = (
    " ".join(
        (
            "--xla_backend_optimization_level=0",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        )
    )
    if _MAY_DO_WITHOUT_EMITTERS
    else SAME_IN_A_BATCH
)
"""A program takes a fifth of the time to compile, with a newer jaxlib three quarters, and several
times as long to run."""
