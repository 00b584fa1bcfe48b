"""The tokenizer in a folder of Hugging Face or Meta, and the files that it may be in.

    tokenizer.json            the whole tokenizer: first choice
    tokenizer.model           SentencePiece, or a rank file (Llama 3 in Meta's folders)
    vocab.json, merges.txt    GPT-2's kind
    tokenizer_config.json     names of special tokens; for a tokenizer.model whether BOS and EOS are
                              added, and added tokens
    special_tokens_map.json, added_tokens.json    older duplicates of these

Where only a tokenizer.model is there, the ids are those of the sentencepiece library (and of
llama.cpp and run.c): transformers 5 gives others to a text that begins with a space.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats import kinds, tiktoken_ranks
from pyllm2.formats.json_file import member, read_object
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.sentencepiece_proto import read_model
from pyllm2.formats.tokenizer_json import MAX_ID, check_text, read_document, read_merges, read_vocab
from pyllm2.tokenizers import huggingface, rank_file, sentencepiece_model
from pyllm2.tokenizers.added_tokens import AddedToken
from pyllm2.tokenizers.pipeline import PipelineTokenizer
from pyllm2.tokenizers.specials import NAMES, OF_CLASS, with_names
from pyllm2.tokenizers.word_patterns import GPT2, QWEN2

JSON, MODEL, VOCAB, MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
LLAMA2C = "tokenizer.bin"
FILES = (JSON, MODEL, VOCAB, LLAMA2C)  # any of these, the first that is there
_SMALL = 2**24  # bytes of the other files


def has_tokenizer(folder: str) -> bool:
    """Whether a folder holds a tokenizer."""
    return any(os.path.lexists(os.path.join(folder, name)) for name in FILES)


def tokenizer_file(folder: str) -> str:
    """The file of a folder that holds its tokenizer. Raises FileError if there is none."""
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            return path
    raise FileError(
        folder,
        f"has no tokenizer: expected {JSON}, {MODEL}, {VOCAB} and {MERGES}, or {LLAMA2C}",
    )


def from_json(source: Source) -> PipelineTokenizer:
    """A `tokenizer.json`, or a `vocab.json` with `merges.txt` beside it.

    The files of its folder say what its special tokens are called. Raises FileError, FormatError.
    """
    beside = _Beside(source.path)
    if os.path.basename(source.path) == VOCAB:
        document = _of_vocab(source, beside)
    else:
        document = read_document(source)
    tokenizer = huggingface.from_document(document, source.path)
    tokens = {token.content: token.id for token in tokenizer.steps.added.tokens}
    tokens |= {token.content: token.id for token in tokenizer.steps.normalized.tokens}
    tokens |= document["model"]["vocab"]
    names = beside.names()
    if names:
        tokenizer.specials = with_names(tokenizer.specials, names, tokens)
    return tokenizer


def from_sentencepiece(source: Source) -> PipelineTokenizer:
    """A SentencePiece `tokenizer.model`, with what the files of its folder say about it."""
    beside = _Beside(source.path)
    model = read_model(source)
    added = tuple(token for token in beside.added() if token.content not in set(model.pieces))
    style = sentencepiece_model.Style(
        front=beside.flag("add_bos_token", True),
        back=beside.flag("add_eos_token", False),
        added=added,
    )
    tokenizer = sentencepiece_model.from_model(model, source.path, style)
    names = tokenizer.special_tokens | beside.names()
    id_of = {piece: i for i, piece in enumerate(model.pieces)}
    id_of |= {token.content: token.id for token in added}
    tokenizer.specials = with_names(tokenizer.specials, names, id_of)
    return tokenizer


def is_llama3(source: Source) -> bool:
    """Whether a rank file is Llama 3's: by its name in Meta's folders, or by its size."""
    if os.path.basename(source.path) == MODEL:
        return True
    return source.size > 2**20 and len(tiktoken_ranks.read_ranks(source)) == rank_file.LLAMA3_RANKS


def from_new_kind(source: Source) -> PipelineTokenizer | None:
    """A tokenizer of a kind that this module knows; None for any other file.

    Raises FormatError for an empty file of these names, and what `from_json` raises: also for a
    file that has the name of a JSON file and is of no kind that has another name.
    """
    head, name = source.head.lstrip(b"\xef\xbb\xbf \t\r\n"), os.path.basename(source.path)
    if source.size == 0 and name in (JSON, MODEL, VOCAB):
        raise FormatError(source.path, "0 bytes: download incomplete?")
    named = name in (JSON, VOCAB) and kinds.kind_of(source.head) in (None, kinds.PLAIN_TEXT)
    if named or head[:1] in (b"{", b"["):
        return from_json(source)
    if kinds.is_sentencepiece(source.head):
        return from_sentencepiece(source)
    if tiktoken_ranks.looks_like_ranks(source.head) and is_llama3(source):
        return rank_file.from_source(source)
    return None


class _Beside:
    """The small files beside a tokenizer's. A file that is absent says nothing."""

    def __init__(self, path: str) -> None:
        self._folder = Path(path).parent
        self._config = self._object(CONFIG)

    def _object(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not os.path.lexists(path):
            return {}
        return read_object(path, _SMALL)

    def _path(self, name: str) -> str:
        return os.fspath(self._folder / name)

    def flag(self, key: str, default: bool) -> bool:
        found = member(self._config, key, (bool, type(None)), self._path(CONFIG), "", None)
        return default if found is None else found

    def kind(self) -> str:
        """The tokenizer's class, or an empty string."""
        found = self._config.get("tokenizer_class")
        return found.removesuffix("Fast") if isinstance(found, str) else ""

    def names(self) -> dict[str, str]:
        """`bos_token` -> its text, and the others that are set."""
        found = dict(OF_CLASS.get(self.kind(), {}))
        for file, entries in ((MAP, self._object(MAP)), (CONFIG, self._config)):
            for name in NAMES:
                if name not in entries:
                    continue
                value = entries[name]
                if isinstance(value, dict):
                    value = value.get("content")
                if value is None:
                    found.pop(name, None)
                elif isinstance(value, str):
                    check_text(value, self._path(file), name)
                    found[name] = value
                else:
                    raise FormatError(
                        self._path(file), f"{name} = {shown(value)}: expected text or null"
                    )
        return found

    def added(self) -> list[AddedToken]:
        """Tokens behind the vocabulary: `added_tokens_decoder`, or `added_tokens.json`."""
        path = self._path(CONFIG)
        decoder = member(self._config, "added_tokens_decoder", (dict, type(None)), path, "", None)
        tokens: dict[int, AddedToken] = {}
        for text, entry in (decoder or {}).items():
            where = f"added_tokens_decoder[{shown(text)}]"
            i = int(text) if text.isdecimal() and len(text) < 10 else -1
            content = member(entry, "content", str, path, where)
            keys = "special", "single_word", "lstrip", "rstrip"
            flags = {key: member(entry, key, bool, path, where, False) for key in keys}
            tokens[i] = AddedToken(_checked(i, content, path, where), content, **flags)
        if decoder is None:
            for content, i in self._object(ADDED).items():
                found = i if type(i) is int else -1
                checked = _checked(found, content, self._path(ADDED), shown(content))
                tokens[checked] = AddedToken(checked, content)
        return list(tokens.values())


def _checked(i: int, content: str, path: str, where: str) -> int:
    if not 0 <= i <= MAX_ID:
        raise FormatError(path, f"{where}: id {i}: expected 0 to {MAX_ID}")
    check_text(content, path, where)
    return i


def _of_vocab(source: Source, beside: _Beside) -> dict[str, Any]:
    """The `tokenizer.json` that `vocab.json` and `merges.txt` stand for."""
    vocab = read_vocab(source)
    with open_source(os.path.join(os.path.dirname(source.path), MERGES)) as merges_source:
        merges = read_merges(merges_source, vocab)
    is_qwen = beside.kind() == "Qwen2Tokenizer"
    contents = {token.content: vars(token) for token in beside.added()}
    for text in beside.names().values():
        contents.setdefault(text, vars(AddedToken(vocab.get(text, 0), text)))
    if not contents:
        ends = (text for text in ("<|endoftext|>",) if text in vocab)
        contents = {text: vars(AddedToken(vocab[text], text)) for text in ends}
    known = sorted(contents.values(), key=lambda token: int(token["id"]))
    prefix = beside.flag("add_prefix_space", False)
    split = {"type": "Split", "pattern": {"Regex": QWEN2 if is_qwen else GPT2}}
    split |= {"behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix, "use_regex": not is_qwen}
    steps = [split, byte_level] if is_qwen else [byte_level]
    return {
        "added_tokens": known,
        "normalizer": {"type": "NFC"} if is_qwen else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]},
    }
