"""Multiple choice, as HellaSwag asks it: which of four completions does the model find likeliest?

The original's batches and metric: an example takes four rows, the context and then a completion;
the mean loss over the completion's tokens counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError, NotFiniteError, UsageError
from pyllm2.formats.evaluation import COMPLETIONS, Example, read_examples

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class EvalBatch:
    """Four rows an example. Only where `mask` is 1 do targets, and so losses, mean anything.

    inputs, targets: (B, T)   mask: (B, T) int8   labels: (B // 4,)
    """

    inputs: Tokens
    targets: Tokens
    mask: NDArray[np.int8]
    labels: Tokens


class EvalLoader:
    """Batches of an evaluation file, B // 4 examples each; past the end they are empty.

    rank, processes: of equal shares of the examples, whose this is
    What is behind a completion is left from the batch before, as in the original: the model
    does not look ahead and the mask is 0 there.

    Raises FormatError for a file that is damaged or whose examples do not fit into T positions or
    the vocabulary, UsageError for B below 4 or fewer examples than processes.
    """

    def __init__(
        self, path: str | os.PathLike[str], B: int, T: int, rank: int = 0, processes: int = 1,
        vocab_size: int | None = None,
    ) -> None:  # fmt: skip
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
        """To the first example of this share."""
        self._next = 0

    def next_batch(self) -> EvalBatch:
        """The next examples."""
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
    """The smallest T that an example fits into: one more than its longest row, by the original."""
    return len(example.context) + max(map(len, example.completions)) + 1


def count_correct(losses: Array, batch: EvalBatch) -> int:
    """How many examples of a batch have the lowest mean loss at the right completion.

    losses: (B, T) float32. Means are of float32 sums in order; of equal ones the first wins.
    """
    correct = 0
    for i, label in enumerate(batch.labels.tolist()):
        rows = range(COMPLETIONS * i, COMPLETIONS * (i + 1))
        counted = [losses[row][batch.mask[row] == 1].astype(np.float32) for row in rows]
        if all(map(len, counted)):
            means = [np.cumsum(row)[-1] / np.float32(len(row)) for row in counted]
            correct += min(range(COMPLETIONS), key=means.__getitem__) == label
    return correct


class HasLosses(Protocol):
    """What is asked of a model: the loss at every position, (B, T)."""

    def losses(self, tokens: Tokens, targets: Tokens) -> Array: ...


def evaluate(
    model: HasLosses, loader: EvalLoader, progress: Callable[[int, int], None] | None = None
) -> int:
    """How many examples of the loader's share the model gets right, from the first on.

    progress: called after each batch with the batches done and all.

    Raises NotFiniteError if a loss is not a number (infinite it may be).
    """
    loader.reset()
    correct = 0
    for done in range(1, loader.num_batches + 1):
        batch = loader.next_batch()
        if batch.mask.any():
            with np.errstate(all="ignore"):  # of weights that are no numbers: judged here
                losses = model.losses(batch.inputs, batch.targets)
            if np.isnan(losses[batch.mask == 1]).any():
                raise NotFiniteError(f"a loss is not a number in batch {done} of multiple choice")
            correct += count_correct(losses, batch)
        if progress is not None:
            progress(done, loader.num_batches)
    return correct
