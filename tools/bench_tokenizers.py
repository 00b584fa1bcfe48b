"""Encoding speed and memory: our tokenizers beside sentencepiece and tiktoken, one thread.

    python tools/bench_tokenizers.py TEXT --ranks gpt2.tiktoken --model text.model [--megabytes 4]

TEXT is repeated up to the size. Each row runs in a process of its own: processor time after one
encoding of the first 64 KB, and the growth of the process's peak memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece

from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.byte_level import ByteLevelTokenizer

ENCODERS = "pyllm2-gpt2 tiktoken pyllm2-llama2 sentencepiece".split()


def texts(path: str, n: int) -> dict[str, bytes]:
    """Name -> n bytes."""
    text = Path(path).read_bytes()
    letters = np.random.default_rng(1).integers(97, 123, n, np.uint8)
    return {
        "text": (text * (n // len(text) + 1))[:n],
        "blanks": b" " * n,
        "runs of 4,095 blanks": ((b" " * 4095 + b"a") * (n // 4096 + 1))[:n],
        "one long word": letters.tobytes(),
        "random words": np.where(np.arange(n) % 7 == 6, 32, letters).astype(np.uint8).tobytes(),
    }


def encoder(name: str, options: argparse.Namespace) -> Callable[[bytes], list[int]]:
    if name == "pyllm2-gpt2":
        return load_tokenizer(options.ranks).encode
    if name == "pyllm2-llama2":
        return load_tokenizer(options.model).encode
    if name == "tiktoken":
        tokenizer = load_tokenizer(options.ranks)
        assert isinstance(tokenizer, ByteLevelTokenizer)
        library = tokenizer._tiktoken()
        return lambda data: library.encode_ordinary(data.decode(errors="replace"))
    processor = sentencepiece.SentencePieceProcessor(model_file=options.model)
    return lambda data: processor.encode(data.decode(errors="replace"), num_threads=1)


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 0


def measure(name: str, text: str, options: argparse.Namespace) -> None:
    data = texts(options.text, int(1e6 * options.megabytes))[text]
    encode = encoder(name, options)
    encode(data[:65536])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, began = memory("VmRSS"), time.process_time()
    ids = encode(data)
    seconds = time.process_time() - began
    grown, n = max(0, memory("VmHWM") - before), len(data)
    figures = f"{n / 1e6 / seconds:7.2f} MB/s {grown / n:6.1f} bytes of memory per byte"
    print(f"{text:22} {name:14} {figures} {n / len(ids):6.2f} bytes per id", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", help="text file")
    parser.add_argument("--ranks", required=True, help="rank file of tiktoken")
    parser.add_argument("--model", required=True, help="SentencePiece .model")
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(*options.row, options)
        return
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    for text in texts(options.text, 0):
        for name in ENCODERS:
            command = [sys.executable, *sys.argv, "--row", name, text]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
