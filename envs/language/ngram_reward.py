"""A Bradley-Terry reward of the words in an answer: learnt in seconds, a floor for larger ones.

An answer's features are the words and the pairs of neighbouring words that it has, hashed into so
many places: 1 where there is any, else 0. The reward is linear in them, so that what two answers
have in common, such as their prompt, says nothing.
"""

import itertools
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_MOST_ITERATIONS = 5000


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())


def features(texts: Sequence[str], num_features: int) -> scipy.sparse.csr_matrix:
    """Which unigrams and bigrams texts have, float64 [n, num_features], 0 or 1.

    Places are given by CRC-32, which is the same on every machine and in every process.
    """
    columns, starts = [], [0]
    for text in texts:
        found = words(text)
        grams = {*found, *map(" ".join, itertools.pairwise(found))}
        places = {zlib.crc32(gram.encode(errors="replace")) % num_features for gram in grams}
        columns += sorted(places)
        starts.append(len(columns))
    shape = (len(texts), num_features)
    return scipy.sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=shape)


class Fit(NamedTuple):
    """What was fitted.

    Attributes:
      weights: float64 [features].
      loss: mean Bradley-Terry loss of the pairs, in nats, without the penalty.
      iterations: of L-BFGS.
    """

    weights: np.ndarray
    loss: float
    iterations: int


def fit(
    differences: Any,
    l2: float,
    label: Any = 1.0,
    counts: np.ndarray | None = None,
    anchor: np.ndarray | None = None,
) -> Fit:
    r"""Minimises sum_i c_i loss(d_i w, p_i) + l2/2 |w - anchor|^2, which is convex, by L-BFGS.

    Args:
      differences: d [n, features], features of the first answer minus those of the second; an array
        or a sparse matrix.
      l2: above 0: the weights' prior is N(anchor, 1 / l2).
      label: p [n], probability that the first is preferred, or one for all.
      counts: c [n], how often each pair counts; None: once.
      anchor: [features]; None: 0.

    Raises:
      ValueError: l2 is not above 0, or there is no pair.
    """
    number, size = differences.shape
    counts = np.ones(number) if counts is None else np.asarray(counts, float)
    anchor = np.zeros(size) if anchor is None else anchor
    total = counts.sum()
    if not l2 > 0 or not total > 0:
        raise ValueError(f"l2 {l2}, {total:g} pairs: expected both above 0")
    label = np.broadcast_to(np.asarray(label, float), (number,))
    differences = scipy.sparse.csr_matrix(differences)
    # Of features in which no pair differs the penalty alone decides: they stay at the anchor.
    told = np.flatnonzero(abs(differences).sum(axis=0))
    differences, home = differences[:, told], anchor[told]
    transposed = differences.T.tocsr()

    def losses(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = differences @ weights
        value = counts @ (np.logaddexp(0.0, -margin) + (1.0 - label) * margin)
        return value, transposed @ (counts * (scipy.special.expit(margin) - label))

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = losses(weights)
        away = weights - home
        value += 0.5 * l2 * np.square(away).sum()
        return value / total, (gradient + l2 * away) / total

    # By the mean, so that what is small means the same for any number of pairs.
    found = scipy.optimize.minimize(
        objective,
        home,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MOST_ITERATIONS, "maxfun": 2 * _MOST_ITERATIONS}
        | {"gtol": 1e-10, "ftol": 1e-15},
    )
    weights = anchor.astype(float)
    weights[told] = found.x
    return Fit(weights, float(losses(found.x)[0] / total), int(found.nit))


def member(differences: Any, l2: float, number: int, num_members: int, seed: int) -> Fit:
    """One of an ensemble, whose members disagree where the pairs say little.

    Each is fitted to a bootstrap sample of the pairs, and drawn to a sample of the weights' prior
    rather than to 0: without that all would agree, on 0, about words that no pair has (Osband et
    al., arXiv 1806.03335). The anchors' mean over the members is 0. A single one is fitted to all
    pairs and drawn to 0.

    Args:
      differences: see `fit`.
      l2: see `fit`.
      number: of the member, from 0.
      num_members: of the ensemble.
      seed: of samples.
    """
    if num_members == 1:
        return fit(differences, l2)
    pairs, size = differences.shape
    rng = np.random.default_rng(seed)
    anchors = rng.normal(scale=l2**-0.5, size=(num_members, size))
    anchors -= anchors.mean(axis=0)
    anchors *= (num_members / (num_members - 1)) ** 0.5  # what the mean took of the spread
    drawn = np.random.default_rng([seed, number]).integers(0, pairs, pairs)
    counts = np.bincount(drawn, minlength=pairs)
    return fit(differences, l2, counts=counts, anchor=anchors[number])
