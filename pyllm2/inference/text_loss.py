"""How well a model predicts a text: loss per token and per byte, perplexity, standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.inference.generate import PREFILL_CHUNK
from pyllm2.inference.language_model import LanguageModel

BLOCKS = 50  # of consecutive tokens, whose means give the standard error


@dataclass(frozen=True)
class TextLoss:
    """The losses of a text. losses: (N,) nats, of every token but the first   nbytes: its size"""

    losses: NDArray[np.float64]
    nbytes: int

    @property
    def nats_per_token(self) -> float:
        return float(self.losses.mean())

    @property
    def nats_per_byte(self) -> float:
        return float(self.losses.sum()) / self.nbytes

    @property
    def bits_per_byte(self) -> float:
        """Compares models with different vocabularies."""
        return self.nats_per_byte / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp of the loss per token."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def standard_error(self) -> float:
        """Of `nats_per_token`: from the means of up to 50 blocks of consecutive tokens, because the
        losses of neighbours depend on each other. NaN for fewer than 2 tokens.
        """
        n = min(BLOCKS, len(self.losses))
        if n < 2:
            return math.nan
        means = [block.mean() for block in np.array_split(self.losses, n)]
        return float(np.std(means, ddof=1) / math.sqrt(n))


def text_losses(
    model: LanguageModel,
    ids: Sequence[int],
    stride: int | None = None,
    context: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> NDArray[np.float64]:
    """-log p(id | the ids before it) in nats, of ids[1:], (N - 1,).

    A text that is longer than the context is read in windows that begin `stride` tokens apart
    (None: half the context): every token is predicted once, from at least context - stride tokens
    before it where there are as many. The smaller the stride, the lower the loss, and the slower.

    Raises ValueError for a stride that is not from 1 to the context; what `Session.feed` raises.
    """
    S = min(context or model.config.seq_len, model.config.seq_len)
    stride = max(1, S // 2) if stride is None else stride
    if not 1 <= stride <= S:
        raise ValueError(f"stride = {stride}: expected 1 to {S}, the context")
    targets = np.asarray(ids[1:], np.int64)
    losses = np.empty(len(targets), np.float64)
    done = 0  # targets[:done] have their losses
    for start in range(0, len(targets), stride):
        end = min(start + S, len(targets))
        session = model.start(end - start)
        for a in range(start, end, PREFILL_CHUNK):
            b = min(a + PREFILL_CHUNK, end)
            logits = session.feed(ids[a:b])
            if b > done:
                new = slice(max(a, done), b)
                losses[new] = cross_entropy(logits[new.start - a :], targets[new])
        done = end
        progress(done, len(targets))
        if done == len(targets):
            break
    return losses


def cross_entropy(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of every row, in float64. logits: (T, V)   targets: (T,)"""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(x).sum(axis=-1))
    return np.asarray(log_sum - x[np.arange(len(targets)), targets])
