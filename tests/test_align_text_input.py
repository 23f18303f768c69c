"""What alignment of a model reads: rewards, prompts and models, and what is refused."""

import importlib
import sys

import numpy as np
import pytest
from probes import assert_refused
from text_places import LAST, SMALL, write_place

from envs.language import prompts as prompt_files
from envs.language import rewards
from experiments.align import __main__ as align
from rgpo_jax.importing import install_hint

pytest.importorskip("jinja2", reason="needs the extra `align`")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    """Runs begin in that folder."""
    monkeypatch.chdir(place)
    yield
    sys.modules.pop("my_rewards", None)


# Rewards.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--reward", "my_rewards:raises"],
            "--reward my_rewards:raises: RuntimeError: no judge at home",
        ),
        (["--reward", "my_rewards:none"], "--reward my_rewards:none: expected 1 finite number"),
        (["--reward", "my_rewards:nan"], "--reward my_rewards:nan: expected 1 finite number"),
        (["--reward", "my_rewards:texts"], "--reward my_rewards:texts: ValueError: "),
        (["--fsdp", "3"], "--fsdp 3: expected a divisor of the 4 answers that are differentiated"),
        (["--fsdp", "4", "--tp", "999"], "--fsdp 4 --tp 999: 3996 devices; there "),
        (["--gold", "my_rewards:nan"], "--gold my_rewards:nan: expected 1 finite number"),
        (["--reward", "my_rewards:nobody"], "--reward my_rewards:nobody: AttributeError"),
        (["--reward", "my_rewards:number"], "--reward my_rewards:number: "),
        (["--reward", "nowhere:reward"], "--reward nowhere:reward: no module named 'nowhere'"),
        (["--reward", "vade"], "--reward vade: expected vader, textblob, MODULE:FUNCTION"),
        (["--gold", "vade"], "--gold vade: expected vader, textblob, MODULE:FUNCTION"),
    ],
)
def test_what_is_no_reward_is_refused(args, message, tmp_path, capsys):
    args = [*SMALL, *LAST, "--num-updates", "1", *args, "--out", str(tmp_path / "run")]
    assert_refused(align.main, args, message, capsys)


def test_rewards_are_held_to_their_form():
    found = rewards.score("r", lambda prompts, answers: np.arange(2), ["a", "b"], ["c", "d"])
    assert found.dtype == np.float32
    for result in (None, [1.0], [[1.0, 2.0]], [1.0, np.inf], 3.0, ["a", "b"], [None, 1.0]):
        with pytest.raises(ValueError, match=r"^r: ") as error:
            rewards.score("r", lambda prompts, answers, x=result: x, ["a", "b"], ["c", "d"])
        assert "\n" not in str(error.value)

    def fail(prompts, answers):
        raise KeyError("of\ntwo lines")

    with pytest.raises(ValueError, match=r"^r: KeyError: 'of\\ntwo lines'$"):
        rewards.score("r", fail, ["a"], ["c"])


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("vader", "vaderSentiment.vaderSentiment", "vaderSentiment"),
        ("textblob", "textblob.en", "textblob"),
    ],
)
def test_sentiments_come_with_the_extra(name, module, package, tmp_path, monkeypatch, capsys):
    pytest.importorskip(package)
    scores = rewards.score(name, rewards.BUILT_IN[name](), ["", ""], ["It is wonderful.", "Awful!"])
    assert -1 <= scores[1] < 0 < scores[0] <= 1
    find = importlib.import_module

    def missing(asked, *args):
        if asked == module:
            raise ImportError(f"No module named {asked!r}")
        return find(asked, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    args = [*SMALL, *LAST, "--reward", name, "--out", str(tmp_path / "run")]
    message = f"--reward {name}: {package} is not installed; it comes with the extra: "
    assert_refused(align.main, args, message + install_hint("align"), capsys)


# Prompts and models.


def test_prompts_are_read_from_lines_and_from_json(tmp_path):
    lines = tmp_path / "a.txt"
    lines.write_text("  one  \n\ntwo\n")
    assert prompt_files.read(lines) == ["one", "two"]
    rows = tmp_path / "b.jsonl"
    rows.write_text('{"prompt": "one\\ntwo", "more": 1}\n\n{"prompt": "three"}\n')
    assert prompt_files.read(rows) == ["one\ntwo", "three"]
    assert len(set(prompt_files.standard())) == 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": 3}\n',
            ', line 2: expected a JSON object with a "pr',
        ),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt"\n', ", line 3: expected a JSON object"),
        ("p.jsonl", '["prompt"]\n', ", line 1: expected a JSON object"),
        ("p.jsonl", '{"prompt": " "}\n', ", line 1: expected a JSON object"),
        ("p.txt", "only one\n", ": expected at least 2 prompts, of which some are held out"),
        ("p.txt", "", ": expected at least 2 prompts"),
        ("p.txt", None, ": No such file or directory"),
        ("p.txt", b"\xff\xfe\x00", ": "),
        ("p.txt", "short\n" + "long " * 400, "a prompt of "),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(name, content, message, tmp_path, capsys):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    args = [*SMALL, *LAST, "--prompts", str(file), "--out", str(tmp_path / "run")]
    assert_refused(align.main, args, message, capsys)
    align_folder = tmp_path / "run"
    assert not align_folder.exists() or list(align_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: nowhere: no such file or folder"),
        (["--num-last-layers", "4"], "num_last_layers 4: expected 1 to 2"),
        (["--max-prompt-tokens", "4"], "expected at most 4"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(args, message, tmp_path, capsys):
    assert_refused(
        align.main, [*SMALL, *LAST, *args, "--out", str(tmp_path / "run")], message, capsys
    )


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    message = f"tokenizers is not installed: {install_hint('align')}"
    assert_refused(align.main, [*SMALL, *LAST, "--out", str(tmp_path / "run")], message, capsys)
