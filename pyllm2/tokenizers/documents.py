"""Any tokenizer as a `tokenizer.json`: the same ids from the tokenizers library.

Where two symbols merge if they are a piece together, every way to make a piece is a merge, in the
order of the pieces. The library then prefers one way to make a piece to another, where the original
takes the leftmost: no vocabulary that training gives is known to make a difference of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyllm2.errors import TokenizerError, shown
from pyllm2.formats.sentencepiece_proto import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
)
from pyllm2.tokenizers import alphabet
from pyllm2.tokenizers.bpe import SPACE
from pyllm2.tokenizers.byte_level import ByteLevelTokenizer
from pyllm2.tokenizers.pipeline import PipelineTokenizer
from pyllm2.tokenizers.sentencepiece import BOS, EOS, SCORE_FLOOR, UNK, SentencePieceTokenizer
from pyllm2.tokenizers.word_patterns import LLAMA3

Document = dict[str, Any]
AnyTokenizer = PipelineTokenizer | SentencePieceTokenizer | ByteLevelTokenizer


def document_of(tokenizer: AnyTokenizer) -> Document:
    """The tokenizer.json of a tokenizer.

    Raises TokenizerError naming what such a file cannot hold.
    """
    if isinstance(tokenizer, ByteLevelTokenizer):
        return _of_ranks(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _of_pieces(model_of(tokenizer), (BOS,), (), tokenizer.name)
    front, back = tokenizer.specials.front, tokenizer.specials.back
    source = tokenizer.source
    if isinstance(source, SentencePieceModel):
        return _of_pieces(source, front, back, tokenizer.name, tokenizer)
    if isinstance(source, dict):
        return _complete(source, front, back, tokenizer)
    return _of_llama3(source, tokenizer)


def model_of(tokenizer: SentencePieceTokenizer) -> SentencePieceModel:
    """llama2.c's vocabulary as a SentencePiece model.

    Raises TokenizerError for a piece that is not UTF-8 or that is there twice.
    """
    names = {UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
    kinds = {UNK: UNKNOWN, BOS: CONTROL, EOS: CONTROL}
    pieces, seen = [], set()
    for i, piece in enumerate(tokenizer.pieces):
        try:
            text = names.get(i) or piece.decode().replace(" ", SPACE)
        except UnicodeDecodeError:
            raise TokenizerError(f"{tokenizer.name}: piece {i} is not UTF-8") from None
        if text in seen:
            raise TokenizerError(f"{tokenizer.name}: piece {i}, {shown(text)}, is there twice")
        seen.add(text)
        pieces.append(text)
    is_byte = tokenizer.is_byte
    return SentencePieceModel(
        pieces,
        list(tokenizer.scores),
        [kinds.get(i, BYTE if is_byte(i) else NORMAL) for i in range(len(pieces))],
        BPE,
        byte_fallback=any(is_byte(i) for i in range(len(pieces))),
        remove_extra_whitespaces=False,
    )


# ---- parts of a document --------------------------------------------------------------------


def _document(**parts: Any) -> Document:
    empty = dict.fromkeys("truncation padding added_tokens normalizer pre_tokenizer".split())
    return {"version": "1.0", **empty, "post_processor": None, **parts}


def _added(i: int, content: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys("single_word lstrip rstrip normalized".split(), False)
    return {"id": i, "content": content, **flags, "special": special}


def _template(front: Sequence[int], back: Sequence[int], texts: Mapping[int, str]) -> Any:
    """A post-processor that puts ids around a text."""
    if not front and not back:
        return None

    def token(i: int) -> dict[str, Any]:
        if i not in texts:
            raise TokenizerError(f"id {i} is put around a text, and is no token")
        return {"SpecialToken": {"id": texts[i], "type_id": 0}}

    single = [*map(token, front), {"Sequence": {"id": "A", "type_id": 0}}, *map(token, back)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    known = {texts[i]: {"id": texts[i], "ids": [i], "tokens": [texts[i]]} for i in (*front, *back)}
    kind = "TemplateProcessing"
    return {"type": kind, "single": single, "pair": pair, "special_tokens": known}


def _bpe(vocab: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    plain |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model = {"type": "BPE", **plain, "ignore_merges": False, **options}
    return {**model, "vocab": vocab, "merges": merges}


def _byte_level(**options: bool) -> dict[str, Any]:
    plain = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"type": "ByteLevel", **plain, **options}


def all_merges(pieces: Iterable[str], known: Mapping[str, Any]) -> list[list[str]]:
    """Every pair of known symbols that makes a piece, in the order of the pieces."""
    merges = []
    for piece in pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                merges.append([left, right])
    return merges


# ---- kinds of tokenizers --------------------------------------------------------------------


def _of_pieces(
    model: SentencePieceModel,
    front: Sequence[int],
    back: Sequence[int],
    name: str,
    tokenizer: PipelineTokenizer | None = None,
) -> Document:
    """A SentencePiece model in the manner of Llama 2's tokenizer.json."""
    kinds, pieces = model.kinds, model.pieces
    limits = {
        "a precompiled_charsmap": bool(model.charsmap),
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
        "unused pieces": UNUSED in kinds,
        "spaces that are not escaped": not model.escape_whitespaces,
        "user-defined pieces and a dummy prefix": USER_DEFINED in kinds and model.add_dummy_prefix,
    }
    for what, is_there in limits.items():
        if is_there:
            raise TokenizerError(f"{name}: has {what}, which a tokenizer.json cannot say")
    merging = [i for i, kind in enumerate(kinds) if kind in (NORMAL, USER_DEFINED)]
    merging = [i for i in merging if model.scores[i] > SCORE_FLOOR or len(pieces[i]) == 1]
    merging.sort(key=lambda i: -model.scores[i])
    known = {pieces[i]: i for i in merging}
    added = [
        _added(i, pieces[i].replace(SPACE, " "), special=kind != USER_DEFINED)
        for i, kind in enumerate(kinds)
        # one with a plain space is never found, because spaces are escaped before
        if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and " " not in pieces[i])
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if tokenizer is not None:
        tokens = [t for t in tokenizer.steps.added.tokens if t.id >= len(pieces)]
        added += [_added(t.id, t.content, t.special) for t in sorted(tokens, key=lambda t: t.id)]
        vocab |= {t.content: t.id for t in tokens}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if model.add_dummy_prefix else []
    back_to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back_to_space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    unknown = next((pieces[i] for i, kind in enumerate(kinds) if kind == UNKNOWN), None)
    texts = {i: text for text, i in vocab.items()}
    return _document(
        added_tokens=added,
        normalizer={"type": "Sequence", "normalizers": [*prefix, replace]},
        post_processor=_template(front, back, texts),
        decoder={"type": "Sequence", "decoders": decoders + ([strip] if prefix else [])},
        model=_bpe(
            vocab,
            all_merges((pieces[i] for i in merging), known),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        ),
    )


def _of_ranks(tokenizer: ByteLevelTokenizer) -> Document:
    """GPT-2's kind, from ranks."""
    end = tokenizer.end_of_text
    texts = [alphabet.from_bytes(piece) for piece in tokenizer.pieces]
    texts[end] = tokenizer.pieces[end].decode("utf-8", "replace")
    vocab: dict[str, int] = {}
    for i, text in enumerate(texts):
        if vocab.setdefault(text, i) != i:
            raise TokenizerError(f"{tokenizer.name}: token {i} is token {vocab[text]} again")
    known = {text: i for text, i in vocab.items() if i != end}
    return _document(
        added_tokens=[_added(end, texts[end])],
        pre_tokenizer=_byte_level(),
        post_processor=_template((end,), (), dict(enumerate(texts))),
        decoder=_byte_level(add_prefix_space=True),
        model=_bpe(vocab, all_merges(known, known), ignore_merges=True),
    )


def _of_llama3(ranks: Sequence[bytes], tokenizer: PipelineTokenizer) -> Document:
    vocab = {alphabet.from_bytes(piece): i for i, piece in enumerate(ranks)}
    added = [_added(t.id, t.content) for t in tokenizer.steps.added.tokens]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated"}
    steps = [{**split, "invert": False}, _byte_level(use_regex=False)]
    texts = {token["id"]: token["content"] for token in added}
    return _document(
        added_tokens=added,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        post_processor=_template(tokenizer.specials.front, tokenizer.specials.back, texts),
        decoder=_byte_level(add_prefix_space=True),
        model=_bpe(vocab, all_merges(vocab, vocab), ignore_merges=True),
    )


def _complete(
    source: Document, front: Sequence[int], back: Sequence[int], tokenizer: PipelineTokenizer
) -> Document:
    """A tokenizer.json as it was read, with the fields that the library insists on."""
    document = _document(**source)
    plain = _bpe({}, [])
    document["model"] = {**plain, **{k: v for k, v in source["model"].items() if v is not None}}
    tokens = [_added(0, "") | token for token in source.get("added_tokens") or []]
    ids = {token.content: token.id for token in tokenizer.steps.added.tokens}
    ids |= {token.content: token.id for token in tokenizer.steps.normalized.tokens}
    document["added_tokens"] = [t | {"id": ids.get(t["content"], t["id"])} for t in tokens]
    if document["post_processor"] is None:
        texts = {i: text for text, i in ids.items()}
        document["post_processor"] = _template(front, back, texts)
    for key in ("pre_tokenizer", "decoder"):
        document[key] = _with_defaults(document.get(key))
    return document


def _with_defaults(component: Any) -> Any:
    """A component of ours with the fields that the library insists on."""
    if not isinstance(component, dict):
        return component
    if "pretokenizers" in component:
        return component | {"pretokenizers": [*map(_with_defaults, component["pretokenizers"])]}
    plain = {"ByteLevel": _byte_level(), "Split": {"invert": False}}
    return plain.get(component.get("type", ""), {}) | component
