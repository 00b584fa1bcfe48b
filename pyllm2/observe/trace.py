"""A record of every op of a run: which, where, what went in, what came out.

    import pyllm2
    model = pyllm2.load()
    t = pyllm2.trace(model, "Once upon a time")
    print(t)                                  a line per op
    t["layer 2", "attention"].output          (T, NH · hs)
    t["layer 2", "attention"].weights         (NH, T, P), what each query attends to
    t["layer 2", "wq"].inputs["x"]            (T, C)
    t.where(op="rmsnorm")                     the records of an op, in order

A model is written once and is handed its ops: `Traced` ops record themselves. Arrays are kept and
not copied, so a trace costs memory and little time. Whole passes (`Engine.forward`, ...) have no
ops to record: a trace composes the pass of the backend's plain ops.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends, memory
from pyllm2.errors import ContextError, TokenizerError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.observe.names import Weights, arguments_of, results_of, weights_of
from pyllm2.observe.record import Origin, Record, Trace
from pyllm2.observe.texts import texts_of

Array = NDArray[Any]


CACHE = frozenset("keys values qkv cos sin".split())
MIXES = frozenset("attention attention_forward attention_backward".split())  # of several weights
FAMILIES = {
    "Llama2": "llama2",
    "TrainableLlama2": "llama2",
    "GPT2": "gpt2",
    "TrainableGPT2": "gpt2",
}
_KEEP = object()  # the layer stays what it is after a block


class Traced:
    """The ops of a backend, each of which reports to a recorder. Nothing else changes."""

    def __init__(self, ops: Any, recorder: Recorder) -> None:
        self._ops, self._recorder = ops, recorder

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._ops, name)
        if not callable(function):
            return function
        recorder = self._recorder

        def recorded(*arguments: Any, **keywords: Any) -> Any:
            return recorder.call(name, function, arguments, keywords)

        setattr(self, name, recorded)  # found directly from now on
        return recorded


class Recorder:
    """Keeps a record of every op that `Traced` ops report.

    keep: a function of a record, with its shapes but without values; None keeps all values
    """

    def __init__(
        self,
        model: Any,
        family: str,
        keep: Callable[[Record], bool] | None = None,
        specification: Any = None,
    ) -> None:
        self.family, self.keep = family, keep
        self.records: list[Record] = []
        self.running: Record | None = None  # the op that runs now; one that raised stays
        self.layer: int | None = None
        self.phase, self.call_number, self.position, self.rows = "forward", 0, 0, 0
        self._weights = Weights(weights_of(model))
        self._cache = Weights({})
        self._names: dict[str, tuple[str, ...]] = {}
        self._specification = specification
        self._made: dict[int, tuple[weakref.ref[Any], int, str]] = {}  # by id of the owner

    def call(
        self, op: str, function: Callable[..., Any], arguments: Sequence[Any], keywords: Any
    ) -> Any:
        """Run an op and record it."""
        record = self.begin(op, function, arguments, keywords)
        self.running = record
        before = time.perf_counter()
        results = function(*arguments, **keywords)
        record.seconds = time.perf_counter() - before
        self.end(record, results)
        self.running = None
        return results

    def begin(
        self, op: str, function: Callable[..., Any], arguments: Sequence[Any], keywords: Any
    ) -> Record:
        """A record with the inputs of an op that has not run yet."""
        n = len(self.records)
        record = Record(n, op, self.layer, self.phase, self.call_number, self.position, self.rows)
        names = self._arguments(op, function)
        named = {names[i] if i < len(names) else f"arg{i}": a for i, a in enumerate(arguments)}
        last = ""
        for name, value in {**named, **keywords}.items():
            record.inputs[name] = value
            if isinstance(value, np.ndarray):
                record.shapes[name] = value.shape, str(value.dtype)
                origin = self._origin(value)
                if origin is not None:
                    record.origins[name] = origin
                    if origin.record is None and not record.weight and origin.name not in CACHE:
                        record.weight = origin.name
                    elif origin.record is not None:
                        made = self.records[origin.record]
                        last = made.weight or made.of or last
        record.of = "" if record.weight or op in MIXES else last
        return record

    def end(self, record: Record, results: Any) -> None:
        """Add the results of an op, and the record to the list."""
        self.name_results(record, results)
        if self.keep is not None and not self.keep(record):
            record.inputs, record.outputs, record.kept = {}, {}, False
        self.records.append(record)

    def name_results(self, record: Record, results: Any) -> None:
        """Put the results of an op into its record, instead of any that are there."""
        several = results if isinstance(results, tuple) else (results,)
        names = results_of(self.family, record.op, len(several))
        for name, value in zip(names, several, strict=True):
            record.outputs[name] = value
            if isinstance(value, np.ndarray):
                record.shapes[f"-> {name}"] = value.shape, str(value.dtype)
                owner = _owner(value)
                self._made[id(owner)] = weakref.ref(owner), record.index, name

    def know(self, model: Any) -> None:
        """The weights of this model have names from now on."""
        self._weights = Weights(weights_of(model))

    def begin_pass(self, position: int, rows: int, cache: Any = None) -> None:
        """A call of the model begins."""
        self.position, self.rows, self.layer = position, rows, None
        self.phase = "forward"
        if cache is not None:
            self._cache = Weights({n: a for n, a in vars(cache).items() if n in CACHE})

    def end_pass(self) -> None:
        self.call_number += 1
        self.layer = None

    def _arguments(self, op: str, function: Callable[..., Any]) -> tuple[str, ...]:
        if op not in self._names:
            specified = getattr(self._specification, op, None)
            self._names[op] = arguments_of(specified or function)
        return self._names[op]

    def _origin(self, array: Array) -> Origin | None:
        place = self._weights.place(array)
        if place is not None:
            return Origin(place.name, None, place.layer)
        place = self._cache.place(array)
        if place is not None:
            return Origin(place.name, None, place.layer)
        owner = _owner(array)
        made = self._made.get(id(owner))
        if made is not None and made[0]() is owner:
            return Origin(made[2], made[1])
        return None


def _owner(array: Array) -> Array:
    """The array whose memory a view shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# ---- a model that reports where it is ----------------------------------------------------------


def family_of(model: Any) -> str:
    """ "llama2" or "gpt2", by the class of a model or of one that it extends."""
    return next(FAMILIES[c.__name__] for c in type(model).__mro__ if c.__name__ in FAMILIES)


def traced_model(model: Any, recorder: Recorder, ops: Any = None) -> Any:
    """The same model, composed of ops that report to a recorder, which knows the layer.

    ops: None for those of the model's engine
    """
    traced = model.with_ops(Traced(model.ops if ops is None else ops, recorder))
    watch(traced, recorder)
    return traced


def watch(model: Any, recorder: Recorder) -> None:
    """Make the methods of one model tell a recorder which layer they work on."""

    def inside(name: str, layer_at: int | None, after: Any = _KEEP) -> None:
        """Calls of a method are of the layer that is their `layer_at`-th argument."""
        method = getattr(model, name, None)
        if method is None:
            return

        def watched(*arguments: Any, **keywords: Any) -> Any:
            recorder.layer = None if layer_at is None else arguments[layer_at]
            found = method(*arguments, **keywords)
            if after is not _KEEP:
                recorder.layer = after
            return found

        setattr(model, name, watched)

    # The residual that adds a block's result comes after the block, and is of its layer.
    inside("attention_block", 1)
    inside("ffn_block", 1)
    inside("classify", None)
    inside("block_forward", 2, after=None)
    inside("block_backward", 2, after=None)
    forward: Any = model.forward
    backward: Any = getattr(model, "backward", None)

    def passed(tokens: Any, *rest: Any, **keywords: Any) -> Any:
        if isinstance(rest[0], np.ndarray):  # training: the targets
            recorder.begin_pass(0, tokens.shape[-1])
            return forward(tokens, *rest, **keywords)
        recorder.begin_pass(rest[0], len(tokens), rest[1])
        found = forward(tokens, *rest, **keywords)
        recorder.end_pass()
        return found

    def passed_back(*arguments: Any) -> Any:
        recorder.phase, recorder.layer = "backward", None
        found = backward(*arguments)
        recorder.end_pass()
        return found

    setattr(model, "forward", passed)  # noqa: B010 (of this object only)
    if backward is not None:
        setattr(model, "backward", passed_back)  # noqa: B010


# ---- what a user calls -------------------------------------------------------------------------


@dataclass(frozen=True)
class Only:
    """Which values to keep: those of records with all of these fields and any of these words."""

    fields: tuple[tuple[str, Any], ...] = ()

    def __call__(self, record: Record) -> bool:
        return all(getattr(record, name) == value for name, value in self.fields)


def trace(
    model: LanguageModel,
    prompt: str | bytes | Iterable[int],
    new_tokens: int = 0,
    only: Callable[[Record], bool] | None = None,
    backend: str | None = None,
) -> Trace:
    """Run a prompt through a model and record every op.

    prompt: text (the id that begins a text is put in front), or ids
    new_tokens: most probable tokens to continue with, one pass each
    only: which records keep their values (see `Only`); None: all
    backend: whose plain ops run (None: those of the model's backend)

    Raises ContextError, TokenizerError, BackendError, NotEnoughMemoryError.
    """
    ids = prompt_ids(model, prompt, new_tokens)
    memory.require(predicted_nbytes(model, len(ids), only), "the trace", "keep less of it (only)")
    decoder, name = model.model, backend or model.backend
    family = family_of(decoder)
    recorder = new_recorder(decoder, family, only)
    ops = backends.ops(name, package=family)
    traced = traced_model(decoder, recorder, ops)
    cache = traced.new_cache(len(ids) + new_tokens)
    recorder.records.clear()  # the tables of RoPE, which belong to no pass
    logits = traced.forward(np.array(ids), 0, cache)
    for _ in range(new_tokens):
        ids.append(int(np.argmax(logits[-1])))
        logits = traced.forward(np.array(ids[-1:]), len(ids) - 1, cache)
    return Trace(recorder.records, family, ids, texts_of(model, ids), name)


def trace_training(
    model: LanguageModel,
    x: NDArray[np.integer],
    y: NDArray[np.integer],
    only: Callable[[Record], bool] | None = None,
    backend: str | None = None,
) -> Trace:
    """Forward and backward of the mean loss of a batch, every op recorded.

    x: (B, T) ids   y: (B, T), the id after each

    Raises what `LanguageModel.loss_and_grads` raises.
    """
    model.loss(x[:1, :1], y[:1, :1])  # the checks, before any memory is asked for
    trainable, name = model.trainable, backend or model.backend
    family = family_of(trainable)
    B, T = x.shape
    nbytes = predicted_training_nbytes(model, B, T, only)
    memory.require(nbytes, "the trace", "keep less of it (only)")
    recorder = new_recorder(trainable, family, only)
    traced = traced_model(trainable, recorder, backends.ops(name, package=family))
    acts = traced.forward(x, y)
    traced.backward(acts, np.full_like(acts.losses, np.float32(1 / x.size)))
    ids = x.ravel().tolist()
    return Trace(recorder.records, family, ids, texts_of(model, ids), name)


def new_recorder(model: Any, family: str, only: Callable[[Record], bool] | None = None) -> Recorder:
    """A recorder for a model, which names arguments as the specification does."""
    return Recorder(model, family, only, backends.ops("numpy", package=family))


def prompt_ids(
    model: LanguageModel, prompt: str | bytes | Iterable[int], new_tokens: int = 0
) -> list[int]:
    """The ids of a prompt, with room for new tokens. Raises ContextError, TokenizerError."""
    S = model.config.seq_len
    ids = model.prompt_ids(prompt, S)
    if not ids:
        raise ContextError("prompt: no tokens; expected at least 1")
    if len(ids) + new_tokens > S:
        raise ContextError(f"{len(ids)} tokens and {new_tokens} new ones, context is {S}")
    for i in ids:
        if not 0 <= i < model.config.vocab_size:
            V = model.config.vocab_size
            raise TokenizerError(f"token id {i}: the model has ids 0 to {V - 1}")
    return ids


# ---- how large a trace will be -----------------------------------------------------------------


def predicted_nbytes(
    model: LanguageModel, T: int, only: Callable[[Record], bool] | None = None
) -> int:
    """Bytes that the trace of a prompt of T tokens keeps, found from traces of 1, 2 and 3 tokens.

    What a pass keeps is a polynomial of degree 2 in T: rows, attention weights, and constants.
    """

    def measured(n: int) -> int:
        decoder = model.model
        recorder = new_recorder(decoder, family_of(decoder), only)
        ops = backends.ops("numpy", package=recorder.family)
        traced = traced_model(decoder, recorder, ops)
        cache = traced.new_cache(n)
        recorder.records.clear()
        traced.forward(np.zeros(n, np.int64), 0, cache)
        return sum(r.nbytes for r in recorder.records)

    key = model.model, "prompt", only
    return _extrapolated(_remembered(key, measured), T, model.config.seq_len)


def predicted_training_nbytes(
    model: LanguageModel, B: int, T: int, only: Callable[[Record], bool] | None = None
) -> int:
    """Bytes that the trace of a batch of (B, T) keeps, found from batches of (1, 1) to (1, 3)."""

    def measured(n: int) -> int:
        trainable = model.trainable
        recorder = new_recorder(trainable, family_of(trainable), only)
        traced = traced_model(trainable, recorder, backends.ops("numpy", package=recorder.family))
        ids = np.zeros((1, n), np.int64)
        acts = traced.forward(ids, ids)
        traced.backward(acts, acts.losses)
        return sum(r.nbytes for r in recorder.records)

    known = _remembered((model.model, "training", only), measured)
    one = _extrapolated(known, T, model.config.seq_len)
    gradients = _extrapolated(known, 0, model.config.seq_len)  # those of weights: no rows
    return B * (one - gradients) + gradients


_measured: weakref.WeakKeyDictionary[Any, dict[Any, int]] = weakref.WeakKeyDictionary()


def _remembered(key: tuple[Any, ...], measured: Callable[[int], int]) -> Callable[[int], int]:
    """`measured` without measuring twice: what a command says, `trace` checks again."""
    known = _measured.setdefault(key[0], {})

    def found(n: int) -> int:
        if (*key[1:], n) not in known:
            known[*key[1:], n] = measured(n)
        return known[*key[1:], n]

    return found


def _extrapolated(measured: Callable[[int], int], T: int, most: int) -> int:
    """The value at T of the polynomial of degree 2 through measured(1), (2), (3)."""
    if most < 3:
        return measured(T) if T else 0
    a, b, c = (measured(n) for n in (1, 2, 3))
    second = c - 2 * b + a  # twice the leading coefficient
    return a + (b - a) * (T - 1) + second * (T - 1) * (T - 2) // 2
