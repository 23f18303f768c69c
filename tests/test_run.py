"""The program: flags, files, refusals. Runs are tiny; what they learn is tested elsewhere."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from probes import RUN_FILES, records, timeless_records
from xla_flags import SAME_IN_A_BATCH

import agents
from experiments import run
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import families
from experiments.plan.reading import read_plan
from experiments.record import run_folder
from experiments.record.files import to_json, write_atomically
from experiments.record.recorder import NullRecorder, Recorder
from experiments.record.run_folder import choose_folder
from experiments.sweep import grid
from experiments.training import trained
from experiments.training.building import make_agent

pytestmark = pytest.mark.usefixtures("programs_are_kept")
TINY = [
    *("--env", "CartPole-v1", "--num-seeds", "2", "--seed", "5", "--total-steps", "320"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
]
RECORDED = {  # returns, and what every gated agent logs of its update
    "episode_return",
    "episode_length",
    "episodes",
    "first_ratio_deviation",
    "approx_kl",
    "approx_kl_k1",
    "approx_kl_max",
    "gate_mean",
    "gate_closed",
    "gate_open",
    "weight_mean",
    "weight_max",
    "effective_sample_size",
    "entropy",
    "explained_variance",
    "grad_norm",
    "kl_spike_rate_0.02",
    "kl_spike_rate_0.04",
    "kl_spike_rate_0.08",
    "kl_spike_rate_0.16",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    assert run.main([*TINY, "--agent", "ppo", "--out", str(folder)]) == 0
    return folder


def test_a_run_writes_its_files_and_no_others(finished):
    assert sorted(path.name for path in finished.iterdir()) == sorted([*RUN_FILES, "policy.npz"])
    assert list((finished / "tensorboard").glob("events*"))
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_hold_one_value_per_seed(finished):
    lines = records(finished)
    assert [record["env_steps"] for record in lines] == list(range(0, 321, 16))
    for record in lines[1:]:
        assert record.keys() >= RECORDED | {"clip_fraction", "wall_seconds"}
        for name in RECORDED:
            assert len(record[name]) == 2
    assert all(value < 1e-5 for record in lines[1:] for value in record["first_ratio_deviation"])


def test_a_return_is_null_where_no_episode_ended(finished):
    for record in records(finished)[1:]:
        for episodes, value in zip(record["episodes"], record["episode_return"], strict=True):
            assert (value is None) == (episodes == 0)
    assert any(None in record["episode_return"] for record in records(finished))


def test_summary_agrees_with_the_metrics(finished):
    summary = json.loads((finished / "summary.json").read_text())
    last = records(finished)[-1]
    assert summary["agent"] == "ppo"
    assert summary["env"] == "CartPole-v1"
    assert summary["num_seeds"] == 2
    assert summary["total_steps"] == last["env_steps"] == 320
    assert summary["final_return"]["per_seed"] == last["eval_return"]
    assert summary["final_return"]["mean"] == pytest.approx(sum(last["eval_return"]) / 2)
    low, high = summary["final_return"]["ci95"]
    assert low <= summary["final_return"]["iqm"] <= high
    assert summary["first_ratio_deviation"] < 1e-5
    assert summary["compile_seconds"] > 0
    seconds = 640 / summary["steps_per_second"]  # the summary has them to the millisecond
    assert summary["training_seconds"] == pytest.approx(seconds, abs=0.00051)
    assert summary["training_seconds"] < summary["run_seconds"]  # which evaluations are part of
    assert summary["device"]


def test_what_the_terminal_shows_is_kept(finished):
    log = (finished / "run.log").read_text()
    assert "compiled in" in log
    assert "final return" in log


def test_the_config_of_a_run_repeats_it(finished, tmp_path):
    again = tmp_path / "again"
    assert run.main(["--config", str(finished / "config.json"), "--out", str(again)]) == 0
    assert timeless_records(again) == timeless_records(finished)


def test_a_seeds_numbers_do_not_depend_on_the_devices(tmp_path):
    for count in (1, 2):
        out = str(tmp_path / str(count))
        flags = f"{SAME_IN_A_BATCH} --xla_force_host_platform_device_count={count}"
        subprocess.run(
            [sys.executable, "-m", "experiments.run", *TINY, *("--agent", "ppo", "--out", out)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XLA_FLAGS": flags},
            check=True,
        )
    assert "for 2 devices" in (tmp_path / "2" / "run.log").read_text()
    for ours, other in zip(records(tmp_path / "2"), records(tmp_path / "1"), strict=True):
        for name in ("episode_return", "entropy", "eval_return"):
            if name in other:
                for a, b in zip(ours[name], other[name], strict=True):
                    assert a == pytest.approx(b, rel=1e-4) if b is not None else a is None


def test_flags_override_the_config_file(finished):
    read = read_plan(["--config", str(finished / "config.json"), "--clip", "0.3"])
    assert read.config.clip == 0.3
    assert read.config.num_envs == 2
    assert read.options.seed == 5


def test_a_run_is_never_overwritten_unasked(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--out", str(finished)])
    assert refused.value.code == 2
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_overwrite_replaces_a_run_and_leaves_other_files(tmp_path):
    folder = tmp_path / "out"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.old").write_text("old")
    (folder / "summary.json").write_text("old")
    (folder / "notes.txt").write_text("mine")
    with Recorder(folder, overwrite=True):
        pass
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "summary.json").exists()
    assert not (folder / "tensorboard").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(run_folder.datetime, "datetime", Clock)
    folders = [choose_folder(None, "a/b") for _ in range(3)]
    assert [folder.name for folder in folders] == [
        f"a-b-20260101-000000{number}" for number in ("", "-1", "-2")
    ]


def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run.main(["--init-from", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_two_runs_cannot_take_the_same_folder(tmp_path):
    with Recorder(tmp_path / "out"), pytest.raises(BadInput):
        Recorder(tmp_path / "out")


def test_a_run_that_breaks_says_where_and_keeps_what_it_has(tmp_path, capsys):
    folder = tmp_path / "broken"
    assert run.main([*TINY, "--learning-rate", "1e38", "--out", str(folder)]) == 3
    said = capsys.readouterr().out
    assert "seed 5 at update 0" in said
    assert "seed 6 at update 0" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["broken"] == [{"seed": 5, "update": 0}, {"seed": 6, "update": 0}]
    assert len(records(folder)) >= 2


def test_no_line_counts_compiling(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert 0 <= records(finished)[0]["wall_seconds"] < records(finished)[-1]["wall_seconds"]
    assert records(finished)[-1]["wall_seconds"] <= summary["run_seconds"]


def test_where_one_seed_breaks_the_others_are_finished(tmp_path, monkeypatch, capsys):
    args = [*TINY, "--out", str(tmp_path / "start")]
    assert run.main(args) == 0
    load = trained.load_start

    def broken(options, agent):
        learners = load(options, agent)
        params = jax.tree.map(lambda x: x.at[0].set(jnp.nan), learners.params)
        return learners._replace(params=params)

    monkeypatch.setattr(trained, "load_start", broken)
    folder = tmp_path / "broken"
    args = [*TINY, "--init-from", str(tmp_path / "start"), "--out", str(folder)]
    assert run.main(args) == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["broken"] == [{"seed": 5, "update": 0}]
    assert records(folder)[-1]["env_steps"] == records(tmp_path / "start")[-1]["env_steps"]
    assert isinstance(summary["final_return"]["per_seed"][1], float)
    assert "seed 5 at update 0" in capsys.readouterr().out


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    public = {name for name in vars(Recorder) if not name.startswith("_")}
    assert public <= vars(NullRecorder).keys()


def test_a_gate_of_your_own_trains(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(
        "import jax.numpy as jnp\n\n\n"
        "def my_gate(log_ratio, advantage):\n"
        "    return jnp.tanh(log_ratio)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--gate", "my_module:my_gate", "--out", "out", "--total-steps", "64"]
    assert run.main(args) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["gate"]["function"] == "my_module.my_gate"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("def gate(l, a):\n    return 0.0 * l", "would never learn"),
        ("def gate(l, a):\n    return l > 0", "expected a float"),
        ("def gate(l):\n    return l", "not a gate"),
    ],
)
def test_a_module_without_a_gate_is_refused(source, message, tmp_path, monkeypatch, capsys):
    name = f"gate_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        run.main(["--gate", f"{name}:gate", "--out", "out"])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_callable_object_is_a_gate_too(tmp_path, monkeypatch):
    (tmp_path / "partial_module.py").write_text(
        "import functools\n\n\n"
        "def scaled(log_ratio, advantage, k):\n    return k * log_ratio\n\n\n"
        "gate = functools.partial(scaled, k=2.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--gate", "partial_module:gate", "--out", "out", "--total-steps", "64"]
    assert run.main(args) == 0


OWN_AGENT = """
import dataclasses

import jax.numpy as jnp
import rgpo_jax
from agents.gated import maker
from rgpo_jax.ranges import Positive
from rgpo_jax.tunable import Tunable


def tanh(log_ratio, advantage, steepness):
    return jnp.tanh(steepness * log_ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(rgpo_jax.config.Config):
    num_epochs: int = 2
    steepness: Positive = 3.0
    \"\"\"How steep.\"\"\"


def gate(config):
    return Tunable(tanh, {"steepness": config.steepness})


make = maker(Config, gate)


class Agent:
    Config, make = Config, staticmethod(make)
"""


@pytest.mark.parametrize("name", ["own_agent", "own_agent:Agent"])
def test_an_agent_of_your_own_trains_and_goes_on(name, tmp_path, monkeypatch):
    (tmp_path / "own_agent.py").write_text(OWN_AGENT)
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--agent", name, "--steepness", "2", "--out", "out", "--total-steps", "64"]
    assert run.main(args) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["settings"]["agent"] == name
    assert config["gate"]["numbers"] == {"steepness": 2.0}
    resumed = read_plan(["--resume", "--out", "out", "--trust-code"])
    assert (resumed.config.steepness, resumed.config.num_epochs) == (2.0, 2)
    (cell,) = grid.expand([name], None, ["--steepness", "4"], None, "sweep")
    assert cell.plan.config.steepness == 4.0
    with pytest.raises(BadInput, match="no hyper-parameter 'steepness'"):
        make_agent(read_plan(["--agent", name, "--gate", "spo"]))


@pytest.mark.parametrize(
    ("agent", "source", "message"),
    [
        ("own", "raise SystemExit(0)", "--agent own: SystemExit"),
        ("own", "Config = dict", "--agent own: no agent; expected a Config"),
        ("own:Agent", "Config = dict", "--agent own:Agent: AttributeError"),
        ("own", "from rgpo_jax.config import Config", "expected a Config"),
        ("other", "", "--agent other: unknown agent; did you mean smooth"),
        ("other:Agent", "", "--agent other:Agent: no module named 'other'"),
        (".", "", "--agent .: unknown agent"),
    ],
)
def test_what_is_no_agent_is_refused(agent, source, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(SystemExit) as refused:
        run.main(["--agent", agent, "--out", "out"])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_agent_takes_what_it_knows_of_a_config(finished):
    read = read_plan(["--config", str(finished / "config.json"), "--agent", "rgpo"])
    assert read.config.num_envs == 2
    assert read.config.sharpness == 4.0


@pytest.mark.parametrize("name", agents.NAMES)
def test_every_agent_has_its_flags(name):
    read = read_plan(["--agent", name, "--env", "CartPole-v1"])
    assert type(read.config) is agents.load(name).Config


@pytest.mark.parametrize("name", agents.GATE_AGENTS)
def test_every_gate_goes_with_another_agent(name):
    read = read_plan(["--agent", "trpo", "--gate", name, "--max-kl", "0.02"])
    assert read.config.max_kl == 0.02
    assert agents.load(name).gate(read.config) is not None


def test_a_gate_agent_with_another_gate_has_that_gates_flags_alone():
    read = read_plan(["--agent", "ppo", "--gate", "rgpo", "--sharpness", "2"])
    assert read.config.sharpness == 2.0
    assert not hasattr(read.config, "clip")


def test_a_familys_settings_hold_where_no_flag_is_given():
    read = read_plan(["--env", "Breakout-MinAtar", "--num-envs", "32"])
    assert read.config.num_envs == 32
    assert read.config.network == families.FAMILIES["MinAtar"]["network"]


def test_a_gate_may_have_settings_of_its_own_in_a_family():
    env = ["--env", "envpool/Hopper-v4"]
    assert read_plan([*env, "--agent", "ppo"]).config.num_epochs == 10
    assert read_plan([*env, "--agent", "rgpo"]).config.num_epochs == 4
    assert read_plan([*env, "--agent", "ppo", "--gate", "rgpo"]).config.num_epochs == 4
    assert read_plan([*env, "--num-epochs", "7"]).config.num_epochs == 7


def test_a_flag_that_was_renamed_goes_on_working(tmp_path, capsys):
    new = ["--pull-back", "--num-envs", "2", "--no-pull-back=x", "pull_back"]
    assert flags.renamed(["--call-back", *new[1:3], "--no-call_back=x", "pull_back"]) == new
    assert capsys.readouterr().err == (
        "--call-back is --pull-back now\n--no-call_back is --no-pull-back now\n"
    )
    settings = read_plan(["--pull-back"]).settings()
    settings["call_back"] = settings.pop("pull_back")
    stored = json.loads(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"settings": stored}))
    (tmp_path / "sweep.yaml").write_text("call_back: [true, false]")
    assert read_plan(["--resume", "--out", str(tmp_path)]).config.pull_back
    assert len(grid.expand(None, None, [], str(tmp_path / "sweep.yaml"), "sweep")) == 2
    with pytest.raises(SystemExit) as refused:
        run.main(["--call-back", "--seed", "-1"])
    assert refused.value.code == 2
    assert "--call-back is --pull-back now\nerror: --seed -1" in capsys.readouterr().err


def test_atari_has_one_torso_under_both_heads_where_that_fits():
    pong = ["--env", "envpool/Pong-v5"]
    shares = [
        read_plan([*pong, *more]).config.shared_torso
        for more in ([], ["--agent", "trpo"], ["--network", "gru"], ["--no-shared-torso"])
    ]
    assert shares == [True, False, False, False]
    with pytest.raises(BadInput, match="--critic-hidden-sizes expected None with shared_torso"):
        read_plan([*pong, "--critic-hidden-sizes", "64"])


def test_what_an_older_run_lacks_is_not_what_the_family_has_now(tmp_path, monkeypatch):
    settings = json.loads(json.dumps(read_plan(["--env", "envpool/Pong-v5"]).settings()))
    del settings["shared_torso"]
    whole, some = tmp_path / "config.json", tmp_path / "some.json"
    whole.write_text(json.dumps({"settings": settings}))
    some.write_text(json.dumps({"env": "envpool/Pong-v5"}))
    assert not read_plan(["--resume", "--out", str(tmp_path)]).config.shared_torso
    assert not read_plan(["--config", str(whole)]).config.shared_torso
    assert not read_plan([], given=settings, of_a_run=True).config.shared_torso
    assert read_plan(["--config", str(some)]).config.shared_torso
    with pytest.raises(BadInput, match="--shared-torso True: the run in"):
        read_plan(["--resume", "--out", str(tmp_path), "--shared-torso"])


@pytest.mark.parametrize("name", agents.NAMES)
@pytest.mark.parametrize("env", families.FAMILIES)
def test_every_agent_starts_from_valid_settings_on_every_family(name, env):
    env = {"MinAtar": "Asterix-MinAtar", "brax": "brax/ant"}.get(env, env)
    assert families.defaults(agents.load(name).Config, env).num_updates > 0


def test_every_agent_has_the_entropy_bonus_of_the_family():
    # In MinAtar a policy without it soon repeats one losing game, whatever its gate or step.
    configs = [agents.load(name).Config for name in agents.NAMES]
    bonuses = {families.defaults(c, "Breakout-MinAtar").entropy_coefficient for c in configs}
    assert bonuses == {families.FAMILIES["MinAtar"]["entropy_coefficient"]}


BAD = {
    "unknown agent": (["--agent", "rgp0"], "--agent rgp0: unknown agent; did you mean rgpo"),
    "unknown environment": (["--env", "CartPol"], "did you mean CartPole-v1"),
    "unknown flag": (["--num-env", "3"], "did you mean --num-envs"),
    "another agent's flag": (["--agent", "ppo", "--sharpness", "3"], "--sharpness"),
    "zero size": (["--num-envs", "0"], "--num-envs 0: expected a whole number of at least 1"),
    "negative size": (["--num-steps", "-1"], "--num-steps -1: expected"),
    "word": (["--num-envs", "four"], "--num-envs four: expected a whole number"),
    "fraction": (["--num-seeds", "1.5"], "--num-seeds 1.5: expected a whole number"),
    "indivisible batch": (["--num-minibatches", "3"], "expected a divisor of num_envs * num_steps"),
    "less than an update": (["--total-steps", "10"], "expected at least one update"),
    "negative clip": (["--agent", "ppo", "--clip", "-1"], "--clip -1.0: expected a number between"),
    "NaN": (["--learning-rate", "nan"], "--learning-rate nan: expected a number above 0"),
    "infinity": (["--sharpness", "inf"], "--sharpness inf: expected a number above 0"),
    "bounds": (["--agent", "cispo", "--low", "6"], "--high 5.0: expected a number above low = 6.0"),
    "no choice": (["--form", "cubic"], "'cubic'"),
    "missing value": (["--env"], "--env"),
    "stray word": (["CartPole-v1"], "CartPole-v1"),
    "seed": (["--seed", "4294967296"], "expected seeds below 2^32"),
    "empty folder name": (["--out", ""], "--out '': expected a folder"),
    "folder in a file": (["--out", "/dev/null/x"], "/dev/null is a file, expected a folder"),
    "unknown gate": (["--gate", "rgp"], "--gate rgp: unknown gate; did you mean rgpo"),
    "empty agent": (["--agent", ""], "--agent : unknown agent"),
    "empty config": (["--config="], "--config : "),
    "log interval": (
        ["--log-every", "-5"],
        "--log-every -5: expected a whole number of at least 1",
    ),
    "eval interval": (["--eval-every", "0"], "--eval-every 0: expected a whole number"),
    "beyond float32": (["--learning-rate", "1e39"], "--learning-rate 1e+39: expected"),
    "no such module": (["--gate", "no_such_module:gate"], "no module named 'no_such_module'"),
    "no such function": (["--gate", "math:nope"], "has no attribute 'nope'"),
    "not a gate": (["--gate", "math:sin"], "not a gate"),
    "no such file": (["--config", "/nope.json"], "--config /nope.json: No such file"),
    "folder for a file": (["--config", "/"], "--config /: Is a directory"),
    "network": (["--network", "cnn", "--num-envs", "4"], "a CNN needs observations"),
    "policy": (
        ["--policy", "tanh_normal", "--num-envs", "4"],
        "policy tanh_normal: for continuous",
    ),
    "standard deviation": (["--initial-std", "0"], "--initial-std 0.0: expected a number above 0"),
}


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        run.main(args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"num_envs": ', "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"num_env": 4}', "unknown setting 'num_env'; did you mean num_envs"),
        ('{"num_envs": "four"}', "--num-envs four: expected a whole number"),
        ('{"num_envs": {"a": 1}}', "expected a plain value"),
        ('{"hidden_sizes": [64, "--overwrite"]}', "expected a plain value"),
        ('{"env": null}', "env = None: expected a name"),
        ("[" * 200_000, "not JSON"),
        ('{"agent": 3}', "agent = 3: expected a name"),
        ('{"settings": {"clipp": 0.3}}', "unknown setting 'clipp'"),
        ("\x00\x01", "not JSON"),
    ],
)
def test_a_bad_config_file_is_refused(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r".") as refused:
        read_plan(["--config", str(path)])
    assert message in str(refused.value)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    if os.geteuid() == 0:
        folder = "/proc/none/run"  # root may write everywhere else
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        folder = str(tmp_path / "locked" / "run")
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--out", folder])
    assert refused.value.code == 2


PROBE = """
import sys
from experiments import run
from experiments.cli.terminal import Terminal
class Seen(BaseException):
    pass
def spy(self, line, **how):
    assert line.startswith("trpo (gate sapo) on Pendulum-v1"), line
    raise Seen
Terminal.print = spy
try:
    run.main(["--agent", "trpo", "--gate", "sapo", "--env", "Pendulum-v1"])
except Seen:
    sys.exit("jax" in sys.modules)
sys.exit("nothing was shown")
"""


def test_the_first_line_does_not_wait_for_jax(tmp_path):
    root = Path(__file__).parents[1]
    probe = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert probe.returncode == 0


def test_the_program_exits_with_its_status(tmp_path):
    program = subprocess.run(
        [sys.executable, "-m", "experiments.run", "--agent", "pop"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert program.returncode == 2
    assert program.stdout == ""
    assert program.stderr.startswith("error: --agent pop: unknown agent; did you mean")


def test_help_may_be_cut_short():
    command = f"{sys.executable} -m experiments.run --help | head -1"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.startswith("usage")
    assert result.stderr == ""


def test_help_states_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as shown:
        run.main(["--agent", "ppo", "--help"])
    assert shown.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "--clip FLOAT Clip range epsilon of the ratio, on both sides of 1. (default: 0.2)" in text
    )
    # The agent's own, then what all agents have, then the run's.
    own, common, of_the_run = (text.index(f) for f in ("--clip ", "--total-steps ", "--env "))
    assert own < common < of_the_run


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_null_for_nan_and_large_counts():
    content = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "steps": 2**40})
    assert json.loads(content) == {"a": None, "b": [None, 1.5], "steps": 2**40}


def test_peek_takes_the_last_value():
    assert flags.peek("--env", ["--env", "a", "--env=b"]) == "b"
    assert flags.peek("--env", ["--envs", "a"]) is None


@pytest.mark.parametrize(("updates", "points"), [(977, 100), (7, 10), (1, 10), (100, 10)])
def test_points_are_evenly_spread_and_end_at_the_last_update(updates, points):
    from experiments.training.loop import Every

    every = Every(updates, points)
    stops, done = [], 0
    while done < updates:
        done = every.next(done)
        stops.append(done)
    assert stops[-1] == updates
    assert len(stops) == min(updates, points)
    gaps = [b - a for a, b in zip([0, *stops], stops, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert [i for i in range(1, updates + 1) if every.includes(i)] == stops
