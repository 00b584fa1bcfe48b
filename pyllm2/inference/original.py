"""Behaviour of llama2.c's run that the rest of pyllm2 does not share: printing, sampling.

The drop-in `run` has it, and `conform`, which judges other programs by it.
"""

from __future__ import annotations

import re

import numpy as np

from pyllm2.errors import NotFiniteError
from pyllm2.inference.sampling import (
    Array,
    Sampler,
    argmax,
    multinomial,
    probabilities,
    sample_top_p,
)
from pyllm2.tokenizers.sentencepiece import BOS, SentencePieceTokenizer

# ---- printing ------------------------------------------------------------------------------------

# A raw-byte piece as scanf("<0x%02hhx>") sees it: white space is skipped, then at most two
# characters of an optional sign and hex digits; what follows is not looked at.
_LAX_BYTE = re.compile(rb"<0x[ \t\n\v\f\r]*(?:([+-][0-9A-Fa-f])|([0-9A-Fa-f]{1,2}))")
_PRINTABLE_ALONE = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\v\f\r")


def piece_bytes(tokenizer: SentencePieceTokenizer, previous: int, token: int) -> bytes:
    """The piece of a token as the original decodes it, before the print filter.

    After BOS one leading space goes. Byte 0x00 gives nothing; a NUL cuts the piece.
    """
    piece = tokenizer.pieces[token]
    if previous == BOS and piece[:1] == b" ":
        piece = piece[1:]
    match = _LAX_BYTE.match(piece)
    if match:
        piece = bytes([int(match[1] or match[2], 16) % 256])
    return piece.split(b"\0", 1)[0]


def shown(piece: bytes) -> bytes:
    """The bytes that the original prints for a piece: none for a single byte that is not printable.

    A character that is split into byte tokens is therefore never printed.
    """
    return b"" if len(piece) == 1 and piece[0] not in _PRINTABLE_ALONE else piece


# ---- sampling ------------------------------------------------------------------------------------


class OriginalSampler(Sampler):
    """A `Sampler` that also does what the original does with zero and NaN probabilities.

    seed: the first state of the generator, also if it is 0.
    A multinomial draw is the last id if the running sum stays below the coin, even if the
    probability of that id is 0, and whenever the probabilities are NaN. Top-p with NaN reads
    memory out of bounds in the original; here it raises NotFiniteError.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        super().__init__(temperature, top_p, seed)
        self.rng.state = seed

    def __call__(self, logits: Array) -> int:
        if self.temperature == 0:
            return argmax(logits)
        p = probabilities(logits, float(self.temperature))
        coin = self.rng.next_float()
        if self.top_p <= 0 or self.top_p >= 1:
            return len(p) - 1 if np.isnan(p[0]) else multinomial(p, coin)
        if np.isnan(p[0]) or np.isnan(self.top_p):
            raise NotFiniteError(
                f"-t {self.temperature:g} with -p {self.top_p:g}: top-p needs probabilities that "
                "are numbers (the original reads memory out of bounds)"
            )
        return sample_top_p(p, float(self.top_p), coin)
