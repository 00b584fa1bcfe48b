"""Sample text of a model in training."""

from __future__ import annotations

from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.session import Decoder

SEED = 1337


def sample(decoder: Decoder, start: int, count: int, backend: str, seed: int = SEED) -> list[int]:
    """`count` tokens after `start`, fewer if the context is shorter; the seed is always the same.

    Temperature 1 without top-p: samples from the model's own distribution.

    Raises NotFiniteError.
    """
    model = LanguageModel(decoder, None, backend)
    return [token.id for token in model.generate([start], count, top_p=1.0, seed=seed)]
