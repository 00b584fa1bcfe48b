"""Texts to token shards, as llm.c does it with tiny shakespeare.

A blank line ends a document; what begins one, and whether it keeps the blank line, is for the
tokenizer to say. The first tokens are for validation, the rest for training.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pyllm2.errors import FileError, UsageError
from pyllm2.formats.reader import open_source
from pyllm2.formats.tokens import MOST_TOKENS, write_shard

SHARD_TOKENS = 10**8
SEPARATOR = b"\n\n"
_BLOCK = 2**22  # bytes of a text read at a time


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def encode_document(self, text: bytes) -> list[int]: ...

    def write_tokenizer(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """What was written: names in the folder, and how much there was."""

    files: list[str]
    documents: int
    val_tokens: int
    train_tokens: int


def prepare(
    texts: Sequence[str | os.PathLike[str]], tokenizer: Encoder, out: str | os.PathLike[str],
    val_tokens: int, shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int], object] | None = None,
) -> Prepared:  # fmt: skip
    """Write a new folder `out` with train.bin, val.bin and tokenizer.bin: all of it, or nothing.

    More than shard_tokens for training go to train_000000.bin and so on. Ids take 2 bytes if they
    fit. progress: called with the number of bytes that have been encoded since.

    Raises FileError for a text or an `out` that cannot be used, before any text is encoded;
    UsageError if no token is left for training; what the tokenizer raises.
    """
    if not 0 <= val_tokens <= MOST_TOKENS or not 1 <= shard_tokens <= MOST_TOKENS:
        raise UsageError(f"a shard has 1 to {MOST_TOKENS} tokens")
    for text in texts:
        with open_source(text):
            pass
    with _new_folder(out) as folder:
        writer = _Writer(folder, 2 if tokenizer.vocab_size <= 2**16 else 4, val_tokens)
        documents = 0
        for text in texts:
            for document in documents_of(text):
                writer.add(tokenizer.encode_document(document), shard_tokens)
                documents += 1
                if progress is not None:
                    progress(len(document))
        writer.finish()
        tokenizer.write_tokenizer(folder / "tokenizer.bin")
    files = [*writer.files, "tokenizer.bin"]
    return Prepared(files, documents, val_tokens, writer.total - val_tokens)


def documents_of(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """A text cut behind every blank line, read in pieces."""
    with open_source(path) as source:
        rest = [b""]  # blocks since the last blank line
        for start in range(0, source.size, _BLOCK):
            block = source.read_range(start, min(_BLOCK, source.size - start)).tobytes()
            found = SEPARATOR in rest[-1][-1:] + block
            rest.append(block)
            if found:
                *whole, last = b"".join(rest).split(SEPARATOR)
                yield from (document + SEPARATOR for document in whole)
                rest = [last]
        yield b"".join(rest)


class _Writer:
    """Collects ids, and writes a shard whenever there are more than it takes."""

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
                f"{self.total} tokens in all: with {self.val_tokens} for validation none are "
                "left to train on"
            )
        last = f"train_{self.trains:06d}.bin" if self.trains else "train.bin"
        self._write(last, len(self.ids))

    def _write(self, name: str, n: int) -> None:
        write_shard(self.folder / name, np.array(self.ids[:n]), self.bytes_per_id)
        del self.ids[:n]
        self.files.append(name)


@contextmanager
def _new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends without an exception, and else goes."""
    name = os.fspath(out)
    if os.path.lexists(name) and not (os.path.isdir(name) and not os.listdir(name)):
        raise FileError(name, "is there already: name a new folder")
    if not name:
        raise FileError("''", "no such file or directory")
    try:
        made = tempfile.mkdtemp(prefix=".pyllm2-", dir=os.path.dirname(os.path.abspath(name)))
    except OSError as error:
        raise FileError(name, (error.strerror or str(error)).lower()) from None
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(made, 0o777 & ~mask)
        yield Path(made)
        os.rename(made, name)
    except OSError as error:
        raise FileError(name, (error.strerror or str(error)).lower()) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
