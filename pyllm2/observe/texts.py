"""The text of single tokens, as it stands in a text."""

from __future__ import annotations

from collections.abc import Sequence

from pyllm2.errors import TokenizerError
from pyllm2.inference.language_model import LanguageModel


def texts_of(model: LanguageModel, ids: Sequence[int]) -> list[str]:
    """The text that each id adds to those before it; [] without a tokenizer."""
    found = [text_of(model, i, ids[t - 1] if t else None) for t, i in enumerate(ids)]
    return found if any(found) else []


def text_of(model: LanguageModel, token: int, before: int | None = None) -> str:
    """The text of a token after another: with its blank, where it has one.

    "" without a tokenizer, and for an id that is no text, such as the one that begins a text.
    """
    try:
        tokenizer = model.tokenizer
    except TokenizerError:
        return ""
    if before is None:
        return str(tokenizer.decode([token]).decode("utf-8", "replace"))
    whole, known = tokenizer.decode([before, token]), tokenizer.decode([before])
    return str(whole[len(known) :].decode("utf-8", "replace"))
