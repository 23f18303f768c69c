"""What a user mistypes, in bulk: one clear line, exit status 2, nothing written, no traceback.

The lists are made from the programs' own options, so that a new option is tested too.
"""

import collections
import dataclasses
import importlib
import json
import typing

import pytest

import agents
from experiments.cli import flags
from experiments.plan.options import ControlOptions
from rgpo_jax.config import Config

PROGRAMS = ("run", "sweep", "benchmark")
WRONG = {  # kind of setting -> what it cannot be
    "count": ("-1", "1.5", "x", "", "1e-3", "nan", "99999999999999999999x"),
    "number": ("x", "", "nan", "inf", "-inf", "1e400", "0x10", "1,5", "-1e-50"),
    "switch": ("maybe",),
    "choice": ("", "x", "None"),
}


def kind_of(value, hint):
    if "Literal" in str(hint):
        return "choice"
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, tuple | int) or "Count" in str(hint):
        return "count"
    return "number" if isinstance(value, float) else None


def bad_values():
    """(agent, flag, value) for every setting of every agent, those of `Config` once.

    The first setting of an annotation, which is what it is read by, has all wrong values; each
    other one of them, in turn.
    """
    read_alike = collections.Counter()
    seen = set()
    for agent in agents.NAMES:
        config = agents.load(agent).Config
        hints = typing.get_type_hints(config, include_extras=True)
        for field in dataclasses.fields(config):
            if field.name in seen:
                continue
            if field.name in {f.name for f in dataclasses.fields(Config)}:
                seen.add(field.name)
            kind = kind_of(getattr(config(), field.name), hints[field.name])
            wrong, place = WRONG.get(kind, ()), read_alike[str(hints[field.name])]
            read_alike[str(hints[field.name])] += 1
            for value in wrong[place % len(wrong) :][:1] if place and wrong else wrong:
                yield agent, flags.flag(field.name), value


VALUES = sorted(set(bad_values()))


def refusal(program, args, capsys):
    """The line that a program prints; it must be one, on stderr, with status 2."""
    name = "run" if program == "run" else f"{program}.__main__"
    main = importlib.import_module(f"experiments.{name}").main
    with pytest.raises(SystemExit) as refused:
        main(args)
    assert refused.value.code == 2, args
    said = capsys.readouterr()
    assert said.out == "", args
    assert said.err.startswith("error: "), (args, said.err)
    assert said.err.count("\n") == 1, (args, said.err)
    assert "Traceback" not in said.err
    return said.err


def test_there_are_more_than_a_hundred():
    assert len(VALUES) > 100
    assert len({(agent, flag) for agent, flag, _ in VALUES}) > 40


@pytest.mark.parametrize("agent", sorted({agent for agent, _, _ in VALUES}))
def test_a_bad_value_names_its_flag(agent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for owner, flag, value in VALUES:
        if owner == agent:
            line = refusal("run", ["--agent", agent, flag, value], capsys)
            assert flag in line or f"options: {value}" in line, (flag, value, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ControlOptions)])
def test_an_option_without_its_value_or_twice_wrong_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = flags.flag(name)
    if isinstance(getattr(ControlOptions(), name), bool):
        refusal("run", [f"{flag}=perhaps"], capsys)
    elif isinstance(getattr(ControlOptions(), name), tuple):  # may be empty
        refusal("run", [flag, "perhaps"], capsys)
    else:
        refusal("run", [flag], capsys)
        refusal("run", [flag, "--env", "NoSuch-v9"], capsys)
    assert list(tmp_path.iterdir()) == []


FILES = {
    "empty": b"",
    "truncated": b'{"settings": {"num_envs": 4',
    "an array": b"[]",
    "a number": b"3",
    "null": b"null",
    "a string": b'"x"',
    "not text": b"\xff\xfe\x00\x80",
    "nested deeply": b'{"a":' * 50_000,
    "unknown key": b'{"nun_envs": 4}',
    "a dict for a number": b'{"num_envs": {}}',
    "a list for a number": b'{"num_envs": [4, 8, 3]}',
    "a list of lists": b'{"hidden_sizes": [[[3]]]}',
    "a flag for a value": b'{"num_envs": "--overwrite"}',
    "a negative": b'{"num_envs": -4}',
    "NaN": b'{"learning_rate": NaN}',
    "infinity": b'{"learning_rate": -Infinity}',
    "a huge number": b'{"num_envs": 1e400}',
    "a boolean for a number": b'{"num_envs": true}',
    "a number for a name": b'{"env": 3}',
    "an unknown agent": b'{"agent": "pop"}',
    "a list for a name": b'{"env": ["CartPole-v1"]}',
    "settings that are no object": b'{"settings": [1]}',
    "an empty key": b'{"": 1}',
    "a key with a newline": b'{"a\\nb": 1}',
    "a null byte": b'{"env": "Cart\\u0000Pole"}',
}


@pytest.mark.parametrize(
    ("program", "flag"), [("run", "--config"), ("sweep", "--file")], ids=["run", "sweep"]
)
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_that_is_none(program, flag, content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    sweeps_may = program == "sweep" and content in (
        FILES["a list for a number"],  # of a grid
        FILES["settings that are no object"],
    )
    args = [flag, str(path)]
    if sweeps_may:
        args += ["--num-envs", "x"]
    refusal(program, args, capsys)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "args",
    [
        ["-"],
        ["---"],
        ["--=3"],
        ["stray"],
        ["--no-such-flag"],
        ["--no-such-flag", "3"],
        ["--env"],
        ["--agents", "--envs"],
        ["\x00"],
        ["--out", "\x00"],
        ["--out", "/dev/null/x"],
        ["--env", "../../etc/passwd"],
        ["--env", "brax/"],
        ["--env", "envpool/"],
        ["--env", "/"],
        ["--env", "🤖"],
        ["--envs", "CartPole"],
    ],
    ids=repr,
)
def test_a_line_that_is_none(program, args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refusal(program, args, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_runs_settings_that_were_damaged(tmp_path, capsys):
    (tmp_path / "run.log").write_text("")
    for content in ("", "{", "[]", json.dumps({"settings": {"num_envs": "many"}})):
        (tmp_path / "config.json").write_text(content)
        refusal("run", ["--out", str(tmp_path), "--resume"], capsys)
