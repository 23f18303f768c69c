"""Alignment of a model by pairs from a file: DPO and its kin, resume, refusals, held-out pairs."""

import json

import jax
import numpy as np
import pytest
from language_models import write_tokenizer
from probes import assert_refused

from experiments.align import __main__ as align
from experiments.align import text_building
from experiments.training import compiling, loop
from rgpo_jax.checkpoint import Checkpoints
from rgpo_jax.language import decoder, weights

pytest.importorskip("jinja2", reason="needs the extra `align`")

ARCHITECTURE = decoder.Architecture(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    attention_bias=True,
)
SMALL = [
    *("--world", "model", "--model", "model", "--pairs", "pairs.jsonl", "--seed", "3"),
    *("--held-out", "0.25", "--eval-answers", "1", "--eval-prompts", "2", "--max-tokens", "8"),
    *("--num-updates", "6", "--num-prompts", "2", "--num-epochs", "1", "--num-minibatches", "1"),
    *("--learning-rate", "0.003", "--eval-every", "12", "--log-every", "4"),
    *("--checkpoint-every", "0", "--num-last-layers", "1"),
]
WORDS = ("cat", "hat", "user", "assistant", "the cat", "a hat", "the hat", "and")
OF_PAIRS = {
    *("margin", "accuracy", "chosen_log_prob", "rejected_log_prob", "chosen_log_ratio"),
    *("rejected_log_ratio",),
}


def rows(number=12):
    """The chosen answer is of cats, and the other of hats."""
    return [
        {"prompt": f"the {WORDS[i % 8]} {WORDS[i // 8]}", "chosen": "a cat", "rejected": "the hat"}
        for i in range(number)
    ]


def write(path, content):
    path.write_text("\n".join(json.dumps(row) for row in content) + "\n")


@pytest.fixture(scope="module", autouse=True)
def programs_are_ready_soon():
    make, kept = text_building.Prepared.make_programs, {}

    def make_or_find(prepared):
        key = json.dumps([prepared.plan.settings(), prepared.plan.entries["data"]["sha256"]])
        if key not in kept:
            kept[key] = make(prepared)
        kept[key]._judge, kept[key]._folder = prepared.judge, prepared.folder
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_building.Prepared, "make_programs", make_or_find)
        patch.setattr(compiling, "options", lambda often: {"xla_backend_optimization_level": 0})
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    weights.save(folder / "model", ARCHITECTURE, decoder.init(jax.random.key(0), ARCHITECTURE, 0.3))
    write_tokenizer(folder / "model")
    write(folder / "pairs.jsonl", rows())
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    times = ("wall_seconds", "tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


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


class Killed(BaseException):
    """What no handler of ours knows: it stands for kill -9."""


@pytest.mark.parametrize("saves", [1, 4])
def test_a_killed_run_repeats_and_skips_no_pair(saves, whole, tmp_path, monkeypatch):
    folder, made = tmp_path / "cut", []
    save = Checkpoints.save

    def dying(self, *args):
        if len(made) == saves:
            raise Killed
        save(self, *args)
        made.append(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "_LONGEST_CHUNK", 0.0)
        patch.setattr(Checkpoints, "save", dying)
        align.main([*SMALL, "--method", "dpo", "--out", str(folder)])
    assert align.main(["--out", str(folder), "--resume"]) == 0
    assert records(folder) == records(whole)


def test_a_run_does_not_go_on_with_other_pairs(tmp_path, monkeypatch, capsys):
    write(tmp_path / "pairs.jsonl", rows(8))
    args = [*SMALL, "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "_LONGEST_CHUNK", 0.0)
        patch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(Killed()))
        align.main([*args, "--method", "rpo"])
    capsys.readouterr()
    write(tmp_path / "pairs.jsonl", reversed(rows(8)))
    message = "holds other pairs than when the run in"
    assert_refused(align.main, ["--out", str(tmp_path / "run"), "--resume"], message, capsys)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("kto", ()),
        ("ipo", ("--by-length",)),
        ("rebel", ("--group-size", "2")),
        ("online_dpo", ("--microbatch-size", "1")),
        ("on_policy_dpo", ("--num-epochs", "2")),
        ("zpg", ()),
        ("zbcpg", ("--num-directions", "2")),
        ("rgpo", ("--group-size", "2")),
    ],
)
def test_other_methods_run_on_the_prompts_or_pairs_of_a_file(method, more, tmp_path):
    args = [*SMALL, "--method", method, "--num-updates", "2", *more]
    if method in ("zpg", "zbcpg"):
        at = args.index("--num-epochs")
        del args[at : at + 4]
    assert align.main([*args, "--out", str(tmp_path / "run")]) == 0
    last = records(tmp_path / "run")[-1]
    assert last.keys() >= {"pair_accuracy", "reward", "kl_ref"}
    assert last["updates"] == 2


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
