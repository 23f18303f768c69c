"""Programs compile side by side, are kept on disk, and are the same for other numbers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from probes import records

from envs import lazy
from experiments import run
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted
from experiments.training import building, compiling
from experiments.training.compiling import Runs
from experiments.training.programs import Episodes

ROOT = Path(__file__).parents[1]
TINY = [
    *("--agent", "rgpo", "--num-seeds", "2", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2"),
]


@pytest.fixture
def jax_settings():
    """Puts JAX's settings of its cache back."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_logging_level",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def kept(folder):
    return sorted(path.name for path in folder.rglob("*-cache"))


def test_other_numbers_and_more_steps_find_the_same_programs(tmp_path, jax_settings, monkeypatch):
    monkeypatch.setattr(compiling, "_LEAST_SECONDS", 0.0)
    cache, out = tmp_path / "cache", tmp_path / "run"

    def train(*args):
        compilation_cache.reset_cache()
        flags = ["--compilation-cache", str(cache), "--out", str(out), "--overwrite", *args]
        assert run.main([*TINY, *flags]) == 0
        return kept(cache)

    first = train("--total-steps", "64")
    assert first
    other = ["--total-steps", "128", "--seed", "7", "--learning-rate", "1e-4", "--sharpness", "2"]
    other += ["--end-learning-rate", "1e-5", "--warmup-steps", "32"]
    assert train(*other, "--discount", "0.9", "--gae-lambda", "0.5") == first


def test_a_cache_is_bounded_and_apart_for_each_kind_of_cpu(tmp_path, jax_settings, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compiling.keep_programs(None)
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == compiling.default_cache() == tmp_path / "rgpo_jax" / "compiled"
    assert jax.config.jax_compilation_cache_max_size == compiling.CACHE_BYTES
    monkeypatch.setattr(compiling.machine, "name", lambda: "another")
    compiling.keep_programs(str(tmp_path / "mine"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine" / "another")


def test_what_jax_was_told_itself_is_obeyed(tmp_path, jax_settings):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compiling.keep_programs(None)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_off_keeps_nothing(tmp_path, jax_settings):
    compiling.keep_programs("off")
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made_is_refused_if_it_was_named(
    tmp_path, jax_settings, monkeypatch
):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BadInput, match=r"--compilation-cache .*file: .*expected a folder"):
        compiling.keep_programs(str(file))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # and passed over if it was not
    jax.config.update("jax_compilation_cache_dir", None)
    compiling.keep_programs(None)
    assert jax.config.jax_compilation_cache_dir is None


def test_the_command_line_refuses_it_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--out", str(tmp_path / "out"), "--compilation-cache", "/dev/null/x"])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --compilation-cache /dev/null/x: ")
    assert error.count("\n") == 1


def test_a_level_in_xla_flags_is_the_users(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    for level, runs in enumerate((Runs.ONCE, Runs.RARELY, Runs.OFTEN)):
        assert compiling.options(runs) == {"xla_backend_optimization_level": level}
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert compiling.options(Runs.OFTEN) is None


def test_programs_compile_in_threads_and_errors_come_where_they_are_needed():
    compiler = compiling.Compiler()
    lowered = jax.jit(lambda x: jnp.sin(x) + 1).lower(1.0)
    good = compiler.start("good", lowered)

    class Broken:
        def compile(self, options):
            raise ValueError("no")

    bad = compiler.start("bad", Broken())
    compiler.wait()
    assert good.result()(0.0) == 1.0
    with pytest.raises(ValueError, match="no"):
        bad.result()
    assert compiler.describe().startswith("good 0.")


def test_what_compiles_is_shown_until_it_is_ready():
    class Slow:
        def compile(self, options):
            time.sleep(0.5)

    compiler, shown = compiling.Compiler(), []
    compiler.start("slow", Slow())
    compiler.wait(shown.append)
    assert shown
    assert all(line == "compiling: slow 0 s ..." for line in shown)


def test_a_stop_is_heard_while_xla_compiles(tmp_path):
    flags = ["--env", "Breakout-MinAtar", "--compilation-cache", "off", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *flags],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "compiling ..." in line:
            break
    time.sleep(2.0)  # most of it is spent in XLA
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert time.monotonic() - asked < 5
    assert (process.returncode, errors) == (128 + signal.SIGINT, "")
    assert "stopped; go on with" in rest


def test_what_a_user_has_open_at_the_end_is_written(tmp_path):
    (tmp_path / "notes.py").write_text(
        "LOG = open('notes.txt', 'w')\ndef note(text):\n    LOG.write(text)\n"
    )
    program = (
        "from experiments.training import compiling\n"
        "alone = compiling._is_alone()\n"
        "import notes\n"
        "def main():\n"
        "    notes.note(f'{alone} {compiling._is_alone()}')\n"
        "    return 3\n"
        "compiling.leave(main)\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert ended.returncode == 3
    # A program by itself ends without looking for garbage, and another one does not.
    assert (tmp_path / "notes.txt").read_text() == "True False"


@pytest.mark.parametrize("breaks", [pytest.param(False, marks=pytest.mark.alike), True])
def test_a_stop_that_tracing_lost_is_heard_nevertheless(tmp_path, monkeypatch, breaks):
    make = building.make_programs

    def lose_it(*args):
        with contextlib.suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        if breaks:
            raise SystemError("returned NULL without setting an exception")
        return make(*args)

    monkeypatch.setattr(building, "make_programs", lose_it)
    assert run.main([*TINY, "--total-steps", "320", "--out", str(tmp_path)]) == 128 + signal.SIGTERM
    said = (tmp_path / "run.log").read_text()
    assert "stopped; go on with" in said
    assert "compiled in" not in said


@pytest.mark.parametrize(
    ("wanted", "limit", "interval", "expected"),
    [
        (32, 500, 50_000, 32),  # 16,000 steps of 50,000
        (32, 1000, 100_000, 32),
        (32, 1000, 10_000, 2),
        (32, 1000, 10, 1),  # at least one
        (10, 1000, 10_000, 2),
        (25, 500, 2048, 1),
        (100, 1000, 10_240, 2),  # three fit, but do not divide it
        (7, 1000, 10_000, 1),
        (7, 1000, 10**9, 7),
        (33, 1, 100, 33),
        (32, None, 10, 32),
    ],
)
def test_episodes_while_training_are_a_share(wanted, limit, interval, expected):
    assert Episodes.within(0.33, wanted, limit, interval) == (wanted, expected)


@pytest.mark.alike
def test_evaluations_while_training_are_of_the_mode_and_the_last_is_whole(tmp_path):
    flags = ["--total-steps", "320", "--out", str(tmp_path), "--eval-episodes", "4"]
    assert run.main([*TINY, *flags]) == 0
    evaluated = [line for line in records(tmp_path) if "eval_return" in line]
    sampled = ["eval_return_stochastic" in line for line in evaluated]
    assert sampled == [True, *[False] * (len(evaluated) - 2), True]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final_return_stochastic"]["per_seed"] == evaluated[-1]["eval_return_stochastic"]
    assert [set(line["eval_episodes"]) for line in evaluated] == [
        *[{1.0}] * (len(evaluated) - 1),
        {4.0},
    ]
    log = (tmp_path / "run.log").read_text()
    assert log.count(" (1 episode a seed)  training") == len(evaluated) - 2
    # One episode at a time while training, and four at the end: a mean of whole numbers over four.
    lengths = np.array([line["eval_length"] for line in evaluated])
    assert (lengths[:-1] % 1 == 0).all()
    assert (lengths[-1] * 4 % 1 == 0).all()


def test_a_stand_in_is_the_module_once_it_is_used():
    sys.modules.pop("colorsys", None)
    with lazy.imports("colorsys"):
        import colorsys as stand_in
    assert "colorsys" not in sys.modules
    assert stand_in.rgb_to_hsv(1, 1, 1) == (0.0, 0.0, 1)
    assert sys.modules["colorsys"].rgb_to_hsv is stand_in.rgb_to_hsv


LEAVES = """
import socket
from experiments.training import compiling
from experiments.training.compiling import Runs

def elsewhere():
    one, other = socket.socketpair()
    other.close()
    one.send(b"x")

compiling.leave(MAIN)
"""


@pytest.mark.parametrize(
    ("main", "output", "status", "said"),
    [
        ("lambda: print('x' * 10**5)", "/dev/full", 4, "error: the output cannot be written"),
        ("lambda: print('x')", "/dev/full", 4, "error: the output cannot be written"),
        ("lambda: print('x')", os.devnull, 0, ""),
        ("elsewhere", os.devnull, 1, "Traceback"),
    ],
)
def test_output_that_cannot_be_written_is_a_line(main, output, status, said):
    with Path(output).open("w") as file:
        left = subprocess.run(
            [sys.executable, "-c", LEAVES.replace("MAIN", main)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert left.returncode == status
    assert left.stderr.startswith(said) and (said == "Traceback" or left.stderr.count("\n") <= 1)


def test_who_reads_no_further_is_told_nothing():
    left = subprocess.run(
        f"{sys.executable} -m experiments.align.show --help | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert left.returncode in (0, 128 + signal.SIGPIPE)
    assert left.stderr == ""
