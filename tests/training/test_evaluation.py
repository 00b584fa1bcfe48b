"""Multiple-choice evaluation: batches, metric, refusals, and llm.c's recorded results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm2.errors import FormatError, NotFiniteError, UsageError
from pyllm2.formats.llmc_evaluation import Example, write_examples
from pyllm2.training.evaluation import (
    EvalBatch,
    EvalLoader,
    count_correct,
    evaluate,
    needed_positions,
)

writes_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
ids = st.lists(st.integers(0, 30), min_size=1, max_size=4)
examples = st.lists(
    st.builds(Example, st.integers(0, 3), ids, st.lists(ids, min_size=4, max_size=4)),
    min_size=1,
    max_size=7,
)
T = 9  # positions of the longest of these examples


class Bigram:
    """A model that looks the loss up in a table, by token and target."""

    def __init__(self, seed: int) -> None:
        self.table = np.random.default_rng(seed).integers(0, 4, (31, 31)).astype(np.float32)

    def losses(self, tokens: Any, targets: Any) -> Any:
        return self.table[tokens, targets]

    def best(self, example: Example) -> int:
        """Index of the completion with the lowest mean loss, from a second definition."""
        means = []
        for completion in example.completions:
            text = [example.context[-1], *completion]
            losses = [self.table[a, b] for a, b in zip(text, completion, strict=False)]
            means.append(np.float32(sum(losses)) / np.float32(len(losses)))
        return means.index(min(means))


@writes_files
@given(examples, st.integers(4, 13), st.integers(1, 3), st.integers(0, 99))
def test_all_ranks_together_count_every_example_once(
    tmp_path: Path, examples: list[Example], B: int, processes: int, seed: int
) -> None:
    """The ranks' counts add up to the total for any B. (Small integer losses make many ties.)"""
    write_examples(tmp_path / "e.bin", examples)
    processes = min(processes, len(examples))
    model = Bigram(seed)
    expected = sum(model.best(example) == example.label for example in examples)
    loaders = [EvalLoader(tmp_path / "e.bin", B, T, r, processes) for r in range(processes)]
    assert len({loader.num_batches for loader in loaders}) == 1
    assert {loader.num_examples for loader in loaders} == {len(examples)}
    for _ in range(2):  # `evaluate` starts at the first example
        assert sum(evaluate(model, loader) for loader in loaders) == expected


@writes_files
@given(examples, st.integers(4, 13))
def test_a_row_is_the_context_and_one_completion(
    tmp_path: Path, examples: list[Example], B: int
) -> None:
    """The mask is 1 where the target belongs to the completion; batches past the end are empty."""
    write_examples(tmp_path / "e.bin", examples)
    loader = EvalLoader(tmp_path / "e.bin", B, T, vocab_size=31)
    at_once = B // 4
    assert loader.num_batches == -(-len(examples) // at_once)
    for k in range(loader.num_batches + 2):
        batch = loader.next_batch()
        assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (B, T)
        mask = np.zeros((B, T), np.int8)
        for i, example in enumerate(examples[k * at_once : (k + 1) * at_once]):
            assert batch.labels[i] == example.label
            for c, completion in enumerate(example.completions):
                text, row, n = [*example.context, *completion], 4 * i + c, len(example.context)
                assert batch.inputs[row, : len(text)].tolist() == text
                assert batch.targets[row, n - 1 : len(text) - 1].tolist() == completion
                mask[row, n - 1 : len(text) - 1] = 1
        np.testing.assert_array_equal(batch.mask, mask)


def batch_of(mask: Any, *labels: int) -> EvalBatch:
    empty = np.zeros_like(mask, dtype=np.int32)
    return EvalBatch(empty, empty, np.array(mask, np.int8), np.array(labels, np.int32))


def test_the_lowest_mean_loss_wins() -> None:
    """The mean decides, not the sum; masked positions do not count."""
    mask = np.array([[1, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    losses = np.array([[2, 2, 2], [0, 3, 0], [3, 2, -9], [-9, 0, 4]], np.float32)
    assert count_correct(losses, batch_of(mask, 0)) == 1
    assert count_correct(losses, batch_of(mask, 1)) == 0


def test_an_infinite_loss_never_beats_a_finite_one() -> None:
    """If all four losses are infinite, the first completion wins."""
    mask = np.ones((4, 1), np.int8)
    losses = np.array([[np.inf], [5], [np.inf], [4]], np.float32)
    assert count_correct(losses, batch_of(mask, 3)) == 1
    assert count_correct(np.full((4, 1), np.inf, np.float32), batch_of(mask, 0)) == 1


def test_losses_are_summed_in_order_in_float32() -> None:
    """In float32 2²⁴ + 1 + 1 is 2²⁴: rows 0 and 1 tie, and the first wins."""
    mask = np.ones((4, 3), np.int8)
    rows = [[2**24, 1, 1], [2**24, 0, 0], [2**25, 0, 0], [2**25, 0, 0]]
    assert count_correct(np.array(rows, np.float32), batch_of(mask, 0)) == 1


def test_an_example_without_a_mask_does_not_count() -> None:
    """The unused rows of the last batch have an empty mask and count as no example."""
    mask = np.array([[1]] * 4 + [[0]] * 4)
    assert count_correct(np.zeros((8, 1), np.float32), batch_of(mask, 0, 0)) == 1


EXAMPLES = [Example(0, [1, 2], [[3], [4, 5], [6], [7]]), Example(2, [8], [[9, 9, 9], *[[1]] * 3])]


@pytest.mark.parametrize(
    ("arguments", "kind", "error"),
    [
        ((3, 9), UsageError, "B=3 T=9 rank=0 processes=1: an example takes 4 rows"),
        ((4, 0), UsageError, "B=4 T=0 rank=0 processes=1: an example takes 4 rows"),
        ((4, 9, 2, 2), UsageError, "B=4 T=9 rank=2 processes=2: an example takes 4 rows"),
        ((4, 9, 0, 3), UsageError, "2 examples are too few for 3 processes"),
        ((4, 4), FormatError, "e.bin: example 0 needs 5 positions, T = 4"),
        ((4, 9, 0, 1, 9), FormatError, "e.bin: example 1 has token 9: vocabulary is 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    arguments: Any, kind: type, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Impossible sizes are refused when the file is opened; the smallest possible ones are not."""
    monkeypatch.chdir(tmp_path)
    write_examples("e.bin", EXAMPLES)
    with pytest.raises(kind) as refused:
        EvalLoader("e.bin", *arguments)
    assert str(refused.value) == error
    EvalLoader("e.bin", 4, max(map(needed_positions, EXAMPLES)), 1, 2, vocab_size=10)


def test_a_rank_may_have_nothing_to_do(tmp_path: Path) -> None:
    """Of 5 examples for 4 ranks the last rank gets none; its batches are empty."""
    write_examples(tmp_path / "e.bin", EXAMPLES * 2 + EXAMPLES[:1])
    loader = EvalLoader(tmp_path / "e.bin", 4, 9, 3, 4)
    assert (len(loader.examples), loader.num_batches) == (0, 2)
    assert evaluate(Bigram(1), loader) == 0


def test_a_loss_that_is_nan_is_refused(tmp_path: Path) -> None:
    """NaN is an error where the mask is 1 and ignored elsewhere."""
    write_examples(tmp_path / "e.bin", EXAMPLES)
    model = Bigram(1)
    model.table[0, 0] = np.nan  # read by padding only
    loader = EvalLoader(tmp_path / "e.bin", 4, 9)
    done: list[tuple[int, int]] = []
    evaluate(model, loader, lambda *numbers: done.append(numbers))
    assert done == [(1, 2), (2, 2)]
    model.table[9, 9] = np.nan
    with pytest.raises(NotFiniteError, match=r"in batch 2 of the evaluation$"):
        evaluate(model, loader)


def test_batches_and_counts_equal_the_recorded_ones(shared: Path) -> None:
    """Batches equal llm.c's, padding included, and so do counts with many ties."""
    folder = shared / "golden/llmc/evalloader"
    runs = json.loads((folder / "runs.json").read_text())
    with np.load(folder / "eval_small.bin.npz") as recorded:
        for name, run in runs.items():
            B, rank, processes = run["B"], run["process_rank"], run["num_processes"]
            loader = EvalLoader(folder / run["file"], B, run["T"], rank, processes)
            assert loader.num_batches == run["num_batches"]
            for i, correct in enumerate(run["correct"]):
                batch = loader.next_batch()
                for part in ("inputs", "targets", "mask", "labels"):
                    found = getattr(batch, part).ravel()
                    np.testing.assert_array_equal(found, recorded[f"{name}__{part}"][i])
                losses = recorded[f"{name}__losses"][i].reshape(B, run["T"])
                assert count_correct(losses, batch) == correct
