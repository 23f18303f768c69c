"""Tiny language models on disk: random weights, and a byte-level tokeniser that is trained here."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `align`")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `align`")

DATA = Path(__file__).parent / "data"
_SPEC = importlib.util.spec_from_file_location("language_parity", DATA / "language_parity.py")
parity = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parity)

CHATML = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n<|start|>assistant\n\n{% endif %}"
)

TEXTS = (
    "In 1984, 2 + 2 = 5!  Don't you think?",
    "naïve café, Ünïcödé, 日本語, русский",
    "\U0001f389 \U0001f469‍\U0001f467 flags \U0001f1eb\U0001f1f7",
    " \t\n\n  indented\r\n\r\n",
)


def write(folder, name="llama", shards=1, dtype=None, **changes):
    """One of the two models as Hugging Face lays it out; `changes` are to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**parity.MODELS[name], **changes}))
    tensors = parity.weights(name)
    if dtype is not None:
        tensors = {key: value.astype(dtype) for key, value in tensors.items()}
    if shards == 1:
        safetensors.save_file(tensors, folder / "model.safetensors")
        return folder
    keys = sorted(tensors)
    files = {
        key: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, key in enumerate(keys)
    }
    for file in set(files.values()):
        part = {key: tensors[key] for key in keys if files[key] == file}
        safetensors.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def train():
    """A tiny byte-level BPE with three control tokens, as a `tokenizers.Tokenizer`."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    splitters = tokenizers.pre_tokenizers
    backend.pre_tokenizer = splitters.Sequence(
        [splitters.Digits(individual_digits=True), splitters.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
        initial_alphabet=splitters.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat and the hat, the user and the assistant"] * 9, trainer)
    return backend


def write_tokenizer(folder, template=CHATML, **changes):
    folder.mkdir(exist_ok=True)
    train().save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": {"content": "<|end|>"},
        "pad_token": "<|pad|>",
        "bos_token": None,
        "chat_template": template,
        **changes,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
