"""A case: everything that decides one run, as data, and the two files that it needs."""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pyllm2.conform.weights import weights_of
from pyllm2.formats import llama2c
from pyllm2.llama2.config import Llama2Config

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
SPACE_ID = 20  # of the piece " " unless a case has another place for it
WORDS = ("model", "tokenizer", "temperature", "topp", "seed", "steps", "prompt", "system")


@dataclass(frozen=True)
class Text:
    """A piece that is not a tracer."""

    id: int
    piece: bytes
    score: float = 0.0


@dataclass(frozen=True)
class Case:
    """One run. Sizes as in llama2.c's header.

    blocks: the parts of the model that do something (`weights.BLOCKS`)
    boost: ids whose embedding is multiplied by a factor, so that they win more or less often
    texts: pieces other than the tracers; their ids are damped, so that the model says tracers
    left_out: words of the template that this run does not pass; the program's defaults apply
    """

    dim: int = 8
    hidden_dim: int = 12
    n_layers: int = 1
    n_heads: int = 1
    n_kv_heads: int = 1
    vocab_size: int = 600
    seq_len: int = 64
    shared: bool = True
    weights: int = 1  # their seed
    blocks: str = "all"
    scale: float = 1.0  # of the embedding
    loudness: float = 1.0  # of the logits
    boost: tuple[tuple[int, float], ...] = ()
    style: str = ""  # see weights.py: "ties", "loud attention"
    texts: tuple[Text, ...] = (Text(SPACE_ID, b" "),)
    prompt: bytes | None = None
    temperature: float = 0.0
    topp: float = 0.9
    seed: int = 7
    steps: int = 8
    left_out: tuple[str, ...] = ()
    damage: str = ""  # what is wrong with the files on purpose
    system: bytes | None = None  # of a chat; None: it is asked for, the first of `lines`
    lines: tuple[bytes, ...] = ()  # of stdin; a case that has some is a chat
    judge: str = "ids"  # how stdout is compared: a name of judge.WAYS

    def but(self, **changes: Any) -> Case:
        """The same case with changes."""
        return replace(self, **changes)

    @property
    def config(self) -> Llama2Config:
        return Llama2Config(
            self.dim,
            self.hidden_dim,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.vocab_size,
            self.seq_len,
        )

    def words(self) -> dict[str, str | bytes]:
        """The value of every word of a template that this run passes."""
        found: dict[str, str | bytes] = {
            "model": "model.bin",
            "tokenizer": "tokenizer.bin",
            "temperature": f"{self.temperature}",
            "topp": f"{self.topp}",
            "seed": f"{self.seed}",
            "steps": f"{self.steps}",
        }
        if self.prompt is not None:
            found["prompt"] = self.prompt
        if self.system is not None:
            found["system"] = self.system
        return {word: value for word, value in found.items() if word not in self.left_out}

    def summary(self) -> str:
        """The sizes and flags in a line, for a report."""
        parts = [f"layers {self.n_layers}", f"dim {self.dim}", f"hidden {self.hidden_dim}"]
        parts += [f"heads {self.n_heads}/{self.n_kv_heads}", f"vocabulary {self.vocab_size}"]
        parts += [f"context {self.seq_len}", f"steps {self.steps}"]
        if not self.shared:
            parts.append("own classifier")
        if self.temperature:
            parts.append(f"temperature {self.temperature}, top-p {self.topp}, seed {self.seed}")
        if self.prompt is not None:
            parts.append(f"prompt {show(self.prompt)}")
        if self.system is not None:
            parts.append(f"system prompt {show(self.system)}")
        if self.lines:
            parts.append(f"stdin {show(self.stdin)}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Plain values; bytes as text with escapes."""
        found = asdict(self)
        for name in ("prompt", "system"):
            value = getattr(self, name)
            found[name] = None if value is None else show(value)
        found["lines"] = [show(line) for line in self.lines]
        found["texts"] = [[t.id, show(t.piece), t.score] for t in self.texts]
        return found

    @property
    def stdin(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)

    # ---- files -------------------------------------------------------------------------------

    @cached_property
    def tensors(self) -> dict[str, Any]:
        return weights_of(self)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Piece i is the tracer `[i]`, but for `texts`."""
        found = [b"[%d]" % i for i in range(self.vocab_size)]
        for text in self.texts:
            found[text.id] = text.piece
        return found

    @cached_property
    def scores(self) -> list[float]:
        """Those of `texts`; of the tracers, which no prompt contains, minus their id."""
        found = [-1000.0 - i for i in range(self.vocab_size)]
        for text in self.texts:
            found[text.id] = text.score
        return found

    def model_file(self) -> bytes | None:
        """The bytes of model.bin; None: there is no file."""
        if self.damage == "no model":
            return None
        data = model_bytes(self)
        if self.damage.startswith("model cut to "):
            return data[: int(self.damage.rpartition(" ")[2])]
        return data

    def vocabulary_file(self, scored: bool = True) -> bytes | None:
        """The bytes of tokenizer.bin; None: there is no file.

        scored: False for the format of July 2023, which has lengths and pieces only
        """
        if self.damage == "no tokenizer":
            return None
        pieces, scores = self.pieces, self.scores
        if self.damage == "longer tokenizer":
            pieces = [*pieces, *(b"<%d>" % i for i in range(50))]
            scores = [*scores, *(5.0 for _ in range(50))]
        if self.damage == "shorter tokenizer":
            pieces, scores = pieces[:-1], scores[:-1]
        data = struct.pack("<I", max(map(len, pieces))) if scored else b""
        for piece, score in zip(pieces, scores, strict=True):
            data += struct.pack("<f", score) if scored else b""
            data += struct.pack("<i", len(piece)) + piece
        if self.damage == "tokenizer cut":
            data = data[: len(data) // 2]
        return data


def model_bytes(case: Case) -> bytes:
    """A checkpoint of version 0; the RoPE tables are as llama2.c's exporter writes them."""
    values, arrays = asdict(case.config), {**case.tensors, **rope_tables(case)}
    head = llama2c.header_bytes(0, values, case.shared)
    names = [name for name in llama2c.V0_ORDER if name in arrays]
    body = [np.ascontiguousarray(arrays[name], "<f4").tobytes() for name in names]
    return head + b"".join(body)


def rope_tables(case: Case) -> dict[str, Any]:
    """The two tables in the file: cosine, sine; random numbers if the case damages them."""
    tables = llama2c.rope_tables(asdict(case.config))
    if case.damage == "junk rope":
        junk = np.random.default_rng(case.weights)
        return {name: junk.normal(size=t.shape).astype(np.float32) for name, t in tables.items()}
    return tables


def show(data: bytes) -> str:
    """Bytes as text on one line, in quotation marks.

    Example: b"a\\n\\xff" -> 'a\\n\\xff'
    """
    text = data.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{shown}'"
