"""What `gradcheck` needs to know of a model: its forwards with their backwards, random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing.op import Op


@dataclass(frozen=True)
class Trace:
    """A forward that has run: its result, and the backward with the inputs that it needs."""

    out: NDArray[Any]
    backward: str  # name of the op
    inputs: Callable[[NDArray[Any]], tuple[Any, ...]]  # dout -> inputs of the backward


@dataclass(frozen=True)
class Gradients:
    """The gradients of one model."""

    ops: Any  # the specification
    table: Mapping[str, Op]  # has every backward
    pairs: Mapping[str, Callable[..., Trace]]  # each called with ops and inputs
    example: Callable[[str, np.random.Generator], tuple[Any, ...]]  # inputs of a pair
    random_model: Callable[[np.random.Generator], Any]
    random_batch: Callable[[Any, np.random.Generator], tuple[Any, Any]]  # tokens, targets

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.pairs, "model")
