"""Makes language_parity.npz: what transformers computes of two tiny random models.

Run by hand, in an environment of its own, where neither JAX nor this library is needed:

    python -m venv parity
    parity/bin/pip install torch transformers
    parity/bin/python tests/data/language_parity.py

Weights are not stored: tests make them anew by `weights`, from a stream that NumPy keeps the same.
With the path of a folder as argument it writes nothing, and instead says whether transformers reads
the model there, and what it answers.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

_COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {
        **_COMMON,
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "llama": {
        **_COMMON,
        "model_type": "llama",
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}
SEEDS = {"qwen2": 1, "llama": 2}
LENGTHS = (12, 7, 1, 10)  # of the prompts; shorter ones are padded on the left
NEW_TOKENS = 10


def weights(name: str) -> dict[str, np.ndarray]:
    """The weights of one of the models, float32, by their names in Hugging Face's layout.

    Norms and biases are random too, so that one that is forgotten shows.
    """
    config = MODELS[name]
    # The old generator: its numbers are promised never to change.
    random = np.random.RandomState(SEEDS[name])

    def uniform(center: float, width: float, *shape: int) -> np.ndarray:
        return (center + width * (2 * random.random_sample(shape) - 1)).astype(np.float32)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return uniform(0.0, 2.0 / columns**0.5, rows, columns)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    widths = {
        "q": hidden,
        "k": config["num_key_value_heads"] * head_dim,
        "v": config["num_key_value_heads"] * head_dim,
    }
    tensors = {
        "model.embed_tokens.weight": uniform(0.0, 0.1, config["vocab_size"], hidden),
        "model.norm.weight": uniform(1.0, 0.5, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = uniform(1.0, 0.5, hidden)
        for part, width in widths.items():
            tensors[f"{prefix}.self_attn.{part}_proj.weight"] = matrix(width, hidden)
            if name == "qwen2":
                tensors[f"{prefix}.self_attn.{part}_proj.bias"] = uniform(0.0, 1.0, width)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = matrix(hidden, hidden)
        for part in ("gate", "up"):
            tensors[f"{prefix}.mlp.{part}_proj.weight"] = matrix(inner, hidden)
        tensors[f"{prefix}.mlp.down_proj.weight"] = matrix(hidden, inner)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = uniform(0.0, 0.05, config["vocab_size"], hidden)
    return tensors


def prompts(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int64 [B, P] and mask bool [B, P], padded on the left by 0."""
    random = np.random.RandomState(SEEDS[name] + 100)
    width = max(LENGTHS)
    mask = np.arange(width) >= width - np.array(LENGTHS)[:, None]
    vocab_size = MODELS[name]["vocab_size"]
    return np.where(mask, random.randint(1, vocab_size, mask.shape), 0), mask


def _golden(name: str) -> dict[str, np.ndarray]:
    """What transformers computes: logits where the mask is true, and greedy answers."""
    import torch
    import transformers

    kinds = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config_class, model_class = kinds[name]
    config = config_class(**{k: v for k, v in MODELS[name].items() if k != "model_type"})
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    tensors = {key: torch.from_numpy(value) for key, value in weights(name).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    theta = config.rope_parameters["rope_theta"]
    assert theta == MODELS[name]["rope_theta"], theta

    tokens, mask = prompts(name)
    inputs = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}
    positions = torch.clamp(inputs["attention_mask"].long().cumsum(1) - 1, min=0)
    with torch.no_grad():
        logits = model(**inputs, position_ids=positions).logits
        answers = model.generate(
            **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0
        )
        seen = torch.cat([inputs["attention_mask"], torch.ones(len(mask), NEW_TOKENS)], 1).long()
        steps = model(
            answers, attention_mask=seen, position_ids=torch.clamp(seen.cumsum(1) - 1, min=0)
        ).logits[:, mask.shape[1] - 1 : -1]
    best = steps.topk(2).values
    margin = float((best[..., 0] - best[..., 1]).min())
    print(f"{name}: logits within +-{float(logits.abs().max()):.2f}, least margin {margin:.4f}")
    assert margin > 1e-3, "a greedy choice is too close to be compared"
    return {
        f"{name}_logits": np.where(mask[..., None], logits.numpy(), 0).astype(np.float32),
        f"{name}_answers": answers[:, mask.shape[1] :].numpy().astype(np.int32),
    }


def _make() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    content = {key: value for name in MODELS for key, value in _golden(name).items()}
    origin = f"transformers {transformers.__version__}, torch {torch.__version__}"
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, origin=np.array(origin), **content)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, by {origin}")


def _read(folder: str) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    print(type(model).__name__, report)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    answer = model.generate(ids, do_sample=False, max_new_tokens=16)
    print(ids[0].tolist())
    print(repr(tokenizer.decode(answer[0, ids.shape[1] :])))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _read(sys.argv[1])
    else:
        _make()
