"""Rewards of answers as texts: functions (prompts, answers) -> scores."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from envs.words import one_line
from rgpo_jax.importing import install_hint

TextReward = Callable[[Sequence[str], Sequence[str]], Any]
"""(prompts, answers), lists of n texts -> n scores."""
TextPreference = Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]
"""(prompts, first answers, second answers), lists of n texts -> n probabilities that the first is
the better one."""

REWARD = "reward.json"  # by which a folder holds a reward that was learnt
_NEAREST = 1e-6  # of a judge's probabilities to 0 and 1, whose logits are infinite


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package} is not installed; it comes with the extra: {install_hint('align')}"
        ) from error


def vader() -> TextReward:
    """VADER's compound sentiment of the answer, from -1 to 1 (Hutto and Gilbert 2014)."""
    analyzer = _need("vaderSentiment.vaderSentiment", "vaderSentiment").SentimentIntensityAnalyzer()

    def reward(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        del prompts
        return [analyzer.polarity_scores(answer)["compound"] for answer in answers]

    return reward


def textblob() -> TextReward:
    """TextBlob's polarity of the answer, from -1 to 1, by another lexicon than VADER's."""
    sentiment = _need("textblob.en", "textblob").sentiment

    def reward(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        del prompts
        return [float(sentiment(answer)[0]) for answer in answers]

    return reward


BUILT_IN: dict[str, Callable[[], TextReward]] = {"vader": vader, "textblob": textblob}
"""Name -> reward, of those that the suite brings."""


def score(
    name: str, reward: TextReward, prompts: Sequence[str], answers: Sequence[str]
) -> np.ndarray:
    """The scores of answers [n], float32.

    Args:
      name: of the reward, for messages.
      reward: what judges.
      prompts: n texts.
      answers: n texts.

    Raises:
      ValueError: it raised something, or gave anything but n finite numbers.
    """
    try:
        scores = np.asarray(reward(list(prompts), list(answers)), np.float32)
    except Exception as error:
        reason = one_line(error)
        raise ValueError(f"{name}: {type(error).__name__}: {reason}") from error
    if scores.shape != (len(answers),) or not np.all(np.isfinite(scores)):
        shape = f"shape {scores.shape}" if scores.shape != (len(answers),) else "NaN or infinity"
        raise ValueError(f"{name}: expected {len(answers)} finite numbers, got {shape}")
    return scores


def of_preference(
    name: str,
    preference: TextPreference,
    prompts: Sequence[str],
    answers: Sequence[str],
    group_size: int,
) -> np.ndarray:
    """Rewards that say what a judge of pairs says, within each group of answers to a prompt.

    Of a group the judge is asked for all pairs, each once. An answer's reward is the mean of its
    logits against all: the least squares fit of differences of rewards to them, and of two answers
    exactly what the judge says.

    Args:
      name: of the judge, for messages.
      preference: the judge.
      prompts: n texts, those of a group in a row.
      answers: n texts.
      group_size: G.

    Returns:
      Rewards [n], float32, whose mean over a group is 0.

    Raises:
      ValueError: it raised something, or gave anything but probabilities.
    """
    i, j = np.triu_indices(group_size, k=1)
    starts = np.arange(0, len(answers), group_size)
    first, second = ((starts[:, None] + at).ravel() for at in (i, j))
    asked = [prompts[k] for k in first.tolist()]
    texts = [[answers[k] for k in at.tolist()] for at in (first, second)]
    try:
        found = np.asarray(preference(asked, *texts), np.float64)
    except Exception as error:
        reason = one_line(error)
        raise ValueError(f"{name}: {type(error).__name__}: {reason}") from error
    if found.shape != first.shape or not np.all((found >= 0) & (found <= 1)):
        got = f"shape {found.shape}" if found.shape != first.shape else "others"
        raise ValueError(f"{name}: expected {len(first)} probabilities, got {got}")
    found = np.clip(found, _NEAREST, 1.0 - _NEAREST)
    logits = np.log(found / (1.0 - found))
    reward = np.zeros(len(answers))
    np.add.at(reward, first, logits / group_size)
    np.add.at(reward, second, -logits / group_size)
    return reward.astype(np.float32)
