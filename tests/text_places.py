"""A place with a tiny model, prompts and rewards, and the flags of runs that begin there."""

import jax
from language_models import write_tokenizer

from rgpo_jax.language import decoder, weights

PROMPTS = [
    *("the cat", "the <b>hat</b> & more", "the user", "the assistant and the cat", "a hat"),
    *("and", "the cat and the hat", "<script>alert('held')</script>"),
]
ARCHITECTURE = decoder.Architecture(  # a Qwen2
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    attention_bias=True,
)
REWARDS = """
asked = []


def vowels(prompts, answers):
    asked.append(list(prompts))
    return [sum(letter in "aeiou" for letter in a) / max(1, len(a)) for a in answers]


def length(prompts, answers):
    return [float(len(answer)) for answer in answers]


def raises(prompts, answers):
    raise RuntimeError("no judge\\nat home")


def none(prompts, answers):
    return []


def later(prompts, answers):
    if prompts != ["Say hello."] and len(asked) == 2:
        raise RuntimeError("gone home")
    return vowels(prompts, answers)


def nan(prompts, answers):
    return [float("nan")] * len(answers)


def texts(prompts, answers):
    return ["good"] * len(answers)


number = 3
"""
SMALL = [
    *("--world", "model", "--model", "model", "--prompts", "prompts.txt", "--seed", "3"),
    *("--reward", "my_rewards:vowels", "--held-out", "0.25", "--eval-answers", "2"),
    *("--max-tokens", "5"),
    *("--num-updates", "4", "--num-prompts", "2", "--group-size", "2", "--num-epochs", "1"),
    *("--num-minibatches", "1", "--learning-rate", "0.003", "--eval-every", "8"),
    *("--log-every", "4", "--checkpoint-every", "0"),
]
LAST = ["--num-last-layers", "1"]


def write_place(folder):
    """Writes a model, prompts and a module of rewards."""
    params = decoder.init(jax.random.key(0), ARCHITECTURE, 0.3)
    weights.save(folder / "model", ARCHITECTURE, params)
    write_tokenizer(folder / "model")
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n")
    return folder
