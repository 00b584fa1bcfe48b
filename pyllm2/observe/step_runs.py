"""What `step` goes through: a prompt and the tokens that continue it, or updates of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.observe.names import weights_of
from pyllm2.observe.stepper import Planned, Stepper
from pyllm2.observe.texts import text_of
from pyllm2.observe.trace import family_of, new_recorder, prompt_ids, traced_model
from pyllm2.parameters import Parameters, Quantized
from pyllm2.training.trainer import clipping

Array = NDArray[Any]
MOST_BYTES_PLANNED = 2**30  # weights of a model of which a pass is run to see its ops


def _nbytes(weight: Any) -> int:
    return int(weight.values.nbytes if isinstance(weight, Quantized) else weight.nbytes)


class _OfModel:
    def __init__(self, model: LanguageModel, subject: Any) -> None:
        self.language_model, self.subject = model, subject
        self.family = family_of(subject)

    @property
    def model(self) -> Any:
        return self.subject

    def _planned(self, subject: Any, run: Callable[[Any], None]) -> list[Planned]:
        """The ops of a pass, from running one of one token on the specification."""
        if sum(_nbytes(w) for w in weights_of(subject).values()) > MOST_BYTES_PLANNED:
            return []
        recorder = new_recorder(subject, self.family, lambda record: False)
        traced = traced_model(subject, recorder, backends.ops("numpy", package=self.family))
        with np.errstate(all="ignore"):
            run(traced)
        return [(r.phase, r.layer, r.name) for r in recorder.records]

    def text_of(self, token: int, before: int | None = None) -> str:
        return text_of(self.language_model, token, before)


class PromptRun(_OfModel):
    """A prompt, and the most probable tokens after it.

    at_once: the whole prompt in one pass, instead of a token per pass

    Raises ContextError, TokenizerError.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: str | bytes | Iterable[int],
        new_tokens: int = 0,
        at_once: bool = False,
    ) -> None:
        super().__init__(model, model.model)
        self.ids = prompt_ids(model, prompt, new_tokens)
        self.new_tokens, self.at_once = new_tokens, at_once
        passes = "at once" if at_once else "one by one"
        self.title = f"prompt of {len(self.ids)}, {passes}; tokens after it: {new_tokens}"
        self.calls = (1 if at_once else len(self.ids)) + new_tokens

    trains = False

    def plan(self) -> list[Planned]:
        model = self.subject.with_ops(backends.ops("numpy", package=self.family))
        cache = model.new_cache(1)
        return self._planned(self.subject, lambda m: m.forward(np.array(self.ids[:1]), 0, cache))

    def __call__(self, stepper: Stepper) -> None:
        model = stepper.traced(self.subject)
        # The tables of RoPE belong to no pass.
        cache = self.subject.with_ops(stepper.ops()).new_cache(len(self.ids) + self.new_tokens)
        first = len(self.ids) if self.at_once else 1
        stepper.tokens += self.ids[:first]
        logits = model.forward(np.array(self.ids[:first]), 0, cache)
        for pos in range(first, len(self.ids) + self.new_tokens):
            known = pos < len(self.ids)
            stepper.tokens.append(self.ids[pos] if known else int(np.argmax(logits[-1])))
            logits = model.forward(np.array(stepper.tokens[-1:]), pos, cache)


class TrainingRun(_OfModel):
    """Updates of training on one batch: forward, backward, AdamW, the trainer's defaults.

    x: (B, T) ids   y: (B, T), the id after each   learning_rate: constant

    Raises what `LanguageModel.loss` raises.
    """

    trains = True
    beta1, beta2, epsilon, weight_decay, clip = 0.9, 0.95, 1e-8, 0.1, 1.0

    def __init__(
        self,
        model: LanguageModel,
        x: NDArray[np.integer],
        y: NDArray[np.integer],
        updates: int = 1,
        learning_rate: float = 3e-4,
    ) -> None:
        model.loss(x[:1, :1], y[:1, :1])  # the checks
        super().__init__(model, model.trainable)
        self.x, self.y, self.updates, self.learning_rate = x, y, updates, learning_rate
        self.ids = x.ravel().tolist()
        self.title = f"training on {x.size} tokens; updates: {updates}"
        self.calls = updates
        self._params = self.subject.params

    @property
    def model(self) -> Any:
        return self._with(self._params)

    def plan(self) -> list[Planned]:
        def run(model: Any) -> None:
            acts = model.forward(self.x[:1, :1], self.y[:1, :1])
            model.backward(acts, np.ones_like(acts.losses))

        passes = self._planned(self.subject, run)
        updates: list[Planned] = [("update", None, f"{name} adamw_update") for name in self._params]
        return [*passes, ("update", None, "global_norm"), *updates] if passes else []

    def __call__(self, stepper: Stepper) -> None:
        stepper.tokens += self.ids
        params = self._params
        m, v = params.zeros_like(), params.zeros_like()
        for t in range(1, self.updates + 1):
            model = self._with(params)
            stepper.recorder.know(model)
            traced = stepper.traced(model)
            acts = traced.forward(self.x, self.y)
            dlosses = np.full_like(acts.losses, np.float32(1 / self.x.size))
            grads = traced.backward(acts, dlosses)
            params = self._update(stepper, params, grads, m, v, t)

    def _update(
        self,
        stepper: Stepper,
        params: Parameters,
        grads: Parameters,
        m: Parameters,
        v: Parameters,
        t: int,
    ) -> Parameters:
        """AdamW, a call per tensor, on a copy: the records of the passes keep their weights."""
        params = Parameters(params.shapes, params.flat.copy())
        recorder = stepper.recorder
        recorder.know(self._with(params))
        recorder.phase, recorder.layer = "update", None
        recorder.call_number -= 1  # of the passes before it
        optimizer = stepper.ops("training")
        norm = stepper.call("global_norm", optimizer.global_norm, [grads.flat], {})
        scale = clipping(norm, self.clip)
        decayed = import_module(f"pyllm2.{self.family}.family").MATRICES
        rate = (self.learning_rate, self.beta1, self.beta2, self.epsilon)
        for name in params:
            decay = self.weight_decay if name in decayed else 0.0
            arrays = [p[name].reshape(-1) for p in (params, grads, m, v)]
            hyper = [t, *rate, decay, scale]
            stepper.call("adamw_update", optimizer.adamw_update, [*arrays, *hyper], {})
        recorder.call_number += 1
        return params

    def _with(self, params: Parameters) -> Any:
        subject = self.subject
        return type(subject)(subject.config, params, subject.engine)


def training_run(
    model: LanguageModel, prompt: str | bytes | Iterable[int], updates: int = 1
) -> TrainingRun:
    """Training on the tokens of one prompt. Raises UsageError for less than 2."""
    ids = prompt_ids(model, prompt)
    if len(ids) < 2:
        raise UsageError("--train: expected a prompt of at least 2 tokens")
    return TrainingRun(model, np.array([ids[:-1]]), np.array([ids[1:]]), updates)
