"""Rewards of answers as texts: functions (prompts, answers) -> scores."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# (prompts, answers), lists of n texts -> n scores.
TextReward = Callable[[Sequence[str], Sequence[str]], Any]


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package} is not installed; it comes with the extra: pip install 'rgpo-jax[align]'"
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
        reason = " ".join(str(error).split())  # of one line
        raise ValueError(f"{name}: {type(error).__name__}: {reason}") from error
    if scores.shape != (len(answers),) or not np.all(np.isfinite(scores)):
        shape = f"shape {scores.shape}" if scores.shape != (len(answers),) else "NaN or infinity"
        raise ValueError(f"{name}: expected {len(answers)} finite numbers, got {shape}")
    return scores
