"""How large a model, and how many steps, for a text and a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Bytes of text up to which a vocabulary of so many pieces is learned well.
VOCABULARIES = [(2**15, 320), (2**19, 512), (2**22, 1024)]
LARGEST_VOCABULARY = 2048

# Shapes of Llamas, small to large; the context is that of training.
SHAPES = (
    "dim=32,layers=3,heads=4,kv_heads=2",
    "dim=64,layers=4,heads=4,kv_heads=2",
    "dim=96,layers=5,heads=6,kv_heads=3",
    "dim=128,layers=5,heads=8,kv_heads=4",
    "dim=192,layers=6,heads=6,kv_heads=3",
    "dim=288,layers=6,heads=6,kv_heads=6",
)

TOKENS_A_PARAMETER = 10  # to be seen while training: fewer, and a smaller model had learned more
PARAMETERS_A_TOKEN = 2  # of the text: more, and it is learned by heart


@dataclass(frozen=True)
class Choice:
    """A shape in words, its size, and how many tokens can be seen in the time."""

    shape: str
    parameters: int
    tokens: int


def vocabulary_size(nbytes: int) -> int:
    """How many pieces a text of so many bytes can fill with sense."""
    for most, pieces in VOCABULARIES:
        if nbytes <= most:
            return pieces
    return LARGEST_VOCABULARY


def choose(
    shapes: Sequence[str],
    parameters: Callable[[str], int],
    speed: Callable[[str], float],
    text_tokens: int,
    seconds: float,
) -> Choice:
    """The largest shape that the time and the text are enough for; the first if none is.

    parameters, speed: of a shape, the latter in tokens a second, measured
    text_tokens: how many there are to learn from   seconds: for all of the training
    """
    best: Choice | None = None
    for shape in shapes:
        n = parameters(shape)
        if best is not None and n > PARAMETERS_A_TOKEN * text_tokens:
            break
        tokens = int(speed(shape) * seconds)
        if best is not None and tokens < TOKENS_A_PARAMETER * n:
            break
        best = Choice(shape, n, tokens)
    assert best is not None
    return best
