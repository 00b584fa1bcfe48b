"""Token shards from texts, as llm.c prepares Tiny Shakespeare.

`formats.text` divides a text into documents; the tokenizer decides which id begins a document, and
whether the blank line at its end is kept. The first tokens are for validation, the rest are for
training.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pyllm2.errors import UsageError
from pyllm2.formats.llmc_tokens import MAX_TOKENS, write_shard
from pyllm2.formats.new_folder import new_folder
from pyllm2.formats.text import Text, open_texts

SHARD_TOKENS = 10**8
FILES = ("train.bin", "train_*.bin", "val.bin", "tokenizer.bin")


class Encoder(Protocol):
    """A tokenizer that can encode documents and write itself."""

    @property
    def vocab_size(self) -> int: ...

    def encode_document(self, text: bytes) -> list[int]: ...

    def write_tokenizer(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has written: file names, documents, tokens."""

    files: list[str]
    documents: int
    val_tokens: int
    train_tokens: int


def prepare(
    texts: Sequence[str | os.PathLike[str]] | Sequence[Text],
    tokenizer: Encoder,
    out: str | os.PathLike[str],
    val_tokens: int,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int], object] | None = None,
    separator: str | None = None,
    replace: bool = False,
) -> Prepared:
    """Write a new folder `out` with train.bin, val.bin and tokenizer.bin: all files or none.

    More than shard_tokens training tokens are split into train_000000.bin and so on. An id takes
    2 bytes if the vocabulary allows, else 4.
    texts, separator: paths for `formats.text.open_texts` and its separator, or opened texts
    replace: a folder with files of these names may be there, and is replaced
    progress: called with the number of bytes encoded since the last call

    Raises FileError for an unusable text or `out`, before any text is encoded; UsageError if no
    token is left for training; whatever the tokenizer raises.
    """
    if not 0 <= val_tokens <= MAX_TOKENS or not 1 <= shard_tokens <= MAX_TOKENS:
        raise UsageError(f"a shard has 1 to {MAX_TOKENS} tokens")
    with ExitStack() as stack:
        opened = [text for text in texts if isinstance(text, Text)]
        if len(opened) < len(texts):
            opened = stack.enter_context(open_texts(texts, separator))  # type: ignore[arg-type]
        folder = stack.enter_context(new_folder(out, FILES if replace else ()))
        writer = _Writer(folder, 2 if tokenizer.vocab_size <= 2**16 else 4, val_tokens)
        documents = 0
        for text in opened:
            for document in text.documents():
                writer.add(tokenizer.encode_document(document), shard_tokens)
                documents += 1
                if progress is not None:
                    progress(len(document))
        writer.finish()
        tokenizer.write_tokenizer(folder / "tokenizer.bin")
    files = [*writer.files, "tokenizer.bin"]
    return Prepared(files, documents, val_tokens, writer.total - val_tokens)


class _Writer:
    """Collects ids and writes a shard whenever there are enough."""

    def __init__(self, folder: Path, bytes_per_id: int, val_tokens: int) -> None:
        self.folder, self.bytes_per_id, self.val_tokens = folder, bytes_per_id, val_tokens
        self.ids = array("H" if bytes_per_id == 2 else "I")
        self.files: list[str] = []
        self.total = self.trains = 0
        self.validated = val_tokens == 0

    def add(self, ids: list[int], shard_tokens: int) -> None:
        self.ids.extend(ids)
        self.total += len(ids)
        if not self.validated and len(self.ids) > self.val_tokens:
            self._write("val.bin", self.val_tokens)
            self.validated = True
        while self.validated and len(self.ids) > shard_tokens:
            self._write(f"train_{self.trains:06d}.bin", shard_tokens)
            self.trains += 1

    def finish(self) -> None:
        if not self.validated or not self.ids:
            raise UsageError(
                f"{self.total} tokens in total, {self.val_tokens} of them for validation: none "
                "left for training (--val-tokens N takes fewer)"
            )
        last = f"train_{self.trains:06d}.bin" if self.trains else "train.bin"
        self._write(last, len(self.ids))

    def _write(self, name: str, n: int) -> None:
        write_shard(self.folder / name, np.array(self.ids[:n]), self.bytes_per_id)
        del self.ids[:n]
        self.files.append(name)
