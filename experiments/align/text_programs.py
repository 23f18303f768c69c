"""The programs of worlds of texts: the model is compiled, and answers are judged on the host."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from envs.language.text import TextWorld
from experiments.align import answer_log
from experiments.align.answer_log import Answered
from experiments.align.judge import Judge
from experiments.training.compiling import Compiler, Lowered, Runs
from experiments.training.devices import Layout
from experiments.training.programs import (
    EVALUATION_STREAM,
    Members,
    Programs,
    memory_of,
    spread_progress,
    wait,
)
from rgpo_jax.language import decoder, kl, pair_learner, samples
from rgpo_jax.language.agent import Agent, AgentState, prompts_of_update
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.learner import is_broken
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.state import LearnerState
from rgpo_jax.metrics import Metrics, means
from rgpo_jax.train import Progress


class _Placement:
    """Where arrays lie: on one device (mesh None), or on all of a mesh."""

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh
        self.everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def describe(self) -> str:
        """The mesh in words; nothing of one device."""
        if self._mesh is None:
            return ""
        axes = ", ".join(f"{name} {size}" for name, size in self._mesh.shape.items())
        return f"{self._mesh.size} devices: {axes}"

    def shapes(self, tree: Any, shardings: Any) -> Any:
        """Shapes of arrays, which say where these lie where there is a mesh."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        if self._mesh is None:
            return shapes
        return jax.tree.map(lambda x, where: x.update(sharding=where), shapes, shardings)

    def replicated(self, tree: Any) -> Any:
        """Shapes of arrays that every device has whole."""
        return self.shapes(tree, jax.tree.map(lambda x: self.everywhere, tree))


class _Evaluated(NamedTuple):
    pairs: Metrics  # of the held-out pairs; empty without them
    answers: Answers
    kl_k1: jax.Array  # of each answer [n]
    kl_k3: jax.Array
    entropy: jax.Array  # of each token, mean over the answer [n]


class TextPrograms(Programs):
    """One model: answers are sampled, read, judged and learnt from; or pairs are learnt from."""

    def __init__(
        self,
        text: TextWorld,
        agent: Agent,
        judge: Judge,
        members: Members,
        eval_answers: int,
        folder: Path,
        from_data: bool = False,
        made_of: Mapping[str, Any] | None = None,
    ):
        """Begins to compile.

        Args:
          text: the world.
          agent: made for it.
          judge: rewards.
          members: the seed of the run and its numbers, M = 1.
          eval_answers: answers to each held-out prompt at an evaluation.
          folder: where samples of answers are kept.
          from_data: learn from the world's pairs; answers are sampled at evaluations alone.
          made_of: what the programs are known by, beside the model; see `Compiler.obtain`.
        """
        self.compiler = Compiler()
        self._text, self._agent, self._judge, self._folder = text, agent, judge, folder
        self._learn = jax.jit(agent.update)  # traced once, for its shapes and for the program
        self._num_eval_answers = eval_answers
        eval_prompts = jax.tree.map(
            lambda x: jnp.repeat(x, eval_answers, axis=0), text.held_out_prompts
        )
        self._placement = placement = _Placement(text.mesh)
        self.spread = placement.describe()
        self._frozen = text.world.frozen
        self._prompts, self._eval_prompts, self._eval_pairs, self._data = jax.device_put(
            (
                text.world.prompts,
                eval_prompts,
                text.held_out_pairs,
                text.pairs if from_data else None,
            ),
            placement.everywhere,
        )
        (seed,), overrides = members.seeds, members.overrides()
        key = jax.random.key(seed)
        # Its numbers are arguments: others find the same program.
        self._init_arguments = key, {name: value[0] for name, value in overrides.items()}
        self._eval_key = jax.random.fold_in(key, EVALUATION_STREAM)
        known_by = None if made_of is None else {**made_of, **self._shapes()}
        programs = iter(self.compiler.obtain(known_by, self._lowered()))
        self._init = next(programs)
        self._sample = next(programs) if self._data is None else None
        self._update, self._evaluate = programs

    def _shapes(self) -> dict[str, Any]:
        """All of model and data that shapes programs; what they hold is an argument."""
        text = self._text
        arrays = self._frozen, self._prompts, self._eval_prompts, self._eval_pairs, self._data
        leaves, structure = jax.tree.flatten(arrays)
        return {
            "model": [
                repr(x) for x in (text.model.architecture, text.model.end_ids, text.model.pad_id)
            ],
            "training": repr(text.training),
            "arrays": [repr(structure), *(repr((x.shape, x.dtype, x.sharding)) for x in leaves)],
        }

    def _lowered(self) -> Iterator[Lowered]:
        """Traces its programs, one after the other."""
        agent, placement = self._agent, self._placement
        everywhere, mesh = placement.everywhere, self._text.mesh
        devices = () if mesh is None else tuple(mesh.devices.flat)
        frozen = placement.shapes(self._frozen, jax.tree.map(lambda x: x.sharding, self._frozen))

        @jax.jit  # traced once, for the shapes and for the program
        def begin(key: jax.Array, overrides: dict, frozen: Any) -> AgentState:
            return agent.init(key, frozen, **overrides)

        state = jax.eval_shape(begin, *self._init_arguments, frozen)
        # Left to XLA, an optimiser's state would lie whole on every device.
        placed = mesh and decoder.shardings(state, self._text.model.architecture, mesh)
        state = placement.shapes(state, placed)
        init = jax.jit(begin, out_shardings=placed).lower(*self._init_arguments, frozen)
        # In this order: they compile while the next ones are traced.
        yield Lowered("initial states", init, Runs.RARELY, devices)  # of millions of weights

        sampling: Any = None
        if self._data is None:
            sampling = jax.jit(self._sampling, out_shardings=everywhere).lower(
                *self._sampled_with(state), frozen, placement.replicated(self._prompts)
            )
            yield Lowered("sampling", sampling, Runs.OFTEN, devices)
        batch, host = self._learnt_from(sampling)
        metrics: Metrics = jax.eval_shape(self._learn, state, frozen, batch)[1]
        metrics |= means(host)
        progress = spread_progress(Progress.start(metrics), Layout().mesh(), 1)
        shardings = None if mesh is None else (placed, everywhere)
        updating = jax.jit(self._updating, donate_argnums=0, out_shardings=shardings).lower(
            state, frozen, batch, placement.replicated(progress), host
        )
        yield Lowered("update", updating, Runs.OFTEN, devices)

        evaluating = jax.jit(self._evaluation, out_shardings=everywhere).lower(
            state,
            frozen,
            placement.replicated(self._eval_prompts),
            placement.replicated(self._eval_pairs),
            jax.random.key(0),
        )
        yield Lowered("evaluation", evaluating, Runs.RARELY, devices)

    def _learnt_from(self, sampling: Any) -> tuple[Any, dict[str, Any]]:
        """Shapes of an update's batch and of the host's metrics; `sampling` None: of the data."""
        if sampling is None:
            return self._placement.replicated(self._data), {}
        _, asked, answers, _ = sampling.out_info
        scores: Any = jax.ShapeDtypeStruct((self._agent.config.batch_size,), jnp.float32)
        names = ["tokens_per_second"] + ["gold_reward"] * (self._judge.gold is not None)
        # Else the rewards that stand for a judge's preferences, whose mean is always 0.
        names += ["sampled_reward"] * (self._judge.preference is not None)
        host = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
        return self._placement.replicated(Batch(asked, answers, scores)), host

    def _sampling(
        self, learner: Any, prompt_key: Any, key: Any, frozen: Any, prompts: Any
    ) -> tuple[Any, Any, Answers, Any]:
        # It returns nothing that it was given, which would be a copy of the parameters.
        state = AgentState(LearnerState(**learner), prompt_key, key)
        which = prompts_of_update(
            prompt_key,
            state.learner.updates,
            self._agent.config.num_prompts,
            len(self._text.prompts),
        )
        after, asked, answers = self._agent.sample(state, frozen, prompts)
        return after.key, asked, answers, which

    def _updating(
        self, state: AgentState, frozen: Any, batch: Any, progress: Progress, host: Any
    ) -> tuple[AgentState, Progress]:
        updates = state.learner.updates
        state, metrics = self._learn(state, frozen, batch)
        one = jax.tree.map(lambda x: x[0], progress)
        broken = is_broken(metrics)
        one = one.take(updates, state.learner.params, metrics | means(host), broken)
        return state, jax.tree.map(lambda x: x[None], one)

    @property
    def _at_a_time(self) -> int | None:
        """Answers that are read at a time; None: all."""
        size: int | None = getattr(self._agent.config, "microbatch_size", None)
        return size

    def _measure(self, state: AgentState, frozen: Any, pairs: Any) -> Metrics:
        """Of held-out pairs; names begin as those of an evaluation."""
        if pairs is None:
            return means({})
        learner = state.learner
        numbers = learner.hyperparameters
        found = pair_learner.measure(
            self._agent.policy,
            learner.params,
            frozen,
            pairs,
            numbers.temperature,
            getattr(numbers, "kl_coefficient", 1.0),
            self._at_a_time,
        )
        return means({f"pair_{name}": x for name, x in found.items()})

    def _evaluation(
        self, state: AgentState, frozen: Any, prompts: Any, pairs: Any, key: Any
    ) -> _Evaluated:
        policy, learner = self._agent.policy, state.learner
        temperature = learner.hyperparameters.temperature
        answers = policy.sample(learner.params, frozen, prompts, key, temperature)

        def judged(part: tuple) -> tuple:
            encoded = policy.encode(frozen, *part)
            predicted = policy.predict(learner.params, frozen, encoded, part[1], temperature)
            reference = policy.reference(frozen, encoded, part[1], temperature)
            return predicted.log_prob, predicted.entropy, reference

        log_prob, entropy, reference = samples.in_parts(judged, (prompts, answers), self._at_a_time)
        m = jnp.where(answers.mask, log_prob - reference, 0.0)
        return _Evaluated(
            self._measure(state, frozen, pairs),
            answers,
            jnp.sum(kl.k1(m), axis=-1),
            jnp.sum(jnp.where(answers.mask, kl.k3(m), 0.0), axis=-1),
            jnp.mean(entropy, axis=-1, where=answers.mask),
        )

    def ready(self, show: Callable[[str], None] = lambda line: None) -> None:
        self.compiler.wait(show)
        self.initial_states = self._init.result()(*self._init_arguments, self._frozen)
        self._describe(self._update.result(), Layout().mesh(), 1)
        self._empty = jax.device_put(self._empty, self._placement.everywhere)
        if self._sample:
            self.memory_bytes = max(self.memory_bytes, memory_of(self._sample.result()))

    @staticmethod
    def _sampled_with(state: AgentState) -> tuple[dict[str, Any], Any, Any]:
        """What sampling reads of a state: not the optimiser's, which is twice the parameters."""
        return {**state.learner._asdict(), "optimizer_state": None}, state.prompt_key, state.key

    def advance(
        self, states: AgentState, progress: Progress, num_updates: int
    ) -> tuple[AgentState, Progress]:
        self.initial_states = None  # its memory is the update's to reuse
        if self._sample is None:
            for _ in range(num_updates):
                states, progress = self._update.result()(
                    states, self._frozen, self._data, progress, {}
                )
            return states, progress
        for _ in range(num_updates):
            begun = time.perf_counter()
            key, asked, answers, which = self._sample.result()(
                *self._sampled_with(states), self._frozen, self._prompts
            )
            states = states._replace(key=key)
            wait(answers)
            number = int(jnp.sum(answers.mask))
            rate = number / (time.perf_counter() - begun)
            self.remark = f"{rate:,.0f} tokens/s sampled"
            asked_texts = [self._text.prompts[i] for i in np.asarray(which)]
            texts = [text for text in asked_texts for _ in range(self._agent.config.group_size)]
            read = self._text.read(answers)
            scores, gold = self._judge.score(texts, read)
            compared = self._judge.compare(texts, read, self._agent.config.group_size)
            host = {"tokens_per_second": np.float32(rate)}
            if compared is not None:
                host["sampled_reward"] = np.float32(scores.mean())
                scores = compared
            if gold is not None:
                host["gold_reward"] = np.float32(gold.mean())
            batch = Batch(asked, answers, jnp.asarray(scores))
            states, progress = self._update.result()(states, self._frozen, batch, progress, host)
        return states, progress

    def evaluate(self, states: AgentState, updates: int, whole: bool) -> dict[str, list[float]]:
        """Rewards and KL of fresh answers to the held-out prompts, one of each of which is kept."""
        key = jax.random.fold_in(self._eval_key, updates)
        evaluated = self._evaluate.result()(
            states, self._frozen, self._eval_prompts, self._eval_pairs, key
        )
        wait(evaluated)
        answers = evaluated.answers
        texts = self._text.read(answers)
        prompts = [p for p in self._text.held_out for _ in range(self._num_eval_answers)]
        scores, gold = self._judge.score(prompts, texts)
        ended = np.asarray(answers.ended)
        answer_log.append(
            self._folder,
            [
                Answered(
                    updates,
                    prompts[i],
                    texts[i],
                    float(scores[i]),
                    None if gold is None else float(gold[i]),
                    bool(ended[i]),
                )
                for i in range(0, len(texts), self._num_eval_answers)
            ],
        )
        result = {
            **evaluated.pairs,
            "reward": scores,
            "kl_ref": evaluated.kl_k1,
            "kl_ref_by_k3": evaluated.kl_k3,
            "entropy_per_token": evaluated.entropy,
            "length": jnp.sum(answers.mask, axis=-1),
            "ended": ended,
        }
        if gold is not None:
            result["gold"] = gold
        return {name: [float(np.mean(np.asarray(x)))] for name, x in result.items()}
