"""The part of `accelerator` that measures language models: sampling, and the update of answers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.language import rgpo
from experiments.benchmark import roofline
from experiments.benchmark.accelerator_parts import Bench, Candidate, differences, timed
from rgpo_jax.language import decoder, decoder_policy
from rgpo_jax.language import learner as learners
from rgpo_jax.language.decoder import Architecture
from rgpo_jax.language.decoder_policy import Prompts, TrainedPart
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.state import LearnerState

SMOLLM2 = Architecture(49152, 576, 1536, 30, 9, 3, 64, 1e5)
TINY = Architecture(64, 32, 64, 2, 4, 2, 8)
_TOLERANCE = 1e-4  # of logits in float32 at highest precision, through all layers
_NO_END = -1  # no token ends an answer: all have the same length


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      architecture: of the decoder; its weights are random.
      batch: number of answers.
      prompt: tokens of each prompt.
      answer: tokens of each answer.
      dtype: of the arithmetic.
    """

    architecture: Architecture
    batch: int
    prompt: int
    answer: int
    dtype: Any


def sizes(batch: int, prompt: int, answer: int) -> Sizes:
    """On an accelerator SmolLM2's shape in bfloat16; on a CPU a tiny one, to try it."""
    if jax.default_backend() == "cpu":
        return Sizes(TINY, batch, prompt, answer, "float32")
    return Sizes(SMOLLM2, batch, prompt, answer, "bfloat16")


def language(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    """Tokens a second of sampling and of a whole update; logits against the CPU's."""
    architecture, n = sizes.architecture, sizes.batch
    training = TrainedPart(chunk_size=4096, remat=True, dtype=sizes.dtype)
    policy = decoder_policy.make(architecture, sizes.answer, (_NO_END,), 0, training)
    frozen = decoder.init(jax.random.key(0), architecture)
    tokens = jax.random.randint(
        jax.random.key(1), (n, sizes.prompt), 0, architecture.vocab_size, jnp.int32
    )
    prompts = Prompts(tokens, jnp.ones(tokens.shape, bool))
    config = rgpo.Config(num_prompts=n // 4, group_size=4, num_epochs=1, num_minibatches=4)
    learner = learners.make(policy, config, rgpo.gate(config))
    state = jax.jit(lambda key: learner.init(key, frozen))(jax.random.key(2))

    def sample(carry: tuple) -> tuple[tuple, Any]:
        params, frozen, prompts, key = carry
        key, own = jax.random.split(key)
        answers = policy.sample(params, frozen, prompts, own, 1.0)
        return (params, frozen, prompts, key), answers

    def update(carry: tuple[LearnerState, Any, Batch]) -> tuple[tuple, Any]:
        state, frozen, batch = carry
        state, metrics = learner.update(state, frozen, batch)
        return (state, frozen, batch), metrics

    key = jax.random.key(3)
    first = (state.params, frozen, prompts, key)
    answers = jax.jit(sample)(first)[1]
    reward = jax.random.normal(key, (n,))
    candidates = [
        Candidate("sampling", *roofline.compile_loop(sample, first, n * sizes.answer)),
        Candidate(
            "update, all parameters",
            *roofline.compile_loop(
                update, (state, frozen, Batch(prompts, answers, reward)), n * sizes.answer
            ),
        ),
    ]
    rows = timed(bench, candidates, unit="tokens", batch=n)
    absolute, relative = _against_cpu(bench, architecture, frozen, tokens[:2])
    said = f"logits differ from the CPU's by {absolute:.1e}, {relative:.1e} of their size"
    result: dict[str, Any] = {"programs": rows, "said": said, "logits_relative": relative}
    if relative > _TOLERANCE:
        result["error"] = said
    return result


def _against_cpu(bench: Bench, architecture: Architecture, params: Any, tokens: Any) -> Any:
    """Largest absolute and relative difference of logits in float32."""

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        mask = jnp.ones(tokens.shape, bool)
        states = decoder.hidden_states(params, architecture, tokens, mask)
        return states @ decoder.head(params)

    def on(device: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return jax.device_get(jax.jit(logits)(*jax.device_put((params, tokens), device)))

    return differences(on(bench.device), on(jax.devices("cpu")[0]))
