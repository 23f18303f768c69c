"""The loop in one page: environment, rollout, update, evaluation. `python examples/loop.py`"""

import jax

from agents import rgpo
from envs import make
from rgpo_jax import train
from rgpo_jax.environment import restart_where_done, to_environment_units
from rgpo_jax.rollout import Trajectory

NUM_SEEDS, NUM_EVALUATIONS = 4, 8
CONFIG = rgpo.Config(total_steps=80_000, num_envs=8, num_steps=64, learning_rate=1e-3)
QUICKLY = {"xla_backend_optimization_level": 1}  # a run of seconds mostly waits for its compiler
NUM_UPDATES = CONFIG.total_steps // (CONFIG.num_envs * CONFIG.num_steps * NUM_EVALUATIONS)


def make_train(env, config):
    agent = rgpo.make(env, config)
    learner = agent.learner  # the update step with RGPO's gate; ppo.make differs in the gate alone
    evaluate = train.make_evaluation(agent, num_episodes=16, deterministic=True)
    reset, step = jax.vmap(env.reset), jax.vmap(env.step)

    def env_step(learner_state, carry, key):
        env_state, observation = carry
        action_key, step_key, reset_key = jax.random.split(key, 3)
        policy = learner.policy(learner_state, observation)
        action = policy.sample(action_key)
        env_action = to_environment_units(env.action_space, policy.squash(action))
        env_state, after = step(jax.random.split(step_key, config.num_envs), env_state, env_action)
        fresh = reset(jax.random.split(reset_key, config.num_envs))
        env_state, after = restart_where_done(env_state, after, fresh)
        transition = Trajectory(
            observation=observation,
            action=action,
            log_prob=policy.log_prob(action),
            reward=after.reward,
            terminated=after.terminated,  # the value of what follows is 0
            truncated=after.truncated,  # a time limit: it is that of the final observation
            final_observation=after.final_observation,
        )
        return (env_state, after.observation), transition

    def update_step(carry, key):
        learner_state, envs = carry
        keys = jax.random.split(key, config.num_steps)
        envs, trajectory = jax.lax.scan(lambda c, k: env_step(learner_state, c, k), envs, keys)
        learner_state, metrics = learner.update(learner_state, trajectory)
        return (learner_state, envs), metrics

    def evaluated_updates(carry, key):
        update_key, eval_key = jax.random.split(key)
        carry, _ = jax.lax.scan(update_step, carry, jax.random.split(update_key, NUM_UPDATES))
        returns, _ = evaluate(carry[0], eval_key)
        return carry, returns.mean()

    def run(key):
        learner_key, env_key, key = jax.random.split(key, 3)
        learner_state = learner.init(learner_key)
        envs = reset(jax.random.split(env_key, config.num_envs))
        keys = jax.random.split(key, NUM_EVALUATIONS)
        (learner_state, _), curve = jax.lax.scan(evaluated_updates, (learner_state, envs), keys)
        return learner_state, curve

    return run


if __name__ == "__main__":
    run = make_train(make("CartPole-v1"), CONFIG)
    seeds = jax.jit(jax.vmap(run), compiler_options=QUICKLY)
    _, curves = seeds(jax.random.split(jax.random.key(0), NUM_SEEDS))
    for number, returns in enumerate(curves.T, 1):
        steps = number * NUM_UPDATES * CONFIG.num_envs * CONFIG.num_steps
        print(f"{steps:7,} steps: return of each seed", *(f"{x:5.0f}" for x in returns))
