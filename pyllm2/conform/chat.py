"""What llama2.c's run prints in a chat, `-m chat`, step by step.

An id is chosen at every position, inside a prompt too: each draw advances the generator, and an
EOS prints a line end even where it is discarded. After an EOS that ends a turn one more id is
chosen and printed. Every turn begins with BOS; the cache goes on.
"""

from __future__ import annotations

import numpy as np

from pyllm2.conform import reference
from pyllm2.conform.case import BOS, EOS, Case
from pyllm2.conform.dialects import TODAY, Dialect
from pyllm2.conform.reference import Array, Expected
from pyllm2.inference.xorshift import XorShift
from pyllm2.tokenizers.chat import render
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer

SYSTEM, USER, ASSISTANT = b"Enter system prompt (optional): ", b"User: ", b"Assistant: "


def expected(case: Case, dialect: Dialect = TODAY) -> Expected:
    """The run of a case as in `reference`, or of one that has lines of stdin: a chat.

    A chat's ids are those that print something: of the answers, and every EOS; its parts contain
    the questions too. It is `stopped` if the lines do not last, where programs differ.

    Raises TokenizerError for a text that the vocabulary of the case cannot encode.
    """
    return _chat(case, dialect) if case.lines else reference.expected(case, dialect)


def first_ids(case: Case, dialect: Dialect = TODAY) -> list[int]:
    """The ids of the first turn of a chat."""
    tokenizer = SentencePieceTokenizer(case.pieces, case.scores)
    lines = list(case.lines)
    system = lines.pop(0) if case.system is None else case.system
    user = lines.pop(0) if case.prompt is None else case.prompt
    return reference.encode(tokenizer, render(user, system), dialect)


def _chat(case: Case, dialect: Dialect) -> Expected:
    tokenizer = SentencePieceTokenizer(case.pieces, case.scores)
    temperature, topp, seed, steps = reference.settings(case)
    model, cache = reference.start(case, steps, dialect)
    coins, lines = XorShift(seed), list(case.lines)
    ids: list[int] = []
    parts: list[bytes] = []
    margins: list[float] = []
    asked = b"" if case.system is not None else SYSTEM  # printed since the last id
    waiting = first_ids(case, dialect)  # of a turn, not yet fed
    lines = lines[(case.system is None) + (case.prompt is None) :]
    asked += (USER if case.prompt is None else b"") + ASSISTANT
    rows: list[Array] = []  # logits of tokens of a prompt that is fed at once
    users_turn = stopped = False
    following = BOS
    for pos in range(steps):
        if users_turn:
            if not lines:
                stopped = True
                break
            waiting = reference.encode(tokenizer, render(lines.pop(0)), dialect)
            asked, users_turn = asked + USER + ASSISTANT, False
        if not rows:
            fed = np.array(waiting[: steps - pos] or [following])
            rows = list(model.forward(fed, pos, cache))
        token = waiting.pop(0) if waiting else following
        following, margin = reference.choose(rows.pop(0), temperature, topp, coins)
        users_turn = token == EOS
        if waiting and following != EOS:
            continue
        shown = reference.printed(tokenizer, token, following, dialect)
        ids.append(following)
        parts.append(asked + (b"\n" if following == EOS else shown))
        margins.append(float(margin))
        asked = b""
    if parts:
        parts[-1] += asked
    return Expected([BOS], ids, parts, margins, stopped)
