"""The program that learns rewards: what it writes, what is read again, and what it refuses."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_models import write_tokenizer
from probes import assert_refused
from reward_probes import ARCHITECTURE, PARAMS, PARTS, run, write_pairs, write_place

from envs.language import decoder_reward, learnt_reward, ngram_reward, rewards, text
from experiments.align import reward as program
from experiments.cli.interrupts import Interrupted
from rgpo_jax.language import decoder, weights


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("rewards"))


def test_pessimism_needs_an_ensemble(place, tmp_path, capsys):
    out = tmp_path / "single"
    assert run("--pairs", place / "few.jsonl", "--out", out) == 0
    for number in (0.5, -1, float("nan"), True):
        with pytest.raises(ValueError, match="pessimism"):
            learnt_reward.load(out, pessimism=number)
    args = ["--pairs", str(place / "few.jsonl"), "--out", str(tmp_path / "x"), "--pessimism", "1"]
    assert_refused(program.main, args, "--pessimism 1.0: needs --ensemble of 2", capsys)


def test_prompts_are_read_as_they_are_written():
    def turn(role, content):
        return {"role": role, "content": content}

    for turns in (
        [turn("user", "Hello")],
        [turn("user", "a\n\nb"), turn("assistant", "c"), turn("user", "d: e")],
        [turn("system", "Be kind."), turn("user", "Hello")],
    ):
        assert decoder_reward.turns_of(text.as_text(turns)) == turns
    for plain in ("", "Human: x", "\n\nHuman: x", "Human: a\n\nHuman: b", "a\n\nAssistant: b"):
        assert decoder_reward.turns_of(plain) == [turn("user", plain)]


SMALL = (
    *("--kind", "decoder", "--max-tokens", 96, "--max-prompt-tokens", 32, "--batch-size", 8),
    *("--too-long", "truncate"),
)


@pytest.fixture(scope="module")
def decoders(place):
    """A reward for each part that is trained, on the tiny model."""
    found = {}
    monkey = pytest.MonkeyPatch()
    monkey.chdir(place)
    for part, more in (
        ("full", ()),
        ("last_layers", ("--num-last-layers", 1, "--ensemble", 2, "--num-epochs", 2)),
        ("lora", ("--lora-rank", 2, "--learning-rate", 0.01)),
    ):
        found[part] = place / f"decoder-{part}"
        args = ("--pairs", "few.jsonl", "--model", "model", "--out", found[part], "--train", part)
        assert run(*SMALL, *args, *more) == 0
    monkey.undo()
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_decoder_learns_and_is_read_again(part, decoders, place):
    folder = decoders[part]
    assert sorted(p.name for p in folder.iterdir()) == [
        *("arrays.npz", "calibration.png", "reward.json")
    ]
    content = json.loads((folder / "reward.json").read_text())
    assert content["decoder"]["base"]["name"] == "model"
    assert content["decoder"]["base"]["path"] == str(place / "model")
    assert len(content["shift"]) == content["members"] == (2 if part == "last_layers" else 1)
    assert len(content["history"]) == (4 if part == "last_layers" else 1)
    reward = learnt_reward.load(folder)  # from another folder than it was made in
    asked = ["the cat", "Human: a\n\nAssistant: b\n\nHuman: c", "a hat", "the cat"]
    answers = ["a cat and the hat", "kindly", "", "<|end|> is a text here"]
    scores, spread = reward.score_with_spread(asked, answers)
    assert np.isfinite(scores).all() and (spread > 0).all() == (part == "last_layers")
    if part == "lora":  # the longest alone is padded otherwise
        alone = reward(["a hat"], [answers[0]])
        again = reward(["a hat", asked[1]], [answers[0], answers[1]])
        np.testing.assert_allclose(alone, again[:1], atol=1e-4)
    np.testing.assert_array_equal(learnt_reward.load(folder)(asked, answers), scores)
    assert rewards.score("r", reward, asked, answers).dtype == np.float32


def test_texts_score_as_the_tokens_that_were_learnt_from(decoders, place, monkeypatch):
    """What the program standardises is what a user's texts get."""
    reward = learnt_reward.load(decoders["last_layers"])
    content = json.loads((decoders["last_layers"] / "reward.json").read_text())
    from envs.language import preferences

    monkeypatch.chdir(place)
    kept, _ = preferences.split_off(preferences.read("few.jsonl"), 0.2, 0)
    assert not any("cut" in note or "skipped" in note for note in content["data"]["notes"])
    pairs = [(text.as_text(p.prompt), side) for p in kept.pairs for side in (p.chosen, p.rejected)]
    scores = reward(*zip(*pairs, strict=True))
    assert scores.mean() == pytest.approx(0, abs=1e-4)
    assert scores.std() == pytest.approx(1, abs=1e-4)


def test_a_base_that_is_gone_or_another_is_refused(decoders, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = place / "model"
    aside = place / "aside"
    answers = ["a cat"]
    expected = learnt_reward.load(decoders["lora"])(answers, answers)

    def refused():
        with pytest.raises(ValueError) as error:
            learnt_reward.load(decoders["lora"])
        assert "\n" not in str(error.value)
        return str(error.value)

    model.rename(aside)
    try:
        assert "the model that it was made on: model: no such file or folder" in refused()
        # Its name leads to it as well.
        shutil.copytree(aside, tmp_path / "model")
        np.testing.assert_array_equal(
            learnt_reward.load(decoders["lora"])(answers, answers), expected
        )
        shutil.rmtree(tmp_path / "model")

        weights.save(model, ARCHITECTURE, decoder.init(jax.random.key(1), ARCHITECTURE, 0.3))
        write_tokenizer(model)
        assert "has other weights" in refused()
        shutil.rmtree(model)
        weights.save(model, ARCHITECTURE, PARAMS)
        write_tokenizer(model, template="{{ messages[0]['content'] }}")
        assert "has another tokeniser" in refused()
        shutil.rmtree(model)
        other = dataclasses.replace(ARCHITECTURE, rope_theta=5.0)
        weights.save(model, other, PARAMS)
        write_tokenizer(model)
        assert "is of another architecture" in refused()
    finally:
        shutil.rmtree(model, ignore_errors=True)
        aside.rename(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "some"}, "training: unknown values"),
        ({"part": "last_layers", "num_last_layers": 9}, "num_last_layers 9: expected 1 to 2"),
        ({"dtype": "int8"}, "training: unknown values"),
        ({"colour": 1}, "training: "),
        ({"rank": 3}, "expected float32"),
    ],
)
def test_a_decoders_folder_is_checked(changes, message, decoders, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(decoders["lora"], folder)
    content = json.loads((folder / "reward.json").read_text())
    content["decoder"]["training"] |= changes
    (folder / "reward.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as refused:
        learnt_reward.load(folder)
    assert "\n" not in str(refused.value)


def test_texts_that_are_too_long_are_refused_in_a_line(decoders, place):
    reward = learnt_reward.load(decoders["lora"])
    reward.members._max_length = 64
    with pytest.raises(ValueError, match=r"^decoder: .* the reward's model was made for 64$"):
        rewards.score("decoder", reward, ["the cat"], ["word " * 100])


def test_what_cannot_be_learnt_from_is_refused(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    here = ["--pairs", "few.jsonl", "--out", str(tmp_path / "new")]
    on_model = [*here, *map(str, SMALL), "--model", "model"]
    for args, message in (
        (["--pairs", "nowhere", "--out", "x"], "--pairs nowhere: no such file or folder"),
        (["--pairs", "few.jsonl"], "--out"),
        ([*here, "--num-epochs", "2"], "--num-epochs 2: goes with --kind decoder"),
        ([*on_model, "--l2", "2"], "--l2 2.0: goes with --kind ngrams"),
        ([*on_model, "--lora-rank", "2"], "--lora-rank 2: goes with --train lora"),
        ([*on_model, "--num-last-layers", "9"], "--model model: num_last_layers 9: expected 1 to"),
        ([*on_model, "--model", "nowhere"], "--model nowhere: nowhere: no such file or folder"),
        ([*on_model, "--microbatch-size", "3"], "--microbatch-size 3: expected a divisor"),
        (
            [*on_model, "--train", "full", "--max-prompt-tokens", "2"],
            "--pairs few.jsonl: as tokens: 0 of 16 pairs",
        ),
        ([*here, "--held-out", "1"], "--held-out 1.0: expected a share between 0 and 1"),
        ([*here, "--kind", "trees"], "--kind"),
        ([*here[:-1], "model"], "--out model: holds something that is no reward"),
    ):
        assert_refused(program.main, args, message, capsys)
    assert not (tmp_path / "new").exists()


def test_a_reward_is_replaced_if_that_is_said(place, tmp_path, capsys):
    out = tmp_path / "reward"
    args = ["--pairs", str(place / "few.jsonl"), "--out", str(out)]
    assert program.main(args) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith(f"-> {out}; use it by --reward {out}")
    assert any('"the shorter answer"' in line for line in said)
    assert_refused(program.main, args, f"--out {out}: holds reward.json", capsys)
    assert program.main([*args, "--overwrite", "--seed", "1"]) == 0
    assert json.loads((out / "reward.json").read_text())["settings"]["seed"] == 1
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_rewards_that_are_all_the_same_are_no_rewards(tmp_path, capsys):
    rows = [{"prompt": str(i), "chosen": "a b c d", "rejected": "d c b a. " * 2} for i in range(4)]
    path = write_pairs(tmp_path / "pairs.jsonl", rows)
    out = tmp_path / "out"
    assert run("--pairs", path, "--num-features", 1, "--out", out) == 3
    assert "all answers have the same reward; nothing was written" in capsys.readouterr().err
    assert not out.exists()


def test_a_loss_that_breaks_ends_the_program_in_a_line(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    make = decoder_reward.make_model

    def breaking(*args):
        def update(state, frozen, pairs):
            return state, dict.fromkeys(("loss", "accuracy", "taken"), jnp.nan)

        return make(*args)._replace(update=update)

    monkeypatch.setattr(decoder_reward, "make_model", breaking)
    args = ("--pairs", "few.jsonl", "--model", "model", "--num-last-layers", 1)
    assert run(*SMALL, *args, "--out", tmp_path / "out") == 3
    assert "a lower --learning-rate may help" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_signal_leaves_nothing_half_written(place, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    args = ("--pairs", place / "few.jsonl", "--out", out)

    def stop(*args):
        raise Interrupted(signal.SIGTERM)

    for where, name in ((ngram_reward, "member"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, stop)
            assert run(*args) == 143
        assert "nothing was written" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_the_program_runs_from_a_shell(place, tmp_path):
    command = [sys.executable, "-m", "experiments.align.reward", "--pairs", place / "few.jsonl"]
    ran = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stderr == ""
    assert len(ran.stdout.splitlines()) == 7
