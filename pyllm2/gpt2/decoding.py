"""GPT-2 token by token: the forward of `model`, with the rows of earlier positions kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pyllm2.gpt2.model import GPT2

Array = NDArray[np.float32]


class Decoder:
    """A GPT-2 as `pyllm2.session.Session` wants it: one conversation, a few tokens at a time.

    A cache is an array (L, 1, positions, 3C): what `qkvw` made of every position so far. (llm.c
    computes the whole sequence anew for every token; the numbers are the same.)
    """

    def __init__(self, model: GPT2) -> None:
        self.model, self.config, self.ops = model, model.config, model.ops

    def cache_nbytes(self, positions: int) -> int:
        """What `new_cache` will allocate."""
        return 12 * self.config.num_layers * positions * self.config.channels

    def new_cache(self, positions: int) -> Array:
        config, dtype = self.config, self.model.params.flat.dtype
        return np.zeros((config.num_layers, 1, positions, 3 * config.channels), dtype)

    def forward(
        self, tokens: NDArray[np.integer], pos: int, cache: Array, last_only: bool = False
    ) -> Array:
        """Feed tokens at positions pos, pos+1, …

        tokens: (T,) ids in [0, V)   cache: filled for all positions before pos
        ->   logits after each token, (T, V); with `last_only` after the last one, (1, V)
        """
        *_, (_, x) = self._stream(tokens, pos, cache)
        return self._classify(x[:, -1:] if last_only else x)

    def _stream(
        self, tokens: NDArray[np.integer], pos: int, cache: Array
    ) -> Iterator[tuple[str, Array]]:
        """The residual stream, (1, T, C), after the encoder and after each layer, with its name."""
        p, P = self.model.params, pos + len(tokens)
        x = self.ops.encoder_forward(tokens[None], p.wte, p.wpe[pos:P])
        yield "encoder", x
        for layer in range(self.config.num_layers):
            _, x = self.model.block_forward(x, layer, cache[layer, :, :P])
            yield f"layer {layer}", x

    def _classify(self, x: Array) -> Array:
        p = self.model.params
        x, _, _ = self.ops.layernorm_forward(x, p.lnfw, p.lnfb)
        return self.ops.matmul_forward(x, p.wte[: self.config.vocab_size])[0]

    def where_not_finite(
        self, tokens: NDArray[np.integer], pos: int, cache: Array
    ) -> tuple[int, str] | None:
        """The first place whose output has NaN or infinity, and the first of these tokens there.

        None if it is none of these: then it is the final layernorm or the classifier.
        """
        for place, x in self._stream(tokens, pos, cache):
            bad_rows = np.flatnonzero(~np.isfinite(x[0]).all(axis=-1))
            if len(bad_rows):
                return int(bad_rows[0]), place
        return None
