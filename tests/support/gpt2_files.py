"""Valid llm.c files of a few kilobytes, as bytes: checkpoint, token shard, tokenizer, examples."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np

from pyllm2.formats.llmc_evaluation import Example, write_examples
from pyllm2.gpt2.config import GPT2Config

MODEL, TOKENIZER, TOKENS = 20240326, 20240328, 20240520
FIELDS = "max_seq_len vocab_size num_layers num_heads channels padded_vocab_size".split()
CONFIG = GPT2Config(
    max_seq_len=8, vocab_size=20, num_layers=2, num_heads=2, channels=8, padded_vocab_size=32
)


def header(*numbers):
    """256 int32 numbers: those given, then zeros."""
    return struct.pack(f"<{len(numbers)}i", *numbers).ljust(1024, b"\0")


def model_file(config=CONFIG, seed=0, std=0.3, floats=None):
    """Random weights, in the padding rows as well: no result may depend on them."""
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
    """A tokenizer file; texts are one byte string per token."""
    records = b"".join(bytes([len(text)]) + text for text in texts)
    return header(TOKENIZER, version, len(texts), end_of_text) + records


def evaluation_file(examples):
    """A HellaSwag file; each example is (label, context, four completions)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "e.bin")
        write_examples(path, [Example(*example) for example in examples])
        return path.read_bytes()


def with_number(content, index, value):
    """content with one int32 of its header replaced."""
    return with_bytes(content, 4 * index, struct.pack("<i", value))


def with_bytes(content, at, new):
    """content with the bytes from `at` on replaced."""
    return content[:at] + new + content[at + len(new) :]
