"""SentencePiece's `.model`, read and trained through the sentencepiece library.

Pieces are converted as llama2.c's export does: U+2581 becomes a space, BOS and EOS get a newline on
either side, and a byte piece keeps its six characters (<0x00>).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pyllm2.errors import BackendError, FileError, FormatError
from pyllm2.formats.llama2c_vocabulary import MAX_BYTES, Vocabulary
from pyllm2.formats.reader import Source

SPACE = "\u2581"
N_EXAMPLES = 200

MAX_THREADS = 16
MAX_LINE = 2**15  # characters; the library's limit for a word is 2^16 - 1, and for a line in bytes
RESERVED = "\u2585"  # the library skips every line that contains this character
# "INTERNAL: src/trainer_interface.cc(638) [condition in C++] words"
_SOURCE_LINE = re.compile(r"^.*?\.(?:cc|h)\(\d+\)\s*(?:\[.*\]\s*)?")
_TOO_MANY_CHARACTERS = re.compile(r"smaller than required_chars\. (\d+) vs (\d+)")


def read_sentencepiece(
    source: Source, vocab_size: int | None = None, asked_by: str = ""
) -> Vocabulary:
    """Pieces and scores, as a `tokenizer.bin` of llama2.c has them.

    Raises BackendError without the library, FormatError for a file that it refuses, FileError for
    too few pieces or other special ids.
    """
    if source.size > MAX_BYTES:
        raise FileError(source.path, f"{source.size} bytes: a vocabulary has at most {MAX_BYTES}")
    try:
        import sentencepiece
    except ImportError:
        raise BackendError(
            f"{source.path}: a SentencePiece model needs the sentencepiece package: "
            "pip install 'pyllm2[sentencepiece]'"
        ) from None
    model, data = sentencepiece.SentencePieceProcessor(), source.read_all().tobytes()
    try:
        model.LoadFromSerializedProto(data)
    except Exception as error:  # the library raises RuntimeError and others, by version
        raise FormatError(source.path, f"not a SentencePiece model{_reason(error)}") from None

    n = model.vocab_size()
    if vocab_size is not None and n < vocab_size:
        raise FileError(source.path, f"has {n} tokens, {asked_by} expects {vocab_size}")
    specials = model.unk_id(), model.bos_id(), model.eos_id()
    if specials != (0, 1, 2):
        raise FileError(
            source.path,
            f"unknown, BOS, EOS = {', '.join(map(str, specials))}: a Llama-2 tokenizer has 0, 1, 2",
        )
    try:
        return to_vocabulary(model).cut_to(vocab_size, source.path, asked_by)
    except ValueError as error:
        raise FormatError(source.path, str(error)) from None


def train_sentencepiece(lines: Iterable[str], vocab_size: int, like_original: bool = False) -> Any:
    """Train a BPE model on lines of text, as llama2.c does; returns a `SentencePieceProcessor`.

    One setting differs from llama2.c's: runs of spaces are kept, as the encoder of a
    `tokenizer.bin` keeps them. With `like_original` the library collapses them, and the two
    encoders disagree on such text. A small text may give fewer than `vocab_size` pieces.

    Long lines are cut at blanks, because the library leaves out or refuses them.

    Raises BackendError without the library, FileError for a text or size that it refuses.
    """
    try:
        import sentencepiece
    except ImportError:
        raise BackendError(
            "training a tokenizer needs the sentencepiece package: "
            "pip install 'pyllm2[sentencepiece]'"
        ) from None
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_surface=r" \342\201\207 ",
            normalization_rule_name="identity",
            remove_extra_whitespaces=like_original,
            self_test_sample_size=0,
            max_sentence_length=8 * MAX_LINE,
            num_threads=min(MAX_THREADS, os.cpu_count() or 1),
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise FileError("the text", f"no tokenizer can be trained on it{_reason(error)}") from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _sentences(lines: Iterable[str]) -> Iterator[str]:
    """The lines as the library can use all of them: without RESERVED, of at most MAX_LINE.

    A line is cut before a blank, which is dropped, because the library puts one in front of every
    line; or anywhere, if it has no blank.
    """
    for line in lines:
        for part in line.split(RESERVED) if RESERVED in line else (line,):
            start = 0
            while len(part) - start > MAX_LINE:
                blank = part.rfind(" ", start + 1, start + MAX_LINE + 1)
                end = start + MAX_LINE if blank < 0 else blank
                yield part[start:end]
                start = end + (blank >= 0)
            if part[start:]:
                yield part[start:]


def _reason(error: Exception) -> str:
    """ ": " and the library's reason, without its source lines; empty if it gives none."""
    line = _SOURCE_LINE.sub("", (str(error).splitlines() or [""])[-1]).strip()
    found = _TOO_MANY_CHARACTERS.search(line)
    if found is not None:
        return f": its characters need a vocabulary of more than {found[2]}, not {found[1]}"
    return f": {line}" if line else ""


def to_vocabulary(model: Any) -> Vocabulary:
    """Pieces and scores of a `SentencePieceProcessor`, converted as llama2.c's export does.

    Raises ValueError for a piece that is not UTF-8.

    The examples are texts with the library's ids. The caller compares them with its own encoder,
    which would encode text with a unigram model wrongly.
    """
    pieces, scores = [], []
    for i in range(model.vocab_size()):
        try:
            text = model.id_to_piece(i)
        except UnicodeDecodeError:
            raise ValueError(f"piece {i} is not UTF-8") from None
        if i == model.bos_id():
            text = "\n<s>\n"
        elif i == model.eos_id():
            text = "\n</s>\n"
        pieces.append(text.replace(SPACE, " ").encode())
        scores.append(float(model.get_score(i)))
    ordinary = [p for p in pieces[3:] if p.strip() and b"  " not in p]
    longest = sorted(ordinary, key=lambda p: (-len(p), p))[:N_EXAMPLES]
    texts = [piece.decode().strip() for piece in longest]
    texts += [" ".join(texts[i::10]) for i in range(10)]
    return Vocabulary(pieces, scores, [], [(text, list(model.encode(text))) for text in texts])
