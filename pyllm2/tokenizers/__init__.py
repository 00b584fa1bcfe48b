"""Text to token ids and back; `load_tokenizer` opens a tokenizer of any kind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Protocol

from pyllm2.errors import FileError, PyLLM2Warning
from pyllm2.formats import gguf as gguf_file
from pyllm2.formats import kinds, llmc_vocabulary, tiktoken_ranks
from pyllm2.formats.reader import open_source
from pyllm2.tokenizers import byte_level, folder, sentencepiece
from pyllm2.tokenizers.gguf import from_gguf
from pyllm2.tokenizers.pipeline import PipelineTokenizer

__all__ = ["Tokenizer", "fitted", "from_gguf", "load_tokenizer"]


class Tokenizer(Protocol):
    """The methods of every tokenizer.

    `SentencePieceTokenizer` (llama2.c's), `ByteLevelTokenizer` (GPT-2's) and `PipelineTokenizer`
    (all others). The default of `bos` is that of the original: True for llama2.c's, else False.
    """

    pieces: list[bytes]  # the bytes of every id
    name: str  # for errors

    @property
    def vocab_size(self) -> int: ...

    @property
    def begin(self) -> int: ...  # the id in front of a text; -1: none

    @property
    def end(self) -> int: ...  # the id after a text; -1: none

    @property
    def stop(self) -> tuple[int, ...]: ...  # the ids that end generation

    @property
    def special_tokens(self) -> dict[str, str]: ...  # "bos_token" -> its text, ...

    def encode(
        self, text: str | bytes, bos: bool = ..., eos: bool = ..., special: bool | None = ...
    ) -> list[int]: ...  # special: whether special tokens in the text are parsed

    def encode_prompt(self, text: str | bytes, special: bool | None = ...) -> list[int]: ...

    def at_least(self, text: str | bytes) -> int: ...  # a lower bound of the number of its ids

    def encode_document(self, text: bytes) -> list[int]: ...  # as training data

    def decode(self, ids: Iterable[int], at_start: bool = ...) -> bytes: ...

    def decode_one(self, i: int, at_start: bool = False) -> bytes: ...

    def write_tokenizer(self, path: str | os.PathLike[str]) -> None: ...


def load_tokenizer(
    path_or_name: str | os.PathLike[str],
    vocab_size: int | None = None,
    asked_by: str = "the model",
    lenient: bool = False,
) -> Tokenizer:
    """Open a tokenizer of any kind; the content of a file tells which.

    path_or_name: a folder of Hugging Face or Meta; or a file: `tokenizer.json`, `tokenizer.model`
    (SentencePiece, or Llama 3's rank file), `vocab.json` with `merges.txt` beside it, a GGUF model,
    llama2.c's `tokenizer.bin`, llm.c's tokenizer file, a rank file of tiktoken; or `gpt2` (GPT-2's
    vocabulary, which tiktoken downloads), or `bytes` (one id per byte and one that ends a text: the
    smallest vocabulary).
    vocab_size, asked_by: size of the model's vocabulary, and the model's name for errors. It may be
    larger than that of a Hugging Face, Meta or SentencePiece tokenizer: ids without a token have no
    bytes. Of a larger vocabulary of llama2.c the first ids are used, with a PyLLM2Warning.
    lenient: accept faults in a file that llama2.c's `run` does not notice, and read a SentencePiece
    model as llama2.c's export does.

    Raises FileError or FormatError; BackendError or TokenizerError for `gpt2`.
    """
    tokenizer, notes = _open(path_or_name, vocab_size, asked_by, lenient)
    if vocab_size is not None:
        tokenizer = fitted(tokenizer, vocab_size, asked_by)
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=2)
    return tokenizer


def fitted(tokenizer: Tokenizer, vocab_size: int, asked_by: str = "the model") -> Tokenizer:
    """The tokenizer for a model with this many ids.

    That of another library may have fewer: the ids that are left have no bytes.

    Raises FileError naming the largest id, or both sizes.
    """
    found = tokenizer.vocab_size
    if isinstance(tokenizer, PipelineTokenizer):
        if found > vocab_size:
            most = vocab_size - 1
            raise FileError(
                tokenizer.name, f"has token id {found - 1}, {asked_by} has ids 0 to {most}"
            )
        return tokenizer.padded(vocab_size)
    if found != vocab_size:
        raise FileError(tokenizer.name, f"has {found} tokens, {asked_by} expects {vocab_size}")
    return tokenizer


def _open(
    path_or_name: str | os.PathLike[str], vocab_size: int | None, asked_by: str, lenient: bool
) -> tuple[Tokenizer, list[str]]:
    """The tokenizer, and warnings."""
    if path_or_name == "bytes":
        return byte_level.byte_tokenizer(), []
    if path_or_name == "gpt2" and not os.path.exists(path_or_name):
        return byte_level.from_registry(), []
    if os.path.isdir(path_or_name):
        path_or_name = folder.tokenizer_file(os.fspath(path_or_name))
    with open_source(path_or_name) as source:
        if source.head[:4] == gguf_file.MAGIC:
            return from_gguf(gguf_file.read_gguf(source).metadata, source.path), []
        if source.head[:4] == llmc_vocabulary.MAGIC.to_bytes(4, "little"):
            return byte_level.from_llmc(source), []
        if lenient and kinds.is_sentencepiece(source.head):
            return sentencepiece.from_source(source, vocab_size, asked_by, lenient)
        found = folder.from_new_kind(source)
        if found is not None:
            return found, []
        if tiktoken_ranks.looks_like_ranks(source.head):
            return byte_level.from_ranks(source), []
        return sentencepiece.from_source(source, vocab_size, asked_by, lenient)
