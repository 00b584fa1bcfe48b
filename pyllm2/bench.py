"""Speed of each backend, as a share of the machine's limits and as a ratio to another backend.

Absolute times on a shared machine mean little: the limits (memory read bandwidth, and the same
matrix products in BLAS alone) are measured in the same run, all measurements take turns, and
medians are reported with their spread.
"""

from __future__ import annotations

import functools
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

from pyllm2.compiling.processors import processors
from pyllm2.errors import BackendError, PyLLM2Error, UsageError
from pyllm2.formats.llama2c_vocabulary import write_vocabulary
from pyllm2.gpt2.model import GPT2
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.load import load
from pyllm2.llama2.checkpoint import save_parameters
from pyllm2.llama2.initial import SHAPES, random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.tokenizers.sentencepiece import FIRST_BYTE, N_BYTES
from pyllm2.training.plot import require_plot, save_figure

READ_BYTES = 2**29  # far more than any cache
STREAMS = (1, 2, 4, 8)  # read streams per thread


@dataclass
class Samples:
    """Repeated measurements of one quantity."""

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
    """Measurements of one backend or program: tokens per second, seconds of compilation."""

    name: str
    compile_seconds: float = 0.0
    prefill: Samples = field(default_factory=Samples)
    decode: Samples = field(default_factory=Samples)


@dataclass
class Report:
    """One run of the benchmark: the limits and every backend."""

    model: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    weight_bytes: int
    read_bandwidth: Samples  # bytes per second
    product_rate: Samples  # prompt tokens/s of the float32 products alone; empty for int8
    results: list[Result]

    @property
    def decode_limit(self) -> float:
        """Tokens per second if reading every weight once were the only cost."""
        return self.read_bandwidth.median / self.weight_bytes

    def rows(self, rival: str) -> list[list[Any]]:
        """Table rows: rates, shares of the limits, ratios to a rival."""
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
    *("backend", "compile s", "prefill tok/s", "of sgemm"),
    *("decode tok/s", "spread", "of bandwidth", "decode ratio"),
]


def _share(reached: Samples, limit: Samples) -> str:
    """Share of a limit; a dash if there is no limit (int8 products have none)."""
    if not reached.values:
        return ""
    return f"{reached.median / limit.median:.2f}" if limit.values else "-"


def _ratio(result: Result, base: Result | None) -> str:
    """Median of the ratios of each repeat, in which both see the same drift of the machine."""
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
    """Race backends, and programs with run.c's command line, on a checkpoint of either family.

    Raises BackendError for a backend that cannot run here, UsageError for programs beside a
    GPT-2, PyLLM2Error for a program that fails.
    """
    racers = {name: load(path, backend=name) for name in names}
    model = next(iter(racers.values())) if racers else load(path, backend="numpy")
    config, arrays = model.config, _arrays(model)
    if against and not isinstance(model.model, Llama2):
        raise UsageError("--against: a program with run.c's command line runs Llama-2 only")
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
            if all(isinstance(array, np.ndarray) for array in arrays.values()):
                seconds = _products_seconds(arrays, prompt_tokens)
                products.values.append(prompt_tokens / seconds)
            for result in results:
                lm = racers[result.name]
                result.prefill.values.append(prompt_tokens / _prefill(lm, ids))
                result.decode.values.append(new_tokens / _decode(lm, ids, new_tokens))
            for result, program in zip(programs, against, strict=True):
                rate = _program_rate(program, path, vocabulary, prompt_tokens + new_tokens)
                result.decode.values.append(rate)
    return Report(
        path,
        processors(),
        prompt_tokens,
        new_tokens,
        _bytes_read(arrays),
        bandwidth,
        products,
        results + programs,
    )


def _arrays(model: LanguageModel) -> dict[str, Any]:
    """The learned arrays of a model by name; matrices of all layers are (L, OC, C)."""
    if isinstance(model.model, GPT2):
        return dict(model.model.params)
    assert isinstance(model.model, Llama2)
    return {name: array for name, array in vars(model.model.weights).items() if array is not None}


def _bytes_read(arrays: dict[str, Any]) -> int:
    """Bytes that decoding one token reads: everything but tables of which it needs one row."""
    tables = {"wpe"} | ({"token_embedding"} if "classifier" in arrays else set())
    return sum(array.nbytes for name, array in arrays.items() if name not in tables)


def _prefill(model: LanguageModel, ids: Sequence[int]) -> float:
    session = model.start(len(ids))
    began = time.perf_counter()
    session.feed(ids, last_only=True)
    return time.perf_counter() - began


def _decode(model: LanguageModel, ids: Sequence[int], n: int) -> float:
    """Seconds for n decoding steps at positions 2 … n + 1."""
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
    """Bytes per second: the best of several numbers of distant streams per thread."""
    from pyllm2.compiling import c_build

    data = _much_data()
    if c_build.why_not() is not None:
        began = time.perf_counter()
        data.sum()
        return float(data.nbytes / (time.perf_counter() - began))
    from pyllm2.compiling.c_library import library

    limits = library("limits", "fast")
    best = float("inf")
    for streams in STREAMS:
        began = time.perf_counter()
        limits.read(data, data.size, streams)
        best = min(best, time.perf_counter() - began)
    return float(data.nbytes / best)


def _products_seconds(arrays: dict[str, Any], T: int) -> float:
    """Seconds for the matrix products of a prefill alone, on the model's own weights."""
    rng = np.random.default_rng(0)
    stacks = [array for array in arrays.values() if array.ndim == 3]
    last = next(arrays[n] for n in ("classifier", "token_embedding", "wte") if n in arrays)
    inputs = {a.shape[-1]: rng.standard_normal((T, a.shape[-1]), np.float32) for a in stacks}
    began = time.perf_counter()
    for layer in range(len(stacks[0])):
        for stack in stacks:
            inputs[stack.shape[-1]] @ stack[layer].T
    inputs[last.shape[-1]][-1:] @ last.T
    return time.perf_counter() - began


_SPEED = re.compile(rb"achieved tok/s: ([0-9.]+)")


def _program_rate(program: str, model: str, vocabulary: str, steps: int) -> float:
    """Tokens per second that a program with run.c's flags reports, greedy, without a prompt."""
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
    """V distinct pieces, for programs that need a tokenizer file although only ids matter."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(N_BYTES)]
    pieces += [b" "] + [b"w%d" % i for i in range(max(0, V - FIRST_BYTE - N_BYTES - 1))]
    return pieces[:V], [0.0] * V


def write_random(shape: str, path: str, seed: int = 0) -> None:
    """Write a v0 checkpoint of a published shape with random weights that never end a text.

    Raises KeyError for a shape that is not in SHAPES, FileError from the operating system.
    """
    config = SHAPES[shape]
    weights = random_weights(config, shared_classifier=True, seed=seed)
    # A small BOS embedding gives BOS a small logit: a greedy program never draws it and so never
    # ends early. The norm of the first layer compensates where BOS is the input.
    assert isinstance(weights.token_embedding, np.ndarray)
    weights.token_embedding[1] *= 1e-3
    tensors = {name: a for name, a in vars(weights).items() if a is not None}
    save_parameters(path, config, tensors)


def plot(report: Report, path: str) -> None:
    """Two bars per backend: share of the bandwidth, share of the sgemm rate. Needs matplotlib."""
    require_plot()
    import matplotlib

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
    save_figure(figure, path)
    pyplot.close(figure)
