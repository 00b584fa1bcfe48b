"""Rows 23, 27, 32, 33, 63, 65 and 71 to 76: training runs that are refused or interrupted."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.case import Argv, entries
from tests.support.command import (
    TIMEOUT,
    Outcome,
    as_process,
    environment,
    in_process,
    limited,
    start,
)
from tests.support.toy_training import BARE, TRAIN, write_shards

GOOD = "step_00000012.safetensors"
pytestmark = pytest.mark.usefixtures("no_plots")


Make = Callable[[Path], object]


@dataclass(frozen=True)
class Refusal:
    """A run that is refused in a folder with shards: the line, the exit code, the flags.

    flags: after those of TRAIN
    argv: instead of TRAIN and flags
    make: what else is in the folder
    """

    row: int
    name: str
    error: str
    flags: str = ""
    code: int = 1
    make: Make = lambda folder: None
    argv: Argv | None = None

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"


def with_flags(flags: str) -> Argv:
    return (*TRAIN, *flags.split())


def trained(folder: Path) -> None:
    """A finished run in the folder out."""
    assert in_process(TRAIN, folder).code == 0


def model_at(name: str) -> Make:
    """A trained model under that name."""

    def make(folder: Path) -> None:
        assert in_process(with_flags("--steps 1 --out made"), folder).code == 0
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "made" / "model.bin").rename(folder / name)

    return make


def file_at(name: str, data: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(data)


HELP = "(see pyllm2 train gpt2 --help)"
REQUIRED = "the following arguments are required"


def of_data(row: int, name: str, error: str, flags: str) -> Refusal:
    return Refusal(row, name, error, flags)


def of_out(name: str, error: str, flags: str = "", make: Make = lambda folder: None) -> Refusal:
    return Refusal(65, name, error, flags, make=make)


def of_value(flag: str, value: str, expected: str) -> Refusal:
    """A flag with a wrong value."""
    error = f"{flag}: {value!r}: expected {expected} {HELP}"
    return Refusal(65, flag.strip("-"), error, f"{flag} {value}", code=2)


def of_plan(name: str, error: str, flags: str) -> Refusal:
    """Flags that do not fit each other or the model."""
    return Refusal(65, name, error, flags, code=2)


def of_another_run(name: str, fields: str, flags: str) -> Refusal:
    """A run that is resumed with other flags."""
    error = f"out/{GOOD}: of another run: {fields}"
    return Refusal(74, name, error, f"--resume {flags}", make=trained)


OTHER_MAGIC = (20240325).to_bytes(4, "little") + bytes(1020)
IS_OTHER_MAGIC = "x.bin: magic = 20240325 (byte 0): a GPT-2 checkpoint has 20240326"
SHORT = "val.bin: needs 2001 tokens for B=2 T=1000, has 80"
OF_1000 = "--init layers=1,heads=2,channels=8,vocab=13,context=1000 --context 1000 --train val.bin"
OF_12 = "--init layers=1,heads=2,channels=8,vocab=12,context=8"
OF_4_HEADS = "--other-engine --init layers=1,heads=4,channels=8,vocab=13,context=8"
OVER_INPUT = "out/model.bin: the output would overwrite the input"
NO_D7 = "model 'd7': expected d followed by 6, 12, 24, 36, 48, 60, 72 or 84"
NO_MULTIPLE = "total batch of 12 tokens: expected a multiple of batch 2 × context 4 = 8"
LONG_WARMUP = "warm-up of 12 steps: expected fewer than the 12 of the run"
NO_SINE = f"--schedule: invalid choice: 'sine'; did you mean cosine or linear? {HELP}"
HAS_RUN = "out: already contains a run: --resume continues it, --force begins a new one"
RECIPE = (
    "recipe.batch = 1 (saved: 2), recipe.seed = 7 (saved: 42), recipe.total_batch = 4 (saved: 8)"
)
THREADS = "engine.threads = 2 (saved: 1); --other-engine resumes, but the last bits may differ"

REFUSALS = [
    of_data(33, "no-shards", "none_*.bin: matches no file", "--train none_*.bin"),
    of_data(33, "short-shard", SHORT, OF_1000),
    of_data(32, "token-outside", "train_0.bin: token 12 at index 8: vocabulary is 12", OF_12),
    of_data(23, "tokenizer", "bytes: has 257 tokens, the model expects 13", "--tokenizer bytes"),
    of_data(27, "no-model", "none.bin: no such file or directory", "--init none.bin"),
    Refusal(27, "magic", IS_OTHER_MAGIC, "--init x.bin", make=file_at("x.bin", OTHER_MAGIC)),
    Refusal(65, "over-input", OVER_INPUT, "--init out/model.bin", 2, model_at("out/model.bin")),
    of_out("out-is-a-file", "out: is a file, expected a folder", make=file_at("out", b"mine")),
    of_out(
        "out-is-the-input",
        "model.bin: is a file, expected a folder",
        "--init model.bin --out model.bin",
        model_at("model.bin"),
    ),
    of_out("out-below-a-file", "val.bin/out: not a directory", "--out val.bin/out"),
    of_out("out-read-only", "/proc/none: no such file or directory", "--out /proc/none"),
    of_out("out-has-a-run", HAS_RUN, make=trained),
    of_out("nothing-to-resume", "out: has no checkpoint to resume from", "--resume"),
    of_plan("no-such-shape", NO_D7, "--init d7"),
    of_plan("context", "--context 16: the model has 8 positions", "--context 16"),
    of_plan("total-batch", NO_MULTIPLE, "--total-batch 12"),
    of_plan("warmup", LONG_WARMUP, "--warmup 12"),
    of_plan("schedule", NO_SINE, "--schedule sine"),
    of_value("--learning-rate", "nan", "a number ≥ 0"),
    of_value("--beta2", "1", "0 ≤ β < 1"),
    of_value("--final-fraction", "2", "a number from 0 to 1"),
    of_value("--seed", "4294967296", "a whole number from 0 to 2^32 - 1"),
    Refusal(
        63,
        "no-family",
        f"{REQUIRED}: MODEL (see pyllm2 train --help)",
        code=2,
        argv=("train",),
    ),
    Refusal(63, "no-out", f"{REQUIRED}: --out {HELP}", code=2, argv=BARE),
    of_another_run("other-recipe", RECIPE, "--other-engine --batch 1 --seed 7"),
    of_another_run("other-schedule", "recipe.steps = 20 (saved: 12)", "--other-engine --steps 20"),
    of_another_run("other-model", "model.num_heads = 4 (saved: 2)", OF_4_HEADS),
    of_another_run("other-threads", THREADS, "--threads 2"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_training_is_refused_in_one_line_before_it_starts(case: Refusal, tmp_path: Path) -> None:
    """Nothing on stdout, no new file."""
    write_shards(tmp_path)
    case.make(tmp_path)
    before = entries(tmp_path)
    outcome = in_process(case.argv or with_flags(case.flags), tmp_path)
    *notes, last = outcome.err.decode().splitlines()
    assert (outcome.code, outcome.out) == (case.code, b"")
    assert last == f"pyllm2: error: {case.error}"
    assert all("parameters; memory" in note or "backend numpy" in note for note in notes)
    assert entries(tmp_path) == before


def test_other_data_is_not_resumed(tmp_path: Path) -> None:
    """Row 74: a shard of the same name and size with one other token."""
    write_shards(tmp_path)
    trained(tmp_path)
    shard = tmp_path / "train_1.bin"
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1
    shard.write_bytes(data)
    outcome = in_process(with_flags("--resume --other-engine"), tmp_path)
    assert outcome.code == 1
    assert b"of another run: data.shards[1].digest = " in outcome.err


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    """Row 45: one line that names the file, which is not changed."""
    write_shards(tmp_path)
    trained(tmp_path)
    path = tmp_path / "out" / GOOD
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-10], "foreign": b"<html>" + data, "empty": b""}[damage])
    outcome = in_process(with_flags("--resume"), tmp_path)
    assert outcome.code == 1
    last = outcome.err.decode().splitlines()[-1]
    reasons = {
        "cut": "not a whole safetensors file: ",
        "foreign": "looks like a web page: ",
        "empty": "0 bytes: a header needs 8",
    }
    assert last.startswith(f"pyllm2: error: out/{GOOD}: {reasons[damage]}")


def with_file_limit(argv: Argv, folder: Path, blocks: int) -> Outcome:
    """Run with no file longer than `blocks` of 512 bytes, as under a quota."""
    words = ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh", *limited(argv)]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, env=environment(), timeout=TIMEOUT
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """Row 71: no temporary file is left, and with more space the run resumes."""
    write_shards(tmp_path)
    trained(tmp_path)
    whole = (tmp_path / "out" / GOOD).read_bytes()
    (tmp_path / "out" / GOOD).unlink()
    before = entries(tmp_path)
    outcome = with_file_limit(with_flags("--resume"), tmp_path, blocks=32)
    assert outcome.code == 1
    last = outcome.err.decode().splitlines()[-1]
    assert last == f"pyllm2: error: out/{GOOD}: file too large"
    assert entries(tmp_path) == before
    assert in_process(with_flags("--resume"), tmp_path).code == 0
    assert (tmp_path / "out" / GOOD).read_bytes() == whole


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Row 71: the log has reached the quota, the checkpoints have not."""
    write_shards(tmp_path)
    trained(tmp_path)
    (tmp_path / "out" / GOOD).unlink()
    with (tmp_path / "out" / "main.log").open("ab") as log:
        log.write(b"-" * (2**20 - 1 - log.tell()) + b"\n")
    outcome = with_file_limit(with_flags("--resume"), tmp_path, blocks=2**11)
    assert outcome.code == 1
    assert outcome.err.endswith(b"pyllm2: error: out/main.log: file too large\n")


def test_a_log_that_leads_elsewhere_is_refused_in_one_line(tmp_path: Path) -> None:
    """Row 19: main.log is a symbolic link."""
    write_shards(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "main.log").symlink_to("/dev/full")
    outcome = in_process(TRAIN, tmp_path)
    assert outcome.code == 1
    refusal = b"out/main.log: is a symbolic link, expected a regular file\n"
    assert outcome.err.endswith(b"pyllm2: error: " + refusal)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """Row 73: the second names the process of the first, which is not disturbed."""
    write_shards(tmp_path)
    first = start(with_flags("--steps 30"), tmp_path)
    try:
        for line in first.stderr or ():
            if b"| loss" in line:
                break
        first.send_signal(signal.SIGSTOP)  # lest it end before the second starts
        outcome = in_process(TRAIN, tmp_path)
        said = f"pyllm2: error: out: process {first.pid} is training into it\n"
        assert outcome.code == 1
        assert outcome.err.decode().endswith(said)
    finally:
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=TIMEOUT)
    assert first.returncode == 0
    assert (tmp_path / "out" / "model.bin").exists()


def test_a_loss_that_explodes_stops_the_run(tmp_path: Path) -> None:
    """Row 75: the error names the step and the last checkpoint; no model is written."""
    write_shards(tmp_path)
    argv = with_flags("--learning-rate 1e30 --warmup 11 --save-every 1 --val-every 0")
    outcome = in_process(argv, tmp_path)
    assert outcome.code == 1
    last = outcome.err.decode().splitlines()[-1]
    assert last.startswith("pyllm2: error: step ")
    assert "stopped; " in last
    assert not (tmp_path / "out" / "model.bin").exists()
    assert not list((tmp_path / "out").glob(".pyllm2-*"))


OF_A_MILLION = "--init layers=1,heads=2,channels=8,vocab=13,context=1000000"


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        ("--init d24", "needs 5,695 MB for training at batch 2, context 4"),
        (f"{OF_A_MILLION} --context 100000 --batch 1", "at batch 1, context 100000"),
    ],
    ids=["parameters", "activations"],
)
def test_what_does_not_fit_into_memory_is_refused(flags: str, needs: str, tmp_path: Path) -> None:
    """Row 76: 16 bytes per parameter and 4 per activation, in an address space of 2 GiB."""
    write_shards(tmp_path)
    outcome = as_process(with_flags(flags), tmp_path)
    assert outcome.code == 1
    said = outcome.err.decode()
    assert said.count("\n") == 1
    assert needs in said
    assert "lower --batch or --context, or take a smaller model" in said
    assert not (tmp_path / "out").exists()
