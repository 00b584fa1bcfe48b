"""`mpiexec -n N pyllm2 train`: ranks that stop, fail, die or differ, and runs resumed by others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pyllm2.formats.llmc_evaluation import Example, write_examples
from pyllm2.gpt2.checkpoint import load_parameters
from pyllm2.training.checkpoint import CheckpointFile
from pyllm2.training.folder import checkpoints
from tests.support import mpi
from tests.support.command import Outcome, as_process
from tests.support.toy_training import BARE, N_PARAMETERS, write_shards
from tests.training.test_golden import LOSS, NORM, assert_near
from tests.training.test_llmc_run import part, state_bytes, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

END = 10  # seconds within which all ranks end
FLAGS = (
    *"--batch 2 --context 4 --learning-rate 0.01 --val-every 6".split(),
    *"--val-batches 2 --backend numpy --threads 1".split(),
)
SHORT = (*BARE, *FLAGS, *"--total-batch 32 --steps 12 --save-every 5".split())
LONG = (*BARE, *FLAGS, *"--steps 1000000 --save-every 10 --keep 1000".split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mpi.require_mpi()
    write_shards(tmp_path)
    return tmp_path


def ranks(folder: Path, *argvs: tuple[str, ...]) -> Outcome:
    """Run one rank per command line."""
    words: list[str] = []
    for argv in argvs:
        words += [*mpi.command(*argv), ":", "-n", "1"]
    return mpi.run(1, words[:-3], folder)


def errors(outcome: Outcome) -> list[str]:
    assert b"Traceback" not in outcome.err
    return [s for s in outcome.err.decode().splitlines() if s.startswith("pyllm2: error: ")]


def begun(folder: Path, size: int) -> subprocess.Popen[bytes]:
    """A long run into `out` that has written a checkpoint."""
    process = mpi.start(size, mpi.command(*LONG, "--out", "out"), folder)
    while not ((folder / "out").is_dir() and checkpoints(str(folder / "out"))):
        assert process.poll() is None
        time.sleep(0.05)
    return process


def require_whole(out: Path) -> int:
    """The step of the newest checkpoint, once all are read and no file is left over."""
    assert not [p.name for p in out.iterdir() if "tmp" in p.name]
    for step, path in checkpoints(str(out)):
        assert CheckpointFile(path).read(N_PARAMETERS).step == step
    return checkpoints(str(out))[-1][0]


def test_stopped_by_4_ranks_and_resumed_by_others(folder: Path) -> None:
    """By 4: the bytes of a run that never stopped; by 2 and by 1: within what reordering moves.

    `--resume` needs no flag but `--out`.
    """
    whole = mpi.run(4, mpi.command(*SHORT, "--out", "whole"), folder)
    assert whole.code == 0, whole.err.decode()
    assert whole.err.count(b"ranks, by process") == 1  # rank 0 alone speaks
    assert whole.err.count(b"step   12/12 | loss") == 1
    assert (folder / "whole" / "main.log").read_text().count("s:3 trl") == 1
    names = [f"step_{step:08d}.safetensors" for step in (10, 12)]
    reference = CheckpointFile(folder / "whole" / names[1]).read(N_PARAMETERS)
    for size in (4, 2, 1):
        shutil.copytree(folder / "whole", folder / f"by{size}")
        (folder / f"by{size}" / names[1]).unlink()
        argv = f"train gpt2 --out by{size} --resume".split()
        resumed = (
            mpi.run(size, mpi.command(*argv), folder) if size > 1 else as_process(argv, folder)
        )
        assert resumed.code == 0, resumed.err.decode()
        assert b"resumed from by%d/step_00000010" % size in resumed.err
        end = folder / f"by{size}" / names[1]
        if size == 4:
            assert end.read_bytes() == (folder / "whole" / names[1]).read_bytes()
            assert (folder / "by4/model.bin").read_bytes() == (
                folder / "whole/model.bin"
            ).read_bytes()
        else:  # two steps of Adam: their rates bound every parameter, with other batches too
            found = CheckpointFile(end).read(N_PARAMETERS)
            moved = np.abs(found.params[:] - reference.params[:])
            assert moved.max() <= 2 * 2 * 0.01


def test_what_differs_between_ranks_is_refused(folder: Path) -> None:
    """One line that names the rank; before the folder exists."""
    common = (*SHORT, "--out", "out")
    for changes, code, said in (
        ("--steps 0", 2, "rank 1 of 2: --steps: '0': expected a whole number"),
        ("--train none.bin", 1, "rank 1 of 2: none.bin: matches no file"),
        ("--steps 13", 2, "rank 1 is in another run: run.recipe.steps = 13 (rank 0: 12)"),
        ("--train val.bin", 2, "rank 1 is in another run: run.data"),
        ("--backend numba-strict", 2, "rank 1 is in another run: run.engine.backend"),
    ):
        outcome = ranks(folder, common, (*common, *changes.split()))
        assert outcome.code == code, changes
        (line,) = errors(outcome)
        assert said in line
        assert not (folder / "out").exists()


def test_the_same_error_on_all_ranks_is_one_line(folder: Path) -> None:
    outcome = mpi.run(3, mpi.command("train", "gpt2", "--out", "none", "--resume"), folder)
    assert outcome.code == 1
    assert errors(outcome) == ["pyllm2: error: none: does not hold a run to resume"]


def test_a_bad_shard_on_one_rank_ends_all(folder: Path) -> None:
    """A shard that shrinks during the run; rank 1 has its own copy."""
    shutil.copytree(folder, folder / "own")
    train = (*LONG, "--out", str(folder / "out"))
    second = [w if not w.startswith(("train_", "val")) else f"own/{w}" for w in train]
    words = [*mpi.command(*train), ":", "-n", "1", *mpi.command(*second)]
    process = mpi.start(1, words, folder)
    while not ((folder / "out").is_dir() and checkpoints(str(folder / "out"))):
        assert process.poll() is None
        time.sleep(0.05)
    for name in ("train_0.bin", "train_1.bin"):
        os.truncate(folder / "own" / name, 1024)
    _, err = process.communicate(timeout=END)
    assert process.returncode == 1
    (line,) = errors(Outcome(1, b"", err))
    assert re.match(
        r"pyllm2: error: rank 1 of 2: own/train_\d.bin: .*; all ranks are stopped", line
    )
    assert require_whole(folder / "out") >= 10


def test_a_killed_rank_ends_all(folder: Path) -> None:
    process = begun(folder, 3)
    found: dict[str, str] = {}
    err = b""
    assert process.stderr is not None
    while not found:
        err = process.stderr.readline()
        found = dict(re.findall(r"(\d): (\d+) on ", err.decode()))
    os.kill(int(found["1"]), signal.SIGKILL)
    process.communicate(timeout=END)
    assert process.returncode != 0
    assert require_whole(folder / "out") >= 10
    for pid in map(int, found.values()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_once(folder: Path, number: signal.Signals, code: int) -> None:
    """mpiexec passes it on: the step is finished, saved by rank 0, and every rank ends."""
    process = begun(folder, 3)
    before = len(checkpoints(str(folder / "out")))
    process.send_signal(number)
    _, err = process.communicate(timeout=END)
    assert process.returncode == code, err.decode()
    assert err.count(b"stopped after") == 1
    last = require_whole(folder / "out")
    assert f"stopped after {last} of".encode() in err
    assert before <= len(checkpoints(str(folder / "out")))


def test_two_ranks_follow_the_recorded_run_of_two_processes(tmp_path: Path, shared: Path) -> None:
    """llm.c's rules for two processes, recorded in float64; the optimizer is sharded here."""
    golden = shared / "golden" / "llmc"
    recorded = golden / "trainer_cuda_semantics" / "tiny_2proc"
    log = json.loads((recorded / "log.json").read_text())
    flags = {
        "init": golden / "models" / "tiny" / "model.bin",
        "train": recorded / "train_*.bin",
        "val": recorded / "train_00.bin",
        "batch": log["B"],
        "context": log["T"],
        "total-batch": log["total_batch_size"],
        "steps": log["steps"],
        "learning-rate": log["lr"],
        "warmup": log["warmup"],
        "schedule": log["scheduler"],
        "final-fraction": log["final_frac"],
        "weight-decay": log["weight_decay"],
        "beta1": log["betas"][0],
        "beta2": log["betas"][1],
        "clip": log["clip"],
        "zero": 1,
        "backend": "numpy",
        "threads": 1,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    argv = ("train", "gpt2", *words, "--out", "out", "--val-every", "0", "--json")
    outcome = mpi.run(2, mpi.command(*argv), tmp_path)
    assert outcome.code == 0, outcome.err.decode()
    events = [json.loads(line) for line in outcome.out.splitlines()]
    updates = [event for event in events if event["event"] == "update"]
    assert len(updates) == len(log["log"]["f64"]) == log["steps"]
    for update, expected in zip(updates, log["log"]["f64"], strict=True):
        assert update["loss"] == pytest.approx(expected["loss"], rel=0, abs=LOSS)
        assert update["norm"] == pytest.approx(expected["grad_norm"], rel=NORM, abs=0)
    _, found = load_parameters(tmp_path / "out" / "model.bin")
    assert_near(found, np.load(recorded / "final_f64.npz")["params"], log["lr"])


def test_a_rank_that_ends_before_it_joins_ends_all(folder: Path) -> None:
    """Killed, or with an exit code, which MPICH's launcher does not notice by itself."""
    for end in ("os.kill(os.getpid(), 9)", "os._exit(3)"):
        other = [sys.executable, "-c", f"import os; {end}"]
        words = [*mpi.command(*LONG, "--out", "out"), ":", "-n", "1", *other]
        process = mpi.start(1, words, folder, PYLLM2_JOIN_SECONDS="4")
        process.communicate(timeout=3 * END)
        assert process.returncode != 0
        assert not (folder / "out").exists()


def test_validation_and_evaluation_are_those_of_one_process(folder: Path) -> None:
    """Two ranks validate on the same rows as one process with twice as many; HellaSwag on three."""
    (folder / "one").mkdir()
    alone = (*BARE, *FLAGS, "--batch", "4", "--steps", "1")
    assert as_process((*alone, "--out", "one"), folder).code == 0
    outcome = mpi.run(2, mpi.command(*BARE, *FLAGS, "--steps", "1", "--out", "two"), folder)
    assert outcome.code == 0, outcome.err.decode()
    first, second = (
        (folder / name / "main.log").read_text().splitlines()[0] for name in ("one", "two")
    )
    assert first.startswith("s:0 tel:")
    assert first == second

    rng = np.random.default_rng(3)
    examples = [
        Example(i % 4, rng.integers(0, 13, 3).tolist(), [rng.integers(0, 13, 2).tolist()] * 4)
        for i in range(7)
    ]
    write_examples(folder / "h.bin", examples)
    argv = "eval hellaswag one --data h.bin --backend numpy --threads 1".split()
    said = as_process(argv, folder)
    assert said.code == 0, said.err.decode()
    over_ranks = mpi.run(3, mpi.command(*argv), folder)
    assert over_ranks.code == 0, over_ranks.err.decode()
    assert over_ranks.out == said.out


def test_ranks_go_on_with_a_run_of_llm_c(folder: Path) -> None:
    """Of two ranks with ZeRO-1: to the bytes of a run that was never in llm.c's files."""
    constant = (*SHORT, "--schedule", "constant", "--save-every", "0")
    for out, steps in (("whole", "12"), ("first", "5")):
        argv = mpi.command(*constant, "--steps", steps, "--out", out)
        assert mpi.run(2, argv, folder).code == 0
    saved = CheckpointFile(folder / "first" / "step_00000005.safetensors").read(N_PARAMETERS)
    m, v = (np.asarray(x[0:N_PARAMETERS]) for x in (saved.m, saved.v))
    states = [
        state_bytes([part(m, r, 2), part(v, r, 2)], 5, r, 2, **saved.loader) for r in range(2)
    ]
    write_run(folder / "llmc", 5, states, (folder / "first" / "model.bin").read_bytes())
    outcome = mpi.run(2, mpi.command(*constant, "--init", "llmc", "--out", "second"), folder)
    assert outcome.code == 0, outcome.err.decode()
    assert (folder / "second/model.bin").read_bytes() == (folder / "whole/model.bin").read_bytes()
