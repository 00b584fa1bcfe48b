"""Choice of model shape and vocabulary size for a text and a time budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyllm2.cli.train_text import batch
from pyllm2.llama2.initial import descriptor
from pyllm2.training.sizing import (
    HIGHEST_RATE,
    LARGEST_VOCABULARY,
    PARAMETERS_PER_TOKEN,
    SHAPES,
    TOKENS_PER_PARAMETER,
    choose,
    learning_rate,
    tokens_per_update,
    vocabulary_size,
)


def parameters(shape: str) -> int:
    return descriptor(shape, 512).parameters()


def test_shapes_are_models_and_grow() -> None:
    """Every shape is valid and has more parameters than the one before."""
    sizes = [parameters(shape) for shape in SHAPES]
    assert sizes == sorted(set(sizes))


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_text_never_has_a_smaller_vocabulary(a: int, b: int) -> None:
    """Vocabulary size grows with the text, up to a maximum."""
    small, large = sorted((a, b))
    assert 259 < vocabulary_size(small) <= vocabulary_size(large) <= LARGEST_VOCABULARY


@given(st.integers(1, 10**8), st.floats(1, 1e5), st.floats(1, 1e5))
def test_the_choice_is_the_largest_shape_that_fits(text: int, seconds: float, flops: float) -> None:
    """A shape fits if text and time suffice for it; if none fits, the smallest is chosen."""

    def speed(shape: str) -> float:
        return 1e6 * flops / parameters(shape)

    choice = choose(SHAPES, parameters, speed, text, seconds)
    assert choice.parameters == parameters(choice.shape)
    assert choice.tokens == int(speed(choice.shape) * seconds)

    def fits(shape: str) -> bool:
        n = parameters(shape)
        enough_time = int(speed(shape) * seconds) >= TOKENS_PER_PARAMETER * n
        return enough_time and n <= PARAMETERS_PER_TOKEN * text

    at = SHAPES.index(choice.shape)
    assert at == 0 or fits(choice.shape)
    assert at + 1 == len(SHAPES) or not fits(SHAPES[at + 1])


def test_a_shape_too_large_for_the_text_is_not_timed() -> None:
    """Timing a large model is slow, so the text is checked first."""
    timed = []

    def speed(shape: str) -> float:
        timed.append(shape)
        return 1e9

    choose(SHAPES, parameters, speed, 1000, 60)
    assert timed == [SHAPES[0]]


@given(st.integers(1, 10**10), st.integers(4, 8))
def test_an_update_is_whole_batches(tokens: int, log_context: int) -> None:
    """Of any context that `train text` takes; a longer run never has smaller updates."""
    context, per_update = 2**log_context, tokens_per_update(tokens)
    rows = batch(per_update, context)
    assert rows >= 1
    assert per_update % (rows * context) == 0
    assert per_update <= tokens_per_update(2 * tokens)


@given(st.integers(1, 10**5))
def test_a_wider_model_never_has_a_higher_rate(dim: int) -> None:
    """Up to the highest."""
    assert 0 < learning_rate(dim + 1) <= learning_rate(dim) <= HIGHEST_RATE
