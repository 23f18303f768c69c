"""Rewards that are learnt from pairs by n-grams: their fit, ensembles, and folders."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from reward_probes import lexicon_pairs, run, write_place

from envs.language import learnt_reward, ngram_reward, rewards
from envs.language.learnt_reward import LearntReward
from rgpo_jax.language import bradley_terry

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


# What is learnt from a lexicon.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("rewards"))


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
