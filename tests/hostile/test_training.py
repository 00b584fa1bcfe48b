"""Rows 31 to 33, 65 and 71 to 76: training that is refused, stopped, or short of something."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..cli.program import Argument, Outcome, as_process, in_process, limited, start
from ..cli.toy_training import BARE, TRAIN, write_shards
from .case import entries

GOOD = "step_00000012.safetensors"


@dataclass(frozen=True)
class Refusal:
    """A request in a folder with shards: the one line, the exit code, what is there before."""

    row: int
    name: str
    error: str
    argv: tuple[Argument, ...]
    code: int = 1
    make: Callable[[Path], object] = lambda folder: None

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"


def small(*changes: str) -> tuple[Argument, ...]:
    return (*TRAIN, *changes)


def usage(name: str, error: str, *argv: str) -> Refusal:
    return Refusal(65, name, error, small(*argv), code=2)


def trained(folder: Path) -> None:
    assert in_process(TRAIN, folder).code == 0


def model_at(name: str) -> Callable[[Path], object]:
    """A model of the toy's shape under that name."""

    def make(folder: Path) -> None:
        assert in_process((*TRAIN, "--steps", "1", "--out", "made"), folder).code == 0
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "made" / "model.bin").rename(folder / name)

    return make


def of_another_run(fields: str) -> str:
    return f"out/{GOOD}: of another run: {fields}"


HELP = "(see pyllm2 train gpt2 --help)"
REFUSALS = [
    Refusal(33, "no-shards", "none_*.bin: matches no file", small("--train", "none_*.bin")),
    Refusal(33, "short-shard", "val.bin: needs 2001 tokens for B=2 T=1000, has 80",
            small("--init", "layers=1,heads=2,channels=8,vocab=13,context=1000", "--context",
                  "1000", "--train", "val.bin")),
    Refusal(32, "token-outside", "train_0.bin: token 12 at index 8: vocabulary is 12",
            small("--init", "layers=1,heads=2,channels=8,vocab=12,context=8")),
    Refusal(65, "over-input", "out/model.bin: the output would overwrite the input",
            small("--init", "out/model.bin"), code=2, make=model_at("out/model.bin")),
    Refusal(65, "out-is-a-file", "out: is a file, expected a folder", TRAIN,
            make=lambda folder: (folder / "out").write_text("mine")),
    Refusal(65, "out-is-the-input", "model.bin: is a file, expected a folder",
            small("--init", "model.bin", "--out", "model.bin"), make=model_at("model.bin")),
    Refusal(65, "out-below-a-file", "val.bin/out: not a directory", small("--out", "val.bin/out")),
    Refusal(65, "out-read-only", "/proc/none: no such file or directory",
            small("--out", "/proc/none")),
    Refusal(65, "out-has-a-run", "out: has a run already: --resume goes on with it", TRAIN,
            make=trained),
    Refusal(65, "nothing-to-resume", "out: has no checkpoint to resume from", small("--resume")),
    Refusal(27, "no-model", "none.bin: no such file or directory", small("--init", "none.bin")),
    usage("no-such-shape", "model 'd7': d with 6, 12, 24, 36, 48, 60, 72 or 84", "--init", "d7"),
    usage("context", "--context 16: the model has 8 positions", "--context", "16"),
    usage("total-batch", "total batch of 12 tokens: expected a multiple of batch 2 × context 4 = 8",
          "--total-batch", "12"),
    usage("warmup", "warm-up of 12 steps: expected fewer than the 12 of the run",
          "--warmup", "12"),
    usage("schedule", f"--schedule: invalid choice: 'sine' (choose from 'constant', 'linear', "
          f"'cosine', 'wsd', 'llama2') {HELP}", "--schedule", "sine"),
    usage("learning-rate", f"--learning-rate: 'nan': expected a number ≥ 0 {HELP}",
          "--learning-rate", "nan"),
    usage("beta2", f"--beta2: '1': expected 0 ≤ β < 1 {HELP}", "--beta2", "1"),
    usage("final-fraction", f"--final-fraction: '2': expected a number from 0 to 1 {HELP}",
          "--final-fraction", "2"),
    usage("seed", f"--seed: '4294967296': expected a whole number from 0 to 2^32 - 1 {HELP}",
          "--seed", str(2**32)),
    Refusal(23, "vocabulary", "bytes: has 257 tokens, the model expects 13",
            small("--tokenizer", "bytes")),
    Refusal(63, "no-family", "the following arguments are required: MODEL (see pyllm2 train "
            "--help)", ("train",), code=2),
    Refusal(63, "no-out", f"the following arguments are required: --out {HELP}", BARE, code=2),
    Refusal(74, "other-recipe", of_another_run(
                "recipe.batch = 1 (saved: 2), recipe.seed = 7 (saved: 42), "
                "recipe.total_batch = 4 (saved: 8)"),
            small("--resume", "--force", "--batch", "1", "--seed", "7"), make=trained),
    Refusal(74, "other-schedule", of_another_run("recipe.steps = 20 (saved: 12)"),
            small("--resume", "--force", "--steps", "20"), make=trained),
    Refusal(74, "other-model", of_another_run("model.num_heads = 4 (saved: 2)"),
            small("--resume", "--force", "--init",
                  "layers=1,heads=4,channels=8,vocab=13,context=8"), make=trained),
    Refusal(74, "other-threads", of_another_run(
                "engine.threads = 3 (saved: 1); with --force it goes on, and its last bits may "
                "differ"),
            small("--resume", "--threads", "3"), make=trained),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_training_is_refused_in_one_line_before_it_starts(case: Refusal, tmp_path: Path) -> None:
    """Nothing on stdout, no file that was not there."""
    write_shards(tmp_path)
    case.make(tmp_path)
    before = entries(tmp_path)
    outcome = in_process(case.argv, tmp_path)
    *notes, last = outcome.err.decode().splitlines()
    assert (outcome.code, outcome.out) == (case.code, b"")
    assert last == f"pyllm2: error: {case.error}"
    assert all("parameters; memory" in note or "backend numpy" in note for note in notes)
    assert entries(tmp_path) == before


def test_other_data_is_not_resumed(tmp_path: Path) -> None:
    """Row 74: a shard of the same name and size with one token changed."""
    write_shards(tmp_path)
    trained(tmp_path)
    shard = tmp_path / "train_1.bin"
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1
    shard.write_bytes(data)
    outcome = in_process(small("--resume", "--force"), tmp_path)
    assert outcome.code == 1
    assert b"of another run: data.shards[1].digest = " in outcome.err


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    """Rows 2, 45: one line, and the file stays as it is."""
    write_shards(tmp_path)
    trained(tmp_path)
    path = tmp_path / "out" / GOOD
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-10], "foreign": b"<html>" + data, "empty": b""}[damage])
    outcome = in_process(small("--resume"), tmp_path)
    assert outcome.code == 1
    last = outcome.err.decode().splitlines()[-1]
    reason = "0 bytes: a header needs 8" if damage == "empty" else "not a whole safetensors file: "
    assert last.startswith(f"pyllm2: error: out/{GOOD}: {reason}")


def with_file_limit(argv: tuple[Argument, ...], folder: Path, blocks: int) -> Outcome:
    """No file may grow beyond so many blocks of 512 bytes: what a quota does."""
    import subprocess

    from ..cli.program import environment

    words = ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh", *limited(argv)]
    done = subprocess.run(words, cwd=folder, capture_output=True, env=environment(), timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """Row 71: no temporary is left, and with room again it goes on."""
    write_shards(tmp_path)
    trained(tmp_path)
    whole = (tmp_path / "out" / GOOD).read_bytes()
    (tmp_path / "out" / GOOD).unlink()
    before = entries(tmp_path)
    outcome = with_file_limit(small("--resume"), tmp_path, blocks=32)
    assert outcome.code == 1
    last = outcome.err.decode().splitlines()[-1]
    assert last == f"pyllm2: error: out/{GOOD}: file too large"
    assert entries(tmp_path) == before
    assert in_process(small("--resume"), tmp_path).code == 0
    assert (tmp_path / "out" / GOOD).read_bytes() == whole


def test_a_device_that_is_full_is_said_in_one_line(tmp_path: Path) -> None:
    """Row 71: the log is a device that is always full."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    write_shards(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "main.log").symlink_to("/dev/full")
    outcome = in_process(TRAIN, tmp_path)
    assert outcome.code == 1
    assert outcome.err.endswith(b"pyllm2: error: out/main.log: no space left on device\n")


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """Row 73: the second is told the first's process, and does not disturb it."""
    write_shards(tmp_path)
    first = start((*TRAIN, "--steps", "300"), tmp_path)
    try:
        for line in first.stderr or ():
            if b"| loss" in line:
                break
        outcome = in_process(TRAIN, tmp_path)
        said = f"pyllm2: error: out: process {first.pid} is training into it\n"
        assert outcome.code == 1
        assert outcome.err.decode().endswith(said)
    finally:
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert (tmp_path / "out" / "model.bin").exists()


def test_a_loss_that_explodes_stops_the_run(tmp_path: Path) -> None:
    """Row 75: step, loss and the last good checkpoint; that one is still there."""
    write_shards(tmp_path)
    argv = small("--learning-rate", "1e30", "--warmup", "11", "--save-every", "1", "--val-every",
                 "0")  # fmt: skip
    outcome = in_process(argv, tmp_path)
    assert outcome.code == 1
    last = outcome.err.decode().splitlines()[-1]
    assert last.startswith("pyllm2: error: step ")
    assert "stopped; " in last
    assert not (tmp_path / "out" / "model.bin").exists()
    assert not list((tmp_path / "out").glob(".pyllm2-*"))


@pytest.mark.parametrize("row", [76])
def test_what_cannot_fit_is_refused_before_it_is_tried(row: int, tmp_path: Path) -> None:
    """16 bytes a parameter, 4 an activation, against 2 GiB of address space."""
    write_shards(tmp_path)
    shape = "layers=1,heads=2,channels=8,vocab=13,context=1000000"
    cases = (
        (("--init", "d24"), "needs 5,695 MB for training at batch 2, context 4"),
        (("--init", shape, "--context", "100000", "--batch", "1"), "at batch 1, context 100000"),
    )
    for flags, words in cases:
        outcome = as_process(small(*flags), tmp_path)
        assert outcome.code == 1
        said = outcome.err.decode()
        assert said.count("\n") == 1
        assert words in said
        assert "lower --batch or --context, or take a smaller model" in said
    assert not (tmp_path / "out").exists()
