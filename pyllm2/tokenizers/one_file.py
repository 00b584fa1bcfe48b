"""A tokenizer as one file, beside a model that was trained with it."""

from __future__ import annotations

import json
import os
from typing import Any

from pyllm2.errors import TokenizerError
from pyllm2.formats import llama2c_vocabulary
from pyllm2.formats.sentencepiece_proto import SentencePieceModel
from pyllm2.formats.writer import atomic_write
from pyllm2.tokenizers.bpe import SPACE


def write_one_file(source: Any, name: str, path: str | os.PathLike[str]) -> None:
    """Write one file that `load_tokenizer` reads, atomically.

    source: of a `PipelineTokenizer`   name: of the tokenizer, for errors

    A SentencePiece model becomes a `tokenizer.bin` of llama2.c, as its export does, which holds
    neither the kinds of pieces nor how text is normalised; all others a `tokenizer.json`.

    Raises TokenizerError if the ids of unknown, BOS and EOS are not 0, 1 and 2.
    """
    if isinstance(source, SentencePieceModel):
        write_llama2c(source, name, path)
        return
    if not isinstance(source, dict):
        raise TokenizerError(f"{name}: cannot be written as one file")
    with atomic_write(path) as file:
        file.write(json.dumps(source, ensure_ascii=False).encode())


def write_llama2c(model: SentencePieceModel, name: str, path: str | os.PathLike[str]) -> None:
    """Write the `tokenizer.bin` of a SentencePiece model."""
    specials = model.unk_id, model.bos_id, model.eos_id
    if specials != (0, 1, 2):
        found = ", ".join(map(str, specials))
        raise TokenizerError(
            f"{name}: unknown, BOS, EOS = {found}: llama2.c's tokenizer.bin has 0, 1, 2"
        )
    pieces = [piece.replace(SPACE, " ") for piece in model.pieces]
    pieces[1:3] = [f"\n{piece}\n" for piece in pieces[1:3]]
    llama2c_vocabulary.write_vocabulary(path, [piece.encode() for piece in pieces], model.scores)
