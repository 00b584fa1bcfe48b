"""SentencePiece's `tokenizer.model` (BPE), as the sentencepiece library and GGUF's "llama" read it.

    text -> replacements of characters -> spaces -> "▁" -> cut out user-defined pieces -> merge the
    pair that is the piece of the highest score, the leftmost of equals, repeatedly

The library never finds control pieces (`<s>`) in a text; here they are parsed when that is asked
for. A byte that is not UTF-8 becomes its byte piece, where the library puts U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyllm2.formats.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    byte_of,
)
from pyllm2.tokenizers.added_tokens import AddedToken, AddedTokens
from pyllm2.tokenizers.bpe import SPACE, PieceMerges, Words
from pyllm2.tokenizers.charsmap import CharsMap
from pyllm2.tokenizers.pipeline import (
    NONE,
    Decoding,
    Normalize,
    PipelineTokenizer,
    Specials,
    Steps,
)


@dataclass(frozen=True)
class Style:
    """Where readers of the same pieces differ.

    parsed: whether control pieces are parsed unless the caller says
    after_token: whether a part behind a special token begins like a text
    shows_control: whether a control piece has a text when it is decoded
    front, back: whether `bos`, `eos` belong around a prompt
    added: more tokens, from a file beside the model
    """

    parsed: bool = False
    after_token: bool = True
    shows_control: bool = False
    front: bool = True
    back: bool = False
    added: tuple[AddedToken, ...] = ()


def from_model(
    model: SentencePieceModel,
    name: str,
    style: Style = Style(),
) -> PipelineTokenizer:
    """The tokenizer of a model. name: for errors. Raises FormatError for a damaged charsmap."""
    pieces, kinds = model.pieces, model.kinds
    of_kind: dict[int, list[int]] = {kind: [] for kind in range(NORMAL, BYTE + 1)}
    for i, kind in enumerate(kinds):
        of_kind[kind].append(i)
    added = list(style.added)
    added += [AddedToken(i, pieces[i], special=True) for i in of_kind[CONTROL] + of_kind[UNKNOWN]]
    if style.shows_control:  # llama.cpp cuts out user-defined pieces together with the others
        added += [AddedToken(i, pieces[i], special=False) for i in of_kind[USER_DEFINED]]
        inside: list[int] = []
    else:
        inside = of_kind[USER_DEFINED]
    steps = Steps(
        Words(_merges(model, of_kind, by_lead=style.shows_control)),
        lambda text, at_start: [text],
        _normalizer(model, name),
        AddedTokens(added),
        AddedTokens(AddedToken(i, pieces[i], special=False) for i in inside),
        after_token=style.after_token,
        shrinks=bool(model.charsmap) or model.remove_extra_whitespaces,
    )
    specials = _specials(model, style, frozenset(token.id for token in added if token.special))
    decoding = _decoding(model, style)
    rebuild = from_model, (model, name, style)
    return PipelineTokenizer(name, steps, decoding, specials, rebuild, model)


def _merges(
    model: SentencePieceModel, of_kind: Mapping[int, list[int]], by_lead: bool
) -> PieceMerges:
    pieces = model.pieces
    merging = of_kind[NORMAL] + of_kind[USER_DEFINED] + of_kind[UNUSED]
    scores = sorted({model.scores[i] for i in merging}, reverse=True)
    level = {score: i for i, score in enumerate(scores)}
    byte_ids = [-1] * 256
    for i in of_kind[BYTE]:
        byte_ids[byte_of(pieces[i])] = i
    unknown = of_kind[UNKNOWN][0] if of_kind[UNKNOWN] else None
    return PieceMerges(
        {pieces[i]: level[model.scores[i]] for i in merging},
        {pieces[i]: i for i in merging},
        byte_ids if of_kind[BYTE] else None,
        unknown,
        frozenset(pieces[i] for i in of_kind[UNUSED]),
        by_lead=by_lead,
    )


_RUN = re.compile("  +")


def _normalizer(model: SentencePieceModel, name: str) -> Normalize:
    charsmap = CharsMap(model.charsmap, name) if model.charsmap else None

    def normalize(text: str, at_start: bool) -> str:
        if charsmap is not None:
            text = charsmap.normalize(text)
        if model.remove_extra_whitespaces:
            text = _RUN.sub(" ", text.strip(" "))
        if text and model.add_dummy_prefix and at_start:
            text = " " + text
        return text.replace(" ", SPACE) if model.escape_whitespaces else text

    return normalize


def _specials(model: SentencePieceModel, style: Style, ids: frozenset[int]) -> Specials:
    by_name = {"bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    by_name["unk_token"] = model.unk_id
    names = {name: model.pieces[i] for name, i in by_name.items() if i != NONE}
    begin, end = model.bos_id, model.eos_id
    return Specials(
        names,
        begin,
        end,
        stop=() if end == NONE else (end,),
        front=(begin,) if style.front and begin != NONE else (),
        back=(end,) if style.back and end != NONE else (),
        ids=ids,
        parsed=style.parsed,
    )


def _decoding(model: SentencePieceModel, style: Style) -> Decoding:
    """The bytes of every piece. At the start the first "▁" is that of the dummy prefix."""
    pieces: list[bytes] = []
    opening: dict[int, bytes] = {}
    silent: set[int] = set()
    drops = model.add_dummy_prefix or model.remove_extra_whitespaces
    for i, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)):
        text = _shown(piece, kind, model, style)
        pieces.append(text)
        if kind in (NORMAL, USER_DEFINED, UNUSED) and drops and piece.startswith(SPACE):
            opening[i] = text[1:]
            if not text[1:] and model.remove_extra_whitespaces:
                silent.add(i)
        if not text:
            silent.add(i)
    for token in style.added:
        pieces += [b""] * (token.id + 1 - len(pieces))
        pieces[token.id] = token.content.encode()
    return Decoding(pieces, opening, frozenset(silent))


def _shown(piece: str, kind: int, model: SentencePieceModel, style: Style) -> bytes:
    """The bytes of a piece in a text."""
    if kind == BYTE:
        return bytes([byte_of(piece)])
    if kind == CONTROL:
        return piece.encode() if style.shows_control else b""
    if kind == UNKNOWN:
        return (piece if style.shows_control else model.unk_surface).encode()
    return piece.replace(SPACE, " ").encode()
