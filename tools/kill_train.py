"""Kill training runs (SIGKILL) at random moments and check that nothing is lost.

    python tools/kill_train.py --kills 50

A small model is trained once without interruption, then repeatedly killed and resumed until it is
finished, with a checkpoint after every step so that most kills interrupt a write. After every kill
each checkpoint in the folder must be complete, and none may be lost; at the end checkpoint and
model must equal those of the uninterrupted run, byte for byte.

Exit code 0 if they do.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
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


def start(flags: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Start a run into `out`, resuming if it has a checkpoint."""
    resume = ["--resume"] if checkpoints_in(out) else []
    command = [sys.executable, "-m", "pyllm2", "train", "gpt2", *flags, "--out", str(out), *resume]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def checkpoints_in(out: Path) -> list[tuple[int, str]]:
    return checkpoints(str(out)) if out.is_dir() else []


def finish(flags: list[str], out: Path) -> None:
    """Run to the end. Raises RuntimeError with its stderr if it fails."""
    process = start(flags, out)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said.decode())


def kill_once(flags: list[str], out: Path, wait: float) -> bool:
    """Kill a run `wait` seconds after its first step; False if it ended earlier.

    Raises RuntimeError if the run fails by itself or leaves a damaged checkpoint.
    """
    before = [step for step, _ in checkpoints_in(out)]
    process = start(flags, out)
    assert process.stderr is not None
    said = b""
    for line in process.stderr:
        said += line
        if b"| loss" in line:
            break
    time.sleep(wait)
    process.kill()
    said += process.stderr.read()
    process.stderr.close()
    if process.wait() > 0:
        raise RuntimeError(said.decode())
    after = [step for step, _ in checkpoints_in(out)]
    if before and (not after or after[-1] < before[-1]):
        raise RuntimeError(f"checkpoints {before} became {after}")
    for step, path in checkpoints_in(out):
        if CheckpointFile(path).read(PARAMETERS).step != step:
            raise RuntimeError(f"{path} is of another step")
    return process.returncode < 0


def compare(out: Path, reference: Path) -> None:
    """Raises RuntimeError unless both folders end with the same bytes and nothing else."""
    for name in (f"step_{STEPS:08d}.safetensors", "model.bin"):
        if (out / name).read_bytes() != (reference / name).read_bytes():
            raise RuntimeError(f"{name} differs from the uninterrupted run's")
    names = {p.name for p in out.iterdir()}
    if names != {p.name for p in reference.iterdir()}:
        raise RuntimeError(f"left over: {sorted(names)}")


def kill_often(kills: int, seed: int, folder: Path) -> tuple[int, int]:
    """Number of kills, and of runs that finished with the right result."""
    rng = random.Random(seed)
    flags = prepare(folder)
    reference, out = folder / "reference", folder / "out"
    finish(flags, reference)
    done = runs = 0
    while done < kills:
        killed = kill_once(flags, out, rng.uniform(0, 0.1) * rng.random())
        done += killed
        if killed and done < kills:
            continue
        if killed:
            finish(flags, out)
        compare(out, reference)
        runs += 1
        shutil.rmtree(out)
    return done, runs


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="pyllm2-kill-") as folder:
        done, runs = kill_often(options.kills, options.seed, Path(folder))
    print(f"{done} kills in {runs} runs: every checkpoint whole, every end the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
