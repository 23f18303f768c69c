"""The suite for a device runs on a CPU, whole and part by part; how fast is not a test."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import assert_refused

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import accelerator, accelerator_parts, kernels, language_parts, roofline
from experiments.benchmark.accelerator import Part

# Of what reads profiles, once.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")

TINY = accelerator.Sizes(
    correctness=("CartPole-v1",),
    copy_bytes=2**20,
    matrix_size=64,
    agents=(2,),
    environments=(("Pendulum-v1", 4, {}),),
    language=(4, 4, 4),
)


def types(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


QUICK = ("--device", "cpu", "--seconds", "0.01", "--repeats", "2")


# Whose updates are traced and not compiled: tests of each do that.
TRACED = ("plain_training.<locals>.step", "language.<locals>.update")


def test_the_suite_measures_every_part_and_writes_json_and_a_table(tmp_path, capsys, monkeypatch):
    train, trained, asked = accelerator_parts.training, [], []
    compile_loop, traced = roofline.compile_loop, []

    def compile_or_trace(step, state, steps):
        """Of an update that goes on from its own state, the first agents' program is timed."""
        if step.__qualname__ not in TRACED:
            return compile_loop(step, state, steps)
        assert types(jax.eval_shape(step, state)[0]) == types(state)
        traced.append(step.__qualname__)
        _, program, work = trained[0]
        return dataclasses.replace(program, steps=steps), work

    def train_once(bench, env, config, count=1, **params):
        """The program of the first agents is compiled, and timed in the place of the others."""
        asked.append((env, config.num_envs, count))
        if not trained:
            trained.append(train(bench, env, config, count, **params))
        return trained[0]

    one_layer = dataclasses.replace(language_parts.TINY, num_layers=1)
    monkeypatch.setattr(language_parts, "TINY", one_layer)
    monkeypatch.setattr(accelerator_parts, "training", train_once)
    monkeypatch.setattr(roofline, "compile_loop", compile_or_trace)
    out = tmp_path / "cpu.json"
    assert accelerator.main([*QUICK, "--out", str(out)], TINY) == 0
    content = json.loads(out.read_text())
    parts = {part["part"]: part for part in content["parts"]}
    assert list(parts) == [part.name for part in accelerator.parts_of(TINY)]
    assert all(part["status"] == "done" for part in parts.values())
    assert content["versions"]["jax"] == jax.__version__
    assert content["device"].startswith("cpu")

    compared = parts["correctness"]["differences"]
    assert {row["what"] for row in compared} == {"rollout", "update", "act"}
    assert all(row["relative"] <= row["tolerance"] for row in compared)
    assert set(parts["peaks"]["flops_per_second"]) == {"float32", "float32 by default", "bfloat16"}
    ours, plain = parts["CartPole, agents: 2"]["programs"]
    policy, noise = parts["Pendulum-v1, 4"]["programs"]
    assert (plain["program"], noise["program"]) == ("plain PPO", "random actions")
    sampling, update = parts["language model"]["programs"]
    assert parts["language model"]["logits_relative"] < 1e-6
    for row in (ours, plain, policy, noise, sampling, update):
        assert 0 < row["slowest"] <= row["steps_per_second"] <= row["fastest"]
        assert row["compile_seconds"] > 0
        assert row["memory_mib"] > 0
        assert row["share_of_bandwidth"] > 0
    assert ours["matrix_flops"] > 0 == noise["matrix_flops"]
    assert asked == [("CartPole-v1", 4, 2)] * 2 + [("Pendulum-v1", 4, 1)]
    assert traced == list(TRACED)
    assert 0 < len(parts["kernels"]["longest"]) <= 20

    table = out.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert all(f"| {name}" in table for name in parts)


def bench():
    return accelerator_parts.Bench(jax.devices("cpu")[0], "ppo", 0.01, 2)


def test_a_part_that_fails_is_recorded_and_the_others_run():
    def fails(bench):
        raise RuntimeError("out of\nmemory")

    told = []
    parts = [
        Part("bad", "bad", 1, fails),
        Part("wrong", "wrong", 1, lambda bench: {"said": "x", "error": "differs"}),
        Part("good", "good", 1, lambda bench: {"said": "y"}),
    ]
    failed = accelerator.run(parts, bench(), 100, lambda results: told.append(results[-1].copy()))
    assert failed == 2
    # Each is told of before it runs, for a run that never comes back, and after.
    assert [(result["part"], result["status"]) for result in told] == [
        ("bad", "running"),
        ("bad", "failed"),
        ("wrong", "running"),
        ("wrong", "failed"),
        ("good", "running"),
        ("good", "done"),
    ]
    assert told[1]["error"] == "RuntimeError: out of memory"
    assert "failed: differs" in accelerator.rows("wrong", told[3])[0]


def test_an_environment_that_is_missing_fails_in_one_line(tmp_path, monkeypatch, capsys):
    def missing(prefix):
        raise ValueError("brax is not installed: pip install -e '.[brax]'")

    monkeypatch.setattr("envs._require", missing)
    run = accelerator.parts_of(accelerator.SIZES["cpu"])
    parts = [part for part in run if part.name == "brax/ant spring, 64"]
    monkeypatch.setattr(accelerator, "parts_of", lambda sizes: parts)
    out = tmp_path / "cpu.json"
    status = accelerator.main([*QUICK, "--out", str(out)])
    assert status == accelerator.EXIT_PART_FAILED == 3
    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert len(said) == 1
    assert "brax is not installed" in said[0]
    assert json.loads(out.read_text())["parts"][0]["status"] == "failed"


def test_a_part_that_does_not_fit_is_skipped_and_says_so():
    results = []

    def takes(bench):
        results.append("ran")
        return {}

    parts = [Part("long", "long", 1000, takes), Part("short", "short", 1, takes)]
    seen = []
    assert accelerator.run(parts, bench(), 10, lambda so_far: seen.append(so_far)) == 0
    long, short = seen[-1]
    assert (long["status"], short["status"], results) == ("skipped", "done", ["ran"])
    assert long["error"] == "about 1000 s needed, 10 s left"


def test_a_part_takes_as_long_as_the_last_of_its_kind():
    parts = [Part(name, "same", 1000, lambda bench: {}) for name in "ab"]
    parts[0] = parts[0]._replace(seconds=1)
    seen = []
    accelerator.run(parts, bench(), 10, lambda so_far: seen.append(so_far))
    assert [result["status"] for result in seen[-1]] == ["done", "done"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--device", "tpu"], "--device"),
        (["--device=cpu", "--num-envs", "4"], "--num-envs"),
        (["--device", "cpu", "--agent", "pp0"], "--agent pp0: unknown agent"),
        (["--device", "cpu", "--budget", "0"], "--budget 0.0: expected a number above 0"),
        (["--device", "cpu", "--out", "cpu.txt"], "--out cpu.txt: expected a name that ends in"),
        (["--device", "cpu", "--out", "/no/such/folder/x.json"], "no such folder"),
        pytest.param(
            ["--device", "gpu"],
            "--device gpu: JAX has none here",
            marks=pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is one"),
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(args, message, capsys):
    assert_refused(benchmark.main, args, message, capsys)


def test_differences_are_the_largest_and_nan_is_one():
    ours, theirs = {"a": np.array([1.0, 300.0]), "b": 0}, {"a": np.array([1.5, 200.0]), "b": 0}
    assert accelerator_parts.differences(ours, theirs) == (100.0, 0.5)
    ours["b"] = float("nan")
    assert all(map(math.isnan, accelerator_parts.differences(ours, theirs)))


def layers(x, weights, count):
    def body(x, _):
        return jnp.tanh(x @ weights), x[0]

    return jax.lax.scan(body, x, None, count)


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    x, weights = jnp.ones((32, 128)), jnp.ones((128, 128))
    once = jax.jit(lambda x, weights: jnp.tanh(x @ weights)).trace(x, weights)
    compiled = once.lower().compile()
    # Without loops it is what XLA says.
    told = compiled.cost_analysis()
    assert roofline.bytes_moved(compiled.as_text()) == pytest.approx(told["bytes accessed"])
    assert roofline.flops(once.jaxpr.jaxpr) == 2 * 32 * 128 * 128
    moved = []
    for count in (10, 1000):
        looped = jax.jit(layers, static_argnums=2).trace(x, weights, count)
        assert roofline.flops(looped.jaxpr.jaxpr) == count * 2 * 32 * 128 * 128
        moved.append(roofline.bytes_moved(looped.lower().compile().as_text()))
    # A row of the result is written a time, and not the whole of it.
    each = (moved[1] - moved[0]) / 990
    assert told["bytes accessed"] <= each <= 2 * told["bytes accessed"]


GPU_TEXT = """HloModule jit_f, is_scheduled=true

%fused_add (p0: f32[64,8], p1: s32[], p2: f32[8]) -> f32[64,8] {
  %p0 = f32[64,8]{1,0} parameter(0)
  %p2 = f32[8]{0} parameter(2)
  %row = f32[1,8]{1,0} bitcast(%p2)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %put = f32[64,8]{1,0} dynamic-update-slice(%p0, %row, %p1, %zero)
}

%command_buffer (p: f32[64,8], q: f32[8,8]) -> f32[64,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %q = f32[8,8]{1,0} parameter(1)
  %gemm = (f32[64,8]{1,0}, s8[4194304]{0}) custom-call(%p, %q), custom_call_target="__cublas$gemm"
  ROOT %part = f32[64,8]{1,0} get-tuple-element(%gemm), index=0
}

%body (arg: (s32[], f32[64,8], f32[8,8])) -> (s32[], f32[64,8], f32[8,8]) {
  %arg = (s32[], f32[64,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %x = f32[64,8]{1,0} get-tuple-element(%arg), index=1
  %w = f32[8,8]{1,0} get-tuple-element(%arg), index=2
  %called = f32[64,8]{1,0} call(%x, %w), to_apply=%command_buffer
  ROOT %next = (s32[], f32[64,8]{1,0}, f32[8,8]{1,0}) tuple(%i, %called, %w)
}

ENTRY %main (a: f32[64,8], b: f32[8,8], i: s32[], c: f32[8]) -> f32[64,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %c = f32[8]{0} parameter(3)
  %loop = (s32[], f32[64,8]{1,0}, f32[8,8]{1,0}) while(%start), condition=%cond, body=%body, \
backend_config={"operation_queue_id":"0","known_trip_count":{"n":"3"}}
  %y = f32[64,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %put.1 = f32[64,8]{1,0} fusion(%y, %i, %c), kind=kLoop, calls=%fused_add
}
"""


def test_what_a_gpu_compiles_to_is_read_too():
    array, weights, row = 64 * 8 * 4, 8 * 8 * 4, 8 * 4
    product = array + weights + array  # and no workspace
    update = row + row + 4  # a row is read and written, at an index
    assert roofline.bytes_moved(GPU_TEXT) == 3 * product + update


def test_a_profile_lists_the_longest_kernels():
    x, weights = jnp.ones((256, 512)), jnp.ones((512, 512))
    run = jax.jit(lambda: layers(x, weights, 5)[0])
    run().block_until_ready()
    profile = kernels.profile(lambda: run().block_until_ready(), 2)
    longest = profile["longest"]
    assert len(longest) == 2
    assert longest[0]["seconds"] >= longest[1]["seconds"] > 0
    assert longest[0]["calls"] == 5
    assert profile["kernels"] >= 10
