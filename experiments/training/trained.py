"""What an earlier run learnt, read back from its folder."""

import dataclasses
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import own
from experiments.plan.options import ControlOptions
from experiments.plan.reading import Plan, read_plan
from experiments.record.files import read_plain
from experiments.record.run_folder import CHECKPOINTS, CONFIG
from experiments.training import best, fingerprint
from experiments.training.building import make_agent
from rgpo_jax import schedules
from rgpo_jax.agent import Agent
from rgpo_jax.checkpoint import CheckpointError, Checkpoints
from rgpo_jax.learner import LearnerState

Which = Literal["newest", "best"]

# Settings without which a network's parameters mean something else, in the same shapes.
_MEANING = ("activation", "policy", "state_dependent_std")


class Trained(NamedTuple):
    """The learners of a run.

    Attributes:
      plan: what the run was told to do.
      agent: of one device.
      learners: one per seed [N, ...], on one device.
      env_steps: steps that each has seen; of the best of each seed [N].
    """

    plan: Plan
    agent: Agent
    learners: LearnerState
    env_steps: tuple[int, ...]


def config_of(folder: str, flag: str) -> Path:
    """The settings of the run in a folder, which was given with a flag; BadInput if it has none."""
    path = Path(folder).expanduser() / CONFIG
    if not path.exists():
        raise BadInput(f"{flag} {folder}: expected the folder of a run; it holds no {CONFIG}")
    return path


def with_schedule(like: Any, config: Any, here: Sharding) -> Any:
    """Shapes of a learner, but of its schedule the numbers, which old checkpoints do not have."""
    shape = like.hyperparameters.annealing.shape
    numbers = {
        name: jax.device_put(np.full(shape, getattr(config, name), np.float32), here)
        for name in schedules.NUMBERS
    }
    return like._replace(hyperparameters=dataclasses.replace(like.hyperparameters, **numbers))


class Learnt(NamedTuple):
    """What a checkpoint holds of learners; `updates` made each of them [N]."""

    learners: Any
    updates: tuple[int, ...]


def restore_learner(
    folder: str, flag: str, like: Any, settings: Mapping[str, Any], which: Which = "newest"
) -> Learnt:
    """What the newest checkpoint that is whole has of learners; warns where it is not the newest.

    Args:
      folder: of the run.
      flag: with which it was given, for messages.
      like: shapes and shardings of the learner.
      settings: of the run, as its folder has them.
      which: newest; or best, where those of the best evaluation have taken the place of newest
        parameters and statistics.

    Raises:
      BadInput: there is no checkpoint, or none that can be read; or it was made with others, or
        without its best.
    """
    if which == "best" and not settings.get("keep_best"):
        raise BadInput(f"--which best: the run in {folder} was begun without --keep-best")
    parts = {"learner": like}
    if which == "best":
        parts[best.PART] = best.policy_of(like)
    try:
        checkpoints = Checkpoints(Path(folder).expanduser() / CHECKPOINTS)
        restored = checkpoints.restore(
            parts,
            tidy=False,
            refuse=lambda position: fingerprint.difference(position, [settings], strict=False),
        )
    except CheckpointError as error:
        hint = own.hint_at_optimizer(settings)
        raise BadInput(f"{flag} {folder}: {error}{hint}") from None
    if restored is None:
        raise BadInput(f"{flag} {folder}: the run has made no checkpoint yet")
    remarks = fingerprint.remarks(restored.position)
    for line in restored.damaged:
        older = f"that of update {restored.updates} is read"
        remarks.append(f"a damaged checkpoint is passed over, {older}: {line}")
    for line in remarks:
        print(f"warning: {flag} {folder}: {line}", file=sys.stderr)
    learners = restored.parts["learner"]
    number = int(settings["num_seeds"])
    if which == "newest":
        return Learnt(learners, (restored.updates,) * number)
    best_at = restored.position.get("best_at")
    if not isinstance(best_at, list) or len(best_at) != number:
        raise BadInput(f"{flag} {folder}: its checkpoint does not say which policies are the best")
    return Learnt(learners._replace(**restored.parts[best.PART]), tuple(map(int, best_at)))


def load(
    folder: str,
    flag: str,
    trust_code: bool = False,
    trusted: Collection[Any] = (),
    which: Which = "newest",
) -> Trained:
    """Reads a run's newest checkpoint that is whole.

    Args:
      folder: of the run.
      flag: with which it was given, for messages.
      trust_code: whether its settings may name code that is not of the suite.
      trusted: names of such code that the user has typed.
      which: of its policies; see `restore_learner`.

    Raises:
      BadInput: there is no run, or it has no checkpoint that can be read; or it names code that it
        may not.
    """
    path, where = str(config_of(folder, flag)), f"{flag} {folder}"
    try:
        settings = flags.settings_from_file(path, read_plain)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    if "method" in settings and "agent" not in settings:
        raise BadInput(
            f"{where}: a run of experiments.align; its model answers by experiments.play --prompt"
        )
    settings.pop("callback", None)  # nobody calls it here
    if not trust_code:
        can_be_typed = flag == "--init-from"
        own.refuse_found(settings, where, trusted=trusted, can_be_typed=can_be_typed)
    try:
        read = read_plan([], given=settings, source=f"--config {path}", of_a_run=True)
        agent = make_agent(read)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None

    def init(key: jax.Array) -> LearnerState:
        return agent.learner.init(key)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), read.options.num_seeds))
    # Where to, since the devices that the run had may not be here.
    devices = [jax.local_devices(process_index=i)[0] for i in range(jax.process_count())]
    here = NamedSharding(Mesh(devices, ("process",)), PartitionSpec())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        jax.eval_shape(jax.vmap(init), keys),
    )
    like = with_schedule(like, read.config, here)
    learners, updates = restore_learner(folder, flag, like, read.settings(), which)
    env_steps = tuple(number * read.config.batch_size for number in updates)
    return Trained(read, agent, learners, env_steps)


def load_start(options: ControlOptions, agent: Agent) -> LearnerState:
    """The learners of a run [N, ...] whose parameters another agent is to start from.

    Args:
      options: of a run that begins with them.
      agent: of that run.

    Raises:
      BadInput: the run cannot be read, or its networks are others.
    """
    folder = str(options.init_from)
    typed = (options.agent, options.gate, options.env, agent.config.network)
    start = load(folder, "--init-from", options.trust_code, typed)
    learners = start.learners
    # Else the initial deviation is where a parameter begins, and no more.
    scale = ("initial_std",) if agent.config.state_dependent_std else ()
    for name in (*_MEANING, *scale):
        theirs, ours = getattr(start.plan.config, name), getattr(agent.config, name)
        if theirs != ours:
            raise BadInput(
                f"{flags.flag(name)} {ours}: the parameters of --init-from {folder} are of {theirs}"
            )
    own = jax.eval_shape(agent.learner.init, jax.random.key(0))
    for field, name in (("params", "networks"), ("observation_moments", "observations")):
        theirs, ours = getattr(learners, field), getattr(own, field)
        shapes = jax.tree.map(lambda x: x.shape[1:], theirs), jax.tree.map(lambda x: x.shape, ours)
        if shapes[0] != shapes[1]:
            raise BadInput(
                f"--init-from {folder}: its {name} have other shapes or another normalisation; "
                "expected a run with the same environment, network and policy settings"
            )
    return learners
