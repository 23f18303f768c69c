"""Worlds that are small enough to sum over, in float64, and what methods follow in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from language_probes import ascent, every_group, expected_ascent, in_float64, one_step

from agents.language import load
from envs.language import bandit, tree
from rgpo_jax.language import tabular, targets
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.world import Enumeration, World, all_log_probs

BETA = 0.5
DUALS = ("product", "geometric", "two_sided", "min")
TWO_ARMS = tabular.make(2, length=1)


@functools.cache
def arms(number=5):
    return in_float64(bandit.make(number, num_prompts=1))


@functools.cache
def answers_that_end():
    """Seven answers of one or two tokens."""
    return in_float64(tree.make(vocabulary=3, length=2, num_prompts=1, end_id=2))


@functools.cache
def answers_of_two_tokens():
    return in_float64(tree.make(vocabulary=2, length=2, num_prompts=1))


def two_arms(q, reward):
    logits = jnp.log(jnp.array([[[q, 1.0 - q]]]))
    enumeration = Enumeration(tabular.all_answers(2, 1), jnp.array([reward]))
    return World("two arms", jnp.arange(1), TWO_ARMS, {"logits": logits}, None, enumeration)


def reference_of(world):
    return np.asarray(jnp.exp(all_log_probs(world, None, world.frozen)))


def rewards_of(world):
    return np.asarray(world.enumeration.reward)


def somewhere(world, seed=3):
    noise = np.random.default_rng(seed).normal(size=world.frozen["logits"].shape)
    return {"actor": world.frozen["logits"] + noise}


def with_critic(world, params, value=0.0):
    return params | {"critic": jnp.full(world.frozen["logits"].shape[:-1], value)}


def target(method, world, **settings):
    module = load(method)
    config = module.Config(**{"num_prompts": 1, "num_minibatches": 1} | settings)
    is_dual = getattr(config, "dual", "none") != "none"
    reference, reward = reference_of(world), rewards_of(world)
    return targets.stationary_policy(config, module.gate(config), is_dual, reference, reward)


def mean_ascent(method, world, params, size=2, **settings):
    learner = one_step(method, world, group_size=size, **settings)
    number = len(world.enumeration.answers.tokens)
    return expected_ascent(learner, world, params, every_group(number, size))["actor"]


@functools.cache
def of_tokens(policy):
    """Log-probabilities of tokens by params and by the reference; gradient of a sum of them."""

    def log_probs(params, frozen, prompts, answers):
        predicted = policy.predict(params, frozen, prompts, answers, 1.0)
        return predicted.log_prob, policy.reference(frozen, prompts, answers, 1.0)

    def total(params, frozen, prompts, answers, token_weights):
        return jnp.sum(token_weights * log_probs(params, frozen, prompts, answers)[0])

    return jax.jit(log_probs), jax.jit(jax.grad(total))


class Met:
    """One batch of answers, sampled by another policy than that which is trained."""

    def __init__(self, world, chosen, log_ratio, reward=None):
        self.world, self.chosen = world, np.array(chosen)
        self.params = somewhere(world)
        answers = jax.tree.map(lambda x: np.asarray(x)[self.chosen], world.enumeration.answers)
        self.prompts, self.mask = np.zeros(len(chosen), np.int32), answers.mask
        log_prob, self.log_prob_ref = map(
            np.asarray,
            of_tokens(world.policy)[0](self.params, world.frozen, self.prompts, answers),
        )
        self.log_ratio = np.where(self.mask, log_ratio, 0.0)
        self.log_ratio_ref = np.where(self.mask, log_prob - self.log_prob_ref, 0.0)
        old_log_prob = np.where(self.mask, log_prob - self.log_ratio, 0.0)
        self.answers = answers._replace(log_prob=old_log_prob)
        own = rewards_of(world)[0][self.chosen]
        self.reward = own if reward is None else np.array(reward, np.float64)

    def ascent(self, method, **settings):
        settings = {"group_size": len(self.chosen)} | settings
        learner = one_step(method, self.world, **settings)
        params = self.params
        if method == "ppo":
            params = with_critic(self.world, params)
        batch = Batch(self.prompts, self.answers, self.reward)
        return np.asarray(ascent(learner, self.world, params, batch)["actor"])

    def along(self, token_weights):
        """The sum of token_weights [n, T] times the gradient of each token's log-probability."""

        weights = np.where(self.mask, token_weights, 0.0)
        arguments = (self.params, self.world.frozen, self.prompts, self.answers, weights)
        return np.asarray(of_tokens(self.world.policy)[1](*arguments)["actor"])
