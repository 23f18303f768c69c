"""Flags of XLA for processes that tests start, and for tests themselves."""

QUICK_TO_COMPILE = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
"""A program takes a fifth of the time to compile, and several times as long to run."""

QUICK_TO_RUN = "--xla_backend_optimization_level=1"
"""For what trains as long as it compiles."""
