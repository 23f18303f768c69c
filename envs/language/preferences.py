"""Preference data from JSON lines: prompts, and two answers of which one was preferred.

Each row is an object in one of three forms:

- "chosen" and "rejected" as texts of dialogues, "\\n\\nHuman: ...\\n\\nAssistant: ...", that end on
  what the assistant said (Anthropic's HH-RLHF). The prompt is `chosen` up to its last
  "\\n\\nAssistant:", and `rejected` must begin with the same.
- "prompt", "chosen" and "rejected" as texts. The prompt is what the user said, or such a dialogue.
- "chosen" and "rejected" as lists of turns {"role", "content"}, the last of which are the answers
  and the others the same; or as what follows on a "prompt", which is a text or such a list.

A row that has the form but makes no pair is skipped and counted under the first of these rules that
it breaks, in this order (`RULES`):

1. Both end on what the assistant said.
2. `rejected` begins with the prompt of `chosen`; a "prompt" beside turns is part of them.
3. Neither answer is empty, white space aside.
4. In a dialogue, an answer is one turn: nobody speaks after it.
5. All characters are text: no NUL, and no half of a surrogate pair, which JSON can escape.
6. Roles are system, user and assistant.
7. The human begins; turns may have a system turn before.
8. Human and assistant alternate, and the prompt ends with the human.
9. No turn of the prompt is empty.
10. The answers differ.

By rules 1 to 3 alone, the 2,312 rows of HH's harmless-base/test make 2,304 pairs; by all, 2,299:
one answer goes on with other turns, and in 4 prompts the assistant speaks twice.

A line that cannot be read at all is an error, which names file and line.
"""

import codecs
import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from rgpo_jax.language.tokenizer import Message
from rgpo_jax.language.weights import hub_cache

_LONGEST = 16 * 2**20  # bytes of a line; those of HH-RLHF have a few thousand
_POINTER = b"version https://git-lfs"  # how a file begins that Git has left elsewhere
_NO_PAIRS = "red-team-attempts"  # of HH-RLHF: dialogues that nobody compared
_ENDINGS = (".jsonl", ".jsonl.gz")
_NAME = r"\w[\w.-]*"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})((?:[:/]{_NAME})*)")

_ANSWER = "\n\nAssistant:"
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

RULES = (
    _NO_ANSWER := "without an answer at the end",
    _PREFIX := "of another prefix",
    _EMPTY_ANSWER := "with an empty answer",
    _FURTHER_TURN := "with an answer that goes on with other turns",
    _CHARACTERS := "with characters that are no text",
    _OTHER_ROLE := "with a role that is not system, user or assistant",
    _NOT_HUMAN := "with a prompt that the human does not begin",
    _ALTERNATE := "with turns that do not alternate",
    _EMPTY_TURN := "with an empty turn in the prompt",
    _SAME := "with two equal answers",
)


class Pair(NamedTuple):
    """Two answers to a prompt.

    Attributes:
      prompt: turns {"role", "content"}, as `Tokenizer.chat` takes them; the user's is the last.
      chosen: the answer that was preferred, without white space around it, as are all texts.
      rejected: the other.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


class PairData(NamedTuple):
    """What was read.

    Attributes:
      pairs: in the order of files and lines.
      source: where they are from, for messages.
      rows: how many were read, all splits of `split_off` together.
      skipped: rule of `RULES` -> rows that broke it; without rules that none broke.
      notes: what else a person should know, in lines.
    """

    pairs: tuple[Pair, ...]
    source: str
    rows: int
    skipped: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Lines to print: how many rows were read, and what became of them."""
        usable = self.rows - sum(self.skipped.values())
        first = f"{self.source}: {count(self.rows, 'row')}: {count(usable, 'pair')}"
        return [first + skipped_by(self.skipped), *self.notes]


def count(number: int, noun: str) -> str:
    """Such as "2,304 pairs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def skipped_by(rules: Mapping[str, int]) -> str:
    """Such as "; skipped 5 of another prefix, 3 with an empty answer"; "" if there are none."""
    told = ", ".join(f"{number:,} {rule}" for rule, number in rules.items() if number)
    return told and f"; skipped {told}"


def read(source: str | Path, split: str = "train") -> PairData:
    """Reads pairs from this machine; nothing is fetched.

    Args:
      source: a file, *.jsonl or *.jsonl.gz, which is its own split; a folder with such files,
        named by their splits, in it or in folders in it; or a data set's repository in Hugging
        Face's cache (see `weights.find`), such as "Anthropic/hh-rlhf". Of the latter two one folder
        can be named: "Anthropic/hh-rlhf/harmless-base" or "Anthropic/hh-rlhf:harmless-base".
      split: which files of a folder: "train", "test".

    Raises:
      FileNotFoundError: there is no such source, or no such split in it.
      OSError: a file cannot be read.
      ValueError: one is damaged, is no plain file, or is of another kind, or there is no pair; one
        line has file and line.
    """
    if not re.fullmatch(_NAME, split):
        raise ValueError(f"split {split!r}: expected a name, such as train or test")
    path = find(source)
    notes: tuple[str, ...] = ()
    name = str(source)
    if path.is_dir():
        files, notes = _files(path, split)
        name = f"{source}, {split}"
    elif path.name.endswith(_ENDINGS):
        files = [path]
    else:
        raise ValueError(f"{path}: expected a folder, or a file {' or '.join(_ENDINGS)}")
    pairs, rows, skipped = [], 0, Counter[str]()
    for file in files:
        for number, line in _lines(file):
            if not line.strip():
                continue
            rows += 1
            try:
                pairs.append(_pair(_parse(line)))
            except _Odd as odd:
                skipped[str(odd)] += 1
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    by_rule = {rule: skipped[rule] for rule in RULES if skipped[rule]}
    if not pairs:
        raise ValueError(f"{name}: no pair in {count(rows, 'row')}{skipped_by(by_rule)}")
    return PairData(tuple(pairs), name, rows, by_rule, notes)


def split_off(data: PairData, share: float, seed: int) -> tuple[PairData, PairData]:
    """Holds out a share of the pairs: (what is left, what is held out), both in the old order.

    Pairs of one prompt stay together, so that none is trained on and held out. Which prompts are
    held out is told by a hash of seed and prompt, and not by their order. One prompt at least goes
    to either part.

    Raises:
      ValueError: the share is not between 0 and 1, or there is only one prompt.
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share}: expected a number between 0 and 1, both excluded")

    def prompt_of(pair: Pair) -> bytes:
        turns = [(turn["role"], turn["content"]) for turn in pair.prompt]
        return hashlib.sha256(json.dumps([seed, turns]).encode()).digest()

    prompts = [prompt_of(pair) for pair in data.pairs]
    sizes = Counter(prompts)
    if len(sizes) < 2:
        raise ValueError(f"{data.source}: one prompt, of which none can be held out")
    held_out, number = set[bytes](), 0
    for prompt in sorted(sizes)[:-1]:
        held_out.add(prompt)
        number += sizes[prompt]
        if number >= share * len(prompts):
            break

    def part(held: bool, what: str) -> PairData:
        rows = zip(data.pairs, prompts, strict=True)
        pairs = tuple(pair for pair, prompt in rows if (prompt in held_out) == held)
        note = f"{count(len(pairs), 'pair')} of {len(prompts):,} {what} (by prompts, seed {seed})"
        return data._replace(pairs=pairs, notes=(*data.notes, note))

    return part(False, "kept"), part(True, "held out")


def find(source: str | Path) -> Path:
    """Where a source of `read` is: a file or a folder.

    Raises:
      FileNotFoundError: it is not there; the message says where it was looked for.
    """
    path = Path(source).expanduser()
    if _exists(path):
        return path
    folder, _, part = str(source).rpartition(":")
    if folder and re.fullmatch(rf"{_NAME}(/{_NAME})*", part):
        inside = Path(folder).expanduser() / part
        if _exists(inside):
            return inside
    match = _REPOSITORY.fullmatch(str(source))
    if not match or path.name.endswith(_ENDINGS):
        raise FileNotFoundError(f"{source}: no such file or folder")
    repository, inner = match[1], match[2].replace(":", "/").strip("/")
    cache = hub_cache() / ("datasets--" + repository.replace("/", "--"))
    snapshot = _snapshot(cache)
    if snapshot is None:
        raise FileNotFoundError(
            f"{repository}: no such file or folder, and not in the cache {cache}; to get it: "
            f"hf download --repo-type dataset {repository}"
        )
    if not (snapshot / inner).is_dir():
        raise FileNotFoundError(f"{source}: no folder {inner} in {snapshot}")
    return snapshot / inner


def _exists(path: Path) -> bool:
    """Also as a link that leads nowhere, which is to be an error of its own."""
    return path.exists() or path.is_symlink()


def _snapshot(cache: Path) -> Path | None:
    """The files of a repository's main branch; those of its only commit, if that has no branch."""
    main = cache / "refs" / "main"
    if main.is_file():
        commit = main.read_text(errors="replace").strip()
        snapshot = cache / "snapshots" / commit
        return snapshot if commit and snapshot.is_dir() else None
    commits = sorted(path for path in (cache / "snapshots").glob("*") if path.is_dir())
    return commits[0] if len(commits) == 1 else None


def _files(folder: Path, split: str) -> tuple[list[Path], tuple[str, ...]]:
    """A split's files in a folder and the folders in it, sorted; and notes on what is left out."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    files, notes = [], []
    for place in [folder, *inner]:
        if place != folder and place.name == _NO_PAIRS:
            notes.append(f"left out: {place.name}, which has no pairs")
            continue
        found = [place / (split + ending) for ending in _ENDINGS]
        found = [file for file in found if _exists(file)]
        files += found[:1]
        if len(found) > 1:
            notes.append(f"left out: {found[1].relative_to(folder)}, for {found[0].name} is there")
        elif not found and place != folder and any(place.glob("*.jsonl*")):
            notes.append(f"left out: {place.name}, which has no {split}.jsonl")
    if not files:
        names = " or ".join(split + ending for ending in _ENDINGS)
        raise FileNotFoundError(f"{folder}: no {names}, neither in it nor in folders in it")
    return files, tuple(notes)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file and their numbers, one at a time: a small file can unpack to anything."""
    with _open(path) as plain:
        if plain.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: stands for a file that Git LFS has not fetched")
        plain.seek(0)
        file: Any = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(_LONGEST + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path}, line {number}: broken gzip: {error}") from None
            if not line:
                return
            if len(line) > _LONGEST:
                raise ValueError(f"{path}, line {number}: longer than {_LONGEST // 2**20} MiB")
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _open(path: Path) -> IO[bytes]:
    """Opens a file or what a link leads to, as in a cache; not what may never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: expected a plain file")
    return os.fdopen(descriptor, "rb")


class _Odd(Exception):
    """A row that makes no pair, by the rule which it breaks."""


def _parse(line: bytes) -> Any:
    """The JSON value of a line; ValueError says what is wrong, but not where."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"not JSON that can be read: {error}") from None


def _pair(row: Any) -> Pair:
    """The pair of a row; ValueError if it has another form, `_Odd` if it breaks a rule."""
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    for key in ("chosen", "rejected"):
        if key not in row:
            raise ValueError(f'no "{key}"')
    answers = (row["chosen"], row["rejected"])
    prompt = None if row.get("prompt") is None else _prompt(row["prompt"])
    if all(isinstance(answer, list) for answer in answers):
        return _checked(*_of_conversations(prompt, *(_turns(answer) for answer in answers)))
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError('expected "chosen" and "rejected" as two texts or as two lists of turns')
    if prompt is None or all(answer.startswith("\n\nHuman:") for answer in answers):
        return _checked(*_of_dialogues(prompt, *answers))
    return _checked(prompt, *answers)


def _prompt(content: Any) -> list[Message]:
    """The turns of a "prompt"."""
    if isinstance(content, list):
        return _turns(content)
    if not isinstance(content, str):
        raise ValueError('expected "prompt" as a text or as a list of turns')
    if not content.startswith("\n\nHuman:"):
        return [{"role": "user", "content": content.strip()}]
    return _dialogue(content.rstrip().removesuffix(_ANSWER))


def _turns(content: Sequence[Any]) -> list[Message]:
    """A list of turns, of which nothing else is kept than who says what."""
    turns: list[Message] = []
    for turn in content:
        role, said = (turn.get(k) if isinstance(turn, dict) else None for k in ("role", "content"))
        if not isinstance(role, str) or not isinstance(said, str):
            raise ValueError('expected turns with a "role" and a "content", both texts')
        turns.append({"role": role, "content": said.strip()})
    return turns


def _dialogue(text: str) -> list[Message]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *parts = _SPEAKER.split(text)
    if before.strip() or not parts:
        raise _Odd(_NOT_HUMAN)
    return [
        {"role": _ROLES[name], "content": said.strip()}
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _of_dialogues(
    prompt: list[Message] | None, chosen: str, rejected: str
) -> tuple[list[Message], str, str]:
    shared, answer, first = chosen.rpartition(_ANSWER)
    if not answer or _ANSWER not in rejected:
        raise _Odd(_NO_ANSWER)
    if not rejected.startswith(shared + answer):
        raise _Odd(_PREFIX)
    second = rejected.removeprefix(shared + answer)
    if not first.strip() or not second.strip():
        raise _Odd(_EMPTY_ANSWER)
    if any(name in side for name in (_ANSWER, "\n\nHuman:") for side in (first, second)):
        raise _Odd(_FURTHER_TURN)
    turns = _dialogue(shared)
    if prompt is not None and not _is_part(prompt, turns):
        raise _Odd(_PREFIX)
    return turns, first, second


def _of_conversations(
    prompt: list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    before = prompt or []

    def whole(turns: list[Message]) -> list[Message]:
        return before + turns if turns and turns[0]["role"] == "assistant" else turns

    chosen, rejected = whole(chosen), whole(rejected)
    if any(not turns or turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        raise _Odd(_NO_ANSWER)
    (*turns, first), (*others, second) = chosen, rejected
    if turns != others or not _is_part(before, turns):
        raise _Odd(_PREFIX)
    return turns, first["content"], second["content"]


def _is_part(prompt: list[Message], turns: list[Message]) -> bool:
    """Whether a prompt that stands apart begins or ends the turns, a system turn aside."""
    number = len(prompt)
    system = int(bool(turns) and turns[0]["role"] == "system")
    starts = (0, system, max(0, len(turns) - number))
    return any(turns[start : start + number] == prompt for start in starts)


def _checked(prompt: list[Message], chosen: str, rejected: str) -> Pair:
    """The pair, if it keeps the rules that are the same for all forms."""
    chosen, rejected = chosen.strip(), rejected.strip()
    if not chosen or not rejected:
        raise _Odd(_EMPTY_ANSWER)
    if not all(_is_text(text) for text in (chosen, rejected, *(t["content"] for t in prompt))):
        raise _Odd(_CHARACTERS)
    roles = [turn["role"] for turn in prompt]
    if not {"system", "user", "assistant"}.issuperset(roles):
        raise _Odd(_OTHER_ROLE)
    if roles[:1] == ["system"]:
        del roles[0]
    if roles[:1] != ["user"]:
        raise _Odd(_NOT_HUMAN)
    if roles[::2] != ["user"] * len(roles[::2]) or roles[1::2] != ["assistant"] * (len(roles) // 2):
        raise _Odd(_ALTERNATE)
    if len(roles) % 2 == 0:
        raise _Odd(_ALTERNATE)
    if not all(turn["content"] for turn in prompt):
        raise _Odd(_EMPTY_TURN)
    if chosen == rejected:
        raise _Odd(_SAME)
    return Pair(tuple(prompt), chosen, rejected)


def _is_text(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
