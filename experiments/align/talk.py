"""A trained language model answers on the terminal, beside the model that it was before."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.align import trained
from experiments.cli.flags import BadInput
from experiments.training.trained import Which
from rgpo_jax.language import decoder_policy, sampler
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder_policy import Prompts


def answer(
    folder: str,
    prompts: Sequence[str],
    stochastic: bool = False,
    num_answers: int = 1,
    seed: int = 0,
    max_tokens: int | None = None,
    which: Which = "newest",
) -> int:
    """Prints answers to prompts; returns the exit status.

    Args:
      folder: of a run of `experiments.align`.
      prompts: texts.
      stochastic: whether answers are samples at the run's temperature; else the most probable
        tokens, one after another.
      num_answers: to each prompt, if they are samples.
      seed: of the samples.
      max_tokens: of an answer; None: as in training.
      which: of the run's policies.

    Raises:
      BadInput: the run cannot be read.
    """
    loaded = trained.load(folder, "--run", which)
    text, options = loaded.text, loaded.plan.options
    model, tokenizer = text.model, text.tokenizer
    try:
        rows, masks = tokenizer.pad_left([tokenizer.chat(prompt) for prompt in prompts])
    except ValueError as error:
        raise BadInput(f"--prompt: {error}") from None
    asked = Prompts(jnp.asarray(rows), jnp.asarray(masks))
    if stochastic:
        asked = jax.tree.map(lambda x: jnp.repeat(x, num_answers, axis=0), asked)
    after = decoder_policy.merge(text.training, loaded.params["actor"], model.params)

    @jax.jit
    def sample(params: dict, key: jax.Array) -> Answers:
        return sampler.sample(
            sampler.decoding_weights(params, model.architecture),
            model.architecture,
            *asked,
            key,
            max_tokens or options.max_tokens,
            model.end_ids,
            model.pad_id,
            loaded.plan.config.temperature,
            greedy=not stochastic,
        )

    key = jax.random.key(seed)
    after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, model.params)
    answers = [text.read(sample(params, key)) for params in (model.params, after)]
    number = num_answers if stochastic else 1
    for i, prompt in enumerate(prompts):
        print(f"\n{prompt}")
        for name, given in zip(("before", f"after {loaded.updates} updates"), answers, strict=True):
            for line in given[i * number : (i + 1) * number]:
                print(f"  {name}: {line}")
    return 0
