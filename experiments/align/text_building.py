"""Builds what trains a real model: weights, tokeniser, prompts, rewards, programs and the page."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import language as methods
from envs.language import prompts, rewards, text
from envs.language.text import TextWorld
from experiments.align import building, pair_data
from experiments.align.options import AlignOptions
from experiments.align.pair_data import Parts
from experiments.align.plan import Plan
from experiments.cli.flags import BadInput
from experiments.plan import own
from experiments.record.files import read_plain
from experiments.record.run_folder import CONFIG
from experiments.training.building import made_of, members_of
from experiments.training.devices import Layout

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from experiments.align.judge import Judge
    from rgpo_jax.language.agent import Agent


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run whose model is loaded.

    Attributes:
      plan: with what config.json says of the model.
      text: the world.
      agent: made for it.
      judge: rewards.
      folder: of the run.
      description: of model, prompts and what is trained, in a line.
    """

    plan: Plan
    text: TextWorld
    agent: "Agent"
    judge: "Judge"
    folder: Path
    description: str

    def make_programs(self) -> Any:
        from experiments.align.text_programs import TextPrograms

        options, members = self.plan.options, members_of([self.plan])
        return TextPrograms(
            self.text,
            self.agent,
            self.judge,
            members,
            options.eval_answers,
            self.folder,
            self.plan.learns_from_data,
            made_of(options, self.plan.config, Layout(), members),
        )

    def finish(self) -> None:
        """Draws the page of answers."""
        from experiments.align import page

        page.write(self.folder, self.plan.curve_title, self.description)


def read_prompts(options: AlignOptions) -> list[str]:
    """The prompts that the options name; BadInput where they cannot be read."""
    file = options.prompts
    try:
        return prompts.standard() if file is None else prompts.read(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--prompts {file}: {reason}") from None


def _mesh_of(options: AlignOptions) -> "Mesh | None":
    """The devices over which a model is spread; None for one.

    Raises:
      BadInput: there are not so many.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh

    number, found = options.fsdp * options.tp, jax.devices()
    if number > len(found):
        there = "there is 1" if len(found) == 1 else f"there are {len(found)}"
        raise BadInput(f"--fsdp {options.fsdp} --tp {options.tp}: {number} devices; {there}")
    if number == 1:
        return None
    return Mesh(np.array(found[:number]).reshape(options.fsdp, options.tp), ("fsdp", "tp"))


def load_world(
    options: AlignOptions,
    texts: Sequence[str] | Parts,
    mesh: "Mesh | None" = None,
) -> TextWorld:
    """The model that the options name, with prompts or pairs, on a mesh or on one device.

    Raises:
      BadInput: the model cannot be read, or a prompt is too long for it.
    """
    import jax

    from rgpo_jax.language import weights
    from rgpo_jax.language.decoder_policy import TrainedPart

    on_cpu = jax.default_backend() == "cpu"
    dtype: Any = options.dtype
    if dtype == "auto":
        # In bfloat16 a small step along a direction is rounded away.
        is_zeroth = options.method.replace("-", "_") in methods.FROM_WINS
        dtype = "float32" if on_cpu or is_zeroth else "bfloat16"
    training = TrainedPart(
        options.train,
        options.num_last_layers,
        options.lora_rank,
        options.lora_alpha,
        options.critic,
        # On accelerators logits of all tokens are what fills memory.
        None if on_cpu else 1024,
        options.remat,
        dtype,
        # What two programs compute in TF32 or bfloat16 is not equal to the digit.
        recompute=not on_cpu,
    )
    try:
        path = weights.find_smollm2() if options.model is None else weights.find(options.model)
        # A device need not have room for a model that is spread over several.
        with jax.default_device(None if mesh is None else jax.devices("cpu")[0]):
            # What is not trained is kept in the precision of the arithmetic.
            model = weights.load(path, dtype)
        if isinstance(texts, Parts):
            return text.of_pairs(
                options.world,
                model,
                texts.train,
                texts.held_out,
                options.eval_prompts,
                options.eval_pairs,
                options.max_tokens,
                options.max_prompt_tokens,
                options.too_long,
                training,
                mesh,
            )
        return text.make(
            options.world,
            model,
            texts,
            options.held_out,
            options.eval_prompts,
            options.max_tokens,
            options.max_prompt_tokens,
            training,
            mesh,
        )
    except (OSError, ValueError, ImportError) as error:
        named = f"--world {options.world}" if options.model is None else f"--model {options.model}"
        raise BadInput(f"{named}: {error}") from None


def _reward(name: str, flag: str) -> rewards.TextReward:
    if name not in rewards.BUILT_IN and Path(name).expanduser().is_dir():
        from envs.language import learnt_reward

        try:
            return learnt_reward.load(name)
        except (ImportError, OSError, ValueError) as error:
            raise BadInput(f"{flag} {name}: {error}") from None
    if ":" in name:
        found: rewards.TextReward = own.function(name, flag)
        return found
    if name not in rewards.BUILT_IN:
        raise BadInput(
            f"{flag} {name}: expected {', '.join(rewards.BUILT_IN)}, MODULE:FUNCTION of your own, "
            "or the folder of a reward that was learnt"
        )
    try:
        return rewards.BUILT_IN[name]()
    except ImportError as error:
        raise BadInput(f"{flag} {name}: {error}") from None


def _data_of(world: TextWorld) -> dict[str, Any]:
    """What config.json says of the pairs; a digest tells whether they are still the same."""
    import jax
    import numpy as np

    if world.pairs is None:
        return {}
    digest = hashlib.sha256()
    for array in jax.tree.leaves((world.pairs, world.held_out_pairs)):
        digest.update(np.asarray(array).tobytes())
    facts = {"pairs": len(world.prompts), "sha256": digest.hexdigest(), "notes": list(world.notes)}
    return {"data": facts}


def _refuse_other_data(plan: Plan, folder: Path) -> None:
    """Raises BadInput where a run would go on with other pairs than it began with."""
    if not plan.options.resume or "data" not in plan.entries:
        return
    try:
        stored = json.loads(read_plain(folder / CONFIG))["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not begun yet
    if stored != plan.entries["data"]["sha256"]:
        raise BadInput(
            f"--pairs {plan.options.pairs}: holds other pairs than when the run in {folder} began"
        )


def scorer(name: str, flag: str) -> Callable[[Sequence[str], Sequence[str]], Any]:
    """The scores [n] that a reward gives to answers, (prompts, answers) -> scores.

    Raises:
      BadInput: there is no such reward; and whenever it does not give n numbers.
    """
    reward = _reward(name, flag)

    def score(asked: Sequence[str], answers: Sequence[str]) -> Any:
        try:
            return rewards.score(f"{flag} {name}", reward, asked, answers)
        except ValueError as error:
            raise BadInput(str(error)) from None

    score(["Say hello."], ["Hello!"])  # now rather than after the model is compiled
    return score


def prepare(plan: Plan, folder: Path) -> Prepared:
    """Loads the model, and builds all that trains it.

    Raises:
      BadInput: something of it cannot be had.
    """
    import jax

    from experiments.align.judge import Judge, RewardFailed

    options = plan.options
    judge = Judge(options.reward, _reward(options.reward, "--reward"))
    if options.gold is not None:
        judge = judge._replace(gold_name=options.gold, gold=_reward(options.gold, "--gold"))
    if options.preference is not None:
        compare = own.function(options.preference, "--preference")
        judge = judge._replace(preference_name=options.preference, preference=compare)
    try:
        judge.score(["Say hello."], ["Hello!"])  # now rather than after the model is compiled
        judge.compare(["Say hello."] * 2, ["Hello!", "Hi!"], 2)
    except RewardFailed as error:
        raise BadInput(str(error)) from None
    texts: Any = (
        read_prompts(options)
        if options.pairs is None
        else pair_data.read(options.pairs, options.held_out)
    )
    world = load_world(options, texts, _mesh_of(options))
    agent = building.make_agent(plan, world.world)
    frozen, init = world.world.frozen, world.world.policy.init
    has_critic = getattr(plan.config, "baseline", None) == "value"
    model = {name: x for name, x in frozen.items() if name != "decoding"}
    params = jax.eval_shape(lambda key: init(key, frozen, has_critic), jax.random.key(0))
    count, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (model, params))
    name = options.model or "SmolLM2-135M-Instruct"
    description = (
        f"{name}: {count:,} parameters, {trained:,} trained ({options.train}); "
        f"{len(world.prompts)} prompts, {len(world.held_out)} held out; reward {options.reward}"
        + (f", gold {options.gold}" if options.gold else "")
    )
    facts = {"name": name, "parameters": count, "trained": trained}
    plan = building.with_entries(plan, agent, model=facts, **_data_of(world))
    _refuse_other_data(plan, folder)
    return Prepared(plan, world, agent, judge, folder, description)
