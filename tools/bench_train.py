"""Time a training step (forward, backward, AdamW) by every backend, and by PyTorch.

    python tools/bench_train.py                                  every backend here, GPT-2 124M
    python tools/bench_train.py --shape 15M --backends numba,c
    python tools/bench_train.py --shape llama-1M                 a Llama-2
    python tools/race_torch.py                                   numba and torch

Each backend runs in its own process with the same weights and the same batch, and the losses must
agree. They take turns, one step each, so that other load slows them alike; a ratio is the median
over the rounds. Memory is the peak of the process minus weights, gradients, moments and what the
process had before.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Two thread pools that spin after their work would take the processors from each other.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

from pyllm2 import backends
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters

SHAPES: dict[str, tuple[GPT2Config | Llama2Config, int, int]] = {  # config, B, T
    "124M": (GPT2Config(1024, 50257, 12, 12, 768, 50304), 4, 64),
    "15M": (GPT2Config(256, 32000, 6, 6, 288, 32000), 8, 128),
    "1M": (GPT2Config(128, 1000, 4, 4, 128, 1024), 8, 128),
    "llama-1M": (Llama2Config(128, 352, 5, 8, 4, 1024, 256), 32, 256),
    "llama-15M": (Llama2Config(288, 768, 6, 6, 6, 32000, 256), 4, 256),
}
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
NAMES = ("numba", "c", "numpy", "torch")
SAME_LOSS = 1e-4  # relative; the order of sums changes far less, another model changes more


def original_floats(config: GPT2Config, B: int, T: int) -> int:
    """Number of activations, in float32, that llm.c keeps."""
    C, L, NH, Vp = config.channels, config.num_layers, config.num_heads, config.padded_vocab_size
    a_layer = B * T * (18 * C + 4) + 2 * B * NH * T * T
    return B * T * (2 * C + 2 + 2 * Vp + 1) + L * a_layer


def flops(config: GPT2Config | Llama2Config, B: int, T: int) -> int:
    """Operations in the matrix products of a step: forward, and twice as many backward."""
    if isinstance(config, GPT2Config):
        C, L, V = config.channels, config.num_layers, config.padded_vocab_size
        return 3 * 2 * B * T * C * (12 * L * C + V)
    C, L, V = config.dim, config.n_layers, config.vocab_size
    return 3 * 2 * B * T * C * (L * (2 * C + 2 * config.kv_dim + 3 * config.hidden_dim) + V)


# ---- one backend in its own process -----------------------------------------------------------


def kib(field: str) -> int:
    """VmRSS or VmHWM of this process, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


class Worker:
    """Training steps of one backend on one batch."""

    def __init__(self, name: str, shape: str, threads: int) -> None:
        config, B, T = SHAPES[shape]
        is_gpt2 = isinstance(config, GPT2Config)
        package = "gpt2" if is_gpt2 else "llama2"
        if name != "torch":
            engine = backends.engine(name, threads, package)
            self.optimizer = backends.ops(name, threads, "training")
        self.known_kib = kib("VmRSS") + 4 * 4 * config.parameters() // 1024
        random = np.random.default_rng(0)
        ids = random.integers(0, config.vocab_size, (B, T + 1))
        self.batch = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
        params = Parameters(config.shapes())
        params.flat[...] = random.standard_normal(params.flat.size, dtype=np.float32) * 0.02
        if not is_gpt2:
            for norm in ("attention_norm", "ffn_norm", "final_norm"):
                params[norm][...] = 1
        if name == "torch":
            torch_training = importlib.import_module(f"torch_{package}").TorchTraining
            self.step = torch_training(config, params, threads, **ADAMW).step
            return
        self.model = (TrainableGPT2 if is_gpt2 else TrainableLlama2)(config, params, engine)
        self.grads, self.m, self.v = (params.zeros_like() for _ in range(3))
        self.taken = 0
        self.step = self._step

    def _step(self, tokens: Any, targets: Any) -> float:
        losses = self.model.add_gradient(tokens, targets, 1 / tokens.size, self.grads, True)
        self.taken += 1
        arrays = (a.flat for a in (self.model.params, self.grads, self.m, self.v))
        hyper = (ADAMW["lr"], *ADAMW["betas"], ADAMW["eps"], ADAMW["weight_decay"])
        self.optimizer.adamw_update(*arrays, self.taken, *hyper)
        return float(losses.mean(dtype=np.float64))

    def answer(self, request: str) -> dict[str, Any]:
        if request == "memory":
            return {"kib": kib("VmHWM") - self.known_kib}
        if request == "sgemm":
            return {"gflops": sgemm()}
        cpu, start = time.process_time(), time.perf_counter()
        loss = self.step(*self.batch)
        return {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "loss": loss,
        }


def sgemm(n: int = 1024) -> float:
    """GFLOP/s of the Numba matrix product, or of BLAS without Numba."""
    a, b, out = (np.ones((n, n), np.float32) for _ in range(3))
    product: Any = np.matmul
    if backends.why_not("numba") is None:
        import numba

        from pyllm2.fast.gemm import Products

        product = Products(numba.get_num_threads())
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, b, out)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds[1:]) / 1e9


def work(name: str, shape: str, threads: int) -> None:
    """Answer requests, one line each, until stdin ends."""
    worker = Worker(name, shape, threads)
    for line in sys.stdin:
        print(json.dumps(worker.answer(line.strip())), flush=True)


# ---- all backends in turn ---------------------------------------------------------------------


class Process:
    """A `Worker` in another process."""

    def __init__(self, name: str, shape: str, threads: int) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        command = [sys.executable, __file__, "--worker", name, "--shape", shape]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        limits = {
            f"{library}_NUM_THREADS": str(threads) for library in ("OPENBLAS", "NUMBA", "OMP")
        }
        self._process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits, "PYTHONPATH": path},
        )

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(request, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: a worker ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def why_not(name: str) -> str | None:
    """One line that says why a backend cannot run here; None if it can."""
    if name == "torch":
        found = importlib.util.find_spec("torch") is not None
        return None if found else "needs PyTorch: pip install torch"
    if name not in NAMES:
        return f"does not exist: choose from {', '.join(NAMES)}"
    return backends.why_not(name)


def race(names: list[str], shape: str, threads: int, rounds: int) -> None:
    """Measure and print one table."""
    processes = {name: Process(name, shape, threads) for name in names}
    losses = {name: process.ask("step")["loss"] for name, process in processes.items()}
    for name, loss in losses.items():
        first = losses[names[0]]
        if not abs(loss - first) <= SAME_LOSS * abs(first):
            raise SystemExit(f"error: loss of {name} = {loss}: expected {first} as of {names[0]}")
    limits = []
    for _ in range(rounds):
        for process in processes.values():
            answer = process.ask("step")
            process.seconds.append(answer["seconds"])
            process.cpu.append(answer["cpu"])
            time.sleep(0.02)  # until threads that still spin have stopped
        limits.append(processes[names[0]].ask("sgemm")["gflops"])
    limit = statistics.median(limits)
    config, B, T = SHAPES[shape]
    print(f"{shape}, B={B}, T={T}, {threads} threads, {rounds} rounds; loss {losses[names[0]]:.6f}")
    print(f"products {flops(config, B, T) / 1e9:.1f} GFLOP, sgemm {limit:.0f} GFLOP/s in this run")
    if isinstance(config, GPT2Config):
        print(f"activations of llm.c: {original_floats(config, B, T) * 4 / 2**20:.0f} MiB")
    others = [f"vs {name}" for name in ("c", "torch") if name in names]
    heads = ["ms (median)", "ms (best)", "CPU ms", *others, "of sgemm", "MiB"]
    print(f"{'':8}" + "".join(f"{head:>13}" for head in heads))
    for name, process in processes.items():
        seconds = statistics.median(process.seconds)
        times = (seconds, min(process.seconds), statistics.median(process.cpu))
        cells = [f"{1e3 * x:.0f}" for x in times]
        for other in ("c", "torch"):
            if other in names:
                pairs = zip(processes[other].seconds, process.seconds, strict=True)
                cells.append(f"{statistics.median(a / b for a, b in pairs):.2f}x")
        cells.append(f"{flops(config, B, T) / 1e9 / limit / seconds:.0%}")
        cells.append(f"{process.ask('memory')['kib'] / 1024:.0f}")
        print(f"{name:8}" + "".join(f"{cell:>13}" for cell in cells))
    for process in processes.values():
        process.end()


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Time a training step.")
    parser.add_argument("--shape", choices=SHAPES, default="124M")
    parser.add_argument("--backends", help="comma-separated (default: all that can run here)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.worker:
        work(arguments.worker, arguments.shape, arguments.threads)
        return 0
    if arguments.backends:
        names = arguments.backends.split(",")
        for name in names:
            reason = why_not(name)
            if reason is not None:
                print(f"error: {name} {reason}", file=sys.stderr)
                return 1
    else:
        names = [name for name in NAMES if why_not(name) is None]
    race(names, arguments.shape, arguments.threads, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
