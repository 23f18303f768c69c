"""Rewards that are learnt from pairs: the model, its fits, their folders, and the program."""

import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from language_models import write_tokenizer
from probes import assert_refused

from envs.language import decoder_reward, learnt_reward, ngram_reward, rewards, text
from envs.language.learnt_reward import LearntReward
from experiments.align import reward as program
from experiments.cli.interrupts import Interrupted
from rgpo_jax.language import bradley_terry, decoder, decoder_policy, reward_model, weights
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.pairs import Pairs

ARCHITECTURE = decoder.Architecture(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    attention_bias=True,
)
PARAMS = decoder.init(jax.random.key(0), ARCHITECTURE, 0.3)
END = 5
PARTS = {
    "full": TrainedPart("full"),
    "last_layers": TrainedPart("last_layers", num_last_layers=1),
    "lora": TrainedPart("lora", rank=2),
}


# Bradley and Terry.


@pytest.mark.parametrize("label", [1.0, 0.0, 0.3])
def test_the_loss_and_its_gradient_have_their_closed_forms(label):
    margins = np.array([-30.0, -2.0, 0.0, 0.5, 4.0, 30.0])
    with jax.enable_x64():
        found = np.asarray(bradley_terry.loss(jnp.asarray(margins), label))
        slope = jax.grad(lambda m: bradley_terry.loss(m, label).sum())(jnp.asarray(margins))
    likelihood = -label * scipy.special.log_expit(margins)
    likelihood -= (1 - label) * scipy.special.log_expit(-margins)
    np.testing.assert_allclose(found, likelihood, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, scipy.special.expit(margins) - label, rtol=0, atol=1e-14)
    assert bradley_terry.log_loss(margins, label) == pytest.approx(likelihood.mean(), rel=1e-12)


def test_shares_have_wilsons_interval():
    for successes, number in ((0, 7), (7, 7), (3, 11), (286, 460)):
        expected = scipy.stats.binomtest(successes, number).proportion_ci(0.95, "wilson")
        found = bradley_terry.wilson(successes, number)
        np.testing.assert_allclose(found, (successes / number, *expected), atol=1e-12)
    assert all(map(math.isnan, bradley_terry.wilson(0, 0)))


def test_ties_are_half_right():
    margin = np.array([2.0, -1.0, 0.0, 3.0])
    np.testing.assert_array_equal(bradley_terry.right(margin), [1, 0, 0.5, 1])
    np.testing.assert_array_equal(bradley_terry.right(margin, [0, 0, 1, 1]), [0, 1, 0.5, 1])
    assert bradley_terry.accuracy(margin).value == 0.625
    gain = bradley_terry.gain([1, 1, 0, 1], [0, 1, 0, 0.5])
    differences = [1, 0, 0, 0.5]
    half = 1.959964 * np.std(differences, ddof=1) / 2
    np.testing.assert_allclose(gain, (0.375, 0.375 - half, 0.375 + half), rtol=1e-6)


def test_calibration_by_hand():
    def margin(p):
        return math.log(p / (1 - p))

    margins = [margin(0.72), margin(0.28), margin(0.78), margin(0.95), 0.0]
    found = bradley_terry.calibration(margins, num_bins=5)
    assert [b.number for b in found.bins] == [1, 0, 3, 0, 1]
    assert found.bins[0].accuracy.value == 0.5  # a tie
    assert found.bins[2].accuracy.value == pytest.approx(2 / 3)
    assert found.bins[2].confidence == pytest.approx((0.72 + 0.72 + 0.78) / 3)
    error = (0 + 3 * abs(2 / 3 - 0.74) + 0.05) / 5
    assert found.error == pytest.approx(error)
    brier = np.mean([0.28**2, 0.72**2, 0.22**2, 0.05**2, 0.25])
    assert bradley_terry.brier(margins) == pytest.approx(brier)
    # Which answer comes first says nothing.
    turned = bradley_terry.calibration(np.negative(margins), 0.0, 5)
    assert turned.error == pytest.approx(found.error)


def test_calibrated_predictions_have_no_error():
    rng = np.random.default_rng(0)
    margins = rng.normal(scale=1.5, size=200_000)
    labels = (rng.random(200_000) < bradley_terry.probability(margins)).astype(float)
    assert bradley_terry.calibration(margins, labels).error < 0.005
    assert bradley_terry.calibration(3 * margins, labels).error > 0.1
    # Labels that are probabilities say the same without noise.
    exact = bradley_terry.probability(margins)
    assert bradley_terry.calibration(margins, exact).error < 1e-12


# The fit.


def test_exact_labels_give_the_true_differences_of_rewards():
    truth = np.array([0.0, 1.3, -0.7, 2.1, 0.4])
    arms = list(itertools.combinations(range(5), 2))
    differences = np.array([np.eye(5)[a] - np.eye(5)[b] for a, b in arms])
    labels = scipy.special.expit(differences @ truth)
    found = ngram_reward.fit(differences, 1e-9, labels).weights
    np.testing.assert_allclose(found - found[0], truth - truth[0], atol=1e-6)
    sparse = ngram_reward.fit(scipy.sparse.csr_matrix(differences), 1e-9, labels).weights
    np.testing.assert_allclose(sparse, found, atol=1e-7)


def test_the_fit_is_where_the_gradient_is_zero():
    rng = np.random.default_rng(1)
    differences, anchor = rng.normal(size=(40, 6)), rng.normal(size=6)
    labels, counts = rng.random(40), rng.integers(0, 3, 40)
    found = ngram_reward.fit(differences, 0.5, labels, counts, anchor).weights

    def objective(w):
        losses = bradley_terry.loss(jnp.asarray(differences) @ w, jnp.asarray(labels))
        return jnp.sum(counts * losses) + 0.25 * jnp.sum((w - anchor) ** 2)

    with jax.enable_x64():
        gradient = jax.grad(objective)(jnp.asarray(found))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    # Counts are repetitions.
    again = np.repeat(np.arange(40), counts)
    repeated = ngram_reward.fit(differences[again], 0.5, labels[again], anchor=anchor).weights
    np.testing.assert_allclose(repeated, found, atol=1e-7)
    with pytest.raises(ValueError, match="expected both above 0"):
        ngram_reward.fit(differences, 0.0)


def test_features_are_the_same_everywhere():
    found = ngram_reward.features(["It's a cat; a cat!", "", "Ünï"], 2**14).tocsr()
    assert ngram_reward.words("It's a CAT; ok") == ["it's", "a", "cat", ";", "ok"]
    # it's, a, cat, ;, ! and it's a, a cat, cat ;, ; a, cat !
    assert np.diff(found.indptr).tolist() == [10, 0, 1]
    assert set(found.data) == {1.0}
    assert ngram_reward.features(["cat"], 2**14).indices.tolist() == [0x9E5E43A8 % 2**14]


GOOD = ("kindly", "gladly", "carefully", "honestly")
BAD = ("rudely", "badly", "carelessly", "falsely")
PLAIN = (
    *("the", "a", "cat", "dog", "sits", "runs", "on", "under", "house", "tree"),
    *("and", "then", "again", "there", "here"),
)


def lexicon_pairs(number, seed):
    """Pairs whose truth is how many good words an answer has, minus bad ones."""
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < number:
        both = []
        for _ in range(2):
            said = [*rng.choice(PLAIN, rng.integers(4, 9)), *rng.choice([*GOOD, *BAD], 2)]
            rng.shuffle(said)
            both.append(said)
        values = [sum(w in GOOD for w in s) - sum(w in BAD for w in s) for s in both]
        if values[0] != values[1]:
            both = both if values[0] > values[1] else both[::-1]
            chosen, rejected = map(" ".join, both)
            prompt = str(rng.choice(PLAIN)) + f" {len(rows)}"
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_pairs(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def run(*args):
    return program.main([*map(str, args)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pairs, a tiny model, and rewards that were learnt from them."""
    folder = tmp_path_factory.mktemp("rewards")
    data = folder / "data"
    data.mkdir()
    write_pairs(data / "train.jsonl", lexicon_pairs(300, 0))
    write_pairs(data / "test.jsonl", lexicon_pairs(200, 1))
    write_pairs(folder / "few.jsonl", lexicon_pairs(20, 2))
    weights.save(folder / "model", ARCHITECTURE, PARAMS)
    write_tokenizer(folder / "model")
    return folder


@pytest.fixture(scope="module")
def ngrams(place):
    out = place / "ngrams"
    args = ("--pairs", place / "data", "--ensemble", 4, "--l2", 2, "--out", out)
    assert run(*args) == 0
    return out


def test_ngrams_find_a_lexicon(ngrams):
    told = json.loads((ngrams / "reward.json").read_text())["held_out"]
    assert told["pairs"] == 200
    assert told["accuracy"]["low"] > 0.9 > told["floor"]["high"]
    assert told["gain_over_floor"]["low"] > 0.3
    assert len(told["accuracy_of_members"]) == 4
    assert told["log_loss"] < math.log(2) and told["brier"] < 0.25
    assert sum(row["number"] for row in told["calibration"]["bins"]) == 200


def test_members_disagree_where_the_pairs_say_nothing(ngrams):
    reward = learnt_reward.load(ngrams)
    known = [row["chosen"] for row in lexicon_pairs(200, 1)]
    words = [f"{a}{b}ish" for a in "bcdfgklm" for b in ("anopt", "erudl", "ilquv")]
    rng = np.random.default_rng(0)
    unknown = [" ".join(rng.choice(words, len(answer.split()))) for answer in known]
    mean, spread = reward.score_with_spread(known, known)
    off_mean, off_spread = reward.score_with_spread(unknown, unknown)
    assert np.median(off_spread) > 1.25 * np.median(spread) > 0
    # The members' anchors cancel: what nobody has seen is not liked or disliked.
    assert np.std(off_mean) < np.std(mean)
    careful = learnt_reward.load(ngrams, pessimism=2.0)
    np.testing.assert_allclose(careful(known, known), mean - 2 * spread, rtol=1e-12)
    np.testing.assert_array_equal(reward(known, known), mean)


def test_a_single_member_has_no_spread_and_the_prior_mean():
    rows = lexicon_pairs(50, 3)
    first, second = (
        ngram_reward.features([row[side] for row in rows], 256) for side in ("chosen", "rejected")
    )
    single = ngram_reward.member(first - second, 1.0, 0, 1, 7)
    np.testing.assert_array_equal(single.weights, ngram_reward.fit(first - second, 1.0).weights)
    assert ngram_reward.member(first - second, 1.0, 1, 3, 7).weights.tolist() == (
        ngram_reward.member(first - second, 1.0, 1, 3, 7).weights.tolist()
    )
    mean, spread = learnt_reward.standardised(np.array([[1.0, 5.0]]), np.array([3.0]), 2.0)
    assert mean.tolist() == [-1.0, 1.0] and spread.tolist() == [0.0, 0.0]


def test_scores_are_standardised_on_what_was_learnt_from(ngrams):
    reward = learnt_reward.load(ngrams)
    rows = lexicon_pairs(300, 0)
    answers = [row[side] for row in rows for side in ("chosen", "rejected")]
    scores = reward(answers, answers)
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores.std() == pytest.approx(1, rel=1e-9)
    # A reward as any other, and its scale gives probabilities.
    assert rewards.score("r", reward, ["x"], ["kindly"]).shape == (1,)
    assert rewards.score("r", reward, [], []).shape == (0,)
    margins = np.diff(reward.members(answers, answers).mean(axis=0))
    np.testing.assert_allclose(reward.scale * np.diff(scores), margins, atol=1e-9)


# The model on a decoder.


def policy_of(part, max_tokens=6, pad_id=END):
    return decoder_policy.make(ARCHITECTURE, max_tokens, (END,), pad_id, PARTS[part])


def model_of(part, optimizer=None, microbatch_size=None, **how):
    optimizer = optax.sgd(1.0) if optimizer is None else optimizer
    return reward_model.make(policy_of(part, **how), 16, optimizer, microbatch_size)


def batch_of(prompts, answers, width, length, pad=END):
    """Rows of ids as padded arrays."""
    tokens = np.full((len(prompts), width), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(prompts):
        tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    filled = np.full((len(answers), length), pad, np.int32)
    real = np.zeros(filled.shape, bool)
    for i, row in enumerate(answers):
        filled[i, : len(row)], real[i, : len(row)] = row, True
    zeros, ended = np.zeros(filled.shape, np.float32), np.array([r[-1] == END for r in answers])
    return Prompts(*map(jnp.asarray, (tokens, mask))), Answers(
        *map(jnp.asarray, (filled, real, zeros, ended))
    )


PROMPTS = [[7, 8, 9], [10], [11, END, 12, 13], [14, 15]]
# Ends within it; full length with an end, and without; a single one.
ANSWERS = [[20, END], [21, 22, 23, 24, 25, END], [26, 27, 28, 29, 30, 31], [END]]


@functools.cache
def last_states():
    """The state of the last token of each row, alone and without padding [4, D]."""
    read = jax.jit(decoder.hidden_states, static_argnums=1)
    rows = [jnp.array([p + a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    return jnp.stack(
        [read(PARAMS, ARCHITECTURE, row, jnp.ones(row.shape, bool))[0, -1] for row in rows]
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_score_is_read_at_the_last_token(part):
    model = model_of(part)
    params = model.init(jax.random.key(1), PARAMS).params
    prompts, answers = batch_of(PROMPTS, ANSWERS, 4, 6)
    found = jax.jit(model.score)(params, PARAMS, prompts, answers)
    # Whatever is trained, the model is at first the same.
    np.testing.assert_allclose(found, last_states() @ params["head"], atol=1e-5)
    assert found.dtype == jnp.float32


def test_padding_changes_no_score():
    model = model_of("last_layers")
    params = model.init(jax.random.key(1), PARAMS).params
    expected = last_states() @ params["head"]
    for width, length, pad in ((4, 6, 0), (7, 6, 3), (4, 11, END), (9, 8, 319)):
        batch = batch_of(PROMPTS, ANSWERS, width, length, pad)
        found = jax.jit(model.score)(params, PARAMS, *batch)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_members_are_scored_as_each_alone():
    model = model_of("lora")
    several = [model.init(jax.random.key(i), PARAMS).params for i in range(3)]
    assert not np.array_equal(several[0]["head"], several[1]["head"])
    batch = batch_of(PROMPTS, ANSWERS, 4, 6)
    score = jax.jit(model.score)
    alone = [score(member, PARAMS, *batch) for member in several]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.jit(model.score_members)(stacked, PARAMS, *batch)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def pairs_of(label=(1.0, 1.0, 0.25, 1.0), counts=(True,) * 4):
    prompts, chosen = batch_of(PROMPTS, ANSWERS, 4, 6)
    _, rejected = batch_of(PROMPTS, [[40, 41], [END], [42, 43, END], [44, 45, 46]], 4, 6)
    label = jnp.array(label, jnp.float32)
    return Pairs(prompts, chosen, rejected, label, jnp.zeros(4), jnp.array(counts))


def difference(one, other):
    return max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture(scope="module")
def update():
    """The compiled update of `model_of("last_layers")`, and a state."""
    model = model_of("last_layers", optax.sgd(0.1))
    state = model.init(jax.random.key(2), PARAMS)
    return jax.jit(model.update).lower(state, PARAMS, pairs_of()).compile(), state


def test_an_update_is_a_step_down_the_mean_loss(update):
    step, state = update
    pairs, model = pairs_of(), model_of("last_layers")
    after, metrics = step(state, PARAMS, pairs)

    def loss(params):
        chosen = model.score(params, PARAMS, pairs.prompts, pairs.chosen)
        rejected = model.score(params, PARAMS, pairs.prompts, pairs.rejected)
        return jnp.mean(bradley_terry.loss(chosen - rejected, pairs.label))

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, state.params, gradient)
    assert difference(after.params, expected) < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-5)
    assert bool(metrics["taken"]) and 0 <= float(metrics["accuracy"]) <= 1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert moved["head"] > 0 and max(jax.tree.leaves(moved["actor"])) > 0


def test_no_logits_are_computed(update):
    """The policy could say log-probabilities as well; the compiler drops what nobody asks for."""
    told = update[0].as_text()
    assert "8,7,16]" in told  # states
    assert "8,7,320]" not in told and "[56,320]" not in told


def test_pairs_that_do_not_count_change_nothing_and_parts_are_a_whole(update):
    step, state = update
    counts = (True, False, True, False)
    pairs = pairs_of(counts=counts)
    whole, _ = step(state, PARAMS, pairs)
    by_parts = jax.jit(model_of("last_layers", optax.sgd(0.1), microbatch_size=1).update)
    parts, _ = by_parts(state, PARAMS, pairs)
    assert difference(whole.params, parts.params) < 1e-5
    keep = np.array(counts)[:, None]
    others = jnp.where(keep, pairs.rejected.tokens, 99)
    changed, _ = step(
        state, PARAMS, pairs._replace(rejected=pairs.rejected._replace(tokens=others))
    )
    assert difference(whole.params, changed.params) < 1e-6
    broken = state.params | {"head": state.params["head"] * jnp.nan}
    kept, metrics = step(state._replace(params=broken), PARAMS, pairs)
    assert not bool(metrics["taken"])
    np.testing.assert_array_equal(kept.params["actor"]["norm"], state.params["actor"]["norm"])


# Folders.


def test_a_reward_is_the_same_when_it_is_read_again(ngrams):
    reward = learnt_reward.load(ngrams)
    assert isinstance(reward, LearntReward) and reward.kind == "ngrams"
    again = ngrams.with_name("again")
    learnt_reward.save(again, dataclasses.replace(reward, pessimism=0.5), {"note": "x"})
    second = learnt_reward.load(again)
    answers = [row["chosen"] for row in lexicon_pairs(20, 5)]
    for a, b in zip(
        reward.score_with_spread(answers, answers),
        second.score_with_spread(answers, answers),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert second.pessimism == 0.5
    assert sorted(path.name for path in again.iterdir()) == ["arrays.npz", "reward.json"]
    assert not list(again.parent.glob(".again-*"))


def edited(**changes):
    def edit(folder):
        path = folder / "reward.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return edit


def saved(**arrays):
    return lambda folder: np.savez(folder / "arrays.npz", **arrays)


class Pickled:
    def __reduce__(self):
        return (os.mkdir, ("pickles-were-read",))


def pickled(folder):
    np.savez(folder / "arrays.npz", weights=np.array([[Pickled()]], object))


def flipped(folder):
    path = folder / "arrays.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def vast(folder):
    """A header that promises more than any memory has."""
    path = folder / "arrays.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4, 999999999999), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", b"\x93NUMPY\x01\x00v\x00" + header)


def linked(folder):
    (folder / "reward.json").rename(folder / "other.json")
    (folder / "reward.json").symlink_to(folder / "other.json")


def piped(folder):
    (folder / "arrays.npz").unlink()
    os.mkfifo(folder / "arrays.npz")


def short(folder):
    path = folder / "arrays.npz"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "reward.json").unlink(), "reward.json: No such file"),
        (lambda f: (f / "arrays.npz").unlink(), "arrays.npz: No such file"),
        (lambda f: (f / "reward.json").write_text("{"), "reward.json: not JSON"),
        (lambda f: (f / "reward.json").write_text("[" * 10**6), "reward.json: not JSON"),
        (lambda f: (f / "reward.json").write_text("[]"), "expected a JSON object"),
        (edited(format=2), "format 2: expected 1"),
        (edited(kind="forest"), "expected ngrams or decoder"),
        (edited(kind="decoder"), "decoder: expected one of the kind dict"),
        (edited(members=3), "expected 3 numbers"),
        (edited(members=...), "members: expected"),
        (edited(shift=[0.0, 0.0, 0.0, "x"]), "shift or scale"),
        (edited(scale=0.0), "shift or scale"),
        (edited(scale=float("nan")), "scale: expected"),
        (edited(pessimism=-1.0), "pessimism -1.0: expected a number of at least 0"),
        (edited(ngrams={"num_features": 7}), "weights: expected float64 (4, 7), found"),
        (saved(), "weights: missing"),
        (saved(weights=np.zeros((4, 3))), "weights: expected float64 (4, 16384)"),
        (saved(weights=np.zeros((4, 2**14), np.float32)), "found float32"),
        (saved(weights=np.full((4, 2**14), np.nan)), "NaN or infinity"),
        (saved(weights=np.zeros((4, 2**14)), more=np.zeros(1)), "more: not a part of it"),
        (pickled, "weights: expected float64"),
        (flipped, "arrays.npz: damaged"),
        (short, "arrays.npz: damaged"),
        (vast, "weights: expected float64"),
        (linked, "reward.json: "),
        (piped, "arrays.npz: "),
    ],
)
def test_damage_is_refused_in_a_line(damage, message, ngrams, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "damaged"
    shutil.copytree(ngrams, folder)
    damage(folder)
    with pytest.raises(ValueError) as refused:
        learnt_reward.load(folder)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    assert not Path("pickles-were-read").exists()


def test_pessimism_needs_an_ensemble(place, tmp_path, capsys):
    out = tmp_path / "single"
    assert run("--pairs", place / "few.jsonl", "--out", out) == 0
    for number in (0.5, -1, float("nan"), True):
        with pytest.raises(ValueError, match="pessimism"):
            learnt_reward.load(out, pessimism=number)
    args = ["--pairs", str(place / "few.jsonl"), "--out", str(tmp_path / "x"), "--pessimism", "1"]
    assert_refused(program.main, args, "--pessimism 1.0: needs --ensemble of 2", capsys)


def test_saving_replaces_rewards_alone_and_as_a_whole(ngrams, tmp_path, monkeypatch):
    reward = learnt_reward.load(ngrams)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        learnt_reward.save(tmp_path, reward, {})
    folder = tmp_path / "reward"
    learnt_reward.save(folder, reward, {"note": "first"})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(np, "savez", full)
        learnt_reward.save(folder, reward, {"note": "second"})
    assert json.loads((folder / "reward.json").read_text())["note"] == "first"
    learnt_reward.save(folder, reward, {"note": "third"})
    assert json.loads((folder / "reward.json").read_text())["note"] == "third"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "reward"]


# Prompts.


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


# The program.


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


def test_a_reward_is_replaced_if_that_is_said(ngrams, place, tmp_path, capsys):
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
