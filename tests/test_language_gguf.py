"""GGUF files: the same models and tokenisers as in folders, refused where they cannot be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_models import CHATML, TEXTS, assert_same, parity, train, write, write_tokenizer

from rgpo_jax.language import decoder, weights
from rgpo_jax.language.tokenizer import Tokenizer

pytest.importorskip("jinja2", reason="needs the extra `align`")


def interleaved(matrix, heads):
    """Rows as the converter of GGUF orders Llama's queries and keys."""
    rows = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, *matrix.shape[1:])
    return rows.swapaxes(1, 2).reshape(matrix.shape)


def write_gguf(path, name, edit=None, splits="smollm", model="gpt2", extra=()):
    """One of the two models and the tiny tokeniser, as llama.cpp's converter writes them."""
    gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`")
    config = parity.MODELS[name]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    backend = train()
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)
    for key, value in extra:
        writer.add_string(key, value)
    places = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
        **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    }
    tensors = {}
    for key, value in parity.weights(name).items():
        if name == "llama" and ".q_proj" in key:
            value = interleaved(value, config["num_attention_heads"])
        elif name == "llama" and ".k_proj" in key:
            value = interleaved(value, config["num_key_value_heads"])
        for old, new in places.items():
            key = key.replace(old, new)
        tensors[key] = value
    if edit is not None:
        edit(tensors)
    for key, value in tensors.items():
        writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", parity.MODELS)
def test_a_gguf_file_holds_the_same_model(name, tmp_path):
    expected = weights.load(write(tmp_path / "folder", name))
    model = weights.load(write_gguf(tmp_path / "it.gguf", name))
    assert model.architecture == expected.architecture
    assert (model.end_ids, model.pad_id, model.max_length) == ((2,), 0, 128)
    assert_same(model.params, expected.params)


@pytest.mark.parametrize("splits", ["smollm", "qwen2", "gpt-2"])
def test_a_gguf_file_holds_the_same_tokeniser(splits, tmp_path):
    path = write_gguf(tmp_path / "it.gguf", "qwen2", splits=splits)
    tokenizer = Tokenizer.load(path)
    expected = Tokenizer.load(write_tokenizer(tmp_path))
    assert tokenizer.vocab_size == expected.vocab_size
    assert (tokenizer.end_ids, tokenizer.pad_id) == (expected.end_ids, expected.pad_id)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        if splits == "smollm":
            assert ids == expected.encode(text)
    assert tokenizer.chat("the cat") == expected.chat("the cat")


def test_what_came_from_gguf_is_saved_with_its_tokeniser(tmp_path):
    model = weights.load(write_gguf(tmp_path / "it.gguf", "llama"))
    weights.save(tmp_path / "folder", model.architecture, model.params, model)
    again = weights.load(tmp_path / "folder")
    assert again.architecture == model.architecture
    assert again[3:] == model[3:]
    assert_same(again.params, model.params)
    first, second = (Tokenizer.load(m.tokenizer_source) for m in (model, again))
    assert (first.end_ids, first.pad_id) == (second.end_ids, second.pad_id)
    for text in TEXTS:
        assert first.encode(text) == second.encode(text)
        assert first.chat(text) == second.chat(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": [("llama.rope.scaling.type", "yarn")]}, "llama.rope.scaling.type: expected no"),
        ({"model": "llama"}, "tokenizer.ggml.model: expected gpt2"),
        ({"edit": lambda t: t.pop("blk.2.attn_k.weight")}, "blk.2.attn_k.weight: missing"),
        (
            {"edit": lambda t: t.update({"rope_freqs.weight": np.ones(8, np.float32)})},
            "rope_freqs.weight: not a part of such a model",
        ),
        (
            {"edit": lambda t: t.update({"output_norm.weight": np.ones(8, np.float32)})},
            r"output_norm.weight: expected shape \(64,\), found \(8,\)",
        ),
    ],
)
def test_gguf_files_that_do_not_fit_are_refused(changes, message, tmp_path):
    path = write_gguf(tmp_path / "it.gguf", "llama", **changes)
    with pytest.raises(ValueError, match=f"it.gguf: {message}"):
        weights.load(path)


def test_other_gguf_files_are_refused(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`")
    path = tmp_path / "it.gguf"
    for content in (b"no such thing at all", b"GGUF\3\0\0\0"):
        path.write_bytes(content)
        for read in (weights.load, Tokenizer.load):
            with pytest.raises(ValueError, match=r"it\.gguf: not a GGUF file"):
                read(path)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="expected qwen2 or llama, found gemma3"):
        weights.load(path)
    path = write_gguf(tmp_path / "other.gguf", "llama", splits="tekken")
    with pytest.raises(ValueError, match="expected smollm, qwen2 or gpt-2, found tekken"):
        Tokenizer.load(path)


def test_smollm2_knows_the_capital_of_france():
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    try:
        path = weights.find_smollm2()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    model = weights.load(path)
    tokenizer = Tokenizer.load(model.tokenizer_source)
    assert sum(x.size for x in jax.tree.leaves(model.params)) == 134_515_008
    assert tokenizer.vocab_size == model.architecture.vocab_size == 49_152
    assert (tokenizer.end_ids, tokenizer.pad_id) == ((2,), 2)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("In 1984")[-4:] == [tokenizer.encode(digit)[0] for digit in "1984"]

    @jax.jit
    def next_tokens(params, tokens):
        mask = jnp.ones(tokens.shape, bool)
        states = decoder.hidden_states(params, model.architecture, tokens, mask)
        return jnp.argmax(states[0] @ decoder.head(params), axis=-1)

    prompt = tokenizer.chat("What is the capital of France?")
    assert tokenizer.decode(prompt, skip_special=False).startswith("<|im_start|>system\nYou are")
    answer = [*tokenizer.encode("The capital of France is Paris."), *tokenizer.end_ids]
    # Each is the likeliest after those before it, so that this is what it says.
    said = next_tokens(model.params, jnp.array([[*prompt, *answer]]))[len(prompt) - 1 : -1]
    assert said.tolist() == answer
