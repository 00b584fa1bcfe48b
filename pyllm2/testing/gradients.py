"""What there is to check of a model's gradients: forwards with their backwards, random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing.gpt2_model_bound import TrainingBound
from pyllm2.testing.op import Op


@dataclass(frozen=True)
class Trace:
    """A forward that was run: its result, its backward's name and what that takes after dout."""

    out: NDArray[Any]
    backward: str
    inputs: Callable[[NDArray[Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Gradients:
    """Those of one model. `gradcheck` tries them."""

    ops: Any  # the specification
    table: Mapping[str, Op]  # its backwards and others
    pairs: Mapping[str, Callable[..., Trace]]  # each called with ops and inputs
    example: Callable[[str, np.random.Generator], tuple[Any, ...]]  # inputs of a pair
    random_model: Callable[[np.random.Generator], Any]
    random_batch: Callable[[Any, np.random.Generator], tuple[Any, Any]]  # tokens, targets
    bound: Callable[..., TrainingBound]  # of a model, tokens, targets and dloss

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.pairs, "model")
