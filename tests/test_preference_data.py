"""Preference data: what makes a pair, what is skipped and told, and what is held out."""

import os
import time

import pytest
from preference_rows import GOOD, HELLO, LONGER, assistant, row, system, user, write

from envs.language import preferences
from envs.language.preferences import read, split_off


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
