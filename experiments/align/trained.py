"""What an earlier alignment run learnt, read back from its folder."""

from typing import Any, NamedTuple

import jax

from envs.language import prompts
from envs.language.text import TextWorld
from experiments.align import building, text_building
from experiments.align.plan import Plan, read_plan
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.record.files import read_plain
from experiments.training.trained import Which, config_of, restore_learner, with_schedule


class Trained(NamedTuple):
    """A model that was trained.

    Attributes:
      plan: what the run was told to do.
      text: its world, the model as it was before among it.
      params: {"actor": ..., ...}, the newest or the best.
      updates: number of updates behind them.
    """

    plan: Plan
    text: TextWorld
    params: Any
    updates: int


def load(folder: str, flag: str, which: Which = "newest") -> Trained:
    """Reads the model of a run, and what it has learnt.

    Args:
      folder: of the run.
      flag: with which it was given, for messages.
      which: of its policies; see `restore_learner`.

    Raises:
      BadInput: there is no such run, its model is not here, or no checkpoint can be read.
    """
    path = str(config_of(folder, flag))
    try:
        # Its rewards are not asked for: no code of theirs is imported.
        settings = flags.settings_from_file(path, read_plain)
        plan = read_plan([], given=settings, source=f"--config {path}", of_a_run=True)
    except BadInput as error:
        raise BadInput(f"{flag} {folder}: no run of a language model: {error}") from None
    if plan.is_exact:
        raise BadInput(f"{flag} {folder}: the world {plan.options.world} has no language")
    # Which prompts it was trained on is of no concern to who asks it others.
    text = text_building.load_world(plan.options, prompts.standard())
    agent = building.make_agent(plan, text.world)
    frozen = text.world.frozen
    like = jax.eval_shape(
        lambda key: agent.learner.init(key, frozen),
        jax.random.key(0),
    )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    like = with_schedule(like, plan.config, here)
    learner, (updates,) = restore_learner(folder, flag, like, plan.settings(), which)
    return Trained(plan, text, learner.params, updates)
