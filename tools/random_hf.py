"""A random Llama as a sharded fp16 folder of Hugging Face, and what int8 of it costs.

    python tools/random_hf.py /tmp/random --shape 1B --measure
    python tools/random_hf.py /tmp/random --shape 7B --measure --delete

The folder is written tensor by tensor, so it may be larger than the memory. --measure exports it to
llama2.c's int8 (v2) in a process of its own, prints that process's peak memory, then decodes with
the int8 file: tokens/s, and the share of the machine's read bandwidth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2 import bench, load
from pyllm2.formats.safetensors_file import write_weights
from pyllm2.formats.tensors import size_of
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.huggingface import NAMES
from pyllm2.llama2.imported import WITHOUT_LAYERS
from pyllm2.parameters import slices

# C, F, L, NH, NKV, V, S: Llama-2-7B's, and smaller ones of its kind.
SHAPES = {
    "110M": (768, 2048, 12, 12, 12, 32000, 1024),
    "1B": (2048, 5632, 22, 32, 4, 32000, 2048),
    "7B": (4096, 11008, 32, 32, 32, 32000, 4096),
}
SHARD_BYTES = 4 * 10**9


def write_folder(folder: Path, config: Llama2Config, shard_bytes: int = SHARD_BYTES) -> None:
    """Weights of standard deviation 1/√fan-in in float16, norms of ones; an index of the shards."""
    folder.mkdir(parents=True)
    wanted = slices(config.shapes(shared_classifier=False), WITHOUT_LAYERS)
    shapes = {NAMES[name].format(layer): shape for (name, layer), shape in wanted.items()}
    shards: list[dict[str, Any]] = [{}]
    nbytes = 0
    for name, shape in shapes.items():
        size = 2 * size_of(shape)
        if nbytes + size > shard_bytes and shards[-1]:
            shards.append({})
            nbytes = 0
        shards[-1][name] = shape
        nbytes += size
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal(2**24, np.float32)  # drawing all of 7B's would take minutes

    def read(name: str) -> np.ndarray:
        shape = shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        array = np.resize(np.roll(numbers, int(rng.integers(len(numbers)))), shape)
        array *= np.float32(1 / math.sqrt(shape[-1]))
        return array

    files = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_weights(folder / file, shard, read, dict.fromkeys(shard, "F16"), {"format": "pt"})
        files |= dict.fromkeys(shard, file)
    total = sum(2 * size_of(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(values, indent=1))


def export_to_int8(folder: Path, target: Path) -> None:
    """Export in a child process; print its time and peak memory."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pyllm2", "export", str(folder), str(target), "--format", "v2"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    read = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"export: {read / 1e9:.2f} GB of fp16 to {target.stat().st_size / 1e9:.2f} GB of int8 in "
        f"{seconds:.0f} s, peak memory {peak / 1e9:.2f} GB",
        flush=True,
    )


def decode(target: Path, backend: str, new_tokens: int) -> None:
    """Decode from the int8 file; print tokens/s, the share of the bandwidth, and peak memory."""
    bandwidth = bench.read_bandwidth()
    model = load(target, backend=backend)
    list(model.generate([1], 2, temperature=0))  # compiles
    generation = model.generate([1], new_tokens, temperature=0)
    n = len(list(generation))
    speed = (n - 1) / generation.seconds
    share = speed * target.stat().st_size / bandwidth
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"decode, {backend}: {speed:.2f} tokens/s of {n}, {share:.2f} of the read bandwidth "
        f"({bandwidth / 1e9:.1f} GB/s), peak memory {peak / 1e9:.2f} GB",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder to write")
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--measure", action="store_true", help="export to int8, then decode")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--delete", action="store_true", help="delete all files at the end")
    options = parser.parse_args()
    config = Llama2Config(*SHAPES[options.shape])
    nbytes = 2 * config.parameters(shared_classifier=False)
    parent = options.folder.absolute().parent
    if shutil.disk_usage(parent).free < 2 * nbytes:
        print(f"{parent}: less than {2 * nbytes / 1e9:.0f} GB are free", file=sys.stderr)
        return 1
    target = options.folder.with_name(f"{options.folder.name}.int8.bin")
    try:
        began = time.perf_counter()
        write_folder(options.folder, config)
        seconds = time.perf_counter() - began
        print(f"{options.folder}: {nbytes / 1e9:.2f} GB in {seconds:.0f} s", flush=True)
        if options.measure:
            export_to_int8(options.folder, target)
            decode(target, options.backend, options.new_tokens)
    finally:
        if options.delete:
            shutil.rmtree(options.folder, ignore_errors=True)
            target.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
    sys.exit(main())
