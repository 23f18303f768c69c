"""Preference data as tokens of a model, under its own chat template."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from envs.language.preferences import Pair, PairData, count, skipped_by
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.decoder_policy import Prompts
from rgpo_jax.language.pairs import Pairs
from rgpo_jax.language.tokenizer import Message, Tokenizer

_MULTIPLE = 8  # of tokens, to which prompts are padded: other prompts find the same program

_REFUSED = "whose prompt the chat template refuses"
_CONTROL = "whose prompt holds a control token"
_CONTROL_ANSWER = "whose answer holds a control token"
_SAME = "whose answers are the same tokens"


class TokenPairs(NamedTuple):
    """Pairs as tokens.

    Attributes:
      pairs: n of them, with `Prompts`; the first answer of each is the preferred one.
      texts: the same pairs as texts [n], with prompts as they were shortened; answers are whole.
      notes: lines to print: how many there are, and what was skipped or cut.
    """

    pairs: Pairs
    texts: tuple[Pair, ...]
    notes: tuple[str, ...]


def tokenize(
    data: PairData,
    tokenizer: Tokenizer,
    end_id: int,
    pad_id: int,
    max_prompt_tokens: int,
    max_tokens: int,
    too_long: Literal["skip", "truncate"] = "skip",
) -> TokenPairs:
    """Writes pairs as the model reads them, and as it would answer.

    An answer is followed by the end token. Where a model has no chat template, its turns are
    "Assistant: ...", and an answer begins with the space.

    Texts are somebody else's, and cannot end an answer or begin a turn: what looks like a control
    token in an answer is encoded as the characters that it is made of. A template cannot tell
    them apart in a prompt, so that such a pair is skipped and counted; so is one with an end token
    in an answer that the tokeniser takes for any other token. Pairs are skipped as well whose
    prompts the template refuses, or whose answers come to the same tokens.

    Args:
      data: texts.
      tokenizer: of the model.
      end_id: the token that follows an answer.
      pad_id: fills what an answer is short of; may be `end_id`, for masks go by positions.
      max_prompt_tokens: of the longest prompt, template included.
      max_tokens: T, of the longest answer, end included.
      too_long: what becomes of a pair with more: it is skipped ("skip"). Or ("truncate") its
        answers are cut at T tokens, and have no end then; and its prompt loses its oldest turns,
        two at a time so that the human begins, a system turn aside, but never the last: if that
        is too long, the pair is skipped.

    Returns:
      n pairs with prompts [n, P], P the longest rounded up to a multiple of 8, and answers [n, T].

    Raises:
      ImportError: a library is missing; the message says how to install it.
      ValueError: no pair is left, or a limit is below 1.
    """
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_tokens", max_tokens)):
        if limit < 1:
            raise ValueError(f"{name} {limit}: expected at least 1")
    if too_long not in ("skip", "truncate"):
        raise ValueError(f"too_long {too_long!r}: expected skip or truncate")
    control_ids = frozenset({end_id, *tokenizer.end_ids, *tokenizer.control_ids})
    cut = too_long == "truncate"
    form = _Form(tokenizer, end_id, control_ids, max_prompt_tokens, max_tokens, cut)
    texts, prompts, answers = [], [], []
    skipped, details, shorter = Counter[str](), dict[str, str](), 0
    for pair in data.pairs:
        try:
            turns, prompt = form.prompt(pair.prompt)
            both = (form.answer(pair.chosen), form.answer(pair.rejected))
            if both[0] == both[1]:
                raise _Odd(_SAME)
        except _Odd as odd:
            skipped[odd.rule] += 1
            details.setdefault(odd.rule, odd.detail)
            continue
        shorter += len(turns) < len(pair.prompt)
        texts.append(pair._replace(prompt=turns))
        prompts.append(prompt)
        answers.append(both)
    told = f"as tokens: {len(texts):,} of {count(len(data.pairs), 'pair')}"
    told += skipped_by(dict(sorted(skipped.items())))
    told += "".join(f"; {detail}" for detail in details.values() if detail)
    if not texts:
        raise ValueError(f"{data.source}: {told}")

    tokens, mask = tokenizer.pad_left(prompts, _rounded(max(map(len, prompts))))
    number = len(texts)
    pairs = Pairs(
        Prompts(jnp.asarray(tokens), jnp.asarray(mask)),
        _answers([first for first, _ in answers], end_id, pad_id, max_tokens),
        _answers([second for _, second in answers], end_id, pad_id, max_tokens),
        jnp.ones(number, jnp.float32),
        jnp.zeros(number, jnp.float32),
        jnp.ones(number, bool),
    )
    notes = [told]
    if shorter:
        notes.append(f"{count(shorter, 'prompt')} without the oldest turns")
    if open_ends := sum(row[-1] != end_id for both in answers for row in both):
        notes.append(f"{count(open_ends, 'answer')} cut at {count(max_tokens, 'token')}")
    return TokenPairs(pairs, tuple(texts), tuple(notes))


class _Odd(Exception):
    """A pair that is skipped: the rule, and what else is to be said of the first such pair."""

    def __init__(self, rule: str, detail: str = "") -> None:
        super().__init__(rule)
        self.rule, self.detail = rule, detail


class _Form(NamedTuple):
    """How texts become tokens; its methods raise `_Odd`."""

    tokenizer: Tokenizer
    end_id: int
    control_ids: frozenset[int]
    max_prompt_tokens: int
    max_tokens: int
    cut: bool

    def prompt(self, turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[int]]:
        """The turns that are kept, and their ids."""
        content = "\n".join(turn["content"] for turn in turns)
        if not self.control_ids.isdisjoint(self.tokenizer.encode(content)):
            raise _Odd(_CONTROL)
        system = int(turns[0]["role"] == "system")
        for first in range(system, len(turns) if self.cut else system + 1, 2):
            kept = turns if first == system else (*turns[:system], *turns[first:])
            try:
                ids = self.tokenizer.chat(kept)
            except ValueError as error:
                raise _Odd(_REFUSED, str(error).partition("\n")[0]) from None
            if len(ids) <= self.max_prompt_tokens:
                return kept, ids
        raise _Odd(f"with a prompt of more than {count(self.max_prompt_tokens, 'token')}")

    def answer(self, text: str) -> list[int]:
        """Its ids, the end's included, where they are not cut."""
        space = " " if self.tokenizer.chat_template is None else ""
        ids = self.tokenizer.encode(space + text, control=False)
        if not self.control_ids.isdisjoint(ids):
            raise _Odd(_CONTROL_ANSWER)
        if not self.cut and len(ids) >= self.max_tokens:
            raise _Odd(f"with an answer of more than {count(self.max_tokens, 'token')}")
        return [*ids, self.end_id][: self.max_tokens]


def _rounded(length: int) -> int:
    return length + -length % _MULTIPLE


def _answers(rows: Sequence[list[int]], end_id: int, pad_id: int, width: int) -> Answers:
    """Rows of ids, at most `width`, as arrays [n, width]; an end is at most the last of a row."""
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    mask = np.arange(width) < np.array([len(ids) for ids in rows])[:, None]
    ended = np.array([ids[-1] == end_id for ids in rows])
    log_prob = jnp.zeros(tokens.shape, jnp.float32)
    return Answers(jnp.asarray(tokens), jnp.asarray(mask), log_prob, jnp.asarray(ended))
