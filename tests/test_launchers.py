"""Where a sweep's programs run: which cores they have, and that none outlives the sweep."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_sweep import TINY

from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.sweep import __main__ as sweep
from experiments.sweep import launchers
from rgpo_jax.importing import install_hint

LOCAL = launchers.Local
ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers outlive the sweep")
@pytest.mark.parametrize("wait", [0, 5])  # before the worker knows its parent, and after
def test_a_killed_sweep_takes_its_workers_along(wait, tmp_path):
    spec = tmp_path / "x.json"
    os.mkfifo(spec)  # the worker waits for its content
    code = (
        "import sys, time; from pathlib import Path\n"
        "from experiments.sweep.launchers import Local\n"
        "local, spec = Local(1), Path(sys.argv[1]); local.start(spec)\n"
        "print(local._running[spec][0].pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(spec)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker, end = Path(f"/proc/{int(process.stdout.readline())}/stat"), time.monotonic() + 60
    time.sleep(wait)
    assert worker.exists()
    process.kill()
    process.communicate()
    while worker.exists() and worker.read_text().split()[2] != "Z":  # ended, but for its parent
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone pins processes")
@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ({0, 1, 2, 5}, 2, [[0, 1], [2, 5]]),
        ({0, 1, 2, 3, 4}, 2, [[0, 1], [2, 3]]),  # equal: a layout must not depend on the share
        ({0, 1}, 1, [[]]),  # alone, a program has all
        ({0, 1}, 3, [[], [], []]),  # too few to share out
    ],
)
def test_programs_at_a_time_share_the_cores_out(cores, jobs, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    assert launchers.share_cores(jobs) == shares


def test_a_program_gets_the_cores_of_one_that_ended(tmp_path, monkeypatch):
    said = "import sys, time; print(*sys.argv[3:], flush=True); time.sleep(float(sys.argv[1]))"
    monkeypatch.setattr(
        launchers, "command", lambda spec, *flags: [sys.executable, "-c", said, spec.stem, *flags]
    )
    monkeypatch.setattr(launchers, "share_cores", lambda jobs: [[0, 1], [2, 3]])
    local = LOCAL(2)
    short, *long = (tmp_path / f"{seconds}.json" for seconds in (0, 100, 101))
    local.start(short)
    local.start(long[0])
    assert not local.has_room()
    while not (over := local.ended()):
        time.sleep(0.01)
    assert over == [(short, 0)]
    assert local.has_room()
    local.start(long[1])
    for spec, cores in ((short, "0,1"), (long[0], "2,3"), (long[1], "0,1")):
        log, end = spec.with_suffix("") / launchers.LOG, time.monotonic() + 60
        while not log.read_text().endswith("\n"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert log.read_text() == f"--cores={cores}\n"
    local.stop()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone pins processes")
def test_a_worker_keeps_to_its_cores(tmp_path):
    core = max(os.sched_getaffinity(0))
    code = (
        "import os, sys; from experiments.sweep import worker\n"
        "try: worker.main([sys.argv[1], f'--cores={sys.argv[2]},9999'])\n"
        "finally: print(*os.sched_getaffinity(0))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "none.json"), str(core)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.split() == [str(core)]


def test_without_ray_one_line_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--launcher", "ray", "--out", str(tmp_path / "out"), *TINY])
    assert refused.value.code == 2
    assert install_hint("ray") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_cannot_write_ends_what_runs_and_says_so_in_one_line(
    tmp_path, monkeypatch, capsys
):
    class Endless:
        stopped = False

        def has_room(self):
            return True

        def start(self, spec):
            shutil.rmtree(tmp_path / "out")

        def stop(self):
            self.stopped = True

        def ended(self):
            raise FileNotFoundError(2, "No such file or directory", "out")

    launcher = Endless()
    monkeypatch.setattr(launchers, "make", lambda *_: launcher)
    assert sweep.main(["--out", str(tmp_path / "out"), *TINY]) == EXIT_NOT_KEPT
    assert launcher.stopped
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No such file or directory" in error
