"""How much a forward keeps for its backward."""

from __future__ import annotations

from pyllm2.gpt2.config import GPT2Config


def activations(config: GPT2Config, B: int, T: int) -> int:
    """How many float32 llm.c's 23 buffers have for a batch of (B, T).

    NumPy keeps a little less (no scores before softmax, no copies of what is added to the stream);
    an engine that keeps the gradients of all of them needs as much again.

    Example: 124M, B = 4, T = 64 -> 73347840
    """
    C, L, NH, Vp = config.channels, config.num_layers, config.num_heads, config.padded_vocab_size
    stream = 7 * C  # ln1, atty, attproj, residual2, ln2, fcproj, residual3
    wide = 3 * C + 4 * C + 4 * C  # qkv, fch, fch_gelu
    layer = stream + wide + 2 * NH * T + 4  # preatt, att; two means, two deviations
    ends = 2 * C + 2 * Vp + 3  # encoded, lnf; logits, probs; mean, deviation, loss
    return B * T * (L * layer + ends)
