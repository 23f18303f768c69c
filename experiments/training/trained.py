"""What an earlier run learnt, read back from its folder."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan.reading import Plan, read_plan
from experiments.record.run_folder import CHECKPOINTS, CONFIG
from experiments.training.building import make_agent
from rgpo_jax.agent import Agent
from rgpo_jax.checkpoint import CheckpointError, Checkpoints, Restored
from rgpo_jax.learner import LearnerState

# Settings without which a network's parameters mean something else, in the same shapes.
_MEANING = ("activation", "policy", "state_dependent_std")


class Trained(NamedTuple):
    """The learners of a run.

    Attributes:
      plan: what the run was told to do.
      agent: of one device.
      learners: one per seed [N, ...], on one device.
      env_steps: steps that each has seen.
    """

    plan: Plan
    agent: Agent
    learners: LearnerState
    env_steps: int


def config_of(folder: str, flag: str) -> Path:
    """The settings of the run in a folder, which was given with a flag; BadInput if it has none."""
    path = Path(folder).expanduser() / CONFIG
    if not path.exists():
        raise BadInput(f"{flag} {folder}: expected the folder of a run; it holds no {CONFIG}")
    return path


def restore_learner(folder: str, flag: str, like: Any) -> Restored:
    """Of the newest checkpoint that is whole the part "learner".

    Args:
      folder: of the run.
      flag: with which it was given, for messages.
      like: shapes and shardings of the learner.

    Raises:
      BadInput: there is no checkpoint, or none that can be read.
    """
    try:
        checkpoints = Checkpoints(Path(folder).expanduser() / CHECKPOINTS)
        restored = checkpoints.restore({"learner": like}, tidy=False)
    except CheckpointError as error:
        raise BadInput(f"{flag} {folder}: {error}") from None
    if restored is None:
        raise BadInput(f"{flag} {folder}: the run has made no checkpoint yet")
    return restored


def load(folder: str, flag: str) -> Trained:
    """Reads a run's newest checkpoint that is whole.

    Args:
      folder: of the run.
      flag: with which it was given, for messages.

    Raises:
      BadInput: there is no run, or it has no checkpoint that can be read.
    """
    path = config_of(folder, flag)
    try:
        read = read_plan(["--config", str(path)])
        agent = make_agent(read)
    except BadInput as error:
        raise BadInput(f"{flag} {folder}: {error}") from None

    def init(key: jax.Array) -> LearnerState:
        return agent.learner.init(key, agent.learner.hyperparameters)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), read.options.num_seeds))
    # Where to, since the devices that the run had may not be here.
    devices = [jax.local_devices(process_index=i)[0] for i in range(jax.process_count())]
    here = NamedSharding(Mesh(devices, ("process",)), PartitionSpec())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        jax.eval_shape(jax.vmap(init), keys),
    )
    annealing = jax.device_put(
        np.full(read.options.num_seeds, read.config.annealing, np.float32), here
    )
    like = like._replace(
        hyperparameters=dataclasses.replace(like.hyperparameters, annealing=annealing)
    )
    restored = restore_learner(folder, flag, like)
    env_steps = restored.updates * read.config.batch_size
    return Trained(read, agent, restored.parts["learner"], env_steps)


def load_start(folder: str, agent: Agent) -> LearnerState:
    """The learners of a run [N, ...] whose parameters another agent is to start from.

    Raises:
      BadInput: the run cannot be read, or its networks are others.
    """
    start = load(folder, "--init-from")
    learners = start.learners
    # Else the initial deviation is where a parameter begins, and no more.
    scale = ("initial_std",) if agent.config.state_dependent_std else ()
    for name in (*_MEANING, *scale):
        theirs, ours = getattr(start.plan.config, name), getattr(agent.config, name)
        if theirs != ours:
            raise BadInput(
                f"{flags.flag(name)} {ours}: the parameters of --init-from {folder} are of {theirs}"
            )
    own = jax.eval_shape(agent.learner.init, jax.random.key(0), agent.learner.hyperparameters)
    for field, name in (("params", "networks"), ("observation_moments", "observations")):
        theirs, ours = getattr(learners, field), getattr(own, field)
        shapes = jax.tree.map(lambda x: x.shape[1:], theirs), jax.tree.map(lambda x: x.shape, ours)
        if shapes[0] != shapes[1]:
            raise BadInput(
                f"--init-from {folder}: its {name} have other shapes or another normalisation; "
                "expected a run with the same environment, network and policy settings"
            )
    return learners
