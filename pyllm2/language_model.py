"""What `load` gives: a model with its tokenizer, ready to compute logits or text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import ContextError, TokenizerError, printable
from pyllm2.generate import Token, generate_ids
from pyllm2.gpt2.model import GPT2
from pyllm2.sampling import Sampler
from pyllm2.session import Decoder, Session
from pyllm2.training.parameters import Parameters

Array = NDArray[np.float32]


class Tokenizer(Protocol):
    """What generation asks of a tokenizer: `llama2.tokenizer`, `gpt2.tokenizer`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def begin(self) -> int: ...  # the id in front of a text

    @property
    def stop(self) -> tuple[int, ...]: ...  # the ids after which there is no more

    def encode(self, text: str | bytes) -> list[int]: ...

    def encode_prompt(self, text: str | bytes) -> list[int]: ...  # `begin` in front

    def decode(self, ids: Sequence[int]) -> bytes: ...

    def decode_one(self, i: int, at_start: bool = False) -> bytes: ...


class LanguageModel:
    """A loaded model: `config`, `tokenizer`, `logits`, `generate`; `start` for a session."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer | None, backend: str, path: str = "the model"
    ) -> None:
        self.model, self.backend, self.path = model, backend, path
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"<{printable(self.path)}: {self.config}, backend {self.backend!r}>"

    @property
    def config(self) -> Any:
        """Hyperparameters: a `Llama2Config` or a `GPT2Config`."""
        return self.model.config

    @property
    def tokenizer(self) -> Any:
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
        stop: Collection[int] | None = None,
    ) -> Iterator[Token]:
        """Continue a prompt; iterates over new tokens, `.id` and `.bytes`, as they are made.

        prompt: text (what begins a text is put in front: BOS, or GPT-2's end-of-text) or ids
        (taken as they are). temperature 0 is greedy; top_p 1 (or 0) is plain multinomial.
        seed: [0, 2⁶⁴), see `pyllm2.sampling.Sampler`. Ends before a stop id (None: those of the
        tokenizer, if there is one), after max_new_tokens, or when the context is full.

        Raises ContextError if the prompt does not fit, ValueError for a parameter out of range,
        and what `logits` raises. The arguments are checked here, not at the first token.
        """
        check_sampling(temperature, top_p, seed)
        if isinstance(prompt, (str, bytes)):
            prompt = self.tokenizer.encode_prompt(prompt)
        ids: list[int] = list(prompt)  # type: ignore[arg-type]
        if not ids:
            raise ValueError("prompt: no ids; begin with the id that begins a text")
        S = self.config.seq_len
        if len(ids) > S:
            raise ContextError(f"prompt is {len(ids)} tokens, context is {S}")
        known = self._tokenizer
        if stop is None:
            stop = () if known is None else known.stop
        session = self.start(min(S, len(ids) + max(0, max_new_tokens)))
        session.check(ids)
        new = generate_ids(session, ids, Sampler(temperature, top_p, seed), max_new_tokens, stop)
        return self._tokens(new, at_start=known is not None and ids[-1] == known.begin)

    def _tokens(self, ids: Iterator[int], at_start: bool) -> Iterator[Token]:
        for i in ids:
            known = self._tokenizer
            yield Token(i, b"" if known is None else known.decode_one(i, at_start))
            at_start = known is not None and i == known.begin


class GPT2LanguageModel(LanguageModel):
    """A loaded GPT-2: all that a `LanguageModel` is, with loss and gradients."""

    def __init__(
        self, model: Decoder, gpt2: GPT2, tokenizer: Tokenizer | None, backend: str, path: str
    ) -> None:
        super().__init__(model, tokenizer, backend, path)
        self.gpt2 = gpt2

    def loss(self, x: NDArray[np.integer], y: NDArray[np.integer]) -> float:
        """The mean loss in nats. x: (B, T) ids   y: (B, T), the id that follows each

        Raises what `loss_and_grads` raises.
        """
        self._check(x, y)
        return float(self.gpt2.losses(x, y).mean())

    def loss_and_grads(
        self, x: NDArray[np.integer], y: NDArray[np.integer]
    ) -> tuple[float, Parameters]:
        """The mean loss, and its gradient for every parameter: `grads.wte`, `grads["qkvw"]`, …

        x, y: (B, T) ids
        Raises TokenizerError for an id outside the vocabulary, ContextError for T beyond the
        context, ValueError for shapes that are not two equal (B, T).
        """
        self._check(x, y)
        grads = self.gpt2.params.zeros_like()
        losses = self.gpt2.add_gradient(x, y, 1 / x.size, grads, fresh=True)
        return float(losses.mean()), grads

    def _check(self, x: NDArray[np.integer], y: NDArray[np.integer]) -> None:
        if x.ndim != 2 or x.shape != y.shape or 0 in x.shape:
            raise ValueError(f"x {x.shape} and y {y.shape}: expected two equal shapes (B, T)")
        if x.shape[1] > self.config.seq_len:
            raise ContextError(f"{x.shape[1]} tokens, context is {self.config.seq_len}")
        for ids in (x, y):
            bad = ids[(ids < 0) | (ids >= self.config.vocab_size)]
            if len(bad):
                most = self.config.vocab_size - 1
                raise TokenizerError(f"token id {bad[0]}: the model has ids 0 to {most}")


def check_sampling(temperature: float, top_p: float, seed: int) -> None:
    """Raises ValueError for what `Sampler` cannot use: the border of the Python surface."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: expected a finite number ≥ 0")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p = {top_p}: expected 0 ≤ p ≤ 1")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed}: expected a whole number in [0, 2**64)")
