"""The benchmark measures what it says; how fast is not a test."""

import json

import jax
import pytest

from experiments import benchmark

QUICK = ("--num-envs", "2", "--num-steps", "8", "--seconds", "0.01", "--repeats", "2")


def test_a_benchmark_reports_every_part_and_the_pair(tmp_path, capsys):
    out = tmp_path / "speed.json"
    assert benchmark.main([*QUICK, "--num-seeds", "1", "2", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    cells = {(cell["num_seeds"], cell["num_envs"], cell["part"]) for cell in content["cells"]}
    assert cells == {(s, 2, part) for s in (1, 2) for part in ("rollout", "update", "step")}
    for cell in content["cells"]:
        assert 0 < cell["slowest"] <= cell["steps_per_second"] <= cell["fastest"]
        assert cell["compile_seconds"] > 0
        assert cell["memory_mib"] > 0
    for part in ("update", "step"):
        low, high = content["cost_ratio"][part]["quartiles"]
        assert 0 < low <= content["cost_ratio"][part]["median"] <= high
    ratio = content["seed_order_ratio"]
    assert (ratio is None) == (jax.local_device_count() > 1)  # else each seed has a device
    assert ratio is None or ratio["quartiles"][0] <= ratio["median"] <= ratio["quartiles"][1]
    assert content["machine"]
    said = capsys.readouterr().out
    assert "cost of rgpo over ppo, step" in said
    assert ("one after another, 2 seeds of 2 environments" in said) == (ratio is not None)


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
    with pytest.raises(SystemExit) as refused:
        benchmark.main(args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
