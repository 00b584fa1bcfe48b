"""A SentencePiece `.model`, read through the sentencepiece library, as pieces and scores.

The rule is that of llama2.c's export: BOS and EOS become newline `<s>` newline and newline `</s>`
newline, U+2581 becomes a space, byte pieces stay as their six characters.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any

from pyllm2.errors import BackendError, FileError, FormatError
from pyllm2.formats.reader import Source
from pyllm2.formats.vocabulary import MOST_BYTES, Vocabulary

SPACE = "\u2581"
N_EXAMPLES = 200


def read_sentencepiece(
    source: Source, vocab_size: int | None = None, asked_by: str = ""
) -> Vocabulary:
    """Pieces and scores as `tokenizer.bin` would hold them.

    Raises BackendError if the library is not installed, FormatError if it refuses the file,
    FileError if it has too few pieces or other special ids.
    """
    if source.size > MOST_BYTES:
        raise FileError(source.path, f"{source.size} bytes: a vocabulary has at most {MOST_BYTES}")
    try:
        import sentencepiece
    except ImportError:
        raise BackendError(
            f"{source.path}: a SentencePiece model needs the sentencepiece package: "
            "pip install 'pyllm2[sentencepiece]'"
        ) from None
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(source.read_all().tobytes())
    except Exception as error:  # the library raises RuntimeError and others, by version
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(source.path, f"not a SentencePiece model: {first_line}") from None

    n = model.vocab_size()
    if vocab_size is not None and n < vocab_size:
        raise FileError(source.path, f"has {n} tokens, {asked_by} expects {vocab_size}")
    specials = model.unk_id(), model.bos_id(), model.eos_id()
    if specials != (0, 1, 2):
        raise FileError(
            source.path,
            f"unknown, BOS, EOS = {', '.join(map(str, specials))}: a Llama-2 tokenizer has 0, 1, 2",
        )
    return to_vocabulary(model).cut_to(vocab_size, source.path, asked_by)


def train_sentencepiece(lines: Iterable[str], vocab_size: int, like_original: bool = False) -> Any:
    """Train a BPE model with llama2.c's settings on lines of text; a `SentencePieceProcessor`.

    But for one: runs of spaces are kept, as the encoder of a `tokenizer.bin` keeps them. With
    `like_original` the library collapses them, and the two encoders disagree on such text.
    A small text may give fewer pieces than asked for; the 259 specials and bytes are always there.

    Raises BackendError without the library; FileError for what it refuses: no text, no room.
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
            sentence_iterator=iter(lines),
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
            max_sentence_length=10**6,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        raise FileError("the text", f"no tokenizer can be trained on it: {reason}") from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def to_vocabulary(model: Any) -> Vocabulary:
    """The pieces of a loaded `SentencePieceProcessor`, by llama2.c's export rule.

    With examples of how the library encodes: a unigram model, read by an encoder that merges by
    score, would give wrong ids in silence, so whoever builds the encoder compares.
    """
    pieces, scores = [], []
    for i in range(model.vocab_size()):
        text = model.id_to_piece(i)
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
