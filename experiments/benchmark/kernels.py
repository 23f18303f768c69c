"""Which kernels a program spends its time in, from a profile of it."""

import collections
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# On a CPU these last as long as what is within them.
_CONTAINERS = ("while", "conditional", "call")


def profile(run: Callable[[], Any], count: int) -> dict[str, Any]:
    """Profiles a call that blocks until its results are there.

    Returns:
      "seconds": that it took, under the profiler, which slows down many small kernels;
      "kernel_seconds": the sum over all kernels, on all streams;
      "kernels": their number;
      "longest": the `count` kernels of the longest total time, each with name, calls, seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            run()
            seconds = time.perf_counter() - started
        calls: collections.Counter[str] = collections.Counter()
        totals: collections.Counter[str] = collections.Counter()
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, nanoseconds in _kernels(ProfileData.from_file(str(path))):
                calls[name] += 1
                totals[name] += nanoseconds
    if not calls:
        raise RuntimeError("the profile has no kernels")
    return {
        "seconds": seconds,
        "kernel_seconds": sum(totals.values()) / 1e9,
        "kernels": sum(calls.values()),
        "longest": [
            {"name": name, "calls": calls[name], "seconds": total / 1e9}
            for name, total in totals.most_common(count)
        ],
    }


def _kernels(data: ProfileData) -> Iterator[tuple[str, int]]:
    """Name and nanoseconds of every kernel that ran."""
    planes = list(data.planes)
    streams = [
        line
        for plane in planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream")  # other lines tell the same once more
    ]
    for line in streams:
        for event in line.events:
            yield event.name, round(event.duration_ns)
    if streams:
        return
    for plane in planes:  # a CPU's kernels are among the calls of its threads
        for line in plane.lines:
            for event in line.events:
                # Looked at first: to read what an event says is slow.
                if event.name.startswith(("end: ", "$", *_CONTAINERS)):
                    continue
                if any(name == "hlo_op" for name, _ in event.stats):
                    yield event.name, round(event.duration_ns)
