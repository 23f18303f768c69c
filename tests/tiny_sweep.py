"""Sweeps that are small, for tests."""

from experiments.sweep import __main__ as sweep
from experiments.sweep import grid

TINY = [
    *("--num-seeds", "2", "--total-steps", "320", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2"),
]


def expand(content, flags=TINY, folder=None, **more):
    """The cells of a file with this content, which is written into the folder."""
    path = folder / "sweep.yaml"
    path.write_text(content)
    return grid.expand((), (), flags, str(path), sweep.PROG, **more)
