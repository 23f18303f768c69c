"""Alignment of a model that is read from disk: a run, its answers, its page, and how it goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killing import killed_at_save
from probes import RUN_FILES, records, timeless_records
from text_places import LAST, PROMPTS, SMALL, write_place
from xla_flags import QUICK_TO_COMPILE

from experiments.align import __main__ as align
from experiments.align import answer_log, export, page, text_building, text_programs
from experiments.align.answer_log import Answered
from experiments.align.plan import read_plan
from experiments.play import __main__ as play
from experiments.training import loop
from rgpo_jax.language import weights
from rgpo_jax.language.samples import Batch

pytest.importorskip("jinja2", reason="needs the extra `align`")

TRAINED = [
    *(*SMALL, *LAST, "--method", "rgpo", "--gold", "my_rewards:length", "--kl-target", "0.01"),
    "--keep-best",
]


pytestmark = pytest.mark.usefixtures("programs_are_kept")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    """Runs begin in that folder."""
    monkeypatch.chdir(place)
    yield
    sys.modules.pop("my_rewards", None)


def asked_for():
    """The prompts that were judged, call by call, without the trial at the start."""
    return [prompts for prompts in sys.modules["my_rewards"].asked if prompts != ["Say hello."]]


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The run that nothing cut off, and the prompts that were judged."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert align.main([*TRAINED, "--out", str(folder)]) == 0
        return folder, asked_for()


# A whole run.


def test_a_run_leaves_its_answers_beside_all_else(whole):
    folder, _ = whole
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([*RUN_FILES, "answers.html", "answers.jsonl"])
    log = (folder / "run.log").read_text()
    assert "8 prompts" not in log and "6 prompts, 2 held out" in log
    config = json.loads((folder / "config.json").read_text())
    model = config["model"]
    assert Path(model["name"]).name == "model"
    assert 0 < model["trained"] < model["parameters"]


def test_the_summary_and_the_metrics_are_those_of_held_out_prompts(whole):
    folder, _ = whole
    summary, lines = json.loads((folder / "summary.json").read_text()), records(folder)
    assert [line["answers"] for line in lines] == [0, 4, 8, 12, 16]
    assert summary["reward"] == lines[-1]["reward"][0]
    assert summary["kl_ref"] == lines[-1]["kl_ref"][0]
    assert summary["target_distance"] is None
    assert 0 <= summary["first_ratio_deviation"] < 1e-5
    assert (summary["method"], summary["world"]) == ("rgpo", "model")
    evaluated = {"reward", "gold", "kl_ref", "kl_ref_by_k3", "length", "ended"}
    assert [line.keys() >= evaluated for line in lines] == [True, False, True, False, True]
    for line in lines[1:]:
        assert line.keys() >= {"sampled_reward", "gold_reward", "kl_ref_k1", "answers_ended"}
    assert lines[0]["kl_ref"] == pytest.approx([0.0], abs=1e-5)
    assert lines[-1]["kl_ref_by_k3"][0] > 0
    assert lines[-1]["kl_coefficient"] != lines[1]["kl_coefficient"]  # it adapts


def test_tokens_a_second_are_told(whole):
    folder, _ = whole
    assert all(line["tokens_per_second"][0] > 0 for line in records(folder)[1:])


def test_all_prompts_come_in_turn_and_none_that_is_held_out(whole):
    _, asked = whole
    training = [prompts[::2] for prompts in asked if len(prompts) == 4 and prompts[0] == prompts[1]]
    training = [prompts for prompts in training if prompts[0] not in PROMPTS[-2:]]
    assert len(training) == 4
    first_round = [prompt for prompts in training[:3] for prompt in prompts]
    assert sorted(first_round) == sorted(PROMPTS[:6])


def test_answers_are_kept_from_before_to_after(whole):
    folder, _ = whole
    rows = answer_log.read(folder)
    assert [row.updates for row in rows] == [0, 0, 2, 2, 4, 4]
    assert [row.prompt for row in rows] == PROMPTS[-2:] * 3
    for row in rows:
        assert row.reward == pytest.approx(
            sum(x in "aeiou" for x in row.answer) / max(1, len(row.answer)), abs=1e-6
        )
        assert row.gold == len(row.answer)  # in place of what is trained on
    assert not all(row.ended for row in rows)


def test_the_page_shows_them(whole):
    folder, _ = whole
    text = (folder / "answers.html").read_text()
    for name in ("before training", "midway", "after training", "rgpo-geometric on model"):
        assert name in text
    assert text.index("before training") < text.index("midway") < text.index("after training")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&#39;held&#39;)&lt;/script&gt;" in text
    assert 'src="data:image/png;base64,' in text
    assert "http" not in text


def test_the_page_escapes_what_the_model_says(whole, tmp_path):
    folder, _ = whole
    (tmp_path / "summary.json").write_bytes((folder / "summary.json").read_bytes())
    said = '<img src=x onerror=alert(1)> & "quotes" </td>\n\nnew line'
    rows = [
        Answered(updates, f"<i>{i}</i>", said, 0.25, None, True)
        for updates in (0, 1, 9)
        for i in range(2)
    ]
    answer_log.append(tmp_path, rows)
    text = page.render("<u>title</u>", "a < b", tmp_path)
    for tag in ("<img src=x", "<i>", "<u>"):
        assert tag not in text
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; &#34;quotes&#34; &lt;/td&gt;" in text
    assert "1 updates" not in text and "1 update" in text


def test_milestones():
    def of(*updates):
        return page.milestones([Answered(n, "", "", 0.0, None, True) for n in updates])

    assert of(0) == [0]
    assert of(0, 30, 0, 30) == [0, 30]
    assert of(0, 3, 6, 9, 12, 30) == [0, 12, 30]


# Going on.


def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    # At the next one: an evaluation may have come after the last.
    with monkeypatch.context() as patch, killed_at_save(3, before=True):
        patch.setattr(loop, "_LONGEST_CHUNK", 0.0)
        align.main([*TRAINED, "--out", str(folder)])
    before = len(asked_for())
    assert align.main(["--out", str(folder), "--resume", "--trust-code"]) == 0
    reference, asked = whole
    assert timeless_records(folder) == timeless_records(reference)
    assert (folder / "answers.jsonl").read_bytes() == (reference / "answers.jsonl").read_bytes()
    # The same prompts in the same order as from there on without a cut.
    later = asked_for()[before:]
    assert later == asked[-len(later) :]
    assert (folder / "answers.html").exists()


def test_the_trained_model_talks_and_so_does_the_one_before(whole, capsys, monkeypatch, tmp_path):
    folder, _ = whole
    monkeypatch.chdir(tmp_path)  # neither prompts nor rewards of the run are needed
    asked = ["--run", str(folder), "--prompt", "the cat", "a hat", "--max-steps", "3"]
    assert play.main(asked) == 0
    said = capsys.readouterr().out
    assert play.main(asked) == 0
    assert capsys.readouterr().out == said
    lines = said.split("\n")
    assert [line for line in lines if line and not line.startswith("  ")] == ["the cat", "a hat"]
    assert len([line for line in lines if line.startswith("  before: ")]) == 2
    assert len([line for line in lines if line.startswith("  after 4 updates: ")]) == 2


def test_the_model_of_the_best_evaluation_is_kept_and_talks(whole, capsys):
    folder, _ = whole
    evaluated = [line for line in records(folder) if "reward" in line]
    best = max(evaluated, key=lambda line: line["reward"][0])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_reward"] == best["reward"]
    assert summary["best_at"] == [best["answers"]]
    asked = ["--run", str(folder), "--prompt", "the cat", "--max-steps", "3", "--which", "best"]
    assert play.main(asked) == 0
    assert f"  after {best['updates']} updates: " in capsys.readouterr().out


def test_it_is_trained_for_longer_and_calls_back(whole, tmp_path, place):
    shutil.copytree(whole[0], tmp_path / "run")
    (place / "own_callback.py").write_text("def stop(moment):\n    return moment.updates == 5\n")
    longer = ["--out", str(tmp_path / "run"), "--resume", "--train-longer", "--num-updates", "6"]
    callback = ["--callback", "own_callback:stop"]
    assert align.main([*longer, *callback, "--trust-code"]) == 0
    assert records(tmp_path / "run")[-1]["updates"] == 5
    assert align.main([*longer, "--trust-code"]) == 0
    lines = timeless_records(tmp_path / "run")
    assert lines[:5] == timeless_records(whole[0])
    assert [line["updates"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]


def test_a_run_without_language_does_not_talk(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"world": "bandit"}}))
    with pytest.raises(SystemExit) as refused:
        play.main(["--run", str(tmp_path), "--prompt", "x"])
    assert refused.value.code == 2
    assert "the world bandit has no language" in capsys.readouterr().err


def test_the_trained_model_is_taken_elsewhere(whole, tmp_path, capsys):
    folder, _ = whole
    out = tmp_path / "model"
    args = ["--run", str(folder), "--out", str(out), "--dtype", "float32"]
    assert export.main(args) == 0
    saved, before = weights.load(out), weights.load("model")
    layers = [np.asarray(model.params["layers"]["gate"]) for model in (saved, before)]
    assert np.array_equal(layers[0][0], layers[1][0])  # only the last one was trained
    assert not np.array_equal(layers[0][1], layers[1][1])
    with pytest.raises(SystemExit) as refused:
        export.main(args)
    assert refused.value.code == 2 and "exists already" in capsys.readouterr().err


def test_an_update_takes_the_memory_of_the_state_before(whole, monkeypatch, tmp_path):
    entered = []
    advance = text_programs.TextPrograms.advance

    def look(self, states, progress, number):
        after = advance(self, states, progress, number)
        entered.append(all(x.is_deleted() for x in jax.tree.leaves(states.learner.params)))
        return after

    monkeypatch.setattr(text_programs.TextPrograms, "advance", look)
    assert align.main([*TRAINED, "--out", str(tmp_path / "again")]) == 0
    assert entered and all(entered)


def test_a_finished_run_stays_as_it_is(whole, capsys):
    folder, _ = whole
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert align.main(["--out", str(folder), "--resume", "--trust-code"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_a_reward_that_fails_later_stops_the_run_and_nothing_is_lost(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    args = [*TRAINED, "--reward", "my_rewards:later", "--out", str(folder)]
    assert align.main(args) == 3
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(
        "error: --reward my_rewards:later: RuntimeError: gone home; go on with: "
    )
    sys.modules["my_rewards"].asked.append(["at home again"])
    assert align.main(["--out", str(folder), "--resume", "--trust-code"]) == 0
    assert timeless_records(folder) == timeless_records(whole[0])


# Several devices.
SPREAD = """
import sys
from experiments.align import __main__ as align
from experiments.align.text_building import Prepared
from experiments.align.text_programs import TextPrograms
from rgpo_jax.checkpoint import Checkpoints

advance, save = TextPrograms.advance, Checkpoints.save
make, made = Prepared.make_programs, []


def make_once(prepared):
    made.append(made[0] if made else make(prepared))
    return made[0]


def looking(self, states, progress, number):
    states, progress = advance(self, states, progress, number)
    learner = states.learner
    for tree in (learner.params["actor"], learner.optimizer_state[1].mu["actor"]):
        q = tree["layers"]["q"]  # [1, 32, 32]
        assert q.addressable_shards[0].data.shape == (1, 16, 16), q.sharding
    return states, progress


def dying(self, updates, *args):
    if updates == 3:
        raise KeyboardInterrupt
    return save(self, updates, *args)


Prepared.make_programs = make_once
TextPrograms.advance, Checkpoints.save = looking, dying
try:
    align.main(sys.argv[1:])
    raise AssertionError("it should have died")
except KeyboardInterrupt:
    pass
Checkpoints.save = save
assert align.main([*sys.argv[1:], "--resume", "--trust-code"]) == 0
"""


def test_a_model_that_is_spread_over_devices_learns_the_same(whole, place, tmp_path):
    folder = tmp_path / "spread"
    args = [*TRAINED, "--fsdp", "2", "--tp", "2", "--out", str(folder)]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = QUICK_TO_COMPILE
    run = subprocess.run(
        [sys.executable, "-c", SPREAD, *args],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "for 4 devices: fsdp 2, tp 2" in run.stdout
    nan = float("nan")
    for spread, alone in zip(timeless_records(folder), timeless_records(whole[0]), strict=True):
        assert spread.keys() == alone.keys()
        for name, values in alone.items():
            found, expected = (
                np.array([nan if x is None else x for x in np.atleast_1d(v)], float)
                for v in (spread[name], values)
            )
            np.testing.assert_allclose(found, expected, rtol=5e-3, atol=2e-5, err_msg=name)
    answers = [(f / "answers.jsonl").read_text().splitlines() for f in (folder, whole[0])]
    texts = [[json.loads(line)["answer"] for line in lines] for lines in answers]
    assert texts[0] == texts[1]


# What is trained.


PPO = [
    *(*SMALL, "--method", "ppo", "--missing-end", "-2", "--gae-lambda", "0.9"),
    *("--kl-coefficient", "0", "--num-updates", "1", "--eval-every", "4"),
]


@pytest.mark.parametrize(
    ("part", "critic"),
    [
        (["--train", "full"], "trunk"),
        (["--train", "last_layers", *LAST], "separate"),
    ],
)
def test_an_update_of_ppo_fits_each_part_with_a_critic(part, critic, tmp_path):
    """As shapes; what it computes of each part is held in a world that is exact."""
    plan = read_plan([*PPO, *part, "--critic", critic])
    prepared = text_building.prepare(plan, tmp_path)
    agent, world = prepared.agent, prepared.text.world

    def update(key):
        state = agent.init(key, world.frozen)
        sampled, asked, answers = agent.sample(state, world.frozen, world.prompts)
        batch = Batch(asked, answers, jnp.zeros(len(answers.tokens)))
        return state, *agent.update(sampled, world.frozen, batch)

    before, after, metrics = jax.eval_shape(update, jax.random.key(0))
    assert before == after
    params = before.learner.params
    assert ("body" in params["critic"]) == (critic == "separate")
    assert len(params["actor"]["layers"]["q"]) == (2 if "full" in part else 1)
    assert metrics.keys() >= {"value_loss", "first_ratio_deviation", "grad_norm"}


def test_ppo_trains_adapters_with_a_critic(tmp_path):
    part = ["--train", "lora", "--lora-rank", "2", "--critic", "trunk"]
    assert align.main([*PPO, *part, "--out", str(tmp_path / "run")]) == 0
    lines = records(tmp_path / "run")
    assert lines[-1]["first_ratio_deviation"][0] < 1e-5
    # All were cut. The critic says 0, and is told of -2 at the last token, whatever was given.
    assert lines[-1]["answers_ended"] == [0.0]
    assert 0 <= lines[-1]["sampled_reward"][0] <= 1
    errors = [(2 * 0.9**behind) ** 2 for behind in range(5)]
    assert lines[-1]["value_loss"][0] == pytest.approx(0.5 * sum(errors) / 5)
    assert lines[-1]["kl_ref_by_k3"][0] > 0  # it moved
    assert lines[0]["kl_ref"] == pytest.approx([0.0], abs=1e-5)
