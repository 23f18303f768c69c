"""Real processes, killed by the system at random moments and while they write: nothing is lost.

`OTHER_PYTHON` names the interpreter of another environment of the suite's, with which runs that
were killed are gone on with, and the other way about.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from probes import records, timeless_records
from xla_flags import QUICK_TO_COMPILE, SAME_IN_A_BATCH

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--num-seeds", "2", "--seed", "5", "--total-steps", "8000"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
    *("--log-every", "400", "--eval-every", "2000", "--checkpoint-every", "0.2"),
]
RUN = ["experiments.run", *SMALL, "--env", "CartPole-v1", "--agent", "ppo"]
SWEEP = ["experiments.sweep", *SMALL, "--agents", "rgpo", "ppo", "--jobs", "2"]
# What is seen of a file that is being written, in a run's folder.
BEING_WRITTEN = {
    "checkpoint": "checkpoints/*tmp*",
    "checksums": "checkpoints/*/.checksums.json",
    "newest checkpoint": "checkpoints/[1-9]*",
    "metrics": "metrics.jsonl",
    "curve": "*learning_curve.png*",
    "summary": "*summary.json*",
}
OTHER_PYTHON = os.environ.get("OTHER_PYTHON")
# Another jaxlib may not know what makes this one quick.
KNOWN_TO_BOTH = SAME_IN_A_BATCH if OTHER_PYTHON else QUICK_TO_COMPILE
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers outlive the sweep")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs that are compiled once for all processes."""
    return tmp_path_factory.mktemp("cache")


def start(command, out, cache, *more, python=sys.executable):
    env = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": f"{KNOWN_TO_BOTH} --xla_force_host_platform_device_count=1",
    }
    return subprocess.Popen(
        [python, "-m", *command, "--out", str(out), *more],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*args, **kwargs):
    process = start(*args, **kwargs)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The run that nothing cut off."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(RUN, folder, cache)
    return folder


def assert_same_run(folder, reference):
    """To the bit: the metrics, the scores, and that each file is there."""
    assert timeless_records(folder) == timeless_records(reference)
    ends = [json.loads((x / "summary.json").read_text()) for x in (folder, reference)]
    assert ends[0]["final_return"] == ends[1]["final_return"]
    names = [sorted(path.name for path in x.iterdir()) for x in (folder, reference)]
    assert names[0] == names[1]


def kill_after(process, seconds):
    """Whether it was killed; else it had ended by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    return kill(process)


def kill_when_seen(process, folder, pattern, wait=0.0, pause=2e-4):
    """Kills it as soon as there is such a file that was not there before; it looks after pauses."""
    before = set(folder.glob(pattern))
    while process.poll() is None and not set(folder.glob(pattern)) - before:
        time.sleep(pause)
    time.sleep(wait)
    return kill(process)


def kill(process):
    running = process.poll() is None
    if running:
        process.kill()
    else:
        assert process.returncode == 0, process.stdout.read()
    process.communicate()
    return running


def test_a_run_that_is_killed_while_it_writes_goes_on(whole, cache, tmp_path):
    for what in ("checkpoint", "summary"):
        process = start(RUN, tmp_path / "killed", cache, "--resume")
        # Both are there for long enough.
        assert kill_when_seen(process, tmp_path / "killed", BEING_WRITTEN[what], pause=2e-3), what
    finish(RUN, tmp_path / "killed", cache, "--resume")
    assert_same_run(tmp_path / "killed", whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_survives_kills_at_random_moments_and_while_it_writes(whole, cache, tmp_path):
    rng, folder, killed, ended = random.Random(1), tmp_path / "killed", 0, 0
    while killed < 40:
        process = start(RUN, folder, cache, "--resume")
        if rng.random() < 0.3:
            was_killed = kill_after(process, rng.uniform(0.5, 9))
        else:
            pattern = rng.choice(list(BEING_WRITTEN.values()))
            was_killed = kill_when_seen(process, folder, pattern, rng.choice([0, 0, 0.001, 0.01]))
        killed += was_killed
        if not was_killed:
            ended += 1
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
    finish(RUN, folder, cache, "--resume")
    assert_same_run(folder, whole)
    print(f"{killed} kills, and {ended} ends before the kill")


def workers_of(folder):
    """Processes whose command line names something in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@on_linux
def test_a_sweep_survives_kills_and_leaves_no_worker(cache, tmp_path):
    rng, folder, killed = random.Random(2), tmp_path / "killed", 0
    finish(SWEEP, tmp_path / "whole", cache)
    patterns = ["programs/*/checkpoints/*tmp*", "*/checkpoints/*", "*/*summary.json*", "*.json"]
    while killed < 12:
        process = start(SWEEP, folder, cache)
        if rng.random() < 0.3:
            was_killed = kill_after(process, rng.uniform(1, 20))
        else:
            was_killed = kill_when_seen(process, folder, rng.choice(patterns))
        deadline = time.monotonic() + 30
        while workers_of(folder):
            assert time.monotonic() < deadline, "a worker outlived its sweep"
            time.sleep(0.1)
        killed += was_killed
        if not was_killed:
            shutil.rmtree(folder)
    finish(SWEEP, folder, cache)
    for agent in ("rgpo", "ppo"):
        assert_same_run(*(tmp_path / x / f"CartPole-v1-{agent}" for x in ("killed", "whole")))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not OTHER_PYTHON, reason="OTHER_PYTHON names no interpreter")
@pytest.mark.parametrize("there", [True, False], ids=["to-the-other", "back"])
def test_a_killed_run_goes_on_with_another_python(there, cache, tmp_path):
    pythons = [sys.executable, OTHER_PYTHON] if there else [OTHER_PYTHON, sys.executable]
    for what, pattern in BEING_WRITTEN.items():
        folder = tmp_path / what
        # What is there for a millisecond is not seen in every run.
        for _ in range(20):
            if kill_when_seen(start(RUN, folder, cache, python=pythons[0]), folder, pattern):
                break
            shutil.rmtree(folder)
        else:
            pytest.fail(f"{what}: never seen")
        said = finish(RUN, folder, cache, "--resume", python=pythons[1])
        assert records(folder)[-1]["env_steps"] == 8000, said
        assert ("going on after" in said) == ("numbers will differ" in said)
