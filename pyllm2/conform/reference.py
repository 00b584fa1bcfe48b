"""What llama2.c's run prints for a case, step by step, and how sure each step is.

The strict C engine runs in this process (the specification, where there is no compiler). A step is
sure if no honest rounding can change its id: the two best logits differ by more than TOLERANCE,
or the coin is far from every boundary of the sums that it is compared with. A program is judged by
the steps before the first that is not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.conform.case import BOS, Case, rope_tables
from pyllm2.conform.dialects import TODAY, Dialect
from pyllm2.inference.original import piece_bytes as _piece_bytes
from pyllm2.inference.original import shown
from pyllm2.inference.sampling import argmax, multinomial, nucleus, probabilities, sample_top_p
from pyllm2.inference.xorshift import XorShift
from pyllm2.llama2.model import KVCache, Llama2, Weights
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer

Array = NDArray[np.float32]

# Relative to the largest logit. Float32 against float64, fused or reordered sums, a fast exp: all
# stay below 1e-5 on models of this size.
TOLERANCE = 1e-3
LOGIT_ERROR = 3e-5
COIN_ERROR = 3e-6  # of a sum of probabilities, besides the error of the logits
DEFAULTS = {"temperature": 1.0, "topp": 0.9, "steps": 256}


@dataclass(frozen=True)
class Expected:
    """The run of the original.

    prompt_ids: of the encoded prompt, BOS in front
    ids: of every step, the ids of the prompt included; a final BOS is not printed and not here
    parts: the bytes that are printed for each of `ids`
    margins: of each of `ids`, in units of the tolerance; inf for the prompt's
    sure: the number of leading steps whose margin is above 1
    """

    prompt_ids: list[int]
    ids: list[int]
    parts: list[bytes]
    margins: list[float]
    stopped: bool  # by BOS

    @property
    def sure(self) -> int:
        fragile = [i for i, margin in enumerate(self.margins) if not margin > 1]
        return min(fragile[0] if fragile else len(self.ids), len(self.ids))

    @property
    def settled(self) -> bool:
        """Whether every step is sure, the one that stopped it included."""
        return all(margin > 1 for margin in self.margins)

    @property
    def text(self) -> bytes:
        return b"".join(self.parts)

    @property
    def new(self) -> int:
        """Index of the first id that the model has chosen."""
        return len(self.prompt_ids) - 1


@functools.cache
def engine() -> backends.Engine:
    """The most exact engine that can run here without a long compilation."""
    names = [n for n in ("c-strict", "numpy") if backends.why_not(n) is None]
    return backends.engine(names[0])


def expected(case: Case, dialect: Dialect = TODAY) -> Expected:
    """Run a case as llama2.c's run does.

    Raises TokenizerError for a prompt that the vocabulary of the case cannot encode.
    """
    tokenizer = SentencePieceTokenizer(case.pieces, case.scores)
    temperature, topp, seed, steps = settings(case)
    prompt = encode(tokenizer, case.prompt or b"", dialect)
    model, cache = start(case, steps, dialect)
    coins = XorShift(seed)
    ids: list[int] = []
    parts: list[bytes] = []
    margins: list[float] = []
    token, stopped = prompt[0], False
    for pos in range(steps):
        logits = model.forward(np.array([token]), pos, cache)[-1]
        if pos + 1 < len(prompt):
            following, margin = prompt[pos + 1], np.inf
        else:
            following, margin = choose(logits, temperature, topp, coins)
        margins.append(float(margin))
        if following == BOS and dialect.bos_stops:
            stopped = True
            break
        ids.append(following)
        parts.append(printed(tokenizer, token, following, dialect))
        token = following
    return Expected(prompt, ids, parts, margins, stopped)


def start(case: Case, steps: int, dialect: Dialect) -> tuple[Llama2, KVCache]:
    """The model of a case and an empty cache; with the RoPE tables of the file, if it used them."""
    model = Llama2(case.config, Weights(**case.tensors), engine())
    if not dialect.computes_rope and case.damage == "junk rope":
        model = model.with_ops(backends.ops("numpy"))
        cache = model.new_cache(steps)
        cos, sin = rope_tables(case).values()
        cache.cos, cache.sin = cos[:steps], sin[:steps]
        return model, cache
    return model, model.new_cache(steps)


def settings(case: Case) -> tuple[float, float, int, int]:
    """Temperature, top-p, state of the generator and steps, clamped as run.c clamps them."""
    temperature = DEFAULTS["temperature"] if "temperature" in case.left_out else case.temperature
    topp = DEFAULTS["topp"] if "topp" in case.left_out else case.topp
    steps = int(DEFAULTS["steps"]) if "steps" in case.left_out else case.steps
    topp = topp if 0 <= topp <= 1 else DEFAULTS["topp"]
    steps = steps if 0 < steps <= case.seq_len else case.seq_len
    return max(0.0, temperature), topp, case.seed % 2**64, steps


def choose(logits: Array, temperature: float, topp: float, coins: XorShift) -> tuple[int, float]:
    """The next id and its margin. logits: (V,)"""
    largest = float(np.max(np.abs(logits)))
    if temperature == 0:
        return argmax(logits), _gap(logits) / max(TOLERANCE * largest, 1e-12)
    p = probabilities(logits, temperature)
    coin = coins.next_float()
    error = LOGIT_ERROR * largest / temperature + COIN_ERROR
    if 0 < topp < 1:
        chosen = sample_top_p(p, topp, coin)
        return chosen, _margin_top_p(p, topp, coin, error)
    running = np.cumsum(p, dtype=np.float64)
    return multinomial(p, coin), float(np.min(np.abs(running[:-1] - coin))) / error


def _gap(logits: Array) -> float:
    """The distance of the two largest logits; of exact ties, which only style "ties" has, to the
    next one below."""
    below = logits[logits < np.max(logits)]
    return float(np.max(logits)) - float(np.max(below)) if len(below) else 0.0


def _margin_top_p(p: Array, topp: float, coin: float, error: float) -> float:
    """The smallest of: the coin to a boundary, the sum to p, two neighbours in the order."""
    ids, running = nucleus(p, topp)
    order = np.sort(p)[::-1].astype(np.float64)
    sums = np.cumsum(order)
    to_p = float(np.min(np.abs(sums - topp)))
    r = coin * float(running[-1])
    boundaries = running[:-1].astype(np.float64)
    to_boundary = float(np.min(np.abs(boundaries - r))) if len(boundaries) else 1.0
    at = int(np.searchsorted(running, r, side="right"))
    near = order[max(0, at - 1) : at + 2]
    last = order[max(0, len(ids) - 1) : len(ids) + 1]
    swaps = [float(np.min(-np.diff(x) / x[:-1])) for x in (near, last) if len(x) > 1]
    return min([to_p, to_boundary, *(swap * 0.1 for swap in swaps)]) / error


# ---- text --------------------------------------------------------------------------------------


def encode(tokenizer: SentencePieceTokenizer, text: bytes, dialect: Dialect = TODAY) -> list[int]:
    """The ids of a prompt, BOS in front."""
    if not text or dialect.dummy_space:
        return tokenizer.encode(text)
    return [BOS, *tokenizer._merge(tokenizer._characters(text))]


def printed(
    tokenizer: SentencePieceTokenizer, previous: int, token: int, dialect: Dialect = TODAY
) -> bytes:
    """What is printed for a token."""
    if not dialect.byte_pieces:
        piece = tokenizer.pieces[token]
        piece = piece[1:] if previous == BOS and piece[:1] == b" " else piece
    else:
        piece = _piece_bytes(tokenizer, previous, token)
    return shown(piece) if dialect.hides_bytes else piece
