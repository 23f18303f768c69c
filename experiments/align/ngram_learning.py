"""Learns a reward of words and pairs of words."""

import time
from typing import Any

import numpy as np

from envs.language import learnt_reward, ngram_reward
from envs.language.preferences import PairData
from experiments.align.reward_learning import Broken, Learnt, Say, member_name
from experiments.align.reward_options import Options
from experiments.cli.interrupts import Interrupts
from rgpo_jax.language import bradley_terry


def learn(
    options: Options, train: PairData, held_out: PairData, say: Say, interrupts: Interrupts
) -> Learnt:
    """Fits each member; raises Broken where all answers have the same reward."""

    def of(data: PairData) -> tuple[Any, Any]:
        return tuple(
            ngram_reward.features(
                [getattr(pair, side) for pair in data.pairs], options.num_features
            )
            for side in ("chosen", "rejected")
        )

    start = time.perf_counter()
    (chosen, rejected), other = of(train), of(held_out)
    differences, others = chosen - rejected, other[0] - other[1]
    fitted, history = [], []
    for number in range(options.ensemble):
        interrupts.check()
        fit = ngram_reward.member(differences, options.l2, number, options.ensemble, options.seed)
        fitted.append(fit.weights)
        share = bradley_terry.accuracy(others @ fit.weights).value
        seconds = time.perf_counter() - start
        history.append({"loss": fit.loss, "iterations": fit.iterations, "accuracy": share})
        say(
            f"{member_name(number, options)}{fit.iterations} iterations: loss {fit.loss:.4f}, "
            f"held-out accuracy {100 * share:.1f} % ({seconds:.1f} s)"
        )
    learnt = np.stack(fitted)
    members = learnt_reward.ngram_members(learnt)
    rewards = np.concatenate([(chosen @ learnt.T).T, (rejected @ learnt.T).T], axis=1)
    recipe = {"num_features": options.num_features, "l2": options.l2}
    try:
        reward = learnt_reward.make(
            "ngrams", members, rewards, {"weights": learnt}, recipe, options.pessimism
        )
    except ValueError as error:
        raise Broken(str(error)) from None
    return Learnt(reward, (others @ learnt.T).T, held_out.pairs, (), history)
