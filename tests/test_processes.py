"""Several processes that train one run: the numbers of one, an orderly end, and one voice."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from probes import assert_same_numbers
from xla_flags import QUICK_TO_COMPILE

import rgpo_jax
from experiments import run
from rgpo_jax.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
TINY = [  # one seed: its environments are shared out, and gradients go from process to process
    # Motion and actions are smooth: no rounding becomes another action.
    *("--agent", "ppo", "--env", "MountainCarContinuous-v0", "--seed", "5"),
    *("--env-kwargs", "max_episode_steps=20", "--total-steps", "240"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
    *("--log-every", "48", "--normalize-observations", "--checkpoint-every", "3600", "--keep-best"),
]


# The second process is told to end when both have made 12 updates.
SIGNALLED = """
import os, signal, sys
from experiments import run
from experiments.training import loop
report = loop.Training._report
def report_and_be_told(self, *args):
    report(self, *args)
    if self._position.updates == 12 and sys.argv[-1] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
loop.Training._report = report_and_be_told
sys.exit(run.main())
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert run.main([*TINY, "--out", str(folder)]) == 0
    return folder


class Pair:
    """Two processes with one command line; their ends are waited for, whatever happens."""

    def __init__(self, cache, folder, *args, start=("-m", "experiments.run")):
        env = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count=1",
        }
        command = [sys.executable, *start, *TINY, *args, "--out", str(folder)]
        command += ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2"]
        self.processes = [
            subprocess.Popen(
                [*command, "--process-id", str(i)],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def end(self):
        """Exit statuses, and what each said: (stdout, stderr)."""
        said = [process.communicate(timeout=300) for process in self.processes]
        return [process.returncode for process in self.processes], said


def ours(stdout):
    """What a process printed, but for a line of the library that connects them."""
    return [line for line in stdout.splitlines() if "[Gloo]" not in line]


def test_two_processes_give_the_numbers_of_one(alone, cache, tmp_path):
    with Pair(cache, tmp_path / "two") as pair:
        status, ((first, _), (second, _)) = pair.end()
    assert status == [0, 0]
    assert "for 2 devices: seeds over 1, environments over 2" in first
    assert ours(second) == []
    assert_same_numbers(tmp_path / "two", alone)
    assert rgpo_jax.load(tmp_path / "two").about.updates == rgpo_jax.load(alone).about.updates
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["device"].endswith("x 2")


@pytest.mark.slow  # four processes start and compile
def test_a_signal_to_one_process_ends_all_in_order_and_they_go_on(alone, cache, tmp_path):
    folder = tmp_path / "two"
    with Pair(cache, folder, start=["-c", SIGNALLED]) as pair:
        status, ((first, _), (second, _)) = pair.end()
    assert status == [143, 143]
    assert "--resume" in first.splitlines()[-1]
    assert ours(second) == []
    assert Checkpoints(folder / "checkpoints").saved() == [12]
    with Pair(cache, folder, "--resume") as pair:
        status, ((first, _), _) = pair.end()
    assert status == [0, 0]
    assert "going on after 192 steps" in first
    assert_same_numbers(folder, alone)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--coordinator", "here"], "--coordinator 'here': expected HOST:PORT or auto"),
        (["--coordinator", "h:1"], "--coordinator needs --num-processes N and --process-id I too"),
        (["--num-processes", "2"], "--num-processes 2: goes with --coordinator HOST:PORT"),
        (
            ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id 2: expected a number from 0 to 1",
        ),
        (
            ["--coordinator", "auto", "--env", "envpool/HalfCheetah-v4"],
            "--coordinator auto: envpool/HalfCheetah-v4 lives on the host of one process",
        ),
        (
            ["--coordinator", "h:1", "--num-processes", "3", "--process-id", "0"],
            "--num-processes 3: 1 seeds, 2 environments",
        ),
    ],
)
def test_processes_that_cannot_be_are_refused_in_one_line(args, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--out", str(tmp_path / "x"), *args])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_several_processes_need_a_folder(capsys):
    with pytest.raises(SystemExit):
        run.main(["--coordinator", "auto"])
    assert "--out DIR" in capsys.readouterr().err
