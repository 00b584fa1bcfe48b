"""The ladder: greedy ids of random models, one part or one relation of sizes at a time."""

from __future__ import annotations

from typing import Any

from pyllm2.conform.case import Case, Text
from pyllm2.conform.maker import Maker
from pyllm2.conform.property import Draw, Property
from pyllm2.conform.reference import Expected

TAILS = (
    {"dim": 2, "hidden_dim": 1},
    {"dim": 6, "hidden_dim": 7},
    {"dim": 10, "hidden_dim": 9},
    {"dim": 14, "hidden_dim": 17},
    {"dim": 18, "hidden_dim": 15},
    {"dim": 8, "hidden_dim": 33, "vocab_size": 601},
    {"dim": 30, "hidden_dim": 31, "vocab_size": 607},
    {"dim": 34, "hidden_dim": 65},
    {"dim": 62, "hidden_dim": 63},
    {"dim": 66, "hidden_dim": 29, "vocab_size": 613},
)
GROUPS = ((4, 2), (8, 4), (8, 2), (4, 2, 4), (6, 3, 8), (6, 2, 4))  # query heads, key/value heads


def of_sizes(*rows: dict[str, Any], **fixed: Any) -> Draw:
    """The rows in turn, with other weights in each round."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        changes = {**fixed, **rows[i % len(rows)]}
        distinct = changes.pop("distinct", 3)
        if "hs" in changes:
            changes["dim"] = changes["n_heads"] * max(changes.pop("hs"), maker.least_head)
        return maker.draw(maker.base(**changes), 1 + 1000 * (i // len(rows)) + 10 * i, distinct)

    return draw


def _heads(NH: int, NKV: int, hs: int = 2) -> dict[str, Any]:
    return {"n_heads": NH, "n_kv_heads": NKV, "hs": hs}


def _layers(i: int) -> dict[str, Any]:
    return {"n_layers": i, "n_heads": 1, "n_kv_heads": 1}


_FULL = ("rope", "feed-forward")

PROPERTIES = (
    Property(
        "smoke",
        "a model of embedding, norm and classifier says its ids",
        "the checkpoint or vocabulary is read wrongly, or the command line is another",
        of_sizes({"blocks": "none"}),
        cases=3,
        needs=(),
    ),
    Property(
        "feed-forward",
        "the feed-forward network of one layer",
        "w1 and w3 exchanged, silu without its gate, or an array read from another place",
        of_sizes({"blocks": "feed-forward"}, distinct=2),
    ),
    Property(
        "attention",
        "the values of every position up to its own are averaged",
        "the own position is left out, the output is not cleared, or the cache has a wrong stride",
        of_sizes({"blocks": "values"}, distinct=2),
    ),
    Property(
        "rope",
        "queries and keys are rotated in adjacent pairs, and scores divided by sqrt(head size)",
        "halves rotated instead of pairs, an angle of another position, or a wrong scale",
        of_sizes({"blocks": "attention", "dim": 8}, {"blocks": "attention", "dim": 16}, distinct=2),
        needs=("attention",),
    ),
    Property(
        "vector-tails",
        "sizes around the width of a vector register",
        "a vector loop reads beyond the row, or leaves out the entries after the last whole vector",
        of_sizes(*TAILS, distinct=2),
        cases=len(TAILS),
        needs=_FULL,
    ),
    Property(
        "layers",
        "more layers than key/value heads",
        "an array or the cache is sized or strided by n_kv_heads in place of n_layers",
        of_sizes(_layers(2), _layers(3), _layers(5)),
        needs=_FULL,
    ),
    Property(
        "heads",
        "several heads",
        "RoPE uses the index in the row in place of the index in the head, or the heads overlap",
        of_sizes(_heads(2, 2, 4), _heads(4, 4, 4), _heads(2, 2, 8)),
        needs=_FULL,
    ),
    Property(
        "grouped-heads",
        "several query heads share a key/value head",
        "head h reads key/value head h % n_kv_heads in place of h / (n_heads / n_kv_heads), or "
        "keys have the width of queries",
        of_sizes(*(_heads(*group) for group in GROUPS)),
        needs=("heads",),
    ),
    Property(
        "multi-query",
        "all query heads share one key/value head",
        "a loop or a stride over key/value heads assumes more than one",
        of_sizes(_heads(2, 1, 4), _heads(4, 1), _heads(8, 1)),
        needs=("grouped-heads",),
    ),
    Property(
        "own-classifier",
        "a negative vocabulary size: the classifier is a matrix of its own at the end of the file",
        "the sign is ignored, or the RoPE tables before the matrix are not skipped",
        of_sizes({"blocks": "none", "shared": False}, {"shared": False, "seq_len": 33}),
        needs=_FULL,
    ),
    Property(
        "rope-tables",
        "the RoPE tables of the file are not used",
        "sines and cosines are read from the file, as run.c did until August 2023",
        of_sizes({"damage": "junk rope"}),
        needs=_FULL,
        switch="computes_rope",
    ),
    Property(
        "epsilon",
        "1e-5 is added to the mean of squares: it counts for tiny embeddings",
        "no epsilon, another one, or added outside of the root",
        of_sizes(
            {"style": "tiny", "scale": 3e-3},
            {"style": "tiny", "scale": 1e-3},
            {"style": "tiny", "scale": 1e-2},
            distinct=2,
        ),
        needs=_FULL,
    ),
    Property(
        "argmax-ties",
        "of equal logits the lowest id wins",
        "the last of equals is taken: >= in place of >",
        of_sizes({"style": "ties", "shared": False, "blocks": "none"}, distinct=1),
        cases=3,
        needs=("own-classifier",),
        words=("temperature",),
    ),
    Property(
        "large-scores",
        "attention scores of some hundreds",
        "softmax without subtracting the maximum: exp overflows",
        of_sizes({"style": "loud attention"}, distinct=2),
        cases=3,
        needs=_FULL,
    ),
    Property(
        "positions",
        "a text of some hundred positions",
        "angles lose precision with the position, or the cache is too short",
        of_sizes({"seq_len": 256, "steps": 130}, {"seq_len": 140, "steps": 140, "dim": 16}),
        cases=2,
        needs=_FULL,
    ),
    Property(
        "small-files",
        "files of less than 4096 bytes, and a vocabulary of a few pieces",
        "a buffer is read whole, or a file is expected to fill it",
        of_sizes({"vocab_size": 40}, {"vocab_size": 30, "dim": 2, "hidden_dim": 2}, distinct=2),
        cases=3,
        needs=_FULL,
    ),
    Property(
        "no-space-piece",
        "a vocabulary without the piece ' ', which only a prompt needs",
        "the piece is looked up although there is no prompt",
        of_sizes({"texts": ()}),
        cases=2,
        needs=_FULL,
    ),
)

__all__ = ["PROPERTIES", "Text", "of_sizes"]
