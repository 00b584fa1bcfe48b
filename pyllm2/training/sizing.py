"""Vocabulary size, model shape and number of tokens that suit a text and a time budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# (largest text in bytes, vocabulary size in pieces)
VOCABULARIES = [(2**15, 320), (2**19, 512), (2**22, 1024)]
LARGEST_VOCABULARY = 2048

# Llama-2 shapes, from small to large; the context length is chosen separately.
SHAPES = (
    "dim=32,layers=3,heads=4,kv_heads=2",
    "dim=64,layers=4,heads=4,kv_heads=2",
    "dim=96,layers=5,heads=6,kv_heads=3",
    "dim=128,layers=5,heads=8,kv_heads=4",
    "dim=192,layers=6,heads=6,kv_heads=3",
    "dim=288,layers=6,heads=6,kv_heads=6",
)

# The recipe, found by tools/recipe.py.
TOKENS_PER_UPDATE = [(2_000_000, 512)]  # (longest run in tokens, tokens per update)
LONG_RUN_PER_UPDATE = 1024
HIGHEST_RATE, RATE_TIMES_DIM = 8e-3, 0.5  # peak learning rate: 8e-3 up to dim=64, then 0.5 / dim
WARMUP = 0.05  # of the updates
WEIGHT_DECAY = 0.1
BETA2 = 0.95

TOKENS_PER_PARAMETER = 10  # seen in training, at least: with fewer a smaller model learns more
PARAMETERS_PER_TOKEN = 2  # of the text, at most: with more the model memorises the text


@dataclass(frozen=True)
class Choice:
    """A model shape, its number of parameters, and the tokens it can see in the given time."""

    shape: str
    parameters: int
    tokens: int


def vocabulary_size(nbytes: int) -> int:
    """Vocabulary size that suits a text of `nbytes`."""
    for most, pieces in VOCABULARIES:
        if nbytes <= most:
            return pieces
    return LARGEST_VOCABULARY


def learning_rate(dim: int) -> float:
    """Peak learning rate of a model of that width, to two digits."""
    return float(f"{min(HIGHEST_RATE, RATE_TIMES_DIM / dim):.1e}")


def tokens_per_update(tokens: int) -> int:
    """Tokens per update of a run of so many tokens: a short run needs many updates."""
    for most, per_update in TOKENS_PER_UPDATE:
        if tokens <= most:
            return per_update
    return LONG_RUN_PER_UPDATE


def choose(
    shapes: Sequence[str],
    parameters: Callable[[str], int],
    speed: Callable[[str], float],
    text_tokens: int,
    seconds: float,
) -> Choice:
    """The largest shape for which time and text suffice; the smallest if they do for none.

    parameters, speed: functions of a shape; speed is measured, in tokens per second
    text_tokens: number of training tokens   seconds: time for the whole training
    """
    best: Choice | None = None
    for shape in shapes:
        n = parameters(shape)
        if best is not None and n > PARAMETERS_PER_TOKEN * text_tokens:
            break
        tokens = int(speed(shape) * seconds)
        if best is not None and tokens < TOKENS_PER_PARAMETER * n:
            break
        best = Choice(shape, n, tokens)
    assert best is not None
    return best
