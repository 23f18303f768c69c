"""Alignment of a model by pairs from a file: DPO and its kin, resume, refusals, held-out pairs."""

import json
import signal
import sys

import jax
import numpy as np
import pytest
from killing import killed_at_save
from language_models import write_tokenizer
from probes import assert_refused, records, timeless_records
from text_places import ARCHITECTURE

from envs.language import learnt_reward, preferences, rewards
from experiments.align import __main__ as align
from experiments.align import make_pairs, reward, text_building
from experiments.align.plan import read_plan
from experiments.cli.interrupts import Interrupted
from experiments.training import loop
from experiments.training.compiling import Compiler
from rgpo_jax.language import decoder, weights

pytest.importorskip("jinja2", reason="needs the extra `align`")

SMALL = [
    *("--world", "model", "--model", "model", "--pairs", "pairs.jsonl", "--seed", "3"),
    *("--held-out", "0.25", "--eval-answers", "1", "--eval-prompts", "2", "--max-tokens", "8"),
    *("--num-updates", "6", "--num-prompts", "2", "--num-epochs", "1", "--num-minibatches", "1"),
    *("--learning-rate", "0.003", "--eval-every", "12", "--log-every", "4"),
    *("--num-last-layers", "1"),
]
SAVING = ["--checkpoint-every", "0"]
WORDS = ("cat", "hat", "user", "assistant", "the cat", "a hat", "the hat", "and")
OF_PAIRS = {
    *("margin", "accuracy", "chosen_log_prob", "rejected_log_prob", "chosen_log_ratio"),
    *("rejected_log_ratio",),
}
EVALUATED = {"pair_accuracy", "reward", "kl_ref"}


def rows(number=12):
    """The chosen answer is of cats, and the other of hats."""
    return [
        {"prompt": f"the {WORDS[i % 8]} {WORDS[i // 8]}", "chosen": "a cat", "rejected": "the hat"}
        for i in range(number)
    ]


PREFERENCE = """
def cats(prompts, first, second):
    return [0.9 if "cat" in a and "cat" not in b else 0.5 for a, b in zip(first, second)]


def sure(prompts, first, second):
    return [2.0] * len(first)
"""


def write(path, content):
    path.write_text("\n".join(json.dumps(row) for row in content) + "\n")


pytestmark = pytest.mark.usefixtures("programs_are_kept")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    weights.save(folder / "model", ARCHITECTURE, decoder.init(jax.random.key(0), ARCHITECTURE, 0.3))
    write_tokenizer(folder / "model")
    write(folder / "pairs.jsonl", rows())
    (folder / "my_judges.py").write_text(PREFERENCE)
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield
    sys.modules.pop("my_judges", None)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A run of DPO."""
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert align.main([*SMALL, "--method", "dpo", "--out", str(folder)]) == 0
    return folder


def test_a_run_tells_its_data_and_measures_held_out_pairs(whole):
    log = (whole / "run.log").read_text()
    assert "pairs.jsonl: 12 rows: 12 pairs" in log
    assert "held out (by prompts, seed 0)" in log
    lines = records(whole)
    assert lines[-1]["answers"] == 6 * 4
    assert lines[1].keys() >= {*OF_PAIRS, "loss", "grad_norm", "nonfinite_step_rate"}
    for line in (lines[0], lines[-1]):
        assert line.keys() >= {f"pair_{name}" for name in OF_PAIRS}
    # At the start policy and reference are one; what it has learnt, it finds in other pairs.
    assert lines[0]["pair_margin"] == [0.0] and lines[0]["pair_accuracy"] == [0.5]
    np.testing.assert_allclose(lines[1]["loss"], np.log(2), rtol=1e-5)
    assert lines[-1]["pair_margin"][0] > 0 and lines[-1]["pair_accuracy"] == [1.0]
    config = json.loads((whole / "config.json").read_text())
    assert config["data"]["pairs"] == 9 and len(config["data"]["sha256"]) == 64
    assert config["loss"]["function"] == "rgpo_jax.language.contrasts.dpo"
    assert (whole / "answers.html").exists()


def test_a_killed_run_repeats_and_skips_no_pair(whole, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch, killed_at_save(4, before=True):  # in the middle of a round
        patch.setattr(loop, "_LONGEST_CHUNK", 0.0)
        align.main([*SMALL, *SAVING, "--method", "dpo", "--out", str(folder)])
    assert align.main(["--out", str(folder), "--resume"]) == 0
    assert timeless_records(folder) == timeless_records(whole)


def test_a_run_does_not_go_on_with_other_pairs(tmp_path, monkeypatch, capsys):
    write(tmp_path / "pairs.jsonl", rows())
    args = [*SMALL, "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch, killed_at_save(0, before=True):
        patch.setattr(loop, "_LONGEST_CHUNK", 0.0)
        align.main([*args, *SAVING, "--method", "dpo"])
    capsys.readouterr()
    write(tmp_path / "pairs.jsonl", reversed(rows()))
    message = "holds other pairs than when the run in"
    assert_refused(align.main, ["--out", str(tmp_path / "run"), "--resume"], message, capsys)


def test_a_method_of_wins_runs_on_the_prompts_of_a_file(tmp_path):
    args = [*SMALL, "--method", "zbcpg", "--num-updates", "2", "--num-directions", "2"]
    at = args.index("--num-epochs")
    del args[at : at + 4]
    assert align.main([*args, "--out", str(tmp_path / "run")]) == 0
    last = records(tmp_path / "run")[-1]
    assert last.keys() >= EVALUATED
    assert last["updates"] == 2


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("kto", ()),
        ("ipo", ("--by-length",)),
        ("rebel", ("--group-size", "2")),
        ("on_policy_dpo", ("--num-epochs", "2")),
        ("zpg", ()),
        ("rgpo", ("--group-size", "2")),
    ],
)
def test_programs_of_other_methods_fit_the_prompts_or_pairs_of_a_file(
    method, more, tmp_path, monkeypatch
):
    """As traced: what an update computes is held in worlds that are exact."""
    args = [*SMALL, "--method", method, *more]
    if method == "zpg":
        at = args.index("--num-epochs")
        del args[at : at + 4]
    prepared, traced = text_building.prepare(read_plan(args), tmp_path), {}

    def trace(self, made_of, lowered):
        traced.update((one.name, one.lowered) for one in lowered)
        return [None] * len(traced)

    monkeypatch.setattr(Compiler, "obtain", trace)
    prepared.make_programs()
    sampled = [] if prepared.plan.learns_from_data else ["sampling"]
    assert list(traced) == ["initial states", *sampled, "update", "evaluation"]
    first, (after, progress) = traced["initial states"].out_info, traced["update"].out_info
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in (first, after)]
    assert shapes[0] == shapes[1]
    assert {*progress.metrics.names} >= {"grad_norm", "nonfinite_step_rate", "learning_rate"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--pairs", "nowhere"], "--pairs nowhere: no such file or folder"),
        (["--labels", "exact"], "--labels exact: goes with --world bandit or tree or tiny"),
        (["--prompts", "pairs.jsonl"], "--prompts"),
        (["--max-prompt-tokens", "1"], "as tokens: 0 of 9 pairs"),
    ],
)
def test_what_cannot_be_is_refused(args, message, capsys):
    assert_refused(align.main, [*SMALL, "--method", "dpo", *args], message, capsys)


def test_a_method_of_pairs_asks_for_them(capsys):
    args = ["--world", "model", "--model", "model", "--method", "dpo"]
    assert_refused(align.main, args, "--method dpo: needs pairs too: --pairs PATH|NAME", capsys)
    args = ["--method", "dpo", "--too-long", "truncate"]
    assert_refused(align.main, args, "--too-long truncate: goes with --world", capsys)


def test_a_damaged_file_is_named_with_its_line(place, tmp_path, capsys):
    path = tmp_path / "torn.jsonl"
    path.write_text(json.dumps(rows()[0]) + "\n" + '{"chosen": "torn')
    args = [*SMALL, "--pairs", str(path), "--method", "dpo"]
    assert_refused(align.main, args, f"--pairs {path}: {path}, line 2: not JSON", capsys)


# Who judges.


def test_a_judge_of_pairs_takes_the_place_of_the_reward(tmp_path, capsys):
    args = [*SMALL, "--method", "online_dpo", "--num-updates", "2"]
    judged = [*args, "--preference", "my_judges:cats", "--microbatch-size", "1"]
    assert align.main([*judged, "--out", str(tmp_path / "run")]) == 0
    last = records(tmp_path / "run")[-1]
    assert abs(last["sampled_reward"][0]) < 1e-6  # a mean over groups
    assert last.keys() >= EVALUATED
    capsys.readouterr()
    for name, message in (
        ("my_judges:sure", "--preference my_judges:sure: expected 1 probabilities, got others"),
        ("my_judges:none", "--preference my_judges:none: AttributeError"),
    ):
        assert_refused(align.main, [*args, "--preference", name], message, capsys)
    asked = [*SMALL, "--method", "rebel", "--preference", "my_judges:cats"]
    assert_refused(align.main, asked, "goes with --method online-dpo or on-policy-dpo", capsys)


def test_rewards_of_a_judge_are_the_least_squares_fit_of_its_logits():
    strength = {"a": 0.3, "b": -1.0, "c": 2.0, "d": 0.0}

    def consistent(prompts, first, second):
        gaps = np.array([strength[a] - strength[b] for a, b in zip(first, second, strict=True)])
        return 1 / (1 + np.exp(-gaps))

    found = rewards.of_preference("judge", consistent, ["x"] * 4 + ["y"] * 4, [*"abcd", *"dcba"], 4)
    expected = np.array([strength[x] for x in "abcd"]) - np.mean(list(strength.values()))
    np.testing.assert_allclose(found[:4], expected, atol=1e-5)
    np.testing.assert_allclose(found[4:], expected[::-1], atol=1e-5)


# Pairs that a model makes.


def test_made_pairs_are_read_again_and_follow_the_reward(place, tmp_path, capsys):
    params = decoder.init(jax.random.key(0), ARCHITECTURE, 0.3)
    often = params["embedding"].at[2].multiply(4.0)  # the end, of either sign
    weights.save(tmp_path / "terse", ARCHITECTURE, params | {"embedding": often})
    write_tokenizer(tmp_path / "terse")
    made = tmp_path / "made.jsonl"
    args = ["--world", "model", "--model", str(tmp_path / "terse"), "--prompts", "prompts.txt"]
    (place / "prompts.txt").write_text("the cat\na hat\nthe user\n")
    args += ["--reward", "my_judges:letters", "--labels", "reward", "--num-pairs", "4"]
    args += ["--max-tokens", "24"]
    (place / "my_judges.py").write_text(
        PREFERENCE + "\n\ndef letters(prompts, answers):\n    return [len(a) for a in answers]\n"
    )
    assert make_pairs.main([*args, "--out", str(made)]) == 0
    assert f"4 pairs -> {made}" in capsys.readouterr().out
    data = preferences.read(made)
    assert len(data.pairs) == 4
    assert all(len(pair.chosen) > len(pair.rejected) for pair in data.pairs)
    again = tmp_path / "again.jsonl"
    assert make_pairs.main([*args, "--out", str(again)]) == 0
    assert again.read_bytes() == made.read_bytes()
    capsys.readouterr()
    assert_refused(make_pairs.main, [*args, "--out", str(made)], "exists already", capsys)
    assert_refused(make_pairs.main, [*args, "--out", "x.txt"], "expected a file *.jsonl", capsys)


def test_answers_that_are_all_the_same_end_it(tmp_path, monkeypatch, capsys):
    made = make_pairs.Made("p", "a", "a", 1.0, 1.0, True)
    monkeypatch.setattr(make_pairs, "sample", lambda options: iter([[made] * 8] * 20))
    assert make_pairs.main(["--out", str(tmp_path / "made.jsonl")]) == 3
    assert "of 104 pairs 104 were left out" in capsys.readouterr().err
    assert not (tmp_path / "made.jsonl").exists()


def test_a_stop_keeps_the_pairs_that_were_made(place, tmp_path, monkeypatch):
    batch = [make_pairs.Made("p", f"a{i}", "b", 1.0, 0.0, True) for i in range(3)]

    def sample(options):
        yield batch
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(make_pairs, "sample", sample)
    out = tmp_path / "made.jsonl"
    assert make_pairs.main(["--out", str(out)]) == 143
    assert len(out.read_text().splitlines()) == 3


def test_a_reward_that_was_learnt_from_the_pairs_judges_the_answers(tmp_path, capsys):
    learnt = tmp_path / "learnt"
    assert reward.main(["--pairs", "pairs.jsonl", "--l2", "0.1", "--out", str(learnt)]) == 0
    args = [*SMALL, "--method", "dpo", "--num-updates", "1", "--reward", str(learnt)]
    assert align.main([*args, "--out", str(tmp_path / "run")]) == 0
    scores = learnt_reward.load(learnt)(["the cat"] * 2, ["a cat", "the hat"])
    assert scores[0] > scores[1]
    rows = [json.loads(x) for x in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    again = learnt_reward.load(learnt)([x["prompt"] for x in rows], [x["answer"] for x in rows])
    np.testing.assert_allclose([x["reward"] for x in rows], again, rtol=1e-5, atol=1e-6)
    (learnt / "reward.json").write_text("{")
    capsys.readouterr()
    assert_refused(align.main, args, f"--reward {learnt}: ", capsys)
