"""What a model would say after each layer, what each head attends to, how the stream grows.

    from pyllm2.observe.lens import lens
    l = lens(pyllm2.load(), "Once upon a time")
    print(l)                      the most probable next token after each layer
    l.shares[-1, 2]               probability of token 3 after tokens 0 to 2
    l.attention[4, 0]             (T, T), layer 4, head 0
    l.norms                       (L + 1, T), of the stream before the first layer and after each

The *logit lens* (nostalgebraist 2020) reads the residual stream after a layer as if it were the
last: final norm, classifier, softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends, memory
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.sampling import probabilities
from pyllm2.observe.record import Record, Trace
from pyllm2.observe.texts import text_of
from pyllm2.observe.trace import family_of, prompt_ids, trace

Array = NDArray[Any]
BEST = 5  # tokens that are kept per place


@dataclass
class Lens:
    """Everything by layer and token; row 0 is the embedding, row l + 1 the stream after layer l."""

    family: str
    name: str  # of the model
    tokens: list[int]  # (T,)
    texts: list[str]  # (T,)
    best: Array  # (L + 1, T, K) ids, the most probable first
    best_texts: list[list[list[str]]]
    best_shares: Array  # (L + 1, T, K) probabilities
    shares: Array  # (L + 1, T) probability of the token that follows; NaN for the last
    ranks: Array  # (L + 1, T) its rank, 0 is the most probable; -1 for the last
    norms: Array  # (L + 1, T) Euclidean norm of the stream
    attention: Array  # (L, NH, T, T) query, key

    @property
    def loss(self) -> float:
        """Mean of -log probability of every token but the first, in nats; NaN for one token."""
        with np.errstate(divide="ignore"):
            losses = -np.log(self.shares[-1, :-1])
        return float(losses.mean()) if losses.size else float("nan")

    def row_name(self, row: int) -> str:
        """Example: "embedding", "layer 0" """
        return f"layer {row - 1}" if row else "embedding"

    def __str__(self) -> str:
        from pyllm2.observe.lens_text import lens_text

        return lens_text(self)

    def _repr_html_(self) -> str:
        from pyllm2.observe.html import escape
        from pyllm2.observe.lens_html import lens_page

        page = escape(lens_page(self))
        return f'<iframe srcdoc="{page}" style="width:100%;height:40rem;border:0"></iframe>'


def lens(
    model: LanguageModel,
    prompt: str | bytes | Iterable[int],
    new_tokens: int = 0,
    best: int = BEST,
) -> Lens:
    """Run a prompt, and the most probable tokens after it, and look after every layer.

    Raises ContextError, TokenizerError, NotEnoughMemoryError.
    """
    ids = prompt_ids(model, prompt, new_tokens)
    if new_tokens:
        ids += [t.id for t in model.generate(ids, new_tokens, temperature=0)]
    config, T = model.config, len(ids)
    layers = getattr(config, "n_layers", None) or config.num_layers
    heads = getattr(config, "n_heads", None) or config.num_heads
    V = config.vocab_size
    memory.require(4 * layers * heads * T * T + 24 * T * V, "the lens", "give a shorter prompt")
    found = trace(model, ids, only=_is_needed)
    subject: Any = model.model
    plain = subject.with_ops(backends.ops(model.backend, package=family_of(subject)))
    streams = _streams(found, layers)
    rows = [_read(plain, stream, ids, best) for stream in streams]
    chosen, best_shares, shares, ranks = (np.array(part) for part in zip(*rows, strict=True))
    attention = np.array([r.weights for r in found if r.op in ATTENTION], np.float32)
    return Lens(
        family=found.family,
        name=str(model.path),
        tokens=ids,
        texts=[_shown(model, i, ids[t - 1] if t else None) for t, i in enumerate(ids)],
        best=chosen,
        best_texts=[
            [[_shown(model, int(i), ids[t]) for i in places] for t, places in enumerate(row)]
            for row in chosen
        ],
        best_shares=best_shares,
        shares=shares,
        ranks=ranks,
        norms=np.array([_norm(s) for s in streams]),
        attention=attention.reshape(layers, heads, T, T),
    )


ATTENTION = ("attention", "attention_forward")
EMBEDDING = ("embedding", "encoder_forward")


def _is_needed(record: Record) -> bool:
    return record.op in (*ATTENTION, *EMBEDDING) or record.op.startswith("residual")


def _streams(found: Trace, layers: int) -> list[Array]:
    """The residual stream before the first layer and after each."""
    first = next(r.output for r in found if r.op in EMBEDDING)
    added = [r for r in found if r.op.startswith("residual")]
    return [first, *([r for r in added if r.layer == i][-1].output for i in range(layers))]


def _read(model: Any, stream: Array, ids: Sequence[int], best: int) -> tuple[Array, ...]:
    """best ids, their probabilities, probability and rank of the token that follows."""
    with np.errstate(all="ignore"):
        logits = model.classify(stream)
        p = np.array([probabilities(row, 1.0) for row in logits])  # (T, V)
    T, V = p.shape
    chosen = np.argsort(-p, axis=-1, kind="stable")[:, : min(best, V)]
    shares, ranks = np.full(T, np.nan), np.full(T, -1)
    for t, following in enumerate(ids[1:]):
        shares[t] = p[t, following]
        ranks[t] = int((p[t] > p[t, following]).sum())
    return chosen, np.take_along_axis(p, chosen, -1), shares, ranks


def _norm(stream: Array) -> Array:
    rows = stream.reshape(-1, stream.shape[-1]).astype(np.float64)
    return np.sqrt((rows * rows).sum(axis=-1))


def _shown(model: LanguageModel, token: int, before: int | None) -> str:
    """The text of a token; its number where it has none: "<1>"."""
    return text_of(model, token, before) or f"<{token}>"
