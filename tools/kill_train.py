"""Kill training runs (SIGKILL) at random moments and check that nothing is lost.

    python tools/kill_train.py --kills 50
    python tools/kill_train.py --ranks 3 --kills 50

A small model is trained once without interruption, then repeatedly killed and resumed until it is
finished, with a checkpoint after every step so that most kills interrupt a write. After every kill
each checkpoint in the folder must be complete, and none may be lost; at the end checkpoint and
model must equal those of the uninterrupted run, byte for byte. With --ranks mpiexec starts that
many, one of them, drawn at random, is killed, and all must end within 10 seconds.

Exit code 0 if they do.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pyllm2.formats.llmc_tokens import write_shard
from pyllm2.gpt2.initial import descriptor
from pyllm2.training.checkpoint import CheckpointFile
from pyllm2.training.folder import checkpoints

STEPS = 40
END = 10  # seconds
MODEL = "layers=1,heads=2,channels=16,vocab=50,context=16"
PARAMETERS = descriptor(MODEL).parameters()
FLAGS = (
    f"--init {MODEL} --batch 2 --context 8 --steps {STEPS} --save-every 1 "
    "--val-every 10 --val-batches 1 --backend numpy --threads 1"
).split()


def prepare(folder: Path) -> list[str]:
    """Write shards to the folder; returns the flags of a run on them."""
    rng = np.random.default_rng(1)
    for name, n in (("train", 900), ("val", 200)):
        write_shard(folder / f"{name}.bin", rng.integers(0, 50, n).astype(np.int32))
    return [*FLAGS, "--train", str(folder / "train.bin"), "--val", str(folder / "val.bin")]


def start(flags: list[str], out: Path, ranks: int) -> subprocess.Popen[bytes]:
    """Start a run into `out`, resuming if it has a checkpoint."""
    resume = ["--resume"] if checkpoints_in(out) else []
    command = [sys.executable, "-m", "pyllm2", "train", "gpt2", *flags, "--out", str(out), *resume]
    if ranks > 1:
        command = [*launcher(), "-n", str(ranks), *command]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def launcher() -> list[str]:
    """mpiexec: of PYLLM2_MPIEXEC, beside Python as the wheel has it, or of the PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    found = os.environ.get("PYLLM2_MPIEXEC", found)
    if not found:
        raise SystemExit("--ranks needs mpiexec: pip install 'pyllm2[mpi]'")
    return [found]


def checkpoints_in(out: Path) -> list[tuple[int, str]]:
    return checkpoints(str(out)) if out.is_dir() else []


def finish(flags: list[str], out: Path, ranks: int) -> None:
    """Run to the end. Raises RuntimeError with its stderr if it fails."""
    process = start(flags, out, ranks)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said.decode())


def kill_once(flags: list[str], out: Path, wait: float, ranks: int, rank: int) -> bool:
    """Kill a rank of a run `wait` seconds after its first step; False if it ended earlier.

    Raises RuntimeError if the run fails by itself, outlives the rank by more than END, or leaves a
    damaged checkpoint.
    """
    before = [step for step, _ in checkpoints_in(out)]
    process = start(flags, out, ranks)
    assert process.stderr is not None
    said = b""
    for line in process.stderr:
        said += line
        if b"| loss" in line:
            break
    time.sleep(wait)
    pids = [int(pid) for pid in re.findall(r"\d+: (\d+) on ", said.decode())] or [process.pid]
    killed = kill(pids[rank])
    try:
        _, rest = process.communicate(timeout=END)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"rank {rank} was killed, the others still run: {pids}") from None
    if not killed and process.returncode:
        raise RuntimeError((said + rest).decode())
    killed = killed and process.returncode != 0  # else the launcher had the exit code already
    if left := [pid for pid in pids if alive(pid)]:
        raise RuntimeError(f"rank {rank} was killed, left running: {left}")
    after = [step for step, _ in checkpoints_in(out)]
    if before and (not after or after[-1] < before[-1]):
        raise RuntimeError(f"checkpoints {before} became {after}")
    for step, path in checkpoints_in(out):
        if CheckpointFile(path).read(PARAMETERS).step != step:
            raise RuntimeError(f"{path} is of another step")
    return killed


def kill(pid: int) -> bool:
    """False if it has ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def compare(out: Path, reference: Path) -> None:
    """Raises RuntimeError unless both folders end with the same bytes and nothing else."""
    for name in (f"step_{STEPS:08d}.safetensors", "model.bin"):
        if (out / name).read_bytes() != (reference / name).read_bytes():
            raise RuntimeError(f"{name} differs from the uninterrupted run's")
    names = {p.name for p in out.iterdir()}
    if names != {p.name for p in reference.iterdir()}:
        raise RuntimeError(f"left over: {sorted(names)}")


def kill_often(kills: int, seed: int, folder: Path, ranks: int) -> tuple[int, int]:
    """Number of kills, and of runs that finished with the right result."""
    rng = random.Random(seed)
    flags = prepare(folder)
    reference, out = folder / "reference", folder / "out"
    finish(flags, reference, ranks)
    done = runs = 0
    while done < kills:
        wait = rng.uniform(0, 0.1) * rng.random()
        killed = kill_once(flags, out, wait, ranks, rng.randrange(ranks))
        done += killed
        print(f"{done} of {kills}", file=sys.stderr)
        if killed and done < kills:
            continue
        if killed:
            finish(flags, out, ranks)
        compare(out, reference)
        runs += 1
        shutil.rmtree(out)
    return done, runs


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="pyllm2-kill-") as folder:
        done, runs = kill_often(options.kills, options.seed, Path(folder), options.ranks)
    ranks = f" of {options.ranks} ranks" if options.ranks > 1 else ""
    print(f"{done} kills in {runs} runs{ranks}: every checkpoint whole, every end the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
