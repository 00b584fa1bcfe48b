"""Are queries and keys in the order that their container says they have?

Nothing in a file says it, and a converter that forgot to reorder them gives a model whose first
words are fluent and whose text soon is not. It is measured: the loss of a text as the weights are,
and with wq and wk reordered either way (`llama2.rotary_order`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends, memory
from pyllm2.errors import NotEnoughMemoryError, PyLLM2Error
from pyllm2.inference.containers import Container
from pyllm2.llama2.imported import rotated_heads
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.rotary_order import half_split, interleaved
from pyllm2.tokenizers import fitted

# Plain English of our own: every model that has learned English predicts it better than chance.
TEXT = (
    "Once upon a time there was a little girl who lived in a small house near the forest. "
    "One day she went out to play with her dog. The sun was warm, and they ran to the river. "
    "On the way home they met an old man who had lost his hat, and they helped him to find it. "
    "He was very happy and gave the girl a red apple. She said thank you and went home to her "
    "mother. Her mother was in the kitchen and made a big cake, because it was her birthday. The "
    "girl wanted to help, so she washed the dishes and put the plates on the table. When all of "
    "her friends had come, they sang a song and played games until it was dark. Then the girl was "
    "tired, and she went to bed with her little dog."
)
MOST_TOKENS = 240
SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Measured:
    """line: what was found, in words, or empty   wrong: whether another order is better"""

    line: str = ""
    wrong: bool = False


def measure(container: Container) -> Measured:
    """Compare the losses of `TEXT`.

    Nothing is measured for GPT-2, which has no rotation, or for a model that does not fit in memory
    or has no tokenizer.
    """
    if container.family != "llama2":
        return Measured()
    config = container.streamed.config
    tokenizer = container.tokenizer()
    if tokenizer is None:
        return Measured()
    try:
        ids = fitted(tokenizer, config.vocab_size).encode_prompt(TEXT)
        ids = ids[: min(MOST_TOKENS, config.seq_len)]
        if len(ids) < 16:
            return Measured()
        memory.require(8 * config.parameters(), "the model and a copy of wq and wk", "")
        model: Any = container.model(backends.engine("numpy"), unpack=True)
    except NotEnoughMemoryError:
        return Measured("order of queries and keys: not measured, the model does not fit in memory")
    except PyLLM2Error as error:
        return Measured(f"order of queries and keys: not measured: {error}")
    as_it_is = losses(model, ids)
    others = [losses(_reordered(model, order), ids) for order in (interleaved, half_split)]
    other = min(others, key=lambda found: float(found.mean()))
    difference = other - as_it_is  # one per token
    spread = float(difference.std(ddof=1)) / len(difference) ** 0.5
    sure = float(difference.mean()) / spread if spread > 0 else 0.0
    numbers = f"{as_it_is.mean():.2f} nats per token, reordered {other.mean():.2f}"
    words = f"order of queries and keys, on {len(ids)} tokens: {numbers}"
    if sure > SURE:
        return Measured(f"{words}: right ({sure:.0f} standard errors)")
    if sure < -SURE:
        hint = "they look as if a converter had not reordered them"
        return Measured(f"{words}: wrong ({-sure:.0f} standard errors): {hint}", True)
    return Measured(f"{words}: no difference that means anything ({sure:.1f} standard errors)")


def losses(model: Llama2, ids: list[int]) -> NDArray[np.float64]:
    """The loss of each token after the first: (T - 1,)"""
    tokens = np.array(ids)
    logits = model.forward(tokens, 0, model.new_cache(len(ids)))[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), tokens[1:]]
    found: NDArray[np.float64] = np.log(np.exp(logits).sum(axis=1)) - chosen
    return found


def _reordered(model: Llama2, order: Any) -> Llama2:
    """The model with the rows of its queries and keys in another order."""
    config, weights = model.config, model.weights
    changed = {}
    for name, n in rotated_heads(config).items():
        array = getattr(weights, name, None)
        if array is not None:
            changed[name] = np.stack([order(layer, n) for layer in array])
    return Llama2(config, dataclasses.replace(weights, **changed), model.engine)
