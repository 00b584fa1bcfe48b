"""Multiple-choice evaluation (HellaSwag): which of four completions is the most likely?

Batches and metric are llm.c's: an example takes four rows, each the context followed by one
completion; the completion with the lowest mean loss per token is the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError, NotFiniteError, UsageError
from pyllm2.formats.llmc_evaluation import COMPLETIONS, Example, read_examples
from pyllm2.training.losses import mean_loss

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class EvalBatch:
    """Four rows per example. Targets and losses are meaningful only where `mask` is 1.

    inputs, targets: (B, T)   mask: (B, T) int8   labels: (B // 4,)
    """

    inputs: Tokens
    targets: Tokens
    mask: NDArray[np.int8]
    labels: Tokens


class EvalLoader:
    """Batches of an evaluation file, B // 4 examples each; empty batches after the last example.

    rank, processes: this process reads the rank-th of `processes` equal shares of the examples
    The positions after a completion keep the ids of the previous batch, as in llm.c: attention
    is causal and the mask is 0 there.

    Raises FormatError for a damaged file or an example that exceeds T positions or the
    vocabulary, UsageError for B below 4 or fewer examples than processes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        B: int,
        T: int,
        rank: int = 0,
        processes: int = 1,
        vocab_size: int | None = None,
    ) -> None:
        if B < COMPLETIONS or T < 1 or not 0 <= rank < processes:
            raise UsageError(
                f"B={B} T={T} rank={rank} processes={processes}: an example takes 4 rows"
            )
        examples = read_examples(path)
        if len(examples) < processes:
            raise UsageError(f"{len(examples)} examples are too few for {processes} processes")
        for i, example in enumerate(examples):
            _check(os.fspath(path), i, example, T, vocab_size)
        share = -(-len(examples) // processes)
        self.B, self.T, self.num_examples = B, T, len(examples)
        self.examples = examples[share * rank : share * (rank + 1)]
        self.at_once = B // COMPLETIONS
        self.num_batches = -(-share // self.at_once)
        self._inputs, self._targets = np.zeros((2, B, T), np.int32)
        self._labels = np.zeros(self.at_once, np.int32)
        self.reset()

    def reset(self) -> None:
        """Go to the first example of this share."""
        self._next = 0

    def next_batch(self) -> EvalBatch:
        """The next B // 4 examples."""
        mask = np.zeros((self.B, self.T), np.int8)
        examples = self.examples[self._next : self._next + self.at_once]
        for i, example in enumerate(examples):
            self._labels[i] = example.label
            for c, completion in enumerate(example.completions):
                row, n = COMPLETIONS * i + c, len(example.context)
                text = [*example.context, *completion]
                self._inputs[row, : len(text)] = text
                self._targets[row, n - 1 : len(text) - 1] = completion
                mask[row, n - 1 : len(text) - 1] = 1
        self._next += len(examples)
        return EvalBatch(self._inputs.copy(), self._targets.copy(), mask, self._labels.copy())


def _check(path: str, i: int, example: Example, T: int, vocab_size: int | None) -> None:
    needed = needed_positions(example)
    if needed > T:
        raise FormatError(path, f"example {i} needs {needed} positions, T = {T}")
    largest = max(max(ids) for ids in (example.context, *example.completions))
    if vocab_size is not None and largest >= vocab_size:
        raise FormatError(path, f"example {i} has token {largest}: vocabulary is {vocab_size}")


def needed_positions(example: Example) -> int:
    """Smallest T that holds an example: one more than its longest row, as in llm.c."""
    return len(example.context) + max(map(len, example.completions)) + 1


def count_correct(losses: Array, batch: EvalBatch) -> int:
    """Number of examples in a batch whose right completion has the lowest mean loss.

    losses: (B, T) float32. Sums are float32, in order; the first of equal means wins.
    """
    correct = 0
    for i, label in enumerate(batch.labels.tolist()):
        rows = range(COMPLETIONS * i, COMPLETIONS * (i + 1))
        counted = [losses[row][batch.mask[row] == 1].astype(np.float32) for row in rows]
        if all(map(len, counted)):
            means = list(map(mean_loss, counted))
            correct += min(range(COMPLETIONS), key=means.__getitem__) == label
    return correct


class HasLosses(Protocol):
    """A model that computes the loss at every position, (B, T)."""

    def losses(self, tokens: Tokens, targets: Tokens) -> Array: ...


def evaluate(
    model: HasLosses, loader: EvalLoader, progress: Callable[[int, int], None] | None = None
) -> int:
    """Number of examples in the loader's share that the model answers correctly.

    progress: called after each batch with the number of finished batches and of all batches

    Raises NotFiniteError if a loss is NaN (an infinite loss is allowed).
    """
    loader.reset()
    correct = 0
    for done in range(1, loader.num_batches + 1):
        batch = loader.next_batch()
        if batch.mask.any():
            with np.errstate(all="ignore"):  # a NaN is reported below
                losses = model.losses(batch.inputs, batch.targets)
            if np.isnan(losses[batch.mask == 1]).any():
                raise NotFiniteError(f"a loss is NaN in batch {done} of the evaluation")
            correct += count_correct(losses, batch)
        if progress is not None:
            progress(done, loader.num_batches)
    return correct
