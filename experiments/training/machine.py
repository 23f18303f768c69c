"""What a compiled program depends on of the machine, beside its devices."""

import contextlib
import hashlib
import platform
from pathlib import Path


def name() -> str:
    """A name for machines that run the same instructions: a folder may be shared among many.

    JAX tells versions, devices and options apart itself, but not the CPUs for which XLA compiles.
    """
    instructions = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                instructions = line
                break
    digest = hashlib.sha256(instructions.encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"
