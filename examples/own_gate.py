"""A gate of your own, and a sweep over its number. `python examples/own_gate.py`

On the command line: `python -m experiments.run --gate examples.own_gate:tanh_gate`
"""

import jax
import jax.numpy as jnp

from agents import rgpo
from envs import make
from rgpo_jax import gates, train
from rgpo_jax.tunable import Tunable

WIDTHS = (0.05, 0.5, 5.0)
QUICKLY = {"xla_backend_optimization_level": 1}  # a run of seconds mostly waits for its compiler
CONFIG = rgpo.Config(total_steps=40_000, num_envs=8, num_steps=64, learning_rate=1e-3)


def tanh_gate(log_ratio, advantage, width=0.5):
    """g = c tanh(l / c); the weight of a sample is w = dg/dl = 1 - tanh^2(l / c), at most 1."""
    return width * jnp.tanh(log_ratio / width)


if __name__ == "__main__":
    for width in WIDTHS:
        gate = Tunable(tanh_gate, {"width": width})  # or tanh_gate as it is
        w = gates.weight(gate)(jnp.log(jnp.array([0.8, 1.0, 1.25])), 1.0)
        print(f"width {width:4}: w(r) at r = 0.8, 1, 1.25:", *(f"{x:.2f}" for x in w))

    agent = rgpo.make(make("CartPole-v1"), CONFIG, gate=Tunable(tanh_gate, {"width": 0.5}))
    evaluate = train.make_evaluation(agent, num_episodes=16, deterministic=True)

    def run(key, width):
        key, eval_key = jax.random.split(key)
        state = agent.init(key, width=width)  # a traced number: all widths are one program
        num_updates = CONFIG.total_steps // (CONFIG.num_envs * CONFIG.num_steps)
        state, metrics = jax.lax.scan(agent.step, state, length=num_updates)
        returns, _ = evaluate(state.learner, eval_key)
        return returns.mean(), metrics["approx_kl"].mean()

    seeds = jax.vmap(run, (0, None))  # the same four for every width
    keys = jax.random.split(jax.random.key(0), 4)
    widths = jax.jit(jax.vmap(seeds, (None, 0)), compiler_options=QUICKLY)
    returns, kl = widths(keys, jnp.array(WIDTHS))
    for width, of_seeds, nats in zip(WIDTHS, returns, kl.mean(axis=1), strict=True):
        seen = " ".join(f"{x:4.0f}" for x in of_seeds)
        print(f"width {width:4}: return of each seed {seen}, KL of an update {nats:.4f}")
