"""Time training steps on 1 to N ranks, and model clusters that are not here.

    python -m tools.scaling --shape 1M --ranks 1,2               table: time, communication, memory
    python -m tools.scaling --shape 124M --ranks 1,2,4 --batch 1 --context 8 --rounds 1
    python -m tools.scaling --shape 124M --threads               2 ranks x 1 thread against 1 x 2
    python -m tools.scaling --shape 124M --model --latency 2e-6 --bandwidth 12e9 --plot scaling.png

Per step all ranks together send 8 n (P - 1) bytes for n parameters on P ranks: a reduce-scatter of
the gradient and an all-gather of the parameters. The bytes are counted where they are handed to MPI
and compared with this formula. Moments and update are 1/P of those of one process (ZeRO-1).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES = {"124M": "d12", "1M": "layers=4,heads=4,channels=128,context=128,vocab=1000"}
LARGEST = 4096  # ranks of the model
SMALL = 5  # collectives of a few bytes per step: loss, norms, stop, save


# ---- formulas -----------------------------------------------------------------------------------


def step_bytes(n: int, ranks: int) -> int:
    """Bytes that all ranks together send per step."""
    return 8 * n * (ranks - 1)


def state_bytes(n: int, ranks: int) -> int:
    """Bytes per rank: parameters and gradient, and its share of both moments."""
    return 8 * n + 8 * -(-n // ranks)


def messages(n: int, ranks: int) -> int:
    """Messages that a rank sends in turn per step."""
    from pyllm2.training.processes import BLOCK, LEAST_PIECE

    if ranks == 1:
        return 0
    pieces = math.ceil(n / ranks / max(LEAST_PIECE, BLOCK // ranks))
    return (ranks - 1) * (pieces + 1) + SMALL * math.ceil(math.log2(ranks))


@dataclass(frozen=True)
class Cluster:
    """A model of one step, from what one rank takes.

    gradient: seconds per micro-batch   update: seconds per parameter   add: seconds per float
    """

    n: int
    gradient: float
    update: float
    add: float
    latency: float
    bandwidth: float  # bytes per second of a rank

    def communication(self, ranks: int) -> float:
        moved = step_bytes(self.n, ranks) / ranks / self.bandwidth
        return moved + self.latency * messages(self.n, ranks)

    def exchange(self, ranks: int) -> float:
        """Communication, and the sums of what has arrived."""
        return self.communication(ranks) + self.add * self.n * (ranks - 1) / ranks

    def step(self, ranks: int, micro_batches: int, zero: bool = True) -> float:
        """Seconds per step in which each rank has so many micro-batches."""
        update = self.update * self.n / (ranks if zero else 1)
        return micro_batches * self.gradient + update + self.exchange(ranks)


# ---- a rank -------------------------------------------------------------------------------------


class Counting:
    """A communicator that counts the bytes of the two collectives on all parameters."""

    def __init__(self, communicator: Any) -> None:
        self.communicator, self.bytes = communicator, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.communicator, name)

    def Ialltoallv(self, sent: list[Any], received: list[Any]) -> Any:  # noqa: N802
        own = self.communicator.Get_rank()
        self.bytes += 4 * (sum(sent[1]) - sent[1][own])
        return self.communicator.Ialltoallv(sent, received)

    def Allgatherv(self, sent: Any, received: list[Any]) -> None:  # noqa: N802
        """Each rank receives the shares of all others; together they send as much."""
        own = self.communicator.Get_rank()
        self.bytes += 4 * (sum(received[1]) - received[1][own])
        self.communicator.Allgatherv(sent, received)


class RandomTokens:
    """A data loader without files."""

    num_batches = 1

    def __init__(self, vocab: int, B: int, T: int, seed: int) -> None:
        import numpy as np

        self._ids = np.random.default_rng(seed).integers(0, vocab, (B, T + 1)).astype(np.int32)

    def next_batch(self) -> tuple[Any, Any]:
        return self._ids[:, :-1].copy(), self._ids[:, 1:].copy()

    def reset(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def go_to(self, batches: int) -> None: ...


def worker(options: argparse.Namespace) -> None:
    """Take some steps; rank 0 prints its figures as JSON."""
    from pyllm2.cli.threads import set_threads

    set_threads(options.worker)
    from pyllm2.training import launch

    with launch.of_this_run() as ranks:
        counting = None
        if ranks.size > 1:
            ranks.communicator = counting = Counting(ranks.communicator)
        figures = _steps(options, ranks, counting)
        link = _link(ranks) if ranks.size > 1 else {}
        if ranks.rank == 0:
            print(json.dumps({**figures, **link}))


def _steps(options: argparse.Namespace, ranks: Any, counting: Counting | None) -> dict[str, Any]:
    from pyllm2 import backends
    from pyllm2.cli.progress import peak_memory
    from pyllm2.gpt2 import family
    from pyllm2.training.folder import NoFolder
    from pyllm2.training.recipe import Plan, Recipe
    from pyllm2.training.trainer import Trainer

    B, T = options.batch, options.context
    config = family.descriptor(SHAPES.get(options.shape, options.shape), None)
    engine = backends.engine(options.backend, options.worker, "gpt2")
    before = peak_memory()
    model = family.build(config, family.initial_parameters(config), engine)
    n = model.params.flat.size
    total = B * T * ranks.size * options.micro_steps
    recipe = Recipe(batch=B, context=T, total_batch=total, steps=10**6, processes=ranks.size)
    data = RandomTokens(config.vocab_size, B, T, ranks.rank)
    trainer = Trainer(
        model,
        backends.ops(options.backend, options.worker, "training"),
        recipe,
        Plan(validate_every=0, validation_batches=1, save_every=0),
        data,
        data,
        NoFolder(),
        family.MATRICES,
        {},
        list,
        processes=ranks,
        zero=True,
    )
    parts: dict[str, list[float]] = {"step": [], "communication": [], "update": []}
    exchanged = 0
    update = trainer.descend

    def timed(rate: float, scale: float) -> None:
        began, sent = time.perf_counter(), _exchange(ranks)
        update(rate, scale)
        spent = time.perf_counter() - began - (_exchange(ranks) - sent)
        parts["update"].append(spent)

    trainer.descend = timed  # type: ignore[method-assign]
    for round_ in range(options.rounds + 1):
        ranks.each(0)  # all begin together
        began, sent = time.perf_counter(), _exchange(ranks)
        counted = counting.bytes if counting else 0
        trainer.update()
        if round_ == 0:  # it may have compiled
            parts["update"].clear()
            continue
        parts["step"].append(time.perf_counter() - began)
        parts["communication"].append(_exchange(ranks) - sent)
        exchanged = (counting.bytes if counting else 0) - counted
    peaks = ranks.each(peak_memory() - before)
    medians = {name: statistics.median(found) for name, found in parts.items()}
    sent = sum(ranks.each(exchanged))
    activations = 4 * family.activation_floats(config, B, T)
    return {**medians, "n": n, "bytes": sent, "peak": max(peaks), "activations": activations}


def _exchange(ranks: Any) -> float:
    return float(getattr(ranks, "exchange_seconds", 0.0))


def _link(ranks: Any) -> dict[str, float]:
    """Latency and bandwidth between ranks 0 and 1, there and back; seconds per float added."""
    import numpy as np

    found = {}
    for name, size, repeats in (("latency", 8, 200), ("bandwidth", 2**24, 10)):
        message = np.zeros(size, np.uint8)
        ranks.each(0)
        began = time.perf_counter()
        for _ in range(repeats):
            for sender in (0, 1):
                if ranks.rank == sender:
                    ranks.communicator.Send(message, dest=1 - sender)
                elif ranks.rank == 1 - sender:
                    ranks.communicator.Recv(message, source=sender)
        one_way = (time.perf_counter() - began) / repeats / 2
        found[name] = one_way if name == "latency" else size / one_way
    total, piece = np.zeros((2, 2**20), np.float32)
    began = time.perf_counter()
    for _ in range(20):
        total += piece
    return {**found, "add": (time.perf_counter() - began) / 20 / len(total)}


# ---- launches -----------------------------------------------------------------------------------


def mpiexec() -> str:
    """Of PYLLM2_MPIEXEC, beside Python as the wheel has it, or of the PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    found = os.environ.get("PYLLM2_MPIEXEC", found)
    if not found:
        raise SystemExit("needs mpiexec: pip install 'pyllm2[mpi]'")
    return found


def measure(options: argparse.Namespace, ranks: int, threads: int, micro_steps: int) -> Any:
    """The figures of rank 0 of a launch."""
    words = [sys.executable, "-m", "tools.scaling", "--worker", str(threads)]
    for name in ("shape", "backend", "batch", "context", "rounds"):
        words += [f"--{name}", str(getattr(options, name))]
    words += ["--micro-steps", str(micro_steps)]
    if ranks > 1:
        words = [mpiexec(), "-n", str(ranks), *words]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(options: argparse.Namespace) -> None:
    """Time, communication, bytes and memory by number of ranks, one thread each."""
    print("| ranks | ms/step | communication | bytes | formula | MB/rank | state | activations |")
    print("|" + " --- |" * 8)
    for ranks in map(int, options.ranks.split(",")):
        found = measure(options, ranks, 1, options.micro_steps)
        n = found["n"]
        print(
            f"| {ranks} | {1e3 * found['step']:.1f} | {found['communication'] / found['step']:.1%} "
            f"| {found['bytes']:,} | {step_bytes(n, ranks):,} | {found['peak'] / 1e6:,.0f} "
            f"| {state_bytes(n, ranks) / 1e6:,.0f} | {found['activations'] / 1e6:,.0f} |",
            flush=True,
        )


def against_threads(options: argparse.Namespace) -> None:
    """2 ranks x 1 thread against 1 process x 2 threads, launched in turn, the same total batch."""
    ratios, shares = [], []
    for _ in range(options.launches):
        processes = measure(options, 2, 1, options.micro_steps)
        threads = measure(options, 1, 2, 2 * options.micro_steps)
        ratios.append(processes["step"] / threads["step"])
        shares.append(processes["communication"] / processes["step"])
        print(f"ratio {ratios[-1]:.3f}, communication {shares[-1]:.1%}", flush=True)
    print(
        f"2 ranks x 1 thread take {statistics.median(ratios):.3f} times as long as 1 process x "
        f"2 threads; communication {statistics.median(shares):.1%} of it"
    )


def model(options: argparse.Namespace) -> None:
    """Weak and strong scaling of a cluster, from a measured rank and a given or measured link."""
    alone = measure(options, 1, 1, 1)
    two = measure(options, 2, 1, 1)
    n = alone["n"]
    gradient = alone["step"] - alone["update"]
    here = Cluster(n, gradient, alone["update"] / n, two["add"], two["latency"], two["bandwidth"])
    print(f"link here: {here.latency * 1e6:.1f} us, {here.bandwidth / 1e9:.2f} GB/s")
    print(
        f"2 ranks here: {1e3 * two['step']:.1f} ms/step measured, {1e3 * here.step(2, 1):.1f} by "
        f"the model; exchange and sums {1e3 * two['communication']:.1f}, "
        f"{1e3 * here.exchange(2):.1f}"
    )
    latency, bandwidth = options.latency or here.latency, options.bandwidth or here.bandwidth
    cluster = Cluster(n, gradient, here.update, here.add, latency, bandwidth)
    rows = predictions(cluster, options.micro_batches)
    print(f"model of {latency * 1e6:.1f} us, {bandwidth / 1e9:.2f} GB/s per rank:")
    print("| ranks | weak: efficiency | communication | strong: speed-up | ZeRO-1: time | MB |")
    print("|" + " --- |" * 6)
    for row in rows:
        print(
            f"| {row['ranks']:,} | {row['weak']:.3f} | {row['share']:.1%} | {row['strong']:.1f} "
            f"| {row['zero']:.3f} | {row['state'] / 1e6:,.0f} |"
        )
    if options.plot:
        plot(rows, options.plot)


def predictions(cluster: Cluster, micro_batches: int) -> list[dict[str, float]]:
    """A row per power of two.

    weak: each rank has its micro-batch   strong: all share `micro_batches`, and those without idle
    zero: time of a weak step with ZeRO-1, as a fraction of one without
    """
    rows = []
    for ranks in (2**k for k in range(LARGEST.bit_length())):
        step, split = cluster.step(ranks, 1), math.ceil(micro_batches / ranks)
        rows.append(
            {
                "ranks": ranks,
                "weak": cluster.step(1, 1) / step,
                "share": cluster.communication(ranks) / step,
                "strong": cluster.step(1, micro_batches) / cluster.step(ranks, split),
                "zero": step / cluster.step(ranks, 1, zero=False),
                "state": state_bytes(cluster.n, ranks),
            }
        )
    return rows


def plot(rows: list[dict[str, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4))
    ranks = [row["ranks"] for row in rows]
    left.semilogx(ranks, [row["weak"] for row in rows], base=2, label="weak: efficiency")
    left.semilogx(ranks, [row["share"] for row in rows], base=2, label="communication")
    left.semilogx(ranks, [row["zero"] for row in rows], base=2, label="ZeRO-1: time")
    right.loglog(ranks, [row["strong"] for row in rows], base=2, label="strong: speed-up")
    right.loglog(ranks, ranks, base=2, linestyle=":", label="ideal")
    for axes in (left, right):
        axes.set_xlabel("ranks")
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--shape", default="1M", help="124M, 1M, or a shape as pyllm2 train gpt2 --init has it")
    add("--backend", default="numba")
    add("--batch", type=int, default=4)
    add("--context", type=int, default=64)
    add("--micro-steps", type=int, default=1)
    add("--rounds", type=int, default=5, help="steps per launch, after one that may compile")
    add("--ranks", default="1,2", help="numbers of ranks, with commas between")
    add("--threads", action="store_true", help="2 ranks x 1 thread against 1 process x 2 threads")
    add("--launches", type=int, default=3, help="of --threads, each way")
    add("--model", action="store_true", help="weak and strong scaling up to 4,096 ranks")
    add("--latency", type=float, help="seconds per message (default: measured here)")
    add("--bandwidth", type=float, help="bytes per second per rank (default: measured here)")
    add("--micro-batches", type=int, default=512, help="per step, of strong scaling")
    add("--plot", help="image file of --model")
    add("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
    elif options.threads:
        against_threads(options)
    elif options.model:
        model(options)
    else:
        table(options)


if __name__ == "__main__":
    main()
