"""A run's flags and settings: families, files, help, and what is refused in one line."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import agents
from agents import families
from experiments import run
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan.reading import read_plan
from experiments.sweep import grid
from rgpo_jax.config import Config


@pytest.mark.parametrize(
    ("typed", "steps"),
    [
        ("1e6", 10**6),
        ("2.5e5", 250_000),
        ("1E+6", 10**6),
        ("1_000_000", 10**6),
    ],
)
def test_whole_numbers_may_be_written_with_a_power_of_ten(typed, steps):
    plan = read_plan(["--total-steps", typed, "--hidden-sizes", "3.2e1", "8"])
    assert plan.config.total_steps == steps
    assert type(plan.config.total_steps) is int
    assert plan.config.hidden_sizes == (32, 8)


@pytest.mark.parametrize("typed", ["1.5e0", "1.0", "1e-3", "1e400", "e6", "0x10"])
def test_what_is_no_whole_number_is_refused(typed):
    with pytest.raises(BadInput, match=f"--num-seeds {typed}: expected a whole number"):
        read_plan(["--num-seeds", typed])


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
    assert not read_plan([*pong, "--critic-hidden-sizes", "64"]).config.shared_torso


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnCritic(Config):
    critic_hidden_sizes: tuple[int, ...] | None = (64,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnNetwork(Config):
    network: str = "cnn"


@pytest.mark.parametrize("config_class", [OwnCritic, OwnNetwork])
def test_an_agent_of_ones_own_keeps_what_excludes_a_shared_torso(config_class):
    own = families.defaults(config_class, "envpool/Pong-v5")
    assert not own.shared_torso and own.num_envs == 8
    assert (own.network, own.critic_hidden_sizes) in (("atari", (64,)), ("cnn", None))


def test_a_run_of_atari_gives_its_settings_to_an_agent_that_shares_no_torso(tmp_path):
    settings = json.loads(json.dumps(read_plan(["--env", "envpool/Pong-v5"]).settings()))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": settings, "versions": {}}))
    assert not read_plan(["--config", str(file), "--agent", "trpo"]).config.shared_torso
    assert read_plan(["--config", str(file), "--agent", "ppo"]).config.shared_torso


def test_settings_that_are_not_a_whole_runs_leave_the_rest_to_the_family(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": {"env": "Breakout-MinAtar"}}))
    assert read_plan(["--config", str(file)]).config.num_envs == 64


def test_what_an_older_run_lacks_is_not_what_the_family_has_now(tmp_path, monkeypatch):
    settings = json.loads(json.dumps(read_plan(["--env", "envpool/Pong-v5"]).settings()))
    del settings["shared_torso"]
    whole, some = tmp_path / "config.json", tmp_path / "some.json"
    whole.write_text(json.dumps({"settings": settings, "versions": {}}))
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


@pytest.mark.parametrize(
    ("name", "env", "args"),
    [
        ("rgpo", "Pendulum-v1", {}),
        ("a2c", "CartPole-v1", {}),
        ("trpo", "envpool/Pong-v5", {"network": "cnn"}),
        ("ppo", "envpool/Pong-v5", {"critic_hidden_sizes": (64,)}),
        ("rgpo", "envpool/Hopper-v4", {"num_envs": 4}),  # RGPO has epochs of its own there
        ("truncated-importance", "brax/ant", {"cap": 2.0}),
    ],
)
def test_an_agent_has_from_python_the_settings_that_it_has_from_the_command_line(name, env, args):
    flags = [x for field, value in args.items() for x in as_flags(field, value)]
    read = read_plan(["--agent", name, "--env", env, *flags])
    there = SimpleNamespace(name=env)
    assert agents.defaults(name, there, **args) == read.config


def as_flags(field, value):
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{field.replace('_', '-')}", *map(str, values)]


def test_what_no_agent_has_from_python_is_refused():
    env = SimpleNamespace(name="CartPole-v1")
    with pytest.raises(ValueError, match="did you mean rgpo"):
        agents.defaults("rgp0", env)
    with pytest.raises(TypeError, match="sharpness"):
        agents.defaults("ppo", env, sharpness=4.0)
    with pytest.raises(ValueError, match="num_envs 0: expected"):
        agents.defaults("ppo", env, num_envs=0)
    with pytest.raises(TypeError, match="'CartPole-v1': expected an environment"):
        agents.defaults("ppo", "CartPole-v1")


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


def test_peek_takes_the_last_value():
    assert flags.peek("--env", ["--env", "a", "--env=b"]) == "b"
    assert flags.peek("--env", ["--envs", "a"]) is None
