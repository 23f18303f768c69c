"""How runs are spread over devices; that it does not change their numbers."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from probes import OBSERVATION_ACTION, Tabular, assert_same_numbers
from xla_flags import QUICK_TO_COMPILE

from agents import rgpo
from experiments.cli.flags import BadInput
from experiments.training import devices, trained
from experiments.training.devices import Layout, choose
from experiments.training.programs import SEEDS
from rgpo_jax.config import Config
from rgpo_jax.train import make_chunk

SMALL = Config(num_envs=4, num_steps=128)  # minibatches of 128 samples
LARGE = Config(num_envs=64, num_steps=128, total_steps=10**6)  # of 2048


@pytest.mark.parametrize(
    ("config", "num_seeds", "num_devices", "layout"),
    [
        (SMALL, 8, 1, (1, 1)),
        (SMALL, 8, 2, (2, 1)),
        (SMALL, 9, 6, (3, 1)),
        (SMALL, 1, 2, (1, 1)),  # so small that talking would cost more than it saves
        (LARGE, 1, 2, (1, 2)),
        (LARGE, 1, 8, (1, 2)),
        (LARGE, 8, 8, (8, 1)),  # seeds need not talk at all
        (LARGE, 2, 4, (2, 2)),
        (dataclasses.replace(LARGE, num_minibatches=1), 4, 8, (4, 2)),
        (dataclasses.replace(LARGE, num_minibatches=1), 1, 8, (1, 8)),
        (LARGE, 3, 4, (3, 1)),
        (Config(num_envs=63, num_steps=128, total_steps=10**6), 1, 2, (1, 1)),
        # Half of a minibatch of 3072 is no multiple of 1024.
        (Config(num_envs=24, num_steps=512, microbatch_size=1024), 1, 2, (1, 1)),
        (Config(num_envs=24, num_steps=512, microbatch_size=768), 1, 2, (1, 2)),
    ],
)
def test_seeds_are_spread_first_and_environments_where_it_pays(
    config, num_seeds, num_devices, layout
):
    assert choose(config, num_seeds, num_devices) == Layout(*layout)


@pytest.mark.parametrize(
    ("config", "num_seeds", "num_devices", "layout"),
    [
        (SMALL, 8, 2, (4, 1)),
        (SMALL, 2, 4, (2, 1)),
        (SMALL, 1, 4, (1, 2)),  # it does not pay, but two processes were asked for
        (SMALL, 3, 1, (1, 2)),
        (LARGE, 3, 2, (1, 2)),
        (LARGE, 6, 2, (2, 2)),
    ],
)
def test_each_of_two_processes_has_as_many_devices(config, num_seeds, num_devices, layout):
    assert choose(config, num_seeds, num_devices, num_processes=2) == Layout(*layout)


def test_what_cannot_be_shared_out_among_processes_is_refused():
    with pytest.raises(BadInput, match="--num-processes 3: 1 seeds, 4 environments"):
        choose(SMALL, 1, 8, num_processes=3)


def test_the_users_flags_for_xla_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_foo=1")
    devices.use_all_cores(SMALL, 8)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_force_host_platform_device_count=3", "--xla_foo=1"]
    assert sum("device_count" in flag for flag in flags) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone pins processes")
def test_only_the_cores_that_a_process_may_use_are_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    devices.use_all_cores(SMALL, 8)
    assert "device_count=2" in os.environ["XLA_FLAGS"]


def test_mjx_stays_on_one_device_where_xla_cannot_partition_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for version, spread in (("0.9.2", True), ("0.11.2", False)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        assert devices.can_spread(on_mjx=False)
        assert devices.can_spread(on_mjx=True) == spread
    monkeypatch.setattr(devices, "num_cores", lambda: 8)
    devices.use_all_cores(SMALL, 8, spread=False)
    assert "device_count=1" in os.environ["XLA_FLAGS"]


def test_microbatches_divide_every_share_and_stay_the_users():
    huge = Config(num_envs=2048, num_steps=100, total_steps=10**7)
    layout = choose(huge, 1, 2)
    fitted, same = devices.fit_to_caches(huge, 9000, 1, layout)
    assert same == layout
    assert fitted.microbatch_size is not None
    assert (huge.batch_size // 4 // 2) % fitted.microbatch_size == 0
    own = Config(num_envs=2048, num_steps=100, total_steps=10**7, microbatch_size=100)
    assert devices.fit_to_caches(own, 9000, 1, layout) == (own, layout)
    assert devices.fit_to_caches(SMALL, 9000, 1, Layout()) == (SMALL, Layout())


@pytest.mark.parametrize(
    ("config", "num_weights", "num_seeds", "in_turn"),
    [
        (SMALL, 9_000, 5, False),  # CartPole: operations so small that vmapping pays
        (LARGE, 9_000, 5, True),
        (SMALL, 60_000, 5, False),
        (dataclasses.replace(SMALL, num_envs=16), 60_000, 5, True),  # MinAtar's images
        (LARGE, 9_000, 1, False),  # a seed alone
    ],
)
def test_seeds_that_share_a_core_go_in_turn_where_a_step_is_large(
    config, num_weights, num_seeds, in_turn, monkeypatch
):
    monkeypatch.setattr(devices, "num_cores", lambda: 2)
    fitted, layout = devices.fit_to_caches(config, num_weights, num_seeds, Layout())
    assert fitted == config
    assert layout == Layout(in_turn=in_turn)
    monkeypatch.setattr(devices, "num_cores", lambda: 8)  # a device of so many threads
    assert devices.fit_to_caches(config, num_weights, num_seeds, Layout()) == (config, Layout())


def test_microbatches_are_of_one_seed_where_seeds_go_in_turn(monkeypatch):
    monkeypatch.setattr(devices, "num_cores", lambda: 2)
    layout = choose(LARGE, 8, 2)
    fitted, in_turn = devices.fit_to_caches(LARGE, 9_000, 8, layout)
    assert in_turn == Layout(2, 1, in_turn=True)
    assert fitted.microbatch_size is None  # 2048 samples of one seed; vmapped, four would be 8192


def test_in_turn_gives_the_numbers_of_side_by_side():
    config = rgpo.Config(num_envs=4, num_steps=16, hidden_sizes=(8,))
    agent = rgpo.make(Tabular(OBSERVATION_ACTION), config)
    chunk = make_chunk(agent)
    results = []
    for in_turn in (False, True):
        layout = Layout(in_turn=in_turn)
        keys = devices.seed_keys(layout.mesh(), range(3))
        init = devices.over_seeds(agent.init, layout, (SEEDS,), SEEDS)
        train = devices.over_seeds(chunk, layout, (SEEDS, PartitionSpec()), SEEDS)
        states, report = jax.jit(train)(jax.jit(init)(keys), 5)
        results.append((states.learner.params, report.metrics, states.rollout.env_state))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *results)
    kernel = jax.tree.leaves(results[1][0]["actor"])[-1]
    assert not np.allclose(kernel[0], kernel[1])  # seeds differ


# In one process: it has six virtual devices, of which each run is told a number.
SEVERAL_RUNS = """
import contextlib, io, json, sys
import jax
from experiments import run
from experiments.training import devices

devices.num_cores = lambda: 2
least, said = devices._LEAST_WORK_IN_TURN, {}
for name, num_devices, in_turn, flags in json.loads(sys.argv[1]):
    jax.local_device_count = lambda: num_devices
    devices._LEAST_WORK_IN_TURN = 0 if in_turn else least
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run.main(flags) == 0
    said[name] = output.getvalue()
print(json.dumps(said))
"""
RUNS = {  # seeds, and devices
    "one": (3, 1),
    "seeds": (3, 3),
    "both": (3, 6),
    "in turn": (3, 2),
}


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """Folder of the runs, and what each said."""
    folder = tmp_path_factory.mktemp("runs")
    # Few and large minibatches, so that spreading pays: 2048 samples over up to two devices a seed.
    flags = ["--agent", "rgpo", "--num-envs", "16", "--num-steps", "128"]
    # Its motion and its actions are smooth: no rounding becomes another action, or another end.
    flags += ["--env", "MountainCarContinuous-v0", "--env-kwargs", "max_episode_steps=50"]
    flags += ["--num-minibatches", "1", "--num-epochs", "2", "--total-steps", "4096"]
    flags += ["--hidden-sizes", "8", "--eval-episodes", "2", "--keep-best"]
    runs = [
        (
            *(name, num_devices, name == "in turn"),
            [*flags, "--num-seeds", str(num_seeds), "--out", str(folder / name)],
        )
        for name, (num_seeds, num_devices) in RUNS.items()
    ]
    xla = f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count=6"
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_RUNS, json.dumps(runs)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": xla},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "layout"), [("seeds", (3, 1)), ("both", (3, 2))])
def test_several_devices_give_the_numbers_of_one(name, layout, spread):
    """Those of all seeds, vmapped on one device."""
    folder, said = spread
    num_seeds, num_devices = RUNS[name]
    assert "devices" not in said["one"]
    over = f"seeds over {layout[0]}, environments over {layout[1]}"
    assert f"{num_devices} devices: {over}" in said[name]
    assert_same_numbers(folder / name, folder / "one")
    # And what was learnt is read where there are fewer devices.
    assert trained.load(str(folder / name), "--run").env_steps == (4096,) * num_seeds
    best = trained.load(str(folder / name), "--run", which="best")
    summary = json.loads((folder / name / "summary.json").read_text())
    assert list(best.env_steps) == summary["best_at"]


def test_in_turn_on_two_devices_gives_the_numbers_of_one(spread):
    folder, said = spread
    over = "2 devices: seeds over 1, environments over 2, seeds of a device in turn"
    assert over in said["in turn"]
    assert json.loads((folder / "in turn" / "summary.json").read_text())["in_turn"] is True
    assert_same_numbers(folder / "in turn", folder / "one")
