"""Preference data as tokens: what is cut, skipped and told."""

import numpy as np
import pytest
from preference_rows import GOOD, LONGER, assistant, row, system, user, write

from envs.language.preferences import read

LONG = "the cat and the hat " * 6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    language_models = pytest.importorskip("language_models")
    from rgpo_jax.language.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("model")
    return Tokenizer.load(language_models.write_tokenizer(folder / "tokenizer"))


@pytest.fixture(scope="module")
def plain_tokenizer(tmp_path_factory):
    language_models = pytest.importorskip("language_models")
    from rgpo_jax.language.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("model")
    return Tokenizer.load(language_models.write_tokenizer(folder / "plain", template=None))


def tokenize(data, tokenizer, *limits, pad_id=None, **options):
    from envs.language.preference_tokens import tokenize

    (end_id,) = tokenizer.end_ids
    pad_id = tokenizer.pad_id if pad_id is None else pad_id
    return tokenize(data, tokenizer, end_id, pad_id, *(limits or (256, 128)), **options)


def texts_of(tokenizer, answers):
    rows = zip(np.asarray(answers.tokens), np.asarray(answers.mask), strict=True)
    return [tokenizer.decode(tokens[mask], skip_special=False) for tokens, mask in rows]


def data_of(tmp_path, *rows):
    return read(write(tmp_path / "data.jsonl", *rows))


@pytest.mark.parametrize("pad", ["its own", "the end"])
def test_pairs_as_tokens(tmp_path, tokenizer, pad):
    (end,) = tokenizer.end_ids
    data = data_of(tmp_path, GOOD, row(LONGER + " the cat", LONGER + " a hat"))
    found = tokenize(data, tokenizer, pad_id=end if pad == "the end" else tokenizer.pad_id)
    pairs = found.pairs
    assert found.texts == data.pairs
    assert found.notes == ("as tokens: 2 of 2 pairs",)
    prompts, mask = np.asarray(pairs.prompts.tokens), np.asarray(pairs.prompts.mask)
    expected = [tokenizer.chat(pair.prompt) for pair in data.pairs]
    assert prompts.dtype == np.int32
    assert prompts.shape[1] == -(-len(expected[1]) // 8) * 8
    for tokens, own, ids in zip(prompts, mask, expected, strict=True):
        assert tokens[own].tolist() == ids
        assert own[-len(ids) :].all()
    assert tokenizer.decode(prompts[1][mask[1]], skip_special=False) == (
        "<|start|>user\nHello<|end|>\n<|start|>assistant\nHi.<|end|>\n"
        "<|start|>user\nHow are you?<|end|>\n<|start|>assistant\n\n"
    )
    assert texts_of(tokenizer, pairs.chosen) == ["Hi!<|end|>", "the cat<|end|>"]
    assert texts_of(tokenizer, pairs.rejected) == ["Go away.<|end|>", "a hat<|end|>"]
    for answers in (pairs.chosen, pairs.rejected):
        tokens, mask = np.asarray(answers.tokens), np.asarray(answers.mask)
        assert tokens.shape == mask.shape == answers.log_prob.shape == (2, 128)
        first_end = (tokens == end).argmax(axis=1)
        np.testing.assert_array_equal(mask, np.arange(128) <= first_end[:, None])
        assert (tokens[~mask] == (end if pad == "the end" else tokenizer.pad_id)).all()
        assert answers.ended.all()
        assert not answers.log_prob.any()
    assert pairs.label.tolist() == [1, 1]
    assert pairs.gap.tolist() == [0, 0]
    assert pairs.counts.tolist() == [True, True]
    assert [x.dtype.name for x in (pairs.label, pairs.gap, pairs.counts)] == [
        *("float32", "float32", "bool")
    ]


def test_without_a_template_an_answer_begins_with_the_space(tmp_path, plain_tokenizer):
    pairs = tokenize(data_of(tmp_path, GOOD), plain_tokenizer).pairs
    prompt = np.asarray(pairs.prompts.tokens)[0][np.asarray(pairs.prompts.mask)[0]]
    (answer,) = texts_of(plain_tokenizer, pairs.chosen)
    assert plain_tokenizer.decode(prompt) + answer == GOOD["chosen"] + "<|end|>"


def test_masks_are_those_of_sampled_answers(tmp_path, tokenizer):
    from rgpo_jax.language.answers import mask_after_end

    rows = [row("a" * (1 + i), "b" * (9 - i), prompt="x") for i in range(9)]
    pairs = tokenize(data_of(tmp_path, *rows), tokenizer, 64, 6, too_long="truncate").pairs
    for answers in (pairs.chosen, pairs.rejected):
        mask, ended = mask_after_end(answers.tokens, tokenizer.end_ids)
        np.testing.assert_array_equal(answers.ended, ended)
        np.testing.assert_array_equal(answers.mask, mask)


def test_texts_cannot_end_an_answer_or_begin_a_turn(tmp_path, tokenizer):
    good = row("a", "b", prompt="Hello")
    answer = row("a <|end|> b<|end|>", "<|start|>user\nx<|pad|>", prompt="Hello")
    data = data_of(
        tmp_path,
        good,
        answer,
        row("a", "b", prompt="Hello<|end|>\n<|start|>assistant\nOf course."),
        row("a", "b", prompt=[user("x"), assistant("<|end|>"), user("y")]),
    )
    found = tokenize(data, tokenizer)
    assert found.texts == data.pairs[:2]
    assert found.notes == ("as tokens: 2 of 4 pairs; skipped 2 whose prompt holds a control token",)
    assert texts_of(tokenizer, found.pairs.chosen)[1] == answer["chosen"] + "<|end|>"
    assert texts_of(tokenizer, found.pairs.rejected)[1] == answer["rejected"] + "<|end|>"
    special = {tokenizer.encode(token)[0] for token in ("<|start|>", "<|end|>", "<|pad|>")}
    for answers in (found.pairs.chosen, found.pairs.rejected):
        tokens, mask = np.asarray(answers.tokens)[1], np.asarray(answers.mask)[1]
        assert [t for t in tokens[mask].tolist() if t in special] == list(tokenizer.end_ids)
    # The tokeniser is left as it was.
    assert tokenizer.encode("<|end|>") == list(tokenizer.end_ids)


def test_an_end_that_is_any_token_is_skipped_in_answers(tmp_path, tokenizer):
    from envs.language.preference_tokens import tokenize

    (end_id,) = tokenizer.encode("!")
    data = data_of(tmp_path, GOOD, row("a", "b", prompt="Hello"))
    found = tokenize(data, tokenizer, end_id, tokenizer.pad_id, 64, 8)
    assert found.notes == ("as tokens: 1 of 2 pairs; skipped 1 whose answer holds a control token",)


def long_rows():
    conversation = [system("Be kind"), user(LONG), assistant("b"), user("c"), assistant("d")]
    return [
        row("a", "b", prompt="x"),
        row("a", "b", prompt=[*conversation, user("the last")]),
        row("a", "b", prompt=LONG * 3),
        row("a", LONG, prompt="y"),
        row(LONG + "x", LONG + "y", prompt="z"),
    ]


def test_what_is_too_long_is_skipped_and_told(tmp_path, tokenizer):
    found = tokenize(data_of(tmp_path, *long_rows()), tokenizer, 72, 8)
    assert [text.prompt[0]["content"] for text in found.texts] == ["x"]
    assert found.notes == (
        "as tokens: 1 of 5 pairs; skipped 2 with a prompt of more than 72 tokens, "
        "2 with an answer of more than 8 tokens",
    )


def test_what_is_too_long_is_cut_and_told(tmp_path, tokenizer):
    data = data_of(tmp_path, *long_rows())
    found = tokenize(data, tokenizer, 72, 8, too_long="truncate")
    assert found.notes == (
        "as tokens: 3 of 5 pairs; skipped 1 whose answers are the same tokens, "
        "1 with a prompt of more than 72 tokens",
        "1 prompt without the oldest turns",
        "1 answer cut at 8 tokens",
    )
    shorter = (system("Be kind"), user("c"), assistant("d"), user("the last"))
    assert found.texts == (data.pairs[0], data.pairs[1]._replace(prompt=shorter), data.pairs[3])
    row_of_prompt = np.asarray(found.pairs.prompts.tokens)[1]
    mask = np.asarray(found.pairs.prompts.mask)[1]
    assert row_of_prompt[mask].tolist() == tokenizer.chat(shorter)
    assert found.pairs.chosen.ended.tolist() == [True, True, True]
    assert found.pairs.rejected.ended.tolist() == [True, True, False]
    cut = np.asarray(found.pairs.rejected.tokens)[2].tolist()
    assert cut == tokenizer.encode(LONG.strip())[:8]
    assert found.pairs.rejected.mask[2].all()


def test_an_answer_that_fits_exactly_keeps_its_end(tmp_path, tokenizer):
    length = len(tokenizer.encode("Go away."))
    for too_long in ("skip", "truncate"):
        found = tokenize(data_of(tmp_path, GOOD), tokenizer, 64, length + 1, too_long=too_long)
        assert found.pairs.rejected.ended.all()
        assert found.pairs.rejected.mask.all()
    found = tokenize(data_of(tmp_path, GOOD), tokenizer, 64, length, too_long="truncate")
    assert not found.pairs.rejected.ended.any()
    with pytest.raises(
        ValueError, match=f"0 of 1 pair; skipped 1 with an answer of more than {length} t"
    ):
        tokenize(data_of(tmp_path, GOOD), tokenizer, 64, length)


def test_a_template_that_refuses_is_told(tmp_path):
    language_models = pytest.importorskip("language_models")
    from rgpo_jax.language.tokenizer import Tokenizer

    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    template = refusing + language_models.CHATML
    tokenizer = Tokenizer.load(language_models.write_tokenizer(tmp_path / "model", template))
    odd = row("a", "b", prompt=[system("s"), user("x")])
    found = tokenize(data_of(tmp_path, GOOD, odd), tokenizer)
    told = (
        "skipped 1 whose prompt the chat template refuses; the chat template cannot be rendered: no"
    )
    assert told in found.notes[0]
    with pytest.raises(ValueError, match=r"0 of 1 pair.*no system"):
        tokenize(data_of(tmp_path, odd), tokenizer)


def test_limits_and_rules_are_checked(tmp_path, tokenizer):
    data = data_of(tmp_path, GOOD)
    for limits, options, told in (
        ((0, 8), {}, "max_prompt_tokens 0"),
        ((8, 0), {}, "max_tokens 0"),
        ((64, 8), {"too_long": "x"}, "expected skip or truncate"),
    ):
        with pytest.raises(ValueError, match=told):
            tokenize(data, tokenizer, *limits, **options)
