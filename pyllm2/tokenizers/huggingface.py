"""`tokenizer.json`, as the tokenizers library reads it: every component that is supported, by name.

    normalizer      NFC, Prepend, Replace, Sequence of these
    pre_tokenizer   ByteLevel, Split, Digits, Metaspace, Sequence of these
    post_processor  TemplateProcessing, ByteLevel, Sequence of these
    decoder         ByteLevel, Metaspace, Sequence of Replace, ByteFallback, Fuse, Strip ...

Any other one is refused: a tokenizer that is nearly right gives a model the wrong ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pyllm2.errors import FormatError, shown
from pyllm2.formats.json_file import member
from pyllm2.formats.tokenizer_json import BPEModel, bpe_model, check_text
from pyllm2.tokenizers import alphabet
from pyllm2.tokenizers.added_tokens import AddedToken, AddedTokens
from pyllm2.tokenizers.bpe import ListedMerges, Words
from pyllm2.tokenizers.pipeline import Decoding, PipelineTokenizer, Split, Steps
from pyllm2.tokenizers.specials import known_specials
from pyllm2.tokenizers.word_patterns import GPT2, KNOWN, digit_splitter, splitter

BYTE_SYMBOLS = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_SYMBOL = re.compile("<0x([0-9A-Fa-f]{2})>")
_NULL = type(None)


def from_document(document: dict[str, Any], name: str) -> PipelineTokenizer:
    """The tokenizer of a parsed `tokenizer.json`. name: for errors.

    Raises FormatError naming the component, field or token.
    """
    model = bpe_model(document, name)
    pre = _Splitting(name)
    pre.read(document.get("pre_tokenizer"), "pre_tokenizer")
    normalize = _normalizer(document.get("normalizer"), name, "normalizer")
    added = _added_tokens(document, model, name)
    steps = Steps(
        Words(_merges(model, pre.to_bytes)),
        pre.split,
        lambda text, at_start: _all(normalize, text),
        AddedTokens(token for token in added if not token.normalized),
        _in_normalized(added, normalize),
        shrinks=bool(normalize) or any(t.lstrip or t.rstrip for t in added),
    )
    texts = {i: token for token, i in model.vocab.items()}
    texts |= {t.id: _all(normalize if t.normalized else [], t.content) for t in added}
    front, back = _template(document.get("post_processor"), name, "post_processor")
    for i in (*front, *back):
        if i not in texts:
            raise FormatError(name, f"post_processor: token id {i} does not exist")
    decoding = _decoding(document.get("decoder"), texts, name)
    specials = known_specials(added, front, back)
    rebuild = from_document, (document, name)
    return PipelineTokenizer(name, steps, decoding, specials, rebuild, document)


def _merges(model: BPEModel, to_bytes: bool) -> ListedMerges:
    options = model.unk_token, model.fuse_unk, model.ignore_merges
    if not to_bytes:
        names = BYTE_SYMBOLS if model.byte_fallback else None
        return ListedMerges(model.vocab, model.merges, names, *options)
    inside = {t: alphabet.to_latin1(t) for t in model.vocab if alphabet.to_bytes(t) is not None}
    id_of = {latin1: model.vocab[token] for token, latin1 in inside.items()}
    merges = [(inside.get(a), inside.get(b)) for a, b in model.merges]
    known = [(a, b) for a, b in merges if a is not None and b is not None]
    if model.unk_token is not None:
        id_of[model.unk_token] = model.vocab[model.unk_token]
    return ListedMerges(id_of, known, None, *options, as_bytes=True)


# ---- added tokens ---------------------------------------------------------------------------


def _added_tokens(document: dict[str, Any], model: BPEModel, name: str) -> list[AddedToken]:
    """The added tokens, with the ids that the library gives them, whatever the file says.

    A token that is in the vocabulary has its id there; the others are numbered behind it.
    """
    entries = member(document, "added_tokens", (list, _NULL), name, "", None) or []
    out: dict[str, AddedToken] = {}
    following = len(model.vocab)
    for i, entry in enumerate(entries):
        where = f"added_tokens[{i}]"
        content = member(entry, "content", str, name, where)
        declared = member(entry, "id", int, name, where)
        if not 0 <= declared < 2**32:
            raise FormatError(name, f"{where}.id = {declared}: expected 0 to {2**32 - 1}")
        check_text(content, name, where)
        keys = "special", "normalized", "single_word", "lstrip", "rstrip"
        flags = {key: member(entry, key, bool, name, where, False) for key in keys}
        if not content or content in out:
            continue
        token_id = model.vocab.get(content)
        if token_id is None:
            token_id, following = following, following + 1
        out[content] = AddedToken(token_id, content, **flags)
    return list(out.values())


def _in_normalized(added: list[AddedToken], normalize: list[Callable[[str], str]]) -> AddedTokens:
    """The added tokens that are looked for in normalised text; their contents are, too."""
    tokens = [token for token in added if token.normalized]
    return AddedTokens(
        AddedToken(**{**vars(token), "content": _all(normalize, token.content)}) for token in tokens
    )


# ---- normalizer -----------------------------------------------------------------------------


def _all(steps: list[Callable[[str], str]], text: str) -> str:
    for step in steps:
        text = step(text)
    return text


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _prepend(prefix: str, text: str) -> str:
    return text and prefix + text


def _replace(old: str, new: str, text: str) -> str:
    return text.replace(old, new)


def _normalizer(component: Any, name: str, where: str) -> list[Callable[[str], str]]:
    """The steps of a normalizer."""
    if component is None:
        return []
    kind = member(component, "type", str, name, where)
    if kind == "Sequence":
        parts = member(component, "normalizers", list, name, where)
        steps = [_normalizer(p, name, f"{where}.normalizers[{i}]") for i, p in enumerate(parts)]
        return [step for part in steps for step in part]
    if kind == "NFC":
        return [_nfc]
    if kind == "Prepend":
        return [partial(_prepend, member(component, "prepend", str, name, where))]
    if kind == "Replace":
        return [partial(_replace, *_strings(component, name, where))]
    raise _unknown(name, where, kind)


def _strings(component: dict[str, Any], name: str, where: str) -> tuple[str, str]:
    """What a Replace replaces, and by what."""
    pattern = member(component, "pattern", dict, name, where)
    if set(pattern) != {"String"} or not isinstance(pattern["String"], str):
        raise FormatError(name, f"{where}.pattern = {shown(pattern)}: only a String is supported")
    if not pattern["String"]:
        raise FormatError(name, f"{where}.pattern: is empty")
    return pattern["String"], member(component, "content", str, name, where)


def _unknown(name: str, where: str, kind: str) -> FormatError:
    return FormatError(name, f"{where}.type = {shown(kind)}: not supported")


# ---- pre-tokenizer --------------------------------------------------------------------------


@dataclass
class _Splitting:
    """The steps of a pre-tokenizer, and whether the last turns words into bytes."""

    name: str
    steps: list[Split] = field(default_factory=list)
    to_bytes: bool = False

    def split(self, text: str, at_start: bool) -> list[str]:
        words = [text]
        for step in self.steps:
            words = [w for i, word in enumerate(words) for w in step(word, at_start and i == 0)]
        return words

    def read(self, component: Any, where: str) -> None:
        name = self.name
        if component is None:
            return
        kind = member(component, "type", str, name, where)
        if self.to_bytes:
            raise FormatError(name, f"{where}.type = {shown(kind)}: ByteLevel must be the last")
        if kind == "Sequence":
            for i, part in enumerate(member(component, "pretokenizers", list, name, where)):
                self.read(part, f"{where}.pretokenizers[{i}]")
        elif kind == "ByteLevel":
            self.to_bytes = True
            if member(component, "add_prefix_space", bool, name, where, True):
                self.steps.append(_prefix_space)
            if member(component, "use_regex", bool, name, where, True):
                self.steps.append(_ignoring_start(GPT2))
        elif kind == "Split":
            self.steps.append(_ignoring_start(_pattern(component, name, where)))
        elif kind == "Digits":
            if not member(component, "individual_digits", bool, name, where, False):
                raise FormatError(name, f"{where}.individual_digits = false: not supported")
            digits = digit_splitter()
            self.steps.append(lambda text, at_start: digits(text))
        elif kind == "Metaspace":
            self.steps.append(_metaspace(component, name, where))
        else:
            raise _unknown(name, where, kind)


def _prefix_space(text: str, at_start: bool) -> list[str]:
    return [text if text.startswith(" ") else " " + text]


def _ignoring_start(pattern: str) -> Split:
    split = splitter(pattern)
    return lambda text, at_start: split(text)


def _pattern(component: dict[str, Any], name: str, where: str) -> str:
    """The regular expression of a Split, which must be one that is known."""
    pattern = member(component, "pattern", dict, name, where)
    regex = pattern.get("Regex")
    if set(pattern) != {"Regex"} or not isinstance(regex, str) or regex not in KNOWN:
        raise FormatError(name, f"{where}.pattern = {shown(pattern)}: not supported")
    behavior = member(component, "behavior", str, name, where)
    if behavior != "Isolated":
        raise FormatError(name, f"{where}.behavior = {shown(behavior)}: expected Isolated")
    if member(component, "invert", bool, name, where, False):
        raise FormatError(name, f"{where}.invert = true: not supported")
    return KNOWN[regex]


def _scheme(component: dict[str, Any], name: str, where: str) -> tuple[str, str]:
    """The replacement and the prepend_scheme of a Metaspace, old or new."""
    replacement = member(component, "replacement", str, name, where)
    if len(replacement) != 1:
        raise FormatError(
            name, f"{where}.replacement = {shown(replacement)}: expected one character"
        )
    old = member(component, "add_prefix_space", (bool, _NULL), name, where, None)
    scheme = "never" if old is False else "always"
    scheme = member(component, "prepend_scheme", str, name, where, scheme)
    if scheme not in ("always", "first", "never"):
        raise FormatError(name, f"{where}.prepend_scheme = {shown(scheme)}: not supported")
    return replacement, scheme


def _metaspace(component: dict[str, Any], name: str, where: str) -> Split:
    space, scheme = _scheme(component, name, where)
    cut = member(component, "split", bool, name, where, True)
    words = re.compile(f"(?s){re.escape(space)}[^{re.escape(space)}]*|[^{re.escape(space)}]+")

    def split(text: str, at_start: bool) -> list[str]:
        text = text.replace(" ", space)
        prepends = scheme == "always" or (scheme == "first" and at_start)
        if prepends and not text.startswith(space):
            text = space + text
        return words.findall(text) if cut else [text]

    return split


# ---- post-processor -------------------------------------------------------------------------


def _template(component: Any, name: str, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a post-processor puts in front of a text, and behind it."""
    if component is None:
        return (), ()
    kind = member(component, "type", str, name, where)
    if kind == "ByteLevel":  # offsets only
        return (), ()
    if kind == "Sequence":
        front: tuple[int, ...] = ()
        back: tuple[int, ...] = ()
        for i, part in enumerate(member(component, "processors", list, name, where)):
            before, after = _template(part, name, f"{where}.processors[{i}]")
            front, back = before + front, back + after
        return front, back
    if kind != "TemplateProcessing":
        raise _unknown(name, where, kind)
    known = member(component, "special_tokens", dict, name, where)
    sides: list[list[int]] = [[]]
    for i, item in enumerate(member(component, "single", list, name, where)):
        if isinstance(item, dict) and set(item) == {"Sequence"}:
            sides.append([])
        elif isinstance(item, dict) and set(item) == {"SpecialToken"}:
            at = f"{where}.single[{i}].SpecialToken"
            token = member(item["SpecialToken"], "id", str, name, at)
            entry = member(known, token, dict, name, f"{where}.special_tokens")
            ids = member(entry, "ids", list, name, f"{where}.special_tokens.{shown(token)}")
            if not all(type(i) is int for i in ids):
                raise FormatError(
                    name, f"{where}: {shown(token)}: expected ids, found {shown(ids)}"
                )
            sides[-1] += ids
        else:
            raise FormatError(name, f"{where}.single[{i}] = {shown(item)}: not supported")
    if len(sides) != 2:
        raise FormatError(name, f"{where}.single: expected the text once, found {len(sides) - 1}")
    return tuple(sides[0]), tuple(sides[1])


# ---- decoder --------------------------------------------------------------------------------


def _decoding(component: Any, texts: Mapping[int, str], name: str) -> Decoding:
    """The bytes of every id. An id without a token has none."""
    of_token, opening = _decoder(component, name)
    pieces = [b""] * (max(texts) + 1)
    at_start = {}
    for i, text in texts.items():
        pieces[i] = of_token(text)
        first = opening(text, pieces[i])
        if first != pieces[i]:
            at_start[i] = first
    silent = frozenset(i for i, piece in enumerate(pieces) if not piece)
    return Decoding(pieces, at_start, silent)


def _byte_level(text: str) -> bytes:
    found = alphabet.to_bytes(text)
    return text.encode() if found is None else found


def _same(text: str, piece: bytes) -> bytes:
    return piece


def _decoder(
    component: Any, name: str
) -> tuple[Callable[[str], bytes], Callable[[str, bytes], bytes]]:
    """Token -> its bytes; token and its bytes -> those at the start of a text."""
    where = "decoder"
    kind = member(component, "type", str, name, where)
    if kind == "ByteLevel":
        return _byte_level, _same
    if kind == "Metaspace":
        space, scheme = _scheme(component, name, where)
        first = space if scheme == "never" else ""
        return (
            lambda text: text.replace(space, " ").encode(),
            lambda text, piece: text.replace(space, first).replace(space, " ").encode(),
        )
    if kind != "Sequence":
        raise _unknown(name, where, kind)
    replaced: list[tuple[str, str]] = []
    fallback, fused, strip = False, False, b""
    for i, part in enumerate(member(component, "decoders", list, name, where)):
        at = f"{where}.decoders[{i}]"
        step = member(part, "type", str, name, at)
        if step == "Replace" and not fallback and not fused:
            replaced.append(_strings(part, name, at))
        elif step == "ByteFallback" and not fused:
            fallback = True
        elif step == "Fuse":
            fused = True
        elif step == "Strip" and fused and not strip:
            strip = _strip(part, name, at)
        else:
            raise FormatError(name, f"{at}.type = {shown(step)}: not supported here")

    def of_token(text: str) -> bytes:
        for old, new in replaced:
            text = text.replace(old, new)
        byte = _BYTE_SYMBOL.fullmatch(text) if fallback else None
        return bytes([int(byte[1], 16)]) if byte else text.encode()

    return of_token, lambda text, piece: piece.removeprefix(strip)


def _strip(component: dict[str, Any], name: str, where: str) -> bytes:
    """What a Strip takes away at the start of a text."""
    content = member(component, "content", str, name, where)
    counts = [member(component, key, int, name, where) for key in ("start", "stop")]
    if counts not in ([1, 0], [0, 0]):
        raise FormatError(name, f"{where}: start, stop = {counts}: expected 1, 0")
    return content.encode() if counts[0] else b""
