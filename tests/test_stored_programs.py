"""Programs are found on disk before they are traced, and never those of other code or settings."""

import dataclasses
import importlib
import importlib.machinery
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import timeless_records
from storing import assert_same_programs, with_other_numbers
from xla_flags import QUICK_TO_COMPILE

import agents
from experiments.plan.reading import read_plan
from experiments.training import building, stored_programs
from experiments.training.building import episodes_of, members_of, programs_made_of
from experiments.training.devices import Layout
from rgpo_jax.train import make_evaluation

ROOT = Path(__file__).parents[1]
TINY = [
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
    *("--total-steps", "64"),
]
AN_HOUR = 3600 * 10**9  # nanoseconds
BEGUN = time.time()
pytestmark = pytest.mark.usefixtures("stored")


def to_keep(store, function, *arguments, name="toy", devices=None):
    """A program that was compiled, or read."""
    lowered = jax.jit(function).lower(*arguments)
    kept = stored_programs.Kept(store, name, lowered, None, devices or jax.devices()[:1])
    return kept, kept.compile()


def keep(made_of, function=jnp.sin):
    store = stored_programs.store_of(made_of)
    return store is not None and store.keep([to_keep(store, function, 1.0)[0]])


def find(made_of):
    store = stored_programs.store_of(made_of)
    return store and store.find()


def is_found(made_of):
    return find(made_of) is not None


def write_module(path, content="x = 1\n"):
    """A module's file that is older than this process."""
    path.write_text(content)
    time_ns = path.stat().st_mtime_ns - AN_HOUR
    os.utime(path, ns=(time_ns, time_ns))


def begin_now(monkeypatch):
    """All files that there are were there when the process began."""
    now = time.time()
    monkeypatch.setattr(stored_programs, "_begun", lambda: now)
    time.sleep(0.02)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The file of a module that is loaded."""
    write_module(tmp_path / "toy_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("toy_module")
    begin_now(monkeypatch)
    yield tmp_path / "toy_module.py"
    sys.modules.pop("toy_module", None)


def test_what_was_kept_is_found_and_computes_the_same():
    def pair(x, y):
        return {"sum": jnp.tanh(x) + y, "both": (x, y)}

    arguments = jnp.arange(3.0), jnp.float32(2)
    store = stored_programs.store_of({"a": 1})
    one, _ = to_keep(store, pair, *arguments, name="one")
    other, _ = to_keep(store, jnp.cos, arguments[0], name="other")
    assert store.keep([one, other])
    (name, program), (other_name, _) = find({"a": 1})
    assert (name, other_name) == ("one", "other")
    found, made = program(*arguments), jax.jit(pair)(*arguments)
    assert jax.tree.structure(found) == jax.tree.structure(made)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(made)))
    assert not is_found({"a": 2})
    assert not is_found({})


def test_a_module_that_changed_makes_them_stale(module):
    assert keep("a") and is_found("a")
    stamp = module.stat().st_mtime_ns
    module.write_text("x = 2\n")  # as long as before
    assert not is_found("a")
    os.utime(module, ns=(stamp, stamp))
    assert is_found("a")
    write_module(module, "x = 12\n")
    assert not is_found("a")
    module.unlink()
    assert not is_found("a")


def test_a_module_that_is_no_longer_loaded_is_looked_at_all_the_same(module):
    assert keep("a")
    sys.modules.pop("toy_module")
    assert is_found("a")
    module.write_text("x = 2\n")
    assert not is_found("a")


def test_another_module_of_the_same_name_makes_them_stale(module, tmp_path, monkeypatch):
    assert keep("a")
    sys.modules.pop("toy_module")
    (tmp_path / "other").mkdir()
    write_module(tmp_path / "other" / "toy_module.py")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert "other" in importlib.import_module("toy_module").__file__
    assert not is_found("a")


def test_a_module_that_was_not_loaded_then_makes_them_stale(request):
    assert keep("a") and is_found("a")
    request.getfixturevalue("module")
    assert not is_found("a")
    assert keep("a") and is_found("a")  # and of both


@pytest.mark.parametrize("way", ["written", "put in its place"])
def test_code_that_is_newer_than_the_process_is_not_kept(module, tmp_path, way):
    if way == "written":
        module.write_text("x = 2\n")
    else:  # by `mv` or `rsync -a`, with an old time
        write_module(tmp_path / "other.py", "x = 2\n")
        (tmp_path / "other.py").replace(module)
    assert not keep("a")
    assert not is_found("a")


def test_this_process_began_before_this_module_was_read(monkeypatch):
    monkeypatch.undo()
    assert BEGUN - 3600 < stored_programs._begun() < BEGUN


def test_data_of_a_package_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_programs, "_WITH_DATA", ("toy_package",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy_package" / "models").mkdir(parents=True)
    write_module(tmp_path / "toy_package" / "__init__.py")
    write_module(tmp_path / "toy_package" / "models" / "ant.xml", "<ant/>")
    importlib.import_module("toy_package")
    begin_now(monkeypatch)
    try:
        assert keep("a") and is_found("a")
        (tmp_path / "toy_package" / "models" / "ant.xml").write_text("<bee/>")
        assert not is_found("a")
    finally:
        sys.modules.pop("toy_package")


@pytest.mark.parametrize(
    "change",
    ["flag", "option", "context", "version", "machine", "program", "not ours", "off", "uncached"],
)
def test_other_surroundings_have_other_programs(change, monkeypatch):
    assert keep("a") and is_found("a")
    with monkeypatch.context() as patch:
        if change == "flag":
            patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        elif change == "option":
            jax.config.update("jax_default_matmul_precision", "highest")
        elif change == "version":
            patch.setattr(stored_programs.metadata, "version", lambda name: "0.0")
        elif change == "machine":
            patch.setattr(stored_programs.machine, "name", lambda: "another")
        elif change == "program":
            patch.setattr(stored_programs, "_program", lambda: "experiments.tune.__main__")
        elif change == "not ours":
            patch.setattr(stored_programs, "_program", lambda: None)
        elif change == "context":
            with jax.default_matmul_precision("highest"):
                assert not is_found("a")
            return
        elif change == "off":
            jax.config.update("jax_enable_compilation_cache", False)
        else:
            jax.config.update("jax_compilation_cache_dir", None)
        try:
            assert not is_found("a")
        finally:
            jax.config.update("jax_default_matmul_precision", None)
            jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize(
    ("spec", "file", "program"),
    [
        ("experiments.run", "run.py", "experiments.run"),
        ("experiments.sweep.worker", "worker.py", "experiments.sweep.worker"),
        (None, str(Path(sys.executable).parent / "rgpo"), "rgpo"),
        ("pytest.__main__", "__main__.py", None),
        (None, "/home/me/ablation.py", None),
        (None, None, None),  # a notebook
    ],
)
def test_programs_of_others_keep_nothing(monkeypatch, spec, file, program):
    """They may change code, and no file tells."""
    monkeypatch.undo()
    main = types.ModuleType("__main__")
    main.__spec__ = spec and importlib.machinery.ModuleSpec(spec, None)
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert stored_programs._program() == program


def test_what_others_can_write_is_not_read(stored):
    assert keep("a") and is_found("a")
    for path in (stored, *stored.iterdir()):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        assert not is_found("a")
        path.chmod(mode)
    assert is_found("a")


def test_links_are_not_followed(stored, tmp_path):
    assert keep("a") and is_found("a")
    stored.rename(tmp_path / "elsewhere")
    stored.symlink_to(tmp_path / "elsewhere")
    assert not is_found("a")


@pytest.mark.parametrize("which", ["*.code", "*[0-9a-f]"])
def test_a_damaged_file_is_no_program(stored, which):
    assert keep("a")
    [path] = [path for path in stored.glob(which) if which == "*.code" or not path.suffix]
    path.write_bytes(path.read_bytes()[:-100])
    assert not is_found("a")
    assert keep("a") and is_found("a")


def test_a_program_whose_trees_cannot_be_written_is_not_kept(capfd):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Local:
        x: jax.Array

    assert not keep("a", lambda x: Local(x))
    assert capfd.readouterr().err == ""


def test_a_program_that_calls_python_is_not_kept():
    def calls(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)

    assert not keep("a", calls)


def test_one_that_calls_lapack_is():
    assert keep("a", lambda x: jnp.linalg.qr(jnp.full((2, 2), x))[1])
    [(_, program)] = find("a")
    np.testing.assert_allclose(np.abs(program(1.0)[0]), np.sqrt(2.0), rtol=1e-6)


def test_code_that_is_gone_is_made_again(stored):
    """JAX's own cache has none of it, which XLA would not give out again."""
    assert keep("a")
    for code in stored.glob("*.code"):
        code.unlink()
    assert not is_found("a")
    assert keep("a") and is_found("a")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_other_code_that_comes_out_the_same_is_not_compiled_again(stored, module):
    assert keep("a")
    write_module(module, "x = 12\n")
    assert not is_found("a")
    codes = {path: path.stat().st_ino for path in stored.glob("*.code")}
    store = stored_programs.store_of("a")
    _, program = to_keep(store, jnp.sin, 1.0)
    assert program(1.0) == jnp.sin(1.0)
    assert {path: path.stat().st_ino for path in stored.glob("*.code")} == codes


def test_one_that_sorts_and_has_run_is_kept():
    store = stored_programs.store_of("a")
    x = jnp.arange(4.0)
    kept, program = to_keep(store, lambda x: jnp.sort(-x), x)
    made = program(x)
    assert store.keep([kept])
    [(_, found)] = find("a")
    assert np.array_equal(found(x), made)


def test_a_program_runs_on_the_devices_that_it_was_made_for(stored):
    last = jax.devices()[-1]
    store = stored_programs.store_of("a")
    x = jax.device_put(1.0, last)
    kept, _ = to_keep(store, jnp.sin, x, devices=[last])
    assert store.keep([kept])
    [(_, program)] = find("a")
    assert program(x).devices() == {last}


def test_the_folder_is_bounded(stored, monkeypatch):
    assert keep("a")
    size = sum(path.stat().st_size for path in stored.iterdir())
    monkeypatch.setattr(stored_programs, "BYTES", 1.5 * size)
    for path in stored.iterdir():
        os.utime(path, (1, 1))
    assert keep("b", jnp.cos)
    assert is_found("b")
    assert not is_found("a")


def plan_of(*flags):
    return read_plan(["--num-seeds", "2", *TINY, *flags])


def made_of(plan):
    agent, layout = building.make_spread_agent(plan, plan.options.num_seeds)
    return programs_made_of(plan, agent, layout, members_of([plan]), episodes_of(plan, agent))


@pytest.mark.alike
@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "7", "--total-steps", "640", "--learning-rate", "1e-4", "--sharpness", "2"],
        ["--log-every", "16", "--checkpoint-every", "0", "--keep-best", "--eval-every", "32"],
        ["--end-learning-rate", "1e-5", "--warmup-steps", "32"],
        ["--no-anneal-learning-rate"],
    ],
)
def test_numbers_and_lengths_are_not_what_programs_are_made_of(flags):
    assert json.dumps(made_of(plan_of(*flags))) == json.dumps(made_of(plan_of()))


@pytest.mark.alike
@pytest.mark.parametrize(
    "flags",
    [
        ["--agent", "ppo"],
        ["--gate", "ppo"],
        ["--env", "Acrobot-v1"],
        ["--env-kwargs", "length=1.0"],
        ["--randomize", "length=0.4..0.6"],
        ["--num-seeds", "3"],
        ["--hidden-sizes", "9"],
        ["--dtype", "bfloat16"],
        ["--target-kl", "0.1"],
        ["--eval-episodes", "4"],
        ["--learning-rate-schedule", "cosine"],
        ["--form", "log"],
        ["--callback", "mine:watch"],  # whose module may have changed the suite
    ],
)
def test_all_else_is(flags):
    assert made_of(plan_of(*flags)) != made_of(plan_of())


@pytest.mark.parametrize(
    "flags",
    [
        ["--gate", "operator:mul"],
        ["--env", "gymnasium/CartPole-v1", "--env-kwargs", "render_mode=/tmp"],
    ],
)
def test_what_is_a_users_own_is_not_known_by_its_name(flags):
    plan = plan_of(*flags)
    agent = building.make_agent(plan_of())
    parts = members_of([plan]), episodes_of(plan, agent)
    assert programs_made_of(plan, agent, Layout(), *parts) is None


def traced(plan, evaluated=False):
    """Programs of a plan that train, and the one that evaluates."""
    agent = building.make_agent(plan)
    overrides = members_of([plan]).overrides()
    one = {name: jax.ShapeDtypeStruct((), values.dtype) for name, values in overrides.items()}
    init, state = jax.make_jaxpr(agent.init, return_shape=True)(jax.random.key(0), **one)
    programs = [init, jax.make_jaxpr(agent.step)(state)]
    if evaluated:
        evaluate = make_evaluation(agent, 2, False)
        programs.append(jax.make_jaxpr(evaluate)(state.learner, jax.random.key(0)))
    return programs


@pytest.mark.alike
@pytest.mark.parametrize("name", agents.NAMES)
def test_no_number_is_part_of_a_program(name):
    """What is found by its settings would else be of other numbers, and nobody would notice."""
    plan = plan_of("--agent", name, "--normalize-observations", "--normalize-rewards")
    changed = dataclasses.replace(plan, config=with_other_numbers(plan.config))
    assert made_of(changed) == made_of(plan)

    # An evaluation plays a policy, however it was learnt: that of one agent is all agents'.
    evaluated = name == agents.NAMES[0]
    assert_same_programs(traced(plan, evaluated), traced(changed, evaluated))


@pytest.mark.alike
def test_a_constant_rate_and_one_that_falls_are_one_program():
    constant = plan_of("--learning-rate-schedule", "constant")
    assert_same_programs(traced(plan_of()), traced(constant))


# A process's runs, as if it were `python -m experiments.run`, and its end is that one's.
STARTS = """
import importlib.util, json, sys
sys.modules["__main__"].__spec__ = importlib.util.find_spec("experiments.run")
from experiments import run
from experiments.training import compiling

compiling.leave(lambda: max(run.main(flags) for flags in json.loads(sys.argv[1])))
"""
# On some of the devices that there are, and where environments live on the host.
RUNS = {
    "some": ["--num-seeds", "2"],
    "host": ["--num-seeds", "2", "--env", "gymnasium/CartPole-v1"],
}


def start(folder, cache, **more):
    """Makes all these runs in a process of its own, which has three devices; returns their logs."""
    where = ["--compilation-cache", str(cache)]
    runs = [
        [*TINY, *flags, *more.get(name, []), *where, "--out", str(folder / name)]
        for name, flags in RUNS.items()
    ]
    # What JAX says of programs that are found is heard.
    env = {name: value for name, value in os.environ.items() if name != "JAX_LOGGING_LEVEL"}
    env["XLA_FLAGS"] = f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count=3"
    done = subprocess.run(
        [sys.executable, "-c", STARTS, json.dumps(runs)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {name: (folder / name / "run.log").read_text() for name in RUNS}


def test_a_second_start_finds_what_the_first_has_made_and_says_no_more(tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    made = start(folders[0], tmp_path / "compiled")
    assert all("compiled in" in said for said in made.values())
    found = start(folders[1], tmp_path / "compiled", host=["--learning-rate", "0.1"])
    assert all("(programs of an earlier start)" in said for said in found.values())
    assert "2 devices" in found["some"]
    records = {name: [timeless_records(folder / name) for folder in folders] for name in RUNS}
    assert records["some"][0] == records["some"][1]
    # With another number, the same until something is learnt.
    one, other = records["host"]
    assert one[0] == other[0]
    assert one[-1] != other[-1]
