"""A model's most probable tokens against the text that another program prints for it.

The program's ids are not known: they are read off its text, piece by piece. Where the text goes
another way, the margin of its token says whether that is a tie that rounding may decide; if so,
the comparison goes on from the program's token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pyllm2.errors import TokenizerError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.original import piece_bytes, shown
from pyllm2.observe.ensemble import Ensemble
from pyllm2.observe.judge import require_bounds, wrong
from pyllm2.observe.report import Fault, Report, TokenCheck
from pyllm2.observe.runs import Prompt
from pyllm2.observe.trace import family_of
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer

MOST_TIES = 8


def compare_text(
    model: LanguageModel, prompt: Sequence[int], steps: int, text: bytes, label: str
) -> Report:
    """Compare with a greedy run of llama2.c's kind: `steps` tokens after BOS, the prompt first.

    text: what the program printed   label: of the program, in the report

    Raises TokenizerError for a vocabulary that is not llama2.c's.
    """
    require_bounds()
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise TokenizerError("a program's text is read with a vocabulary of llama2.c's kind")
    report = Report(f"{steps} tokens of {label}", [label])
    ids = list(prompt[: steps + 1])
    start = _start(tokenizer, ids, text)
    if start is None:
        says = f"{label}: the prompt is not in its text, which begins with {text[:60]!r}"
        _fault(report, label, says)
        return report
    for _ in range(MOST_TIES):
        ids = _continued(model, ids, steps)
        k, at = _first_difference(tokenizer, ids, text, start)
        if k is None:
            report.tokens.append(TokenCheck(label, None))
            return report
        check = _judged(model, tokenizer, ids, k, text[at:], label)
        if check is None:
            says = f"{label}: token {k + 1}, {ids[k + 1]}, is not in its text, which goes on with "
            _fault(report, label, says + repr(text[at : at + 40]))
            return report
        report.tokens.append(check)
        if not check.inside:
            return report
        ids = [*ids[: k + 1], check.found]
    report.notes.append(f"{MOST_TIES} ties: the rest is not compared")
    return report


def _fault(report: Report, label: str, says: str) -> None:
    report.faults.append(Fault("program", "inference", label, (), "text", wrong(says), says))


def _part(tokenizer: SentencePieceTokenizer, previous: int, token: int) -> bytes:
    return shown(piece_bytes(tokenizer, previous, token))


def _parts(tokenizer: SentencePieceTokenizer, ids: Sequence[int]) -> list[bytes]:
    return [_part(tokenizer, a, b) for a, b in pairwise(ids)]


def _start(tokenizer: SentencePieceTokenizer, ids: list[int], text: bytes) -> int | None:
    """Where the prompt begins in the text, behind whatever the program prints first."""
    at = text.find(b"".join(_parts(tokenizer, ids)))
    return at if at >= 0 else None


def _continued(model: LanguageModel, ids: list[int], steps: int) -> list[int]:
    """The ids with their most probable continuation, `steps` after the first."""
    decoder: Any = model.model
    ids, cache = list(ids), decoder.new_cache(steps + 1)
    logits = decoder.forward(np.array(ids), 0, cache, True)
    while len(ids) <= steps:
        ids.append(int(np.argmax(logits[-1])))
        if len(ids) <= steps:
            logits = decoder.forward(np.array(ids[-1:]), len(ids) - 1, cache)
    return ids


def _first_difference(
    tokenizer: SentencePieceTokenizer, ids: list[int], text: bytes, at: int
) -> tuple[int | None, int]:
    """The first step whose piece is not in the text, and where in the text that is."""
    for k, part in enumerate(_parts(tokenizer, ids)):
        if ids[k + 1] == 1:  # BOS ends a run of run.c
            return None, at
        if text[at : at + len(part)] != part:
            return k, at
        at += len(part)
    return None, at


def _judged(
    model: LanguageModel,
    tokenizer: SentencePieceTokenizer,
    ids: list[int],
    k: int,
    rest: bytes,
    label: str,
) -> TokenCheck | None:
    """The program's token after k + 1 ids: the most probable of those whose piece comes next."""
    family = family_of(model.model)
    ensemble = Ensemble(model.model, family, Prompt(ids[: k + 1], singles=0))
    value, error = ensemble.named["logits"].bound(1)
    order = np.argsort(-value[k])
    for token in map(int, order):
        part = _part(tokenizer, ids[k], token)
        if part and token != ids[k + 1] and rest.startswith(part):
            margin, allowed = float(value[k, order[0]] - value[k, token]), float(2 * error[k, 0])
            return TokenCheck(label, k, int(order[0]), token, margin, allowed, margin <= allowed)
    return None
