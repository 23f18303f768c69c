"""Tokenisers on disk: texts and ids, conversations by templates, and what is refused."""

import numpy as np
import pytest
from language_models import TEXTS, train, write_tokenizer

from rgpo_jax.language.tokenizer import Tokenizer

pytest.importorskip("jinja2", reason="needs the extra `align`")


def test_texts_come_back(tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    assert tokenizer.vocab_size == train().get_vocab_size() <= 300
    for text in TEXTS:
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
