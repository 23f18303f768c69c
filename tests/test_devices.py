"""How runs are spread over devices; that it does not change their numbers."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import devices
from experiments.devices import Layout, choose
from rgpo_jax.config import Config

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
        (LARGE, 3, 4, (3, 1)),
        (Config(num_envs=63, num_steps=128, total_steps=10**6), 1, 2, (1, 1)),
    ],
)
def test_seeds_are_spread_first_and_environments_where_it_pays(
    config, num_seeds, num_devices, layout
):
    assert choose(config, num_seeds, num_devices) == Layout(*layout)


def test_the_users_flags_for_xla_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_foo=1")
    devices.use_all_cores(SMALL, 8)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_force_host_platform_device_count=3", "--xla_foo=1"]
    assert sum("device_count" in flag for flag in flags) == 1


def test_mjx_stays_on_one_device_where_xla_cannot_partition_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for version, spread in (("0.9.2", True), ("0.11.2", False)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        assert devices.can_spread(on_mjx=False)
        assert devices.can_spread(on_mjx=True) == spread
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    devices.use_all_cores(SMALL, 8, spread=False)
    assert "device_count=1" in os.environ["XLA_FLAGS"]


def test_microbatches_divide_every_share_and_stay_the_users():
    huge = Config(num_envs=2048, num_steps=100, total_steps=10**7)
    layout = choose(huge, 1, 2)
    fitted = devices.fit_to_caches(huge, 1, layout)
    assert fitted.microbatch_size is not None
    assert (huge.batch_size // 4 // 2) % fitted.microbatch_size == 0
    own = Config(num_envs=2048, num_steps=100, total_steps=10**7, microbatch_size=100)
    assert devices.fit_to_caches(own, 1, layout) is own
    assert devices.fit_to_caches(SMALL, 1, Layout()) is SMALL


def test_one_seeds_environments_on_two_devices_give_the_same_numbers(tmp_path):
    flags = ["--agent", "rgpo", "--env", "CartPole-v1", "--num-envs", "64", "--num-steps", "64"]
    flags += ["--num-minibatches", "2", "--num-epochs", "1", "--total-steps", "20480"]
    flags += ["--hidden-sizes", "8", "--eval-episodes", "2"]
    lines = {}
    for count in (1, 2):
        out = tmp_path / str(count)
        result = subprocess.run(
            [sys.executable, "-m", "experiments.run", *flags, "--out", str(out)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"},
            check=True,
            capture_output=True,
            text=True,
        )
        assert ("for 2 devices" in result.stdout) == (count == 2)
        text = (out / "metrics.jsonl").read_text()
        lines[count] = [json.loads(line) for line in text.splitlines()]
    for one, two in zip(lines[1], lines[2], strict=True):
        assert one["env_steps"] == two["env_steps"]
        for name in ("episode_return", "episodes", "entropy", "value_loss", "weight_mean"):
            if one[name][0] is not None:
                assert two[name][0] == pytest.approx(one[name][0], rel=1e-3), name
