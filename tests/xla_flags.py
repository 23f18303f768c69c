"""Flags of XLA for tests, and for processes that they start."""

import importlib.metadata

SAME_IN_A_BATCH = "--xla_backend_optimization_level=0"
"""For programs that are held against one another to the bit: without the fusion emitters what a
seed computes depends on how many there are beside it, by rounding."""

# An XLA that does not know a flag ends the process. jaxlib 0.11 knows this one no more, and has an
# option in its place.
_WITHOUT_EMITTERS = (
    "--xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib").startswith("0.9.")
    else "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)

QUICK_TO_COMPILE = (
    f"--xla_backend_optimization_level=0 {_WITHOUT_EMITTERS}"
    " --xla_cpu_parallel_codegen_split_count=1"
)
"""A program takes a fifth of the time to compile, and several times as long to run."""
