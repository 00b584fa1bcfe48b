"""`load`, and what it gives: a model with its tokenizer, ready to compute logits or text."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import (
    ConfigError,
    ContextError,
    FormatError,
    PyLLM2Warning,
    TokenizerError,
    printable,
)
from pyllm2.formats import llama2c, llama2c_q8
from pyllm2.formats.reader import Source, open_source
from pyllm2.generate import Token, generate_ids
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.quantized import Quantized
from pyllm2.llama2.tokenizer import BOS, EOS, Tokenizer, from_vocabulary_file
from pyllm2.sampling import Sampler
from pyllm2.session import Session

Array = NDArray[np.float32]


def load(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
) -> LanguageModel:
    """Open a checkpoint; the format is recognised by its content.

    tokenizer: a `tokenizer.bin`, a SentencePiece `.model`, or a Tokenizer; without one the model
    works on ids only. backend: a name of `pyllm2.backends.NAMES`; None takes the best there is.
    memory_map: page the weights in from the file instead of copying them into memory.
    threads: see `pyllm2.backends.ops`.
    lenient: accept with a PyLLM2Warning what the original `run` accepts without noticing.

    Raises FileError or FormatError naming the file, the field, what was found and expected;
    BackendError.
    """
    name = backend or backends.default()
    model = _load_llama2(path, backends.ops(name, threads), memory_map, lenient)
    if not isinstance(tokenizer, (Tokenizer, type(None))):
        asked_by = printable(os.fspath(path))
        tokenizer, notes = from_vocabulary_file(
            tokenizer, model.config.vocab_size, asked_by, lenient
        )
        _warn(notes)
    return LanguageModel(model, tokenizer, name, os.fspath(path))


def _load_llama2(path: str | os.PathLike[str], ops: Any, memory_map: bool, lenient: bool) -> Llama2:
    with open_source(path) as source:
        header = llama2c.read_header(source)
        config = check_config(source, header)
        if header.version == 2:
            arrays, notes = llama2c_q8.read_q8_tensors(source, header, memory_map, lenient)
            weights = _quantized_weights(arrays, header.group_size, ops)
        else:
            tensors, notes = llama2c.read_tensors(source, header, memory_map, lenient)
            weights = Weights(**tensors)
    _warn(notes)
    return Llama2(config, weights, ops)


def check_config(source: Source, header: llama2c.Header) -> Llama2Config:
    """The hyperparameters of a header, if they can be those of a model.

    Raises FormatError naming the field and its byte.
    """
    try:
        return Llama2Config(**header.values)
    except ConfigError as error:
        byte = header.byte_of[error.name]
        llama2c.refuse_if_another_kind(source)
        raise FormatError.field(
            source.path, error.name, error.found, byte, error.expected
        ) from None


def _quantized_weights(arrays: dict[str, NDArray[Any]], group_size: int, ops: Any) -> Weights:
    """int8 matrices with their scales; the embedding expanded once, and kept as classifier too."""
    tensors: dict[str, Any] = {}
    for name, array in arrays.items():
        scales = arrays.get(f"{name}_scales")
        if scales is not None:
            tensors[name] = Quantized(array, scales, group_size)
        elif not name.endswith("_scales"):
            tensors[name] = array
    embedding = tensors["token_embedding"][0]
    tensors["classifier"] = tensors["classifier"][0] if "classifier" in tensors else embedding
    tensors["token_embedding"] = ops.dequantize(embedding.values, embedding.scales, group_size)
    return Weights(**tensors)


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=3)


class LanguageModel:
    """A loaded model: `config`, `tokenizer`, `logits`, `generate`; `start` for a session."""

    def __init__(
        self, model: Llama2, tokenizer: Tokenizer | None, backend: str, path: str = "the model"
    ) -> None:
        self.model, self.backend, self.path = model, backend, path
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"<{printable(self.path)}: {self.config}, backend {self.backend!r}>"

    @property
    def config(self) -> Llama2Config:
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError if the model was loaded without one."""
        if self._tokenizer is None:
            raise TokenizerError(f"{printable(self.path)} was loaded without a tokenizer")
        return self._tokenizer

    def start(self, positions: int | None = None) -> Session:
        """A new conversation with room for `positions` tokens (None: the whole context).

        Raises ContextError beyond the context; NotEnoughMemoryError, before anything is
        allocated, if the cache cannot fit.
        """
        positions = self.config.seq_len if positions is None else positions
        return Session(self.model, positions, self.backend, self.path)

    def logits(self, ids: Sequence[int]) -> Array:
        """The logits after each id of a text that begins with ids[0]: (T, V) float32.

        Raises TokenizerError for an id outside the vocabulary, ContextError for too many ids,
        NotFiniteError naming position and layer.
        """
        if len(ids) == 0:
            return np.empty((0, self.config.vocab_size), dtype=np.float32)
        return self.start(len(ids)).feed(ids)

    def generate(
        self,
        prompt: str | bytes | Sequence[int] = "",
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int = 0,
        stop: Collection[int] = (BOS, EOS),
    ) -> Iterator[Token]:
        """Continue a prompt; iterates over new tokens, `.id` and `.bytes`, as they are made.

        prompt: text (BOS is put in front) or ids (taken as they are). temperature 0 is greedy;
        top_p 1 (or 0) is plain multinomial. seed: [0, 2⁶⁴), see `pyllm2.sampling.Sampler`.
        Ends before a stop id, after max_new_tokens, or when the context is full.

        Raises ContextError if the prompt does not fit, ValueError for a parameter out of range,
        and what `logits` raises. The arguments are checked here, not at the first token.
        """
        check_sampling(temperature, top_p, seed)
        if isinstance(prompt, (str, bytes)):
            prompt = self.tokenizer.encode(prompt)
        ids = list(prompt)
        if not ids:
            raise ValueError("prompt: no ids; begin with the BOS id, 1")
        S = self.config.seq_len
        if len(ids) > S:
            raise ContextError(f"prompt is {len(ids)} tokens, context is {S}")
        session = self.start(min(S, len(ids) + max(0, max_new_tokens)))
        session.check(ids)
        new = generate_ids(session, ids, Sampler(temperature, top_p, seed), max_new_tokens, stop)
        return self._tokens(new, at_start=ids[-1] == BOS)

    def _tokens(self, ids: Iterator[int], at_start: bool) -> Iterator[Token]:
        for i in ids:
            data = b"" if self._tokenizer is None else self._tokenizer.decode_one(i, at_start)
            yield Token(i, data)
            at_start = i == BOS


def check_sampling(temperature: float, top_p: float, seed: int) -> None:
    """Raises ValueError for what `Sampler` cannot use: the border of the Python surface."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: expected a finite number ≥ 0")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p = {top_p}: expected 0 ≤ p ≤ 1")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed}: expected a whole number in [0, 2**64)")
