"""The benchmark measures what it says; how fast is not a test."""

import dataclasses
import gc
import json
import sys
import threading
import time
from pathlib import Path

import checkouts
import jax
import pytest
from probes import assert_refused

import envs
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import measure, peers, start
from experiments.cli.flags import BadInput


@pytest.fixture(autouse=True)
def settings_of_jax():
    """What a benchmark sets for its process; and here programs compile fast, and run slowly."""
    caches = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", caches)


QUICK = ("--num-envs", "2", "--num-steps", "8", "--seconds", "0.01", "--repeats", "2")


class Clock(measure.Program):
    """Stands for a program that takes so many seconds for one repetition."""

    def seconds(self, count):
        return count * self.state


def test_a_benchmark_reports_every_part_and_the_pair(tmp_path, capsys, monkeypatch):
    parts, orders = {"rollout": 0.001, "update": 0.002, "step": 0.004}, {True: 8, False: 2}

    def build(name, env, options, num_envs, num_seeds, part, seeds_in_turn=None):
        seconds = parts[part] * (5 if name == "rgpo" else 4) * orders.get(seeds_in_turn, 1)
        return Clock(None, seconds, num_seeds * num_envs * options.num_steps, 0.5, 2**20)

    monkeypatch.setattr(benchmark, "build", build)
    out = tmp_path / "speed.json"
    assert benchmark.main([*QUICK, "--num-seeds", "1", "2", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    cells = {(cell["num_seeds"], cell["num_envs"], cell["part"]) for cell in content["cells"]}
    assert cells == {(s, 2, part) for s in (1, 2) for part in parts}
    for cell in content["cells"]:
        rate = cell["num_seeds"] * 2 * 8 / (5 * parts[cell["part"]])
        assert cell["slowest"] == cell["fastest"] == cell["steps_per_second"]
        assert cell["steps_per_second"] == pytest.approx(rate)
        assert (cell["compile_seconds"], cell["memory_mib"]) == (0.5, 1.0)
    for part in ("update", "step"):
        assert content["cost_ratio"][part]["median"] == pytest.approx(5 / 4)
        assert content["cost_ratio"][part]["quartiles"] == pytest.approx([5 / 4] * 2)
        assert content["cost_ratio"][part]["pairs"] == 6
    ratio = content["seed_order_ratio"]
    assert (ratio is None) == (jax.local_device_count() > 1)  # else each seed has a device
    assert ratio is None or ratio["median"] == pytest.approx(2 / 8)
    assert content["machine"]
    said = capsys.readouterr().out
    assert "cost of rgpo over ppo, step" in said
    assert ("one after another, 2 seeds of 2 environments" in said) == (ratio is not None)


@pytest.mark.parametrize(
    ("part", "num_seeds", "seeds_in_turn"),
    [("rollout", 1, None), ("update", 2, None), ("step", 2, True)],
)
def test_a_part_is_a_program_that_is_timed(part, num_seeds, seeds_in_turn):
    options = measure.Options(num_steps=8, seconds=0.01, repeats=2)
    cell = ("ppo", envs.make("CartPole-v1"), options, 2, num_seeds, part, seeds_in_turn)
    program = measure.build(*cell)
    assert program.steps == num_seeds * 2 * 8
    found = measure.measure(program, options)
    assert 0 < found["slowest"] <= found["steps_per_second"] <= found["fastest"]
    assert found["compile_seconds"] > 0 and found["memory_mib"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--agent", "rgp0"], "--agent rgp0: unknown agent"),
        (["--env", "CartPol"], "did you mean CartPole-v1"),
        (["--num-envs", "0"], "--num-envs 0: expected a whole number of at least 1"),
        (["--num-envs"], "--num-envs"),
        (["--num-envs", "1", "--num-steps", "3"], "expected a multiple of 4"),
        (["--out", "/no/such/folder/x.json"], "no such folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(args, message, capsys):
    assert_refused(benchmark.main, args, message, capsys)


def test_a_peer_is_measured_in_turn(tmp_path, capsys):
    out = tmp_path / "peer.json"
    peer = str(checkouts.rejax(tmp_path))
    args = [*QUICK, "--num-seeds", "2", "--agent", "ppo", "--peer", peer, "--out", str(out)]
    assert benchmark.main(args) == 0
    content = json.loads(out.read_text())
    assert content["peer"] == "Rejax"
    devices = [1] if jax.local_device_count() == 1 else [1, 2]
    assert [cell["peer_devices"] for cell in content["peer_cells"]] == devices
    for cell in content["peer_cells"]:
        assert (cell["num_seeds"], cell["num_envs"]) == (2, 2)
        pairs = zip(cell["steps_per_second"], cell["peer_steps_per_second"], strict=True)
        assert cell["ratios"] == pytest.approx([a / b for a, b in pairs])
        assert len(cell["ratios"]) == 2
        assert cell["compile_seconds"] > 0 and cell["peer_compile_seconds"] > 0
    assert "ppo and Rejax: median and range of 2 pairs" in capsys.readouterr().out


SIZES = measure.settings_of("ppo", measure.Options(peer="plain", num_steps=8), 2)


def test_the_plain_ppo_is_a_peer_with_the_same_sizes():
    """It is compiled as a checkout's training is, which has a test of its own."""
    peer = peers.find("plain")
    assert isinstance(peer, peers.WholeTraining) and peer.title == "plain PPO"
    train = peer.make_train("CartPole-v1", SIZES, 3)
    found = jax.eval_shape(train, jax.random.key(0))
    assert found["metrics"]["timestep"].shape == (3, SIZES.num_steps, SIZES.num_envs)


@pytest.fixture
def leaves_nothing():
    """What a checkout needs is gone when its programs are compiled."""
    before, path = dict(sys.modules), sys.path.copy()
    yield
    assert sys.path == path
    for name in ("ppo", "wrappers", "rejax"):
        assert name not in sys.modules
    for name in ("gymnax", "chex", "distrax", "navix", "brax", "brax.envs"):
        assert sys.modules.get(name) is before.get(name) or "site-packages" in str(
            sys.modules[name].__file__
        )


# What both have in common makes programs of one seed, and of more.
@pytest.mark.parametrize(("make", "num_seeds"), [(checkouts.purejaxrl, 1), (checkouts.rejax, 2)])
def test_a_checkout_is_told_by_its_files_and_gets_what_it_needs(
    make, num_seeds, tmp_path, leaves_nothing
):
    folder = make(tmp_path)
    peer = peers.find(str(folder))
    assert peer.title == {"purejaxrl": "PureJaxRL", "rejax": "Rejax"}[make.__name__]
    program = peer.program("CartPole-v1", SIZES, num_seeds, 1, seconds=0.01)
    updates, rest = divmod(program.steps, num_seeds * SIZES.batch_size)
    assert updates >= 1 and rest == 0
    assert program.seconds(2) > 0
    assert not list(folder.rglob("__pycache__"))


def test_a_package_is_told_where_it_is_installed(tmp_path):
    checkouts.write(tmp_path, {"rejax/algos/ppo.py": "", "brax/training/agents/ppo/train.py": ""})
    assert peers.find(str(tmp_path / "rejax")).title == "Rejax"
    assert peers.find(str(tmp_path / "brax")).title == "Brax"
    with pytest.raises(BadInput, match="expected plain, or a checkout"):
        peers.find(str(tmp_path / "rejax" / "algos"))


def test_seeds_of_a_peer_are_spread(tmp_path):
    if jax.local_device_count() < 2:
        pytest.skip("one device")
    peer = peers.find(str(checkouts.rejax(tmp_path)))
    program = peer.program("CartPole-v1", SIZES, 4, 2, seconds=0.01)
    assert program.state.sharding.num_devices == 2
    assert program.seconds(1) > 0


def test_braxs_loop_stands_still_between_timings(tmp_path, leaves_nothing):
    config = dataclasses.replace(SIZES, num_envs=4)
    peer = peers.find(str(checkouts.brax(tmp_path)))
    program = peer.program("brax/ant", config, 1, 1, seconds=0.01)
    assert program.steps >= 16_384 and program.steps % config.batch_size == 0
    assert 0.1 < program.compile_seconds < 0.2  # 0.2 less 0.02
    assert 0.02 <= program.seconds(1) < 0.2
    with pytest.raises(ArithmeticError, match="in the fourth epoch"):
        program.seconds(1)


def test_braxs_loop_ends_with_its_program(tmp_path):
    peer = peers.find(str(checkouts.brax(tmp_path)))
    before = threading.active_count()
    program = peer.program("brax/ant", dataclasses.replace(SIZES, num_envs=4), 1, 1, 0.01)
    assert threading.active_count() == before + 1
    del program
    gc.collect()
    for _ in range(100):
        if threading.active_count() == before:
            return
        time.sleep(0.05)
    raise AssertionError("the loop goes on")


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (lambda folder: folder, [], "expected plain, or a checkout of PureJaxRL, Rejax or Brax"),
        (lambda folder: folder / "none", [], "expected plain, or a checkout of"),
        (lambda folder: "", [], "--peer : expected plain, or a checkout of"),
        (lambda folder: "plain", ["--env", "brax/ant"], "plain PPO is measured on environments of"),
        (lambda folder: "plain", ["--env", "FrozenLake-misc"], "whose observations are numbers"),
        (checkouts.purejaxrl, ["--env", "Pendulum-v1"], "--env Pendulum-v1: PureJaxRL's ppo.py"),
        (checkouts.purejaxrl, ["--start"], "expected plain with --start"),
        (
            lambda folder: checkouts.write(folder, {"purejaxrl/ppo.py": "import no_such_package"}),
            [],
            "PureJaxRL does not run here: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        (checkouts.brax, [], "--env CartPole-v1: Brax is measured on environments of Brax"),
        (
            checkouts.brax,
            ["--env", "brax/ant", "--num-seeds", "2"],
            "--num-seeds 2: expected 1, since Brax's PPO trains one seed",
        ),
        (checkouts.brax, ["--env", "brax/ant"], "--num-envs 2: expected a multiple of 4"),
    ],
)
def test_a_peer_that_cannot_be_measured_is_refused_in_one_line(
    make, args, message, tmp_path, capsys
):
    with pytest.raises(SystemExit) as refused:
        benchmark.main([*QUICK, "--num-seeds", "1", "--peer", str(make(tmp_path)), *args])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_braxs_ppo_is_refused_where_jax_lost_what_it_calls(tmp_path):
    if hasattr(jax, "device_put_replicated"):
        pytest.skip("this JAX still has it")
    source = checkouts.BRAX_TRAIN + "# jax.device_put_replicated\n"
    peer = peers.find(str(checkouts.brax(tmp_path, source)))
    with pytest.raises(BadInput, match="no longer has; expected jax below"):
        peer.program("brax/ant", dataclasses.replace(SIZES, num_envs=4), 1, 1, 0.01)


def test_a_wait_is_timed_to_the_first_result():
    said = "compiling: training 2 s ..., evaluation 1 s ...\n"
    said += "compiled in 2.5 s (training 2.4 s, initial states 1.0 s, evaluation 0.8 s)\n"
    result = "        2,048 steps  evaluation 21.3  training 20.1  90k steps/s\n"
    pause = "import time; time.sleep(0.3); "
    script = f"print({said!r}, end=''); {pause}print({result!r}, end=''); {pause}"
    seen = start.watch(["-c", script])
    assert seen.first_result >= seen.first_line + 0.3 and seen.total >= seen.first_result + 0.3
    assert seen.output == said + result
    for script, reason in (("print('at work')", "said nothing"), ("1 / 0", "ZeroDivisionError")):
        with pytest.raises(BadInput, match=f"gave no result: .*{reason}"):
            start.watch(["-c", script])


def test_whole_processes_run_in_turn(tmp_path, monkeypatch, capsys):
    log = []

    def watch(arguments):
        flags = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        name = arguments[1].removeprefix("experiments.")
        if name == "run":
            cache = Path(arguments[arguments.index("--compilation-cache") + 1])
            name = "warm" if list(cache.iterdir()) else "cold"
            (cache / "program").touch()
            Path(flags["--out"]).mkdir()
            summary = {"compile_seconds": 2.5, "training_seconds": 3.5}
            summary |= {"evaluation_seconds": 0.5, "logging_seconds": 0.25}
            (Path(flags["--out"]) / "summary.json").write_text(json.dumps(summary))
        else:
            assert (flags["--num-envs"], flags["--num-minibatches"]) == ("4", "4")
        assert (flags["--num-seeds"], flags["--total-steps"]) == ("2", "1024")
        log.append(name)
        seconds = {"cold": 8.0, "warm": 2.0, "plain_ppo": 4.0}[name]
        said = "compiled in 1.25 s\ntrained in 0.75 s, 9k steps/s\n"
        return start.Watched(1.0, seconds, 2 * seconds, said)

    monkeypatch.setattr(start, "watch", watch)
    out = tmp_path / "start.json"
    args = ["--start", "--num-seeds", "2", "--total-steps", "1024", "--repeats", "2"]
    assert benchmark.main([*args, "--out", str(out)]) == 0
    assert log == ["cold", "warm", "plain_ppo", "plain_ppo", "cold", "warm"]
    (row,) = json.loads(out.read_text())["start"]
    cold = {"first_line": 1.0, "first_result": 8.0, "total": 16.0, "compile": 2.5, "train": 3.5}
    assert row["seconds"]["cold"] == [cold | {"evaluate": 0.5, "log": 0.25}] * 2
    assert [row["seconds"]["plain"][0][name] for name in ("compile", "train")] == [1.25, 0.75]
    assert row["ratios"]["cold"] == {"first_result": [0.5, 0.5], "total": [0.5, 0.5]}
    assert row["ratios"]["warm"] == {"first_result": [2.0, 2.0], "total": [2.0, 2.0]}
    assert "plain over warm" in capsys.readouterr().out
    del log[:]
    assert (
        benchmark.main([*args, "--env", "gymnasium/CartPole-v1"]) == 0
    )  # not known to the plain PPO
    assert log == ["cold", "warm", "cold", "warm"]
    assert "plain" not in capsys.readouterr().out


@pytest.mark.slow
def test_real_processes_are_timed(tmp_path):
    out = tmp_path / "start.json"
    args = ["--start", "--num-seeds", "1", "--total-steps", "5120", "--repeats", "1"]
    assert benchmark.main([*args, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["start"]
    for waits in row["seconds"].values():
        for wait in waits:
            assert 0 < wait["compile"] < wait["first_result"] <= wait["total"]
