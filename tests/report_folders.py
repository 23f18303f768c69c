"""Folders of runs that tests of the report share."""

from experiments.report import runs
from experiments.report.page import Report
from tests import run_folders

GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xf9\x04\x01\n\x00\x01\x00,"
GIF += b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02L\x01\x00;"


def sweep(top):
    """Three variants on two environments, some seeds in a run of their own."""
    for env, scale in (("Acrobot-v1", 0.5), ("CartPole-v1", 1.0)):
        run_folders.write(top / env / "ppo", "ppo", env, final=300 * scale)
        run_folders.write(top / env / "k4", "rgpo", env, final=480 * scale, sharpness=4.0)
        run_folders.write(top / env / "k16", "rgpo", env, final=310 * scale, sharpness=16.0)
    more = top / "CartPole-v1" / "more"
    run_folders.write(more, "rgpo", seed=5, num_seeds=3, final=480, sharpness=4.0)
    (top / "CartPole-v1" / "k4" / "episode.gif").write_bytes(GIF)
    return top


def grid(top):
    """Two settings of rgpo on a grid of 3 x 2, one of ppo, and a longer run of that."""
    for i, rate in enumerate((1e-4, 1e-3, 1e-2)):
        run_folders.write(top / f"ppo-{i}", "ppo", final=300 + 10 * i, learning_rate=rate)
        for k in (2.0, 16.0):
            name = top / f"rgpo-{i}-{k:g}"
            run_folders.write(name, "rgpo", final=100 * i + 10 * k, learning_rate=rate, sharpness=k)
    run_folders.write(top / "long", "ppo", final=9000, lines=20, learning_rate=1e-2)
    return Report("grid", runs.collect([str(top)]), None)


def lengths(top):
    """Two agents on poles of three lengths, one with the usual pole, and one with two numbers."""
    for i, length in enumerate(("0.25", "0.5", "2.0")):
        for j, agent in enumerate(("ppo", "rgpo")):
            settings = {"env_kwargs": [f"length={length}"], "final": 300 - 100 * i + 10 * j}
            run_folders.write(top / f"{agent}-{i}", agent, **settings)
    run_folders.write(top / "usual", "ppo", final=400)
    both = ["gravity=1.6", "length=0.5"]
    run_folders.write(top / "moon", "ppo", final=450, env_kwargs=both)
    run_folders.write(top / "moon2", "ppo", final=450, env_kwargs=["gravity=9.8", "length=1e999"])
    return Report("lengths", runs.collect([str(top)]), None)
