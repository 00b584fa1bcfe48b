"""Make a checkpoint and a tokenizer from any text file, by counting: no training, no download.

    python tools/bigram.py README.md bigram.bin      # writes bigram.bin and tokenizer.bin beside it

The model is a Llama whose attention and feed-forward weights are zero. What is left, embedding,
norm and classifier, can express any table of "which token follows which" (a transformer without
its layers is a bigram model), so the table is counted and written into the classifier:

    embedding of token i: √C at place i, 0 elsewhere   ->  the final norm leaves it as it is
    classifier[j, i] = log P(j follows i) / √C         ->  logits of i = log P(· | i)

It babbles in the words of its text, and is the smallest honest thing to run and to step through.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from pyllm2.formats.llama2c import write_checkpoint
from pyllm2.formats.sentencepiece_model import to_vocabulary, train_sentencepiece
from pyllm2.formats.vocabulary import write_vocabulary
from pyllm2.llama2.tokenizer import Tokenizer

CONTEXT = 256
SMOOTHING = 1e-6  # of a token never seen after another: possible, hardly ever drawn


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Byte-pair pieces of the text, by the sentencepiece library with llama2.c's settings."""
    vocabulary = to_vocabulary(train_sentencepiece(text.splitlines(), vocab_size))
    return Tokenizer(vocabulary.pieces, vocabulary.scores)


def next_token_table(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """log P(j | i), (V, V) with row j and column i; paragraphs are separate texts."""
    V = tokenizer.vocab_size
    counts = np.full((V, V), SMOOTHING)
    for paragraph in text.split("\n\n"):
        ids = tokenizer.encode(paragraph.strip(), bos=True, eos=True)
        np.add.at(counts, (ids[1:], ids[:-1]), 1)
    return np.log(counts / counts.sum(axis=0)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path, help="a text file in UTF-8")
    parser.add_argument("out", type=Path, help="the checkpoint to write; tokenizer.bin beside it")
    parser.add_argument("--vocab-size", type=int, default=600)
    options = parser.parse_args()

    text = options.text.read_text(encoding="utf-8")
    tokenizer = train_tokenizer(text, options.vocab_size)
    V = tokenizer.vocab_size
    C = V + V % 2  # RoPE turns pairs, even if nothing looks at them
    classifier = np.zeros((V, C), np.float32)
    classifier[:, :V] = next_token_table(tokenizer, text) / math.sqrt(C)
    shape = {
        "dim": C, "hidden_dim": 1, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1,
        "vocab_size": V, "seq_len": CONTEXT,
    }  # fmt: skip
    tensors = {
        "token_embedding": (np.eye(V, C) * math.sqrt(C)).astype(np.float32),
        "attention_norm": np.ones((1, C), np.float32),
        "wq": np.zeros((1, C, C), np.float32),
        "wk": np.zeros((1, C, C), np.float32),
        "wv": np.zeros((1, C, C), np.float32),
        "wo": np.zeros((1, C, C), np.float32),
        "ffn_norm": np.ones((1, C), np.float32),
        "w1": np.zeros((1, 1, C), np.float32),
        "w2": np.zeros((1, C, 1), np.float32),
        "w3": np.zeros((1, 1, C), np.float32),
        "final_norm": np.ones(C, np.float32),
        "classifier": classifier,
    }
    write_checkpoint(options.out, shape, tensors)
    vocabulary = options.out.with_name("tokenizer.bin")
    write_vocabulary(vocabulary, tokenizer.pieces, tokenizer.scores)
    print(f"{options.out}: {V} tokens counted in {options.text}; vocabulary in {vocabulary}")


if __name__ == "__main__":
    main()
