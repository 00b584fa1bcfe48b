"""The tokenizer inside a GGUF file, as llama.cpp reads its metadata.

tokenizer.ggml.model  "llama": pieces and scores, as in a SentencePiece model
                      "gpt2": byte-level tokens and merges; `pre` says which words a text has
tokenizer.ggml.token_type  1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyllm2.errors import FormatError, shown
from pyllm2.formats.sentencepiece_proto import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    byte_of,
)
from pyllm2.tokenizers import huggingface, sentencepiece_model
from pyllm2.tokenizers.pipeline import NONE, PipelineTokenizer
from pyllm2.tokenizers.word_patterns import GPT2, LLAMA3, QWEN2

PREFIX = "tokenizer.ggml."

# pre -> (regular expression of the words, single digits first, whole words, BOS in front)
_PLAIN = (GPT2, False, False, False)
_LLAMA3 = (LLAMA3, False, True, True)
PRE: dict[str, tuple[str, bool, bool, bool]] = {
    **dict.fromkeys("gpt-2 phi-2 jina-es jina-de mpt olmo jais gigachat".split(), _PLAIN),
    **dict.fromkeys("llama-bpe llama3 llama-v3".split(), _LLAMA3),
    "qwen2": (QWEN2, False, False, False),
    "smollm": (GPT2, True, False, False),
}
# Texts of tokens that end generation besides those that the metadata names.
ENDS = "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|eom_id|> <EOT> </s>".split()


@dataclass(frozen=True)
class _Metadata:
    """`tokenizer.ggml.*`, checked on access."""

    values: Mapping[str, Any]
    name: str

    def refuse(self, key: str, what: str) -> FormatError:
        return FormatError(self.name, f"{PREFIX}{key}{what}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.values.get(PREFIX + key, default)
        if hasattr(value, "item"):  # a NumPy number
            value = value.item()
        if value is not default and type(value) is not kind:
            raise self.refuse(key, f" = {shown(value)}: expected {kind.__name__}")
        return value

    def list(self, key: str, kind: type | tuple[type, ...], n: int | None = None) -> list[Any]:
        """An array, as a list of one type and of n elements (None: any number)."""
        value = self.values.get(PREFIX + key)
        if value is None:
            raise self.refuse(key, " is missing")
        found = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(found, (list, tuple)):
            raise self.refuse(key, f" = {shown(found)}: expected an array")
        if n is not None and len(found) != n:
            raise self.refuse(key, f": {len(found)} elements: expected {n}, one per token")
        for i, element in enumerate(found):
            if not isinstance(element, kind) or isinstance(element, bool):
                raise self.refuse(key, f"[{i}] = {shown(element)}: not of the right type")
        return list(found)

    def token(self, key: str, n: int, default: int) -> int:
        """An id below n, or -1."""
        i: int = self.get(key, int, default)
        if not 0 <= i < n:
            if i in (default, 2**32 - 1, NONE):
                return NONE
            raise self.refuse(key, f" = {i}: expected 0 to {n - 1}")
        return i


def from_gguf(metadata: Mapping[str, Any], name: str) -> PipelineTokenizer:
    """The tokenizer that the metadata of a GGUF file describes.

    metadata: arrays as lists or NumPy arrays   name: of the file, for errors

    Raises FormatError naming the key: a model or `pre` that is not supported, arrays whose lengths
    differ, a token that is no text, an id out of range.
    """
    values = {key: value for key, value in metadata.items() if key.startswith(PREFIX)}
    found = _Metadata(values, name)
    model = found.get("model", str)
    if model is None:
        raise found.refuse("model", " is missing: the file has no tokenizer")
    if model not in ("llama", "gpt2"):
        raise found.refuse("model", f" = {shown(model)}: expected llama or gpt2")
    tokens = found.list("tokens", str)
    if not tokens:
        raise found.refuse("tokens", ": is empty")
    kinds = [NORMAL] * len(tokens)
    if PREFIX + "token_type" in values:
        kinds = found.list("token_type", int, len(tokens))
    build = _pieces if model == "llama" else _byte_level
    tokenizer = build(found, tokens, kinds)
    tokenizer._rebuild = from_gguf, (values, name)
    return tokenizer


def _pieces(found: _Metadata, tokens: list[str], kinds: list[int]) -> PipelineTokenizer:
    n = len(tokens)
    scores = [float(score) for score in found.list("scores", (float, int), n)]
    for i, score in enumerate(scores):
        if math.isnan(score):
            raise found.refuse("scores", f"[{i}] = nan: must be a number")
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if not NORMAL <= kind <= BYTE:
            raise found.refuse("token_type", f"[{i}] = {kind}: expected 1 to 6")
        if kind == BYTE and byte_of(token) < 0:
            raise found.refuse("tokens", f"[{i}] = {shown(token)}: is not the name of a byte")
    prefix = found.get("add_space_prefix", bool, True)
    unk, bos, eos = (
        found.token(f"{word}_token_id", n, i) for i, word in enumerate(("unknown", "bos", "eos"))
    )
    model = SentencePieceModel(
        tokens,
        scores,
        kinds,
        BPE,
        byte_fallback=BYTE in kinds,
        unk_id=unk,
        bos_id=bos,
        eos_id=eos,
        pad_id=found.token("padding_token_id", n, NONE),
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
    )
    style = sentencepiece_model.Style(
        parsed=True,
        shows_control=True,
        front=found.get("add_bos_token", bool, True),
        back=found.get("add_eos_token", bool, False),
    )
    tokenizer = sentencepiece_model.from_model(model, found.name, style)
    return _with_stop(tokenizer, found, tokens, kinds)


def _byte_level(found: _Metadata, tokens: list[str], kinds: list[int]) -> PipelineTokenizer:
    pre = found.get("pre", str, "")
    if pre not in PRE:
        raise found.refuse("pre", f" = {shown(pre)}: expected one of {' '.join(PRE)}")
    pattern, digits, whole, add_bos = PRE[pre]
    merges = []
    for i, merge in enumerate(found.list("merges", str)):
        cut = merge.find(" ", 1)
        if cut < 0:
            raise found.refuse("merges", f"[{i}] = {shown(merge)}: expected two tokens")
        merges.append([merge[:cut], merge[cut + 1 :]])
    steps: list[dict[str, Any]] = []
    if digits:
        steps.append({"type": "Digits", "individual_digits": True})
    steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"})
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    vocab = {token: i for i, token in enumerate(tokens)}  # of equal tokens the last counts
    added = [
        {"id": i, "content": token, "special": kinds[i] != USER_DEFINED}
        for token, i in vocab.items()
        if kinds[i] in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    document = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole},
    }
    tokenizer = huggingface.from_document(document, found.name)
    n = len(tokens)
    tokenizer = tokenizer.padded(n)
    begin, end = (found.token(f"{word}_token_id", n, 11) for word in ("bos", "eos"))
    tokenizer.specials = replace(
        tokenizer.specials,
        begin=begin,
        end=end,
        stop=() if end == NONE else (end,),
        front=(begin,) if begin != NONE and found.get("add_bos_token", bool, add_bos) else (),
        back=(end,) if end != NONE and found.get("add_eos_token", bool, False) else (),
    )
    return _with_stop(tokenizer, found, tokens, kinds)


def _with_stop(
    tokenizer: PipelineTokenizer, found: _Metadata, tokens: list[str], kinds: list[int]
) -> PipelineTokenizer:
    """The same, with the names of special tokens and all ids that end generation."""
    n = len(tokens)
    stop = list(tokenizer.specials.stop)
    stop += [found.token(f"{word}_token_id", n, NONE) for word in ("eot", "eom")]
    stop += [i for i, token in enumerate(tokens) if kinds[i] == CONTROL and token in ENDS]
    words = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep"}
    names = {"bos_token": tokenizer.begin, "eos_token": tokenizer.end}
    for word, short in words.items():
        if PREFIX + f"{word}_token_id" in found.values:
            names[f"{short}_token"] = found.token(f"{word}_token_id", n, NONE)
    tokenizer.specials = replace(
        tokenizer.specials,
        names={key: tokens[i] for key, i in names.items() if i != NONE},
        stop=tuple(dict.fromkeys(i for i in stop if i != NONE)),
    )
    return tokenizer
