"""How fast each backend is, as a share of what the machine allows and as a ratio to another.

Bare times on a shared machine mean little: so the limits (the best rate of reading memory, the
rate of the same matrix products in BLAS alone) are measured in the same run, everything is
repeated in turn, and medians are reported with their spread.
"""

from __future__ import annotations

import functools
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.errors import BackendError, PyLLM2Error
from pyllm2.formats.llama2c import write_checkpoint
from pyllm2.formats.vocabulary import write_vocabulary
from pyllm2.language_model import LanguageModel
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.quantized import Quantized
from pyllm2.llama2.random_model import SHAPES, random_weights
from pyllm2.llama2.tokenizer import FIRST_BYTE, N_BYTES
from pyllm2.loading import load_llama2

READ_BYTES = 2**29  # far more than any cache
STREAMS = (1, 2, 4, 8)


@dataclass
class Samples:
    """The same thing measured several times."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.values) - min(self.values)) / self.median if self.values else float("nan")


@dataclass
class Result:
    """What one backend (or a program) reached. Rates in tokens a second, compiling in seconds."""

    name: str
    compile_seconds: float = 0.0
    prefill: Samples = field(default_factory=Samples)
    decode: Samples = field(default_factory=Samples)


@dataclass
class Report:
    """One run of the benchmark: the limits, and every backend."""

    model: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    weight_bytes: int
    read_bandwidth: Samples  # bytes a second
    product_rate: Samples  # prompt tokens/s if float32 products were all there is; int8: empty
    results: list[Result]

    @property
    def decode_limit(self) -> float:
        """Tokens a second if every weight is read once and nothing else happens."""
        return self.read_bandwidth.median / self.weight_bytes

    def rows(self, rival: str) -> list[list[Any]]:
        """A table: rates, shares of the limits, ratios to a rival."""
        base = next((r for r in self.results if r.name == rival), None)
        return [
            [
                r.name,
                f"{r.compile_seconds:.1f}",
                f"{r.prefill.median:.0f}" if r.prefill.values else "",
                _share(r.prefill, self.product_rate),
                f"{r.decode.median:.1f}",
                f"{100 * r.decode.spread:.0f} %",
                f"{r.decode.median / self.decode_limit:.2f}",
                _ratio(r, base),
            ]
            for r in self.results
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


HEADERS = [
    "backend", "compile s", "prefill tok/s", "of sgemm", "decode tok/s", "spread", "of bandwidth",
    "decode ratio",
]  # fmt: skip


def _share(reached: Samples, limit: Samples) -> str:
    """A dash where there is no such limit: sgemm says nothing of int8."""
    if not reached.values:
        return ""
    return f"{reached.median / limit.median:.2f}" if limit.values else "-"


def _ratio(result: Result, base: Result | None) -> str:
    """Median of the ratios repeat by repeat: what drifts, drifts for both."""
    if base is None or not base.decode.values:
        return ""
    pairs = zip(result.decode.values, base.decode.values, strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


def run(
    path: str,
    names: Sequence[str],
    against: Sequence[str] = (),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Race backends, and programs with run.c's flags, on a checkpoint.

    Raises BackendError for a backend that cannot run here, PyLLM2Error for a program that fails.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    racers = {name: load_llama2(path, backend=name) for name in names}
    model = next(iter(racers.values())) if racers else load_llama2(path, backend="numpy")
    assert isinstance(model.model, Llama2)
    config, weights = model.config, model.model.weights
    prompt_tokens = min(prompt_tokens, config.seq_len - 1)
    new_tokens = min(new_tokens, config.seq_len - prompt_tokens)
    ids = [1] + [3 + i % (config.vocab_size - 3) for i in range(prompt_tokens - 1)]

    results = [Result(name) for name in names]
    for result in results:
        say(f"warming up {result.name}")
        began = time.perf_counter()
        _prefill(racers[result.name], ids)
        _decode(racers[result.name], ids, 2)
        first = time.perf_counter() - began
        began = time.perf_counter()
        _prefill(racers[result.name], ids)
        _decode(racers[result.name], ids, 2)
        result.compile_seconds = max(0.0, first - (time.perf_counter() - began))
    programs = [Result(Path(program).name) for program in against]

    bandwidth, products = Samples(), Samples()
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = str(Path(folder) / "tokenizer.bin")
        write_vocabulary(vocabulary, *_any_vocabulary(config.vocab_size))
        for repeat in range(repeats):
            say(f"repeat {repeat + 1} of {repeats}")
            bandwidth.values.append(read_bandwidth())
            if not isinstance(weights.wq, Quantized):
                seconds = _products_seconds(config, weights, prompt_tokens)
                products.values.append(prompt_tokens / seconds)
            for result in results:
                lm = racers[result.name]
                result.prefill.values.append(prompt_tokens / _prefill(lm, ids))
                result.decode.values.append(new_tokens / _decode(lm, ids, new_tokens))
            for result, program in zip(programs, against, strict=True):
                rate = _program_rate(program, path, vocabulary, prompt_tokens + new_tokens)
                result.decode.values.append(rate)
    nbytes = sum(a.nbytes for a in vars(weights).values() if a is not None)
    if weights.classifier is not None:
        nbytes -= weights.token_embedding.nbytes  # of which one row is read
    return Report(
        path, threads or 1, prompt_tokens, new_tokens, nbytes, bandwidth, products,
        results + programs,
    )  # fmt: skip


def _prefill(model: LanguageModel, ids: Sequence[int]) -> float:
    session = model.start(len(ids))
    began = time.perf_counter()
    session.feed(ids, last_only=True)
    return time.perf_counter() - began


def _decode(model: LanguageModel, ids: Sequence[int], n: int) -> float:
    """Seconds for n single steps after a short beginning: positions 1 … n."""
    session = model.start(n + 2)
    session.feed(ids[:1])
    session.feed(ids[1:2])
    began = time.perf_counter()
    for i in range(n):
        session.feed([ids[i % len(ids)]])
    return time.perf_counter() - began


@functools.cache
def _much_data() -> np.ndarray:
    return np.ones(READ_BYTES // 4, np.float32)


def read_bandwidth() -> float:
    """Bytes a second, the best over several numbers of far streams a thread."""
    import ctypes

    from pyllm2 import native

    data = _much_data()
    if native.why_not() is not None:
        began = time.perf_counter()
        data.sum()
        return float(data.nbytes / (time.perf_counter() - began))
    read = native.compiled_library("limits", "fast").limits_read
    best = float("inf")
    for streams in STREAMS:
        began = time.perf_counter()
        read(
            ctypes.c_void_p(data.__array_interface__["data"][0]),
            ctypes.c_int64(data.size),
            ctypes.c_int64(streams),
        )
        best = min(best, time.perf_counter() - began)
    return float(data.nbytes / best)


def _products_seconds(config: Llama2Config, w: Weights, T: int) -> float:
    """The matrix products of a prefill, on the model's own weights, and nothing else."""
    rng = np.random.default_rng(0)
    by_width = {n: rng.standard_normal((T, n), np.float32) for n in (config.dim, config.hidden_dim)}
    every = (w.wq, w.wk, w.wv, w.wo, w.w1, w.w3, w.w2)
    matrices = [matrix for matrix in every if isinstance(matrix, np.ndarray)]
    last = w.classifier if isinstance(w.classifier, np.ndarray) else w.token_embedding
    began = time.perf_counter()
    for layer in range(config.n_layers):
        for matrix in matrices:
            by_width[matrix.shape[2]] @ matrix[layer].T
    by_width[config.dim][-1:] @ last.T
    return time.perf_counter() - began


_SPEED = re.compile(rb"achieved tok/s: ([0-9.]+)")


def _program_rate(program: str, model: str, vocabulary: str, steps: int) -> float:
    """What a program with run.c's flags says of its own speed, greedy, from an empty prompt."""
    flags = ["-z", vocabulary, "-t", "0", "-n", str(steps), "-s", "1"]
    try:
        result = subprocess.run([program, model, *flags], capture_output=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{program}: {error}") from None
    found = _SPEED.search(result.stderr)
    if result.returncode != 0 or found is None:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no speed reported"]
        raise PyLLM2Error(f"{program}: exit code {result.returncode}: {lines[-1]}")
    return float(found[1])


def _any_vocabulary(V: int) -> tuple[list[bytes], list[float]]:
    """V distinct pieces, for programs that want a tokenizer though only ids matter."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(N_BYTES)]
    pieces += [b" "] + [b"w%d" % i for i in range(max(0, V - FIRST_BYTE - N_BYTES - 1))]
    return pieces[:V], [0.0] * V


def write_random(shape: str, path: str, seed: int = 0) -> None:
    """A v0 checkpoint of a published shape with random weights, one that goes on and on.

    Raises KeyError for a shape that is not in SHAPES, FileError from the operating system.
    """
    config = SHAPES[shape]
    weights = random_weights(config, shared_classifier=True, seed=seed)
    # A small embedding of BOS has a small logit, too: a greedy program never draws it, and so plays
    # for as long as it is asked to. The norm makes up for it where BOS is fed.
    weights.token_embedding[1] *= 1e-3
    tensors = {name: a for name, a in vars(weights).items() if a is not None}
    write_checkpoint(path, asdict(config), tensors)


def plot(report: Report, path: str) -> None:
    """Two bars a backend: share of the sgemm rate, share of the bandwidth. Needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise BackendError("--plot needs matplotlib: pip install 'pyllm2[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    names = [r.name for r in report.results]
    decode = [r.decode.median / report.decode_limit for r in report.results]
    prefill = [r.prefill.median / report.product_rate.median for r in report.results]
    for axis, title, shares in (
        (axes[0], "decode: share of read bandwidth", decode),
        (axes[1], "prefill: share of sgemm rate", prefill),
    ):
        axis.barh(names, shares)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(title)
    figure.suptitle(f"{Path(report.model).name}, {report.threads} threads")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def check_backends(names: Sequence[str]) -> None:
    """Raises BackendError naming the first that cannot run here."""
    for name in names:
        if name not in backends.NAMES:
            raise BackendError(f"backend {name!r}: choose from {', '.join(backends.NAMES)}")
        reason = backends.why_not(name)
        if reason is not None:
            raise BackendError(f"backend {name!r} {reason}")
