"""Programs of alignment, which runs that differ in seeds, numbers or names alone trace once."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments.align import programs, text_building
from experiments.training.devices import spread_over_seeds
from experiments.training.programs import init_arguments


@contextmanager
def programs_are_kept() -> Iterator[None]:
    """Those of exact worlds, for tests of what surrounds training; see `conftest`."""
    make, kept = programs.ExactPrograms, dict[str, Any]()

    def make_or_find(world: Any, agent: Any, layout: Any, members: Any, target: Any) -> Any:
        config = dataclasses.asdict(agent.config)
        chosen = {x: config[x] for x in config.keys() - {*members.hyperparameters, "num_updates"}}
        arrays = jax.tree.leaves((world.prompts, world.frozen, world.enumeration.reward))
        made_of = [
            *(world.name, [np.asarray(x).tolist() for x in arrays], type(agent.config).__module__),
            *(chosen, repr(layout), len(members.seeds), sorted(members.hyperparameters)),
        ]
        key = json.dumps(made_of, sort_keys=True)
        if key not in kept:
            kept[key] = make(world, agent, layout, members, target)
        found = copy.copy(kept[key])
        found._init_arguments = init_arguments(layout, members)
        found._target = spread_over_seeds(found._mesh, np.asarray(target, np.float32))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "ExactPrograms", make_or_find)
        yield


class _Made(NamedTuple):
    """As `compiling.Compilation`."""

    program: Any

    def result(self) -> Any:
        return self.program


@contextmanager
def text_programs_are_kept() -> Iterator[None]:
    """The same of a model that is read from disk."""
    make, kept = text_building.Prepared.make_programs, dict[str, Any]()

    def make_or_find(prepared: text_building.Prepared) -> Any:
        plan, judge = prepared.plan, prepared.judge
        settings = plan.settings()
        # What is judged and called, and what a file of pairs is named, is nothing to a program.
        settings |= {"reward": None, "gold": judge.gold is not None, "callback": None}
        settings |= dict.fromkeys(("checkpoint_every", "log_every", "eval_every", "keep_best"))
        settings |= {"preference": judge.preference is not None}
        settings |= {"pairs": plan.entries.get("data", {}).get("sha256"), "num_updates": None}
        key = json.dumps(settings, sort_keys=True)
        if key not in kept:
            kept[key] = make(prepared)
        found = copy.copy(kept[key])
        found._judge, found._folder = judge, prepared.folder
        if prepared.plan.num_updates != kept[key]._agent.config.num_updates:
            # The first states have the numbers, and by them what becomes of the learning rate.
            found._init = _Made(jax.jit(prepared.agent.init))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_building.Prepared, "make_programs", make_or_find)
        yield
