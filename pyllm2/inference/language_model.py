"""What `load` gives: a model with its tokenizer, for logits, text, loss and gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import ContextError, FileError, PyLLM2Error, TokenizerError, printable
from pyllm2.formats.reader import open_source
from pyllm2.gpt2 import family as gpt2
from pyllm2.gpt2.model import GPT2
from pyllm2.inference.batch import MOST, Batch
from pyllm2.inference.chat import chat_ids
from pyllm2.inference.generate import Generation
from pyllm2.inference.ranges import check_sampling, whole
from pyllm2.inference.sampling import Sampler
from pyllm2.inference.session import Decoder, Session, check_ids
from pyllm2.llama2 import family as llama2
from pyllm2.llama2.model import Llama2
from pyllm2.parameters import Parameters
from pyllm2.tokenizers import Tokenizer
from pyllm2.tokenizers.arguments import text_bytes, token_ids
from pyllm2.tokenizers.chat_template import ChatTemplate, find_chat_template
from pyllm2.training.losses import mean_loss

Array = NDArray[np.float32]
Ids = NDArray[np.integer]
Stop = Collection[int | str | bytes] | str | bytes | None
_FAMILIES: dict[type, Any] = {Llama2: llama2, GPT2: gpt2}


class LanguageModel:
    """A loaded model: logits, text, loss and gradients; `start` gives a session.

    Pickled or copied, it is loaded again: from the same file, with the same tokenizer, backend and
    number of threads. Weights that were changed in memory are not part of the copy.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        backend: str,
        path: str = "the model",
        again: tuple[Callable[..., LanguageModel], tuple[Any, ...]] | None = None,
        end_ids: tuple[int, ...] | None = None,
    ) -> None:
        """again: a function, and its arguments, that loads this model.
        end_ids: the ids that end a text (None: those of the tokenizer)."""
        self.model, self.backend, self.path = model, backend, path
        self._tokenizer, self._again, self._end_ids = tokenizer, again, end_ids

    def __reduce__(self) -> tuple[Callable[..., LanguageModel], tuple[Any, ...]]:
        if self._again is None:
            raise FileError(self.path, "was not loaded from a file: it cannot be pickled or copied")
        return self._again

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

    @property
    def stop(self) -> tuple[int, ...]:
        """The ids that end a text: by the model's own config, else by its tokenizer."""
        if self._end_ids is not None:
            return self._end_ids
        return () if self._tokenizer is None else tuple(self._tokenizer.stop)

    def start(self, positions: int | None = None) -> Session:
        """A new session with a cache of `positions` positions (None: the whole context).

        Raises ContextError for more positions than the model has, NotEnoughMemoryError for a cache
        that does not fit in memory.
        """
        positions = self.config.seq_len if positions is None else positions
        return Session(self.model, positions, self.backend, self.path)

    def logits(self, ids: Iterable[int]) -> Array:
        """The logits after each id of a text: (T, V) float32.

        Raises TokenizerError for an id outside the vocabulary, ContextError for too many ids,
        NotFiniteError naming position and layer.
        """
        ids = token_ids(ids)
        if not ids:
            return np.empty((0, self.config.vocab_size), dtype=np.float32)
        return self.start(len(ids)).feed(ids)

    def generate(
        self,
        prompt: str | bytes | Iterable[int] = "",
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int = 0,
        stop: Stop = None,
        context: int | None = None,
        session: Session | None = None,
        choose: Callable[[Array], int] | None = None,
        logprobs: bool = False,
    ) -> Generation:
        """Continue a prompt; iterates over new tokens, `.id` and `.bytes`, as they are made.

        prompt: text (the id that begins a text is put in front), or ids (used unchanged).
        temperature: 0 is greedy. top_p: 1 keeps every token. seed: see `sampling.Sampler`.
        stop: what ends the text and is not part of it. Ids replace those of the model (None: those
        of the model); texts, wherever their tokens begin, come in addition to them.
        context: maximum number of positions (None: the model's).
        session: a session of `start` to continue instead of a new one; `context` is not used then.
        choose: a function from logits (V,) to an id, instead of temperature, top_p and seed. A
        `Sampler` is one; used for several calls, it continues its random numbers.
        logprobs: give every token its `.logprob`.

        The text ends before a stop id or text, after max_new_tokens, or when the context is full.

        Raises ContextError if the prompt does not fit, ValueError for a parameter that is out of
        range or no number, and what `logits` raises. The arguments are checked when `generate` is
        called.
        """
        temperature, top_p, seed = check_sampling(temperature, top_p, seed)
        max_new_tokens = whole("max_new_tokens", max_new_tokens)
        if session is None:
            ids, positions = self._fitting(prompt, max_new_tokens, self._room(context))
            session = self.start(positions)
        else:
            ids, _ = self._fitting(prompt, max_new_tokens, session.room)
        stop_ids, stop_texts = self._stops(stop)
        choose = choose or Sampler(temperature, top_p, seed)
        known = self._tokenizer
        return Generation(
            session, ids, choose, max_new_tokens, stop_ids, known, stop_texts, logprobs
        )

    def generate_batch(
        self,
        prompts: Iterable[str | bytes | Iterable[int]],
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int = 0,
        stop: Stop = None,
        context: int | None = None,
        logprobs: bool = False,
        at_once: int = MOST,
    ) -> Batch:
        """Continue several prompts together: an iterator over finished generations, in order.

        Prompt number n, from 0, gets the tokens that `generate` gives it alone with seed + n
        (modulo 2^64), to the bit, whatever its neighbours are. With the backend `numba` and a
        Llama-2, up to 16 texts share each reading of the weights; with others they take turns.
        at_once: how many texts are open at a time, 1 to 16.

        Raises what `generate` raises, with the number of the prompt, when it is called.
        """
        temperature, top_p, seed = check_sampling(temperature, top_p, seed)
        max_new_tokens, at_once = whole("max_new_tokens", max_new_tokens), whole("at_once", at_once)
        if not 1 <= at_once <= MOST:
            raise ValueError(f"at_once = {at_once}: expected 1 to {MOST}")
        if isinstance(prompts, (str, bytes)):
            raise TypeError("prompts: expected several of them, found one text")
        S, planned = self._room(context), []
        for n, prompt in enumerate(prompts):
            try:
                planned.append(self._fitting(prompt, max_new_tokens, S))
            except (ContextError, TokenizerError, ValueError) as error:
                kind = type(error) if isinstance(error, PyLLM2Error) else ValueError
                raise kind(f"prompts[{n}]: {error}") from None
        stop_ids, stop_texts = self._stops(stop)

        def begin(n: int) -> Generation:
            ids, positions = planned[n]
            choose = Sampler(temperature, top_p, (seed + n) % 2**64)
            known, session = self._tokenizer, self.start(positions)
            return Generation(
                session, ids, choose, max_new_tokens, stop_ids, known, stop_texts, logprobs
            )

        nbytes = [self.model.cache_nbytes(positions) for _, positions in planned]
        return Batch(begin, nbytes, at_once)

    def _room(self, context: int | None) -> int:
        """The positions of a new session. Raises ContextError for more than the model has."""
        S: int = self.config.seq_len
        context = S if context is None else whole("context", context)
        if not 1 <= context <= S:
            raise ContextError(f"context = {context}: expected 1 to {S}, the model's")
        return context

    def _fitting(self, prompt: Any, max_new_tokens: int, S: int) -> tuple[list[int], int]:
        """The ids of a prompt, and how many of S positions it and the new tokens need.

        Raises what `generate` raises for a prompt, and for max_new_tokens.
        """
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens = {max_new_tokens}: expected a whole number ≥ 0")
        ids = self.prompt_ids(prompt, S)
        if not ids:
            raise ValueError("prompt: no ids; begin with the id that begins a text")
        if len(ids) > S:
            raise ContextError(f"prompt is {len(ids)} tokens, context is {S}")
        check_ids(ids, self.config.vocab_size)
        return ids, min(S, len(ids) + max_new_tokens)

    def complete(self, prompt: str | bytes | Iterable[int] = "", **options: Any) -> str:
        """The text that continues a prompt, without the prompt: `generate` in one string.

        options: those of `generate`. Bytes that are not UTF-8 become U+FFFD.
        """
        tokens = self.generate(prompt, **options)
        self.tokenizer  # noqa: B018  raises if there is none
        return b"".join(token.bytes for token in tokens).decode("utf-8", "replace")

    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        template: ChatTemplate | None = None,
        tools: Iterable[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Generation:
        """The assistant's next message in a conversation: what `generate` returns.

        messages: dicts with `role` (system, user, assistant) and `content`.
        template: instead of the model's own `chat_template`. tools: see `ChatTemplate.render`.
        options: those of `generate`.

        Raises ChatTemplateError for a model without a template or a conversation that it refuses;
        what `ChatTemplate.render` and `generate` raise.
        """
        return self.generate(chat_ids(self, messages, template, tools=tools), **options)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template that is in the model's folder or file; None if there is none."""
        return None if self.is_llama2c else find_chat_template(self.path)

    @cached_property
    def is_llama2c(self) -> bool:
        """Whether the model is a checkpoint of llama2.c or llm.c, which have no chat template."""
        if os.path.isdir(self.path) or not os.path.exists(self.path):
            return False
        with open_source(self.path) as source:
            return source.head[:4] != b"GGUF"

    def _stops(self, stop: Stop) -> tuple[frozenset[int], tuple[bytes, ...]]:
        """The ids and the texts that end a generation. Raises ValueError for an empty text."""
        parts: list[Any] = [stop] if isinstance(stop, (str, bytes)) else []
        if stop is not None and not parts:
            if not isinstance(stop, Iterable):
                raise TokenizerError(f"stop: expected ids or texts, found {type(stop).__name__}")
            parts = list(stop)
        texts = tuple(text_bytes(part) for part in parts if isinstance(part, (str, bytes)))
        ids = token_ids([part for part in parts if not isinstance(part, (str, bytes))], "stop")
        if b"" in texts:
            raise ValueError("stop: expected a text that is not empty")
        if texts:
            self.tokenizer  # noqa: B018  raises if there is none
        if stop is None or (texts and not ids):
            ids = list(self.stop)
        return frozenset(ids), texts

    def prompt_ids(self, prompt: str | bytes | Iterable[int], room: int) -> list[int]:
        """The ids of a prompt: a text encoded by `encode_prompt`, or ids as they are."""
        if isinstance(prompt, (str, bytes, bytearray, memoryview)):
            return self.encode_prompt(prompt if isinstance(prompt, str) else bytes(prompt), room)
        return token_ids(prompt, "prompt")

    def encode_prompt(self, text: str | bytes, room: int) -> list[int]:
        """The ids of a prompt for at most `room` positions.

        Raises ContextError before a text is encoded that cannot fit, however it is encoded. One
        that turns out to be too long is not refused.
        """
        least = self.tokenizer.at_least(text)
        if least > room:
            raise ContextError(f"prompt is at least {least} tokens, context is {room}")
        return self.tokenizer.encode_prompt(text)

    def loss(self, x: NDArray[np.integer], y: NDArray[np.integer]) -> float:
        """The mean cross-entropy in nats. x: (B, T) ids   y: (B, T), the id after each

        Raises what `loss_and_grads` raises.
        """
        x, y = self.check_batch(x, y)
        return float(mean_loss(self.trainable.losses(x, y)))

    def loss_and_grads(
        self, x: NDArray[np.integer], y: NDArray[np.integer]
    ) -> tuple[float, Parameters]:
        """The mean loss, and its gradient for every parameter: `grads.wte`, `grads["w1"]`, …

        x, y: (B, T) ids

        Raises FileError for a Llama-2 that is int8, has its own classifier or what run.c has not
        (`Llama2Config.beyond_run_c`), TokenizerError for an id outside the vocabulary, ContextError
        for T beyond the context, ValueError for shapes that are not two equal (B, T).
        """
        x, y = self.check_batch(x, y)
        grads = self.trainable.params.zeros_like()
        losses = self.trainable.add_gradient(x, y, 1 / x.size, grads, fresh=True)
        return float(mean_loss(losses)), grads

    @cached_property
    def trainable(self) -> Any:
        """The model of the family's training module; of a Llama-2 with a copy of the weights."""
        try:
            return _FAMILIES[type(self.model)].trainable(self.model)
        except ValueError as error:
            raise FileError(self.path, str(error)) from None

    def check_batch(self, x: Any, y: Any) -> tuple[Ids, Ids]:
        """Ids and targets of a batch as arrays of int64. Raises as `loss_and_grads` does."""
        x, y = _id_array(x), _id_array(y)
        if x.ndim != 2 or x.shape != y.shape or 0 in x.shape:
            raise ValueError(f"x {x.shape} and y {y.shape}: expected two equal shapes (B, T)")
        if x.shape[1] > self.config.seq_len:
            raise ContextError(f"{x.shape[1]} tokens, context is {self.config.seq_len}")
        for ids in (x, y):
            bad = ids[(ids < 0) | (ids >= self.config.vocab_size)]
            if len(bad):
                most = self.config.vocab_size - 1
                raise TokenizerError(f"token id {bad[0]}: the model has ids 0 to {most}")
        return x.astype(np.int64), y.astype(np.int64)


def _id_array(ids: Any) -> Ids:
    """An array of integers. Raises TokenizerError for another type."""
    try:
        array = np.asarray(ids)
    except ValueError:  # rows of different lengths
        raise ValueError("ids: expected an array (B, T), found rows of different lengths") from None
    if array.dtype.kind not in "iu":
        found = type(ids).__name__ if array.dtype.kind in "OSU" else array.dtype
        raise TokenizerError(f"ids: expected an array of whole numbers, found {found}")
    return array
