"""What the tests of adapters share."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from xla_flags import QUICK_TO_COMPILE

ROOT = Path(__file__).parents[1]


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def check_types(env):
    """Traces an environment: types are those of the protocol, and a step keeps its state's."""
    state, observation = jax.eval_shape(env.reset, jax.random.key(0))
    action = jnp.zeros(env.action_space.shape)
    new_state, timestep = jax.eval_shape(env.step, jax.random.key(0), state, action)
    assert types(new_state) == types(state)  # or a scan refuses it
    assert observation.shape == env.observation_shape
    for seen in (observation, timestep.observation, timestep.final_observation):
        assert types(seen) == (env.observation_shape, jnp.float32, False)
    assert types(timestep.reward) == ((), jnp.float32, False)
    assert types(timestep.terminated)[:2] == types(timestep.truncated)[:2] == ((), bool)


def loading(name):
    """A program that makes an environment, but does not trace its physics: others do."""
    return (
        "import envs, jax\n"
        "jax.eval_shape = lambda *_: (None, jax.ShapeDtypeStruct((1,), float))\n"
        f"envs.make({name!r})\n"
    )


def in_a_fresh_interpreter(program, cwd):
    env = {**os.environ, "XLA_FLAGS": QUICK_TO_COMPILE}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=env,
    )
