"""Race int8 decoding against llama.cpp's Q8_0, on one model with random weights.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install -e '.[numba,race]'
    python tools/race_llama_cpp.py --shape 110M --pairs 7

Without a native build llama.cpp lacks the processor's widest vectors. Each engine has its own
process and waits while the other runs. Both first read a short text: if their logits differ by more
than rounding to int8 explains, the race is cancelled.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import bench, load
from pyllm2.llama2.checkpoint import export, load_float32
from pyllm2.llama2.initial import SHAPES

Array = NDArray[np.float32]

# Correlation of logits per position. Measured on these shapes: at least 0.998. Wrong models: 0.97
# without the last layer's attention, at most 0.83 with gate and up swapped or q and k permuted.
# (Equal best tokens prove little: with random weights the best token is mostly the input.)
LEAST_CORRELATION = 0.995

GGUF_NAMES = {
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


def write_gguf(source: Path, target: Path) -> None:
    """Write a float32 checkpoint as GGUF: matrices Q8_0, norms float32.

    llama.cpp rotates neighbouring pairs, as llama2.c does, so queries and keys are not permuted.
    No vocabulary (only ids matter) and no `output` (the embedding is also the classifier).
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config, tensors, _ = load_float32(source)
    writer = GGUFWriter(target, "llama")
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")

    def add(name: str, array: Array) -> None:
        if array.ndim == 1:
            writer.add_tensor(f"{name}.weight", np.ascontiguousarray(array))
        else:
            q8 = GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", quants.quantize(array, q8), raw_dtype=q8)

    add("token_embd", tensors["token_embedding"])
    add("output_norm", tensors["final_norm"])
    for ours, theirs in GGUF_NAMES.items():
        for layer, array in enumerate(tensors[ours]):
            add(f"blk.{layer}.{theirs}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Ours:
    """A checkpoint on the Numba backend."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = load(path, backend="numba", threads=threads)
        self.V = self.model.config.vocab_size

    def start(self, positions: int) -> None:
        self.session = self.model.start(positions)

    def feed(self, token: int) -> Array:
        row: Array = self.session.feed([token])[0]
        return row


class LlamaCpp:
    """A GGUF file on llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        threading = {"n_threads": threads, "n_threads_batch": threads}
        # flash attention: measured to be faster
        self.model: Any = Llama(str(path), n_ctx=0, verbose=False, flash_attn=True, **threading)
        self.V = self.model.n_vocab()

    def start(self, positions: int) -> None:
        self.model.reset()

    def feed(self, token: int) -> Array:
        self.model.eval([token])
        last = self.model._ctx.get_logits()  # a view: logits of the last token only
        address = ctypes.cast(last, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, (self.V,))


def write_models(shape: str, folder: Path, group_size: int = 32) -> tuple[Path, Path]:
    """Write the same random weights twice: as llama2.c's v2 and as GGUF."""
    source, ours, rival = (folder / name for name in ("v0.bin", "v2.bin", "q8_0.gguf"))
    bench.write_random(shape, str(source))
    export(source, ours, "v2", group_size)
    write_gguf(source, rival)
    return ours, rival


def text(V: int, n: int) -> list[int]:
    """BOS and n - 1 ids spread over the vocabulary."""
    return [1] + [3 + i * 7919 % (V - 3) for i in range(n - 1)]


def logits(engine: Ours | LlamaCpp, n: int) -> Array:
    """After each of n tokens, (n, V)."""
    engine.start(n)
    return np.stack([engine.feed(token).copy() for token in text(engine.V, n)])


def agreement(a: Array, b: Array) -> float:
    """The smallest correlation between two rows."""
    return min(float(np.corrcoef(x, y)[0, 1]) for x, y in zip(a, b, strict=True))


def decode_seconds(engine: Ours | LlamaCpp, n: int) -> float:
    """Seconds for n steps, after two steps of warm-up."""
    ids = text(engine.V, n + 2)
    engine.start(n + 2)
    for token in ids[:2]:
        engine.feed(token)
    began = time.perf_counter()
    for token in ids[2:]:
        engine.feed(token)
    return time.perf_counter() - began


# ---- the two processes -----------------------------------------------------------------------

_engine: Any = None


def _open(kind: type[Ours] | type[LlamaCpp], path: Path, threads: int) -> None:
    global _engine
    _engine = kind(path, threads)


def _call(function: Any, n: int) -> Any:
    return function(_engine, n)


def process(kind: type[Ours] | type[LlamaCpp], path: Path, threads: int) -> ProcessPoolExecutor:
    """A process with an engine."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, _open, (kind, path, threads))


def race(
    ours: ProcessPoolExecutor, rival: ProcessPoolExecutor, n: int, pairs: int
) -> list[tuple[float, float]]:
    """Seconds for n tokens of each engine, in pairs; the order alternates."""
    found = []
    for pair in range(pairs):
        order = (ours, rival) if pair % 2 == 0 else (rival, ours)
        first, second = (engine.submit(_call, decode_seconds, n).result() for engine in order)
        found.append((first, second) if pair % 2 == 0 else (second, first))
    return found


def row(name: str, seconds: Sequence[float], n: int, file_bytes: int) -> list[str]:
    rates = [n / s for s in seconds]
    middle = statistics.median(rates)
    spread = (max(rates) - min(rates)) / middle
    return [name, f"{middle:.1f}", f"{100 * spread:.0f} %", f"{middle * file_bytes / 1e9:.1f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes = [name for name, config in SHAPES.items() if config.hidden_dim % 32 == 0]
    parser.add_argument("--shape", choices=shapes, default="110M")
    parser.add_argument("--group-size", type=int, default=32, help="of pyllm2; Q8_0 has 32")

    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    try:
        import gguf  # noqa: F401
        import llama_cpp
        import numba  # noqa: F401
        from tabulate import tabulate
    except ImportError as error:
        print(f"{error}: pip install 'pyllm2[numba,race]'", file=sys.stderr)
        return 1

    n, pairs = options.new_tokens, options.pairs
    with tempfile.TemporaryDirectory() as folder:
        paths = write_models(options.shape, Path(folder), options.group_size)
        with (
            process(Ours, paths[0], options.threads) as ours,
            process(LlamaCpp, paths[1], options.threads) as rival,
        ):
            both = [engine.submit(_call, logits, 32).result() for engine in (ours, rival)]
            correlation = agreement(*both)
            agree = f"correlation of logits at least {correlation:.4f}"
            if not correlation >= LEAST_CORRELATION:
                print(f"not the same model: {agree}", file=sys.stderr)
                return 1
            times = race(ours, rival, n, pairs)
        sizes = [path.stat().st_size for path in paths]
    reading = max(bench.read_bandwidth() for _ in range(5))
    ratios = [theirs / mine for mine, theirs in times]
    print(
        f"{options.shape}, int8 in groups of {options.group_size}, {agree}\n"
        f"{n} tokens, {options.threads} threads, {pairs} pairs in turn; "
        f"reading memory: {reading / 1e9:.1f} GB/s\n"
        f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n"
    )
    names = ("pyllm2, numba", f"llama.cpp Q8_0 (llama-cpp-python {llama_cpp.__version__})")
    columns = zip(names, zip(*times, strict=True), sizes, strict=True)
    rows = [row(name, seconds, n, size) for name, seconds, size in columns]
    headers = ["engine", "decode tok/s", "spread", "weights GB/s"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
