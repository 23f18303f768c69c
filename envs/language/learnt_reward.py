"""Rewards that were learnt from pairs, as a folder: saved, read again, and used on texts.

A folder holds `reward.json`, which says what the reward is and how it did on pairs it had not seen,
and `arrays.npz`, what was learnt. Of a decoder that is what was trained: the model that it was made
on stays where it is, and is checked to be the same. Nothing in a folder is executed.

Scores are standardised: those of the answers that were trained on have mean 0 and standard
deviation 1. With `scale` of them, P(a is preferred to b) = sigmoid(scale (score(a) - score(b))).
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.language import decoder_reward, ngram_reward
from envs.language.checked_files import Content, is_finite, read_arrays
from envs.language.rewards import REWARD

ARRAYS, FIGURE = "arrays.npz", "calibration.png"
_FORMAT = 1

# (prompts, answers), lists of n texts -> [K, n], each member's rewards as they were learnt.
Members = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LearntReward:
    """A `rewards.TextReward`: scores of answers to prompts.

    Attributes:
      kind: "ngrams" or "decoder".
      members: what is scored by, K of them.
      shift: float64 [K], the mean of each member's rewards over the answers it learnt from. A
        constant of a reward says nothing, and each member has its own.
      scale: the standard deviation of the members' mean over these answers.
      pessimism: c of mean - c * spread, what a score is.
      arrays: what was learnt, as it is saved.
      recipe: what else it takes to score, as reward.json holds it under `kind`.
    """

    kind: str
    members: Members
    shift: np.ndarray
    scale: float
    pessimism: float
    arrays: Mapping[str, np.ndarray]
    recipe: Mapping[str, Any]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Scores [n], float64: mean - pessimism * spread."""
        mean, spread = self.score_with_spread(prompts, answers)
        return mean - self.pessimism * spread if self.pessimism else mean

    def score_with_spread(
        self, prompts: Sequence[str], answers: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over members [n], standardised; the latter 0 of one."""
        if not len(answers):
            return np.zeros(0), np.zeros(0)
        return standardised(self.members(prompts, answers), self.shift, self.scale)


def standardised(
    rewards: np.ndarray, shift: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over members [n] of rewards [K, n]; see `LearntReward`."""
    centred = (rewards - shift[:, None]) / scale
    spread = centred.std(axis=0, ddof=1) if len(centred) > 1 else np.zeros(centred.shape[1])
    return centred.mean(axis=0), spread


def make(
    kind: str,
    members: Members,
    rewards: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    recipe: Mapping[str, Any],
    pessimism: float = 0.0,
) -> LearntReward:
    """Builds a reward from what was learnt.

    Args:
      kind: "ngrams" or "decoder".
      members: see `LearntReward`.
      rewards: [K, n], what they say of the answers that they learnt from.
      arrays: see `LearntReward`.
      recipe: see `LearntReward`.
      pessimism: see `LearntReward`.

    Raises:
      ValueError: all answers have the same reward, or pessimism has no ensemble.
    """
    shift = rewards.mean(axis=1)
    scale = float((rewards - shift[:, None]).mean(axis=0).std())
    if not scale > 0 or not math.isfinite(scale):
        raise ValueError("nothing was learnt: all answers have the same reward")
    _check_pessimism(pessimism, len(rewards))
    return LearntReward(kind, members, shift, scale, pessimism, arrays, recipe)


def _check_pessimism(pessimism: Any, members: int) -> None:
    if isinstance(pessimism, bool) or not isinstance(pessimism, int | float):
        raise ValueError(f"pessimism {pessimism!r}: expected a number of at least 0")
    if not 0 <= pessimism < math.inf:
        raise ValueError(f"pessimism {pessimism}: expected a number of at least 0")
    if pessimism and members < 2:
        raise ValueError(f"pessimism {pessimism}: needs an ensemble of 2 members or more")


# N-grams.


def ngram_members(learnt: np.ndarray) -> Members:
    """Members of weights [K, features]; prompts are not read."""

    def members(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        del prompts
        rewards: np.ndarray = (ngram_reward.features(answers, learnt.shape[1]) @ learnt.T).T
        return rewards

    return members


# Folders.


def save(
    folder: Path,
    reward: LearntReward,
    facts: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a reward; the folder appears once it is whole, in the place of what was there.

    Args:
      folder: with a reward, or nothing, in it; or not there yet.
      reward: what to save.
      facts: what else reward.json says, plain values without NaN.
      files: name -> content of what lies beside it.

    Raises:
      FileExistsError: something else is there.
      OSError: it cannot be written.
    """
    if folder.exists() and not (folder / REWARD).exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: holds something that is no reward")
    content = {
        "format": _FORMAT,
        "kind": reward.kind,
        "members": len(reward.shift),
        "shift": reward.shift.tolist(),
        "scale": reward.scale,
        "pessimism": reward.pessimism,
        reward.kind: reward.recipe,
        **facts,
    }
    told = json.dumps(content, indent=2, allow_nan=False) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        with (new / ARRAYS).open("wb") as file:
            np.savez(file, **{k: np.ascontiguousarray(x) for k, x in reward.arrays.items()})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        for name, data in {**(files or {}), REWARD: told.encode()}.items():
            with (new / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: str | Path, pessimism: float | None = None) -> LearntReward:
    """Reads a reward.

    Args:
      folder: as `save` writes it.
      pessimism: c of mean - c * spread; None: as it was saved.

    Raises:
      ImportError: a library is missing; the message says how to install it.
      ValueError: there is none, it is damaged, or the model that it was made on is not there or
        another one; the message has one line.
    """
    folder = Path(folder).expanduser()
    content = Content(folder / REWARD)
    found = content.of("format", int)
    if found != _FORMAT:
        raise ValueError(f"{content.path}: format {found}: expected {_FORMAT}")
    kind, number = content.of("kind", str), content.of("members", int)
    if kind not in ("ngrams", "decoder") or not 1 <= number <= 10_000:
        raise ValueError(f"{content.path}: a {kind} of {number}: expected ngrams or decoder")
    shift, scale = content.of("shift", list), content.of("scale", float)
    if len(shift) != number or not all(map(is_finite, shift)) or not scale > 0:
        raise ValueError(f"{content.path}: shift or scale: expected {number} numbers, and one > 0")
    chosen = content.of("pessimism", float) if pessimism is None else pessimism
    try:
        _check_pessimism(chosen, number)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    recipe = content.part(kind)
    members: Members
    if kind == "ngrams":
        size = recipe.of("num_features", int)
        shapes = {"weights": ((number, size), np.float64)}
        arrays = read_arrays(folder / ARRAYS, shapes)
        members = ngram_members(arrays["weights"])
    else:
        members, arrays = decoder_reward.load_members(folder / ARRAYS, recipe, number)
    told = np.array(shift, float)
    return LearntReward(kind, members, told, scale, float(chosen), arrays, recipe.content)
