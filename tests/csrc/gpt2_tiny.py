"""Valid files of GPT-2 training, a few kilobytes each, as bytes."""

from __future__ import annotations

import struct

import numpy as np

from pyllm2.gpt2.config import GPT2Config

MODEL, TOKENIZER, TOKENS = 20240326, 20240328, 20240520
FIELDS = (
    "max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size",
)  # fmt: skip
CONFIG = GPT2Config(
    max_seq_len=8, vocab_size=20, num_layers=2, num_heads=2, channels=8, padded_vocab_size=32
)


def header(*numbers):
    """256 int32 numbers, zero but for the first."""
    return struct.pack(f"<{len(numbers)}i", *numbers).ljust(1024, b"\0")


def model_file(config=CONFIG, seed=0, std=0.3, floats=None):
    """Random weights; those of the padding rows too, as nothing may depend on them."""
    if floats is None:
        floats = np.random.default_rng(seed).normal(0, std, config.parameters())
    fields = (getattr(config, f) for f in FIELDS)
    return header(MODEL, 3, *fields) + np.asarray(floats, "<f4").tobytes()


def shard(tokens):
    tokens = np.asarray(tokens, "<u2")
    return header(TOKENS, 1, len(tokens)) + tokens.tobytes()


def shard_file(n, seed=0, vocab_size=CONFIG.vocab_size):
    return shard(np.random.default_rng(seed).integers(0, vocab_size, n))


def tokenizer_file(texts, end_of_text, version=2):
    """One byte string a token."""
    records = b"".join(bytes([len(text)]) + text for text in texts)
    return header(TOKENIZER, version, len(texts), end_of_text) + records


def with_number(content, index, value):
    """content with one number of its header replaced."""
    return content[: 4 * index] + struct.pack("<i", value) + content[4 * index + 4 :]
