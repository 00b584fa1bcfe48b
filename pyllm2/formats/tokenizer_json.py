"""`tokenizer.json` of the tokenizers library: vocabulary, merges and added tokens, checked.

    {"added_tokens": [...], "normalizer": ..., "pre_tokenizer": ..., "post_processor": ...,
     "decoder": ..., "model": {"type": "BPE", "vocab": {token: id}, "merges": [...], ...}}

The components are read by `tokenizers.huggingface`. `vocab.json` and `merges.txt` hold the model
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.json_file import member, parse_object
from pyllm2.formats.reader import Source

MAX_ID = 2**22 - 1
MAX_BYTES = 2**28


@dataclass(frozen=True)
class BPEModel:
    """What the `model` of a tokenizer.json says.

    vocab: token -> id   merges: pairs of tokens, in order of rank
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


def read_document(source: Source) -> dict[str, Any]:
    """The JSON object. Raises FileError or FormatError."""
    found = _object(source)
    if "model" not in found:
        raise FormatError(source.path, "not a tokenizer.json: `model` is missing")
    return found


def _object(source: Source) -> dict[str, Any]:
    if source.size > MAX_BYTES:
        raise FileError(source.path, f"{source.size} bytes: a vocabulary has at most {MAX_BYTES}")
    return parse_object(source.read_all().tobytes(), source.path)


def bpe_model(document: dict[str, Any], path: str) -> BPEModel:
    """The model of a document.

    Raises FormatError naming the field: a model that is not BPE, an option that is not supported,
    an id twice or out of range, a merge of tokens that are not in the vocabulary.
    """
    model = member(document, "model", dict, path, "")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise FormatError(path, f"model.type = {shown(kind)}: only BPE is supported")
    if model.get("dropout") not in (None, 0):
        raise FormatError(path, f"model.dropout = {shown(model['dropout'])}: not supported")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key) not in (None, ""):
            raise FormatError(path, f"model.{key} = {shown(model[key])}: not supported")

    def flag(key: str) -> bool:
        return member(model, key, (bool, type(None)), path, "model", False) or False

    vocab = checked_vocab(member(model, "vocab", dict, path, "model"), path, "model.vocab")
    merges = [
        _pair(merge, i, path)
        for i, merge in enumerate(member(model, "merges", list, path, "model"))
    ]
    check_merges(merges, vocab, path, "model.merges")
    unk = member(model, "unk_token", (str, type(None)), path, "model", None)
    if unk is not None and unk not in vocab:
        raise FormatError(path, f"model.unk_token = {shown(unk)}: is not in the vocabulary")
    flags = flag("fuse_unk"), flag("byte_fallback"), flag("ignore_merges")
    return BPEModel(vocab, merges, unk, *flags)


def checked_vocab(vocab: dict[str, Any], path: str, where: str) -> dict[str, int]:
    """The vocabulary, if its ids are whole numbers in range and each is there once."""
    if not vocab:
        raise FormatError(path, f"{where} is empty")
    token_of: dict[int, str] = {}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i <= MAX_ID:
            raise FormatError(path, f"{where}: {shown(token)} = {shown(i)}: expected 0 to {MAX_ID}")
        if token_of.setdefault(i, token) != token:
            raise FormatError(
                path, f"{where}: {shown(token)} = {i}: is the id of {shown(token_of[i])}"
            )
        check_text(token, path, where)
    return vocab


def check_text(text: str, path: str, where: str) -> None:
    """Raises FormatError for half of a surrogate pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise FormatError(path, f"{where}: {shown(text)} is not Unicode text") from None


def check_merges(
    merges: list[tuple[str, str]], vocab: dict[str, int], path: str, where: str
) -> None:
    """Raises FormatError for a merge whose tokens, or the token that it gives, do not exist."""
    for i, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in vocab:
                raise FormatError(path, f"{where}[{i}]: {shown(token)} is not in the vocabulary")
        if not left or not right:
            raise FormatError(path, f"{where}[{i}]: merges an empty token")


def _pair(merge: Any, i: int, path: str) -> tuple[str, str]:
    """`"a b"`, or `["a", "b"]`, where a token may contain a space."""
    if isinstance(merge, str) and len(parts := merge.split(" ")) == 2:
        return parts[0], parts[1]
    if isinstance(merge, list) and len(merge) == 2 and all(isinstance(m, str) for m in merge):
        return merge[0], merge[1]
    raise FormatError(path, f"model.merges[{i}] = {shown(merge)}: expected two tokens")


def read_vocab(source: Source) -> dict[str, int]:
    """`vocab.json`. Raises FileError or FormatError."""
    return checked_vocab(_object(source), source.path, "vocabulary")


def read_merges(source: Source, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """`merges.txt`: two tokens a line, separated by a space. A first line `#version` is skipped."""
    path = source.path
    if source.size > MAX_BYTES:
        raise FormatError(path, f"{source.size} bytes: expected at most {MAX_BYTES}")
    try:
        text = source.read_all().tobytes().decode()
    except UnicodeDecodeError as error:
        raise FormatError(path, f"byte {error.start}: not UTF-8") from None
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise FormatError(path, f"line {number}: expected two tokens and a space between them")
        merges.append((parts[0], parts[1]))
    check_merges(merges, vocab, path, "merges")
    return merges
