"""What tests of learnt rewards share: pairs whose truth is known, and a tiny model."""

import json

import jax
import numpy as np
from language_models import write_tokenizer

from experiments.align import reward as program
from rgpo_jax.language import decoder, weights
from rgpo_jax.language.decoder_policy import TrainedPart

ARCHITECTURE = decoder.Architecture(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    attention_bias=True,
)
PARAMS = decoder.init(jax.random.key(0), ARCHITECTURE, 0.3)
PARTS = {
    "full": TrainedPart("full"),
    "last_layers": TrainedPart("last_layers", num_last_layers=1),
    "lora": TrainedPart("lora", rank=2),
}
GOOD = ("kindly", "gladly", "carefully", "honestly")
BAD = ("rudely", "badly", "carelessly", "falsely")
PLAIN = (
    *("the", "a", "cat", "dog", "sits", "runs", "on", "under", "house", "tree"),
    *("and", "then", "again", "there", "here"),
)


def lexicon_pairs(number, seed):
    """Pairs whose truth is how many good words an answer has, minus bad ones."""
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < number:
        both = []
        for _ in range(2):
            said = [*rng.choice(PLAIN, rng.integers(4, 9)), *rng.choice([*GOOD, *BAD], 2)]
            rng.shuffle(said)
            both.append(said)
        values = [sum(w in GOOD for w in s) - sum(w in BAD for w in s) for s in both]
        if values[0] != values[1]:
            both = both if values[0] > values[1] else both[::-1]
            chosen, rejected = map(" ".join, both)
            prompt = str(rng.choice(PLAIN)) + f" {len(rows)}"
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_pairs(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def run(*args):
    return program.main([*map(str, args)])


def write_place(folder):
    """Pairs to learn from and to be judged by, a few pairs, and a tiny model."""
    data = folder / "data"
    data.mkdir()
    write_pairs(data / "train.jsonl", lexicon_pairs(300, 0))
    write_pairs(data / "test.jsonl", lexicon_pairs(200, 1))
    write_pairs(folder / "few.jsonl", lexicon_pairs(20, 2))
    weights.save(folder / "model", ARCHITECTURE, PARAMS)
    write_tokenizer(folder / "model")
    return folder
