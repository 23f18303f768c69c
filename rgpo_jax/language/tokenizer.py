"""Text to token ids and back, by a model's own tokeniser and its own chat template.

The libraries that this needs (`tokenizers`, `jinja2`) are imported where they are first used.
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rgpo_jax.importing import install_hint

Message = Mapping[str, str]
"""A turn of a conversation: its `role` and its `content`."""

_CONTROL, _USER_DEFINED = 3, 4  # of GGUF's token types, those that are matched before any merge
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def need(module: str, extra: str) -> Any:
    """Imports an optional package; the error says which extra of this library brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: {install_hint(extra)}"
        ) from error


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader` of a file; ValueError if it is not of that format."""
    library = need("gguf", "gguf")

    class Reader(library.GGUFReader):  # type: ignore[name-defined]
        # It cuts a vocabulary from the file a hundred thousand times, and of a memory map each cut
        # is slow: an array of the same bytes is read in a third of the time.
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

    try:
        return Reader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: not a GGUF file: {error}") from None


class Vocabulary(NamedTuple):
    """What a GGUF file says of its tokeniser.

    Attributes:
      tokens: by id; bytes are written as GPT-2's printable characters.
      types: by id, GGUF's token types.
      merges: pairs of tokens, those that are merged first at the front.
      splits: name of the rule that cuts a text before the merges: "smollm", "qwen2" or "gpt-2".
      end_ids: that end an answer.
      pad_id: fills what a row is short of.
      bos: the token that begins a text, "" if there is none.
      chat_template: Jinja, if there is one.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[tuple[str, str]]
    splits: str
    end_ids: tuple[int, ...]
    pad_id: int
    bos: str
    chat_template: str | None


def read_vocabulary(path: Path, reader: Any) -> Vocabulary:
    """The tokeniser of a GGUF file.

    Args:
      path: of the file, for messages.
      reader: `gguf.GGUFReader` of it.

    Raises:
      ValueError: it is not a byte-level BPE, or an entry is missing.
    """

    def entry(key: str, default: Any = None) -> Any:
        field = reader.get_field(f"tokenizer.{key}")
        return default if field is None else field.contents()

    kind = entry("ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"{path}: tokenizer.ggml.model: expected gpt2 (byte-level BPE), found {kind}"
        )
    lists = {key: entry(f"ggml.{key}") for key in ("tokens", "token_type", "merges")}
    for key, content in lists.items():
        if content is None:
            raise ValueError(f"{path}: tokenizer.ggml.{key}: missing")
    tokens = lists["tokens"]
    ends = (entry("ggml.eos_token_id"), entry("ggml.eot_token_id"))
    end_ids = tuple(dict.fromkeys(int(end) for end in ends if end is not None))
    bos_id = entry("ggml.bos_token_id")
    return Vocabulary(
        tokens=tokens,
        types=lists["token_type"],
        merges=[(left, right) for left, _, right in (m.partition(" ") for m in lists["merges"])],
        splits=entry("ggml.pre", "gpt-2"),
        end_ids=end_ids,
        pad_id=int(entry("ggml.padding_token_id", end_ids[0] if end_ids else 0)),
        bos="" if bos_id is None else tokens[bos_id],
        chat_template=entry("chat_template"),
    )


def special_ids(folder: Path) -> tuple[tuple[int, ...], int]:
    """The ids that end an answer, and the one that pads, of a folder in Hugging Face's layout.

    What ends an answer is told by generation_config.json, else by config.json; the tokeniser's
    own end token is added. A model that names no padding pads with its first end.
    """
    generation, model = _read(folder / "generation_config.json"), _read(folder / "config.json")
    named = _read(folder / "tokenizer_config.json")
    added = {
        token["content"]: token["id"]
        for token in _read(folder / "tokenizer.json").get("added_tokens", ())
    }

    def first(key: str) -> Any:
        return generation.get(key) if generation.get(key) is not None else model.get(key)

    ends = first("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    ends = [*ends, added.get(_text(named.get("eos_token")))]
    end_ids = tuple(dict.fromkeys(int(end) for end in ends if end is not None))
    pads = (added.get(_text(named.get("pad_token"))), first("pad_token_id"), *end_ids, 0)
    return end_ids, next(int(pad) for pad in pads if pad is not None)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _text(token: Any) -> str:
    """A token's text: a string, or an object that holds it."""
    return (token.get("content") if isinstance(token, dict) else token) or ""


class Tokenizer:
    """Turns text and conversations into token ids, and ids into text.

    Attributes:
      end_ids: that end an answer.
      pad_id: fills what a row is short of; often also an end, so that masks never go by it.
      vocab_size: how many tokens it knows; the model may have room for more.
      chat_template: Jinja; None if the model brings none.
    """

    def __init__(
        self,
        backend: Any,
        end_ids: Sequence[int],
        pad_id: int,
        chat_template: str | None = None,
        tokens: Mapping[str, str] | None = None,
    ):
        """Takes what `load` finds.

        Args:
          backend: `tokenizers.Tokenizer`.
          end_ids: that end an answer.
          pad_id: fills what a row is short of.
          chat_template: Jinja, if there is one.
          tokens: what a template may name: "bos_token", "eos_token", "pad_token" -> text.
        """
        self._backend = backend
        self.end_ids = tuple(end_ids)
        self.pad_id = pad_id
        self.chat_template = chat_template
        self._tokens = dict(tokens or {})
        self._render: Any = None  # the compiled template

    @classmethod
    def load(cls, source: Path | str | Vocabulary) -> "Tokenizer":
        """Builds it from a folder with tokenizer.json, a .gguf file, or what one of these said.

        Raises:
          ImportError: a library is missing; the message says how to install it.
          ValueError: the file is not there or not of a kind that can be read.
        """
        if isinstance(source, Vocabulary):
            return cls._from_vocabulary(source)
        path = Path(source)
        if path.suffix == ".gguf":
            return cls._from_vocabulary(read_vocabulary(path, open_gguf(path)))
        library = need("tokenizers", "align")
        file = path / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{path}: no tokenizer.json")
        try:
            backend = library.Tokenizer.from_file(str(file))
        except Exception as error:  # of no narrower class
            raise ValueError(f"{file}: not a tokeniser: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        end_ids, pad_id = special_ids(path)
        config = _read(path / "tokenizer_config.json")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: _text(config[name]) for name in names if config.get(name)}
        return cls(backend, end_ids, pad_id, _template(path, config), tokens)

    @classmethod
    def _from_vocabulary(cls, vocabulary: Vocabulary) -> "Tokenizer":
        library = need("tokenizers", "align")
        ids = {token: i for i, token in enumerate(vocabulary.tokens)}
        backend = library.Tokenizer(library.models.BPE(ids, list(vocabulary.merges)))
        splitters = library.pre_tokenizers
        level = splitters.ByteLevel(add_prefix_space=False, use_regex=True)
        if vocabulary.splits == "smollm":
            level = splitters.Sequence([splitters.Digits(individual_digits=True), level])
        elif vocabulary.splits == "qwen2":
            split = splitters.Split(library.Regex(_QWEN2), behavior="isolated")
            level = splitters.Sequence(
                [split, splitters.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
            backend.normalizer = library.normalizers.NFC()
        elif vocabulary.splits != "gpt-2":
            raise ValueError(
                f"tokenizer.ggml.pre: expected smollm, qwen2 or gpt-2, found {vocabulary.splits}"
            )
        backend.pre_tokenizer = level
        backend.decoder = library.decoders.ByteLevel()
        for kind, add in (
            (_CONTROL, backend.add_special_tokens),
            (_USER_DEFINED, backend.add_tokens),
        ):
            pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
            add([library.AddedToken(t, normalized=False) for t, of in pairs if of == kind])
        tokens = {
            "bos_token": vocabulary.bos,
            "pad_token": vocabulary.tokens[vocabulary.pad_id],
            "eos_token": vocabulary.tokens[vocabulary.end_ids[0]] if vocabulary.end_ids else "",
        }
        template = vocabulary.chat_template
        return cls(backend, vocabulary.end_ids, vocabulary.pad_id, template, tokens)

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows."""
        size: int = self._backend.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def control_ids(self) -> set[int]:
        """The ids of control tokens, which mean something else than their characters."""
        added = self._backend.get_added_tokens_decoder()
        return {number for number, token in added.items() if token.special}

    def encode(self, text: str, control: bool = True) -> list[int]:
        """The ids of a text; none is put before or after it.

        Args:
          text: any.
          control: recognise control tokens in it: a text from outside can then hold the token that
            ends a turn. Else they are encoded as the characters that they are made of.
        """
        before = self._backend.encode_special_tokens
        self._backend.encode_special_tokens = not control
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        finally:
            self._backend.encode_special_tokens = before
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; of control tokens as well if `skip_special` is false."""
        numbers = [int(i) for i in ids]
        text: str = self._backend.decode(numbers, skip_special_tokens=skip_special)
        return text

    def chat(self, prompt: str | Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        The model's own template says how turns are written. Without one they are written as in
        "\\n\\nHuman: Hello\\n\\nAssistant:", a system turn as bare text before them.

        Args:
          prompt: what the user says, or turns {"role", "content"}: "system", "user", "assistant".

        Raises:
          ValueError: there is no turn, one is not of that form, or the template refuses it.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not messages:
            raise ValueError("a conversation needs at least one turn")
        for i, message in enumerate(messages):
            for key in ("role", "content"):
                if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                    raise ValueError(f"turn {i}: expected a text under {key}")
        if self.chat_template is None:
            # As a plain text, which a model may want begun by a token.
            text = _plain(messages)
            ids: list[int] = self._backend.encode(text, add_special_tokens=True).ids
            return ids
        jinja2 = need("jinja2", "align")
        try:
            if self._render is None:
                self._render = _environment().from_string(self.chat_template).render
            text = self._render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template cannot be rendered: {error}") from error
        return self.encode(text)

    def pad_left(
        self, rows: Sequence[Sequence[int]], length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids as one array, so that all of them end at its end.

        Args:
          rows: B rows of one id or more.
          length: P; by default that of the longest. Each P is a program to compile.

        Returns:
          tokens int32 [B, P], padded by `pad_id`; mask bool [B, P], true where a row's own ids are.

        Raises:
          ValueError: there is no row, one is empty, or one is longer than `length`.
        """
        lengths = [len(row) for row in rows]
        if not lengths or not min(lengths):
            raise ValueError("expected one row or more, and one id or more in each")
        width = max(lengths) if length is None else length
        if max(lengths) > width:
            row = lengths.index(max(lengths))
            raise ValueError(f"row {row} has {lengths[row]} ids, and {width} at most are asked for")
        tokens = np.full((len(rows), width), self.pad_id, np.int32)
        for row, ids in enumerate(rows):
            tokens[row, width - len(ids) :] = ids
        return tokens, np.arange(width) >= width - np.array(lengths)[:, None]

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, from which it can be loaded again."""
        self._backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            # The generic one: it takes tokenizer.json as it is.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{name: token for name, token in self._tokens.items() if token},
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """A folder's chat template: a file of its own, or an entry of tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
        if template is None:
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: chat_template: none is named default"
            )
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: chat_template: expected a text")
    return template


def _plain(messages: Sequence[Message]) -> str:
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    for i, message in enumerate(messages):
        if message["role"] not in names:
            raise ValueError(f"turn {i}: role: expected one of {', '.join(names)}")
    turns = [names[message["role"]] + message["content"] for message in messages]
    return "".join(turns) + "\n\nAssistant:"


def _environment() -> Any:
    """Where templates are rendered: as Hugging Face does, and out of reach of anything else.

    `strftime_now` is left undefined, so that a prompt does not change from one day to the next;
    templates that ask for it check whether it is there.
    """
    sandbox = need("jinja2.sandbox", "align")
    jinja2 = need("jinja2", "align")

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment
