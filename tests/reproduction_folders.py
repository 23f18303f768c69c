"""Folders of runs that tests of the reproduction share."""

from tests import run_folders

WALKER, ANT = "envpool/Walker2d-v4", "envpool/Ant-v4"
CHEETAH, HOPPER = "envpool/HalfCheetah-v4", "envpool/Hopper-v4"
TASKS = (WALKER, ANT, CHEETAH, HOPPER)


def write(top):
    """RGPO at k = 4 is far better on Walker2d, worse on Ant and equal on HalfCheetah."""
    finals = {
        "rgpo_k4": {WALKER: 1900, ANT: 500, CHEETAH: 1010},
        "ppo": {WALKER: 1000, ANT: 1000, CHEETAH: 1000, HOPPER: 1000},
    }
    for row, by_task in finals.items():
        for task, final in by_task.items():
            folder = top / "mujoco" / row / task.replace("/", "-")
            own = {"sharpness": 4.0} if row == "rgpo_k4" else {}
            agent = row.removesuffix("_k4")
            run_folders.write(folder, agent, task, final=final, spread=10, **own)
    return top


def spiking(rate):
    """A metric of runs whose updates spike at such a rate, however small the threshold."""
    return {f"kl_spike_rate_{t}": rate for t in run_folders.THRESHOLDS}


def candidate(folder, sweep, agent, task, final, **settings):
    name = f"{task}-{agent}-{settings}".replace("/", "-")
    return run_folders.write(
        folder / sweep / name, agent, task, seed=1000, num_seeds=2, final=final, **settings
    )
