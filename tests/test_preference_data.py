"""Preference data: what makes a pair, what is skipped and told, what is damage, and the tokens.

Rows are written by hand; files are damaged by generated inputs.
"""

import gzip
import json
import os
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from envs.language import preferences
from envs.language.preferences import read, split_off

HELLO = "\n\nHuman: Hello\n\nAssistant:"
LONGER = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: How are you?\n\nAssistant:"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def row(chosen, rejected, **others):
    return {"chosen": chosen, "rejected": rejected, **others}


GOOD = row(HELLO + " Hi!", HELLO + " Go away.")


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(entry) + "\n" for entry in rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def pair(tmp_path, entry):
    (found,) = read(write(tmp_path / "one.jsonl", entry)).pairs
    return list(found.prompt), found.chosen, found.rejected


# The three forms.


@pytest.mark.parametrize("before", ["", "\n\n"])
def test_dialogues_are_read_up_to_their_last_answer(tmp_path, before):
    text = before + LONGER.lstrip()
    turns = [user("Hello"), assistant("Hi."), user("How are you?")]
    found = pair(tmp_path, row(text + " Well. \n", text + "\n\nBad!"))
    assert found == (turns, "Well.", "Bad!")


def test_texts_beside_a_prompt(tmp_path):
    expected = ([user("Hello")], "Hi!", "Go away.")
    assert pair(tmp_path, row(" Hi!", "Go away.\n", prompt=" Hello ")) == expected
    assert pair(tmp_path, row(" Hi!", " Go away.", prompt=HELLO)) == expected
    assert pair(tmp_path, {**GOOD, "prompt": HELLO}) == expected
    assert pair(tmp_path, {**GOOD, "prompt": None}) == expected
    assert (
        pair(tmp_path, row("Hi!", "Go away.", prompt=[user("Hello")], score=[1, None])) == expected
    )
    turns = [user("Hello"), assistant("Hi."), user("How are you?")]
    assert pair(tmp_path, row("a", "b", prompt=LONGER)) == (turns, "a", "b")


@pytest.mark.parametrize(
    "prompt", [None, "Hello", [user("Hello")], [system("Be kind"), user("Hello")]]
)
def test_conversations(tmp_path, prompt):
    shared = [system("Be kind"), user("Hello ")]
    entry = row([*shared, assistant(" Hi!")], [*shared, {**assistant("Go away."), "name": "x"}])
    expected = ([system("Be kind"), user("Hello")], "Hi!", "Go away.")
    assert pair(tmp_path, entry if prompt is None else {**entry, "prompt": prompt}) == expected


def test_conversations_that_follow_on_a_prompt(tmp_path):
    prompt = [user("Hello")]
    found = pair(tmp_path, row([assistant("Hi!")], [assistant("Go away.")], prompt=prompt))
    assert found == (prompt, "Hi!", "Go away.")
    more = [assistant("Hi."), user("How are you?")]
    entry = row([*more, assistant("Well.")], [*more, assistant("Bad!")], prompt="Hello")
    assert pair(tmp_path, entry) == ([user("Hello"), *more], "Well.", "Bad!")


# Rules: rows that are skipped, each by the first rule that it breaks.

ODD = {
    "without an answer at the end": [
        row("Hello", HELLO + " b"),
        row(HELLO + " a", "Hello"),
        row([user("Hello")], [user("Hello")]),
        row([], [user("Hello"), assistant("b")]),
    ],
    "of another prefix": [
        row(LONGER + " a", HELLO + " b"),
        row(HELLO + " a", HELLO.replace("Hello", "Hi") + " b"),
        row([user("Hello"), assistant("a")], [user("Hi"), assistant("b")]),
        row([user("Hello"), assistant("a")], [user("Hello"), assistant("b")], prompt="Hi"),
        {**GOOD, "prompt": "Hi"},
    ],
    "with an empty answer": [
        row(HELLO + " ", HELLO + " b"),
        row(HELLO + " a", HELLO),
        row("a", "\n", prompt="Hello"),
        row([user("Hello"), assistant("")], [user("Hello"), assistant("b")]),
    ],
    "with an answer that goes on with other turns": [
        row(HELLO + " a", LONGER + " b"),
        row(HELLO + " a", HELLO + " b\n\nHuman: c"),
        row(HELLO + " a\n\nHuman: c", HELLO + " b"),
    ],
    "with characters that are no text": [
        row(HELLO + " a\0", HELLO + " b"),
        row("a", "\ud83d", prompt="Hello"),
        row("a", "b", prompt="\udfff"),
    ],
    "with a role that is not system, user or assistant": [
        row("a", "b", prompt=[user("Hello"), {"role": "tool", "content": "3"}]),
    ],
    "with a prompt that the human does not begin": [
        row("\n\nAssistant: a", "\n\nAssistant: b"),
        row("Welcome" + HELLO + " a", "Welcome" + HELLO + " b"),
        row([assistant("a")], [assistant("b")]),
        row("a", "b", prompt=[system("Be kind")]),
        row("a", "b", prompt=[]),
    ],
    "with turns that do not alternate": [
        row("\n\nHuman: x" + HELLO + " a", "\n\nHuman: x" + HELLO + " b"),
        row(HELLO + " x\n\nAssistant: a", HELLO + " x\n\nAssistant: b"),
        row("a", "b", prompt=[user("x"), system("y"), user("z")]),
        row("a", "b", prompt=[user("x"), assistant("y")]),
    ],
    "with an empty turn in the prompt": [
        row("\n\nHuman: \n\nAssistant: a", "\n\nHuman: \n\nAssistant: b"),
        row("a", "b", prompt=" "),
        row("a", "b", prompt=[system(""), user("x")]),
    ],
    "with two equal answers": [
        row(HELLO + " a", HELLO + "  a\n"),
        row("a", "a", prompt="Hello"),
    ],
}


def test_each_rule_has_rows():
    assert tuple(ODD) == preferences.RULES


@pytest.mark.parametrize(
    ("rule", "entry"), [(rule, entry) for rule, entries in ODD.items() for entry in entries]
)
def test_odd_rows_are_counted_and_skipped(tmp_path, rule, entry):
    data = read(write(tmp_path / "some.jsonl", GOOD, entry, GOOD, entry))
    assert len(data.pairs) == 2
    assert data.rows == 4
    assert data.skipped == {rule: 2}
    path = tmp_path / "some.jsonl"
    assert data.describe() == [f"{path}: 4 rows: 2 pairs; skipped 2 {rule}"]


def test_description_has_all_rules_in_their_order(tmp_path):
    entries = [entry for entries in reversed(ODD.values()) for entry in entries]
    data = read(write(tmp_path / "some.jsonl.gz", GOOD, *entries))
    expected = ", ".join(f"{len(entries)} {rule}" for rule, entries in ODD.items())
    assert data.describe()[0].endswith(f"{len(entries) + 1} rows: 1 pair; skipped {expected}")


def test_no_pair_is_an_error(tmp_path):
    for content, told in ((b"", "no pair in 0 rows"), (b"\n \n", "no pair in 0 rows")):
        (tmp_path / "x.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=told):
            read(tmp_path / "x.jsonl")
    write(tmp_path / "x.jsonl", row("a", "a", prompt="b"))
    with pytest.raises(ValueError, match="no pair in 1 row; skipped 1 with two equal answers"):
        read(tmp_path / "x.jsonl")


# Sources.


def like_hh(folder, ending=".jsonl.gz"):
    """Two subsets with both splits, one that has only the first, and one without pairs."""
    for subset in ("helpful-base", "harmless-base", "helpful-online"):
        for split in ("train", "test"):
            if (subset, split) != ("helpful-online", "test"):
                entry = row(f"{subset} a", "b", prompt=split)
                write(folder / subset / (split + ending), entry)
    path = folder / "red-team-attempts" / "red_team_attempts.jsonl.gz"
    write(path, [{"transcript": "x"}])
    return folder


def chosen(data):
    return [found.chosen for found in data.pairs]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_folders_are_read_by_their_splits(tmp_path, ending):
    folder = like_hh(tmp_path / "hh", ending)
    data = read(folder)
    assert chosen(data) == ["harmless-base a", "helpful-base a", "helpful-online a"]
    assert data.describe() == [
        f"{folder}, train: 3 rows: 3 pairs",
        "left out: red-team-attempts, which has no pairs",
    ]
    data = read(folder, "test")
    assert chosen(data) == ["harmless-base a", "helpful-base a"]
    assert {found.prompt[0]["content"] for found in data.pairs} == {"test"}
    assert "left out: helpful-online, which has no test.jsonl" in data.describe()
    for source in (folder / "harmless-base", f"{folder}/harmless-base", f"{folder}:harmless-base"):
        assert chosen(read(source, "test")) == ["harmless-base a"]
    with pytest.raises(FileNotFoundError, match=r"hh: no valid.jsonl or valid.jsonl.gz"):
        read(folder, "valid")
    with pytest.raises(ValueError, match="split"):
        read(folder, "../x")


def test_a_file_packed_and_unpacked_is_read_once(tmp_path):
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "train.jsonl.gz", GOOD)
    data = read(tmp_path)
    assert len(data.pairs) == 1
    assert data.notes == ("left out: train.jsonl.gz, for train.jsonl is there",)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_repositories_are_found_in_the_cache(tmp_path, monkeypatch, variable):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hub = tmp_path if variable == "HF_HUB_CACHE" else tmp_path / "hub"
    repository = hub / "datasets--Anthropic--hh-rlhf"
    with pytest.raises(
        FileNotFoundError, match="hf download --repo-type dataset Anthropic/hh-rlhf"
    ):
        read("Anthropic/hh-rlhf/harmless-base")
    snapshot = like_hh(repository / "snapshots" / "abc")
    # As the hub's own library lays it out: files are links to blobs.
    blob = repository / "blobs" / "0123"
    blob.parent.mkdir()
    (snapshot / "helpful-base" / "train.jsonl.gz").rename(blob)
    (snapshot / "helpful-base" / "train.jsonl.gz").symlink_to("../../../blobs/0123")
    assert len(read("Anthropic/hh-rlhf").pairs) == 3
    for source in ("Anthropic/hh-rlhf/helpful-base", "Anthropic/hh-rlhf:helpful-base"):
        assert chosen(read(source)) == ["helpful-base a"]
    with pytest.raises(FileNotFoundError, match="no folder other in"):
        read("Anthropic/hh-rlhf:other")
    for source in ("Anthropic/hh-rlhf/../..", "Anthropic", "x.jsonl", "a/b.jsonl", ""):
        with pytest.raises((FileNotFoundError, ValueError)):
            read(source if source else tmp_path / "none")
    # The branch says which of two commits it is.
    write(repository / "snapshots" / "aaa" / "train.jsonl", GOOD)
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        read("Anthropic/hh-rlhf")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    assert chosen(read("Anthropic/hh-rlhf")) == ["Hi!"]
    blob.unlink()
    (repository / "refs" / "main").write_text("abc")
    with pytest.raises(FileNotFoundError, match=r"helpful-base/train\.jsonl\.gz"):
        read("Anthropic/hh-rlhf")


def test_what_may_never_end_is_refused(tmp_path):
    pipe = tmp_path / "train.jsonl"
    os.mkfifo(pipe)
    began = time.monotonic()
    for source in (pipe, tmp_path):
        with pytest.raises(ValueError, match=r"train\.jsonl: expected a plain file"):
            read(source)
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"zero\.jsonl: expected a plain file"):
        read(tmp_path / "zero.jsonl")
    for source in ("/dev/zero", write(tmp_path / "x.json", GOOD)):
        with pytest.raises(
            ValueError, match=r"expected a folder, or a file \.jsonl or \.jsonl\.gz"
        ):
            read(source)
    assert time.monotonic() - began < 5


# Damage.

GOOD_LINE = json.dumps(GOOD).encode() + b"\n"

DAMAGE = {
    "not UTF-8": (GOOD_LINE.replace(b"Hi!", b"\xff"), "not UTF-8 at byte"),
    "cut": (GOOD_LINE[:30], "not JSON"),
    "words": (b"Hello\n", "not JSON"),
    "a NUL": (GOOD_LINE.replace(b"Hi!", b"\0"), "not JSON"),
    "digits": (b'{"chosen": ' + b"1" * 10_000 + b"}", "not JSON that can be read"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "a list": (b"[1]", "expected a JSON object"),
    "nothing": (b"null", "expected a JSON object"),
    "no chosen": (b'{"rejected": "a"}', 'no "chosen"'),
    "no rejected": (b'{"chosen": "a"}', 'no "rejected"'),
    "a number": (b'{"chosen": 1, "rejected": "a"}', "expected .* two texts or as two lists"),
    "two kinds": (b'{"chosen": [], "rejected": "a"}', "expected .* two texts or as two lists"),
    "a prompt": (b'{"chosen": "a", "rejected": "b", "prompt": 3}', 'expected "prompt"'),
    "turns": (b'{"chosen": [1], "rejected": [2]}', "expected turns"),
    "content": (b'{"chosen": [{"role": "user"}], "rejected": []}', "expected turns"),
}


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_with_file_and_line(tmp_path, damage, ending):
    line, told = DAMAGE[damage]
    path = tmp_path / ("some" + ending)
    content = GOOD_LINE + b"\n" + line
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(ValueError, match=rf"some{ending}, line 3: .*{told}") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda packed: packed[:-20],
        "without its end": lambda packed: packed[:-8],
        "another checksum": lambda packed: packed[:-8] + struct.pack("<I", 1) + packed[-4:],
        "another length": lambda packed: packed[:-4] + struct.pack("<I", 1),
        "not packed": lambda packed: gzip.decompress(packed),
        "more behind it": lambda packed: packed + b"x",
        "bytes": lambda packed: packed[:20] + b"\xff\xff\xff" + packed[23:],
    }.items(),
    ids=lambda item: item[0],
)
def test_broken_gzip_is_told_with_file_and_line(tmp_path, damage):
    path = write(tmp_path / "some.jsonl.gz", *[GOOD] * 3)
    path.write_bytes(damage[1](path.read_bytes()))
    with pytest.raises(ValueError, match=r"some\.jsonl\.gz, line \d: broken gzip: ") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_two_packed_parts_a_mark_of_bytes_and_other_line_ends_are_no_damage(tmp_path):
    path = tmp_path / "some.jsonl.gz"
    first = b"\xef\xbb\xbf" + GOOD_LINE.replace(b"\n", b"\r\n")
    path.write_bytes(gzip.compress(first) + gzip.compress(GOOD_LINE))
    assert len(read(path).pairs) == 2


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:8be3\nsize 875191\n")
    with pytest.raises(ValueError, match=r"some\.jsonl\.gz: stands for a file that Git LFS"):
        read(path)


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Of a file that unpacks to 128 MiB no more is held than the longest line."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(GOOD_LINE)
        for _ in range(8):
            file.write(b" " * 2**24)
    read_bytes = []
    readline = gzip.GzipFile.readline

    def counted(self, size=-1):
        line = readline(self, size)
        read_bytes.append(len(line))
        return line

    monkeypatch.setattr(gzip.GzipFile, "readline", counted)
    with pytest.raises(ValueError, match=r"bomb\.jsonl\.gz, line 2: longer than 16 MiB"):
        read(path)
    assert read_bytes == [len(GOOD_LINE), 2**24 + 1]


CONTENT = json.dumps(GOOD).encode() + b"\n" + json.dumps(row("a", "b", prompt="c")).encode() + b"\n"


@given(data=st.data(), packed=st.booleans(), inside=st.booleans())
@example(data=None, packed=True, inside=True)
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_any_damage_is_data_or_one_line(tmp_path, data, packed, inside):
    """Bytes are replaced, put in and taken out, before the content is packed or after."""

    def damaged(content):
        content = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3)) if data else 0):
            first = data.draw(st.integers(0, max(0, len(content) - 1)))
            size = data.draw(st.sampled_from([0, 1, 1, 2, 40, 10_000]))
            content[first : first + size] = data.draw(st.binary(max_size=3))
        return bytes(content)

    content = damaged(CONTENT) if inside else CONTENT
    content = gzip.compress(content, mtime=0) if packed else content
    path = tmp_path / ("some.jsonl.gz" if packed else "some.jsonl")
    path.write_bytes(content if inside else damaged(content))
    began = time.monotonic()
    try:
        found = read(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert ", line " in str(error) or "no pair in" in str(error)
    else:
        assert found.rows == len(found.pairs) + sum(found.skipped.values())
        assert all(isinstance(line, str) for line in found.describe())
    assert time.monotonic() - began < 5


JSON = st.recursive(
    st.sampled_from([None, True, 3, "", "a", HELLO + " a", "\0", "\ud800", [], {}])
    | st.sampled_from([user("x"), assistant("y"), system("z"), {"role": 1}]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@given(entry=st.fixed_dictionaries({"chosen": JSON, "rejected": JSON}, optional={"prompt": JSON}))
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_any_row_is_a_pair_or_odd_or_one_line(tmp_path, entry):
    try:
        data = read(write(tmp_path / "some.jsonl", GOOD, entry))
    except ValueError as error:
        assert "some.jsonl, line 2: " in str(error)
        assert "\n" not in str(error)
        return
    assert len(data.pairs) + sum(data.skipped.values()) == 2
    for found in data.pairs:
        roles = [turn["role"] for turn in found.prompt if turn["role"] != "system"]
        assert roles[::2] == ["user"] * (len(roles) // 2 + 1)
        assert found.chosen != found.rejected


# What is held out.


def many(tmp_path, number=200, prompts=150):
    rows = [row(f"a{i}", f"b{i}", prompt=f"p{i % prompts}") for i in range(number)]
    return read(write(tmp_path / "many.jsonl", *rows))


def test_what_is_held_out_shares_no_prompt_and_is_the_same_each_time(tmp_path):
    data = many(tmp_path)
    kept, held = split_off(data, 0.1, seed=3)
    assert sorted(kept.pairs + held.pairs, key=repr) == sorted(data.pairs, key=repr)
    assert 20 <= len(held.pairs) <= 21  # a prompt has two pairs at most
    assert not {repr(p.prompt) for p in kept.pairs} & {repr(p.prompt) for p in held.pairs}
    order = {found: i for i, found in enumerate(map(repr, data.pairs))}
    for part in (kept, held):
        places = [order[repr(found)] for found in part.pairs]
        assert places == sorted(places)
    assert split_off(data, 0.1, seed=3) == (kept, held)
    assert split_off(data, 0.1, seed=4)[1].pairs != held.pairs
    # The order of rows does not matter.
    turned = data._replace(pairs=data.pairs[::-1])
    assert split_off(turned, 0.1, seed=3)[1].pairs == held.pairs[::-1]
    number = len(held.pairs)
    assert held.describe()[1] == f"{number} pairs of 200 held out (by prompts, seed 3)"
    assert kept.describe()[0] == data.describe()[0]


def test_either_part_has_a_prompt(tmp_path):
    data = many(tmp_path, number=3, prompts=2)
    for share in (1e-9, 1 - 1e-9):
        kept, held = split_off(data, share, seed=0)
        assert kept.pairs
        assert held.pairs
    for share in (0, 1, -1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            split_off(data, share, seed=0)
    with pytest.raises(ValueError, match="one prompt"):
        split_off(many(tmp_path, prompts=1), 0.5, seed=0)


# Tokens.

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
