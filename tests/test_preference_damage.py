"""Damaged preference data, by hand and by generated inputs: data, or one line that says where."""

import gzip
import json
import struct
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from preference_rows import GOOD, HELLO, assistant, row, system, user, write

from envs.language.preferences import read

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
