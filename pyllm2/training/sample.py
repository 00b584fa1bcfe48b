"""Text from a model in training."""

from __future__ import annotations

from pyllm2.generate import generate_ids
from pyllm2.sampling import Sampler
from pyllm2.session import Decoder, Session

SEED = 1337


def sample(decoder: Decoder, start: int, count: int, backend: str, seed: int = SEED) -> list[int]:
    """`count` tokens after `start`, fewer if the context is shorter; the same coins every time.

    Drawn at temperature 1 from all tokens: what the model believes, not its best side.

    Raises NotFiniteError.
    """
    positions = min(count + 1, decoder.config.seq_len)
    session = Session(decoder, positions, backend)
    sampler = Sampler(temperature=1.0, top_p=1.0, seed=seed)
    return list(generate_ids(session, [start], sampler, positions - 1, stop=()))
